"""Habits of people who fine-tune: adapters of peft, the last layers, another label space.

One row is what a user types, and what comes out of it or the message that names the way.
"""

import json
from importlib.metadata import version

import pytest
import torch
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments, pipeline

from modeling_tests.bands import build_data
from modeling_tests.tiny import (
    randomize,
    save_backbone,
    tiny_focus_model,
    tiny_focus_processor,
    tiny_inputs,
    tiny_model,
    tiny_processor,
    tiny_schema,
)
from vlm_par_hf import AttributeSchema, ParCollator, ParMetrics, VlmParModel
from vlm_par_hf.base.adapters import base_names, has_adapters
from vlm_par_hf.cli.main import main
from vlm_par_hf.export import export_model
from vlm_par_hf.features import compute_features


peft = pytest.importorskip("peft", reason="needs the extra peft")

EVERY_STEP = {"strategy": "steps", "steps": 1}
TOWER = r".*vision_model.*\.(q_proj|v_proj)"
MODELS = {
    "vlm_par": ("naflex", tiny_model, tiny_processor, "attribute_heads"),
    "focus_par": ("naflex", tiny_focus_model, tiny_focus_processor, "extraction"),
    "focus_par over CLIP": ("clip", tiny_focus_model, tiny_focus_processor, "extraction"),
}


def inputs_of(kind):
    return tiny_inputs("fixed" if kind == "clip" else kind)


@torch.no_grad()
def answer(model, kind="naflex"):
    return model.eval()(**inputs_of(kind)).logits


def adapt(model, heads="attribute_heads", **settings):
    settings = {"r": 4, "target_modules": TOWER, "modules_to_save": [heads], **settings}
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def train_briefly(model, kind="naflex", steps=3):
    model.train()
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-2, adapter_learning_rate=1e-2))
    labels = torch.zeros(3, len(model.schema), dtype=torch.int64)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs_of(kind), labels=labels).loss.backward()
        optimizer.step()
    return {name: one.grad for name, one in model.named_parameters() if one.requires_grad}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def trained(request, tmp_path_factory):
    """A checkpoint, a PeftModel over it that was trained a little, the base's tensors, gradients, and its folder."""
    kind, make, make_processor, heads = request.param
    base = tmp_path_factory.mktemp("base")
    randomize(make(kind)).save_pretrained(base)
    make_processor(kind).save_pretrained(base)
    model = AutoModel.from_pretrained(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = adapt(model, heads)
    gradients = train_briefly(adapted, kind)
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(folder)
    return kind, base, adapted, before, gradients, folder


def test_get_peft_model_trains_adapters_inside_the_frozen_tower(trained):
    _, _, adapted, _, gradients, _ = trained
    lora = [name for name in gradients if "lora_" in name]
    assert len(lora) == 8 and all(gradients[name].any() for name in lora)
    assert all(one.requires_grad == ("lora_" in name or "modules_to_save" in name) for name, one in
               adapted.named_parameters())  # fmt: skip


def test_get_peft_model_leaves_the_base_as_it_was(trained):
    _, _, adapted, before, _, _ = trained
    model = adapted.get_base_model()
    state = model.state_dict()
    found = {plain: state[name] for name, plain in base_names(model).items()}
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in before.items())


def test_peft_model_from_pretrained_answers_the_same(trained):
    kind, base, adapted, _, _, folder = trained
    again = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder)
    assert torch.equal(answer(again, kind), answer(adapted, kind))


def test_auto_model_loads_an_adapter_only_folder_through_its_base(trained):
    kind, base, adapted, _, _, folder = trained
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    again = AutoModel.from_pretrained(folder)
    torch.testing.assert_close(answer(again, kind), answer(adapted, kind))
    assert type(again) is type(adapted.get_base_model())


def test_an_adapter_that_is_switched_off_leaves_the_answers_of_the_base(trained):
    kind, base, adapted, _, _, _ = trained
    on = answer(adapted, kind)
    with adapted.disable_adapter():
        assert torch.equal(answer(adapted, kind), answer(AutoModel.from_pretrained(base), kind))
    assert torch.equal(answer(adapted, kind), on)


def test_merge_and_unload_gives_a_checkpoint_as_any_other(trained, tmp_path):
    kind, base, adapted, _, _, folder = trained
    again = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder)
    merged = again.merge_and_unload()
    torch.testing.assert_close(answer(merged, kind), answer(adapted, kind), rtol=1e-5, atol=1e-5)
    merged.save_pretrained(tmp_path)
    assert torch.equal(answer(AutoModel.from_pretrained(tmp_path), kind), answer(merged, kind))


def test_fold_takes_the_adapters_with_it(trained):
    kind, _, adapted, _, _, _ = trained
    if not adapted.supports_fold:
        pytest.skip("FOCUS has no fold()")
    torch.testing.assert_close(answer(adapted.fold(), kind), answer(adapted, kind), rtol=1e-5, atol=1e-5)
    assert has_adapters(adapted.vlm) and not has_adapters(adapted.fold())


def test_save_pretrained_of_the_model_inside_names_the_way(trained, tmp_path):
    with pytest.raises(ValueError, match=r"merge_and_unload\(\)\.save_pretrained"):
        trained[2].get_base_model().save_pretrained(tmp_path)


def test_from_pretrained_of_our_class_on_an_adapter_names_the_way(trained):
    _, base, adapted, _, _, folder = trained
    with pytest.raises(ValueError, match=rf"adapter of peft and no model.*\({base}\), then peft.PeftModel.from_pret"):
        type(adapted.get_base_model()).from_pretrained(folder)


def test_a_pipeline_over_an_adapter_only_folder(trained):
    kind, base, _, _, _, folder = trained
    processor = AutoProcessor.from_pretrained(base)
    pipe = pipeline("pedestrian-attributes", model=str(folder), processor=processor)
    assert has_adapters(pipe.model)


def test_suffixes_match_the_text_tower_too_and_a_warning_says_that_it_learns_nothing(caplog):
    adapted = adapt(randomize(tiny_model("naflex")), target_modules=["q_proj", "v_proj"])
    from vlm_par_hf.models.vlm_par import modeling_vlm_par

    modeling_vlm_par.logger.warning_once.cache_clear()
    gradients = train_briefly(adapted, steps=1)
    assert "text tower require gradients and will get none" in caplog.text and ".*vision_model.*" in caplog.text
    assert all((one is None) == ("text_model" in name) for name, one in gradients.items())


def test_focus_learns_in_both_towers():
    adapted = adapt(randomize(tiny_focus_model("naflex")), "extraction", target_modules=["q_proj", "v_proj"])
    gradients = train_briefly(adapted)
    assert len(gradients) > 16 and all(one.any() for one in gradients.values())


def test_an_adapter_over_a_fresh_model_goes_back_into_one(tmp_path):
    """A model from `from_backbone` lies nowhere: the adapter names no base, least of all the bare backbone."""
    save_backbone(tmp_path / "backbone", tiny_model("naflex"), tiny_processor("naflex"))

    def fresh():
        return VlmParModel.from_backbone(tmp_path / "backbone", attributes=tiny_schema())

    adapted = adapt(fresh())
    train_briefly(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] is None
    again = peft.PeftModel.from_pretrained(fresh(), tmp_path / "adapter")
    assert torch.equal(answer(again), answer(adapted))
    with pytest.raises(ValueError, match="it names none"):
        VlmParModel.from_pretrained(tmp_path / "adapter")


def test_add_adapter_where_transformers_takes_the_installed_peft(tmp_path):
    from transformers.integrations.peft import MIN_PEFT_VERSION

    randomize(tiny_model("naflex")).save_pretrained(tmp_path / "base")
    model = AutoModel.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=TOWER, modules_to_save=["attribute_heads"])
    if tuple(map(int, version("peft").split("."))) < tuple(map(int, MIN_PEFT_VERSION.split("."))):
        with pytest.raises(ValueError, match=f"version of PEFT you are using is not compatible.*{MIN_PEFT_VERSION}"):
            model.add_adapter(config)
        return
    before = answer(model)
    model.add_adapter(config)
    assert torch.equal(answer(model), before)
    gradients = train_briefly(model)
    assert all(gradients[name].any() for name in gradients if "lora_" in name)
    model.save_pretrained(tmp_path / "adapter")
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    assert torch.equal(answer(AutoModel.from_pretrained(tmp_path / "adapter")), answer(model))


def test_two_adapters_take_turns():
    adapted = adapt(randomize(tiny_model("naflex")))
    plain = answer(adapted)
    adapted.add_adapter("other", peft.LoraConfig(r=2, target_modules=TOWER, modules_to_save=["attribute_heads"]))
    train_briefly(adapted)
    first = answer(adapted)
    adapted.set_adapter("other")
    assert torch.equal(answer(adapted), plain) and not torch.equal(first, plain)
    adapted.set_adapter("default")
    assert torch.equal(answer(adapted), first)


@pytest.mark.parametrize(
    "options",
    [{}, {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
     {"bf16": True}],
    ids=["plain", "activation checkpointing", "bf16"],
)  # fmt: skip
def test_the_plain_trainer_trains_a_peft_model(tmp_path, options):
    adapted, data = adapt(randomize(tiny_model("naflex"))), build_data(tiny_schema(), {"train": 16, "validation": 8})
    arguments = {f"{when}_{name}": value for when in ("eval", "save") for name, value in EVERY_STEP.items()}
    if not hasattr(TrainingArguments, "activation_checkpointing"):  # transformers before 5.23
        options = {name.replace("activation", "gradient"): value for name, value in options.items()}
    trainer = Trainer(
        model=adapted,
        args=TrainingArguments(
            tmp_path, remove_unused_columns=False, label_names=["labels"], max_steps=2, report_to=[], use_cpu=True,
            disable_tqdm=True, per_device_train_batch_size=8, load_best_model_at_end=True, metric_for_best_model="mA",
            **arguments, **options,
        ),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=ParCollator(tiny_processor("naflex")),
        compute_metrics=ParMetrics(tiny_schema()),
        optimizers=(torch.optim.AdamW(adapted.parameter_groups(1e-2, adapter_learning_rate=1e-2)), None),
    )  # fmt: skip
    trainer.train()
    moved = [one.any() for name, one in adapted.named_parameters() if "lora_B" in name]
    assert len(moved) == 4 and all(moved)
    assert sorted(path.name for path in (tmp_path / "checkpoint-1").glob("*.safetensors")) == [
        "adapter_model.safetensors"
    ]


def test_features_are_not_computed_once_while_adapters_learn():
    with pytest.raises(ValueError, match="adapters such as LoRA.*train from images"):
        compute_features(adapt(tiny_model("naflex")), build_data(tiny_schema())["train"], tiny_processor("naflex"))


def test_features_of_another_adapter_are_refused(tmp_path):
    data, processor = build_data(tiny_schema())["validation"], tiny_processor("naflex")
    model = randomize(tiny_model("naflex"))
    options = {"directory": tmp_path, "progress": False}
    compute_features(model, data, processor, **options)
    adapted = adapt(model)
    adapted.eval().requires_grad_(False)
    with pytest.raises(ValueError, match="weights_sha256"):
        compute_features(adapted, data, processor, **options)


def test_lora_of_our_own_is_saved_with_the_model(tmp_path):
    model = randomize(tiny_model("naflex"))
    before = answer(model)
    model.add_lora(4, layers=1, targets=["q_proj", "fc1"])
    assert torch.equal(answer(model), before) and model.trains_vision_tower and not model.trains_backbone_weights
    train_briefly(model)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    expected = answer(model)
    assert torch.equal(answer(again), expected)
    assert again.config.lora == {"rank": 4, "alpha": 8, "layers": 1, "targets": ["q_proj", "fc1"]}
    again.merge_lora()
    torch.testing.assert_close(answer(again), expected, rtol=1e-5, atol=1e-5)
    assert again.config.lora is None and not has_adapters(again)


REFUSED = {
    "a target that there is not": (
        {"rank": 4, "targets": ["query"]},
        "no linear map.*expected some of k_proj, v_proj",
    ),
    "rank 0": ({"rank": 0}, "lora rank is 0, expected a whole number from 1"),
    "more layers than there are": ({"rank": 4, "layers": 3}, "lora layers is 3, expected a whole number from 1 to 2"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_add_lora_refuses(options, message):
    model = tiny_model("naflex")
    with pytest.raises(ValueError, match=message):
        model.add_lora(**options)
    assert model.config.lora is None and not has_adapters(model)


def test_add_lora_twice_and_over_a_trained_tower_is_refused():
    model = tiny_model("naflex")
    model.add_lora(2)
    with pytest.raises(ValueError, match="has adapters already: merge them first"):
        model.add_lora(2)
    with pytest.raises(ValueError, match=r"freeze_backbone=False, --train-backbone"):
        tiny_model("naflex", freeze_backbone=False).add_lora(2)


CONTRADICTIONS = {
    "--lora and --train-layers": (["--lora", "8", "--train-layers", "2"], "lora=8 and train_layers=2: expected one"),
    "--lora-layers alone": (["--lora-layers", "2"], "lora_layers=2 without lora"),
    "--lora and --cache-features": (["--lora", "8", "--cache-features", "x"], "lora=8 with precomputed features"),
    "--train-layers and --cache-features": (
        ["--train-layers", "1", "--cache-features", "x"],
        "train_layers=1 with precomputed features",
    ),
    "--train-layers and --train-backbone": (
        ["--train-layers", "1", "--train-backbone"],
        "the whole vision tower is trained",
    ),
    "--train-layers and --heads-only": (["--train-layers", "1", "--heads-only"], "weights of the vision tower"),
    "too many layers": (["--train-layers", "7"], "train_layers is 7, expected from 1 to the 6 layers"),
    "no such linear map": (["--lora", "2", "--lora-targets", "query"], "lora_targets names 'query'"),
}


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_vlm_par_train_refuses(tmp_path, capsys, options, message):
    sizes = ["--num-train", "4", "--num-validation", "2", "--num-test", "2", "--no-progress"]
    assert main(["train", "synthetic", *sizes, "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err


def test_heads_that_are_held_by_peft_keep_their_label_space():
    with pytest.raises(ValueError, match="held by peft.*merge first"):
        adapt(tiny_model("naflex")).exchange_attributes(tiny_schema(), tiny_processor("naflex"))


@pytest.mark.parametrize("make", [tiny_model, tiny_focus_model])
def test_which_heads_were_kept(tmp_path, make):
    processor = tiny_processor("naflex") if make is tiny_model else tiny_focus_processor("naflex")
    randomize(make("naflex")).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).exchanged_attributes is None
    hat, backpack, _ = tiny_schema()
    cane = {"name": "Cane", "question": "is there a cane?", "prompts": ["no cane", "a cane"]}
    model = AutoModel.from_pretrained(tmp_path, attributes=AttributeSchema([cane, backpack, hat]))
    assert model.exchanged_attributes == (("Backpack", "Hat"), ("Cane",), ("Female",))


def test_export_of_a_peft_model_names_the_way(tmp_path):
    with pytest.raises(TypeError, match=r"model is a PeftModel.*peft_model\.merge_and_unload\(\) returns"):
        export_model(adapt(tiny_model("naflex")), tmp_path / "out", processor=tiny_processor("naflex"), to="folded")
