"""Your own data: a folder of images with a table of labels and a schema file.

    my_data/
      schema.json        list of attributes, as `AttributeSchema.to_json` writes it (or pass `schema=`)
      labels.csv         or .tsv, .txt, .jsonl; or one table per split: train.csv, validation.csv, test.csv
      images/0001.jpg    anywhere below the folder

A table has a column `image` (path relative to the table) and one column per attribute; `split`, `person_id`,
`camera_id` and `box` are optional. `metadata.csv` and `file_name`, as image folders of `datasets` have them, are read
too, and lists without a header: a path, then a label per attribute in the order of the schema. In a .jsonl table every
line is an object with these keys.
"""

import difflib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.images.regions import REGION_FORMATS, Region, join_region, read_region
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import shorten

from .files import is_annotation_file
from .ids import common_ids, read_id
from .label_cells import Place, RowReader, plain_cell
from .label_check import read_names
from .own_tables import SPLIT_NAMES, Roles, Table, find_roles, find_tables, image_below, read_rows, similar_column
from .records import PedestrianRecord


__all__ = ["read_folder", "read_folder_and_rest"]

logger = logging.getLogger(__name__)

_SPLITS = ("train", "validation", "test")
_TEST_SHARE = _VALIDATION_SHARE = 0.1


def read_folder(
    root: str | os.PathLike,
    schema: AttributeSchema | None = None,
    *,
    seed: int = 0,
    negative: str | int | None = None,
    unknown: str | int | None = None,
    box_format: str | None = None,
    ignore: Iterable[str] = (),
) -> tuple[AttributeSchema, dict[str, list[PedestrianRecord]]]:
    """Reads a folder of the user's own data; returns its schema and the records of each split.

    A label is written as one of the attribute's label texts or as a class index. A text goes first where both fit,
    and where the texts are numbers themselves a number is never an index. Upper and lower case are the same unless
    two labels differ by them. `true` and `false` stand for 1 and 0 of a binary attribute whose labels deny and affirm
    ("no" and "yes", "no hat" and "hat"). An empty cell, null, NaN, `unknown`, `n/a` and -100 mean unknown (-100), and
    so does -1, but for a binary attribute only if its column has negatives in words ("no", false): a column of -1
    and 1, or of -1, 0 and 1, is written in more than one convention, and `negative` and `unknown` say which.

    Instead of a column per attribute there may be one column `labels`, in any form that `RowReader.read_value` takes.

    With a column `box` (four numbers in one cell, or a list), or four columns such as `xmin`, `ymin`, `xmax`, `ymax`,
    the person of a row is that part of the picture, which may be on several rows.

    Ids of persons and cameras have one form: 7, "7", "0007" and 7.0 are one person. An empty cell, null, NaN, -1,
    `unknown` and the like are nobody.

    With neither one table per split nor a column `split`, images are divided 80/10/10 by `seed`: all images of a
    `person_id` go to the same split, an image without one counts as a person of its own. With boxes an image that
    shows several people counts as one.

    A column that belongs to nothing is not read, and a warning says so; if its name is like one that is missed, it is
    an error.

    Args:
        schema: used instead of `schema.json`; columns of attributes that only the file names are then ignored.
        negative: what a cell of a binary attribute holds for its first label, "no": -1 in lists of -1 and 1.
        unknown: what a cell holds where nobody annotated the attribute: 0 beside `negative=-1` in lists of -1, 0 and 1
            (WIDER), -1 where 0 is the negative. For a categorical attribute a label or class index goes first.
        box_format: of boxes, one of `REGION_FORMATS`; None: xyxy, corners in pixels, or what the names of four columns
            say.
        ignore: columns that are not to be read.

    Raises:
        FileNotFoundError: no table, or no schema.
        ValueError: a table that cannot be read as stated above. The message names file, line and column.
    """
    schema, splits, _ = read_folder_and_rest(
        root, schema, seed=seed, negative=negative, unknown=unknown, box_format=box_format, ignore=ignore
    )
    return schema, splits


def read_folder_and_rest(
    root: str | os.PathLike,
    schema: AttributeSchema | None = None,
    *,
    seed: int = 0,
    negative: str | int | None = None,
    unknown: str | int | None = None,
    box_format: str | None = None,
    ignore: Iterable[str] = (),
) -> tuple[AttributeSchema, dict[str, list[PedestrianRecord]], dict[str, int]]:
    """As `read_folder`, and how many cells each column holds that was not read."""
    root = Path(root).absolute()
    if negative is not None and unknown is not None and plain_cell(negative) == plain_cell(unknown):
        raise ParValueError(f"negative and unknown are both {negative!r}; expected different cells")
    if box_format is not None and box_format not in REGION_FORMATS:
        raise ParValueError(f"box_format is {shorten(box_format)}; expected one of {', '.join(REGION_FORMATS)}")
    ignore = read_names(ignore)
    schema, ignored = _find_schema(root, schema)
    for name in ignore:
        if name in schema:
            raise ParValueError(
                f"ignore names {shorten(name)}, an attribute of the schema; expected columns that belong to nothing "
                "(schema=schema.subset([...]) leaves attributes out)"
            )
    tables = find_tables(root)
    reader = _TableReader(root, schema, RowReader(schema, negative, unknown), box_format, ignored | set(ignore))
    splits: dict[str, list[PedestrianRecord]] = {}
    unassigned: list[PedestrianRecord] = []
    for table in tables:
        for record, row_split in reader.read(table):
            if table.split is None and row_split is None:
                unassigned.append(record)
            else:
                splits.setdefault(table.split or row_split, []).append(record)
    reader.rows.check_columns()
    strange = [name for name in ignore if name not in reader.columns]
    if strange:
        near = difflib.get_close_matches(strange[0][:100], reader.columns, n=1)
        hint = f"; did you mean {shorten(near[0])}?" if near else f"; there are {shorten(sorted(reader.columns))}"
        raise ParValueError(f"ignore names {shorten(strange[0])}, which is no column of the tables of {root}{hint}")
    if unassigned:
        splits = _divide(unassigned, seed)
        sizes = ", ".join(f"{name} {len(records)}" for name, records in splits.items())
        logger.warning("%s names no splits: divided by person with seed=%d into %s", root, seed, sizes)
    if not splits:
        raise ParValueError(f"{', '.join(str(table.path) for table in tables)}: no rows")
    splits = {name: splits[name] for name in _SPLITS if name in splits}
    return schema, _with_common_id_types(splits), reader.unread


def _find_schema(root: Path, schema: AttributeSchema | None) -> tuple[AttributeSchema, frozenset[str]]:
    path = root / "schema.json"
    if schema is None:
        if not is_annotation_file(root, path):
            raise ParFileNotFoundError(
                f"{path} does not exist; expected the attributes of the data there (vlm-par init drafts such a "
                "file from the table, vlm-par schema from a few words) or the argument schema"
            )
        return AttributeSchema.from_json(path), frozenset()
    ignored = set(AttributeSchema.from_json(path).names) - set(schema.names) if is_annotation_file(root, path) else ()
    return schema, frozenset(ignored)


class _TableReader:
    """Reads the tables of one folder."""

    def __init__(
        self, root: Path, schema: AttributeSchema, rows: RowReader, box_format: str | None, ignored: set[str]
    ) -> None:
        self.root, self.schema, self.rows = root, schema, rows
        self.box_format, self.ignored = box_format, ignored
        self.columns: set[str] = set()
        self.unread: Counter[str] = Counter()  # columns that belong to nothing -> rows that have them

    def read(self, table: Table) -> Iterator[tuple[PedestrianRecord, str | None]]:
        """The rows of a table: each with the split that it names."""
        path, schema = table.path, self.schema
        checked: tuple[str, ...] | None = None
        roles, in_one, names_split = Roles(), False, None
        first_line: dict[str, int] = {}
        unread: Counter[str] = Counter()
        for line, row in read_rows(path, schema.names):
            columns = tuple(row)
            if columns != checked:
                roles = self._check_columns(columns, f"{path}, line {line}")
                in_one, checked = "labels" in roles.columns, columns
                self.columns.update(columns)
            unread.update(roles.rest)
            place = Place(str(path), "line", line)
            cells = {role: row[column] for role, column in roles.columns.items()}
            image = image_below(self.root, path.parent, cells["image"])
            if image is None:
                raise ParValueError(
                    f"{place}: {roles.columns['image']} is {shorten(cells['image'])}; expected a path below "
                    f"{path.parent}"
                )
            split = _read_split(cells.get("split"), place)
            if table.split is not None and split not in (None, table.split):
                raise ParValueError(f"{place}: split is {cells['split']!r} in the table of {table.split!r}")
            names_split = split is not None if names_split is None else names_split
            if names_split != (split is not None):
                raise ParValueError(f"{place}: column 'split' is filled in some rows only; expected all or none")
            try:
                region = self._read_box(row, roles)
                labels = (
                    self.rows.read_value(cells["labels"], place) if in_one else self.rows.read_cells(row.get, place)
                )
                person, camera = (_read_id(cells, column) for column in ("person_id", "camera_id"))
            except ValueError as error:
                raise ParValueError(f"{place}: {error}") from None
            image_id = image if region is None else join_region(image, region)
            if image_id in first_line:
                with_box = "" if region is None else " with this box"
                raise ParValueError(
                    f"{place}: image {shorten(image)}{with_box} is already on line {first_line[image_id]}"
                )
            first_line[image_id] = line
            file = os.path.join(self.root, image)
            yield PedestrianRecord(file, image_id, labels, person, camera, region), split
        self.unread += unread
        if unread:
            names = ", ".join(map(shorten, list(unread)[:20]))
            logger.warning("%s: not read, as no attribute has that name: %s", path, names)

    def _check_columns(self, columns: tuple[str, ...], where: str) -> Roles:
        used = [column for column in columns if column not in self.ignored]
        names = set(self.schema.names)
        roles = find_roles(used, names)
        missing = [name for name in self.schema.names if name not in columns]
        one_column = roles.columns.pop("labels", None)
        if one_column is not None and len(missing) == len(names):
            roles.columns["labels"] = one_column
            missing = []
        elif one_column is not None:
            roles.rest.append(one_column)
        if missing:
            near = difflib.get_close_matches(missing[0].casefold(), {name.casefold() for name in roles.rest}, n=1)
            meant = [name for name in roles.rest if near and name.casefold() == near[0]]
            hint = f"; did you mean the column {shorten(meant[0])}?" if meant else ""
            raise ParValueError(f"{where}: column {missing[0]!r} is missing{hint}; found {shorten(list(columns))}")
        if "image" not in roles.columns:
            near = difflib.get_close_matches("image", roles.rest, n=1, cutoff=0.5)
            hint = f"; did you mean the column {shorten(near[0])}?" if near else ""
            raise ParValueError(
                f"{where}: column 'image' (or 'file_name', 'path') is missing{hint}; found {shorten(list(columns))}"
            )
        for column in roles.rest:
            near = similar_column(column, roles)
            if near is not None and near not in ("image", "labels"):
                raise ParValueError(
                    f"{where}: unknown column {shorten(column)}; did you mean {near!r}? If not, say so with "
                    f"ignore=[{shorten(column)}] (--ignore {column[:100]})"
                )
        return roles

    def _read_box(self, row: dict[str, Any], roles: Roles) -> Region | None:
        if roles.box_columns:
            numbers = [row[column] for column in roles.box_columns]
            box_format, column = roles.box_format, ", ".join(roles.box_columns)
            if self.box_format is not None and self.box_format.removesuffix("n") != box_format:
                raise ParValueError(
                    f"the columns {column} hold boxes in the form {box_format}, and box_format={self.box_format!r}"
                )
            box_format = self.box_format or box_format
        elif "box" in roles.columns:
            column, box_format = roles.columns["box"], self.box_format or "xyxy"
            numbers = row[column]
            if isinstance(numbers, str) and numbers.strip():
                numbers = [part for part in re.split(r"[\s,;|]+", numbers.strip().strip("[]()")) if part]
        else:
            return None
        if not isinstance(numbers, list) or all(number in (None, "") for number in numbers):
            raise ParValueError(f"{column} is {shorten(numbers)}; expected four numbers, as in the other rows")
        try:
            return read_region([float(number) for number in numbers], box_format)
        except (TypeError, OverflowError):
            raise ParValueError(f"{column} is {shorten(numbers)}; expected four numbers") from None
        except ValueError as error:
            if isinstance(error, ParValueError):
                raise
            raise ParValueError(f"{column} is {shorten(numbers)}; expected four numbers") from None


def _read_split(value: Any, place: Place) -> str | None:
    if value in (None, ""):
        return None
    split = SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        raise ParValueError(f"{place}: split is {shorten(value)}; expected one of {list(_SPLITS)}")
    return split


def _read_id(row: dict[str, Any], column: str) -> str | None:
    try:
        return read_id(row.get(column))
    except ValueError as error:
        raise ParValueError(f"{column} {error}") from None


def _divide(records: list[PedestrianRecord], seed: int) -> dict[str, list[PedestrianRecord]]:
    """80/10/10 by images, whole persons at a time, at least one person in each split."""
    persons: dict[str | tuple[str, str | int], list[PedestrianRecord]] = {}
    for position, record in enumerate(records):
        person = record.person_id
        if person is None:  # people in one picture stay together: they may overlap
            person = ("picture", record.image) if record.region else ("alone", position)
        persons.setdefault(person, []).append(record)
    if len(persons) < 3:
        raise ParValueError(
            f"{len(persons)} different persons cannot be divided into train, validation and test; add a column 'split'"
        )
    groups = list(persons.values())
    order = np.random.default_rng(seed).permutation(len(groups))
    test_end = _end_of_share(groups, order, 0, _TEST_SHARE * len(records), leave=2)
    validation_end = _end_of_share(groups, order, test_end, _VALIDATION_SHARE * len(records), leave=1)
    parts = {
        "train": order[validation_end:],
        "validation": order[test_end:validation_end],
        "test": order[:test_end],
    }
    return {split: [record for group in part for record in groups[group]] for split, part in parts.items()}


def _end_of_share(groups: list[list], order: np.ndarray, start: int, images: float, *, leave: int) -> int:
    end, count = start, 0
    while end < len(order) - leave and (end == start or count + len(groups[order[end]]) <= images):
        count += len(groups[order[end]])
        end += 1
    return end


def _with_common_id_types(splits: dict[str, list[PedestrianRecord]]) -> dict[str, list[PedestrianRecord]]:
    """Ids become int where every one of the data set is a whole number, else text."""
    records = [record for part in splits.values() for record in part]
    persons = common_ids([record.person_id for record in records])
    cameras = common_ids([record.camera_id for record in records])
    changed = iter(
        replace(record, person_id=person, camera_id=camera)
        for record, person, camera in zip(records, persons, cameras)
    )
    return {split: [next(changed) for _ in part] for split, part in splits.items()}
