"""`evaluate`: measure a checkpoint on one split, and record what was measured, on what, and how.

A number can be compared only with its convention, its split and its number of samples: `metrics.json` holds them all.
"""

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_par_hf.data.readers.ids import read_id
from vlm_par_hf.data.tracklets import has_tracklets, one_row_per_tracklet
from vlm_par_hf.errors import ParValueError, argument_in_errors
from vlm_par_hf.escaping import markdown_text
from vlm_par_hf.hub.records import (
    SYNTHETIC,
    consistency_note,
    has_synthetic,
    label_space_note,
    left_out_of_ranking,
    slice_table,
    source_table,
)
from vlm_par_hf.images.opening import open_image
from vlm_par_hf.inference.predicting import predict_logits
from vlm_par_hf.inference.tracklets import predict_tracklets
from vlm_par_hf.labels.consistency import has_rules
from vlm_par_hf.labels.decisions import Decisions, decide, label_softmax
from vlm_par_hf.metrics.attributes import ParMetrics
from vlm_par_hf.metrics.reliability import selective_report, set_coverage
from vlm_par_hf.metrics.slices import Slicing, read_slicings
from vlm_par_hf.metrics.video import CONVENTIONS, video_metrics
from vlm_par_hf.utils import atomic_write_json, atomic_write_text, format_percent, redact_command

from .decision_plots import plot_risk_coverage
from .other_labels import predict_matched, read_label_space
from .plots import plot_attributes, table_text
from .provenance import DataFacts, check_same_division, load_data, versions


__all__ = ["evaluate", "markdown_table", "write_report"]

logger = logging.getLogger(__name__)

WITHOUT_THRESHOLD = ("auc_macro", "average_precision_macro")
SET_LEVEL = 0.9  # of the sets of answers that `selective` counts


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
    selective: bool = False,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
    command: Sequence[str] | None = None,
    slices: Sequence[str] = (),
    mapping: Mapping[str, Any] | str | Path | None = None,
    zero_shot: bool = False,
    aggregate: str | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint on one split; of a split of tracklets a model that takes several frames, or with
    `aggregate` any other, tracklet by tracklet.

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
        threshold: None (the preset's, on the scores as they are, which is what published codes do), or on the
            calibrated probabilities that answers are given by: `"schema"` (each attribute's own) or a number.
        bootstrap: resamples for the intervals; 0 for none.
        min_positives: also average mA over the attributes whose rarest label has at least this many samples.
        by_person: resample persons instead of images (`person_id` of the split): images of one person are not
            independent, so intervals over images are too narrow. An image of nobody known is a person of its own.
        selective: also measure what answering only where it is sure is worth: risk-coverage curve, AURC, and, if sets
            of answers were fitted, how often those for 90 % hold the right one (`selective`, `risk_coverage.png`).
        batch_size, workers, progress: of the forward passes.
        seed: seed of the bootstrap.
        device: `"cuda"`, `"cpu"`, ...; None: a GPU if there is one.
        command: the command line to record; None: `sys.argv`.
        slices: also metrics per slice: names of attributes and groups of the data set, or `"size"`, the height of the
            pictures. People are counted by `person_id` where the split has it.
        mapping: what `match_label_spaces` takes, or a JSON file with it, for a data set with another label space.
        zero_shot: also answer the attributes that the checkpoint was not trained on, from their texts: FOCUS, and
            VLM-PAR with stage 1 (`alignment`).
        aggregate: measure tracklets, and put the scores of their frames together in this way (`aggregate_logits`);
            only for models of single pictures.

    Returns:
        The record that `metrics.json` holds. If decisions were fitted for the checkpoint, names that end in `_fitted`
        are metrics of its own answers, by its calibrated probabilities and thresholds; `mA_fitted` is by those fitted
        for mA, where they are stored. `fitted` says on what they were, and holds the metrics of each point.

    Raises:
        ValueError: no such split; the data set and the checkpoint have no attribute in common; the data set is divided
            differently than in the training of the checkpoint; `by_person` for a split without `person_id`; a mapping
            or `zero_shot` where the label spaces are the same; `zero_shot` for a model that cannot.
        KeyError: a slice or a name in the mapping is no attribute.
    """
    data = load_data(dataset, root=root, schema=schema, options=dataset_options)
    if split not in data:
        raise ParValueError(f"split={split!r} is not in this data set: it has {', '.join(sorted(data))}")
    model, processor, checkpoint = _load_checkpoint(model, processor)
    by_tracklet = aggregate is not None or (model.supports_tracklets and has_tracklets(data[split]))
    people = one_row_per_tracklet(data[split]) if by_tracklet else data[split]
    facts = DataFacts.read(dataset, people, name=dataset_name, options=dataset_options)
    skipped = (facts.notes.get("skipped_images") or {}).get(split, 0)
    if isinstance(dataset, str):
        check_same_division(checkpoint, facts.name, facts.options)
    asked = read_label_space(model.config.schema, facts.schema, mapping=mapping, zero_shot=zero_shot)
    facts.warn_of_one_label(split)
    persons = _persons(people)
    if by_person and persons is None:
        raise ParValueError(f"by_person=True: the {split} split of {facts.name} has no person_id")
    slicings = read_slices(slices, people, facts)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    space, decisions = model.config.schema, _fitted_decisions(model)
    before, options = model.config.decisions, {"batch_size": batch_size, "workers": workers, "progress": progress}
    if decisions is not None and (asked is None or threshold is None):
        model.config.decisions = None  # scores as they are, which the thresholds of a preset belong to
    try:
        if asked is None:
            predict = partial(predict_tracklets, aggregate=aggregate) if by_tracklet else predict_logits
            scores, labels = predict(model, processor, data[split], **options)
        elif by_tracklet:
            raise ParValueError(
                f"{facts.name} has another label space than the checkpoint, and is measured by tracklet: expected "
                "that of the checkpoint"
            )
        else:
            decisions = None  # they were fitted for the checkpoint's own label space
            scores, labels, space = predict_matched(
                model, processor, data[split], facts, asked, zero_shot=zero_shot, **options
            )
    finally:
        model.config.decisions = before
    if asked is not None:
        probabilities = scores
    else:
        probabilities = label_softmax(scores, space) if decisions is None else decisions.calibrate(scores, space)
    if asked is None and (threshold is None or decisions is None):
        metrics, given = ParMetrics(space, preset, threshold), (scores, labels)
    else:
        metrics = ParMetrics(space, preset, threshold, inputs="probabilities", decisions=decisions)
        given = (probabilities, labels)
    groups = persons if by_person else None
    options = {"bootstrap": bootstrap, "seed": seed, "min_positives": min_positives}

    def measure(rows: np.ndarray) -> dict[str, Any]:
        own = {**options, "groups": None if groups is None else [groups[row] for row in rows]}
        found = metrics.report(tuple(one[rows] for one in given), **own)
        if decisions is not None:
            _add_fitted(found, probabilities[rows], labels[rows], space, decisions, preset=preset, **own)
        return found

    report = measure(np.arange(len(labels)))
    if facts.sources is not None:
        report["sources"] = [
            _source_report(name, np.flatnonzero(facts.sources == name), labels, measure)
            for name in dict.fromkeys(facts.sources.tolist())
        ]
    if by_tracklet:
        report["video"] = {name: video_metrics(scores, labels, space, name) for name in CONVENTIONS}
    if selective:
        report["selective"] = _measure_selective(probabilities, labels, space, decisions)
    if slicings:
        report["slices"] = metrics.slice_report(given, slicings, bootstrap=bootstrap, seed=seed, groups=persons)
    if has_rules(metrics.schema):
        report["consistency"] = metrics.consistency_report(given)
    command = redact_command(sys.argv if command is None else command)
    record = {
        "data": {
            "name": facts.name,
            "split": split,
            "images": len(labels),
            # With images missing this is another test set, and not comparable with published numbers.
            "skipped_images": skipped,
            "unknown_labels": int((labels < 0).sum()),
            "synthetic": has_synthetic(facts.name),
            "options": facts.options,
        },
        "model": {
            "path": checkpoint,
            "model_type": model.config.model_type,
            "backbone": getattr(model.config, "backbone_name", None),  # an exported model has none
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "preset": preset,
        "aggregate": aggregate,
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


def _source_report(name: str, rows: np.ndarray, labels: np.ndarray, measure) -> dict[str, Any]:
    """One of several data sets that are measured together: its metrics over the attributes that it has labels of."""
    known = int((labels[rows] >= 0).any(axis=0).sum())
    found = measure(rows)
    return {
        "name": name, "images": len(rows), "attributes": known, "metrics": found["metrics"],
        "intervals": found["intervals"],
    }  # fmt: skip


def _fitted_decisions(model) -> Decisions | None:
    """The decisions of a model that say how its answers are given; None also for gains and offsets of FOCUS alone,
    which belong to its scores."""
    found = None if model.config.decisions is None else Decisions.from_dict(model.config.decisions)
    return None if found is None or found.objective is None else found


def _add_fitted(report, probabilities, labels, schema, decisions: Decisions, *, preset, **options) -> None:
    """Adds metrics by fitted thresholds under names of their own: of the checkpoint's answers, and mA, where a point
    was fitted for it, by that one."""

    def measure(objective: str) -> dict[str, Any]:
        space = schema if objective == decisions.objective else decisions.settle(schema, objective)
        point = replace(decisions, objective=objective)
        metrics = ParMetrics(space, preset, "schema", inputs="probabilities", decisions=point)
        return metrics.report((probabilities, labels), ranked=False, **options)

    answers = measure(decisions.objective)
    found = {decisions.objective: answers["metrics"]}
    mean_recall = answers
    if "mA" in decisions.points() and decisions.objective != "mA":
        mean_recall = measure("mA")
        found["mA"] = mean_recall["metrics"]
    for part in ("metrics", "intervals"):
        for name, one in answers[part].items():
            if name not in WITHOUT_THRESHOLD:
                report[part][f"{name}_fitted"] = mean_recall[part][name] if name.startswith("mA") else one
    for row, own, of_mA in zip(report["attributes"], answers["attributes"], mean_recall["attributes"]):
        row["mA_fitted"] = of_mA["mA"]
        if "threshold" in own:
            row["threshold_fitted"] = own["threshold"]
    record = decisions.record
    points = {key: {name: one[name] for name in one if name not in WITHOUT_THRESHOLD} for key, one in found.items()}
    report["fitted"] = {
        "objective": decisions.objective, "data": record.get("data"), "when": record.get("when"), "points": points,
    }  # fmt: skip


def _measure_selective(probabilities, labels, schema, decisions: Decisions | None) -> dict[str, Any]:
    biases = None if decisions is None else decisions.bias_table(schema)
    found = selective_report(probabilities, decide(probabilities, schema, None, biases), labels, schema)
    if decisions is not None and decisions.levels and decisions.levels[-1] >= SET_LEVEL:
        sets, promised = decisions.answer_sets(probabilities, schema, SET_LEVEL)
        rows = set_coverage(sets, labels, schema)
        for row, own, label_promised in zip(found["attributes"], rows, promised):
            single = own["single"]
            row |= {
                "coverage": own["coverage"],
                "unsure": None if single is None else 1 - single,
                "promised": bool(label_promised.any()),
            }
        known = [one for one in found["attributes"] if one["coverage"] is not None]
        means = {key: float(np.mean([one[key] for one in known])) for key in ("coverage", "unsure")}
        found["sets"] = {"level": SET_LEVEL, **means}
    return found


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
    elif has_synthetic(name):
        parts.append("Numbers over all data sets mix photographs with SYNTHETIC ones: read those of each data set.")
    if skipped:
        parts.append(f"{skipped} images of this split were missing and left out: not the official {split} split.")
    return " ".join(part for part in parts if part)


def write_report(record: dict[str, Any], output_dir: str | Path) -> list[Path]:
    """Write `metrics.json`, `attributes.csv`, `attributes.md` and, if matplotlib is installed, `attributes.png` and,
    with `selective`, `risk_coverage.png`."""
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
        if "selective" in record:
            paths.append(plot_risk_coverage(record["selective"], folder / "risk_coverage.png", title=name))
    except ImportError as error:
        logger.warning("pictures were not drawn: %s", error)
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
    if "selective" in record:
        lines += ["", *_selective_lines(record["selective"])]
    return "\n".join(lines) + "\n"


def _more_sections(record: dict[str, Any]) -> list[str]:
    """What is in a record where it applies: another label space, slices, contradictions."""
    sentences = [label_space_note(record), consistency_note(record)]
    lines = [line for sentence in sentences if sentence for line in (markdown_text(sentence), "")]
    table = source_table(record)
    if table is not None:
        head, rows = table
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [f"| {' | '.join(map(markdown_text, row))} |" for row in rows] + [""]
    for slicing in (record.get("slices") or {}).get("by", ()):
        lines += [*slice_table(record, slicing), ""]
    return lines


def _selective_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"Answers only where they are sure: {format_percent(found['error'])} % of all answers are wrong; mean risk "
        f"over all coverages (AURC) {found['aurc']:.3f}."
    ]
    columns = ["attribute", "wrong", "AURC"]
    sets = found.get("sets")
    if sets is not None:
        level = format_percent(sets["level"])
        lines.append(
            f"Sets of answers for {level} % hold the right one in {format_percent(sets['coverage'])} % of the cases "
            f"and leave {format_percent(sets['unsure'])} % open; *coverage* in brackets promises nothing, for want of "
            "examples."
        )
        columns += ["coverage", "open"]
    lines += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in found["attributes"]:
        cells = [markdown_text(row["name"]), format_percent(row["error"])]
        cells.append("" if row["aurc"] is None else f"{row['aurc']:.3f}")
        if sets is not None:
            coverage = format_percent(row["coverage"])
            cells += [coverage if row["promised"] else f"({coverage})", format_percent(row["unsure"])]
        lines.append(f"| {' | '.join(cells)} |")
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
