"""`prepare_dataset`: checks every image and label of a data set and writes it as parquet with the images inside.

    OUT/data/train-00000-of-00020.parquet ...    what `load_dataset(OUT)` and `load_par_dataset("hub", OUT)` read
    OUT/schema.json                              the attributes: what the labels mean
    OUT/report.json                              what was counted and what is wrong
    OUT/README.md                                the card of the data set

Work that was interrupted goes on where it stopped: each parquet file appears under its name when it is complete, and
`OUT/.work` remembers what was counted in it. Memory holds one batch of images and the labels.
"""

import hashlib
import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_par_hf.images.opening import open_image
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema, check_label_range
from vlm_par_hf.utils import atomic_write_json, atomic_write_text, require

from .carried import dataset_schema
from .loading import load_par_dataset
from .prepared import REPORT_FILE, SCHEMA_FILE


if TYPE_CHECKING:
    import datasets


__all__ = ["prepare_dataset"]

logger = logging.getLogger(__name__)

_BATCH = 100  # images per row group: what the viewer of the Hub likes, and all that memory holds
_CHOICES = ("error", "skip")
_LISTED = 20  # how many examples a report names


def prepare_dataset(
    name: str,
    root: str | os.PathLike | None,
    out: str | os.PathLike,
    *,
    broken: str = "error",
    images_per_file: int = 5000,
    overwrite: bool = False,
    push_to_hub: str | None = None,
    private: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Checks a data set and writes it as parquet.

    Args:
        name, root, options: as for `load_par_dataset` (`partition`, `missing`, `seed`, `schema`, ...).
        out: the folder to write; work interrupted there is continued.
        broken: what images that cannot be read do: `"error"` (report all of them, then raise) or `"skip"` (leave them
            out, and say so in the report).
        images_per_file: rows of one parquet file.
        overwrite: start anew where `out` holds the work of other arguments.
        push_to_hub: `"org/name"`: uploads the folder to this data set repository.
        private: whether that repository is private when it is made.

    Returns:
        The report, as in `report.json`: per split the numbers of images, persons, labels of each attribute and
        violated groups; images that are broken; images with the same content and persons in more than one split.

    Raises:
        ValueError: a wrong argument, a label out of range, broken images with `broken="error"`, work of other
            arguments in `out`, or a public upload of a data set that must not be passed on.
        OSError: the Hub refused or went away; run again, only the upload is repeated.
        What `load_par_dataset` raises.
    """
    if broken not in _CHOICES:
        raise ValueError(f"broken is {broken!r}; expected one of {_CHOICES}")
    if isinstance(images_per_file, bool) or not isinstance(images_per_file, int) or images_per_file < 1:
        raise ValueError(f"images_per_file is {images_per_file!r}; expected a positive integer")
    require("datasets", "train")
    out = Path(out)
    data = load_par_dataset(name, root, **options)
    schema = dataset_schema(data)
    info = next(iter(data.values())).info
    if push_to_hub is not None and not private and "no redistribution" in info.license:
        raise ValueError(
            f"private is False, but {name!r} must not be passed on ({info.license}); expected private=True"
        )
    labels = {split: _read_labels(dataset, schema, f"{name}, {split}") for split, dataset in data.items()}
    _begin(out, _fingerprint(name, data, labels, schema, images_per_file), overwrite)

    counted = {split: _write_split(out, split, dataset, images_per_file) for split, dataset in data.items()}
    report = _make_report(name, data, labels, schema, counted)
    atomic_write_json(out / REPORT_FILE, report)
    bad = report["broken_images"]
    if bad["count"] and broken == "error":
        first = bad["first"][0]
        raise ValueError(
            f"{bad['count']} images cannot be read, the first is {first['image_id']!r}: {first['error']}; see "
            f'{out / REPORT_FILE}, mend them and run again, or pass broken="skip" to leave them out'
        )
    schema.to_json(out / SCHEMA_FILE)
    title = Path(root).resolve().name if name == "folder" else name
    atomic_write_text(out / "README.md", _card(title, push_to_hub, report, schema, info))
    for line in _warnings(report):
        logger.warning("%s", line)
    if push_to_hub is not None:
        _push(out, push_to_hub, private)
    return report


def _read_labels(dataset: "datasets.Dataset", schema: AttributeSchema, where: str) -> np.ndarray:
    column = dataset.with_format("numpy", columns=["labels"])[:]["labels"] if len(dataset) else []
    labels = np.asarray(column, np.int64).reshape(-1, len(schema))
    check_label_range(labels, schema, f"{where}: labels")
    return labels


def _fingerprint(name, data, labels, schema, images_per_file) -> dict[str, Any]:
    """What decides the files: where it differs, finished files are of another data set."""
    digest = hashlib.blake2b(digest_size=16)
    for split, dataset in data.items():
        digest.update(
            json.dumps([split, dataset["image_id"][:] if "image_id" in dataset.column_names else []]).encode()
        )
        digest.update(labels[split].tobytes())
    return {
        "name": name,
        "images_per_file": images_per_file,
        "images": {split: len(dataset) for split, dataset in data.items()},
        "rows": digest.hexdigest(),
        "attributes": schema.to_list(),
    }


def _begin(out: Path, fingerprint: dict[str, Any], overwrite: bool) -> None:
    path = out / ".work" / "arguments.json"
    if overwrite:
        for folder in (out / "data", out / ".work"):
            shutil.rmtree(folder, ignore_errors=True)
    elif path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != fingerprint:
            raise ValueError(
                f"out={str(out)!r} holds the work of other arguments or of another state of the data; expected an "
                "empty folder, or overwrite=True"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"out={str(out)!r} is not empty; expected a new folder, or overwrite=True")
    (out / "data").mkdir(parents=True, exist_ok=True)
    atomic_write_json(path, fingerprint)


def _write_split(out: Path, split: str, dataset: "datasets.Dataset", images_per_file: int) -> list[dict[str, Any]]:
    """Writes the files of a split that are not there yet; returns what was counted in each."""
    import datasets
    from huggingface_hub.utils import tqdm

    raw = dataset.with_format(None).cast_column("image", datasets.Image(decode=False))
    count = max(1, -(-len(raw) // images_per_file))
    counted = []
    with tqdm(total=len(raw), desc=f"checking {split}", unit="image") as bar, ThreadPoolExecutor() as pool:
        for number in range(count):
            rows = range(number * images_per_file, min(len(raw), (number + 1) * images_per_file))
            name = f"{split}-{number:05d}-of-{count:05d}"
            done = out / ".work" / f"{name}.json"
            path = out / "data" / f"{name}.parquet"
            found = json.loads(done.read_text(encoding="utf-8")) if done.is_file() and path.is_file() else None
            if found is None or found["broken"]:  # broken images may have been mended since
                found = _write_file(path, raw, rows, dataset.features, pool, bar)
                atomic_write_json(done, found)
            else:
                bar.update(len(rows))
            counted.append(found)
    return counted


def _write_file(path: Path, raw, rows: range, features, pool, bar) -> dict[str, Any]:
    import pyarrow.parquet

    found: dict[str, Any] = {"rows": [], "contents": [], "sizes": [], "broken": []}
    partial = path.with_name(f".{path.name}.partial")
    schema = features.arrow_schema  # with the features inside: readers know the image column
    with pyarrow.parquet.ParquetWriter(partial, schema) as writer:
        for start in range(rows.start, rows.stop, _BATCH):
            batch = [raw[index] for index in range(start, min(start + _BATCH, rows.stop))]
            kept = []
            for offset, (row, checked) in enumerate(zip(batch, pool.map(_check_image, batch))):
                if "error" in checked:
                    found["broken"].append({"row": start + offset, "image_id": _image_id(row), **checked})
                    continue
                found["rows"].append(start + offset)
                found["contents"].append(checked["content"])
                found["sizes"].append(checked["size"])
                kept.append({**row, "image": {"bytes": checked["bytes"], "path": os.path.basename(_image_id(row))}})
            if kept:
                columns = {name: [row[name] for row in kept] for name in features}
                writer.write_table(pyarrow.table(columns, schema=schema))
            bar.update(len(batch))
    os.replace(partial, path)
    return found


def _image_id(row: dict[str, Any]) -> str:
    return row.get("image_id") or row["image"].get("path") or "image"


def _check_image(row: dict[str, Any]) -> dict[str, Any]:
    image = row["image"]
    try:
        data = image.get("bytes")
        if data is None:
            data = Path(image["path"]).read_bytes()
        picture = open_image({"bytes": data, "path": image.get("path")})
    except (OSError, ValueError) as error:
        return {"error": str(error)}
    content = hashlib.blake2b(picture.tobytes(), digest_size=16, key=repr(picture.size).encode()).hexdigest()
    return {"bytes": data, "content": content, "size": picture.size}


def _make_report(name, data, labels, schema, counted) -> dict[str, Any]:
    splits, broken = {}, []
    place_of: dict[str, tuple[str, str]] = {}
    same, same_across = [], []
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
                first = place_of.setdefault(content, (split, ids[row]))
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
    for split, dataset in data.items():  # what cannot be read is missing from the split, as a file that is not there
        lost = len(dataset) - splits[split]["images"]
        if lost:
            skipped = notes.setdefault("skipped_images", {})
            skipped[split] = skipped.get(split, 0) + lost
    return {
        "name": name,
        "package": _package_version(),
        "notes": notes,
        "splits": splits,
        "broken_images": {"count": len(broken), "first": broken[:_LISTED]},
        "same_content_within_a_split": {"count": len(same), "first": same[:_LISTED]},
        "same_content_across_splits": {"count": len(same_across), "first": same_across[:_LISTED]},
        "persons_in_several_splits": {
            "count": len(shared_persons),
            "first": sorted(map(str, shared_persons))[:_LISTED],
        },
    }


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


def _warnings(report: dict[str, Any]) -> list[str]:
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
        empty = [
            attribute for attribute, row in part["labels"].items() if sum(n > 0 for n in row["counts"].values()) < 2
        ]
        if empty:
            lines.append(f"{report['name']}: in {split} {len(empty)} attributes have one label only: {empty[:5]}")
    return lines


def _card(
    title: str, repository: str | None, report: dict[str, Any], schema: AttributeSchema, info: "datasets.DatasetInfo"
) -> str:
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
    drawn = ["**SYNTHETIC**: drawings of pedestrians, no photographs.", ""] if report["name"] == "synthetic" else []
    body = [
        "---",
        "",
        f"# {title}",
        "",
        *drawn,
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


def _push(out: Path, repository: str, private: bool) -> None:
    from vlm_par_hf.hub.pushing import push_folder

    push_folder(
        out,
        repository,
        repo_type="dataset",
        private=private,
        ignore_patterns=[".work/*", "data/.*"],
        # Files of an earlier upload beside these would be read as one data set with them.
        replaced_folder="data",
        commit_message="Data set prepared with vlm_par_hf",
    )
    logger.info("uploaded %s to the data set repository %s", out, repository)
