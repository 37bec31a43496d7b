"""Processor of FOCUS."""

from vlm_par_hf.base.processing import ParProcessor


__all__ = ["FocusParProcessor"]


class FocusParProcessor(ParProcessor):
    """Prepares images and texts for `FocusParModel` and names its answers, as `ParProcessor` describes."""

    model_type = "focus_par"
