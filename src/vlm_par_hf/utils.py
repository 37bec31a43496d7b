"""Small helpers that every floor may use: embedded files, optional packages, atomic writes. No torch here."""

import importlib
import json
import math
import os
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any


__all__ = ["atomic_write_json", "atomic_write_text", "embedded_path", "require"]

EMBEDDED_KINDS = ("backbone", "heads")


def embedded_path(kind: str) -> Path:
    """Folder of a checkpoint that ships inside the package.

    Args:
        kind: `"backbone"` (SigLIP 2 backbone, tokenizer and processor) or `"heads"` (VLM-PAR heads trained on it).

    Raises:
        ValueError: `kind` is something else.
    """
    if kind not in EMBEDDED_KINDS:
        raise ValueError(f"kind must be one of {EMBEDDED_KINDS}, got {kind!r}")
    return Path(__file__).parent / "embedded" / kind


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional package where it is used.

    Args:
        module: dotted name, `"datasets"` or `"scipy.io"`.
        extra: the extra of this package that installs it, `"train"` or `"demo"`.

    Raises:
        ImportError: it is not installed; the message holds the command that installs it. An error from inside an
            installed package passes through unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ImportError(
            f'{package} is needed here and is not installed: pip install "vlm-par-hf[{extra}]"', name=package
        ) from error


def atomic_write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text so that a reader, or a crash, never meets half a file. The folder is made when missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because os.replace is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write_json(path: str | Path, data: Any) -> None:
    """Writes standard JSON (indent 2, UTF-8, a final newline) with `atomic_write_text`.

    Numpy scalars and arrays and anything else with `tolist()` become numbers and lists, tuples become lists, paths
    become text. Not-a-number and infinity become null: the JSON standard has neither, and other programs refuse them.

    Raises:
        TypeError: something in `data` has no JSON form.
    """
    text = json.dumps(_to_plain(data), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write_text(path, text + "\n")


def _to_plain(data: Any) -> Any:
    if hasattr(data, "tolist"):
        data = data.tolist()
    if isinstance(data, dict):
        return {key: _to_plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_to_plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return str(data) if isinstance(data, Path) else data
