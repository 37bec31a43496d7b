"""Answers that fit together: conditions between attributes, and groups of which one attribute at most is positive.

Attributes are decided one by one, so a bare head gets a hat color, and a person two ages. What is known about the
label space repairs that: `Attribute.requires` and `Attribute.group`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .decisions import Decisions, decide
from .schema import UNKNOWN_LABEL, AttributeSchema


__all__ = [
    "NO_ANSWER",
    "consistent",
    "count_violations",
    "has_rules",
    "is_consistent_unasked",
    "keep_one_of_group",
    "take_back_unmet",
]

NO_ANSWER = UNKNOWN_LABEL  # in place of a class index: the question makes no sense for this person
_SMALLEST = 1e-12  # distance of probabilities from 0 and 1, whose logarithm is taken


def has_rules(schema: AttributeSchema) -> bool:
    """Whether a label space has a condition or a group of two attributes or more."""
    return any(one.requires for one in schema) or any(len(members) > 1 for members in schema.groups.values())


def is_consistent_unasked(schema: AttributeSchema, decisions: Decisions | None) -> bool:
    """Whether answers are made consistent if nobody says so: for checkpoints that know a condition, or whose answers
    were fitted (`vlm-par train` and `calibrate`). Those from before there was either answer as they always did."""
    return any(one.requires for one in schema) or (decisions is not None and bool(decisions.points()))


def consistent(
    probabilities: np.ndarray,
    schema: AttributeSchema,
    thresholds: np.ndarray | Sequence[float] | None = None,
    biases: np.ndarray | None = None,
    *,
    requires: bool = True,
    groups: bool = True,
) -> np.ndarray:
    """The class index of each answer, as `decide` gives it, made consistent.

    In a group at most one attribute is positive. The joint score of "only attribute i is positive" exceeds that of
    "none is" by how far the probability of i is above its threshold, as a difference of log-odds; the best joint score
    wins. So where several are positive the one that is furthest above its threshold remains, and where none or one is,
    nothing changes. Then an answer whose condition is not met becomes `NO_ANSWER`, also where the attribute that it
    requires has no answer.

    Args:
        probabilities: `(..., A, C)`, 0 past an attribute's own labels.
        schema: the label space.
        thresholds, biases: as for `decide`.
        requires: apply conditions.
        groups: apply groups.

    Returns:
        int64 `(..., A)`.
    """
    answers = decide(probabilities, schema, thresholds, biases)
    if groups:
        answers = keep_one_of_group(answers, probabilities, schema, thresholds)
    return take_back_unmet(answers, schema) if requires else answers


def keep_one_of_group(
    answers: np.ndarray,
    probabilities: np.ndarray,
    schema: AttributeSchema,
    thresholds: np.ndarray | Sequence[float] | None = None,
) -> np.ndarray:
    """The first step of `consistent`: answers `(..., A)` of which at most one of each group is positive."""
    if thresholds is None:
        thresholds = [attribute.threshold for attribute in schema]
    answers = answers.copy()
    margins = _log_odds(probabilities[..., 1]) - _log_odds(np.asarray(thresholds, dtype=np.float64))
    for members in schema.groups.values():
        positive = answers[..., members] == 1
        best = np.where(positive, margins[..., members], -np.inf).argmax(-1)
        answers[..., members] = positive & (np.arange(len(members)) == best[..., None])
    return answers


def take_back_unmet(answers: np.ndarray, schema: AttributeSchema) -> np.ndarray:
    """The second step of `consistent`: answers `(..., A)` with `NO_ANSWER` where a condition is not met."""
    answers = answers.copy()
    for position, met in _conditions(answers, schema):
        answers[..., position] = np.where(met, answers[..., position], NO_ANSWER)
    return answers


def count_violations(answers: np.ndarray, schema: AttributeSchema) -> dict[str, Any]:
    """How often answers contradict each other.

    Args:
        answers: int `(N, A)`, class indices or `NO_ANSWER`.
        schema: the label space.

    Returns:
        `{"people": with one contradiction or more, "requires": {attribute: answers although the condition is not met},
        "groups": {group: people for whom more than one of its attributes is positive}}`, for all attributes with a
        condition and all groups.
    """
    broken = np.zeros(len(answers), dtype=bool)
    found: dict[str, Any] = {"people": 0, "requires": {}, "groups": {}}
    for position, met in _conditions(answers, schema):
        wrong = ~met & (answers[:, position] != NO_ANSWER)
        found["requires"][schema[position].name] = int(wrong.sum())
        broken |= wrong
    for group, members in schema.groups.items():
        wrong = (answers[:, members] == 1).sum(1) > 1
        found["groups"][group] = int(wrong.sum())
        broken |= wrong
    found["people"] = int(broken.sum())
    return found


def _conditions(answers: np.ndarray, schema: AttributeSchema):
    """Yields the position of each attribute with a condition, and bool `(...)`: whether the answers meet it. An
    attribute comes after the one that it requires, whose answer may be changed in between."""
    depths = {}
    for position, attribute in enumerate(schema):
        one, depth = attribute, 0
        while one.requires is not None:
            one, depth = schema[one.requires[0]], depth + 1
        if depth:
            depths[position] = depth
    for position in sorted(depths, key=depths.get):
        name, *labels = schema[position].requires
        allowed = [schema[name].labels.index(label) for label in labels]
        yield position, np.isin(answers[..., schema.index(name)], allowed)


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    clipped = np.clip(probabilities.astype(np.float64), _SMALLEST, 1 - _SMALLEST)
    return np.log(clipped) - np.log1p(-clipped)
