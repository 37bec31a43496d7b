"""Processor of VLM-PAR."""

from vlm_par_hf.base.processing import ParProcessor


__all__ = ["VlmParProcessor"]


class VlmParProcessor(ParProcessor):
    """Prepares images and texts for `VlmParModel` and names what it found: as `ParProcessor`."""

    model_type = "vlm_par"
