"""What `prepare_dataset` found in a data set: the report, its warnings and the card."""

import json
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_par_hf.hub.records import SYNTHETIC
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema

from .prepared import SCHEMA_FILE


if TYPE_CHECKING:
    import datasets


__all__ = ["build_card", "build_report", "one_label_warning", "report_warnings"]

_NUM_EXAMPLES = 20  # how many examples of each problem a report names


def build_report(
    name: str,
    data: "datasets.DatasetDict",
    labels: dict[str, np.ndarray],
    schema: AttributeSchema,
    counted: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """The report of a prepared data set, as plain JSON.

    Args:
        name: the name of the data set.
        data: its splits.
        labels: int64 `(S, A)` per split, -100 if unknown.
        schema: what the labels mean.
        counted: per split, for each of its files: `rows` that were written, hash (`contents`) and size (`sizes`) of
            their images, and `broken` images.
    """
    splits, broken = {}, []
    first_with: dict[str, tuple[str, str]] = {}  # content -> split and id of the first image with it
    same, same_across = [], []  # images with equal pixels, within a split and across splits
    split_of_person: dict[Any, str] = {}
    shared_persons = set()
    for split, dataset in data.items():
        ids = dataset["image_id"][:] if "image_id" in dataset.column_names else [str(i) for i in range(len(dataset))]
        persons = dataset["person_id"][:] if "person_id" in dataset.column_names else []
        for person in set(persons) - {None}:
            if split_of_person.setdefault(person, split) != split:
                shared_persons.add(person)
        rows, sizes = [], []
        for part in counted[split]:
            broken += [{"split": split, **item} for item in part["broken"]]
            rows += part["rows"]
            sizes += part["sizes"]
            for row, content in zip(part["rows"], part["contents"]):
                first = first_with.setdefault(content, (split, ids[row]))
                if first != (split, ids[row]):
                    (same if first[0] == split else same_across).append([*first, split, ids[row]])
        good = labels[split][rows] if rows else labels[split][:0]
        splits[split] = {
            "images": len(rows),
            "persons": len(set(persons) - {None}),
            "size": _describe_sizes(sizes),
            "labels": _count_labels(good, schema),
            "images_that_break_a_group": _count_group_violations(good, schema),
        }
    notes = json.loads(next(iter(data.values())).info.description or "{}")
    notes.pop("attributes", None)
    for split, dataset in data.items():  # an image that cannot be read counts as skipped, like one without a file
        left_out = len(dataset) - splits[split]["images"]
        if left_out:
            skipped = notes.setdefault("skipped_images", {})
            skipped[split] = skipped.get(split, 0) + left_out
    return {
        "name": name,
        "package": _package_version(),
        "notes": notes,
        "splits": splits,
        "broken_images": {"count": len(broken), "first": broken[:_NUM_EXAMPLES]},
        "same_content_within_a_split": {"count": len(same), "first": same[:_NUM_EXAMPLES]},
        "same_content_across_splits": {"count": len(same_across), "first": same_across[:_NUM_EXAMPLES]},
        "persons_in_several_splits": {
            "count": len(shared_persons),
            "first": sorted(map(str, shared_persons))[:_NUM_EXAMPLES],
        },
    }


def report_warnings(report: dict[str, Any]) -> list[str]:
    """One line for each kind of problem in a report."""
    lines = [
        f"{report['name']}: {report[key]['count']} {text}, the first: {report[key]['first'][0]}"
        for key, text in (
            ("broken_images", "images could not be read and are left out"),
            ("same_content_across_splits", "images have the content of an image in another split"),
            ("persons_in_several_splits", "persons appear in more than one split"),
        )
        if report[key]["count"]
    ]
    for split, part in report["splits"].items():
        line = _describe_one_label(report["name"], split, part["labels"])
        if line:
            lines.append(line)
    return lines


def one_label_warning(name: str, split: str, labels: np.ndarray, schema: AttributeSchema) -> str | None:
    """A sentence about the attributes of which a split has one label only, or None.

    Nothing can be learnt of such an attribute, and no metric says how well it is recognised.

    Args:
        name: of the data set.
        split: of the labels.
        labels: int64 `(S, A)`, -100 if unknown.
        schema: what they mean.
    """
    return _describe_one_label(name, split, _count_labels(labels, schema))


def _describe_one_label(name: str, split: str, table: dict[str, dict[str, Any]]) -> str | None:
    kinds = {attribute: [label for label, n in row["counts"].items() if n] for attribute, row in table.items()}
    poor = [
        f"{attribute} ({', '.join(found) or 'all unknown'})" for attribute, found in kinds.items() if len(found) < 2
    ]
    if not poor:
        return None
    more = f" and {len(poor) - 5} more" if len(poor) > 5 else ""
    return f"{name}: in {split} {len(poor)} attributes have one label only: {', '.join(poor[:5])}{more}"


def build_card(
    title: str, repository: str | None, report: dict[str, Any], schema: AttributeSchema, info: "datasets.DatasetInfo"
) -> str:
    """The card of a prepared data set as Markdown, with the metadata that the Hub reads."""
    known = {"cc-by-4.0", "cc-by-nc-sa-3.0", "apache-2.0", "mit"}
    license_id = info.license.split(" ")[0].lower()
    head = ["---", f"license: {license_id if license_id in known else 'other'}"]
    if license_id not in known and info.license:
        head += ["license_name: see-below"]
    head += ["task_categories:", "- image-classification", "tags:", "- pedestrian-attribute-recognition", "configs:"]
    head += ["- config_name: default", "  data_files:"]
    for split in report["splits"]:
        head += [f"  - split: {split}", f"    path: data/{split}-*.parquet"]
    division = report["notes"].get("division", "see the source")
    made = SYNTHETIC.get(report["name"])
    synthetic = [f"**SYNTHETIC**: {made} of pedestrians, no photographs.", ""] if made else []
    body = [
        "---",
        "",
        f"# {title}",
        "",
        *synthetic,
        f"{len(schema)} attributes of pedestrians (`{SCHEMA_FILE}`), prepared with vlm_par_hf {report['package']}.",
        f"Division: {division}. Licence of the source: {info.license or 'not stated'}. {info.homepage}",
        "",
        "```python",
        "from vlm_par_hf import load_par_dataset",
        f'data = load_par_dataset("hub", "{repository or "the folder of this file"}")',
        "```",
        "",
        "| split | images | persons |",
        "|---|---|---|",
        *(f"| {split} | {part['images']} | {part['persons'] or ''} |" for split, part in report["splits"].items()),
        "",
        "`labels`: one class index per attribute, -100 where unknown. Gender and age are what annotators perceived.",
        "",
        info.citation,
        "",
    ]
    return "\n".join([*head, *body])


def _package_version() -> str:
    try:
        return version("vlm-par-hf")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


def _describe_sizes(sizes: list) -> dict[str, list[int]]:
    if not sizes:
        return {}
    values = np.asarray(sizes)
    return {
        "smallest": values.min(axis=0).tolist(),
        "median": np.median(values, axis=0).astype(int).tolist(),
        "largest": values.max(axis=0).tolist(),
    }


def _count_labels(labels: np.ndarray, schema: AttributeSchema) -> dict[str, dict[str, Any]]:
    """Per attribute how often each label occurs, how many are unknown, and the prior of each label."""
    table = {}
    for position, attribute in enumerate(schema):
        column = labels[:, position]
        known = column[column != UNKNOWN_LABEL]
        counts = np.bincount(known, minlength=attribute.num_labels)
        table[attribute.name] = {
            "counts": dict(zip(attribute.labels, counts.tolist())),
            "unknown": int(len(column) - len(known)),
            "priors": [round(float(count) / len(known), 6) for count in counts] if len(known) else None,
        }
    return table


def _count_group_violations(labels: np.ndarray, schema: AttributeSchema) -> dict[str, int]:
    return {group: int(((labels[:, members] == 1).sum(axis=1) > 1).sum()) for group, members in schema.groups.items()}
