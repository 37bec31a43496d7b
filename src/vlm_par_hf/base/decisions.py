"""From scores to answers in torch, and gains and offsets of similarities that are fitted on the validation split.

`decide` follows the same rule as `vlm_par_hf.labels.decisions.decide`, which metrics and processor use; a test
compares the two.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.consistency import NO_ANSWER, SMALLEST_ODDS, conditions
from vlm_par_hf.labels.decisions import SMALLEST_PROBABILITY, Decisions
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema

from .priors import compute_class_weights, compute_priors


__all__ = [
    "Calibration",
    "check_scores",
    "decide",
    "fit_decisions",
    "label_probabilities",
    "make_consistent",
    "transfer_decisions",
]


class Calibration:
    """The calibration of `Decisions` in torch: `Calibration(decisions, schema, device)(logits)`.

    Attributes:
        gain: float32 `(A,)`; offset: float32 `(A, C)`.
    """

    def __init__(self, decisions: Decisions, schema: AttributeSchema, device: torch.device | str = "cpu") -> None:
        tables = decisions.tables(schema)

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.tensor(array, dtype=torch.float32, device=device)

        self.schema = schema
        self.mask = torch.from_numpy(schema.label_mask()).to(device)
        self.gain, self.offset = tensor(tables.gain[:, 0]), tensor(tables.offset)
        self.maps = None
        if tables.start is not None:
            self.maps = [tensor(one) for one in (tables.start, tables.width, tables.slope, tables.first)]
            self.mapped = torch.from_numpy(tables.mapped).to(device)[:, None] & self.mask

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Calibrated logits, float32 `(B, A, C)`, from logits of that shape; those past an attribute's own labels stay
        as they are."""
        scaled = logits.float() * self.gain[:, None] + self.offset
        return self.apply_maps(torch.where(self.mask, scaled, logits.float()))

    def apply_maps(self, logits: torch.Tensor) -> torch.Tensor:
        """The second step, the isotonic maps: the logarithm of the mapped probabilities."""
        if self.maps is None:
            return logits
        start, width, slope, first = self.maps
        probabilities = logits.masked_fill(~self.mask, -torch.inf).softmax(-1)
        steps = torch.minimum((probabilities[..., None] - start).clamp_min(0), width) * slope
        found = (first + steps.sum(-1)).clamp(SMALLEST_PROBABILITY, 1.0).masked_fill(~self.mask, 0.0)
        found = found / found.sum(-1, keepdim=True)
        return torch.where(self.mapped, found.clamp_min(torch.finfo(torch.float32).tiny).log(), logits)


def label_probabilities(logits: torch.Tensor, schema: AttributeSchema) -> torch.Tensor:
    """Softmax over each attribute's own labels: float32 `(B, A, C)`, exactly 0 past them, from logits of that
    shape."""
    mask = torch.from_numpy(schema.label_mask()).to(logits.device)
    return logits.float().masked_fill(~mask, -torch.inf).softmax(-1)


def check_scores(logits: torch.Tensor, schema: AttributeSchema, names: Sequence[str | int] | None = None) -> None:
    """Refuses scores that are not finite: a comparison with NaN is False, so they would all be answered with "no".

    Args:
        logits: `(B, A, C)`.
        schema: the label space.
        names: of the B images, for the message; None: their positions.

    Raises:
        ValueError: names the first attribute and image.
    """
    wrong = ~logits.isfinite() & torch.from_numpy(schema.label_mask()).to(logits.device)
    if bool(wrong.any()):
        image, attribute, label = wrong.nonzero()[0].tolist()
        one, value = schema[attribute], float(logits[image, attribute, label])
        name = f"image {image}" if names is None else f"image {names[image]!r}"
        raise ParValueError(
            f"the score of attribute {one.name!r}, label {one.labels[label]!r}, is {value:g} for {name}, expected a "
            "finite number: are the weights damaged, or does their dtype overflow (float16)? bfloat16 and float32 do "
            "not"
        )


def decide(probabilities: torch.Tensor, schema: AttributeSchema, decisions: Decisions | None = None) -> torch.Tensor:
    """The class index of each answer, int64 `(B, A)`: see `vlm_par_hf.labels.decisions.decide`.

    Args:
        probabilities: `(B, A, C)`.
        schema: the label space, with its thresholds.
        decisions: whose biases are added; None: no biases.
    """
    device = probabilities.device
    thresholds = torch.tensor([one.threshold for one in schema], dtype=torch.float64, device=device)
    binary = torch.tensor([one.is_binary for one in schema], device=device)
    positive = (probabilities[..., 1].double() > thresholds).long()
    answers = probabilities.argmax(-1)
    table = None if decisions is None else decisions.bias_table(schema)
    if table is not None and table.any():
        biases = torch.tensor(table, dtype=torch.float64, device=device)
        biased = (probabilities.double().log() + biases).argmax(-1)
        answers = torch.where((biases != 0).any(-1), biased, answers)
    return torch.where(binary, positive, answers)


def make_consistent(answers: torch.Tensor, probabilities: torch.Tensor, schema: AttributeSchema) -> torch.Tensor:
    """Answers that fit together, int64 `(B, A)`, `NO_ANSWER` where a question makes no sense: see
    `vlm_par_hf.labels.consistency.consistent`.

    Args:
        answers: int64 `(B, A)`, from `decide`.
        probabilities: `(B, A, C)`.
        schema: the label space, with its thresholds.
    """
    device = answers.device
    p = probabilities[..., 1].double().clamp(SMALLEST_ODDS, 1 - SMALLEST_ODDS)
    thresholds = torch.tensor([one.threshold for one in schema], dtype=torch.float64, device=device)
    margins = (p / (1 - p)).log() - (thresholds / (1 - thresholds)).log()
    columns = list(answers.unbind(1))
    for members in schema.groups.values():
        positive = torch.stack([columns[a] for a in members], 1) == 1
        best = margins[:, members].masked_fill(~positive, -torch.inf).argmax(1)
        for number, a in enumerate(members):
            columns[a] = (positive[:, number] & (best == number)).long()
    for a, required, allowed in conditions(schema):
        met = torch.stack([columns[required] == label for label in allowed]).any(0)
        columns[a] = torch.where(met, columns[a], NO_ANSWER)
    return torch.stack(columns, 1)


def fit_decisions(
    logits: Any, labels: Any, schema: AttributeSchema, *, weighting: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fits a gain per attribute and an offset per label, so that `gain * logits + offset` decides well.

    Any model's logits will do. Minimises, for each attribute, the cross-entropy of its known labels plus a small
    penalty that keeps the gain near 1 and the offsets near 0.

    Args:
        logits: `(N, A, C)`, what the model answered on the validation split.
        labels: integer `(N, A)`, -100 = unknown.
        schema: the label space.
        weighting: class weights as in `ParLoss`, from the priors of these labels; None: none.

    Returns:
        float64 gain `(A,)`, above 0, and float64 offset `(Z,)`, the labels of all attributes one after another. An
        attribute with fewer than two different known labels has gain 1 and offsets 0.

    Raises:
        ValueError: the arrays do not fit the label space.
    """
    logits = torch.as_tensor(np.asarray(logits)).double()
    labels = np.asarray(labels)
    expected = (len(labels), len(schema), schema.max_labels)
    if tuple(logits.shape) != expected or labels.shape != expected[:2]:
        raise ParValueError(
            f"logits {tuple(logits.shape)} and labels {labels.shape} do not fit, expected {expected} and "
            f"{expected[:2]} for this label space"
        )
    check_scores(logits, schema)
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
    gain: torch.Tensor,
    offset: torch.Tensor,
    schema: AttributeSchema,
    asked: AttributeSchema,
    thresholds: Sequence[float] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gains and offsets for a label space of which only some attributes were fitted.

    An attribute with the same labels and prompts as a fitted one takes that one's gain and offsets. Every other
    attribute takes the geometric mean of the fitted gains, and if it is binary also the median threshold of the fitted
    binary attributes: by how much the similarity with "yes" must exceed that with "no". Backbones tend to prefer "no",
    for fitted and new attributes alike, so a threshold of 0 would answer "yes" too rarely.

    Args:
        gain: `(A,)`, above 0, and offset `(Z,)`: of the attributes of `schema`, as from `fit_decisions`.
        schema: the label space that was fitted.
        asked: the label space that gains and offsets are wanted for.
        thresholds: per attribute of `schema` the probability that "yes" begins above, of binary ones; None: 1/2. An
            attribute that was never fitted answers at 1/2 what the others answer at theirs.

    Returns:
        gain and offset of the attributes of `asked`, shapes as above.
    """
    fitted = {(one.labels, one.prompts): a for a, one in enumerate(schema)}
    offsets = offset.split(schema.num_labels)
    mean_gain = gain.log().mean().exp()
    begins = torch.full_like(gain, 0.5) if thresholds is None else torch.as_tensor(thresholds).to(gain)
    excess = begins.logit()
    usual = [(offsets[a][0] - offsets[a][1] + excess[a]) / gain[a] for a, one in enumerate(schema) if one.is_binary]
    threshold = torch.stack(usual).quantile(0.5) if usual else gain.new_zeros(())
    gains, asked_offsets = [], []
    for one in asked:
        a = fitted.get((one.labels, one.prompts))
        gains.append(mean_gain if a is None else gain[a])
        if a is not None:
            asked_offsets.append(offsets[a])
        elif one.is_binary:
            asked_offsets.append(mean_gain * torch.stack([threshold, -threshold]) / 2)
        else:
            asked_offsets.append(gain.new_zeros(one.num_labels))
    return torch.stack(gains), torch.cat(asked_offsets)


def _fit_affine(logits, truth, weight):
    """Gain above 0, a scalar, and offsets `(K,)` of one attribute, float64, by L-BFGS."""
    # log(gain), then the offsets in units of the logits' standard deviation.
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
