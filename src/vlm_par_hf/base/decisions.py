"""From scores to answers in torch, and decisions that are fitted on validation.

The rule is that of `vlm_par_hf.labels.decisions`, which metrics and processor use; the tests hold the two together.
"""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema

from .losses import compute_class_weights, compute_priors


__all__ = ["decide", "fit_decisions", "label_probabilities", "transfer_decisions"]


def label_probabilities(logits: torch.Tensor, schema: AttributeSchema) -> torch.Tensor:
    """float32 `(B, A, C)` from logits of that shape; 0 past an attribute's own labels, whatever stands there."""
    mask = torch.from_numpy(schema.label_mask()).to(logits.device)
    return logits.float().masked_fill(~mask, -torch.inf).softmax(-1)


def decide(probabilities: torch.Tensor, schema: AttributeSchema) -> torch.Tensor:
    """The class index of each answer, int64 `(B, A)`: see `vlm_par_hf.labels.decisions.decide`.

    Args:
        probabilities: `(B, A, C)`.
        schema: the label space, with its thresholds.
    """
    device = probabilities.device
    thresholds = torch.tensor([one.threshold for one in schema], dtype=torch.float64, device=device)
    binary = torch.tensor([one.is_binary for one in schema], device=device)
    positive = (probabilities[..., 1].double() > thresholds).long()
    return torch.where(binary, positive, probabilities.argmax(-1))


def fit_decisions(
    logits: Any, labels: Any, schema: AttributeSchema, *, weighting: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gain of each attribute and offset of each of its labels that make similarities decide, for any model's logits.

    Args and errors as in `FocusParModel.fit_decisions`.

    Returns:
        float64 gain `(A,)`, above 0, and offset `(Z,)`, labels of all attributes in a row; 1 and 0 for an attribute of
        which the data know one label only.
    """
    logits = torch.as_tensor(np.asarray(logits)).double()
    labels = np.asarray(labels)
    expected = (len(labels), len(schema), schema.max_labels)
    if tuple(logits.shape) != expected or labels.shape != expected[:2]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {labels.shape} do not fit, expected {expected} and "
            f"{expected[:2]} for this label space"
        )
    weights = None
    if weighting is not None:
        weights = compute_class_weights(compute_priors(labels, schema), weighting)
    truth = torch.as_tensor(labels).long()
    gains, offsets = [], []
    for a, one in enumerate(schema):
        known = truth[:, a] != UNKNOWN_LABEL
        gain, offset = torch.ones((), dtype=torch.float64), torch.zeros(one.num_labels, dtype=torch.float64)
        if len(truth[known, a].unique()) > 1:
            weight = None if weights is None else torch.tensor(weights[a], dtype=torch.float64)
            gain, offset = _fit_affine(logits[known, a, : one.num_labels], truth[known, a], weight)
        gains.append(gain)
        offsets.append(offset)
    return torch.stack(gains), torch.cat(offsets)


def transfer_decisions(
    gain: torch.Tensor, offset: torch.Tensor, schema: AttributeSchema, asked: AttributeSchema
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decisions for a label space of which only some attributes were fitted.

    An attribute with the labels and prompts of a fitted one has its decisions. Any other has the mean gain; a binary
    one also the usual threshold, the median over the fitted binary attributes: how much more like "yes" than like "no"
    a picture must be. Backbones like to say "no", and what is fitted for some attributes is true of others, too.

    Args:
        gain: `(A,)`, above 0, and offset `(Z,)`: of the attributes of `schema`, as from `fit_decisions`.
        schema: what was fitted.
        asked: what is asked.

    Returns:
        gain and offset of the attributes of `asked`.
    """
    fitted = {(one.labels, one.prompts): a for a, one in enumerate(schema)}
    offsets = offset.split(schema.num_labels)
    usual = gain.log().mean().exp()
    thresholds = [(offsets[a][0] - offsets[a][1]) / gain[a] for a, one in enumerate(schema) if one.is_binary]
    threshold = torch.stack(thresholds).quantile(0.5) if thresholds else gain.new_zeros(())
    gains, moved = [], []
    for one in asked:
        a = fitted.get((one.labels, one.prompts))
        gains.append(usual if a is None else gain[a])
        if a is not None:
            moved.append(offsets[a])
        elif one.is_binary:
            moved.append(usual * torch.stack([threshold, -threshold]) / 2)
        else:
            moved.append(gain.new_zeros(one.num_labels))
    return torch.stack(gains), torch.cat(moved)


def _fit_affine(logits, truth, weight):
    """Gain above 0 and offsets of one attribute, float64, by L-BFGS."""
    parameters = torch.zeros(1 + logits.shape[1], dtype=torch.float64, requires_grad=True)
    scale = logits.std().clamp_min(1e-6)
    cell_weight = torch.ones_like(logits[:, 0]) if weight is None else weight[truth]
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        fitted = logits * parameters[0].exp() + parameters[1:] * scale
        cells = F.cross_entropy(fitted, truth, reduction="none") * cell_weight
        loss = cells.mean() + 1e-3 * parameters.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return parameters[0].exp().detach(), (parameters[1:] * scale).detach()
