"""Attribute tables of the data sets: names and order exactly as their annotation files have them.

Every attribute carries a question, one prompt per label, the region where it is seen, the group of binary attributes
that exclude each other, the answer without which it makes no sense, and whether it is sensitive (perceived gender and
age). Binary labels are `("no", "yes")` unless a table says otherwise. Names keep the spelling of the files, even where
it is wrong; questions say what is meant ("UpperStride" asks for stripes).
"""

import difflib
from dataclasses import replace

from vlm_par_hf.errors import ParValueError

from .schema import Attribute, AttributeSchema


__all__ = ["get_schema", "list_schemas"]

_CLOTHING = {"upper": "upper clothing", "lower": "lower clothing"}
_PETA_COLORS = ("black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "white", "yellow")


def get_schema(name: str) -> AttributeSchema:
    """The label space of a known data set.

    Args:
        name: one of `list_schemas()`:

            - `"pa100k"`: 26 binary attributes in the raw order of `annotation.mat` (many code bases permute it).
            - `"peta35"`: the 35 binary attributes of the usual protocol, columns 0-34 of `PETA.mat`, in that order.
            - `"peta65"`: those 35, then the other 26 binary attributes (79-104) in file order, then four color
              attributes of 11 labels each: upper body, lower body, hair, footwear. The file has the colors as binary
              columns that are not strictly one-hot: an image with two colors or none has no single class.
            - `"market1501"`: age with 4 labels, then 26 binary attributes. `market_attribute.mat` has no order of its
              own (its two halves differ), so this is the order of the common 30-column form. Class index = value - 1.
            - `"market1501_30"`: the same with age as four binary attributes.
            - `"mars"`: MARS-Attribute per tracklet: nine binary attributes, then pose, motion, two colors and age, in
              the order of VTF. Names are those of the table with 24 columns, and class indices its numbers.
            - `"duke_video"`: DukeMTMC-VID-Attribute per tracklet: eight binary attributes, then pose, motion and two
              colors, in the order of VTF.
            - `"mivia5"`: the five attributes of the MIVIA PAR contests (CAIP 2023 and 2025): upper and lower color
              with 11 labels each, gender, bag, hat. VLM-PAR's questions ask about these.
            - `"rapv1"`: the 51 binary attributes of the usual protocol, columns 0-50 of `RAP_annotation.mat`. The file
              misspells one, `action-Pusing`, which is `action-Pushing` here.
            - `"rapv2"`: the 54 that `selected_attribute` selects of the file's 152 columns, in that order. The file
              misspells one, `Femal`, which is `Female` here.
            - `"upar40"`: the 40 binary attributes of UPAR, in the order of its CSV files. Several colors of one
              garment may be positive, and so may no age at all.
            - `"rendered"`: the rendered pedestrians of this package: PA-100K's attributes, colors and more, binary and
              categorical. Results on it say nothing about photographs.
            - `"synthetic"`: the drawn pedestrians of this package, binary and categorical. Results on it say
              nothing about photographs.

    Raises:
        ValueError: no such table; the message lists them.
    """
    if name not in _TABLES:
        near = difflib.get_close_matches(str(name).lower(), _TABLES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ParValueError(f"name must be one of {list_schemas()}, got {name!r}{hint}")
    return AttributeSchema(_TABLES[name])


def list_schemas() -> list[str]:
    """Names of the known tables, sorted."""
    return sorted(_TABLES)


def _ask(name: str, region: str, question: str, no: str, yes: str, **options) -> Attribute:
    """A binary attribute; `no` and `yes` complete "a photo of a person ..."."""
    prompts = (f"a photo of a person {no}", f"a photo of a person {yes}")
    return Attribute(name, question, prompts=prompts, region=region, **options)


def _wear(name: str, region: str, thing: str) -> Attribute:
    return _ask(name, region, f"is the person wearing {thing}?", f"without {thing}", f"wearing {thing}")


def _carry(name: str, thing: str, verb: str = "carrying") -> Attribute:
    return _ask(name, "attachment", f"is the person {verb} {thing}?", f"without {thing}", f"{verb} {thing}")


def _has(name: str, region: str, thing: str) -> Attribute:
    """Clothing that shows something: stripes, a logo, a v-neck."""
    cloth = _CLOTHING[region]
    return _ask(
        name, region, f"does the {cloth} have {thing}?", f"in {cloth} without {thing}", f"in {cloth} with {thing}"
    )


def _style(name: str, region: str, yes: str, *, no: str) -> Attribute:
    cloth = _CLOTHING[region]
    return _ask(name, region, f"is the {cloth} {yes}?", f"in {no} {cloth}", f"in {yes} {cloth}")


def _age(name: str, yes: str, no: str) -> Attribute:
    return _ask(name, "whole", f"is the person {yes}?", no, yes, sensitive=True)


def _gender(name: str, *, male: int, labels: tuple[str, str] = ("no", "yes"), question: str) -> Attribute:
    """Perceived gender; `male` is the class index that means a man."""
    prompts = ("a photo of a man", "a photo of a woman") if male == 0 else ("a photo of a woman", "a photo of a man")
    return Attribute(name, question, labels, prompts, region="whole", sensitive=True)


def _exclusive(group: str, *attributes: Attribute) -> tuple[Attribute, ...]:
    return tuple(replace(attribute, group=group) for attribute in attributes)


def _choice(name: str, region: str, question: str, phrases: dict[str, str], **options) -> Attribute:
    """A categorical attribute: label -> what completes "a photo of a person ..."."""
    prompts = tuple(f"a photo of a person {phrase}" for phrase in phrases.values())
    return Attribute(name, question, tuple(phrases), prompts, region=region, **options)


def _color_choice(
    name: str, region: str, thing: str, colors: tuple[str, ...], phrase: str, be: str = "is", **options
) -> Attribute:
    """A categorical color; `phrase` holds `{}` for the color."""
    phrases = {color: phrase.format(color) for color in colors}
    return _choice(name, region, f"what color {be} the {thing}?", phrases, **options)


def _binary_colors(prefix: str, region: str, colors: tuple[str, ...]) -> tuple[Attribute, ...]:
    """One binary attribute per color, named prefix + color ("upblack"); at most one of them is positive."""
    cloth = _CLOTHING[region]
    return _exclusive(
        f"{region}_color",
        *(
            _ask(
                prefix + color,
                region,
                f"is the {cloth} {color}?",
                f"in {cloth} that is not {color}",
                f"in {color} {cloth}",
            )
            for color in colors
        ),
    )


# Over all 100,000 images exactly one age, one view and one sleeve length is positive, and at most one of each other
# group. No attribute mentions left or right, so a flip changes no label.
_PA100K = (
    _gender("Female", male=0, question="is the person a woman?"),
    *_exclusive(
        "age",
        _age("AgeOver60", "older than 60 years", "younger than 60 years"),
        _age("Age18-60", "between 18 and 60 years old", "younger than 18 or older than 60 years"),
        _age("AgeLess18", "younger than 18 years", "18 years old or older"),
    ),
    *_exclusive(
        "view",
        _ask(
            "Front", "whole", "is the person seen from the front?", "seen from the side or back", "seen from the front"
        ),
        _ask(
            "Side", "whole", "is the person seen from the side?", "seen from the front or back", "seen from the side"
        ),
        _ask(
            "Back", "whole", "is the person seen from the back?", "seen from the front or side", "seen from the back"
        ),
    ),
    _wear("Hat", "head", "a hat"),
    _wear("Glasses", "head", "glasses"),
    _carry("HandBag", "a handbag"),
    _carry("ShoulderBag", "a shoulder bag"),
    _carry("Backpack", "a backpack", "wearing"),
    _carry("HoldObjectsInFront", "an object in front of the body", "holding"),
    *_exclusive(
        "sleeve",
        _ask("ShortSleeve", "upper", "are the sleeves short?", "with long sleeves", "with short sleeves"),
        _ask("LongSleeve", "upper", "are the sleeves long?", "with short sleeves", "with long sleeves"),
    ),
    *_exclusive(
        "upper_pattern",
        _has("UpperStride", "upper", "stripes"),
        _has("UpperLogo", "upper", "a logo or print"),
        # The files have these two under each other's name (see docs/datasets.md): the texts say what is labelled.
        _has("UpperPlaid", "upper", "parts of different colors sewn together"),
        _has("UpperSplice", "upper", "a plaid pattern"),
    ),
    *_exclusive(
        "lower_pattern",
        _has("LowerStripe", "lower", "stripes"),
        _has("LowerPattern", "lower", "a pattern"),
    ),
    _wear("LongCoat", "upper", "a long coat"),
    *_exclusive(
        "lower_type",
        _wear("Trousers", "lower", "long trousers"),
        _wear("Shorts", "lower", "shorts"),
        _wear("Skirt&Dress", "lower", "a skirt or a dress"),
    ),
    _wear("boots", "foot", "boots"),
)

# PETA's gender flag is "male", where most other data sets flag "female". The ages are bins, not cumulative.
_PETA35 = (
    *_exclusive(
        "age",
        _age("personalLess30", "between 16 and 30 years old", "younger than 16 or older than 30 years"),
        _age("personalLess45", "between 31 and 45 years old", "younger than 31 or older than 45 years"),
        _age("personalLess60", "between 46 and 60 years old", "younger than 46 or older than 60 years"),
        _age("personalLarger60", "older than 60 years", "younger than 60 years"),
    ),
    _carry("carryingBackpack", "a backpack"),
    _ask(
        "carryingOther",
        "attachment",
        "is the person carrying another object?",
        "without another object",
        "carrying another object",
    ),
    _style("lowerBodyCasual", "lower", "casual", no="formal"),
    _style("upperBodyCasual", "upper", "casual", no="formal"),
    _style("lowerBodyFormal", "lower", "formal", no="casual"),
    _style("upperBodyFormal", "upper", "formal", no="casual"),
    _wear("accessoryHat", "head", "a hat"),
    _wear("upperBodyJacket", "upper", "a jacket"),
    _wear("lowerBodyJeans", "lower", "jeans"),
    _wear("footwearLeatherShoes", "foot", "leather shoes"),
    _has("upperBodyLogo", "upper", "a logo"),
    _ask("hairLong", "head", "does the person have long hair?", "without long hair", "with long hair"),
    _gender("personalMale", male=1, question="is the person a man?"),
    _carry("carryingMessengerBag", "a messenger bag"),
    _wear("accessoryMuffler", "head", "a scarf"),
    _ask("accessoryNothing", "whole", "is the person without accessories?", "with accessories", "without accessories"),
    _ask("carryingNothing", "attachment", "is the person carrying nothing?", "carrying something", "carrying nothing"),
    _has("upperBodyPlaid", "upper", "a plaid pattern"),
    _carry("carryingPlasticBags", "plastic bags"),
    _wear("footwearSandals", "foot", "sandals"),
    _wear("footwearShoes", "foot", "ordinary shoes"),
    _wear("lowerBodyShorts", "lower", "shorts"),
    _ask("upperBodyShortSleeve", "upper", "are the sleeves short?", "without short sleeves", "with short sleeves"),
    _wear("lowerBodyShortSkirt", "lower", "a short skirt"),
    _wear("footwearSneaker", "foot", "sneakers"),
    _has("upperBodyThinStripes", "upper", "thin stripes"),
    _wear("accessorySunglasses", "head", "sunglasses"),
    _wear("lowerBodyTrousers", "lower", "trousers"),
    _wear("upperBodyTshirt", "upper", "a t-shirt"),
    _ask(
        "upperBodyOther",
        "upper",
        "is the upper clothing of an unusual kind?",
        "wearing a common kind of top",
        "wearing an unusual kind of top",
    ),
    _has("upperBodyVNeck", "upper", "a v-neck"),
)

_PETA26 = (
    _wear("accessoryHeadphone", "head", "headphones"),
    replace(_age("personalLess15", "15 years old or younger", "older than 15 years"), group="age"),
    _carry("carryingBabyBuggy", "a baby buggy", "pushing"),
    _ask("hairBald", "head", "is the person bald?", "with hair on the head", "who is bald"),
    _wear("footwearBoots", "foot", "boots"),
    _wear("lowerBodyCapri", "lower", "capri pants"),
    _carry("carryingShoppingTro", "a shopping trolley", "pulling"),
    _carry("carryingUmbrella", "an umbrella"),
    replace(_gender("personalFemale", male=0, question="is the person a woman?"), group="gender"),
    _carry("carryingFolder", "a folder"),
    _wear("accessoryHairBand", "head", "a hair band"),
    _wear("lowerBodyHotPants", "lower", "hot pants"),
    _wear("accessoryKerchief", "head", "a kerchief"),
    _wear("lowerBodyLongSkirt", "lower", "a long skirt"),
    _ask("upperBodyLongSleeve", "upper", "are the sleeves long?", "without long sleeves", "with long sleeves"),
    _has("lowerBodyPlaid", "lower", "a plaid pattern"),
    _has("lowerBodyThinStripes", "lower", "thin stripes"),
    _carry("carryingLuggageCase", "a luggage case"),
    _ask(
        "upperBodyNoSleeve",
        "upper",
        "is the upper clothing sleeveless?",
        "in a top with sleeves",
        "in a sleeveless top",
    ),
    _ask("hairShort", "head", "does the person have short hair?", "without short hair", "with short hair"),
    _wear("footwearStocking", "foot", "stockings"),
    _wear("upperBodySuit", "upper", "a suit jacket"),
    _carry("carryingSuitcase", "a suitcase"),
    _wear("lowerBodySuits", "lower", "suit trousers"),
    _wear("upperBodySweater", "upper", "a sweater"),
    _has("upperBodyThickStripes", "upper", "thick stripes"),
)

# The binary column of a color is named prefix + Color ("upperBodyBlack", "hairBlack"), the colors in this order.
_PETA_COLOR_CHOICES = (
    _color_choice("upperBodyColor", "upper", "upper clothing", _PETA_COLORS, "in {} upper clothing"),
    _color_choice("lowerBodyColor", "lower", "lower clothing", _PETA_COLORS, "in {} lower clothing"),
    _color_choice("hairColor", "head", "hair", _PETA_COLORS, "with {} hair", requires=("hairBald", "no")),
    _color_choice("footwearColor", "foot", "footwear", _PETA_COLORS, "with {} footwear"),
)

_PETA65 = (
    *(replace(item, group="gender") if item.name == "personalMale" else item for item in _PETA35),
    *_PETA26,
    *_PETA_COLOR_CHOICES,
)

_MARKET_AGES = {"young": "a child", "teenager": "a teenager", "adult": "an adult", "old": "an elderly person"}

# File values 1 and 2 are class indices 0 and 1. Mind the polarity: index 1 of "up" and "down" is SHORT, of "clothes"
# pants, of "hair" long, of "gender" female. Many persons have no color at all: hence binary colors.
_MARKET26 = (
    _carry("backpack", "a backpack"),
    _carry("bag", "a bag"),
    _carry("handbag", "a handbag"),
    _choice(
        "clothes", "lower", "is the person wearing pants?", {"dress": "wearing a dress", "pants": "wearing pants"}
    ),
    _choice(
        "down",
        "lower",
        "is the lower clothing short?",
        {"long": "in long lower clothing", "short": "in short lower clothing"},
    ),
    _choice("up", "upper", "are the sleeves short?", {"long": "with long sleeves", "short": "with short sleeves"}),
    _choice("hair", "head", "does the person have long hair?", {"short": "with short hair", "long": "with long hair"}),
    _wear("hat", "head", "a hat"),
    _gender("gender", male=0, labels=("male", "female"), question="is the person a woman?"),
    *_binary_colors("up", "upper", ("black", "white", "red", "purple", "yellow", "gray", "blue", "green")),
    *_binary_colors("down", "lower", ("black", "white", "pink", "purple", "yellow", "gray", "blue", "green", "brown")),
)

_MARKET1501 = (
    _choice(
        "age",
        "whole",
        "how old is the person?",
        {label: f"who is {phrase}" for label, phrase in _MARKET_AGES.items()},
        sensitive=True,
    ),
    *_MARKET26,
)

_MARKET1501_30 = (
    *_exclusive(
        "age",
        *(
            _ask(
                label, "whole", f"is the person {phrase}?", f"who is not {phrase}", f"who is {phrase}", sensitive=True
            )
            for label, phrase in _MARKET_AGES.items()
        ),
    ),
    *_MARKET26,
)

# The files number the colors 1 to 11 in this order, gender 0 (male) and 1 (female), bag and hat 0 and 1.
_MIVIA_COLORS = ("black", "blue", "brown", "gray", "green", "orange", "pink", "purple", "red", "white", "yellow")
_MIVIA5 = (
    _color_choice("UpperColor", "upper", "upper clothing", _MIVIA_COLORS, "in {} upper clothing"),
    _color_choice("LowerColor", "lower", "lower clothing", _MIVIA_COLORS, "in {} lower clothing"),
    _gender("Gender", male=0, labels=("male", "female"), question="is the person a woman?"),
    _carry("Bag", "a bag"),
    _wear("Hat", "head", "a hat"),
)

# Uncertain labels (2 in the files) are unknown. Left and right occur only in columns outside these protocols.
_RAP_BODY = (
    *_exclusive(
        "body",
        _ask("BodyFat", "whole", "is the person heavily built?", "who is not heavily built", "who is heavily built"),
        _ask(
            "BodyNormal",
            "whole",
            "is the person of average build?",
            "who is not of average build",
            "who is of average build",
        ),
        _ask("BodyThin", "whole", "is the person thin?", "who is not thin", "who is thin"),
    ),
)


def _rap_role(employee: str) -> tuple[Attribute, ...]:
    return _exclusive(
        "role",
        _ask("Customer", "whole", "is the person a customer?", "who is not a customer", "who is a customer"),
        _ask(
            employee,
            "whole",
            "is the person an employee of the shop?",
            "who does not work in the shop",
            "who works in the shop",
        ),
    )


def _act(name: str, doing: str) -> Attribute:
    return _ask(name, "whole", f"is the person {doing}?", f"who is not {doing}", f"who is {doing}")


_RAP_HEAD = (
    _ask("hs-BaldHead", "head", "is the person bald?", "with hair on the head", "who is bald"),
    _ask("hs-LongHair", "head", "does the person have long hair?", "without long hair", "with long hair"),
    _ask("hs-BlackHair", "head", "does the person have black hair?", "without black hair", "with black hair"),
    _wear("hs-Hat", "head", "a hat"),
    _wear("hs-Glasses", "head", "glasses"),
)

_RAP_UPPER = (
    _wear("ub-Shirt", "upper", "a shirt"),
    _wear("ub-Sweater", "upper", "a sweater"),
    _wear("ub-Vest", "upper", "a vest"),
    _wear("ub-TShirt", "upper", "a t-shirt"),
    _wear("ub-Cotton", "upper", "a padded cotton coat"),
    _wear("ub-Jacket", "upper", "a jacket"),
    _wear("ub-SuitUp", "upper", "a suit jacket"),
    _ask(
        "ub-Tight",
        "upper",
        "is the upper clothing tight?",
        "in loose upper clothing",
        "in tight upper clothing",
    ),
    _ask("ub-ShortSleeve", "upper", "are the sleeves short?", "without short sleeves", "with short sleeves"),
)

_RAP_LOWER = (
    _wear("lb-LongTrousers", "lower", "long trousers"),
    _wear("lb-Skirt", "lower", "a skirt"),
    _wear("lb-ShortSkirt", "lower", "a short skirt"),
    _wear("lb-Dress", "lower", "a dress"),
    _wear("lb-Jeans", "lower", "jeans"),
    _wear("lb-TightTrousers", "lower", "tight trousers"),
)


def _rap_shoes(sport: str) -> tuple[Attribute, ...]:
    return (
        _wear("shoes-Leather", "foot", "leather shoes"),
        _wear(sport, "foot", "sport shoes"),
        _wear("shoes-Boots", "foot", "boots"),
        _wear("shoes-Cloth", "foot", "cloth shoes"),
        _wear("shoes-Casual", "foot", "casual shoes"),
    )


def _rap_attachments(prefix: str, shoulder_bag: str) -> tuple[Attribute, ...]:
    return (
        _carry(f"{prefix}-Backpack", "a backpack", "wearing"),
        _carry(f"{prefix}-{shoulder_bag}", "a shoulder bag"),
        _carry(f"{prefix}-HandBag", "a handbag"),
        _carry(f"{prefix}-Box", "a box"),
        _carry(f"{prefix}-PlasticBag", "a plastic bag"),
        _carry(f"{prefix}-PaperBag", "a paper bag"),
        _carry(f"{prefix}-HandTrunk", "a trunk", "pulling"),
        _carry(f"{prefix}-Other", "another object"),
    )


def _rap_actions(by_arm: str, by_hand: str) -> tuple[Attribute, ...]:
    return (
        _act("action-Calling", "making a phone call"),
        _act("action-Talking", "talking to someone"),
        _act("action-Gathering", "standing together with others"),
        _act("action-Holding", "holding something in the arms"),
        _act("action-Pushing", "pushing something"),
        _act("action-Pulling", "pulling something"),
        _act(by_arm, "carrying something over the arm"),
        _act(by_hand, "carrying something in the hand"),
    )


_RAPV1 = (
    _gender("Female", male=0, question="is the person a woman?"),
    *_exclusive(
        "age",
        _age("AgeLess16", "16 years old or younger", "older than 16 years"),
        _age("Age17-30", "between 17 and 30 years old", "younger than 17 or older than 30 years"),
        _age("Age31-45", "between 31 and 45 years old", "younger than 31 or older than 45 years"),
    ),
    *_RAP_BODY,
    *_rap_role("Clerk"),
    *_RAP_HEAD,
    _wear("hs-Muffler", "head", "a scarf"),
    *_RAP_UPPER,
    *_RAP_LOWER,
    *_rap_shoes("shoes-Sport"),
    *_rap_attachments("attach", "SingleShoulderBag"),
    *_rap_actions("action-CarrybyArm", "action-CarrybyHand"),
)

_RAPV2 = (
    _RAPV1[0],
    *_RAPV1[1:4],
    replace(_age("Age46-60", "between 46 and 60 years old", "younger than 46 or older than 60 years"), group="age"),
    *_RAP_BODY,
    *_rap_role("Employee"),
    *_RAP_HEAD,
    *_RAP_UPPER,
    _ask(
        "ub-Others",
        "upper",
        "is the upper clothing of an unusual kind?",
        "wearing a common kind of top",
        "wearing an unusual kind of top",
    ),
    *_RAP_LOWER,
    *_rap_shoes("shoes-Sports"),
    _wear("shoes-Other", "foot", "shoes of an unusual kind"),
    *_rap_attachments("attachment", "ShoulderBag"),
    *_rap_actions("action-CarryingByArm", "action-CarryingByHand"),
    _act("action-Other", "doing something unusual"),
)

_UPAR_COLORS = (
    "Black", "Blue", "Brown", "Green", "Grey", "Orange", "Pink", "Purple", "Red", "White", "Yellow",
)  # fmt: skip


def _upar_colors(part: str, region: str) -> tuple[Attribute, ...]:
    """One binary attribute per color. Not exclusive: a garment of two colors has both."""
    cloth = _CLOTHING[region]
    named = (
        _ask(
            f"{part}-Color-{color}",
            region,
            f"is the {cloth} {color.lower()}?",
            f"in {cloth} that is not {color.lower()}",
            f"in {color.lower()} {cloth}",
        )
        for color in _UPAR_COLORS
    )
    other = _ask(
        f"{part}-Color-Other",
        region,
        f"is the {cloth} of an unusual color?",
        f"in {cloth} of a common color",
        f"in {cloth} of an unusual color",
    )
    return (*named, other)


# No group: a bald person is also annotated with short hair, and trousers and skirt are two annotations.
_UPAR40 = (
    *_exclusive(
        "age",
        _age("Age-Young", "young, younger than 18 years", "18 years old or older"),
        _age("Age-Adult", "an adult between 18 and 60 years old", "younger than 18 or older than 60 years"),
        _age("Age-Old", "old, older than 60 years", "younger than 60 years"),
    ),
    _gender("Gender-Female", male=0, question="is the person a woman?"),
    _ask("Hair-Length-Short", "head", "does the person have short hair?", "without short hair", "with short hair"),
    _ask("Hair-Length-Long", "head", "does the person have long hair?", "without long hair", "with long hair"),
    _ask("Hair-Length-Bald", "head", "is the person bald?", "with hair on the head", "who is bald"),
    _ask("UpperBody-Length-Short", "upper", "are the sleeves short?", "with long sleeves", "with short sleeves"),
    *_upar_colors("UpperBody", "upper"),
    _ask(
        "LowerBody-Length-Short",
        "lower",
        "is the lower clothing short?",
        "in long lower clothing",
        "in short lower clothing",
    ),
    *_upar_colors("LowerBody", "lower"),
    _wear("LowerBody-Type-Trousers&Shorts", "lower", "trousers or shorts"),
    _wear("LowerBody-Type-Skirt&Dress", "lower", "a skirt or a dress"),
    _carry("Accessory-Backpack", "a backpack", "wearing"),
    _carry("Accessory-Bag", "a bag"),
    _wear("Accessory-Glasses-Normal", "head", "glasses"),
    _wear("Accessory-Glasses-Sun", "head", "sunglasses"),
    _wear("Accessory-Hat", "head", "a hat"),
)

# What does not exist is unknown (-100), not a class of its own: a person without a hat has no hat color.
_DRAWN = (
    _wear("Hat", "head", "a hat"),
    _color_choice(
        "HatColor", "head", "hat", ("black", "white", "red", "blue"), "wearing a {} hat", requires=("Hat", "yes")
    ),
    _wear("Glasses", "head", "glasses"),
    _wear("Mask", "head", "a face mask"),
    _color_choice("HairColor", "head", "hair", ("black", "brown", "blond", "gray", "red"), "with {} hair"),
    _ask("LongHair", "head", "does the person have long hair?", "with short hair", "with long hair"),
    _wear("Scarf", "upper", "a scarf"),
    _wear("Headphones", "head", "headphones"),
    _color_choice(
        "UpperColor",
        "upper",
        "upper clothing",
        ("black", "white", "gray", "red", "blue", "green", "yellow", "purple"),
        "in {} upper clothing",
    ),
    _choice(
        "UpperPattern",
        "upper",
        "what pattern does the upper clothing have?",
        {
            "plain": "in plain upper clothing",
            "stripes": "in striped upper clothing",
            "plaid": "in plaid upper clothing",
            "logo": "in upper clothing with a logo",
        },
    ),
    _ask("ShortSleeve", "upper", "are the sleeves short?", "with long sleeves", "with short sleeves"),
    _wear("LongCoat", "upper", "a long coat"),
    _wear("SafetyVest", "upper", "a safety vest"),
    _choice(
        "LowerType",
        "lower",
        "what is the person wearing on the legs?",
        {"trousers": "wearing trousers", "shorts": "wearing shorts", "skirt": "wearing a skirt"},
    ),
    _color_choice(
        "LowerColor",
        "lower",
        "lower clothing",
        ("black", "gray", "blue", "white", "brown", "red", "green"),
        "in {} lower clothing",
    ),
    _has("SideStripe", "lower", "a stripe down the side"),
    _wear("Boots", "foot", "boots"),
    _color_choice("ShoeColor", "foot", "shoes", ("black", "white", "brown", "red"), "with {} shoes", be="are"),
    _carry("Backpack", "a backpack", "wearing"),
    _carry("HandBag", "a handbag"),
    _carry("ShoulderBag", "a shoulder bag"),
    _carry("Umbrella", "an umbrella", "holding"),
    _carry("Phone", "a phone", "holding"),
    _carry("Suitcase", "a suitcase", "pulling"),
    _carry("Cane", "a cane", "walking with"),
    _ask(
        "CarryingInFront",
        "attachment",
        "is the person carrying something in front?",
        "carrying nothing in front",
        "carrying something in front",
    ),
    _choice(
        "View",
        "whole",
        "from which side is the person seen?",
        {
            "front": "seen from the front",
            "back": "seen from the back",
            "left": "facing left",
            "right": "facing right",
        },
        mirror=(0, 1, 3, 2),
    ),
    _choice(
        "Age",
        "whole",
        "how old is the person?",
        {"child": "who is a child", "adult": "who is an adult", "elderly": "who is elderly"},
        sensitive=True,
    ),
    _ask("Walking", "whole", "is the person walking?", "standing still", "walking"),
)

_COLORS = ("black", "white", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")

# PA-100K's attributes as far as possible under its names (a category where several exclude each other), Market-1501's
# and PETA's colors, and what PETA has that can be rendered. What the picture cannot show is unknown (-100).
_RENDERED = (
    _gender("Female", male=0, question="is the person a woman?"),
    _choice(
        "Age",
        "whole",
        "how old is the person?",
        {"child": "who is a child", "adult": "who is an adult", "elderly": "who is elderly"},
        sensitive=True,
    ),
    _choice(
        "View",
        "whole",
        "from which side is the person seen?",
        {
            "front": "seen from the front",
            "back": "seen from the back",
            "left": "facing left",
            "right": "facing right",
        },
        mirror=(0, 1, 3, 2),
    ),
    _choice(
        "Motion",
        "whole",
        "how is the person moving?",
        {
            "standing": "standing still",
            "walking": "walking",
            "running": "running",
            "cycling": "riding a bicycle",
        },
    ),
    _wear("Hat", "head", "a hat"),
    _color_choice("HatColor", "head", "hat", _COLORS, "wearing a hat that is {}", requires=("Hat", "yes")),
    _wear("Helmet", "head", "a helmet"),
    _wear("Glasses", "head", "glasses"),
    _wear("Sunglasses", "head", "sunglasses"),
    _wear("Mask", "head", "a face mask"),
    _wear("Headphones", "head", "headphones"),
    _wear("Scarf", "upper", "a scarf"),
    _choice(
        "HairLength",
        "head",
        "how long is the person's hair?",
        {"bald": "who is bald", "short": "with short hair", "long": "with long hair"},
    ),
    _color_choice(
        "HairColor",
        "head",
        "hair",
        ("black", "brown", "blond", "gray", "red"),
        "with {} hair",
        requires=("HairLength", "short", "long"),
    ),
    _choice(
        "UpperType",
        "upper",
        "what is the person wearing on the upper body?",
        {
            "top": "wearing a t-shirt or a sweater",
            "shirt": "wearing a shirt with a collar",
            "vest": "wearing a vest over a shirt",
            "jacket": "wearing a jacket",
            "coat": "wearing a coat",
            "dress": "wearing a dress",
        },
    ),
    _color_choice("UpperColor", "upper", "upper clothing", _COLORS, "in {} upper clothing"),
    _choice(
        "Sleeves",
        "upper",
        "how long are the sleeves?",
        {"none": "in a sleeveless top", "short": "with short sleeves", "long": "with long sleeves"},
    ),
    *_exclusive(
        "upper_pattern",
        _has("UpperStripes", "upper", "stripes"),
        _has("UpperLogo", "upper", "a logo or print"),
        _has("UpperPlaid", "upper", "a plaid pattern"),
        _has("UpperSplice", "upper", "parts of different colors sewn together"),
    ),
    _wear("LongCoat", "upper", "a long coat"),
    _ask(
        "OpenJacket",
        "upper",
        "is the person wearing an open jacket?",
        "in upper clothing that is closed in front",
        "wearing an open jacket",
    ),
    _wear("Suit", "upper", "a suit"),
    _choice(
        "LowerType",
        "lower",
        "what is the person wearing on the legs?",
        {
            "trousers": "wearing long trousers",
            "shorts": "wearing shorts",
            "skirt": "wearing a skirt",
            "dress": "wearing a dress that leaves the legs free",
        },
    ),
    _color_choice("LowerColor", "lower", "lower clothing", _COLORS, "in {} lower clothing"),
    _choice(
        "LowerLength",
        "lower",
        "is the lower clothing short?",
        {"long": "in long lower clothing", "short": "in short lower clothing"},
    ),
    *_exclusive(
        "lower_pattern",
        _has("LowerStripe", "lower", "stripes"),
        _has("LowerPattern", "lower", "a pattern"),
    ),
    _wear("Jeans", "lower", "jeans"),
    _wear("Stockings", "foot", "stockings"),
    _choice(
        "Footwear",
        "foot",
        "what is the person wearing on the feet?",
        {"shoes": "wearing low shoes", "boots": "wearing boots", "sandals": "wearing sandals"},
    ),
    _color_choice("ShoeColor", "foot", "shoes", _COLORS, "with {} shoes", be="are"),
    _carry("Backpack", "a backpack", "wearing"),
    _carry("ShoulderBag", "a shoulder bag"),
    _carry("HandBag", "a handbag or a shopping bag"),
    _carry("ShoppingBag", "a shopping bag"),
    _carry("HoldObjectsInFront", "an object in front of the body", "holding"),
    _carry("Suitcase", "a suitcase", "pulling"),
    _carry("Umbrella", "an umbrella", "holding"),
    _carry("Phone", "a phone", "holding"),
    _carry("Cane", "a cane", "walking with"),
    _ask("CarryingNothing", "attachment", "is the person carrying nothing?", "carrying something", "carrying nothing"),
)


def _as_drawing(attribute: Attribute) -> Attribute:
    prompts = tuple(prompt.replace("a photo of", "a drawing of", 1) for prompt in attribute.prompts)
    return replace(attribute, prompts=prompts)


# MARS and DukeMTMC-VID with the attributes of Chen et al. What 0 and 1 mean is written down for the colors, ages,
# poses and motions; of the binary attributes it follows from those of Market-1501, which were taken over, minus 1, and
# from how often each occurs. VTF calls `bottom type` and `bottom length` skirts: 1 is trousers, and short.
_POSES = _choice(
    "pose", "whole", "from which side is the person seen?",
    {
        "frontal": "seen from the front", "lateral-frontal": "seen half from the front",
        "lateral": "seen from the side", "lateral-back": "seen half from the back", "back": "seen from the back",
        "varies": "who turns round",
    },
)  # fmt: skip
_MOTIONS = _choice(
    "motion", "whole", "how does the person move?",
    {
        "walking": "walking", "running": "running", "riding": "riding a bicycle", "staying": "standing still",
        "varies": "who walks and stands",
    },
)  # fmt: skip
_MARS: tuple[Attribute, ...] = (
    replace(_style("top length", "upper", "short-sleeved", no="long-sleeved"), labels=("long", "short")),
    replace(_style("bottom length", "lower", "short", no="long"), labels=("long", "short")),
    _carry("shoulder bag", "a shoulder bag"),
    _carry("backpack", "a backpack"),
    _wear("hat", "head", "a hat"),
    _carry("hand bag", "a handbag"),
    replace(
        _ask("hair", "head", "is the hair long?", "with short hair", "with long hair"), labels=("short", "long")
    ),
    _gender("gender", male=0, labels=("male", "female"), question="does the person look like a woman?"),
    replace(
        _ask("bottom type", "lower", "does the person wear trousers?", "in a skirt or dress", "in trousers"),
        labels=("skirt", "pants"),
    ),
    _POSES,
    _MOTIONS,
    _color_choice(
        "top color", "upper", "upper clothing",
        ("black", "purple", "green", "blue", "gray", "white", "yellow", "red", "complex"), "in {} upper clothing",
    ),
    _color_choice(
        "bottom color", "lower", "lower clothing",
        ("white", "purple", "black", "green", "gray", "pink", "yellow", "blue", "brown", "complex"),
        "in {} lower clothing",
    ),
    _choice(
        "age", "whole", "how old does the person look?",
        {"young": "who is a child", "teenager": "who is a teenager", "adult": "who is an adult", "old": "who is old"},
        sensitive=True,
    ),
)  # fmt: skip
_DUKE_VIDEO: tuple[Attribute, ...] = (
    _carry("backpack", "a backpack"),
    _carry("bag", "a bag"),
    _carry("handbag", "a handbag"),
    _wear("boots", "foot", "boots"),
    _gender("gender", male=0, labels=("male", "female"), question="does the person look like a woman?"),
    _wear("hat", "head", "a hat"),
    replace(
        _ask("shoes", "foot", "are the shoes light?", "in dark shoes", "in light shoes"), labels=("dark", "light")
    ),
    replace(_style("top", "upper", "long", no="short"), labels=("short", "long")),
    _POSES,
    _MOTIONS,
    _color_choice(
        "top color", "upper", "upper clothing",
        ("black", "white", "red", "purple", "gray", "blue", "green", "brown", "complex"), "in {} upper clothing",
    ),
    _color_choice(
        "bottom color", "lower", "lower clothing",
        ("black", "white", "red", "gray", "blue", "green", "brown", "complex"), "in {} lower clothing",
    ),
)  # fmt: skip


_TABLES: dict[str, tuple[Attribute, ...]] = {
    "duke_video": _DUKE_VIDEO,
    "market1501": _MARKET1501,
    "market1501_30": _MARKET1501_30,
    "mars": _MARS,
    "mivia5": _MIVIA5,
    "pa100k": _PA100K,
    "peta35": _PETA35,
    "peta65": _PETA65,
    "rapv1": _RAPV1,
    "rapv2": _RAPV2,
    "rendered": _RENDERED,
    "synthetic": tuple(_as_drawing(attribute) for attribute in _DRAWN),
    "upar40": _UPAR40,
}
