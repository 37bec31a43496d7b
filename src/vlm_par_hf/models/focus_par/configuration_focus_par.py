"""Configuration of FOCUS."""

import string
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig

from vlm_par_hf.base.configuration import LARGEST_OWN, BackboneConfig, check_own_number, check_token_ids
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.upstream import SubConfigSpec

from .losses_focus_par import check_loss_settings


__all__ = ["FocusParConfig"]

PAPER_TEMPLATE = "a {region} feature of {category} is {label}"
PROMPT_INITS = ("words", "random")
PROMPTS_PER = ("region", "attribute")
TEMPLATE_FIELDS = ("region", "category", "label", "prompt")


@strict
class FocusParConfig(BackboneConfig):
    """Configuration of `FocusParModel`.

    Args:
        vlm_config: configuration of the backbone, an object or its dict: `clip` (the paper's), `siglip` (SigLIP and
            the fixed-resolution SigLIP 2 checkpoints) or `siglip2` (NaFlex). None: CLIP ViT-B/16.
        attributes: the label space, an `AttributeSchema` or a list of dicts; stored as plain JSON. `config.schema` is
            the object. The order of the attributes is the order of the logits.
        num_global_tokens: number of mix tokens that attend to all patches (8 in the paper).
        num_local_tokens: number of mix tokens that attend to one region of the picture each (4 in the paper): token i
            to region i modulo `num_regions`. Without any mix token the texts attend to the patches.
        num_regions: r, the number of contiguous regions of equal size that the patches are divided into, from top to
            bottom (4).
        num_prompt_tokens: m, the number of learnable vectors in front of a text (4); 0 for none.
        prompt_init: `"words"`: the learnable vectors replace the first words that all texts share ("a photo of a";
            CLIP) or padding (SigLIP) and start as the embeddings of these, so that a fresh model encodes texts as its
            backbone does. `"random"`: they start at random and stand in front of the whole text (the paper).
        prompt_start_ids: the tokens of these words; set when the texts are first tokenized.
        prompts_per: `"region"`: attributes of one region share their learnable vectors. `"attribute"`: each attribute
            has its own, as in the paper.
        prompt_regions: with `prompts_per="region"`, the regions that have learnable vectors. None: those of
            `attributes`. An attribute of another region, or of none, uses the mean over all regions.
        prompt_attributes: with `prompts_per="attribute"`, name and region of the attributes that have learnable
            vectors. None: those of `attributes`. An attribute of another name uses the mean over those of its region,
            and if there are none, over all (the paper, section IV-B).
        text_template: the text of a label, with the fields `{region}`, `{category}` (the attribute's name in words),
            `{label}` and `{prompt}` (the label's sentence in the schema).
        text_subject: the beginning of sentences that are made from a few words: "a photo of a person" in "a photo of a
            person wearing a scarf". None: the most frequent beginning among the prompts of `attributes`.
        num_attention_heads: of the cross-attention from texts to mix tokens (8); divides the width of the texts.
        attention_dropout: dropout on its attention probabilities, in training.
        freeze_backbone: what is frozen when a model is built or loaded: with True the backbone, with False all of it
            but the vision tower, which the paper trains. Afterwards `requires_grad` is the user's; a tower of which
            nothing trains stays in eval mode under `model.train()`.
        backbone_name, backbone_revision, backbone_hash, save_backbone, lora: as in `VlmParConfig`.
        loss: keyword settings of `FocusLoss`, such as the weights `sim`, `racl`, `v2t`, `t2v` of the four losses.
        label_input_ids: token ids of the text of each label of each attribute, without padding; set when the texts are
            tokenized.
        text_pad_token_id: the id that pads texts; set at the same time.

    Raises:
        ValueError: a value is not allowed; names the argument.
        TypeError: `attributes` is not a list of attributes.
    """

    model_type = "focus_par"
    # `backbone_config` and `text_config` are names that transformers treats specially.
    sub_configs_defaults = {"vlm_config": SubConfigSpec(config_class=AutoConfig, model_type="clip")}
    backbone_types = ("clip", "siglip", "siglip2")
    # The size of openai/clip-vit-base-patch16, which the paper uses.
    default_backbone = {"model_type": "clip", "vision_config": {"patch_size": 16}}

    num_global_tokens: int = 8
    num_local_tokens: int = 4
    num_regions: int = 4
    num_prompt_tokens: int = 4
    prompt_init: str = "words"
    prompt_start_ids: list | None = None
    prompts_per: str = "region"
    prompt_regions: list | None = None
    prompt_attributes: list | None = None
    text_template: str = "{prompt}"
    text_subject: str | None = None
    num_attention_heads: int = 8
    label_input_ids: list | None = None

    def _take_attributes(self, kwargs: dict[str, Any]) -> AttributeSchema | None:
        schema = super()._take_attributes(kwargs)
        if schema is not None and self.prompt_regions is None:
            # Where no attribute has a region, all texts share one set of vectors.
            self.prompt_regions = list(dict.fromkeys(one.region for one in schema if one.region)) or ["whole"]
        if schema is not None and self.prompt_attributes is None and self.prompts_per == "attribute":
            self.prompt_attributes = [[one.name, one.region] for one in schema]
        if schema is not None and self.text_subject is None:
            self.text_subject = schema.usual_subject()
        return schema

    def _check_values(self) -> None:
        for name in ("num_global_tokens", "num_local_tokens", "num_prompt_tokens"):
            check_own_number(name, getattr(self, name), 0)
        for name in ("num_regions", "num_attention_heads"):
            check_own_number(name, getattr(self, name), 1)
        text = self.vlm_config.text_config
        if self.num_prompt_tokens > text.max_position_embeddings - 3:
            raise ParValueError(
                f"num_prompt_tokens must leave room for a text in {text.max_position_embeddings} positions, got "
                f"{self.num_prompt_tokens}"
            )
        check_token_ids("prompt_start_ids", self.prompt_start_ids, text.vocab_size, 1)
        if len(self.prompt_start_ids or ()) > self.num_prompt_tokens:
            raise ParValueError(
                f"prompt_start_ids must be at most num_prompt_tokens={self.num_prompt_tokens} tokens, got "
                f"{len(self.prompt_start_ids)}"
            )
        check_token_ids("label_input_ids", self.label_input_ids, text.vocab_size, 3)
        regions = self.prompt_regions
        if regions is not None and (
            not regions or len(regions) > LARGEST_OWN or not all(isinstance(one, str) for one in regions)
        ):
            raise ParValueError(f"prompt_regions must be names of regions, got {regions!r:.80}")
        if self.prompts_per not in PROMPTS_PER:
            raise ParValueError(f"prompts_per must be one of {PROMPTS_PER}, got {self.prompts_per!r}")
        self._check_prompt_attributes()
        if self.prompt_init not in PROMPT_INITS:
            raise ParValueError(f"prompt_init must be one of {PROMPT_INITS}, got {self.prompt_init!r}")
        if self.text_width % self.num_attention_heads:
            raise ParValueError(
                f"num_attention_heads must divide the width of the texts {self.text_width}, "
                f"got {self.num_attention_heads}"
            )
        fields = [field for _, field, _, _ in string.Formatter().parse(self.text_template) if field is not None]
        if not set(fields) <= set(TEMPLATE_FIELDS) or not {"label", "prompt"} & set(fields):
            raise ParValueError(
                f"text_template must say {{label}} or {{prompt}} and may use the fields {', '.join(TEMPLATE_FIELDS)}, "
                f"got {self.text_template!r}"
            )
        check_loss_settings(self.loss)

    def _check_prompt_attributes(self) -> None:
        found = self.prompt_attributes
        if found is None:
            return
        if not 0 < len(found) <= LARGEST_OWN or not all(_is_named_region(one) for one in found):
            raise ParValueError(
                f"prompt_attributes must be names of attributes, each with its region or null, got {found!r:.80}"
            )

    @property
    def num_prompt_sets(self) -> int:
        """How many sets of learnable vectors there are: one per region or attribute."""
        return len(self.prompt_attributes if self.prompts_per == "attribute" else self.prompt_regions)

    @property
    def text_width(self) -> int:
        """Width of the space in which pictures and texts are compared."""
        if self.vlm_config.model_type == "clip":
            return self.vlm_config.projection_dim
        return self.vlm_config.text_config.projection_size

    @classmethod
    def paper(cls, **kwargs: Any) -> "FocusParConfig":
        """Every choice as in the paper; keywords override.

        8 global and 4 local mix tokens, 4 regions, 4 learnable vectors of each attribute before "a {region} feature of
        {category} is {label}", 8 heads, the vision tower trained, all four losses with weight 1.
        """
        choices = {
            "text_template": PAPER_TEMPLATE,
            "prompt_init": "random",
            "prompts_per": "attribute",
            "freeze_backbone": False,
            "loss": {},
        }
        return cls(**{**choices, **kwargs})


def _is_named_region(entry: Any) -> bool:
    return (
        isinstance(entry, (list, tuple))
        and len(entry) == 2
        and isinstance(entry[0], str)
        and (entry[1] is None or isinstance(entry[1], str))
    )
