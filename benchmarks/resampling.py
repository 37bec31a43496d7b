"""Numbers that quality.py reports, for the whole test split and for bootstrap resamples of its persons."""

import numpy as np

from vlm_par_hf.metrics.ranking import ResampledRanking


__all__ = ["NUMBERS", "Judge", "fit_shift", "mean_recall", "shifted"]

NUMBERS = ("auc", "ap", "mA", "mA_fitted")
SHIFTS = np.linspace(-1.0, 2.0, 61)


class Judge:
    """Measures predictions of one test split; resamples are the same for every method, so differences are paired.

    Args:
        schema: the label space.
        scored: positions of the attributes that count.
        labels: int `(N, A)`, -100 = unknown.
        persons: `(N,)`, whole persons are resampled; None: single pictures.
        bootstrap: number of resamples.
    """

    def __init__(self, schema, scored: np.ndarray, labels: np.ndarray, persons: np.ndarray | None, bootstrap: int):
        self.schema, self.scored, self.labels = schema, scored, labels
        self.units = np.arange(len(labels)) if persons is None else np.unique(persons, return_inverse=True)[1]
        size = int(self.units.max()) + 1
        drawn = np.random.default_rng(0).integers(0, size, size=(bootstrap, size))
        counts = np.stack([np.bincount(row, minlength=size) for row in drawn]) if bootstrap else np.zeros((0, size))
        self.counts = np.concatenate([np.ones((1, size)), counts]).astype(np.int32)  # the first row: everything once

    def ranking(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """`auc` and `ap`, each `(1 + bootstrap,)`, from logits `(N, A, C)`."""
        found = {"auc": [], "ap": []}
        for a in self.scored:
            attribute = self.schema[int(a)]
            known = self.labels[:, a] >= 0
            probabilities = _softmax(logits[known, a, : attribute.num_labels])
            columns = []
            for k in [1] if attribute.is_binary else range(attribute.num_labels):
                positives = self.labels[known, a] == k
                if positives.any() and not positives.all():
                    ranking = ResampledRanking(probabilities[:, k], positives, self.units[known])
                    columns.append(ranking.compute(self.counts))
            if columns:
                for name, values in zip(found, _mean_defined(columns), strict=True):
                    found[name].append(values)
        return {name: _mean_defined(values) for name, values in found.items()}

    def recall(self, logits: np.ndarray) -> np.ndarray:
        """mA `(1 + bootstrap,)` where the largest logit decides."""
        return mean_recall(logits, self.labels, self.schema, self.scored, self.units, self.counts)

    def measure(self, logits: np.ndarray, fitted: np.ndarray) -> dict[str, np.ndarray]:
        """All of `NUMBERS`; `fitted` are the logits shifted by a fitted amount of the priors."""
        return self.ranking(logits) | {"mA": self.recall(logits), "mA_fitted": self.recall(fitted)}


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
