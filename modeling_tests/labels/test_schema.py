"""The label space: validation, order, JSON round trip, mirror, differences."""

import copy
import json
import pickle

import numpy as np
import pytest

from vlm_par_hf.labels.schema import Attribute, AttributeSchema
from vlm_par_hf.labels.tables import get_schema


def yes_no(name: str, **options) -> Attribute:
    return Attribute(name, f"is there {name}?", prompts=(f"no {name}", f"one {name}"), **options)


def view(**options) -> Attribute:
    options = {"mirror": (0, 1, 3, 2)} | options
    return Attribute("View", "which side?", ("front", "back", "left", "right"), ("f", "b", "l", "r"), **options)


def bags() -> AttributeSchema:
    return AttributeSchema(
        [
            yes_no("Hat", region="head", threshold=0.3),
            yes_no("LeftBag", mirror="RightBag", region="attachment"),
            view(region="whole"),
            yes_no("RightBag", mirror="LeftBag", region="attachment"),
            yes_no("Female", sensitive=True),
            yes_no("Young", sensitive=True, group="age"),
            yes_no("Old", sensitive=True, group="age"),
        ]
    )


def test_an_attribute_has_labels_and_says_how_many():
    hat, side = yes_no("Hat"), view()
    assert hat.labels == ("no", "yes") and hat.num_labels == 2 and hat.is_binary and hat.threshold == 0.5
    assert side.num_labels == 4 and not side.is_binary
    with pytest.raises(AttributeError):
        hat.threshold = 0.7


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": ""}, ValueError, "name must be text"),
        ({"name": " Hat"}, ValueError, "without surrounding space"),
        ({"name": 3}, TypeError, "name must be text, got 3"),
        ({"question": ""}, ValueError, "'Hat': question must be text"),
        ({"labels": ("yes",), "prompts": ("a",)}, ValueError, r"labels must hold at least 2 names, got \['yes'\]"),
        ({"labels": ("yes", "yes")}, ValueError, "labels must all be different"),
        ({"labels": "yes"}, TypeError, "labels must be a sequence of strings, got 'yes'"),
        ({"labels": (0, 1)}, TypeError, "labels must be text, got 0"),
        ({"prompts": ("a",)}, ValueError, r"prompts must hold one sentence per label \(2\), got 1"),
        ({"prompts": ("a", "a")}, ValueError, "prompts must all be different"),
        ({"region": "hand"}, ValueError, "region must be one of .*'attachment'.* got 'hand'"),
        ({"threshold": 0.0}, ValueError, "threshold must lie strictly between 0 and 1, got 0.0"),
        ({"threshold": 1}, ValueError, "threshold must lie strictly between 0 and 1, got 1"),
        ({"threshold": float("nan")}, ValueError, "threshold must lie strictly"),
        ({"threshold": "0.5"}, TypeError, "threshold must be a number, got '0.5'"),
        ({"sensitive": "yes"}, TypeError, "sensitive must be True or False, got 'yes'"),
        ({"mirror": "Hat"}, ValueError, "mirror must name another attribute"),
        ({"mirror": (0, 2)}, ValueError, r"mirror must be a permutation of 0..1, got \(0, 2\)"),
        ({"mirror": 1}, TypeError, "mirror must be an attribute's name, a permutation or None, got 1"),
        ({"labels": ("a", "b", "c"), "prompts": "abc", "group": "g"}, TypeError, "prompts must be a sequence"),
        ({"labels": ("a", "b", "c"), "prompts": tuple("abc"), "group": "g"}, ValueError, "group 'g' is for binary"),
        ({"labels": ("a", "b", "c"), "prompts": tuple("abc"), "mirror": (1, 2, 0)}, ValueError, "mirror must undo"),
    ],
)
def test_a_wrong_attribute_is_refused_by_name_and_value(options, error, message):
    valid = {"name": "Hat", "question": "is there a hat?", "prompts": ("no hat", "a hat")}
    with pytest.raises(error, match=message):
        Attribute(**(valid | options))


def test_order_names_and_sizes():
    schema = bags()
    assert schema.names == ("Hat", "LeftBag", "View", "RightBag", "Female", "Young", "Old")
    assert [attribute.name for attribute in schema] == list(schema.names) and len(schema) == 7
    assert schema.num_labels == (2, 2, 4, 2, 2, 2, 2) and schema.max_labels == 4
    assert schema.questions[2] == "which side?"
    assert schema[2] is schema["View"] and schema[-1].name == "Old" and schema[np.int64(0)].name == "Hat"
    assert schema.index("RightBag") == 3 and "RightBag" in schema and "Bag" not in schema and schema[3] in schema
    assert schema.groups == {"age": [5, 6]}
    expected = np.zeros((7, 4), dtype=bool)
    expected[:, :2] = True
    expected[2] = True
    mask = schema.label_mask()
    assert mask.dtype == bool and np.array_equal(mask, expected)


def test_a_misspelt_name_gets_suggestions():
    schema = bags()
    with pytest.raises(KeyError, match="no attribute 'hat' in this schema; did you mean 'Hat'?"):
        schema.index("hat")
    with pytest.raises(KeyError, match="did you mean .*'LeftBag'"):
        schema["Leftbags"]
    with pytest.raises(KeyError, match="it has Hat, LeftBag, View"):
        schema["xyzzy"]
    with pytest.raises(IndexError):
        schema[7]


@pytest.mark.parametrize(
    ("attributes", "error", "message"),
    [
        ([], ValueError, "at least one attribute"),
        ("Hat", TypeError, "must be a list of Attribute or dict, got str"),
        ({"name": "Hat"}, TypeError, "must be a list of Attribute or dict, got dict"),
        (5, TypeError, "got int"),
        (["Hat"], TypeError, "must be an Attribute or a dict, got str: 'Hat'"),
        ([yes_no("Hat"), yes_no("Bag"), yes_no("Hat")], ValueError, "'Hat' is at positions 0 and 2"),
        ([yes_no("LeftBag", mirror="RightBag")], ValueError, "mirror 'RightBag' is no attribute of this schema"),
        ([yes_no("L", mirror="R"), yes_no("R")], ValueError, "its mirror 'R' must name it back, but has mirror None"),
        (
            [yes_no("L", mirror="R"), Attribute("R", "q", ("a", "b"), ("a", "b"), mirror="L")],
            ValueError,
            r"must have the same labels \['no', 'yes'\], but has \['a', 'b'\]",
        ),
        ([{"name": "Hat", "question": "q"}], ValueError, "'Hat': key 'prompts' is missing"),
        (
            [{"name": "Hat", "question": "q", "promts": ["a", "b"]}],
            ValueError,
            "unknown key 'promts'; did you mean 'prompts'",
        ),
    ],
)
def test_a_wrong_schema_is_refused(attributes, error, message):
    with pytest.raises(error, match=message):
        AttributeSchema(attributes)


def test_json_round_trip_is_exact_and_plain(tmp_path):
    schema = bags()
    plain = schema.to_list()
    assert json.loads(json.dumps(plain)) == plain
    assert AttributeSchema.from_list(plain) == schema == AttributeSchema(schema)
    assert AttributeSchema(plain)[2].mirror == (0, 1, 3, 2)
    schema.to_json(tmp_path / "schema.json")
    assert AttributeSchema.from_json(tmp_path / "schema.json") == schema
    assert pickle.loads(pickle.dumps(schema)) == schema == copy.deepcopy(schema)


def test_fields_with_a_default_may_be_left_out_of_a_hand_written_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('[{"name": "Hüt", "question": "q", "prompts": ["a", "b"]}]', encoding="utf-8")
    schema = AttributeSchema.from_json(path)
    assert schema.names == ("Hüt",) and schema[0].labels == ("no", "yes") and schema[0].threshold == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "broken.json is not JSON"),
        ('{"name": "Hat"}', "broken.json must hold a JSON list of attributes, got dict"),
        ('[{"name": "Hat", "question": "q", "prompts": ["a"]}]', "broken.json: .*'Hat': prompts must hold one"),
        ("[3]", "broken.json: an attribute must be an Attribute or a dict, got int: 3"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        AttributeSchema.from_json(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json does not exist; expected a JSON list"):
        AttributeSchema.from_json(tmp_path / "none.json")


def test_equality_compares_contents():
    schema, other = bags(), bags()
    assert schema == other and schema != AttributeSchema(list(bags())[:1]) and schema != "schema"
    data = other.to_list()
    data[0]["threshold"] = 0.4
    assert schema != AttributeSchema(data)


def test_diff_says_what_differs():
    schema = bags()
    assert schema.diff(bags()) == []
    data = schema.to_list()
    data[0]["threshold"] = 0.4
    data[2]["labels"][1] = "rear"
    changed = AttributeSchema(data)
    assert schema.diff(changed) == [
        "'Hat': threshold is 0.3 in the first schema, 0.4 in the second",
        "'View': labels is ['front', 'back', 'left', 'right'] in the first schema, "
        "['front', 'rear', 'left', 'right'] in the second",
    ]
    assert [line.split(":")[0] for line in schema.diff(changed, label_space_only=True)] == ["'View'"]
    moved = AttributeSchema(data[::-1])
    assert any(
        "order differs from position 0: 'Hat' in the first schema, 'Old'" in line for line in schema.diff(moved)
    )
    shorter = schema.without_sensitive()
    assert schema.diff(shorter)[0] == "'Female' is only in the first schema"
    assert shorter.diff(schema.to_list())[0] == "'Female' is only in the second schema"


def test_equal_schemas_have_no_difference_and_unequal_ones_have_one():
    schema = bags()
    for field, value in {"question": "why?", "region": None, "prompts": ["x", "y"], "sensitive": True}.items():
        data = schema.to_list()
        data[0][field] = value
        assert len(schema.diff(AttributeSchema(data))) == 1
        assert schema.diff(AttributeSchema(data), label_space_only=True) == []


def test_subset_and_without_sensitive():
    schema = bags()
    assert schema.without_sensitive().names == ("Hat", "LeftBag", "View", "RightBag")
    assert schema.subset(["View", "Hat"]).names == ("View", "Hat")
    with pytest.raises(KeyError, match="no attribute 'Viev'.*'View'"):
        schema.subset(["Viev"])
    with pytest.raises(ValueError, match="mirror 'RightBag' is no attribute of this schema"):
        schema.subset(["LeftBag", "Hat"])
    with pytest.raises(TypeError, match="names must be a list"):
        schema.subset("Hat")
    with pytest.raises(ValueError, match="at least one attribute"):
        schema.subset(["Female", "Old"]).without_sensitive()


def test_mirror_swaps_attributes_and_permutes_labels():
    schema = bags()
    labels = np.array([[1, 1, 2, 0, 1, 0, 1], [0, -100, -100, 1, 0, 1, 0], [1, 0, 1, 0, 1, 1, 0]])
    before = labels.copy()
    flipped = schema.mirror_labels(labels)
    expected = np.array([[1, 0, 3, 1, 1, 0, 1], [0, 1, -100, -100, 0, 1, 0], [1, 0, 1, 0, 1, 1, 0]])
    assert np.array_equal(flipped, expected) and flipped.dtype == np.int64
    assert np.array_equal(labels, before), "the input must stay as it was"
    assert np.array_equal(schema.mirror_labels(flipped), labels)
    assert np.array_equal(schema.mirror_labels(labels[0].astype(np.uint8)), expected[0])
    assert schema.mirror_labels(labels.reshape(3, 1, 7)).shape == (3, 1, 7)


def test_a_binary_attribute_may_permute_its_own_labels():
    schema = AttributeSchema([yes_no("LooksLeft", mirror=(1, 0))])
    assert schema.mirror_labels(np.array([[0], [1], [-100]])).tolist() == [[1], [0], [-100]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 3), dtype=np.int64), r"labels must have shape \(..., 7\), got \(2, 3\)"),
        (np.zeros((2, 7)), "labels must be integers .*float64"),
        (np.full((2, 7), 2), "labels holds 2 for attribute 'Hat' of row 0, expected 0 to 1"),
        (np.full((7,), -1), "labels holds -1 for attribute 'Hat', expected"),
    ],
)
def test_mirror_refuses_labels_of_another_space(labels, message):
    with pytest.raises(ValueError, match=message):
        bags().mirror_labels(labels)


# From a few words


@pytest.mark.parametrize(
    ("text", "no", "yes"),
    [
        ("wearing a red scarf", "a photo of a person without a red scarf", "a photo of a person wearing a red scarf"),
        ("a red  scarf", "a photo of a person without a red scarf", "a photo of a person with a red scarf"),
        ("pushing a bicycle", "a photo of a person not pushing a bicycle", "a photo of a person pushing a bicycle"),
        ("without a hat", "a photo of a person with a hat", "a photo of a person without a hat"),
        ("not walking", "a photo of a person walking", "a photo of a person not walking"),
        ("in black", "a photo of a person not in black", "a photo of a person in black"),
        ("a photo of a person in red", "a photo of a person not in red", "a photo of a person in red"),
        ("帽子", "a photo of a person without 帽子", "a photo of a person with 帽子"),
    ],
)
def test_a_text_becomes_a_binary_attribute(text, no, yes):
    (attribute,) = AttributeSchema.from_texts([text])
    assert attribute.name == " ".join(text.split()) and attribute.labels == ("no", "yes")
    assert attribute.prompts == (no, yes)


def test_alternatives_names_and_attributes_of_ones_own():
    own = Attribute("Hat", "hat?", prompts=("no hat", "a hat"), region="head")
    schema = AttributeSchema.from_texts([["a backpack", "a handbag", "no bag"], own, own.to_dict() | {"name": "Cap"}])
    assert schema.names == ("a backpack / a handbag / no bag", "Hat", "Cap") and schema["Hat"] is own
    assert schema[0].labels == ("a backpack", "a handbag", "no bag")
    assert schema[0].prompts[2] == "a photo of a person with no bag"
    named = AttributeSchema.from_texts({"bag": ["a backpack", "a handbag"], "scarf": "a scarf"}, subject="a sketch")
    assert named.names == ("bag", "scarf") and named["scarf"].prompts[1] == "a sketch with a scarf"
    assert AttributeSchema.from_texts(schema) is schema


def test_alternatives_in_one_text():
    in_list = AttributeSchema.from_texts([["a backpack", "a handbag", "no bag"]])
    assert AttributeSchema.from_texts(["a backpack | a handbag|no bag"]) == in_list
    assert AttributeSchema.from_texts({"Bag": "a backpack | no bag at all | a handbag"})["Bag"].num_labels == 3


@pytest.mark.parametrize("labels", [("hat", "no hat"), ("a hat", "without a hat"), ("sitting", "not sitting")])
def test_of_two_labels_the_second_does_not_deny(labels):
    with pytest.raises(ValueError, match="but of two labels the second is the positive one; write them as"):
        Attribute("A", "which?", labels, ("one", "two"))
    assert Attribute("A", "which?", labels[::-1], ("one", "two")).is_binary


def test_texts_that_make_no_attribute():
    with pytest.raises(ValueError, match="attributes must hold at least one attribute, got none"):
        AttributeSchema.from_texts([])
    with pytest.raises(ValueError, match="attributes holds an empty text, expected words such as"):
        AttributeSchema.from_texts([" "])
    with pytest.raises(ValueError, match=r"alternatives must be two texts or more, got \['a hat'\]"):
        AttributeSchema.from_texts([["a hat"]])
    with pytest.raises(ValueError, match="labels must all be different"):
        AttributeSchema.from_texts([["a hat", "a hat"]])
    with pytest.raises(TypeError, match="attributes must be a list of texts or attributes, or a dict, got 'hat'"):
        AttributeSchema.from_texts("hat")
    with pytest.raises(TypeError, match="an attribute must be an Attribute or a dict, got int: 7"):
        AttributeSchema.from_texts([7])


def test_how_the_prompts_of_a_schema_begin():
    assert get_schema("pa100k").usual_subject() == "a photo of a person"
    assert get_schema("synthetic").usual_subject() == "a drawing of a person"
    assert AttributeSchema([Attribute("x", "x?", prompts=("a", "b"))]).usual_subject() == "a photo of a person"


@pytest.mark.parametrize(
    "labels",
    [("yes", "no"), ("True", "false"), ("present", "absent"), ("cap", "none"), ("with", "without"), ("1", "0")],
)
def test_the_positive_label_of_two_is_the_second(labels):
    with pytest.raises(
        ValueError, match=rf"the second is the positive one; write them as \['{labels[1]}', '{labels[0]}'"
    ):
        Attribute("Hat", "is there a hat?", labels, ("one", "other"))
    assert Attribute("Hat", "is there a hat?", labels[::-1], ("one", "other")).is_binary


@pytest.mark.parametrize(
    "labels", [("male", "female"), ("m", "f"), ("1", "2"), ("short", "long"), ("on foot", "on a bike")]
)
def test_two_labels_in_any_other_words_are_taken_as_they_stand(labels):
    assert Attribute("A", "which?", labels, ("one", "other")).labels == labels


@pytest.mark.parametrize(
    "hidden", ["\x00", "\x1b", "\n", "\x85", "\ud800", "\u2028", "\u202e", "\u2066", "\u200b", "\ufeff"]
)
@pytest.mark.parametrize("field", ["name", "question", "labels", "prompts", "group"])
def test_texts_that_cannot_be_seen_are_refused(field, hidden):
    text = f"a{hidden}b"
    valid = {"name": "Hat", "question": "is there a hat?", "prompts": ("no hat", "a hat")}
    value = (text, "yes") if field in ("labels", "prompts") else text
    with pytest.raises(ValueError, match=rf"{field} holds the character U\+{ord(hidden):04X}, which cannot be seen"):
        Attribute(**{**valid, field: value})


@pytest.mark.parametrize("text", ["帽子", "قبعة", "می\u200cرود", "👨\u200d👩\u200d👧", "a\u200fb", "e\u0301"])
def test_texts_of_any_script(text, tmp_path):
    schema = AttributeSchema([Attribute(text, text, ("no", text), (text, f"{text} {text}"))])
    schema.to_json(tmp_path / "schema.json")
    assert AttributeSchema.from_json(tmp_path / "schema.json") == schema


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "x" * 5000}, ValueError, "name has 5000 characters, expected at most 4096: 'xxx"),
        ({"labels": {"no": 0, "yes": 1}}, TypeError, "labels must be a sequence of strings, got {'no': 0"),
        ({"labels": {"no", "yes"}}, TypeError, "labels must be a sequence of strings"),
        ({"labels": [str(n) for n in range(5000)]}, ValueError, "labels holds 5000 texts, expected at most 4096"),
        ({"labels": ("a", "e\u0301", "é"), "prompts": tuple("abc")}, ValueError, "labels must all be different"),
        ({"threshold": 10**400}, ValueError, "threshold must lie strictly between 0 and 1, got 1000"),
        ({"mirror": (True, False)}, TypeError, "mirror must hold whole numbers, got .True, False"),
        ({"mirror": (1.0, 0.0)}, TypeError, "mirror must hold whole numbers"),
        ({"mirror": {"a": 1}}, TypeError, "mirror must be an attribute's name"),
        ({"region": [[["deep"] * 99] * 99] * 99}, ValueError, "region must be one of .* got"),
    ],
)
def test_a_wrong_attribute_is_refused_in_a_short_message(options, error, message):
    valid = {"name": "Hat", "question": "is there a hat?", "prompts": ("no hat", "a hat")}
    with pytest.raises(error, match=message) as raised:
        Attribute(**(valid | options))
    assert len(str(raised.value)) < 700


def test_names_that_look_the_same_and_too_many_attributes():
    with pytest.raises(ValueError, match="names must be unique"):
        AttributeSchema([yes_no("é"), yes_no("e\u0301")])
    with pytest.raises(ValueError, match="attributes holds 4097 attributes, expected at most 4096"):
        AttributeSchema([yes_no(f"n{number}") for number in range(4097)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"name": "a", "name": "b"}]', "is not JSON: the key 'name' appears twice in one object"),
        ("[" * 100_000, "is not JSON: it is nested too deeply"),
        ("[" + "1" * 5000 + "]", "is not JSON: Exceeds the limit"),
        ("[" * 500 + "]" * 500, r"an attribute must be an Attribute or a dict, got list: \[\[\[\[\.\.\.\]"),
    ],
)
def test_a_schema_file_that_would_lose_a_value_or_the_process(tmp_path, text, message):
    (tmp_path / "schema.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        AttributeSchema.from_json(tmp_path / "schema.json")


def test_a_schema_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(bags().to_list()), encoding="utf-8-sig")
    assert AttributeSchema.from_json(tmp_path / "schema.json") == bags()


def hats(**options) -> AttributeSchema:
    color = Attribute("HatColor", "what color?", ("red", "blue", "green"), ("r", "b", "g"), **options)
    return AttributeSchema([yes_no("Hat"), color, view()])


def test_a_condition_names_an_attribute_and_its_labels():
    schema = hats(requires=["Hat", "yes"])
    assert schema["HatColor"].requires == ("Hat", "yes") and schema["Hat"].requires is None
    assert AttributeSchema(json.loads(json.dumps(schema.to_list()))) == schema
    assert schema.diff(hats()) == ["'HatColor': requires is ['Hat', 'yes'] in the first schema, None in the second"]
    assert schema.diff(hats(), label_space_only=True) == []
    hash(schema["HatColor"])


def test_attributes_of_older_configurations_have_no_condition():
    old = [{key: value for key, value in one.items() if key != "requires"} for one in hats().to_list()]
    assert AttributeSchema(old) == hats()


@pytest.mark.parametrize(
    ("requires", "error", "message"),
    [
        (
            "Hat",
            TypeError,
            "requires must hold the name of another attribute and one or more of its labels, got 'Hat'",
        ),
        (("Hat",), ValueError, "one or more of its labels"),
        (("Hat", "yes", "yes"), ValueError, "one or more of its labels"),
        (("HatColor", "red"), ValueError, "the name of another attribute"),
        (("Hat", 1), TypeError, "requires must be text, got 1"),
        (("Hut", "yes"), ValueError, "requires names 'Hut', which is no attribute of this schema; did you mean 'Hat'"),
        (("Hat", "red"), ValueError, r"requires the label 'red' of 'Hat', which has \['no', 'yes'\]"),
    ],
)
def test_a_wrong_condition_is_refused(requires, error, message):
    with pytest.raises(error, match=message):
        hats(requires=requires)


def test_attributes_that_require_each_other_are_refused():
    first = yes_no("A", requires=("B", "yes"))
    with pytest.raises(ValueError, match="'A': requires leads back to itself: A -> B"):
        AttributeSchema([first, yes_no("B", requires=("A", "yes"))])
    chain = AttributeSchema([first, yes_no("B", requires=("C", "no")), yes_no("C")])
    assert chain["A"].requires == ("B", "yes")


def test_a_condition_goes_with_its_attribute():
    schema = hats(requires=("Hat", "yes"))
    assert schema.subset(["HatColor", "Hat"])["HatColor"].requires == ("Hat", "yes")
    assert schema.subset(["HatColor"])["HatColor"].requires is None
    secret = AttributeSchema([yes_no("Hat", sensitive=True), schema["HatColor"]])
    assert secret.without_sensitive()["HatColor"].requires is None


def test_questions_in_another_language():
    schema = get_schema("mivia5")
    asked = schema.with_questions({"Hat": "la persona indossa un cappello?", "Bag": "这个人带包了吗？"})
    assert asked["Hat"].question == "la persona indossa un cappello?" and asked["Bag"].question == "这个人带包了吗？"
    assert asked["Gender"] == schema["Gender"] and asked.names == schema.names
    assert schema.diff(asked, label_space_only=True) == [] and len(schema.diff(asked)) == 2
    with pytest.raises(KeyError, match="no attribute 'Hut' in this schema; did you mean 'Hat'"):
        schema.with_questions({"Hut": "?"})
    with pytest.raises(ValueError, match="'Hat': question must be text without surrounding space, got ' '"):
        schema.with_questions({"Hat": " "})
    with pytest.raises(TypeError, match="questions must be a dict"):
        schema.with_questions(["?"] * 5)
