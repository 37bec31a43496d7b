"""Losses for pedestrian attributes: pure functions of `(logits, labels)` and the module that a model calls.

Every function here maps `logits` (B, A, C) and `labels` (B, A) to one loss per cell, (B, A) in float32:

- an attribute with K labels uses its first K logits and ignores the others (`label_mask` is False for those),
- a label of -100 is unknown: its loss and its gradient are exactly 0, whatever the logits are,
- a two-label softmax is a sigmoid of `z1 - z0`, so cross-entropy over ("no", "yes") is binary cross-entropy.

`ParLoss` reduces the cells to one number. VLM-PAR (section 3.5) trains with cross-entropy "incorporating" focal loss
and label smoothing; we read that as the sum of smoothed cross-entropy and focal loss (`kind="ce_focal"`), and offer
the one-term reading as `kind="fused"`. Equation 15 (the mean over samples and attributes) is `reduction="mean"`.

Letters: B batch, A attributes, C the largest number of labels, K an attribute's own number of labels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from vlm_par_hf.errors import ParTypeError, ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema, check_label_range

from .priors import WEIGHTINGS, check_priors, compute_class_weights, compute_priors


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

# Far below any real logit, but no overflow in float32: the probability is exactly 0, and the gradient has no NaN.
PADDED_LOGIT = -1e30
REDUCTIONS = ("mean", "sum")


def _log_softmax(logits, labels, label_mask):
    """Log-probabilities over each attribute's own labels, float32.

    Returns:
        log_p `(B, A, C)`; true_log_p `(B, A)`, that of the true label; known, bool `(B, A)`.
    """
    known = labels != UNKNOWN_LABEL
    if logits.dtype != torch.float64:
        logits = logits.float()
    # Overwrite unknown cells before any arithmetic, so that a NaN there reaches neither the loss nor the gradient.
    logits = logits.masked_fill(~known.unsqueeze(-1), 0.0)
    if label_mask is not None:
        logits = logits.masked_fill(~label_mask, PADDED_LOGIT)
    log_p = logits.log_softmax(dim=-1)
    true_log_p = log_p.gather(-1, labels.masked_fill(~known, 0).unsqueeze(-1)).squeeze(-1)
    return log_p, true_log_p, known


def _apply_class_weight(cells, labels, known, class_weight):
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

    The weight multiplies the whole cell, smoothing terms included. `torch.nn.CrossEntropyLoss` differs: it multiplies
    each term of the smoothed target by the weight of that term's class.
    """
    log_p, true_log_p, known = _log_softmax(logits, labels, label_mask)
    cells = _smoothed_cross_entropy(log_p, true_log_p, label_mask, label_smoothing)
    return _apply_class_weight(cells, labels, known, class_weight)


def focal_loss(logits, labels, *, focal_gamma=2.0, label_mask=None, class_weight=None):
    """Focal loss `(1 - p)**gamma * -log p`, p the probability of the true label (no smoothing, no alpha).

    Easy cells count less; gamma = 0 is cross-entropy. Arguments and result as in `cross_entropy_loss`.
    """
    _, true_log_p, known = _log_softmax(logits, labels, label_mask)
    return _apply_class_weight(-_focal_factor(true_log_p, focal_gamma) * true_log_p, labels, known, class_weight)


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
    return _apply_class_weight(cells, labels, known, class_weight)


def fused_loss(logits, labels, *, label_smoothing=0.1, focal_gamma=2.0, label_mask=None, class_weight=None):
    """VLM-PAR section 3.5 as one term: `(1 - p)**gamma` times the smoothed cross-entropy, p that of the true label.

    Where p is near 1, the factor also removes the effect of smoothing. Arguments and result as in
    `cross_entropy_loss`.
    """
    log_p, true_log_p, known = _log_softmax(logits, labels, label_mask)
    cells = _smoothed_cross_entropy(log_p, true_log_p, label_mask, label_smoothing)
    return _apply_class_weight(_focal_factor(true_log_p, focal_gamma) * cells, labels, known, class_weight)


def weighted_bce_loss(logits, labels, *, class_weight, label_mask=None):
    """The usual loss of the field since DeepMAR (Li et al. 2015): binary cross-entropy on `z1 - z0`, exp-weighted.

    `class_weight` is exp(1 - prior) (`compute_class_weights(priors, "exp")`). With r the share of "yes" in training, a
    positive has weight exp(1 - r) and a negative exp(r). The same formula holds for an attribute with K > 2 labels:
    cross-entropy times exp(1 - r_k), k the true label. Arguments and result as in `cross_entropy_loss`.
    """
    return cross_entropy_loss(logits, labels, label_mask=label_mask, class_weight=class_weight)


# kind -> (function, the settings of ParLoss that it takes). All functions also take label_mask and class_weight.
LOSSES = {
    "ce": (cross_entropy_loss, ("label_smoothing",)),
    "ce_focal": (ce_focal_loss, ("label_smoothing", "focal_gamma", "focal_weight")),
    "focal": (focal_loss, ("focal_gamma",)),
    "fused": (fused_loss, ("label_smoothing", "focal_gamma")),
    "weighted_bce": (weighted_bce_loss, ()),
}


def _check_number(name, value, low, high=None):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (low <= value and (value < float("inf") if high is None else value < high)):
        wanted = f">= {low}" if high is None else f"in [{low}, {high})"
        raise ParValueError(f"{name}={value!r}, expected a number {wanted}")


class ParLoss(nn.Module):
    """The training loss over all attributes: `ParLoss(schema, **config.loss)(logits, labels)` -> scalar.

    It has no parameters and no buffers, so it adds nothing to a checkpoint.

    Args:
        schema: `AttributeSchema`, or what its constructor takes.
        kind: a row of `LOSSES`: `"ce"`, `"focal"`, `"ce_focal"` (VLM-PAR section 3.5), `"fused"`, `"weighted_bce"`.
        label_smoothing: eps in [0, 1) of `ce`, `ce_focal`, `fused`; the other kinds have none.
        focal_gamma: exponent >= 0 of `focal`, `ce_focal`, `fused`.
        focal_weight: factor >= 0 of the focal term in `ce_focal`.
        weighting: None, `"balanced"`, `"sqrt"`, `"exp"`: a weight per label from `priors`, see
            `compute_class_weights`. `kind="weighted_bce"` always uses `"exp"` and allows no other.
        priors: per attribute the K shares of its labels in the training split (`compute_priors`); needed by
            `weighting`, `weighted_bce` and `logit_adjustment`.
        max_class_weight: limit of `"balanced"` and `"sqrt"` weights.
        logit_adjustment: tau >= 0. In training mode tau * log(prior) is added to the logits, so that the model learns
            logits without the prior (Menon et al. 2021). mA gives all labels the same weight and gains from that. 0:
            nothing is added.
        reduction: `"mean"`: sum over the known labels / their number (VLM-PAR, equation 15).
            `"sum"`: A times that. With every label known this is the sum over attributes and the mean over samples, as
            the weighted BCE of the field is reduced. Where labels are missing it stays A * mean: an image with half of
            its labels counts half. With gradient accumulation only the number of known labels is available, so no
            other reduction is possible.

    All arguments but `schema` are plain JSON and can be stored in `config.loss`.
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
            raise ParValueError(f"kind={kind!r}, expected one of {', '.join(map(repr, LOSSES))}")
        if reduction not in REDUCTIONS:
            raise ParValueError(f"reduction={reduction!r}, expected one of {', '.join(map(repr, REDUCTIONS))}")
        if weighting is not None and weighting not in WEIGHTINGS:
            raise ParValueError(f"weighting={weighting!r}, expected None or one of {', '.join(map(repr, WEIGHTINGS))}")
        if kind == "weighted_bce":
            if weighting not in (None, "exp"):
                raise ParValueError(f"weighting={weighting!r}, expected None or 'exp' for kind='weighted_bce'")
            weighting = "exp"
        _check_number("label_smoothing", label_smoothing, 0, 1)
        _check_number("focal_gamma", focal_gamma, 0)
        _check_number("focal_weight", focal_weight, 0)
        _check_number("logit_adjustment", logit_adjustment, 0)
        if priors is None and (weighting is not None or logit_adjustment):
            reason = f"weighting={weighting!r}" if weighting is not None else f"logit_adjustment={logit_adjustment!r}"
            raise ParValueError(f"priors=None, expected one list of label shares per attribute for {reason}")
        if priors is not None:
            check_priors(priors, self.schema)

        self.kind, self.weighting, self.reduction = kind, weighting, reduction
        self.logit_adjustment = logit_adjustment
        self._function, names = LOSSES[kind]
        settings = {
            "label_smoothing": label_smoothing,
            "focal_gamma": focal_gamma,
            "focal_weight": focal_weight,
        }
        self._settings = {name: settings[name] for name in names}

        # Plain tensors on the CPU, not buffers: transformers loads a checkpoint on the meta device first, where
        # buffers that are not saved lose their values. `inference_mode(False)`: a loss that is built while inference
        # mode is on must still be usable in training.
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
                        raise ParValueError(
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
                every kind, weighting and reduction, because the divisor is a number of labels and not a sum of
                weights. None: the number of known labels of this batch.

        Returns:
            float32 scalar; 0 when no label is known, and `backward()` works then as well.

        Raises:
            ValueError: wrong shape, or a label out of range (see `check_labels_on_cpu`).
            TypeError: labels that are not integers.
        """
        A, C = self.label_mask.shape
        if logits.ndim != 3 or logits.shape[1:] != (A, C):
            raise ParValueError(f"logits has shape {tuple(logits.shape)}, expected (B, {A}, {C}) for this schema")
        if labels.shape != logits.shape[:2]:
            raise ParValueError(f"labels has shape {tuple(labels.shape)}, expected {tuple(logits.shape[:2])}")
        if labels.dtype.is_floating_point or labels.dtype in (torch.bool, torch.complex64, torch.complex128):
            raise ParTypeError(f"labels has dtype {labels.dtype}, expected int64 (class index, -100 = unknown)")
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
    """`check_label_range` for labels on the CPU; does nothing on other devices and while a compiler traces.

    On a GPU the check would wait, in every step, until all earlier work is done. `ParCollator`, which is given the
    schema, has checked these labels before they were moved to the GPU.
    """
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        check_label_range(labels.numpy(), schema)
