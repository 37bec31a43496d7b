"""Who is drawn, how they stand, and what the picture shows of it: people, frames, labels."""

from dataclasses import dataclass, field

import numpy as np

from vlm_par_hf.schema import UNKNOWN_LABEL, AttributeSchema
from vlm_par_hf.schemas import get_schema


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
_SKIN = ((246, 214, 186), (226, 182, 146), (196, 146, 106), (146, 100, 68), (92, 62, 44))
_LENS_CLEAR, _LENS_DARK = (150, 190, 210), (24, 24, 28)

# Long-tailed marginals; the conditional structure is in `SyntheticPerson.sample`.
_UPPER_COLORS = {
    "black": 0.30, "white": 0.19, "gray": 0.16, "red": 0.09, "blue": 0.14, "green": 0.05, "yellow": 0.04,
    "purple": 0.03,
}  # fmt: skip
_LOWER_COLORS = {
    "black": 0.36, "gray": 0.15, "blue": 0.27, "white": 0.06, "brown": 0.08, "red": 0.04, "green": 0.04,
}  # fmt: skip
_SHOE_COLORS = {"black": 0.46, "white": 0.30, "brown": 0.17, "red": 0.07}
_HAT_COLORS = {"black": 0.45, "white": 0.2, "red": 0.17, "blue": 0.18}


def _choice(rng: np.random.Generator, table: dict[str, float]) -> str:
    weights = np.fromiter(table.values(), float)
    return list(table)[int(rng.choice(len(weights), p=weights / weights.sum()))]


@dataclass(frozen=True)
class SyntheticPerson:
    """Who a drawn person is: `traits` (attribute name -> label text, View and Walking left to the frame), the colors
    of their things, and their build. Constant over all pictures of the person, as clothes are in a re-identification
    set."""

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

        def yes(probability: float) -> bool:
            return bool(rng.random() < probability)

        age = _choice(rng, {"child": 0.13, "adult": 0.70, "elderly": 0.17})
        child, elderly = age == "child", age == "elderly"
        season = _choice(rng, {"winter": 0.3, "mild": 0.4, "summer": 0.3})
        winter, summer = season == "winter", season == "summer"
        vest = not child and yes(0.014)
        long_coat = not vest and winter and yes(0.38)
        short_sleeve = not (long_coat or vest) and yes(0.78 if summer else 0.28 if season == "mild" else 0.01)
        long_hair = yes(0.15 if elderly else 0.38)
        hat = yes(0.65 if vest else 0.24 if winter or elderly else 0.10)
        lower = _choice(
            rng,
            {
                "trousers": 0.55 if summer else 0.9,
                "shorts": 0.33 if summer else 0.01,
                "skirt": 0.16 if long_hair else 0.03,
            },
        )
        # Two hands: whatever needs one takes it, and what comes too late stays at home.
        hands, carried = 2, {}
        for name, probability, needed in (
            ("CarryingInFront", 0.05, 2),
            ("Cane", 0.075 if elderly else 0.0005, 1),
            ("Umbrella", 0.06 if winter else 0.012, 1),
            ("Suitcase", 0.03, 1),
            ("HandBag", 0.22 if long_hair else 0.08, 1),
            ("Phone", 0.0 if child else 0.08, 1),
        ):
            carried[name] = hands >= needed and yes(probability)
            hands -= needed * carried[name]
        backpack = yes(0.36 if child else 0.06 if elderly else 0.17)
        hair = {"black": 0.46, "brown": 0.33, "blond": 0.16, "gray": 0.02, "red": 0.035}
        binary = {
            "Hat": hat,
            "Glasses": yes(0.42 if elderly else 0.14),
            "Mask": yes(0.07),
            "LongHair": long_hair,
            "Scarf": winter and yes(0.26),
            "Headphones": not hat and yes(0.025),
            "ShortSleeve": short_sleeve,
            "LongCoat": long_coat,
            "SafetyVest": vest,
            "SideStripe": lower == "trousers" and yes(0.06),
            "Boots": yes(0.8 if vest else 0.30 if winter else 0.05),
            "Backpack": backpack,
            "ShoulderBag": not backpack and yes(0.17),
            **carried,
        }
        traits = {name: "yes" if value else "no" for name, value in binary.items()} | {
            "HatColor": _choice(rng, _HAT_COLORS),
            "HairColor": _choice(rng, {"gray": 0.8, "black": 0.1, "brown": 0.1} if elderly else hair),
            "UpperColor": _choice(rng, _UPPER_COLORS),
            "UpperPattern": "plain"
            if long_coat
            else _choice(rng, {"plain": 0.70, "stripes": 0.13, "plaid": 0.08, "logo": 0.09}),
            "LowerType": lower,
            "LowerColor": _choice(rng, _LOWER_COLORS),
            "ShoeColor": _choice(rng, {"black": 0.6, "brown": 0.4} if binary["Boots"] and yes(0.7) else _SHOE_COLORS),
            "Age": age,
        }
        if not hat:
            del traits["HatColor"]

        def shade(color: tuple[int, int, int], spread: float = 12.0) -> tuple[int, int, int]:
            return tuple(int(c) for c in np.clip(np.array(color) + rng.normal(0, spread, 3), 4, 250))

        hair_color = _HAIR_RED if traits["HairColor"] == "red" else _COLORS[traits["HairColor"]]
        anything = [shade(_COLORS[c]) for c in rng.choice(["black", "brown", "gray", "red", "blue", "green"], 6)]
        shades = {
            "skin": _SKIN[int(rng.integers(len(_SKIN)))],
            "hair": shade(hair_color, 9),
            "hat": shade(_COLORS[traits.get("HatColor", "black")]),
            "upper": shade(_COLORS[traits["UpperColor"]]),
            "lower": shade(_COLORS[traits["LowerColor"]]),
            "shoes": shade(_COLORS[traits["ShoeColor"]]),
            "backpack": anything[0],
            "bag": anything[1],
            "handbag": anything[2],
            "suitcase": anything[3],
            "umbrella": anything[4],
            "box": shade((176, 136, 88)),
            "scarf": anything[5],
            "lens": _LENS_DARK if yes(0.5) else _LENS_CLEAR,
        }
        stature = {"child": 0.72, "adult": 1.0, "elderly": 0.95}[age] * rng.uniform(0.95, 1.05)
        return cls(person_id, seed, traits, shades, float(stature), float(rng.uniform(0.85, 1.2)))


@dataclass(frozen=True)
class Frame:
    """What changes between two pictures of a person. `phase` in [0, 1) is the position in the stride."""

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
    """Class indices of one picture, int64 `(A,)`, -100 where the picture cannot show the answer."""
    schema = schema or get_schema("synthetic")
    answers = person.traits | {"View": frame.view, "Walking": "yes" if frame.walking else "no"}
    if frame.view == "back":
        answers = {k: v for k, v in answers.items() if k not in ("Glasses", "Mask")}
    labels = np.full(len(schema), UNKNOWN, np.int64)
    for position, attribute in enumerate(schema):
        if attribute.name in answers:
            labels[position] = attribute.labels.index(answers[attribute.name])
    return labels
