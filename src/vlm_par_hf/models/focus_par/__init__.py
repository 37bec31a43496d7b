"""FOCUS: attributes named by their text, seen or unseen in training."""

from .configuration_focus_par import FocusParConfig
from .modeling_focus_par import (
    AttributeTexts,
    FocusParModel,
    FocusParPreTrainedModel,
    fit_decisions,
    transfer_decisions,
)
from .processing_focus_par import FocusParProcessor


__all__ = [
    "AttributeTexts",
    "FocusParConfig",
    "FocusParModel",
    "FocusParPreTrainedModel",
    "FocusParProcessor",
    "fit_decisions",
    "transfer_decisions",
]
