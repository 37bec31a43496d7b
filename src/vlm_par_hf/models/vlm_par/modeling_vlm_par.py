"""VLM-PAR: Vision-Language Model for Pedestrian Attribute Recognition (Sellam et al., 2025).

A frozen SigLIP or SigLIP 2 backbone, one cross-attention block and one linear classifier per attribute.

What differs from the paper: real checkpoints have a bidirectional text tower, pre-LN layers and no CLS token, unlike
equations 2-7, so only the new fusion block is post-LN (equation 12). The paper does not say how the patches become one
vector before equation 13; here it is their mean. By default the question attends to the patches and not the other way
round (`fusion="text_to_image"`), the backbone's zero-shot score is added to the logits (`alignment="logit"`), and a
linear classifier reads the tower's own pooled output too (`pooled_classifier=True`), without which the heads can be
worse than a linear probe. `VlmParConfig.paper()` makes every choice as in the paper.

The text is constant, so it can be multiplied into the projections of equation 9 in advance, without approximation, and
equations 9-13 need no (patches x width) tensor per attribute. `heads_vlm_par` explains the algebra; `VlmParModel.fold`
makes a model that stores only these products and has no text tower.

Letters: B people, N patches, A attributes, C labels, H heads, T question tokens, D vision width.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers.utils import logging

from vlm_par_hf.base.adapters import adapter_parameters, adapter_state, has_adapters
from vlm_par_hf.base.backbones import BackbonePreTrainedModel
from vlm_par_hf.base.decisions import fit_decisions
from vlm_par_hf.base.modeling import ExchangedAttributes, evaluation_mode
from vlm_par_hf.base.numerics import no_autocast, wide
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.asking import read_asked
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema, check_label_range
from vlm_par_hf.upstream import TOWERS, Towers, init

from .answering_vlm_par import IMAGE_INPUTS, AskedAttributes, VlmParForward
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

    A fresh model gives all labels the same score. With `alignment="logit"`, `fit_zero_shot` makes it the zero-shot
    classifier of its backbone. The logits are float32 whatever the dtype of the model.

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
        self._build_adapters()
        self.attribute_heads = self._build_heads()
        A, C, T = len(self.schema), self.schema.max_labels, max(self._question_lengths(), default=0)
        if config.fusion != "none":
            self.register_buffer("question_mask", torch.zeros(A, T, dtype=torch.bool))
            if config.num_question_prompts:  # then the states follow from these, and are no buffer
                shape = (A, config.num_question_prompts, text.hidden_size)
                self.question_prompts = nn.Parameter(torch.empty(shape))
            else:
                self.register_buffer("question_states", torch.zeros(A, T, text.hidden_size))
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
            pooled_classifier=config.pooled_classifier,
            num_heads=config.num_fusion_heads,
            dropout=config.attention_dropout,
            eps=config.layer_norm_eps,
        )

    def init_parameters(self) -> None:
        """Zeros in the buffers that `encode_questions` fills, and small random vectors in the questions.
        `attribute_heads` initialises its own parameters."""
        for name in ("question_states", "question_mask", "prompt_embeds"):
            if hasattr(self, name):
                init.zeros_(getattr(self, name))
        if self.config.num_question_prompts:
            init.normal_(self.question_prompts, std=0.02)

    @classmethod
    def from_backbone(cls, name: str | Path, **kwargs: Any) -> "VlmParModel":
        """As `BackbonePreTrainedModel.from_backbone`; then the learnable vectors of the questions, if there are any,
        are set to the embedding of the padding that they replace, so that a fresh model reads its questions as its
        backbone does."""
        model = super().from_backbone(name, **kwargs)
        if model.config.num_question_prompts:
            with torch.no_grad():
                model.question_prompts.copy_(model._padding_embedding().expand_as(model.question_prompts))
        return model

    def _padding_embedding(self) -> torch.Tensor:
        return self._towers.word_table(self.vlm)[self.config.text_pad_token_id]

    @property
    def _towers(self) -> Towers:
        return TOWERS[self.config.vlm_config.model_type]

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
        longest = max((len(ids) for ids in config.question_input_ids or ()), default=0)
        if config.num_question_prompts and longest > config.longest_question:
            raise ParValueError(
                f"question_input_ids holds a question of {longest} tokens, expected at most {config.longest_question} "
                f"beside {config.num_question_prompts} learnable vectors"
            )

    def _question_lengths(self) -> tuple[int, ...]:
        """T of each attribute, from the configuration alone: the buffers need this size before a checkpoint is
        loaded."""
        return tuple(len(self._kept_positions(len(one))) for one in self.config.question_input_ids or ())

    def _kept_positions(self, length: int) -> list[int]:
        """The positions of a text of `length` tokens whose states are used, by `config.question_tokens`."""
        last = self.config.vlm_config.text_config.max_position_embeddings - 1
        if self.config.question_tokens == "all":
            return list(range(last + 1))
        first_prompt = last - self.config.num_question_prompts
        return sorted({*range(min(length, last + 1)), *range(first_prompt, last + 1)})

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
            config.question_input_ids = processor.encode_texts(self.schema.questions, config.longest_question)
            config.prompt_input_ids = [processor.encode_texts(attribute.prompts, limit) for attribute in self.schema]
        if config.question_input_ids is None or config.prompt_input_ids is None:
            raise ParValueError(
                "processor is None and the configuration has no question_input_ids or prompt_input_ids: the questions "
                "were never tokenized; call model.encode_questions(processor)"
            )
        A, C = len(self.schema), self.schema.max_labels
        if config.fusion != "none":
            lengths = torch.tensor(self._question_lengths(), device=self.vlm.logit_scale.device)
            self.question_mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
            self.attribute_heads.question_lengths = self._question_lengths()
            if config.num_question_prompts:
                self._kept.clear()  # the questions are others, though no tensor is that they are kept by
            else:
                self.question_states = self._keep_positions(self._encode_text(config.question_input_ids)[0])
        if config.alignment == "logit":
            _, pooled = self._encode_text([ids for prompts in config.prompt_input_ids for ids in prompts])
            pooled = F.normalize(wide(pooled), dim=-1).to(pooled.dtype)
            prompt_embeds = pooled.new_zeros(A, C, pooled.shape[-1])
            prompt_embeds[self.attribute_heads.label_mask] = pooled
            self.prompt_embeds = prompt_embeds
        self._text_ready = True

    def _keep_positions(self, states: torch.Tensor) -> torch.Tensor:
        """The states of the questions whose positions count, `(A, T, width)`, from those of all positions; 0 past a
        question's own length."""
        kept = [self._kept_positions(len(ids)) for ids in self.config.question_input_ids]
        T = self.question_mask.shape[1]
        positions = torch.tensor([[*one, *one[:1] * (T - len(one))] for one in kept], device=states.device)
        found = states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))
        return torch.where(self.question_mask[..., None], found, 0)

    def _read_questions(self) -> torch.Tensor:
        """The states `(A, T, width)` of the questions with their learnable vectors, from the text tower; with
        gradients to the vectors."""
        config, m = self.config, self.config.num_question_prompts
        length = config.vlm_config.text_config.max_position_embeddings
        padding = config.text_pad_token_id
        padded = torch.tensor(
            [one + [padding] * (length - len(one)) for one in config.question_input_ids], device=self.device
        )
        with no_autocast(self.question_prompts), evaluation_mode(self.vlm.text_model):
            words = self._towers.embed_words(self.vlm, padded)
            words = torch.cat([words[:, : -m - 1], self.question_prompts.to(words.dtype), words[:, -1:]], 1)
            return self._keep_positions(self._towers.read_words(self.vlm, words))

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
        heads, text_tower = self.attribute_heads, self.vlm.text_model
        if self.config.num_question_prompts:  # in place of the states, which cost a pass of the text tower
            sources = (self.question_prompts, self.question_mask, *self._prompt_tensors().values())
            sources += tuple(adapter_parameters(text_tower))
        else:
            sources = tuple(self._text_tensors().values())
        state = adapter_state(heads, text_tower)
        kept = self._kept.of((*heads.parameters(), *heads.buffers(), *sources), state)
        if "constants" not in kept:
            kept["constants"] = self._compute_constants()
        return kept["constants"]

    def _text_tensors(self) -> dict[str, torch.Tensor]:
        """The encoded texts, as arguments of `AttributeHeads.compute_constants`."""
        text = self._prompt_tensors()
        if self.config.fusion != "none":
            states = self._read_questions() if self.config.num_question_prompts else self.question_states
            text.update(states=states, mask=self.question_mask)
        return text

    def _prompt_tensors(self) -> dict[str, torch.Tensor]:
        if self.config.alignment == "none":
            return {}
        return {"prompts": self.prompt_embeds, "scale": self.vlm.logit_scale, "bias": self.vlm.logit_bias}

    def _compute_constants(self) -> dict[str, torch.Tensor]:
        return self.attribute_heads.compute_constants(**self._text_tensors())

    @property
    def supports_attributes(self) -> bool:
        """Whether pictures are compared with prompts, so that attributes can be described in words."""
        return self.config.alignment == "logit"

    @property
    def why_no_texts(self) -> str:
        return 'this model compares no picture with prompts (alignment="none"); one with alignment="logit" does'

    @torch.no_grad()
    def encode_attributes(self, attributes: Any, processor: VlmParProcessor | None = None) -> AskedAttributes:
        """Encodes any label space, for `forward(attributes=...)`.

        An attribute of the model is answered by its head. Any other is answered by its prompts alone, as the backbone
        does it without training (zero-shot): such answers rank people, and their probabilities are not calibrated.

        Args:
            attributes: a list of the model's own names and of what `AttributeSchema.from_texts` takes, or a schema.
            processor: tokenizes the texts; needed only if there are any.

        Raises:
            ValueError, TypeError: no attribute, an attribute twice; or there are texts, and `config.alignment` is
                "none", or there is no processor.
        """
        asked = read_asked(attributes, self.schema, subject=self.text_subject)
        E = self.config.vlm_config.text_config.projection_size
        prompts = torch.zeros(len(asked.schema), asked.schema.max_labels, E, device=self.device)
        if asked.texts:
            texts = f"attributes describes {asked.texts[0]!r} in words, but "
            if not self.supports_attributes:
                raise ParValueError(texts + self.why_no_texts)
            if processor is None:
                raise ParValueError(f"{texts}processor is None: expected the model's processor")
            limit = self.config.vlm_config.text_config.max_position_embeddings
            for row, (one, place) in enumerate(zip(asked.schema, asked.places)):
                if place is None:
                    pooled = wide(self._encode_text(processor.encode_texts(one.prompts, limit))[1])
                    prompts[row, : one.num_labels] = F.normalize(pooled, dim=-1)
            prompts = prompts * wide(self.vlm.logit_scale).exp()
        return AskedAttributes(asked.schema, asked.places, prompts)

    @torch.no_grad()
    def exchange_attributes(self, attributes: Any, processor: VlmParProcessor) -> ExchangedAttributes:
        """Gives the model another label space, to go on training with it.

        An attribute whose name and labels were in the old label space keeps its head. The others get fresh ones, with
        the median gate of the old ones, so until they are trained they answer as the backbone does. All questions and
        prompts are encoded anew, and weighting and priors of `config.loss` are removed. A warning says what was kept.
        New parameters require gradients where the old ones did.

        Args:
            attributes: `AttributeSchema` or list of dicts.
            processor: tokenizes the questions and prompts.

        Returns:
            The names of the attributes that were kept, are fresh, and were left out; also `exchanged_attributes`.

        Raises:
            ValueError, TypeError: as for `AttributeSchema`; or the heads are held by peft (`modules_to_save`).
        """
        if has_adapters(self.attribute_heads):
            raise ParValueError(
                "attribute_heads is held by peft (modules_to_save), whose copies would be lost: merge first, "
                "peft_model.merge_and_unload(), then exchange the label space"
            )
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
        if self.config.alignment == "logit":
            new.gate.fill_(old.gate.float().quantile(0.5))
        learns = {name: parameter.requires_grad for name, parameter in old.named_parameters()}
        old_state = old.state_dict()
        for name, tensor in new.state_dict().items():
            if name.endswith(("_mean", "_std")):  # of the images, not of an attribute
                tensor.copy_(old_state[name])
                continue
            for row, place in kept.items():
                target, source = tensor[row], old_state[name][place]
                if "classifier" in name:  # filled up to the largest number of labels of the label space
                    target, source = (one[..., : schema[row].num_labels] for one in (target, source))
                target.copy_(source)
        for name, parameter in new.named_parameters():
            parameter.requires_grad_(learns[name])
        new.train(old.training)
        self.attribute_heads = new
        if self.config.num_question_prompts:
            prompts = self._padding_embedding().repeat(len(schema), self.config.num_question_prompts, 1)
            for row, place in kept.items():
                prompts[row] = self.question_prompts[place]
            self.question_prompts = nn.Parameter(prompts, requires_grad=self.question_prompts.requires_grad)
        self.encode_questions(processor)
        self.exchanged_attributes = ExchangedAttributes(
            kept=tuple(schema[row].name for row in kept),
            fresh=tuple(one.name for row, one in enumerate(schema) if row not in kept),
            left_out=tuple(one.name for place, one in enumerate(before) if place not in kept.values()),
        )
        logger.warning(
            "The label space is exchanged. Heads kept: %s. Fresh, to be trained: %s. Left out: %s.",
            *(", ".join(names) or "none" for names in self.exchanged_attributes),
        )
        return self.exchanged_attributes

    def _exchange_attributes(self, schema: AttributeSchema, processor: VlmParProcessor) -> None:
        self.exchange_attributes(schema, processor)

    def fold(self) -> FoldedVlmParModel:
        """A new model for inference that gives the same answers and consists of the vision tower and a few constants.

        This model is not changed. The new one can be saved, loaded (by `AutoModel` too) and used in the pipeline like
        any model, but not trained. It has no text tower, and no pooling head if no logit depends on the pooled output.

        Raises:
            ValueError: the questions were never tokenized, or the model is quantised.
        """
        return fold_vlm_par(self)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        self._text_ready = False
        self._kept.clear()
        return super().load_state_dict(state_dict, strict, assign)

    def train(self, mode: bool = True) -> "VlmParModel":
        super().train(mode)
        if mode and self.vlm.text_model.training:
            logger.warning_once(
                "Parameters of the text tower require gradients and will get none: the questions are encoded once, "
                "without gradients. Free parts of vlm.vision_model or of attribute_heads instead (LoRA: "
                r"target_modules=r'.*vision_model.*\.(q_proj|v_proj)'); after a change of the text tower call "
                "model.encode_questions()."
            )
        return self

    def _freeze_unused(self) -> None:
        if not self.config.reads_pooled_output:
            self.vlm.vision_model.head.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.get_input_embeddings()

    # Starting values and optimisation

    @torch.no_grad()
    def fit_pooled_statistics(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Sets the means and standard deviations by which the classifiers' inputs are standardised: the pooled vector
        of the fusion and, with `config.pooled_classifier`, the tower's own pooled output.

        The weights are changed accordingly, so the logits stay the same. The standardisation only changes how fast the
        classifiers learn.

        Args:
            batches: keyword arguments of `forward`, pixels or features; training images.

        Raises:
            ValueError: fewer than two images.
        """
        heads = self.attribute_heads
        found = {"pooled": _Moments(), "image": _Moments()}
        with evaluation_mode(self):
            for batch in batches:
                patch_embeds, image_embeds, patch_mask = self._image_inputs(
                    **{name: batch.get(name) for name in IMAGE_INPUTS}
                )
                output = heads.apply_constants(self._constants(), patch_embeds, patch_mask, image_embeds)
                pooled = output.pooled.double() * heads.norm_weight.double() + heads.norm_bias.double()
                found["pooled"].add(pooled.flatten(0, 1))
                if self.config.pooled_classifier:
                    found["image"].add(image_embeds.double())
        count = found["pooled"].count // len(self.schema)
        if count < 2:
            raise ParValueError(f"batches must hold at least 2 images, got {count}")
        for kind, moments in found.items():
            if moments.count:
                heads.restandardise(kind, *moments.mean_and_std())

    @property
    def starts_from_priors(self) -> bool:
        return True

    @property
    def starts_from_zero_shot(self) -> bool:
        return self.config.alignment == "logit"

    @torch.no_grad()
    def fit_zero_shot(self, batches: Iterable[Mapping[str, Any]] | None = None) -> None:
        """Makes a fresh model the zero-shot classifier of its backbone: sets the gates of stage 1 and the biases.

        Without images, all gates are 1 and all biases 0: the logits are the scores that the backbone was trained to
        give, up to a constant. With training images, the gate and the biases of each attribute are fitted to their
        labels (Platt scaling), by cross-entropy with the class weights of `config.loss`. The backbone's own scale is
        that of one picture among all captions of a batch, far too large for one attribute of a person: with gates of
        1, training starts from answers that are certain and often wrong.

        Args:
            batches: keyword arguments of `forward`, with `labels`; training images. Of the features only
                `image_embeds` are needed. An attribute with fewer than two different known labels keeps gate and
                biases.

        Raises:
            ValueError: `config.alignment` is "none", the model is trained already, a batch has no labels, or they do
                not fit the label space.
        """
        heads = self.attribute_heads
        if self.config.alignment != "logit":
            raise ParValueError('alignment is "none": this model does not compare pictures with prompts')
        for name in ("classifier_weight", "image_classifier_weight"):
            if bool(getattr(heads, name, heads.gate.new_zeros(1)).any()):
                raise ParValueError(
                    f"attribute_heads.{name} is not 0: this model is trained, and its classifiers would be added to "
                    "the zero-shot scores; call fit_zero_shot on a model from from_backbone"
                )
        if batches is None:
            heads.gate.fill_(1.0)
            heads.classifier_bias.zero_()
            return
        images, labels = [], []
        with evaluation_mode(self):
            for batch in batches:
                if batch.get("labels") is None:
                    raise ParValueError(
                        f"a batch of batches has no labels (it has {sorted(batch)}): expected int64 (B, A)"
                    )
                image_embeds = batch.get("image_embeds")
                if image_embeds is None:
                    image_embeds = self._image_inputs(**{name: batch.get(name) for name in IMAGE_INPUTS}).pooler_output
                images.append(image_embeds.double())
                labels.append(batch["labels"].cpu())
        if not images:
            raise ParValueError("batches is empty: expected at least one batch of training images")
        self._ensure_text()
        labels = torch.cat(labels)
        if labels.shape[1:] != (len(self.schema),):
            raise ParValueError(f"labels has shape {tuple(labels.shape)}, expected (B, {len(self.schema)})")
        check_label_range(labels.numpy(), self.schema)
        prompts = F.normalize(self.prompt_embeds.double(), dim=-1) * self.vlm.logit_scale.double().exp()
        scores = torch.einsum("be,ace->bac", F.normalize(torch.cat(images), dim=-1), prompts).cpu()
        self._set_gates(scores, labels)

    def _set_gates(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Fits gates and biases to the zero-shot scores of training images.

        Args:
            scores: float64 `(S, A, C)`; values past an attribute's own labels are ignored.
            labels: int64 `(S, A)`.
        """
        heads, loss = self.attribute_heads, self.loss_module
        # In units of their spread, so that the penalty of the fit does not depend on the backbone's scale.
        own = heads.label_mask.cpu()
        mean = torch.where(own, scores, 0).sum(-1, keepdim=True) / own.sum(-1)[:, None]
        spread = torch.where(own, scores - mean, 0).square().mean((0, 2)).sqrt().clamp_min(1e-6)  # (A,)
        gain, offset = fit_decisions((scores - mean) / spread[:, None], labels, self.schema, weighting=loss.weighting)
        offsets = offset.split(self.schema.num_labels)
        if loss.logit_adjustment:  # what training adds to the logits
            priors = self.config.loss["priors"]
            offsets = [
                one - loss.logit_adjustment * torch.tensor(prior, dtype=one.dtype).log()
                for one, prior in zip(offsets, priors)
            ]
        for position, (attribute, column) in enumerate(zip(self.schema, labels.T)):
            if len(column[column != UNKNOWN_LABEL].unique()) < 2:
                continue
            heads.gate[position] = gain[position] / spread[position]
            heads.classifier_bias[position, : attribute.num_labels] = offsets[position].to(heads.classifier_bias)

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
        if name == "question_prompts":
            return "classifier", False
        own = name.removeprefix("attribute_heads.")
        if own == name:
            return "backbone", parameter.ndim >= 2
        part = "classifier" if "classifier" in own or own == "gate" else "fusion"
        return part, own in ("query", "key", "value", "output", "classifier_weight", "image_classifier_weight")

    def _prepare_texts(self, processor: VlmParProcessor | None) -> None:
        if processor is not None:
            self.encode_questions(processor)
        elif self.config.question_input_ids is not None:
            self._ensure_text()  # encode the texts now, not in the first forward pass


class _Moments:
    """Mean and standard deviation of rows that arrive in parts."""

    def __init__(self) -> None:
        self.count, self.total, self.square = 0, 0.0, 0.0

    def add(self, rows: torch.Tensor) -> None:
        """Adds rows, float64 `(n, D)`."""
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.square = self.square + rows.square().sum(0)

    def mean_and_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Float64 `(D,)` each; the deviation has a lower bound, so that a feature that hardly varies is not scaled
        up."""
        mean = self.total / self.count
        std = (self.square / self.count - mean.square()).clamp_min(0).sqrt()
        return mean, std.clamp_min((1e-3 * std.mean()).clamp_min(1e-6))
