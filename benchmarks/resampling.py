"""Numbers that quality.py reports, for the whole test split and for bootstrap resamples of its persons."""

import numpy as np

from vlm_par_hf.calibration import fit
from vlm_par_hf.labels.consistency import consistent
from vlm_par_hf.labels.decisions import decide, label_softmax
from vlm_par_hf.metrics.ranking import ResampledRanking


__all__ = ["NUMBERS", "Judge", "answers_of_parts", "fit_shift", "interval", "mean_recall", "ranking_within", "shifted"]

NUMBERS = ("auc", "ap", "mA", "mA_shift")
SHIFTS = np.linspace(-1.0, 2.0, 61)
OBJECTIVES = ("instance_f1", "mA")
LEVEL = 0.9  # of sets of answers


class Judge:
    """Measures predictions of one test split; resamples are the same for every method, so differences are paired.

    Args:
        schema: the label space.
        scored: positions of the attributes that count.
        labels: int `(N, A)`, -100 = unknown.
        persons: `(N,)`, whole persons are resampled; None: single pictures.
        bootstrap: number of resamples.
        folds: int `(N,)`, by which model each picture was predicted; None: by one.
    """

    def __init__(
        self,
        schema,
        scored: np.ndarray,
        labels: np.ndarray,
        persons: np.ndarray | None,
        bootstrap: int,
        folds: np.ndarray | None = None,
    ):
        self.schema, self.scored, self.labels = schema, scored, labels
        self.folds = np.zeros(len(labels), int) if folds is None else folds
        self.units = np.arange(len(labels)) if persons is None else np.unique(persons, return_inverse=True)[1]
        size = int(self.units.max()) + 1
        drawn = np.random.default_rng(0).integers(0, size, size=(bootstrap, size))
        counts = np.stack([np.bincount(row, minlength=size) for row in drawn]) if bootstrap else np.zeros((0, size))
        self.counts = np.concatenate([np.ones((1, size)), counts]).astype(np.int32)  # the first row: everything once

    def ranking(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """`auc` and `ap` within folds, each `(1 + bootstrap,)`, from logits `(N, A, C)`."""
        found = {"auc": [], "ap": []}
        for a in self.scored:
            attribute = self.schema[int(a)]
            known = self.labels[:, a] >= 0
            probabilities = _softmax(logits[known, a, : attribute.num_labels])
            columns = []
            for k in [1] if attribute.is_binary else range(attribute.num_labels):
                positives = self.labels[known, a] == k
                if positives.any() and not positives.all():
                    columns.append(
                        ranking_within(
                            self.folds[known], probabilities[:, k], positives, self.units[known], self.counts
                        )
                    )
            if columns:
                for name, values in zip(found, _mean_defined(columns), strict=True):
                    found[name].append(values)
        return {name: _mean_defined(values) for name, values in found.items()}

    def recall(self, logits: np.ndarray) -> np.ndarray:
        """mA `(1 + bootstrap,)` where the largest logit decides."""
        return mean_recall(logits, self.labels, self.schema, self.scored, self.units, self.counts)

    def measure(self, logits: np.ndarray, shifted: np.ndarray) -> dict[str, np.ndarray]:
        """All of `NUMBERS`; `shifted` are the logits less a fitted amount of the log priors."""
        return self.ranking(logits) | {"mA": self.recall(logits), "mA_shift": self.recall(shifted)}


def answers_of_parts(validations, tests, truths, schema) -> dict[str, np.ndarray]:
    """Fits decisions on the validation of each part and answers its test; everything is joined over the parts.

    Args:
        validations, tests: logits of each part; truths: labels of each validation.

    Returns:
        `before` and `after`, probabilities; answers `start`, at 0.5 without calibration, by objective, and
        `consistent`, those for instance F1; `sets`, and `exact_sets`, which may be empty.
    """
    names = ("before", "after", "start", "consistent", "sets", "exact_sets", *OBJECTIVES)
    pieces: dict[str, list] = {name: [] for name in names}
    halves = np.full(len(schema), 0.5)
    for validation, test, truth in zip(validations, tests, truths, strict=True):
        decisions = fit(validation, truth, schema, objectives=OBJECTIVES)
        p = decisions.calibrate(test, schema)
        pieces["before"].append(label_softmax(test, schema))
        pieces["after"].append(p)
        pieces["start"].append(decide(pieces["before"][-1], schema, halves))
        pieces["sets"].append(decisions.answer_sets(p, schema, LEVEL)[0])
        pieces["exact_sets"].append(decisions.answer_sets(p, schema, LEVEL, allow_empty=True)[0])
        for name in OBJECTIVES:
            settled, biases = decisions.settle(schema, name), decisions.bias_table(schema, name)
            pieces[name].append(decide(p, settled, None, biases))
            if name == "instance_f1":
                pieces["consistent"].append(consistent(p, settled, None, biases))
    return {name: np.concatenate(values) for name, values in pieces.items()}


def ranking_within(
    folds: np.ndarray, scores: np.ndarray, positives: np.ndarray, units: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision of one label, each `(R,)`, comparing pictures of one fold only.

    Each fold was predicted by a model of its own, and scores of two models have no common scale: ranked together, a
    model with larger logits in one fold would look worse than it is in any of them. So the area is the share of right
    pairs among the pairs of a positive and a negative of the same fold, and the average precision that of the folds,
    each as often as it has positives.

    Args:
        folds: int `(N,)`.
        scores, positives, units: as of `ResampledRanking`, with at least one positive.
        counts: int32 `(R, units)`.
    """
    sums, weights = np.zeros((2, len(counts))), np.zeros((2, len(counts)))
    for fold in np.unique(folds[positives]):
        inside = folds == fold
        found = ResampledRanking(scores[inside], positives[inside], units[inside]).compute(counts)
        drawn = np.take(counts, units[inside], axis=1)
        yes = drawn[:, positives[inside]].sum(1).astype(np.float64)
        no = drawn[:, ~positives[inside]].sum(1)
        for row, (values, weight) in enumerate(zip(found, (yes * no, yes * (no > 0)), strict=True)):
            sums[row] += np.where(weight > 0, np.nan_to_num(values) * weight, 0)
            weights[row] += weight
    area, precision = np.where(weights > 0, sums / np.maximum(weights, 1), np.nan)
    return area, precision


def interval(values: np.ndarray) -> dict[str, float]:
    """The first of `(1 + bootstrap,)` values, and the 95 % interval of the others."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975]) if len(values) > 1 else (np.nan, np.nan)
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def mean_recall(logits, labels, schema, scored, units=None, counts=None) -> np.ndarray:
    """Mean over attributes of the mean recall over the labels that occur, `(R,)` for `counts` `(R, units)`."""
    if units is None:
        units, counts = np.zeros(len(labels), int), np.ones((1, 1))
    found = []
    for a in scored:
        K = schema[int(a)].num_labels
        known = labels[:, a] >= 0
        truth = np.eye(K)[labels[known, a]]
        right = truth * (logits[known, a, :K].argmax(-1) == labels[known, a])[:, None]
        sums = np.zeros((counts.shape[1], 2 * K))
        np.add.at(sums, units[known], np.concatenate([right, truth], 1))
        hits, support = np.split(counts @ sums, 2, axis=1)
        found.append(_mean_defined(np.where(support > 0, hits / np.maximum(support, 1), np.nan).T))
    return _mean_defined(found)


def _mean_defined(values) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    return np.where(defined.any(0), np.where(defined, values, 0).sum(0) / np.maximum(defined.sum(0), 1), np.nan)


def shifted(logits: np.ndarray, priors: list[list[float]], shift: float) -> np.ndarray:
    """Logits minus `shift` times the logarithm of the training priors; with 1, what calibrated logits need for mA."""
    table = np.zeros(logits.shape[1:])
    for a, prior in enumerate(priors):
        table[a, : len(prior)] = np.log(prior)
    return logits - shift * table


def fit_shift(logits: np.ndarray, labels: np.ndarray, schema, scored, priors) -> float:
    """The `shift` with the best mA on validation: one number for all attributes, so that rare ones are not overfitted.

    Where several are best, the middle one.
    """
    values = [mean_recall(shifted(logits, priors, one), labels, schema, scored)[0] for one in SHIFTS]
    best = np.flatnonzero(np.isclose(values, max(values)))
    return float(SHIFTS[best[len(best) // 2]])


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)
