"""Evaluation records, as `vlm-par evaluate` writes them, and what a model card may claim from one."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.utils import read_json


__all__ = [
    "DATASETS",
    "METRICS",
    "SYNTHETIC",
    "convention_text",
    "dataset_title",
    "find_records",
    "finite_metrics",
    "interval_note",
    "is_dataset_result",
    "is_partial",
    "is_repository",
    "is_synthetic",
    "left_out_of_ranking",
    "metric_text",
    "read_record",
]

DATASETS = {
    "pa100k": "PA-100K",
    "peta35": "PETA, 35 attributes",
    "peta65": "PETA, 65 attributes",
    "market1501": "Market-1501 Attribute",
    "market1501_30": "Market-1501 Attribute, 30 binary attributes",
    "rapv1": "RAP v1",
    "rapv2": "RAP v2",
    "upar": "UPAR",
    "rendered": "SYNTHETIC renderings of pedestrians",
    "synthetic": "SYNTHETIC drawings of pedestrians",
}
# Data that were made here and show nobody: their name -> what they are.
SYNTHETIC = {"rendered": "renderings", "synthetic": "drawings"}
# A result on another number of images is shown in the card, but not as a result on the official split.
OFFICIAL_IMAGES = {("pa100k", "validation"): 10_000, ("pa100k", "test"): 10_000}
METRICS = {
    "mA": "mean over attributes of the mean recall over its labels",
    "plain_accuracy": "share of known labels whose predicted class is right",
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
    return bool(record["data"].get("synthetic")) or record["data"]["name"] in SYNTHETIC


def is_partial(record: Mapping[str, Any]) -> bool:
    """Whether only a part of the data set's split was measured."""
    data = record["data"]
    official = OFFICIAL_IMAGES.get((data["name"], data["split"]))
    return bool(data.get("skipped_images")) or (official is not None and data["images"] != official)


def is_dataset_result(record: Mapping[str, Any]) -> bool:
    """Whether the record may be published as a result on its data set: all of a test split, no drawings."""
    return record["data"]["split"] == "test" and not is_synthetic(record) and not is_partial(record)


def dataset_title(record: Mapping[str, Any]) -> str:
    """The name of the data set in a card."""
    name = DATASETS.get(record["data"]["name"], record["data"]["name"])
    return f"part of {name}" if is_partial(record) else name


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
