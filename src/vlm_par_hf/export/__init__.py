"""VLM-PAR as a file for ONNX Runtime or OpenVINO, and the model class that answers from such a file."""

from .exported import ExportedParConfig, ExportedParModel
from .exporting import export_model
from .parity import pick_images
from .picture import export_picture_model


__all__ = ["ExportedParConfig", "ExportedParModel", "export_model", "export_picture_model", "pick_images"]
