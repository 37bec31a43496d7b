"""FOCUS: fine-grained optimisation with semantic guided understanding for PAR (An et al., 2025).

An attribute is recognised by its text: the text of each label attends to mix tokens of the picture and is compared
with the result. So a model also answers for attributes that it was not trained on.

- Multi-Granularity Mix Tokens: learnable tokens that pass through every layer of the vision tower together with the
  patches; global tokens attend to all patches, local tokens to one region (equations 2 and 3). Patches do not attend
  to mix tokens, so the patches are computed exactly as in the backbone alone.
- Learnable prompts: vectors in front of a label's text, one set per attribute (the paper) or per region (our default),
  passed through the frozen text tower.
- Attribute-guided Visual Feature Extraction: cross-attention with texts as queries and mix tokens as keys and values
  (equation 5), without a residual connection: with it, a text would be compared with itself.

Our choices where the paper is silent:

- The region of a patch follows from its position in reading order: equal parts, from top to bottom.
- SigLIP has no class token from which mix tokens could start, and no projection for single tokens. It has a pooling
  head in which a learned probe attends to the patches once more. There each mix token, added to the probe, is a query
  of its own and attends to its own patches. So with CLIP and with SigLIP the result of a fresh global token is
  approximately the backbone's own pooled output.
- Texts and mix tokens are normalised to RMS 1 before the projections; the cosine that follows ignores length.
- Learnable vectors in front of a text move its words to other positions. So they replace something and start as its
  embeddings: with CLIP the first words that all texts share ("a photo of a"); with SigLIP, whose text tower knows the
  order of words by positions only, padding. A fresh model then encodes texts as its backbone does
  (`prompt_init="words"`).
- Similarities are not calibrated, so each attribute has a gain and each label an offset, fitted on validation
  (`vlm_par_hf.calibration`) and kept in `config.decisions`.

Letters: B people, N patches, K mix tokens, A attributes, C labels, Z texts (all labels of all attributes), H heads,
D vision width, E width of the space in which pictures and texts are compared.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModel
from transformers.utils import can_return_tuple

from vlm_par_hf.base.adapters import adapter_state
from vlm_par_hf.base.backbones import BackbonePreTrainedModel
from vlm_par_hf.base.decisions import transfer_decisions
from vlm_par_hf.base.kept import fingerprint
from vlm_par_hf.base.modeling import HUB_KEYS, ExchangedAttributes
from vlm_par_hf.base.numerics import NO_LABEL_LOGIT, no_autocast, wide
from vlm_par_hf.base.outputs import ParOutput
from vlm_par_hf.base.weights import find_weights
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.asking import read_asked
from vlm_par_hf.labels.decisions import AttributeDecision, Decisions
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.upstream import TOWERS, init

from .configuration_focus_par import FocusParConfig
from .losses_focus_par import FocusLoss, check_loss_settings
from .mix_tokens_focus_par import PictureTokens, look_at_pictures, patch_regions, patches_as_tokens
from .processing_focus_par import FocusParProcessor
from .texts_focus_par import AttributeGuidedExtraction, AttributeTexts, TextReader, TextTable


__all__ = ["FocusParModel", "FocusParPreTrainedModel"]

logger = logging.getLogger(__name__)

KEPT_SCHEMAS = 16  # number of encoded label spaces in the cache
# Cache key of the model's own label space; the others have their JSON text as key, which is never empty.
OWN_TEXTS = ""
# Initial factor of a mix token when it is added to SigLIP's probe. Small, so that the result starts near the
# backbone's own pooled output.
PROBE_SHARE = 0.1
FEATURES = ("patch_embeds", "image_embeds", "patch_mask")
OLD_DECISIONS = ("decision_gain", "decision_offset")  # tensors of checkpoints from before `config.decisions`


class KeptTexts(NamedTuple):
    """An entry of the cache: a tokenized label space, the fingerprint of its token embeddings, and its texts."""

    table: TextTable
    words: Any
    texts: AttributeTexts


class FocusParPreTrainedModel(BackbonePreTrainedModel):
    """Base of the FOCUS models."""

    config_class = FocusParConfig
    processor_class = FocusParProcessor
    # The contrastive losses compare the pictures of one batch, so they are no sum over labels: with gradient
    # accumulation Trainer must average the losses of the batches.
    accepts_loss_kwargs = False


class FocusParModel(FocusParPreTrainedModel):
    """FOCUS over a CLIP, SigLIP or SigLIP 2 backbone. The logits are float32 whatever the dtype of the model.

    The mix tokens are trained inside the vision tower, so features of pictures cannot be computed once and reused:
    there is no `get_image_features`, and training needs pictures.

    Args:
        config: its `attributes` must be set.

    Raises:
        ValueError: `config.attributes` is None.
    """

    supports_explain = True
    supports_attributes = True
    _keys_to_ignore_on_load_unexpected = [f"^{name}$" for name in OLD_DECISIONS]
    parameter_rates = {
        "tokens": "learning_rate", "extraction": "fusion_learning_rate", "backbone": "backbone_learning_rate",
    }  # fmt: skip

    def __init__(self, config: FocusParConfig) -> None:
        super().__init__(config)
        if config.label_input_ids is not None:
            counts = [len(one) if all(one) else 0 for one in config.label_input_ids]
            if counts != list(self.schema.num_labels):
                raise ParValueError(
                    f"label_input_ids must hold one text per label, {list(self.schema.num_labels)!r:.80}, got "
                    f"{counts!r:.80}"
                )
        self.towers = TOWERS[config.vlm_config.model_type]
        self.texts = TextReader(config)
        text, vision = config.vlm_config.text_config, config.vlm_config.vision_config
        self.vlm = AutoModel.from_config(config.vlm_config)
        self._build_adapters()
        tokens = config.num_global_tokens + config.num_local_tokens
        self.mix_tokens = nn.Parameter(torch.empty(tokens, vision.hidden_size))
        self.prompts = nn.Parameter(torch.empty(config.num_prompt_sets, config.num_prompt_tokens, text.hidden_size))
        if self.towers.has_pooling_head and tokens:
            self.probe_share = nn.Parameter(torch.empty(tokens))
        self.extraction = AttributeGuidedExtraction(
            config.text_width, config.num_attention_heads, config.attention_dropout
        )
        self._processor: FocusParProcessor | None = None
        self._own_table: TextTable | None = None
        self.post_init()
        self._freeze()

    def init_parameters(self) -> None:
        """Initial values of the parameters that belong to no submodule; `reset_tokens` sets better ones."""
        init.normal_(self.mix_tokens, std=0.02)
        init.normal_(self.prompts, std=0.02)
        if self._probe_share is not None:
            init.constant_(self.probe_share, PROBE_SHARE)

    @property
    def _probe_share(self) -> nn.Parameter | None:
        return getattr(self, "probe_share", None)  # absent with CLIP, which has no probe, and without mix tokens

    # Building and freezing

    @classmethod
    def from_backbone(cls, name: str | Path, **kwargs: Any) -> "FocusParModel":
        """As `BackbonePreTrainedModel.from_backbone`; then `reset_tokens` sets mix tokens and prompts."""
        model = super().from_backbone(name, **kwargs)
        model.reset_tokens()
        return model

    @torch.no_grad()
    def reset_tokens(self) -> None:
        """Sets mix tokens and prompts to values taken from the backbone; mix tokens get random noise in addition.

        Mix tokens. CLIP: the class token. SigLIP, which has none: an empty patch at the mean position of the patches
        that the token attends to. Prompts: the embeddings of what they replace (`config.prompt_init`), or random ones.
        """
        places = self.vlm.vision_model.embeddings.position_embedding.weight
        regions = patch_regions(self.config, places.new_ones(1, len(places)).bool())[0]
        start = self.towers.start_of_tokens(self.vlm, regions).expand_as(self.mix_tokens)
        self.mix_tokens.copy_(start + 0.02 * torch.randn_like(start))
        self.prompts.copy_(self.texts.start_of_prompts(self.vlm, self.prompts))

    @property
    def trains_vision_tower(self) -> bool:
        projects = not self.towers.has_pooling_head and self.vlm.visual_projection.weight.requires_grad
        return projects or super().trains_vision_tower

    def _freeze(self) -> None:
        super()._freeze()
        for parameter in (self.mix_tokens, self.prompts):
            parameter.requires_grad_(parameter.numel() > 0)  # an empty tensor would never get a gradient

    def _freeze_unused(self) -> None:
        if not self.towers.has_pooling_head:
            self.vlm.visual_projection.requires_grad_(True)
        for parameter in self.towers.unused_vision_parameters(self.vlm, has_tokens=len(self.mix_tokens) > 0):
            parameter.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vlm.text_model.set_input_embeddings(value)

    # Texts

    @property
    def text_subject(self) -> str:
        return self.config.text_subject

    def _prepare_texts(self, processor: FocusParProcessor | None) -> None:
        if processor is not None:
            self._processor = processor
            if self.config.prompt_init == "words":
                self.config.prompt_start_ids = self.texts.find_shared_start(self.schema, processor)
            self._store_tokens(processor)

    def _store_tokens(self, processor: FocusParProcessor) -> None:
        """Tokenizes the model's own label space into the configuration."""
        self.config.label_input_ids = self.texts.tokenize(self.schema, processor)
        self.config.text_pad_token_id = int(processor.tokenizer.pad_token_id or 0)
        self._own_table = None
        self._kept.clear()  # the texts are others, though the weights are the same

    def label_texts(self, schema: AttributeSchema) -> list[list[str]]:
        """The text of each label of each attribute, by `config.text_template`."""
        return self.texts.label_texts(schema)

    @property
    def max_text_tokens(self) -> int:
        """The largest number of tokens of a text, so that text and learnable vectors fit into the text tower."""
        return self.texts.max_tokens

    def _own_texts(self) -> AttributeTexts:
        """The encoded texts of the model's own label space. Computed at each call if something that they depend on
        needs gradients, or if a compiler traces; cached otherwise."""
        if self.config.label_input_ids is None:
            raise ParValueError(
                "the texts were never tokenized (label_input_ids is None): build the model with from_backbone, or "
                "call model.set_attributes(schema, processor)"
            )
        if self._own_table is None or self._own_table.tokens.device != self.device:
            self._own_table = self.texts.build_table(self.schema, self.config.label_input_ids, self.device)
        table = self._own_table
        has_gradients = torch.is_grad_enabled()
        learns = has_gradients and any(one.requires_grad for one in (self.prompts, *self._text_parameters()))
        if learns or torch.compiler.is_compiling():
            texts = self._encode_table(self.schema, table, in_parts=not learns)
        else:
            with torch.no_grad():
                texts = self._kept_texts(OWN_TEXTS, self.schema, lambda: table)
        queries = self.extraction.ask(texts.embeds) if has_gradients else texts.queries
        return replace(texts, queries=queries, gain=self.decision_gain, offset=self.decision_offset)

    def _encode_table(self, schema: AttributeSchema, table: TextTable, *, in_parts: bool = True) -> AttributeTexts:
        """Encodes a tokenized label space, with its gains and offsets."""
        with no_autocast(table.tokens):
            embeds = self.texts.encode(self.vlm, self.prompts, table, in_parts=in_parts)
            queries = self.extraction.ask(embeds)
        gain, offset = self._decisions_for(schema)
        return AttributeTexts(schema, embeds, queries, table.slots, table.attribute, gain, offset)

    def _text_parameters(self) -> Iterator[torch.Tensor]:
        """The tensors of the text tower that texts are encoded with, without the table of token embeddings."""
        words = self.towers.word_table(self.vlm)
        for module in self.towers.text_modules(self.vlm):
            yield from (one for one in (*module.parameters(), *module.buffers()) if one is not words)

    def _kept_texts(self, key: str, schema: AttributeSchema, build_table: Callable[[], TextTable]) -> AttributeTexts:
        """The encoded label space of the cache with this key, or a new one, which is added to the cache.

        The cache is emptied when a tensor that texts are computed from has changed. Of the table of token embeddings,
        which can be larger than the rest of the model, only the rows in use are compared.
        """
        sources = (self.prompts, self.extraction.query, *self._text_parameters())
        kept = self._kept.of(sources, adapter_state(self.vlm.text_model, self.extraction))
        found = kept.get(key)
        if found is not None and found.words == self._words_of(found.table):
            kept.move_to_end(key)
            return found.texts
        table = build_table()
        with torch.inference_mode(False), torch.no_grad():  # the first one alone would enable gradients
            texts = self._encode_table(schema, table)
        kept[key] = KeptTexts(table, self._words_of(table), texts)
        other_keys = [one for one in kept if one != OWN_TEXTS]
        for one in other_keys[: max(0, len(other_keys) - KEPT_SCHEMAS)]:  # the oldest ones
            del kept[one]
        return texts

    def _words_of(self, table: TextTable) -> Any:
        return fingerprint([self.towers.embed_words(self.vlm, table.tokens)])

    @torch.no_grad()
    def encode_attributes(self, attributes: Any, processor: FocusParProcessor | None = None) -> AttributeTexts:
        """Encodes the texts of any label space, for `forward(attributes=...)`. The last 16 results are cached.

        Args:
            attributes: names of the model's own attributes and what `AttributeSchema.from_texts` takes: `["Hat",
                "wearing a red scarf", ["a backpack", "no bag"]]`; or a schema.
            processor: the model's processor; None: the one that the model was built with, or that of the folder or
                repository that it was loaded from.

        Raises:
            ValueError, TypeError: no attribute, an attribute twice, a text that is too long, or no processor.
        """
        schema = read_asked(attributes, self.schema, subject=self.text_subject).schema

        def build_table() -> TextTable:
            ids = self.texts.tokenize(schema, processor or self._own_processor())
            return self.texts.build_table(schema, ids, self.device)

        # Under other decisions the same texts have other gains and offsets.
        key = json.dumps([schema.to_list(), self.config.decisions])
        return self._kept_texts(key, schema, build_table)

    def set_attributes(self, attributes: Any, processor: FocusParProcessor | None = None) -> None:
        """Makes `attributes` the label space of the model, which it answers for and which is saved with it.

        Attributes that the model was trained on keep their fitted gains and offsets; others take those of
        `transfer_decisions`.

        Args and errors as in `encode_attributes`.
        """
        schema = AttributeSchema.from_texts(attributes, subject=self.config.text_subject)
        processor = processor or self._own_processor()
        self.texts.tokenize(schema, processor)  # raises for a text that is too long, before anything is changed
        decisions, fitted = None, {}
        if self.config.decisions is not None:
            decisions = Decisions.from_dict(self.config.decisions)
            fitted = {(one.labels, one.prompts): decisions.of(one) for one in self.schema}
            known = {one.name: fitted.get((one.labels, one.prompts)) for one in schema}
            transferred = _entries(schema, *self._decisions_for(schema))
            decisions = replace(decisions, attributes={name: known[name] or one for name, one in transferred.items()})
        self._set_label_space(schema)
        self.config.decisions = None if decisions is None else decisions.to_dict()
        self._store_tokens(processor)

    def _exchange_attributes(self, schema: AttributeSchema, processor: FocusParProcessor) -> None:
        before = {(one.labels, one.prompts): one.name for one in self.schema}
        wanted = {(one.labels, one.prompts) for one in schema}
        kept = [one.name for one in schema if (one.labels, one.prompts) in before]
        fresh = [one.name for one in schema if (one.labels, one.prompts) not in before]
        left_out = [name for meaning, name in before.items() if meaning not in wanted]
        self.set_attributes(schema, processor)
        self.exchanged_attributes = ExchangedAttributes(tuple(kept), tuple(fresh), tuple(left_out))
        logger.warning(
            "attributes=: the label space is exchanged. Attributes that were not trained on are answered by their "
            "texts, with the usual threshold: %s",
            ", ".join(fresh) or "none",
        )

    def _own_processor(self) -> FocusParProcessor:
        """The processor that the model was built with, or else that of its checkpoint or of its backbone.

        Raises:
            ValueError: none of these exists.
        """
        if self._processor is None:
            name = self.name_or_path
            try:
                self._processor = FocusParProcessor.from_pretrained(name)
            except (OSError, ValueError) as error:
                if self.config.backbone_name is None:
                    raise ParValueError(
                        f"processor is None, and none could be loaded from {name!r} to tokenize new texts: pass the "
                        "model's processor"
                    ) from error
                self._processor = FocusParProcessor.from_backbone(
                    self.config.backbone_name, revision=self.config.backbone_revision or "main"
                )
        return self._processor

    # Decisions

    @property
    def decision_gain(self) -> torch.Tensor:
        """What each attribute's similarities are multiplied by, float32 `(A,)`, from `config.decisions`."""
        calibration = self._own_calibration()
        return torch.ones(len(self.schema), device=self.device) if calibration is None else calibration.gain

    @property
    def decision_offset(self) -> torch.Tensor:
        """What is then added for each label, float32 `(Z,)`, from `config.decisions`."""
        calibration = self._own_calibration()
        if calibration is None:
            return torch.zeros(sum(self.schema.num_labels), device=self.device)
        return calibration.offset[calibration.mask]

    def _decisions_for(self, schema: AttributeSchema) -> tuple[torch.Tensor, torch.Tensor]:
        # The threshold for mA does not depend on how frequent an attribute is, which nobody knows of a new one.
        given, thresholds = self.config.decisions, None
        if given is not None:
            found = Decisions.from_dict(given)
            if "mA" in found.points():
                fitted = found.thresholds("mA")
                thresholds = [fitted.get(one.name, 0.5) if found.of(one) else 0.5 for one in self.schema]
        return transfer_decisions(self.decision_gain, self.decision_offset, self.schema, schema, thresholds)

    @classmethod
    def _load_whole(cls, name: str | Path | None, *model_args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        model, info = super()._load_whole(name, *model_args, **kwargs)
        access = {key: kwargs[key] for key in HUB_KEYS if kwargs.get(key) is not None}
        if name is not None and not getattr(model, "is_quantized", False):
            model._move_old_decisions(_read_old_decisions(find_weights(name, variant=kwargs.get("variant"), **access)))
        return model, info

    def _accept_old_tensors(self, heads: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self._move_old_decisions(heads)
        return {name: tensor for name, tensor in heads.items() if name not in OLD_DECISIONS}

    def _move_old_decisions(self, tensors: dict[str, torch.Tensor]) -> None:
        """Gains and offsets that lay among the weights come to the configuration, where they now belong.

        Raises:
            ValueError: they do not fit the label space.
        """
        if self.config.decisions is not None or not all(name in tensors for name in OLD_DECISIONS):
            return
        gain, offset = (tensors[name].float() for name in OLD_DECISIONS)
        if len(gain) != len(self.schema) or len(offset) != sum(self.schema.num_labels):
            raise ParValueError(
                f"decision_gain and decision_offset of the weights hold {len(gain)} and {len(offset)} numbers, "
                f"expected {len(self.schema)} and {sum(self.schema.num_labels)} for this label space"
            )
        if (gain != 1).any() or (offset != 0).any():
            entries = _entries(self.schema, gain, offset)
            checked = Decisions.from_dict(Decisions(entries, record={"fitted": "cross-entropy"}).to_dict())
            self.config.decisions = checked.to_dict()

    # Pictures

    def _encode_pictures(
        self,
        pixel_values: torch.Tensor | None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        *,
        output_maps: bool = False,
    ) -> PictureTokens:
        """The tokens that the texts attend to: the mix tokens of each picture, or its patches if there are none."""
        if pixel_values is None:
            raise ParValueError("pixel_values is None, expected pictures: this model has no other input")
        vlm, towers = self.vlm, self.towers
        naflex = self._check_pixels(self.config.vlm_config.model_type, pixel_values, spatial_shapes)
        pixel_attention_mask = pixel_attention_mask if naflex else None
        if len(self.mix_tokens):
            return look_at_pictures(
                vlm, towers, self.config, self.mix_tokens, self._probe_share,
                pixel_values, pixel_attention_mask, spatial_shapes,
                trains_tower=self.trains_vision_tower, output_maps=output_maps,
            )  # fmt: skip
        outputs = self._run_tower(vlm.vision_model, naflex, pixel_values, pixel_attention_mask, spatial_shapes)
        states, image_embeds = outputs.last_hidden_state, outputs.pooler_output
        if not towers.has_pooling_head:
            states = towers.leave(vlm, states[:, towers.num_class_tokens :])
            image_embeds = towers.project(vlm, image_embeds)
        return patches_as_tokens(vlm, towers, states, image_embeds, self._patch_mask(states, pixel_attention_mask))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        *,
        attributes: AttributeTexts | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> ParOutput:
        """Scores every attribute of every person.

        Args:
            pixel_values: `(B, N, 3 * patch_size**2)` for NaFlex, `(B, 3, height, width)` for fixed resolution.
            pixel_attention_mask: `(B, N)`, 1 for patches that count (NaFlex; None: all).
            spatial_shapes: int64 `(B, 2)`, rows and columns of patches (NaFlex).
            labels: int64 `(B, A)`, class index per attribute, -100 = unknown; gives the loss.
            attributes: another label space for this call, from `encode_attributes`.
            output_attentions: whether to return the attention of the texts.
            kwargs: ignored, but `input_ids` and `output_hidden_states` are refused.

        Returns:
            `ParOutput`; `attentions` float32 `(B, A, C, H, K)`, of each label's text over the mix tokens, 0 past an
            attribute's own labels.

        Raises:
            ValueError: wrong or missing inputs, features in place of pixels, `labels` together with `attributes`, or
                texts that were never tokenized.
        """
        if any(kwargs.get(name) is not None for name in FEATURES):
            given = ", ".join(name for name in FEATURES if name in kwargs)
            raise ParValueError(
                f"{given}: expected pixel_values, because the mix tokens of FOCUS live and learn inside the vision "
                "tower; train from pictures"
            )
        if kwargs.get("output_hidden_states"):
            raise ParValueError(
                "output_hidden_states is True: patches do not see the mix tokens, so the states are the backbone's "
                "own, model.vlm.vision_model(**inputs, output_hidden_states=True).hidden_states"
            )
        if kwargs.get("input_ids") is not None:
            raise ParValueError(
                "input_ids were given, but texts come as attributes= of what model.encode_attributes([text, ...], "
                "processor) returns: a FocusParModel reads its learnable prompts with them"
            )
        if labels is not None and attributes is not None:
            raise ParValueError(
                "labels and attributes were both given: the loss is that of the model's own label space"
            )
        pictures = self._encode_pictures(pixel_values, pixel_attention_mask, spatial_shapes)
        texts = self._own_texts() if attributes is None else self._on_device(attributes)
        scores, attention = self._score(texts, pictures)
        loss = None
        if labels is not None:
            tokens = pictures.tokens if len(self.mix_tokens) else None
            loss = self.loss_module(scores, attention.mean(1), tokens, labels)
        logits = self._calibrated_logits(texts, scores)
        calibration = None if attributes is not None else self._own_calibration()
        if calibration is not None:
            logits = calibration.apply_maps(logits)
        if labels is None and attributes is None:
            self._guard_padding(logits)
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        return ParOutput(
            loss=loss,
            logits=logits,
            image_embeds=pictures.image_embeds,
            attentions=texts.by_label(attention.permute(0, 2, 1, 3), 0.0) if output_attentions else None,
        )

    def _on_device(self, texts: AttributeTexts) -> AttributeTexts:
        return texts if texts.embeds.device == self.device else texts.to(self.device)

    def _score(self, texts: AttributeTexts, pictures: PictureTokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled cosine of each text and its attention result, float32 `(B, Z)`, and the attention `(B, H, Z, K)`."""
        cosine, attention = self.extraction(texts.queries, texts.embeds, pictures.tokens, pictures.token_mask)
        with no_autocast(cosine):
            return cosine * wide(self.vlm.logit_scale).exp(), attention

    @staticmethod
    def _calibrated_logits(texts: AttributeTexts, scores: torch.Tensor) -> torch.Tensor:
        """Logits `(B, A, C)`: the fitted gains and offsets make similarities comparable between labels."""
        return texts.by_label(scores * texts.gain[texts.attribute] + texts.offset, NO_LABEL_LOGIT)

    def _build_loss(self) -> FocusLoss:
        check_loss_settings(self.config.loss)
        return FocusLoss(self.schema, **self.config.loss)

    @torch.no_grad()
    def explain(
        self,
        *,
        attribute: str | int | Sequence[str | int] | None = None,
        attributes: AttributeTexts | None = None,
        **inputs: Any,
    ) -> torch.Tensor:
        """How relevant each patch was for the answers.

        The attention of the text over the mix tokens (mean over heads), times that of the mix tokens over the patches
        (mean over layers and heads). The text is that of "yes" for a binary attribute, else that of the predicted
        label.

        Args:
            attribute: a name or position, or several; None takes all.
            attributes: another label space, from `encode_attributes`.
            inputs: as in `forward`.

        Returns:
            float32 `(B, A, N)`, A the number of attributes asked for; sums to 1 over the patches, 0 at padding.

        Raises:
            KeyError: unknown attribute.
        """
        names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
        pictures = self._encode_pictures(**{name: inputs.get(name) for name in names}, output_maps=True)
        texts = self._own_texts() if attributes is None else self._on_device(attributes)
        scores, attention = self._score(texts, pictures)
        maps = texts.by_label(attention.mean(1) @ wide(pictures.maps), 0.0)  # (B, A, C, N)
        answer = self._calibrated_logits(texts, scores).argmax(-1)
        binary = torch.tensor([one.is_binary for one in texts.schema], device=answer.device)
        answer = torch.where(binary, 1, answer)
        relevance = maps.take_along_dim(answer[:, :, None, None], 2)[:, :, 0]
        relevance = torch.where(pictures.patch_mask[:, None], relevance, 0)
        return self._choose_attributes(relevance, texts.schema, attribute)

    # Optimisation

    @property
    def fusion_width(self) -> int:
        return self.config.text_width

    def _part_of(self, name: str, parameter: nn.Parameter) -> tuple[str, bool]:
        part = {"extraction": "extraction", "vlm": "backbone"}.get(name.partition(".")[0], "tokens")
        return part, part != "tokens" and parameter.ndim >= 2


def _entries(schema: AttributeSchema, gain: torch.Tensor, offset: torch.Tensor) -> dict[str, AttributeDecision]:
    """Gains `(A,)` and offsets `(Z,)` as entries of `Decisions`."""
    parts = offset.split(schema.num_labels)
    return {one.name: AttributeDecision(float(gain[a]), tuple(parts[a].tolist())) for a, one in enumerate(schema)}


def _read_old_decisions(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    found = {}
    for path in files:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            found.update({name: file.get_tensor(name) for name in OLD_DECISIONS if name in names})
    return found
