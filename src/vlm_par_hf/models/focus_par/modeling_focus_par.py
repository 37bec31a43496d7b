"""FOCUS: fine-grained optimisation with semantic guided understanding for PAR (An et al., 2025).

An attribute is recognised from its text: each label's text looks at mix tokens of the picture, and is compared with
what it found there. So a model answers for attributes that it was never trained on.

- Multi-Granularity Mix Tokens: learnable tokens beside the patches in every layer of the vision tower; global ones
  look at all patches, local ones at one region (equations 2 and 3). Patches never look at mix tokens, so the tower's
  own stream is what it always was, and the tokens run beside it through the same layers.
- Learnable prompts: vectors in front of a label's text, one set per region, passed through the frozen text tower.
- Attribute-guided Visual Feature Extraction: texts ask, mix tokens answer (equation 5), without a residual: it would
  show the text to itself.

Where the paper is silent: a patch's region is decided by its place in reading order (equal parts, from top to bottom).
SigLIP has no class token to start from and no projection of single tokens, but a head in which a probe looks at the
patches once more: there, the mix tokens ask in the probe's place, each seeing what it may see. So with CLIP and SigLIP
alike a fresh global token answers what the backbone's own pooled picture does. Texts and mix tokens are brought to one
length before the projections, because a cosine forgets it anyway.
Learnable vectors in front of a text push its words to other positions. So they take the place of something and start
as it: with CLIP, of the first words that all texts have in common ("a photo of a"); with SigLIP, whose tower knows
order by positions alone, of padding. A fresh model then reads texts as its backbone does (`prompt_init="words"`).
Decisions: each attribute has a gain and its labels have offsets, fitted on validation (`fit_decisions`), because
similarities are not calibrated.

Letters: B people, N patches, K mix tokens, A attributes, C labels, Z texts (all labels of all attributes), H heads,
D vision width, E width of the space in which pictures and texts are compared.
"""

import itertools
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

from vlm_par_hf.backbones import OverBackbone, backbone_source
from vlm_par_hf.hub import PushToHub
from vlm_par_hf.layers import NO_LABEL_LOGIT, no_autocast, wide
from vlm_par_hf.losses import compute_class_weights, compute_priors
from vlm_par_hf.outputs import ParOutput
from vlm_par_hf.schema import UNKNOWN_LABEL, AttributeSchema

from .configuration_focus_par import FocusParConfig
from .losses_focus_par import FocusLoss, check_loss_settings
from .processing_focus_par import FocusParProcessor


__all__ = ["AttributeTexts", "FocusParModel", "FocusParPreTrainedModel", "fit_decisions", "transfer_decisions"]

KEPT_SCHEMAS = 16  # encoded label spaces that a model remembers
TEXTS_AT_ONCE = 64
# How much of a mix token is added to SigLIP's probe at first: little, so that it starts as the pooled picture does.
PROBE_SHARE = 0.1
SMALLEST_SQUARE = 1e-12  # of the length of what a text finds
FEATURES = ("patch_embeds", "image_embeds", "patch_mask")


@dataclass(eq=False)
class AttributeTexts:
    """A label space ready for `FocusParModel.forward(attributes=...)`, from `encode_attributes`.

    Args:
        schema: the label space.
        embeds: `(Z, E)`, the text of each label.
        queries: `(H, Z, E / H)`, what it asks the mix tokens for.
        slots: int64 `(Z,)`, where its logit stands in a row of `A * C`.
        attribute: int64 `(Z,)`, position of its attribute.
        gain: float32 `(A,)` and offset float32 `(Z,)`: logit = gain * similarity + offset.
    """

    schema: AttributeSchema
    embeds: torch.Tensor
    queries: torch.Tensor
    slots: torch.Tensor
    attribute: torch.Tensor
    gain: torch.Tensor
    offset: torch.Tensor

    def to(self, device: torch.device) -> "AttributeTexts":
        moved = {one.name: getattr(self, one.name).to(device) for one in fields(self) if one.name != "schema"}
        return replace(self, **moved)


def unit_rms(tensor: torch.Tensor) -> torch.Tensor:
    """Vectors of root mean square 1; float32 inside."""
    return (F.normalize(wide(tensor), dim=-1) * tensor.shape[-1] ** 0.5).to(tensor.dtype)


class AttributeGuidedExtraction(nn.Module):
    """Cross-attention from texts to the tokens of a picture (FOCUS, equation 5), without biases and residual.

    Value and output start as identities: what a text finds is at first a mean of the tokens themselves.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        for name in ("query", "key", "value", "output"):
            setattr(self, name, nn.Parameter(torch.empty(width, width)))

    def init_parameters(self) -> None:
        for projection in (self.query, self.key):
            init.xavier_uniform_(projection)
        for projection in (self.value, self.output):
            init.copy_(projection, torch.eye(len(projection)))

    def ask(self, texts: torch.Tensor) -> torch.Tensor:
        """Queries `(H, Z, E / H)` of texts `(Z, E)`: the same for every picture."""
        queries = unit_rms(texts).to(self.query.dtype) @ self.query
        return queries.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)

    def forward(
        self, queries: torch.Tensor, texts: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How much what each text finds is like the text.

        What a text finds is a sum of H * K vectors, those of each head and token, weighted by its attention. With few
        tokens these are fewer than the space has dimensions, so products and lengths are taken from theirs and the
        vectors of `(B, Z, E)` are never made: hundreds of texts cost little.

        Args:
            queries: `(H, Z, E / H)`, from `ask`.
            texts: `(Z, E)`.
            tokens: `(B, K, E)`.
            mask: bool `(B, K)`, False for tokens that are padding; None: there are none.

        Returns:
            Cosine of each text and what it found, float32 `(B, Z)`, and the attention, float32 `(B, H, Z, K)`.
        """
        B, K, E = tokens.shape
        H = self.num_heads
        tokens = tokens.to(self.key.dtype)
        keys = (tokens @ self.key).view(B, K, H, E // H).transpose(1, 2)
        values = (tokens @ self.value).view(B, K, H, E // H).transpose(1, 2)
        scores = wide(queries @ keys.mT) * (E // H) ** -0.5  # (B, H, Z, K)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        attention = scores.softmax(-1)
        weights = F.dropout(attention, self.dropout, self.training)
        with no_autocast(tokens):
            unit, values = F.normalize(wide(texts), dim=-1), values.to(self.output.dtype)
            if H * K > E:
                found = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2) @ self.output
                return torch.einsum("bze,ze->bz", F.normalize(wide(found), dim=-1), unit), attention
            parts = wide(values @ self.output.view(H, E // H, E)).flatten(1, 2)  # (B, H * K, E)
            weights = weights.transpose(1, 2).flatten(2)  # (B, Z, H * K)
            product = (weights * (unit @ parts.mT)).sum(-1)
            square = (weights @ (parts @ parts.mT) * weights).sum(-1)
            return product * square.clamp_min(SMALLEST_SQUARE).rsqrt(), attention


class FocusParPreTrainedModel(PushToHub, OverBackbone, PreTrainedModel):
    """Base of the FOCUS models: initial weights, and what transformers asks of a class."""

    config_class = FocusParConfig
    processor_class = FocusParProcessor
    base_model_prefix = "vlm"  # so that a plain CLIP or SigLIP checkpoint loads into `FocusParModel.vlm`
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # The contrast is over the pictures of a batch: Trainer shall average over accumulated batches, not count labels.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AttributeGuidedExtraction):
            module.init_parameters()
        elif isinstance(module, FocusParModel):
            init.normal_(module.mix_tokens, std=0.02)
            init.normal_(module.prompts, std=0.02)
            if hasattr(module, "probe_share"):
                init.constant_(module.probe_share, PROBE_SHARE)
            init.ones_(module.decision_gain)
            init.zeros_(module.decision_offset)


class FocusParModel(FocusParPreTrainedModel):
    """FOCUS over a CLIP, SigLIP or SigLIP 2 backbone. The logits are float32 whatever the dtype of the model.

    The mix tokens live inside the vision tower, so nothing of a picture can be computed once and trained from: there
    is no `get_image_features`, and training takes pictures.

    Args:
        config: its `attributes` must be set.

    Raises:
        ValueError: `config.attributes` is None.
    """

    def __init__(self, config: FocusParConfig) -> None:
        super().__init__(config)
        self.schema = config.schema
        text, vision = config.vlm_config.text_config, config.vlm_config.vision_config
        self.vlm = AutoModel.from_config(config.vlm_config)
        tokens = config.num_global_tokens + config.num_local_tokens
        self.mix_tokens = nn.Parameter(torch.empty(tokens, vision.hidden_size))
        self.prompts = nn.Parameter(
            torch.empty(len(config.prompt_regions), config.num_prompt_tokens, text.hidden_size)
        )
        if config.vlm_config.model_type != "clip" and tokens:
            self.probe_share = nn.Parameter(torch.empty(tokens))
        self.extraction = AttributeGuidedExtraction(
            config.text_width, config.num_attention_heads, config.attention_dropout
        )
        self.register_buffer("decision_gain", torch.ones(len(self.schema)))
        self.register_buffer("decision_offset", torch.zeros(sum(self.schema.num_labels)))
        self._processor: FocusParProcessor | None = None
        self._tables: tuple | None = None
        self._loss: tuple | None = None
        self._forget()
        self.post_init()
        self._freeze_backbone()

    # Building and freezing

    @classmethod
    def from_backbone(cls, name: str | Path, **kwargs: Any) -> "FocusParModel":
        """As `OverBackbone.from_backbone`; mix tokens and prompts start where `reset_tokens` puts them."""
        model = super().from_backbone(name, **kwargs)
        model.reset_tokens()
        return model

    @torch.no_grad()
    def reset_tokens(self) -> None:
        """Starts mix tokens and prompts where the backbone's own tokens are, plus noise from torch's generator.

        CLIP: at the class token. SigLIP, which has none: at a patch of no content, at the mean position of what the
        token looks at. Prompts: at what they take the place of (`config.prompt_init`), or at random.
        """
        vision = self.vlm.vision_model.embeddings
        if self.config.vlm_config.model_type == "clip":
            start = (vision.class_embedding + vision.position_embedding.weight[0]).expand_as(self.mix_tokens)
        else:
            positions = wide(vision.position_embedding.weight)
            middle = self._patch_regions(positions.new_ones(1, len(positions)).bool())[0].to(positions.dtype)
            start = wide(vision.patch_embedding.bias) + middle @ positions / middle.sum(-1, keepdim=True)
        self.mix_tokens.copy_(start + 0.02 * torch.randn_like(start))
        vocabulary = self.vlm.text_model.embeddings.token_embedding.weight
        m = self.config.num_prompt_tokens
        if self.config.prompt_start_ids is None:
            self.prompts.copy_(torch.randn_like(self.prompts) * vocabulary.float().std())
        elif self._in_padding:
            self.prompts.copy_(vocabulary[self.config.text_pad_token_id].expand_as(self.prompts))
        else:
            # Where fewer words are shared: before them the token that ends a text, which says nothing.
            ends = self.config.label_input_ids[0][0][-1:] * (m - len(self.config.prompt_start_ids))
            self.prompts.copy_(vocabulary[[*ends, *self.config.prompt_start_ids]].expand_as(self.prompts))
        self._forget()

    def train(self, mode: bool = True) -> "FocusParModel":
        """As `torch.nn.Module.train`, but what is frozen stays frozen and in eval mode."""
        super().train(mode)
        self._freeze_backbone()
        self._forget()
        return self

    def _freeze_backbone(self) -> None:
        # Loading makes new parameters that want gradients, hence again at each `train()`; `from_pretrained` ends
        # with `eval()`, which is `train(False)`.
        self.vlm.requires_grad_(False)
        self.vlm.eval()
        for parameter in (self.mix_tokens, self.prompts):
            parameter.requires_grad_(parameter.numel() > 0)
        if not self.config.freeze_backbone:
            vision = self.vlm.vision_model
            vision.requires_grad_(True)
            vision.train(self.training)
            if self.config.vlm_config.model_type == "clip":
                self.vlm.visual_projection.requires_grad_(True)
            elif not len(self.mix_tokens):
                vision.head.probe.requires_grad_(False)  # only the pooled picture uses it, and no score does

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vlm.text_model.set_input_embeddings(value)

    # Texts

    def _forget(self) -> None:
        self._own_texts: AttributeTexts | None = None
        self._kept: OrderedDict[str, AttributeTexts] = OrderedDict()
        self._encoded_with: tuple[int, ...] | None = None

    def _forget_if_changed(self) -> None:
        """Drops texts that were encoded with other prompts or queries; tensors of inference mode count no versions."""
        changing = (self.prompts, self.extraction.query)
        version = None if self.prompts.is_inference() else tuple(one._version for one in changing)
        if version is None or version != self._encoded_with:
            self._forget()
            self._encoded_with = version

    def _apply(self, fn, recurse=True):
        self._forget()
        return super()._apply(fn, recurse)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        self._forget()
        return super().load_state_dict(state_dict, strict, assign)

    def _prepare_texts(self, processor: FocusParProcessor | None) -> None:
        if processor is not None:
            self._processor = processor
            if self.config.prompt_init == "words":
                self._find_prompt_start(processor)
            self._tokenize(self.schema, processor, store=True)

    @property
    def _in_padding(self) -> bool:
        """Whether the learnable vectors take the place of padding, before the last position, where SigLIP pools."""
        return self.config.prompt_init == "words" and self.config.vlm_config.model_type != "clip"

    def _find_prompt_start(self, processor: FocusParProcessor) -> None:
        """The first tokens that all texts share, as many as there are learnable vectors to take their place."""
        shared: list[int] = []
        if not self._in_padding:
            texts = [text for one in self.label_texts(self.schema) for text in one]
            columns = zip(*(ids[1 : 1 + self.config.num_prompt_tokens] for ids in processor.encode_texts(texts)))
            shared = [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]
        self.config.prompt_start_ids = shared

    @property
    def max_text_tokens(self) -> int:
        """What the text tower holds beside the learnable vectors."""
        return self.config.vlm_config.text_config.max_position_embeddings - self.config.num_prompt_tokens

    def label_texts(self, schema: AttributeSchema) -> list[list[str]]:
        """The text of each label of each attribute, by `config.text_template`."""
        return [
            [
                self.config.text_template.format(
                    region=attribute.region or "person", category=_words(attribute.name), label=label, prompt=prompt
                )
                for label, prompt in zip(attribute.labels, attribute.prompts)
            ]
            for attribute in schema
        ]

    def _tokenize(self, schema: AttributeSchema, processor: FocusParProcessor, *, store: bool = False):
        limit = self.max_text_tokens
        ids = []
        for attribute, texts in zip(schema, self.label_texts(schema)):
            # One token more than fits shows that a text is too long.
            found = processor.encode_texts(texts, limit + 1 + len(self.config.prompt_start_ids or ()))
            ids.append([self._without_start(one) for one in found])
            for text, one in zip(texts, ids[-1]):
                if len(one) > limit:
                    raise ValueError(
                        f"attribute {attribute.name!r}: the text {text[:60]!r}... has more than {limit} tokens, the "
                        f"most that the text tower holds beside {self.config.num_prompt_tokens} learnable vectors"
                    )
        if store:
            self.config.label_input_ids = ids
            self.config.text_pad_token_id = int(processor.tokenizer.pad_token_id or 0)
            self._tables = None
            self._forget()
        return ids

    def _without_start(self, ids: list[int]) -> list[int]:
        """The tokens of a text without the first words, where these are those that the learnable vectors are for."""
        words = self.config.prompt_start_ids or []
        start = int(self.config.vlm_config.model_type == "clip")
        if ids[start : start + len(words)] != words:
            return ids
        return ids[:start] + ids[start + len(words) :]

    def _region_shares(self, schema: AttributeSchema) -> torch.Tensor:
        """`(Z, regions)`: how the learnable vectors of a text are mixed; an unseen region takes the mean of all."""
        regions = self.config.prompt_regions
        rows = [
            [float(one.region == region) for region in regions]
            if one.region in regions
            else [1 / len(regions)] * len(regions)
            for one in schema
            for _ in one.labels
        ]
        return torch.tensor(rows)

    def _table(self, schema: AttributeSchema, ids: list[list[list[int]]]) -> tuple[torch.Tensor, ...]:
        """Constants of a label space: token ids, position of the last token, region shares, slots, attributes."""
        clip = self.config.vlm_config.model_type == "clip"
        flat = [one for attribute in ids for one in attribute]
        longest = max(len(one) for one in flat)
        # SigLIP pools at the last of all positions; CLIP's causal tower does not see what follows the text.
        length = longest if clip else self.max_text_tokens
        padding = self.config.text_pad_token_id
        tokens = torch.tensor([one + [padding] * (length - len(one)) for one in flat])
        last = torch.tensor([(len(one) if clip else length) - 1 + self.config.num_prompt_tokens for one in flat])
        C = schema.max_labels
        slots = torch.tensor([a * C + k for a, one in enumerate(schema) for k in range(one.num_labels)])
        attribute = torch.tensor([a for a, one in enumerate(schema) for _ in one.labels])
        table = (tokens, last, self._region_shares(schema), slots, attribute)
        return tuple(one.to(self.device) for one in table)

    def _encode_texts(self, tokens: torch.Tensor, last: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """`(Z, E)`: texts with their learnable vectors, through the frozen text tower."""
        tower = self.vlm.text_model
        m = self.config.num_prompt_tokens
        words = tower.embeddings.token_embedding(tokens)
        if m:
            vectors = torch.einsum("zr,rmw->zmw", shares.to(self.prompts.dtype), self.prompts).to(words.dtype)
            # In front of everything but CLIP's start token.
            start = words.shape[1] - 1 if self._in_padding else int(self.config.vlm_config.model_type == "clip")
            words = torch.cat([words[:, :start], vectors, words[:, start:]], 1)
        hidden = tower.embeddings(inputs_embeds=words)
        kwargs: dict[str, Any] = {"attention_mask": None}
        if self.config.vlm_config.model_type == "clip":
            mask = create_causal_mask(
                config=tower.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None
            )
            kwargs = {"attention_mask": mask, "is_causal": True}
        hidden = tower.final_layer_norm(tower.encoder(inputs_embeds=hidden, **kwargs).last_hidden_state)
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), last]
        if self.config.vlm_config.model_type == "clip":
            return self.vlm.text_projection(pooled)
        return tower.head(pooled)

    def _texts(self) -> AttributeTexts:
        """The texts of the model's own label space: with gradients for the prompts where these are asked for, kept
        otherwise."""
        if self.config.label_input_ids is None:
            raise ValueError(
                "the texts were never tokenized (label_input_ids is None): build the model with from_backbone, or "
                "call model.set_attributes(schema, processor)"
            )
        if self._tables is None or self._tables[0].device != self.device:
            self._tables = self._table(self.schema, self.config.label_input_ids)
        learns = torch.is_grad_enabled() and self.prompts.requires_grad
        if not torch.compiler.is_compiling():
            self._forget_if_changed()
        texts = None if learns else self._own_texts
        if texts is None:
            tokens, last, shares, slots, attribute = self._tables
            with no_autocast(self.prompts):
                if learns:
                    embeds = self._encode_texts(tokens, last, shares)
                else:
                    with torch.no_grad():
                        parts = zip(*(one.split(TEXTS_AT_ONCE) for one in (tokens, last, shares)))
                        embeds = torch.cat([self._encode_texts(*part) for part in parts])
            with torch.no_grad():
                queries = self.extraction.ask(embeds)
            texts = AttributeTexts(
                self.schema, embeds, queries, slots, attribute, wide(self.decision_gain), wide(self.decision_offset)
            )
            if not (learns or torch.compiler.is_compiling() or torch.is_inference_mode_enabled()):
                self._own_texts = texts
        if torch.is_grad_enabled():
            texts = replace(texts, queries=self.extraction.ask(texts.embeds))
        return texts

    @torch.no_grad()
    def encode_attributes(self, attributes: Any, processor: FocusParProcessor | None = None) -> AttributeTexts:
        """The texts of any label space, for `forward(attributes=...)`; the last few are remembered.

        Args:
            attributes: what `AttributeSchema.from_texts` takes: `["wearing a red scarf", ["a backpack", "no bag"]]`,
                attributes, or a schema.
            processor: the model's processor; None: the one that it was built with, or of the folder or repository that
                it was loaded from.

        Raises:
            ValueError, TypeError: no attribute, one twice, a text that the text tower cannot hold, or no processor.
        """
        schema = AttributeSchema.from_texts(attributes, subject=self.config.text_subject)
        self._forget_if_changed()
        key = json.dumps(schema.to_list())
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        ids = self._tokenize(schema, processor or self._own_processor())
        tokens, last, shares, slots, attribute = self._table(schema, ids)
        with torch.inference_mode(False), no_autocast(tokens):
            parts = zip(*(one.split(TEXTS_AT_ONCE) for one in (tokens, last, shares)))
            embeds = torch.cat([self._encode_texts(*part) for part in parts])
            queries = self.extraction.ask(embeds)
        gain, offset = self._decisions_for(schema)
        texts = AttributeTexts(schema, embeds, queries, slots, attribute, gain, offset)
        self._kept[key] = texts
        while len(self._kept) > KEPT_SCHEMAS:
            self._kept.popitem(last=False)
        return texts

    def set_attributes(self, attributes: Any, processor: FocusParProcessor | None = None) -> None:
        """Makes this the model's label space: what it answers, and what is saved.

        Attributes that it was trained on keep their fitted decisions; others have the usual (`transfer_decisions`).

        Args and errors as in `encode_attributes`.
        """
        schema = AttributeSchema.from_texts(attributes, subject=self.config.text_subject)
        processor = processor or self._own_processor()
        self._tokenize(schema, processor)  # refuses what does not fit before anything is changed
        gain, offset = self._decisions_for(schema)
        self.decision_gain, self.decision_offset = gain.to(self.decision_gain), offset.to(self.decision_offset)
        self.schema = schema
        self.config.attributes = schema.to_list()
        self.config.id2label = dict(enumerate(schema.names))
        self.config.label2id = {name: position for position, name in enumerate(schema.names)}
        self._tokenize(schema, processor, store=True)
        # Weights and priors of the loss were those of the other label space.
        dropped = ("weighting", "priors")
        self.config.loss = {name: value for name, value in self.config.loss.items() if name not in dropped}

    def _own_processor(self) -> FocusParProcessor:
        if self._processor is None:
            name = self.name_or_path
            try:
                self._processor = FocusParProcessor.from_pretrained(name)
            except (OSError, ValueError) as error:
                if self.config.backbone_name is None:
                    raise ValueError(
                        f"processor is None, and none could be loaded from {name!r} to tokenize new texts: pass the "
                        "model's processor"
                    ) from error
                self._processor = FocusParProcessor.from_backbone(
                    backbone_source(self.config), revision=self.config.backbone_revision or "main"
                )
        return self._processor

    # Decisions

    def _decisions_for(self, schema: AttributeSchema) -> tuple[torch.Tensor, torch.Tensor]:
        return transfer_decisions(wide(self.decision_gain), wide(self.decision_offset), self.schema, schema)

    def fit_decisions(self, logits: Any, labels: Any, *, weighting: str | None = "auto") -> None:
        """Fits each attribute's gain and its labels' offsets on validation: logit = gain * similarity + offset.

        Minimises, for each attribute, the cross-entropy of its known labels plus a small pull towards what is there
        already. An attribute of which the data know one label only is left as it is.

        Args:
            logits: `(S, A, C)`, what the model answered on validation pictures.
            labels: integer `(S, A)`, -100 = unknown.
            weighting: class weights as in `ParLoss`, from the priors of these labels: None, "balanced" (decisions for
                mA), "sqrt"; "auto": that of the training loss.

        Raises:
            ValueError: the arrays do not fit the label space.
        """
        if weighting == "auto":
            weighting = self.config.loss.get("weighting")
        gain, offset = fit_decisions(logits, labels, self.schema, weighting=weighting)
        counts = torch.tensor(self.schema.num_labels)
        before = self.decision_offset.cpu().double() * gain.repeat_interleave(counts)
        self.decision_offset.copy_(before + offset)
        self.decision_gain.mul_(gain.to(self.decision_gain))
        self._forget()

    # Pictures

    def _patch_regions(self, mask: torch.Tensor) -> torch.Tensor:
        """Which patches each mix token looks at, bool `(B, K, N)`.

        Region i of r holds patches floor(i n / r) to ceil((i + 1) n / r) of the n patches of a picture, as adaptive
        pooling divides: no region is empty, and where r does not divide n, neighbours share a patch.
        """
        config = self.config
        count = mask.sum(-1)[:, None, None]
        place = mask.cumsum(-1)[:, None] - 1
        region = (torch.arange(config.num_local_tokens, device=mask.device) % config.num_regions)[None, :, None]
        start = region * count // config.num_regions
        stop = -(-(region + 1) * count // config.num_regions)
        local = (place >= start) & (place < stop) & mask[:, None]
        everywhere = mask[:, None].expand(-1, config.num_global_tokens, -1)
        return torch.cat([everywhere, local], 1)

    def _see(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        *,
        output_maps: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The vision tower with mix tokens beside it.

        Returns:
            tokens `(B, K, E)` for the texts to look at (the patches, where there are no mix tokens), their mask (None:
            all count), image_embeds `(B, D)`, patch_mask bool `(B, N)`, and with `output_maps` where each token
            looked, mean over layers and heads, float32 `(B, K, N)`.
        """
        kind = self.config.vlm_config.model_type
        naflex = kind == "siglip2"
        if pixel_values is None:
            raise ValueError("pixel_values is None, expected pictures: this model has no other input")
        if pixel_values.ndim != (3 if naflex else 4):
            raise ValueError(
                f"pixel_values must have shape {'(B, N, values of a patch)' if naflex else '(B, 3, height, width)'} "
                f"for a {kind} backbone, got {tuple(pixel_values.shape)}"
            )
        if naflex and spatial_shapes is None:
            raise ValueError("spatial_shapes is None, expected int64 (B, 2): this backbone takes NaFlex patches")
        if not len(self.mix_tokens):
            return self._see_patches(pixel_values, pixel_attention_mask, spatial_shapes)
        tower = self.vlm.vision_model
        is_clip = kind == "clip"
        learns = torch.is_grad_enabled()
        tower_learns = learns and not self.config.freeze_backbone
        with torch.set_grad_enabled(tower_learns):
            if naflex:
                hidden = tower.embeddings(pixel_values, spatial_shapes)
            else:
                hidden = tower.embeddings(pixel_values, interpolate_pos_encoding=self._interpolates(pixel_values))
            hidden = tower.pre_layrnorm(hidden) if is_clip else hidden
        tokens = self.mix_tokens.to(hidden.dtype).expand(len(hidden), -1, -1)
        tokens = tower.pre_layrnorm(tokens) if is_clip else tokens
        length, K = hidden.shape[1], tokens.shape[1]
        skipped = int(is_clip)  # the class token, which patches see and mix tokens do not
        patch_mask = self._patch_mask(hidden[:, skipped:], pixel_attention_mask)
        by_patches = F.pad(patch_mask, (skipped, 0), value=True)[:, None]
        by_tokens = F.pad(self._patch_regions(patch_mask), (skipped, 0))
        looks = []
        if output_maps or learns and not tower_learns:
            # The tokens alone: one sequence would take the gradients back through the patches of a frozen tower.
            patch_bias = _bias(by_patches, hidden.dtype) if naflex and pixel_attention_mask is not None else None
            token_bias = _bias(by_tokens, hidden.dtype)
            for layer in tower.encoder.layers:
                tokens, looked = self._token_layer(layer, tokens, hidden, token_bias, output_maps)
                looks.append(looked)
                with torch.set_grad_enabled(tower_learns):
                    hidden = layer(hidden, attention_mask=patch_bias)
        else:
            sees = F.pad(torch.cat([by_patches.expand(-1, length, -1), by_tokens], 1), (0, K))
            bias = _bias(sees, hidden.dtype)
            states = tower.encoder(inputs_embeds=torch.cat([hidden, tokens], 1), attention_mask=bias).last_hidden_state
            hidden, tokens = states.split([length, K], 1)
        tokens = tower.post_layernorm(tokens)
        if is_clip:
            image_embeds = self.vlm.visual_projection(tower.post_layernorm(hidden[:, 0]))
            tokens = self.vlm.visual_projection(tokens)
        else:
            # The probe itself asks for the pooled picture, probes mixed with tokens for what the tokens stand for.
            probe = tower.head.probe
            mixed = probe + self.probe_share[:, None].to(tokens.dtype) * tokens
            probes = torch.cat([probe.expand(len(tokens), -1, -1), mixed], 1)
            bias = _bias(torch.cat([by_patches, by_tokens], 1), hidden.dtype)
            pooled, looked = self._pool(probes, tower.post_layernorm(hidden), bias, output_maps)
            image_embeds, tokens = pooled[:, 0], pooled[:, 1:]
            looks.append(looked[:, 1:] if output_maps else None)
        maps = torch.stack(looks).mean(0)[..., skipped:] if output_maps else None
        return unit_rms(tokens), None, image_embeds if tower_learns else image_embeds.detach(), patch_mask, maps

    def _see_patches(self, pixel_values, pixel_attention_mask, spatial_shapes):
        """As `_see`, for a model without mix tokens."""
        kind = self.config.vlm_config.model_type
        tower = self.vlm.vision_model
        if kind == "siglip2":
            inputs = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        else:
            inputs = {"interpolate_pos_encoding": self._interpolates(pixel_values)}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_backbone):
            outputs = tower(pixel_values=pixel_values, **inputs)
            patches, image_embeds = outputs.last_hidden_state, outputs.pooler_output
            if kind == "clip":
                patches = tower.post_layernorm(patches[:, 1:])
                image_embeds = self.vlm.visual_projection(image_embeds)
        patch_mask = self._patch_mask(patches, pixel_attention_mask)
        maps = torch.eye(patches.shape[1], device=patches.device)[None] * patch_mask[:, None]
        patches = self._project_patches(torch.where(patch_mask[..., None], patches, 0))
        return patches, patch_mask, image_embeds, patch_mask, maps

    def _interpolates(self, pixel_values: torch.Tensor) -> bool:
        size = self.config.vlm_config.vision_config.image_size
        return tuple(pixel_values.shape[-2:]) != (size, size)

    def _patch_mask(self, patches: torch.Tensor, pixel_attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Which patches count, bool `(B, N)`."""
        if pixel_attention_mask is not None and self.config.vlm_config.model_type == "siglip2":
            return pixel_attention_mask.bool()
        return torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)

    @staticmethod
    def _token_layer(layer, tokens, patches, bias, output_maps):
        """Mix tokens through one layer of the tower: patches are keys and values, tokens are not (equations 2, 3)."""
        attention = layer.self_attn
        shape = (*tokens.shape[:1], -1, attention.num_heads, attention.head_dim)
        normal = layer.layer_norm1(patches)
        queries = attention.q_proj(layer.layer_norm1(tokens)).view(shape).transpose(1, 2)
        keys = attention.k_proj(normal).view(shape).transpose(1, 2)
        values = attention.v_proj(normal).view(shape).transpose(1, 2)
        implementation = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, _eager_attention)
        found, _ = implementation(
            attention,
            queries,
            keys,
            values,
            bias,
            is_causal=False,
            scaling=attention.scale,
            dropout=attention.dropout if attention.training else 0.0,
        )
        tokens = tokens + attention.out_proj(found.reshape(tokens.shape))
        tokens = tokens + layer.mlp(layer.layer_norm2(tokens))
        looked = None
        if output_maps:
            looked = (wide(queries @ keys.mT) * attention.scale + wide(bias)).softmax(-1).mean(1)
        return tokens, looked

    def _pool(self, probes, patches, bias, output_maps):
        """SigLIP's pooling head for several probes, each seeing what it may see."""
        head = self.vlm.vision_model.head
        H = head.attention.num_heads
        weights, biases = head.attention.in_proj_weight.chunk(3), head.attention.in_proj_bias.chunk(3)
        queries, keys, values = (
            F.linear(states, weight, offset).unflatten(-1, (H, -1)).transpose(1, 2)
            for states, weight, offset in zip((probes, patches, patches), weights, biases)
        )
        scaling = queries.shape[-1] ** -0.5
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scaling)
        pooled = head.attention.out_proj(found.transpose(1, 2).flatten(2))
        looked = (wide(queries @ keys.mT) * scaling + wide(bias)).softmax(-1).mean(1) if output_maps else None
        return pooled + head.mlp(head.layernorm(pooled)), looked

    def _project_patches(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches after the tower's last LayerNorm into the space of the texts: each is pooled alone."""
        if self.config.vlm_config.model_type == "clip":
            return unit_rms(self.vlm.visual_projection(patches))
        head = self.vlm.vision_model.head
        weight, bias = head.attention.in_proj_weight.chunk(3)[2], head.attention.in_proj_bias.chunk(3)[2]
        tokens = head.attention.out_proj(F.linear(patches, weight, bias))
        return unit_rms(tokens + head.mlp(head.layernorm(tokens)))

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
            output_attentions: whether to return where the texts looked.
            kwargs: not used.

        Returns:
            `ParOutput`; `attentions` float32 `(B, A, C, H, K)`, of each label's text over the mix tokens, 0 past an
            attribute's own labels.

        Raises:
            ValueError: wrong or missing inputs; features in place of pixels; texts that were never tokenized; `labels`
                together with `attributes`.
        """
        if any(kwargs.get(name) is not None for name in FEATURES):
            given = ", ".join(name for name in FEATURES if name in kwargs)
            raise ValueError(
                f"{given}: expected pixel_values, because the mix tokens of FOCUS live and learn inside the vision "
                "tower; train from pictures"
            )
        if labels is not None and attributes is not None:
            raise ValueError("labels and attributes were both given: the loss is that of the model's own label space")
        tokens, token_mask, image_embeds, _, _ = self._see(pixel_values, pixel_attention_mask, spatial_shapes)
        texts = self._texts() if attributes is None else self._on_device(attributes)
        scores, attention = self._score(texts, tokens, token_mask)
        loss = None
        if labels is not None:
            used = tokens if len(self.mix_tokens) else None
            loss = self._loss_module()(scores, attention.mean(1), used, labels)
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        return ParOutput(
            loss=loss,
            logits=self._decide(texts, scores),
            image_embeds=image_embeds,
            attentions=self._spread(texts, attention.permute(0, 2, 1, 3), 0.0) if output_attentions else None,
        )

    def _on_device(self, texts: AttributeTexts) -> AttributeTexts:
        return texts if texts.embeds.device == self.device else texts.to(self.device)

    def _score(self, texts, tokens, token_mask):
        """Scaled cosine of each text with what it found, float32 `(B, Z)`, and the attention."""
        cosine, attention = self.extraction(texts.queries, texts.embeds, tokens, token_mask)
        with no_autocast(cosine):
            return cosine * wide(self.vlm.logit_scale).exp(), attention

    def _decide(self, texts, scores):
        return self._spread(texts, scores * texts.gain[texts.attribute] + texts.offset, NO_LABEL_LOGIT)

    @staticmethod
    def _spread(texts: AttributeTexts, values: torch.Tensor, fill: float) -> torch.Tensor:
        """From one column per text `(B, Z, ...)` to attributes and labels `(B, A, C, ...)`."""
        A, C = len(texts.schema), texts.schema.max_labels
        table = values.new_full((len(values), A * C, *values.shape[2:]), fill)
        return table.index_copy(1, texts.slots, values).unflatten(1, (A, C))

    def _loss_module(self) -> FocusLoss:
        # In a tuple, so that it is no submodule: it belongs to the training, not to the checkpoint.
        if self._loss is None or self._loss[0] != (self.config.loss, self.schema):
            check_loss_settings(self.config.loss)
            self._loss = ((dict(self.config.loss), self.schema), FocusLoss(self.schema, **self.config.loss))
        return self._loss[1]

    @torch.no_grad()
    def explain(
        self,
        *,
        attribute: str | int | Sequence[str | int] | None = None,
        attributes: AttributeTexts | None = None,
        **inputs: Any,
    ) -> torch.Tensor:
        """Where the answers come from: how much each patch was looked at.

        The attention of the text over the mix tokens (mean over heads), times that of the mix tokens over the patches
        (mean over layers and heads). The text is that of "yes" for a binary attribute, of the predicted label else.

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
        inputs = {name: inputs.get(name) for name in names}
        tokens, token_mask, _, patch_mask, maps = self._see(**inputs, output_maps=True)
        texts = self._texts() if attributes is None else self._on_device(attributes)
        scores, attention = self._score(texts, tokens, token_mask)
        where = self._spread(texts, attention.mean(1) @ wide(maps), 0.0)  # (B, A, C, N)
        answer = self._decide(texts, scores).argmax(-1)
        binary = torch.tensor([one.is_binary for one in texts.schema], device=answer.device)
        answer = torch.where(binary, 1, answer)
        relevance = where.take_along_dim(answer[:, :, None, None], 2)[:, :, 0]
        relevance = torch.where(patch_mask[:, None], relevance, 0)
        if attribute is None:
            return relevance
        chosen = [attribute] if isinstance(attribute, (str, int)) else list(attribute)
        return relevance[:, [texts.schema.index(one) if isinstance(one, str) else one for one in chosen]]

    # Optimisation

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
            learning_rate: of mix tokens and prompts.
            fusion_learning_rate: of the cross-attention; None takes 0.128 / E, as VLM-PAR's fusion.
            backbone_learning_rate: of the vision tower where it is trained.
            weight_decay: of matrices; tokens, prompts, biases and LayerNorm have none.
        """
        fusion_rate = 0.128 / self.config.text_width if fusion_learning_rate is None else fusion_learning_rate
        rates = {"tokens": learning_rate, "extraction": fusion_rate, "backbone": backbone_learning_rate}
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            part = name.partition(".")[0]
            part = {"extraction": "extraction", "vlm": "backbone"}.get(part, "tokens")
            decays = part != "tokens" and parameter.ndim >= 2
            groups.setdefault((part, decays), []).append(parameter)
        return [
            {"name": part, "params": parameters, "lr": rates[part], "weight_decay": weight_decay if decays else 0.0}
            for (part, decays), parameters in groups.items()
        ]


def _bias(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to attention scores `(B, 1, queries, keys)`, from bool `(B, queries, keys)`."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def _eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    weights = (query @ key.mT * scaling + attention_mask).float().softmax(-1).to(query.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _words(name: str) -> str:
    """`"UpperColor"` and `"upper_color"` as "upper color"."""
    spaced = "".join(
        f" {char}" if char.isupper() and before.islower() else char for before, char in zip(" " + name, name)
    )
    return " ".join(spaced.replace("_", " ").lower().split())


def fit_decisions(
    logits: Any, labels: Any, schema: AttributeSchema, *, weighting: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gain of each attribute and offset of each of its labels that make similarities decide, for any model's logits.

    Args and errors as in `FocusParModel.fit_decisions`.

    Returns:
        float64 gain `(A,)`, above 0, and offset `(Z,)`, labels of all attributes in a row; 1 and 0 for an attribute of
        which the data know one label only.
    """
    logits = torch.as_tensor(np.asarray(logits)).double()
    labels = np.asarray(labels)
    expected = (len(labels), len(schema), schema.max_labels)
    if tuple(logits.shape) != expected or labels.shape != expected[:2]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {labels.shape} do not fit, expected {expected} and "
            f"{expected[:2]} for this label space"
        )
    weights = None
    if weighting is not None:
        weights = compute_class_weights(compute_priors(labels, schema), weighting)
    truth = torch.as_tensor(labels).long()
    gains, offsets = [], []
    for a, one in enumerate(schema):
        known = truth[:, a] != UNKNOWN_LABEL
        gain, offset = torch.ones((), dtype=torch.float64), torch.zeros(one.num_labels, dtype=torch.float64)
        if len(truth[known, a].unique()) > 1:
            weight = None if weights is None else torch.tensor(weights[a], dtype=torch.float64)
            gain, offset = _fit_affine(logits[known, a, : one.num_labels], truth[known, a], weight)
        gains.append(gain)
        offsets.append(offset)
    return torch.stack(gains), torch.cat(offsets)


def transfer_decisions(
    gain: torch.Tensor, offset: torch.Tensor, schema: AttributeSchema, asked: AttributeSchema
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decisions for a label space of which only some attributes were fitted.

    An attribute with the labels and prompts of a fitted one has its decisions. Any other has the mean gain; a binary
    one also the usual threshold, the median over the fitted binary attributes: how much more like "yes" than like "no"
    a picture must be. Backbones like to say "no", and what is fitted for some attributes is true of others, too.

    Args:
        gain: `(A,)`, above 0, and offset `(Z,)`: of the attributes of `schema`, as from `fit_decisions`.
        schema: what was fitted.
        asked: what is asked.

    Returns:
        gain and offset of the attributes of `asked`.
    """
    fitted = {(one.labels, one.prompts): a for a, one in enumerate(schema)}
    offsets = offset.split(schema.num_labels)
    usual = gain.log().mean().exp()
    thresholds = [(offsets[a][0] - offsets[a][1]) / gain[a] for a, one in enumerate(schema) if one.is_binary]
    threshold = torch.stack(thresholds).quantile(0.5) if thresholds else gain.new_zeros(())
    gains, moved = [], []
    for one in asked:
        a = fitted.get((one.labels, one.prompts))
        gains.append(usual if a is None else gain[a])
        if a is not None:
            moved.append(offsets[a])
        elif one.is_binary:
            moved.append(usual * torch.stack([threshold, -threshold]) / 2)
        else:
            moved.append(gain.new_zeros(one.num_labels))
    return torch.stack(gains), torch.cat(moved)


def _fit_affine(logits, truth, weight):
    """Gain above 0 and offsets of one attribute, float64, by L-BFGS."""
    parameters = torch.zeros(1 + logits.shape[1], dtype=torch.float64, requires_grad=True)
    scale = logits.std().clamp_min(1e-6)
    cell_weight = torch.ones_like(logits[:, 0]) if weight is None else weight[truth]
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        fitted = logits * parameters[0].exp() + parameters[1:] * scale
        cells = F.cross_entropy(fitted, truth, reduction="none") * cell_weight
        loss = cells.mean() + 1e-3 * parameters.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return parameters[0].exp().detach(), (parameters[1:] * scale).detach()
