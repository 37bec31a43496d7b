"""What the base class of every model does beside the contract."""

import pytest
import torch

from modeling_tests.tiny import tiny_model
from vlm_par_hf.base.modeling import evaluation_mode


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
