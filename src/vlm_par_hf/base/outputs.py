"""The outputs of the models of this package."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from vlm_par_hf.labels.schema import AttributeSchema


__all__ = ["ParImageFeatures", "ParOutput"]


@dataclass
class ParOutput(ModelOutput):
    """Scores of the attributes of each person.

    B people, A attributes, C the largest number of labels, D the width of the vision tower, N patches, H heads,
    T question tokens.

    Args:
        loss: float32 scalar; None if no `labels` were given.
        logits: float32 `(B, A, C)`; entries past an attribute's own number of labels hold -1e4, so a softmax over the
            last axis gives them probability 0.
        image_embeds: `(B, D)`, the tower's pooled output, not normalised; of CLEAR the vectors of both branches.
        attentions: None unless asked for. `(B, A, H, N)` when the question looks at the patches, `(B, A, H, N, T)`
            when the patches look at the question's tokens, `(B, A, C, H, K)` when each label's text looks at K mix
            tokens. Of CLEAR a pair: what the vector of each branch looks at in the other.
        hidden_states: None unless asked for. The states of the vision tower, of a family that returns them: the input
            of its first layer and the output of each layer, `(B, N, D)` each.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    attentions: torch.Tensor | tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None

    def split_logits(self, schema: AttributeSchema) -> list[torch.Tensor]:
        """The logits of each attribute over its own labels, `(B, K)`, for a loss or a calibration of your own."""
        return [self.logits[:, a, : one.num_labels] for a, one in enumerate(schema)]


@dataclass
class ParImageFeatures(BaseModelOutputWithPooling):
    """Features of images, what `get_image_features` returns: the output of the vision tower, and which patches count.

    It also unpacks into three, `patch_embeds, image_embeds, patch_mask = features`.

    Args:
        last_hidden_state: `(B, N, D)`, the patches after the tower's last LayerNorm.
        pooler_output: `(B, D)`, not normalised; None if the tower has no pooling head.
        hidden_states: None unless asked for: the input of the first layer and the output of each layer.
        attentions: None unless asked for: the attention of each layer of the tower.
        patch_mask: bool `(B, N)`.
    """

    patch_mask: torch.Tensor | None = None

    def __iter__(self) -> Iterator[torch.Tensor | None]:
        return iter((self.last_hidden_state, self.pooler_output, self.patch_mask))

    def as_inputs(self) -> dict[str, torch.Tensor | None]:
        """The keywords of `forward` that take these features in place of pixels."""
        return dict(zip(("patch_embeds", "image_embeds", "patch_mask"), self))
