"""Files of weights: which ones a checkpoint has, what their headers say, and a hash of the tensors in them."""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from vlm_par_hf.errors import ParValueError


__all__ = ["check_dtypes", "find_weights", "hash_weights"]

LARGEST_HEADER = 100_000_000  # bytes; the limit of the format
_FLOATING = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}


def find_weights(source: str | Path, *, variant: str | None = None, **access: Any) -> list[Path]:
    """The safetensors files of a folder or repository: one file, or the shards that its index names.

    Args:
        source: folder or repository.
        variant: as in `from_pretrained`, `"fp16"` for `model.fp16.safetensors`.
        access: how to reach it, as in `from_pretrained` (`revision`, `subfolder`, `token`, `cache_dir`, ...).

    Raises:
        ValueError: the index is damaged, or names something that is no file beside it.
        OSError: there is no such file.
    """
    stem = "model" if variant is None else f"model.{variant}"
    single = "model.safetensors" if variant is None else f"model.{variant}.safetensors"
    index_name = "model.safetensors.index.json" if variant is None else f"model.safetensors.index.{variant}.json"
    optional = {**access, "_raise_exceptions_for_missing_entries": False}
    # As transformers does: prefer one single file over shards.
    index = None
    if cached_file(source, single, **optional) is None:
        index = cached_file(source, index_name, **optional)
    if index is None:
        return [Path(cached_file(source, single, **access))]
    try:
        shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({name for name in shards if Path(name).name == name and name.startswith(stem)})
        if not names or len(names) < len(set(shards)):
            raise ValueError("a shard is no file beside it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ParValueError(f"{index} is damaged, expected the index of safetensors files: {error}") from error
    return [Path(cached_file(source, name, **access)) for name in names]


def read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The entry of each tensor of a safetensors file (`dtype`, `shape`, `data_offsets`), and where the data begin.

    Raises:
        ValueError: the file is damaged.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(LARGEST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for key, entry in header.items():
            start, end = entry["data_offsets"]
            if not 0 <= start <= end <= size - 8 - length or not isinstance(entry["dtype"], str):
                raise ValueError(f"tensor {key!r:.100} is truncated: it ends after the file")
            list(entry["shape"])
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ParValueError(
            f"{path}: a file of weights is damaged ({error}); downloaded or copied in part?"
        ) from error
    return header, 8 + length


def check_dtypes(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Refuses tensors of another kind than the model's: loading would convert whole numbers to floating point.

    Args:
        path: a safetensors file.
        state: the tensors of the model, by name; names that it lacks are not looked at.

    Raises:
        ValueError: names the tensor and both dtypes, or the file is damaged.
    """
    header, _ = read_header(path)
    for name, entry in header.items():
        own = state.get(name)
        if own is not None and own.is_floating_point() != (entry["dtype"] in _FLOATING):
            raise ParValueError(f"{path}: tensor {name!r} has dtype {entry['dtype']}, expected one like {own.dtype}")


def hash_weights(source: str, revision: str | None = None, **access: Any) -> str:
    """sha256 over the tensors of a safetensors checkpoint: names, dtypes, shapes and bytes, in the order of the names.

    The hash does not depend on how the tensors are divided into files, nor on the dtype that a model loads them in.

    Args:
        source: folder or repository.
        revision: of the repository.
        access: how to reach it, as in `from_pretrained` (`token`, `cache_dir`, `local_files_only`, ...).

    Raises:
        ValueError: there are no safetensors weights, or a file is damaged.
    """
    try:
        paths = find_weights(source, revision=revision, **access)
    except OSError as error:
        raise ParValueError(
            f"backbone {source!r} has no model.safetensors; heads can be saved alone only over safetensors weights"
        ) from error
    tensors = []
    for path in paths:
        header, offset = read_header(path)
        tensors += [(key, path, offset, entry) for key, entry in header.items()]
    digest = hashlib.sha256()
    for key, path, offset, entry in sorted(tensors, key=lambda tensor: tensor[0]):
        digest.update(json.dumps([key, entry["dtype"], entry["shape"]]).encode())
        start, end = entry["data_offsets"]
        with path.open("rb") as file:
            file.seek(offset + start)
            remaining = end - start
            while remaining:
                chunk = file.read(min(remaining, 1 << 24))
                digest.update(chunk)
                remaining -= len(chunk)
    return digest.hexdigest()
