"""Metrics of how well scores rank people; they need no threshold. NumPy only."""

from collections.abc import Iterable

import numpy as np


__all__ = [
    "ResampledRanking",
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


class ResampledRanking:
    """Area under the ROC curve and average precision of one label over many resamples of the images.

    A resample changes how often an image counts, never the order of the scores: they are sorted once, and each
    resample is a running sum of its counts in that order.

    Args:
        scores: `(N,)`, larger means positive.
        positives: bool `(N,)`, with at least one positive.
        units: int `(N,)`, the column of the counts (see `compute`) that holds each image's.
    """

    def __init__(self, scores: np.ndarray, positives: np.ndarray, units: np.ndarray):
        order = np.argsort(-scores, kind="stable")
        scores, positives, self._columns = scores[order], positives[order], units[order]
        is_new = np.append(True, scores[1:] != scores[:-1])
        self._positives = np.flatnonzero(positives)
        # Everything is counted where a distinct score with a positive ends.
        of_score = np.cumsum(is_new) - 1
        scores_with_positive, first_positive = np.unique(of_score[self._positives], return_index=True)
        self._first = np.flatnonzero(is_new)[scores_with_positive]
        self._last = np.append(np.flatnonzero(is_new)[1:], len(scores))[scores_with_positive] - 1
        self._last_positive = np.append(first_positive[1:], len(self._positives)) - 1
        num_positives = np.diff(self._last_positive, prepend=-1)
        self._tied = np.flatnonzero(self._last - self._first + 1 > num_positives)

    def compute(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`roc_auc` and `average_precision` of R resamples, each float64 `(R,)`; NaN without a positive or a negative.

        Args:
            counts: int32 `(R, images or groups)`, how often each was drawn.
        """
        drawn = np.take(counts, self._columns, axis=1)
        total = np.cumsum(drawn, axis=1, dtype=np.int32)
        true = np.cumsum(np.take(drawn, self._positives, axis=1), axis=1, dtype=np.int32)
        positives, negatives = true[:, -1].astype(np.float64), (total[:, -1] - true[:, -1]).astype(np.float64)
        true, found = np.take(true, self._last_positive, axis=1), np.take(total, self._last, axis=1)  # (R, G)
        hits, false = np.diff(true, axis=1, prepend=0).astype(np.float64), (found - true).astype(np.float64)
        losses = np.einsum("rg,rg->r", hits, false)
        if len(self._tied):  # negatives with the score of a positive count half
            at, first = self._tied, self._first[self._tied]
            before = np.where(first > 0, total[:, first - 1], 0) - np.where(at > 0, true[:, at - 1], 0)
            losses -= np.einsum("rg,rg->r", hits[:, at], false[:, at] - before) / 2
        # Where nothing was drawn so far there is no hit either.
        precisions = np.einsum("rg,rg->r", hits, true / np.maximum(found, 1))
        defined = (positives > 0) & (negatives > 0)
        positives, negatives = np.where(defined, (positives, negatives), 1.0)
        return (
            np.where(defined, 1 - losses / (positives * negatives), np.nan),
            np.where(defined, precisions / positives, np.nan),
        )


def mean_defined(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None if there are no such values."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
