"""The parts of VTF: the transformer over texts and frames, and the weights of frames. They take plain numbers.

Letters as in `modeling_vtf_par`; S places of a sequence.
"""

import torch
from torch import nn
from torch.nn import functional as F

from vlm_par_hf.base.numerics import wide
from vlm_par_hf.upstream import init


__all__ = ["FrameWeights", "FusionBlock"]

QUALITY_WIDTH = 64


class FusionBlock(nn.Module):
    """A transformer block with LayerNorm before attention and MLP, as in ViT.

    Args:
        width: W.
        num_heads: H.
        mlp_ratio: width of the MLP / W.
        dropout: on the attention probabilities, in training.
        eps: of the LayerNorms.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, dropout: float, eps: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(
            nn.Linear(width, round(mlp_ratio * width)), nn.GELU(), nn.Linear(round(mlp_ratio * width), width)
        )

    def attend(
        self, texts: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, *, texts_only: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The first half of the block: every place attends to texts and tokens.

        Args:
            texts: `(B, Z, W)`, or `(1, Z, W)` where all people share them: then their queries, keys and values are
                computed once.
            tokens: `(B, N, W)`.
            mask: bool `(B, N)`, which tokens are attended to.
            texts_only: leave out the tokens, which nothing reads after the last block.

        Returns:
            Texts `(B, Z, W)` and tokens `(B, N, W)`, or None for them.
        """
        B, Z = len(tokens), texts.shape[1]
        normed_texts, normed_tokens = self.attention_norm(texts), self.attention_norm(tokens)
        both = torch.cat([self.key_value(normed_texts).expand(B, -1, -1), self.key_value(normed_tokens)], 1)
        queries = self.query(normed_texts).expand(B, -1, -1)
        if not texts_only:
            queries = torch.cat([queries, self.query(normed_tokens)], 1)
        queries, keys, values = (
            one.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for one in (queries, *both.chunk(2, -1))
        )
        mask = torch.cat([mask.new_ones(B, Z), mask], 1)[:, None, None]
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        found = self.output(found.transpose(1, 2).flatten(2))
        return texts + found[:, :Z], None if texts_only else tokens + found[:, Z:]

    def feed(self, states: torch.Tensor) -> torch.Tensor:
        """The second half of the block: each place by itself, of states `(..., W)`."""
        return states + self.mlp(self.mlp_norm(states))


class FrameWeights(nn.Module):
    """How much each frame counts, from its vector and from how that differs from the mean of all frames.

    An occluder shows in the vector itself; another person in front, or in place of the one that is followed, only in
    that the frame is unlike the others. At the start all frames count the same.

    Args:
        width: of the vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(2 * width, QUALITY_WIDTH)
        self.score = nn.Parameter(torch.empty(QUALITY_WIDTH))

    def init_parameters(self) -> None:
        init.zeros_(self.score)

    def forward(self, vectors: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """Weights `(..., T)`, at least float32, of vectors `(..., T, width)`; 0 where `frame_mask` `(..., T)` is
        False, sum 1."""
        vectors = torch.where(frame_mask[..., None], self.norm(vectors), 0)
        mean = vectors.sum(-2, keepdim=True) / frame_mask.sum(-1)[..., None, None].to(vectors.dtype)
        scores = F.gelu(self.hidden(torch.cat([vectors, vectors - mean], -1))) @ self.score
        return wide(scores).masked_fill(~frame_mask, -torch.inf).softmax(-1)
