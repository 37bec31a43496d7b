import unittest

import torch
from transformers.testing_utils import torch_device

from modeling_tests.hf_common.common import ParModelTests
from modeling_tests.tiny import tiny_focus_model, tiny_inputs
from vlm_par_hf.models.focus_par import FocusParModel


class _FocusParTests(ParModelTests):
    all_model_classes = (FocusParModel,)
    kind = "naflex"
    options = {}

    def build(self):
        return tiny_focus_model(self.kind, **self.options)

    def inputs(self, batch):
        return tiny_inputs("fixed" if self.kind == "clip" else self.kind, batch)

    @unittest.skip("gives no hidden states (test_hidden_states_output)")
    def test_can_capture_specific_layers_hidden_states(self):
        pass

    @unittest.skip("gives no hidden states (test_hidden_states_output)")
    def test_capture_outputs_decorator(self):
        pass

    def test_model_outputs_equivalence(self):
        """As the common test, without hidden states: FOCUS has none of its own (`test_hidden_states_output`)."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = FocusParModel(config).to(torch_device).eval()
        for labels in (False, True):
            given = self._prepare_for_class(inputs, FocusParModel, return_labels=labels)
            with torch.no_grad():
                entries = model(**given, output_attentions=True, return_dict=False)
                named = model(**given, output_attentions=True, return_dict=True)
            self.assertEqual(len(entries), len(named.to_tuple()))
            self.assertEqual("loss" in named, labels)
            for entry, same in zip(entries, named.to_tuple()):
                self.assertTrue(torch.equal(entry, same))


class Naflex(_FocusParTests, unittest.TestCase):
    pass


class Clip(_FocusParTests, unittest.TestCase):
    kind = "clip"
