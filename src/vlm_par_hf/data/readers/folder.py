"""Your own data: a folder of images with a table of labels and a schema file.

    my_data/
      schema.json        list of attributes, as `AttributeSchema.to_json` writes it (or pass `schema=`)
      labels.csv         or labels.jsonl; or one table per split: train.csv, validation.csv, test.csv (.jsonl)
      images/0001.jpg    anywhere below the folder

A table has a column `image` (path relative to the folder) and one column per attribute; `split`, `person_id` and
`camera_id` are optional. In a .jsonl table every line is an object with these keys.
"""

import difflib
import logging
import math
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, Attribute, AttributeSchema
from vlm_par_hf.utils import read_json, shorten

from .files import is_annotation_file, read_csv_rows, relative_path
from .ids import common_ids, read_id
from .records import PedestrianRecord


__all__ = ["read_folder"]

logger = logging.getLogger(__name__)

_SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}
_SPLITS = ("train", "validation", "test")
_SUFFIXES = (".csv", ".jsonl")
_OPTIONAL_COLUMNS = ("split", "person_id", "camera_id")
# How people and programs write "nobody annotated this"; "nan" is what pandas writes for a hole in a column.
_UNKNOWN_TEXTS = ("", "unknown", "nan", "none", "null", "<na>", "n/a", "-1", "-100")
# A first label that begins with one of these denies, so that false and true are plain: ("no", "yes"), ("no hat",
# "hat"), but not ("male", "female").
_NEGATIONS = ("no", "not", "none", "without", "false", "absent", "off", "negative")
_WHOLE = re.compile(r"([+-]?)0*([0-9]{1,18})(\.0*)?", re.ASCII)
_MAX_LINE = 1 << 20  # characters of one line of a .jsonl table
_TEST_SHARE = _VALIDATION_SHARE = 0.1


def read_folder(
    root: str | os.PathLike,
    schema: AttributeSchema | None = None,
    *,
    seed: int = 0,
    negative: str | int | None = None,
    unknown: str | int | None = None,
) -> tuple[AttributeSchema, dict[str, list[PedestrianRecord]]]:
    """Reads a folder of the user's own data; returns its schema and the records of each split.

    A label is written as one of the attribute's label texts or as a class index. A text goes first where both fit,
    and where the texts are numbers themselves a number is never an index. Upper and lower case are the same unless
    two labels differ by them. `true` and `false` stand for 1 and 0 of a binary attribute whose labels deny and affirm
    ("no" and "yes", "no hat" and "hat"). An empty cell, null, NaN, `unknown`, `n/a` and -100 mean unknown (-100), and
    so does -1, but for a binary attribute only if its column has negatives in words ("no", false): a column of -1
    and 1, or of -1, 0 and 1, is written in more than one convention, and `negative` and `unknown` say which.

    Ids of persons and cameras have one form: 7, "7", "0007" and 7.0 are one person. An empty cell, null, NaN, -1,
    `unknown` and the like are nobody.

    With neither one table per split nor a column `split`, images are divided 80/10/10 by `seed`: all images of a
    `person_id` go to the same split, an image without one counts as a person of its own.

    Args:
        schema: used instead of `schema.json`; columns of attributes that only the file names are then ignored.
        negative: what a cell of a binary attribute holds for its first label, "no": -1 in lists of -1 and 1.
        unknown: what a cell holds where nobody annotated the attribute: 0 beside `negative=-1` in lists of -1, 0 and 1
            (WIDER), -1 where 0 is the negative. For a categorical attribute a label or class index goes first.

    Raises:
        FileNotFoundError: no table, or no schema.
        ValueError: a table that cannot be read as stated above. The message names file, line and column.
    """
    root = Path(root).absolute()
    if negative is not None and unknown is not None and _plain(negative) == _plain(unknown):
        raise ParValueError(f"negative and unknown are both {negative!r}; expected different cells")
    schema, ignored = _find_schema(root, schema)
    tables = _find_tables(root)
    readers = [_LabelReader(attribute, negative, unknown) for attribute in schema]
    splits: dict[str, list[PedestrianRecord]] = {}
    unassigned: list[PedestrianRecord] = []
    for split, path in tables.items():
        for record, row_split in _read_table(root, path, schema, readers, ignored, has_own_split=split is not None):
            if split is None and row_split is None:
                unassigned.append(record)
            else:
                splits.setdefault(split or row_split, []).append(record)
    for reader in readers:
        reader.check_column()
    if unassigned:
        splits = _divide(unassigned, seed)
        sizes = ", ".join(f"{name} {len(records)}" for name, records in splits.items())
        logger.warning("%s names no splits: divided by person with seed=%d into %s", root, seed, sizes)
    if not splits:
        raise ParValueError(f"{', '.join(str(path) for path in tables.values())}: no rows")
    splits = {name: splits[name] for name in _SPLITS if name in splits}
    return schema, _with_common_id_types(splits)


def _find_schema(root: Path, schema: AttributeSchema | None) -> tuple[AttributeSchema, frozenset[str]]:
    path = root / "schema.json"
    if schema is None:
        if not is_annotation_file(root, path):
            raise ParFileNotFoundError(
                f"{path} does not exist; expected the attributes of the data there (AttributeSchema.to_json writes "
                "such a file) or the argument schema"
            )
        return AttributeSchema.from_json(path), frozenset()
    ignored = set(AttributeSchema.from_json(path).names) - set(schema.names) if is_annotation_file(root, path) else ()
    return schema, frozenset(ignored)


def _find_tables(root: Path) -> dict[str | None, Path]:
    """Split name (None for one table of everything) -> file."""
    tables: dict[str | None, Path] = {}
    for stem, split in {"labels": None, **_SPLIT_NAMES}.items():
        for suffix in _SUFFIXES:
            path = root / f"{stem}{suffix}"
            if not is_annotation_file(root, path):
                continue
            if split in tables:
                raise ParValueError(
                    f"root {str(root)!r} holds both {tables[split].name} and {path.name}; expected one of them"
                )
            tables[split] = path
    if not tables:
        raise ParFileNotFoundError(
            f"root {str(root)!r} holds no table; expected labels.csv or labels.jsonl, or train, validation and test "
            "with one of these endings"
        )
    if None in tables and len(tables) > 1:
        others = ", ".join(sorted(path.name for split, path in tables.items() if split is not None))
        raise ParValueError(
            f"root {str(root)!r} holds both {tables[None].name} and {others}; expected one kind of them"
        )
    return tables


def _read_table(
    root: Path,
    path: Path,
    schema: AttributeSchema,
    readers: list["_LabelReader"],
    ignored: frozenset[str],
    *,
    has_own_split: bool,
) -> Iterator[tuple[PedestrianRecord, str | None]]:
    known = {"image", *_OPTIONAL_COLUMNS, *schema.names} | ignored
    rows = _read_table_rows(path, schema) if path.suffix == ".csv" else _read_jsonl_rows(path)
    checked: tuple[str, ...] | None = None
    names_split: bool | None = None
    first_line: dict[str, int] = {}
    for line, row in rows:
        columns = tuple(row)
        if columns != checked:
            _check_columns(columns, known, schema, path, line)
            checked = columns
        image_id = relative_path(row["image"])
        if image_id is None:
            raise ParValueError(
                f"{path}, line {line}: image is {shorten(row['image'])}; expected a path below {path.parent}"
            )
        if image_id in first_line:
            raise ParValueError(
                f"{path}, line {line}: image {shorten(image_id)} is already on line {first_line[image_id]}"
            )
        first_line[image_id] = line
        split = _read_split(row.get("split"), path, line)
        if has_own_split and split is not None:
            expected = _SPLIT_NAMES[path.stem]
            if split != expected:
                raise ParValueError(f"{path}, line {line}: split is {row['split']!r} in the table of {expected!r}")
        names_split = split is not None if names_split is None else names_split
        if names_split != (split is not None):
            raise ParValueError(
                f"{path}, line {line}: column 'split' is filled in some rows only; expected all or none"
            )
        try:
            labels = np.fromiter((read(row[read.name], path, line) for read in readers), np.int64, len(readers))
            person, camera = (_read_id(row, column) for column in ("person_id", "camera_id"))
        except ValueError as error:
            raise ParValueError(f"{path}, line {line}: {error}") from None
        yield PedestrianRecord(os.path.join(root, image_id), image_id, labels, person, camera), split


def _read_table_rows(path: Path, schema: AttributeSchema) -> Iterator[tuple[int, dict[str, str]]]:
    header: list[str] | None = None
    for line, row in read_csv_rows(path):
        if header is None:
            header = row
            _check_header(header, schema, path, line)
            continue
        if len(row) != len(header):
            raise ParValueError(f"{path}, line {line}: {len(row)} cells; the header has {len(header)}")
        yield line, dict(zip(header, row))
    if header is None:
        raise ParValueError(f"{path} is empty; expected a header line with the column 'image'")


def _check_header(header: list[str], schema: AttributeSchema, path: Path, line: int) -> None:
    names = {"image", *(name.casefold() for name in schema.names)}
    if not any(name.casefold() in names for name in header):
        marks = {";": "semicolons", "\t": "tabs", " ": "spaces"}
        mark = next((word for mark, word in marks.items() if mark in header[0]), None)
        wrong = f"the columns are not separated by commas but by {mark}" if mark else "this is no header"
        raise ParValueError(
            f"{path}, line {line}: begins with {shorten(header[0])}: {wrong}; expected comma-separated values with "
            f"the names of the columns in the first line, such as {shorten(','.join(['image', *schema.names]))} (also "
            "split, person_id, camera_id)"
        )
    for position, name in enumerate(header):
        if name in header[:position]:
            raise ParValueError(f"{path}, line {line}: column {shorten(name)} appears twice")


def _read_jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    line = 0
    with open(path, encoding="utf-8-sig") as stream:
        try:
            while text := stream.readline(_MAX_LINE):
                line += 1
                if len(text) == _MAX_LINE:
                    raise ParValueError(f"{path}, line {line}: longer than {_MAX_LINE} characters")
                if not text.strip():
                    continue
                try:
                    row = read_json(text)
                except ValueError as error:
                    raise ParValueError(f"{path}, line {line}: not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise ParValueError(f"{path}, line {line}: a {type(row).__name__}; expected an object")
                yield line, row
        except UnicodeDecodeError as error:
            raise ParValueError(f"{path} is not UTF-8 text ({error})") from error


def _check_columns(columns: tuple[str, ...], known: set[str], schema: AttributeSchema, path: Path, line: int) -> None:
    for name in columns:
        if name not in known:
            near = difflib.get_close_matches(name[:100], known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; remove it, or add the attribute to the schema"
            raise ParValueError(f"{path}, line {line}: unknown column {shorten(name)}{hint}")
    for name in ("image", *schema.names):
        if name not in columns:
            raise ParValueError(f"{path}, line {line}: column {name!r} is missing; found {shorten(list(columns))}")


def _read_split(value: Any, path: Path, line: int) -> str | None:
    if value in (None, ""):
        return None
    split = _SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        raise ParValueError(f"{path}, line {line}: split is {shorten(value)}; expected one of {list(_SPLITS)}")
    return split


def _read_id(row: dict[str, Any], column: str) -> str | None:
    try:
        return read_id(row.get(column))
    except ValueError as error:
        raise ParValueError(f"{column} {error}") from None


def _plain(value: Any) -> str:
    """A cell as text without case; a whole number in one form (1, "1", "01" and "1.0" are "1")."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    text = unicodedata.normalize("NFC", str(value).strip())
    whole = _WHOLE.fullmatch(text)
    if whole is None:
        return text.casefold()
    sign, digits = whole.group(1), whole.group(2)
    return f"-{digits}" if sign == "-" and digits != "0" else digits


class _LabelReader:
    """The column of one attribute: from cells to class indices, and what the column holds altogether."""

    def __init__(self, attribute: Attribute, negative: str | int | None, unknown: str | int | None) -> None:
        self.name = attribute.name
        self.labels = attribute.labels
        self._is_binary = attribute.is_binary
        self._exact = {unicodedata.normalize("NFC", text): index for index, text in enumerate(attribute.labels)}
        # What is not a label as it stands is looked up here. Labels that differ by case only are not.
        self._known: dict[str, int | None] = dict.fromkeys(_UNKNOWN_TEXTS, UNKNOWN_LABEL)
        self._takes_index = not any(_WHOLE.fullmatch(text) for text in self._exact)
        if self._takes_index:
            self._known |= {str(index): index for index in range(attribute.num_labels)}
        if attribute.is_binary and re.split(r"[\s_-]", self.labels[0].casefold(), maxsplit=1)[0] in _NEGATIONS:
            self._known |= {"false": 0, "true": 1}
        folded: dict[str, int | None] = {}
        for text, index in self._exact.items():
            folded[_plain(text)] = None if _plain(text) in folded else index
        self._known |= folded
        # What the user says a cell means comes before everything else.
        self._chosen: dict[str, int] = {}
        if attribute.is_binary:
            choices = ((negative, 0), (unknown, UNKNOWN_LABEL))
            self._chosen = {_plain(cell): index for cell, index in choices if cell is not None}
        elif unknown is not None:
            self._known.setdefault(_plain(unknown), UNKNOWN_LABEL)
        # Where a binary column first has these cells, unless they are labels or the user said what they mean.
        self._first: dict[str, tuple[Path, int]] = {}
        self._has_negative = False
        self._seen: dict[str, int] = {}  # cells that were read before, as they stand

    def __call__(self, value: Any, path: Path, line: int) -> int:
        if not isinstance(value, str):
            return self._read(value, path, line)
        index = self._seen.get(value)
        if index is None:
            index = self._seen[value] = self._read(value, path, line)
        return index

    def _read(self, value: Any, path: Path, line: int) -> int:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return UNKNOWN_LABEL
        index, text = None, ""
        if isinstance(value, (str, int, float)):
            text = _plain(value)
            index = self._chosen.get(text)
            if index is not None:
                self._has_negative |= index == 0
                return index
            index = self._exact.get(unicodedata.normalize("NFC", str(value).strip()))
            if index is None:
                index = self._known.get(text)
        if index is None:
            numbers = f", a class index from 0 to {len(self.labels) - 1}" if self._takes_index else ""
            raise ParValueError(
                f"column {self.name!r} is {shorten(value)}; expected one of {shorten(list(self.labels))}{numbers}, or "
                "nothing where unknown"
            )
        if self._is_binary and self._takes_index:
            if text in ("0", "-1"):
                self._first.setdefault(text, (path, line))
            else:
                self._has_negative |= index == 0
        return index

    def check_column(self) -> None:
        """Refuses a column in which -1 or 0 may mean "no" as well as "unknown".

        Raises:
            ValueError: the message names the readings and the arguments that choose one.
        """
        zero, minus_one = self._first.get("0"), self._first.get("-1")
        no = repr(self.labels[0])
        if zero and self._chosen.get("-1") == 0:
            path, line = zero
            raise ParValueError(
                f"{path}, line {line}: column {self.name!r} holds 0, and negative=-1 says that -1 is {no}: where 0 "
                "is unknown pass unknown=0 (--unknown 0)"
            )
        if minus_one is None or self._has_negative:
            return
        path, line = minus_one
        if zero:
            raise ParValueError(
                f"{path}, line {line}: column {self.name!r} holds both 0 and -1, which is read in two ways: where -1 "
                f"is {no} and 0 is unknown (WIDER) pass negative=-1, unknown=0 (--negative -1 --unknown 0); where 0 "
                f"is {no} and -1 is unknown pass unknown=-1 (--unknown -1)"
            )
        raise ParValueError(
            f"{path}, line {line}: column {self.name!r} holds -1 and neither 0 nor {no}: where -1 is {no} pass "
            "negative=-1 (--negative -1), where it is unknown pass unknown=-1 (--unknown -1)"
        )


def _divide(records: list[PedestrianRecord], seed: int) -> dict[str, list[PedestrianRecord]]:
    """80/10/10 by images, whole persons at a time, at least one person in each split."""
    persons: dict[str | tuple[str, int], list[PedestrianRecord]] = {}
    for position, record in enumerate(records):
        person = ("alone", position) if record.person_id is None else record.person_id
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
