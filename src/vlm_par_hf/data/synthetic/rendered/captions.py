"""Sentences that tell part of what a rendered picture shows."""

import numpy as np

from vlm_par_hf.data.synthetic.captions import tell
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema
from vlm_par_hf.labels.tables import get_schema


__all__ = ["caption"]

_SUBJECTS = ("a photo of a person", "a person", "a pedestrian", "someone", "a street camera picture of a person")
_PROMPT = "a photo of "  # how the prompts of single attributes begin

# Attributes that one phrase tells together; those with a pattern only where it is there.
_TOGETHER = (
    ("HatColor", "Hat"), ("HairColor", "HairLength"), ("Female", "Age"), ("UpperColor", "UpperType"),
    ("UpperType", "Sleeves"), ("UpperColor", "UpperType", "Sleeves"), ("UpperStripes", "UpperType"),
    ("UpperPlaid", "UpperType"), ("UpperLogo", "UpperType"), ("UpperLogo", "UpperColor", "UpperType"),
    ("UpperColor", "LongCoat"), ("LowerColor", "LowerType"), ("ShoeColor", "Footwear"),
)  # fmt: skip
_PATTERNS = {"UpperStripes": "striped", "UpperPlaid": "plaid", "UpperLogo": "printed"}
_NEEDS_YES = (*_PATTERNS, "LongCoat")


def caption(
    labels: np.ndarray, rng: np.random.Generator, phrases: int | None = None, schema: AttributeSchema | None = None
) -> tuple[str, list[int]]:
    """A sentence that tells part of what a picture shows.

    Args:
        labels: int64 `(A,)`, -100 = unknown (never told).
        rng: draws which phrases, and how the person is called.
        phrases: how many phrases, fewer where they would repeat each other; drawn from 1 to 6 when None.
        schema: of the labels; by default that of the rendered pedestrians.

    Returns:
        The lower-case sentence and the positions of the attributes it tells. Another picture matches the sentence
        exactly when its labels agree at these positions.

    Raises:
        ValueError: every label is unknown.
    """
    schema = schema or get_schema("rendered")
    answers = {a.name: a.labels[k] for a, k in zip(schema, labels, strict=True) if k != UNKNOWN_LABEL}
    if not answers:
        raise ParValueError("labels are all unknown (-100); expected at least one that is known")
    together = [names for names in _TOGETHER if _can_tell(names, answers)]
    prompts = {a.name: dict(zip(a.labels, a.prompts, strict=True)) for a in schema}

    def phrase(names: tuple[str, ...], answers: dict[str, str]) -> str:
        if len(names) == 1:
            return _single(prompts[names[0]][answers[names[0]]])
        return _combined(names, answers)

    possible = [(name,) for name in answers] + together
    text, told = tell(answers, possible, phrase, _SUBJECTS, rng, phrases, absent=0.12)
    return text, [schema.index(name) for name in told]


def _can_tell(names: tuple[str, ...], answers: dict[str, str]) -> bool:
    return all(name in answers for name in names) and not any(
        name in _NEEDS_YES and answers[name] == "no" for name in names
    )


def _single(prompt: str) -> str:
    """What follows the subject: "a photo of a person wearing a hat" -> "wearing a hat"."""
    rest = prompt.removeprefix(_PROMPT)
    return rest.removeprefix("a person ") if rest.startswith("a person ") else f"who is {rest}"


def _combined(names: tuple[str, ...], answers: dict[str, str]) -> str:
    """How a sentence tells the attributes `names`, one of `_TOGETHER`."""
    match names:
        case ("HatColor", "Hat"):
            return f"wearing {_a(answers['HatColor'])} hat"
        case ("HairColor", "HairLength"):
            return f"with {answers['HairLength']} {answers['HairColor']} hair"
        case ("Female", "Age"):
            female = answers["Female"] == "yes"
            child, adult = ("girl", "woman") if female else ("boy", "man")
            return {"child": f"who is a {child}", "elderly": f"who is an elderly {adult}"}.get(
                answers["Age"], f"who is an adult {adult}"
            )
        case ("UpperColor", "LongCoat"):
            return f"in {_a(answers['UpperColor'])} long coat"
        case ("LowerColor", "LowerType"):
            kind = answers["LowerType"]
            return f"in {answers['LowerColor']} {kind}" if kind.endswith("s") and kind != "dress" else (
                f"in {_a(answers['LowerColor'])} {kind}"
            )  # fmt: skip
        case ("ShoeColor", "Footwear"):
            return f"in {answers['ShoeColor']} {answers['Footwear']}"
        case ("UpperType", "Sleeves"):
            return f"in a {answers['UpperType']} {_sleeves(answers)}"
        case ("UpperColor", "UpperType", "Sleeves"):
            return f"in {_a(answers['UpperColor'])} {answers['UpperType']} {_sleeves(answers)}"
        case (*_, "UpperType"):
            pattern = _PATTERNS.get(names[0], "")
            color = answers["UpperColor"] if "UpperColor" in names else ""
            return f"in {_a(' '.join(word for word in (color, pattern, answers['UpperType']) if word))}"
    raise ParValueError(f"no phrase for the attributes {names!r}")


def _sleeves(answers: dict[str, str]) -> str:
    return "without sleeves" if answers["Sleeves"] == "none" else f"with {answers['Sleeves']} sleeves"


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
