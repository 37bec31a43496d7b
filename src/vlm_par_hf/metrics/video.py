"""Metrics of attributes of tracklets, as three groups of publications count them, and consistency over time.

Scores of the three conventions are tabulated beside each other in papers, and are not comparable:

| convention | used by | what is averaged over the groups |
|---|---|---|
| `"chen"` | Chen et al. (2019), MARS-Attribute | accuracy of the most probable label, and macro-F1 over labels |
| `"vtf"` | the released code of VTF (2023) | precision, recall and F1; groups of several columns per tracklet |
| `"vtfpar++"` | VTFPAR++ (2024) | precision, recall and F1 of all cells of a group together |

A group is an attribute: one column if it is binary, one per label otherwise. `"vtf"` and `"vtfpar++"` compare every
column with a threshold of 0.45, so a group of several columns may have none or two positive answers. The published
`"vtfpar++"` accuracy counts right negatives: on ten colors an answer of "none" is right in 90 % of the cells. Unknown
labels (-100) are left out everywhere; in MARS and DukeMTMC-VID there are none. NumPy only.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.decisions import label_softmax
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema, check_label_range


__all__ = ["CONVENTIONS", "answer_flips", "flips_per_minute", "video_metrics"]

CONVENTIONS = ("chen", "vtf", "vtfpar++")
THRESHOLD = 0.45  # of the released code of VTF and of VTFPAR++


def video_metrics(
    logits: np.ndarray, labels: np.ndarray, schema: AttributeSchema, convention: str = "chen"
) -> dict[str, float]:
    """The metrics of one convention.

    Args:
        logits: `(S, A, C)` of S tracklets.
        labels: integer `(S, A)`, class index, -100 unknown.
        schema: the label space.
        convention: one of `CONVENTIONS`.

    Returns:
        `"chen"`: `{"accuracy", "f1_macro"}`; `"vtf"` and `"vtfpar++"`: `{"accuracy", "precision", "recall", "f1"}`.
        Means over the attributes that have a known label.

    Raises:
        ValueError: other shapes, no known label, or an unknown convention.
    """
    if convention not in CONVENTIONS:
        raise ParValueError(f"convention is {convention!r:.40}, expected one of {', '.join(map(repr, CONVENTIONS))}")
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 3 or logits.shape[1:] != (len(schema), schema.max_labels) or labels.shape != logits.shape[:2]:
        raise ParValueError(
            f"logits has shape {logits.shape} and labels {labels.shape}, expected (S, {len(schema)}, "
            f"{schema.max_labels}) and (S, {len(schema)})"
        )
    check_label_range(labels, schema)
    probabilities = label_softmax(logits, schema)
    groups = []
    for place, one in enumerate(schema):
        known = labels[:, place] != UNKNOWN_LABEL
        if known.any():
            scores = probabilities[known, place, : one.num_labels]
            groups.append(_GROUPS[convention](scores, labels[known, place], one.is_binary))
    if not groups:
        raise ParValueError("labels holds no known label, expected at least one")
    return {name: float(np.mean([group[name] for group in groups])) for name in groups[0]}


def _chen(scores: np.ndarray, labels: np.ndarray, is_binary: bool) -> dict[str, float]:
    """Accuracy, and the mean F1 of the labels that occur in the truth or in the answers."""
    answers = scores.argmax(-1)
    f1 = []
    for label in np.union1d(answers, labels):
        right = np.sum((answers == label) & (labels == label))
        f1.append(2 * right / (np.sum(answers == label) + np.sum(labels == label)))
    return {"accuracy": float((answers == labels).mean()), "f1_macro": float(np.mean(f1))}


def _columns(scores: np.ndarray, labels: np.ndarray, is_binary: bool) -> tuple[np.ndarray, np.ndarray]:
    """Answers and truth of the columns of a group, bool `(S, columns)`."""
    first = 1 if is_binary else 0
    truth = np.eye(scores.shape[1], dtype=bool)[labels]
    return scores[:, first:] > THRESHOLD, truth[:, first:]


def _vtf(scores: np.ndarray, labels: np.ndarray, is_binary: bool) -> dict[str, float]:
    """Of one column: precision, recall and F1 of yes, and as accuracy the mean recall of yes and no. Of several: the
    means over the tracklets of the precision, recall, F1 and Jaccard index (as accuracy) of each."""
    answers, truth = _columns(scores, labels, is_binary)
    if is_binary:
        right = (answers & truth).sum()
        precision, recall = _ratio(right, answers.sum()), _ratio(right, truth.sum())
        negatives = _ratio((~answers & ~truth).sum(), (~truth).sum())
        rows = [((recall + negatives) / 2, precision, recall, _harmonic(precision, recall))]
    else:
        rows = []
        for answer, true in zip(answers, truth):
            right = (answer & true).sum()
            precision, recall = _ratio(right, answer.sum()), _ratio(right, true.sum())
            rows.append((_ratio(right, (answer | true).sum()), precision, recall, _harmonic(precision, recall)))
    return dict(zip(("accuracy", "precision", "recall", "f1"), np.mean(rows, axis=0)))


def _vtfpar(scores: np.ndarray, labels: np.ndarray, is_binary: bool) -> dict[str, float]:
    """Precision, recall and F1 over all cells of the group together, and the share of right cells."""
    answers, truth = _columns(scores, labels, is_binary)
    right = (answers & truth).sum()
    precision, recall = _ratio(right, answers.sum()), _ratio(right, truth.sum())
    return {
        "accuracy": float((answers == truth).mean()),
        "precision": precision,
        "recall": recall,
        "f1": _harmonic(precision, recall),
    }


_GROUPS = {"chen": _chen, "vtf": _vtf, "vtfpar++": _vtfpar}


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def _harmonic(first: float, second: float) -> float:
    return float(2 * first * second / (first + second)) if first + second else 0.0


def answer_flips(answers: np.ndarray) -> np.ndarray:
    """How often each attribute's answer changes from one frame to the next, int64 `(A,)`.

    Args:
        answers: integer `(T, A)` of one person in the order of time; a negative one is no answer and is passed over.
    """
    answers = np.asarray(answers)
    if answers.ndim != 2:
        raise ParValueError(f"answers has shape {answers.shape}, expected (T, A)")
    flips = np.zeros(answers.shape[1], np.int64)
    for place, column in enumerate(answers.T):
        given = column[column >= 0]
        flips[place] = np.sum(given[1:] != given[:-1])
    return flips


def flips_per_minute(
    answers: np.ndarray, persons: Sequence[Hashable], times: Sequence[float], schema: AttributeSchema
) -> dict[str, float | dict[str, float]]:
    """Consistency over time: changes of an answer per minute in which a person is seen.

    A person's attributes do not change while they walk through a picture (their pose does), so what changes is a
    mistake of the model or of the tracker. A model that always answers the same has 0: read it beside the accuracy.

    Args:
        answers: integer `(frames, A)`, class index; a negative one is no answer.
        persons: who is in each frame, hashable.
        times: of each frame in seconds.
        schema: names of the attributes.

    Returns:
        `{"flips_per_minute": mean over attributes, "person_minutes", "attributes": {name: flips per minute}}`.

    Raises:
        ValueError: other lengths, a time that is not finite, or persons who are seen for no time at all.
    """
    answers, times = np.asarray(answers), np.asarray(times, np.float64)
    if answers.shape != (len(times), len(schema)) or len(persons) != len(times):
        raise ParValueError(
            f"answers has shape {answers.shape} for {len(persons)} persons and {len(times)} times, expected "
            f"(frames, {len(schema)}) and as many of both"
        )
    if not np.isfinite(times).all():
        raise ParValueError("times holds a value that is not finite, expected seconds")
    rows_of: dict[Hashable, list[int]] = {}
    for row, person in enumerate(persons):
        rows_of.setdefault(person, []).append(row)
    flips, seconds = np.zeros(len(schema)), 0.0
    for rows in rows_of.values():
        ordered = sorted(rows, key=lambda row: times[row])
        flips += answer_flips(answers[ordered])
        seconds += times[ordered[-1]] - times[ordered[0]]
    if seconds <= 0:
        raise ParValueError("times: nobody is seen at two different times, expected at least one person who is")
    per_minute = flips / (seconds / 60)
    return {
        "flips_per_minute": float(per_minute.mean()),
        "person_minutes": seconds / 60,
        "attributes": dict(zip(schema.names, per_minute.tolist())),
    }
