"""The attribute tables: order as in the annotation files, text that can be asked, flags that are complete."""

import os
from pathlib import Path

import pytest

from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.labels.tables import get_schema, list_schemas


NAMES = [
    "duke_video", "market1501", "market1501_30", "mars", "mivia5", "pa100k", "peta35", "peta65", "rapv1", "rapv2",
    "rendered", "synthetic", "upar40",
]  # fmt: skip

PA100K_ORDER = (
    "Female AgeOver60 Age18-60 AgeLess18 Front Side Back Hat Glasses HandBag ShoulderBag Backpack HoldObjectsInFront "
    "ShortSleeve LongSleeve UpperStride UpperLogo UpperPlaid UpperSplice LowerStripe LowerPattern LongCoat Trousers "
    "Shorts Skirt&Dress boots"
)
PETA_ORDER = (
    "personalLess30 personalLess45 personalLess60 personalLarger60 carryingBackpack carryingOther lowerBodyCasual "
    "upperBodyCasual lowerBodyFormal upperBodyFormal accessoryHat upperBodyJacket lowerBodyJeans footwearLeatherShoes "
    "upperBodyLogo hairLong personalMale carryingMessengerBag accessoryMuffler accessoryNothing carryingNothing "
    "upperBodyPlaid carryingPlasticBags footwearSandals footwearShoes lowerBodyShorts upperBodyShortSleeve "
    "lowerBodyShortSkirt footwearSneaker upperBodyThinStripes accessorySunglasses lowerBodyTrousers upperBodyTshirt "
    "upperBodyOther upperBodyVNeck "
    # 79-104 of the file
    "accessoryHeadphone personalLess15 carryingBabyBuggy hairBald footwearBoots lowerBodyCapri carryingShoppingTro "
    "carryingUmbrella personalFemale carryingFolder accessoryHairBand lowerBodyHotPants accessoryKerchief "
    "lowerBodyLongSkirt upperBodyLongSleeve lowerBodyPlaid lowerBodyThinStripes carryingLuggageCase upperBodyNoSleeve "
    "hairShort footwearStocking upperBodySuit carryingSuitcase lowerBodySuits upperBodySweater upperBodyThickStripes"
)
PETA_COLORS = ("black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "white", "yellow")
MARKET_ORDER = (
    "backpack bag handbag clothes down up hair hat gender upblack upwhite upred uppurple upyellow upgray upblue "
    "upgreen downblack downwhite downpink downpurple downyellow downgray downblue downgreen downbrown"
)
RAPV1_ORDER = (
    "Female AgeLess16 Age17-30 Age31-45 BodyFat BodyNormal BodyThin Customer Clerk hs-BaldHead hs-LongHair "
    "hs-BlackHair hs-Hat hs-Glasses hs-Muffler ub-Shirt ub-Sweater ub-Vest ub-TShirt ub-Cotton ub-Jacket ub-SuitUp "
    "ub-Tight ub-ShortSleeve lb-LongTrousers lb-Skirt lb-ShortSkirt lb-Dress lb-Jeans lb-TightTrousers shoes-Leather "
    "shoes-Sport shoes-Boots shoes-Cloth shoes-Casual attach-Backpack attach-SingleShoulderBag attach-HandBag "
    "attach-Box attach-PlasticBag attach-PaperBag attach-HandTrunk attach-Other action-Calling action-Talking "
    "action-Gathering action-Holding action-Pushing action-Pulling action-CarrybyArm action-CarrybyHand"
)
RAPV2_ORDER = (
    "Female AgeLess16 Age17-30 Age31-45 Age46-60 BodyFat BodyNormal BodyThin Customer Employee hs-BaldHead "
    "hs-LongHair hs-BlackHair hs-Hat hs-Glasses ub-Shirt ub-Sweater ub-Vest ub-TShirt ub-Cotton ub-Jacket ub-SuitUp "
    "ub-Tight ub-ShortSleeve ub-Others lb-LongTrousers lb-Skirt lb-ShortSkirt lb-Dress lb-Jeans lb-TightTrousers "
    "shoes-Leather shoes-Sports shoes-Boots shoes-Cloth shoes-Casual shoes-Other attachment-Backpack "
    "attachment-ShoulderBag attachment-HandBag attachment-Box attachment-PlasticBag attachment-PaperBag "
    "attachment-HandTrunk attachment-Other action-Calling action-Talking action-Gathering action-Holding "
    "action-Pushing action-Pulling action-CarryingByArm action-CarryingByHand action-Other"
)
UPAR_COLORS = (*(color.capitalize() for color in PETA_COLORS), "Other")
SYNTHETIC_ORDER = (
    "Hat HatColor Glasses Mask HairColor LongHair Scarf Headphones UpperColor UpperPattern ShortSleeve LongCoat "
    "SafetyVest LowerType LowerColor SideStripe Boots ShoeColor Backpack HandBag ShoulderBag Umbrella Phone Suitcase "
    "Cane CarryingInFront View Age Walking"
)


def test_the_tables_are_listed_and_a_misspelt_one_is_named():
    assert list_schemas() == NAMES
    with pytest.raises(ValueError, match="name must be one of .*'pa100k'.* got 'PA100'; did you mean 'pa100k'"):
        get_schema("PA100")
    with pytest.raises(ValueError, match="name must be one of"):
        get_schema(None)


def test_pa100k_has_the_raw_order():
    assert get_schema("pa100k").names == tuple(PA100K_ORDER.split())


def test_peta_has_the_file_order_and_colors_at_the_end():
    order = tuple(PETA_ORDER.split())
    assert get_schema("peta35").names == order[:35]
    schema = get_schema("peta65")
    assert schema.names == (*order, "upperBodyColor", "lowerBodyColor", "hairColor", "footwearColor")
    assert len(schema) == 65 and schema.num_labels == (2,) * 61 + (11,) * 4
    assert all(schema[position].labels == PETA_COLORS for position in range(61, 65))
    assert get_schema("peta35").diff(schema.subset(order[:35]), label_space_only=True) == []


def test_market_has_27_columns_or_30_with_age_spread_out():
    schema, spread = get_schema("market1501"), get_schema("market1501_30")
    assert schema.names == ("age", *MARKET_ORDER.split())
    assert schema["age"].labels == ("young", "teenager", "adult", "old") and schema.num_labels == (4,) + (2,) * 26
    assert spread.names == ("young", "teenager", "adult", "old", *MARKET_ORDER.split())
    assert list(spread)[4:] == list(schema)[1:]


def test_market_polarity_is_in_the_labels():
    schema = get_schema("market1501")
    expected = {
        "gender": ("male", "female"),
        "hair": ("short", "long"),
        "up": ("long", "short"),
        "down": ("long", "short"),
        "clothes": ("dress", "pants"),
        "hat": ("no", "yes"),
        "upblack": ("no", "yes"),
    }
    assert {name: schema[name].labels for name in expected} == expected
    assert schema["gender"].prompts == ("a photo of a man", "a photo of a woman")


def test_rap_and_upar_have_the_file_order():
    assert get_schema("rapv1").names == tuple(RAPV1_ORDER.split()) and len(get_schema("rapv1")) == 51
    assert get_schema("rapv2").names == tuple(RAPV2_ORDER.split()) and len(get_schema("rapv2")) == 54
    expected = ["Age-Young", "Age-Adult", "Age-Old", "Gender-Female"]
    expected += ["Hair-Length-Short", "Hair-Length-Long", "Hair-Length-Bald"]
    expected += ["UpperBody-Length-Short", *(f"UpperBody-Color-{color}" for color in UPAR_COLORS)]
    expected += ["LowerBody-Length-Short", *(f"LowerBody-Color-{color}" for color in UPAR_COLORS)]
    expected += ["LowerBody-Type-Trousers&Shorts", "LowerBody-Type-Skirt&Dress", "Accessory-Backpack", "Accessory-Bag"]
    expected += ["Accessory-Glasses-Normal", "Accessory-Glasses-Sun", "Accessory-Hat"]
    assert list(get_schema("upar40").names) == expected and len(expected) == 40


def test_gender_prompts_follow_the_polarity_of_each_table():
    assert get_schema("pa100k")["Female"].prompts[1] == "a photo of a woman"
    assert get_schema("peta35")["personalMale"].prompts[1] == "a photo of a man"
    assert get_schema("peta65")["personalFemale"].prompts[1] == "a photo of a woman"


def test_synthetic_has_the_order_and_the_mirror():
    schema = get_schema("synthetic")
    assert schema.names == tuple(SYNTHETIC_ORDER.split()) and len(schema) >= 24
    categorical = {attribute.name: attribute.num_labels for attribute in schema if not attribute.is_binary}
    assert categorical == {
        "HatColor": 4,
        "HairColor": 5,
        "UpperColor": 8,
        "UpperPattern": 4,
        "LowerType": 3,
        "LowerColor": 7,
        "ShoeColor": 4,
        "View": 4,
        "Age": 3,
    }
    assert schema["View"].labels == ("front", "back", "left", "right") and schema["View"].mirror == (0, 1, 3, 2)
    assert all(attribute.mirror is None for attribute in schema if attribute.name != "View")
    assert {attribute.region for attribute in schema} == {"head", "upper", "lower", "foot", "attachment", "whole"}


@pytest.mark.parametrize("name", NAMES)
def test_text_can_be_asked(name):
    schema = get_schema(name)
    opening = "a drawing of a person " if name == "synthetic" else "a photo of a "
    for attribute in schema:
        assert attribute.question.endswith("?") and attribute.question == attribute.question.lower(), attribute
        assert attribute.region is not None, attribute
        for prompt in attribute.prompts:
            assert prompt.startswith(opening) and prompt == prompt.lower() and "{" not in prompt, attribute
            assert "  " not in prompt and not prompt.endswith("."), attribute
    assert len(set(schema.questions)) == len(schema), "two attributes must not ask the same"
    assert len({attribute.prompts for attribute in schema}) == len(schema), "two attributes must not say the same"


@pytest.mark.parametrize(
    ("name", "sensitive"),
    [
        ("pa100k", "Female AgeOver60 Age18-60 AgeLess18"),
        ("peta35", "personalLess30 personalLess45 personalLess60 personalLarger60 personalMale"),
        (
            "peta65",
            "personalLess30 personalLess45 personalLess60 personalLarger60 personalMale personalLess15 personalFemale",
        ),
        ("market1501", "age gender"),
        ("market1501_30", "young teenager adult old gender"),
        ("mivia5", "Gender"),
        ("rapv1", "Female AgeLess16 Age17-30 Age31-45"),
        ("rapv2", "Female AgeLess16 Age17-30 Age31-45 Age46-60"),
        ("rendered", "Female Age"),
        ("synthetic", "Age"),
        ("upar40", "Age-Young Age-Adult Age-Old Gender-Female"),
    ],
)
def test_gender_and_age_are_sensitive_and_nothing_else(name, sensitive):
    schema = get_schema(name)
    assert [attribute.name for attribute in schema if attribute.sensitive] == sensitive.split()
    assert not set(schema.without_sensitive().names) & set(sensitive.split())


@pytest.mark.parametrize("name", NAMES)
def test_tables_round_trip_and_flip_only_views_with_sides(name, tmp_path):
    schema = get_schema(name)
    assert AttributeSchema(schema.to_list()) == schema == get_schema(name)
    assert all(attribute.mirror is None for attribute in schema) or name in ("rendered", "synthetic")


def test_exclusive_groups_of_the_tables():
    def groups(name):
        schema = get_schema(name)
        return {group: [schema.names[position] for position in members] for group, members in schema.groups.items()}

    assert groups("pa100k") == {
        "age": ["AgeOver60", "Age18-60", "AgeLess18"],
        "view": ["Front", "Side", "Back"],
        "sleeve": ["ShortSleeve", "LongSleeve"],
        "upper_pattern": ["UpperStride", "UpperLogo", "UpperPlaid", "UpperSplice"],
        "lower_pattern": ["LowerStripe", "LowerPattern"],
        "lower_type": ["Trousers", "Shorts", "Skirt&Dress"],
    }
    assert list(groups("peta35")) == ["age"] and len(groups("peta35")["age"]) == 4
    assert len(groups("peta65")["age"]) == 5 and groups("peta65")["gender"] == ["personalMale", "personalFemale"]
    assert {group: len(members) for group, members in groups("market1501_30").items()} == {
        "age": 4,
        "upper_color": 8,
        "lower_color": 9,
    }
    assert groups("rendered") == {
        "upper_pattern": ["UpperStripes", "UpperLogo", "UpperPlaid", "UpperSplice"],
        "lower_pattern": ["LowerStripe", "LowerPattern"],
    }
    assert groups("synthetic") == {}
    assert {group: len(members) for group, members in groups("rapv1").items()} == {"age": 3, "body": 3, "role": 2}
    assert {group: len(members) for group, members in groups("rapv2").items()} == {"age": 4, "body": 3, "role": 2}
    assert groups("upar40") == {"age": ["Age-Young", "Age-Adult", "Age-Old"]}


def test_a_color_requires_the_thing_that_has_it():
    conditions = {name: {one.name: one.requires for one in get_schema(name) if one.requires} for name in NAMES}
    assert {name: found for name, found in conditions.items() if found} == {
        "rendered": {"HatColor": ("Hat", "yes"), "HairColor": ("HairLength", "short", "long")},
        "synthetic": {"HatColor": ("Hat", "yes")},
        "peta65": {"hairColor": ("hairBald", "no")},
    }


@pytest.mark.parametrize("folder", ["pa100k", "pa100k_mini"])
def test_pa100k_agrees_with_the_official_file(folder):
    if not os.environ.get("PAR_DATA"):
        pytest.skip("PAR_DATA is not set: needs the official PA-100K annotation file")
    scipy_io = pytest.importorskip("scipy.io")
    data = scipy_io.loadmat(Path(os.environ["PAR_DATA"], folder, "annotation.mat"))
    schema = get_schema("pa100k")
    assert schema.names == tuple(str(row[0][0]) for row in data["attributes"])
    for part in ("train_label", "val_label", "test_label"):
        for group, members in schema.groups.items():
            assert data[part][:, members].sum(axis=1).max() == 1, (part, group)
