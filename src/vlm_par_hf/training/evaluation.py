"""Evaluate a checkpoint on one split, and write down what was measured, on what, and how.

A number without its convention, its split and its sample count is a rumour: `metrics.json` carries all of them.
"""

import json
import logging
import math
import platform
import shlex
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.utils import tqdm
from torch.utils.data import DataLoader

from vlm_par_hf.data import AugmentedDataset, ParCollator, dataset_schema, load_par_dataset
from vlm_par_hf.metrics import ParMetrics
from vlm_par_hf.schema import AttributeSchema
from vlm_par_hf.utils import atomic_write_json, atomic_write_text

from .features import FeatureDataset
from .plots import plot_attributes, table_text


__all__ = ["check_schema", "evaluate", "load_data", "markdown_table", "predict_logits", "versions"]

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
def naming(argument: str, value: str):
    """Put the argument and its value in front of a loading error: offline, the Hub's own message names neither."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{argument}={value!r} could not be loaded: {error}") from error


def dataset_notes(split) -> dict[str, Any]:
    """What a split of ours says about itself (`name`, `skipped_images`, ...); empty where it says nothing."""
    try:
        notes = json.loads(split.info.description)
    except (AttributeError, TypeError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def describe_data(dataset, split, name: str | None, options: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """What a record calls the data, and the options that divided them: as given, else as the data say of themselves.

    Args:
        dataset: as for `load_data`.
        split: one of its splits, loaded.
        name, options: as given by the caller; they win.
    """
    notes = dataset_notes(split)
    own = notes.get("name") or (dataset if isinstance(dataset, str) else "in memory")
    return name or own, {**(notes.get("options") or {}), **(options or {})}


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


def predict_logits(
    model, processor, dataset, *, batch_size: int = 64, workers: int = 0, progress: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of a whole split.

    Args:
        model: a model of this package, run in eval mode on its own device.
        processor: its processor.
        dataset: a split with `image` and `labels`, or a `FeatureDataset`.
        batch_size: images per forward pass.
        workers: data loader processes.
        progress: show a progress bar.

    Returns:
        float32 `(S, A, C)` and int64 `(S, A)`, in the order of the split.
    """
    if not isinstance(dataset, (AugmentedDataset, FeatureDataset)):
        dataset = AugmentedDataset(dataset)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=ParCollator(processor))
    was_training = model.training
    model.eval()
    logits, labels = [], []
    bar = tqdm(total=len(dataset), desc="predict", unit="image", disable=not progress, leave=False)
    try:
        for batch in loader:
            labels.append(batch.pop("labels").numpy())
            with torch.inference_mode():
                out = model(**{name: value.to(model.device) for name, value in batch.items()})
            logits.append(out.logits.float().cpu().numpy())
            bar.update(len(labels[-1]))
    finally:
        bar.close()
        model.train(was_training)
    if not logits:
        raise ValueError("the split is empty: expected at least one image")
    return np.concatenate(logits), np.concatenate(labels)


def _load_checkpoint(model, processor):
    if not isinstance(model, (str, Path)):
        if processor is None:
            raise ValueError("processor is None: a model in memory needs its processor beside it")
        return model, processor, getattr(model, "name_or_path", "") or "in memory"
    from transformers import AutoModel, AutoProcessor

    name = str(model)
    with naming("model", name):
        return AutoModel.from_pretrained(name), processor or AutoProcessor.from_pretrained(name), name


def evaluate(
    model,
    dataset,
    *,
    split: str = "test",
    output_dir: str | Path | None = None,
    processor=None,
    root: str | Path | None = None,
    schema=None,
    dataset_options: dict[str, Any] | None = None,
    dataset_name: str | None = None,
    preset: str = "rethinking",
    threshold=None,
    bootstrap: int = 1000,
    min_positives: int | None = None,
    by_person: bool = False,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint on one split.

    Args:
        model: a checkpoint folder or repository, or a model in memory (with `processor`).
        dataset: name for `load_par_dataset` (with `root`, `schema`, `dataset_options`) or a `DatasetDict`.
        split: `"train"`, `"validation"` or `"test"`.
        output_dir: where `metrics.json`, `attributes.csv`, `attributes.md` and `attributes.png` go; None: nowhere.
        processor: the processor of a model in memory.
        root: folder of the data set.
        schema: the user's own schema for readers that take one.
        dataset_options: further keywords of `load_par_dataset`.
        dataset_name: what the data are called in the record; None: as they call themselves.
        preset: metric conventions, see `ParMetrics`.
        threshold: None (the preset's), `"schema"` (each attribute's own) or a number.
        bootstrap: resamples for the intervals; 0 for none.
        min_positives: also average mA over the attributes whose rarest label has at least this many samples.
        by_person: resample persons instead of images (`person_id` of the split): images of one person are no
            independent samples, and intervals over images are then too narrow.
        batch_size, workers, progress: of the forward passes.
        seed: seed of the bootstrap.
        device: `"cuda"`, `"cpu"`, ...; None: a GPU where there is one.
        command: the command line to record; None: `sys.argv`.

    Returns:
        The record that `metrics.json` holds.

    Raises:
        ValueError: no such split; the data set's schema differs from the checkpoint's; the data set is divided in
            another way than the one that the checkpoint was trained on; `by_person` without persons.
    """
    data = load_data(dataset, root=root, schema=schema, options=dataset_options)
    if split not in data:
        raise ValueError(f"split={split!r} is not in this data set: it has {', '.join(sorted(data))}")
    notes = dataset_notes(data[split])
    name, options = describe_data(dataset, data[split], dataset_name, dataset_options)
    model, processor, path = _load_checkpoint(model, processor)
    if isinstance(dataset, str):
        check_same_division(path, name, options)
    check_schema(dataset_schema(data[split]), model.config.schema)
    groups = None
    if by_person:
        if "person_id" not in data[split].column_names:
            raise ValueError(f"by_person=True: the {split} split of {name} has no person_id")
        groups = np.asarray(data[split]["person_id"])
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    logits, labels = predict_logits(
        model, processor, data[split], batch_size=batch_size, workers=workers, progress=progress
    )
    metrics = ParMetrics(model.config.schema, preset=preset, threshold=threshold)
    report = metrics.report(
        (logits, labels), bootstrap=bootstrap, seed=seed, min_positives=min_positives, groups=groups
    )
    command = sys.argv if command is None else command
    record = {
        "data": {
            "name": name,
            "split": split,
            "images": len(labels),
            # Another number of images is another test set: no comparison with published numbers.
            "skipped_images": (notes.get("skipped_images") or {}).get(split, 0),
            "unknown_labels": int((labels < 0).sum()),
            "synthetic": name == "synthetic",
            "options": options,
        },
        "model": {
            "path": path,
            "model_type": model.config.model_type,
            "backbone": getattr(model.config, "backbone_name", None),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "preset": preset,
        "threshold": threshold,
        "note": _note(name, split, (notes.get("skipped_images") or {}).get(split, 0)),
        **report,
        "resampled": "persons" if by_person else "images",
        "command": shlex.join(command),
        "versions": versions(),
    }
    if output_dir is not None:
        write_report(record, output_dir)
    return record


def _note(name: str, split: str, skipped: int) -> str:
    notes = {
        "train": "Measured on the data that the model was trained on: this says how well it was fitted, nothing else.",
        "validation": "Measured on the split that chooses the checkpoint: too high for a test result.",
    }
    parts = [notes.get(split, "")]
    if name == "synthetic":
        parts.append("SYNTHETIC drawings of pedestrians: not comparable with any result on photographs.")
    if skipped:
        parts.append(f"{skipped} images of this split were missing and left out: not the official {split} split.")
    return " ".join(part for part in parts if part)


def write_report(record: dict[str, Any], output_dir: str | Path) -> list[Path]:
    """Write `metrics.json`, `attributes.csv`, `attributes.md` and, where matplotlib is installed, `attributes.png`."""
    folder = Path(output_dir)
    paths = [folder / name for name in ("metrics.json", "attributes.csv", "attributes.md")]
    atomic_write_json(paths[0], record)
    atomic_write_text(paths[1], table_text([_flat(row) for row in record["attributes"]]))
    atomic_write_text(paths[2], markdown_table(record))
    data = record["data"]
    title = (
        f"{'SYNTHETIC drawings' if data['synthetic'] else data['name']}, {data['split']}, {data['images']:,} images, "
        f"mA {100 * record['metrics']['mA']:.1f}"
    )
    try:
        paths.append(plot_attributes(_bars(record["attributes"]), folder / "attributes.png", title=title))
    except ImportError as error:
        logger.warning("attributes.png was not drawn: %s", error)
    return paths


def markdown_table(record: dict[str, Any]) -> str:
    """The metrics and the table per attribute as Markdown; percent, with the interval where there is one."""
    data = record["data"]
    lines = [
        f"# {data['name']}, {data['split']}: {data['images']:,} images, conventions of `{record['preset']}`",
        "",
        *([record["note"], ""] if record["note"] else []),
        "| metric | value | interval |",
        "|---|---|---|",
    ]
    intervals = record.get("intervals") or {}
    for name, value in record["metrics"].items():
        low, high = intervals.get(name) or (None, None)
        lines.append(
            f"| {name} | {_percent(value)} | {f'{_percent(low)} to {_percent(high)}' if low is not None else ''} |"
        )
    lines += ["", "| attribute | mean recall | rarest label | samples |", "|---|---|---|---|"]
    lines += [
        f"| {bar['name']} | {_percent(bar['mA'])} | {bar['rarest']:,} | {bar['support']:,} |"
        for bar in _bars(record["attributes"])
    ]
    return "\n".join(lines) + "\n"


def _bars(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "name": row["name"],
            "mA": row["mA"],
            "chance": 1 / max(1, sum(label["support"] > 0 for label in row["labels"].values())),
            "rarest": min(label["support"] for label in row["labels"].values()),
            "support": row["known"],
        }
        for row in rows
    ]


def _percent(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """One row of the table with plain cells: what is nested becomes one column per entry, as `labels.yes.recall`."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            cells.update({f"{name}.{key}": item for key, item in _flat(value).items()})
        elif isinstance(value, (list, tuple)):
            cells.update({f"{name}.{index}": item for index, item in enumerate(value)})
        else:
            cells[name] = value
    return cells
