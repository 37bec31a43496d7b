"""Facts of the data that records name: read once, the same in training and evaluation."""

import dataclasses
import json

import datasets
import numpy as np
import pytest

from modeling_tests.bands import build_data
from modeling_tests.tiny import randomize, tiny_model, tiny_processor, tiny_schema
from modeling_tests.training_runs import run
from vlm_par_hf.data import attach_schema
from vlm_par_hf.errors import ParValueError, argument_in_errors
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.training import check_schema, evaluate, provenance
from vlm_par_hf.training.provenance import DataFacts, check_same_division


def relabeled(split, row, labels):
    """The split with other labels in one row."""
    rows = [labels if index == row else known for index, known in enumerate(split["labels"])]
    column = datasets.Dataset.from_dict({"labels": rows}, features=datasets.Features(labels=split.features["labels"]))
    return split.remove_columns("labels").add_column("labels", column["labels"][:])


def test_facts_are_what_the_data_set_carries_unless_the_caller_says_otherwise(data):
    facts = DataFacts.read(data, data["train"])
    assert (facts.name, facts.options, facts.schema) == ("bands", {}, tiny_schema())
    carrying = attach_schema(
        data["train"], tiny_schema(), name="pa100k", options={"seed": 1, "partition": 2}, skipped_images={"train": 3}
    )
    facts = DataFacts.read("folder", carrying)
    assert facts.name == "pa100k" and facts.options == {"seed": 1, "partition": 2}
    assert facts.notes["skipped_images"] == {"train": 3}
    facts = DataFacts.read("folder", carrying, name="mine", options={"seed": 5})
    assert facts.name == "mine" and facts.options == {"seed": 5, "partition": 2}
    nameless = attach_schema(data["train"], tiny_schema())
    assert DataFacts.read("folder", nameless).name == "folder" and DataFacts.read({}, nameless).name == "in memory"
    with pytest.raises(ValueError, match="carries no attribute schema"):
        DataFacts.read({}, datasets.Dataset.from_dict({"labels": [[0, 1, 0]]}))


def test_facts_are_read_once(data, monkeypatch):
    reads, read_labels = [], provenance.read_labels
    monkeypatch.setattr(provenance, "read_labels", lambda split: reads.append(split) or read_labels(split))
    facts = DataFacts.read(data, data["train"])
    assert not reads, "labels are read when they are asked for"
    np.testing.assert_array_equal(facts.labels, np.asarray(data["train"]["labels"]))
    assert facts.labels is facts.labels and facts.labels.dtype == np.int64
    assert facts.fingerprint == facts.fingerprint and reads == [data["train"]]
    with pytest.raises(dataclasses.FrozenInstanceError):
        facts.name = "other"


def test_a_fingerprint_is_of_labels_and_image_ids_in_their_order(data):
    split = data["train"]
    first = DataFacts.read(data, split).fingerprint
    assert DataFacts.read("folder", split, name="other", options={"seed": 3}).fingerprint == first
    assert DataFacts.read(data, split.remove_columns("image")).fingerprint == first, "pictures are not read"
    assert DataFacts.read(data, build_data(tiny_schema())["train"]).fingerprint == first
    changed = [
        split.select(range(47)),
        split.select([1, 0, *range(2, 48)]),
        split.remove_columns("image_id"),
        split.remove_columns("image_id").add_column("image_id", [f"{index}.png" for index in range(48)]),
        attach_schema(relabeled(split, 5, [1 - max(label, 0) for label in split["labels"][5]]), tiny_schema()),
    ]
    found = {DataFacts.read(data, other).fingerprint for other in changed}
    assert len(found) == len(changed) and first not in found


def test_training_and_evaluation_read_their_data_through_the_same_facts(data, tmp_path, monkeypatch):
    read, seen = DataFacts.read, []

    def renaming(dataset, split, **options):
        seen.append(len(split))
        facts = read(dataset, split, **options)
        return dataclasses.replace(facts, name="renamed", options={"partition": 4})

    monkeypatch.setattr(DataFacts, "read", renaming)
    result = run(data, tmp_path / "run", max_steps=1)
    record = json.loads((result.output_dir / "run.json").read_text())["data"]
    assert (record["name"], record["options"]) == ("renamed", {"partition": 4})
    assert record["train_sha256"] == read(data, data["train"]).fingerprint
    seen.clear()
    model = randomize(tiny_model("naflex"))
    record = evaluate(model, data, processor=tiny_processor("naflex"), bootstrap=0, progress=False)["data"]
    assert (record["name"], record["options"]) == ("renamed", {"partition": 4}) and seen == [20]


def test_a_loading_error_names_the_argument(monkeypatch):
    words = "backbone='no/where' could not be loaded: not there"
    with pytest.raises(OSError, match=words), argument_in_errors("backbone", "no/where"):
        raise FileNotFoundError("not there")
    words = "(?s)backbone='no/where' could not be loaded: .*"
    with pytest.raises(OSError, match=words), argument_in_errors("backbone", "no/where"):
        json.loads("no JSON")  # raised by another package
    # Ours is clear; the other one looks as if the code of this package had raised it.
    monkeypatch.setattr("vlm_par_hf.errors.raised_elsewhere", lambda error: False)
    for error in (ParValueError("as it is"), ZeroDivisionError("as it is")):
        with pytest.raises(type(error), match="^as it is$"), argument_in_errors("backbone", "no/where"):
            raise error


def test_label_spaces_must_agree_and_wording_need_not(caplog):
    attributes = tiny_schema().to_list()
    worded = AttributeSchema([{**attributes[0], "threshold": 0.3, "question": "a hat?"}, *attributes[1:]])
    with caplog.at_level("WARNING"):
        check_schema(worded, tiny_schema())
    assert "words them differently" in caplog.text
    for wrong in (attributes[::-1], attributes[:-1], [{**attributes[0], "labels": ["none", "hat"]}, *attributes[1:]]):
        with pytest.raises(ValueError, match="differs from the checkpoint's"):
            check_schema(AttributeSchema(wrong), tiny_schema())


def test_training_images_must_not_move_into_the_test(tmp_path):
    record = {"data": {"name": "synthetic", "options": {"partition": 0, "seed": 0, "num_train": 12000}}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    check_same_division(str(tmp_path), "synthetic", {"num_train": 12000, "num_test": 50})
    check_same_division(str(tmp_path), "synthetic", {"seed": 1})  # other people altogether
    check_same_division(str(tmp_path), "pa100k", {})
    check_same_division(str(tmp_path / "nothing"), "synthetic", {})
    with pytest.raises(ValueError, match="num_train: 12000 in training, None now"):
        check_same_division(str(tmp_path), "synthetic", {})
    record["data"] = {"name": "folder", "options": {"seed": 0}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="seed: 0 in training, 3 now"):
        check_same_division(str(tmp_path), "folder", {"seed": 3})
