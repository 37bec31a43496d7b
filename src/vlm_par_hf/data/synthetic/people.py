"""Who is drawn, how they stand, and what the picture shows of it: people, frames, labels."""

from dataclasses import dataclass, field

import numpy as np

from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema
from vlm_par_hf.labels.tables import get_schema


__all__ = ["UNKNOWN", "Frame", "SyntheticPerson", "person_labels"]

UNKNOWN = UNKNOWN_LABEL  # what the picture cannot show

_COLORS = {
    "black": (28, 28, 32),
    "gray": (128, 130, 134),
    "white": (236, 236, 232),
    "red": (196, 36, 40),
    "blue": (44, 84, 176),
    "green": (48, 132, 64),
    "yellow": (226, 196, 52),
    "purple": (124, 56, 152),
    "brown": (112, 72, 44),
    "blond": (214, 180, 104),
}
_HAIR_RED = (160, 70, 30)
_SKINS = ((246, 214, 186), (226, 182, 146), (196, 146, 106), (146, 100, 68), (92, 62, 44))
_BOX = (176, 136, 88)
_LENS_CLEAR, _LENS_DARK = (150, 190, 210), (24, 24, 28)

# Long-tailed marginals; what depends on what is in `_sample_traits`.
_UPPER_COLORS = {
    "black": 0.30, "white": 0.19, "gray": 0.16, "red": 0.09, "blue": 0.14, "green": 0.05, "yellow": 0.04,
    "purple": 0.03,
}  # fmt: skip
_LOWER_COLORS = {
    "black": 0.36, "gray": 0.15, "blue": 0.27, "white": 0.06, "brown": 0.08, "red": 0.04, "green": 0.04,
}  # fmt: skip
_SHOE_COLORS = {"black": 0.46, "white": 0.30, "brown": 0.17, "red": 0.07}
_LEATHER_COLORS = {"black": 0.6, "brown": 0.4}
_HAT_COLORS = {"black": 0.45, "white": 0.2, "red": 0.17, "blue": 0.18}
_HAIR_COLORS = {"black": 0.46, "brown": 0.33, "blond": 0.16, "gray": 0.02, "red": 0.035}
_ELDERLY_HAIR_COLORS = {"gray": 0.8, "black": 0.1, "brown": 0.1}
_UPPER_PATTERNS = {"plain": 0.70, "stripes": 0.13, "plaid": 0.08, "logo": 0.09}
_BAG_COLORS = ("black", "brown", "gray", "red", "blue", "green")
_STATURES = {"child": 0.72, "adult": 1.0, "elderly": 0.95}


@dataclass(frozen=True)
class SyntheticPerson:
    """Who a drawn person is. Constant over all pictures of the person, as clothes are in a re-identification set.

    Attributes:
        person_id: number within the population.
        seed: of the population.
        traits: attribute name -> label text; `View` and `Walking` are left to the frame, `HatColor` is missing
            without a hat.
        shades: thing -> RGB color, 0 to 255.
        stature: height relative to the usual adult, 0.68 to 1.05.
        girth: width relative to the usual one, 0.85 to 1.2.
    """

    person_id: int
    seed: int
    traits: dict[str, str]
    shades: dict[str, tuple[int, int, int]] = field(repr=False)
    stature: float = 1.0
    girth: float = 1.0

    @classmethod
    def sample(cls, seed: int, person_id: int) -> "SyntheticPerson":
        """Draw person number `person_id` of the population `seed`."""
        rng = np.random.default_rng((seed, person_id, 0))
        traits = _sample_traits(rng)
        shades = _sample_shades(rng, traits)
        stature = _STATURES[traits["Age"]] * rng.uniform(0.95, 1.05)
        return cls(person_id, seed, traits, shades, float(stature), float(rng.uniform(0.85, 1.2)))


@dataclass(frozen=True)
class Frame:
    """What changes between two pictures of a person.

    Attributes:
        index: number of the picture, which decides everything random in it.
        view: `"front"`, `"back"`, `"left"` or `"right"`.
        walking: the legs are apart.
        phase: position in the stride, in [0, 1).
        camera: 0 or 1.
    """

    index: int
    view: str
    walking: bool
    phase: float
    camera: int = 0

    @classmethod
    def sample(cls, person: SyntheticPerson, index: int, camera: int = 0) -> "Frame":
        """Draw the frame number `index` of `person`, seen by `camera` (0 or 1)."""
        rng = np.random.default_rng((person.seed, person.person_id, 1, index, camera))
        view = _choice(rng, {"front": 0.31, "back": 0.27, "left": 0.21, "right": 0.21})
        return cls(index, view, bool(rng.random() < 0.6), float(rng.random()), camera)


def person_labels(person: SyntheticPerson, frame: Frame, schema: AttributeSchema | None = None) -> np.ndarray:
    """Class indices of one picture, int64 `(A,)`, -100 where the picture cannot show the answer.

    Raises:
        ValueError: `schema`, by default that of the drawings, lacks the label of an answer.
    """
    schema = schema or get_schema("synthetic")
    answers = person.traits | {"View": frame.view, "Walking": "yes" if frame.walking else "no"}
    if frame.view == "back":
        answers = {k: v for k, v in answers.items() if k not in ("Glasses", "Mask")}
    labels = np.full(len(schema), UNKNOWN, np.int64)
    for position, attribute in enumerate(schema):
        if attribute.name in answers:
            labels[position] = attribute.labels.index(answers[attribute.name])
    return labels


def _choice(rng: np.random.Generator, table: dict[str, float]) -> str:
    weights = np.fromiter(table.values(), float)
    return list(table)[int(rng.choice(len(weights), p=weights / weights.sum()))]


def _yes(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def _sample_traits(rng: np.random.Generator) -> dict[str, str]:
    # Who a number stands for depends on the order of the draws, also of those that `and` and `if` leave out.
    age = _choice(rng, {"child": 0.13, "adult": 0.70, "elderly": 0.17})
    child, elderly = age == "child", age == "elderly"
    season = _choice(rng, {"winter": 0.3, "mild": 0.4, "summer": 0.3})
    winter, summer = season == "winter", season == "summer"
    vest = not child and _yes(rng, 0.014)
    long_coat = not vest and winter and _yes(rng, 0.38)
    short_sleeve = not (long_coat or vest) and _yes(rng, 0.78 if summer else 0.28 if season == "mild" else 0.01)
    long_hair = _yes(rng, 0.15 if elderly else 0.38)
    hat = _yes(rng, 0.65 if vest else 0.24 if winter or elderly else 0.10)
    lower = _choice(
        rng,
        {
            "trousers": 0.55 if summer else 0.9,
            "shorts": 0.33 if summer else 0.01,
            "skirt": 0.16 if long_hair else 0.03,
        },
    )
    held = _sample_held(rng, child=child, elderly=elderly, winter=winter, long_hair=long_hair)
    backpack = _yes(rng, 0.36 if child else 0.06 if elderly else 0.17)
    things = {
        "Hat": hat,
        "Glasses": _yes(rng, 0.42 if elderly else 0.14),
        "Mask": _yes(rng, 0.07),
        "LongHair": long_hair,
        "Scarf": winter and _yes(rng, 0.26),
        "Headphones": not hat and _yes(rng, 0.025),
        "ShortSleeve": short_sleeve,
        "LongCoat": long_coat,
        "SafetyVest": vest,
        "SideStripe": lower == "trousers" and _yes(rng, 0.06),
        "Boots": _yes(rng, 0.8 if vest else 0.30 if winter else 0.05),
        "Backpack": backpack,
        "ShoulderBag": not backpack and _yes(rng, 0.17),
        **held,
    }
    traits = {name: "yes" if value else "no" for name, value in things.items()} | {
        "HatColor": _choice(rng, _HAT_COLORS),
        "HairColor": _choice(rng, _ELDERLY_HAIR_COLORS if elderly else _HAIR_COLORS),
        "UpperColor": _choice(rng, _UPPER_COLORS),
        "UpperPattern": "plain" if long_coat else _choice(rng, _UPPER_PATTERNS),
        "LowerType": lower,
        "LowerColor": _choice(rng, _LOWER_COLORS),
        "ShoeColor": _choice(rng, _LEATHER_COLORS if things["Boots"] and _yes(rng, 0.7) else _SHOE_COLORS),
        "Age": age,
    }
    if not hat:
        del traits["HatColor"]
    return traits


def _sample_held(
    rng: np.random.Generator, *, child: bool, elderly: bool, winter: bool, long_hair: bool
) -> dict[str, bool]:
    """What the two hands hold: whatever needs a hand takes it, and what comes too late stays at home."""
    hands, held = 2, {}
    for name, probability, needed in (
        ("CarryingInFront", 0.05, 2),
        ("Cane", 0.075 if elderly else 0.0005, 1),
        ("Umbrella", 0.06 if winter else 0.012, 1),
        ("Suitcase", 0.03, 1),
        ("HandBag", 0.22 if long_hair else 0.08, 1),
        ("Phone", 0.0 if child else 0.08, 1),
    ):
        held[name] = hands >= needed and _yes(rng, probability)
        hands -= needed * held[name]
    return held


def _sample_shades(rng: np.random.Generator, traits: dict[str, str]) -> dict[str, tuple[int, int, int]]:
    """The colors of the named hues: no two blacks are the same."""

    def shade(color: tuple[int, int, int], spread: float = 12.0) -> tuple[int, int, int]:
        return tuple(int(c) for c in np.clip(np.array(color) + rng.normal(0, spread, 3), 4, 250))

    hair = _HAIR_RED if traits["HairColor"] == "red" else _COLORS[traits["HairColor"]]
    backpack, bag, handbag, suitcase, umbrella, scarf = (shade(_COLORS[c]) for c in rng.choice(_BAG_COLORS, 6))
    return {
        "skin": _SKINS[int(rng.integers(len(_SKINS)))],
        "hair": shade(hair, 9),
        "hat": shade(_COLORS[traits.get("HatColor", "black")]),
        "upper": shade(_COLORS[traits["UpperColor"]]),
        "lower": shade(_COLORS[traits["LowerColor"]]),
        "shoes": shade(_COLORS[traits["ShoeColor"]]),
        "backpack": backpack,
        "bag": bag,
        "handbag": handbag,
        "suitcase": suitcase,
        "umbrella": umbrella,
        "box": shade(_BOX),
        "scarf": scarf,
        "lens": _LENS_DARK if _yes(rng, 0.5) else _LENS_CLEAR,
    }
