"""VTF: the frames of a tracklet and the texts of attributes in one transformer."""

from .configuration_vtf_par import VtfParConfig
from .modeling_vtf_par import VtfParModel
from .processing_vtf_par import VtfParProcessor


__all__ = ["VtfParConfig", "VtfParModel", "VtfParProcessor"]
