from dataclasses import replace

import numpy as np
import pytest

from vlm_par_hf.data.synthetic.rendered.labels import as_pa100k, picture_labels
from vlm_par_hf.data.synthetic.rendered.people import Garment, RenderedPerson, Shot, Thing
from vlm_par_hf.labels.tables import get_schema


SCHEMA = get_schema("rendered")
BLACK, WHITE, RED = (20, 20, 20), (240, 240, 240), (190, 36, 40)
WHOLE = {
    "head": 120, "face": 150, "eyes": 60, "hair": 200, "neck": 40, "torso_front": 1500, "torso_back": 30, "upper": 60,
    "sleeves": 300, "arms": 260, "hands": 120, "lower": 2200, "legs": 0, "shoes": 250,
}  # fmt: skip
THINGS = {
    "hat": 150, "glasses": 40, "mask": 60, "scarf": 120, "headphones": 40, "backpack": 700, "shoulder_bag": 300,
    "handbag": 400, "suitcase": 800, "umbrella": 1500, "phone": 40, "in_front": 500, "cane": 80,
}  # fmt: skip


def _thing(kind, color=BLACK):
    return Thing(kind, color, WHITE)


PERSON = replace(
    RenderedPerson.sample(0, 0),
    female=True,
    age="adult",
    hair=(24, 22, 22),
    hair_style="long",
    upper=Garment("top", (RED, WHITE, WHITE), sleeve=0.3),
    lower=Garment("trousers", (BLACK, WHITE, WHITE), hem=0.95),
    legs=None,
    shoes=_thing("shoes"),
    things={},
    suit=False,
)
SHOT = replace(
    Shot.sample(PERSON, 0), azimuth=5.0, height=192, aspect=0.375, pose="walking", infrared=False, occluder=None
)


def answers(person=PERSON, shot=SHOT, visible=None, whole=None):
    whole = WHOLE | {name: THINGS[name] for name in person.things} | (whole or {})
    labels = picture_labels(person, shot, whole | (visible or {}), whole)
    assert labels.dtype == np.int64 and labels.shape == (len(SCHEMA),)
    return {a.name: a.labels[k] if k >= 0 else None for a, k in zip(SCHEMA, labels, strict=True)}


def test_a_person_seen_as_a_whole():
    seen = answers()
    expected = {
        "Female": "yes", "Age": "adult", "View": "front", "Motion": "walking", "Hat": "no", "Glasses": "no",
        "Mask": "no", "HairLength": "long", "HairColor": "black", "UpperType": "top", "UpperColor": "red",
        "Sleeves": "short", "UpperLogo": "no", "LongCoat": "no", "OpenJacket": "no", "LowerType": "trousers",
        "LowerColor": "black", "LowerLength": "long", "Stockings": "no", "Footwear": "shoes", "ShoeColor": "black",
        "Backpack": "no", "HandBag": "no", "HoldObjectsInFront": "no", "CarryingNothing": "yes",
    }  # fmt: skip
    assert {name: seen[name] for name in expected} == expected
    # What does not exist has no color.
    assert seen["HatColor"] is None


@pytest.mark.parametrize("name", THINGS)
def test_a_hidden_thing_is_unknown_and_a_seen_one_is_there(name):
    attribute = {
        "hat": "Hat", "glasses": "Glasses", "mask": "Mask", "scarf": "Scarf", "headphones": "Headphones",
        "backpack": "Backpack", "shoulder_bag": "ShoulderBag", "handbag": "HandBag", "suitcase": "Suitcase",
        "umbrella": "Umbrella", "phone": "Phone", "in_front": "HoldObjectsInFront", "cane": "Cane",
    }[name]  # fmt: skip
    kinds = {"hat": "cap", "glasses": "clear", "handbag": "shopping", "phone": "look", "in_front": "box"}
    person = replace(PERSON, things={name: _thing(kinds.get(name, name), RED)})
    assert answers(person)[attribute] == "yes"
    assert answers(person, visible={name: 0})[attribute] is None
    assert answers(person, visible={name: 2})[attribute] is None
    assert answers()[attribute] == "no"


def test_no_needs_the_place_to_be_seen():
    from_behind = replace(SHOT, azimuth=181.0)
    back = {"face": 0, "eyes": 0, "torso_front": 20, "torso_back": 1500}
    seen = answers(shot=from_behind, whole=back)
    assert seen["View"] == "back" and seen["Glasses"] is None and seen["Mask"] is None and seen["Hat"] == "no"
    assert seen["Backpack"] == "no" and seen["Phone"] is None and seen["HoldObjectsInFront"] is None
    assert seen["CarryingNothing"] is None and seen["OpenJacket"] is None
    headless = answers(visible={"head": 0, "face": 0, "eyes": 0, "hair": 0})
    assert all(headless[name] is None for name in ("Hat", "Glasses", "HairLength", "HairColor"))
    assert headless["Female"] == "yes" and headless["Sleeves"] == "short"


def test_what_the_crop_cuts_off_is_unknown():
    no_legs = answers(visible={"lower": 700, "shoes": 0})
    assert all(
        no_legs[name] is None for name in ("LowerType", "LowerColor", "Footwear", "ShoeColor", "Motion", "Suitcase")
    )
    assert no_legs["UpperColor"] == "red"
    only_feet = dict.fromkeys(WHOLE, 0) | {"shoes": 250, "lower": 400}
    assert all(value is None for value in answers(visible=only_feet).values())


def test_straps_show_a_backpack_from_the_front():
    person = replace(PERSON, things={"backpack": _thing("backpack")})
    hidden = answers(person, visible={"backpack": 0, "backpack_straps": 60}, whole={"backpack_straps": 60})
    assert hidden["Backpack"] == "yes" and hidden["CarryingNothing"] == "no"


def test_patterns_and_prints():
    def upper(**changes):
        return answers(replace(PERSON, upper=replace(PERSON.upper, **changes)))

    for pattern, attribute in {"stripes": "UpperStripes", "plaid": "UpperPlaid", "splice": "UpperSplice"}.items():
        seen = upper(pattern=pattern)
        assert seen[attribute] == "yes" and seen["UpperLogo"] == "no" and seen["UpperColor"] is None
    assert upper(pattern="floral")["UpperLogo"] == "yes"
    printed = replace(PERSON, upper=replace(PERSON.upper, pattern="logo", phase=0.1))
    assert answers(printed, whole={"print": 200})["UpperLogo"] == "yes"
    assert answers(printed, visible={"print": 0}, whole={"print": 200})["UpperLogo"] is None
    assert answers(printed)["UpperLogo"] == "no"  # it is on the other side


def test_sleeves_coats_and_legs():
    def person(upper=PERSON.upper, lower=PERSON.lower, **changes):
        return replace(PERSON, upper=upper, lower=lower, **changes)

    lengths = {0.0: "none", 0.4: "short", 0.7: None, 0.95: "long"}
    for sleeve, expected in lengths.items():
        assert answers(person(replace(PERSON.upper, sleeve=sleeve)))["Sleeves"] == expected
    coat = Garment("coat", (BLACK, RED, RED), hem=0.4, open=True)
    seen = answers(person(coat), visible={"lower": 500})
    assert seen["LongCoat"] == "yes" and seen["OpenJacket"] == "yes" and seen["LowerType"] == "trousers"
    shorts = person(lower=Garment("shorts", (BLACK, WHITE, WHITE), "side_stripe", hem=0.45))
    seen = answers(shorts, whole={"lower": 1200, "legs": 1000})
    assert seen["LowerType"] == "shorts" and seen["LowerLength"] == "short" and seen["LowerStripe"] == "yes"
    assert seen["Stockings"] == "no"
    dress = person(Garment("dress", (RED, WHITE, WHITE), "dots", sleeve=0.0, hem=0.6), None, legs=BLACK)
    seen = answers(dress, whole={"lower": 0, "legs": 600})
    assert seen["LowerType"] == seen["UpperType"] == "dress" and seen["LowerPattern"] == "yes"
    assert seen["Stockings"] == "yes" and seen["LowerLength"] == "long" and seen["LowerColor"] == "red"


def test_infrared_pictures_have_no_colors():
    seen = answers(replace(PERSON, things={"hat": _thing("cap", RED)}), replace(SHOT, infrared=True))
    assert seen["Hat"] == "yes" and not any(seen[name] for name in SCHEMA.names if name.endswith("Color"))


def test_a_schema_of_some_attributes():
    some = SCHEMA.subset(["View", "UpperColor"])
    labels = picture_labels(PERSON, SHOT, WHOLE, WHOLE, some)
    assert labels.tolist() == [0, some["UpperColor"].labels.index("red")]


def test_pa100k_from_the_labels():
    names = get_schema("pa100k").names
    labels = picture_labels(PERSON, SHOT, WHOLE, WHOLE)
    result = as_pa100k(np.stack([labels, np.full_like(labels, -100)]))
    assert result.shape == (2, 26) and result.dtype == np.int64 and (result[1] == -100).all()
    yes = {"Female", "Age18-60", "Front", "ShortSleeve", "Trousers"}
    assert {name for name, value in zip(names, result[0], strict=True) if value == 1} == yes
    # The files have two columns under each other's name.
    plaid = picture_labels(replace(PERSON, upper=replace(PERSON.upper, pattern="plaid")), SHOT, WHOLE, WHOLE)
    assert as_pa100k(plaid)[names.index("UpperSplice")] == 1 and as_pa100k(plaid)[names.index("UpperPlaid")] == 0
    with pytest.raises(ValueError, match=r"labels has shape \(3,\)"):
        as_pa100k(np.zeros(3, np.int64))


def test_exclusive_groups_hold():
    rng = np.random.default_rng(0)
    for number in range(200):
        person = RenderedPerson.sample(2, number)
        whole = WHOLE | {name: THINGS[name] for name in person.things}
        visible = {name: int(count * rng.choice((0, 0.5, 1))) for name, count in whole.items()}
        labels = picture_labels(person, Shot.sample(person, 0), visible, whole)
        for members in SCHEMA.groups.values():
            assert (labels[members] == 1).sum() <= 1
        pa100k = as_pa100k(labels)
        for members in get_schema("pa100k").groups.values():
            assert (pa100k[members] == 1).sum() <= 1
