"""`inference_dtype`: the dtype in which a device answers fast."""

from typing import Any

import torch

from vlm_par_hf.errors import ParValueError


__all__ = ["inference_dtype"]


def inference_dtype(device: Any = None) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, about twice as fast as float32; float32 elsewhere.

    For answers, not for training; the logits are float32 in both cases. transformers' own `dtype="auto"` means
    something else, the dtype that a checkpoint was saved in: pass `pipeline(..., dtype=inference_dtype())` instead.

    Args:
        device: `"cpu"`, `"cuda:0"`, a `torch.device`, a number as for a pipeline; None: as a pipeline chooses, a GPU
            if there is one.

    Raises:
        ValueError: torch knows no such device.
    """
    if device is None:
        device = 0 if torch.cuda.is_available() else "cpu"
    if isinstance(device, int):
        device = "cpu" if device < 0 else f"cuda:{device}"
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ParValueError(f"device={str(device)!r:.60} is none of torch, expected such as cpu or cuda:0") from error
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # AVX512-BF16 or AMX; without them a CPU computes bfloat16 more slowly than float32.
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        fast = kind == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)
    return torch.bfloat16 if fast else torch.float32
