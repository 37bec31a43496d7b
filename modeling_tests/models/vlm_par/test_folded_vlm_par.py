"""A folded model answers as the model that it was folded from."""

import copy

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, pipeline

from modeling_tests.models.vlm_par.reference import reference_logits
from modeling_tests.models.vlm_par.test_modeling_vlm_par import FUSIONS, features, some_labels, trained_model
from modeling_tests.tiny import tiny_inputs, tiny_model, tiny_processor, tiny_schema
from vlm_par_hf.models.vlm_par import FoldedVlmParConfig, FoldedVlmParModel


@pytest.mark.parametrize(("alignment", "pooled"), [("logit", True), ("none", True), ("none", False)])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("kind", ["naflex", "fixed", "kway"])
def test_folding_changes_no_answer(kind, fusion, alignment, pooled):
    model = trained_model(fusion, alignment, kind=kind, pooled_classifier=pooled)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = model.fold()
    assert type(folded) is FoldedVlmParModel and not folded.training and folded.schema == model.schema
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    asks = fusion != "none"  # without a question there is no attention
    for inputs in (tiny_inputs(kind, 3), features(model)):
        with torch.no_grad():
            expected = model(**inputs, output_attentions=asks)
            found = folded(**inputs, output_attentions=asks)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
        assert (found.attentions is None) == (expected.attentions is None)
        if found.attentions is not None:
            torch.testing.assert_close(found.attentions, expected.attentions, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(folded.explain(**inputs), model.explain(**inputs), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            folded.patch_evidence(**inputs), model.patch_evidence(**inputs), rtol=1e-4, atol=1e-5
        )
    assert folded(**features(model)).attentions is None
    names = folded.state_dict()
    assert not [name for name in names if "text" in name or "query" in name]
    assert any(name.startswith("vision_model.head.") for name in names) == (alignment == "logit" or pooled)
    with torch.no_grad():  # nothing is shared with the original
        for tensor in names.values():
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_folded_equals_the_equations_in_float64(fusion):
    model = trained_model(fusion).double()
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in features(model).items()}
    with torch.no_grad():
        expected = reference_logits(model, **inputs)
        torch.testing.assert_close(model.fold()(**inputs).logits, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("cast", ["fold a half", "load as half", "cast"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_bfloat16_is_no_worse_than_the_plain_form(fusion, cast, tmp_path):
    errors, plain_errors = [], []
    for seed in range(4):
        model = trained_model(fusion)
        half = copy.deepcopy(model).to(torch.bfloat16)
        if cast == "fold a half":
            folded = half.fold()
        else:
            folded = half.float().fold()  # the same rounded parameters
            half = half.to(torch.bfloat16)
            if cast == "load as half":
                folded.save_pretrained(tmp_path)
                folded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
            else:
                folded = folded.to(torch.bfloat16)
        assert folded.dtype == torch.bfloat16
        inputs = {name: x.bfloat16() if x.is_floating_point() else x for name, x in features(model, seed=seed).items()}
        exact_inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
        mask = model.attribute_heads.label_mask
        with torch.no_grad():
            exact = copy.deepcopy(half).double()(**exact_inputs).logits[:, mask]
            errors.append((folded(**inputs).logits[:, mask] - exact).square().mean())
            plain_errors.append((reference_logits(half, **inputs)[:, mask] - exact).square().mean())
    assert torch.stack(errors).mean() <= torch.stack(plain_errors).mean()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_saved_form(fusion, tmp_path):
    model = trained_model(fusion, loss={"kind": "ce", "label_smoothing": 0.0})
    folded = model.fold()
    folded.save_pretrained(tmp_path)
    tiny_processor("kway").save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is FoldedVlmParModel and not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    inputs, labels = features(model), some_labels(model.schema)
    with torch.no_grad():
        found, expected = loaded(**inputs, labels=labels), model(**inputs, labels=labels)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-5)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is FoldedVlmParConfig and config.schema == model.schema
    assert not hasattr(config, "vlm_config") and "text_config" not in (tmp_path / "config.json").read_text()
    answers = pipeline("pedestrian-attributes", model=str(tmp_path))(Image.new("RGB", (20, 40), (90, 20, 60)))
    assert set(answers["attributes"]) == set(model.schema.names)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModel.from_pretrained(tmp_path)


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    trained_model("image_to_text").fold().save_pretrained(tmp_path / "one")
    trained_model("none").fold().save_pretrained(tmp_path / "other")
    weights = (tmp_path / "other" / "model.safetensors").read_bytes()
    (tmp_path / "one" / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="model.safetensors lacks 3 tensors .*attribute_heads.answers"):
        AutoModel.from_pretrained(tmp_path / "one")
    trained_model("image_to_text", kind="naflex").fold().save_pretrained(tmp_path / "smaller")
    weights = (tmp_path / "smaller" / "model.safetensors").read_bytes()
    (tmp_path / "one" / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="do not fit the configuration.*attribute_heads.answers"):
        AutoModel.from_pretrained(tmp_path / "one")


def test_another_kind_of_model_is_refused(tmp_path):
    trained_model("none").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a 'vlm_par' model, expected 'vlm_par_folded': VlmParModel.fold"):
        FoldedVlmParModel.from_pretrained(tmp_path)


def test_a_model_from_a_configuration_alone_knows_nothing():
    model = FoldedVlmParModel(trained_model("image_to_text").fold().config)
    assert not any(buffer.any() for buffer in model.attribute_heads.constants().values())


def test_a_folded_model_cannot_be_trained():
    folded = tiny_model("naflex").fold()
    assert folded.eval() is folded
    with pytest.raises(RuntimeError, match="cannot be trained: train the VlmParModel and fold it again"):
        folded.train()
    assert not folded.training


def test_trainer_measures_a_folded_model_and_does_not_train_it(tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model = trained_model("image_to_text")
    inputs, labels = features(model), some_labels(model.schema)
    rows = [{**{name: x[i] for name, x in inputs.items()}, "labels": labels[i]} for i in range(len(labels))]
    arguments = TrainingArguments(
        tmp_path,
        per_device_eval_batch_size=8,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model.fold(), arguments, train_dataset=rows, eval_dataset=rows)
    with torch.no_grad():
        expected = model(**inputs, labels=labels)
    output = trainer.predict(rows)
    assert output.metrics["test_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    torch.testing.assert_close(torch.from_numpy(output.predictions), expected.logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        trainer.train()


def test_folding_needs_the_questions():
    with pytest.raises(ValueError, match="never tokenized"):
        tiny_model("naflex", encode=False).fold()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion": "both"}, "fusion must be one of .*'both'"),
        ({"num_fusion_heads": 5}, "num_fusion_heads must divide .* 32, got 5"),
        ({"fusion": "image_to_text"}, "question_lengths must be the number of tokens of each of the 3 .*got None"),
        ({"fusion": "image_to_text", "question_lengths": [3, 0, 4]}, r"question_lengths .*got \[3, 0, 4\]"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "vision_config .*'clip_vision_model'"),
        ({"attributes": []}, "at least one attribute"),
    ],
)
def test_bad_configurations_are_named(settings, message):
    vision_config = tiny_model("naflex", encode=False).config.vlm_config.vision_config
    choices = {"vision_config": vision_config, "attributes": tiny_schema(), "num_fusion_heads": 4, **settings}
    with pytest.raises(ValueError, match=message):
        FoldedVlmParConfig(**choices)


def test_alignment_needs_the_pooled_output():
    vision_config = copy.deepcopy(tiny_model("naflex", encode=False).config.vlm_config.vision_config)
    vision_config.vision_use_head = False
    settings = {"vision_config": vision_config, "attributes": tiny_schema(), "num_fusion_heads": 4}
    with pytest.raises(ValueError, match='vision_use_head is False, but alignment="logit" reads'):
        FoldedVlmParConfig(**settings)
    with pytest.raises(ValueError, match="vision_use_head is False, but pooled_classifier=True reads"):
        FoldedVlmParConfig(**settings, alignment="none", pooled_classifier=True)
