"""FOCUS: attributes are named by texts, and need not have occurred in training."""

from .configuration_focus_par import FocusParConfig
from .modeling_focus_par import FocusParModel, FocusParPreTrainedModel
from .processing_focus_par import FocusParProcessor
from .texts_focus_par import AttributeTexts


__all__ = [
    "AttributeTexts",
    "FocusParConfig",
    "FocusParModel",
    "FocusParPreTrainedModel",
    "FocusParProcessor",
]
