"""Registers the model families with transformers' Auto classes; `import vlm_par_hf` does this."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.families import FAMILIES, find_family, trainable_families


__all__ = ["get_family", "register_families"]


def get_family(name: str) -> tuple[type, type, type]:
    """Configuration, model and processor class of a family that can be trained.

    Args:
        name: its `model_type`, one of `trainable_families()`.

    Raises:
        ValueError: there is no such family.
    """
    if name not in trainable_families():
        raise ParValueError(f"family={name!r}: expected one of {', '.join(trainable_families())}")
    return find_family(name).load()


def register_families() -> None:
    """Registers every family with `AutoConfig`, `AutoModel` and `AutoProcessor`. A second call changes nothing."""
    for family in FAMILIES:
        config_class, model_class, processor_class = family.load()
        AutoConfig.register(family.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        if processor_class is not None:
            AutoProcessor.register(config_class, processor_class, exist_ok=True)
