"""Metrics of pedestrian attribute recognition, each published convention under its own name. NumPy only.

"F1" in the literature is at least three numbers. Here each has a name (all values lie in 0 to 1, larger is better):

| key | what it is |
|---|---|
| `mA` | mean over attributes of the mean recall over its labels; binary: (recall of yes + recall of no) / 2 |
| `plain_accuracy` | share of known labels whose predicted class is right |
| `instance_accuracy` | mean over images of (predicted and true) / (predicted or true) |
| `instance_precision` | mean over images of (predicted and true) / predicted |
| `instance_recall` | mean over images of (predicted and true) / true |
| `instance_f1_harmonic` | harmonic mean of the two means above: "F1" of Rethinking_of_PAR, RAP, SOLIDER, PaddleClas |
| `instance_f1_mean` | mean over images of each image's F1: "F1" of VTB, PromptPAR, SequencePAR |
| `label_f1_macro` | mean over attributes of the F1 of yes: the formula in VLM-PAR's text |
| `f1_micro` | F1 of yes, counts pooled over attributes and images |
| `f1_weighted` | mean over attributes of the F1 of every label, no as well as yes, weighted by how often it occurs |

`f1_weighted` counts the easy "no" and is close to `plain_accuracy`; never put it beside an instance F1.

Attributes with K > 2 labels, which no published convention covers: the predicted class is the most probable label;
`mA` and `label_f1_macro` take the mean over those of its labels that occur in the ground truth; instance metrics and
`f1_micro` see one column per label. An attribute with two labels is binary: its second label is "yes", predicted when
its probability is greater than (not equal to) the threshold.

Unknown labels (-100) take no part in any count. An image without a known label takes no part in instance metrics, and
an attribute without a known label none in means over attributes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from vlm_par_hf.labels.decisions import decide, read_thresholds
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema, check_label_range

from .ranking import average_precision, mean_defined, roc_auc


__all__ = ["PRESETS", "MetricPreset", "ParMetrics"]

METRIC_NAMES = (
    "mA",
    "plain_accuracy",
    "instance_accuracy",
    "instance_precision",
    "instance_recall",
    "instance_f1_harmonic",
    "instance_f1_mean",
    "label_f1_macro",
    "f1_micro",
    "f1_weighted",
)
INPUTS = ("logits", "probabilities")
# Bootstrap weights are drawn and multiplied in blocks of at most this many numbers (16 MB of float64).
BOOTSTRAP_BLOCK = 2_000_000


@dataclass(frozen=True)
class MetricPreset:
    """One convention.

    Args:
        threshold: a binary attribute is predicted "yes" above it (strictly).
        empty_image: an image without a true (predicted) attribute has recall (precision) 0, and so have accuracy and
            F1 when it has neither (`"zero"`), or it is left out of the mean concerned (`"skip"`).
        absent_label: where a label of a binary attribute never occurs in the ground truth, its recall counts as 0 and
            the attribute's mA is half of the other recall (`"zero"`), or it is the other recall (`"skip"`).
        published_f1: the key that papers with this convention call F1.
    """

    threshold: float = 0.5
    empty_image: str = "zero"
    absent_label: str = "zero"
    published_f1: str = "instance_f1_harmonic"

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold!r}, expected a probability in [0, 1]")
        for name in ("empty_image", "absent_label"):
            if getattr(self, name) not in ("zero", "skip"):
                raise ValueError(f"{name}={getattr(self, name)!r}, expected 'zero' or 'skip'")
        if self.published_f1 not in METRIC_NAMES:
            raise ValueError(f"published_f1={self.published_f1!r}, expected one of {', '.join(METRIC_NAMES)}")


PRESETS = {
    # Jia et al., "Rethinking of Pedestrian Attribute Recognition": also fast-reid, SOLIDER-PAR, PaddleClas.
    "rethinking": MetricPreset(),
    # Li et al., RAP: the MATLAB evaluation published with the data set. A label that never occurs has its zero
    # denominator replaced by 1 there, hence recall 0.
    "rap": MetricPreset(empty_image="skip"),
    # Cheng et al., VTB, and what follows its code: PromptPAR, SequencePAR, LLM-PAR, VTF.
    "vtb": MetricPreset(threshold=0.45, published_f1="instance_f1_mean"),
}


def _divide(numerator, denominator):
    """numerator / denominator, 0 where the denominator is 0 (the published codes add 1e-20 for the same result)."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def _mean_where(values, valid, axis):
    """Mean over `axis` of the valid entries; NaN where none is."""
    count = valid.sum(axis=axis)
    total = np.where(valid, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _to_numpy(array):
    if hasattr(array, "detach"):  # a torch tensor, recognised without importing torch
        array = array.detach().cpu()
        if array.is_floating_point():
            array = array.double()  # NumPy has no bfloat16
    return np.asarray(array)


def _plain(value):
    """A float for JSON: None where undefined."""
    return None if np.isnan(value) else float(value)


@dataclass
class _Counts:
    """What every metric is made of, summed over images; R sets at once (1, or one per bootstrap resample).

    true_positive, support, predicted: (R, A, C), per label. instance: (R, 8), sums of the four values per image of
    `_instance_values` and of their validity.
    """

    true_positive: np.ndarray
    support: np.ndarray
    predicted: np.ndarray
    instance: np.ndarray


class ParMetrics:
    """Metrics over a whole split: `ParMetrics(schema)((logits, labels))` -> flat dict of floats.

    An instance is what `Trainer(compute_metrics=...)` wants; select the best checkpoint by `eval_mA`, greater is
    better, on the validation split.

    Args:
        schema: `AttributeSchema` (or what builds one).
        preset: a key of `PRESETS`, or a `MetricPreset`.
        threshold: of binary attributes: None for the preset's, `"schema"` for each `attribute.threshold`, a number in
            [0, 1] for all, or one number per attribute (those of attributes with more labels are not used).
        inputs: what the first array of a call holds: `"logits"`, or `"probabilities"` (as ensembles and other
            projects save them), which are compared with the threshold as they are.

    The first array is `(N, A, C)`, entries past an attribute's own number of labels ignored; where every attribute is
    binary it may be `(N, A)`: the probability of yes, or its logit z, which stands for the pair (0, z).
    The second is integer `(N, A)`: class index, -100 = unknown.

    Example:

    ```python
    >>> import numpy as np
    >>> from vlm_par_hf import AttributeSchema, ParMetrics
    >>> prompts = ["a photo of a person without a hat", "a photo of a person wearing a hat"]
    >>> schema = AttributeSchema([{"name": "Hat", "question": "is the person wearing a hat?", "prompts": prompts}])
    >>> probabilities, labels = np.array([[0.9], [0.2], [0.6]]), np.array([[1], [0], [0]])
    >>> ParMetrics(schema, inputs="probabilities")((probabilities, labels))["mA"]
    0.75
    ```
    """

    primary_metric = "mA"
    greater_is_better = True

    def __init__(
        self,
        schema: AttributeSchema,
        preset: str | MetricPreset = "rethinking",
        threshold: float | str | Sequence[float] | None = None,
        *,
        inputs: str = "logits",
    ):
        self.schema = schema if isinstance(schema, AttributeSchema) else AttributeSchema(schema)
        if isinstance(preset, MetricPreset):
            self.preset, self.preset_name = preset, "custom"
        elif isinstance(preset, str) and preset in PRESETS:
            self.preset, self.preset_name = PRESETS[preset], preset
        else:
            raise ValueError(f"preset={preset!r}, expected one of {', '.join(PRESETS)} or a MetricPreset")
        if inputs not in INPUTS:
            raise ValueError(f"inputs={inputs!r}, expected one of {', '.join(map(repr, INPUTS))}")
        self.inputs = inputs
        # (A,)
        self.thresholds = read_thresholds(self.schema, self.preset.threshold if threshold is None else threshold)
        self._label_mask = np.asarray(self.schema.label_mask(), dtype=bool)  # (A, C)
        self._binary = np.array([attribute.is_binary for attribute in self.schema])  # (A,)
        # Columns of instance metrics: the yes of a binary attribute, every label of the others.
        self._instance_mask = self._label_mask.copy()
        self._instance_mask[self._binary, 0] = False

    def __call__(self, eval_prediction) -> dict[str, float]:
        """The ten metrics of the module's table.

        Args:
            eval_prediction: `(logits, labels)`, or transformers' `EvalPrediction`; where predictions are a tuple, its
                first entry counts.

        Raises:
            ValueError: wrong shapes, no image, a score that is not finite (or no probability), a label out of range,
                no known label at all. The attribute is named.
        """
        scores, labels = self._read(eval_prediction)
        _, predicted = self._predict(scores)
        statistics = self._statistics(predicted, labels)
        counts = self._unpack(statistics.sum(axis=0, keepdims=True))
        return {name: float(values[0]) for name, values in self._compute(counts).items()}

    def report(
        self,
        eval_prediction,
        *,
        bootstrap: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
        groups: Iterable | None = None,
        min_positives: int | None = None,
    ) -> dict:
        """Metrics with bootstrap intervals and a table per attribute, JSON-plain (None where undefined).

        Args:
            eval_prediction: as in a call.
            bootstrap: number of resamples of the images, with replacement; 0 for no intervals.
            confidence: the intervals hold this share of the resamples (percentile method).
            seed: of the resampling.
            groups: one hashable per image, such as `person_id`: whole groups are resampled, because images of one
                person are not independent and intervals over images would be too narrow.
            min_positives: adds `mA_min_positives`, the mean over the attributes with at least so many positives. Of
                an attribute with more than two labels, the labels that occur so often count.

        Returns:
            `{"convention", "num_images", "num_groups", "bootstrap", "confidence", "seed", "metrics": {key: value},
            "intervals": {key: [low, high]}, "attributes": [row per attribute]}`, and with `min_positives`
            `"min_positives": {"value", "attributes": [names that count]}`. A row holds `name`, `threshold` (binary),
            `known`, `labels` ({label: support, predicted, recall, precision, f1}), `accuracy`, `mA` and
            `mA_interval`, `auc`, `average_precision` (more than two labels: mean of one against the rest), and for
            binary attributes, about yes: `positives`, `recall`, `precision`, `f1`, `jaccard`, `true_positives`,
            `false_positives`, `false_negatives`.

        An interval says how far the number would move with other test images, not with other training runs.

        Raises:
            ValueError: as a call, or settings out of range.
        """
        if isinstance(bootstrap, bool) or int(bootstrap) != bootstrap or bootstrap < 0:
            raise ValueError(f"bootstrap={bootstrap!r}, expected a number of resamples >= 0")
        if not 0 < confidence < 1:
            raise ValueError(f"confidence={confidence!r}, expected a share between 0 and 1")
        if min_positives is not None and min_positives < 1:
            raise ValueError(f"min_positives={min_positives!r}, expected a number >= 1")
        scores, labels = self._read(eval_prediction)
        probabilities, predicted = self._predict(scores)
        statistics = self._statistics(predicted, labels)
        group_index = self._read_groups(groups, len(labels))

        counts = self._unpack(statistics.sum(axis=0, keepdims=True))
        enough = None if min_positives is None else self._enough(counts.support[0], min_positives)
        metrics = self._compute(counts, enough)
        report = {
            "convention": {"name": self.preset_name, **asdict(self.preset)},
            "num_images": len(labels),
            "num_groups": None if group_index is None else int(group_index.max()) + 1,
            "bootstrap": int(bootstrap),
            "confidence": confidence,
            "seed": seed,
            "metrics": {name: _plain(values[0]) for name, values in metrics.items()},
            "intervals": {},
            "attributes": self._attribute_rows(counts, probabilities, labels),
        }
        if min_positives is not None:
            names = [attribute.name for attribute, row in zip(self.schema, enough) if row.any()]
            report["min_positives"] = {"value": int(min_positives), "attributes": names}
        if bootstrap:
            tails = [(1 - confidence) / 2, (1 + confidence) / 2]
            resampled, attribute_mA = [], []
            for block in self._resample(statistics, group_index, int(bootstrap), seed):
                counts = self._unpack(block)
                resampled.append(self._compute(counts, enough))
                attribute_mA.append(self._attribute_mA(counts))
            for name in metrics:
                values = np.concatenate([block[name] for block in resampled])
                report["intervals"][name] = _percentiles(values, tails)
            for row, values in zip(report["attributes"], np.concatenate(attribute_mA).T):
                row["mA_interval"] = _percentiles(values, tails)
        return report

    # Reading and checking

    def _read(self, eval_prediction):
        if hasattr(eval_prediction, "predictions"):
            scores, labels = eval_prediction.predictions, eval_prediction.label_ids
        else:
            scores, labels = eval_prediction
        if isinstance(scores, tuple):  # the other outputs of the model come after the logits
            scores = scores[0]
        if labels is None:
            raise ValueError("labels is None, expected integers (N, A): the data set has no labels to compare with")
        scores = self._check_scores(_to_numpy(scores))
        return scores, self._check_labels(_to_numpy(labels), len(scores))

    def _check_scores(self, scores):
        """(N, A, C) float64 with finite values on every label; C as the schema has it."""
        A, C = self._label_mask.shape
        if scores.ndim == 2 and self._binary.all() and scores.shape[1] == A:
            yes = scores.astype(np.float64)
            # A bad value is reported once, as that of yes.
            no = 1 - np.clip(np.nan_to_num(yes), 0, 1) if self.inputs == "probabilities" else np.zeros_like(yes)
            scores = np.stack([no, yes], axis=-1)
        if scores.ndim != 3 or scores.shape[1:] != (A, C):
            raise ValueError(f"{self.inputs} has shape {scores.shape}, expected (N, {A}, {C}) for this schema")
        if len(scores) == 0:
            raise ValueError(f"{self.inputs} has shape {scores.shape}, expected at least one image")
        scores = scores.astype(np.float64)
        wrong = ~np.isfinite(scores) & self._label_mask
        wanted = "finite numbers"
        if self.inputs == "probabilities":
            wrong |= ((scores < 0) | (scores > 1)) & self._label_mask
            wanted = "probabilities in [0, 1]"
        if wrong.any():
            image, column, label = np.argwhere(wrong)[0]
            raise ValueError(
                f"{self.inputs} holds {scores[image, column, label]} for attribute {self.schema[int(column)].name!r} "
                f"of image {image}, expected {wanted} ({int(wrong.sum())} such values)"
            )
        return scores

    def _check_labels(self, labels, N):
        """(N, A) int64 within range."""
        A = len(self.schema)
        if labels.shape != (N, A):
            raise ValueError(f"labels has shape {labels.shape}, expected {(N, A)}")
        if labels.dtype.kind not in "iub" and not (labels.dtype.kind == "f" and (labels == np.rint(labels)).all()):
            raise ValueError(f"labels has dtype {labels.dtype}, expected integers (class index, -100 = unknown)")
        labels = labels.astype(np.int64)
        check_label_range(labels, self.schema)
        if (labels == UNKNOWN_LABEL).all():
            raise ValueError(f"labels holds only {UNKNOWN_LABEL} (unknown), expected at least one known label")
        return labels

    def _read_groups(self, groups, N):
        """Index of each image's group, (N,) from 0; None without groups."""
        if groups is None:
            return None
        groups = list(groups)
        if len(groups) != N:
            raise ValueError(f"groups has {len(groups)} entries, expected {N}: one per image")
        if any(group is None for group in groups):
            raise ValueError("groups holds None, expected a group for every image")
        index = {}
        return np.array([index.setdefault(group, len(index)) for group in groups])

    # From scores to counts

    def _predict(self, scores):
        """Probabilities (N, A, C), 0 past an attribute's own labels, and the predicted class (N, A)."""
        if self.inputs == "probabilities":
            probabilities = np.where(self._label_mask, scores, 0.0)
        else:
            scores = np.where(self._label_mask, scores, -np.inf)
            exponents = np.exp(scores - scores.max(axis=-1, keepdims=True))
            probabilities = exponents / exponents.sum(axis=-1, keepdims=True)
        return probabilities, decide(probabilities, self.schema, self.thresholds)

    def _statistics(self, predicted, labels):
        """One row per image whose sum over images `_unpack` turns into `_Counts`: (N, 3 * labels + 8) float64."""
        classes = np.arange(self._label_mask.shape[1])
        known = (labels != UNKNOWN_LABEL)[..., None]
        is_true = labels[..., None] == classes  # (N, A, C); -100 equals no class
        is_predicted = (predicted[..., None] == classes) & known
        both = is_true & is_predicted
        mask = self._label_mask
        per_label = [both[:, mask], is_true[:, mask], is_predicted[:, mask]]
        return np.concatenate([*per_label, *self._instance_values(both, is_true, is_predicted, known)], axis=1)

    def _instance_values(self, both, is_true, is_predicted, known):
        """Accuracy, precision, recall and F1 of each image (N, 4), 0 where not valid, and whether valid (N, 4)."""
        mask = self._instance_mask
        intersection, true, predicted = (array[:, mask].sum(axis=1) for array in (both, is_true, is_predicted))
        denominators = np.stack([true + predicted - intersection, predicted, true, true + predicted], axis=1)
        numerators = np.stack([intersection, intersection, intersection, 2 * intersection], axis=1)
        valid = np.broadcast_to(known.any(axis=(1, 2))[:, None], denominators.shape)
        if self.preset.empty_image == "skip":
            valid = valid & (denominators > 0)
        return _divide(numerators, denominators), valid

    def _unpack(self, sums):
        """Sums of `_statistics` rows (R, 3 * labels + 8) as `_Counts`."""
        L = int(self._label_mask.sum())
        per_label = np.zeros((3, len(sums), *self._label_mask.shape))
        for position in range(3):
            per_label[position][:, self._label_mask] = sums[:, position * L : (position + 1) * L]
        return _Counts(*per_label, instance=sums[:, 3 * L :])

    def _resample(self, statistics, group_index, bootstrap, seed):
        """Sums of statistics over each resample, in blocks (rows, 3 * labels + 8).

        A resample is a row of multiplicities, so all resamples are one matrix product, exact as recomputing each.
        """
        if group_index is not None:
            summed = np.zeros((int(group_index.max()) + 1, statistics.shape[1]))
            np.add.at(summed, group_index, statistics)
            statistics = summed
        generator = np.random.default_rng(seed)
        units = len(statistics)
        rows = max(1, BOOTSTRAP_BLOCK // units)
        for start in range(0, bootstrap, rows):
            size = min(rows, bootstrap - start)
            drawn = generator.integers(0, units, size=(size, units))
            drawn += np.arange(size)[:, None] * units
            weights = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units)
            yield weights.astype(np.float64) @ statistics

    # From counts to metrics

    def _counted_labels(self, support):
        """Which labels' recalls enter mA: (R, A, C) bool."""
        counted = support > 0
        if self.preset.absent_label == "zero":
            # Only binary attributes have a published convention; it keeps the absent label, with recall 0.
            counted = counted | (self._binary[:, None] & self._label_mask & counted.any(axis=-1, keepdims=True))
        return counted

    def _enough(self, support, min_positives):
        """Labels (A, C) that count for `mA_min_positives`."""
        enough = support >= min_positives
        enough[self._binary] = enough[self._binary, 1:2]
        # The mean recall of a single label would reward predicting nothing else.
        return enough & (enough.sum(axis=-1, keepdims=True) > 1) & self._label_mask

    def _attribute_mA(self, counts, enough=None):
        """mA of each attribute, (R, A); NaN where it has no known label."""
        counted = self._counted_labels(counts.support)
        if enough is not None:
            counted = counted & enough
        return _mean_where(_divide(counts.true_positive, counts.support), counted, axis=-1)

    def _compute(self, counts, enough=None):
        """Every metric as (R,)."""
        tp, support, predicted = counts.true_positive, counts.support, counts.predicted
        mA = self._attribute_mA(counts)  # (R, A)
        f1 = _divide(2 * tp, support + predicted)  # (R, A, C)
        known = support.sum(axis=-1)  # (R, A)

        # F1 of an attribute: that of yes, or the mean over the labels that occur.
        f1_counted = np.where(self._binary[:, None], self._instance_mask & (known > 0)[..., None], support > 0)
        label_f1 = _mean_where(f1, f1_counted, axis=-1)
        weighted_f1 = _divide((f1 * support).sum(axis=-1), known)
        pooled_tp, pooled_support, pooled_predicted = (
            np.where(self._instance_mask, array, 0.0).sum(axis=(1, 2)) for array in (tp, support, predicted)
        )
        # A mean over no image is 0: a model that predicts nothing has no precision to speak of.
        accuracy, precision, recall, instance_f1 = _divide(counts.instance[:, :4], counts.instance[:, 4:]).T
        metrics = {
            "mA": _mean_where(mA, ~np.isnan(mA), axis=-1),
            "plain_accuracy": _divide(tp.sum(axis=(1, 2)), known.sum(axis=-1)),
            "instance_accuracy": accuracy,
            "instance_precision": precision,
            "instance_recall": recall,
            "instance_f1_harmonic": _divide(2 * precision * recall, precision + recall),
            "instance_f1_mean": instance_f1,
            "label_f1_macro": _mean_where(label_f1, ~np.isnan(label_f1), axis=-1),
            "f1_micro": _divide(2 * pooled_tp, pooled_support + pooled_predicted),
            "f1_weighted": _mean_where(weighted_f1, known > 0, axis=-1),
        }
        if enough is not None:
            restricted = self._attribute_mA(counts, enough)
            metrics["mA_min_positives"] = _mean_where(restricted, ~np.isnan(restricted), axis=-1)
        return metrics

    def _attribute_rows(self, counts, probabilities, labels):
        tp, support, predicted = counts.true_positive[0], counts.support[0], counts.predicted[0]  # (A, C)
        recall, precision = _divide(tp, support), _divide(tp, predicted)
        f1 = _divide(2 * tp, support + predicted)
        mA = self._attribute_mA(counts)[0]
        rows = []
        for a, attribute in enumerate(self.schema):
            known = labels[:, a] != UNKNOWN_LABEL
            row = {"name": attribute.name, "known": int(known.sum())}
            row["labels"] = {
                label: {
                    "support": int(support[a, k]),
                    "predicted": int(predicted[a, k]),
                    "recall": float(recall[a, k]) if support[a, k] else None,
                    "precision": float(precision[a, k]) if predicted[a, k] else None,
                    "f1": float(f1[a, k]) if support[a, k] + predicted[a, k] else None,
                }
                for k, label in enumerate(attribute.labels)
            }
            row["accuracy"] = float(tp[a].sum() / known.sum()) if known.any() else None
            row["mA"] = _plain(mA[a])
            ranked = [1] if attribute.is_binary else range(attribute.num_labels)
            scores, truth = probabilities[known, a], labels[known, a]
            row["auc"] = mean_defined(roc_auc(scores[:, k], truth == k) for k in ranked)
            row["average_precision"] = mean_defined(average_precision(scores[:, k], truth == k) for k in ranked)
            if attribute.is_binary:
                positives, hits, found = int(support[a, 1]), int(tp[a, 1]), int(predicted[a, 1])
                row |= {
                    "threshold": float(self.thresholds[a]),
                    "positives": positives,
                    "true_positives": hits,
                    "false_positives": found - hits,
                    "false_negatives": positives - hits,
                    "recall": float(recall[a, 1]),
                    "precision": float(precision[a, 1]),
                    "f1": float(f1[a, 1]),
                    "jaccard": float(_divide(hits, positives + found - hits)),
                }
            rows.append(row)
        return rows


def _percentiles(values, tails):
    """[low, high] of the resamples where the metric is defined; None where it never is."""
    values = values[~np.isnan(values)]
    return [float(value) for value in np.quantile(values, tails)] if values.size else None
