import tempfile
import unittest

import torch
from transformers.testing_utils import torch_device

from modeling_tests.hf_common.common import NoHiddenStates, ParModelTests
from modeling_tests.tiny import tiny_clear_model, tiny_inputs
from vlm_par_hf.models.clear_par import ClearParModel


class _ClearParTests(NoHiddenStates, ParModelTests):
    all_model_classes = (ClearParModel,)
    needed_settings = ("attributes", "image_size", "num_fusion_heads")
    pretrained = ("vit.", "swin.")
    options = {}

    def build(self):
        return tiny_clear_model(**self.options)

    def inputs(self, batch):
        return tiny_inputs("clear", batch)

    def test_attention_outputs(self):
        """`attentions` is a pair: what the vector of each branch looks at in the other."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = ClearParModel(config).to(torch_device).eval()
        with torch.no_grad():
            self.assertIsNone(model(**inputs).attentions)
            attentions = model(**inputs, output_attentions=True).attentions
        self.assertEqual(len(attentions), 2)
        for one in attentions:
            torch.testing.assert_close(one.sum(-1), torch.ones_like(one[..., 0]))

    def test_hidden_states_output(self):
        """Two branches have states of two widths; each is asked for its own."""
        model = self.build()
        with self.assertRaisesRegex(ValueError, "output_hidden_states is True: this model has two branches"):
            model(**self.inputs(1), output_hidden_states=True)

    def test_correct_missing_keys(self):
        """A branch alone is no checkpoint of ours: it is refused, and `from_backbone` named."""
        with tempfile.TemporaryDirectory() as folder:
            self.build().vit.save_pretrained(folder)
            with self.assertRaisesRegex(ValueError, r"holds a 'vit' model, expected .*from_backbone"):
                ClearParModel.from_pretrained(folder)

    def test_model_get_set_embeddings(self):
        """The embeddings are of patches, as those of a `ViTModel`."""
        model = self.build()
        self.assertIs(model.get_input_embeddings(), model.vit.get_input_embeddings())

    @unittest.skip("reads no texts")
    def test_text_features(self):
        pass


class Whole(_ClearParTests, unittest.TestCase):
    pass


class Printed(_ClearParTests, unittest.TestCase):
    options = {"casa": "paper", "swin_pooling": "flatten", "fusion_projection": "before", "freeze": "last_stages"}
