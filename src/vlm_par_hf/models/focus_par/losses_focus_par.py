"""The four losses of FOCUS (An et al., 2025, section III).

Letters: B people, K mix tokens, Z texts (one per label of each attribute), A attributes.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vlm_par_hf.base.losses import check_labels_on_cpu
from vlm_par_hf.base.numerics import wide
from vlm_par_hf.base.priors import compute_class_weights
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema


__all__ = ["FocusLoss", "check_loss_settings", "many_to_many_loss", "region_loss", "similarity_loss"]

LOWEST = -1e30  # instead of minus infinity, which makes gradients NaN
CANDIDATES = ("attribute", "all")
WEIGHTS = ("sim", "racl", "v2t", "t2v")
EPSILON = 1e-6  # keeps logarithms finite


def similarity_loss(tokens: torch.Tensor) -> torch.Tensor:
    """L_sim (FOCUS, equation 4): keeps the mix tokens of a picture different from each other.

    Binary cross-entropy between their cosines and the unit matrix. A cosine below 0 counts as 0, because the target
    for two tokens is to be orthogonal, not opposite.

    Args:
        tokens: `(B, K, E)`.

    Returns:
        Scalar, mean over people and pairs.
    """
    unit = F.normalize(wide(tokens), dim=-1)
    return _block_cross_entropy(unit @ unit.mT, torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device))


def region_loss(maps: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """L_racl (FOCUS, equations 6 and 7): texts of the same region attend to the same mix tokens, texts of different
    regions to different ones.

    Binary cross-entropy between the cosines of the attention maps and the block matrix of "same region", per picture.

    Args:
        maps: `(B, Z, K)`, attention of the texts, not negative.
        regions: int `(Z,)`; texts with a negative number are left out.

    Returns:
        Scalar, mean over people and pairs; 0 where no text has a region.
    """
    known = regions >= 0
    unit = F.normalize(wide(maps), dim=-1)
    return _block_cross_entropy(unit @ unit.mT, regions[:, None] == regions, known[:, None] & known)


def _block_cross_entropy(similarity, target, counted=None):
    """Mean binary cross-entropy of `similarity` `(B, X, X)` with bool `target` `(X, X)`, over the pairs `counted`."""
    probability = similarity.clamp(EPSILON, 1 - EPSILON)
    cells = -torch.where(target, probability.log(), (1 - probability).log())
    if counted is None:
        return cells.mean()
    cells = torch.where(counted, cells, 0)
    return cells.sum() / (counted.sum() * len(similarity)).clamp(min=1)


def many_to_many_loss(
    logits: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor,
    group: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """One direction of the many-to-many contrastive loss (POAR, which FOCUS follows): from rows to columns.

    Each positive of a row competes with the row's negatives and not with its other positives:
    `-log(exp(l_p) / (exp(l_p) + sum over negatives n of exp(l_n)))`, mean over the positives of the row, then over the
    rows that have any. Picture to text: rows are pictures; text to picture: the transposed arrays.

    Args:
        logits: `(rows, columns)`.
        positive, negative: bool `(rows, columns)`; a cell that is neither is unknown and ignored.
        group: int `(columns,)`, from 0 to `columns` - 1: a positive competes only with the negatives of its own group.
            None: with all.
        weight: `(rows, columns)`, factor of each positive; the means count positives, not weights.

    Returns:
        Scalar; 0 where no row has a positive.
    """
    logits = wide(logits)
    scores = logits.masked_fill(~negative, LOWEST)
    if group is None:
        against = scores.logsumexp(-1, keepdim=True)
    else:
        # logsumexp per group, each with its own maximum: with one maximum for all, small groups would underflow to 0.
        highest = torch.full_like(scores, LOWEST).scatter_reduce(1, group.expand_as(scores), scores.detach(), "amax")
        total = torch.zeros_like(scores).index_add(1, group, (scores - highest[:, group]).exp())
        against = (highest + total.clamp_min(EPSILON).log())[:, group]
    cells = F.softplus(against - logits)
    if weight is not None:
        cells = cells * weight
    count = positive.sum(-1)
    rows = torch.where(positive, cells, 0).sum(-1) / count.clamp(min=1)
    return rows.sum() / (count > 0).sum().clamp(min=1)


def check_loss_settings(settings: Mapping[str, Any]) -> None:
    """Checks the names and values of settings of `FocusLoss`.

    Raises:
        ValueError: an unknown setting, a weight that is no number of 0 or more, or an unknown `candidates`.
    """
    known = [name for name in inspect.signature(FocusLoss).parameters if name != "schema"]
    for name in settings:
        if name not in known:
            raise ParValueError(f"loss: unknown setting {name!r}, expected some of {', '.join(known)}")
    for name in WEIGHTS:
        value = settings.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ParValueError(f"loss: {name}={value!r}, expected a weight of 0 or more")
    if settings.get("candidates", CANDIDATES[0]) not in CANDIDATES:
        raise ParValueError(f"loss: candidates={settings['candidates']!r}, expected one of {CANDIDATES}")


class FocusLoss(nn.Module):
    """L = L_sim + L_racl + L_v2t + L_t2v (FOCUS, equation 8).

    Args:
        schema: `AttributeSchema`.
        sim, racl, v2t, t2v: weights of the four losses, 0 for none.
        candidates: which texts compete with each other in L_v2t: those of the same `"attribute"` (the answers to one
            question, as in POAR), or `"all"`.
        weighting, priors, max_class_weight: as in `ParLoss`; they give each label a factor for its positives in L_v2t.

    Raises:
        ValueError: as in `check_loss_settings`, or `weighting` without `priors`.
    """

    def __init__(
        self,
        schema: AttributeSchema,
        *,
        sim: float = 1.0,
        racl: float = 1.0,
        v2t: float = 1.0,
        t2v: float = 1.0,
        candidates: str = "attribute",
        weighting: str | None = None,
        priors: Sequence[Sequence[float]] | None = None,
        max_class_weight: float = 10.0,
    ) -> None:
        super().__init__()
        check_loss_settings({"sim": sim, "racl": racl, "v2t": v2t, "t2v": t2v, "candidates": candidates})
        if weighting is not None and priors is None:
            raise ParValueError(f"loss: weighting={weighting!r} needs priors, one list of label shares per attribute")
        self.schema = schema
        self.sim, self.racl, self.v2t, self.t2v = sim, racl, v2t, t2v
        self.candidates = candidates
        weights = None
        if weighting is not None:
            weights = compute_class_weights(priors, weighting, max_class_weight=max_class_weight)
        names = list(dict.fromkeys(one.region for one in schema if one.region))
        # Plain tensors on the CPU, not buffers: a loss must not add anything to a checkpoint.
        with torch.inference_mode(False):
            self.attribute = torch.tensor([a for a, one in enumerate(schema) for _ in one.labels])
            self.label = torch.tensor([k for one in schema for k in range(one.num_labels)])
            self.region = torch.tensor(
                [names.index(one.region) if one.region else -1 for one in schema for _ in one.labels]
            )
            self.weight = None if weights is None else torch.tensor([w for row in weights for w in row])

    def forward(
        self, scores: torch.Tensor, maps: torch.Tensor, tokens: torch.Tensor | None, labels: torch.Tensor
    ) -> torch.Tensor:
        """Loss of a batch.

        Args:
            scores: `(B, Z)`, scaled cosine of each text and the result of its attention.
            maps: `(B, Z, K)`, attention of each text over the mix tokens.
            tokens: `(B, K, E)`, the mix tokens; None if the model has none: then L_sim is 0.
            labels: integer `(B, A)`, class index per attribute, -100 = unknown.

        Returns:
            float32 scalar.

        Raises:
            ValueError: `labels` have another shape, or a label is out of range (see `check_labels_on_cpu`).
        """
        if labels.shape != (len(scores), len(self.schema)):
            expected = (len(scores), len(self.schema))
            raise ParValueError(
                f"labels has shape {tuple(labels.shape)}, expected {expected}: one column per attribute"
            )
        check_labels_on_cpu(labels, self.schema)
        device = scores.device
        true_label = labels.to(device)[:, self.attribute.to(device)]  # (B, Z)
        known = true_label != UNKNOWN_LABEL
        positive = true_label == self.label.to(device)
        negative = known & ~positive
        loss = wide(scores).new_zeros(())
        if self.sim and tokens is not None:
            loss = loss + self.sim * similarity_loss(tokens)
        if self.racl:
            loss = loss + self.racl * region_loss(maps, self.region.to(device))
        if self.v2t:
            group = self.attribute.to(device) if self.candidates == "attribute" else None
            weight = None if self.weight is None else self.weight.to(device, torch.float32).expand(len(scores), -1)
            loss = loss + self.v2t * many_to_many_loss(scores, positive, negative, group, weight)
        if self.t2v:
            loss = loss + self.t2v * many_to_many_loss(scores.mT, positive.mT, negative.mT)
        return loss
