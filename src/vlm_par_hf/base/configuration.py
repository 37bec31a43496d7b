"""What the configurations of all families share: the label space, and for most of them a backbone."""

import copy
from dataclasses import fields, replace
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from vlm_par_hf.errors import ParValueError, unreadable
from vlm_par_hf.labels.decisions import Decisions
from vlm_par_hf.labels.schema import AttributeSchema

from .adapters import check_lora


__all__ = [
    "DERIVED_FIELDS",
    "LARGEST_OWN",
    "BackboneConfig",
    "LabelSpaceConfig",
    "check_dtype",
    "check_own_number",
    "check_token_ids",
    "check_tower",
    "differing_fields",
]

DERIVED_FIELDS = ("num_labels", "id2label", "label2id")
# The largest value of each number that decides how much memory and time building a model takes. Several times those of
# the largest published towers; a damaged or hostile file would otherwise hang the process that reads it.
LARGEST = {
    "hidden_size": 16_384, "intermediate_size": 131_072, "num_hidden_layers": 512, "num_attention_heads": 1_024,
    "num_channels": 64, "image_size": 16_384, "patch_size": 1_024, "num_patches": 1_048_576, "vocab_size": 4_194_304,
    "max_position_embeddings": 1_048_576, "projection_size": 16_384, "projection_dim": 16_384,
}  # fmt: skip
LARGEST_OWN = 4_096  # number of heads, tokens, vectors and regions of our own parts
# Settings of transformers that a nested configuration holds too and that say nothing about the weights.
RUNTIME_FIELDS = {
    "_name_or_path", "architectures", "attn_implementation", "dtype", "initializer_factor", "initializer_range",
    "name_or_path", "output_attentions", "output_hidden_states", "return_dict", "torch_dtype", "transformers_version",
}  # fmt: skip


class LabelSpaceConfig:
    """Gives a configuration its label space, and what was fitted for its answers.

    The inheriting class must name this class before `PreTrainedConfig` among its bases, have the fields `attributes`
    and `decisions`, and call `_take_attributes` before `super().__post_init__`.

    `decisions` is None, or the dict of `Decisions.to_dict`: the model then gives calibrated logits. The thresholds in
    use are those of the attributes; `set_decisions` sets both.
    """

    attributes: Any
    decisions: Any

    # Fields that may differ from the saved ones when a checkpoint is loaded. All others say what its weights mean.
    free_at_load: ClassVar[tuple[str, ...]] = ("loss", "backbone_name", "backbone_revision", "decisions")

    @classmethod
    def own_fields(cls) -> list[str]:
        """The fields that this configuration adds to those of `PreTrainedConfig`."""
        common = {one.name for one in fields(PreTrainedConfig)}
        return [one.name for one in fields(cls) if one.name not in common]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `PreTrainedConfig.from_dict`; keywords that are fields replace those of the dict before it is read, so
        they are checked and completed like these.

        Raises:
            ValueError: `num_labels`, `id2label` or `label2id` contradict the label space.
        """
        nested = getattr(cls, "sub_configs", {})
        own = {key: kwargs.pop(key) for key in cls.own_fields() if key in kwargs and key not in nested}
        derived = {key: kwargs.pop(key) for key in DERIVED_FIELDS if key in kwargs}
        found = super().from_dict({**config_dict, **own}, **kwargs)
        config = found[0] if isinstance(found, tuple) else found
        for key, value in derived.items():
            if value != getattr(config, key):
                raise ParValueError(
                    f"{key}={value!r:.200} contradicts the label space of {len(config.attributes or ())} attributes, "
                    "from which it follows: pass attributes="
                )
        return found

    def set_schema(self, schema: AttributeSchema) -> None:
        """Sets `attributes`, and `id2label` and `label2id`, which follow from it."""
        self.attributes = schema.to_list()
        self.id2label = dict(enumerate(schema.names))
        self.label2id = {name: index for index, name in enumerate(schema.names)}

    def set_decisions(self, decisions: Decisions | None, objective: str | None = None) -> None:
        """Sets `decisions`, and with it the thresholds of the attributes.

        Args:
            decisions: what `vlm_par_hf.calibration.fit` returned; None: none, the thresholds stay.
            objective: one of its objectives, to be used from now on; None: the one that it names.

        Raises:
            KeyError: the objective was not fitted.
        """
        if decisions is None:
            self.decisions = None
            return
        schema = decisions.settle(self.schema, objective)
        self.set_schema(schema)
        self.decisions = replace(decisions, objective=objective or decisions.objective).to_dict()

    def keep_decisions_of(self, old: AttributeSchema, new: AttributeSchema) -> None:
        """Removes from `decisions` what belongs to attributes that have other labels in `new` than in `old`, or are
        missing in one of them."""
        if self.decisions is not None:
            same = [one for one in new if one.name in old and old[one.name].labels == one.labels]
            found = Decisions.from_dict(self.decisions)
            kept = {one.name: found.of(one) for one in same if found.of(one) is not None}
            self.decisions = replace(found, attributes=kept).to_dict() if kept else None

    def _take_attributes(self, kwargs: dict[str, Any]) -> AttributeSchema | None:
        """Turns `attributes` and `decisions` into plain JSON and sets `id2label` and `label2id`.

        Args:
            kwargs: of `__post_init__`. `num_labels`, `id2label` and `label2id` are removed from it: they could
                contradict the label space.

        Returns:
            The label space; None if `attributes` is None.

        Raises:
            ValueError, TypeError: as for `AttributeSchema` and `Decisions.from_dict`.
        """
        if self.decisions is not None:
            given = self.decisions
            self.decisions = (given if isinstance(given, Decisions) else Decisions.from_dict(given)).to_dict()
        if self.attributes is None:
            return None
        schema = AttributeSchema(self.attributes)
        self.set_schema(schema)
        for name in DERIVED_FIELDS:
            kwargs.pop(name, None)
        return schema

    @property
    def schema(self) -> AttributeSchema:
        """The label space as an object, built anew at each access.

        Raises:
            ValueError: the configuration has no attributes.
        """
        if self.attributes is None:
            raise ParValueError(
                f"attributes is None: this {type(self).__name__} names no attributes, expected a schema or a list"
            )
        return AttributeSchema(self.attributes)


def check_sizes(where: str, sizes: Any) -> None:
    """Refuses sizes that are no whole numbers from 1 to those of `LARGEST`.

    Args:
        where: for messages.
        sizes: by name; what is no dict, and names that are not in `LARGEST`, are left to transformers.

    Raises:
        ValueError: names the field, its value and what was expected.
    """
    for name, value in sizes.items() if isinstance(sizes, dict) else ():
        largest = LARGEST.get(name) if isinstance(name, str) else None
        if largest is None or value is None:
            continue
        is_pair = name == "image_size" and isinstance(value, (list, tuple)) and len(value) == 2  # height, width
        for one in value if is_pair else (value,):
            if not isinstance(one, bool) and isinstance(one, int) and 1 <= one <= largest:
                continue
            raise ParValueError(f"{where}: {name} must be a whole number from 1 to {largest:,}, got {value!r:.40}")


def check_tower(where: str, tower: Any) -> None:
    """Refuses the configuration of a tower that cannot be built, or not in reasonable memory and time.

    Args:
        where: its name, for messages.
        tower: a configuration of transformers, with the sizes of `LARGEST`.

    Raises:
        ValueError: names the field, its value and what was expected.
    """
    check_sizes(where, {name: getattr(tower, name, None) for name in LARGEST})
    check_dtype(where, tower)
    if tower.hidden_size % tower.num_attention_heads:
        raise ParValueError(
            f"{where}: num_attention_heads must divide hidden_size {tower.hidden_size}, got "
            f"{tower.num_attention_heads}"
        )
    if tower.hidden_act not in ACT2FN:
        raise ParValueError(f"{where}: hidden_act must be an activation of transformers, got {tower.hidden_act!r:.40}")
    for name in ("layer_norm_eps", "attention_dropout"):
        value = getattr(tower, name, 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise ParValueError(f"{where}: {name} must be a number in [0, 1), got {value!r:.40}")


def check_dtype(where: str, config: PreTrainedConfig) -> None:
    """Refuses a `dtype` that is none of torch's for floating point.

    Raises:
        ValueError: names the configuration.
    """
    dtype = config.dtype
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ParValueError(
            f"{where}: dtype must be a floating-point dtype of torch such as float32, got {dtype!r:.40}"
        )


def check_own_number(name: str, value: int, smallest: int) -> None:
    """Refuses a number of heads, tokens or regions below `smallest` or above `LARGEST_OWN`.

    Raises:
        ValueError: names the field.
    """
    if isinstance(value, bool) or not smallest <= value <= LARGEST_OWN:
        raise ParValueError(f"{name} must be a whole number from {smallest} to {LARGEST_OWN:,}, got {value!r:.40}")


def check_token_ids(name: str, ids: Any, vocab_size: int, depth: int) -> None:
    """Refuses what is no nested list of token ids.

    Args:
        name: of the field.
        ids: the value; None is allowed.
        vocab_size: of the text tower.
        depth: how many lists are nested: 0 for one token, 1 for one text, 2 for one text per attribute, 3 for one per
            label.

    Raises:
        ValueError: names the field.
    """
    if ids is None:
        return
    if depth == 0:
        if isinstance(ids, bool) or not isinstance(ids, int) or not 0 <= ids < vocab_size:
            raise ParValueError(f"{name} must be token ids from 0 to {vocab_size - 1:,}, got {ids!r:.40}")
        return
    if not isinstance(ids, list):
        raise ParValueError(f"{name} must be token ids in {depth} nested lists, got {ids!r:.40}")
    for one in ids:
        if one is None:
            raise ParValueError(f"{name} must be token ids from 0 to {vocab_size - 1:,}, got None")
        check_token_ids(name, one, vocab_size, depth - 1)


def differing_fields(config: LabelSpaceConfig, saved: LabelSpaceConfig) -> list[str]:
    """The fields that say what weights mean and differ between two configurations of one class, in their order."""
    free = config.free_at_load
    return [
        name
        for name in config.own_fields()
        if name not in free and _plain(getattr(config, name)) != _plain(getattr(saved, name))
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, PreTrainedConfig):
        value = value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if key not in RUNTIME_FIELDS}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


@strict
class BackboneConfig(LabelSpaceConfig, PreTrainedConfig):
    """Fields of a model over a vision-language backbone, and the checks that every such family makes.

    A family adds its own fields and says what they mean; it sets `backbone_types`, `default_backbone` and
    `sub_configs_defaults`, and checks its own values in `_check_values`.

    Raises:
        ValueError: the backbone type is not supported, or its vision tower has no pooling head; names the argument.
        TypeError: `attributes` is not a list of attributes.
    """

    keys_to_ignore_at_inference = ["image_embeds", "attentions", "hidden_states"]
    free_at_load = (*LabelSpaceConfig.free_at_load, "attention_dropout", "freeze_backbone", "save_backbone")
    backbone_types: ClassVar[tuple[str, ...]] = ()
    default_backbone: ClassVar[dict[str, Any]] = {}

    # In this order: refusing a dict would print the object, and transformers would warn of its own defaults.
    vlm_config: PreTrainedConfig | dict | None = None
    attributes: Any = None
    decisions: Any = None
    attention_dropout: float | int = 0.0
    freeze_backbone: bool = True
    backbone_name: str | None = None
    backbone_revision: str | None = None
    backbone_hash: str | None = None
    save_backbone: bool = True
    lora: dict | None = None
    loss: dict | None = None
    text_pad_token_id: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vlm_config is None:
            self.vlm_config = copy.deepcopy(self.default_backbone)
        self._check_backbone_type()
        self._take_attributes(kwargs)
        self.loss = dict(self.loss or {})
        if isinstance(self.vlm_config, dict):  # before transformers computes with them
            for name in ("text_config", "vision_config"):
                check_sizes(f"vlm_config.{name}", self.vlm_config.get(name))
        with unreadable(type(self).__name__, "vlm_config"):
            super().__post_init__(**kwargs)
        for name in ("text_config", "vision_config"):
            check_tower(f"vlm_config.{name}", getattr(self.vlm_config, name))
        check_dtype("vlm_config", self.vlm_config)
        check_dtype(type(self).__name__, self)
        if not getattr(self.vlm_config.vision_config, "vision_use_head", True):
            raise ParValueError("vlm_config: the vision tower must have its pooling head (vision_use_head), got False")
        if not 0.0 <= self.attention_dropout < 1.0:
            raise ParValueError(f"attention_dropout must lie in [0, 1), got {self.attention_dropout}")
        vocab_size = self.vlm_config.text_config.vocab_size
        check_token_ids("text_pad_token_id", self.text_pad_token_id, vocab_size, 0)
        check_lora(self.lora, self.vlm_config.vision_config.num_hidden_layers, LARGEST_OWN)
        # Not `validate_architecture`: what that raises is wrapped in an error that is no ValueError.
        self._check_values()

    def _check_values(self) -> None:
        """Refuses values of the family's own fields; the backbone is a configuration object by now."""

    def _check_backbone_type(self) -> None:
        backbone = self.vlm_config
        is_dict = isinstance(backbone, dict)
        model_type = backbone.get("model_type") if is_dict else getattr(backbone, "model_type", None)
        if model_type not in self.backbone_types:
            names = " or ".join([", ".join(self.backbone_types[:-1]), self.backbone_types[-1]])
            raise ParValueError(
                f"vlm_config must be the configuration of a {names} checkpoint (a dict needs its model_type), got "
                f"model_type {model_type!r}"
            )
