"""The label space inside a configuration, for all families: plain JSON in `attributes`, an object as `schema`."""

from collections.abc import Sequence
from typing import Any

from vlm_par_hf.labels.schema import AttributeSchema


__all__ = ["LabelSpaceConfig", "check_backbone_type"]


class LabelSpaceConfig:
    """Gives a configuration its label space.

    The inheriting class must name this class before `PreTrainedConfig` among its bases, have a field `attributes`, and
    call `_take_attributes` before `super().__post_init__`.
    """

    attributes: Any

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
        self.attributes = schema.to_list()
        self.id2label = dict(enumerate(schema.names))
        self.label2id = {name: index for index, name in enumerate(schema.names)}
        for name in ("num_labels", "id2label", "label2id"):
            kwargs.pop(name, None)
        return schema

    @property
    def schema(self) -> AttributeSchema:
        """The label space as an object, built anew at each access.

        Raises:
            ValueError: the configuration has no attributes.
        """
        if self.attributes is None:
            raise ValueError(
                f"attributes is None: this {type(self).__name__} names no attributes, expected a schema or a list"
            )
        return AttributeSchema(self.attributes)


def check_backbone_type(vlm_config: Any, allowed: Sequence[str]) -> None:
    """Checks that a backbone's configuration, an object or its dict, has one of the model types `allowed`.

    Raises:
        ValueError: it has another model type, or a dict has none; the message names it.
    """
    if isinstance(vlm_config, dict):
        model_type = vlm_config.get("model_type")
    else:
        model_type = getattr(vlm_config, "model_type", None)
    if model_type not in allowed:
        names = " or ".join([", ".join(allowed[:-1]), allowed[-1]])
        raise ValueError(
            f"vlm_config must be the configuration of a {names} checkpoint (a dict needs its model_type), got "
            f"model_type {model_type!r}"
        )
