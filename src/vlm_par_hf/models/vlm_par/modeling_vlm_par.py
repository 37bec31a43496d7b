"""VLM-PAR: Vision-Language Model for Pedestrian Attribute Recognition (Sellam et al., 2025).

A frozen SigLIP or SigLIP 2 backbone, one cross-attention block and one linear classifier per attribute.

What differs from the paper: real checkpoints have a bidirectional text tower, pre-LN layers and no CLS token, unlike
equations 2-7, so only the new fusion block is post-LN (equation 12). The paper does not say how the patches become one
vector before equation 13; here it is their mean. By default the question attends to the patches and not the other way
round (`fusion="text_to_image"`), and the backbone's zero-shot score is added to the logits (`alignment="logit"`).
`VlmParConfig.paper()` makes every choice as in the paper.

The text is constant, so it can be multiplied into the projections of equation 9 in advance, without approximation, and
equations 9-13 need no (patches x width) tensor per attribute. `heads_vlm_par` explains the algebra; `VlmParModel.fold`
makes a model that stores only these products and has no text tower.

Letters: B people, N patches, A attributes, C labels, H heads, T question tokens, D vision width.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers.utils import logging

from vlm_par_hf.base.backbones import BackbonePreTrainedModel
from vlm_par_hf.base.modeling import evaluation_mode
from vlm_par_hf.base.numerics import no_autocast, wide
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.upstream import init

from .answering_vlm_par import VlmParForward
from .configuration_vlm_par import VlmParConfig
from .folded_vlm_par import FoldedVlmParModel, fold_vlm_par
from .heads_vlm_par import AttributeHeads
from .processing_vlm_par import VlmParProcessor


__all__ = ["VlmParModel", "VlmParPreTrainedModel"]

logger = logging.get_logger(__name__)


class VlmParPreTrainedModel(VlmParForward, BackbonePreTrainedModel):
    """Base of the VLM-PAR models that can be trained."""

    config_class = VlmParConfig
    processor_class = VlmParProcessor


class VlmParModel(VlmParPreTrainedModel):
    """VLM-PAR over a SigLIP or SigLIP 2 backbone.

    A fresh model with `alignment="logit"` gives exactly the zero-shot scores of its backbone. The logits are float32
    whatever the dtype of the model.

    Args:
        config: its `attributes` must be set.

    Raises:
        ValueError: `config.attributes` is None.
    """

    supports_fold = True
    supports_pooled_statistics = True
    parameter_rates = {
        "classifier": "learning_rate", "fusion": "fusion_learning_rate", "backbone": "backbone_learning_rate",
    }  # fmt: skip

    def __init__(self, config: VlmParConfig) -> None:
        super().__init__(config)
        self._check_token_ids()
        text = config.vlm_config.text_config
        self.vlm = AutoModel.from_config(config.vlm_config)
        self.attribute_heads = self._build_heads()
        A, C, T = len(self.schema), self.schema.max_labels, max(self._question_lengths(), default=0)
        if config.fusion != "none":
            self.register_buffer("question_states", torch.zeros(A, T, text.hidden_size))
            self.register_buffer("question_mask", torch.zeros(A, T, dtype=torch.bool))
        if config.alignment == "logit":
            self.register_buffer("prompt_embeds", torch.zeros(A, C, text.projection_size))
        self.attribute_heads.question_lengths = self._question_lengths()
        self._text_ready = False
        self.post_init()
        self._freeze()

    def _build_heads(self) -> AttributeHeads:
        config = self.config
        return AttributeHeads(
            self.schema.num_labels,
            config.vlm_config.vision_config.hidden_size,
            config.vlm_config.text_config.hidden_size,
            fusion=config.fusion,
            alignment=config.alignment,
            num_heads=config.num_fusion_heads,
            dropout=config.attention_dropout,
            eps=config.layer_norm_eps,
        )

    def init_parameters(self) -> None:
        """Zeros in the buffers that `encode_questions` fills. `attribute_heads` initialises its own parameters."""
        for name in ("question_states", "question_mask", "prompt_embeds"):
            if hasattr(self, name):
                init.zeros_(getattr(self, name))

    # Text

    def _check_token_ids(self) -> None:
        """Refuses token ids in the configuration that belong to another label space."""
        config = self.config
        found = [None if ids is None else len(ids) for ids in (config.question_input_ids, config.prompt_input_ids)]
        if any(count not in (None, len(self.schema)) for count in found):
            raise ParValueError(
                f"question_input_ids and prompt_input_ids must have one entry per attribute ({len(self.schema)}), got "
                f"{found[0]} and {found[1]}"
            )
        for one, ids in zip(self.schema, config.prompt_input_ids or ()):
            if len(ids) != one.num_labels or not all(ids):
                raise ParValueError(
                    f"prompt_input_ids of {one.name!r} must be {one.num_labels} texts, got {ids!r:.80}"
                )
        if not all(config.question_input_ids or ()):
            raise ParValueError("question_input_ids holds a question without tokens")

    def _question_lengths(self) -> tuple[int, ...]:
        """T of each attribute, from the configuration alone: the buffers need this size before a checkpoint is
        loaded."""
        return tuple(len(self._kept_positions(len(one))) for one in self.config.question_input_ids or ())

    def _kept_positions(self, length: int) -> list[int]:
        """The positions of a text of `length` tokens whose states are used, by `config.question_tokens`."""
        last = self.config.vlm_config.text_config.max_position_embeddings - 1
        if self.config.question_tokens == "all":
            return list(range(last + 1))
        return sorted({*range(min(length, last + 1)), last})

    @torch.no_grad()
    def encode_questions(self, processor: VlmParProcessor | None = None) -> None:
        """Runs the text tower once over every question and prompt and stores the results in persistent buffers.

        Args:
            processor: tokenizes the questions and prompts of `config.schema`; the ids are stored in the configuration.
                None uses the ids that are there already.

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
            raise ParValueError(
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

    def _encode_text(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """States `(texts, length, width)` and pooled vectors `(texts, projection)` of token ids. Padded to the right
        and without a mask, as the backbone was trained."""
        length = self.config.vlm_config.text_config.max_position_embeddings
        padding = self.config.text_pad_token_id
        padded = torch.tensor([(one + [padding] * length)[:length] for one in ids], device=self.vlm.logit_scale.device)
        with no_autocast(padded), evaluation_mode(self.vlm.text_model):
            outputs = [self.vlm.get_text_features(chunk) for chunk in padded.split(64)]
        return torch.cat([one.last_hidden_state for one in outputs]), torch.cat([one.pooler_output for one in outputs])

    def _ensure_text(self) -> None:
        """Encodes the texts if no checkpoint has filled the buffers. Raises a ValueError if they were never
        tokenized."""
        if self._text_ready:
            return
        buffers = [getattr(self, name) for name in ("question_mask", "prompt_embeds") if hasattr(self, name)]
        on_meta = any(buffer.is_meta for buffer in buffers)
        if not on_meta and not all(buffer.numel() and bool(buffer.any()) for buffer in buffers):
            self.encode_questions()
        self._text_ready = True

    @property
    def vision_tower(self) -> nn.Module:
        return self.vlm.vision_model

    def _constants(self) -> dict[str, torch.Tensor]:
        """The constants that the heads compute from parameters and text. Computed at each call if gradients are
        enabled or a compiler traces; cached otherwise."""
        self._ensure_text()
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return self._compute_constants()
        heads = self.attribute_heads
        kept = self._kept.of((*heads.parameters(), *heads.buffers(), *self._text_tensors().values()))
        if "constants" not in kept:
            kept["constants"] = self._compute_constants()
        return kept["constants"]

    def _text_tensors(self) -> dict[str, torch.Tensor]:
        """The encoded texts, as arguments of `AttributeHeads.compute_constants`."""
        text = {}
        if self.config.fusion != "none":
            text.update(states=self.question_states, mask=self.question_mask)
        if self.config.alignment == "logit":
            text.update(prompts=self.prompt_embeds, scale=self.vlm.logit_scale, bias=self.vlm.logit_bias)
        return text

    def _compute_constants(self) -> dict[str, torch.Tensor]:
        return self.attribute_heads.compute_constants(**self._text_tensors())

    @torch.no_grad()
    def exchange_attributes(self, attributes: Any, processor: VlmParProcessor) -> None:
        """Gives the model another label space, to go on training with it.

        An attribute whose name and labels were in the old label space keeps its head, the others get fresh ones. All
        questions and prompts are encoded anew, and weighting and priors of `config.loss` are removed. A warning says
        what was kept. New parameters require gradients where the old ones did.

        Args:
            attributes: `AttributeSchema` or list of dicts.
            processor: tokenizes the questions and prompts.

        Raises:
            ValueError, TypeError: as for `AttributeSchema`.
        """
        schema = attributes if isinstance(attributes, AttributeSchema) else AttributeSchema(attributes)
        before, old = self.schema, self.attribute_heads
        places = {(one.name, one.labels): place for place, one in enumerate(before)}
        kept = {
            row: places[one.name, one.labels] for row, one in enumerate(schema) if (one.name, one.labels) in places
        }
        self._set_label_space(schema)
        new = self._build_heads()
        new.init_parameters()
        new.to(old.norm_weight.device, old.norm_weight.dtype)
        learns = {name: parameter.requires_grad for name, parameter in old.named_parameters()}
        old_state = old.state_dict()
        for name, tensor in new.state_dict().items():
            if name in ("pooled_mean", "pooled_std"):  # of the images, not of an attribute
                tensor.copy_(old_state[name])
                continue
            for row, place in kept.items():
                target, source = tensor[row], old_state[name][place]
                if name.startswith("classifier"):  # filled up to the largest number of labels of the label space
                    target, source = (one[..., : schema[row].num_labels] for one in (target, source))
                target.copy_(source)
        for name, parameter in new.named_parameters():
            parameter.requires_grad_(learns[name])
        new.train(old.training)
        self.attribute_heads = new
        self.encode_questions(processor)
        logger.warning(
            "The label space is exchanged. Heads kept: %s. Fresh, to be trained: %s. Left out: %s.",
            *(
                ", ".join(names) or "none"
                for names in (
                    [schema[row].name for row in kept],
                    [one.name for row, one in enumerate(schema) if row not in kept],
                    [one.name for place, one in enumerate(before) if place not in kept.values()],
                )
            ),
        )

    def _exchange_attributes(self, schema: AttributeSchema, processor: VlmParProcessor) -> None:
        self.exchange_attributes(schema, processor)

    def fold(self) -> FoldedVlmParModel:
        """A new model for inference that gives the same answers and consists of the vision tower and a few constants.

        This model is not changed. The new one can be saved, loaded (by `AutoModel` too) and used in the pipeline like
        any model, but not trained. It has no text tower, and without alignment its vision tower has no pooling head.

        Raises:
            ValueError: the questions were never tokenized, or the model is quantised.
        """
        return fold_vlm_par(self)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        self._text_ready = False
        return super().load_state_dict(state_dict, strict, assign)

    def train(self, mode: bool = True) -> "VlmParModel":
        super().train(mode)
        if mode and self.vlm.text_model.training:
            logger.warning_once(
                "Parameters of the text tower require gradients and will get none: the questions are encoded once, "
                "without gradients. Free parts of vlm.vision_model or of attribute_heads instead; after a change of "
                "the text tower call model.encode_questions()."
            )
        return self

    def _freeze_unused(self) -> None:
        if self.config.alignment == "none":  # only the alignment reads the pooled output
            self.vlm.vision_model.head.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.get_input_embeddings()

    # Starting values and optimisation

    @torch.no_grad()
    def fit_pooled_statistics(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Sets the mean and standard deviation by which the pooled vector is standardised before the classifier.

        The classifier's weights are changed accordingly, so the logits stay the same. The standardisation only changes
        how fast the classifier learns.

        Args:
            batches: keyword arguments of `forward`, pixels or features; training images.

        Raises:
            ValueError: fewer than two images.
        """
        heads = self.attribute_heads
        count, total, square = 0, 0.0, 0.0
        with evaluation_mode(self):
            for batch in batches:
                pooled = self._answer_heads(batch)[0].pooled.double()
                pooled = (pooled * heads.norm_weight.double() + heads.norm_bias.double()).flatten(0, 1)
                count += pooled.shape[0]
                total = total + pooled.sum(0)
                square = square + pooled.square().sum(0)
        if count < 2 * len(self.schema):
            raise ParValueError(f"batches must hold at least 2 images, got {count // len(self.schema)}")
        mean = total / count
        std = (square / count - mean.square()).clamp_min(0).sqrt()
        # Lower bound: do not scale up a feature that hardly varies.
        std = std.clamp_min((1e-3 * std.mean()).clamp_min(1e-6))
        shift = (mean - heads.pooled_mean.double()) / heads.pooled_std.double()
        weight = heads.classifier_weight.double()
        heads.classifier_bias += torch.einsum("d,adc->ac", shift, weight).to(heads.classifier_bias.dtype)
        heads.classifier_weight.copy_(weight * (std / heads.pooled_std.double())[:, None])
        heads.pooled_mean.copy_(mean)
        heads.pooled_std.copy_(std)

    @property
    def starts_from_priors(self) -> bool:
        return self.config.alignment == "none"

    @torch.no_grad()
    def init_bias_from_priors(self, priors: Sequence | torch.Tensor) -> None:
        """Sets every attribute's classifier bias to the logarithm of each label's share in the training split.

        Args:
            priors: per attribute the share of each label, `(A, C)` or a list of lists of its own number of labels; for
                a binary attribute the share of its second label alone is enough.

        Raises:
            ValueError: wrong number of attributes or labels, or a share outside 0..1.
        """
        bias = self.attribute_heads.classifier_bias
        if len(priors) != len(self.schema):
            raise ParValueError(f"priors must have one entry per attribute ({len(self.schema)}), got {len(priors)}")
        for row, (attribute, prior) in enumerate(zip(self.schema, priors)):
            shares = torch.as_tensor(prior, dtype=torch.float64).flatten()
            if shares.numel() == 1 and attribute.is_binary:
                shares = torch.cat([1 - shares, shares])
            shares = shares[: attribute.num_labels]
            if shares.numel() != attribute.num_labels or not bool(((shares >= 0) & (shares <= 1)).all()):
                raise ParValueError(
                    f"priors of attribute {attribute.name!r} must be {attribute.num_labels} shares between 0 and 1, "
                    f"got {prior}"
                )
            bias[row, : attribute.num_labels] = shares.clamp(1e-4, 1 - 1e-4).log().to(bias)

    @property
    def fusion_width(self) -> int:
        return self.attribute_heads.width

    def _part_of(self, name: str, parameter: nn.Parameter) -> tuple[str, bool]:
        own = name.removeprefix("attribute_heads.")
        if own == name:
            return "backbone", parameter.ndim >= 2
        part = "classifier" if own.startswith(("classifier", "gate")) else "fusion"
        return part, own in ("query", "key", "value", "output", "classifier_weight")

    def _prepare_texts(self, processor: VlmParProcessor | None) -> None:
        if processor is not None:
            self.encode_questions(processor)
        elif self.config.question_input_ids is not None:
            self._ensure_text()  # encode the texts now, not in the first forward pass
