"""The outputs of the models: what transformers' own have, and the three of before."""

import copy
import pickle

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_tests.tiny import tiny_focus_model, tiny_inputs, tiny_model, tiny_processor
from vlm_par_hf.base.outputs import ParImageFeatures


FEATURES = ParImageFeatures(torch.ones(2, 3, 4), torch.zeros(2, 4), patch_mask=torch.ones(2, 3).bool())


def test_features_are_an_output_of_transformers_and_unpack_into_three():
    assert isinstance(FEATURES, BaseModelOutputWithPooling)
    assert list(FEATURES.keys()) == ["last_hidden_state", "pooler_output", "patch_mask"]
    patches, pooled, mask = FEATURES
    assert patches is FEATURES["last_hidden_state"] and pooled is FEATURES[1] and mask is FEATURES.patch_mask
    assert FEATURES.as_inputs() == {"patch_embeds": patches, "image_embeds": pooled, "patch_mask": mask}
    patches, pooled, mask = ParImageFeatures(patches, patch_mask=mask)
    assert pooled is None and mask is FEATURES.patch_mask


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda one: pickle.loads(pickle.dumps(one))])
def test_features_are_copied_whole(copied):
    again = copied(FEATURES)
    assert type(again) is ParImageFeatures and {**again}.keys() == {**FEATURES}.keys()
    for name, value in FEATURES.items():
        assert torch.equal(again[name], value)


@pytest.mark.parametrize("kind", ["naflex", "fixed"])
@pytest.mark.parametrize("folded", [False, True])
def test_features_are_those_of_the_backbone(kind, folded):
    model, inputs = tiny_model(kind), tiny_inputs(kind)
    expected = model.vlm.get_image_features(**inputs, output_hidden_states=True)
    model = model.fold() if folded else model
    with torch.no_grad():
        features = model.get_image_features(**inputs, output_hidden_states=True)
        for name, value in expected.items():
            torch.testing.assert_close(features[name], value)
        states = model(**inputs, output_hidden_states=True).hidden_states
        torch.testing.assert_close(states, expected.hidden_states)
        assert torch.equal(model(**features.as_inputs()).logits, model(**inputs).logits)
        as_tuple = model.get_image_features(**inputs, return_dict=False)
        assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], features.last_hidden_state)
        model.config.output_hidden_states = True
        assert len(model(**inputs).hidden_states) == 3
        assert model(**features.as_inputs()).hidden_states is None  # nobody asked for them in this call
        model.config.return_dict = False
        assert torch.equal(model(**inputs)[0], model(**inputs, return_dict=True).logits)


def test_what_cannot_be_given_is_refused():
    model, inputs = tiny_model("naflex", fusion="none"), tiny_inputs("naflex")
    with pytest.raises(ValueError, match="output_hidden_states is True, but patch_embeds were given"):
        model(**model.get_image_features(**inputs).as_inputs(), output_hidden_states=True)
    with pytest.raises(ValueError, match=r"output_attentions is True, but config.fusion is 'none'.*patch_evidence"):
        model(**inputs, output_attentions=True)
    with pytest.raises(ValueError, match="input_ids were given, but a VlmParModel asks the questions of config"):
        model(**inputs, input_ids=torch.ones(1, 4).long())
    focus = tiny_focus_model("naflex")
    with pytest.raises(ValueError, match="output_hidden_states is True: patches do not see the mix tokens"):
        focus(**inputs, output_hidden_states=True)
    with pytest.raises(ValueError, match=r"texts come as attributes= of what model.encode_attributes"):
        focus(**inputs, input_ids=torch.ones(1, 4).long())


@pytest.mark.parametrize("build", [tiny_model, tiny_focus_model])
def test_features_of_texts_are_those_of_the_backbone(build):
    model, texts = build("naflex"), tiny_processor("naflex")(text=["a hat", "a backpack"])
    features = model.get_text_features(**texts)
    assert isinstance(features, BaseModelOutputWithPooling) and features.pooler_output.shape[0] == 2
    assert torch.equal(features.pooler_output, model.vlm.get_text_features(**texts).pooler_output)
    if model.supports_fold:
        with pytest.raises(RuntimeError, match="a folded model has no text tower: load the model that was folded"):
            model.fold().get_text_features(**texts)
