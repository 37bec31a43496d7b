"""VLM-PAR: Vision-Language Model for Pedestrian Attribute Recognition (Sellam et al., 2025).

A frozen SigLIP or SigLIP 2 backbone, one cross-attention block and one linear classifier per attribute.

What differs from the paper: real checkpoints are bidirectional, pre-LN and have no CLS token (equations 2-7 say
otherwise), so only the new fusion block is post-LN (equation 12). The paper does not say how the patches become one
vector before equation 13: here their mean. The question may look at the patches instead of the other way round
(`fusion="text_to_image"`, the default), and the backbone's zero-shot score may enter the logits
(`alignment="logit"`, the default); `VlmParConfig.paper()` has every choice as the paper does.

The text is constant, so the projections of equation 9 fold into it exactly, and equations 9-13 run without a
(patches x width) tensor per attribute; `heads_vlm_par` has the algebra, `VlmParModel.fold` the model without a text
tower that follows.

Letters: B people, N patches, A attributes, C labels, H heads, T question tokens, D vision width.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import can_return_tuple

from vlm_par_hf.backbones import OverBackbone
from vlm_par_hf.hub import PushToHub
from vlm_par_hf.layers import no_autocast, wide
from vlm_par_hf.losses import ParLoss
from vlm_par_hf.outputs import ParOutput

from .configuration_vlm_par import VlmParConfig
from .heads_vlm_par import AttributeHeads, HeadsOutput
from .processing_vlm_par import VlmParProcessor


if TYPE_CHECKING:
    from .folded_vlm_par import FoldedVlmParModel

__all__ = ["VlmParForward", "VlmParModel", "VlmParPreTrainedModel"]


class VlmParForward:
    """From images to answers: what the trainable and the folded VLM-PAR share.

    Of the model: `config`, `schema`, `attribute_heads`, and the two below.
    """

    @property
    def _vision_tower(self) -> PreTrainedModel:
        raise NotImplementedError

    def _constants(self) -> dict[str, torch.Tensor]:
        """The constants of `attribute_heads.apply_constants`."""
        raise NotImplementedError

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
        vision = self._vision_tower.config
        naflex = vision.model_type.startswith("siglip2")
        if pixel_values.ndim != (3 if naflex else 4):
            raise ValueError(
                f"pixel_values must have shape {'(B, N, values of a patch)' if naflex else '(B, 3, height, width)'} "
                f"for a {vision.model_type.removesuffix('_vision_model')} backbone, got {tuple(pixel_values.shape)}"
            )
        inputs: dict[str, Any] = {"pixel_values": pixel_values}
        if naflex:
            if spatial_shapes is None:
                raise ValueError("spatial_shapes is None, expected int64 (B, 2): this backbone takes NaFlex patches")
            inputs.update(pixel_attention_mask=pixel_attention_mask, spatial_shapes=spatial_shapes)
        else:
            inputs["interpolate_pos_encoding"] = tuple(pixel_values.shape[-2:]) != (vision.image_size,) * 2
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_backbone):
            outputs = self._vision_tower(**inputs)
        patch_embeds = outputs.last_hidden_state
        if naflex and pixel_attention_mask is not None:
            patch_mask = pixel_attention_mask.bool()
        else:
            patch_mask = torch.ones(patch_embeds.shape[:2], dtype=torch.bool, device=patch_embeds.device)
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
        if patch_mask is None:
            patch_mask = torch.ones(patch_embeds.shape[:2], dtype=torch.bool, device=patch_embeds.device)
        return patch_embeds, image_embeds, patch_mask.bool()

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
        # In a tuple, so that it is no submodule: it belongs to the training, not to the checkpoint.
        if self._loss is None or self._loss[0] != self.config.loss:
            self._loss = (dict(self.config.loss), ParLoss(self.schema, **self.config.loss))
        return self._loss[1].train(self.training)(logits, labels, num_items_in_batch=num_items_in_batch)

    @torch.no_grad()
    def patch_evidence(self, **inputs: Any) -> torch.Tensor:
        """What each patch adds to the stage-2 logits of each label; inputs as in `forward`.

        Returns:
            float32 `(B, A, N, C)`, 0 at padding. With the variances of LayerNorm taken as given, the sum over N is the
            stage-2 logit minus a constant per label.
        """
        found, patch_mask = self._look_closer(inputs, output_evidence=True)
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
            found, patch_mask = self._look_closer(inputs, output_attentions=True)
            relevance = found.attentions.mean(2)
        else:
            found, patch_mask = self._look_closer(inputs, output_evidence=True)
            chosen = F.one_hot(found.logits.argmax(-1), found.logits.shape[-1]).bool()  # the predicted label
            rest = (heads.label_mask & ~chosen)[:, :, None]
            speaks_for = (found.evidence * chosen[:, :, None]).sum(-1)
            relevance = speaks_for - (found.evidence * rest).sum(-1) / rest.sum(-1)
        relevance = torch.where(patch_mask[:, None], relevance, 0)
        if attribute is None:
            return relevance
        chosen = [attribute] if isinstance(attribute, (str, int)) else list(attribute)
        return relevance[:, [self.schema.index(one) if isinstance(one, str) else one for one in chosen]]

    def _look_closer(self, inputs: Mapping[str, Any], **options: bool) -> tuple[HeadsOutput, torch.Tensor]:
        """What the heads answer, with more than the logits, and the mask of the patches."""
        constants = self._constants()
        patch_embeds, image_embeds, patch_mask = self._image_inputs(
            **{name: inputs.get(name) for name in IMAGE_INPUTS}
        )
        heads = self.attribute_heads
        return heads.apply_constants(constants, patch_embeds, patch_mask, image_embeds, **options), patch_mask


class VlmParPreTrainedModel(PushToHub, OverBackbone, VlmParForward, PreTrainedModel):
    """Base of the VLM-PAR models: initial weights, and what transformers asks of a class."""

    config_class = VlmParConfig
    processor_class = VlmParProcessor
    base_model_prefix = "vlm"  # so that a plain SigLIP checkpoint loads into `VlmParModel.vlm`
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AttributeHeads):
            module.init_parameters()
        elif isinstance(module, VlmParModel):
            for name in ("question_states", "question_mask", "prompt_embeds"):
                if hasattr(module, name):
                    init.zeros_(getattr(module, name))


class VlmParModel(VlmParPreTrainedModel):
    """VLM-PAR over a SigLIP or SigLIP 2 backbone.

    A fresh model with `alignment="logit"` is exactly the zero-shot classifier of its backbone. The logits are float32
    whatever the dtype of the model.

    Args:
        config: its `attributes` must be set.

    Raises:
        ValueError: `config.attributes` is None.
    """

    def __init__(self, config: VlmParConfig) -> None:
        super().__init__(config)
        self.schema = config.schema
        text, vision = config.vlm_config.text_config, config.vlm_config.vision_config
        self.vlm = AutoModel.from_config(config.vlm_config)
        self.attribute_heads = AttributeHeads(
            self.schema.num_labels,
            vision.hidden_size,
            text.hidden_size,
            fusion=config.fusion,
            alignment=config.alignment,
            num_heads=config.num_fusion_heads,
            dropout=config.attention_dropout,
            eps=config.layer_norm_eps,
        )
        A, C, T = len(self.schema), self.schema.max_labels, max(self._question_lengths(), default=0)
        if config.fusion != "none":
            self.register_buffer("question_states", torch.zeros(A, T, text.hidden_size))
            self.register_buffer("question_mask", torch.zeros(A, T, dtype=torch.bool))
        if config.alignment == "logit":
            self.register_buffer("prompt_embeds", torch.zeros(A, C, text.projection_size))
        self.attribute_heads.question_lengths = self._question_lengths()
        self._text_ready = False
        self._kept_constants: tuple | None = None
        self._loss: tuple | None = None
        self.post_init()
        self._freeze_backbone()

    # Text

    def _question_lengths(self) -> tuple[int, ...]:
        """T of each attribute, from the configuration alone: a checkpoint is loaded into buffers of this size."""
        return tuple(len(self._kept_positions(len(one))) for one in self.config.question_input_ids or ())

    def _kept_positions(self, length: int) -> list[int]:
        last = self.config.vlm_config.text_config.max_position_embeddings - 1
        if self.config.question_tokens == "all":
            return list(range(last + 1))
        return sorted({*range(min(length, last + 1)), last})

    @torch.no_grad()
    def encode_questions(self, processor: VlmParProcessor | None = None) -> None:
        """Runs the text tower once over every question and prompt and keeps the results in persistent buffers.

        Args:
            processor: tokenizes the questions and prompts of `config.schema`; the ids go into the configuration. None
                takes the ids that the configuration has.

        Raises:
            ValueError: no processor and no ids.
        """
        config = self.config
        if processor is not None:
            limit = config.vlm_config.text_config.max_position_embeddings
            config.text_pad_token_id = int(processor.tokenizer.pad_token_id)
            config.question_input_ids = processor.encode_texts(self.schema.questions, limit)
            config.prompt_input_ids = [processor.encode_texts(attribute.prompts, limit) for attribute in self.schema]
        if config.question_input_ids is None or config.prompt_input_ids is None:
            raise ValueError(
                "processor is None and the configuration has no question_input_ids or prompt_input_ids: the questions "
                "were never tokenized; call model.encode_questions(processor)"
            )
        A, C = len(self.schema), self.schema.max_labels
        if config.fusion != "none":
            states, _ = self._encode_text(config.question_input_ids)
            kept = [self._kept_positions(len(ids)) for ids in config.question_input_ids]
            T = max(len(positions) for positions in kept)
            question_states = states.new_zeros(A, T, states.shape[-1])
            question_mask = torch.zeros(A, T, dtype=torch.bool, device=states.device)
            for row, positions in enumerate(kept):
                question_states[row, : len(positions)] = states[row, positions]
                question_mask[row, : len(positions)] = True
            self.question_states, self.question_mask = question_states, question_mask
            self.attribute_heads.question_lengths = self._question_lengths()
        if config.alignment == "logit":
            _, pooled = self._encode_text([ids for prompts in config.prompt_input_ids for ids in prompts])
            pooled = F.normalize(wide(pooled), dim=-1).to(pooled.dtype)
            prompt_embeds = pooled.new_zeros(A, C, pooled.shape[-1])
            prompt_embeds[self.attribute_heads.label_mask] = pooled
            self.prompt_embeds = prompt_embeds
        self._text_ready = True
        self._kept_constants = None

    def _encode_text(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """States `(texts, length, width)` and pooled `(texts, projection)`, as the backbone was trained: padded to the
        right, no mask."""
        length = self.config.vlm_config.text_config.max_position_embeddings
        padding = self.config.text_pad_token_id
        padded = torch.tensor([(one + [padding] * length)[:length] for one in ids], device=self.vlm.logit_scale.device)
        was_training = self.vlm.text_model.training
        self.vlm.text_model.eval()
        with no_autocast(padded):
            outputs = [self.vlm.get_text_features(chunk) for chunk in padded.split(64)]
        self.vlm.text_model.train(was_training)
        return torch.cat([one.last_hidden_state for one in outputs]), torch.cat([one.pooler_output for one in outputs])

    def _ensure_text(self) -> None:
        if self._text_ready:
            return
        buffers = [getattr(self, name) for name in ("question_mask", "prompt_embeds") if hasattr(self, name)]
        on_meta = any(buffer.is_meta for buffer in buffers)
        if not on_meta and not all(buffer.numel() and bool(buffer.any()) for buffer in buffers):
            self.encode_questions()
        self._text_ready = True

    @property
    def _vision_tower(self) -> PreTrainedModel:
        return self.vlm.vision_model

    def _constants(self) -> dict[str, torch.Tensor]:
        """Parameters and text folded: anew wherever gradients or a compiler need the computation, kept otherwise."""
        self._ensure_text()
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return self._fold()
        sources = (*self.attribute_heads.parameters(), *self.attribute_heads.buffers(), *self._text().values())
        if any(source.is_inference() for source in sources):  # these do not count their versions
            return self._fold()
        versions = [source._version for source in sources]
        if self._kept_constants is not None:
            kept_sources, kept_versions, constants = self._kept_constants
            if kept_versions == versions and all(mine is kept for mine, kept in zip(sources, kept_sources)):
                return constants
        constants = self._fold()
        self._kept_constants = (sources, versions, constants)
        return constants

    def _text(self) -> dict[str, torch.Tensor]:
        """What the heads fold of the text, as arguments of `AttributeHeads.fold`."""
        text = {}
        if self.config.fusion != "none":
            text.update(states=self.question_states, mask=self.question_mask)
        if self.config.alignment == "logit":
            text.update(prompts=self.prompt_embeds, scale=self.vlm.logit_scale, bias=self.vlm.logit_bias)
        return text

    def _fold(self) -> dict[str, torch.Tensor]:
        return self.attribute_heads.fold(**self._text())

    def fold(self) -> "FoldedVlmParModel":
        """The same answers without what only training needs: a new model of the vision tower and a few constants.

        This one stays as it is. The result is saved and loaded like any model, by `AutoModel` too, answers in the
        pipeline and cannot be trained. It has no text tower; without alignment its tower has no pooling head.

        Raises:
            ValueError: the questions were never tokenized.
        """
        from .folded_vlm_par import fold_vlm_par

        return fold_vlm_par(self)

    def _apply(self, fn, recurse=True):
        self._kept_constants = None  # `.to()` exchanges the data under a parameter without counting a version
        return super()._apply(fn, recurse)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        self._kept_constants = None
        self._text_ready = False
        return super().load_state_dict(state_dict, strict, assign)

    # Freezing

    def train(self, mode: bool = True) -> "VlmParModel":
        """As `torch.nn.Module.train`, but what is frozen stays frozen and in eval mode."""
        super().train(mode)
        self._freeze_backbone()
        self._kept_constants = None
        return self

    def _freeze_backbone(self) -> None:
        # Loading makes new parameters that want gradients, hence again at each `train()`; `from_pretrained` ends
        # with `eval()`, which is `train(False)`.
        self.vlm.requires_grad_(False)
        self.vlm.eval()
        if not self.config.freeze_backbone:
            vision = self.vlm.vision_model
            vision.requires_grad_(True)
            vision.train(self.training)
            if self.config.alignment == "none":  # nothing reads the pooled output
                vision.head.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.get_input_embeddings()

    # Starting values and optimisation

    @torch.no_grad()
    def fit_pooled_statistics(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Standardises the pooled vector before the classifier by the statistics of these images.

        An affine map that decides how fast the classifier learns and nothing else: the classifier is rewritten, so the
        logits stay as they are.

        Args:
            batches: keyword arguments of `forward`, pixels or features; training images.

        Raises:
            ValueError: fewer than two images.
        """
        heads = self.attribute_heads
        was_training = self.training
        self.eval()
        count, total, square = 0, 0.0, 0.0
        for batch in batches:
            pooled = self._look_closer(batch)[0].pooled.double()
            pooled = (pooled * heads.norm_weight.double() + heads.norm_bias.double()).flatten(0, 1)
            count += pooled.shape[0]
            total = total + pooled.sum(0)
            square = square + pooled.square().sum(0)
        self.train(was_training)
        if count < 2 * len(self.schema):
            raise ValueError(f"batches must hold at least 2 images, got {count // len(self.schema)}")
        mean = total / count
        std = (square / count - mean.square()).clamp_min(0).sqrt()
        # A feature that hardly varies would be blown up to the size of the others.
        std = std.clamp_min((1e-3 * std.mean()).clamp_min(1e-6))
        shift = (mean - heads.pooled_mean.double()) / heads.pooled_std.double()
        weight = heads.classifier_weight.double()
        heads.classifier_bias += torch.einsum("d,adc->ac", shift, weight).to(heads.classifier_bias.dtype)
        heads.classifier_weight.copy_(weight * (std / heads.pooled_std.double())[:, None])
        heads.pooled_mean.copy_(mean)
        heads.pooled_std.copy_(std)

    @torch.no_grad()
    def init_bias_from_priors(self, priors: Sequence | torch.Tensor) -> None:
        """Starts every attribute's classifier bias at the log of how often each label occurs.

        Args:
            priors: per attribute the share of each label, `(A, C)` or a list of lists of its own number of labels; for
                a binary attribute the share of its second label alone will do.

        Raises:
            ValueError: wrong number of attributes or labels, or a share outside 0..1.
        """
        bias = self.attribute_heads.classifier_bias
        if len(priors) != len(self.schema):
            raise ValueError(f"priors must have one entry per attribute ({len(self.schema)}), got {len(priors)}")
        for row, (attribute, prior) in enumerate(zip(self.schema, priors)):
            shares = torch.as_tensor(prior, dtype=torch.float64).flatten()
            if shares.numel() == 1 and attribute.is_binary:
                shares = torch.cat([1 - shares, shares])
            shares = shares[: attribute.num_labels]
            if shares.numel() != attribute.num_labels or not bool(((shares >= 0) & (shares <= 1)).all()):
                raise ValueError(
                    f"priors of attribute {attribute.name!r} must be {attribute.num_labels} shares between 0 and 1, "
                    f"got {prior}"
                )
            bias[row, : attribute.num_labels] = shares.clamp(1e-4, 1 - 1e-4).log().to(bias)

    def parameter_groups(
        self,
        learning_rate: float,
        fusion_learning_rate: float | None = None,
        *,
        backbone_learning_rate: float = 1e-5,
        weight_decay: float = 0.01,
    ) -> list[dict[str, Any]]:
        """Every trainable parameter once, grouped for an optimizer such as AdamW.

        Args:
            learning_rate: of classifiers and gates.
            fusion_learning_rate: of the fusion block; None takes 0.128 / D. Adam moves every entry of every projection
                by this at each step, and a product over D entries by D times as much, so a wide backbone wants a
                smaller one: 1e-3 at the embedded backbone's 128, 1.7e-4 at 768.
            backbone_learning_rate: of the vision tower where it is trained.
            weight_decay: of matrices; biases, gates and LayerNorm have none.
        """
        fusion_rate = 0.128 / self.attribute_heads.width if fusion_learning_rate is None else fusion_learning_rate
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            own = name.removeprefix("attribute_heads.")
            if own == name:
                part, decays = "backbone", parameter.ndim >= 2
            else:
                part = "classifier" if own.startswith(("classifier", "gate")) else "fusion"
                decays = own in ("query", "key", "value", "output", "classifier_weight")
            groups.setdefault((part, decays), []).append(parameter)
        rates = {"classifier": learning_rate, "fusion": fusion_rate, "backbone": backbone_learning_rate}
        return [
            {"name": part, "params": parameters, "lr": rates[part], "weight_decay": weight_decay if decays else 0.0}
            for (part, decays), parameters in groups.items()
        ]

    def _prepare_texts(self, processor: VlmParProcessor | None) -> None:
        if processor is not None:
            self.encode_questions(processor)
        elif self.config.question_input_ids is not None:
            self._ensure_text()  # now, so that the first forward does not


IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes", "patch_embeds", "image_embeds", "patch_mask")
