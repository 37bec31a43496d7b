"""The backbone that a checkpoint of heads alone refers to: where it is, whether it is the same, what is missing."""

import hashlib
import json
import logging
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from vlm_par_hf.utils import embedded_path

from .configuration_vlm_par import VlmParConfig


__all__ = ["backbone_source", "check_keys", "collect_load_report", "hash_weights"]


def backbone_source(config: VlmParConfig) -> str:
    """The folder or repository that `config.backbone_name` stands for."""
    return str(embedded_path("backbone")) if config.backbone_name == "embedded" else config.backbone_name


def check_keys(name: Any, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuses the checkpoint `name` where tensors are missing or unknown.

    Raises:
        ValueError: names the first ones.
    """
    for problem, keys in (("lacks", sorted(missing)), ("has unknown", sorted(unexpected))):
        if keys:
            shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
            raise ValueError(f"{name}: model.safetensors {problem} {len(keys)} tensors for its config.json: {shown}")


def hash_weights(source: str, revision: str | None = None, **access: Any) -> str:
    """sha256 over the tensors of a safetensors checkpoint: names, dtypes, shapes and bytes, in the order of the names,
    whatever the number of files and the dtype that a model would load them in.

    Args:
        source: folder or repository.
        revision: of the repository.
        access: how to reach it, as in `from_pretrained` (`token`, `cache_dir`, `local_files_only`, ...).

    Raises:
        ValueError: there are no safetensors weights.
    """
    options = {**access, "revision": revision, "_raise_exceptions_for_missing_entries": False}
    names = ["model.safetensors"]
    index = cached_file(source, "model.safetensors.index.json", **options)
    # In the order in which transformers looks: one file first, then shards.
    if index is not None and cached_file(source, names[0], **options) is None:
        names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    tensors = []
    for name in names:
        path = cached_file(source, name, **options)
        if path is None:
            raise ValueError(
                f"backbone {source!r} has no {name}; heads can be saved alone only over safetensors weights"
            )
        with open(path, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        tensors += [(key, path, 8 + size, entry) for key, entry in header.items()]
    digest = hashlib.sha256()
    for key, path, offset, entry in sorted(tensors, key=lambda tensor: tensor[0]):
        digest.update(json.dumps([key, entry["dtype"], entry["shape"]]).encode())
        start, end = entry["data_offsets"]
        with open(path, "rb") as file:
            file.seek(offset + start)
            remaining = end - start
            while remaining:
                chunk = file.read(min(remaining, 1 << 24))
                if not chunk:
                    raise ValueError(f"{path} is truncated: tensor {key!r} ends early")
                digest.update(chunk)
                remaining -= len(chunk)
    return digest.hexdigest()


@contextmanager
def collect_load_report() -> Iterator[list[str]]:
    """Collects transformers' load report, in place of printing that our heads are not in a backbone's checkpoint."""
    messages: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.getMessage()
        if is_report:
            messages.append(record.getMessage())
        return not is_report

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(keep)
    try:
        yield messages
    finally:
        logger.removeFilter(keep)
