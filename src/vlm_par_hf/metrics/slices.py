"""Metrics per slice: how well a model serves the young and the old, people seen from behind, small pictures.

Slices are compared on the same footing. The attribute that divides the people is left out, and so is every label that
does not occur in all slices: a mean over other attributes is another number. A slice of fewer than 30 people is not
shown, and a true-positive rate is over 30 people or more. NumPy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParKeyError, ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema
from vlm_par_hf.utils import shorten

from .counting import LabelCounter, divide, draw_resamples, mean_where
from .ranking import mean_defined, roc_auc


__all__ = ["MIN_PEOPLE", "SIZE_SLICES", "Slicing", "compare_slices", "read_slicings"]

MIN_PEOPLE = 30
SIZE = "size"  # the slicing by the height of pictures
SIZE_SLICES = ("under 64 pixels high", "64 to 127", "128 to 255", "256 and more")
_HEIGHTS = (64, 128, 256)
SLICE_METRICS = ("mA", "plain_accuracy", "instance_f1_harmonic", "auc_macro")


@dataclass(frozen=True, eq=False)
class Slicing:
    """One way to divide the pictures.

    Attributes:
        name: of the attribute or group, or `"size"`.
        slices: names of the slices.
        index: int `(N,)`, the slice of each picture; `UNKNOWN_LABEL` where it is in none.
        attributes: names of the attributes by which it divides.
    """

    name: str
    slices: tuple[str, ...]
    index: np.ndarray
    attributes: tuple[str, ...] = ()


def read_slicings(
    names: Sequence[str], labels: np.ndarray, schema: AttributeSchema, heights: np.ndarray | None = None
) -> list[Slicing]:
    """The slicings that a user names.

    Args:
        names: of attributes, whose labels are the slices; of groups, whose attributes are the slices (a picture is in
            the one that is positive); or `"size"`. Upper and lower case are alike where no other name fits.
        labels: int `(N, A)`, the annotation.
        schema: its label space.
        heights: int `(N,)`, of the pictures in pixels, for `"size"`.

    Raises:
        KeyError: no attribute and no group has this name.
        ValueError: no name, a name twice, or `"size"` without `heights`.
    """
    if not names:
        raise ParValueError("slices is empty, expected names of attributes, of groups, or 'size'")
    choices = {**dict.fromkeys(schema.groups, "group"), SIZE: "size", **dict.fromkeys(schema.names, "attribute")}
    folded = {}
    for name in choices:  # an attribute goes before a group of the same spelling
        folded[name.casefold()] = name
    found = []
    for given in names:
        name = given if given in choices else folded.get(given.casefold())
        if name is None:
            raise ParKeyError(
                f"slices names {shorten(given)}, expected attributes ({', '.join(schema.names)[:400]}), groups "
                f"({', '.join(schema.groups) or 'none'}) or 'size'"
            )
        if name in [one.name for one in found]:
            raise ParValueError(f"slices names {shorten(name)} twice")
        if choices[name] == "attribute":
            position = schema.index(name)
            found.append(Slicing(name, schema[position].labels, labels[:, position], (name,)))
        elif choices[name] == "group":
            members = schema.groups[name]
            attributes = tuple(schema[position].name for position in members)
            positive = labels[:, members] == 1
            index = np.where(positive.sum(1) == 1, positive.argmax(1), UNKNOWN_LABEL)
            found.append(Slicing(name, attributes, index, attributes))
        else:
            if heights is None:
                raise ParValueError("slices names 'size', which needs the heights of the pictures")
            found.append(Slicing(name, SIZE_SLICES, np.searchsorted(_HEIGHTS, heights, side="right")))
    return found


def compare_slices(
    slicing: Slicing,
    predicted: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    schema: AttributeSchema,
    *,
    people: np.ndarray | None = None,
    empty_image: str = "zero",
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    min_people: int = MIN_PEOPLE,
) -> dict[str, Any]:
    """The metrics of each slice, and by how much they differ.

    All slices are resampled together, by people, and a difference is taken within each resample. Which two slices are
    compared is decided on the pictures themselves and is the same in all resamples. With many slices and labels some
    difference is large by chance: its interval is that of one comparison.

    Args:
        slicing: the slices.
        predicted: int `(N, A)`.
        probabilities: `(N, A, C)`.
        labels: int `(N, A)`, -100 = unknown.
        schema: the label space of these.
        people: int `(N,)`, who is in each picture, from 0; None: somebody else in each.
        empty_image: as in `MetricPreset`.
        bootstrap: number of resamples; 0 for no intervals.
        confidence: share of the resamples that an interval holds.
        seed: of the resampling.
        min_people: a slice of fewer people is not shown.

    Returns:
        Plain JSON types: `{"name", "compared": [attributes that all slices have], "all": row, "slices": [row],
        "not_shown": {slice: people}, "unknown": pictures in no slice, "worst": {"slice", "best", "difference",
        "interval"} or None, "gaps": [...]}`. A row holds `slice`, `people`, `images`, `metrics` (those of
        `SLICE_METRICS` over the compared attributes) and `intervals`. `worst` compares the mA of the worst and of the
        best slice. A gap holds `attribute`, `label`, `lowest` and `highest` (`{"slice", "recall", "people"}`),
        `difference` and `interval`: the true-positive rates of a label in the two slices that differ most, largest
        difference first; slices with fewer people of that label than `min_people` do not take part.
    """
    units = np.arange(len(labels)) if people is None else people
    sizes = {number: len(np.unique(units[slicing.index == number])) for number in range(len(slicing.slices))}
    shown = [number for number, size in sizes.items() if size >= min_people]
    result: dict[str, Any] = {
        "name": slicing.name,
        "compared": [],
        "all": None,
        "slices": [],
        "not_shown": {slicing.slices[number]: size for number, size in sizes.items() if 0 < size < min_people},
        "unknown": int((slicing.index == UNKNOWN_LABEL).sum()),
        "worst": None,
        "gaps": [],
    }
    counted = _common_labels(slicing, shown, labels, schema)  # (A, C)
    compared = counted.any(1)
    result["compared"] = [one.name for one, kept in zip(schema, compared) if kept]
    if not shown or not compared.any():
        return result

    counter = LabelCounter(schema, empty_image)
    labels = np.where(compared, labels, UNKNOWN_LABEL)
    statistics = counter.statistics(predicted, labels)
    # One row per person of a slice; the last part is for all pictures.
    parts = [np.flatnonzero(slicing.index == number) for number in shown] + [np.arange(len(labels))]
    columns, sums = [], []
    for rows in parts:
        column, place = np.unique(units[rows], return_inverse=True)
        total = np.zeros((len(column), statistics.shape[1]))
        np.add.at(total, place, statistics[rows])
        columns.append(column)
        sums.append(total)
    names = [*(slicing.slices[number] for number in shown), None]

    def values_of(totals: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics `(R,)` and `recall` `(R, A, C)` from sums of rows `(R, columns)`."""
        counts = counter.unpack(totals)
        recall = np.where(counts.support > 0, divide(counts.true_positive, counts.support), np.nan)
        per_attribute = mean_where(recall, counted & ~np.isnan(recall), axis=-1)
        accuracy, precision, recalled, _ = divide(counts.instance[:, :4], counts.instance[:, 4:]).T
        return {
            "mA": mean_where(per_attribute, ~np.isnan(per_attribute), axis=-1),
            "plain_accuracy": divide(counts.true_positive.sum((1, 2)), counts.support.sum((1, 2))),
            "instance_f1_harmonic": divide(2 * precision * recalled, precision + recalled),
            "recall": recall,
        }

    points = [values_of(total.sum(0, keepdims=True)) for total in sums]
    drawn: list[dict[str, np.ndarray]] = []
    if bootstrap:
        blocks: list[list[np.ndarray]] = [[] for _ in parts]
        for weights in draw_resamples(int(units.max()) + 1, bootstrap, seed):
            for block, column, total in zip(blocks, columns, sums):
                block.append(weights[:, column] @ total)
        drawn = [values_of(np.concatenate(block)) for block in blocks]
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]

    rows = []
    for part, name in enumerate(names):
        at = parts[part]
        metrics = {key: _number(points[part][key][0]) for key in SLICE_METRICS if key in points[part]}
        metrics["auc_macro"] = _mean_auc(probabilities[at], labels[at], counted, schema)
        intervals = {key: _interval(drawn[part][key], tails) for key in metrics if drawn and key in drawn[part]}
        rows.append(
            {
                "slice": name,
                "people": len(columns[part]),
                "images": len(at),
                "metrics": metrics,
                "intervals": intervals,
            }
        )
    *result["slices"], result["all"] = rows
    mA = [one["metrics"]["mA"] for one in result["slices"]]
    if len(shown) > 1:
        low, high = int(np.argmin(mA)), int(np.argmax(mA))
        result["worst"] = {
            "slice": names[low],
            "best": names[high],
            "difference": mA[high] - mA[low],
            "interval": _interval(drawn[high]["mA"] - drawn[low]["mA"], tails) if drawn else None,
        }
        result["gaps"] = _gaps(
            names[:-1], points, drawn, sums, counted & counter.instance_mask, schema, min_people, tails
        )
    return result


def _common_labels(slicing: Slicing, shown: list[int], labels: np.ndarray, schema: AttributeSchema) -> np.ndarray:
    """Bool `(A, C)`: the labels that occur in every shown slice, of attributes with two such labels or more."""
    counted = schema.label_mask().copy()
    for number in shown:
        inside = labels[slicing.index == number]
        counted &= (inside[..., None] == np.arange(schema.max_labels)).any(0)
    counted[[position for position, one in enumerate(schema) if one.name in slicing.attributes]] = False
    return counted & (counted.sum(1, keepdims=True) > 1)


def _gaps(names, points, drawn, sums, labels_compared, schema, min_people, tails) -> list[dict[str, Any]]:
    L = int(schema.label_mask().sum())
    places = np.cumsum(schema.label_mask().ravel()).reshape(labels_compared.shape) - 1
    with_label = [(total[:, L : 2 * L] > 0).sum(0) for total in sums]  # people, per label
    gaps = []
    for a, k in np.argwhere(labels_compared):
        enough = [part for part in range(len(names)) if with_label[part][places[a, k]] >= min_people]
        if len(enough) < 2:
            continue
        low, *_, high = sorted(enough, key=lambda part: points[part]["recall"][0, a, k])
        ends = [
            {
                "slice": names[part],
                "recall": float(points[part]["recall"][0, a, k]),
                "people": int(with_label[part][places[a, k]]),
            }
            for part in (low, high)
        ]
        interval = _interval(drawn[high]["recall"][:, a, k] - drawn[low]["recall"][:, a, k], tails) if drawn else None
        gaps.append(
            {
                "attribute": schema[int(a)].name,
                "label": schema[int(a)].labels[k],
                "lowest": ends[0],
                "highest": ends[1],
                "difference": ends[1]["recall"] - ends[0]["recall"],
                "interval": interval,
            }
        )
    return sorted(gaps, key=lambda gap: -gap["difference"])


def _mean_auc(probabilities, labels, counted, schema) -> float | None:
    areas = []
    for a in np.flatnonzero(counted.any(1)):
        known = labels[:, a] != UNKNOWN_LABEL
        ranked = [1] if schema[int(a)].is_binary else np.flatnonzero(counted[a])
        areas.append(mean_defined(roc_auc(probabilities[known, a, k], labels[known, a] == k) for k in ranked))
    return mean_defined(areas)


def _number(value) -> float | None:
    return None if np.isnan(value) else float(value)


def _interval(values: np.ndarray, tails: list[float]) -> list[float] | None:
    values = values[~np.isnan(values)]
    return [float(value) for value in np.quantile(values, tails)] if values.size else None
