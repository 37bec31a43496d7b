"""`calibrate`: fit the decisions of a checkpoint to pictures of somebody's own camera, with labels or without.

What the fit is worth is measured by cross-fitting: each picture is answered by decisions that were fitted on the other
folds, so no number here is of a threshold on its own pictures.
"""

import logging
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_par_hf.calibration import STANDARD_OBJECTIVES, check_objective, fit, own_weight, shift_priors
from vlm_par_hf.data.readers.ids import read_id
from vlm_par_hf.errors import ParFileExistsError, ParValueError
from vlm_par_hf.escaping import markdown_text
from vlm_par_hf.images.opening import IMAGE_SUFFIXES
from vlm_par_hf.inference.predicting import evaluation_mode, predict_batch, predict_logits
from vlm_par_hf.labels.decisions import Decisions, decide, label_softmax
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.metrics.attributes import ParMetrics
from vlm_par_hf.metrics.reliability import brier_score, calibration_error, label_columns, reliability_bins
from vlm_par_hf.output_folders import LOCK, open_output, refuse_overlap
from vlm_par_hf.utils import atomic_write_json, atomic_write_text, format_percent, read_json_object, redact_command

from .decision_plots import plot_reliability, plot_trade_off
from .evaluation import _load_checkpoint
from .provenance import DataFacts, check_same_division, check_schema, load_data, name_roots, versions


__all__ = ["DECISIONS_FILE", "THRESHOLDS_FILE", "calibrate", "measure_decisions"]

logger = logging.getLogger(__name__)

DECISIONS_FILE, THRESHOLDS_FILE, RECORD_FILE = "decisions.json", "thresholds.json", "calibration.json"
FOLDS = 5
SHOWN = ("mA", "instance_f1_harmonic", "label_f1_macro", "plain_accuracy")


def calibrate(
    model: Any,
    dataset: Any,
    output_dir: str | Path,
    *,
    split: str = "validation",
    objective: str = "instance_f1",
    isotonic: bool = False,
    costs: tuple[float, float] = (1.0, 1.0),
    priors_only: bool = False,
    processor: Any = None,
    root: str | Path | None = None,
    schema: AttributeSchema | None = None,
    dataset_options: dict[str, Any] | None = None,
    dataset_name: str | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: str | None = None,
    progress: bool = True,
    overwrite: bool = False,
    delete_listed: bool = False,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Fits the decisions of a checkpoint anew and writes it, complete, with them.

    Args:
        model: a checkpoint folder or repository, or a model in memory (with `processor`), whose configuration then
            gets the decisions.
        dataset: name for `load_par_dataset` (with `root`, `schema`, `dataset_options`) or a `DatasetDict`. With
            `priors_only` also a folder of images.
        output_dir: gets the checkpoint, `decisions.json`, `thresholds.json` (`{attribute: threshold}`),
            `calibration.json` (this record), `calibration.md`, and if matplotlib is installed `trade_off.png` and
            `reliability.png`.
        split: whose pictures are fitted on; not one that the checkpoint was trained on or is tested on.
        objective: what answers are best for, see `vlm_par_hf.calibration`. Points for instance F1 and mA are stored
            too.
        isotonic, costs: as in `fit`.
        priors_only: use no labels, and only adapt how frequent they are (`shift_priors`, an assumption).
        processor: the processor of a model in memory.
        root, schema, dataset_options, dataset_name: as in `evaluate`.
        batch_size, workers, device, progress: of the forward passes.
        overwrite: replace what an earlier call wrote there.
        delete_listed: with it, also delete files that were changed since.
        command: the command line to record; None: `sys.argv`.

    Returns:
        The record.

    Raises:
        ValueError: no such split, one that the record of the checkpoint shows as its training or test split, another
            label space, no known label, or `priors_only` for a checkpoint without fitted decisions.
        FileExistsError: `output_dir` holds something, and `overwrite` is not set.
    """
    check_objective(objective)
    if delete_listed and not overwrite:
        raise ParValueError("delete_listed=True: expected overwrite=True too")
    is_path = isinstance(model, (str, Path))
    refuse_overlap(output_dir, {"model": model if is_path else None, **name_roots(root)}, replaced=True)
    source = Path(model) if is_path and Path(model).is_dir() else None
    images = None
    if priors_only and root is None and isinstance(dataset, (str, Path)) and Path(dataset).is_dir():
        images = sorted(path for path in Path(dataset).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise ParValueError(f"the folder {str(dataset)!r} holds no images")
        name, about = Path(dataset).name, {}
    else:
        data = load_data(dataset, root=root, schema=schema, options=dataset_options)
        if split not in data:
            raise ParValueError(f"split={split!r} is not in this data set: it has {', '.join(sorted(data))}")
        facts = DataFacts.read(dataset, data[split], name=dataset_name, options=dataset_options)
        name, about = facts.name, {"split": split, "options": facts.options}
        if source is not None and not priors_only:
            _refuse_known_split(source, name, split)
            if isinstance(dataset, str):
                check_same_division(str(source), name, facts.options)
    with open_output(output_dir, "calibration") as target:
        if overwrite:
            target.claim(delete_listed=delete_listed, recognise=lambda folder: None)
        elif not target.is_unfinished and any(path.name != LOCK for path in target.path.iterdir()):
            raise ParFileExistsError(f"{output_dir} holds something already: name another folder, or overwrite it")
        model, processor, checkpoint = _load_checkpoint(model, processor)
        space = model.config.schema
        before = None if model.config.decisions is None else Decisions.from_dict(model.config.decisions)
        if priors_only and before is None:
            raise ParValueError(
                f"{checkpoint} has no fitted decisions, so its probabilities are not calibrated and say nothing about "
                "shares: fit it on labelled pictures first"
            )
        if images is None:
            check_schema(facts.schema, space)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model.config.decisions = None  # scores as they are
        try:
            if images is None:
                logits, labels = predict_logits(
                    model, processor, data[split], batch_size=batch_size, workers=workers, progress=progress
                )
            else:
                logits, labels = _predict_images(model, processor, images, batch_size), None
        finally:
            model.config.decisions = None if before is None else before.to_dict()
        record = {
            "data": {"name": name, "pictures": len(logits), **about},
            "model": checkpoint,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(redact_command(sys.argv if command is None else command)),
            "versions": versions(),
        }
        if priors_only:
            decisions = shift_priors(before, logits, space, record=record)
            objective = decisions.objective
            report = {
                "assumption": "only the shares of the labels differ from those of the pictures fitted on before",
                "shares": {
                    one.name: {"before": before.of(one).prior, "now": decisions.of(one).prior} for one in space
                },
            }
        else:
            objectives = list(dict.fromkeys([objective, *STANDARD_OBJECTIVES]))
            options = {"objectives": objectives, "isotonic": isotonic, "costs": costs}
            decisions = fit(logits, labels, space, record=record, **options)
            groups = None
            if "person_id" in data[split].column_names:
                persons = (read_id(person) for person in data[split]["person_id"])
                groups = [("alone", row) if one is None else one for row, one in enumerate(persons)]
            report = measure_decisions(logits, labels, space, before=before, groups=groups, **options)
        model.config.set_decisions(decisions)
        if hasattr(model, "schema"):
            model.schema = model.config.schema
        settled = model.config.schema
        full = {"objective": objective, "priors_only": priors_only, **record, **report}
        full["attributes"] = _attribute_rows(decisions, settled, report)
        with target.staging() as staging:
            model.save_pretrained(staging)
            processor.save_pretrained(staging)
            if source is not None and (source / "run.json").is_file():
                shutil.copyfile(source / "run.json", staging / "run.json")
            atomic_write_json(staging / DECISIONS_FILE, decisions.to_dict())
            thresholds = {one.name: one.threshold for one in settled if one.is_binary}
            atomic_write_json(staging / THRESHOLDS_FILE, thresholds)
            atomic_write_json(staging / RECORD_FILE, {key: one for key, one in full.items() if key != "curves"})
            atomic_write_text(staging / "calibration.md", _markdown(full))
            if not priors_only:
                try:
                    plot_trade_off(report["curves"], staging / "trade_off.png", title=_title(full))
                    plot_reliability(report["reliability"], staging / "reliability.png", title=_title(full))
                except ImportError as error:
                    logger.warning("pictures were not drawn: %s", error)
            target.publish(staging, last="config.json", replace_all=True)
    return full


def _refuse_known_split(source: Path, name: str, split: str) -> None:
    record = read_json_object(source / "run.json") or {}
    trained = record.get("data")
    if not isinstance(trained, dict) or trained.get("name") != name or split == "validation":
        return
    reason = {
        "train": "it was trained on that split, where its scores are surer than on anybody else",
        "test": "that split measures the checkpoint, and with thresholds chosen there every number would be too good",
    }
    raise ParValueError(
        f"split={split!r} of {name!r}: run.json of {source} says that the checkpoint was trained on this data set; "
        f"{reason[split]}: calibrate on 'validation'"
    )


def _predict_images(model: Any, processor: Any, images: Sequence[Path], batch_size: int) -> np.ndarray:
    from vlm_par_hf.export.parity import prepare_inputs

    with evaluation_mode(model):
        batches = prepare_inputs(processor, images, batch_size)
        return np.concatenate([predict_batch(model, batch)["logits"].numpy() for batch in batches])


# What the fit is worth


def measure_decisions(
    logits: np.ndarray,
    labels: np.ndarray,
    schema: AttributeSchema,
    *,
    objectives: Sequence[str],
    isotonic: bool = False,
    costs: tuple[float, float] = (1.0, 1.0),
    before: Decisions | None = None,
    groups: Sequence | None = None,
    folds: int = FOLDS,
) -> dict[str, Any]:
    """Numbers of decisions that are fitted on other pictures than those they answer for.

    Args:
        logits, labels, schema, objectives, isotonic, costs: as in `fit`.
        before: the decisions so far; None: none.
        groups: one hashable per picture; whole groups are in one fold.
        folds: how many parts; every part is answered by a fit on the others.

    Returns:
        `metrics` ({"before" or objective: metrics of `ParMetrics`, with `calibration_error` and `brier`}),
        `by_attribute` (the same keys: rows of its report), `reliability` ({"before", "after": bins}), `curves` (of the
        trade-off between mA and instance F1, and its points).

    Raises:
        ValueError: fewer pictures or groups than folds.
    """
    units = np.arange(len(labels)) if groups is None else _index(groups)
    if units.max() + 1 < folds:
        raise ParValueError(
            f"{int(units.max()) + 1} pictures (or persons) are fewer than the {folds} parts to measure on"
        )
    fold = np.random.default_rng(0).permutation(int(units.max()) + 1)[units] % folds
    shifts = np.linspace(-0.25, 1.25, 31)
    after = np.zeros((*labels.shape, schema.max_labels))
    answers = {name: np.zeros(labels.shape, np.int64) for name in objectives}
    along = np.zeros((len(shifts), *labels.shape), np.int64)
    silent = logging.getLogger("vlm_par_hf.calibration")
    level = silent.level
    silent.setLevel(logging.ERROR)  # what it says of a part is not of interest
    try:
        for number in range(folds):
            inside = fold == number
            part = fit(logits[~inside], labels[~inside], schema, objectives=objectives, isotonic=isotonic, costs=costs)
            after[inside] = part.calibrate(logits[inside], schema)
            for name in objectives:
                settled, biases = part.settle(schema, name), part.bias_table(schema, name)
                answers[name][inside] = decide(after[inside], settled, None, biases)
            priors = [np.asarray(part.of(one).prior) for one in schema]
            for row, shift in enumerate(shifts):
                along[row, inside] = _pooled_answers(after[inside], schema, priors, shift)
    finally:
        silent.setLevel(level)
    start = label_softmax(logits, schema) if before is None else before.calibrate(logits, schema)
    biases = None if before is None else before.bias_table(schema)
    answers = {"before": decide(start, schema, None, biases), **answers}
    metrics, rows = {}, {}
    for name, given in answers.items():
        report = _report(given, labels, schema)
        claimed, truth = label_columns(start if name == "before" else after, labels, schema)
        metrics[name] = {
            **{key: report["metrics"][key] for key in SHOWN},
            "calibration_error": calibration_error(claimed, truth),
            "brier": brier_score(claimed, truth),
        }
        rows[name] = report["attributes"]
    curve = [_report(one, labels, schema)["metrics"] for one in along]
    return {
        "measured": f"cross-fitted in {folds} parts",
        "metrics": metrics,
        "by_attribute": rows,
        "reliability": {
            name: reliability_bins(*label_columns(p, labels, schema))
            for name, p in (("before", start), ("after", after))
        },
        "curves": {
            "pooled": [[one["mA"], one["instance_f1_harmonic"]] for one in curve],
            "points": {name: [one["mA"], one["instance_f1_harmonic"]] for name, one in metrics.items()},
        },
    }


def _index(groups: Sequence) -> np.ndarray:
    found: dict[Any, int] = {}
    return np.array([found.setdefault(one, len(found)) for one in groups])


def _pooled_answers(probabilities, schema, priors, shift: float) -> np.ndarray:
    """Answers where `shift` times the log shares are taken from the log probabilities: 0 for accuracy, 1 for mA."""
    weights = np.ones(probabilities.shape[1:])
    for a, prior in enumerate(priors):
        weights[a, : len(prior)] = prior**-shift
    return (probabilities * weights).argmax(-1)


def _report(answers: np.ndarray, labels: np.ndarray, schema: AttributeSchema) -> dict[str, Any]:
    certain = np.eye(schema.max_labels)[answers]
    return ParMetrics(schema, inputs="probabilities").report((certain, labels), bootstrap=0)


# What is written


def _attribute_rows(decisions: Decisions, schema: AttributeSchema, report: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for a, one in enumerate(schema):
        own = decisions.of(one)
        row: dict[str, Any] = {"name": one.name, "temperature": 1 / own.gain, "threshold": None, "own_weight": None}
        if one.is_binary:
            row["threshold"] = one.threshold
        if own.examples is not None:
            row |= {"examples": list(own.examples), "own_weight": own_weight(own.examples)}
            found = {name: rows_of[a] for name, rows_of in report["by_attribute"].items()}
            row |= {f"mA_{name}": one_row["mA"] for name, one_row in found.items()}
        rows.append(row)
    return rows


def _title(full: dict[str, Any]) -> str:
    data = full["data"]
    return f"{data['name']}, {data.get('split', 'images')}, {data['pictures']:,} pictures"


def _markdown(full: dict[str, Any]) -> str:
    lines = [f"# Decisions: {markdown_text(_title(full))}", "", f"Objective in use: `{full['objective']}`.", ""]
    if full["priors_only"]:
        lines += [
            "**Fitted without labels**, under the assumption that only the shares of the labels differ.", "",
            "| attribute | share before | share now | threshold |", "|---|---|---|---|",
        ]  # fmt: skip
        for row in full["attributes"]:
            shares = full["shares"][row["name"]]
            before, now = (" / ".join(format_percent(x) for x in shares[key]) for key in ("before", "now"))
            lines.append(f"| {markdown_text(row['name'])} | {before} | {now} | {_three(row['threshold'])} |")
        return "\n".join(lines) + "\n"
    lines += [
        f"Measured on the same pictures, {full['measured']}: each is answered by a fit on others.", "",
        "| answers for | mA | instance F1 | label F1 | accuracy | ECE | Brier |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, one in full["metrics"].items():
        cells = [format_percent(one[key]) for key in SHOWN]
        cells += [f"{one['calibration_error']:.3f}", f"{one['brier']:.3f}"]
        lines.append(f"| {markdown_text(name)} | {' | '.join(cells)} |")
    objective = full["objective"]
    lines += [
        "",
        "*own* is how much of a threshold that is searched for is the attribute's own; the rest is the rule of all "
        "attributes. (Those of mA, accuracy and cost are not searched for: they follow from shares and costs.)",
        "", "| attribute | rarest label | own | threshold | temperature | mA before | mA |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in full["attributes"]:
        lines.append(
            f"| {markdown_text(row['name'])} | {min(row['examples']):,} | {format_percent(row['own_weight'])} | "
            f"{_three(row['threshold'])} | {row['temperature']:.2f} | {format_percent(row['mA_before'])} | "
            f"{format_percent(row[f'mA_{objective}'])} |"
        )
    return "\n".join(lines) + "\n"


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
