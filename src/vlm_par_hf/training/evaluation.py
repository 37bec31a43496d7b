"""`evaluate`: measure a checkpoint on one split, and record what was measured, on what, and how.

A number can be compared only with its convention, its split and its number of samples: `metrics.json` holds them all.
"""

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_par_hf.data.readers.ids import read_id
from vlm_par_hf.errors import ParValueError, argument_in_errors
from vlm_par_hf.escaping import markdown_text
from vlm_par_hf.hub.records import SYNTHETIC, consistency_note, label_space_note, left_out_of_ranking, slice_table
from vlm_par_hf.images.opening import open_image
from vlm_par_hf.inference.predicting import predict_logits
from vlm_par_hf.labels.consistency import has_rules
from vlm_par_hf.metrics.attributes import ParMetrics
from vlm_par_hf.metrics.slices import Slicing, read_slicings
from vlm_par_hf.utils import atomic_write_json, atomic_write_text, format_percent, redact_command

from .other_labels import predict_matched, read_label_space
from .plots import plot_attributes, table_text
from .provenance import DataFacts, check_same_division, load_data, versions


__all__ = ["evaluate", "markdown_table", "write_report"]

logger = logging.getLogger(__name__)


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
    slices: Sequence[str] = (),
    mapping: Mapping[str, Any] | str | Path | None = None,
    zero_shot: bool = False,
) -> dict[str, Any]:
    """Measure a checkpoint on one split.

    A data set with another label space is measured on the attributes that both have (`match_label_spaces` says which
    these are), in the terms of the data set.

    Args:
        model: a checkpoint folder or repository, or a model in memory (with `processor`).
        dataset: name for `load_par_dataset` (with `root`, `schema`, `dataset_options`) or a `DatasetDict`.
        split: `"train"`, `"validation"` or `"test"`.
        output_dir: folder for `metrics.json`, `attributes.csv`, `attributes.md` and `attributes.png`; None: they are
            not written.
        processor: the processor of a model in memory.
        root: folder of the data set.
        schema: the user's own schema for readers that take one.
        dataset_options: further keywords of `load_par_dataset`.
        dataset_name: name of the data in the record; None: the name that the data set carries.
        preset: metric conventions, see `ParMetrics`.
        threshold: None (the preset's), `"schema"` (each attribute's own) or a number.
        bootstrap: resamples for the intervals; 0 for none.
        min_positives: also average mA over the attributes whose rarest label has at least this many samples.
        by_person: resample persons instead of images (`person_id` of the split): images of one person are not
            independent, so intervals over images are too narrow. An image of nobody known is a person of its own.
        batch_size, workers, progress: of the forward passes.
        seed: seed of the bootstrap.
        device: `"cuda"`, `"cpu"`, ...; None: a GPU if there is one.
        command: the command line to record; None: `sys.argv`.
        slices: also metrics per slice: names of attributes and groups of the data set, or `"size"`, the height of the
            pictures. People are counted by `person_id` where the split has it.
        mapping: what `match_label_spaces` takes, or a JSON file with it, for a data set with another label space.
        zero_shot: also answer the attributes that the checkpoint was not trained on, from their texts: FOCUS, and
            VLM-PAR with stage 1 (`alignment`).

    Returns:
        The record that `metrics.json` holds.

    Raises:
        ValueError: no such split; the data set and the checkpoint have no attribute in common; the data set is divided
            differently than in the training of the checkpoint; `by_person` for a split without `person_id`; a mapping
            or `zero_shot` where the label spaces are the same; `zero_shot` for a model that cannot.
        KeyError: a slice or a name in the mapping is no attribute.
    """
    data = load_data(dataset, root=root, schema=schema, options=dataset_options)
    if split not in data:
        raise ParValueError(f"split={split!r} is not in this data set: it has {', '.join(sorted(data))}")
    facts = DataFacts.read(dataset, data[split], name=dataset_name, options=dataset_options)
    skipped = (facts.notes.get("skipped_images") or {}).get(split, 0)
    model, processor, checkpoint = _load_checkpoint(model, processor)
    if isinstance(dataset, str):
        check_same_division(checkpoint, facts.name, facts.options)
    asked = read_label_space(model.config.schema, facts.schema, mapping=mapping, zero_shot=zero_shot)
    facts.warn_of_one_label(split)
    persons = _persons(data[split])
    if by_person and persons is None:
        raise ParValueError(f"by_person=True: the {split} split of {facts.name} has no person_id")
    slicings = read_slices(slices, data[split], facts)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options = {"batch_size": batch_size, "workers": workers, "progress": progress}
    if asked is None:
        scores, labels = predict_logits(model, processor, data[split], **options)
        metrics = ParMetrics(model.config.schema, preset=preset, threshold=threshold)
    else:
        scores, labels, schema = predict_matched(
            model, processor, data[split], facts, asked, zero_shot=zero_shot, **options
        )
        metrics = ParMetrics(schema, preset=preset, threshold=threshold, inputs="probabilities")
    groups = persons if by_person else None
    report = metrics.report(
        (scores, labels), bootstrap=bootstrap, seed=seed, min_positives=min_positives, groups=groups
    )
    if slicings:
        report["slices"] = metrics.slice_report(
            (scores, labels), slicings, bootstrap=bootstrap, seed=seed, groups=persons
        )
    if has_rules(metrics.schema):
        report["consistency"] = metrics.consistency_report((scores, labels))
    command = redact_command(sys.argv if command is None else command)
    record = {
        "data": {
            "name": facts.name,
            "split": split,
            "images": len(labels),
            # With images missing this is another test set, and not comparable with published numbers.
            "skipped_images": skipped,
            "unknown_labels": int((labels < 0).sum()),
            "synthetic": facts.name in SYNTHETIC,
            "options": facts.options,
        },
        "model": {
            "path": checkpoint,
            "model_type": model.config.model_type,
            "backbone": getattr(model.config, "backbone_name", None),  # an exported model has none
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "preset": preset,
        "threshold": threshold,
        "label_space": None if asked is None else asked.to_dict(zero_shot=zero_shot),
        "note": _note(facts.name, split, skipped),
        **report,
        "resampled": "persons" if by_person else "images",
        "command": shlex.join(command),
        "versions": versions(),
    }
    if output_dir is not None:
        write_report(record, output_dir)
    return record


def _persons(split) -> list[Any] | None:
    """Who is in each picture, hashable; None if the split does not say. A picture of nobody known is a person of its
    own."""
    if "person_id" not in split.column_names:
        return None
    persons = (read_id(person) for person in split["person_id"])
    return [("alone", row) if person is None else person for row, person in enumerate(persons)]


def read_slices(names: Sequence[str], split, facts: DataFacts) -> list[Slicing]:
    """The slicings of a split, whose pictures are opened for `"size"`.

    Raises:
        KeyError, ValueError: as for `read_slicings`; the split has no labels.
    """
    if not names:
        return []
    heights = None
    if any(name.casefold() == "size" for name in names):
        heights = np.array([open_image(row["image"]).height for row in split.select_columns("image")])
    return read_slicings(names, facts.labels, facts.schema, heights)


def _load_checkpoint(model, processor):
    if not isinstance(model, (str, Path)):
        if processor is None:
            raise ParValueError("processor is None: a model in memory needs its processor beside it")
        return model, processor, getattr(model, "name_or_path", "") or "in memory"
    from transformers import AutoModel, AutoProcessor

    name = str(model)
    with argument_in_errors("model", name):
        return AutoModel.from_pretrained(name), processor or AutoProcessor.from_pretrained(name), name


def _note(name: str, split: str, skipped: int) -> str:
    notes = {
        "train": "Measured on the data that the model was trained on: this says how well it was fitted, nothing else.",
        "validation": "Measured on the split that chooses the checkpoint: too high for a test result.",
    }
    parts = [notes.get(split, "")]
    if name in SYNTHETIC:
        parts.append(f"SYNTHETIC {SYNTHETIC[name]} of pedestrians: not comparable with any result on photographs.")
    if skipped:
        parts.append(f"{skipped} images of this split were missing and left out: not the official {split} split.")
    return " ".join(part for part in parts if part)


def write_report(record: dict[str, Any], output_dir: str | Path) -> list[Path]:
    """Write `metrics.json`, `attributes.csv`, `attributes.md` and, if matplotlib is installed, `attributes.png`."""
    folder = Path(output_dir)
    paths = [folder / name for name in ("metrics.json", "attributes.csv", "attributes.md")]
    atomic_write_json(paths[0], record)
    atomic_write_text(paths[1], table_text([_flatten(row) for row in record["attributes"]]))
    atomic_write_text(paths[2], markdown_table(record))
    data = record["data"]
    name = f"SYNTHETIC {SYNTHETIC[data['name']]}" if data["name"] in SYNTHETIC else data["name"]
    title = f"{name}, {data['split']}, {data['images']:,} images, mA {100 * record['metrics']['mA']:.1f}"
    try:
        paths.append(plot_attributes(_bar_rows(record["attributes"]), folder / "attributes.png", title=title))
    except ImportError as error:
        logger.warning("attributes.png was not drawn: %s", error)
    return paths


def markdown_table(record: dict[str, Any]) -> str:
    """The metrics and the table per attribute as Markdown; values in percent, with the interval if there is one."""
    data = record["data"]
    lines = [
        f"# {markdown_text(data['name'])}, {data['split']}: {data['images']:,} images, conventions of "
        f"`{record['preset']}`",
        "",
        *([markdown_text(record["note"]), ""] if record["note"] else []),
        "| metric | value | interval |",
        "|---|---|---|",
    ]
    intervals = record.get("intervals") or {}
    for name, value in record["metrics"].items():
        low, high = intervals.get(name) or (None, None)
        interval = "" if low is None else f"{format_percent(low)} to {format_percent(high)}"
        lines.append(f"| {name} | {format_percent(value)} | {interval} |")
    left_out = markdown_text(left_out_of_ranking(record))
    lines += ["", *([left_out, ""] if left_out else [])]
    lines += _more_sections(record)
    lines += [
        "| attribute | mean recall | rarest label | samples | AUC | average precision |",
        "|---|---|---|---|---|---|",
    ]
    for row, bar in zip(record["attributes"], _bar_rows(record["attributes"])):
        cells = [markdown_text(bar["name"]), format_percent(bar["mA"]), f"{bar['rarest']:,}", f"{bar['support']:,}"]
        cells += [format_percent(row["auc"]), format_percent(row["average_precision"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _more_sections(record: dict[str, Any]) -> list[str]:
    """What is in a record where it applies: another label space, slices, contradictions."""
    sentences = [label_space_note(record), consistency_note(record)]
    lines = [line for sentence in sentences if sentence for line in (markdown_text(sentence), "")]
    for slicing in (record.get("slices") or {}).get("by", ()):
        lines += [*slice_table(record, slicing), ""]
    return lines


def _bar_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
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


def _flatten(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose nested values became one column per entry, such as `labels.yes.recall`."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            cells.update({f"{name}.{key}": item for key, item in _flatten(value).items()})
        elif isinstance(value, (list, tuple)):
            cells.update({f"{name}.{index}": item for index, item in enumerate(value)})
        else:
            cells[name] = value
    return cells
