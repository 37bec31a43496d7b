"""The forward pass of VLM-PAR, shared by the trainable and the folded model.

Letters: B people, N patches, A attributes, C labels, D vision width.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import can_return_tuple

from vlm_par_hf.base.numerics import NO_LABEL_LOGIT, no_autocast, wide
from vlm_par_hf.base.outputs import ParImageFeatures, ParOutput
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import AttributeSchema

from .heads_vlm_par import HeadsOutput


__all__ = ["IMAGE_INPUTS", "AskedAttributes", "VlmParForward"]

IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes", "patch_embeds", "image_embeds", "patch_mask")


@dataclass(frozen=True)
class AskedAttributes:
    """An encoded label space for `VlmParModel.forward(attributes=...)`, made by `encode_attributes`.

    Args:
        schema: the A' attributes that are asked for.
        places: for each its position among the attributes of the model, whose head answers; None: its prompts are
            compared with the picture, as the backbone does it (zero-shot).
        prompts: float32 `(A', C', E)`, the embeddings of the prompts as unit vectors times the backbone's logit scale;
            0 where a head answers, and past an attribute's own labels.
    """

    schema: AttributeSchema
    places: tuple[int | None, ...]
    prompts: torch.Tensor

    @property
    def explained(self) -> tuple[str, ...]:
        """The attributes that `explain` has a relevance for. A comparison with the pooled picture shows no patches."""
        return tuple(one.name for one, place in zip(self.schema, self.places) if place is not None)

    def choose(self, values: torch.Tensor) -> torch.Tensor:
        """The rows of the model's own attributes `(B, A, ...)` in the order asked for, `(B, A', ...)`; 0 for the
        others."""
        own = [row for row, place in enumerate(self.places) if place is not None]
        chosen = values.new_zeros(len(values), len(self.schema), *values.shape[2:])
        chosen[:, own] = values[:, [self.places[row] for row in own]]
        return chosen

    def logits(self, own: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        """Float32 `(B, A', C')` from the model's own logits `(B, A, C)` and the pooled pictures `(B, D)`."""
        labels = min(self.schema.max_labels, own.shape[-1])
        with no_autocast(image_embeds):
            image = F.normalize(wide(image_embeds), dim=-1)
            logits = torch.einsum("be,ace->bac", image, self.prompts.to(image))
        logits[..., :labels] += self.choose(own[..., :labels])
        return torch.where(torch.from_numpy(self.schema.label_mask()).to(own.device), logits, NO_LABEL_LOGIT)


class VlmParForward:
    """The forward pass of VLM-PAR.

    The inheriting model must name this class before a `ParPreTrainedModel` among its bases, and provide
    `attribute_heads` and the two abstract members below.
    """

    supports_features = True
    supports_explain = True

    @property
    @abstractmethod
    def vision_tower(self) -> nn.Module:
        """The vision tower, with its `config`."""

    @abstractmethod
    def _constants(self) -> dict[str, torch.Tensor]:
        """The constants that `attribute_heads.apply_constants` takes."""

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ParImageFeatures:
        """The features of the images that the heads work on; with gradients where a parameter of the vision tower
        requires them.

        Args:
            pixel_values: `(B, N, 3 * patch_size**2)` for NaFlex, `(B, 3, height, width)` for fixed resolution.
            pixel_attention_mask: `(B, N)`, 1 for patches that count (NaFlex; None: all).
            spatial_shapes: int64 `(B, 2)`, rows and columns of patches (NaFlex).
            kwargs: of the vision tower, such as `output_hidden_states` and `output_attentions`.

        Returns:
            `ParImageFeatures`.

        Raises:
            ValueError: `spatial_shapes` is missing (NaFlex), or the images have the wrong number of dimensions.
        """
        tower = self.vision_tower
        backbone_type = tower.config.model_type.removesuffix("_vision_model")
        naflex = self._check_pixels(backbone_type, pixel_values, spatial_shapes)
        outputs = self._run_tower(tower, naflex, pixel_values, pixel_attention_mask, spatial_shapes, **kwargs)
        return ParImageFeatures(
            **outputs, patch_mask=self._patch_mask(outputs.last_hidden_state, pixel_attention_mask if naflex else None)
        )

    def _image_inputs(
        self, pixel_values, pixel_attention_mask, spatial_shapes, patch_embeds, image_embeds, patch_mask, **kwargs
    ) -> ParImageFeatures:
        """The features, given as such or computed from pixels; `kwargs` are of the vision tower."""
        if (pixel_values is None) == (patch_embeds is None):
            raise ParValueError(
                "expected either pixel_values or patch_embeds, got " + ("neither" if patch_embeds is None else "both")
            )
        if pixel_values is not None:
            kwargs["return_dict"] = True
            return self.get_image_features(pixel_values, pixel_attention_mask, spatial_shapes, **kwargs)
        if image_embeds is None and self.config.reads_pooled_output:
            raise ParValueError(
                "image_embeds is None, but the logits depend on them (config.alignment is "
                f"{self.config.alignment!r}, config.pooled_classifier is {self.config.pooled_classifier})"
            )
        return ParImageFeatures(patch_embeds, image_embeds, patch_mask=self._patch_mask(patch_embeds, patch_mask))

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
        attributes: AskedAttributes | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        **kwargs: Any,
    ) -> ParOutput:
        """Scores every attribute of every person.

        Args:
            pixel_values, pixel_attention_mask, spatial_shapes: as in `get_image_features`.
            labels: int64 `(B, A)`, class index per attribute, -100 = unknown; gives the loss.
            patch_embeds, image_embeds, patch_mask: in place of pixels, what `get_image_features` returned, in any
                floating dtype. So the features of a frozen backbone can be computed once and used in every epoch.
            attributes: another label space for this call, from `VlmParModel.encode_attributes`.
            output_attentions: whether to return the attention of the fusion block.
            output_hidden_states: whether to return the states of the vision tower, which needs pixels; or which of
                them, where transformers can choose.
            kwargs: `num_items_in_batch` goes to the loss; all others are ignored, but `input_ids` are refused.

        Returns:
            `ParOutput`.

        Raises:
            ValueError: pixels and features are both given or both missing, one of their tensors is missing, the
                questions were never tokenized, or something is asked for that there is not: hidden states of features,
                attention without a fusion block, an answer to texts of the call, a loss of other attributes.
        """
        if labels is not None and attributes is not None:
            raise ParValueError(
                "labels and attributes were both given: the loss is that of the model's own label space"
            )
        if output_hidden_states and patch_embeds is not None:
            raise ParValueError(
                "output_hidden_states is True, but patch_embeds were given: the states of the vision tower's layers "
                "are computed from pixel_values only"
            )
        if output_attentions and self.attribute_heads.fusion == "none":
            raise ParValueError(
                "output_attentions is True, but config.fusion is 'none': no question looks at the patches; what each "
                "patch adds to a logit is model.patch_evidence(**inputs), and get_image_features(**inputs, "
                "output_attentions=True) has the attention of the vision tower"
            )
        if kwargs.get("input_ids") is not None:
            raise ParValueError(
                f"input_ids were given, but a {type(self).__name__} asks the questions of config.attributes and no "
                "others: leave out text= of the processor's call. FocusParModel answers for texts of the call"
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        constants = self._constants()
        features = self._image_inputs(
            pixel_values, pixel_attention_mask, spatial_shapes, patch_embeds, image_embeds, patch_mask,
            **({"output_hidden_states": output_hidden_states} if output_hidden_states else {}),
        )  # fmt: skip
        patch_embeds, image_embeds, patch_mask = features
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        output = self.attribute_heads.apply_constants(
            constants, patch_embeds, patch_mask, image_embeds, output_attentions=bool(output_attentions)
        )
        loss, logits, attentions = None, output.logits, output.attentions
        if labels is not None:
            loss = self.compute_loss(logits, labels, kwargs.get("num_items_in_batch"))
        elif attributes is None:
            self._guard_padding(logits)
        else:
            logits = attributes.logits(logits, image_embeds)
            attentions = None if attentions is None else attributes.choose(attentions)
        return ParOutput(
            loss=loss,
            logits=logits,
            image_embeds=image_embeds,
            attentions=attentions,
            hidden_states=features.hidden_states,
        )

    def compute_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """`ParLoss` with the settings of `config.loss` (VLM-PAR, equation 15)."""
        return self.loss_module(logits, labels, num_items_in_batch=num_items_in_batch)

    @torch.no_grad()
    def patch_evidence(self, **inputs: Any) -> torch.Tensor:
        """What each patch adds to the stage-2 logits of each label; inputs as in `forward`.

        Returns:
            float32 `(B, A, N, C)`, 0 at padding. With the variances of LayerNorm held fixed, the sum over N is the
            stage-2 logit minus a constant per label and minus what the tower's own pooled output adds.
        """
        output, patch_mask = self._answer_heads(inputs, output_evidence=True)
        mask = patch_mask[:, None, :, None] & self.attribute_heads.label_mask[:, None]
        return torch.where(mask, output.evidence, 0)

    @torch.no_grad()
    def explain(
        self,
        *,
        attribute: str | int | Sequence[str | int] | None = None,
        attributes: AskedAttributes | None = None,
        **inputs: Any,
    ) -> torch.Tensor:
        """How relevant each patch was for the answers.

        text_to_image: the attention, averaged over heads (sums to 1 over the patches). image_to_text, whose attention
        is over words, and none: the evidence of the patch for the predicted label minus the mean evidence for the
        other labels (`patch_evidence`); negative if the patch favours the others.

        Args:
            attribute: a name or position, or several; None takes all.
            attributes: another label space, from `VlmParModel.encode_attributes`.
            inputs: as in `forward`.

        Returns:
            float32 `(B, A, N)`, A the number of attributes asked for; 0 at padding, and for an attribute that is not
            in `attributes.explained`.

        Raises:
            KeyError: unknown attribute.
        """
        heads = self.attribute_heads
        if heads.fusion == "text_to_image":
            output, patch_mask = self._answer_heads(inputs, output_attentions=True)
            relevance = output.attentions.mean(2)
        else:
            output, patch_mask = self._answer_heads(inputs, output_evidence=True)
            predicted = F.one_hot(output.logits.argmax(-1), output.logits.shape[-1]).bool()
            others = (heads.label_mask & ~predicted)[:, :, None]
            evidence_for = (output.evidence * predicted[:, :, None]).sum(-1)
            relevance = evidence_for - (output.evidence * others).sum(-1) / others.sum(-1)
        relevance = torch.where(patch_mask[:, None], relevance, 0)
        if attributes is not None:
            return self._choose_attributes(attributes.choose(relevance), attributes.schema, attribute)
        return self._choose_attributes(relevance, self.schema, attribute)

    def _answer_heads(self, inputs: Mapping[str, Any], **options: bool) -> tuple[HeadsOutput, torch.Tensor]:
        """The heads' output and the mask of the patches; `options` are keywords of `apply_constants`."""
        constants = self._constants()
        patch_embeds, image_embeds, patch_mask = self._image_inputs(
            **{name: inputs.get(name) for name in IMAGE_INPUTS}
        )
        heads = self.attribute_heads
        return heads.apply_constants(constants, patch_embeds, patch_mask, image_embeds, **options), patch_mask
