"""Where numbers come from: the data, versions and checkpoints that records of training and evaluation name."""

import hashlib
import json
import logging
import platform
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from vlm_par_hf.data import dataset_schema, load_par_dataset, unite_datasets
from vlm_par_hf.data.carried import read_labels
from vlm_par_hf.data.loading import own_options
from vlm_par_hf.data.report import one_label_warning
from vlm_par_hf.data.union import SOURCE
from vlm_par_hf.errors import ParTypeError, ParValueError
from vlm_par_hf.hub.records import SYNTHETIC
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import shorten


__all__ = ["DataFacts", "check_same_division", "check_schema", "load_data", "name_roots", "versions"]

logger = logging.getLogger(__name__)

# Options of `load_par_dataset` that decide which image is in which split, with their defaults (None: the reader's).
_DIVIDING_OPTIONS = {
    "partition": 0,
    "seed": 0,
    "num_train": None,
    "num_validation": None,
    "pictures_per_person": None,
    "tracklet_length": None,
    "length": None,
}


def versions() -> dict[str, str]:
    """Versions of the software that a number depends on."""
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


@dataclass(frozen=True)
class DataFacts:
    """What a record says about one split, read once.

    Attributes:
        split: the split.
        schema: its label space.
        name: the name of the data set.
        options: options of `load_par_dataset`, which decide how it is divided.
        notes: what the data set carries beside its schema (`skipped_images`, `division`, ...).
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
            name, options: given by the caller; they take precedence over what the data set carries.

        Raises:
            ValueError: the split carries no schema.
        """
        try:
            notes = json.loads(split.info.description)
        except (AttributeError, TypeError, ValueError, RecursionError):
            notes = {}
        notes = notes if isinstance(notes, dict) else {}
        own_name = notes.get("name") or (dataset if isinstance(dataset, str) else "in memory")
        own_options = notes.get("options")
        all_options = {**(own_options if isinstance(own_options, dict) else {}), **(options or {})}
        return cls(split, dataset_schema(split), name or own_name, all_options, notes)

    @cached_property
    def labels(self) -> np.ndarray | None:
        """int64 `(S, A)`, -100 if unknown; None if the split has no labels. No image is decoded."""
        return read_labels(self.split)

    def warn_of_one_label(self, split: str) -> None:
        """Logs which attributes have one label only in this split, of that name."""
        if self.labels is not None:
            line = one_label_warning(self.name, split, self.labels, self.schema)
            if line:
                logger.warning("%s", line)

    @cached_property
    def sources(self) -> np.ndarray | None:
        """The data set of each picture, `(S,)`; None if all are of one."""
        if not self.notes.get("sources") or SOURCE not in self.split.column_names:
            return None
        names = np.array(self.split[SOURCE])
        return names if len(np.unique(names)) > 1 else None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the labels and, if the split has them, the image ids, in order."""
        digest = hashlib.sha256(self.labels.tobytes())
        if "image_id" in self.split.column_names:
            digest.update("\n".join(map(str, self.split["image_id"])).encode())
        return digest.hexdigest()


def check_schema(dataset: AttributeSchema, model: AttributeSchema) -> None:
    """Refuse to train or measure a model on labels with another meaning.

    Names, order and labels decide what a class index means. Another question does not change that, and is only logged;
    thresholds are not compared, because a checkpoint has fitted ones.

    Raises:
        ValueError: the label spaces differ; the message lists every difference.
    """
    dataset = AttributeSchema(
        replace(one, threshold=model[one.name].threshold) if one.name in model else one for one in dataset
    )
    differences = model.diff(dataset)
    if not differences:
        return
    listed = "\n  ".join(differences)
    if [(a.name, a.labels) for a in dataset] != [(a.name, a.labels) for a in model]:
        raise ParValueError(
            f"the data set's schema differs from the checkpoint's ({len(dataset)} and {len(model)} attributes):\n  "
            f"{listed}"
        )
    logger.warning("same labels, but the data set's schema words them differently; the checkpoint's holds: %s", listed)


def check_same_division(checkpoint: str, name: str, options: dict[str, Any]) -> None:
    """Refuse to measure on a split that may hold images on which the checkpoint was trained.

    With other options a data set that is drawn or divided at random has other images in its test split. The options of
    the training are in the record of the run (`run.json` in the checkpoint folder); without a record nothing is
    checked.

    Raises:
        ValueError: the same data set, divided differently.
    """
    try:
        trained = json.loads((Path(checkpoint) / "run.json").read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError):
        return
    trained_on, measured = (
        _options_of_each(one, given)
        for one, given in ((trained.get("name"), trained.get("options", {})), (name, options))
    )
    for one in trained_on.keys() & measured.keys():
        then, now = (
            {key: given.get(key, default) for key, default in _DIVIDING_OPTIONS.items()}
            for given in (trained_on[one], measured[one])
        )
        if one in SYNTHETIC and then["seed"] != now["seed"]:
            continue  # another seed draws other people, so nobody is in both
        differences = [f"{key}: {then[key]!r} in training, {now[key]!r} now" for key in then if then[key] != now[key]]
        if differences:
            raise ParValueError(
                f"{one!r} is divided differently from what {checkpoint} was trained on ({'; '.join(differences)}): "
                "images that it was trained on could be in the split that is measured; pass the same options"
            )


def _options_of_each(name: Any, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of a data set by its name, or of each of several ("a+b")."""
    names = str(name).split("+")
    return {name: options} if len(names) == 1 else {one: options.get(one) or {} for one in names}


def load_data(dataset, *, root=None, schema=None, options: dict[str, Any] | None = None):
    """A `DatasetDict` from a registered name, or the given one as it is.

    Args:
        dataset: a name; several with "+" between them ("pa100k+rendered", `unite_datasets`); or a `DatasetDict`.
        root: of several data sets a list with a folder for each, None or "-" for those that have none.
        schema: for one data set.
        options: of `load_par_dataset`; of several data sets each takes those that it has.

    Raises:
        TypeError: `dataset` is neither a name nor a mapping of splits; an option that none of the data sets has.
        ValueError: not one root for each data set; a schema for several.
    """
    if isinstance(dataset, str) and "+" in dataset:
        return _load_several(dataset, root, schema, dict(options or {}))
    if isinstance(root, (list, tuple)):
        if len(root) != 1:
            raise ParValueError(f"root holds {len(root)} folders, expected one for the data set {shorten(dataset)}")
        root = root[0]
    if isinstance(dataset, str):
        return load_par_dataset(dataset, root, schema=schema, **(options or {}))
    if not hasattr(dataset, "keys"):
        raise ParTypeError(
            f"dataset is a {type(dataset).__name__}: expected the name of a data set or a DatasetDict of its splits"
        )
    return dataset


def name_roots(root) -> dict[str, Any]:
    """The folders that `load_data` reads, by names for messages."""
    if isinstance(root, (list, tuple)):
        return {f"root {number}": one for number, one in enumerate(root, 1) if one not in (None, "-")}
    return {"root": root}


_COMMON_OPTIONS = ("partition", "missing", "seed", "follow_links")  # that every data set takes


def _load_several(dataset: str, root, schema, options: dict[str, Any]):
    names = [name.strip() for name in dataset.split("+")]
    if not all(names):
        raise ParValueError(
            f"dataset is {shorten(dataset)}, expected names with + between them, such as pa100k+rendered"
        )
    if schema is not None:
        raise ParValueError(
            f"schema was given for the {len(names)} data sets {dataset!r}: it is for one; each brings its own "
            "attributes, and a folder a schema.json"
        )
    roots = [None] * len(names) if root is None else list(root) if isinstance(root, (list, tuple)) else [root]
    if len(roots) != len(names):
        raise ParValueError(
            f"{len(roots)} folders for the {len(names)} data sets {dataset!r} (--roots, root=[...]): expected one for "
            "each, in their order, - or None for those that have none (rendered, synthetic)"
        )
    taken = {name: own_options(name) for name in names}
    for option in options:
        if option not in _COMMON_OPTIONS and not any(option in own for own in taken.values()):
            raise ParTypeError(f"none of the data sets {dataset!r} has the option {option!r}")
    loaded = {}
    for name, folder in zip(names, roots):
        given = {key: value for key, value in options.items() if key in _COMMON_OPTIONS or key in taken[name]}
        count = sum(one.split("-")[0] == name for one in loaded)  # two cameras of one's own: folder, folder-2
        key = f"{name}-{count + 1}" if count else name
        loaded[key] = load_par_dataset(name, None if folder == "-" else folder, **given)
    return unite_datasets(loaded)
