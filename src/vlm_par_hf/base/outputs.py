"""What every model family of this package returns."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


__all__ = ["ParOutput"]


@dataclass
class ParOutput(ModelOutput):
    """Scores of the attributes of each person.

    B people, A attributes, C the largest number of labels, D the width of the vision tower, N patches, H heads,
    T question tokens.

    Args:
        loss: float32 scalar, where `labels` were given.
        logits: float32 `(B, A, C)`; entries past an attribute's own number of labels hold -1e4, so a softmax over the
            last axis gives them probability 0.
        image_embeds: `(B, D)`, the tower's pooled output, not normalised.
        attentions: where asked for: `(B, A, H, N)` when the question looks at the patches, `(B, A, H, N, T)` when the
            patches look at the question's tokens, `(B, A, C, H, K)` when each label's text looks at K mix tokens.
        hidden_states: a family's own intermediate states, where it returns any.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    attentions: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
