"""Pedestrian attribute recognition as ordinary Hugging Face.

Importing this package registers its model families with the Auto classes and its task with `pipeline`. All other
public names are imported when they are first used.
"""

# ruff: noqa: F401  (imports for type checkers only; a test compares them with `__all__`)
import importlib
from typing import TYPE_CHECKING, Any

from vlm_par_hf.auto import register_families
from vlm_par_hf.families import FAMILIES
from vlm_par_hf.inference.pipelines import register_pipeline


__version__ = "0.1.0"

# Module -> public names. Those of the model families come from the table in `families`.
_MODULES = {
    "annotation": ("Annotator", "annotate"),
    "inference.devices": ("inference_dtype",),
    "errors": ("ParError",),
    "data": ("AugmentedDataset", "ParAugmentation", "ParCollator", "dataset_schema", "load_par_dataset"),
    "export": ("export_model",),
    "images.example_crops": ("example_crop",),
    "base.losses": ("ParLoss",),
    "metrics": ("ParMetrics",),
    "base.outputs": ("ParOutput",),
    "inference.pipelines": ("PedestrianAttributesPipeline",),
    "labels.schema": ("Attribute", "AttributeSchema"),
    "labels.tables": ("get_schema", "list_schemas"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_MODULE_OF.update({name: family.module for family in FAMILIES for name in family.class_names})

__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from vlm_par_hf.annotation import Annotator, annotate
    from vlm_par_hf.base.losses import ParLoss
    from vlm_par_hf.base.outputs import ParOutput
    from vlm_par_hf.data import AugmentedDataset, ParAugmentation, ParCollator, dataset_schema, load_par_dataset
    from vlm_par_hf.errors import ParError
    from vlm_par_hf.export.exported import ExportedParConfig, ExportedParModel
    from vlm_par_hf.export.exporting import export_model
    from vlm_par_hf.images.example_crops import example_crop
    from vlm_par_hf.inference.devices import inference_dtype
    from vlm_par_hf.inference.pipelines import PedestrianAttributesPipeline
    from vlm_par_hf.labels.schema import Attribute, AttributeSchema
    from vlm_par_hf.labels.tables import get_schema, list_schemas
    from vlm_par_hf.metrics.attributes import ParMetrics
    from vlm_par_hf.models.focus_par import FocusParConfig, FocusParModel, FocusParProcessor
    from vlm_par_hf.models.vlm_par import (
        FoldedVlmParConfig,
        FoldedVlmParModel,
        VlmParConfig,
        VlmParModel,
        VlmParProcessor,
    )

register_families()
register_pipeline()


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
