"""`export_picture_model`: a file that takes a picture, for programs that have neither torch nor this package.

    export_picture_model("runs/pa100k", "browser", to="onnx")

The file has one input, `image`, the pixels of an upright RGB picture of one person: uint8 `(height, width, 3)`, of
any size. Resizing, normalising and patches are inside. Its outputs are `probabilities` float32 `(A, C)`, calibrated,
0 past an attribute's own labels, and `decided` int64 `(A,)`, the index of each answer. Names, labels, thresholds and
how pixels are prepared stand in the file's metadata. Beside it lie `preprocessing.md`, which says the same in words;
`reference.py`, which asks the file and does its preprocessing step by step in NumPy; and `parity.json`: how many
answers differ from those of the pipeline. They may, because Pillow and torch resize with whole numbers, and the file
with real ones.
"""

import copy
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from transformers import PreTrainedModel

from vlm_par_hf.base.decisions import decide, label_probabilities
from vlm_par_hf.errors import ParRuntimeError, ParValueError
from vlm_par_hf.images.opening import open_image
from vlm_par_hf.inference.predicting import predict_batch
from vlm_par_hf.labels.decisions import Decisions
from vlm_par_hf.output_folders import open_output, sha256_of_file
from vlm_par_hf.utils import atomic_write_json, require

from .exported import DESCRIPTION, MAIN_FILE, PARITY_FILE, openvino_core
from .exporting import check_choices, claim, load_checked, package_versions
from .graph import OUTPUT_NAMES, ExportGraph, is_naflex
from .parity import NUM_COMPARED, draw_people, prepare_inputs
from .picture_graph import PictureSettings, put_picture_before, read_settings
from .runtimes import describe_onnx, quantize_onnx, write_onnx, write_openvino


__all__ = ["PREPROCESSING_FILE", "REFERENCE_FILE", "export_picture_model", "open_picture_file"]

PREPROCESSING_FILE, REFERENCE_FILE = "preprocessing.md", "reference.py"
# A float32 file that differs in more decisions than this computes something else.
_MOST_CHANGED = 0.02


def export_picture_model(
    model: Any,
    out: str | Path,
    *,
    to: str = "onnx",
    precision: str = "float32",
    processor: Any = None,
    patch_grid: tuple[int, int] | None = None,
    calibration_images: Sequence | None = None,
    compared_images: Sequence | None = None,
    images_from: str | None = None,
    overwrite: bool = False,
    delete_listed: bool = False,
) -> dict[str, Any]:
    """Writes a file that takes a picture, and compares its answers with the pipeline's.

    Args:
        model, out, precision, processor, patch_grid, calibration_images, compared_images, images_from, overwrite,
            delete_listed: as for `export_model`.
        to: `"onnx"` or `"openvino"`.

    Returns:
        The record in `parity.json`: `changed_decisions` out of `decisions`, `changed_share`, those by attribute,
        `max_abs_difference` of the probabilities, the images, versions, sha256 of the files.

    Raises:
        ValueError: as `export_model`; also for an image processor that has no form as operators.
        TypeError, FileExistsError, ImportError: as `export_model`.
        RuntimeError: more than 2 % of the decisions of a float32 file differ; nothing is written.
    """
    if to not in MAIN_FILE:
        raise ParValueError(f"to must be one of {tuple(MAIN_FILE)} for a file that takes a picture, got {to!r}")
    check_choices(to, precision, calibration_images, model=model, out=out)
    if delete_listed and not overwrite:
        raise ParValueError("delete_listed=True: expected overwrite=True too")
    with open_output(out, "export") as target:
        claim(target, overwrite=overwrite, delete_listed=delete_listed)
        model, processor = load_checked(model, processor)
        if patch_grid is not None:
            processor = copy.deepcopy(processor)  # the caller's must not change
            processor.fix_patch_grid(patch_grid)
        settings = read_settings(processor)
        if compared_images is None:
            compared_images, images_from = draw_people(NUM_COMPARED), "drawn pedestrians"
        with target.staging() as staging:
            _write_model(model.fold(), processor, settings, staging, to, precision, patch_grid, calibration_images)
            record = {
                "format": to,
                "precision": precision,
                "input": "picture",
                "patch_grid": None if patch_grid is None else list(patch_grid),
                "files": {path.name: sha256_of_file(path) for path in sorted(staging.iterdir())},
                "images": {
                    "from": images_from,
                    "compared": len(compared_images),
                    "calibration": len(calibration_images or ()),
                },
                **_compare(model, open_picture_file(staging / MAIN_FILE[to]), processor, compared_images),
                "versions": package_versions(),
            }
            if precision == "float32" and record["changed_share"] > _MOST_CHANGED:
                raise ParRuntimeError(
                    f"the exported file is wrong: {record['changed_decisions']} of {record['decisions']} decisions "
                    "are not those of the checkpoint; nothing was written"
                )
            (staging / PREPROCESSING_FILE).write_text(_in_words(settings, to, record), encoding="utf-8")
            (staging / REFERENCE_FILE).write_text(_reference(settings, to), encoding="utf-8")
            atomic_write_json(staging / PARITY_FILE, record)
            target.publish(staging, last=PARITY_FILE, replace_all=True)
    return record


def _write_model(folded, processor, settings, folder, to, precision, patch_grid, calibration_images) -> None:
    probe = next(prepare_inputs(processor, draw_people(2), 2))
    graph = ExportGraph(folded, probe["pixel_values"].shape[1] if is_naflex(folded) else None, patch_grid)
    if patch_grid is not None:
        probe = {"pixel_values": probe["pixel_values"]}
    with torch.no_grad():
        output_names = list(OUTPUT_NAMES[: len(graph(**probe))])
    path = folder / MAIN_FILE["onnx"]
    kept = write_onnx(graph, probe, output_names, path)
    kept += put_picture_before(path, settings)
    description = json.dumps(
        {
            "attributes": folded.config.schema.to_list(),
            "precision": precision,
            "patch_grid": patch_grid,
            "preprocessing": settings._asdict(),
        }
    )
    if to == "onnx":
        if precision == "int8":
            quantize_onnx(path, kept)
        describe_onnx(path, description)
        return
    batches = None
    if precision == "int8":
        batches = [{"image": np.asarray(open_image(image))} for image in calibration_images]
    write_openvino(path, folder / MAIN_FILE["openvino"], batches, kept, description)
    for one in folder.glob(f"{path.name}*"):
        one.unlink()


def open_picture_file(path: str | Path) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Opens a file that takes a picture: a function from uint8 `(height, width, 3)` to `probabilities` and `decided`.

    Args:
        path: `model.onnx` or `model.xml`.
    """
    if Path(path).suffix == ".onnx":
        session = require("onnxruntime", "export").InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda image: tuple(session.run(["probabilities", "decided"], {"image": image}))
    # In float32: with bfloat16, OpenVINO's default on CPUs that have it, pixels would be rounded too.
    compiled = openvino_core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = compiled.create_infer_request().infer({"image": image})
        by_name = {name: value for output, value in found.items() for name in output.get_names()}
        return by_name["probabilities"], by_name["decided"]

    return run


def _compare(
    model: PreTrainedModel,
    run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    processor: Any,
    images: Sequence,
) -> dict[str, Any]:
    """The part of the record about answers: those of the file beside those of the pipeline."""
    schema, given = model.config.schema, model.config.decisions
    decisions = None if given is None else Decisions.from_dict(given)
    difference, changed = 0.0, np.zeros(len(schema), dtype=np.int64)
    for image in tqdm(images, desc="compare", leave=False):
        picture = open_image(image)
        logits = predict_batch(model, processor(images=[picture], return_tensors="pt"))["logits"]
        wanted = label_probabilities(logits, schema)
        probabilities, decided = run(np.asarray(picture))
        difference = max(difference, float(np.abs(wanted[0].numpy() - probabilities).max()))
        changed += decide(wanted, schema, decisions)[0].numpy() != decided
    total = len(images) * len(schema)
    return {
        "max_abs_difference": difference,
        "decisions": total,
        "changed_decisions": int(changed.sum()),
        "changed_share": int(changed.sum()) / total,
        "changed_by_attribute": {name: int(number) for name, number in zip(schema.names, changed) if number},
    }


def _size_in_words(settings: PictureSettings) -> str:
    p, N = settings.patch_size, settings.max_num_patches
    if settings.size is not None:
        height, width = settings.size
        return f"Every picture is resized to height {height} and width {width}, whatever its shape."
    return (
        f"The picture keeps its shape. It is resized to `rows * {p}` by `columns * {p}` pixels, the finest grid of "
        f"patches of {p} x {p} pixels with `rows * columns <= {N}`. With height H and width W: take the largest "
        f"number of rows r with `r * ceil(W * r / H) <= {N}`, and the largest number of columns c with "
        f"`c * ceil(H * c / W) <= {N}`. If `r * W >= c * H`, the grid is r by `ceil(W * r / H)`, else "
        "`ceil(H * c / W)` by c."
    )


def _in_words(settings: PictureSettings, to: str, record: dict[str, Any]) -> str:
    """The text of `preprocessing.md`."""
    p, N = settings.patch_size, settings.max_num_patches
    filters = {
        "bilinear": "triangle, `f(x) = max(0, 1 - |x|)`",
        "bicubic": "cubic with a = -1/2, `f(x) = 1.5|x|^3 - 2.5|x|^2 + 1` below 1, `-0.5|x|^3 + 2.5|x|^2 - 4|x| + 2` "
        "from 1 to 2, else 0",
    }
    same = len(set(settings.scale)) == len(set(settings.shift)) == 1
    scale, shift = (one[0] if same else one for one in (settings.scale, settings.shift))
    if p is None:
        shape = f"Axes are put in the order (1, 3, {settings.size[0]}, {settings.size[1]})."
    else:
        shape = (
            f"Patches of {p} x {p} pixels are taken row by row; a patch is a vector of {3 * p * p} numbers, its "
            f"pixels row by row, red, green, blue of each. The sequence is filled with zeros to {N} patches, which "
            "a mask tells from patches of the picture."
        )
    images = record["images"]
    parts = [
        f"# What {MAIN_FILE[to]} does with a picture",
        "The input `image` is an upright RGB picture of one person, uint8 (height, width, 3). Upright means that the "
        "orientation tag of a photograph has been applied; transparent pixels should be blended with grey (128, 128, "
        f"128). All that follows happens inside the file. `{REFERENCE_FILE}` does the same step by step.",
        f"1. {_size_in_words(settings)}",
        f"2. Resizing is Pillow's {settings.resample} with antialias, first along rows, then along columns. The "
        "weight of input pixel i for output pixel x is `f((i + 0.5 - c) / s)` with `c = (x + 0.5) * size / new_size` "
        "and `s = max(1, size / new_size)`, divided by the sum of the weights of x. f is "
        f"{filters[settings.resample]}. After each of the two passes values are rounded to whole numbers and cut to 0 "
        "to 255.",
        f"3. A value v becomes `v * {scale} + {shift}`{'' if same else ', per channel'}.",
        f"4. {shape}",
        "The outputs are `probabilities` float32 (attributes, labels), calibrated, 0 past an attribute's own labels; "
        "and `decided` int64 (attributes), the index of each answer. Names, labels and thresholds of the attributes, "
        f"in this order, are JSON in the file's metadata under `{DESCRIPTION}`. A binary attribute is answered with "
        "its second label if that label's probability is above the attribute's threshold.",
        f"On {images['compared']} pictures ({images['from']}), {record['changed_decisions']} of {record['decisions']} "
        f"decisions differ from those of the pipeline, which resizes with whole numbers (`{PARITY_FILE}`).",
    ]
    lines = [
        textwrap.fill(part, 119, subsequent_indent="   " if part[1:2] == "." else "", break_long_words=False)
        for part in parts
    ]
    return "\n\n".join(lines) + "\n"


_RUNTIME = {
    "onnx": (
        "onnxruntime",
        """session = onnxruntime.InferenceSession(str(FOLDER / "model.onnx"))
        about = json.loads(session.get_modelmeta().custom_metadata_map["vlm_par_hf"])
        probabilities, decided = session.run(["probabilities", "decided"], {"image": image})""",
    ),
    "openvino": (
        "openvino",
        """model = openvino.Core().read_model(FOLDER / "model.xml")
        about = json.loads(model.get_rt_info(["vlm_par_hf"]).astype(str))
        found = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"image": image})
        probabilities, decided = found["probabilities"], found["decided"]""",
    ),
}


def _reference(settings: PictureSettings, to: str) -> str:
    """The text of `reference.py`."""
    package, run = _RUNTIME[to]
    run = run.replace("\n        ", "\n    ")
    p, N = settings.patch_size, settings.max_num_patches
    if settings.resample == "bilinear":
        weights = "np.maximum(0, 1 - x)"
    else:
        weights = (
            "np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))"
        )
    if settings.size is None:
        grid = f"""numbers = np.arange(1, {N} + 1)
    r = max(numbers[numbers * -(-width * numbers // height) <= {N}], default=0)
    c = max(numbers[numbers * -(-height * numbers // width) <= {N}], default=0)
    rows, columns = (r, -(-width * r // height)) if r * width >= c * height else (-(-height * c // width), c)
    new_height, new_width = rows * {p}, columns * {p}"""
    else:
        grid = f"new_height, new_width = {settings.size[0]}, {settings.size[1]}"
    if p is None:
        patches = "return values.transpose(2, 0, 1)[None]"
    else:
        patches = f"""patches = values.reshape(new_height // {p}, {p}, new_width // {p}, {p} * 3).transpose(0, 2, 1, 3)
    patches = patches.reshape(-1, {3 * p * p})
    return np.pad(patches, ((0, {N} - len(patches)), (0, 0)))[None]"""
    return f'''"""Asks {MAIN_FILE[to]} about a picture of one person: python reference.py person.jpg

Needs numpy, Pillow and {package}. `prepare` is not used for the answer: it shows what the file does with
the pixels, for whoever writes it anew.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).parent


def resize(pixels, new_size):
    """Resizes the second axis."""
    size = pixels.shape[1]
    centers = (np.arange(new_size) + 0.5)[:, None] * size / new_size
    x = np.abs(np.arange(size) + 0.5 - centers) / max(1, size / new_size)
    weights = {weights}
    weights /= weights.sum(1, keepdims=True)
    return np.clip(np.rint(np.einsum("xi,hic->hxc", weights, pixels)), 0, 255)


def prepare(image):
    """From uint8 (height, width, 3) to the numbers that the network sees."""
    height, width, _ = image.shape
    {grid}
    pixels = resize(resize(image, new_width).transpose(1, 0, 2), new_height).transpose(1, 0, 2)
    values = (pixels * np.array({settings.scale}) + np.array({settings.shift})).astype(np.float32)
    {patches}


if __name__ == "__main__":
    import {package}

    image = np.asarray(ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB"))
    {run}
    for attribute, label, row in zip(about["attributes"], decided, probabilities):
        labels = attribute.get("labels", ["no", "yes"])
        print(f"{{attribute['name']}}: {{labels[label]}} ({{row[label]:.3f}})")
'''
