"""Metrics of how well scores rank people; they need no threshold. NumPy only."""

from collections.abc import Iterable

import numpy as np


__all__ = [
    "average_precision",
    "mean_defined",
    "roc_auc",
]


def roc_auc(scores: np.ndarray, positives: np.ndarray) -> float | None:
    """Area under the ROC curve: the chance that a positive outscores a negative, ties counted half.

    Args:
        scores: `(N,)`, larger means positive.
        positives: bool `(N,)`.

    Returns:
        The area; None if there is no positive or no negative.
    """
    positives = np.asarray(positives, dtype=bool)
    P = int(positives.sum())
    N = len(positives) - P
    if P == 0 or N == 0:
        return None
    _, tie, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2  # mean rank, from 1, of each distinct score
    return float((rank[tie][positives].sum() - P * (P + 1) / 2) / (P * N))


def average_precision(scores: np.ndarray, positives: np.ndarray) -> float | None:
    """Average precision: sum over distinct scores, from the top, of (gain in recall) * precision. No interpolation.

    Arguments as in `roc_auc`; None if there is no positive.
    """
    positives = np.asarray(positives, dtype=bool)
    if not positives.any():
        return None
    distinct, tie = np.unique(scores, return_inverse=True)
    true = np.bincount(tie, weights=positives, minlength=len(distinct))[::-1]
    total = np.bincount(tie, minlength=len(distinct))[::-1]
    precision = np.cumsum(true) / np.cumsum(total)
    return float((true * precision).sum() / true.sum())


def mean_defined(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None if there are no such values."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
