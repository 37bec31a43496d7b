"""`calibrate`: what it writes, what it refuses, and that its numbers are not those of the fit on itself."""

import json

import numpy as np
import pytest
from transformers import AutoModel, AutoProcessor

from modeling_tests.labels.test_decisions import SCHEMA
from modeling_tests.test_calibration import draw
from modeling_tests.tiny import tiny_model, tiny_processor
from modeling_tests.training_runs import run
from vlm_par_hf.calibration import fit
from vlm_par_hf.labels.decisions import Decisions
from vlm_par_hf.metrics.attributes import ParMetrics
from vlm_par_hf.training.calibrating import calibrate, measure_decisions


FILES = {"decisions.json", "thresholds.json", "calibration.json", "calibration.md", "trade_off.png", "reliability.png"}


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    """A tiny model that was trained on `data`, with its record."""
    folder = tmp_path_factory.mktemp("calibrating") / "run"
    run(data, folder, epochs=1)
    return folder


def test_a_checkpoint_is_written_with_its_decisions(checkpoint, data, tmp_path):
    out = tmp_path / "out"
    record = calibrate(checkpoint, data, out, objective="mA", progress=False)
    assert {path.name for path in out.iterdir()} >= FILES | {"config.json", "model.safetensors", "run.json"}
    loaded = AutoModel.from_pretrained(out)
    decisions = Decisions.from_dict(json.loads((out / "decisions.json").read_text()))
    assert loaded.config.decisions == decisions.to_dict()
    assert decisions.objective == "mA" and decisions.points() == ["mA", "instance_f1"]
    assert (
        decisions.record["pictures"] == len(data["validation"]) and decisions.record["data"]["split"] == "validation"
    )
    thresholds = json.loads((out / "thresholds.json").read_text())
    assert thresholds == {one.name: one.threshold for one in loaded.config.schema if one.is_binary}
    assert thresholds == pytest.approx(decisions.thresholds("mA"))
    assert (
        set(record["metrics"]) == {"before", "mA", "instance_f1"} and "cross-fitted in 5 parts" in record["measured"]
    )
    text = (out / "calibration.md").read_text()
    assert "| before |" in text and all(f"| {name} |" in text for name in loaded.config.schema.names)
    with pytest.raises(FileExistsError, match="holds something already"):
        calibrate(checkpoint, data, out, progress=False)
    again = calibrate(out, data, tmp_path / "again", objective="accuracy", progress=False)
    # The second fit starts from the scores, not from what the first one made of them.
    second = Decisions.from_dict(AutoModel.from_pretrained(tmp_path / "again").config.decisions)
    for name, one in decisions.attributes.items():
        assert second.attributes[name].gain == pytest.approx(one.gain, rel=1e-4)
    assert again["metrics"]["before"]["mA"] >= 0 and set(second.points()) == {"accuracy", "instance_f1", "mA"}
    (out / "decisions.json").unlink()
    calibrate(checkpoint, data, out, objective="recall>=0.9", progress=False, overwrite=True)
    assert "recall>=0.9" in (out / "calibration.md").read_text()


def test_shares_alone_need_a_calibrated_checkpoint_and_no_labels(checkpoint, data, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number, row in enumerate(data["test"]):
        row["image"].save(images / f"{number}.png")
    AutoModel.from_pretrained(checkpoint, decisions=None).save_pretrained(tmp_path / "plain")
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="has no fitted decisions, so its probabilities are not calibrated"):
        calibrate(tmp_path / "plain", images, tmp_path / "x", priors_only=True, progress=False)
    assert not (tmp_path / "x").exists()
    calibrate(checkpoint, data, tmp_path / "fitted", progress=False)
    record = calibrate(tmp_path / "fitted", images, tmp_path / "adapted", priors_only=True, progress=False)
    assert "only the shares of the labels differ" in record["assumption"]
    decisions = Decisions.from_dict(AutoModel.from_pretrained(tmp_path / "adapted").config.decisions)
    assert decisions.record["priors_only"] is True and decisions.record["data"]["pictures"] == len(data["test"])
    assert "without labels" in (tmp_path / "adapted" / "calibration.md").read_text()
    with pytest.raises(ValueError, match="holds no images"):
        (tmp_path / "none").mkdir()
        calibrate(tmp_path / "fitted", tmp_path / "none", tmp_path / "x", priors_only=True, progress=False)


def test_splits_of_the_record_are_refused(checkpoint, data, tmp_path):
    name = json.loads((checkpoint / "run.json").read_text())["data"]["name"]
    for split, reason in (
        ("test", "is what the checkpoint is measured on|measures the checkpoint"),
        ("train", "surer"),
    ):
        with pytest.raises(ValueError, match=f"split={split!r} of {name!r}: run.json of .*({reason})"):
            calibrate(checkpoint, data, tmp_path / "x", split=split, progress=False)
    with pytest.raises(ValueError, match="split='more' is not in this data set"):
        calibrate(checkpoint, data, tmp_path / "x", split="more", progress=False)
    with pytest.raises(ValueError, match="objective='best', expected one of"):
        calibrate(checkpoint, data, tmp_path / "x", objective="best", progress=False)
    with pytest.raises(ValueError, match="costs=\\(1, -5\\), expected two numbers above 0"):
        calibrate("nowhere", data, tmp_path / "x", objective="cost", costs=(1, -5), progress=False)
    with pytest.raises(ValueError, match=f"split='test' of 'other\\+{name}': run.json of .*measures the checkpoint"):
        calibrate(checkpoint, data, tmp_path / "x", split="test", dataset_name=f"other+{name}", progress=False)
    with pytest.raises(ValueError, match="delete_listed=True: expected overwrite"):
        calibrate(checkpoint, data, tmp_path / "x", delete_listed=True, progress=False)
    # Under another name it is somebody else's data.
    calibrate(checkpoint, data, tmp_path / "own", split="test", dataset_name="my camera", progress=False)


def test_another_label_space_is_refused(data, tmp_path):
    tiny_model("kway").save_pretrained(tmp_path / "kway")
    tiny_processor("kway").save_pretrained(tmp_path / "kway")
    with pytest.raises(ValueError, match="schema differs from the checkpoint's"):
        calibrate(tmp_path / "kway", data, tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()


def test_numbers_are_of_pictures_that_the_fit_did_not_see():
    """Scores that say nothing: a fit on the pictures themselves looks better than it is."""
    logits, labels = draw(120, seed=1)
    logits = np.where(SCHEMA.label_mask(), np.random.default_rng(0).normal(size=logits.shape), -1e4)
    groups = [f"person {row // 2}" for row in range(120)]
    found = measure_decisions(logits, labels, SCHEMA, objectives=("f1", "mA"), groups=groups)
    assert set(found["metrics"]) == {"before", "f1", "mA"} and len(found["curves"]["pooled"]) == 31
    assert found["metrics"]["mA"]["mA"] == pytest.approx(0.42, abs=0.09)  # (3 / 2 + 1 / 4 + 1 / 3) / 5
    decisions = fit(logits, labels, SCHEMA, objectives=("f1",))
    inside = measure_of(decisions, logits, labels)
    assert inside > found["metrics"]["f1"]["label_f1_macro"]
    with pytest.raises(ValueError, match=r"3 pictures \(or persons\) are fewer than the 5 parts"):
        measure_decisions(logits[:6], labels[:6], SCHEMA, objectives=("f1",), groups=groups[:6])


def measure_of(decisions, logits, labels):
    answers = decisions.apply(logits, decisions.settle(SCHEMA))[1]
    return ParMetrics(SCHEMA, inputs="probabilities")((np.eye(4)[answers], labels))["label_f1_macro"]
