import hashlib

import pytest

from vlm_par_hf.data.synthetic import build_synthetic_dataset
from vlm_par_hf.labels.tables import get_schema


SCHEMA = get_schema("synthetic")


def _digest(dataset):
    table = dataset.data.column("image").to_pylist()
    return hashlib.sha256(b"".join(row["bytes"] for row in table)).hexdigest()


def test_dataset_is_the_same_for_any_number_of_processes():
    # 100 people are four jobs: fewer are drawn in this process.
    sizes = {"num_train": 200, "num_validation": 20, "num_test": 21, "seed": 4}
    serial, parallel = build_synthetic_dataset(num_proc=1, **sizes), build_synthetic_dataset(num_proc=2, **sizes)
    assert {split: len(part) for split, part in serial.items()} == {"train": 200, "validation": 20, "test": 21}
    for split in serial:
        assert _digest(serial[split]) == _digest(parallel[split])
    people = [set(part["person_id"]) for part in serial.values()]
    assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
    example = serial["train"][0]
    assert example["image"].size == (96, 192) and len(example["labels"]) == len(SCHEMA)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "num_train is 0"),
        ({"cameras": (2,)}, "cameras is"),
        ({"seed": 1000}, "embedded backbone"),
        ({"pictures_per_person": 0}, "pictures_per_person is 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_synthetic_dataset(**arguments)
