"""The schema and the labels that a data set carries."""

import json

import datasets
import numpy as np
import pytest

from vlm_par_hf.data import attach_schema, dataset_schema
from vlm_par_hf.data.carried import carried_schema, read_labels
from vlm_par_hf.labels.schema import AttributeSchema


SCHEMA = AttributeSchema(
    [
        {"name": "Hat", "question": "is there a hat?", "prompts": ["no hat", "a hat"]},
        {"name": "Bag", "question": "is there a bag?", "prompts": ["no bag", "a bag"]},
    ]
)


def test_description_of_joined_data_sets_with_different_notes():
    plain = datasets.Dataset.from_dict({"labels": [[0, 1]]})
    first, second = attach_schema(plain, SCHEMA, name="a"), attach_schema(plain, SCHEMA, name="b")
    assert dataset_schema(datasets.concatenate_datasets([first, second])) == SCHEMA
    other = attach_schema(plain, AttributeSchema([SCHEMA[1], SCHEMA[0]]))
    with pytest.raises(ValueError, match="carry different schemas: the order differs from position 0"):
        dataset_schema(datasets.concatenate_datasets([first, other]))
    with pytest.raises(ValueError, match="'x' and 'y' carry different schemas"):
        dataset_schema({"x": first, "y": other})
    assert carried_schema({"x": first}) == SCHEMA and carried_schema({"x": first, "y": other}) is None
    assert plain.info.description == ""


def test_data_set_without_schema():
    plain = datasets.Dataset.from_dict({"labels": [[0, 1]]})
    with pytest.raises(ValueError, match="'data set' carries no attribute schema.*attach_schema"):
        dataset_schema(plain)
    with pytest.raises(ValueError, match="'test' carries no attribute schema"):
        dataset_schema(datasets.DatasetDict(train=attach_schema(plain, SCHEMA), test=plain))
    plain.info.description = "People in a street."
    with pytest.raises(ValueError, match="People in a street"):
        dataset_schema(plain)
    with pytest.raises(ValueError, match="empty"):
        dataset_schema(datasets.DatasetDict())
    with pytest.raises(ValueError, match="carries no attribute schema"):
        dataset_schema([1, 2])
    assert carried_schema(plain) is None


def test_attach_schema_checks_the_width():
    feature = datasets.Features({"labels": datasets.List(datasets.Value("int64"), length=3)})
    with pytest.raises(ValueError, match="3 labels per image but the schema has 2 attributes"):
        attach_schema(datasets.Dataset.from_dict({"labels": [[0, 1, 1]]}, features=feature), SCHEMA)


def test_labels_are_read_from_columns_and_from_rows():
    rows = [{"labels": [0, -100]}, {"labels": [1, 1]}]
    # The file does not exist: an image that is decoded is an error.
    pictures = datasets.Dataset.from_list([{**row, "image": "no/such/file.png"} for row in rows])
    pictures = pictures.cast_column("image", datasets.Image())
    for data in (datasets.Dataset.from_list(rows), pictures, rows):
        labels = read_labels(data)
        assert labels.dtype == np.int64 and labels.tolist() == [[0, -100], [1, 1]]


def test_labels_of_data_without_them():
    assert read_labels(datasets.Dataset.from_list([{"n": 1}])) is None
    assert read_labels([{"n": 1}, {"labels": None}]) is None
    with pytest.raises(ValueError, match="labels in 1 of 2 rows: expected all or none"):
        read_labels([{"labels": [0, 1]}, {"n": 1}])


def test_labels_are_not_rounded_and_rows_are_alike():
    for labels, error, message in (
        ([[0.7, 1.0]], TypeError, "labels are float64; expected whole numbers"),
        ([["1"]], TypeError, "labels are <U1"),
        ([[0], [0, 1]], ValueError, "rows with different numbers of labels"),
    ):
        with pytest.raises(error, match=message):
            read_labels([{"labels": row} for row in labels])


def test_why_a_carried_schema_is_refused_is_said():
    data = datasets.Dataset.from_dict({"labels": [[0]]})
    wrong = {"name": "Hat", "question": "a hat?", "labels": ["yes", "no"], "prompts": ["a", "b"]}
    data.info.description = json.dumps({"attributes": [wrong]})
    with pytest.raises(ValueError, match="carries no attribute schema .*the second is the positive one"):
        dataset_schema(data)
    data.info.description = "[" * 100_000
    assert carried_schema(data) is None
