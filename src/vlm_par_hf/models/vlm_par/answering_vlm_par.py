"""From images to answers: what the trainable and the folded VLM-PAR share.

Letters: B people, N patches, A attributes, C labels, D vision width.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import can_return_tuple

from vlm_par_hf.base.outputs import ParOutput

from .heads_vlm_par import HeadsOutput


__all__ = ["IMAGE_INPUTS", "VlmParForward"]

IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes", "patch_embeds", "image_embeds", "patch_mask")


class VlmParForward:
    """The forward pass of VLM-PAR; before a `ParPreTrainedModel` among the bases.

    The inheriting model must provide `attribute_heads` and the two methods below.
    """

    supports_features = True
    supports_explain = True

    @property
    @abstractmethod
    def vision_tower(self) -> nn.Module:
        """The vision tower, with its `config`."""

    @abstractmethod
    def _constants(self) -> dict[str, torch.Tensor]:
        """The constants of `attribute_heads.apply_constants`."""

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """What the heads see of the images; without gradients where the backbone is frozen.

        Args:
            pixel_values: `(B, N, 3 * patch_size**2)` for NaFlex, `(B, 3, height, width)` for fixed resolution.
            pixel_attention_mask: `(B, N)`, 1 for patches that count (NaFlex; None: all).
            spatial_shapes: int64 `(B, 2)`, rows and columns of patches (NaFlex).

        Returns:
            patch_embeds `(B, N, D)` after the tower's last LayerNorm, image_embeds `(B, D)` not normalised (None where
            the tower has no pooling head), patch_mask bool `(B, N)`.

        Raises:
            ValueError: `spatial_shapes` is missing (NaFlex), or the images have the wrong number of dimensions.
        """
        tower = self.vision_tower
        backbone_type = tower.config.model_type.removesuffix("_vision_model")
        naflex = self._check_pixels(backbone_type, pixel_values, spatial_shapes)
        outputs = self._run_tower(tower, naflex, pixel_values, pixel_attention_mask, spatial_shapes)
        patch_embeds = outputs.last_hidden_state
        patch_mask = self._patch_mask(patch_embeds, pixel_attention_mask if naflex else None)
        return patch_embeds, outputs.pooler_output, patch_mask

    def _image_inputs(
        self, pixel_values, pixel_attention_mask, spatial_shapes, patch_embeds, image_embeds, patch_mask
    ):
        if (pixel_values is None) == (patch_embeds is None):
            raise ValueError(
                "expected either pixel_values or patch_embeds, got " + ("neither" if patch_embeds is None else "both")
            )
        if pixel_values is not None:
            return self.get_image_features(pixel_values, pixel_attention_mask, spatial_shapes)
        if image_embeds is None and self.config.alignment == "logit":
            raise ValueError('image_embeds is None, but alignment="logit" compares them with the prompts')
        return patch_embeds, image_embeds, self._patch_mask(patch_embeds, patch_mask)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        *,
        patch_embeds: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        patch_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> ParOutput:
        """Scores every attribute of every person.

        Args:
            pixel_values, pixel_attention_mask, spatial_shapes: as in `get_image_features`.
            labels: int64 `(B, A)`, class index per attribute, -100 = unknown; gives the loss.
            patch_embeds, image_embeds, patch_mask: in place of pixels, what `get_image_features` returned, in any
                floating dtype: frozen features are computed once and trained from.
            output_attentions: whether to return the attention of the fusion block.
            kwargs: `num_items_in_batch` goes to the loss; the rest is not used.

        Returns:
            `ParOutput`.

        Raises:
            ValueError: pixels and features are both given or both missing, or a part of them is missing; the questions
                were never tokenized.
        """
        constants = self._constants()
        patch_embeds, image_embeds, patch_mask = self._image_inputs(
            pixel_values, pixel_attention_mask, spatial_shapes, patch_embeds, image_embeds, patch_mask
        )
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        found = self.attribute_heads.apply_constants(
            constants, patch_embeds, patch_mask, image_embeds, output_attentions=bool(output_attentions)
        )
        loss = None
        if labels is not None:
            loss = self.compute_loss(found.logits, labels, kwargs.get("num_items_in_batch"))
        return ParOutput(loss=loss, logits=found.logits, image_embeds=image_embeds, attentions=found.attentions)

    def compute_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """`ParLoss` with the settings of `config.loss` (VLM-PAR, equation 15)."""
        return self.loss_module(logits, labels, num_items_in_batch=num_items_in_batch)

    @torch.no_grad()
    def patch_evidence(self, **inputs: Any) -> torch.Tensor:
        """What each patch adds to the stage-2 logits of each label; inputs as in `forward`.

        Returns:
            float32 `(B, A, N, C)`, 0 at padding. With the variances of LayerNorm taken as given, the sum over N is the
            stage-2 logit minus a constant per label.
        """
        found, patch_mask = self._answer_heads(inputs, output_evidence=True)
        mask = patch_mask[:, None, :, None] & self.attribute_heads.label_mask[:, None]
        return torch.where(mask, found.evidence, 0)

    @torch.no_grad()
    def explain(self, *, attribute: str | int | Sequence[str | int] | None = None, **inputs: Any) -> torch.Tensor:
        """Where the answers come from: a relevance per patch.

        text_to_image: the attention, averaged over heads (sums to 1 over the patches). image_to_text, whose attention
        is over words, and none: the evidence of the patch for the predicted label, minus the mean evidence for the
        other labels (`patch_evidence`), negative where it speaks against.

        Args:
            attribute: a name or position, or several; None takes all.
            inputs: as in `forward`.

        Returns:
            float32 `(B, A, N)`, A the number of attributes asked for; 0 at padding.

        Raises:
            KeyError: unknown attribute.
        """
        heads = self.attribute_heads
        if heads.fusion == "text_to_image":
            found, patch_mask = self._answer_heads(inputs, output_attentions=True)
            relevance = found.attentions.mean(2)
        else:
            found, patch_mask = self._answer_heads(inputs, output_evidence=True)
            chosen = F.one_hot(found.logits.argmax(-1), found.logits.shape[-1]).bool()  # the predicted label
            rest = (heads.label_mask & ~chosen)[:, :, None]
            speaks_for = (found.evidence * chosen[:, :, None]).sum(-1)
            relevance = speaks_for - (found.evidence * rest).sum(-1) / rest.sum(-1)
        relevance = torch.where(patch_mask[:, None], relevance, 0)
        return self._choose_attributes(relevance, self.schema, attribute)

    def _answer_heads(self, inputs: Mapping[str, Any], **options: bool) -> tuple[HeadsOutput, torch.Tensor]:
        """What the heads answer, with more than the logits where `options` ask for it, and the mask of the patches."""
        constants = self._constants()
        patch_embeds, image_embeds, patch_mask = self._image_inputs(
            **{name: inputs.get(name) for name in IMAGE_INPUTS}
        )
        heads = self.attribute_heads
        return heads.apply_constants(constants, patch_embeds, patch_mask, image_embeds, **options), patch_mask
