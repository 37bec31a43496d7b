"""VTF: learning CLIP for video-based pedestrian attribute recognition (Zhu et al., 2023).

The frames of a tracklet pass through a frozen vision tower, and the text of each attribute through the frozen text
tower. One transformer over [texts; frames] mixes both, and a linear layer at the place of each text gives its score.

- All tokens of a frame are taken, after the tower's last LayerNorm; of CLIP projected into the space of the texts.
- The texts are constant: the text tower runs once, its results are buffers of the model, and the first block projects
  them once for all people and frames. After the last block only the places of the texts are read, so it computes no
  others. None of this changes an answer.
- The paper averages the tokens over the frames before the transformer, so a frame in which the person is hidden
  counts as much as any other. `temporal="quality"` and `"attention"` weigh the frames (`VtfParConfig.temporal`). With
  their weights at the starting value, which gives all frames the same, "quality" is the paper's model.
- The released code normalises scores over the batch and uses the words of an attribute as they are
  (`VtfParConfig.released`); the paper has sentences and says nothing of the former.
- A linear classifier on the pooled output of each frame, which starts at zero, is added to the scores: where training
  sets are small it learns what the transformer does not (`VtfParConfig.pooled_classifier`; not in the paper).
- An attribute of K > 2 labels has one text and score per label, as in the paper; here a softmax over them.

Letters: B people, T frames, N tokens of a frame, A attributes, C labels, Z texts, W width of the fusion, D width of
the tokens, H heads.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers.utils import can_return_tuple

from vlm_par_hf.base.backbones import BackbonePreTrainedModel
from vlm_par_hf.base.classifiers import AttributeClassifier
from vlm_par_hf.base.modeling import ExchangedAttributes, evaluation_mode
from vlm_par_hf.base.numerics import wide
from vlm_par_hf.base.outputs import ParImageFeatures, ParOutput
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.upstream import TOWERS, Towers, init

from .configuration_vtf_par import VtfParConfig
from .fusion_vtf_par import FrameWeights, FusionBlock
from .processing_vtf_par import VtfParProcessor


__all__ = ["VtfParModel"]

logger = logging.getLogger(__name__)


class VtfParModel(BackbonePreTrainedModel):
    """VTF over a CLIP, SigLIP or SigLIP 2 backbone. The logits are float32 whatever the dtype of the model.

    Inputs without an axis of frames are tracklets of one frame each, so the model also answers for pictures.
    `ParOutput.image_embeds` is the mean of the frames' pooled outputs, `(B, D)`.

    Args:
        config: its `attributes` must be set.

    Raises:
        ValueError: `config.attributes` is None, or its token ids belong to another label space.
    """

    config_class = VtfParConfig
    processor_class = VtfParProcessor
    supports_features = True
    supports_tracklets = True
    parameter_rates = {
        "classifier": "learning_rate", "fusion": "fusion_learning_rate", "backbone": "backbone_learning_rate",
    }  # fmt: skip

    def __init__(self, config: VtfParConfig) -> None:
        super().__init__(config)
        count, ids = len(config.texts(self.schema)), config.text_input_ids
        if ids is not None and (len(ids) != count or not all(ids)):
            raise ParValueError(
                f"text_input_ids must hold the tokens of {count} texts for these attributes, got {len(ids)} texts"
            )
        self.vlm = AutoModel.from_config(config.vlm_config)
        self._build_adapters()
        width, eps = config.fusion_width, config.layer_norm_eps
        self.project_frames = nn.Linear(config.token_width, width)
        self.project_texts = nn.Linear(config.text_width, width)
        self.blocks = nn.ModuleList(
            FusionBlock(width, config.num_fusion_heads, config.mlp_ratio, config.attention_dropout, eps)
            for _ in range(config.num_fusion_layers)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        if config.temporal != "mean":
            self.frame_weights = FrameWeights(config.token_width if config.temporal == "quality" else width)
        self._build_classifier()
        if config.pooled_classifier:
            self.register_buffer("pooled_mean", torch.zeros(config.token_width))
            self.register_buffer("pooled_std", torch.ones(config.token_width))
        self.register_buffer("text_embeds", torch.zeros(count, config.text_width))
        self._text_ready = False
        self.post_init()
        self._freeze()

    def _build_classifier(self) -> None:
        batch = self.config.logit_norm == "batch"
        self.classifier = AttributeClassifier(self.config.fusion_width, self.schema, bias=not batch)
        if self.config.pooled_classifier:
            self.pooled_classifier = AttributeClassifier(self.config.token_width, self.schema, bias=not batch, std=0)
        if batch:
            self.score_norm = nn.BatchNorm1d(sum(self.classifier.rows))

    def init_parameters(self) -> None:
        """Zeros in the buffer that `_prepare_texts` fills, and statistics that change nothing; the parts initialise
        their own parameters."""
        init.zeros_(self.text_embeds)
        if self.config.pooled_classifier:
            init.zeros_(self.pooled_mean)
            init.ones_(self.pooled_std)

    @property
    def vision_tower(self) -> nn.Module:
        return self.vlm.vision_model

    @property
    def _towers(self) -> Towers:
        return TOWERS[self.config.vlm_config.model_type]

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vlm.text_model.set_input_embeddings(value)

    def _freeze_unused(self) -> None:
        if self._towers.has_pooling_head and not self.config.reads_pooled_output:
            self.vlm.vision_model.head.requires_grad_(False)  # no score depends on the pooled output

    # Texts

    @torch.no_grad()
    def _prepare_texts(self, processor: VtfParProcessor | None) -> None:
        config = self.config
        if processor is not None:
            limit = config.vlm_config.text_config.max_position_embeddings
            config.text_pad_token_id = int(processor.tokenizer.pad_token_id or 0)
            config.text_input_ids = processor.encode_texts(config.texts(self.schema), limit)
            self._text_ready = False
        if self._text_ready:
            return
        # The buffer of a checkpoint is filled already.
        if processor is not None or (not self.text_embeds.is_meta and not bool(self.text_embeds.any())):
            if config.text_input_ids is None:
                raise ParValueError(
                    "the texts were never tokenized (text_input_ids is None): build the model with from_backbone, or "
                    "load a checkpoint that was saved after that"
                )
            self.text_embeds = self._encode_text(config.text_input_ids)[1]
        self._text_ready = True

    def _exchange_attributes(self, schema: AttributeSchema, processor: Any) -> None:
        """Attributes of equal name and labels keep their rows of the classifier, the others get fresh ones. Texts
        attend to each other, so with other texts beside them the answers of the kept ones change a little."""
        before, old = self.schema, self.classifier
        old_pooled, old_norm = getattr(self, "pooled_classifier", None), getattr(self, "score_norm", None)
        self._set_label_space(schema)
        self._build_classifier()
        self.classifier.init_parameters()
        names = self.classifier.take_rows(old)
        if old_pooled is not None:
            self.pooled_classifier.init_parameters()
            self.pooled_classifier.take_rows(old_pooled)
        if old_norm is not None:
            self._exchange_norm(old, old_norm)
        self._prepare_texts(processor)
        self.exchanged_attributes = ExchangedAttributes(
            kept=tuple(names),
            fresh=tuple(name for name in schema.names if name not in names),
            left_out=tuple(name for name in before.names if name not in names),
        )
        found = (", ".join(one) or "none" for one in self.exchanged_attributes)
        logger.warning(
            "The label space is exchanged. Scores kept: %s. Fresh, to be trained: %s. Left out: %s.", *found
        )

    @torch.no_grad()
    def _exchange_norm(self, old: AttributeClassifier, old_norm: nn.BatchNorm1d) -> None:
        sources, learns = old.places(), old_norm.weight.requires_grad
        self.score_norm.to(old_norm.weight.device, old_norm.weight.dtype).requires_grad_(learns).train(
            old_norm.training
        )
        for name in ("weight", "bias", "running_mean", "running_var"):
            for key, rows in self.classifier.places().items():
                if key in sources:
                    getattr(self.score_norm, name)[rows] = getattr(old_norm, name)[sources[key]]

    # Frames

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ParImageFeatures:
        """The tokens of pictures or frames; with gradients where a parameter of the vision tower requires them.

        Args:
            pixel_values: `(B, N, 3 * patch_size**2)` for NaFlex, `(B, 3, height, width)` for fixed resolution; or with
                an axis of frames, `(B, T, ...)`.
            pixel_attention_mask: `(B, N)` or `(B, T, N)`, 1 for patches that count (NaFlex; None: all).
            spatial_shapes: int64 `(B, 2)` or `(B, T, 2)`, rows and columns of patches (NaFlex).
            kwargs: of the vision tower, such as `output_hidden_states` and `output_attentions`.

        Returns:
            `ParImageFeatures`, with the axis of frames if the pixels have one.

        Raises:
            ValueError: `spatial_shapes` is missing (NaFlex), or the pixels have the wrong number of dimensions.
        """
        backbone_type = self.config.vlm_config.model_type
        naflex = backbone_type == "siglip2"
        given = (pixel_values, pixel_attention_mask, spatial_shapes)
        frames = pixel_values.shape[:2] if pixel_values.ndim == (4 if naflex else 5) else None
        if frames is not None:
            given = tuple(None if one is None else one.flatten(0, 1) for one in given)
        self._check_pixels(backbone_type, given[0], given[2])
        outputs = self._run_tower(self.vision_tower, naflex, *given, **kwargs)
        tokens, pooled = outputs.last_hidden_state, outputs.pooler_output
        if backbone_type == "clip":
            tokens = self._towers.project(self.vlm, self._towers.leave(self.vlm, tokens))
            pooled = tokens[:, 0]
        mask = self._patch_mask(tokens, given[1] if naflex else None)
        found = ParImageFeatures(
            last_hidden_state=tokens, pooler_output=pooled, hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"), patch_mask=mask,
        )  # fmt: skip
        if frames is None:
            return found
        for name, value in list(found.items()):
            several = isinstance(value, tuple)
            # Without eager attention, layers have none.
            split = [None if one is None else one.unflatten(0, frames) for one in (value if several else (value,))]
            found[name] = tuple(split) if several else split[0]
        return found

    def _read_frames(
        self, features: ParImageFeatures, frame_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Tokens `(B, T, N, D)`, pooled outputs `(B, T, D)`, and the masks of tokens `(B, T, N)` and frames
        `(B, T)`."""
        tokens, pooled, mask = features
        if tokens.ndim == 3:
            tokens, mask = tokens[:, None], mask[:, None]
            pooled = None if pooled is None else pooled[:, None]
        B, T = tokens.shape[:2]
        if frame_mask is None:
            frame_mask = torch.ones(B, T, dtype=torch.bool, device=tokens.device)
        frame_mask = frame_mask.to(tokens.device).bool()
        if frame_mask.ndim == 1:
            frame_mask = frame_mask[:, None]
        if frame_mask.shape != (B, T):
            raise ParValueError(
                f"frame_mask has shape {tuple(frame_mask.shape)}, expected ({B}, {T}): people and frames of the inputs"
            )
        if not torch.compiler.is_compiling() and not frame_mask.is_meta:
            empty = (~frame_mask.any(1)).nonzero().flatten().tolist()
            if empty:
                raise ParValueError(
                    f"frame_mask has no valid frame in row {empty[0]}: expected at least one frame of every person"
                )
        return tokens, pooled, mask & frame_mask[..., None], frame_mask

    # Answers

    def _fuse(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the places of the texts hold after the attention of the last block, `(B, Z, W)`, of tokens
        `(B, N, W)`."""
        texts = self.project_texts(self.text_embeds.to(self.project_texts.weight.dtype))[None]
        for block in self.blocks[:-1]:
            texts, tokens = block.attend(texts, tokens, mask)
            texts, tokens = block.feed(texts), block.feed(tokens)
        return self.blocks[-1].attend(texts, tokens, mask, texts_only=True)[0]

    def _look(
        self, tokens: torch.Tensor, pooled: torch.Tensor | None, mask: torch.Tensor, frame_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The vector of each text, `(B, Z, W)`, and the weights of the frames, `(B, T)` or `(B, Z, T)`."""
        # What is not valid may hold anything, also what is not finite.
        tokens = torch.where(mask[..., None], tokens, 0).to(self.project_frames.weight.dtype)
        B, T = frame_mask.shape
        if self.config.temporal == "attention":
            states = self._fuse(self.project_frames(tokens).flatten(0, 1), mask.flatten(0, 1)).unflatten(0, (B, T))
            states = states.transpose(1, 2)  # (B, Z, T, W)
            weights = self.frame_weights(states, frame_mask[:, None])
            return self._finish((weights[..., None].to(states.dtype) * states).sum(2)), weights
        if self.config.temporal == "quality":
            weights = self.frame_weights(pooled.to(tokens.dtype), frame_mask)
        else:
            weights = frame_mask / frame_mask.sum(1, keepdim=True)
        # Frames of other shapes have tokens at other places, so each place has its own sum of weights.
        shares = weights[..., None] * mask
        shares = shares / shares.sum(1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
        merged = torch.einsum("btn,btnd->bnd", shares.to(tokens.dtype), tokens)
        return self._finish(self._fuse(self.project_frames(merged), mask.any(1))), weights

    def _finish(self, states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.blocks[-1].feed(states))

    def _score(self, states: torch.Tensor, pooled: torch.Tensor | None, weights: torch.Tensor) -> torch.Tensor:
        scores = self.classifier.scores(states)
        if self.config.pooled_classifier:
            per_frame = self.pooled_classifier.scores(
                (wide(pooled) - self.pooled_mean).div(self.pooled_std).flatten(0, 1)
            )
            per_frame = per_frame.unflatten(0, pooled.shape[:2])
            weights = weights[:, None] if weights.ndim == 2 else weights  # (B, Z or 1, T)
            scores = scores + (weights.transpose(1, 2).to(per_frame.dtype) * per_frame).sum(1)
        if self.config.logit_norm == "batch":
            norm = self.score_norm
            learns = norm.training and len(scores) > 1  # one tracklet has no spread
            if learns:
                norm.num_batches_tracked.add_(1)
            scores = F.batch_norm(
                scores, norm.running_mean.to(scores.dtype), norm.running_var.to(scores.dtype),
                norm.weight.to(scores.dtype), norm.bias.to(scores.dtype), learns, norm.momentum, norm.eps,
            )  # fmt: skip
        return self.classifier.arrange(scores)

    def _by_label(self, weights: torch.Tensor) -> torch.Tensor:
        """The weights of the frames as float32 `(B, A, C, T)`, 0 past an attribute's own labels."""
        A, C = len(self.schema), self.schema.max_labels
        if weights.ndim == 2:
            weights = weights[:, None].expand(-1, len(self.text_embeds), -1)
        rows, start = [], 0
        for one, count in zip(self.schema, self.classifier.rows):
            own = [start] * 2 if one.is_binary else list(range(start, start + count))
            rows += own + [0] * (C - len(own))
            start += count
        found = weights[:, rows].unflatten(1, (A, C)).float()
        return found * torch.from_numpy(self.schema.label_mask()).to(found.device)[..., None]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        *,
        frame_mask: torch.Tensor | None = None,
        patch_embeds: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        patch_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> ParOutput:
        """Scores every attribute of every person.

        Args:
            pixel_values, pixel_attention_mask, spatial_shapes: as in `get_image_features`, of any number of frames.
            labels: int64 `(B, A)`, class index per attribute, -100 = unknown; gives the loss.
            frame_mask: bool `(B, T)`, which frames count; None: all. What the others hold changes nothing.
            patch_embeds, image_embeds, patch_mask: in place of pixels, what `get_image_features` returned, in any
                floating dtype, with or without the axis of frames.
            output_attentions: whether to return the weights of the frames.
            output_hidden_states: whether to return the states of the vision tower, which needs pixels.
            num_items_in_batch: number of known labels of the whole optimizer step; `Trainer` passes it.
            kwargs: ignored, but `input_ids` and `attributes` are refused.

        Returns:
            `ParOutput`; `attentions` is float32 `(B, A, C, T)`: how much each frame counts for each label, which sums
            to 1 over the frames; 0 past an attribute's own labels.

        Raises:
            ValueError: pixels and features are both given or both missing, one of their tensors is missing, a row has
                no valid frame, or something is asked for that there is not.
        """
        given = [name for name in ("input_ids", "attributes") if kwargs.get(name) is not None]
        if given:
            raise ParValueError(
                f"{', '.join(given)}: a {type(self).__name__} answers for config.attributes and no others; "
                "FocusParModel answers for texts of the call"
            )
        if (pixel_values is None) == (patch_embeds is None):
            raise ParValueError(
                "expected either pixel_values or patch_embeds, got " + ("neither" if patch_embeds is None else "both")
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if patch_embeds is not None:
            if output_hidden_states:
                raise ParValueError(
                    "output_hidden_states is True, but patch_embeds were given: the states of the vision tower's "
                    "layers are computed from pixel_values only"
                )
            if patch_mask is None:
                patch_mask = torch.ones(patch_embeds.shape[:-1], dtype=torch.bool, device=patch_embeds.device)
            features = ParImageFeatures(patch_embeds, image_embeds, patch_mask=patch_mask.bool())
        else:
            features = self.get_image_features(
                pixel_values, pixel_attention_mask, spatial_shapes, return_dict=True,
                **({"output_hidden_states": output_hidden_states} if output_hidden_states else {}),
            )  # fmt: skip
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        self._prepare_texts(None)
        tokens, pooled, mask, frame_mask = self._read_frames(features, frame_mask)
        if pooled is not None:
            pooled = torch.where(frame_mask[..., None], pooled, 0)
        elif self.config.reads_pooled_output:
            raise ParValueError(
                "image_embeds is None, but the logits depend on them (config.temporal is "
                f"{self.config.temporal!r}, config.pooled_classifier is {self.config.pooled_classifier})"
            )
        states, weights = self._look(tokens, pooled, mask, frame_mask)
        logits = self._score(states, pooled, weights)
        loss = None if labels is None else self.loss_module(logits, labels, num_items_in_batch)
        if labels is None:
            self._guard_padding(logits)
        if pooled is not None:
            pooled = pooled.sum(1) / frame_mask.sum(1, keepdim=True)
        return ParOutput(
            loss=loss,
            logits=self._calibrated(logits),
            image_embeds=pooled,
            attentions=self._by_label(weights) if output_attentions else None,
            hidden_states=features.hidden_states,
        )

    # Starting values and optimisation

    @property
    def starts_from_priors(self) -> bool:
        return True

    @torch.no_grad()
    def init_bias_from_priors(self, priors: Sequence[Sequence[float]]) -> None:
        """Sets the biases of the scores so that, without their weights, they give each label its share.

        Args and errors as in `AttributeClassifier.prior_scores`.
        """
        bias = self.score_norm.bias if self.config.logit_norm == "batch" else self.classifier.bias
        bias.copy_(self.classifier.prior_scores(priors))

    @property
    def supports_pooled_statistics(self) -> bool:
        """Whether the model has a classifier on the pooled output, whose input can be standardised."""
        return self.config.pooled_classifier

    @torch.no_grad()
    def fit_pooled_statistics(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Standardises the pooled output of frames by its mean and standard deviation over training frames. No logit
        changes, but the classifier on it learns evenly.

        Args:
            batches: keyword arguments of `forward`; of the features only `image_embeds` (and `frame_mask`) are needed.

        Raises:
            ValueError: `config.pooled_classifier` is False, or fewer than 2 frames.
        """
        if not self.config.pooled_classifier:
            raise ParValueError("pooled_classifier is False: this model does not classify the pooled output")
        count, total, squares = 0, 0.0, 0.0
        with evaluation_mode(self):
            for batch in batches:
                pooled = batch.get("image_embeds")
                if pooled is None:
                    pixels = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
                    pooled = self.get_image_features(**{name: batch.get(name) for name in pixels}).pooler_output
                mask = batch.get("frame_mask")
                pooled = (pooled.flatten(0, -2) if mask is None else pooled[mask]).double()
                count += len(pooled)
                total, squares = total + pooled.sum(0), squares + pooled.square().sum(0)
        if count < 2:
            raise ParValueError(f"batches must hold at least 2 frames, got {count}")
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        std = torch.where(std > 1e-6, std, 1.0)  # what never changes says nothing
        head, old_mean, old_std = self.pooled_classifier, self.pooled_mean.double(), self.pooled_std.double()
        per_unit = head.weight.double() / old_std
        shift = per_unit @ (mean - old_mean)
        if head.bias is not None:
            head.bias.add_(shift.to(head.bias))
        else:  # the scores are normalised, and so is what they are shifted by
            self.score_norm.running_mean.sub_(shift.to(self.score_norm.running_mean))
        head.weight.copy_(per_unit * std)
        self.pooled_mean.copy_(mean)
        self.pooled_std.copy_(std)

    @property
    def fusion_width(self) -> int:
        return self.config.fusion_width

    def _part_of(self, name: str, parameter: nn.Parameter) -> tuple[str, bool]:
        part = {"vlm": "backbone", "classifier": "classifier", "score_norm": "classifier"}
        part |= {"pooled_classifier": "classifier"}
        return part.get(name.partition(".")[0], "fusion"), parameter.ndim >= 2
