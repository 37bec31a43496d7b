"""Registers the model families with transformers' Auto classes; importing `vlm_par_hf` calls it."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from vlm_par_hf.models.vlm_par import (
    FoldedVlmParConfig,
    FoldedVlmParModel,
    VlmParConfig,
    VlmParModel,
    VlmParProcessor,
)


__all__ = ["FAMILIES", "register_families"]

# One row per family: configuration, model, processor.
FAMILIES = (
    (VlmParConfig, VlmParModel, VlmParProcessor),
    (FoldedVlmParConfig, FoldedVlmParModel, VlmParProcessor),
)


def register_families() -> None:
    """Makes `AutoConfig`, `AutoModel` and `AutoProcessor` know every family. Calling it again changes nothing."""
    for config_class, model_class, processor_class in FAMILIES:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        AutoProcessor.register(config_class, processor_class, exist_ok=True)
