"""Processor of VTF."""

from vlm_par_hf.base.tracklets import TrackletProcessor


__all__ = ["VtfParProcessor"]


class VtfParProcessor(TrackletProcessor):
    """Prepares tracklets, images and texts for `VtfParModel` and names its answers, as `TrackletProcessor`
    describes."""

    model_type = "vtf_par"
