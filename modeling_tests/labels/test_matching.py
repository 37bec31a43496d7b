"""Attributes that two label spaces have in common, and answers of one in terms of the other."""

import json

import numpy as np
import pytest

from vlm_par_hf.labels.matching import match_label_spaces, read_mapping
from vlm_par_hf.labels.schema import Attribute, AttributeSchema
from vlm_par_hf.labels.tables import get_schema


def yes_no(name, question=None, **options):
    return Attribute(name, question or f"is there {name}?", prompts=(f"no {name}", name), **options)


def choice(name, labels, question="which?", **options):
    return Attribute(name, question, labels, tuple(f"a {name} {label}" for label in labels), **options)


MODEL = AttributeSchema(
    [
        yes_no("Female", "a woman?", threshold=0.4),
        choice("View", ("front", "back", "left", "right"), mirror=(0, 1, 3, 2)),
        choice("Color", ("red", "gray", "blue", "green"), "what color?"),
        yes_no("Child", group="age"),
        yes_no("Adult", group="age"),
        yes_no("Hat", "wearing a hat?"),
    ]
)


def probabilities(count=50, seed=0):
    found = np.random.default_rng(seed).random((count, len(MODEL), MODEL.max_labels)) * MODEL.label_mask()
    return found / found.sum(-1, keepdims=True)


def test_the_same_attribute_in_another_order_and_other_spelling():
    data = AttributeSchema(
        [choice("color", ("blue", "Grey", "red", "green"), "what color?"), yes_no("FEMALE"), yes_no("Shoes")]
    )
    match = match_label_spaces(MODEL, data)
    assert match.schema.names == ("color", "FEMALE") and match.columns.tolist() == [0, 1]
    assert match.unmatched == ("Shoes",) and match.described == ("Color", "Female")
    assert match.by_name == ("FEMALE",)
    values = probabilities()
    found = match.probabilities(values)
    assert np.allclose(found[:, 0], values[:, 2, [2, 1, 0, 3]]) and np.allclose(found[:, 1, :2], values[:, 0, :2])
    assert match.schema["FEMALE"].threshold == 0.4
    labels = np.array([[0, 1, 1], [3, -100, 0], [-100, 0, 0]])
    assert match.labels(labels).tolist() == [[0, 1], [3, -100], [-100, 0]]


def test_the_question_goes_before_the_name():
    """PA-100K's files have two patterns under each other's name; its questions say what is labelled."""
    match = match_label_spaces(get_schema("rendered"), get_schema("pa100k"))
    found = dict(zip(match.schema.names, match.described))
    assert found["UpperPlaid"] == "UpperSplice" and found["UpperSplice"] == "UpperPlaid"
    assert found["UpperStride"] == "UpperStripes" and found["Hat"] == "Hat" and "Trousers" in match.unmatched


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        ("pa100k", "rapv2", {"hs-Hat": "Hat", "attachment-Backpack": "Backpack", "Female": "Female"}),
        ("pa100k", "market1501", {"gender": "Female", "up": "ShortSleeve", "hat": "Hat"}),
        ("rendered", "mivia5", {"UpperColor": "UpperColor", "Gender": "Female", "Hat": "Hat"}),
        ("peta65", "mivia5", {"UpperColor": "upperBodyColor", "Gender": "personalFemale", "Hat": "accessoryHat"}),
    ],
)
def test_published_label_spaces(model, data, expected):
    match = match_label_spaces(get_schema(model), get_schema(data))
    assert expected.items() <= dict(zip(match.schema.names, match.described)).items()
    shares = match.probabilities(np.full((1, len(get_schema(model)), get_schema(model).max_labels), 0.1))
    assert np.allclose(shares.sum(-1), 1)


def test_colors_that_one_side_does_not_know_are_unknown():
    data = AttributeSchema([choice("Color", ("red", "pink", "blue"), "what color?")])
    match = match_label_spaces(MODEL, data)
    assert match.schema["Color"].labels == ("red", "blue") and match.schema["Color"].prompts[1] == "a Color blue"
    assert match.labels(np.array([[0], [1], [2]])).tolist() == [[0], [-100], [1]]
    values = probabilities()
    assert np.allclose(match.probabilities(values)[:, 0, 1], values[:, 2, 2] / (values[:, 2, 0] + values[:, 2, 2]))
    assert match.described == ("Color, 2 labels",)


def test_an_inverse_attribute_is_said():
    data = AttributeSchema([yes_no("Male", "a man?"), yes_no("Woman")])
    match = match_label_spaces(MODEL, data, {"Male": {"attribute": "Female", "inverse": True}, "Woman": "Female"})
    assert match.described == ("not Female", "Female")
    values = probabilities()
    found = match.probabilities(values)
    assert np.allclose(found[:, 0, 1], values[:, 0, 0]) and np.allclose(found[:, 1, 1], values[:, 0, 1])
    assert match.schema["Male"].threshold == pytest.approx(0.6) and match.schema["Woman"].threshold == 0.4


def test_one_attribute_of_four_labels_answers_three_of_two():
    data = AttributeSchema([yes_no(name, group="view") for name in ("Front", "Side", "Back")])
    parts = {"Front": ["front"], "Side": ["left", "right"], "Back": ["back"]}
    mapping = {name: {"attribute": "View", "labels": labels} for name, labels in parts.items()}
    match = match_label_spaces(MODEL, data, mapping)
    values = probabilities()
    found = match.probabilities(values)
    assert np.allclose(found[:, 1, 1], values[:, 1, 2] + values[:, 1, 3]) and np.allclose(found.sum(-1), 1)
    assert match.described == ("View: front", "View: left, right", "View: back")


def test_binary_attributes_answer_one_of_more_labels():
    data = AttributeSchema([choice("Age", ("child", "adult", "old"), "how old?")])
    match = match_label_spaces(MODEL, data, {"Age": {"attributes": {"child": "Child", "adult": "Adult"}}})
    values = probabilities()
    child, adult = values[:, 3, 1], values[:, 4, 1]
    assert np.allclose(match.probabilities(values)[:, 0, 0], child / (child + adult))
    assert match.described == ("Child, Adult",) and match.labels(np.array([[2]])).tolist() == [[-100]]
    nothing = np.zeros_like(values[:1])
    assert match.probabilities(nothing)[0, 0].tolist() == [0.5, 0.5]


def test_null_leaves_out_what_would_be_matched():
    data = AttributeSchema([yes_no("Hat", "wearing a hat?"), yes_no("Female")])
    assert match_label_spaces(MODEL, data, {"Hat": None}).unmatched == ("Hat",)


def test_conditions_stay_where_they_can_be_judged():
    colors = choice("HatColor", ("red", "gray"), "what color?", requires=("Hat", "yes"))
    data = AttributeSchema([yes_no("Hat", "wearing a hat?"), colors])
    assert match_label_spaces(MODEL, data).schema["HatColor"].requires == ("Hat", "yes")
    assert match_label_spaces(MODEL, data, {"Hat": None}).schema["HatColor"].requires is None


DATA = AttributeSchema(
    [yes_no("Bag"), yes_no("Cap"), choice("View", ("front", "side"), "v?"), choice("C", tuple("xyz"))]
)


@pytest.mark.parametrize(
    ("mapping", "error", "message"),
    [
        ({"Bag": "Hat", "Cap": "Hat"}, ValueError, r"maps both 'Bag' and 'Cap' to 'Hat' \('yes'\), expected one"),
        (
            {"Bog": "Hat"},
            KeyError,
            "mapping names an attribute that the data set lacks: no attribute 'Bog' .*did you mean 'Bag'",
        ),
        (
            {"Bag": "Hut"},
            KeyError,
            "mapping of 'Bag' names an attribute that the checkpoint lacks: no attribute 'Hut' .*did you mean 'Hat'",
        ),
        ({"Bag": 3}, ValueError, "mapping of 'Bag' is 3, expected null, the name of an attribute"),
        ({"Bag": {"name": "Hat"}}, ValueError, "mapping of 'Bag' is .* expected null, the name"),
        ({"Bag": {"attribute": ["Hat"]}}, ValueError, r"attribute is \['Hat'\], expected a name"),
        ({"Bag": {"attribute": "Hat", "inverse": 1.5}}, ValueError, "inverse is 1.5, expected true or false"),
        ({"C": {"attribute": "Color", "inverse": True}}, ValueError, "inverse is for two labels each, got 3 and 4"),
        ({"C": "Color"}, ValueError, "have fewer than two labels in common; say which mean the same"),
        ({"Bag": {"attribute": "View", "labels": ["top"]}}, ValueError, "'top' is no label of 'View', which has"),
        ({"C": {"attribute": "View", "labels": ["front"]}}, ValueError, "labels is .* expected {label: labels, ...}"),
        ({"C": {"attribute": "View", "labels": {"x": "front", "w": "back"}}}, ValueError, "'w' is no label of 'C'"),
        ({"C": {"attribute": "View", "labels": {"x": "front", "y": []}}}, ValueError, "expected labels of 'View'"),
        ({"C": {"attribute": "View", "labels": {"x": "front", "y": "front"}}}, ValueError, "are mapped to one"),
        ({"C": {"attributes": {"x": "Hat"}}}, ValueError, "expected {label: name, ...} for two or more"),
        ({"C": {"attributes": {"x": "Hat", "y": "Color"}}}, ValueError, "'Color' has 4 labels, expected two"),
        ({"C": {"attributes": {"x": "Hat", "y": "Hat"}}}, ValueError, "are mapped to one"),
        (["Bag"], TypeError, "mapping must be a dict"),
        ({}, ValueError, "no attribute in common: the checkpoint has Female, View.*the data set has Bag.*--mapping"),
    ],
)
def test_a_wrong_mapping_is_refused(mapping, error, message):
    with pytest.raises(error, match=message):
        match_label_spaces(MODEL, DATA, mapping)


def test_a_mapped_attribute_is_not_matched_a_second_time():
    data = AttributeSchema([yes_no("Hat", "wearing a hat?"), yes_no("Cap")])
    match = match_label_spaces(MODEL, data, {"Cap": "Hat"})
    assert match.schema.names == ("Cap",) and match.unmatched == ("Hat",)


def test_a_question_asked_twice_decides_nothing():
    data = AttributeSchema([yes_no("Cap", "wearing a hat?"), yes_no("Helmet", "wearing a hat?"), yes_no("Female")])
    assert match_label_spaces(MODEL, data).schema.names == ("Female",)


def test_mapping_files(tmp_path):
    path = tmp_path / "mapping.json"
    path.write_text(json.dumps({"Bag": "Hat"}))
    assert read_mapping(path) == {"Bag": "Hat"}
    path.write_text('{"Bag": "Hat", "Bag": "Female"}')
    with pytest.raises(ValueError, match="the key 'Bag' appears twice"):
        read_mapping(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        read_mapping(path)
    with pytest.raises(FileNotFoundError, match="does not exist; expected a JSON object"):
        read_mapping(tmp_path / "nothing.json")
