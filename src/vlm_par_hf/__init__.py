"""Pedestrian attribute recognition as ordinary Hugging Face.

Importing this package registers its model families with the Auto classes and its task with `pipeline`. Everything else
is imported at first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vlm_par_hf.auto import register_families
from vlm_par_hf.export import register_exported
from vlm_par_hf.pipelines import register_pipeline


__version__ = "0.1.0"

__all__ = [
    "Annotator",
    "Attribute",
    "AttributeSchema",
    "AugmentedDataset",
    "ExportedParConfig",
    "ExportedParModel",
    "FocusParConfig",
    "FocusParModel",
    "FocusParProcessor",
    "FoldedVlmParConfig",
    "FoldedVlmParModel",
    "ParAugmentation",
    "ParCollator",
    "ParLoss",
    "ParMetrics",
    "ParOutput",
    "PedestrianAttributesPipeline",
    "VlmParConfig",
    "VlmParModel",
    "VlmParProcessor",
    "annotate",
    "dataset_schema",
    "export_model",
    "get_schema",
    "inference_dtype",
    "list_schemas",
    "load_par_dataset",
]

if TYPE_CHECKING:
    from vlm_par_hf.annotation import Annotator, annotate
    from vlm_par_hf.auto import inference_dtype
    from vlm_par_hf.data import AugmentedDataset, ParAugmentation, ParCollator, dataset_schema, load_par_dataset
    from vlm_par_hf.export import ExportedParConfig, ExportedParModel, export_model
    from vlm_par_hf.losses import ParLoss
    from vlm_par_hf.metrics import ParMetrics
    from vlm_par_hf.models.focus_par import FocusParConfig, FocusParModel, FocusParProcessor
    from vlm_par_hf.models.vlm_par import (
        FoldedVlmParConfig,
        FoldedVlmParModel,
        VlmParConfig,
        VlmParModel,
        VlmParProcessor,
    )
    from vlm_par_hf.outputs import ParOutput
    from vlm_par_hf.pipelines import PedestrianAttributesPipeline
    from vlm_par_hf.schema import Attribute, AttributeSchema
    from vlm_par_hf.schemas import get_schema, list_schemas

_MODULES = {
    "annotation": ("Annotator", "annotate"),
    "auto": ("inference_dtype",),
    "data": ("AugmentedDataset", "ParAugmentation", "ParCollator", "dataset_schema", "load_par_dataset"),
    "export": ("ExportedParConfig", "ExportedParModel", "export_model"),
    "losses": ("ParLoss",),
    "metrics": ("ParMetrics",),
    "models.focus_par": ("FocusParConfig", "FocusParModel", "FocusParProcessor"),
    "models.vlm_par": (
        "FoldedVlmParConfig",
        "FoldedVlmParModel",
        "VlmParConfig",
        "VlmParModel",
        "VlmParProcessor",
    ),
    "outputs": ("ParOutput",),
    "pipelines": ("PedestrianAttributesPipeline",),
    "schema": ("Attribute", "AttributeSchema"),
    "schemas": ("get_schema", "list_schemas"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

register_families()
register_exported()
register_pipeline()


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
