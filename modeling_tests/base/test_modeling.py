"""What the base class of every model does beside the contract."""

from types import SimpleNamespace

import pytest
import torch
from transformers import BitsAndBytesConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from modeling_tests.tiny import tiny_model
from vlm_par_hf.base.modeling import evaluation_mode
from vlm_par_hf.models.vlm_par import VlmParModel


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_also_after_an_error(training):
    model = torch.nn.Sequential(torch.nn.Dropout()).train(training)
    with evaluation_mode(model):
        assert not model.training and not model[0].training
    assert model.training == model[0].training == training
    with pytest.raises(RuntimeError, match="out of memory"), evaluation_mode(model):
        raise RuntimeError("out of memory")
    assert model.training == model[0].training == training


def test_parts_that_stay_in_evaluation_mode_are_left_in_it():
    """A frozen backbone is in evaluation mode under a training model; the model restores that itself."""
    model = tiny_model("naflex").train()
    before = {name: module.training for name, module in model.named_modules()}
    with evaluation_mode(model):
        pass
    assert {name: module.training for name, module in model.named_modules()} == before
    assert len(set(before.values())) == 2


def test_modes_of_single_modules_are_restored():
    model = tiny_model("naflex").train()
    model.attribute_heads.eval()  # a user's choice
    before = {name: module.training for name, module in model.named_modules()}
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert {name: module.training for name, module in model.named_modules()} == before


@pytest.mark.parametrize("given", [{}, {"llm_int8_skip_modules": ["text_model"]}])
def test_the_patch_embedding_is_not_quantised(given):
    """The tower casts pixels to the dtype of its weights, so int8 would cut them to whole numbers."""
    settings = BitsAndBytesConfig(load_in_8bit=True, **given)
    for form in (settings, settings.to_dict()):
        found = VlmParModel._spare_modules(form)
        expected = [*given.get("llm_int8_skip_modules", []), "patch_embedding", "head.attention.out_proj"]
        assert found.load_in_8bit and found.llm_int8_skip_modules == expected
    assert settings.llm_int8_skip_modules == given.get("llm_int8_skip_modules")
    names = [name for name, _ in tiny_model("naflex").named_modules() if not should_convert_module(name, expected)]
    assert (
        "vlm.vision_model.embeddings.patch_embedding" in names and "vlm.vision_model.head.attention.out_proj" in names
    )
    assert not any("encoder.layers" in name for name in names if "text_model" not in name)


def test_a_quantisation_that_can_spare_nothing_is_refused():
    with pytest.raises(ValueError, match="patch_embedding, head.attention.out_proj must be, or answers change"):
        VlmParModel._spare_modules(SimpleNamespace(bits=4))


def test_a_quantised_model_is_not_folded():
    model = tiny_model("naflex")
    model.is_quantized = True
    with pytest.raises(ValueError, match="quantised when it was loaded"):
        model.fold()
