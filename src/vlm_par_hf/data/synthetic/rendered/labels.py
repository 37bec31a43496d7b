"""Labels from what a picture shows: pixels of each part and thing, counted by the renderer.

Who has a thing is labelled "yes" if enough of it is seen, who has none "no" if the place where it would be is seen;
otherwise the answer is unknown. So a bag behind the body is unknown, not "yes", and so are glasses from behind.
"""

from collections.abc import Mapping

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema
from vlm_par_hf.labels.tables import get_schema

from .colors import color_name, hair_color_name
from .people import Garment, RenderedPerson, Shot, view_of


__all__ = ["as_pa100k", "picture_labels"]

# A thing is seen from this share of the picture on: at 192 x 72 pixels 14, of a bag's some 600; of what is small or
# thin (glasses, straps, a phone) 5. A garment needs 1 %, shoes less than half of that.
_THING, _SMALL_THING, _GARMENT, _SHOES = 0.001, 0.00035, 0.01, 0.004
_SMALL = ("glasses", "headphones", "phone", "cane", "backpack_straps")
_THING_SHARE = 0.12  # of the thing's own pixels: less of it could be anything
_PLACE_SHARE = 0.6  # of the place where a thing would be
_FACE_SHARE = 0.3  # a face in profile hides most of itself
_GARMENT_SHARE = 0.35
# The renderer counts disjoint parts; these together make what a label speaks of.
_FACE = ("face", "eyes", "glasses", "mask")
_HEAD = ("head", *_FACE)
_UPPER = ("upper", "sleeves", "torso_front", "torso_back", "print", "backpack_straps")
_LEGS = ("lower", "legs")
_ON_HEAD, _ON_UPPER = ("hair", "hat", "headphones"), ("inner", "backpack", "in_front", "scarf", "shoulder_bag")
_SHORT = 0.62  # sleeves up to here are short, from `_LONG` on long; those between are neither
_LONG = 0.8
_KNEE, _KNEE_DRESS = 0.55, 0.42  # where the knee ends: share of the leg, and metres below the hip joint
_LONG_COAT = 0.16  # a coat that ends so far below the hip joint is long: from the middle of the thigh on
_PRINTS = ("logo", "floral", "camouflage", "dots")  # PA-100K's "logo" is any print
_CARRIED = (
    "Backpack",
    "ShoulderBag",
    "HandBag",
    "HoldObjectsInFront",
    "Suitcase",
    "Umbrella",
    "Phone",
    "Cane",
)


def picture_labels(
    person: RenderedPerson,
    shot: Shot,
    visible: Mapping[str, int],
    whole: Mapping[str, int],
    schema: AttributeSchema | None = None,
) -> np.ndarray:
    """Class indices of one picture.

    Args:
        person, shot: who was rendered, and how.
        visible: pixels of each part of the person in the picture, as `render_picture` counts them; what is missing
            counts 0.
        whole: the same without what stands in front and without the edges of the picture.
        schema: by default that of the rendered pedestrians.

    Returns:
        int64 `(A,)`, -100 where the picture cannot show the answer.

    Raises:
        ValueError: `schema` lacks the label of an answer.
    """
    schema = schema or get_schema("rendered")
    seen = _Seen(shot, visible, whole)
    answers = _body_answers(person, shot, seen)
    if seen.body >= 0.3:
        answers |= _head_answers(person, seen)
        answers |= _upper_answers(person, shot, seen)
        answers |= _lower_answers(person, seen)
        answers |= _carried_answers(person, seen)
    if shot.infrared:
        answers = {name: answer for name, answer in answers.items() if not name.endswith("Color") and name != "Jeans"}
    labels = np.full(len(schema), UNKNOWN_LABEL, np.int64)
    for position, attribute in enumerate(schema):
        answer = answers.get(attribute.name)
        if answer is None:
            continue
        answer = {True: "yes", False: "no"}.get(answer, answer)
        if answer not in attribute.labels:
            raise ParValueError(
                f"schema gives {attribute.name!r} the labels {list(attribute.labels)}, without {answer!r}"
            )
        labels[position] = attribute.labels.index(answer)
    return labels


class _Seen:
    """How much of the person a picture shows."""

    def __init__(self, shot: Shot, visible: Mapping[str, int], whole: Mapping[str, int]):
        self.visible, self.whole = visible, whole
        self.area = shot.height * round(shot.height * shot.aspect)
        self.view = view_of(shot)
        # What the person wears over a place hides it, but shows that nothing else is there.
        self.head = self.share(*_HEAD, over=_ON_HEAD)
        self.trunk = self.share(*_UPPER, over=_ON_UPPER)
        self.cloth = self.share(*_UPPER)
        self.legs = self.share(*_LEGS)
        self.body = self.share(*_HEAD, *_UPPER, *_LEGS, "arms", "hands", "shoes", over=_ON_HEAD + _ON_UPPER)

    def pixels(self, *parts: str) -> int:
        return sum(self.visible.get(part, 0) for part in parts)

    def share(self, *parts: str, over: tuple[str, ...] = ()) -> float:
        """Seen pixels of the parts, and of what lies `over` them, / all of theirs, 0 to 1; 0 for what has none."""
        whole = sum(self.whole.get(part, 0) for part in parts)
        return min(1.0, self.pixels(*parts, *over) / whole) if whole else 0.0

    def covers(self, area: float, *parts: str) -> bool:
        """At least this share of the picture."""
        return self.pixels(*parts) >= max(3.0, area * self.area)

    def thing(self, name: str) -> bool:
        """Enough of a thing, with its straps, to see that it is there."""
        return any(
            self.share(part) >= _THING_SHARE and self.covers(_SMALL_THING if part in _SMALL else _THING, part)
            for part in (name, f"{name}_straps")
        )

    def answer(self, has: bool, name: str, place: bool) -> bool | None:
        """Yes, no or unknown: whether a thing that the person `has`, or its empty `place`, is seen."""
        if has:
            return True if self.thing(name) else None
        return False if place else None


def _body_answers(person: RenderedPerson, shot: Shot, seen: _Seen) -> dict[str, str | bool | None]:
    if seen.body < 0.3:
        return {}
    answers: dict[str, str | bool | None] = {"View": seen.view}
    if seen.head >= 0.3 or seen.body >= 0.6:
        answers |= {"Female": person.female, "Age": person.age}
    if seen.legs >= 0.45:
        answers["Motion"] = shot.pose
    return answers


def _head_answers(person: RenderedPerson, seen: _Seen) -> dict[str, str | bool | None]:
    things = person.things
    head = seen.head >= _PLACE_SHARE and seen.covers(_SHOES, *_HEAD, *_ON_HEAD)
    eyes = seen.share("eyes") >= _FACE_SHARE and seen.covers(_SMALL_THING, "eyes")
    face = seen.share(*_FACE) >= _FACE_SHARE and seen.covers(_THING, *_FACE)
    hat = seen.answer("hat" in things, "hat", head)
    glasses = seen.answer("glasses" in things, "glasses", eyes)
    answers: dict[str, str | bool | None] = {
        "Hat": hat,
        "Helmet": hat and things["hat"].kind == "helmet",
        "Glasses": glasses,
        "Sunglasses": glasses and things["glasses"].kind == "dark",
        "Mask": seen.answer("mask" in things, "mask", face),
        "Headphones": seen.answer("headphones" in things, "headphones", head),
        "Scarf": seen.answer("scarf" in things, "scarf", head and seen.trunk >= 0.4),
    }
    if hat:
        answers["HatColor"] = color_name(things["hat"].color)
    if person.hair_style == "bald":
        answers["HairLength"] = "bald" if head and not hat else None
    elif seen.covers(_SHOES / 2, "hair") and seen.share("hair") >= _GARMENT_SHARE:
        answers["HairColor"] = hair_color_name(person.hair)
        answers["HairLength"] = _hair_length(person, seen)
    return answers


def _hair_length(person: RenderedPerson, seen: _Seen) -> str | None:
    """A bun may be long hair, and a pony tail hides behind the head: unknown."""
    if person.hair_style == "bun" or person.hair_style == "ponytail" and seen.view == "front":
        return None
    return "long" if person.hair_style in ("long", "ponytail") else "short"


def _upper_answers(person: RenderedPerson, shot: Shot, seen: _Seen) -> dict[str, str | bool | None]:
    upper = person.upper
    if not seen.covers(_GARMENT, *_UPPER) or seen.cloth < _GARMENT_SHARE:
        return {}
    answers: dict[str, str | bool | None] = {
        "UpperColor": _main_color(upper),
        "UpperStripes": upper.pattern == "stripes",
        "UpperLogo": _print_seen(upper, seen),
        "UpperPlaid": upper.pattern == "plaid",
        "UpperSplice": upper.pattern == "splice",
    }
    if seen.share("sleeves", "arms") >= 0.4:
        answers["Sleeves"] = _sleeves(upper)
    if seen.trunk >= _PLACE_SHARE:
        answers["UpperType"] = upper.kind
        answers["LongCoat"] = upper.kind == "coat" and upper.hem >= _LONG_COAT
        if seen.view == "front":
            answers["OpenJacket"] = upper.open and upper.kind in ("jacket", "coat", "vest")
        if seen.view != "back" or upper.kind != "jacket":  # from behind any jacket could be one
            answers["Suit"] = person.suit
    return answers


def _main_color(garment: Garment) -> str | None:
    """The color that a garment is called by; one of two or more colors has no certain one."""
    if garment.pattern in ("stripes", "plaid", "splice", "camouflage"):
        return None
    return color_name(garment.colors[0])


def _print_seen(upper: Garment, seen: _Seen) -> bool | None:
    """A print all over is seen wherever cloth is, one on the chest or back only from there."""
    if upper.pattern != "logo":
        return upper.pattern in _PRINTS
    if seen.covers(_THING, "print") and seen.share("print") >= 0.3:
        return True
    return None if seen.whole.get("print", 0) else False


def _sleeves(upper: Garment) -> str | None:
    if upper.sleeve < 0.12:
        return "none"
    return "short" if upper.sleeve <= _SHORT else "long" if upper.sleeve >= _LONG else None


def _lower_answers(person: RenderedPerson, seen: _Seen) -> dict[str, str | bool | None]:
    lower = person.lower
    answers: dict[str, str | bool | None] = {}
    if _lower_kind_seen(person, seen):
        garment = lower or person.upper
        pattern = garment.pattern
        short = garment.hem < (_KNEE if lower is not None else _KNEE_DRESS)
        answers |= {
            "LowerType": "dress" if lower is None else lower.kind,
            "LowerColor": _main_color(garment),
            "LowerLength": "short" if short else "long",
            "LowerStripe": pattern in ("stripes", "side_stripe"),
            "LowerPattern": pattern in ("floral", "dots", "plaid", "camouflage"),
            "Jeans": pattern == "denim",
        }
        if pattern == "side_stripe" and seen.view in ("front", "back") and garment.fit < 0.15:
            answers["LowerStripe"] = None  # the seam of tight trousers lies at the silhouette
        if garment.kind == "trousers":
            answers["Stockings"] = False
    if (lower is None or lower.kind != "trousers") and seen.share("legs") >= 0.4 and seen.covers(_SHOES, "legs"):
        answers["Stockings"] = person.legs is not None
    if seen.covers(_SHOES, "shoes") and seen.share("shoes") >= 0.4:
        answers |= {"Footwear": person.shoes.kind, "ShoeColor": color_name(person.shoes.color)}
    return answers


def _lower_kind_seen(person: RenderedPerson, seen: _Seen) -> bool:
    """Whether the picture shows where the lower garment ends: bare legs below it, or feet below trousers."""
    lower = person.lower
    if lower is None:
        return seen.trunk >= _PLACE_SHARE and seen.covers(_SHOES, "legs")
    if not seen.covers(_GARMENT, "lower"):
        return False
    if lower.kind == "trousers":
        # A long coat leaves a quarter of them.
        needed = 0.15 if person.upper.kind == "coat" else 0.45
        return seen.legs >= 0.75 or seen.legs >= needed and seen.covers(_SHOES, "shoes")
    return seen.legs >= 0.4 and seen.covers(_SHOES, "legs")


def _carried_answers(person: RenderedPerson, seen: _Seen) -> dict[str, str | bool | None]:
    things = person.things
    trunk = seen.trunk >= _PLACE_SHARE
    hips = trunk and seen.legs >= (0.15 if person.upper.kind == "coat" else 0.45)
    feet = hips and seen.share("shoes") >= 0.3
    chest = trunk and seen.view != "back"
    handbag = seen.answer("handbag" in things, "handbag", hips)
    answers: dict[str, str | bool | None] = {
        "Backpack": seen.answer("backpack" in things, "backpack", trunk),
        "ShoulderBag": seen.answer("shoulder_bag" in things, "shoulder_bag", trunk),
        "HandBag": handbag,
        "ShoppingBag": handbag and things["handbag"].kind == "shopping",
        "HoldObjectsInFront": seen.answer("in_front" in things, "in_front", chest),
        "Suitcase": seen.answer("suitcase" in things, "suitcase", feet),
        "Umbrella": seen.answer("umbrella" in things, "umbrella", trunk and seen.head >= 0.5),
        "Phone": seen.answer("phone" in things, "phone", chest),
        "Cane": seen.answer("cane" in things, "cane", hips),
    }
    carried = [answers[name] for name in _CARRIED]
    if True in carried:
        answers["CarryingNothing"] = False
    elif all(value is False for value in carried):
        answers["CarryingNothing"] = True
    return answers


# --- PA-100K ---------------------------------------------------------------------------------------------------------

# PA-100K's name -> ours, and our labels that mean "yes". Its files have two columns under each other's name: what
# `UpperPlaid` marks are garments of several parts, and what `UpperSplice` marks are checked shirts.
_PA100K: dict[str, tuple[str, tuple[str, ...]]] = {
    "Female": ("Female", ("yes",)),
    "AgeOver60": ("Age", ("elderly",)),
    "Age18-60": ("Age", ("adult",)),
    "AgeLess18": ("Age", ("child",)),
    "Front": ("View", ("front",)),
    "Side": ("View", ("left", "right")),
    "Back": ("View", ("back",)),
    "Hat": ("Hat", ("yes",)),
    "Glasses": ("Glasses", ("yes",)),
    "HandBag": ("HandBag", ("yes",)),
    "ShoulderBag": ("ShoulderBag", ("yes",)),
    "Backpack": ("Backpack", ("yes",)),
    "HoldObjectsInFront": ("HoldObjectsInFront", ("yes",)),
    "ShortSleeve": ("Sleeves", ("none", "short")),
    "LongSleeve": ("Sleeves", ("long",)),
    "UpperStride": ("UpperStripes", ("yes",)),
    "UpperLogo": ("UpperLogo", ("yes",)),
    "UpperPlaid": ("UpperSplice", ("yes",)),
    "UpperSplice": ("UpperPlaid", ("yes",)),
    "LowerStripe": ("LowerStripe", ("yes",)),
    "LowerPattern": ("LowerPattern", ("yes",)),
    "LongCoat": ("LongCoat", ("yes",)),
    "Trousers": ("LowerType", ("trousers",)),
    "Shorts": ("LowerType", ("shorts",)),
    "Skirt&Dress": ("LowerType", ("skirt", "dress")),
    "boots": ("Footwear", ("boots",)),
}


def as_pa100k(labels: np.ndarray) -> np.ndarray:
    """The 26 attributes of PA-100K, in the order of its files, of rendered pedestrians.

    Args:
        labels: int64 `(..., A)` of the schema `"rendered"`, -100 = unknown.

    Returns:
        int64 `(..., 26)`: 0, 1 or -100.

    Raises:
        ValueError: `labels` has another number of attributes.
    """
    schema = get_schema("rendered")
    labels = np.asarray(labels)
    if labels.ndim == 0 or labels.shape[-1] != len(schema):
        raise ParValueError(f"labels has shape {labels.shape}; expected (..., {len(schema)}) of the schema 'rendered'")
    columns = []
    for ours, meant in _PA100K.values():
        column = labels[..., schema.index(ours)]
        positives = [schema[ours].labels.index(label) for label in meant]
        columns.append(np.where(column == UNKNOWN_LABEL, UNKNOWN_LABEL, np.isin(column, positives).astype(np.int64)))
    return np.stack(columns, axis=-1)
