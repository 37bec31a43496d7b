"""UPAR: one annotation of 40 binary attributes over Market-1501, PA-100K and PETA, as the challenges give it out.

UPAR: Unified Pedestrian Attribute Recognition and Person Retrieval, Specker et al., WACV 2023. The annotation is a CSV
file whose header begins with `# image,` and whose paths are relative to the folder `data`:

    data/annotations/task1/{train,val}/gt.csv, task2/{train,val}/{queries,ids}.csv      2027
    data/phase1/train/train.csv, phase1/val_task1/val.csv                               2023, 2024
    data/Market1501/..., data/PA100k/..., data/PETA/images/...
"""

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema
from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.utils import shorten

from .files import find_file, look_for_file, read_csv_rows, relative_path
from .label_check import check_labels, count_positives
from .records import PedestrianRecord


__all__ = ["UparQueries", "read_upar", "read_upar_queries"]

logger = logging.getLogger(__name__)

_HOMES = ("", "data/")
_TABLES = {
    "train": ("annotations/task1/train/gt.csv", "annotations/train.csv", "phase1/train/train.csv", "train.csv"),
    "validation": (
        "annotations/task1/val/gt.csv", "annotations/val.csv", "phase1/val_task1/val.csv", "val_task1/val.csv",
        "val.csv",
    ),
    "test": (
        "annotations/task1/test/gt.csv", "annotations/test.csv", "phase2/test_task1/test.csv", "test_task1/test.csv",
        "test.csv",
    ),
}  # fmt: skip
_QUERY_FOLDERS = {"train": "annotations/task2/train", "validation": "annotations/task2/val"}
_OFFICIAL_IMAGES = {"train": 97_669, "validation": 33_407}  # 2027
_VALUES = {"0": 0, "1": 1, "-1": UNKNOWN_LABEL}


@dataclass(frozen=True, eq=False)
class UparQueries:
    """Retrieval queries of one split.

    `queries` is int64 `(Q, 40)`, one distinct description of a person per row, in the order of the schema `upar40`;
    `query_of_image` maps an image, as `image_id` names it, to the row that describes it.
    """

    queries: np.ndarray
    query_of_image: dict[str, int]


def read_upar(
    root: str | os.PathLike, *, ignore: Iterable[str] = ()
) -> tuple[AttributeSchema, dict[str, list[PedestrianRecord]], dict[str, Any]]:
    """Reads the splits of UPAR that lie under `root`, with -1 as unknown.

    A table without labels (what a challenge asks to predict) gives records whose labels are all unknown. Labels belong
    to images, not to persons: `person_id` is None.

    An attribute without a positive is an error if train and validation are complete (2027), else a warning and a note;
    `ignore` names those that may have none.

    Returns:
        The schema `upar40`, the records of train and, where present, validation and test, and notes.

    Raises:
        FileNotFoundError: no table of the training split.
        ValueError: a table with other columns, or a row that cannot be read; the message names file and line.
    """
    root = Path(root).absolute()
    schema = get_schema("upar40")
    splits, unlabelled = {}, []
    for split, places in _TABLES.items():
        candidates = [home + place for place in places for home in _HOMES]
        path = look_for_file(root, candidates)
        if path is None:
            if split == "train":
                find_file(root, candidates, "the annotations of a UPAR challenge")  # raises
            continue
        home = _home_of(root, path)
        splits[split] = list(_read_table(path, home, schema))
        if all((record.labels == UNKNOWN_LABEL).all() for record in splits[split]):
            unlabelled.append(split)
            logger.warning("%s has no labels: those of %r are all unknown", path, split)
    complete = all(len(splits.get(split, ())) == count for split, count in _OFFICIAL_IMAGES.items())
    # Other columns than the 40 are refused when a table is read.
    notes = check_labels(root, count_positives(schema, splits), {}, complete=complete, ignore=ignore)
    return schema, splits, {"division": "official", "splits_without_labels": unlabelled, **notes}


def read_upar_queries(root: str | os.PathLike, split: str) -> UparQueries:
    """Reads the retrieval queries of `train` or `validation` (2027).

    Raises:
        FileNotFoundError: queries.csv or ids.csv is missing.
        ValueError: unknown split; other columns; a row number that does not exist. The message names file and line.
    """
    if split not in _QUERY_FOLDERS:
        raise ParValueError(f"split is {split!r}; expected one of {sorted(_QUERY_FOLDERS)}")
    root = Path(root).absolute()
    schema = get_schema("upar40")
    places = [f"{home}{_QUERY_FOLDERS[split]}" for home in _HOMES]
    path = find_file(root, [f"{place}/queries.csv" for place in places], "the retrieval task of UPAR 2027")
    rows = read_csv_rows(path)
    _, header = next(rows, (0, []))
    order = _column_order(header, schema, path)
    queries = [_read_labels(row, order, path, line) for line, row in rows]
    if not queries:
        raise ParValueError(f"{path} has no row; expected one query per row")
    table = find_file(root, [f"{place}/ids.csv" for place in places], "the retrieval task of UPAR 2027")
    query_of_image: dict[str, int] = {}
    for line, row in read_csv_rows(table):  # no header, and rows counted from 0
        if len(row) != 2 or not (row[1].isdecimal() and row[1].isascii() and len(row[1]) < 10):
            raise ParValueError(f"{table}, line {line}: {shorten(','.join(row))}; expected image,row")
        if row[0] in query_of_image:
            raise ParValueError(f"{table}, line {line}: image {shorten(row[0])} is there already")
        if int(row[1]) >= len(queries):
            raise ParValueError(f"{table}, line {line}: query {row[1]}; {path.name} has rows 0 to {len(queries) - 1}")
        query_of_image[row[0]] = int(row[1])
    return UparQueries(np.stack(queries), query_of_image)


def _home_of(root: Path, path: Path) -> Path:
    """The folder that the paths in a table are relative to."""
    for folder in path.parents:
        if folder.name in ("annotations", "phase1", "phase2"):
            return folder.parent
        if folder == root:
            break
    return root / "data" if (root / "data").is_dir() else root


def _column_order(header: list[str], schema: AttributeSchema, path: Path) -> list[int]:
    """Position of each attribute among the columns `header`, which may begin with "# "."""
    names = [name.removeprefix("#").strip() if position == 0 else name for position, name in enumerate(header)]
    missing = [name for name in schema.names if name not in names]
    unexpected = [name for name in names if name not in schema.names]
    if missing or unexpected or len(names) != len(set(names)):
        raise ParValueError(
            f"{path}, line 1: the columns are not the 40 attributes of UPAR: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {shorten(unexpected[:3])}; is it the table of another year?"
        )
    return [names.index(name) for name in schema.names]


def _read_labels(cells: list[str], order: list[int], path: Path, line: int) -> np.ndarray:
    if len(cells) != len(order):
        raise ParValueError(f"{path}, line {line}: {len(cells)} labels; expected {len(order)}")
    try:
        return np.asarray([_VALUES[cells[position]] for position in order], np.int64)
    except KeyError as error:
        raise ParValueError(f"{path}, line {line}: label {shorten(error.args[0])}; expected 0, 1 or -1") from None


def _read_table(path: Path, home: Path, schema: AttributeSchema) -> Iterator[PedestrianRecord]:
    rows = read_csv_rows(path)
    first = next(rows, None)
    if first is None:
        raise ParValueError(f"{path} is empty; expected a header that begins with '# image'")
    line, header = first
    only_images = len(header) == 1
    if header[0].removeprefix("#").strip() != "image":
        if not only_images:
            raise ParValueError(
                f"{path}, line {line}: begins with {shorten(header[0])}; expected a header '# image,...'"
            )
        rows = _with_first(first, rows)  # a list of images without header
    order = None if only_images else _column_order(header[1:], schema, path)
    nothing = np.full(len(schema), UNKNOWN_LABEL, np.int64)
    seen: dict[str, int] = {}
    for line, row in rows:
        image = relative_path(row[0])
        if image is None:
            raise ParValueError(f"{path}, line {line}: image is {shorten(row[0])}; expected a path below {home}")
        if image in seen:
            raise ParValueError(f"{path}, line {line}: image {shorten(image)} is already on line {seen[image]}")
        seen[image] = line
        if only_images and len(row) != 1:
            raise ParValueError(f"{path}, line {line}: {len(row)} cells; the header has 1")
        labels = nothing if order is None else _read_labels(row[1:], order, path, line)
        yield PedestrianRecord(os.path.join(home, image), image, labels)
    if not seen:
        raise ParValueError(f"{path} lists no image")


def _with_first(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest
