"""Models whose configuration holds decisions: calibrated logits wherever they are, and nothing else changed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from modeling_tests.labels.test_decisions import SCHEMA, random_logits, some_decisions
from modeling_tests.tiny import (
    randomize,
    tiny_focus_model,
    tiny_inputs,
    tiny_model,
    tiny_processor,
    tiny_schema,
)
from vlm_par_hf import AttributeSchema, ParMetrics
from vlm_par_hf.base.decisions import Calibration, label_probabilities
from vlm_par_hf.labels.decisions import AttributeDecision, Decisions


FIRST = Path(__file__).parent / "heads_of_first_edition"  # its config.json is from before there were decisions


def calibrated_model():
    model = randomize(tiny_model("kway"))
    with torch.no_grad():
        raw = model(**tiny_inputs("kway")).logits
    model.config.set_decisions(some_decisions())
    model.schema = model.config.schema
    return model, raw


def answers_of(model):
    with torch.no_grad():
        return model(**tiny_inputs("kway")).logits


def test_logits_are_calibrated_in_evaluation_and_not_in_training():
    model, raw = calibrated_model()
    assert [one.threshold for one in model.config.schema][:2] == [0.2, 0.35]
    assert torch.equal(answers_of(model), Calibration(some_decisions(), SCHEMA)(raw))
    assert not torch.equal(answers_of(model), raw)
    labels = torch.zeros(3, 5, dtype=torch.int64)
    with torch.no_grad():
        loss = model(**tiny_inputs("kway"), labels=labels).loss
        model.config.decisions = None
        assert torch.equal(model(**tiny_inputs("kway"), labels=labels).loss, loss)  # of the scores, not of answers
        assert torch.equal(answers_of(model), raw)
        model.config.set_decisions(some_decisions(), "f1")
        assert [one.threshold for one in model.config.schema][:2] == [0.4, 0.6]
        assert torch.equal(model.train()(**tiny_inputs("kway")).logits, raw)
    with pytest.raises(KeyError, match="objective 'accuracy' was not fitted"):
        model.config.set_decisions(some_decisions(), "accuracy")


def test_answers_follow_thresholds_and_biases():
    model, _ = calibrated_model()
    logits, schema = answers_of(model), model.config.schema
    people = tiny_processor("kway").post_process_attributes(logits, schema, decisions=model.config.decisions)
    probabilities = label_probabilities(logits, schema).numpy()
    for person, row in zip(people, probabilities):
        for a, name in enumerate(("Hat", "Backpack")):
            assert (person[name]["label"] == "yes") == (row[a, 1] > (0.2, 0.35)[a])
        best = np.argmax(np.log(row[3]) + [0.0, 2.0, 0.0, -1.0])
        assert person["UpperColor"]["label"] == schema["UpperColor"].labels[best]
        assert person["UpperColor"]["score"] == pytest.approx(row[3, best])
    plain = tiny_processor("kway").post_process_attributes(logits, schema)
    assert [one["Hat"] for one in plain] == [one["Hat"] for one in people]


def test_metrics_of_calibrated_logits_are_those_of_the_fitted_answers():
    raw, decisions = random_logits(60), some_decisions()
    schema = decisions.settle(SCHEMA)
    labels = np.stack([np.arange(60) % one.num_labels for one in schema], 1)
    logits = Calibration(decisions, schema)(torch.from_numpy(raw)).numpy()
    found = ParMetrics(schema, threshold="schema", decisions=decisions.to_dict())((logits, labels))
    _, answers = decisions.apply(raw, schema)
    assert found["plain_accuracy"] == pytest.approx((answers == labels).mean())
    plain = ParMetrics(schema, threshold="schema")((logits, labels))
    assert plain["plain_accuracy"] != pytest.approx(found["plain_accuracy"])


def test_decisions_are_saved_loaded_folded_and_can_be_left_out(tmp_path):
    model, raw = calibrated_model()
    wanted = answers_of(model)
    model.save_pretrained(tmp_path / "full")
    loaded = AutoModel.from_pretrained(tmp_path / "full")
    assert loaded.config.decisions == some_decisions().to_dict()
    torch.testing.assert_close(answers_of(loaded), wanted)
    plain = AutoModel.from_pretrained(tmp_path / "full", decisions=None)
    torch.testing.assert_close(answers_of(plain), raw)
    folded = model.fold()
    torch.testing.assert_close(answers_of(folded), wanted, atol=1e-5, rtol=1e-5)
    folded.save_pretrained(tmp_path / "folded")
    torch.testing.assert_close(answers_of(AutoModel.from_pretrained(tmp_path / "folded")), answers_of(folded))


def test_a_checkpoint_from_before_answers_as_before(tmp_path):
    assert "decisions" not in json.loads((FIRST / "config.json").read_text(encoding="utf-8"))
    model = AutoModel.from_pretrained(FIRST)
    assert model.config.decisions is None and model._own_calibration() is None
    model.config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["decisions"] is None


def test_damaged_decisions_of_a_file_are_refused(tmp_path):
    model, _ = calibrated_model()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved["decisions"]["attributes"]["Hat"]["gain"] = -1
    path.write_text(json.dumps(saved), encoding="utf-8")
    with pytest.raises(ValueError, match="attribute 'Hat': gain must be a number in"):
        AutoConfig.from_pretrained(tmp_path)


def test_another_label_space_keeps_what_is_the_same():
    model, _ = calibrated_model()
    config = model.config
    new = [one.to_dict() for one in tiny_schema(kway=True)][:4]
    new[3]["labels"] = ["black", "white", "red", "green"]
    config.keep_decisions_of(SCHEMA, AttributeSchema(new))
    assert list(config.decisions["attributes"]) == ["Hat", "Backpack"]
    config.keep_decisions_of(SCHEMA, AttributeSchema(new[2:3]))
    assert config.decisions is None


@pytest.mark.parametrize("heads_alone", [False, True])
def test_gains_and_offsets_of_focus_come_from_the_weights_of_before(heads_alone, tmp_path):
    """They were tensors of the checkpoint, `logits = gain * similarity + offset`."""
    model = randomize(tiny_focus_model("kway"), seed=3)
    raw = answers_of(model)
    if heads_alone:
        model.vlm.save_pretrained(tmp_path / "backbone")
        model.config.save_backbone, model.config.backbone_name = False, str(tmp_path / "backbone")
    model.save_pretrained(tmp_path / "old")
    gain = torch.tensor([2.0, 0.1, 1.0, 0.3, 7.0])
    offset = torch.randn(sum(SCHEMA.num_labels), generator=torch.Generator().manual_seed(0))
    file = tmp_path / "old" / "model.safetensors"
    save_file({**load_file(file), "decision_gain": gain, "decision_offset": offset}, file, {"format": "pt"})
    loaded = AutoModel.from_pretrained(tmp_path / "old")
    table = torch.zeros(5, 4)
    table[torch.from_numpy(SCHEMA.label_mask())] = offset
    wanted = torch.where(torch.from_numpy(SCHEMA.label_mask()), raw * gain[:, None] + table, raw)
    assert torch.equal(answers_of(loaded), wanted)  # to the last bit
    assert torch.equal(loaded.decision_gain, gain) and torch.equal(loaded.decision_offset, offset)
    assert loaded.config.decisions["attributes"]["Hat"]["gain"] == 2.0
    loaded.save_pretrained(tmp_path / "new")
    assert "decision_gain" not in load_file(tmp_path / "new" / "model.safetensors")
    assert torch.equal(answers_of(AutoModel.from_pretrained(tmp_path / "new")), wanted)
    save_file(
        {**load_file(file), "decision_gain": torch.ones(5), "decision_offset": torch.zeros(len(offset))},
        file, {"format": "pt"},
    )  # fmt: skip
    assert AutoModel.from_pretrained(tmp_path / "old").config.decisions is None
    save_file({**load_file(file), "decision_gain": gain[:3]}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="decision_gain .* hold 3 and 13 numbers, expected 5 and"):
        AutoModel.from_pretrained(tmp_path / "old")


def test_focus_applies_maps_of_its_own_attributes():
    model = randomize(tiny_focus_model("kway"), seed=3)
    raw = answers_of(model)
    model.config.set_decisions(some_decisions())
    torch.testing.assert_close(answers_of(model), Calibration(some_decisions(), SCHEMA)(raw), atol=1e-4, rtol=1e-4)


def test_new_decisions_are_used_at_once():
    model, raw = calibrated_model()
    answers_of(model)
    one = Decisions({"Hat": AttributeDecision(3.0, (0.0, 1.0))})
    model.config.decisions = one.to_dict()
    assert torch.equal(answers_of(model), Calibration(one, SCHEMA)(raw))


def test_sets_need_decisions():
    model, _ = calibrated_model()
    processor, logits = tiny_processor("kway"), answers_of(model)
    with pytest.raises(ValueError, match="abstain=0.9 without decisions, expected those of the model's config"):
        processor.post_process_attributes(logits, model.config.schema, abstain=0.9)
    people = processor.post_process_attributes(
        logits,
        model.config.schema,
        decisions=some_decisions(),
        abstain=0.5,
        doubts=["23 pixels high", None, "blurred"],
    )
    assert [one["Hat"].get("reason") for one in people] == ["23 pixels high", None, "blurred"]
    people = processor.post_process_attributes(
        logits, model.config.schema, decisions=some_decisions(), doubts=["blurred"] * 3
    )
    assert not any("set" in one for person in people for one in person.values())
