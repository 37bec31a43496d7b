"""`ExportedParModel`: the model class that answers from an exported file, with ONNX Runtime or OpenVINO."""

import functools
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import cached_file, can_return_tuple

from vlm_par_hf.base.configuration import LabelSpaceConfig
from vlm_par_hf.base.modeling import HUB_KEYS, ParPreTrainedModel
from vlm_par_hf.base.outputs import ParOutput
from vlm_par_hf.errors import ParRuntimeError, ParValueError
from vlm_par_hf.hub.remote_code import write_remote_code
from vlm_par_hf.output_folders import sha256_of_file
from vlm_par_hf.utils import require


__all__ = [
    "DESCRIPTION",
    "FORMATS",
    "MAIN_FILE",
    "PARITY_FILE",
    "ExportedParConfig",
    "ExportedParModel",
    "openvino_core",
    "require_silent",
    "save_config",
]

FORMATS = {"folded": ("float32", "bfloat16"), "onnx": ("float32", "int8"), "openvino": ("float32", "bfloat16", "int8")}
MAIN_FILE = {"onnx": "model.onnx", "openvino": "model.xml"}
_NEEDED = {"onnx": ("model.onnx",), "openvino": ("model.xml", "model.bin")}
PARITY_FILE = "parity.json"
DESCRIPTION = "vlm_par_hf"  # under this name a file says what it was exported from
_DTYPES = {"pixel_values": torch.float32, "pixel_attention_mask": torch.int32, "spatial_shapes": torch.int64}


@strict
class ExportedParConfig(LabelSpaceConfig, PreTrainedConfig):
    """Configuration of `ExportedParModel`, written by `export_model`.

    Args:
        attributes: the label space, as in every model of this package; `config.schema` is the object.
        decisions: as in every model of this package. The file holds a copy, see `export_model`.
        format: `"onnx"` or `"openvino"`.
        precision: what it computes in: `"float32"`, `"bfloat16"` or `"int8"` (the rest of it in float32 for ONNX
            Runtime, in bfloat16 for OpenVINO). A CPU without bfloat16 computes in float32 instead.
        files: sha256 of each file of the model.
        input_shapes: per input its shape, None for the number of images.
        patch_grid: rows and columns of patches if they are fixed, else None.
        source_model_type: `model_type` of the model that was exported.

    Raises:
        ValueError: unknown `format` or `precision`.
    """

    model_type = "par_exported"
    keys_to_ignore_at_inference = ["image_embeds"]

    attributes: Any = None
    decisions: Any = None
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
            raise ParValueError(f"format must be one of {tuple(MAIN_FILE)}, got {self.format!r}")
        if self.precision not in FORMATS[self.format]:
            raise ParValueError(f"precision must be one of {FORMATS[self.format]}, got {self.precision!r}")


class ExportedParModel(ParPreTrainedModel):
    """Answers from an exported file, with the interface of the exported model; made by `from_pretrained`.

    It runs on the CPU, with as many threads as torch has when it is loaded (`torch.set_num_threads`), whatever device
    it is sent to. It has no parameters, computes no loss and cannot explain its answers.
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
    def why_no_texts(self) -> str:
        return (
            "an exported model has no text tower, so it cannot read others in words: ask the model that was exported"
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of inputs and outputs."""
        return torch.float32

    def train(self, mode: bool = True) -> "ExportedParModel":
        """Does nothing for `mode` False: the model is always in evaluation mode.

        Raises:
            RuntimeError: `mode` is True.
        """
        if mode:
            raise ParRuntimeError("an exported model is for answers only and cannot be trained: train the checkpoint")
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
            kwargs: `labels`, `output_hidden_states` and `output_attentions` raise an error; others are ignored.

        Returns:
            `ParOutput` with `logits` float32 `(B, A, C)` and, if the model has them, `image_embeds` `(B, D)`.

        Raises:
            ValueError: an input is missing or has another shape than the file takes, or the images have another patch
                grid than the fixed one.
        """
        if self._run is None:
            raise ParValueError("this model has no file to run: load it with ExportedParModel.from_pretrained(folder)")
        if kwargs.get("labels") is not None:
            raise ParValueError("labels were given, but an exported model computes no loss")
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name):
                raise ParValueError(f"{name} is True, but an exported model holds the logits only: ask the original")
        given = {
            "pixel_values": pixel_values,
            "pixel_attention_mask": pixel_attention_mask,
            "spatial_shapes": spatial_shapes,
        }
        grid = self.config.patch_grid
        if grid is not None and spatial_shapes is not None:
            wrong = (spatial_shapes.cpu() != torch.tensor(grid)).any(1).nonzero().flatten().tolist()
            if wrong:
                found = tuple(spatial_shapes[wrong[0]].tolist())
                raise ParValueError(
                    f"spatial_shapes: image {wrong[0]} has {found} patches, expected {tuple(grid)}, the grid that was "
                    "exported: use the processor saved beside the file"
                )
        arrays = {}
        for name, shape in self.config.input_shapes.items():
            value = given[name]
            found = None if value is None else tuple(value.shape)
            if found is None or len(found) != len(shape) or found[1:] != tuple(shape[1:]):
                wanted = ", ".join("B" if size is None else str(size) for size in shape)
                raise ParValueError(
                    f"{name} has shape {found}, expected ({wanted}) for {MAIN_FILE[self.config.format]}"
                )
            arrays[name] = value.detach().to("cpu", _DTYPES[name]).numpy()
        logits, image_embeds = self._run(arrays)
        return ParOutput(
            logits=self._calibrated(torch.from_numpy(logits)),
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
            config: an `ExportedParConfig` in place of the saved one; it may differ in what is done with the answers.
            num_threads: threads of the runtime; None: as many as torch has now.
            dtype: None, `"auto"` or float32, the dtype of inputs and outputs; the precision was chosen at export.
            kwargs: `revision`, `token`, ... as for every model; those about torch weights are ignored.

        Raises:
            ValueError: another `dtype`, or a file that is not the one that was exported.
            OSError: the folder, or a file in it, does not exist.
            ImportError: the runtime is not installed.
        """
        name = pretrained_model_name_or_path
        if dtype not in (None, "auto", "float32", torch.float32):
            raise ParValueError(
                f"dtype is {dtype}, but the precision of an exported model was chosen when it was exported"
            )
        hub = {key: kwargs[key] for key in HUB_KEYS if kwargs.get(key) is not None}
        saved = cls._read_saved_config(name, hub)
        if isinstance(config, (str, Path)):
            config = ExportedParConfig.from_pretrained(config, **hub)
        config, wanted = cls._settle_config(name, saved, config, kwargs)
        _check_files(name, config)
        paths = {file: _find_file(name, file, digest, hub) for file, digest in config.files.items()}
        path = paths[MAIN_FILE[config.format]]
        model = cls(config)
        model.config.name_or_path = model.name_or_path = str(name)
        model._folder = path.parent
        threads = torch.get_num_threads() if num_threads is None else num_threads
        open_file = _open_onnx if config.format == "onnx" else _open_openvino
        model._run, opened = open_file(path, config.precision, threads)
        _check_description(path, config, opened)
        if wanted is not None:
            model._exchange_attributes(wanted, None)
        return model

    def _save_files(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Copies the files, `parity.json` too.

        Raises:
            ValueError: the model was not loaded from a file.
        """
        if self._folder is None:
            raise ParValueError(
                "this model has no file to save: load it with ExportedParModel.from_pretrained(folder)"
            )
        _check_files(self.name_or_path, self.config)
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        for file in (*self.config.files, PARITY_FILE):
            source = self._folder / file
            if source.exists() and source.resolve() != (target / file).resolve():
                _check_place(source)
                shutil.copyfile(source, target / file)
        save_config(self.config, target)


def save_config(config: ExportedParConfig, folder: Path) -> None:
    """Writes `config.json`, and the files through which transformers finds the classes of this package."""
    config.architectures = ["ExportedParModel"]
    config.auto_map = write_remote_code(
        folder, config.model_type, AutoConfig="ExportedParConfig", AutoModel="ExportedParModel"
    )
    config.save_pretrained(folder)


def _check_files(name: str | Path, config: ExportedParConfig) -> None:
    """`files` comes from a folder of somebody else, and its names become paths: only plain names are taken.

    Raises:
        ValueError: it holds anything but file names with a sha256 each, or lacks a file of the format.
    """
    files = config.files
    if not isinstance(files, dict) or not files or not isinstance(config.input_shapes, dict):
        raise ParValueError(f"{name}: config.json names no files, expected what export_model wrote")
    for file, digest in files.items():
        plain = isinstance(file, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", file)
        if not plain or not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ParValueError(
                f"{name}: files of config.json holds {file!r:.100}: {digest!r:.100}, expected names of files beside "
                "it, each with its sha256"
            )
    missing = [file for file in _NEEDED[config.format] if file not in files]
    if missing:
        raise ParValueError(
            f"{name}: files of config.json lacks {missing[0]!r}, which {config.format!r} needs: export again"
        )


def _find_file(name: str | Path, file: str, digest: str, hub: dict[str, Any]) -> Path:
    path = Path(cached_file(str(name), file, **hub))
    _check_place(path)
    found = sha256_of_file(path)
    if found != digest:
        raise ParValueError(
            f"{path} is not the file that was exported: its sha256 is {found}, config.json has {digest}; copy it "
            "again, or export again"
        )
    return path


def _check_place(path: Path) -> None:
    """Only a regular file of the folder itself; in the cache of the Hub a link to the blobs of its repository."""
    resolved, folder = path.resolve(), path.parent.resolve()
    in_cache = folder.parent.name == "snapshots" and resolved.parent == folder.parent.parent / "blobs"
    if not resolved.is_file() or not (resolved.parent == folder or in_cache):
        raise ParValueError(f"{str(path)!r} is a link to {str(resolved)!r}: expected a file of the folder itself")


def _check_description(path: Path, config: ExportedParConfig, opened: "_Opened") -> None:
    """Whether `config.json`, which is text that anybody can change, still describes the file beside it.

    Raises:
        ValueError: inputs, labels, patch grid or precision are not those of the file.
    """
    wanted = {name: [None, *shape[1:]] for name, shape in opened.input_shapes.items()}
    if config.input_shapes != wanted:
        raise ParValueError(
            f"{path}: input_shapes of config.json is {config.input_shapes!r:.200}, and the file takes {wanted!r:.200}"
        )
    schema = config.schema
    shape = [len(schema), max(attribute.num_labels for attribute in schema)]
    if opened.output_shape[1:] != shape:
        raise ParValueError(
            f"{path}: config.json has {shape[0]} attributes of at most {shape[1]} labels, and the file answers "
            f"{opened.output_shape[1:]}"
        )
    if not opened.description:
        return
    described = json.loads(opened.description)
    found = {"patch_grid": config.patch_grid, "precision": config.precision, "labels": _labels(schema.to_list())}
    expected = {**{name: described[name] for name in ("patch_grid", "precision")}, "labels": None}
    expected["labels"] = _labels(described["attributes"])
    for name, value in expected.items():
        if found[name] != value:
            raise ParValueError(
                f"{path}: {name} of config.json is {found[name]!r:.300}, and the file was exported with {value!r:.300}"
            )


def _labels(attributes: list[dict[str, Any]]) -> list[list[Any]]:
    """What must not change: names and labels in their order. Thresholds may be fitted anew."""
    return [[attribute["name"], list(attribute.get("labels", ("no", "yes")))] for attribute in attributes]


@dataclass
class _Opened:
    """What a file itself says; None is a size that may vary."""

    input_shapes: dict[str, list[int | None]]
    output_shape: list[int | None]
    description: str | None


def _open_onnx(path: Path, precision: str, threads: int):
    runtime = require("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        outputs = dict(zip(names, session.run(names, arrays)))
        return outputs["logits"], outputs.get("image_embeds")

    def shape(value: Any) -> list[int | None]:
        return [size if isinstance(size, int) else None for size in value.shape]

    return run, _Opened(
        {value.name: shape(value) for value in session.get_inputs()},
        next(shape(value) for value in session.get_outputs() if value.name == "logits"),
        session.get_modelmeta().custom_metadata_map.get(DESCRIPTION),
    )


def _open_openvino(path: Path, precision: str, threads: int):
    # By default OpenVINO computes in bfloat16 if the CPU can, whatever the file says. For int8 that is wanted: with
    # the other operations in float32 it would take a quarter more time.
    hint = "f32" if precision == "float32" else "bf16"
    model = openvino_core().read_model(str(path))
    compiled = openvino_core().compile_model(
        model,
        "CPU",
        {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"},
    )

    def run(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        results = compiled.create_infer_request().infer(arrays)
        # A tensor that OpenVINO has merged with another one has the names of both.
        outputs = {name: value for output, value in results.items() for name in output.get_names()}
        return outputs["logits"], outputs.get("image_embeds")

    def shape(value: Any) -> list[int | None]:
        return [size.get_length() if size.is_static else None for size in value.get_partial_shape()]

    described = model.get_rt_info([DESCRIPTION]).astype(str) if model.has_rt_info([DESCRIPTION]) else None
    return run, _Opened(
        {value.get_any_name(): shape(value) for value in model.inputs}, shape(model.output("logits")), described
    )


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's `Core`, one for the whole life of the process.

    The first model that a `Core` compiles installs an alternate signal stack in the thread that compiles. It is
    unmapped with the last model of that `Core`, and taken back only in the thread where that happens. So if the
    garbage collector dropped the model in another thread, the next signal (such as that of a child process that
    ended) would kill the process without a word.
    """
    return require_silent("openvino").Core()


def require_silent(package: str) -> ModuleType:
    """Imports openvino or nncf without `openvino_telemetry`, which reports the import to Intel."""
    missing = object()
    telemetry = sys.modules.get("openvino_telemetry", missing)
    sys.modules["openvino_telemetry"] = None
    try:
        return require(package, "export")
    finally:
        if telemetry is missing:
            del sys.modules["openvino_telemetry"]
        else:
            sys.modules["openvino_telemetry"] = telemetry
