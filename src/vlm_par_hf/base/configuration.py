"""What the configurations of all families share: the label space, and for most of them a backbone."""

import copy
from dataclasses import fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import AttributeSchema


__all__ = ["DERIVED_FIELDS", "BackboneConfig", "LabelSpaceConfig", "differing_fields"]

DERIVED_FIELDS = ("num_labels", "id2label", "label2id")
# Settings of transformers that a nested configuration holds too and that say nothing about the weights.
RUNTIME_FIELDS = {
    "_name_or_path", "architectures", "attn_implementation", "dtype", "initializer_factor", "initializer_range",
    "name_or_path", "output_attentions", "output_hidden_states", "return_dict", "torch_dtype", "transformers_version",
}  # fmt: skip


class LabelSpaceConfig:
    """Gives a configuration its label space.

    The inheriting class must name this class before `PreTrainedConfig` among its bases, have a field `attributes`, and
    call `_take_attributes` before `super().__post_init__`.
    """

    attributes: Any

    # Fields that may differ from the saved ones when a checkpoint is loaded. All others say what its weights mean.
    free_at_load: ClassVar[tuple[str, ...]] = ("loss", "backbone_name", "backbone_revision")

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

    def _take_attributes(self, kwargs: dict[str, Any]) -> AttributeSchema | None:
        """Turns `attributes` into plain JSON and sets `id2label` and `label2id` from it.

        Args:
            kwargs: of `__post_init__`. `num_labels`, `id2label` and `label2id` are removed from it: they could
                contradict the label space.

        Returns:
            The label space; None if `attributes` is None.

        Raises:
            ValueError, TypeError: as for `AttributeSchema`.
        """
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
    attention_dropout: float | int = 0.0
    freeze_backbone: bool = True
    backbone_name: str | None = None
    backbone_revision: str | None = None
    backbone_hash: str | None = None
    save_backbone: bool = True
    loss: dict | None = None
    text_pad_token_id: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vlm_config is None:
            self.vlm_config = copy.deepcopy(self.default_backbone)
        self._check_backbone_type()
        self._take_attributes(kwargs)
        self.loss = dict(self.loss or {})
        super().__post_init__(**kwargs)
        if not getattr(self.vlm_config.vision_config, "vision_use_head", True):
            raise ParValueError("vlm_config: the vision tower must have its pooling head (vision_use_head), got False")
        if not 0.0 <= self.attention_dropout < 1.0:
            raise ParValueError(f"attention_dropout must lie in [0, 1), got {self.attention_dropout}")
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
