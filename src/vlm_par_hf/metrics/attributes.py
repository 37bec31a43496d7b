"""Metrics of pedestrian attribute recognition, each published convention under its own name. NumPy only.

At least three different numbers are called "F1" in the literature. Here each has its own name. All values lie in 0 to
1, and larger is better:

| key | what it is |
|---|---|
| `mA` | mean over attributes of the mean recall over its labels; binary: (recall of yes + recall of no) / 2 |
| `plain_accuracy` | share of known labels whose predicted class is right |
| `accuracy_macro` | mean over attributes of the share of its known labels whose predicted class is right: MIVIA's |
| `instance_accuracy` | mean over images of (predicted and true) / (predicted or true) |
| `instance_precision` | mean over images of (predicted and true) / predicted |
| `instance_recall` | mean over images of (predicted and true) / true |
| `instance_f1_harmonic` | harmonic mean of the two means above: "F1" of Rethinking_of_PAR, RAP, SOLIDER, PaddleClas |
| `instance_f1_mean` | mean over images of each image's F1: "F1" of VTB, PromptPAR, SequencePAR |
| `label_f1_macro` | mean over attributes of the F1 of yes: the formula in VLM-PAR's text |
| `f1_micro` | F1 of yes, counts pooled over attributes and images |
| `f1_weighted` | mean over attributes of the F1 of every label, no as well as yes, weighted by how often it occurs |
| `auc_macro` | mean over attributes of the area under the ROC curve of yes, without a threshold; chance is 0.5 |
| `average_precision_macro` | mean over attributes of the average precision of yes; chance is how often it occurs |

`f1_weighted` counts the easy "no" too and is close to `plain_accuracy`; do not compare it with an instance F1.

`plain_accuracy` weighs attributes by how many of their labels are known, `accuracy_macro` all of them equally.

An attribute with two labels is binary: its second label is "yes", and is predicted if its probability is greater than
(not equal to) the threshold. No published convention covers attributes with K > 2 labels. For these, the predicted
class is the most probable label; `mA` and `label_f1_macro` take the mean over those labels of the attribute that occur
in the ground truth; instance metrics and `f1_micro` count each label as one column.

`auc_macro` and `average_precision_macro` need no threshold. Of K > 2 labels each that occurs is ranked against the
rest; their mean is that of the attribute. Equal scores count half in the area and are one step of the precision, which
is not interpolated: the numbers are those of `roc_auc_score` and `average_precision_score` of scikit-learn.

Unknown labels (-100) are not counted anywhere. An image without a known label is left out of instance metrics, and an
attribute without a known label is left out of means over attributes. Where all known labels of an attribute are equal,
nothing can be ranked: it is left out of `auc_macro` and `average_precision_macro`, and a report names it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.consistency import consistent, count_violations
from vlm_par_hf.labels.decisions import Decisions, decide, read_thresholds
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema, check_label_range
from vlm_par_hf.utils import shorten

from .counting import LabelCounter, divide, mean_where, resample
from .presets import METRIC_NAMES, PRESETS, MetricPreset
from .ranking import ResampledRanking, average_precision, mean_defined, roc_auc
from .slices import MIN_PEOPLE, Slicing, compare_slices


__all__ = ["METRIC_NAMES", "PRESETS", "MetricPreset", "ParMetrics", "one_array"]

INPUTS = ("logits", "probabilities")
_RESAMPLES_AT_ONCE = 32  # of rankings: their counts stay in the processor's cache


def one_array(name: str, value, ndim: int) -> np.ndarray:
    """One array of what a caller or `Trainer` hands over.

    Args:
        name: for messages.
        value: an array, a tensor or nested lists; an output of a model, whose `logits` are taken; a tuple, whose first
            entry is; a list of batches, which are joined.
        ndim: the number of dimensions of a batch.

    Raises:
        ValueError: it is nothing of that kind.
    """
    if isinstance(value, tuple) and value:
        if len(value) > 1 and np.ndim(value[0]) == 0 and not isinstance(value[0], Mapping):
            raise ParValueError(
                f"{name} is a tuple of {len(value)} entries that starts with a number, such as a loss, expected the "
                "array first: compute_metrics gets what the model returned, without its loss"
            )
        value = value[0]
    if isinstance(value, Mapping):
        if value.get("logits") is None:
            raise ParValueError(f"{name} is a {type(value).__name__} of {sorted(value)}, expected one with 'logits'")
        value = value["logits"]
    if isinstance(value, list) and value and all(getattr(one, "ndim", None) == ndim for one in value):
        shapes = {tuple(one.shape[1:]) for one in value}
        if len(shapes) > 1:
            raise ParValueError(f"{name} is a list of batches of rows of other shapes each, {shorten(sorted(shapes))}")
        return np.concatenate([_to_numpy(one) for one in value])
    try:
        return _to_numpy(value)
    except ValueError:  # lists of different lengths
        raise ParValueError(
            f"{name} is a {type(value).__name__} of {len(value)} entries of different shapes, expected one array, or "
            f"batches of {ndim} dimensions"
        ) from None


def _to_numpy(array):
    if hasattr(array, "detach"):  # a torch tensor, recognised without importing torch
        array = array.detach().cpu()
        if array.is_floating_point():
            array = array.double()  # NumPy has no bfloat16
    if isinstance(array, list):
        array = [_to_numpy(one) if hasattr(one, "detach") else one for one in array]
    return np.asarray(array)


def _json_float(value):
    """A float for JSON: None where undefined."""
    return None if np.isnan(value) else float(value)


class ParMetrics:
    """Metrics over a whole split: `ParMetrics(schema)((logits, labels))` -> flat dict of floats.

    An instance can be passed to `Trainer(compute_metrics=...)`. Select the best checkpoint by `eval_mA` (greater is
    better) on the validation split.

    Args:
        schema: `AttributeSchema`, or what its constructor takes.
        preset: a key of `PRESETS`, or a `MetricPreset`.
        threshold: of binary attributes: None for the preset's, `"schema"` for each `attribute.threshold`, a number in
            [0, 1] for all, or one number per attribute (those of attributes with more labels are not used).
        inputs: what the first array of a call holds: `"logits"`, or `"probabilities"` (as ensembles and other
            projects save them), which are compared with the threshold without a softmax.
        decisions: `model.config.decisions`, whose biases decide between the labels of attributes with more than two;
            None: the most probable label is predicted.

    The first array is `(N, A, C)`; entries past an attribute's own number of labels are ignored. If every attribute is
    binary, it may be `(N, A)`: the probability of yes, or its logit z, which stands for the pair (0, z).
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

    greater_is_better = True

    def __init__(
        self,
        schema: AttributeSchema,
        preset: str | MetricPreset = "rethinking",
        threshold: float | str | Sequence[float] | None = None,
        *,
        inputs: str = "logits",
        decisions: Decisions | Mapping | None = None,
    ):
        self.schema = schema if isinstance(schema, AttributeSchema) else AttributeSchema(schema)
        if isinstance(preset, MetricPreset):
            self.preset, self.preset_name = preset, "custom"
        elif isinstance(preset, str) and preset in PRESETS:
            self.preset, self.preset_name = PRESETS[preset], preset
        else:
            raise ParValueError(f"preset={preset!r}, expected one of {', '.join(PRESETS)} or a MetricPreset")
        self.primary_metric = self.preset.ranked_by
        if inputs not in INPUTS:
            raise ParValueError(f"inputs={inputs!r}, expected one of {', '.join(map(repr, INPUTS))}")
        self.inputs = inputs
        # (A,)
        self.thresholds = read_thresholds(self.schema, self.preset.threshold if threshold is None else threshold)
        if decisions is not None and not isinstance(decisions, Decisions):
            decisions = Decisions.from_dict(decisions)
        self._biases = None if decisions is None else decisions.bias_table(self.schema)
        self._counter = LabelCounter(self.schema, self.preset.empty_image)
        self._label_mask = self._counter.label_mask  # (A, C)
        self._binary = self._counter.binary  # (A,)
        self._batches: list[tuple] = []  # of `Trainer` with `batch_eval_metrics`

    def __call__(self, eval_prediction, compute_result: bool | None = None) -> dict[str, float]:
        """The metrics of the module's table, without the last two if no attribute has two labels that occur.

        Args:
            eval_prediction: `(logits, labels)`, or transformers' `EvalPrediction`. Each may be an array, a tensor,
                nested lists or a list of batches; the logits also an output of a model, or a tuple that starts with
                them.
            compute_result: given by `Trainer` with `batch_eval_metrics=True`, which calls for each batch: False keeps
                the batch and answers with nothing, True answers for all batches that were kept and this one.

        Raises:
            ValueError: wrong shapes, no image, a score that is not finite (or no probability), a label out of range,
                or no known label at all. The message names the attribute.
        """
        scores, labels = self._read(eval_prediction)
        if compute_result is not None:
            self._batches.append((scores, labels))
            if not compute_result:
                return {}
            scores, labels = (np.concatenate(arrays) for arrays in zip(*self._batches))
            self._batches.clear()
        probabilities, predicted = self._predict(scores)
        statistics = self._counter.statistics(predicted, labels)
        counts = self._counter.unpack(statistics.sum(axis=0, keepdims=True))
        ranking = self._rank(probabilities, labels)
        # A number that is not there is in no log, where NaN would end up as what is no JSON.
        metrics = self._compute(counts, ranking)
        return {name: float(values[0]) for name, values in metrics.items() if not np.isnan(values[0])}

    def report(
        self,
        eval_prediction,
        *,
        bootstrap: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
        groups: Iterable | None = None,
        min_positives: int | None = None,
        ranked: bool = True,
    ) -> dict:
        """Metrics with bootstrap intervals and a table per attribute, as plain JSON types (None where undefined).

        Args:
            eval_prediction: as in a call.
            bootstrap: number of resamples of the images, with replacement; 0 for no intervals.
            confidence: the intervals hold this share of the resamples (percentile method).
            seed: of the resampling.
            groups: one hashable per image, such as `person_id`: whole groups are resampled, because images of one
                person are not independent and intervals over images would be too narrow.
            min_positives: adds `mA_min_positives`, the mean over the attributes with at least this many positives. Of
                an attribute with more than two labels, only labels that occur at least this often count.
            ranked: False leaves out what needs no threshold, which takes most of the time: `auc_macro` and
                `average_precision_macro` are None then.

        Returns:
            `{"convention", "num_images", "num_groups", "bootstrap", "confidence", "seed", "metrics": {key: value},
            "intervals": {key: [low, high]}, "ranked": {"attributes": how many count in auc_macro and
            average_precision_macro, "left_out": [names]}, "attributes": [row per attribute]}`, and with
            `min_positives` `"min_positives": {"value", "attributes": [names that count]}`. A row holds `name`,
            `threshold` (binary), `known`, `labels` ({label: support, predicted, recall, precision, f1}), `accuracy`,
            `mA`, `auc`, `average_precision` (more than two labels: mean of one against the rest), for binary
            attributes, about yes: `positives`, `recall`, `precision`, `f1`, `jaccard`, `true_positives`,
            `false_positives`, `false_negatives`, and with intervals `mA_interval`, `auc_interval`,
            `average_precision_interval`.

        An interval says how far the number would move with other test images, not with other training runs.

        Raises:
            ValueError: as for a call, or a setting is out of range.
        """
        if isinstance(bootstrap, bool) or int(bootstrap) != bootstrap or bootstrap < 0:
            raise ParValueError(f"bootstrap={bootstrap!r}, expected a number of resamples >= 0")
        if not 0 < confidence < 1:
            raise ParValueError(f"confidence={confidence!r}, expected a share between 0 and 1")
        if min_positives is not None and min_positives < 1:
            raise ParValueError(f"min_positives={min_positives!r}, expected a number >= 1")
        scores, labels = self._read(eval_prediction)
        probabilities, predicted = self._predict(scores)
        statistics = self._counter.statistics(predicted, labels)
        group_index = self._read_groups(groups, len(labels))

        counts = self._counter.unpack(statistics.sum(axis=0, keepdims=True))
        frequent = None if min_positives is None else self._frequent_labels(counts.support[0], min_positives)
        ranking = self._rank(probabilities, labels) if ranked else np.full((1, 2, len(self.schema)), np.nan)
        metrics = self._compute(counts, ranking, frequent)
        is_ranked = ~np.isnan(ranking[0, 0])
        report = {
            "convention": {"name": self.preset_name, **asdict(self.preset)},
            "num_images": len(labels),
            "num_groups": None if group_index is None else int(group_index.max()) + 1,
            "bootstrap": int(bootstrap),
            "confidence": confidence,
            "seed": seed,
            "metrics": {name: _json_float(values[0]) for name, values in metrics.items()},
            "intervals": {},
            "ranked": {
                "attributes": int(is_ranked.sum()),
                "left_out": [attribute.name for attribute, ranked in zip(self.schema, is_ranked) if not ranked],
            },
            "attributes": self._attribute_rows(counts, ranking[0], labels),
        }
        if min_positives is not None:
            names = [attribute.name for attribute, row in zip(self.schema, frequent) if row.any()]
            report["min_positives"] = {"value": int(min_positives), "attributes": names}
        if bootstrap:
            tails = [(1 - confidence) / 2, (1 + confidence) / 2]
            prepared = self._prepare_ranking(probabilities, labels, group_index) if ranked else []
            resampled, per_attribute = [], []
            for block, weights in resample(statistics, group_index, int(bootstrap), seed):
                counts, ranking = self._counter.unpack(block), self._rank_resamples(prepared, weights)
                resampled.append(self._compute(counts, ranking, frequent))
                per_attribute.append(np.stack([self._attribute_mA(counts), *ranking.swapaxes(0, 1)]))  # (3, R, A)
            for name in metrics:
                values = np.concatenate([block[name] for block in resampled])
                report["intervals"][name] = _percentiles(values, tails)
            names = ("mA_interval", "auc_interval", "average_precision_interval")
            for name, columns in zip(names, np.concatenate(per_attribute, axis=1)):
                for row, values in zip(report["attributes"], columns.T):
                    row[name] = _percentiles(values, tails)
        return report

    def slice_report(
        self,
        eval_prediction,
        slicings: Sequence[Slicing],
        *,
        bootstrap: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
        groups: Iterable | None = None,
    ) -> dict:
        """The metrics of slices of the images, and by how much they differ.

        Args:
            eval_prediction: as in a call.
            slicings: from `read_slicings`.
            bootstrap, confidence, seed: as in `report`.
            groups: one hashable per image, such as `person_id`; people are counted and resampled by it.

        Returns:
            `{"min_people", "people": "persons" or "images", "by": [what `compare_slices` returns per slicing]}`.

        Raises:
            ValueError: as for a call.
        """
        scores, labels = self._read(eval_prediction)
        probabilities, predicted = self._predict(scores)
        found = [
            compare_slices(
                slicing,
                predicted,
                probabilities,
                labels,
                self.schema,
                people=self._read_groups(groups, len(labels)),
                empty_image=self.preset.empty_image,
                bootstrap=bootstrap,
                confidence=confidence,
                seed=seed,
            )
            for slicing in slicings
        ]
        return {"min_people": MIN_PEOPLE, "people": "images" if groups is None else "persons", "by": found}

    def consistency_report(self, eval_prediction) -> dict:
        """How often answers contradict each other, and what making them consistent changes.

        An answer that is taken back because its condition is not met counts as wrong where the image has a label of
        that attribute, and nowhere else.

        Args:
            eval_prediction: as in a call.

        Returns:
            `{"before": {"violations": as `count_violations` returns them, "metrics": {key: value}}, "after": the same
            of consistent answers}`, with the metrics that depend on answers.

        Raises:
            ValueError: as for a call.
        """
        scores, labels = self._read(eval_prediction)
        probabilities, predicted = self._predict(scores)
        unranked = np.full((1, 2, len(self.schema)), np.nan)
        found = {}
        for when, answers in (
            ("before", predicted),
            ("after", consistent(probabilities, self.schema, self.thresholds, self._biases)),
        ):
            sums = self._counter.statistics(answers, labels).sum(axis=0, keepdims=True)
            metrics = self._compute(self._counter.unpack(sums), unranked)
            found[when] = {
                "violations": count_violations(answers, self.schema),
                "metrics": {name: float(values[0]) for name, values in metrics.items() if not np.isnan(values[0])},
            }
        return found

    # Reading and checking

    def _read(self, eval_prediction):
        if hasattr(eval_prediction, "predictions"):
            scores, labels = eval_prediction.predictions, eval_prediction.label_ids
        else:
            scores, labels = eval_prediction
        if labels is None:
            raise ParValueError("labels is None, expected integers (N, A): the data set has no labels to compare with")
        scores = self._check_scores(one_array(self.inputs, scores, ndim=3))
        return scores, self._check_labels(one_array("labels", labels, ndim=2), len(scores))

    def _check_scores(self, scores):
        """The scores as float64 `(N, A, C)`, checked: finite, and in [0, 1] if they are probabilities."""
        A, C = self._label_mask.shape
        if scores.ndim == 2 and self._binary.all() and scores.shape[1] == A:
            yes = scores.astype(np.float64)
            # Clip, so that a wrong value is reported once, for yes, and not a second time for no.
            no = 1 - np.clip(np.nan_to_num(yes), 0, 1) if self.inputs == "probabilities" else np.zeros_like(yes)
            scores = np.stack([no, yes], axis=-1)
        if scores.ndim != 3 or scores.shape[1:] != (A, C):
            raise ParValueError(f"{self.inputs} has shape {scores.shape}, expected (N, {A}, {C}) for this schema")
        if len(scores) == 0:
            raise ParValueError(f"{self.inputs} has shape {scores.shape}, expected at least one image")
        scores = scores.astype(np.float64)
        wrong = ~np.isfinite(scores) & self._label_mask
        wanted = "finite numbers"
        if self.inputs == "probabilities":
            wrong |= ((scores < 0) | (scores > 1)) & self._label_mask
            wanted = "probabilities in [0, 1]"
        if wrong.any():
            image, column, label = np.argwhere(wrong)[0]
            raise ParValueError(
                f"{self.inputs} holds {scores[image, column, label]} for attribute {self.schema[int(column)].name!r} "
                f"of image {image}, expected {wanted} ({int(wrong.sum())} such values)"
            )
        return scores

    def _check_labels(self, labels, N):
        """The labels as int64 `(N, A)`, checked."""
        A = len(self.schema)
        if labels.shape != (N, A):
            raise ParValueError(f"labels has shape {labels.shape}, expected {(N, A)}")
        if labels.dtype.kind not in "iub" and not (labels.dtype.kind == "f" and (labels == np.rint(labels)).all()):
            raise ParValueError(f"labels has dtype {labels.dtype}, expected integers (class index, -100 = unknown)")
        labels = labels.astype(np.int64)
        check_label_range(labels, self.schema)
        if (labels == UNKNOWN_LABEL).all():
            raise ParValueError(f"labels holds only {UNKNOWN_LABEL} (unknown), expected at least one known label")
        return labels

    def _read_groups(self, groups, N):
        """Index of each image's group, `(N,)`, counted from 0; None without groups."""
        if groups is None:
            return None
        groups = list(groups)
        if len(groups) != N:
            raise ParValueError(f"groups has {len(groups)} entries, expected {N}: one per image")
        if any(group is None for group in groups):
            raise ParValueError("groups holds None, expected a group for every image")
        index = {}
        return np.array([index.setdefault(group, len(index)) for group in groups])

    # From scores to counts

    def _predict(self, scores):
        """Probabilities `(N, A, C)`, 0 past an attribute's own labels, and the predicted class `(N, A)`."""
        if self.inputs == "probabilities":
            probabilities = np.where(self._label_mask, scores, 0.0)
        else:
            scores = np.where(self._label_mask, scores, -np.inf)
            exponents = np.exp(scores - scores.max(axis=-1, keepdims=True))
            probabilities = exponents / exponents.sum(axis=-1, keepdims=True)
        return probabilities, decide(probabilities, self.schema, self.thresholds, self._biases)

    # Ranking

    def _ranked_labels(self, labels):
        """`(attribute, label, known images)` of each label that is ranked against the rest of its attribute."""
        for a, attribute in enumerate(self.schema):
            known = np.flatnonzero(labels[:, a] != UNKNOWN_LABEL)
            for k in [1] if attribute.is_binary else range(attribute.num_labels):
                yield a, k, known

    def _rank(self, probabilities, labels):
        """Area under the ROC curve and average precision of each attribute, `(1, 2, A)`; NaN where undefined."""
        found = [([], []) for _ in self.schema]
        for a, k, known in self._ranked_labels(labels):
            scores, positives = probabilities[known, a, k], labels[known, a] == k
            found[a][0].append(roc_auc(scores, positives))
            found[a][1].append(average_precision(scores, positives))
        return np.array([[[mean_defined(values) for values in pair] for pair in found]], float).swapaxes(1, 2)

    def _prepare_ranking(self, probabilities, labels, group_index):
        """`(attribute, ResampledRanking)` of each label that has images with and without it."""
        units = np.arange(len(labels)) if group_index is None else group_index
        prepared = []
        for a, k, known in self._ranked_labels(labels):
            positives = labels[known, a] == k
            if positives.any() and not positives.all():
                prepared.append((a, ResampledRanking(probabilities[known, a, k], positives, units[known])))
        return prepared

    def _rank_resamples(self, prepared, weights):
        """What `_rank` gives for each of the resamples `weights`, int `(R, images or groups)`: `(R, 2, A)`."""
        total = np.zeros((len(weights), 2, len(self.schema)))
        count = np.zeros((len(weights), 1, len(self.schema)))
        for start in range(0, len(weights), _RESAMPLES_AT_ONCE):
            part = slice(start, start + _RESAMPLES_AT_ONCE)
            counts = weights[part].astype(np.int32)
            for a, ranking in prepared:
                values = np.stack(ranking.compute(counts), axis=1)  # (R, 2)
                total[part, :, a] += np.nan_to_num(values, nan=0.0)
                count[part, 0, a] += ~np.isnan(values[:, 0])
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    # From counts to metrics

    def _counted_labels(self, support):
        """The labels whose recalls enter mA: bool `(R, A, C)`, from `support` `(R, A, C)`."""
        counted = support > 0
        if self.preset.absent_label == "zero":
            # The published convention is about binary attributes only: an absent label counts with recall 0.
            counted = counted | (self._binary[:, None] & self._label_mask & counted.any(axis=-1, keepdims=True))
        return counted

    def _frequent_labels(self, support, min_positives):
        """The labels that count for `mA_min_positives`: bool `(A, C)`."""
        frequent = support >= min_positives
        frequent[self._binary] = frequent[self._binary, 1:2]
        # At least two labels: the recall of one label alone is best when nothing else is ever predicted.
        return frequent & (frequent.sum(axis=-1, keepdims=True) > 1) & self._label_mask

    def _attribute_mA(self, counts, frequent=None):
        """mA of each attribute, `(R, A)`; NaN for an attribute without a known label."""
        counted = self._counted_labels(counts.support)
        if frequent is not None:
            counted = counted & frequent
        return mean_where(divide(counts.true_positive, counts.support), counted, axis=-1)

    def _compute(self, counts, ranking, frequent=None):
        """Every metric by name, each `(R,)`; `ranking` is `(R, 2, A)`."""
        tp, support, predicted = counts.true_positive, counts.support, counts.predicted
        mA = self._attribute_mA(counts)  # (R, A)
        f1 = divide(2 * tp, support + predicted)  # (R, A, C)
        known = support.sum(axis=-1)  # (R, A)

        # F1 of a binary attribute: that of yes. Of the others: the mean over the labels that occur.
        f1_counted = np.where(self._binary[:, None], self._counter.instance_mask & (known > 0)[..., None], support > 0)
        label_f1 = mean_where(f1, f1_counted, axis=-1)
        weighted_f1 = divide((f1 * support).sum(axis=-1), known)
        pooled_tp, pooled_support, pooled_predicted = (
            np.where(self._counter.instance_mask, array, 0.0).sum(axis=(1, 2)) for array in (tp, support, predicted)
        )
        # The mean over no images is set to 0: a model that predicts nothing gets precision 0.
        accuracy, precision, recall, instance_f1 = divide(counts.instance[:, :4], counts.instance[:, 4:]).T
        metrics = {
            "mA": mean_where(mA, ~np.isnan(mA), axis=-1),
            "plain_accuracy": divide(tp.sum(axis=(1, 2)), known.sum(axis=-1)),
            "accuracy_macro": mean_where(divide(tp.sum(axis=-1), known), known > 0, axis=-1),
            "instance_accuracy": accuracy,
            "instance_precision": precision,
            "instance_recall": recall,
            "instance_f1_harmonic": divide(2 * precision * recall, precision + recall),
            "instance_f1_mean": instance_f1,
            "label_f1_macro": mean_where(label_f1, ~np.isnan(label_f1), axis=-1),
            "f1_micro": divide(2 * pooled_tp, pooled_support + pooled_predicted),
            "f1_weighted": mean_where(weighted_f1, known > 0, axis=-1),
        }
        # The average precision of an attribute that is always "yes" is 1, whatever the scores are.
        is_ranked = ~np.isnan(ranking[:, 0])
        metrics["auc_macro"] = mean_where(ranking[:, 0], is_ranked, axis=-1)
        metrics["average_precision_macro"] = mean_where(ranking[:, 1], is_ranked, axis=-1)
        if frequent is not None:
            restricted = self._attribute_mA(counts, frequent)
            metrics["mA_min_positives"] = mean_where(restricted, ~np.isnan(restricted), axis=-1)
        return metrics

    def _attribute_rows(self, counts, ranking, labels):
        """The table per attribute of `report`; `ranking` is `(2, A)`."""
        tp, support, predicted = counts.true_positive[0], counts.support[0], counts.predicted[0]  # (A, C)
        recall, precision = divide(tp, support), divide(tp, predicted)
        f1 = divide(2 * tp, support + predicted)
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
            row["mA"] = _json_float(mA[a])
            row["auc"], row["average_precision"] = (_json_float(values[a]) for values in ranking)
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
                    "jaccard": float(divide(hits, positives + found - hits)),
                }
            rows.append(row)
        return rows


def _percentiles(values, tails):
    """[low, high] over the resamples in which the metric is defined; None if it is defined in none."""
    values = values[~np.isnan(values)]
    return [float(value) for value in np.quantile(values, tails)] if values.size else None
