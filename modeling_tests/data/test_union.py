"""Several data sets as one: the united label space, its rows, and how often each data set is drawn from."""

from collections import Counter

import numpy as np
import pytest
import torch

from modeling_tests.bands import build_data
from vlm_par_hf.data import TemperatureSampler, dataset_schema, unite_datasets, unite_schemas
from vlm_par_hf.data.carried import read_labels
from vlm_par_hf.labels.schema import Attribute, AttributeSchema
from vlm_par_hf.labels.tables import get_schema


def yes_no(name, question=None, **options):
    return Attribute(name, question or f"is there {name}?", prompts=(f"no {name}", name), **options)


def choice(name, labels, question="which?", **options):
    return Attribute(name, question, labels, tuple(f"a {name} {label}" for label in labels), **options)


FIRST = AttributeSchema(
    [
        yes_no("Hat", "wearing a hat?"),
        choice("View", ("front", "left", "right"), "side?", mirror=(0, 2, 1)),
        yes_no("Young", group="age"),
        yes_no("Old", group="age"),
    ]
)
SECOND = AttributeSchema(
    [
        choice("HatColor", ("red", "blue", "green"), "what color?", requires=("hs-Hat", "yes")),
        yes_no("hs-Hat", "wearing a hat?"),
        yes_no("BagLeft", mirror="BagRight"),
        yes_no("BagRight", mirror="BagLeft"),
        choice("view", ("right", "back", "front", "left"), "seen from where?", mirror=(3, 1, 2, 0)),
        yes_no("Child", group="age"),
        yes_no("Adult", group="age"),
    ]
)


def test_the_united_label_space():
    schema, places = unite_schemas({"first": FIRST, "second": SECOND})
    assert schema.names == ("Hat", "View", "Young", "Old", "HatColor", "BagLeft", "BagRight", "Child", "Adult")
    assert schema["View"].labels == ("front", "left", "right", "back") and schema["View"].mirror == (0, 2, 1, 3)
    assert schema["View"].prompts == ("a View front", "a View left", "a View right", "a view back")
    assert schema["HatColor"].requires == ("Hat", "yes") and schema["BagLeft"].mirror == "BagRight"
    assert list(schema.groups) == ["age", "second: age"]
    assert [column for column, _ in places["second"]] == [4, 0, 5, 6, 1, 7, 8]
    assert places["second"][4][1].tolist() == [2, 3, 0, 1]
    assert unite_schemas({"first": FIRST})[0] == FIRST


def test_published_label_spaces_share_columns():
    schema, _ = unite_schemas({name: get_schema(name) for name in ("pa100k", "rapv2", "upar40", "rendered")})
    sizes = [len(get_schema(name)) for name in ("pa100k", "rapv2", "upar40", "rendered")]
    assert max(sizes) < len(schema) < sum(sizes) - 20
    assert schema.names[:26] == get_schema("pa100k").names and "hs-Hat" not in schema and "Accessory-Hat" not in schema


def test_rows_keep_their_meaning_and_the_rest_is_unknown():
    first, second = build_data(FIRST, {"train": 12, "test": 4}), build_data(SECOND, {"train": 9, "validation": 5})
    united = unite_datasets({"first": first, "second": second})
    schema = dataset_schema(united)
    assert list(united) == ["train", "validation", "test"] and len(united["train"]) == 21
    assert set(united["train"].column_names) == {"image", "image_id", "labels", "person_id", "dataset"}
    assert united["train"]["dataset"][:] == ["first"] * 12 + ["second"] * 9
    assert united["train"][0]["person_id"] == "first/0" and united["train"][12]["person_id"] == "second/0"
    assert united["train"][20]["image_id"] == "second/train_008.png"
    assert united["train"][3]["image"].size == (32, 64)
    rows = read_labels(united["train"])
    for start, data, own in ((0, first, FIRST), (12, second, SECOND)):
        labels = read_labels(data["train"])
        renamed = {"hs-Hat": "Hat", "view": "View"}
        found = rows[start : start + len(labels)]
        for position, one in enumerate(own):
            column = schema.index(renamed.get(one.name, one.name))
            names = [None if label == -100 else schema[column].labels[label] for label in found[:, column]]
            assert names == [None if label == -100 else one.labels[label] for label in labels[:, position]]
        others = [name for name in schema.names if name not in {renamed.get(one, one) for one in own.names}]
        assert (found[:, [schema.index(name) for name in others]] == -100).all() and others
    assert "first+second" in united["train"].info.description


def test_what_is_the_same_can_be_said():
    other = AttributeSchema([yes_no("Cap"), yes_no("Hat", "wearing a hat?")])
    schema, places = unite_schemas({"first": FIRST, "other": other}, {"other": {"Cap": "Old"}})
    assert schema == FIRST and [column for column, _ in places["other"]] == [3, 0]
    with pytest.raises(ValueError, match=r"maps both 'Cap' and 'Hat' to 'Old' \('yes'\)"):
        unite_schemas({"first": FIRST, "other": other}, {"other": {"Cap": "Old", "Hat": "Old"}})


@pytest.mark.parametrize(
    ("schemas", "same", "error", "message"),
    [
        ({}, None, ValueError, "schemas is empty"),
        ({"a": FIRST}, {"b": {}}, KeyError, "same names 'b', expected one of a"),
        ({"a": FIRST, "b": SECOND}, {"b": {"Hut": "Hat"}}, KeyError, "no attribute 'Hut'"),
        ({"a": FIRST, "b": SECOND}, {"b": {"HatColor": "View"}}, ValueError, "fewer than two labels in common"),
        (
            {"a": FIRST, "b": AttributeSchema([choice("hat", ("cap", "beret", "helmet"))])}, None, ValueError,
            "'b' has an attribute 'hat', which is another one in a data set before it: say in `same`",
        ),
        ({"a": FIRST, "b": SECOND}, {"b": {"view": None}}, ValueError, "'b' has an attribute 'view', which is"),
    ],
)  # fmt: skip
def test_what_cannot_be_united(schemas, same, error, message):
    with pytest.raises(error, match=message):
        unite_schemas(schemas, same)


def test_only_data_sets_by_name():
    with pytest.raises(TypeError, match="expected a dict of names and DatasetDicts"):
        unite_datasets([build_data(FIRST, {"test": 1})])


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.1), (2.0, 0.25), (1e9, 0.5)])
def test_a_small_data_set_is_drawn_more_often(temperature, share):
    sources = ["small"] * 1000 + ["large"] * 9000
    sampler = TemperatureSampler(sources, temperature)
    assert len(sampler) == 10_000 and sampler.shares["small"] == pytest.approx(share, abs=1e-6)
    drawn = list(sampler)
    counts = Counter(drawn)
    small = sum(count for row, count in counts.items() if row < 1000)
    assert small / 10_000 == pytest.approx(share, abs=0.02)
    for rows in (range(1000), range(1000, 10_000)):
        repeats = [counts[row] for row in rows]
        assert max(repeats) - min(repeats) <= 1


def test_the_order_depends_on_seed_and_epoch():
    def order(seed, epoch):
        sampler = TemperatureSampler(np.array(["a", "b", "b"] * 20), 2, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1) and order(0, 1) != order(0, 2) and order(1, 1) != order(0, 1)
    loader = torch.utils.data.DataLoader(list(range(60)), batch_size=20, sampler=TemperatureSampler(["a"] * 60))
    assert sorted(torch.cat(list(loader)).tolist()) == list(range(60))


@pytest.mark.parametrize(
    ("sources", "temperature", "message"),
    [([], 2, "sources is empty"), (["a"], 0.5, "temperature is 0.5, expected"), (["a"], float("nan"), "is nan")],
)
def test_wrong_sampling(sources, temperature, message):
    with pytest.raises(ValueError, match=message):
        TemperatureSampler(sources, temperature)
