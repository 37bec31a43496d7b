"""What the configurations of all families share: the label space, as plain JSON and as an object."""

from collections.abc import Sequence
from typing import Any

from vlm_par_hf.labels.schema import AttributeSchema


__all__ = ["LabelSpaceConfig", "check_backbone_type"]


class LabelSpaceConfig:
    """The label space of a configuration; before `PreTrainedConfig` among the bases.

    The inheriting class has a field `attributes`, and calls `_take_attributes` before `super().__post_init__`.
    """

    attributes: Any

    def _take_attributes(self, kwargs: dict[str, Any]) -> AttributeSchema | None:
        """Makes `attributes` plain JSON and derives transformers' names of the labels from it.

        Args:
            kwargs: of `__post_init__`; what would contradict the label space is taken out.

        Returns:
            The label space, None where the configuration names none.
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
        """The label space as an object; a new one at each call.

        Raises:
            ValueError: the configuration has no attributes.
        """
        if self.attributes is None:
            raise ValueError(
                f"attributes is None: this {type(self).__name__} names no attributes, expected a schema or a list"
            )
        return AttributeSchema(self.attributes)


def check_backbone_type(vlm_config: Any, allowed: Sequence[str]) -> None:
    """Refuses the configuration of a backbone, an object or its dict, of another kind than those `allowed`.

    Raises:
        ValueError: names the kind.
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
