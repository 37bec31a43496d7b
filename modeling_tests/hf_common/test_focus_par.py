import unittest

from modeling_tests.hf_common.common import NoHiddenStates, ParModelTests
from modeling_tests.tiny import tiny_focus_model, tiny_inputs
from vlm_par_hf.models.focus_par import FocusParModel


class _FocusParTests(NoHiddenStates, ParModelTests):
    all_model_classes = (FocusParModel,)
    kind = "naflex"
    options = {}

    def build(self):
        return tiny_focus_model(self.kind, **self.options)

    def inputs(self, batch):
        return tiny_inputs("fixed" if self.kind == "clip" else self.kind, batch)


class Naflex(_FocusParTests, unittest.TestCase):
    pass


class Clip(_FocusParTests, unittest.TestCase):
    kind = "clip"
