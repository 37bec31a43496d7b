"""The output of every model of this package."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from vlm_par_hf.labels.schema import AttributeSchema


__all__ = ["ParOutput"]


@dataclass
class ParOutput(ModelOutput):
    """Scores of the attributes of each person.

    B people, A attributes, C the largest number of labels, D the width of the vision tower, N patches, H heads,
    T question tokens.

    Args:
        loss: float32 scalar; None if no `labels` were given.
        logits: float32 `(B, A, C)`; entries past an attribute's own number of labels hold -1e4, so a softmax over the
            last axis gives them probability 0.
        image_embeds: `(B, D)`, the tower's pooled output, not normalised.
        attentions: None unless asked for. `(B, A, H, N)` when the question looks at the patches, `(B, A, H, N, T)`
            when the patches look at the question's tokens, `(B, A, C, H, K)` when each label's text looks at K mix
            tokens.
        hidden_states: intermediate states of a family that returns some; None otherwise.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    attentions: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None

    def split_logits(self, schema: AttributeSchema) -> list[torch.Tensor]:
        """The logits of each attribute over its own labels, `(B, K)`, for a loss or a calibration of your own."""
        return [self.logits[:, a, : one.num_labels] for a, one in enumerate(schema)]
