"""Your own data: a folder of images with a table of labels and a schema file.

    my_data/
      schema.json        list of attributes, as `AttributeSchema.to_json` writes it (or pass `schema=`)
      labels.csv         or labels.jsonl; or one table per split: train.csv, validation.csv, test.csv (.jsonl)
      images/0001.jpg    anywhere below the folder

A table has a column `image` (path relative to the folder) and one column per attribute; `split`, `person_id` and
`camera_id` are optional. In a .jsonl table every line is an object with these keys.
"""

import csv
import difflib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, Attribute, AttributeSchema

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
_UNKNOWN_TEXTS = frozenset({"", "unknown", "nan", "none", "null", "-1", "-100"})
_TEST_SHARE = _VALIDATION_SHARE = 0.1


def read_folder(
    root: str | os.PathLike, schema: AttributeSchema | None = None, *, seed: int = 0
) -> tuple[AttributeSchema, dict[str, list[PedestrianRecord]]]:
    """Reads a folder of the user's own data; returns its schema and the records of each split.

    A label is written as one of the attribute's label texts (upper and lower case are the same) or as a class index;
    a text goes first where both fit. For a binary attribute `true` and `false` stand for 1 and 0. An empty cell,
    `unknown`, `nan`, -1 and -100 mean unknown (-100).

    With neither one table per split nor a column `split`, images are divided 80/10/10 by `seed`: all images of a
    `person_id` go to the same split, an image without one counts as a person of its own.

    Args:
        schema: used instead of `schema.json`; columns of attributes that only the file names are then ignored.

    Raises:
        FileNotFoundError: no table, or no schema.
        ValueError: a table that cannot be read as stated above. The message names file, line and column.
    """
    root = Path(root).absolute()
    schema, ignored = _find_schema(root, schema)
    tables = _find_tables(root)
    splits: dict[str, list[PedestrianRecord]] = {}
    unassigned: list[PedestrianRecord] = []
    for split, path in tables.items():
        for record, row_split in _read_table(root, path, schema, ignored, has_own_split=split is not None):
            if split is None and row_split is None:
                unassigned.append(record)
            else:
                splits.setdefault(split or row_split, []).append(record)
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
        if not path.is_file():
            raise ParFileNotFoundError(
                f"{path} does not exist; expected the attributes of the data there (AttributeSchema.to_json writes "
                "such a file) or the argument schema"
            )
        return AttributeSchema.from_json(path), frozenset()
    ignored = set(AttributeSchema.from_json(path).names) - set(schema.names) if path.is_file() else ()
    return schema, frozenset(ignored)


def _find_tables(root: Path) -> dict[str | None, Path]:
    """Split name (None for one table of everything) -> file."""
    tables: dict[str | None, Path] = {}
    for stem, split in {"labels": None, **_SPLIT_NAMES}.items():
        for suffix in _SUFFIXES:
            path = root / f"{stem}{suffix}"
            if not path.is_file():
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
    root: Path, path: Path, schema: AttributeSchema, ignored: frozenset[str], *, has_own_split: bool
) -> Iterator[tuple[PedestrianRecord, str | None]]:
    known = {"image", *_OPTIONAL_COLUMNS, *schema.names} | ignored
    labels_of = [_LabelReader(attribute) for attribute in schema]
    rows = _read_csv_rows(path) if path.suffix == ".csv" else _read_jsonl_rows(path)
    checked: tuple[str, ...] | None = None
    names_split: bool | None = None
    first_line: dict[str, int] = {}
    for line, row in rows:
        columns = tuple(row)
        if columns != checked:
            _check_columns(columns, known, schema, path, line)
            checked = columns
        image_id = _relative_path(row["image"], path, line)
        if image_id in first_line:
            raise ParValueError(f"{path}, line {line}: image {image_id!r} is already on line {first_line[image_id]}")
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
            labels = np.fromiter((read(row[read.name]) for read in labels_of), dtype=np.int64, count=len(labels_of))
        except ValueError as error:
            raise ParValueError(f"{path}, line {line}: {error}") from None
        record = PedestrianRecord(
            os.path.join(root, image_id),
            image_id,
            labels,
            _read_id(row.get("person_id")),
            _read_id(row.get("camera_id")),
        )
        yield record, split


def _read_csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with open(path, encoding="utf-8-sig", newline="") as stream:  # utf-8-sig: spreadsheets write a byte order mark
        reader = csv.reader(stream, strict=True)
        header: list[str] | None = None
        try:
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                if header is None:
                    header = [cell.strip() for cell in row]
                    _check_header(header, path, reader.line_num)
                    continue
                if len(row) != len(header):
                    raise ParValueError(
                        f"{path}, line {reader.line_num}: {len(row)} cells; the header has {len(header)}"
                    )
                yield reader.line_num, {name: cell.strip() for name, cell in zip(header, row)}
        except csv.Error as error:
            raise ParValueError(f"{path}, line {reader.line_num}: not well-formed CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise ParValueError(f"{path} is not UTF-8 text ({error}); expected a CSV file saved as UTF-8") from error
    if header is None:
        raise ParValueError(f"{path} is empty; expected a header line with the column 'image'")


def _check_header(header: list[str], path: Path, line: int) -> None:
    for position, name in enumerate(header):
        if name in header[:position]:
            raise ParValueError(f"{path}, line {line}: column {name!r} appears twice")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise ParValueError(
            f"{path}, line {line}: the columns are not separated by commas; expected comma-separated values"
        )


def _read_jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig") as stream:
        try:
            for line, text in enumerate(stream, 1):
                if not text.strip():
                    continue
                try:
                    row = json.loads(text)
                except json.JSONDecodeError as error:
                    raise ParValueError(f"{path}, line {line}: not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise ParValueError(f"{path}, line {line}: a {type(row).__name__}; expected an object")
                yield line, row
        except UnicodeDecodeError as error:
            raise ParValueError(f"{path} is not UTF-8 text ({error})") from error


def _check_columns(columns: tuple[str, ...], known: set[str], schema: AttributeSchema, path: Path, line: int) -> None:
    for name in columns:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; remove it, or add the attribute to the schema"
            raise ParValueError(f"{path}, line {line}: unknown column {name!r}{hint}")
    for name in ("image", *schema.names):
        if name not in columns:
            raise ParValueError(f"{path}, line {line}: column {name!r} is missing; found {list(columns)}")


def _relative_path(value: Any, path: Path, line: int) -> str:
    text = value.replace("\\", "/") if isinstance(value, str) else ""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or text.startswith("/") or ":" in parts[0]:
        raise ParValueError(f"{path}, line {line}: image is {value!r}; expected a path below {path.parent}")
    return "/".join(parts)


def _read_split(value: Any, path: Path, line: int) -> str | None:
    if value in (None, ""):
        return None
    split = _SPLIT_NAMES.get(str(value).strip().lower())
    if split is None:
        raise ParValueError(f"{path}, line {line}: split is {value!r}; expected one of {list(_SPLITS)}")
    return split


def _read_id(value: Any) -> str | None:
    return None if value in (None, "") else str(value)


class _LabelReader:
    """Cell of one attribute's column -> class index."""

    def __init__(self, attribute: Attribute) -> None:
        self.name = attribute.name
        self.labels = attribute.labels
        self._known: dict[str, int] = dict.fromkeys(_UNKNOWN_TEXTS, UNKNOWN_LABEL)
        if attribute.is_binary:
            self._known |= {"false": 0, "true": 1}
        for index in range(attribute.num_labels):
            # "1.0" is what pandas writes for 1 in a column that has a hole
            self._known |= {str(index): index, f"{index}.0": index}
        self._known |= {"-1.0": UNKNOWN_LABEL, "-100.0": UNKNOWN_LABEL}
        self._known |= {text.strip().lower(): index for index, text in enumerate(attribute.labels)}

    def __call__(self, value: Any) -> int:
        text = str(value).strip().lower()
        index = self._known.get(text)
        if index is None:
            raise ParValueError(
                f"column {self.name!r} is {value!r}; expected one of {list(self.labels)}, a class index from 0 to "
                f"{len(self.labels) - 1}, or nothing where unknown"
            )
        return index


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
    """Ids become int where every one of the data set is a plain whole number ("7", but not "007"), else text."""
    fields = [
        name
        for name in ("person_id", "camera_id")
        if all(_is_whole(getattr(record, name)) for records in splits.values() for record in records)
    ]

    def convert(record: PedestrianRecord) -> PedestrianRecord:
        ids = {name: getattr(record, name) for name in fields}
        return replace(record, **{name: None if value is None else int(value) for name, value in ids.items()})

    return {split: [convert(record) for record in records] for split, records in splits.items()}


def _is_whole(value: str | None) -> bool:
    return value is None or (value.isdecimal() and value.isascii() and len(value) < 19 and str(int(value)) == value)
