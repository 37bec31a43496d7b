"""Where numbers come from: data, versions and checkpoints as records of training and evaluation name them."""

import hashlib
import json
import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from vlm_par_hf.data import dataset_schema, load_par_dataset
from vlm_par_hf.data.carried import read_labels
from vlm_par_hf.labels.schema import AttributeSchema


__all__ = ["DataFacts", "check_same_division", "check_schema", "load_data", "naming", "versions"]

logger = logging.getLogger(__name__)

# Options of `load_par_dataset` that decide who is in which split, with their defaults (None: the reader's own).
_DIVIDING_OPTIONS = {
    "partition": 0,
    "seed": 0,
    "num_train": None,
    "num_validation": None,
    "pictures_per_person": None,
}


def versions() -> dict[str, str]:
    """Versions of everything that a number depends on."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("vlm-par-hf")
    except PackageNotFoundError:
        own = "unknown"
    return {
        "vlm_par_hf": own,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


@contextmanager
def naming(argument: str, value: str) -> Iterator[None]:
    """Put the argument and its value in front of a loading error: offline, the Hub's own message names neither."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{argument}={value!r} could not be loaded: {error}") from error


@dataclass(frozen=True)
class DataFacts:
    """What a record says of one split, read once.

    Attributes:
        split: the split.
        schema: its label space.
        name: what the data are called.
        options: those that divided them.
        notes: what the data say of themselves (`skipped_images`, `division`, ...).
    """

    split: Any
    schema: AttributeSchema
    name: str
    options: dict[str, Any]
    notes: dict[str, Any]

    @classmethod
    def read(
        cls, dataset: Any, split: Any, *, name: str | None = None, options: dict[str, Any] | None = None
    ) -> "DataFacts":
        """The facts of a split.

        Args:
            dataset: as for `load_data`.
            split: one of its splits, loaded.
            name, options: as given by the caller; they win over what the data say of themselves.

        Raises:
            ValueError: the split carries no schema.
        """
        try:
            notes = json.loads(split.info.description)
        except (AttributeError, TypeError, ValueError):
            notes = {}
        notes = notes if isinstance(notes, dict) else {}
        own = notes.get("name") or (dataset if isinstance(dataset, str) else "in memory")
        divided = {**(notes.get("options") or {}), **(options or {})}
        return cls(split, dataset_schema(split), name or own, divided, notes)

    @cached_property
    def labels(self) -> np.ndarray | None:
        """int64 `(S, A)`, -100 unknown; None: the split has none. No image is decoded."""
        return read_labels(self.split)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what identifies the data of a run: labels and, where known, image names, in order."""
        digest = hashlib.sha256(self.labels.tobytes())
        if "image_id" in self.split.column_names:
            digest.update("\n".join(map(str, self.split["image_id"])).encode())
        return digest.hexdigest()


def check_schema(dataset: AttributeSchema, model: AttributeSchema) -> None:
    """Refuse to train or measure a model on labels that mean something else.

    Names, order and labels decide what a class index means. Another wording of a question or a calibrated threshold
    does not change the labels: that is logged, not refused.

    Raises:
        ValueError: the label spaces differ; the message lists every difference.
    """
    differences = model.diff(dataset)
    if not differences:
        return
    listed = "\n  ".join(differences)
    if [(a.name, a.labels) for a in dataset] != [(a.name, a.labels) for a in model]:
        raise ValueError(
            f"the data set's schema differs from the checkpoint's ({len(dataset)} and {len(model)} attributes):\n  "
            f"{listed}"
        )
    logger.warning("same labels, but the data set's schema words them differently; the checkpoint's holds: %s", listed)


def check_same_division(checkpoint: str, name: str, options: dict[str, Any]) -> None:
    """Refuse to measure where training images may have moved into the split that is measured.

    A data set that is drawn or divided at random has other people in its test split under other options. The record of
    the run (`run.json` in the checkpoint folder) says what the model was trained with.

    Raises:
        ValueError: the same data set, divided in another way.
    """
    try:
        trained = json.loads((Path(checkpoint) / "run.json").read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError):
        return
    if trained.get("name") != name:
        return
    then, now = (
        {key: given.get(key, default) for key, default in _DIVIDING_OPTIONS.items()}
        for given in (trained.get("options", {}), options)
    )
    if name == "synthetic" and then["seed"] != now["seed"]:
        return  # another population: nobody in common
    differences = [f"{key}: {then[key]!r} in training, {now[key]!r} now" for key in then if then[key] != now[key]]
    if differences:
        raise ValueError(
            f"{name!r} is divided differently from what {checkpoint} was trained on ({'; '.join(differences)}): "
            "images that it was trained on could be in the split that is measured; pass the same options"
        )


def load_data(dataset, *, root=None, schema=None, options: dict[str, Any] | None = None):
    """A `DatasetDict` from a registered name, or the given one as it is.

    Raises:
        TypeError: `dataset` is neither a name nor a mapping of splits.
    """
    if isinstance(dataset, str):
        return load_par_dataset(dataset, root, schema=schema, **(options or {}))
    if not hasattr(dataset, "keys"):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}: expected the name of a data set or a DatasetDict of its splits"
        )
    return dataset
