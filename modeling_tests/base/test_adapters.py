"""Adapters of peft inside a module: what is found, named and merged."""

import copy

import pytest
import torch
from torch import nn

from modeling_tests.tiny import randomize, tiny_focus_model, tiny_inputs, tiny_model
from vlm_par_hf.base.adapters import (
    adapter_parameters,
    adapter_state,
    base_names,
    check_lora,
    has_adapters,
    merge_adapters,
    plain_name,
)


peft = pytest.importorskip("peft", reason="needs the extra peft")

LORA = {"rank": 4, "alpha": 8, "layers": 2, "targets": ["q_proj"]}


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 3)})


@pytest.fixture
def adapted(plain):
    """`first` has an adapter, `second` is trained as a whole."""
    config = peft.LoraConfig(r=2, target_modules=["first"], modules_to_save=["second"])
    return randomize(peft.inject_adapter_in_model(config, copy.deepcopy(plain)))


def run(module, rows):
    return module["second"](module["first"](rows))


def test_a_module_without_adapters(plain):
    assert not has_adapters(plain) and adapter_state(plain) == [] and adapter_parameters(plain) == []
    assert base_names(plain) == {name: name for name in plain.state_dict()}


def test_names_and_parameters(plain, adapted):
    state, names = adapted.state_dict(), base_names(adapted)
    assert set(names.values()) == set(plain.state_dict()) and len(names) == 4 < len(state)
    assert torch.equal(state["first.base_layer.weight"], plain["first"].weight)
    assert names["second.original_module.weight"] == "second.weight"
    found = {id(one) for one in adapter_parameters(adapted)}
    assert {name for name, one in adapted.named_parameters() if id(one) in found} == {
        "first.lora_A.default.weight",
        "first.lora_B.default.weight",
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("heads.gate", "heads.gate"),
        ("heads.modules_to_save.default.gate", "heads.gate"),
        ("tower.q_proj.base_layer.weight", "tower.q_proj.weight"),
        ("heads.original_module.gate", "heads.gate"),
    ],
)
def test_plain_name(name, expected):
    assert plain_name(name) == expected


def test_state_says_what_is_active_and_how_much_it_counts(adapted):
    before = adapter_state(adapted)
    assert [row[0] for row in before] == ["first", "second"]
    adapted["first"].scale_layer(0.5)
    scaled = adapter_state(adapted)
    adapted["first"].enable_adapters(False)
    assert before != scaled != adapter_state(adapted)


def test_merging_takes_the_copies_that_answer(plain, adapted):
    rows = torch.randn(5, 4)
    expected = run(adapted, rows)
    merge_adapters(adapted)
    assert not has_adapters(adapted) and not hasattr(adapted, "peft_config")
    torch.testing.assert_close(run(adapted, rows), expected)
    assert not torch.allclose(expected, run(plain, rows))


def test_what_is_switched_off_is_not_merged(plain, adapted):
    for name in ("first", "second"):
        adapted[name].enable_adapters(False)
    merge_adapters(adapted)
    rows = torch.randn(5, 4)
    assert torch.equal(run(adapted, rows), run(plain, rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": True}, "lora rank is True, expected a whole number from 1 to 64"),
        ({"rank": 65}, "lora rank is 65, expected a whole number from 1 to 64"),
        ({"layers": 3}, "lora layers is 3, expected a whole number from 1 to 2"),
        ({"alpha": 0}, "lora alpha is 0, expected a number above 0"),
        ({"alpha": float("nan")}, "lora alpha is nan, expected a number above 0"),
        ({"targets": []}, r"lora targets is \[\], expected a list of names"),
        ({"targets": "q_proj"}, "lora targets is 'q_proj', expected a list of names"),
        ({"dropout": 0.1}, "lora must be None or a dict of alpha, layers, rank, targets"),
    ],
)
def test_a_field_of_a_configuration_is_checked(change, message):
    check_lora(None, 2, 64)
    check_lora(LORA, 2, 64)
    with pytest.raises(ValueError, match=message):
        check_lora({**LORA, **change}, 2, 64)


@pytest.mark.parametrize("make", [tiny_model, tiny_focus_model])
def test_the_configuration_builds_the_adapters(make):
    model = make("naflex", lora=LORA)
    assert len(adapter_parameters(model.vlm.vision_model)) == 4 and not has_adapters(model.vlm.text_model)


def test_what_is_kept_follows_adapters_of_the_heads():
    """No tensor changes when an adapter is switched off; the constants of the heads do."""
    config = peft.LoraConfig(r=2, target_modules=r".*vision_model.*q_proj", modules_to_save=["attribute_heads"])
    model = peft.get_peft_model(randomize(tiny_model("naflex")), config)
    randomize(model.attribute_heads.modules_to_save)
    inputs = tiny_inputs("naflex")
    with torch.no_grad():
        on = model(**inputs).logits
        with model.disable_adapter():
            off = model(**inputs).logits
        assert not torch.equal(on, off) and torch.equal(model(**inputs).logits, on)


def test_peft_is_asked_for_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match=r"peft is needed here and is not installed: pip install .*\[peft\]"):
        tiny_model("naflex").add_lora(2)
