"""VLM-PAR: a frozen vision-language backbone and one cross-attention head per attribute."""

from .configuration_vlm_par import VlmParConfig
from .modeling_vlm_par import VlmParModel, VlmParPreTrainedModel
from .processing_vlm_par import VlmParProcessor


__all__ = ["VlmParConfig", "VlmParModel", "VlmParPreTrainedModel", "VlmParProcessor"]
