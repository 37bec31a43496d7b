"""Pedestrian attribute recognition as ordinary Hugging Face.

Importing this package registers its model families with the Auto classes and its task with `pipeline`. All other
public names are imported when they are first used. In a process that is the command `vlm-par`, a command registers
them when it runs, so that help and messages wait for no import of torch.
"""

# ruff: noqa: F401  (imports for type checkers only; a test compares them with `__all__`)
import importlib
import multiprocessing
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_par_hf.families import FAMILIES


__version__ = "0.1.0"

# Module -> public names. Those of the model families come from the table in `families`.
_MODULES = {
    "annotation": ("Annotator", "annotate"),
    "inference.devices": ("inference_dtype",),
    "errors": ("ParError",),
    "data": ("AugmentedDataset", "ParAugmentation", "ParCollator", "dataset_schema", "load_par_dataset"),
    "data.tracklets": ("TrackletDataset",),
    "export": ("export_model",),
    "images.example_crops": ("example_crop",),
    "base.losses": ("ParLoss",),
    "metrics": ("ParMetrics",),
    "base.outputs": ("ParOutput",),
    "inference.pipelines": ("PedestrianAttributesPipeline",),
    "inference.tracklets": ("Tracklet",),
    "labels.schema": ("Attribute", "AttributeSchema"),
    "labels.tables": ("get_schema", "list_schemas"),
    "visualization": ("draw_boxes",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_MODULE_OF.update({name: family.module for family in FAMILIES for name in family.class_names})

__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from vlm_par_hf.annotation import Annotator, annotate
    from vlm_par_hf.base.losses import ParLoss
    from vlm_par_hf.base.outputs import ParOutput
    from vlm_par_hf.data import AugmentedDataset, ParAugmentation, ParCollator, dataset_schema, load_par_dataset
    from vlm_par_hf.data.tracklets import TrackletDataset
    from vlm_par_hf.errors import ParError
    from vlm_par_hf.export.exported import ExportedParConfig, ExportedParModel
    from vlm_par_hf.export.exporting import export_model
    from vlm_par_hf.images.example_crops import example_crop
    from vlm_par_hf.inference.devices import inference_dtype
    from vlm_par_hf.inference.pipelines import PedestrianAttributesPipeline
    from vlm_par_hf.inference.tracklets import Tracklet
    from vlm_par_hf.labels.schema import Attribute, AttributeSchema
    from vlm_par_hf.labels.tables import get_schema, list_schemas
    from vlm_par_hf.metrics.attributes import ParMetrics
    from vlm_par_hf.models.clear_par import ClearParConfig, ClearParModel, ClearParProcessor
    from vlm_par_hf.models.focus_par import FocusParConfig, FocusParModel, FocusParProcessor
    from vlm_par_hf.models.vlm_par import (
        FoldedVlmParConfig,
        FoldedVlmParModel,
        VlmParConfig,
        VlmParModel,
        VlmParProcessor,
    )
    from vlm_par_hf.models.vtf_par import VtfParConfig, VtfParModel, VtfParProcessor
    from vlm_par_hf.visualization import draw_boxes


def _is_command() -> bool:
    """Whether this process is `vlm-par` or `python -m vlm_par_hf`, and not a worker of it."""
    module = ["-m", "vlm_par_hf"]
    is_module = any(sys.orig_argv[start : start + 2] == module for start in range(1, 4)) and sys.argv[0] == "-m"
    is_script = Path(sys.argv[0] if sys.argv else "").stem == "vlm-par"
    return (is_script or is_module) and multiprocessing.parent_process() is None


def _register() -> None:
    if not _is_command():
        from vlm_par_hf.auto import register

        register()


_register()


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
