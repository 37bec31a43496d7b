"""Evaluation records, as `vlm-par evaluate` writes them, and what a model card may claim from one."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.escaping import markdown_text
from vlm_par_hf.utils import format_percent, read_json


__all__ = [
    "DATASETS",
    "METRICS",
    "SYNTHETIC",
    "backbone_repositories",
    "consistency_note",
    "convention_text",
    "dataset_title",
    "find_records",
    "finite_metrics",
    "has_synthetic",
    "interval_note",
    "is_dataset_result",
    "is_partial",
    "is_repository",
    "is_synthetic",
    "label_space_note",
    "left_out_of_ranking",
    "metric_text",
    "read_record",
    "slice_lines",
    "slice_table",
    "source_table",
]

DATASETS = {
    "pa100k": "PA-100K",
    "peta35": "PETA, 35 attributes",
    "peta65": "PETA, 65 attributes",
    "market1501": "Market-1501 Attribute",
    "market1501_30": "Market-1501 Attribute, 30 binary attributes",
    "mivia5": "MIVIA PAR",
    "mars": "MARS-Attribute",
    "duke_video": "DukeMTMC-VID-Attribute",
    "rapv1": "RAP v1",
    "rapv2": "RAP v2",
    "upar": "UPAR",
    "rendered": "SYNTHETIC renderings of pedestrians",
    "rendered_tracklets": "SYNTHETIC renderings of pedestrians, several frames of each",
    "synthetic": "SYNTHETIC drawings of pedestrians",
    "synthetic_tracklets": "SYNTHETIC drawings of pedestrians, several frames of each",
}
# Data that were made here and show nobody: their name -> what they are.
SYNTHETIC = {
    "rendered": "renderings", "synthetic": "drawings", "rendered_tracklets": "renderings",
    "synthetic_tracklets": "drawings",
}  # fmt: skip
# A result on another number of images is shown in the card, but not as a result on the official split.
OFFICIAL_IMAGES = {("pa100k", "validation"): 10_000, ("pa100k", "test"): 10_000}
METRICS = {
    "mA": "mean over attributes of the mean recall over its labels",
    "plain_accuracy": "share of known labels whose predicted class is right",
    "accuracy_macro": "mean over attributes of the share of known labels whose predicted class is right",
    "instance_accuracy": "mean over images of (predicted and true) / (predicted or true)",
    "instance_precision": "mean over images of (predicted and true) / predicted",
    "instance_recall": "mean over images of (predicted and true) / true",
    "instance_f1_harmonic": "harmonic mean of mean instance precision and mean instance recall",
    "instance_f1_mean": "mean over images of each image's F1",
    "label_f1_macro": "mean over attributes of the F1 of yes",
    "f1_micro": "F1 of yes, counts pooled over attributes and images",
    "f1_weighted": "mean over attributes of the F1 of every label, weighted by how often it occurs",
    "auc_macro": "mean over attributes of the area under the ROC curve of yes, without a threshold; chance is 50",
    "average_precision_macro": "mean over attributes of the average precision of yes, without a threshold",
    "mA_min_positives": "mA over the attributes with enough positives in the split",
}
_REQUIRED_KEYS = {"data": ("name", "split", "images"), "metrics": (), "attributes": (), "preset": ()}


def find_records(checkpoint: str | Path) -> list[Path]:
    """The files of evaluation records in a checkpoint folder: `metrics.json` and `evaluation_*/metrics.json`."""
    folder = Path(checkpoint)
    return [
        path for path in (folder / "metrics.json", *sorted(folder.glob("evaluation_*/metrics.json"))) if path.is_file()
    ]


def read_record(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Reads an evaluation record from its file, or takes it as a dict, and checks that its parts are there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no record of `vlm-par evaluate`; the message names the missing part.
    """
    if isinstance(source, Mapping):
        record, name = dict(source), "metrics"
    else:
        name = f"metrics={str(source)!r}"
        if not Path(source).is_file():
            raise ParFileNotFoundError(f"{name}: no such file, expected the metrics.json that vlm-par evaluate writes")
        try:
            record = read_json(Path(source).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ParValueError(f"{name} is no JSON file: {error}") from error
    for part, keys in _REQUIRED_KEYS.items():
        missing = part if not isinstance(record, dict) or part not in record else None
        missing = missing or next((f"{part}.{key}" for key in keys if key not in record[part]), None)
        if missing:
            raise ParValueError(
                f"{name} lacks {missing!r}, expected a record as vlm-par evaluate writes it (metrics.json)"
            )
    return record


def is_synthetic(record: Mapping[str, Any]) -> bool:
    """Whether the result was measured on drawings or renderings."""
    return bool(record["data"].get("synthetic")) or has_synthetic(record["data"]["name"])


def has_synthetic(name: Any) -> bool:
    """Whether a data set, or one of several ("pa100k+rendered"), is drawings or renderings."""
    return any(one in SYNTHETIC for one in str(name).split("+"))


def source_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """The metrics of each of several data sets that were measured together, as plain text: head and rows."""
    sources = record.get("sources")
    if not sources:
        return None
    names = [
        name
        for name in ("mA", "mA_fitted", "instance_f1_harmonic", "instance_f1_harmonic_fitted", "auc_macro")
        if any(name in one["metrics"] for one in sources)
    ]
    rows = [
        [f"{one['name']} (SYNTHETIC)" if has_synthetic(one["name"]) else one["name"], f"{one['images']:,}",
         str(one["attributes"]), *(format_percent(one["metrics"].get(name)) or "undefined" for name in names)]
        for one in sources
    ]  # fmt: skip
    return ["data set", "images", "attributes", *names], rows


def is_partial(record: Mapping[str, Any]) -> bool:
    """Whether only a part of the data set's split was measured."""
    data = record["data"]
    official = OFFICIAL_IMAGES.get((data["name"], data["split"]))
    return bool(data.get("skipped_images")) or (official is not None and data["images"] != official)


def is_dataset_result(record: Mapping[str, Any]) -> bool:
    """Whether the record may be published as a result on its data set: all of a test split and of its attributes, no
    drawings."""
    own = not record.get("label_space")
    return record["data"]["split"] == "test" and own and not is_synthetic(record) and not is_partial(record)


def dataset_title(record: Mapping[str, Any]) -> str:
    """The name of the data set in a card."""
    name = DATASETS.get(record["data"]["name"], record["data"]["name"])
    name = f"part of {name}" if is_partial(record) else name
    return f"{len(record['attributes'])} attributes of {name}" if record.get("label_space") else name


def finite_metrics(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Names and values of the metrics that are defined."""
    return [
        (name, float(value))
        for name, value in record["metrics"].items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    ]


def metric_text(metric: str) -> str:
    """What a metric is; empty for one that nothing is known of."""
    text = METRICS.get(metric.removesuffix("_fitted"), "")
    return f"{text}; by fitted thresholds" if text and metric.endswith("_fitted") else text


def convention_text(record: Mapping[str, Any], metric: str = "") -> str:
    """The convention and the threshold of the metrics, or of one of them, in words."""
    if metric.endswith("_fitted"):
        return f"convention {record['preset']}, fitted thresholds"
    threshold = record.get("threshold")
    if threshold is None:
        threshold = (record.get("convention") or {}).get("threshold")
    threshold_text = "each attribute's own threshold" if threshold == "schema" else f"threshold {threshold}"
    return f"convention {record['preset']}" + (f", {threshold_text}" if threshold is not None else "")


def interval_note(record: Mapping[str, Any], metric: str) -> str:
    """The bootstrap interval of a metric, in words, after a semicolon; empty if there is none."""
    interval = (record.get("intervals") or {}).get(metric)
    if not interval:
        return ""
    level = f"{100 * record.get('confidence', 0.95):g}%"
    return (
        f"; {level} bootstrap interval over {record.get('resampled', 'images')} {interval[0]:.4f} to {interval[1]:.4f}"
    )


def left_out_of_ranking(record: Mapping[str, Any]) -> str:
    """Which attributes `auc_macro` and `average_precision_macro` leave out, as a sentence; empty if none."""
    ranked = record.get("ranked") or {}
    names = ranked.get("left_out") or []
    if not names:
        return ""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (
        f"auc_macro and average_precision_macro are over {ranked['attributes']} of "
        f"{ranked['attributes'] + len(names)} attributes; of the others one label occurs at most: "
        f"{', '.join(names[:10])}{more}."
    )


def label_space_note(record: Mapping[str, Any]) -> str:
    """On which attributes a checkpoint with another label space was measured, as sentences; empty with its own."""
    space = record.get("label_space")
    if not space:
        return ""
    named = [name if name == source else f"{name} ({source})" for name, source in space["attributes"].items()]
    text = f"The checkpoint has another label space; measured are {len(named)} attributes that both have: "
    text += f"{', '.join(named)}."
    for title, key in (
        ("Matched by their name alone, although they ask another question", "matched_by_name_alone"),
        ("Answered from their texts, untrained", "zero_shot"),
        ("Left out", "left_out"),
    ):
        if space[key]:
            text += f" {title}: {', '.join(space[key])}."
    return text


def consistency_note(record: Mapping[str, Any]) -> str:
    """How often answers contradict each other, as a sentence; empty if the label space has no rules."""
    found = record.get("consistency")
    if not found:
        return ""
    count = found["before"]["violations"]["people"]
    before, after = (found[when]["metrics"] for when in ("before", "after"))
    changes = ", ".join(
        f"{name} {100 * before[name]:.2f} to {100 * after[name]:.2f}"
        for name in ("mA", "instance_f1_harmonic")
        if name in before and name in after
    )
    return (
        f"Answers contradict each other for {count:,} of {record['data']['images']:,} people, for "
        f"{found['after']['violations']['people']:,} after they are made consistent, which changes {changes}."
    )


def slice_rows(record: Mapping[str, Any], slicing: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of one slicing as plain text: its head, and a row per slice that is shown."""
    people = (record.get("slices") or {}).get("people", "images")
    metrics = list(slicing["all"]["metrics"]) if slicing["all"] else []
    head = [slicing["name"], people, *(f"{name}" for name in metrics), "mA interval"]
    rows = []
    for one in [*slicing["slices"], *([slicing["all"]] if slicing["all"] else [])]:
        interval = one["intervals"].get("mA")
        shown = f"{format_percent(interval[0])} to {format_percent(interval[1])}" if interval else ""
        values = [format_percent(one["metrics"][name]) or "undefined" for name in metrics]
        rows.append([one["slice"] or "all", f"{one['people']:,}", *values, shown])
    return head, rows


def slice_notes(record: Mapping[str, Any], slicing: Mapping[str, Any], most: int = 5) -> list[str]:
    """What is to be said of one slicing, as sentences: what is not shown, what is compared, the worst slice, gaps."""
    slices = record["slices"]
    least, people = slices["min_people"], slices["people"]
    notes = []
    if slicing["not_shown"]:
        named = ", ".join(f"{name} ({count})" for name, count in slicing["not_shown"].items())
        notes.append(f"Not shown, fewer than {least} {people}: {named}.")
    if not slicing["all"]:
        return [*notes, "Nothing can be compared."]
    notes.append(f"Over {len(slicing['compared'])} attributes, whose labels occur in all slices.")
    worst = slicing["worst"]
    if worst:
        notes.append(
            f"Worst is {worst['slice']}, {100 * worst['difference']:.1f} points of mA below {worst['best']}"
            f"{_in_points(worst['interval'])}."
        )
    gaps = [
        f"{gap['attribute']}{'' if gap['label'] == 'yes' else ' ' + gap['label']} {100 * gap['difference']:.1f}"
        f"{_in_points(gap['interval'])} between {gap['lowest']['slice']} ({100 * gap['lowest']['recall']:.1f}) and "
        f"{gap['highest']['slice']} ({100 * gap['highest']['recall']:.1f})"
        for gap in slicing["gaps"][:most]
    ]
    if gaps:
        notes.append(f"Largest gaps in true-positive rates, of {len(slicing['gaps'])}: {'; '.join(gaps)}.")
    return notes


def _in_points(interval: list[float] | None) -> str:
    return f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""


def slice_lines(record: Mapping[str, Any], slicing: Mapping[str, Any]) -> list[str]:
    """One slicing for a terminal."""
    head, rows = slice_rows(record, slicing)
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = [""] + ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
    return lines + ["  " + note for note in slice_notes(record, slicing)]


def slice_table(record: Mapping[str, Any], slicing: Mapping[str, Any]) -> list[str]:
    """One slicing as lines of Markdown."""
    head, rows = slice_rows(record, slicing)
    lines = ["| " + " | ".join(markdown_text(cell) for cell in line) + " |" for line in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return [*lines, "", " ".join(markdown_text(note) for note in slice_notes(record, slicing))]


def backbone_repositories(name: str | None) -> list[str]:
    """The repositories of the Hub that a checkpoint was built over: one, or with a plus between their names several;
    empty where one of them is none."""
    names = (name or "").split("+")
    return names if all(map(is_repository, names)) else []


def is_repository(name: str | None) -> bool:
    """Whether `name` can be the name of a model or data set on the Hub, and is not a local path or a name of ours."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not name or "/" not in name or Path(name).is_absolute() or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
