"""Sentences that tell part of what a picture shows."""

from collections.abc import Callable, Sequence

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import AttributeSchema, check_label_range
from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.utils import shorten

from .people import UNKNOWN


__all__ = ["caption", "tell"]

# What is said of a "yes", and of a "no".
_THINGS = {
    "Glasses": ("wearing glasses", "without glasses"),
    "Mask": ("wearing a face mask", "without a face mask"),
    "Scarf": ("wearing a scarf", "without a scarf"),
    "Headphones": ("wearing headphones", "without headphones"),
    "SafetyVest": ("wearing a safety vest", "without a safety vest"),
    "Backpack": ("carrying a backpack", "without a backpack"),
    "HandBag": ("holding a handbag", "without a handbag"),
    "ShoulderBag": ("carrying a shoulder bag", "without a shoulder bag"),
    "Umbrella": ("holding an umbrella", "without an umbrella"),
    "Phone": ("holding a phone", "without a phone"),
    "Suitcase": ("pulling a suitcase", "without a suitcase"),
    "Cane": ("walking with a cane", "without a cane"),
    "CarryingInFront": ("carrying something in front", "carrying nothing in front"),
    "Walking": ("walking", "standing still"),
}
# Attributes that one phrase tells together.
_PHRASES = tuple((name,) for name in _THINGS) + (
    ("Hat",), ("Hat", "HatColor"), ("HairColor",), ("LongHair",), ("HairColor", "LongHair"),
    ("UpperColor",), ("UpperPattern",), ("UpperColor", "UpperPattern"), ("ShortSleeve",), ("LongCoat",),
    ("UpperColor", "LongCoat"), ("LowerType",), ("LowerColor", "LowerType"), ("SideStripe",), ("Boots",),
    ("ShoeColor", "Boots"), ("View",), ("Age",),
)  # fmt: skip
_SUBJECTS = ("a drawing of a person", "a person", "a pedestrian", "a photo of a person", "someone")


def caption(
    labels: np.ndarray, rng: np.random.Generator, phrases: int | None = None, schema: AttributeSchema | None = None
) -> tuple[str, list[int]]:
    """A sentence that tells part of what a picture shows.

    Args:
        labels: int64 `(A,)`, -100 = unknown (never told).
        rng: draws which phrases, and how the person is called.
        phrases: how many phrases, fewer where they would repeat each other; drawn from 1 to 6 when None.
        schema: of the labels; by default that of the drawings.

    Returns:
        The lower-case sentence and the positions of the attributes it tells. Another picture matches the sentence
        exactly when its labels agree at these positions, which is what makes the sigmoid loss's targets exact.

    Raises:
        ValueError: labels that do not fit the schema, an attribute of the drawings with other labels than theirs, or
            nothing known that a phrase tells.
    """
    drawn = get_schema("synthetic")
    schema = schema or drawn
    labels = np.asarray(labels)
    if labels.shape != (len(schema),):
        raise ParValueError(f"labels have shape {labels.shape}; expected ({len(schema)},), one per attribute")
    check_label_range(labels, schema)
    for attribute in schema:
        if attribute.name in drawn and attribute.labels != drawn[attribute.name].labels:
            raise ParValueError(
                f"attribute {attribute.name!r} has the labels {shorten(list(attribute.labels))}; a caption tells "
                f"{list(drawn[attribute.name].labels)}"
            )
    answers = {a.name: a.labels[k] for a, k in zip(schema, labels, strict=True) if k != UNKNOWN}
    possible = [
        names
        for names in _PHRASES
        if all(name in answers for name in names)
        # "a stripe down the trousers" is said of trousers, so what the person wears must be known.
        and not (names == ("SideStripe",) and answers.get("LowerType") != "trousers")
    ]
    if not possible:
        raise ParValueError(f"no known label of {schema!r} is one that a caption tells")
    text, told = tell(answers, possible, _phrase, _SUBJECTS, rng, phrases)
    return text, [schema.index(name) for name in told]


def tell(
    answers: dict[str, str],
    possible: list[tuple[str, ...]],
    phrase: Callable[[tuple[str, ...], dict[str, str]], str],
    subjects: Sequence[str],
    rng: np.random.Generator,
    phrases: int | None = None,
    absent: float = 0.3,
) -> tuple[str, list[str]]:
    """A sentence of some phrases, none of which repeats what another tells.

    Args:
        answers: attribute name -> label text of what is known.
        possible: for each phrase that could be said the attributes that it tells; not empty.
        phrase: the words for one of them.
        subjects: what the person may be called.
        rng: draws which phrases, and the subject.
        phrases: how many at most; drawn from 1 to 6 when None.
        absent: how often a "no" is told, relative to what is there: captions name things.

    Returns:
        The sentence and the names of the attributes that it tells.
    """
    weights = np.array([absent if answers[n[0]] == "no" else 1.0 for n in possible])
    count = min(len(possible), phrases or int(rng.integers(1, 7)))
    chosen = rng.choice(len(possible), count, replace=False, p=weights / weights.sum())
    told, text = [], []
    for names in (possible[i] for i in chosen):
        if not set(names) & set(told):
            told += names
            text.append(phrase(names, answers))
    return f"{subjects[int(rng.integers(len(subjects)))]} {', '.join(text)}", told


def _phrase(names: tuple[str, ...], answers: dict[str, str]) -> str:
    """How a sentence tells the attributes `names`, one of `_PHRASES`."""
    has = {name: answers[name] == "yes" for name in names}
    if names[0] in _THINGS:
        return _THINGS[names[0]][0 if has[names[0]] else 1]
    match names:
        case ("Hat",):
            return "wearing a hat" if has["Hat"] else "without a hat"
        case ("Hat", "HatColor"):
            return f"wearing a {answers['HatColor']} hat"
        case ("HairColor",):
            return f"with {answers['HairColor']} hair"
        case ("LongHair",):
            return "with long hair" if has["LongHair"] else "with short hair"
        case ("HairColor", "LongHair"):
            return f"with {'long' if has['LongHair'] else 'short'} {answers['HairColor']} hair"
        case ("UpperColor",):
            return f"in a {answers['UpperColor']} top"
        case ("UpperPattern",):
            return {"plain": "in a plain top", "stripes": "in a striped top", "plaid": "in a plaid top",
                    "logo": "in a top with a logo"}[answers["UpperPattern"]]  # fmt: skip
        case ("UpperColor", "UpperPattern"):
            kind = {"plain": "plain", "stripes": "striped", "plaid": "plaid", "logo": "printed"}[
                answers["UpperPattern"]
            ]
            return f"in a {answers['UpperColor']} {kind} top"
        case ("ShortSleeve",):
            return "with short sleeves" if has["ShortSleeve"] else "with long sleeves"
        case ("LongCoat",):
            return "wearing a long coat" if has["LongCoat"] else "without a long coat"
        case ("UpperColor", "LongCoat"):
            return f"in a {answers['UpperColor']} {'long coat' if has['LongCoat'] else 'short top'}"
        case ("LowerType",):
            return f"wearing {_lower_garment(answers)}"
        case ("LowerColor", "LowerType"):
            return "wearing " + _lower_garment(answers, answers["LowerColor"] + " ")
        case ("SideStripe",):
            return "with a stripe down the trousers" if has["SideStripe"] else "without a side stripe"
        case ("Boots",):
            return "wearing boots" if has["Boots"] else "wearing low shoes"
        case ("ShoeColor", "Boots"):
            return f"in {answers['ShoeColor']} {'boots' if has['Boots'] else 'shoes'}"
        case ("View",):
            side = answers["View"]
            return f"facing {side}" if side in ("left", "right") else f"seen from the {side}"
        case ("Age",):
            return {"child": "who is a child", "adult": "who is an adult", "elderly": "who is elderly"}[answers["Age"]]
    raise ParValueError(f"no phrase for the attributes {names!r}")


def _lower_garment(answers: dict[str, str], color: str = "") -> str:
    article = "a " if answers["LowerType"] == "skirt" else ""
    return f"{article}{color}{answers['LowerType']}"
