"""VLM-PAR: a frozen vision-language backbone and one cross-attention head per attribute."""

from .configuration_vlm_par import FoldedVlmParConfig, VlmParConfig
from .folded_vlm_par import FoldedVlmParModel
from .modeling_vlm_par import VlmParModel, VlmParPreTrainedModel
from .processing_vlm_par import VlmParProcessor


__all__ = [
    "FoldedVlmParConfig",
    "FoldedVlmParModel",
    "VlmParConfig",
    "VlmParModel",
    "VlmParPreTrainedModel",
    "VlmParProcessor",
]
