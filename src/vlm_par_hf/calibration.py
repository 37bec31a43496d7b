"""Fits decisions on labelled pictures: probabilities that can be believed, and where "yes" begins. Needs no torch.

    decisions = fit(logits, labels, schema, objectives=("mA", "instance_f1"))
    probabilities, answers = decisions.apply(logits, decisions.settle(schema))

Two steps. *Calibration* scales and shifts the logits of each attribute (Platt, 1999; temperature and bias), so that of
the answers with probability 0.8 four in five are right. *Decisions* are thresholds of binary attributes and biases of
the labels of others, for an objective:

| objective | the answer is "yes" if the calibrated probability is above |
|---|---|
| `mA` | the attribute's share of positives: the best rule for mean recall, in closed form |
| `accuracy` | 1/2, in closed form |
| `cost` | c / (c + d), c the cost of a wrong yes and d that of a missed one, in closed form |
| `f1` | the threshold with the largest F1 of the attribute on the pictures |
| `instance_f1` | thresholds with the largest instance F1 (harmonic) of all attributes together |
| `precision>=0.9` | the lowest threshold at which so many of its yes are right |
| `recall>=0.9` | the highest threshold that finds so many positives |

Biases follow the same rules where these say something about more than two labels (`mA`: minus the log share); with
`accuracy`, `cost`, `precision>=` and `recall>=` the most probable label is the answer.

**Few examples.** Every attribute starts from a *pooled rule*, fitted on all attributes together: one temperature, and
one multiple of the log shares as offset (what class weights of the training did to the logits); a threshold at
`s * logit(share) + c` with the best `s` and `c` for all. The calibration of an attribute is held near the pooled one
by a Gaussian prior, which its examples outweigh when they are many. A threshold of its own enters with the weight
`n / (n + 50)`, n the number of examples of its rarer label, and not at all below 10; in between lies, on the scale of
logits, the pooled threshold. So three positives move nothing, and an attribute without any is decided by the others.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.decisions import AttributeDecision, Decisions
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema, check_label_range
from vlm_par_hf.utils import shorten


__all__ = [
    "LEVELS",
    "MIN_EXAMPLES",
    "OBJECTIVES",
    "STANDARD_OBJECTIVES",
    "check_costs",
    "check_objective",
    "fit",
    "own_weight",
    "shift_priors",
]

logger = logging.getLogger(__name__)

OBJECTIVES = ("mA", "f1", "instance_f1", "accuracy", "cost")
STANDARD_OBJECTIVES = ("instance_f1", "mA")  # of training and `calibrate`; answers follow the first one
_TARGET = re.compile(r"(precision|recall)>=(0?\.\d+|1(?:\.0+)?)")
LEVELS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)  # of sets of answers

MIN_EXAMPLES = 10  # of its rarer label, for a threshold of its own
HALF_WEIGHT = 50  # examples at which it counts as much as the pooled one
GAIN_SPREAD, OFFSET_SPREAD = 0.3, 0.5  # of single attributes around the pooled calibration: relative, and in nats
MIN_ISOTONIC = 50  # examples of a label, for a monotone map
OWN_SET_EXAMPLES, MIN_SET_EXAMPLES = 100, 20  # of a label: for quantiles of its own; for a promise
FEW_PICTURES = 100  # for shares without labels
SHIFTS, CUTS = np.linspace(-0.5, 1.5, 41), np.linspace(-2.0, 2.0, 41)
NEAR_0 = 1e-6  # thresholds stay so far from 0 and 1


def check_objective(objective: Any) -> str:
    """An objective of the module's table.

    Raises:
        ValueError: it is none of them.
    """
    target = _TARGET.fullmatch(objective) if isinstance(objective, str) else None
    if objective in OBJECTIVES or (target and float(target[2]) > 0):
        return objective
    raise ParValueError(
        f"objective={shorten(objective)}, expected one of {', '.join(OBJECTIVES)}, precision>=0.9 or recall>=0.9 (any "
        "share)"
    )


def check_costs(costs: Sequence[float]) -> None:
    """Refuses costs that are not two numbers above 0."""
    if len(costs) != 2 or not all(math.isfinite(one) and one > 0 for one in costs):
        raise ParValueError(f"costs={costs!r}, expected two numbers above 0: of a wrong yes and of a missed one")


def own_weight(examples: Sequence[int]) -> float:
    """How much of an attribute's threshold is its own: 0 to 1, from the examples of its rarest label."""
    n = min(examples)
    return 0.0 if n < MIN_EXAMPLES else n / (n + HALF_WEIGHT)


def fit(
    logits: np.ndarray,
    labels: np.ndarray,
    schema: AttributeSchema,
    *,
    objectives: Sequence[str] = STANDARD_OBJECTIVES,
    isotonic: bool = False,
    costs: tuple[float, float] = (1.0, 1.0),
    record: Mapping[str, Any] | None = None,
) -> Decisions:
    """Fits calibration, thresholds, biases and sets of answers.

    Args:
        logits: `(N, A, C)`, what a model without decisions gives for pictures that it was not trained on.
        labels: integer `(N, A)`, -100 = unknown.
        schema: the label space.
        objectives: keys of the module's table; the first one is in use afterwards.
        isotonic: also fit a monotone map per label, where it has at least 50 examples (Zadrozny and Elkan, 2002). It
            can mend what scale and shift cannot, and needs more pictures.
        costs: for `cost`, of a wrong yes and of a missed one.
        record: what is to be said about the pictures; the number of pictures and what fell back on the pooled rule
            are added.

    Returns:
        `Decisions` with an entry for every attribute.

    Raises:
        ValueError: the arrays do not fit the label space, hold a score that is not finite or no known label, or an
            objective or cost is none.
    """
    logits, labels = _check_arrays(logits, labels, schema)
    objectives = list(dict.fromkeys(check_objective(one) for one in objectives))
    if not objectives:
        raise ParValueError("objectives is empty, expected at least one")
    check_costs(costs)
    counts = [_count_labels(labels[:, a], one.num_labels) for a, one in enumerate(schema)]
    priors = [(count + 1) / (count.sum() + len(count)) for count in counts]  # a label that never occurs is possible
    entries = _fit_calibration(logits, labels, schema, counts, priors)
    decisions = Decisions(entries)
    if isotonic:
        decisions = _fit_isotonic(decisions, logits, labels, schema)
    probabilities = decisions.calibrate(logits, schema)
    problem = _Problem.build(probabilities, labels, schema, counts, priors)
    points, missed = {}, {}
    for objective in objectives:
        points[objective], short = _fit_points(objective, problem, costs)
        if short:
            missed[objective] = short
            logger.warning("%s is not reached on these pictures: %s", objective, shorten(short))
    quantiles = _fit_quantiles(probabilities, labels, schema)
    pooled = [one.name for one, count in zip(schema, counts) if own_weight(sorted(count)[-2:]) == 0]
    if pooled:
        logger.warning(
            "fewer than %d pictures of a label, so the rule of all attributes together decides: %s",
            MIN_EXAMPLES, ", ".join(pooled),
        )  # fmt: skip
    found = {
        one.name: replace(
            decisions.attributes[one.name],
            points={objective: own[a] for objective, own in points.items()},
            quantiles=quantiles[a][0],
            promised=quantiles[a][1],
        )
        for a, one in enumerate(schema)
    }
    notes = {"pictures": len(labels), "objectives": objectives, "isotonic": isotonic, "pooled": pooled}
    if "cost" in objectives:
        notes["costs"] = list(costs)
    if missed:
        notes["missed"] = missed
    return Decisions(found, objectives[0], LEVELS, {**(record or {}), **notes})


def shift_priors(
    decisions: Decisions,
    logits: np.ndarray,
    schema: AttributeSchema,
    *,
    record: Mapping[str, Any] | None = None,
    steps: int = 1000,
) -> Decisions:
    """Adapts fitted decisions to pictures without labels, on which labels are more or less frequent.

    Expectation maximisation (Saerens et al., 2002): the shares under which the calibrated probabilities are consistent
    with themselves. It **assumes** that only the shares differ, that people with a hat look the same as before; a new
    camera angle or light breaks that, and nothing here can notice it. One picture with the old shares is added, so
    that no share becomes 0. Thresholds for mA move to the new shares, others stay where they are on the corrected
    probabilities; sets of answers are dropped, because their promise needs labels.

    Args:
        decisions: fitted with labels.
        logits: `(N, A, C)`, of a model without decisions.
        schema: the label space.
        record: what is to be said about the pictures.
        steps: at most so many.

    Raises:
        ValueError: wrong shapes, a score that is not finite, or an attribute without fitted shares.
    """
    logits = _check_logits(logits, schema)
    if len(logits) < FEW_PICTURES:
        logger.warning("%d pictures say little about shares: expected at least %d", len(logits), FEW_PICTURES)
    probabilities = decisions.calibrate(logits, schema)
    entries = {}
    for a, attribute in enumerate(schema):
        own = decisions.of(attribute)
        if own is None or own.prior is None:
            raise ParValueError(
                f"decisions of attribute {attribute.name!r} have no shares of its labels: fit them on labelled "
                "pictures first"
            )
        K = attribute.num_labels
        old = np.maximum(own.prior, NEAR_0)
        old, p = old / old.sum(), probabilities[:, a, :K]
        new = old
        for _ in range(steps):
            answers = p * (new / old)
            answers /= answers.sum(-1, keepdims=True)
            before, new = new, (answers.sum(0) + old) / (len(p) + 1)
            if np.abs(new - before).max() < 1e-9:
                break
        ratio = new / old
        points = dict(own.points)
        if "mA" in points:
            points["mA"] = _threshold(new[1]) if K == 2 else _floats(-np.log(new))
        if own.isotonic is None:
            moved = replace(own, offset=_floats(_centred(np.asarray(own.offset) + np.log(ratio))))
        else:
            scale = ratio / ratio.max()
            moved = replace(
                own, isotonic=tuple((x, _floats(np.asarray(y) * w)) for (x, y), w in zip(own.isotonic, scale))
            )
        entries[attribute.name] = replace(
            moved, prior=_floats(new), points=points, examples=None, quantiles=None, promised=None
        )
    notes = {**(record or {}), "pictures": len(logits), "priors_only": True, "fitted_before": dict(decisions.record)}
    return Decisions(entries, decisions.objective, (), notes)


# What is checked


def _check_logits(logits: Any, schema: AttributeSchema) -> np.ndarray:
    logits = np.asarray(logits, dtype=np.float64)
    expected = (len(schema), schema.max_labels)
    if logits.ndim != 3 or logits.shape[1:] != expected or not len(logits):
        raise ParValueError(f"logits have shape {logits.shape}, expected (N, {expected[0]}, {expected[1]}), N above 0")
    wrong = ~np.isfinite(logits) & schema.label_mask()
    if wrong.any():
        row, a, _ = np.argwhere(wrong)[0]
        raise ParValueError(
            f"a score of attribute {schema.names[a]!r} of row {row} is {logits[wrong][0]:g}, expected a finite number"
        )
    return np.where(schema.label_mask(), logits, 0.0)


def _check_arrays(logits: Any, labels: Any, schema: AttributeSchema) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = _check_logits(logits, schema), np.asarray(labels)
    if labels.shape != logits.shape[:2]:
        raise ParValueError(f"labels have shape {labels.shape}, expected {logits.shape[:2]} beside these logits")
    if labels.dtype.kind not in "iu":
        raise ParValueError(f"labels have dtype {labels.dtype}, expected integers (class index, -100 = unknown)")
    labels = labels.astype(np.int64)
    check_label_range(labels, schema)
    if not (labels != UNKNOWN_LABEL).any():
        raise ParValueError("labels hold no known label, expected some of at least one attribute")
    return logits, labels


def _count_labels(column: np.ndarray, num_labels: int) -> np.ndarray:
    return np.bincount(column[column != UNKNOWN_LABEL], minlength=num_labels)


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(one) for one in values)


def _threshold(value: float) -> float:
    return float(np.clip(value, NEAR_0, 1 - NEAR_0))


def _logit(p: Any) -> Any:
    p = np.clip(p, NEAR_0, 1 - NEAR_0)
    return np.log(p) - np.log1p(-p)


def _expit(z: float) -> float:
    return _threshold(1 / (1 + math.exp(-z)))


def _centred(offset: np.ndarray) -> np.ndarray:
    """The same softmax: 0 for "no" of a binary attribute, mean 0 else."""
    return offset - (offset[0] if len(offset) == 2 else offset.mean())


# Calibration


def _fit_calibration(logits, labels, schema, counts, priors) -> dict[str, AttributeDecision]:
    cells = []
    for a, one in enumerate(schema):
        known = labels[:, a] != UNKNOWN_LABEL
        cells.append((logits[known, a, : one.num_labels], labels[known, a]))
    gain, shift = _fit_pooled_calibration(cells, [np.log(prior) for prior in priors])
    entries = {}
    for one, (z, truth), count, prior in zip(schema, cells, counts, priors):
        own_gain, offset = gain, shift * np.log(prior)
        if (count > 0).sum() > 1:
            own_gain, offset = _fit_own_calibration(z, truth, own_gain, offset)
        entries[one.name] = AttributeDecision(
            float(own_gain), _floats(_centred(offset)), prior=_floats(prior), examples=tuple(count.tolist())
        )
    return entries


def _fit_pooled_calibration(cells, log_priors) -> tuple[float, float]:
    """Gain g and multiple s of the log shares: the largest likelihood of `softmax(g * logits + s * log(share))` over
    all attributes. By Newton's method; the problem is convex."""

    def gradient(theta):
        total = theta - (1.0, 0.0)  # a single picture that says "as it is"
        hessian = np.eye(2)
        for (z, truth), log_prior in zip(cells, log_priors):
            features = np.stack(np.broadcast_arrays(z, log_prior))  # (2, N, K)
            p = _softmax(np.tensordot(theta, features, 1))
            mean = (p * features).sum(-1)  # (2, N)
            total = total + (mean - features[:, np.arange(len(truth)), truth]).sum(-1)
            hessian = hessian + np.einsum("nk,ank,bnk->ab", p, features, features) - mean @ mean.T
        return total, hessian

    def loss(theta):
        value = 0.5 * float(np.sum((theta - (1.0, 0.0)) ** 2))
        return value + sum(
            _cross_entropy(theta[0] * z + theta[1] * prior, y) for (z, y), prior in zip(cells, log_priors)
        )

    gain, shift = _newton(np.array([1.0, 0.0]), gradient, loss)
    return max(float(gain), 1e-3), float(shift)


def _fit_own_calibration(z, truth, gain0: float, offset0: np.ndarray) -> tuple[float, np.ndarray]:
    """Gain and offsets of one attribute: the most probable ones under a Gaussian prior around the pooled ones."""
    K = z.shape[1]
    start = np.concatenate([[gain0], offset0])
    stiffness = 1 / np.concatenate([[GAIN_SPREAD * gain0], np.full(K, OFFSET_SPREAD)]) ** 2
    hit = np.eye(K)[truth]

    def gradient(theta):
        p = _softmax(theta[0] * z + theta[1:])
        mean = (p * z).sum(-1)
        total = np.concatenate([[(mean - (hit * z).sum(-1)).sum()], (p - hit).sum(0)])
        hessian = np.zeros((K + 1, K + 1))
        hessian[0, 0] = (p * z**2).sum() - (mean**2).sum()
        hessian[0, 1:] = hessian[1:, 0] = (p * (z - mean[:, None])).sum(0)
        hessian[1:, 1:] = np.diag(p.sum(0)) - p.T @ p
        return total + stiffness * (theta - start), hessian + np.diag(stiffness)

    def loss(theta):
        return _cross_entropy(theta[0] * z + theta[1:], truth) + 0.5 * float(stiffness @ (theta - start) ** 2)

    found = _newton(start, gradient, loss)
    return max(float(found[0]), 0.1 * gain0), found[1:]


def _newton(theta, gradient, loss, steps: int = 50) -> np.ndarray:
    """The minimum of a convex function, by Newton's steps that are halved until they go down."""
    value = loss(theta)
    for _ in range(steps):
        slope, hessian = gradient(theta)
        step = np.linalg.solve(hessian, slope)
        if float(slope @ step) < 1e-12 * max(1.0, value):
            break
        size = 1.0
        while (lower := loss(theta - size * step)) > value and size > 1e-9:
            size /= 2
        theta, value = theta - size * step, min(lower, value)
    return theta


def _softmax(z: np.ndarray) -> np.ndarray:
    exponents = np.exp(z - z.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def _cross_entropy(z: np.ndarray, truth: np.ndarray) -> float:
    highest = z.max(-1)
    own = z[np.arange(len(truth)), truth]
    return float(np.sum(np.log(np.exp(z - highest[:, None]).sum(-1)) + highest - own))


def _fit_isotonic(decisions: Decisions, logits, labels, schema) -> Decisions:
    probabilities = decisions.calibrate(logits, schema)
    entries = dict(decisions.attributes)
    for a, one in enumerate(schema):
        own = entries[one.name]
        if min(own.examples) < MIN_ISOTONIC:
            continue
        known = labels[:, a] != UNKNOWN_LABEL
        maps = []
        for k in [1] if one.is_binary else range(one.num_labels):
            maps.append(_pool_adjacent(probabilities[known, a, k], labels[known, a] == k))
        if one.is_binary:  # "no" is the rest
            x, y = maps[0]
            maps.insert(0, (tuple(1 - v for v in x[::-1]), tuple(1 - v for v in y[::-1])))
        entries[one.name] = replace(own, isotonic=tuple(maps))
    return replace(decisions, attributes=entries)


def _pool_adjacent(claimed: np.ndarray, truth: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Isotonic regression of truth on claim by pooling adjacent violators: the middle of each block, and its share of
    true ones after half a true and half a false one were added, so that nothing becomes impossible."""
    claims, tie = np.unique(claimed, return_inverse=True)
    size, true = np.bincount(tie).astype(float), np.bincount(tie, weights=truth)
    blocks: list[list[float]] = []  # sum of claims, true, size
    for claim, hits, count in zip(claims, true, size):
        blocks.append([claim * count, hits, count])
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][2] >= blocks[-1][1] * blocks[-2][2]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last)]
    x = np.array([claim / count for claim, _, count in blocks])
    y = np.maximum.accumulate([(hits + 0.5) / (count + 1) for _, hits, count in blocks])
    keep = np.append(True, np.diff(x) > 1e-9)
    return _floats(np.clip(x[keep], 0, 1)), _floats(y[keep])


# Thresholds and biases


@dataclass
class _Problem:
    """Calibrated probabilities and truth, in the form that thresholds are searched in.

    Attributes:
        schema, counts, priors: per attribute.
        binary: positions of the binary attributes; several: those of the others.
        scores: logits of the calibrated yes, `(N, B)`; known, truth: bool `(N, B)`.
        logs: per attribute of `several`, log probabilities `(N, K)`; classes: int `(N,)`, -1 where unknown.
    """

    schema: AttributeSchema
    counts: list[np.ndarray]
    priors: list[np.ndarray]
    binary: list[int]
    several: list[int]
    scores: np.ndarray
    known: np.ndarray
    truth: np.ndarray
    logs: list[np.ndarray]
    classes: list[np.ndarray]

    @classmethod
    def build(cls, probabilities, labels, schema, counts, priors) -> "_Problem":
        binary = [a for a, one in enumerate(schema) if one.is_binary]
        several = [a for a, one in enumerate(schema) if not one.is_binary]
        return cls(
            schema, counts, priors, binary, several,
            _logit(probabilities[:, binary, 1]), labels[:, binary] != UNKNOWN_LABEL, labels[:, binary] == 1,
            [np.log(np.maximum(probabilities[:, a, : schema[a].num_labels], 1e-30)) for a in several],
            [np.where(labels[:, a] == UNKNOWN_LABEL, -1, labels[:, a]) for a in several],
        )  # fmt: skip

    def cuts(self, shift: float, cut: float) -> np.ndarray:
        """Pooled thresholds on the scale of `scores`, `(B,)`."""
        return np.array([shift * _logit(self.priors[a][1]) + cut for a in self.binary])

    def biases(self, shift: float) -> list[np.ndarray]:
        return [-shift * np.log(self.priors[a]) for a in self.several]

    def instance_parts(self, cuts, biases) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Per picture: right and predicted columns, true ones, and whether it counts, each `(N,)`."""
        yes = (self.scores > cuts) & self.known
        right, predicted = (yes & self.truth).sum(1), yes.sum(1)
        true, counts = (self.truth & self.known).sum(1), self.known.any(1)
        for logs, classes, bias in zip(self.logs, self.classes, biases):
            known = classes >= 0
            right = right + ((logs + bias).argmax(-1) == classes)
            predicted, true, counts = predicted + known, true + known, counts | known
        return right, predicted, true, counts

    def instance_f1(self, cuts, biases) -> float:
        right, predicted, true, counts = self.instance_parts(cuts, biases)
        return _harmonic(_ratio(right, predicted)[counts].mean(), _ratio(right, true)[counts].mean())

    def label_f1(self, cuts, biases, *, frequent: bool = False) -> float:
        """Mean over attributes, of which a positive is known, of the F1 of yes, or of the labels that occur.

        Args:
            cuts, biases: per attribute.
            frequent: leave out attributes with too few examples for a threshold of their own, if others remain: a few
                pictures would decide as much as hundreds.
        """
        enough = np.array([own_weight(sorted(count)[-2:]) > 0 for count in self.counts])
        chosen = enough if frequent and enough.any() else np.ones(len(enough), bool)
        yes = (self.scores > cuts) & self.known
        true = (self.truth & self.known).sum(0)
        values = list(_ratio(2 * (yes & self.truth).sum(0), yes.sum(0) + true)[(true > 0) & chosen[self.binary]])
        for a, logs, classes, bias in zip(self.several, self.logs, self.classes, biases):
            known = classes >= 0
            if chosen[a] and known.any():
                values.append(_macro_f1((logs[known] + bias).argmax(-1), classes[known], logs.shape[1]))
        return float(np.mean(values)) if values else 0.0


def _ratio(above: Any, below: Any) -> np.ndarray:
    """above / below, 0 where below is 0."""
    return np.where(np.asarray(below) > 0, above / np.maximum(below, 1), 0.0)


def _harmonic(precision: Any, recall: Any) -> Any:
    return _ratio_positive(2 * precision * recall, precision + recall)


def _ratio_positive(above: Any, below: Any) -> Any:
    below = np.asarray(below, dtype=np.float64)
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below > 0)


def _macro_f1(answers: np.ndarray, classes: np.ndarray, K: int) -> float:
    true, predicted = np.bincount(classes, minlength=K), np.bincount(answers, minlength=K)
    right = np.bincount(classes[answers == classes], minlength=K)
    return float(_ratio(2 * right, true + predicted)[true > 0].mean())


def _fit_points(objective: str, problem: _Problem, costs) -> tuple[dict[int, Any], list[str]]:
    """Threshold or biases of each attribute, by its position; and the attributes that do not reach a target."""
    schema, points, missed = problem.schema, {}, []
    none = {a: (0.0,) * schema[a].num_labels for a in problem.several}
    if objective in ("accuracy", "cost"):
        one = 0.5 if objective == "accuracy" else costs[0] / sum(costs)
        return {a: _threshold(one) for a in problem.binary} | none, []
    if objective == "mA":
        points = {a: _threshold(problem.priors[a][1]) for a in problem.binary}
        return points | {a: _floats(-np.log(problem.priors[a])) for a in problem.several}, []
    target = _TARGET.fullmatch(objective)
    if target:
        kind, share = target[1], float(target[2])
        pooled, _ = _sweep_target(problem.scores[problem.known], problem.truth[problem.known], kind, share)
        for position, a in enumerate(problem.binary):
            known, cut = problem.known[:, position], pooled
            weight = own_weight(problem.counts[a])
            if weight:
                own, reached = _sweep_target(
                    problem.scores[known, position], problem.truth[known, position], kind, share
                )
                mixed = weight * own + (1 - weight) * pooled
                # The cautious one of both: what was asked for must hold at least on these pictures.
                cut = max(own, mixed) if kind == "precision" else min(own, mixed)
                if not reached:
                    missed.append(schema[a].name)
            points[a] = _expit(cut)
        return points | none, missed
    cuts, biases = _fit_pooled_points(problem, objective)
    own_cuts, own_biases = _fit_own_points(problem, objective, cuts, biases)
    for position, a in enumerate(problem.binary):
        weight = own_weight(problem.counts[a])
        points[a] = _expit(weight * own_cuts[position] + (1 - weight) * cuts[position])
    for own, pooled, a in zip(own_biases, biases, problem.several):
        weights = np.array([own_weight([count]) for count in problem.counts[a]])
        points[a] = _floats(weights * own + (1 - weights) * pooled)
    return points, []


def _fit_pooled_points(problem: _Problem, objective: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """The best `s` and `c` of the pooled rule: one after the other, three times."""
    measure = problem.instance_f1 if objective == "instance_f1" else partial(problem.label_f1, frequent=True)

    def best(values, score):
        found = [score(one) for one in values]
        ties = np.flatnonzero(np.isclose(found, max(found), rtol=0, atol=1e-12))
        return float(values[ties[len(ties) // 2]])

    shift, cut = 0.0, 0.0
    for _ in range(3):
        cut = best(CUTS, lambda c, s=shift: measure(problem.cuts(s, c), problem.biases(s)))
        shift = best(SHIFTS, lambda s, c=cut: measure(problem.cuts(s, c), problem.biases(s)))
    return problem.cuts(shift, cut), problem.biases(shift)


def _fit_own_points(problem: _Problem, objective: str, cuts, biases) -> tuple[np.ndarray, list[np.ndarray]]:
    """Exact sweeps: of each threshold or bias every value that changes an answer is tried, from one sort; for
    `instance_f1`, where attributes depend on each other, one after the other, twice."""
    cuts, biases = cuts.copy(), [one.copy() for one in biases]
    for _ in range(2):
        for position, a in enumerate(problem.binary):
            if own_weight(problem.counts[a]):
                cuts[position] = _sweep_binary(problem, objective, position, cuts, biases)
        for position, a in enumerate(problem.several):
            for k in range(problem.schema[a].num_labels):
                if own_weight([problem.counts[a][k]]):
                    biases[position][k] = _sweep_label(problem, objective, position, k, cuts, biases)
    return cuts, biases


def _sweep_binary(problem: _Problem, objective: str, position: int, cuts, biases) -> float:
    known, truth = problem.known[:, position], problem.truth[:, position]
    rows = np.flatnonzero(known)
    rows = rows[np.argsort(-problem.scores[rows, position], kind="stable")]
    scores, hits = problem.scores[rows, position], truth[rows]
    if objective == "f1":
        right = np.append(0, np.cumsum(hits))
        values = _ratio(2 * right, np.arange(len(rows) + 1) + hits.sum())
    else:
        without = cuts.copy()
        without[position] = np.inf
        right, predicted, true, counts = problem.instance_parts(without, biases)
        values = _instance_values(right, predicted, true, counts, rows, hits.astype(int), np.ones(len(rows), int))
    return _best_cut(scores, values)


def _sweep_label(problem: _Problem, objective: str, position: int, k: int, cuts, biases) -> float:
    logs, classes = problem.logs[position], problem.classes[position]
    rows = np.flatnonzero(classes >= 0)
    others = logs[rows] + biases[position]
    others[:, k] = -np.inf
    old = others.argmax(-1)
    needed = others.max(-1) - logs[rows, k]  # with a larger bias the answer is k
    order = np.argsort(needed, kind="stable")
    rows, old, needed, truth = rows[order], old[order], needed[order], classes[rows[order]]
    if objective == "f1":
        K = logs.shape[1]
        moved = np.eye(K, dtype=int)[old]
        before_right, before = (moved * (old == truth)[:, None]), moved
        right = before_right.sum(0) - np.cumsum(before_right, 0)
        predicted = before.sum(0) - np.cumsum(before, 0)
        right[:, k] += np.cumsum(truth == k)
        predicted[:, k] += np.arange(1, len(rows) + 1)
        right = np.concatenate([before_right.sum(0)[None], right])
        predicted = np.concatenate([before.sum(0)[None], predicted])
        true = np.bincount(truth, minlength=K)
        values = _ratio(2 * right, predicted + true)[:, true > 0].mean(-1)
    else:
        without = [one.copy() for one in biases]
        without[position][k] = -1e9
        right, predicted, true, counts = problem.instance_parts(cuts, without)
        change = (truth == k).astype(int) - (truth == old)
        values = _instance_values(right, predicted, true, counts, rows, change, np.zeros(len(rows), int))
    return -_best_cut(-needed, values)


def _instance_values(right, predicted, true, counts, rows, more_right, more_predicted) -> np.ndarray:
    """Instance F1 after the first 0, 1, 2, ... of `rows` changed: how many more of their columns are right and
    predicted. `(len(rows) + 1,)`."""
    total = counts.sum()
    precision, recall = _ratio(right, predicted)[counts].sum(), _ratio(right, true)[counts].sum()
    right, predicted, true = right[rows], predicted[rows], true[rows]
    gained = _ratio(right + more_right, predicted + more_predicted) - _ratio(right, predicted)
    found = _ratio(right + more_right, true) - _ratio(right, true)
    return _harmonic(
        (precision + np.append(0, np.cumsum(gained))) / total, (recall + np.append(0, np.cumsum(found))) / total
    )


def _best_cut(scores: np.ndarray, values: np.ndarray) -> float:
    """Between which of the falling `scores` to cut, `values[n]` being the worth of taking the first n: in the middle
    between two scores, never between equal ones. Where several are best, the middle one."""
    places = np.append(0, np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) + 1)
    best = np.flatnonzero(np.isclose(values[places], values[places].max(), rtol=0, atol=1e-12))
    return _cut_after(scores, int(places[best[len(best) // 2]]))


def _cut_after(scores: np.ndarray, count: int) -> float:
    if count == 0:
        return float(scores[0]) + 0.5
    if count == len(scores):
        return float(scores[-1]) - 0.5
    return float(scores[count - 1] + scores[count]) / 2


def _sweep_target(scores: np.ndarray, truth: np.ndarray, kind: str, share: float) -> tuple[float, bool]:
    """The lowest cut of precision, or the highest of recall, at least `share`; and whether there is one. Where none
    is, that of the highest precision."""
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], np.cumsum(truth[order])
    if not len(scores) or right[-1] == 0:
        return 0.0, False
    places = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) + 1
    if kind == "recall":
        good = right[places - 1] >= share * right[-1] - 1e-9
        return _cut_after(scores, int(places[good.argmax()])), True
    precision = right[places - 1] / places
    good = np.flatnonzero(precision >= share - 1e-9)
    place = good[-1] if len(good) else int(precision.argmax())
    return _cut_after(scores, int(places[place])), len(good) > 0


# Sets of answers


def _fit_quantiles(probabilities, labels, schema) -> list[tuple]:
    """Per attribute the quantiles `(K, levels)` of 1 - p of the right label, and for which labels they promise
    something.

    A label with at least 100 examples has quantiles of its own, so that the promise holds for its pictures alone.
    Labels of an attribute with fewer are pooled, and with fewer than 20 in that pool there is no promise: then they
    take the quantiles of the whole attribute, or, if that has fewer than 20, belong into every set.
    """
    found = []
    for a, attribute in enumerate(schema):
        K = attribute.num_labels
        known = labels[:, a] != UNKNOWN_LABEL
        truth = labels[known, a]
        misfit = 1 - probabilities[known, a, truth]
        counts = np.bincount(truth, minlength=K)
        few = counts < OWN_SET_EXAMPLES
        pool = misfit[few[truth]]
        quantiles, promised = [], []
        for k in range(K):
            own = pool if few[k] else misfit[truth == k]
            promise = len(own) >= MIN_SET_EXAMPLES
            if not promise:
                own = misfit if len(misfit) >= MIN_SET_EXAMPLES else misfit[:0]
            quantiles.append(_conformal_quantiles(own))
            promised.append(promise)
        found.append((tuple(quantiles), tuple(promised)))
    return found


def _conformal_quantiles(misfit: np.ndarray) -> tuple[float | None, ...]:
    """For each level the smallest value that at least the share `level` of n + 1 pictures does not exceed."""
    ordered, n = np.sort(misfit), len(misfit)
    ranks = [math.ceil((n + 1) * level - 1e-9) for level in LEVELS]
    return tuple(float(np.clip(ordered[rank - 1], 0, 1)) if rank <= n else None for rank in ranks)
