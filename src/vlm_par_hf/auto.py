"""Registers the model families with transformers' Auto classes; importing `vlm_par_hf` calls it."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

from vlm_par_hf.models.focus_par import FocusParConfig, FocusParModel, FocusParProcessor
from vlm_par_hf.models.vlm_par import (
    FoldedVlmParConfig,
    FoldedVlmParModel,
    VlmParConfig,
    VlmParModel,
    VlmParProcessor,
)


__all__ = ["FAMILIES", "TRAINABLE", "get_family", "inference_dtype", "register_families"]

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


def inference_dtype(device: Any = None) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, about twice as fast as float32; float32 elsewhere.

    For answers, not for training; the logits are float32 either way. transformers' own `dtype="auto"` is another
    thing, the dtype that a checkpoint was saved in: pass `pipeline(..., dtype=inference_dtype())`.

    Args:
        device: `"cpu"`, `"cuda:0"`, a `torch.device`, a number as pipelines take it; None: what a pipeline would take,
            a GPU if there is one.
    """
    if device is None:
        device = 0 if torch.cuda.is_available() else "cpu"
    if isinstance(device, int):
        device = "cpu" if device < 0 else f"cuda:{device}"
    kind = torch.device(device).type
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # AVX512-BF16 or AMX; without them torch computes bfloat16 on a CPU more slowly than float32.
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        fast = kind == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)
    return torch.bfloat16 if fast else torch.float32
