"""VLM-PAR: Vision-Language Model for Pedestrian Attribute Recognition (Sellam et al., 2025).

A frozen SigLIP or SigLIP 2 backbone, one cross-attention block and one linear classifier per attribute.

What differs from the paper: real checkpoints are bidirectional, pre-LN and have no CLS token (equations 2-7 say
otherwise), so only the new fusion block is post-LN (equation 12). The paper does not say how the patches become one
vector before equation 13: here their mean. The question may look at the patches instead of the other way round
(`fusion="text_to_image"`, the default), and the backbone's zero-shot score may enter the logits
(`alignment="logit"`, the default); `VlmParConfig.paper()` has every choice as the paper does.

The text is constant, so the projections of equation 9 fold into it exactly, and equations 9-13 run without a
(patches x width) tensor per attribute; `AttributeHeads` has the algebra.

Letters: B people, N patches, A attributes, C labels, H heads, T question tokens, D vision width, E = D / H.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import can_return_tuple

from vlm_par_hf.backbones import OverBackbone
from vlm_par_hf.hub import PushToHub
from vlm_par_hf.losses import ParLoss
from vlm_par_hf.outputs import ParOutput

from .configuration_vlm_par import VlmParConfig
from .processing_vlm_par import VlmParProcessor


__all__ = ["AttributeHeads", "VlmParModel", "VlmParPreTrainedModel"]

NO_LABEL_LOGIT = -1e4  # past an attribute's own labels: probability 0, and finite in every dtype


class AttributeHeads(nn.Module):
    """Fusion block and classifier of every attribute, stacked along the first axis (VLM-PAR, equations 9-13).

    With constant text, exactly:

    - image to text: scores = F M with `M = W_Q K^T / sqrt(E)` (D x HT), and the fused patches are `F + alpha U` with
      `U = V W_O` (HT x D). Mean and variance of LayerNorm follow from inner products with the centred U and its Gram
      matrix, so the mean over patches is `sum_n w_n F_n + (sum_n w_n alpha_n) U` with `w_n = 1 / (N sigma_n)`.
    - text to image: scores = F k with `k = W_K q / sqrt(E)` per head (D), one pooled patch vector per head, then
      W_V and W_O.

    A fresh block is a no-op on the mean patch. text_to_image: `query` is 0, so attention is uniform, and `value` and
    `output` are identities, so the block answers the mean patch, which LayerNorm cannot tell from the residual alone.
    image_to_text: `output` is 0. The classifier is 0 as well. After one step of the classifier, gradients reach
    `query` (text_to_image) or `output` (image_to_text), after the next step everything else.

    Args:
        num_labels: number of labels of each attribute.
        width: D, of the vision tower.
        text_width: of the text tower's states.
        fusion, alignment, num_heads, dropout, eps: as in `VlmParConfig`.
    """

    def __init__(
        self,
        num_labels: Sequence[int],
        width: int,
        text_width: int,
        *,
        fusion: str,
        alignment: str,
        num_heads: int,
        dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        A, C = len(num_labels), max(num_labels)
        self.num_labels = tuple(num_labels)
        self.width = width
        self.fusion = fusion
        self.alignment = alignment
        self.num_heads = num_heads
        self.dropout = dropout
        self.eps = eps
        if fusion != "none":
            asks, answers = (text_width, width) if fusion == "text_to_image" else (width, text_width)
            self.query = nn.Parameter(torch.empty(A, asks, width))
            self.key = nn.Parameter(torch.empty(A, answers, width))
            self.value = nn.Parameter(torch.empty(A, answers, width))
            self.output = nn.Parameter(torch.empty(A, width, width))
        self.norm_weight = nn.Parameter(torch.empty(A, width))
        self.norm_bias = nn.Parameter(torch.empty(A, width))
        self.classifier_weight = nn.Parameter(torch.empty(A, width, C))
        self.classifier_bias = nn.Parameter(torch.empty(A, C))
        if alignment == "logit":
            self.gate = nn.Parameter(torch.empty(A))
        self.register_buffer("pooled_mean", torch.empty(width))
        self.register_buffer("pooled_std", torch.empty(width))
        self.register_buffer("label_mask", torch.empty(A, C, dtype=torch.bool), persistent=False)

    def init_parameters(self) -> None:
        """Initial values; respects what a checkpoint has filled already."""
        if self.fusion == "text_to_image":
            init.zeros_(self.query)
            self._init_projection(self.key)
            for projection in (self.value, self.output):
                init.copy_(projection, torch.eye(self.width).expand_as(projection))
        elif self.fusion == "image_to_text":
            for projection in (self.query, self.key, self.value):
                self._init_projection(projection)
            init.zeros_(self.output)
        init.ones_(self.norm_weight)
        init.zeros_(self.norm_bias)
        init.zeros_(self.classifier_weight)
        init.zeros_(self.classifier_bias)
        if self.alignment == "logit":
            init.ones_(self.gate)
        init.zeros_(self.pooled_mean)
        init.ones_(self.pooled_std)
        labels = torch.arange(max(self.num_labels))
        init.copy_(self.label_mask, labels[None, :] < torch.tensor(self.num_labels)[:, None])

    @staticmethod
    def _init_projection(projection: torch.Tensor) -> None:
        # Xavier for each attribute's own (inputs, outputs) matrix; the stacking axis is no fan.
        bound = (6.0 / (projection.shape[1] + projection.shape[2])) ** 0.5
        init.uniform_(projection, -bound, bound)

    def fold_text(self, states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the fusion needs of the constant text.

        Args:
            states: `(A, T, text_width)` states of the questions.
            mask: bool `(A, T)`, True for tokens that count.

        Returns:
            text_to_image: `(keys (A, H, D),)`. image_to_text: `(M (A, HT, D), U (A, HT, D) centred, Gram matrix of U
            float32 (A, HT, HT), mask (A, HT))`. none: `()`.
        """
        if self.fusion == "none":
            return ()
        A, H, D, E = len(self.num_labels), self.num_heads, self.width, self.width // self.num_heads
        states = states.to(self.query.dtype)
        with _no_autocast(states):
            if self.fusion == "text_to_image":
                weight = mask.to(states.dtype) / mask.sum(1, keepdim=True)
                question = torch.einsum("at,atd->ad", weight, states)
                queries = torch.einsum("ad,ade->ae", question, self.query).view(A, H, E) * E**-0.5
                return (torch.einsum("adhe,ahe->ahd", self.key.view(A, D, H, E), queries),)
            T = states.shape[1]
            keys = torch.einsum("atd,ade->ate", states, self.key).view(A, T, H, E) * E**-0.5
            values = torch.einsum("atd,ade->ate", states, self.value).view(A, T, H, E)
            scores = torch.einsum("adhe,athe->ahtd", self.query.view(A, D, H, E), keys).flatten(1, 2)
            answers = torch.einsum("athe,ahed->ahtd", values, self.output.view(A, H, E, D)).flatten(1, 2)
            answers = answers - answers.mean(-1, keepdim=True)
            wide = _wide(answers)
            return scores, answers, wide @ wide.mT, mask[:, None, :].expand(A, H, T).flatten(1)

    def pool(
        self, patches: torch.Tensor, patch_mask: torch.Tensor, folded: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor | None, "_PatchTerms"]:
        """One vector per person and attribute (VLM-PAR, equations 9-12 and the mean over patches).

        Args:
            patches: `(B, N, D)`; what lies under the mask is never read.
            patch_mask: bool `(B, N)`.
            folded: from `fold_text`.

        Returns:
            pooled float32 `(B, A, D)`, attention probabilities in float32 as in `ParOutput` (None without fusion), and
            what `patch_evidence` needs.
        """
        patches = patches.to(self.classifier_weight.dtype)
        patches = torch.where(patch_mask[..., None], patches, 0)
        count = patch_mask.sum(1).clamp_min(1)
        if self.fusion == "text_to_image":
            return self._pool_text_to_image(patches, patch_mask, count, *folded)
        centred = _wide(patches)
        centred = centred - centred.mean(-1, keepdim=True)
        energy = centred.square().sum(-1)  # (B, N)
        if self.fusion == "none":
            weight = torch.where(patch_mask, self._inverse_std(energy) / count[:, None], 0)
            with _no_autocast(patches):
                normalised = torch.einsum("bn,bnd->bd", weight, centred)[:, None]
            return self._affine(normalised), None, _PatchTerms(centred, weight[..., None])
        return self._pool_image_to_text(patches, centred, energy, patch_mask, count, *folded)

    def _pool_text_to_image(self, patches, patch_mask, count, keys):
        B, N, D = patches.shape
        A, H, E = len(self.num_labels), self.num_heads, D // self.num_heads
        scores = _wide(patches @ keys.flatten(0, 1).mT).mT.view(B, A, H, N)
        lowest = torch.finfo(scores.dtype).min
        probabilities = scores.masked_fill(~patch_mask[:, None, None], lowest).softmax(-1)
        dropped = F.dropout(probabilities, self.dropout, self.training)
        attended = (dropped.flatten(1, 2).to(patches.dtype) @ patches).view(B, A, H, D)
        heads = torch.einsum("bahd,adhe->bahe", attended, self.value.view(A, D, H, E)).flatten(2)
        answer = _wide(torch.einsum("bad,ade->bae", heads, self.output))
        mean = _wide(patches).sum(1) / count[:, None]
        fused = answer + mean[:, None]
        centred = fused - fused.mean(-1, keepdim=True)
        inverse_std = self._inverse_std(centred.square().sum(-1))  # (B, A)
        terms = _PatchTerms(_wide(patches), (inverse_std / count[:, None])[:, None], dropped, inverse_std)
        return self._affine(centred * inverse_std[..., None]), probabilities, terms

    def _pool_image_to_text(self, patches, centred, energy, patch_mask, count, queries, answers, gram, token_mask):
        B, N, D = patches.shape
        A, HT = token_mask.shape
        H = self.num_heads
        # One product with every patch for all attributes: the attention scores, and the inner products that the
        # variance needs. The answers are centred, so patches and centred patches have the same product with them.
        products = _wide(patches @ torch.cat([queries, answers], 1).flatten(0, 1).mT).view(B, N, A, 2 * HT)
        scores, cross = products.split(HT, -1)
        scores = scores.masked_fill(~token_mask, torch.finfo(scores.dtype).min)
        probabilities = scores.unflatten(-1, (H, HT // H)).softmax(-1)
        dropped = F.dropout(probabilities, self.dropout, self.training).flatten(-2)  # (B, N, A, HT)
        with _no_autocast(patches):
            quadratic = (torch.einsum("bnai,aij->bnaj", dropped, gram) * dropped).sum(-1)
            # Rounding can make a vanishing square negative.
            total = (energy[..., None] + 2 * (dropped * cross).sum(-1) + quadratic).clamp_min(0)  # (B, N, A)
            weight = torch.where(patch_mask[..., None], self._inverse_std(total) / count[:, None, None], 0)
            mixture = torch.einsum("bna,bnai->bai", weight, dropped)
            normalised = torch.einsum("bna,bnd->bad", weight, centred)
            normalised = normalised + torch.einsum("bai,aid->bad", mixture, _wide(answers))
        attentions = probabilities.permute(0, 2, 3, 1, 4)  # (B, A, H, N, T)
        return self._affine(normalised), attentions, _PatchTerms(centred, weight, dropped, answers=answers)

    def _inverse_std(self, square_sum: torch.Tensor) -> torch.Tensor:
        return torch.rsqrt(square_sum / self.width + self.eps)

    def _affine(self, normalised: torch.Tensor) -> torch.Tensor:
        return normalised * _wide(self.norm_weight) + _wide(self.norm_bias)

    def classify(self, pooled: torch.Tensor) -> torch.Tensor:
        """Stage-2 logits, float32 `(B, A, C)` (VLM-PAR, equation 13); nothing is masked yet."""
        with _no_autocast(pooled):
            standard = (pooled - _wide(self.pooled_mean)) / _wide(self.pooled_std)
            logits = torch.einsum("bad,adc->bac", standard, _wide(self.classifier_weight))
            return logits + _wide(self.classifier_bias)

    def patch_evidence(self, terms: "_PatchTerms") -> torch.Tensor:
        """What each patch adds to the stage-2 logits.

        With the variances taken as given, the stage-2 logits are a sum over patches plus a constant per label.

        Returns:
            float32 `(B, A, N, C)`; the sum over N is the logit minus the constant.
        """
        direction = _wide(self.norm_weight)[..., None] * _wide(self.classifier_weight)
        direction = direction / _wide(self.pooled_std)[:, None]  # (A, D, C)
        with _no_autocast(direction):
            if self.fusion != "text_to_image":
                own = torch.einsum("bnd,adc->bnac", terms.patches, direction)
                if terms.answers is not None:
                    answers = torch.einsum("aid,adc->aic", _wide(terms.answers), direction)
                    own = own + torch.einsum("bnai,aic->bnac", terms.attention, answers)
                return (own * terms.weight[..., None]).transpose(1, 2)
            A, D, H = len(self.num_labels), self.width, self.num_heads
            direction = direction - direction.mean(1, keepdim=True)  # the centring of LayerNorm
            own = torch.einsum("bnd,adc->bnac", terms.patches, direction) * terms.weight[..., None]
            back = torch.einsum("ade,aec->adc", _wide(self.output), direction).view(A, H, D // H, -1)
            back = torch.einsum("adhe,ahec->ahdc", _wide(self.value).view(A, D, H, D // H), back)
            seen = torch.einsum("bnd,ahdc->bahnc", terms.patches, back)
            seen = (seen * terms.attention[..., None]).sum(2) * terms.inverse_std[..., None, None]
            return own.transpose(1, 2) + seen


class _PatchTerms:
    """What `AttributeHeads.patch_evidence` needs of a forward."""

    def __init__(self, patches, weight, attention=None, inverse_std=None, answers=None):
        self.patches = patches
        self.weight = weight
        self.attention = attention
        self.inverse_std = inverse_std
        self.answers = answers


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """float32 at least: variances, softmax, cosines and logits are computed in it."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _no_autocast(tensor: torch.Tensor) -> AbstractContextManager:
    return nullcontext() if tensor.device.type == "meta" else torch.autocast(tensor.device.type, enabled=False)


class VlmParPreTrainedModel(PushToHub, OverBackbone, PreTrainedModel):
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
        A, C, T = len(self.schema), self.schema.max_labels, self._question_length()
        if config.fusion != "none":
            self.register_buffer("question_states", torch.zeros(A, T, text.hidden_size))
            self.register_buffer("question_mask", torch.zeros(A, T, dtype=torch.bool))
        if config.alignment == "logit":
            self.register_buffer("prompt_embeds", torch.zeros(A, C, text.projection_size))
        self._text_ready = False
        self._folded: tuple | None = None
        self._loss: tuple | None = None
        self.post_init()
        self._freeze_backbone()

    # Text

    def _question_length(self) -> int:
        """T of the buffers, from the configuration alone: a checkpoint is loaded into buffers of this size."""
        ids = self.config.question_input_ids
        return max(len(self._kept_positions(len(one))) for one in ids) if ids else 0

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
        if config.alignment == "logit":
            _, pooled = self._encode_text([ids for prompts in config.prompt_input_ids for ids in prompts])
            pooled = F.normalize(_wide(pooled), dim=-1).to(pooled.dtype)
            prompt_embeds = pooled.new_zeros(A, C, pooled.shape[-1])
            prompt_embeds[self.attribute_heads.label_mask] = pooled
            self.prompt_embeds = prompt_embeds
        self._text_ready = True
        self._folded = None

    def _encode_text(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """States `(texts, length, width)` and pooled `(texts, projection)`, as the backbone was trained: padded to the
        right, no mask."""
        length = self.config.vlm_config.text_config.max_position_embeddings
        padding = self.config.text_pad_token_id
        padded = torch.tensor([(one + [padding] * length)[:length] for one in ids], device=self.vlm.logit_scale.device)
        was_training = self.vlm.text_model.training
        self.vlm.text_model.eval()
        with _no_autocast(padded):
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

    def _fold_text(self) -> tuple[torch.Tensor, ...]:
        """The folded text: rebuilt wherever gradients or a compiler need the computation, kept otherwise."""
        heads = self.attribute_heads
        if heads.fusion == "none":
            return ()
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return heads.fold_text(self.question_states, self.question_mask)
        sources = (heads.query, heads.key, heads.value, heads.output, self.question_states, self.question_mask)
        if any(source.is_inference() for source in sources):  # these do not count their versions
            return heads.fold_text(self.question_states, self.question_mask)
        versions = [source._version for source in sources]
        if self._folded is not None:
            kept_sources, kept_versions, folded = self._folded
            if kept_versions == versions and all(mine is kept for mine, kept in zip(sources, kept_sources)):
                return folded
        folded = heads.fold_text(self.question_states, self.question_mask)
        self._folded = (sources, versions, folded)
        return folded

    def _apply(self, fn, recurse=True):
        self._folded = None  # `.to()` exchanges the data under a parameter without counting a version
        return super()._apply(fn, recurse)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        self._folded = None
        self._text_ready = False
        return super().load_state_dict(state_dict, strict, assign)

    # Freezing

    def train(self, mode: bool = True) -> "VlmParModel":
        """As `torch.nn.Module.train`, but what is frozen stays frozen and in eval mode."""
        super().train(mode)
        self._freeze_backbone()
        self._folded = None
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

    # Computation

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the heads see of the images; without gradients where the backbone is frozen.

        Args:
            pixel_values: `(B, N, 3 * patch_size**2)` for NaFlex, `(B, 3, height, width)` for fixed resolution.
            pixel_attention_mask: `(B, N)`, 1 for patches that count (NaFlex; None: all).
            spatial_shapes: int64 `(B, 2)`, rows and columns of patches (NaFlex).

        Returns:
            patch_embeds `(B, N, D)` after the tower's last LayerNorm, image_embeds `(B, D)` not normalised, patch_mask
            bool `(B, N)`.

        Raises:
            ValueError: `spatial_shapes` is missing (NaFlex), or the images have the wrong number of dimensions.
        """
        naflex = self.config.vlm_config.model_type == "siglip2"
        if pixel_values.ndim != (3 if naflex else 4):
            raise ValueError(
                f"pixel_values must have shape {'(B, N, values of a patch)' if naflex else '(B, 3, height, width)'} "
                f"for a {self.config.vlm_config.model_type} backbone, got {tuple(pixel_values.shape)}"
            )
        inputs: dict[str, Any] = {"pixel_values": pixel_values}
        if naflex:
            if spatial_shapes is None:
                raise ValueError("spatial_shapes is None, expected int64 (B, 2): this backbone takes NaFlex patches")
            inputs.update(pixel_attention_mask=pixel_attention_mask, spatial_shapes=spatial_shapes)
        else:
            size = self.config.vlm_config.vision_config.image_size
            inputs["interpolate_pos_encoding"] = tuple(pixel_values.shape[-2:]) != (size, size)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_backbone):
            outputs = self.vlm.get_image_features(**inputs)
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

    def _align(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """The backbone's zero-shot logits of each label's prompt, float32 `(B, A, C)`."""
        with _no_autocast(image_embeds):
            image = F.normalize(_wide(image_embeds), dim=-1)
            cosine = torch.einsum("be,ace->bac", image, F.normalize(_wide(self.prompt_embeds), dim=-1))
            return cosine * _wide(self.vlm.logit_scale).exp() + _wide(self.vlm.logit_bias)

    def _score(self, pooled: torch.Tensor, image_embeds: torch.Tensor | None) -> torch.Tensor:
        logits = self.attribute_heads.classify(pooled)
        if self.config.alignment == "logit":
            logits = logits + _wide(self.attribute_heads.gate)[:, None] * self._align(image_embeds)
        return torch.where(self.attribute_heads.label_mask, logits, NO_LABEL_LOGIT)

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
        self._ensure_text()
        patch_embeds, image_embeds, patch_mask = self._image_inputs(
            pixel_values, pixel_attention_mask, spatial_shapes, patch_embeds, image_embeds, patch_mask
        )
        pooled, attentions, _ = self.attribute_heads.pool(patch_embeds, patch_mask, self._fold_text())
        logits = self._score(pooled, image_embeds)
        loss = None
        if labels is not None:
            loss = self.compute_loss(logits, labels, kwargs.get("num_items_in_batch"))
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        return ParOutput(
            loss=loss,
            logits=logits,
            image_embeds=image_embeds,
            attentions=attentions if output_attentions else None,
        )

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
        _, _, terms, patch_mask = self._explain(inputs)
        evidence = self.attribute_heads.patch_evidence(terms)
        return torch.where(patch_mask[:, None, :, None] & self.attribute_heads.label_mask[:, None], evidence, 0)

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
        pooled, (attentions, image_embeds), terms, patch_mask = self._explain(inputs)
        heads = self.attribute_heads
        if heads.fusion == "text_to_image":
            relevance = attentions.mean(2)
        else:
            evidence = heads.patch_evidence(terms)
            predicted = self._score(pooled, image_embeds).argmax(-1)  # (B, A)
            chosen = F.one_hot(predicted, evidence.shape[-1]).bool()
            rest = (heads.label_mask & ~chosen)[:, :, None]
            speaks_for = (evidence * chosen[:, :, None]).sum(-1)
            relevance = speaks_for - (evidence * rest).sum(-1) / rest.sum(-1)
        relevance = torch.where(patch_mask[:, None], relevance, 0)
        if attribute is None:
            return relevance
        chosen = [attribute] if isinstance(attribute, (str, int)) else list(attribute)
        return relevance[:, [self.schema.index(one) if isinstance(one, str) else one for one in chosen]]

    def _explain(self, inputs: Mapping[str, Any]):
        inputs = {name: inputs.get(name) for name in IMAGE_INPUTS}
        self._ensure_text()
        patch_embeds, image_embeds, patch_mask = self._image_inputs(**inputs)
        pooled, attentions, terms = self.attribute_heads.pool(patch_embeds, patch_mask, self._fold_text())
        return pooled, (attentions, image_embeds), terms, patch_mask

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
            pooled = self._explain(batch)[0].double().flatten(0, 1)
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
