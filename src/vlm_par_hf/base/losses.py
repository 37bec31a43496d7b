"""Losses for pedestrian attributes: pure functions of `(logits, labels)` and the module that a model calls.

Every function here maps `logits` (B, A, C) and `labels` (B, A) to one loss per cell, (B, A) in float32:

- an attribute with K labels uses its first K logits; what lies past K takes no part (`label_mask` says where K ends),
- a label of -100 is unknown: its cell is exactly 0, and so is its gradient, whatever the logits hold there,
- a two-label softmax is a sigmoid of `z1 - z0`, so cross-entropy over ("no", "yes") is binary cross-entropy.

`ParLoss` reduces the cells to a number. VLM-PAR (section 3.5) trains with cross-entropy "incorporating" focal loss and
label smoothing; we read that as the sum of smoothed cross-entropy and focal loss (`kind="ce_focal"`), and offer the
one-term reading as `kind="fused"`. Equation 15 (the mean over samples and attributes) is `reduction="mean"`.

Letters: B batch, A attributes, C the largest number of labels, K an attribute's own number of labels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema, check_label_range


__all__ = [
    "LOSSES",
    "ParLoss",
    "ce_focal_loss",
    "check_labels_on_cpu",
    "compute_class_weights",
    "compute_priors",
    "cross_entropy_loss",
    "focal_loss",
    "fused_loss",
    "weighted_bce_loss",
]

# Far below any real logit and far from overflow in float32: gives probability exactly 0 and no NaN in the gradient.
PADDED_LOGIT = -1e30
WEIGHTINGS = ("balanced", "exp", "sqrt")
REDUCTIONS = ("mean", "sum")


def _log_softmax(logits, labels, label_mask):
    """float32 log-probabilities over each attribute's own labels (B, A, C), those of the true label (B, A), known."""
    known = labels != UNKNOWN_LABEL
    if logits.dtype != torch.float64:
        logits = logits.float()
    # Unknown cells are overwritten before any arithmetic: a NaN there must reach neither the loss nor the gradient.
    logits = logits.masked_fill(~known.unsqueeze(-1), 0.0)
    if label_mask is not None:
        logits = logits.masked_fill(~label_mask, PADDED_LOGIT)
    log_p = logits.log_softmax(dim=-1)
    true_log_p = log_p.gather(-1, labels.masked_fill(~known, 0).unsqueeze(-1)).squeeze(-1)
    return log_p, true_log_p, known


def _weigh(cells, labels, known, class_weight):
    """Multiply each known cell (B, A) by the weight of its true label and put 0 at the unknown ones."""
    if class_weight is not None:
        A = labels.shape[1]
        attribute = torch.arange(A, device=labels.device)
        cells = cells * class_weight.to(cells.dtype)[attribute, labels.masked_fill(~known, 0)]
    return cells.masked_fill(~known, 0.0)


def _smoothed_cross_entropy(log_p, true_log_p, label_mask, label_smoothing):
    if label_smoothing == 0:
        return -true_log_p
    if label_mask is None:
        mean_log_p = log_p.mean(dim=-1)
    else:
        mean_log_p = log_p.masked_fill(~label_mask, 0.0).sum(dim=-1) / label_mask.sum(dim=-1)
    return -(1 - label_smoothing) * true_log_p - label_smoothing * mean_log_p


def _focal_factor(true_log_p, gamma):
    # -expm1(log p) is 1 - p without cancellation. The floor keeps the gradient of x**gamma finite at x = 0.
    return (-torch.expm1(true_log_p)).clamp(min=torch.finfo(true_log_p.dtype).tiny) ** gamma


def cross_entropy_loss(logits, labels, *, label_smoothing=0.0, label_mask=None, class_weight=None):
    """Cross-entropy against the smoothed target: `1 - eps + eps / K` for the true label, `eps / K` for its others.

    Args:
        logits: float `(B, A, C)`, any float dtype; computed in float32 (float64 stays float64).
        labels: int64 `(B, A)`, class index per attribute, -100 = unknown.
        label_smoothing: eps in [0, 1). K is each attribute's own number of labels.
        label_mask: bool `(A, C)`, True on each attribute's own labels; None when every attribute has C.
        class_weight: float `(A, C)`, multiplies a cell's loss by the weight of its true label; None for 1.

    Returns:
        `(B, A)` losses in float32, 0 where the label is unknown.

    The weight belongs to the cell, smoothing terms included, unlike `torch.nn.CrossEntropyLoss`, which weighs each
    term of the smoothed target by its own class.
    """
    log_p, true_log_p, known = _log_softmax(logits, labels, label_mask)
    cells = _smoothed_cross_entropy(log_p, true_log_p, label_mask, label_smoothing)
    return _weigh(cells, labels, known, class_weight)


def focal_loss(logits, labels, *, focal_gamma=2.0, label_mask=None, class_weight=None):
    """Focal loss `(1 - p)**gamma * -log p`, p the probability of the true label (no smoothing, no alpha).

    Easy cells count less; gamma = 0 is cross-entropy. Arguments and result as in `cross_entropy_loss`.
    """
    _, true_log_p, known = _log_softmax(logits, labels, label_mask)
    return _weigh(-_focal_factor(true_log_p, focal_gamma) * true_log_p, labels, known, class_weight)


def ce_focal_loss(
    logits,
    labels,
    *,
    label_smoothing=0.1,
    focal_gamma=2.0,
    focal_weight=1.0,
    label_mask=None,
    class_weight=None,
):
    """VLM-PAR section 3.5 as a sum: smoothed cross-entropy + `focal_weight` * focal loss.

    Arguments and result as in `cross_entropy_loss` and `focal_loss`.
    """
    log_p, true_log_p, known = _log_softmax(logits, labels, label_mask)
    cells = _smoothed_cross_entropy(log_p, true_log_p, label_mask, label_smoothing)
    cells = cells - focal_weight * _focal_factor(true_log_p, focal_gamma) * true_log_p
    return _weigh(cells, labels, known, class_weight)


def fused_loss(logits, labels, *, label_smoothing=0.1, focal_gamma=2.0, label_mask=None, class_weight=None):
    """VLM-PAR section 3.5 as one term: `(1 - p)**gamma` times the smoothed cross-entropy, p that of the true label.

    The factor also switches off smoothing where p is near 1. Arguments and result as in `cross_entropy_loss`.
    """
    log_p, true_log_p, known = _log_softmax(logits, labels, label_mask)
    cells = _smoothed_cross_entropy(log_p, true_log_p, label_mask, label_smoothing)
    return _weigh(_focal_factor(true_log_p, focal_gamma) * cells, labels, known, class_weight)


def weighted_bce_loss(logits, labels, *, class_weight, label_mask=None):
    """The field's default since DeepMAR (Li et al. 2015): binary cross-entropy on `z1 - z0`, exp-weighted.

    With `class_weight = exp(1 - prior)` (`compute_class_weights(priors, "exp")`) and r the share of "yes" in training,
    a positive weighs exp(1 - r) and a negative exp(r). An attribute with K > 2 labels takes the same formula: its
    cross-entropy times exp(1 - r_k) of the true label k. Arguments and result as in `cross_entropy_loss`.
    """
    return cross_entropy_loss(logits, labels, label_mask=label_mask, class_weight=class_weight)


# kind -> (function, the settings of ParLoss that it takes). Further keyword arguments: label_mask, class_weight.
LOSSES = {
    "ce": (cross_entropy_loss, ("label_smoothing",)),
    "ce_focal": (ce_focal_loss, ("label_smoothing", "focal_gamma", "focal_weight")),
    "focal": (focal_loss, ("focal_gamma",)),
    "fused": (fused_loss, ("label_smoothing", "focal_gamma")),
    "weighted_bce": (weighted_bce_loss, ()),
}


def compute_priors(labels: np.ndarray, schema: AttributeSchema, *, smoothing: float = 1.0) -> list[list[float]]:
    """Share of each label among the known labels of the training split, one list of K numbers per attribute.

    Args:
        labels: integer `(N, A)`, -100 = unknown.
        smoothing: pseudo-count added to every label (Laplace), so that a label that never occurs has a prior above 0
            and an attribute nobody labelled has a uniform one; 0 for the plain shares.

    Returns:
        Plain lists of floats, each summing to 1, ready for `config.loss["priors"]`.

    Raises:
        ValueError: wrong shape, a label out of range (attribute and value named), negative `smoothing`, or no known
            label for an attribute with `smoothing=0`.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] != len(schema):
        raise ValueError(f"labels has shape {labels.shape}, expected (N, {len(schema)}): one column per attribute")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels has dtype {labels.dtype}, expected integers (class index, -100 = unknown)")
    if not smoothing >= 0:
        raise ValueError(f"smoothing={smoothing!r}, expected a number >= 0")
    check_label_range(labels, schema)
    priors = []
    for attribute, column in zip(schema, labels.T):
        known = column[column != UNKNOWN_LABEL]
        counts = np.bincount(known, minlength=attribute.num_labels) + float(smoothing)
        if counts.sum() == 0:
            raise ValueError(f"labels has no known label for attribute {attribute.name!r}; smoothing=0 needs one")
        priors.append((counts / counts.sum()).tolist())
    return priors


def compute_class_weights(
    priors: Sequence[Sequence[float]], weighting: str, *, max_class_weight: float = 10.0
) -> list[list[float]]:
    """Weight of each label from its prior p, one list of K numbers per attribute.

    - `"balanced"`: proportional to 1 / p; `"sqrt"`: to 1 / sqrt(p). Scaled so that the mean weight over the training
      labels (sum of p * weight) is 1, with no weight above `max_class_weight`: what the limit takes from rare labels
      is given back to the others, so that the scale of the loss, and with it the learning rate, stays what it was.
    - `"exp"`: exp(1 - p), the field's; neither scaled nor limited (it lies between 1 and e).

    Raises:
        ValueError: unknown `weighting`, or `max_class_weight` below 1 (then no weights of mean 1 exist).
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting={weighting!r}, expected None or one of {', '.join(map(repr, WEIGHTINGS))}")
    if not max_class_weight >= 1:
        raise ValueError(f"max_class_weight={max_class_weight!r}, expected a number >= 1")
    weights = []
    for prior in priors:
        p = np.asarray(prior, dtype=np.float64)
        if weighting == "exp":
            weights.append(np.exp(1 - p).tolist())
            continue
        # A label of prior 0 gets the largest weight allowed; it has no part in the mean.
        raw = np.maximum(p, np.finfo(np.float64).tiny) ** (-1.0 if weighting == "balanced" else -0.5)
        weight = np.full_like(p, max_class_weight)
        free = p > 0
        while free.any():
            scale = (1 - max_class_weight * p[~free].sum()) / (p * raw)[free].sum()
            over = free & (raw * scale > max_class_weight)
            if not over.any():
                weight[free] = raw[free] * scale
                break
            free &= ~over
        weights.append(weight.tolist())
    return weights


def _check_priors(priors, schema):
    if len(priors) != len(schema):
        raise ValueError(f"priors has {len(priors)} entries, expected {len(schema)}: one list per attribute")
    for attribute, prior in zip(schema, priors):
        p = np.asarray(prior, dtype=np.float64)
        if p.shape != (attribute.num_labels,):
            raise ValueError(
                f"priors of attribute {attribute.name!r} has {p.size} values, expected {attribute.num_labels}: "
                f"one per label ({', '.join(attribute.labels)})"
            )
        if not np.isfinite(p).all() or (p < 0).any() or abs(p.sum() - 1) > 1e-3:
            raise ValueError(
                f"priors of attribute {attribute.name!r} is {prior!r}, expected shares >= 0 with sum 1 "
                "(see vlm_par_hf.losses.compute_priors)"
            )


def _check_number(name, value, low, high=None):
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (low <= value and (value < float("inf") if high is None else value < high)):
        wanted = f">= {low}" if high is None else f"in [{low}, {high})"
        raise ValueError(f"{name}={value!r}, expected a number {wanted}")


class ParLoss(nn.Module):
    """The training loss over all attributes: `ParLoss(schema, **config.loss)(logits, labels)` -> scalar.

    Holds no parameters and no buffers: nothing of it enters a checkpoint.

    Args:
        schema: `AttributeSchema` (or what builds one).
        kind: a row of `LOSSES`: `"ce"`, `"focal"`, `"ce_focal"` (VLM-PAR section 3.5), `"fused"`, `"weighted_bce"`.
        label_smoothing: eps in [0, 1) of `ce`, `ce_focal`, `fused`; the other kinds have none.
        focal_gamma: exponent >= 0 of `focal`, `ce_focal`, `fused`.
        focal_weight: factor >= 0 of the focal term in `ce_focal`.
        weighting: None, `"balanced"`, `"sqrt"`, `"exp"`: a weight per label from `priors`, see
            `compute_class_weights`. `kind="weighted_bce"` is `"exp"` and takes no other.
        priors: per attribute the K shares of its labels in the training split (`compute_priors`); needed by
            `weighting`, `weighted_bce` and `logit_adjustment`.
        max_class_weight: limit of `"balanced"` and `"sqrt"` weights.
        logit_adjustment: tau >= 0. Adds tau * log(prior) to the logits while `self.training`, so that the raw logits
            become balanced scores, which is what mA asks for (Menon et al. 2021). 0 for none.
        reduction: `"mean"`: sum over the known labels / their number (VLM-PAR, equation 15).
            `"sum"`: A times that; with every label known this is the sum over attributes and the mean over samples,
            as the field's weighted BCE reduces. Where labels are missing it stays A * mean, that is, an image with
            half its labels counts half, because only the number of known labels is known under accumulation.

    All of them but `schema` are JSON-plain and live in `config.loss`.
    """

    def __init__(
        self,
        schema: AttributeSchema,
        kind: str = "ce_focal",
        *,
        label_smoothing: float = 0.1,
        focal_gamma: float = 2.0,
        focal_weight: float = 1.0,
        weighting: str | None = None,
        priors: Sequence[Sequence[float]] | None = None,
        max_class_weight: float = 10.0,
        logit_adjustment: float = 0.0,
        reduction: str = "mean",
    ):
        super().__init__()
        self.schema = schema if isinstance(schema, AttributeSchema) else AttributeSchema(schema)
        if kind not in LOSSES:
            raise ValueError(f"kind={kind!r}, expected one of {', '.join(map(repr, LOSSES))}")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction={reduction!r}, expected one of {', '.join(map(repr, REDUCTIONS))}")
        if weighting is not None and weighting not in WEIGHTINGS:
            raise ValueError(f"weighting={weighting!r}, expected None or one of {', '.join(map(repr, WEIGHTINGS))}")
        if kind == "weighted_bce":
            if weighting not in (None, "exp"):
                raise ValueError(f"weighting={weighting!r}, expected None or 'exp' for kind='weighted_bce'")
            weighting = "exp"
        _check_number("label_smoothing", label_smoothing, 0, 1)
        _check_number("focal_gamma", focal_gamma, 0)
        _check_number("focal_weight", focal_weight, 0)
        _check_number("logit_adjustment", logit_adjustment, 0)
        if priors is None and (weighting is not None or logit_adjustment):
            what = f"weighting={weighting!r}" if weighting is not None else f"logit_adjustment={logit_adjustment!r}"
            raise ValueError(f"priors=None, expected one list of label shares per attribute for {what}")
        if priors is not None:
            _check_priors(priors, self.schema)

        self.kind, self.weighting, self.reduction = kind, weighting, reduction
        self.logit_adjustment = logit_adjustment
        self._function, names = LOSSES[kind]
        settings = {
            "label_smoothing": label_smoothing,
            "focal_gamma": focal_gamma,
            "focal_weight": focal_weight,
        }
        self._settings = {name: settings[name] for name in names}

        # Plain attributes on the CPU, not buffers: a checkpoint loads by way of the meta device, where non-persistent
        # buffers lose their values. `inference_mode(False)` lets a loss that was built there be trained with.
        with torch.inference_mode(False):
            self.label_mask = torch.tensor(self.schema.label_mask(), device="cpu")
            self.class_weight = None
            if weighting is not None:
                weights = compute_class_weights(priors, weighting, max_class_weight=max_class_weight)
                self.class_weight = self._pad(weights, fill=1.0)
            self._adjustment = None
            if logit_adjustment:
                for attribute, prior in zip(self.schema, priors):
                    if min(prior) <= 0:
                        raise ValueError(
                            f"priors of attribute {attribute.name!r} is {prior!r}, expected shares above 0 for "
                            f"logit_adjustment={logit_adjustment!r} (compute_priors(..., smoothing=1) gives them)"
                        )
                adjustment = [[logit_adjustment * float(np.log(p)) for p in prior] for prior in priors]
                self._adjustment = self._pad(adjustment, fill=0.0)

    def _pad(self, rows, fill):
        C = self.schema.max_labels
        return torch.tensor(
            [list(row) + [fill] * (C - len(row)) for row in rows], dtype=torch.float64, device="cpu"
        )  # (A, C)

    def extra_repr(self) -> str:
        settings = {
            **self._settings,
            "weighting": self.weighting,
            "logit_adjustment": self.logit_adjustment,
            "reduction": self.reduction,
        }
        return ", ".join([f"kind={self.kind!r}", *(f"{name}={value!r}" for name, value in settings.items())])

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Loss of a batch.

        Args:
            logits: float `(B, A, C)`, C = `schema.max_labels`; entries past an attribute's own K are ignored.
            labels: integer `(B, A)`, -100 = unknown.
            num_items_in_batch: number of known labels over all micro batches of the optimiser step, as `Trainer`
                counts it. The sum of the losses of the micro batches then equals the loss of the whole batch, for
                every kind, weighting and reduction (the divisor counts labels, it never sums weights). None: the
                known labels of this batch.

        Returns:
            float32 scalar; 0, with a graph, when no label is known.

        Raises:
            ValueError: wrong shape, or a label out of range (see `check_labels_on_cpu`).
            TypeError: labels that are not integers.
        """
        A, C = self.label_mask.shape
        if logits.ndim != 3 or logits.shape[1:] != (A, C):
            raise ValueError(f"logits has shape {tuple(logits.shape)}, expected (B, {A}, {C}) for this schema")
        if labels.shape != logits.shape[:2]:
            raise ValueError(f"labels has shape {tuple(labels.shape)}, expected {tuple(logits.shape[:2])}")
        if labels.dtype.is_floating_point or labels.dtype in (torch.bool, torch.complex64, torch.complex128):
            raise TypeError(f"labels has dtype {labels.dtype}, expected int64 (class index, -100 = unknown)")
        labels = labels.long()
        check_labels_on_cpu(labels, self.schema)

        if logits.dtype != torch.float64:
            logits = logits.float()
        if self._adjustment is not None and self.training:
            logits = logits + self._adjustment.to(logits.device, logits.dtype)
        class_weight = None if self.class_weight is None else self.class_weight.to(logits.device, logits.dtype)
        cells = self._function(
            logits,
            labels,
            label_mask=self.label_mask.to(logits.device),
            class_weight=class_weight,
            **self._settings,
        )  # (B, A)

        if num_items_in_batch is None:
            num_items_in_batch = (labels != UNKNOWN_LABEL).sum()
        if isinstance(num_items_in_batch, torch.Tensor):
            divisor = num_items_in_batch.to(cells.device).clamp(min=1)
        else:
            divisor = max(num_items_in_batch, 1)
        loss = cells.sum() / divisor
        return loss * A if self.reduction == "sum" else loss


def check_labels_on_cpu(labels: torch.Tensor, schema: AttributeSchema) -> None:
    """`check_label_range` where that costs nothing: on the CPU, and not while a compiler traces.

    Reading labels back from a GPU would wait for all that it has still to do, in every step; `ParCollator`, which is
    handed the schema, has checked them before they went there.
    """
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        check_label_range(labels.numpy(), schema)
