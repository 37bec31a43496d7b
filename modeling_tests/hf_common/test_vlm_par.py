import unittest

from modeling_tests.hf_common.common import ParModelTests
from modeling_tests.tiny import tiny_inputs, tiny_model
from vlm_par_hf.models.vlm_par import VlmParModel


class _VlmParTests(ParModelTests):
    all_model_classes = (VlmParModel,)
    kind = "naflex"
    options = {}

    def build(self):
        return tiny_model(self.kind, **self.options)

    def inputs(self, batch):
        return tiny_inputs(self.kind, batch)


class NaflexTextToImage(_VlmParTests, unittest.TestCase):
    pass


class NaflexImageToText(_VlmParTests, unittest.TestCase):
    options = {"fusion": "image_to_text", "alignment": "none"}


class FixedImageToText(_VlmParTests, unittest.TestCase):
    kind = "fixed"
    options = {"fusion": "image_to_text"}


class FixedTextToImageTrained(_VlmParTests, unittest.TestCase):
    kind = "fixed"
    options = {"freeze_backbone": False}
    trains_backbone = True
