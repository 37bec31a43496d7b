import csv
import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_tests.bands import build_data
from modeling_tests.tiny import randomize, tiny_model, tiny_processor, tiny_schema
from vlm_par_hf.calibration import fit
from vlm_par_hf.data import attach_schema
from vlm_par_hf.labels.decisions import AttributeDecision, Decisions
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.metrics.attributes import ParMetrics
from vlm_par_hf.metrics.reliability import area_under_risk_coverage
from vlm_par_hf.training import evaluate, predict_logits
from vlm_par_hf.training.evaluation import markdown_table


QUIET = {"progress": False, "bootstrap": 50}


@pytest.fixture(scope="module")
def model():
    return randomize(tiny_model("naflex"))


@pytest.fixture(scope="module")
def processor():
    return tiny_processor("naflex")


@pytest.fixture(scope="module")
def checkpoint(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def written(checkpoint, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    record = evaluate(checkpoint, data, output_dir=folder, min_positives=2, command=["vlm-par", "evaluate"], **QUIET)
    return record, folder


def test_the_numbers_are_those_of_the_metrics(written, model, processor, data):
    record, _ = written
    scores = predict_logits(model, processor, data["test"], progress=False)
    expected = ParMetrics(model.config.schema)(scores)
    for name, value in expected.items():
        assert record["metrics"][name] == pytest.approx(value, abs=1e-6), name


def test_the_record_says_what_was_measured_on_what(written, checkpoint, data):
    record, folder = written
    saved = json.loads((folder / "metrics.json").read_text())
    labels = np.asarray(data["test"]["labels"])
    assert saved["data"] == {
        "name": "bands", "split": "test", "images": 20, "skipped_images": 0,
        "unknown_labels": int((labels < 0).sum()), "synthetic": False, "options": {},
    }  # fmt: skip
    assert saved["preset"] == "rethinking" and saved["threshold"] is None
    assert saved["bootstrap"] == 50 and saved["resampled"] == "images" and saved["seed"] == 0
    assert saved["model"]["path"] == str(checkpoint) and saved["model"]["model_type"] == "vlm_par"
    assert saved["command"] == "vlm-par evaluate"
    assert saved["versions"]["torch"] == torch.__version__
    low, high = saved["intervals"]["mA"]
    assert low <= saved["metrics"]["mA"] <= high
    assert saved["note"] == ""


def test_tables_and_picture(written):
    record, folder = written
    rows = list(csv.DictReader(io.StringIO((folder / "attributes.csv").read_text())))
    assert [row["name"] for row in rows] == list(tiny_schema().names)
    assert float(rows[0]["labels.yes.recall"]) == pytest.approx(record["attributes"][0]["labels"]["yes"]["recall"])
    text = (folder / "attributes.md").read_text()
    assert "bands, test: 20 images" in text and f"| mA | {100 * record['metrics']['mA']:.2f} |" in text
    low, high = record["intervals"]["auc_macro"]
    assert f"| auc_macro | {100 * record['metrics']['auc_macro']:.2f} | {100 * low:.2f} to {100 * high:.2f} |" in text
    first = record["attributes"][0]
    assert f" | {100 * first['auc']:.2f} | {100 * first['average_precision']:.2f} |\n" in text
    with Image.open(folder / "attributes.png") as image:
        assert image.width > 300
    assert {path.name for path in folder.iterdir()} == {
        "metrics.json", "attributes.csv", "attributes.md", "attributes.png",
    }  # fmt: skip


def test_attributes_that_cannot_be_ranked_are_named(written):
    record, _ = written
    assert "are over" not in markdown_table(record)
    ranked = {"attributes": 2, "left_out": ["a|b"]}
    text = markdown_table({**record, "ranked": ranked})
    assert "auc_macro and average_precision_macro are over 2 of 3 attributes" in text.replace("\\", "")
    assert "| a|b" not in text


@pytest.mark.parametrize(("split", "words"), [("validation", "chooses the checkpoint"), ("train", "fitted")])
def test_what_is_no_test_result_is_not_called_one(checkpoint, data, split, words):
    record = evaluate(checkpoint, data, split=split, **QUIET)
    assert words in record["note"] and record["data"]["split"] == split


def test_drawings_are_called_drawings(checkpoint, data, tmp_path):
    record = evaluate(checkpoint, data, dataset_name="synthetic", output_dir=tmp_path, **QUIET)
    assert record["data"]["synthetic"] and "SYNTHETIC" in record["note"]
    assert "SYNTHETIC" in (tmp_path / "attributes.md").read_text()


def test_skipped_images_are_told(checkpoint, data):
    test = attach_schema(data["test"], tiny_schema(), name="pa100k", skipped_images={"test": 7})
    record = evaluate(checkpoint, {"test": test}, **QUIET)
    assert record["data"]["skipped_images"] == 7 and record["data"]["name"] == "pa100k"
    assert "7 images of this split were missing" in record["note"]


def test_persons_are_resampled_on_request(checkpoint, data):
    record = evaluate(checkpoint, data, by_person=True, **QUIET)
    assert record["resampled"] == "persons" and record["num_groups"] == 10
    with pytest.raises(ValueError, match="no person_id"):
        evaluate(checkpoint, {"test": data["test"].remove_columns("person_id")}, by_person=True, **QUIET)


def test_categorical_attributes(tmp_path):
    data = build_data(tiny_schema(kway=True), {"test": 12})
    record = evaluate(
        randomize(tiny_model("kway")), data, processor=tiny_processor("kway"), output_dir=tmp_path, **QUIET
    )
    assert 0 <= record["metrics"]["mA"] <= 1
    assert (tmp_path / "attributes.csv").read_text().count("\n") == 1 + len(tiny_schema(kway=True))


def test_wrong_use(checkpoint, model, data):
    with pytest.raises(ValueError, match="split='val' is not in this data set: it has test, train, validation"):
        evaluate(checkpoint, data, split="val", **QUIET)
    with pytest.raises(ValueError, match="processor is None"):
        evaluate(model, data, **QUIET)
    with pytest.raises(TypeError, match="dataset is a list"):
        evaluate(checkpoint, [1, 2], **QUIET)
    plain = datasets.Dataset.from_dict({"labels": [[0, 1, 0]]})
    with pytest.raises(ValueError, match="carries no attribute schema"):
        evaluate(checkpoint, {"test": plain}, **QUIET)


def test_attributes_with_one_label_are_told(checkpoint, tmp_path, caplog):
    schema = tiny_schema()
    split = build_data(schema, {"test": 6}, unknown=0.0)["test"]
    same = split.map(lambda row: {"labels": [1, *row["labels"][1:]]})
    evaluate(checkpoint, datasets.DatasetDict(test=attach_schema(same, schema, name="bands")), **QUIET)
    first = schema[0]
    assert f"bands: in test 1 attributes have one label only: {first.name} ({first.labels[1]})" in caplog.text


def test_images_of_nobody_known_are_persons_of_their_own(checkpoint, data):
    split = data["test"].remove_columns("person_id")
    persons = ["7", "0007", "-1", "", "unknown", None] + [str(number) for number in range(100, 100 + len(split) - 6)]
    named = split.add_column("person_id", persons)
    record = evaluate(checkpoint, datasets.DatasetDict(test=named), by_person=True, **QUIET)
    assert record["num_groups"] == len(split) - 1


@pytest.fixture(scope="module")
def sliced(tmp_path_factory):
    """A record with slices of a label space with a condition and a group, of persons in two pictures each."""
    attributes = tiny_schema(kway=True).to_list()
    attributes[3]["requires"] = ["Hat", "yes"]
    for one in attributes[:2]:
        one["group"] = "things"
    schema = AttributeSchema(attributes)
    model = randomize(tiny_model("kway"))
    model.config.set_schema(schema)
    model.schema = schema
    folder = tmp_path_factory.mktemp("sliced")
    record = evaluate(
        model, build_data(schema, {"test": 160}, unknown=0.02), processor=tiny_processor("kway"), output_dir=folder,
        slices=["Female", "size", "things", "BagSide"], **QUIET,
    )  # fmt: skip
    return record, folder


def test_slices_are_of_persons_where_they_are_known(sliced):
    record, _ = sliced
    assert record["resampled"] == "images" and record["slices"]["people"] == "persons"
    female, size, things, side = record["slices"]["by"]
    assert [row["slice"] for row in female["slices"]] == ["no", "yes"]
    assert all(30 <= row["people"] < row["images"] for row in female["slices"]) and "Female" not in female["compared"]
    assert [row["slice"] for row in size["slices"]] == ["64 to 127"] and size["slices"][0]["people"] == 80
    assert things["name"] == "things" and {"Hat", "Backpack"}.isdisjoint(things["compared"])
    assert side["worst"]["slice"] in ("left", "right", "none")


def test_slices_and_contradictions_are_in_the_table(sliced):
    record, folder = sliced
    text = (folder / "attributes.md").read_text().replace("\\", "")
    before = record["consistency"]["before"]["violations"]
    assert before["people"] > 0 and set(before["requires"]) == {"UpperColor"} and set(before["groups"]) == {"things"}
    assert f"Answers contradict each other for {before['people']:,} of 160 people, for 0 after" in text
    assert "| Female | persons | mA |" in text and "Worst is" in text and "Over 4 attributes" in text
    assert "Largest gaps in true-positive rates" in text


def test_a_slice_of_few_people_is_said(checkpoint, data):
    record = evaluate(checkpoint, data, slices=["Hat"], **QUIET)
    (one,) = record["slices"]["by"]
    assert one["slices"] == [] and set(one["not_shown"]) == {"no", "yes"}
    text = markdown_table(record)
    assert "Not shown, fewer than 30 persons: no" in text and "Nothing can be compared." in text


def test_a_label_space_without_rules_has_no_contradictions(written):
    record, _ = written
    assert "consistency" not in record and "slices" not in record
    with pytest.raises(KeyError, match="slices names 'Ago', expected attributes"):
        evaluate(randomize(tiny_model("naflex")), build_data(tiny_schema(), {"test": 2}),
                 processor=tiny_processor("naflex"), slices=["Ago"], **QUIET)  # fmt: skip


@pytest.fixture(scope="module")
def fitted(model, processor, data):
    """The model with decisions that are far from those of 0.5, and the scores that they were fitted on."""
    scores, labels = predict_logits(model, processor, data["test"], progress=False)
    decisions = fit(scores, labels, model.config.schema, record={"data": {"name": "bands"}, "when": "2026-01-02"})
    own = randomize(tiny_model("naflex"))
    own.config.set_decisions(decisions)
    own.schema = own.config.schema
    return own, decisions, scores


def test_own_answers_have_metrics_of_their_own_names(fitted, written, processor, data):
    """Those of the preset are of the scores as they are, as if nothing had been fitted."""
    model, decisions, scores = fitted
    before = model.config.decisions
    record = evaluate(model, data, processor=processor, min_positives=2, **QUIET)
    assert model.config.decisions is before
    plain, _ = written
    without = {name: one for name, one in record["metrics"].items() if not name.endswith("_fitted")}
    assert without == pytest.approx(plain["metrics"], abs=1e-6)
    points = record["fitted"].pop("points")
    assert record["fitted"] == {"objective": "instance_f1", "data": {"name": "bands"}, "when": "2026-01-02"}
    labels = np.asarray(data["test"]["labels"])
    probabilities, answers = decisions.apply(scores, model.config.schema)
    certain = np.eye(2)[answers]
    expected = ParMetrics(model.config.schema, inputs="probabilities")((certain, labels))
    best = decisions.settle(model.config.schema, "mA")
    of_mA = ParMetrics(best, threshold="schema", inputs="probabilities")((probabilities, labels))["mA"]
    assert points["mA"]["mA"] == pytest.approx(of_mA) and points["instance_f1"]["mA"] == pytest.approx(expected["mA"])
    assert of_mA != pytest.approx(expected["mA"])
    for name, value in {**expected, "mA": of_mA}.items():
        if name not in ("auc_macro", "average_precision_macro"):
            assert record["metrics"][f"{name}_fitted"] == pytest.approx(value, abs=1e-6), name
            low, high = record["intervals"][f"{name}_fitted"]
            assert low <= high
    assert "auc_macro_fitted" not in record["metrics"] and "mA_min_positives_fitted" in record["metrics"]
    assert record["metrics"]["mA_fitted"] != record["metrics"]["mA"]
    row = record["attributes"][0]
    assert row["threshold_fitted"] == model.config.schema[0].threshold and row["threshold"] == 0.5
    assert "| mA_fitted |" in markdown_table(record)


def test_a_threshold_that_is_named_is_one_of_calibrated_probabilities(fitted, processor, data):
    model, decisions, scores = fitted
    labels = np.asarray(data["test"]["labels"])
    record = evaluate(model, data, processor=processor, threshold="schema", **QUIET)
    assert record["metrics"]["f1_micro"] == record["metrics"]["f1_micro_fitted"]
    assert record["metrics"]["mA"] == record["fitted"]["points"]["instance_f1"]["mA"]
    record = evaluate(model, data, processor=processor, threshold=0.3, **QUIET)
    calibrated = decisions.calibrate(scores, model.config.schema)
    expected = ParMetrics(model.config.schema, threshold=0.3, inputs="probabilities")((calibrated, labels))
    assert record["metrics"]["mA"] == pytest.approx(expected["mA"], abs=1e-6)


def test_what_is_not_fitted_has_no_fitted_metrics(written, processor, data):
    assert not any(name.endswith("_fitted") for name in written[0]["metrics"]) and "fitted" not in written[0]
    model = randomize(tiny_model("naflex"))
    # Gains and offsets alone, as FOCUS had them, belong to the scores.
    one = AttributeDecision(1.0, (0.0, 9.0))
    model.config.decisions = Decisions({"Hat": one}).to_dict()
    record = evaluate(model, data, processor=processor, **QUIET)
    assert "mA_fitted" not in record["metrics"]
    assert record["attributes"][0]["labels"]["yes"]["predicted"] == record["attributes"][0]["known"]


def test_selective(fitted, processor, data, tmp_path):
    model, decisions, scores = fitted
    record = evaluate(model, data, processor=processor, selective=True, output_dir=tmp_path, **QUIET)
    found, labels = record["selective"], np.asarray(data["test"]["labels"])
    probabilities, answers = decisions.apply(scores, model.config.schema)
    known = labels >= 0
    errors = [np.mean((answers != labels)[known[:, a], a]) for a in range(3)]
    assert found["error"] == pytest.approx(np.mean(errors)) == pytest.approx(found["curve"][-1][1])
    sure = np.take_along_axis(probabilities, answers[..., None], -1)[..., 0]
    for a, row in enumerate(found["attributes"]):
        expected = area_under_risk_coverage(sure[known[:, a], a], (answers == labels)[known[:, a], a])
        assert row["aurc"] == pytest.approx(expected, abs=1e-6) and row["known"] == known[:, a].sum()
        assert 0 <= row["unsure"] <= 1 and row["promised"] is False  # fitted on fewer than 20 of a label
    assert found["sets"]["level"] == 0.9 and found["sets"]["coverage"] > 0.8
    assert (tmp_path / "risk_coverage.png").is_file()
    assert "AURC" in (tmp_path / "attributes.md").read_text()
    unfitted = evaluate(randomize(tiny_model("naflex")), data, processor=processor, selective=True, **QUIET)
    assert "sets" not in unfitted["selective"] and unfitted["selective"]["aurc"] > 0


def test_thresholds_that_differ_are_no_other_label_space(fitted, processor, data, caplog):
    model, _, _ = fitted
    evaluate(model, data, processor=processor, **QUIET)
    assert "words them differently" not in caplog.text
