"""`prepare_dataset`: checks every image and label of a data set and writes it as parquet with the images inside.

    OUT/data/train-00000-of-00020.parquet ...    what `load_dataset(OUT)` and `load_par_dataset("hub", OUT)` read
    OUT/schema.json                              the attributes: what the labels mean
    OUT/report.json                              what was counted and what is wrong
    OUT/README.md                                the card of the data set

An interrupted run continues where it stopped: a parquet file gets its final name only when it is complete, and
`OUT/.work` holds its checksum and what was counted in it. One process writes the folder, and what it wrote is listed
(`output_folders`). Memory holds one batch of images and the labels.
"""

import hashlib
import json
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_par_hf.errors import ParFileExistsError, ParValueError
from vlm_par_hf.images.opening import open_image
from vlm_par_hf.images.regions import encode_image, is_region
from vlm_par_hf.labels.schema import AttributeSchema, check_label_range
from vlm_par_hf.output_folders import OutputFolder, open_output, refuse_overlap, sha256_of_file
from vlm_par_hf.utils import atomic_write_json, atomic_write_text, read_json_object, require

from .carried import dataset_schema
from .loading import load_par_dataset
from .prepared import REPORT_FILE, SCHEMA_FILE
from .report import build_card, build_report, report_warnings


if TYPE_CHECKING:
    import datasets


__all__ = ["prepare_dataset"]

logger = logging.getLogger(__name__)

_BATCH = 100  # images per row group: a size that suits the Hub's viewer; memory holds one group
_BROKEN_CHOICES = ("error", "skip")
_WORK = ".work"
_ARGUMENTS = f"{_WORK}/arguments.json"
_CARD = "README.md"
_WRITTEN_NAME = re.compile(r"data/[^/]+-\d{5}-of-\d{5}\.parquet|\.work/[^/]+-\d{5}-of-\d{5}\.json")


def prepare_dataset(
    name: str,
    root: str | os.PathLike | None,
    out: str | os.PathLike,
    *,
    broken: str = "error",
    images_per_file: int = 5000,
    overwrite: bool = False,
    delete_listed: bool = False,
    push_to_hub: str | None = None,
    private: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Checks a data set and writes it as parquet.

    Args:
        name, root, options: as for `load_par_dataset` (`partition`, `missing`, `seed`, `schema`, ...).
        out: the folder to write; an interrupted run in it is continued.
        broken: what to do about images that cannot be read: `"error"` (report all of them, then raise) or `"skip"`
            (leave them out; the report names them).
        images_per_file: rows of one parquet file.
        overwrite: start anew if `out` holds the work of other arguments. Only files that this function wrote are
            deleted; it refuses where some of them were changed since, or where a folder of an earlier version does not
            list them, and names them.
        delete_listed: with `overwrite`: delete what that refusal named.
        push_to_hub: `"org/name"`: uploads the folder to this data set repository.
        private: whether that repository is created as a private one.

    Returns:
        The report, as in `report.json`: per split the numbers of images, persons, labels of each attribute and
        violated groups; images that are broken; images with the same content and persons in more than one split.

    Raises:
        ValueError: a wrong argument, a label out of range, broken images with `broken="error"`, work of other
            arguments in `out`, `out` inside `root`, another process that writes `out`, or a public upload of a data
            set whose licence forbids redistribution.
        FileExistsError: `out` holds files that this function did not write.
        OSError: the Hub refused the upload or cannot be reached; run again, then only the upload is repeated.
        What `load_par_dataset` raises.
    """
    if broken not in _BROKEN_CHOICES:
        raise ParValueError(f"broken is {broken!r}; expected one of {_BROKEN_CHOICES}")
    if isinstance(images_per_file, bool) or not isinstance(images_per_file, int) or images_per_file < 1:
        raise ParValueError(f"images_per_file is {images_per_file!r}; expected a positive integer")
    if delete_listed and not overwrite:
        raise ParValueError("delete_listed=True: expected overwrite=True too")
    require("datasets", "train")
    refuse_overlap(out, {"root": root}, replaced=True)
    with open_output(out, "prepared data set") as folder:
        data = load_par_dataset(name, root, **options)
        schema = dataset_schema(data)
        info = next(iter(data.values())).info
        if push_to_hub is not None and not private and "no redistribution" in info.license:
            raise ParValueError(
                f"private is False, but {name!r} must not be passed on ({info.license}); expected private=True"
            )
        labels = {split: _read_labels(dataset, schema, f"{name}, {split}") for split, dataset in data.items()}
        fingerprint = _fingerprint(name, data, labels, schema, images_per_file)
        _prepare_folder(folder, fingerprint, overwrite, delete_listed)
        counted = {split: _write_split(folder, split, dataset, images_per_file) for split, dataset in data.items()}
        report = build_report(name, data, labels, schema, counted)
        folder.begin([REPORT_FILE])
        atomic_write_json(folder.path / REPORT_FILE, report)
        folder.record([REPORT_FILE])
        bad = report["broken_images"]
        if bad["count"] and broken == "error":
            first = bad["first"][0]
            raise ParValueError(
                f"{bad['count']} images cannot be read, the first is {first['image_id']!r}: {first['error']}; see "
                f'{folder.path / REPORT_FILE}, mend them and run again, or pass broken="skip" to leave them out'
            )
        folder.begin([SCHEMA_FILE])
        schema.to_json(folder.path / SCHEMA_FILE)
        folder.record([SCHEMA_FILE])
        if folder.is_changed(_CARD):
            logger.warning("%s was changed since it was written and stays as it is", folder.path / _CARD)
        else:
            folder.begin([_CARD])
            title = Path(root).resolve().name if name == "folder" else name
            atomic_write_text(folder.path / _CARD, build_card(title, push_to_hub, report, schema, info))
            folder.record([_CARD])
        for line in report_warnings(report):
            logger.warning("%s", line)
        if push_to_hub is not None:
            _push(folder.path, push_to_hub, private)
    return report


def _read_labels(dataset: "datasets.Dataset", schema: AttributeSchema, where: str) -> np.ndarray:
    column = dataset.with_format("numpy", columns=["labels"])[:]["labels"] if len(dataset) else []
    labels = np.asarray(column, np.int64).reshape(-1, len(schema))
    check_label_range(labels, schema, f"{where}: labels")
    return labels


def _fingerprint(name, data, labels, schema, images_per_file) -> dict[str, Any]:
    """What the files depend on: if it differs from that of an earlier run, its files cannot be kept."""
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


def _prepare_folder(folder: OutputFolder, fingerprint: dict[str, Any], overwrite: bool, delete_listed: bool) -> None:
    out, path = folder.path, folder.path / _ARGUMENTS
    if overwrite:
        folder.claim(delete_listed=delete_listed, recognise=_list_earlier_work)
        folder.clear()
    elif path.is_file():
        if read_json_object(path) != fingerprint:
            raise ParValueError(
                f"out={str(out)!r} holds the work of other arguments or of another state of the data; expected an "
                "empty folder, or overwrite=True"
            )
        if not folder.is_known:  # begun by an earlier version
            folder.record(_list_earlier_work(out) or ())
    elif folder.has_files or (not folder.is_known and folder.strangers()):
        raise ParValueError(f"out={str(out)!r} is not empty; expected a new folder, or overwrite=True")
    # Readers take every parquet file in `data/`, so one of somebody else would be read as part of the data set.
    strange = [name for name in folder.strangers() if name.partition("/")[0] in ("data", _WORK)]
    if strange:
        raise ParFileExistsError(
            f"out={str(out)!r}: {strange[0]!r} was not written by this package and lies among the files of the data "
            "set: move it, or name another folder"
        )
    folder.begin([_ARGUMENTS], repair=True)
    (out / "data").mkdir(exist_ok=True)
    atomic_write_json(path, fingerprint)
    folder.record([_ARGUMENTS])


def _list_earlier_work(out: Path) -> list[str] | None:
    """The files that an earlier version wrote, which kept no list; None if its record is not there."""
    arguments = read_json_object(out / _ARGUMENTS)
    if not isinstance(arguments, dict) or not {"name", "images_per_file", "rows", "attributes"} <= set(arguments):
        return None
    files = [path.relative_to(out).as_posix() for folder in ("data", _WORK) for path in (out / folder).glob("*")]
    written = sorted(name for name in files if _WRITTEN_NAME.fullmatch(name))
    return [*written, *(f for f in (REPORT_FILE, SCHEMA_FILE, _CARD) if (out / f).is_file()), _ARGUMENTS]


def _write_split(
    folder: OutputFolder, split: str, dataset: "datasets.Dataset", images_per_file: int
) -> list[dict[str, Any]]:
    """Writes the files of a split that are not there yet or are damaged; returns what was counted in each."""
    import datasets
    from huggingface_hub.utils import tqdm

    raw = dataset.with_format(None).cast_column("image", datasets.Image(decode=False))
    count = max(1, -(-len(raw) // images_per_file))
    counted = []
    with tqdm(total=len(raw), desc=f"checking {split}", unit="image") as bar, ThreadPoolExecutor() as pool:
        for number in range(count):
            rows = range(number * images_per_file, min(len(raw), (number + 1) * images_per_file))
            name = f"{split}-{number:05d}-of-{count:05d}"
            file, record = f"data/{name}.parquet", f"{_WORK}/{name}.json"
            found = _read_finished(folder.path / file, folder.path / record)
            if found is None or found["broken"]:  # broken images may have been replaced since then
                folder.begin([file, record, _partial(file)], repair=True)
                found = _write_file(folder.path / file, raw, rows, dataset.features, pool, bar)
                atomic_write_json(folder.path / record, found)
                folder.record([file, record, _partial(file)])
            else:
                bar.update(len(rows))
                if not (folder.lists(file) and folder.lists(record)):  # the process was ended before it listed them
                    folder.record([file, record, _partial(file)])
            counted.append(found)
    return counted


def _partial(file: str) -> str:
    folder, _, name = file.rpartition("/")
    return f"{folder}/.{name}.partial"


def _read_finished(path: Path, record: Path) -> dict[str, Any] | None:
    """What was counted in a parquet file; None if it is to be written, for the first time or because it is damaged."""
    if not record.is_file() or not path.is_file():
        return None
    found = read_json_object(record)
    needed = {"rows", "contents", "sizes", "broken", "sha256"}
    if isinstance(found, dict) and needed <= set(found) and sha256_of_file(path) == found["sha256"]:
        return found
    logger.warning("%s is not as it was written: it is written again", path)
    return None


def _write_file(path: Path, raw, rows: range, features, pool, bar) -> dict[str, Any]:
    """Writes one parquet file; returns the rows in it, a hash and the size of each image, and the broken images."""
    import pyarrow.parquet

    found: dict[str, Any] = {"rows": [], "contents": [], "sizes": [], "broken": []}
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    schema = features.arrow_schema  # holds the features too, so that readers recognise the image column
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
    found["sha256"] = sha256_of_file(partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    return found


def _image_id(row: dict[str, Any]) -> str:
    return row.get("image_id") or row["image"].get("path") or "image"


def _check_image(row: dict[str, Any]) -> dict[str, Any]:
    """The encoded bytes of an image, a hash of its pixels and its size; or the error that reading it raised."""
    image = row["image"]
    try:
        data = image.get("bytes")
        if data is None and is_region(image["path"]):
            picture = open_image(image)
            data = encode_image(picture)
        else:
            data = Path(image["path"]).read_bytes() if data is None else data
            picture = open_image({"bytes": data, "path": image.get("path")})
    except (OSError, ValueError) as error:
        return {"error": str(error)}
    content = hashlib.blake2b(picture.tobytes(), digest_size=16, key=repr(picture.size).encode()).hexdigest()
    return {"bytes": data, "content": content, "size": picture.size}


def _push(out: Path, repository: str, private: bool) -> None:
    from vlm_par_hf.hub.pushing import push_folder

    push_folder(
        out,
        repository,
        repo_type="dataset",
        private=private,
        ignore_patterns=[".*", "data/.*"],
        # Files left from an earlier upload would be read together with these as one data set.
        replaced_folder="data",
        commit_message="Data set prepared with vlm_par_hf",
    )
    logger.info("uploaded %s to the data set repository %s", out, repository)
