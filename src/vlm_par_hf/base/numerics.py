"""Small numerical helpers that several families use."""

from contextlib import AbstractContextManager, nullcontext

import torch


__all__ = ["NO_LABEL_LOGIT", "no_autocast", "wide"]

NO_LABEL_LOGIT = -1e4  # logit past an attribute's own labels: probability 0, yet finite in float16 too


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32; float64 stays float64. For variances, softmax, cosines and logits."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def no_autocast(tensor: torch.Tensor) -> AbstractContextManager:
    """A context manager that switches autocast off on the tensor's device."""
    return nullcontext() if tensor.device.type == "meta" else torch.autocast(tensor.device.type, enabled=False)
