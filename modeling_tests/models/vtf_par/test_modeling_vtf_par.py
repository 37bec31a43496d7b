"""VTF against plain loops, and what frames, their order and their masks change."""

import copy

import pytest
import torch
from transformers import AutoModel

from modeling_tests.models.vtf_par import reference
from modeling_tests.tiny import (
    randomize,
    save_backbone,
    tiny_focus_processor,
    tiny_processor,
    tiny_schema,
    tiny_vtf_inputs,
    tiny_vtf_model,
    tiny_vtf_processor,
)
from vlm_par_hf.models.vtf_par import VtfParConfig, VtfParModel, VtfParProcessor


FORMS = {
    "attention": ("kway", {"temporal": "attention"}),
    "attention-two-blocks": (
        "naflex",
        {"temporal": "attention", "num_fusion_layers": 2, "pooled_classifier": False},
    ),
    "quality": ("fixed", {"temporal": "quality"}),
    "paper": ("clip", {"temporal": "mean", "pooled_classifier": False, "fusion_width": 24}),
    "released": ("clip", {"temporal": "mean", "pooled_classifier": False, "logit_norm": "batch"}),
    "mean": ("kway", {"temporal": "mean", "fusion_width": 16}),
}


def build(kind, **config):
    model = randomize(tiny_vtf_model(kind, **config))
    if model.config.logit_norm == "batch":
        model.score_norm.running_mean.normal_(generator=torch.Generator().manual_seed(1))
        model.score_norm.running_var.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
    if model.config.pooled_classifier:
        model.pooled_mean.normal_(generator=torch.Generator().manual_seed(3))
        model.pooled_std.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(4))
    return model


def features_of(model, inputs):
    pixels = {name: value for name, value in inputs.items() if name != "frame_mask"}
    with torch.no_grad():
        return model.get_image_features(**pixels)


@pytest.mark.parametrize("name", FORMS)
def test_the_answers_are_those_of_plain_loops(name):
    kind, config = FORMS[name]
    model = build(kind, **config).double()
    inputs = tiny_vtf_inputs(kind, 2, frames=3)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    tokens, pooled, mask = features_of(model, inputs)
    with torch.no_grad():
        found = model(**inputs).logits
        expected = reference.logits_of(model, tokens, pooled, mask, inputs["frame_mask"])
    for person, scores in enumerate(expected):
        for attribute, row in enumerate(scores):
            assert found[person, attribute, : len(row)].tolist() == pytest.approx(row, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", FORMS)
def test_masked_frames_change_nothing_and_neither_does_the_order(name):
    kind, config = FORMS[name]
    model = build(kind, **config)
    inputs = tiny_vtf_inputs(kind, 3, frames=3)
    with torch.no_grad():
        expected = model(**inputs).logits
        tokens, pooled, mask = features_of(model, inputs)
        outside = ~inputs["frame_mask"]
        tokens[outside], pooled[outside] = torch.nan, torch.inf
        garbage = {"patch_embeds": tokens, "image_embeds": pooled, "patch_mask": mask}
        found = model(**garbage, frame_mask=inputs["frame_mask"]).logits
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        longer = {name: torch.cat([value, value[:, :2]], 1) for name, value in garbage.items()}
        frame_mask = torch.cat([inputs["frame_mask"], torch.zeros(3, 2, dtype=torch.bool)], 1)
        torch.testing.assert_close(model(**longer, frame_mask=frame_mask).logits, expected, rtol=1e-5, atol=1e-5)
        order = torch.tensor([2, 0, 1])
        shuffled = {name: value[:, order] for name, value in inputs.items()}
        torch.testing.assert_close(model(**shuffled).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temporal", ["attention", "quality", "mean"])
def test_a_picture_is_a_tracklet_of_one_frame(temporal):
    model = build("kway", temporal=temporal)
    inputs = tiny_vtf_inputs("kway", 3, frames=1)
    with torch.no_grad():
        expected = model(**inputs)
        flat = {name: value[:, 0] for name, value in inputs.items() if name != "frame_mask"}
        found = model(**flat)
        torch.testing.assert_close(found.logits, expected.logits)
        features = model.get_image_features(**flat)
        assert features.last_hidden_state.ndim == 3  # as a cache of features holds it
        torch.testing.assert_close(model(**features.as_inputs()).logits, expected.logits)
        twice = {name: value.repeat_interleave(4, 1) for name, value in inputs.items()}
        torch.testing.assert_close(model(**twice).logits, expected.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temporal", ["attention", "quality"])
def test_a_fresh_model_counts_all_frames_alike_and_a_trained_one_does_not(temporal):
    fresh, inputs = tiny_vtf_model("kway", temporal=temporal), tiny_vtf_inputs("kway", 3)
    with torch.no_grad():
        weights = fresh(**inputs, output_attentions=True).attentions
        lengths = inputs["frame_mask"].sum(1)
        own = weights[:, 0, 1]  # of the first attribute's "yes"
        torch.testing.assert_close(own, inputs["frame_mask"] / lengths[:, None])
        trained = randomize(fresh)(**inputs, output_attentions=True).attentions
    assert (trained[2, 0, 1] - 1 / 3).abs().max() > 1e-3
    assert trained.shape == (3, 5, 4, 3) and (trained[:, 0, 2:] == 0).all()
    torch.testing.assert_close(trained[:, 0, 0], trained[:, 0, 1])
    by_attribute = (trained[2, 0, 1] - trained[2, 1, 1]).abs().max()
    assert (by_attribute > 1e-4) == (temporal == "attention")


def test_quality_with_equal_weights_is_the_paper():
    model = tiny_vtf_model("kway", temporal="quality", pooled_classifier=False)
    mean = tiny_vtf_model("kway", temporal="mean", pooled_classifier=False)
    mean.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("frame_weights")})
    inputs = tiny_vtf_inputs("kway", 3)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, mean(**inputs).logits, rtol=1e-5, atol=1e-5)


def test_what_is_refused():
    model, inputs = tiny_vtf_model("naflex"), tiny_vtf_inputs("naflex", 2)
    mask = inputs.pop("frame_mask")
    with pytest.raises(ValueError, match="no valid frame in row 1"):
        model(**inputs, frame_mask=torch.tensor([[True, False, False], [False] * 3]))
    with pytest.raises(ValueError, match=r"frame_mask has shape \(2, 2\), expected \(2, 3\)"):
        model(**inputs, frame_mask=mask[:, :2])
    with pytest.raises(ValueError, match="expected either pixel_values or patch_embeds, got neither"):
        model()
    features = features_of(model, inputs)
    with pytest.raises(ValueError, match="image_embeds is None, but the logits depend on them"):
        model(patch_embeds=features.last_hidden_state)
    with pytest.raises(ValueError, match="input_ids: a VtfParModel answers for config.attributes"):
        model(**inputs, input_ids=torch.zeros(1, 3))
    for name, value in {"temporal": "max", "fusion_width": 30, "text_template": "{nobody}", "mlp_ratio": 0}.items():
        with pytest.raises(ValueError, match=name):
            tiny_vtf_model("naflex", **{name: value})
    with pytest.raises(ValueError, match="text_input_ids must hold the tokens of 3 texts"):
        tiny_vtf_model("naflex", text_input_ids=[[1]])


def test_standardising_the_pooled_output_changes_no_logit():
    for config in ({}, {"logit_norm": "batch"}):
        model = build("kway", **config)
        inputs = tiny_vtf_inputs("kway", 4)
        with torch.no_grad():
            expected = model(**inputs).logits
            model.fit_pooled_statistics([dict(inputs)])
            torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
            pooled = features_of(model, inputs).pooler_output[inputs["frame_mask"]]
            unit = (pooled - model.pooled_mean) / model.pooled_std
        torch.testing.assert_close(unit.mean(0), torch.zeros(32), rtol=0, atol=1e-4)
        torch.testing.assert_close(unit.std(0, correction=0), torch.ones(32), rtol=1e-3, atol=1e-3)


def test_batch_normalised_scores_learn_and_take_a_batch_of_one():
    model = build("clip", **FORMS["released"][1]).train()
    before = model.score_norm.running_mean.clone()
    labels = torch.zeros(3, 5, dtype=torch.int64)
    model(**tiny_vtf_inputs("clip", 3), labels=labels).loss.backward()
    assert not torch.equal(model.score_norm.running_mean, before)
    kept = model.score_norm.running_mean.clone()
    assert model(**tiny_vtf_inputs("clip", 1), labels=labels[:1]).loss.isfinite()
    assert torch.equal(model.score_norm.running_mean, kept)


def test_texts():
    schema = tiny_schema(kway=True)
    vlm = tiny_vtf_model("kway").config.vlm_config
    plain = VtfParConfig(vlm_config=vlm, attributes=schema).texts(schema)
    assert plain[:3] == [one.prompts[1] for one in list(schema)[:3]] and plain[3:7] == list(
        schema["UpperColor"].prompts
    )
    paper = VtfParConfig.paper(vlm_config=vlm, attributes=schema)
    found = paper.texts(schema)
    assert found[0] == "the pedestrian has an attribute hat"
    assert found[3] == "the pedestrian has an attribute upper color black"
    released = VtfParConfig.released(vlm_config=vlm, attributes=schema)
    assert released.texts(schema)[3] == "upper color black" and released.logit_norm == "batch"
    assert (paper.temporal, paper.num_frames, paper.fusion_width, paper.num_fusion_heads) == ("mean", 6, 768, 12)
    assert not paper.pooled_classifier and paper.logit_norm == "none"


def test_a_text_tower_that_moves_needs_new_texts_and_the_heads_alone_are_a_checkpoint(tmp_path):
    processor = tiny_vtf_processor("kway")
    backbone = tmp_path / "backbone"
    save_backbone(backbone, tiny_vtf_model("kway"), processor)
    model = VtfParModel.from_backbone(
        backbone, attributes=tiny_schema(kway=True), num_fusion_heads=4, save_backbone=False
    )
    assert model.text_embeds.any() and len(model.config.text_input_ids) == 10
    randomize(model).save_pretrained(tmp_path / "heads")
    loaded = AutoModel.from_pretrained(tmp_path / "heads")
    inputs = tiny_vtf_inputs("kway", 3)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


def test_an_exchanged_label_space_keeps_the_rows_of_equal_attributes(tmp_path):
    model = build("kway")
    model.save_pretrained(tmp_path)
    tiny_vtf_processor("kway").save_pretrained(tmp_path)
    schema = tiny_schema(kway=True).subset(["UpperColor", "Hat"])
    loaded = AutoModel.from_pretrained(tmp_path, attributes=schema)
    for name in ("classifier", "pooled_classifier"):
        old, new = getattr(model, name), getattr(loaded, name)
        assert torch.equal(new.weight, torch.cat([old.weight[3:7], old.weight[:1]]))
        assert torch.equal(new.bias, torch.cat([old.bias[3:7], old.bias[:1]]))
    torch.testing.assert_close(loaded.text_embeds, torch.cat([model.text_embeds[3:7], model.text_embeds[:1]]))
    assert loaded.exchanged_attributes.left_out == ("Backpack", "Female", "BagSide")


def test_priors_are_what_a_model_without_weights_answers():
    for config in ({}, {"logit_norm": "batch"}):
        model = tiny_vtf_model("kway", **config)
        model.init_bias_from_priors([[0.8, 0.2]] * 3 + [[0.1, 0.2, 0.3, 0.4], [0.5, 0.25, 0.25]])
        torch.nn.init.zeros_(model.classifier.weight)
        with torch.no_grad():
            found = model(**tiny_vtf_inputs("kway", 2)).logits.softmax(-1)
        torch.testing.assert_close(found[0, 0, :2], torch.tensor([0.8, 0.2]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[1, 3], torch.tensor([0.1, 0.2, 0.3, 0.4]), rtol=1e-4, atol=1e-4)


def test_the_processor_of_a_naflex_backbone_has_one_grid(tmp_path):
    save_backbone(tmp_path, tiny_vtf_model("kway"), tiny_processor("kway"))
    processor = VtfParProcessor.from_backbone(tmp_path, max_num_patches=128)
    assert processor.patch_grid == [16, 8]
    assert VtfParProcessor.from_backbone(tmp_path, max_num_patches=72).patch_grid == [12, 6]
    save_backbone(tmp_path / "fixed", tiny_vtf_model("fixed"), tiny_focus_processor("fixed"))
    padded = VtfParProcessor.from_backbone(tmp_path / "fixed", pad_to_square=True)
    assert padded.pad_to_square and padded.patch_grid is None
    padded.save_pretrained(tmp_path / "saved")
    assert VtfParProcessor.from_pretrained(tmp_path / "saved").pad_to_square


def test_copies_are_independent():
    model = tiny_vtf_model("naflex")
    other = copy.deepcopy(model)
    randomize(other)
    with torch.no_grad():
        inputs = tiny_vtf_inputs("naflex", 2)
        assert not torch.equal(model(**inputs).logits, other(**inputs).logits)
