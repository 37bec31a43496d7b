"""Configuration of VTF."""

import string
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig

from vlm_par_hf.base.configuration import BackboneConfig, check_own_number, check_token_ids
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.labels.texts import split_words
from vlm_par_hf.upstream import SubConfigSpec


__all__ = ["VtfParConfig"]

TEMPORAL = ("quality", "attention", "mean")
LOGIT_NORMS = ("none", "batch")
PAPER_TEMPLATE = "the pedestrian has an attribute {phrase}"
RELEASED_TEMPLATE = "{phrase}"
TEMPLATE_FIELDS = ("phrase", "label", "category", "prompt")
LARGEST_RATIO = 64
DEFAULT_HEADS = 8


@strict
class VtfParConfig(BackboneConfig):
    """Configuration of `VtfParModel`.

    Args:
        vlm_config: configuration of the backbone, an object or its dict: `clip` (the paper's), `siglip` (SigLIP and
            the fixed-resolution SigLIP 2 checkpoints) or `siglip2` (NaFlex). None: CLIP ViT-B/16.
        attributes: the label space, an `AttributeSchema` or a list of dicts; stored as plain JSON. `config.schema` is
            the object. The order of the attributes is the order of the logits.
        decisions: what was fitted for the answers (`vlm_par_hf.calibration`), `Decisions` or its dict; stored as
            plain JSON. The model then gives calibrated logits. `config.set_decisions` also sets thresholds.
        temporal: what becomes of several frames.
            `"mean"`: the mean of their tokens, place by place, before the fusion (the paper). It has no way to pass
            over a frame in which the person is hidden.
            `"quality"`: a weighted mean, with one learned weight per frame, by what the tower says of the frame as a
            whole and how it differs from the other frames.
            `"attention"`: the texts attend to each frame by itself, and every text weighs the frames by what it finds
            there. The mean by these weights goes through the MLP of the last block.
            The order of the frames matters in none of them.
        num_frames: T, how many frames of a tracklet data sets and the pipeline sample (6 in the paper). The model
            takes any number.
        fusion_width: of the fusion blocks (768 in the paper); None: that of the tokens.
        num_fusion_heads: of their attention; divides `fusion_width`.
        num_fusion_layers: number of fusion blocks (1 in the paper).
        mlp_ratio: width of their MLP, in multiples of `fusion_width`.
        attention_dropout: dropout on their attention probabilities, in training.
        layer_norm_eps: of their LayerNorms.
        logit_norm: `"batch"` normalises every score over the batch, as the released code does; `"none"`: not.
        pooled_classifier: whether a linear classifier on the tower's pooled output of each frame, weighed as the
            frames are, is added to the scores. It starts at zero and learns fast. False: not (the paper).
        text_template: the text of a score, with the fields `{prompt}` (the sentence of the schema), `{category}` (the
            attribute's name in words), `{label}`, and `{phrase}` (category and label; of a binary attribute with the
            labels no and yes the category alone). A binary attribute has one score and text, that of its second
            label; any other has one per label.
        freeze_backbone: what is frozen when a model is built or loaded: with True the backbone, with False its text
            tower only. Afterwards `requires_grad` is the user's.
        backbone_name, backbone_revision, backbone_hash, save_backbone, lora: as in `VlmParConfig`.
        loss: keyword settings of `ParLoss`.
        text_input_ids: token ids of the text of each score, without padding; set when the texts are tokenized.
        text_pad_token_id: the id that pads texts; set at the same time.

    Raises:
        ValueError: a value is not allowed; names the argument.
        TypeError: `attributes` is not a list of attributes.
    """

    model_type = "vtf_par"
    # `backbone_config` and `text_config` are names that transformers treats specially.
    sub_configs_defaults = {"vlm_config": SubConfigSpec(config_class=AutoConfig, model_type="clip")}
    backbone_types = ("clip", "siglip", "siglip2")
    # The size of openai/clip-vit-base-patch16, which the paper uses.
    default_backbone = {"model_type": "clip", "vision_config": {"patch_size": 16}}
    free_at_load = (*BackboneConfig.free_at_load, "num_frames")

    temporal: str = "quality"
    num_frames: int = 6
    fusion_width: int | None = None
    num_fusion_heads: int = DEFAULT_HEADS
    num_fusion_layers: int = 1
    mlp_ratio: float | int = 4.0
    layer_norm_eps: float = 1e-6
    logit_norm: str = "none"
    pooled_classifier: bool = True
    text_template: str = "{prompt}"
    text_input_ids: list | None = None

    def _check_values(self) -> None:
        for name, choices in (("temporal", TEMPORAL), ("logit_norm", LOGIT_NORMS)):
            if getattr(self, name) not in choices:
                raise ParValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r:.40}")
        for name in ("num_frames", "num_fusion_heads", "num_fusion_layers"):
            check_own_number(name, getattr(self, name), 1)
        if self.fusion_width is None:
            self.fusion_width = self.token_width
        if isinstance(self.fusion_width, bool) or not 1 <= self.fusion_width <= 16_384:
            raise ParValueError(f"fusion_width must be a whole number from 1 to 16,384, got {self.fusion_width!r:.40}")
        if self.fusion_width % self.num_fusion_heads:
            raise ParValueError(
                f"num_fusion_heads must divide fusion_width {self.fusion_width}, got {self.num_fusion_heads}"
            )
        if isinstance(self.mlp_ratio, bool) or not 0 < self.mlp_ratio <= LARGEST_RATIO:
            raise ParValueError(f"mlp_ratio must lie between 0 and {LARGEST_RATIO}, got {self.mlp_ratio!r:.40}")
        if not 0 < self.layer_norm_eps < 1:
            raise ParValueError(f"layer_norm_eps must lie between 0 and 1, got {self.layer_norm_eps!r:.40}")
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(self.text_template) if field is not None]
        except ValueError as error:
            raise ParValueError(f"text_template {self.text_template!r:.80}: {error}") from None
        if not fields or not set(fields) <= set(TEMPLATE_FIELDS):
            raise ParValueError(
                f"text_template must have one of the fields {', '.join(TEMPLATE_FIELDS)} and no others, got "
                f"{self.text_template!r:.80}"
            )
        check_token_ids("text_input_ids", self.text_input_ids, self.vlm_config.text_config.vocab_size, 2)

    @property
    def token_width(self) -> int:
        """Width of the tokens of a frame: of CLIP after the projection."""
        if self.vlm_config.model_type == "clip":
            return self.vlm_config.projection_dim
        return self.vlm_config.vision_config.hidden_size

    @property
    def text_width(self) -> int:
        """Width of a text's pooled vector."""
        if self.vlm_config.model_type == "clip":
            return self.vlm_config.projection_dim
        return self.vlm_config.text_config.projection_size

    @property
    def reads_pooled_output(self) -> bool:
        """Whether the logits depend on the tower's pooled output."""
        return self.temporal == "quality" or self.pooled_classifier

    def texts(self, schema: AttributeSchema) -> list[str]:
        """The text of each score: of a binary attribute that of its second label, of any other one per label."""
        found = []
        for one in schema:
            category = split_words(one.name)
            for label, prompt in list(zip(one.labels, one.prompts))[one.is_binary :]:
                says_no_more = one.labels == ("no", "yes") or split_words(label) == category
                phrase = category if says_no_more else f"{category} {label}"
                fields = {"phrase": phrase, "label": label, "category": category, "prompt": prompt}
                found.append(self.text_template.format(**fields))
        return found

    @classmethod
    def paper(cls, **kwargs: Any) -> "VtfParConfig":
        """Every choice as in the paper; keywords override.

        The mean of 6 frames, "the pedestrian has an attribute ...", one fusion block, plain binary cross-entropy. Its
        width of 768 and its 12 heads are those of the released code.
        """
        choices = {
            "temporal": "mean",
            "num_frames": 6,
            "fusion_width": 768,
            "num_fusion_heads": 12,
            "num_fusion_layers": 1,
            "pooled_classifier": False,
            "text_template": PAPER_TEMPLATE,
            "loss": {"kind": "ce", "label_smoothing": 0.0, "reduction": "mean"},
        }
        return cls(**{**choices, **kwargs})

    @classmethod
    def released(cls, **kwargs: Any) -> "VtfParConfig":
        """Every choice as in the code that the authors released; keywords override.

        It differs from the paper: the words of an attribute without a sentence around them, scores that are normalised
        over the batch, and a loss that is weighted by exp(1 - share of the label), summed over attributes, and needs
        the shares of the training split (`loss={"priors": ...}`, which `vlm-par train` fills in).
        """
        choices = {
            "text_template": RELEASED_TEMPLATE,
            "logit_norm": "batch",
            "loss": {"kind": "weighted_bce", "reduction": "sum"},
        }
        return cls.paper(**{**choices, **kwargs})
