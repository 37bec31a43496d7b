"""`export_model`: VLM-PAR as a file for ONNX Runtime or OpenVINO.

    export_model("runs/pa100k", "runs/pa100k-int8", to="openvino", precision="int8", calibration_images=crops)
    pipe = pipeline("pedestrian-attributes", model="runs/pa100k-int8")     # as from any checkpoint

The folded model is exported, for any number of images per call. transformers resizes the position embedding of NaFlex
images one image at a time; an exporter would fix the number of images to that of the example. Here the same resizing
is a product with matrices that are looked up by the image's rows and columns of patches, so a file takes images of
every aspect ratio, as the checkpoint does. With a fixed `patch_grid` the embedding is a constant, and every image is
squashed to that grid.

The folder also gets the processor, the label space with its thresholds (`config.json`) and `parity.json`: how far the
answers are from those of the checkpoint in float32, and on which images.
"""

import copy
import logging
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor, PreTrainedModel

from vlm_par_hf.base.modeling import ParPreTrainedModel
from vlm_par_hf.errors import ParFileExistsError, ParRuntimeError, ParTypeError, ParValueError, argument_in_errors
from vlm_par_hf.output_folders import LOCK, OutputFolder, is_model_file, open_output, refuse_overlap, sha256_of_file
from vlm_par_hf.utils import atomic_write_json, read_json_object, require

from .exported import (
    FORMATS,
    MAIN_FILE,
    PARITY_FILE,
    ExportedParConfig,
    ExportedParModel,
    require_silent,
    save_config,
)
from .graph import OUTPUT_NAMES, ExportGraph, is_naflex
from .parity import NUM_COMPARED, compare_answers, draw_people, prepare_inputs
from .runtimes import describe, describe_onnx, quantize_onnx, write_onnx, write_openvino


__all__ = ["check_choices", "claim", "export_model", "load_checked", "package_versions"]

logger = logging.getLogger(__name__)


def export_model(
    model: Any,
    out: str | Path,
    *,
    to: str = "openvino",
    precision: str = "float32",
    processor: Any = None,
    patch_grid: tuple[int, int] | None = None,
    calibration_images: Sequence | None = None,
    compared_images: Sequence | None = None,
    images_from: str | None = None,
    overwrite: bool = False,
    delete_listed: bool = False,
) -> dict[str, Any]:
    """Writes the folded model as a file for a runtime, and compares its answers with the checkpoint's.

    A file has the outputs `logits` float32 `(B, A, C)`, as the heads give them; `decided` int64 `(B, A)` and
    `probabilities` float32 `(B, A, C)`, the answers and calibrated probabilities under the decisions and thresholds
    of the moment, made consistent as by the pipeline (-100: the question makes no sense for this person); and
    `image_embeds`, if the model has them. A program without this package reads `decided`. This package reads `logits`
    and does the rest by `config.json`, so decisions can be fitted anew without an export.

    Args:
        model: a checkpoint of VLM-PAR (folder, repository), or a `VlmParModel` or `FoldedVlmParModel`.
        out: folder to write; after an error it is as it was before.
        to: `"folded"` (a checkpoint for torch), `"onnx"` or `"openvino"`.
        precision: `"float32"`; `"bfloat16"` (folded, openvino); `"int8"` (onnx, openvino): weights of the vision tower
            and the inputs of its matrix products. ONNX Runtime takes the range of inputs from each image, OpenVINO
            from `calibration_images`.
        processor: the model's processor; needed if `model` is in memory.
        patch_grid: rows and columns of patches, NaFlex only: every image is squashed to that grid, whatever its
            aspect ratio. None: every image keeps its own.
        calibration_images: about 100 images, as `open_image` takes them, like those to be answered later. Needed for
            OpenVINO's int8.
        compared_images: images to compare the answers on, not those for calibration. None: drawn pedestrians.
        images_from: what the images are, for the record.
        overwrite: replace the export in `out` when the new one is complete. Other files stay. It refuses, and names
            them, where files were changed since they were written or where an export of an earlier version does not
            list its files.
        delete_listed: with `overwrite`: delete what that refusal named.

    Returns:
        The record in `parity.json`: `max_abs_difference` of the logits, `changed_decisions` out of `decisions`, those
        by attribute, the images, versions, sha256 of the files.

    Raises:
        ValueError: an argument is not one of its choices, calibration images are missing, a patch grid is given for a
            model of fixed resolution, or `out` is the checkpoint, lies inside it or would replace it; or another
            process writes `out`.
        TypeError: a model of another family.
        FileExistsError: `out` holds something else, or an export and `overwrite` is not set.
        RuntimeError: a float32 file does not compute what the checkpoint computes, or logits are not finite; nothing
            is written.
        ImportError: the extra `export` is not installed.
    """
    check_choices(to, precision, calibration_images, model=model, out=out)
    if delete_listed and not overwrite:
        raise ParValueError("delete_listed=True: expected overwrite=True too")
    with open_output(out, "export") as target:
        claim(target, overwrite=overwrite, delete_listed=delete_listed)
        model, processor = load_checked(model, processor)
        folded = model.fold()
        if patch_grid is not None:
            processor = copy.deepcopy(processor)  # the caller's must not change
            processor.fix_patch_grid(patch_grid)
        if compared_images is None:
            compared_images, images_from = draw_people(NUM_COMPARED), "drawn pedestrians"
        with target.staging() as staging:
            if to == "folded":
                folded.save_pretrained(staging)
                if precision != "float32":  # cast by `from_pretrained`, which keeps some constants in float32
                    AutoModel.from_pretrained(staging, dtype=precision).save_pretrained(staging)
                files = {path.name: sha256_of_file(path) for path in sorted(staging.glob("*.safetensors"))}
            else:
                config = _write_runtime_files(
                    folded, processor, staging, to, precision, patch_grid, calibration_images
                )
                files = config.files
            processor.save_pretrained(staging)
            record = {
                "format": to,
                "precision": precision,
                "patch_grid": None if patch_grid is None else list(patch_grid),
                "files": files,
                "images": {
                    "from": images_from,
                    "compared": len(compared_images),
                    "calibration": len(calibration_images or ()),
                },
                **compare_answers(model, AutoModel.from_pretrained(staging), processor, compared_images),
                "versions": package_versions(),
            }
            if precision == "float32" and record["max_abs_difference"] > 1e-3 * max(1.0, record["max_abs_logit"]):
                raise ParRuntimeError(
                    f"the exported file is wrong: its logits are up to {record['max_abs_difference']:.3g} away from "
                    f"the checkpoint's (largest logit {record['max_abs_logit']:.3g}); nothing was written"
                )
            atomic_write_json(staging / PARITY_FILE, record)
            target.publish(staging, last="config.json", replace_all=True)
    return record


def check_choices(
    to: str, precision: str, calibration_images: Sequence | None, *, model: Any, out: str | Path
) -> None:
    """Refuses a format, a precision and a place before any work is done.

    Raises:
        ValueError, ImportError: as `export_model`.
    """
    if to not in FORMATS:
        raise ParValueError(f"to must be one of {tuple(FORMATS)}, got {to!r}")
    if precision not in FORMATS[to]:
        raise ParValueError(f"precision must be one of {FORMATS[to]} for {to!r}, got {precision!r}")
    if to == "openvino" and precision == "int8" and not calibration_images:
        raise ParValueError(
            "calibration_images is empty, but OpenVINO's int8 takes the range of every activation from images like "
            "those to come: give some 100 (`--calibrate`)"
        )
    refuse_overlap(out, {"model": model if isinstance(model, (str, Path)) else None}, replaced=True)
    if to != "folded":
        for package in ("onnx", "onnxscript") + (("onnxruntime",) if to == "onnx" else ()):
            require(package, "export")
    if to == "openvino":
        for package in ("openvino", "nncf") if precision == "int8" else ("openvino",):
            require_silent(package)


def claim(target: OutputFolder, *, overwrite: bool, delete_listed: bool) -> None:
    """Takes a folder for an export.

    Raises:
        FileExistsError: it holds something that is not to be replaced.
    """
    if overwrite:
        target.claim(delete_listed=delete_listed, recognise=_list_earlier_export)
    elif not target.is_unfinished and any(path.name != LOCK for path in target.path.iterdir()):
        raise ParFileExistsError(f"{target.path} holds something already: name another folder, or overwrite it")


def _list_earlier_export(out: Path) -> list[str] | None:
    """The files that an earlier version wrote, which kept no list; None if its record is not there."""
    record = read_json_object(out / PARITY_FILE)
    if record is None or not {"format", "precision", "files", "max_abs_logit"} <= set(record):
        return None
    named = {PARITY_FILE, *record["files"]}
    return sorted(path.name for path in out.iterdir() if path.name in named or is_model_file(path.name))


def load_checked(model: Any, processor: Any) -> tuple[PreTrainedModel, Any]:
    """A model that can be exported, in float32 on the CPU, and its processor.

    Raises:
        ValueError, TypeError, OSError: as `export_model`.
    """
    if isinstance(model, (str, Path)):
        name = str(model)
        with argument_in_errors("model", name):
            processor = processor or AutoProcessor.from_pretrained(name)
            model = AutoModel.from_pretrained(name, dtype=torch.float32)
    elif processor is None:
        raise ParValueError("processor is None: a model in memory needs its processor beside it")
    if isinstance(model, ExportedParModel):
        raise ParValueError(f"{model.name_or_path} was exported already: export the checkpoint that it came from")
    if not isinstance(model, ParPreTrainedModel) or not model.supports_fold:
        raise ParTypeError(
            f"model is a {type(model).__name__}, expected a VlmParModel or a FoldedVlmParModel"
            + ("; give what peft_model.merge_and_unload() returns" if hasattr(model, "merge_and_unload") else "")
        )
    if model.training or model.dtype != torch.float32 or model.device.type != "cpu":
        model = copy.deepcopy(model).float().cpu().eval()  # the caller's must not change
    return model, processor


def package_versions() -> dict[str, str]:
    """Of Python and the packages that an export depends on, for its record."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("vlm-par-hf", "torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _write_runtime_files(
    folded, processor, folder, to, precision, patch_grid, calibration_images
) -> ExportedParConfig:
    probe = next(prepare_inputs(processor, draw_people(2), 2))
    num_patches = probe["pixel_values"].shape[1] if is_naflex(folded) else None
    graph = ExportGraph(folded, num_patches, patch_grid)
    if patch_grid is not None:
        probe = {"pixel_values": probe["pixel_values"]}
    with torch.no_grad():
        output_names = list(OUTPUT_NAMES[: len(graph(**probe))])
    onnx_file = folder / MAIN_FILE["onnx"]
    kept = write_onnx(graph, probe, output_names, onnx_file)
    config = ExportedParConfig(
        attributes=folded.config.schema.to_list(),
        decisions=folded.config.decisions,
        format=to,
        precision=precision,
        input_shapes={name: [None, *value.shape[1:]] for name, value in probe.items()},
        patch_grid=None if patch_grid is None else list(patch_grid),
        source_model_type=folded.config.model_type,
    )
    if to == "onnx":
        if precision == "int8":
            quantize_onnx(onnx_file, kept)
        describe_onnx(onnx_file, describe(config))
    else:
        batches = None
        if precision == "int8":
            batches = [
                {name: inputs[name].numpy() for name in probe}
                for inputs in prepare_inputs(processor, calibration_images, 1)
            ]
        write_openvino(onnx_file, folder / MAIN_FILE["openvino"], batches, kept, describe(config))
        for path in folder.glob(f"{onnx_file.name}*"):
            path.unlink()
    config.files = {path.name: sha256_of_file(path) for path in sorted(folder.iterdir())}
    save_config(config, folder)
    return config
