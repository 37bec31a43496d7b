"""Heads that quality.py compares with those of VLM-PAR: linear probes, and heads with far fewer parameters."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize


__all__ = ["CHEAP", "AttentionPooling", "LinearProbe", "make_cheap"]

PROJECTIONS = ("query", "key", "value", "output")


class _Classifier(nn.Module):
    """A linear classifier per attribute, fitted with two rates as VLM-PAR is."""

    def __init__(self, schema) -> None:
        super().__init__()
        self.schema = schema
        self.register_buffer("label_mask", torch.tensor(schema.label_mask()))

    def init_bias_from_priors(self, priors) -> None:
        with torch.no_grad():
            for row, prior in zip(self.bias, priors, strict=True):
                row[: len(prior)] = torch.tensor(prior).clamp_min(1e-4).log()

    def parameter_groups(self, learning_rate, fusion_learning_rate=None, *, weight_decay=0.01):
        groups = {}
        for name, parameter in self.named_parameters():
            rate = learning_rate if name in ("weight", "bias") else fusion_learning_rate or learning_rate
            decay = weight_decay if parameter.ndim > 2 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        return [{"params": own, "lr": rate, "weight_decay": decay} for (rate, decay), own in groups.items()]


class LinearProbe(_Classifier):
    """A linear classifier per attribute on one standardised vector per picture.

    Args:
        schema: the label space.
        source: `"pooled"`, `"patches"` (their mean), or `"both"` beside each other.
        batches: training pictures, for the standardisation.
    """

    def __init__(self, schema, source: str, batches) -> None:
        super().__init__(schema)
        self.source = source
        vectors = torch.cat([self._vector(batch) for batch in batches])
        self.register_buffer("mean", vectors.mean(0))
        self.register_buffer("std", vectors.std(0).clamp_min(1e-6))
        self.weight = nn.Parameter(torch.zeros(len(schema), vectors.shape[1], schema.max_labels))
        self.bias = nn.Parameter(torch.zeros(len(schema), schema.max_labels))

    def _vector(self, batch):
        mask = batch["patch_mask"][..., None]
        parts = {
            "pooled": batch["image_embeds"],
            "patches": torch.where(mask, batch["patch_embeds"], 0).sum(1) / mask.sum(1),
        }
        return torch.cat(list(parts.values()), -1) if self.source == "both" else parts[self.source]

    def forward(self, **batch):
        vector = (self._vector(batch) - self.mean) / self.std
        logits = torch.einsum("bd,adc->bac", vector, self.weight) + self.bias
        return logits.masked_fill(~self.label_mask, -1e4)


class AttentionPooling(_Classifier):
    """Queries per attribute that look at the patches directly, without a question and without projections, beside a
    linear classifier on the pooled output. They start at 0, so the attention is uniform at first.

    Args:
        schema: the label space.
        queries: per attribute.
        batches: training pictures, for the standardisation.
    """

    def __init__(self, schema, queries: int, batches) -> None:
        super().__init__(schema)
        images = torch.cat([batch["image_embeds"] for batch in batches])
        A, D, C = len(schema), images.shape[1], schema.max_labels
        self.register_buffer("mean", images.mean(0))
        self.register_buffer("std", images.std(0).clamp_min(1e-6))
        self.query = nn.Parameter(torch.zeros(A, queries, D))
        self.weight = nn.Parameter(torch.zeros(A, (queries + 1) * D, C))
        self.bias = nn.Parameter(torch.zeros(A, C))

    def forward(self, **batch):
        mask = batch["patch_mask"][:, None, None]
        patches = torch.where(batch["patch_mask"][..., None], batch["patch_embeds"], 0)
        patches = F.layer_norm(patches, patches.shape[-1:])
        scores = torch.einsum("aqd,bnd->baqn", self.query, patches) * patches.shape[-1] ** -0.5
        attended = scores.masked_fill(~mask, -1e9).softmax(-1) @ patches[:, None]
        attended = F.layer_norm(attended, attended.shape[-1:]).flatten(2)
        image = ((batch["image_embeds"] - self.mean) / self.std)[:, None].expand(-1, attended.shape[1], -1)
        logits = torch.einsum("bad,adc->bac", torch.cat([attended, image], -1), self.weight) + self.bias
        return logits.masked_fill(~self.label_mask, -1e4)


class _Shared(nn.Module):
    """One projection for all attributes."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, shared):
        return shared.expand(self.count, -1, -1)

    def right_inverse(self, projections):
        return projections[:1].clone()


class _LowRank(nn.Module):
    """One projection for all attributes plus one of low rank for each."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, shared, left, right):
        return shared + left @ right

    def right_inverse(self, projections):
        A, width, out = projections.shape
        right = torch.randn(A, self.rank, out) * out**-0.5
        return projections[:1].clone(), projections.new_zeros(A, width, self.rank), right


CHEAP = {"shared": _Shared, "low_rank": lambda count: _LowRank(8)}


def make_cheap(model: nn.Module, kind: str) -> None:
    """Replaces the projections of each attribute of a VLM-PAR model by cheaper ones, a key of `CHEAP`."""
    heads = model.attribute_heads
    for name in PROJECTIONS:
        parametrize.register_parametrization(heads, name, CHEAP[kind](len(model.schema)))
