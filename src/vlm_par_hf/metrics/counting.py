"""Counting for the metrics: one row of counts per image, summed over all images or over bootstrap resamples.

Letters: N images, A attributes, C the largest number of labels, R sets of images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema


__all__ = ["Counts", "LabelCounter", "divide", "draw_resamples", "mean_where", "resample"]

# Bootstrap weights are drawn and multiplied in blocks of at most this many numbers (16 MB of float64).
BOOTSTRAP_BLOCK = 2_000_000


def divide(numerator, denominator):
    """numerator / denominator, and 0 where the denominator is 0.

    Published codes get the same result by adding 1e-20 to the denominator.
    """
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def mean_where(values, valid, axis):
    """Mean of the valid entries over `axis`; NaN where no entry is valid."""
    count = valid.sum(axis=axis)
    total = np.where(valid, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass
class Counts:
    """The sums over images from which all metrics are computed, for R sets of images (1, or one per resample).

    Attributes:
        true_positive, support, predicted: `(R, A, C)`, number of images per label: predicted and true, true,
            predicted.
        instance: `(R, 8)`, sums over images of accuracy, precision, recall and F1, then the number of images that each
            of these four sums counts.
    """

    true_positive: np.ndarray
    support: np.ndarray
    predicted: np.ndarray
    instance: np.ndarray


class LabelCounter:
    """Counts right, true and predicted labels.

    Args:
        schema: the label space.
        empty_image: as in `MetricPreset`.

    Attributes:
        label_mask: bool `(A, C)`, True for labels that the attribute has.
        binary: bool `(A,)`.
        instance_mask: bool `(A, C)`, the labels that instance metrics count: "yes" of a binary attribute, every label
            of the others.
    """

    def __init__(self, schema: AttributeSchema, empty_image: str):
        self.empty_image = empty_image
        self.label_mask = np.asarray(schema.label_mask(), dtype=bool)
        self.binary = np.array([attribute.is_binary for attribute in schema])
        self.instance_mask = self.label_mask.copy()
        self.instance_mask[self.binary, 0] = False

    def statistics(self, predicted, labels):
        """One row of numbers per image, float64 `(N, 3 * labels + 8)`; `unpack` turns sums of rows into `Counts`.

        Args:
            predicted: `(N, A)`, the predicted class.
            labels: `(N, A)`, -100 = unknown.
        """
        classes = np.arange(self.label_mask.shape[1])
        known = (labels != UNKNOWN_LABEL)[..., None]
        is_true = labels[..., None] == classes  # (N, A, C); -100 equals no class
        is_predicted = (predicted[..., None] == classes) & known
        both = is_true & is_predicted
        mask = self.label_mask
        per_label = [both[:, mask], is_true[:, mask], is_predicted[:, mask]]
        return np.concatenate([*per_label, *self._instance_values(both, is_true, is_predicted, known)], axis=1)

    def _instance_values(self, both, is_true, is_predicted, known):
        """Accuracy, precision, recall and F1 of each image `(N, 4)`, and which of them count, bool `(N, 4)`."""
        mask = self.instance_mask
        intersection, true, predicted = (array[:, mask].sum(axis=1) for array in (both, is_true, is_predicted))
        denominators = np.stack([true + predicted - intersection, predicted, true, true + predicted], axis=1)
        numerators = np.stack([intersection, intersection, intersection, 2 * intersection], axis=1)
        valid = np.broadcast_to(known.any(axis=(1, 2))[:, None], denominators.shape)
        if self.empty_image == "skip":
            valid = valid & (denominators > 0)
        return divide(numerators, denominators), valid

    def unpack(self, sums):
        """`Counts` from sums of the rows of `statistics`, `(R, 3 * labels + 8)`."""
        L = int(self.label_mask.sum())
        per_label = np.zeros((3, len(sums), *self.label_mask.shape))
        for position in range(3):
            per_label[position][:, self.label_mask] = sums[:, position * L : (position + 1) * L]
        return Counts(*per_label, instance=sums[:, 3 * L :])


def resample(
    statistics: np.ndarray, group_index: np.ndarray | None, bootstrap: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the sums of `statistics` over bootstrap resamples, in blocks `(resamples, 3 * labels + 8)`, and the
    resamples themselves, `(resamples, images or groups)`.

    A resample is a row that says how often each image (or group) was drawn, so the sums of all resamples are one
    matrix product. The result is the same as counting each resample anew.

    Args:
        statistics: `(N, 3 * labels + 8)`, from `LabelCounter.statistics`.
        group_index: int `(N,)`, the group of each image; whole groups are drawn. None: single images are drawn.
        bootstrap: number of resamples.
        seed: of the drawing.
    """
    if group_index is not None:
        summed = np.zeros((int(group_index.max()) + 1, statistics.shape[1]))
        np.add.at(summed, group_index, statistics)
        statistics = summed
    for weights in draw_resamples(len(statistics), bootstrap, seed):
        yield weights @ statistics, weights


def draw_resamples(units: int, bootstrap: int, seed: int) -> Iterator[np.ndarray]:
    """Yields resamples of units with replacement in blocks, float64 `(resamples, units)`: how often each was drawn."""
    generator = np.random.default_rng(seed)
    rows = max(1, BOOTSTRAP_BLOCK // units)
    for start in range(0, bootstrap, rows):
        size = min(rows, bootstrap - start)
        drawn = generator.integers(0, units, size=(size, units))
        drawn += np.arange(size)[:, None] * units
        yield np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)
