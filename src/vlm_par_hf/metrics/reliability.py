"""Whether probabilities can be believed, and what answering only where it is sure is worth. NumPy only.

Letters: N answers or pictures, A attributes, C the largest number of labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema


__all__ = [
    "area_under_risk_coverage",
    "brier_score",
    "calibration_error",
    "label_columns",
    "reliability_bins",
    "risk_coverage",
    "selective_report",
    "set_coverage",
]


def label_columns(probabilities: np.ndarray, labels: np.ndarray, schema: AttributeSchema) -> tuple[np.ndarray, ...]:
    """What a model claims, and what is true: one column per binary attribute (yes), one per label of the others.

    Args:
        probabilities: `(N, A, C)`.
        labels: int `(N, A)`, -100 = unknown; these are left out.
        schema: the label space.

    Returns:
        Claimed probabilities float64 `(M,)` and truth bool `(M,)`, of all columns one after another.
    """
    claimed, truth = [], []
    for a, attribute in enumerate(schema):
        known = labels[:, a] != UNKNOWN_LABEL
        for k in [1] if attribute.is_binary else range(attribute.num_labels):
            claimed.append(probabilities[known, a, k])
            truth.append(labels[known, a] == k)
    return np.concatenate(claimed).astype(np.float64), np.concatenate(truth)


def reliability_bins(claimed: np.ndarray, truth: np.ndarray, bins: int = 15) -> list[dict[str, float]]:
    """Bins of equally many answers, by what was claimed.

    Args:
        claimed: `(N,)`, probabilities.
        truth: bool `(N,)`.
        bins: at most so many; fewer where there are fewer answers.

    Returns:
        Per bin, from the lowest claim on: `claimed` and `true`, the means, and `count`.

    Raises:
        ValueError: no answer, different lengths, a claim outside [0, 1], or `bins` below 1.
    """
    claimed, truth = _check(claimed, truth)
    if np.isnan(claimed).any() or claimed.min() < 0 or claimed.max() > 1:
        raise ParValueError("claimed holds a value that is no probability, expected numbers in [0, 1]")
    if bins < 1:
        raise ParValueError(f"bins={bins!r}, expected a number >= 1")
    order = np.argsort(claimed, kind="stable")
    return [
        {"claimed": float(claimed[part].mean()), "true": float(truth[part].mean()), "count": len(part)}
        for part in np.array_split(order, min(bins, len(order)))
    ]


def calibration_error(claimed: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: mean distance between claim and truth over `reliability_bins`. 0 is best.

    With few answers a bin's truth is off its probability by chance: below some 5,000 the error of a perfect model is
    visibly above 0.
    """
    found = reliability_bins(claimed, truth, bins)
    total = sum(one["count"] for one in found)
    return sum(one["count"] * abs(one["claimed"] - one["true"]) for one in found) / total


def brier_score(claimed: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared distance between claim and truth; 0 is best."""
    claimed, truth = _check(claimed, truth)
    return float(np.mean((claimed - truth) ** 2))


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of wrong answers if only the surest ones are given.

    Args:
        confidence: `(N,)`, larger is surer, such as the probability of the answer.
        right: bool `(N,)`.

    Returns:
        Coverage, float64 `(D,)`, the share of pictures answered, rising to 1, and risk `(D,)`, the share of wrong ones
        among these; one point per distinct confidence.

    Raises:
        ValueError: no answer, or different lengths.
    """
    confidence, right = _check(confidence, right, "confidence", "right")
    order = np.argsort(-confidence, kind="stable")
    wrong, confidence = np.cumsum(~right[order]), confidence[order]
    last = np.append(np.flatnonzero(confidence[1:] != confidence[:-1]), len(order) - 1)  # equal ones come together
    return (last + 1) / len(order), wrong[last] / (last + 1)


def area_under_risk_coverage(confidence: np.ndarray, right: np.ndarray) -> float:
    """Mean risk over all coverages (AURC; Geifman and El-Yaniv, 2017): 0 is best, and an order of the answers that
    says nothing gives the error rate. Answers of equal confidence are drawn in a random order, in the mean."""
    confidence, right = _check(confidence, right, "confidence", "right")
    order = np.argsort(-confidence, kind="stable")
    wrong, confidence = (~right[order]).astype(np.float64), confidence[order]
    _, tie = np.unique(-confidence, return_inverse=True)
    wrong = (np.bincount(tie, weights=wrong) / np.bincount(tie))[tie]
    return float(np.mean(np.cumsum(wrong) / np.arange(1, len(wrong) + 1)))


def selective_report(
    probabilities: np.ndarray, answers: np.ndarray, labels: np.ndarray, schema: AttributeSchema, points: int = 20
) -> dict[str, Any]:
    """What answering only where it is sure is worth; an answer is as sure as it is probable.

    Args:
        probabilities: `(N, A, C)`.
        answers: int `(N, A)`.
        labels: int `(N, A)`, -100 = unknown; these are left out.
        schema: the label space.
        points: of the curve.

    Returns:
        `aurc` and `error` (share of wrong answers if all are given), means over attributes with a known label;
        `curve`, pairs of coverage and risk, the risk a mean over attributes too; `attributes`, rows of `name`,
        `known`, `error` and `aurc` (None where nothing is known).

    Raises:
        ValueError: no label is known.
    """
    grid = np.arange(1, points + 1) / points
    rows, curves = [], []
    for a, one in enumerate(schema):
        known = labels[:, a] != UNKNOWN_LABEL
        row: dict[str, Any] = {"name": one.name, "known": int(known.sum()), "error": None, "aurc": None}
        if known.any():
            sure = np.take_along_axis(probabilities[known, a], answers[known, a, None], -1)[:, 0]
            right = answers[known, a] == labels[known, a]
            coverage, risk = risk_coverage(sure, right)
            row |= {"error": float(np.mean(~right)), "aurc": area_under_risk_coverage(sure, right)}
            curves.append(risk[np.searchsorted(coverage, grid - 1e-12).clip(max=len(risk) - 1)])
        rows.append(row)
    if not curves:
        raise ParValueError("labels hold no known label, expected some of at least one attribute")
    means = {key: float(np.mean([one[key] for one in rows if one[key] is not None])) for key in ("aurc", "error")}
    curve = [[float(x), float(y)] for x, y in zip(grid, np.mean(curves, axis=0))]
    return {**means, "curve": curve, "attributes": rows}


def set_coverage(sets: np.ndarray, labels: np.ndarray, schema: AttributeSchema) -> list[dict[str, float | None]]:
    """How often sets of answers hold the right one.

    Args:
        sets: bool `(N, A, C)` (`Decisions.answer_sets`).
        labels: int `(N, A)`, -100 = unknown; these are left out.
        schema: the label space.

    Returns:
        Per attribute `coverage`, `single` (share of sets with one label), `size` (mean number of labels), `known`
        (number of pictures), and `by_label`, the coverage of each label; None where nothing is known.
    """
    rows = []
    for a, attribute in enumerate(schema):
        known = labels[:, a] != UNKNOWN_LABEL
        truth, own = labels[known, a], sets[known, a, : attribute.num_labels]
        held = own[np.arange(len(own)), truth]
        size = own.sum(-1)

        def mean(values: np.ndarray) -> float | None:
            return float(values.mean()) if len(values) else None

        rows.append(
            {
                "coverage": mean(held),
                "single": mean(size == 1),
                "size": mean(size),
                "known": int(known.sum()),
                "by_label": [mean(held[truth == k]) for k in range(attribute.num_labels)],
            }
        )
    return rows


def _check(values: Sequence, truth: Sequence, *names: str) -> tuple[np.ndarray, np.ndarray]:
    first, second = names or ("claimed", "truth")
    values, truth = np.asarray(values, dtype=np.float64), np.asarray(truth, dtype=bool)
    if values.ndim != 1 or values.shape != truth.shape or not len(values):
        raise ParValueError(
            f"{first} has shape {values.shape} and {second} {truth.shape}, expected (N,) each, N at least 1"
        )
    return values, truth
