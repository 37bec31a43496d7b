"""VLM-PAR as a file for ONNX Runtime or OpenVINO, and the model class that answers from such a file.

    export_model("runs/pa100k", "runs/pa100k-int8", to="openvino", precision="int8", calibration_images=crops)
    pipe = pipeline("pedestrian-attributes", model="runs/pa100k-int8")     # as from any checkpoint

What is exported is the folded model, with a free number of images per call. transformers resizes the position
embedding of NaFlex images one image at a time, which an exporter cannot follow: it freezes the batch. Here the same
resizing is a product with matrices that are looked up by the image's rows and columns of patches, so a file takes
images of every aspect ratio, as the checkpoint does. With a fixed `patch_grid` the embedding is a constant, and every
image is squashed to that grid.

Beside the file lie the processor, the label space with its thresholds (`config.json`) and `parity.json`: how far the
answers are from those of the checkpoint in float32, on which images.
"""

import copy
import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.utils import tqdm
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, can_return_tuple

from vlm_par_hf.base.configuration import LabelSpaceConfig
from vlm_par_hf.base.decisions import decide, label_probabilities
from vlm_par_hf.base.modeling import HUB_KEYS, ParPreTrainedModel
from vlm_par_hf.images import open_image
from vlm_par_hf.inference.predicting import predict_batch, predict_batches
from vlm_par_hf.outputs import ParOutput
from vlm_par_hf.remote_code import write_remote_code
from vlm_par_hf.upstream import NaflexEmbeddings, naflex_embeddings
from vlm_par_hf.utils import atomic_write_json, require


__all__ = ["ExportedParConfig", "ExportedParModel", "export_model", "pick_images"]

logger = logging.getLogger(__name__)

FORMATS = {"folded": ("float32", "bfloat16"), "onnx": ("float32", "int8"), "openvino": ("float32", "bfloat16", "int8")}
MAIN_FILE = {"onnx": "model.onnx", "openvino": "model.xml"}
PARITY_FILE = "parity.json"
# int8 is for the products with weights in these modules. What stays in float is a few percent of the work and most of
# the error: embeddings, pooling head, attribute heads; also the products inside attention, which double the number of
# changed decisions.
QUANTIZED = ".encoder."
NUM_CALIBRATION, NUM_COMPARED = 128, 256
_IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_BATCH = 8
_DTYPES = {"pixel_values": torch.float32, "pixel_attention_mask": torch.int32, "spatial_shapes": torch.int64}


@strict
class ExportedParConfig(LabelSpaceConfig, PreTrainedConfig):
    """Configuration of `ExportedParModel`, written by `export_model`.

    Args:
        attributes: the label space, as in every model of this package; `config.schema` is the object.
        format: `"onnx"` or `"openvino"`.
        precision: what it computes in: `"float32"`, `"bfloat16"` or `"int8"` (the rest of it in float32 for ONNX
            Runtime, in bfloat16 for OpenVINO). bfloat16 is float32 on a CPU without it.
        files: sha256 of each file of the model.
        input_shapes: per input its shape, None for the number of images.
        patch_grid: rows and columns of patches where they are fixed, else None.
        source_model_type: the family that it came from.

    Raises:
        ValueError: unknown `format` or `precision`.
    """

    model_type = "par_exported"
    keys_to_ignore_at_inference = ["image_embeds"]

    attributes: Any = None
    format: str = "onnx"
    precision: str = "float32"
    files: dict | None = None
    input_shapes: dict | None = None
    patch_grid: list | None = None
    source_model_type: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._take_attributes(kwargs)
        super().__post_init__(**kwargs)
        if self.format not in MAIN_FILE:
            raise ValueError(f"format must be one of {tuple(MAIN_FILE)}, got {self.format!r}")
        if self.precision not in FORMATS[self.format]:
            raise ValueError(f"precision must be one of {FORMATS[self.format]}, got {self.precision!r}")


class ExportedParModel(ParPreTrainedModel):
    """Answers from an exported file, with the interface of the model that was exported; made by `from_pretrained`.

    It runs on the CPU, with as many threads as torch has when it is loaded (`torch.set_num_threads`), whatever device
    it is sent to. It has no parameters, computes no loss and explains nothing.
    """

    config_class = ExportedParConfig
    supports_training = False

    def __init__(self, config: ExportedParConfig) -> None:
        super().__init__(config)
        self._run = None
        self._folder: Path | None = None
        self.post_init()
        self.eval()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs and outputs."""
        return torch.float32

    def train(self, mode: bool = True) -> "ExportedParModel":
        """Leaves it as it is.

        Raises:
            RuntimeError: `mode` is True.
        """
        if mode:
            raise RuntimeError("an exported model is for answers only and cannot be trained: train the checkpoint")
        return super().train(False)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ParOutput:
        """Scores every attribute of every person.

        Args:
            pixel_values, pixel_attention_mask, spatial_shapes: what the processor saved beside the file makes of B
                images.
            kwargs: `labels` are refused; the rest is not used.

        Returns:
            `ParOutput` with `logits` float32 `(B, A, C)` and, where the model has them, `image_embeds`.

        Raises:
            ValueError: an input is missing or has another shape than the file takes, or the images have another patch
                grid than the fixed one.
        """
        if self._run is None:
            raise ValueError("this model has no file to run: load it with ExportedParModel.from_pretrained(folder)")
        if kwargs.get("labels") is not None:
            raise ValueError("labels were given, but an exported model computes no loss")
        given = {
            "pixel_values": pixel_values,
            "pixel_attention_mask": pixel_attention_mask,
            "spatial_shapes": spatial_shapes,
        }
        grid = self.config.patch_grid
        if grid is not None and spatial_shapes is not None:
            other = (spatial_shapes.cpu() != torch.tensor(grid)).any(1).nonzero().flatten().tolist()
            if other:
                found = tuple(spatial_shapes[other[0]].tolist())
                raise ValueError(
                    f"spatial_shapes: image {other[0]} has {found} patches, expected {tuple(grid)}, the grid that was "
                    "exported: use the processor saved beside the file"
                )
        arrays = {}
        for name, shape in self.config.input_shapes.items():
            value = given[name]
            found = None if value is None else tuple(value.shape)
            if found is None or len(found) != len(shape) or found[1:] != tuple(shape[1:]):
                wanted = ", ".join("B" if size is None else str(size) for size in shape)
                raise ValueError(f"{name} has shape {found}, expected ({wanted}) for {MAIN_FILE[self.config.format]}")
            arrays[name] = value.detach().to("cpu", _DTYPES[name]).numpy()
        logits, image_embeds = self._run(arrays)
        return ParOutput(
            logits=torch.from_numpy(logits),
            image_embeds=None if image_embeds is None else torch.from_numpy(image_embeds),
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *model_args: Any,
        config: Any = None,
        num_threads: int | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> "ExportedParModel":
        """Opens what `export_model` wrote.

        Args:
            pretrained_model_name_or_path: folder or repository.
            config: an `ExportedParConfig` in place of the saved one.
            num_threads: of the runtime; None: as many as torch has now.
            dtype: None, `"auto"` or float32, which inputs and outputs have; the precision was chosen at export.
            kwargs: `revision`, `token`, ... as for every model; what concerns weights of torch has no meaning here.

        Raises:
            ValueError: another `dtype`, or a file that is not the one that was exported.
            OSError: the folder, or a file in it, does not exist.
            ImportError: the runtime is not installed.
        """
        name = pretrained_model_name_or_path
        if dtype not in (None, "auto", "float32", torch.float32):
            raise ValueError(
                f"dtype is {dtype}, but the precision of an exported model was chosen when it was exported"
            )
        hub = {key: kwargs[key] for key in HUB_KEYS if kwargs.get(key) is not None}
        if not isinstance(config, ExportedParConfig):
            config = ExportedParConfig.from_pretrained(config or name, **hub)
        if not config.files or not config.input_shapes:
            raise ValueError(f"{name}: config.json names no files, expected what export_model wrote")
        paths = {file: _checked_file(name, file, digest, hub) for file, digest in config.files.items()}
        path = paths[MAIN_FILE[config.format]]
        model = cls(config)
        model.config.name_or_path = model.name_or_path = str(name)
        model._folder = path.parent
        threads = torch.get_num_threads() if num_threads is None else num_threads
        open_file = _open_onnx if config.format == "onnx" else _open_openvino
        model._run = open_file(path, config.precision, threads)
        return model

    def _save_files(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Copies the files, `parity.json` too.

        Raises:
            ValueError: the model was not loaded from a file.
        """
        if self._folder is None:
            raise ValueError("this model has no file to save: load it with ExportedParModel.from_pretrained(folder)")
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        for file in (*self.config.files, PARITY_FILE):
            source = self._folder / file
            if source.exists() and source.resolve() != (target / file).resolve():
                shutil.copyfile(source, target / file)
        _save_config(self.config, target)


def _save_config(config: ExportedParConfig, folder: Path) -> None:
    config.architectures = ["ExportedParModel"]
    config.auto_map = write_remote_code(
        folder, config.model_type, AutoConfig="ExportedParConfig", AutoModel="ExportedParModel"
    )
    config.save_pretrained(folder)


def _checked_file(name: str | Path, file: str, digest: str, hub: dict[str, Any]) -> Path:
    path = Path(cached_file(str(name), file, **hub))
    found = _sha256(path)
    if found != digest:
        raise ValueError(
            f"{path} is not the file that was exported: its sha256 is {found}, config.json has {digest}; copy it "
            "again, or export again"
        )
    return path


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Runtimes: numpy arrays in, (logits, image_embeds or None) out


def _open_onnx(path: Path, precision: str, threads: int):
    runtime = require("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]

    def run(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        found = dict(zip(names, session.run(names, arrays)))
        return found["logits"], found.get("image_embeds")

    return run


def _open_openvino(path: Path, precision: str, threads: int):
    openvino = _require_silent("openvino")
    # By default OpenVINO computes in bfloat16 wherever the CPU can, whatever the file says. Beside int8 that is
    # wanted: the rest in float32 would cost another quarter of the time.
    hint = "f32" if precision == "float32" else "bf16"
    compiled = openvino.Core().compile_model(
        str(path),
        "CPU",
        {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"},
    )

    def run(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        found = compiled.create_infer_request().infer(arrays)
        found = {one.get_any_name(): value for one, value in found.items()}
        return found["logits"], found.get("image_embeds")

    return run


# Export


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
) -> dict[str, Any]:
    """Writes the folded model as a file for a runtime, and checks it.

    Args:
        model: a checkpoint of VLM-PAR (folder, repository), or a `VlmParModel` or `FoldedVlmParModel`.
        out: folder to write; appears whole or not at all.
        to: `"folded"` (a checkpoint for torch), `"onnx"` or `"openvino"`.
        precision: `"float32"`; `"bfloat16"` (folded, openvino); `"int8"` (onnx, openvino): weights of the vision tower
            and the inputs of its matrix products. ONNX Runtime takes the range of inputs from each image, OpenVINO
            from `calibration_images`.
        processor: the model's; needed where `model` is no checkpoint.
        patch_grid: rows and columns of patches, NaFlex only: every image is squashed to that grid, whatever its
            aspect ratio. None: every image keeps its own.
        calibration_images: what `open_image` takes; images like those to come, some 100. Needed for OpenVINO's int8.
        compared_images: images to compare the answers on, other ones than for calibration. None: drawn pedestrians.
        images_from: what the images are, for the record.
        overwrite: replace what `out` holds.

    Returns:
        The record in `parity.json`: `max_abs_difference` of the logits, `changed_decisions` out of `decisions`, those
        by attribute, the images, versions, sha256 of the files.

    Raises:
        ValueError: a value is outside its choices, calibration images are missing, a patch grid for a model of fixed
            resolution.
        TypeError: a model of another family.
        FileExistsError: `out` holds something.
        RuntimeError: a float32 file does not compute what the checkpoint computes; nothing is written.
        ImportError: the extra `export` is not installed.
    """
    if to not in FORMATS:
        raise ValueError(f"to must be one of {tuple(FORMATS)}, got {to!r}")
    if precision not in FORMATS[to]:
        raise ValueError(f"precision must be one of {FORMATS[to]} for {to!r}, got {precision!r}")
    if to == "openvino" and precision == "int8" and not calibration_images:
        raise ValueError(
            "calibration_images is empty, but OpenVINO's int8 takes the range of every activation from images like "
            "those to come: give some 100 (`--calibrate`)"
        )
    out = Path(out)
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} holds something already: name another folder, or overwrite it")
    if to != "folded":
        for package in ("onnx", "onnxscript") + (("onnxruntime",) if to == "onnx" else ()):
            require(package, "export")
    if to == "openvino":
        for package in ("openvino", "nncf") if precision == "int8" else ("openvino",):
            _require_silent(package)
    model, processor = _load(model, processor)
    folded = model.fold()
    if patch_grid is not None:
        processor = copy.deepcopy(processor)  # the caller's stays as it is
        processor.fix_patch_grid(patch_grid)
    if compared_images is None:
        compared_images, images_from = _drawings(NUM_COMPARED), "drawn pedestrians"
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        if to == "folded":
            folded.save_pretrained(temporary)
            if precision != "float32":  # by loading, because some constants stay in float32
                AutoModel.from_pretrained(temporary, dtype=precision).save_pretrained(temporary)
            files = {path.name: _sha256(path) for path in sorted(temporary.glob("*.safetensors"))}
        else:
            config = _write_runtime_files(folded, processor, temporary, to, precision, patch_grid, calibration_images)
            files = config.files
        processor.save_pretrained(temporary)
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
            **_compare(model, AutoModel.from_pretrained(temporary), processor, compared_images),
            "versions": _versions(),
        }
        if precision == "float32" and record["max_abs_difference"] > 1e-3 * max(1.0, record["max_abs_logit"]):
            raise RuntimeError(
                f"the exported file is wrong: its logits are up to {record['max_abs_difference']:.3g} away from the "
                f"checkpoint's (largest logit {record['max_abs_logit']:.3g}); nothing was written"
            )
        atomic_write_json(temporary / PARITY_FILE, record)
        _replace_folder(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return record


def _load(model: Any, processor: Any) -> tuple[PreTrainedModel, Any]:
    if isinstance(model, (str, Path)):
        name = str(model)
        processor = processor or AutoProcessor.from_pretrained(name)
        model = AutoModel.from_pretrained(name, dtype=torch.float32)
    elif processor is None:
        raise ValueError("processor is None: a model in memory needs its processor beside it")
    if isinstance(model, ExportedParModel):
        raise ValueError(f"{model.name_or_path} was exported already: export the checkpoint that it came from")
    if not isinstance(model, ParPreTrainedModel) or not model.supports_fold:
        raise TypeError(f"model is a {type(model).__name__}, expected a VlmParModel or a FoldedVlmParModel")
    if model.training or model.dtype != torch.float32 or model.device.type != "cpu":
        model = copy.deepcopy(model).float().cpu().eval()  # the caller's stays as it is
    return model, processor


def _replace_folder(new: Path, target: Path) -> None:
    old = None
    if target.exists():
        old = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
        os.replace(target, old)
    os.replace(new, target)
    if old is not None:
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("vlm-par-hf", "torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# Images


def pick_images(
    source: str,
    root: str | Path | None = None,
    *,
    num_calibration: int = NUM_CALIBRATION,
    num_compared: int = NUM_COMPARED,
    seed: int = 0,
    **options: Any,
) -> tuple[Sequence, Sequence, str]:
    """Images for `export_model`: to calibrate with, to compare on (no image is in both), and what they are.

    Args:
        source: a folder of images, or a data set that `load_par_dataset` knows: its training images calibrate, its
            validation images are compared.
        root: of the data set.
        num_calibration, num_compared: how many of each, at most; a small folder is halved.
        seed: of the choice.
        options: more keywords of `load_par_dataset`.

    Raises:
        ValueError: the folder holds fewer than two images.
        OSError, ValueError: as `load_par_dataset`.
    """
    generator = np.random.default_rng(seed)
    if root is None and Path(source).is_dir():
        files = sorted(path for path in Path(source).rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
        if len(files) < 2:
            raise ValueError(f"the folder {source!r} holds {len(files)} images, expected at least 2")
        files = [files[index] for index in generator.permutation(len(files))]
        half = min(num_calibration, len(files) // 2)
        return files[:half], files[half : half + num_compared], f"the folder {Path(source).name}"
    from vlm_par_hf.data import load_par_dataset

    data = load_par_dataset(source, root, **options)

    def pick(split: str, number: int) -> Sequence:
        chosen = generator.permutation(len(data[split]))[:number]
        return data[split].select(sorted(chosen.tolist()))["image"]

    train = pick("train", num_calibration)
    return train, pick("validation", num_compared), f"{source}: train calibrates, validation is compared"


def _drawings(number: int) -> list:
    from vlm_par_hf.data.synthetic import Frame, SyntheticPerson, render_person

    # A population of its own: nobody whom a synthetic training set holds by default.
    people = [SyntheticPerson.sample(2**31, index) for index in range(number)]
    return [render_person(person, Frame.sample(person, 0)) for person in people]


def _inputs(processor: Any, images: Sequence, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    for start in range(0, len(images), batch_size):
        chosen = [open_image(images[index]) for index in range(start, min(start + batch_size, len(images)))]
        yield dict(processor(images=chosen, return_tensors="pt"))


# Parity check: what was exported beside what it came from


def _compare(model: PreTrainedModel, exported: PreTrainedModel, processor: Any, images: Sequence) -> dict[str, Any]:
    """Both on the same pixels."""
    schema = model.config.schema
    mask = torch.from_numpy(schema.label_mask())
    largest = difference = 0.0
    changed = torch.zeros(len(schema), dtype=torch.int64)
    batches = _inputs(processor, images, _BATCH)
    bar = tqdm(batches, total=-(-len(images) // _BATCH), desc="compare", leave=False)
    for inputs, outputs in predict_batches(model, ((one, one) for one in bar)):
        wanted, found = outputs["logits"], predict_batch(exported, inputs)["logits"]
        largest = max(largest, float(wanted[:, mask].abs().max()))
        difference = max(difference, float((wanted - found)[:, mask].abs().max()))
        answers = (decide(label_probabilities(logits, schema), schema) for logits in (wanted, found))
        changed += torch.ne(*answers).sum(0)
    decisions = len(images) * len(schema)
    return {
        "max_abs_logit": largest,
        "max_abs_difference": difference,
        "decisions": decisions,
        "changed_decisions": int(changed.sum()),
        "unchanged_share": 1 - int(changed.sum()) / decisions,
        "changed_by_attribute": {name: int(number) for name, number in zip(schema.names, changed) if number},
    }


# The graph


class _AnyGrid(nn.Module):
    """NaFlex embeddings for images of any patch grid in one batch, without a loop over images.

    Resizing with antialias is linear and separable: the position embedding of row y and column x is
    `sum_ij R_h[y, i] R_w[x, j] P[i, j]` for an image of h rows and w columns. `matrices` holds `R_n` for every n.
    """

    def __init__(self, embeddings: NaflexEmbeddings, num_patches: int) -> None:
        super().__init__()
        side = len(embeddings.positions)
        self.num_patches = num_patches
        self.patch_embedding = embeddings.patch_embedding
        self.positions = nn.Parameter(embeddings.positions.flatten(0, 1).clone())  # (side**2, D)
        matrices = torch.zeros(num_patches + 1, num_patches, side)
        unit = torch.eye(side)[None, None]
        for size in range(1, num_patches + 1):
            matrices[size, :size] = F.interpolate(unit, (size, side), mode="bilinear", antialias=True)[0, 0]
        self.register_buffer("matrices", matrices.flatten(0, 1))

    def forward(self, pixel_values: torch.Tensor, spatial_shapes: torch.Tensor) -> torch.Tensor:
        patch = torch.arange(self.num_patches)[None]
        rows, columns = spatial_shapes[:, :1], spatial_shapes[:, 1:]
        vertical = self.matrices[rows * self.num_patches + patch // columns]  # (B, N, side)
        horizontal = self.matrices[columns * self.num_patches + patch % columns]
        weight = (vertical[..., None] * horizontal[:, :, None]).flatten(2)
        return self.patch_embedding(pixel_values) + weight @ self.positions


class _FixedGrid(nn.Module):
    """NaFlex embeddings for images that all have the same patch grid: the position embedding is a constant."""

    def __init__(self, embeddings: NaflexEmbeddings, patch_grid: tuple[int, int]) -> None:
        super().__init__()
        self.patch_embedding = embeddings.patch_embedding
        self.register_buffer("positions", embeddings.resized_positions(*patch_grid))

    def forward(self, pixel_values: torch.Tensor, spatial_shapes: torch.Tensor) -> torch.Tensor:
        return self.patch_embedding(pixel_values) + self.positions


class _Graph(nn.Module):
    """The computation that is exported."""

    def __init__(self, model: PreTrainedModel, num_patches: int | None, patch_grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).float()
        # Exported, torch's fused attention brings a guard against images without patches, a tenth of the work in int8.
        self.model.set_attn_implementation("eager")
        self.has_fixed_grid = patch_grid is not None
        for parent in list(self.model.modules()):
            for name, module in list(parent.named_children()):
                parts = naflex_embeddings(module)
                if parts is not None:
                    new = _FixedGrid(parts, patch_grid) if self.has_fixed_grid else _AnyGrid(parts, num_patches)
                    setattr(parent, name, new)
        self.eval()

    def forward(self, pixel_values, pixel_attention_mask=None, spatial_shapes=None) -> tuple[torch.Tensor, ...]:
        inputs = {}
        if spatial_shapes is not None:
            inputs = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        elif self.has_fixed_grid:
            # Not read, but the model asks for it.
            inputs = {"spatial_shapes": pixel_values.new_zeros(pixel_values.shape[0], 2, dtype=torch.int64)}
        outputs = self.model(pixel_values, **inputs)
        return tuple(one for one in (outputs.logits, outputs.image_embeds) if one is not None)


def _is_naflex(model: PreTrainedModel) -> bool:
    return any(naflex_embeddings(module) is not None for module in model.modules())


def _write_runtime_files(
    folded, processor, folder, to, precision, patch_grid, calibration_images
) -> ExportedParConfig:
    probe = next(_inputs(processor, _drawings(2), 2))
    num_patches = probe["pixel_values"].shape[1] if _is_naflex(folded) else None
    graph = _Graph(folded, num_patches, patch_grid)
    if patch_grid is not None:
        probe = {"pixel_values": probe["pixel_values"]}
    with torch.no_grad():
        output_names = ["logits", "image_embeds"][: len(graph(**probe))]
    onnx_file = folder / MAIN_FILE["onnx"]
    kept = _write_onnx(graph, probe, output_names, onnx_file)
    config = ExportedParConfig(
        attributes=folded.config.schema.to_list(),
        format=to,
        precision=precision,
        input_shapes={name: [None, *value.shape[1:]] for name, value in probe.items()},
        patch_grid=None if patch_grid is None else list(patch_grid),
        source_model_type=folded.config.model_type,
    )
    if to == "onnx":
        if precision == "int8":
            _quantize_onnx(onnx_file, kept)
        _describe_onnx(onnx_file, config)
    else:
        batches = None
        if precision == "int8":
            batches = [
                {name: inputs[name].numpy() for name in probe} for inputs in _inputs(processor, calibration_images, 1)
            ]
        _write_openvino(onnx_file, folder / MAIN_FILE["openvino"], batches, kept)
        for path in folder.glob(f"{onnx_file.name}*"):
            path.unlink()
    config.files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    _save_config(config, folder)
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of what does not concern the result: operators of torchvision, names of axes, shapes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _write_onnx(graph: _Graph, probe: dict[str, torch.Tensor], output_names: list[str], path: Path) -> list[str]:
    """Returns the names of the nodes that int8 leaves alone."""
    batch = torch.export.Dim("batch", min=1, max=2**16)
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            graph, (), probe, dynamic_shapes={name: {0: batch} for name in probe}, strict=False
        )
        program = torch.onnx.export(
            program, (), kwargs=probe, input_names=list(probe), output_names=output_names, dynamo=True, verbose=False
        )
    kept = []
    for node in program.model.graph.all_nodes():
        has_weights = any(value is not None and value.const_value is not None for value in node.inputs)
        if not has_weights or QUANTIZED not in node.metadata_props.get("pkg.torch.onnx.name_scopes", ""):
            kept.append(node.name)
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    program.model.graph.metadata_props.clear()
    program.save(path)
    return kept


def _quantize_onnx(path: Path, kept: list[str]) -> None:
    import onnx

    quantization = require("onnxruntime.quantization", "export")
    model = onnx.load(path)
    del model.graph.value_info[:]  # shapes that the exporter inferred and the quantizer's own inference contradicts
    weights = path.with_name(f"{path.name}.data")
    with _quiet():
        quantization.quantize_dynamic(
            model,
            path,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            # The quantizer first turns each Gemm into a product of that name.
            nodes_to_exclude=[*kept, *(f"{name}_MatMul" for name in kept)],
            use_external_data_format=weights.exists(),
        )


def _describe_onnx(path: Path, config: ExportedParConfig) -> None:
    """The label space inside the file, for programs that read nothing else."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    described = {"attributes": config.attributes, "patch_grid": config.patch_grid, "precision": config.precision}
    onnx.helper.set_model_props(model, {"vlm_par_hf": json.dumps(described)})
    path.write_bytes(model.SerializeToString())


def _write_openvino(source: Path, target: Path, batches: list[dict[str, np.ndarray]] | None, kept: list[str]) -> None:
    openvino = _require_silent("openvino")
    model = openvino.Core().read_model(source)  # `convert_model` would report that it was called
    if batches is not None:
        nncf = _require_silent("nncf")
        # It lists every operation that it leaves alone. `nncf.set_log_level` would change handlers of others too.
        logging.getLogger("nncf").setLevel(logging.ERROR)
        names = {operation.get_friendly_name() for operation in model.get_ops()}
        model = nncf.quantize(
            model,
            nncf.Dataset(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=sorted(names & set(kept)), validate=False),
        )
    openvino.save_model(model, target, compress_to_fp16=False)


def _require_silent(package: str) -> ModuleType:
    """openvino or nncf without `openvino_telemetry`, with which the mere import reports to Intel."""
    missing = object()
    there = sys.modules.get("openvino_telemetry", missing)
    sys.modules["openvino_telemetry"] = None
    try:
        return require(package, "export")
    finally:
        if there is missing:
            del sys.modules["openvino_telemetry"]
        else:
            sys.modules["openvino_telemetry"] = there
