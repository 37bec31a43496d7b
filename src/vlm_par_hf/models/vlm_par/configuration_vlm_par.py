"""Configuration of VLM-PAR."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from vlm_par_hf.base.configuration import (
    BackboneConfig,
    LabelSpaceConfig,
    check_dtype,
    check_own_number,
    check_token_ids,
    check_tower,
)
from vlm_par_hf.errors import ParValueError, unreadable
from vlm_par_hf.upstream import SubConfigSpec


__all__ = ["FoldedVlmParConfig", "VlmParConfig"]

ALIGNMENTS = ("logit", "none")
FUSIONS = ("text_to_image", "image_to_text", "none")
QUESTION_TOKENS = ("content", "all")
LONGEST = 4_096  # tokens of a question
VISION_TYPES = ("siglip2_vision_model", "siglip_vision_model")


@strict
class VlmParConfig(BackboneConfig):
    """Configuration of `VlmParModel`.

    Args:
        vlm_config: configuration of the backbone, an object or its dict: `siglip2` (NaFlex checkpoints) or `siglip`
            (SigLIP and the fixed-resolution SigLIP 2 checkpoints). None: the base NaFlex one.
        attributes: the label space, an `AttributeSchema` or a list of dicts; stored as plain JSON. `config.schema` is
            the object. The order of the attributes is the order of the logits.
        alignment: stage 1. `"logit"` adds the backbone's own zero-shot score of each label's prompt, times a learned
            gate per attribute that starts at 0 (`VlmParModel.fit_zero_shot` sets the gates); `"none"` adds nothing to
            the logits of stage 2.
        fusion: stage 2. `"text_to_image"`: the question looks at the patches. `"image_to_text"`: the patches look at
            the question's tokens (VLM-PAR, equations 9-12). `"none"`: no question, the mean of the normalised patches
            (the paper's ablation).
        pooled_classifier: whether stage 2 also has a linear classifier on the tower's own pooled output
            (`image_embeds`), standardised by training statistics, which starts at 0. A configuration that was saved
            without this field is read with False.
        question_tokens: the text states that image-to-text attends to. `"content"`: the tokens of the question and the
            last position, where the text tower pools; `"all"`: all positions, padding included. Both include the
            learnable vectors.
        num_question_prompts: m, the number of learnable vectors in each attribute's question (0: none). They stand in
            place of padding before the last position, and gradients reach them through the frozen text tower, which
            then runs in every training step.
        num_fusion_heads: attention heads of the fusion block (8 in the paper); divides the vision tower's width.
        attention_dropout: dropout on the attention probabilities of the fusion block, in training.
        layer_norm_eps: of the fusion block's LayerNorm.
        freeze_backbone: what is frozen when a model is built or loaded: with True the backbone, with False all of it
            but the vision tower, because the text is encoded only once. Afterwards `requires_grad` is the user's; a
            tower of which nothing trains stays in eval mode under `model.train()`.
        backbone_name: where the backbone came from: a repository, a folder, or `"embedded"`. Needed to save the heads
            alone.
        backbone_revision: its revision, None for the default one.
        backbone_hash: sha256 over the tensors of its weight files; set when the heads are saved alone, checked when
            they are loaded.
        save_backbone: False makes `save_pretrained` write the heads alone.
        lora: the adapters in the vision tower that `add_lora` has put there: a dict of `rank`, `alpha`, `layers` (how
            many, from the last one) and `targets` (linear maps of a layer); None: there are none.
        loss: keyword settings of `ParLoss`.
        question_input_ids: token ids of each attribute's question, without padding; set by `encode_questions`.
        prompt_input_ids: the same for each label's prompt of each attribute.
        text_pad_token_id: the id that pads texts; set by `encode_questions`.

    Raises:
        ValueError: a value is outside its choices, the backbone type is not supported, or the heads do not divide the
            width. Names the argument.
        TypeError: `attributes` is not a list of attributes.
    """

    model_type = "vlm_par"
    # `backbone_config` and `text_config` are names that transformers treats specially.
    sub_configs_defaults = {"vlm_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip2")}
    backbone_types = ("siglip", "siglip2")
    # The size of google/siglip2-base-patch16-naflex; the library's own default text tower has another tokenizer's ids.
    default_backbone = {
        "model_type": "siglip2",
        "text_config": {"vocab_size": 256000, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
    }

    alignment: str = "logit"
    fusion: str = "text_to_image"
    pooled_classifier: bool = True
    question_tokens: str = "content"
    num_question_prompts: int = 0
    num_fusion_heads: int = 8
    layer_norm_eps: float = 1e-6
    question_input_ids: list | None = None
    prompt_input_ids: list | None = None

    def _check_values(self) -> None:
        if self.question_tokens not in QUESTION_TOKENS:
            raise ParValueError(f"question_tokens must be one of {QUESTION_TOKENS}, got {self.question_tokens!r}")
        _check_fusion(self, self.vlm_config.vision_config.hidden_size)
        vocab_size = self.vlm_config.text_config.vocab_size
        self._check_prompts()
        check_token_ids("question_input_ids", self.question_input_ids, vocab_size, 2)
        check_token_ids("prompt_input_ids", self.prompt_input_ids, vocab_size, 3)

    def _check_prompts(self) -> None:
        m = self.num_question_prompts
        check_own_number("num_question_prompts", m, 0)
        if m and self.fusion == "none":
            raise ParValueError(f'num_question_prompts is {m}, but fusion="none" asks no question: expected 0')
        if self.longest_question < 1:
            positions = self.vlm_config.text_config.max_position_embeddings
            raise ParValueError(
                f"num_question_prompts must leave room for a question in {positions} positions, got {m}"
            )

    @property
    def longest_question(self) -> int:
        """The largest number of tokens of a question, beside the learnable vectors and the last position."""
        positions = self.vlm_config.text_config.max_position_embeddings
        m = self.num_question_prompts
        return positions - m - 1 if m else positions

    @property
    def reads_pooled_output(self) -> bool:
        """Whether logits depend on the pooled output of the vision tower."""
        return self.alignment == "logit" or self.pooled_classifier

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `LabelSpaceConfig.from_dict`; without `pooled_classifier` it is False: every saved configuration of a
        model that has such a classifier says so."""
        return super().from_dict({"pooled_classifier": False, **config_dict}, **kwargs)

    @classmethod
    def paper(cls, **kwargs: Any) -> "VlmParConfig":
        """Every choice as in the paper; keywords override.

        Patches are the queries and the question's tokens keys and values (equations 9-12); 8 heads; stage 1 adds
        nothing to the logits (equations 9-16 never use the cosine); smoothed cross-entropy plus focal loss, averaged
        over attributes (equation 15). The paper does not state dropout, label smoothing and focal gamma; the values
        here are our choice.
        """
        choices = {
            "alignment": "none",
            "fusion": "image_to_text",
            "pooled_classifier": False,
            "question_tokens": "content",
            "num_fusion_heads": 8,
            "attention_dropout": 0.1,
            "freeze_backbone": True,
            "loss": {
                "kind": "ce_focal",
                "label_smoothing": 0.1,
                "focal_gamma": 2.0,
                "focal_weight": 1.0,
                "reduction": "mean",
            },
        }
        return cls(**{**choices, **kwargs})


@strict
class FoldedVlmParConfig(LabelSpaceConfig, PreTrainedConfig):
    """Configuration of `FoldedVlmParModel`; written by `VlmParModel.fold`.

    Args:
        vision_config: configuration of the vision tower, an object or its dict: `siglip2_vision_model` or
            `siglip_vision_model`. None: the base NaFlex one. With `vision_use_head=False` there is no pooled output,
            which is allowed only if no logit depends on it.
        question_lengths: number of tokens of each attribute's question; used with image_to_text only.
        backbone_name, backbone_revision: where the vision tower came from; for information only.
        attributes, alignment, fusion, pooled_classifier, num_fusion_heads, layer_norm_eps, loss: as in `VlmParConfig`.

    Raises:
        ValueError: a value is outside its choices, or the values do not fit each other. Names the argument.
        TypeError: `attributes` is not a list of attributes.
    """

    model_type = "vlm_par_folded"
    sub_configs_defaults = {"vision_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip2_vision_model")}
    keys_to_ignore_at_inference = VlmParConfig.keys_to_ignore_at_inference
    freeze_backbone = True  # a constant, not a field: a folded model cannot be trained

    vision_config: PreTrainedConfig | dict | None = None
    attributes: Any = None
    alignment: str = "logit"
    fusion: str = "text_to_image"
    pooled_classifier: bool = False
    num_fusion_heads: int = 8
    layer_norm_eps: float = 1e-6
    question_lengths: list | None = None
    backbone_name: str | None = None
    backbone_revision: str | None = None
    loss: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._take_attributes(kwargs)
        self.loss = dict(self.loss or {})
        with unreadable(type(self).__name__, "vision_config"):
            super().__post_init__(**kwargs)
        vision = self.vision_config
        if vision.model_type not in VISION_TYPES:
            raise ParValueError(f"vision_config must have a model_type of {VISION_TYPES}, got {vision.model_type!r}")
        check_tower("vision_config", vision)
        check_dtype(type(self).__name__, self)
        _check_fusion(self, vision.hidden_size)
        if self.reads_pooled_output and not getattr(vision, "vision_use_head", True):
            reader = 'alignment="logit"' if self.alignment == "logit" else "pooled_classifier=True"
            raise ParValueError(f"vision_config.vision_use_head is False, but {reader} reads the pooled output")
        if self.attributes is not None and self.fusion == "image_to_text":
            lengths = self.question_lengths or []
            if len(lengths) != len(self.attributes) or not all(
                isinstance(T, int) and 0 < T <= LONGEST for T in lengths
            ):
                raise ParValueError(
                    f"question_lengths must be the number of tokens of each of the {len(self.attributes)} questions, "
                    f"got {self.question_lengths}"
                )

    reads_pooled_output = VlmParConfig.reads_pooled_output


def _check_fusion(config: PreTrainedConfig, width: int) -> None:
    """Checks `alignment`, `fusion` and `num_fusion_heads`; `width` is that of the vision tower."""
    for name, choices in (("alignment", ALIGNMENTS), ("fusion", FUSIONS)):
        if getattr(config, name) not in choices:
            raise ParValueError(f"{name} must be one of {choices}, got {getattr(config, name)!r}")
    heads = config.num_fusion_heads
    check_own_number("num_fusion_heads", heads, 1)
    if not 0 < config.layer_norm_eps < 1:
        raise ParValueError(f"layer_norm_eps must lie between 0 and 1, got {config.layer_norm_eps!r:.40}")
    if config.fusion != "none" and width % heads:
        raise ParValueError(f"num_fusion_heads must divide the vision tower's width {width}, got {heads}")
