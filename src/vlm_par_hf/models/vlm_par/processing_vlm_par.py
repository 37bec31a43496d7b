"""Processor of VLM-PAR."""

from vlm_par_hf.base.processing import ParProcessor


__all__ = ["VlmParProcessor"]


class VlmParProcessor(ParProcessor):
    """Prepares images and texts for `VlmParModel` and names its answers, as `ParProcessor` describes."""

    model_type = "vlm_par"
