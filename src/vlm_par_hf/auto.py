"""Registers the model families with transformers' Auto classes; importing `vlm_par_hf` calls it."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from vlm_par_hf.models.focus_par import FocusParConfig, FocusParModel, FocusParProcessor
from vlm_par_hf.models.vlm_par import (
    FoldedVlmParConfig,
    FoldedVlmParModel,
    VlmParConfig,
    VlmParModel,
    VlmParProcessor,
)


__all__ = ["FAMILIES", "TRAINABLE", "get_family", "register_families"]

# One row per family: configuration, model, processor.
FAMILIES = (
    (VlmParConfig, VlmParModel, VlmParProcessor),
    (FoldedVlmParConfig, FoldedVlmParModel, VlmParProcessor),
    (FocusParConfig, FocusParModel, FocusParProcessor),
)
TRAINABLE = ("vlm_par", "focus_par")


def get_family(name: str) -> tuple[type, type, type]:
    """Configuration, model and processor class of a family that can be trained.

    Args:
        name: its `model_type`, one of `TRAINABLE`.

    Raises:
        ValueError: there is no such family.
    """
    if name not in TRAINABLE:
        raise ValueError(f"family={name!r}: expected one of {', '.join(TRAINABLE)}")
    return next(row for row in FAMILIES if row[0].model_type == name)


def register_families() -> None:
    """Makes `AutoConfig`, `AutoModel` and `AutoProcessor` know every family. Calling it again changes nothing."""
    for config_class, model_class, processor_class in FAMILIES:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        AutoProcessor.register(config_class, processor_class, exist_ok=True)
