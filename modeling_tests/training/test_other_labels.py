"""A checkpoint measured on a data set with another label space."""

import json

import datasets
import numpy as np
import pytest

from modeling_tests.bands import build_data
from modeling_tests.tiny import (
    randomize,
    tiny_focus_model,
    tiny_focus_processor,
    tiny_model,
    tiny_processor,
    tiny_schema,
)
from vlm_par_hf.labels.decisions import AttributeDecision, Decisions
from vlm_par_hf.labels.schema import Attribute, AttributeSchema
from vlm_par_hf.metrics.attributes import ParMetrics
from vlm_par_hf.training import evaluate, predict_logits


QUIET = {"progress": False, "bootstrap": 20}


def yes_no(name, question, **options):
    return Attribute(name, question, prompts=(f"a person: no {name}", f"a person: {name}"), **options)


OTHER = AttributeSchema(
    [
        yes_no("Scarf", "is the person wearing a scarf?"),
        yes_no("Cap", "is the person wearing a hat?"),
        Attribute("UpperColor", "what color?", ("red", "green", "black"), ("r", "g", "b")),
        yes_no("Male", "is the person a man?", sensitive=True),
    ]
)
INVERSE = {"Male": {"attribute": "Female", "inverse": True}}


@pytest.fixture(scope="module")
def model():
    return randomize(tiny_model("kway"))


@pytest.fixture(scope="module")
def processor():
    return tiny_processor("kway")


@pytest.fixture(scope="module")
def other_data():
    return build_data(OTHER, {"test": 30})


def test_the_attributes_that_both_have(model, processor, other_data, tmp_path):
    path = tmp_path / "mapping.json"
    path.write_text(json.dumps(INVERSE))
    record = evaluate(model, other_data, processor=processor, mapping=path, output_dir=tmp_path / "out", **QUIET)
    assert record["label_space"] == {
        "attributes": {"Cap": "Hat", "UpperColor": "UpperColor, 2 labels", "Male": "not Female"},
        "matched_by_name_alone": ["UpperColor"], "zero_shot": [], "left_out": ["Scarf"],
    }  # fmt: skip

    images = other_data["test"].remove_columns("labels").add_column("labels", [[-100] * 5] * 30)
    logits, _ = predict_logits(model, processor, images, progress=False)

    odds = np.exp(logits - logits.max(-1, keepdims=True)) * model.config.schema.label_mask()
    p = odds / odds.sum(-1, keepdims=True)
    labels = np.asarray(other_data["test"]["labels"])
    colors = np.stack([p[:, 3, 2], p[:, 3, 0]], -1)  # red and black; the model has no green
    colors /= colors.sum(-1, keepdims=True)
    scores = np.stack([p[:, 0, :2], colors, p[:, 2, 1::-1]], 1)
    truth = np.stack([labels[:, 1], np.choose(labels[:, 2] % 3, [0, -100, 1]), labels[:, 3]], 1)
    truth[labels[:, [1, 2, 3]] == -100] = -100
    expected = ParMetrics(AttributeSchema([yes_no(name, f"{name}?") for name in "abc"]), inputs="probabilities")(
        (scores, truth)
    )
    for name, value in record["metrics"].items():
        assert value == pytest.approx(expected[name], abs=1e-6), name
    assert [row["name"] for row in record["attributes"]] == ["Cap", "UpperColor", "Male"]
    text = (tmp_path / "out" / "attributes.md").read_text().replace("\\", "")
    assert "measured are 3 attributes that both have: Cap (Hat), UpperColor (UpperColor, 2 labels), Male" in text
    assert "Left out: Scarf." in text


def test_the_same_label_space_is_measured_as_it_is(model, processor):
    data = build_data(tiny_schema(kway=True), {"test": 6})
    assert evaluate(model, data, processor=processor, **QUIET)["label_space"] is None
    for options, name in (({"mapping": {}}, "mapping"), ({"zero_shot": True}, "zero_shot")):
        with pytest.raises(ValueError, match=f"{name} is for a data set with another label space; this one"):
            evaluate(model, data, processor=processor, **options, **QUIET)


def test_labels_that_differ_only_in_order(model, processor):
    data = build_data(tiny_schema(kway=True), {"test": 12})
    turned = AttributeSchema(tiny_schema(kway=True).to_list()[::-1])
    test = data["test"].map(lambda row: {"labels": row["labels"][::-1]})
    test.info.description = json.dumps({"name": "bands", "attributes": turned.to_list()})
    one, other = (
        evaluate(model, datasets.DatasetDict(test=part), processor=processor, threshold="schema", **QUIET)
        for part in (data["test"], test)
    )
    for name, value in one["metrics"].items():
        assert other["metrics"][name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("family", ["vlm_par", "focus_par"])
def test_untrained_attributes_from_their_texts(family, other_data):
    if family == "vlm_par":
        model, processor = randomize(tiny_model("kway")), tiny_processor("kway")
    else:
        model, processor = randomize(tiny_focus_model()), tiny_focus_processor()
    before = model.config.to_dict()
    record = evaluate(model, other_data, processor=processor, zero_shot=True, **QUIET)
    space = record["label_space"]
    assert "Scarf" in space["zero_shot"] and "Male" in space["zero_shot"] and space["left_out"] == []
    assert [row["name"] for row in record["attributes"]] == [*space["attributes"], *space["zero_shot"]]
    assert len(record["attributes"]) == 4
    assert model.config.to_dict() == before and model.schema.names == AttributeSchema(before["attributes"]).names


def test_models_that_cannot_answer_from_texts(other_data, processor):
    for model in (tiny_model("kway", alignment="none"), tiny_model("kway").fold()):
        with pytest.raises(ValueError, match="zero_shot: (this model compares|a folded model)"):
            evaluate(model, other_data, processor=processor, zero_shot=True, **QUIET)


def test_nothing_in_common(model, processor):
    data = build_data(AttributeSchema([OTHER["Scarf"]]), {"test": 4})
    with pytest.raises(ValueError, match=r"no attribute in common: .* a mapping file \(--mapping\) says which"):
        evaluate(model, data, processor=processor, **QUIET)


def test_a_fitted_checkpoint_answers_a_named_threshold_with_calibrated_probabilities(processor, other_data):
    """Without one the thresholds are those of a preset, which belong to the scores as they are."""
    plain, model = randomize(tiny_model("kway")), randomize(tiny_model("kway"))
    decisions = Decisions({"Hat": AttributeDecision(1.0, (0.0, -99.0), points={"mA": 0.5})}, "mA")
    model.config.set_decisions(decisions)
    model.schema = model.config.schema
    before = model.config.decisions
    records = [evaluate(one, other_data, processor=processor, **QUIET) for one in (plain, model)]
    assert records[0]["metrics"] == records[1]["metrics"] and "fitted" not in records[1]
    record = evaluate(model, other_data, processor=processor, threshold=0.5, **QUIET)
    assert model.config.decisions is before
    cap, before = (one["attributes"][0]["labels"]["yes"]["predicted"] for one in (record, records[1]))  # asks of a hat
    assert cap == 0 < before
