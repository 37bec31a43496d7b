import unittest

import torch
from transformers.testing_utils import torch_device

from modeling_tests.hf_common.common import ParModelTests
from modeling_tests.tiny import tiny_vtf_inputs, tiny_vtf_model
from vlm_par_hf.models.vtf_par import VtfParModel


class _VtfParTests(ParModelTests):
    all_model_classes = (VtfParModel,)
    needed_settings = ("attributes", "num_fusion_heads")
    kind = "naflex"
    options = {}

    def build(self):
        return tiny_vtf_model(self.kind, **self.options)

    def inputs(self, batch):
        return tiny_vtf_inputs(self.kind, batch)

    def test_attention_outputs(self):
        """`attentions` is how much each frame counts for each label."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = VtfParModel(config).to(torch_device).eval()
        with torch.no_grad():
            self.assertIsNone(model(**inputs).attentions)
            attentions = model(**inputs, output_attentions=True).attentions
        shape = (*model(**inputs).logits.shape, inputs["frame_mask"].shape[1])
        self.assertEqual(attentions.shape, shape)
        own = torch.from_numpy(config.schema.label_mask()).float()
        torch.testing.assert_close(attentions.sum(-1), own.expand(len(attentions), -1, -1))


class Attention(_VtfParTests, unittest.TestCase):
    options = {"temporal": "attention"}


class QualityKway(_VtfParTests, unittest.TestCase):
    kind = "kway"
    options = {"temporal": "quality", "num_fusion_layers": 2}


class MeanOfClip(_VtfParTests, unittest.TestCase):
    kind = "clip"
    options = {"temporal": "mean", "logit_norm": "batch"}

    def test_hidden_states_output(self):
        """The states are those of the layers; the tokens that the model reads are projected, so of another width."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = VtfParModel(config).to(torch_device).eval()
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
            features = model.get_image_features(inputs["pixel_values"], output_hidden_states=True)
        self.assertEqual(len(states), model.vision_tower.config.num_hidden_layers + 1)
        self.assertEqual(features.last_hidden_state.shape, (*states[-1].shape[:-1], config.token_width))


class FixedTrained(_VtfParTests, unittest.TestCase):
    kind = "fixed"
    options = {"freeze_backbone": False, "temporal": "attention"}
    trains_backbone = True
