"""Blocks that two families use."""

from contextlib import AbstractContextManager, nullcontext

import torch


__all__ = ["NO_LABEL_LOGIT", "no_autocast", "wide"]

NO_LABEL_LOGIT = -1e4  # past an attribute's own labels: probability 0, and finite in every dtype


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """float32 at least: variances, softmax, cosines and logits are computed in it."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def no_autocast(tensor: torch.Tensor) -> AbstractContextManager:
    """A context without autocast on the tensor's device."""
    return nullcontext() if tensor.device.type == "meta" else torch.autocast(tensor.device.type, enabled=False)
