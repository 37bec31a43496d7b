"""Linear classifiers for all attributes of a label space at once."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.upstream import init

from .numerics import NO_LABEL_LOGIT, no_autocast, wide


__all__ = ["AttributeClassifier"]


class AttributeClassifier(nn.Module):
    """One row of weights per score: one score of a binary attribute, K of an attribute with K > 2 labels.

    A binary attribute's score z stands for the pair (0, z), so that a softmax over its labels is a sigmoid of z.

    Args:
        width: of the input.
        schema: the label space.
        bias: whether scores have a bias.
        std: of the starting weights; 0: they start at zero.
    """

    def __init__(self, width: int, schema: AttributeSchema, *, bias: bool = True, std: float = 0.02) -> None:
        super().__init__()
        self.schema, self.std = schema, std
        self.rows = [1 if one.is_binary else one.num_labels for one in schema]
        self.weight = nn.Parameter(torch.empty(sum(self.rows), width))
        self.bias = nn.Parameter(torch.empty(sum(self.rows))) if bias else None
        # Where in a flat row of A * C logits each score stands, and what stands there without scores; whole numbers,
        # because a model in half precision would round others.
        slots, start = self._tables()
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("start", start, persistent=False)

    def init_parameters(self) -> None:
        init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            init.zeros_(self.bias)
        for buffer, table in zip((self.slots, self.start), self._tables()):
            init.copy_(buffer, table)

    def _tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        C = self.schema.max_labels
        slots, start = [], [int(NO_LABEL_LOGIT)] * (len(self.schema) * C)
        for place, one in enumerate(self.schema):
            if one.is_binary:
                slots.append(place * C + 1)
                start[place * C] = 0
            else:
                slots += range(place * C, place * C + one.num_labels)
        return torch.tensor(slots), torch.tensor(start)

    def places(self) -> dict[tuple[str, tuple[str, ...]], slice]:
        """The rows of each attribute, by its name and labels."""
        stops = list(itertools.accumulate(self.rows))
        return {
            (one.name, one.labels): slice(stop - count, stop)
            for one, count, stop in zip(self.schema, self.rows, stops)
        }

    def scores(self, vectors: torch.Tensor) -> torch.Tensor:
        """The scores, at least float32 `(B, rows)`, of vectors `(B, width)`, or of one vector per row
        `(B, rows, width)`."""
        with no_autocast(vectors):
            vectors = vectors.to(self.weight.dtype)
            if vectors.ndim == 2:
                return wide(F.linear(vectors, self.weight, self.bias))
            found = wide((vectors * self.weight).sum(-1))
            return found if self.bias is None else found + self.bias

    def arrange(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores `(B, rows)` as logits `(B, A, C)`."""
        start = self.start.to(scores.dtype).expand(len(scores), -1)
        return start.index_copy(1, self.slots, scores).unflatten(1, (len(self.schema), -1))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """As `scores`, arranged as logits."""
        return self.arrange(self.scores(vectors))

    @torch.no_grad()
    def take_rows(self, old: "AttributeClassifier") -> list[str]:
        """Copies the rows of the attributes whose name and labels are equal, and takes dtype, device, mode and
        `requires_grad` of `old`; returns their names."""
        sources = old.places()
        kept = {key: rows for key, rows in self.places().items() if key in sources}
        for name, parameter in self.named_parameters():
            source = getattr(old, name)
            parameter.data = parameter.data.to(source.device, source.dtype)
            for key, rows in kept.items():
                parameter[rows] = source[sources[key]]
            parameter.requires_grad_(source.requires_grad)
        self.to(old.slots.device).train(old.training)
        return [name for name, _ in kept]

    def prior_scores(self, priors: Sequence[Sequence[float]]) -> torch.Tensor:
        """The scores `(rows,)` that give each label its share.

        Args:
            priors: per attribute the share of each label in the training split.

        Raises:
            ValueError: wrong number of attributes or labels, or a share outside 0..1.
        """
        if len(priors) != len(self.schema):
            raise ParValueError(f"priors must have one entry per attribute ({len(self.schema)}), got {len(priors)}")
        found = []
        for one, prior in zip(self.schema, priors):
            shares = torch.as_tensor(prior, dtype=torch.float64).flatten()
            if shares.numel() != one.num_labels or not bool(((shares >= 0) & (shares <= 1)).all()):
                raise ParValueError(
                    f"priors of attribute {one.name!r} must be {one.num_labels} shares between 0 and 1, got {prior}"
                )
            logs = shares.clamp(1e-4, 1 - 1e-4).log()
            found.append(logs[1:] - logs[:1] if one.is_binary else logs)
        return torch.cat(found).to(self.weight)
