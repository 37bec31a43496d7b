"""`ModelTesterMixin` and `ConfigTester` of transformers over a model of this package.

A family adds one small class (see `test_vlm_par.py`). Where our models promise something else than the common tests
expect, the test is overridden here with what they do promise, or skipped with the reason.
"""

import copy
import json
import tempfile
import unittest

import torch
from transformers import set_seed
from transformers.testing_utils import torch_device
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, seeded_weight_init


__all__ = ["NoHiddenStates", "ParModelTests"]


class _Tester:
    """What the common tests ask for a configuration and inputs."""

    batch_size = 3

    def __init__(self, test):
        self.test = test
        self.is_training = test.is_training

    def get_config(self):
        config = self.test.build().config
        # A new object, as loaded: the one of a model holds the attention that was chosen for it.
        return type(config).from_dict(config.to_dict())

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.test.inputs(self.batch_size)


class ParModelTests(ModelTesterMixin):
    """Base of the test classes; beside it `unittest.TestCase`.

    Of a family: `all_model_classes`, `build()` (a tiny model, its questions tokenized) and `inputs(batch)` (the
    keywords of `forward`).
    """

    _is_composite = True
    is_training = True
    trains_backbone = False
    needed_settings = ("attributes",)  # fields without which the tiny towers do not fit the configuration
    pretrained = ("vlm.",)  # how the names of the tensors begin that a family does not initialise itself
    test_resize_embeddings = False  # the vocabulary is the backbone's

    def build(self):
        raise NotImplementedError

    def inputs(self, batch):
        raise NotImplementedError

    def setUp(self):
        self.model_tester = _Tester(self)
        config = self.model_tester.get_config()
        # As the file has them, which leaves out what is a default.
        written = json.loads(config.to_json_string())
        self.config_tester = ConfigTester(
            self,
            config_class=type(config),
            has_text_modality=False,
            **{name: getattr(config, name) for name in self.needed_settings},
            **{name: written[name] for name in config.sub_configs},
        )

    def test_config(self):
        self.config_tester.create_and_test_config_with_num_labels = self.check_num_labels
        self.config_tester.run_common_tests()

    def check_num_labels(self):
        """The attributes say how many labels there are, and `num_labels` cannot contradict them."""
        names = self.model_tester.get_config().schema.names
        config = self.config_tester.config_class(**self.config_tester.inputs_dict, num_labels=len(names) + 2)
        self.assertEqual(config.id2label, dict(enumerate(names)))
        self.assertEqual(config.label2id, {name: index for index, name in enumerate(names)})

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        if return_labels:
            people, attributes = len(inputs["pixel_values"]), len(self.model_tester.get_config().schema)
            inputs["labels"] = torch.zeros(people, attributes, dtype=torch.int64, device=torch_device)
        return inputs

    # Overridden: another promise

    def test_attention_outputs(self):
        """`attentions` is one tensor, of the block that asks the questions, whatever the attention of the backbone."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config).to(torch_device).eval()
            with torch.no_grad():
                self.assertIsNone(model(**inputs).attentions)
                attentions = model(**inputs, output_attentions=True).attentions
            self.assertEqual(attentions.shape[:2], (len(inputs["pixel_values"]), len(config.schema)))
            shares = attentions.sum(-1)
            # 0 where there is nobody to ask, past an attribute's own labels.
            self.assertTrue((((shares - 1).abs() < 1e-5) | (shares == 0)).all())
            self.assertTrue((shares.flatten(2).amax(-1) > 0).all())

    def test_correct_missing_keys(self):
        """A backbone's checkpoint is none of ours: it is refused, and `from_backbone` named."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            with tempfile.TemporaryDirectory() as folder:
                model.base_model.save_pretrained(folder)
                with self.assertRaisesRegex(ValueError, r"holds a '\w+' model, expected .*from_backbone"):
                    model_class.from_pretrained(folder)

    def test_model_weights_reload_no_missing_tied_weights(self):
        """A checkpoint without weights is refused; the common test expects a random model and a warning."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder, state_dict={"pad": torch.tensor([1.0])})
                with self.assertRaisesRegex(ValueError, r"model.safetensors lacks \d+ tensors for its config.json"):
                    model_class.from_pretrained(folder)

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        """Of the vision tower: the common test watches the first layer, of a text tower that no step runs again."""
        if not self.trains_backbone:
            self.skipTest("the layers that could be computed again are in the backbone, which is frozen")
        found = []
        for again in (False, True):
            set_seed(0)
            model = self.all_model_classes[0](self.model_tester.get_config()).to(torch_device).train()
            if again:
                # transformers 5.20 knows it by its former name only.
                enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
                enable(gradient_checkpointing_kwargs)
            inputs = self._prepare_for_class(self.inputs(3), type(model), return_labels=True)
            model(**inputs)  # encodes the questions
            calls = []
            model.vlm.vision_model.encoder.layers[0].mlp.register_forward_pre_hook(
                lambda *_, calls=calls: calls.append(1)
            )
            model(**inputs).loss.backward()
            self.assertEqual(len(calls), 2 if again else 1)
            found.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
        for name, gradient in found[0].items():
            torch.testing.assert_close(found[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")

    def test_can_init_all_missing_weights(self):
        """Of our own modules; transformers leaves this test out for the backbones, which do not pass it."""
        for model_class in self.all_model_classes:
            with seeded_weight_init():
                built = model_class(self.model_tester.get_config())
                # Nothing to load: every tensor starts on the meta device and is filled by `_init_weights`.
                filled = model_class.from_pretrained(None, config=self.model_tester.get_config(), state_dict={})
            for name, tensor in built.state_dict().items():
                if not name.startswith(self.pretrained):
                    self.assertTrue(torch.equal(filled.state_dict()[name], tensor), name)

    def test_hidden_states_output(self):
        """`hidden_states` are those of the vision tower; FOCUS names them and gives none."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config).to(torch_device).eval()
            if not model.supports_features:
                with self.assertRaisesRegex(ValueError, "the backbone's own, model.vlm.vision_model"):
                    model(**inputs, output_hidden_states=True)
                continue
            with torch.no_grad():
                self.assertIsNone(model(**inputs).hidden_states)
                states = model(**inputs, output_hidden_states=True).hidden_states
                features = model.get_image_features(**inputs, output_hidden_states=True)
            self.assertEqual(len(states), model.vision_tower.config.num_hidden_layers + 1)
            for state, same in zip(states, features.hidden_states):
                self.assertEqual(state.shape, features.last_hidden_state.shape)
                self.assertTrue(torch.equal(state, same))

    def test_text_features(self):
        """`get_text_features` is the backbone's own, in whatever form it is asked for."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        input_ids = torch.randint(0, 300, (2, 7), generator=torch.Generator().manual_seed(0)).to(torch_device)
        for model_class in self.all_model_classes:
            model = model_class(config).to(torch_device).eval()
            for options in ({}, {"output_hidden_states": True}, {"return_dict": False}):
                with torch.no_grad():
                    own = model.get_text_features(input_ids, **options)
                    backbones = model.vlm.get_text_features(input_ids=input_ids, **options)
                self.assertIs(type(own), type(backbones))
                pooled, expected = (
                    one[1] if isinstance(one, tuple) else one.pooler_output for one in (own, backbones)
                )
                self.assertTrue(torch.equal(pooled, expected))
                if "output_hidden_states" in options:
                    layers = model.vlm.config.text_config.num_hidden_layers
                    self.assertEqual(len(own.hidden_states), layers + 1)

    # Skipped: not promised

    @unittest.skip("a frozen backbone has no gradients")
    def test_retain_grad_hidden_states_attentions(self):
        pass


class NoHiddenStates:
    """Beside `ParModelTests`, of a family that gives no hidden states (`test_hidden_states_output`)."""

    @unittest.skip("gives no hidden states (test_hidden_states_output)")
    def test_can_capture_specific_layers_hidden_states(self):
        pass

    @unittest.skip("gives no hidden states (test_hidden_states_output)")
    def test_capture_outputs_decorator(self):
        pass

    def test_model_outputs_equivalence(self):
        """As the common test, without hidden states."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model_class = self.all_model_classes[0]
        model = model_class(config).to(torch_device).eval()
        for labels in (False, True):
            given = self._prepare_for_class(inputs, model_class, return_labels=labels)
            with torch.no_grad():
                entries = model(**given, output_attentions=True, return_dict=False)
                named = model(**given, output_attentions=True, return_dict=True)
            self.assertEqual(len(entries), len(named.to_tuple()))
            self.assertEqual("loss" in named, labels)
            for entry, same in zip(entries, named.to_tuple()):
                torch.testing.assert_close(entry, same, rtol=0, atol=0)


def _skip(prefix, reason):
    names = [name for name in dir(ModelTesterMixin) if name.startswith(prefix)]
    assert names, f"{prefix}: transformers has no such test any more"
    for name in names:
        setattr(ParModelTests, name, unittest.skip(reason)(getattr(ModelTesterMixin, name)))


_skip("test_eager_matches_sdpa_inference_", "compares hidden_states; test_contract.py compares logits")
_LOOK = "looks for the towers' configurations beside the label space, ours are in vlm_config; tested in "
_skip("test_get_image_features_", _LOOK + "test_hidden_states_output and modeling_tests/base/test_outputs.py")
_skip("test_get_text_features_", _LOOK + "test_text_features")
