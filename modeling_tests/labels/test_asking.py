"""Reading of what a user asks for: own attributes by name, others in words, and thresholds."""

import numpy as np
import pytest

from modeling_tests.tiny import tiny_schema
from vlm_par_hf.labels.asking import check_threshold, check_thresholds, chosen_thresholds, read_asked
from vlm_par_hf.labels.schema import AttributeSchema


SCHEMA = tiny_schema(kway=True)


def read(asked):
    return read_asked(asked, SCHEMA, subject="a person")


def test_own_names_keep_what_they_are_and_texts_have_no_place():
    asked = read(["Female", "wearing a red scarf", "Hat"])
    assert (
        asked.places == (2, None, 0) and asked.texts == ("wearing a red scarf",) and asked.named == ("Female", "Hat")
    )
    assert asked.schema["Female"] == SCHEMA["Female"] and asked.schema.names == (
        "Female",
        "wearing a red scarf",
        "Hat",
    )
    assert asked.schema["wearing a red scarf"].prompts[1] == "a person wearing a red scarf"


def test_a_dict_holds_texts_only_and_a_schema_is_taken_as_it_is():
    assert read({"Hat": "wearing a top hat"}).places == (None,)
    assert read(SCHEMA).places == tuple(range(5)) and read(SCHEMA).named == ()
    assert read([SCHEMA["BagSide"]]).places == (4,)


def test_an_attribute_without_the_one_that_it_mirrors():
    sides = AttributeSchema(
        {"name": f"{side}Bag", "question": f"{side}?", "prompts": ["no", side], "mirror": f"{other}Bag"}
        for side, other in (("Left", "Right"), ("Right", "Left"))
    )
    asked = read_asked(["RightBag"], sides, subject="a person")
    assert asked.places == (1,) and asked.schema["RightBag"].mirror is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["hat"], "attributes names 'hat': the model has 'Hat'; expected such a name, or a dict"),
        (["Backpacks"], "attributes names 'Backpacks': the model has 'Backpack'"),
        (["Hat", "Hat"], "attribute names must be unique, 'Hat' is at positions 0 and 1"),
        ([], "attributes must hold at least one attribute"),
        ("Hat", "attributes must be a list of texts or attributes, or a dict, got 'Hat'"),
        ([3], "an attribute must be an Attribute or a dict, got int"),
    ],
)
def test_what_cannot_be_asked(asked, message):
    with pytest.raises((ValueError, TypeError), match=message):
        read(asked)


def test_a_word_that_is_near_no_name_and_words_are_texts():
    assert read(["scarf", "a backpack"]).places == (None, None)


@pytest.mark.parametrize("threshold", [-0.1, 1.01, float("nan"), "0.5", True, None, {"Hat": 0.5}])
def test_no_threshold(threshold):
    with pytest.raises(ValueError, match=r"threshold is .*, expected (a|one) number"):
        check_threshold(threshold)
    assert check_threshold(np.float32(0.5)) == 0.5 and check_threshold(0) == 0


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"hat": 0.5}, "thresholds names 'hat': no attribute 'hat' in this schema; did you mean 'Hat'"),
        ({1: 0.5}, "thresholds names 1: "),
        (
            {"UpperColor": 0.5},
            "thresholds names 'UpperColor', which has 4 labels: the most probable one is its answer",
        ),
        ({"Hat": 2}, r"the threshold of 'Hat' is 2, expected a number in \[0, 1\]"),
        ([0.5], r"thresholds is \[0.5\], expected a dict such as"),
    ],
)
def test_no_thresholds(thresholds, message):
    with pytest.raises((ValueError, TypeError), match=message):
        check_thresholds(thresholds, [SCHEMA])


def test_single_thresholds_go_before_the_one_for_all():
    found = chosen_thresholds(SCHEMA, 0.6, {"Hat": 0.7, "of another question": 0.1})
    assert found == {"Hat": 0.7, "Backpack": 0.6, "Female": 0.6} and chosen_thresholds(SCHEMA, None, None) == {}
