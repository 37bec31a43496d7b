"""The two kinds of attention of CLEAR: between channels, before each Swin stage, and between the branches.

Letters: B people, N tokens, C channels, D and E widths of the branches, H heads.
"""

import torch
from torch import nn
from torch.nn import functional as F

from vlm_par_hf.base.numerics import wide
from vlm_par_hf.upstream import init


__all__ = ["ChannelAttention", "CrossFusion"]


class ZeroLinear(nn.Linear):
    """A linear layer that starts at 0. A class of its own, because transformers initialises the modules that have
    parameters, not those around them."""

    def init_parameters(self) -> None:
        init.zeros_(self.weight)
        init.zeros_(self.bias)


class ChannelAttention(nn.Module):
    """CASA (CLEAR, equation 2): an attention in which the projections mix the N positions of a stage's input.

    The values start at 0 (with `kind` "fixed" and "code"), so a fresh one returns its input, and a pretrained Swin
    starts as it was trained. `kind="paper"` has no values: it adds weighted means of the tokens from the beginning.

    Args:
        num_tokens: N; no other number can be computed.
        kind: `"fixed"`, `"paper"` or `"code"`, as `ClearParConfig.casa` describes.
        dropout: on the attention weights, in training.
    """

    def __init__(self, num_tokens: int, kind: str, dropout: float) -> None:
        super().__init__()
        self.kind = kind
        self.dropout = dropout
        self.query = nn.Linear(num_tokens, num_tokens)
        self.key = nn.Linear(num_tokens, num_tokens)
        if kind != "paper":
            self.value = ZeroLinear(num_tokens, num_tokens)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens `(B, N, C)` to tokens `(B, N, C)`."""
        channels = tokens.mT  # (B, C, N)
        queries, keys = self.query(channels), self.key(channels)
        if self.kind == "paper":
            weights = self._weights(queries.mT @ keys, queries.shape[1])  # (B, N, N)
            return tokens + weights @ tokens
        weights = self._weights(queries @ keys.mT, queries.shape[2])  # (B, C, C)
        result = weights @ self.value(channels)  # (B, C, N)
        if self.kind == "code":
            result = result.mT.reshape(result.shape)
        return tokens + result.mT

    def _weights(self, scores: torch.Tensor, length: int) -> torch.Tensor:
        """Softmax of inner products of vectors of a length."""
        weights = (wide(scores) * length**-0.5).softmax(-1).to(scores.dtype)
        return F.dropout(weights, self.dropout, self.training)


class CrossFusion(nn.Module):
    """SVCF and VSCF (CLEAR, equation 3): the vector of one branch attends to itself and the tokens of the other.

    Args:
        width: D, of the vector.
        other_width: E, of the tokens; the attention is computed in this width.
        num_heads: H, divides E.
        projection: `"after"`: the result is projected and added to the vector; a vector of another width is first
            aligned by a linear layer. `"before"`: the vector is always aligned (W1), and the sum of both is projected
            (W2).
    """

    def __init__(self, width: int, other_width: int, num_heads: int, projection: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.projection = projection
        aligns = projection == "before" or width != other_width
        self.align = nn.Linear(width, other_width, bias=False) if aligns else nn.Identity()
        self.query = nn.Linear(other_width, other_width, bias=False)
        self.key = nn.Linear(other_width, other_width, bias=False)
        self.value = nn.Linear(other_width, other_width, bias=False)
        self.output = nn.Linear(other_width, width, bias=projection == "after")

    def forward(self, vector: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fuses one vector per person with tokens.

        Args:
            vector: `(B, D)`.
            tokens: `(B, N, E)`.

        Returns:
            The vector `(B, D)`, and the attention, float32 `(B, H, 1 + N)`: over the vector itself and the tokens.
        """
        aligned = self.align(vector)
        everything = torch.cat([aligned[:, None], tokens], 1)  # (B, 1 + N, E)
        query = self.query(aligned).unflatten(-1, (self.num_heads, -1))  # (B, H, E / H)
        keys, values = (
            one(everything).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for one in (self.key, self.value)
        )  # (B, H, 1 + N, E / H)
        scores = wide((keys @ query[..., None])[..., 0]) * query.shape[-1] ** -0.5
        attention = scores.softmax(-1)
        result = (attention.to(values.dtype)[:, :, None] @ values).flatten(1)  # (B, E)
        if self.projection == "before":
            return self.output(aligned + result), attention
        return vector + self.output(result), attention
