"""CLEAR: a ViT and a Swin that look at each other's tokens."""

from .configuration_clear_par import ClearParConfig
from .modeling_clear_par import ClearParModel
from .processing_clear_par import ClearParProcessor


__all__ = ["ClearParConfig", "ClearParModel", "ClearParProcessor"]
