"""Tables of people's own data: which files they are, how their columns are divided, and what the columns are for."""

import csv
import difflib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.images.opening import IMAGE_SUFFIXES
from vlm_par_hf.utils import read_json, shorten

from .files import is_annotation_file, open_table, read_csv_rows, relative_path


__all__ = [
    "SPLIT_NAMES",
    "Roles",
    "Table",
    "find_roles",
    "find_tables",
    "image_below",
    "read_rows",
    "similar_column",
]

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
SUFFIXES = (".csv", ".tsv", ".jsonl")
_STEMS = ("labels", "metadata")  # the second is that of image folders of `datasets`
# What a column is for -> the names that it goes by, the usual ones first. Case, spaces and hyphens do not matter.
_NAMES = {
    "image": (
        "image", "file_name", "filename", "image_path", "image_file", "image_name", "img", "img_path", "img_name",
        "filepath", "file_path", "path", "file", "image_id", "tracklet", "tracklet_id",
    ),
    "split": ("split", "subset", "partition"),
    "person_id": ("person_id", "pid", "person", "identity"),
    "camera_id": ("camera_id", "camid", "cam_id", "camera", "cam"),
    "box": ("box", "bbox", "bounding_box"),
    "labels": ("labels", "label", "attributes"),
}  # fmt: skip
# Four columns of a box -> the format that their names say.
_BOX_COLUMNS = {
    ("xmin", "ymin", "xmax", "ymax"): "xyxy",
    ("x_min", "y_min", "x_max", "y_max"): "xyxy",
    ("x0", "y0", "x1", "y1"): "xyxy",
    ("x1", "y1", "x2", "y2"): "xyxy",
    ("left", "top", "right", "bottom"): "xyxy",
    ("x", "y", "w", "h"): "xywh",
    ("x", "y", "width", "height"): "xywh",
    ("left", "top", "width", "height"): "xywh",
    ("bbox_x", "bbox_y", "bbox_w", "bbox_h"): "xywh",
}
_PATH = re.compile(
    rf"\s*(?:\"([^\"]+)\"|(.+?(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})))(?: *[,;\t] *|\s+)(.*)",
    re.IGNORECASE | re.DOTALL,
)
_MAX_LINE = 1 << 20  # characters of one line that is no CSV
_SEPARATOR_LINE = re.compile(r"sep=(.)", re.IGNORECASE)  # the first line of what some spreadsheets write


@dataclass(frozen=True)
class Table:
    """A table, and the split that its name says; None where it says none."""

    path: Path
    split: str | None


@dataclass
class Roles:
    """What the columns of a table are for.

    Attributes:
        columns: role (`image`, `split`, `person_id`, `camera_id`, `box`, `labels`) -> column.
        box_columns: four columns of a box, instead of one.
        box_format: the format that the names of the four columns say.
        rest: columns that are for nothing and belong to no attribute.
    """

    columns: dict[str, str] = field(default_factory=dict)
    box_columns: tuple[str, ...] = ()
    box_format: str | None = None
    rest: list[str] = field(default_factory=list)


def find_tables(root: Path) -> list[Table]:
    """The tables of a folder: `labels.csv` or `metadata.csv`, one per split, one in the folder of each split, or the
    only table that there is.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several that cannot all be meant.
    """
    places = [(None, stem) for stem in _STEMS]
    for name, split in SPLIT_NAMES.items():
        places += [(split, name), *((split, f"{name}/{stem}") for stem in _STEMS)]
    tables: dict[str | None, Path] = {}
    for suffixes in (SUFFIXES, (".txt",)):
        for split, place in places:
            for suffix in suffixes:
                path = root / f"{place}{suffix}"
                if not is_annotation_file(root, path):
                    continue
                if split in tables:
                    raise ParValueError(
                        f"root {str(root)!r} holds both {_shown(root, tables[split])} and {_shown(root, path)}; "
                        "expected one of them"
                    )
                tables[split] = path
        if tables:
            break
    if not tables:
        others = sorted(path for path in root.glob("*") if path.suffix.lower() in (*SUFFIXES, ".txt"))
        others = [path for path in others if is_annotation_file(root, path)]
        usual = [path for path in others if path.suffix.lower() != ".txt"] or others
        if len(usual) != 1:
            found = f"; which of {shorten([path.name for path in usual])} is it?" if usual else ""
            raise ParFileNotFoundError(
                f"root {str(root)!r} holds no table; expected labels.csv or labels.jsonl (or .tsv, .txt), or train, "
                f"validation and test with one of these endings{found}"
            )
        tables[None] = usual[0]
    if None in tables and len(tables) > 1:
        others = ", ".join(sorted(_shown(root, path) for split, path in tables.items() if split is not None))
        raise ParValueError(
            f"root {str(root)!r} holds both {_shown(root, tables[None])} and {others}; expected one kind of them"
        )
    return [Table(path, split) for split, path in tables.items()]


def _shown(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def find_roles(columns: Sequence[str], attributes: Iterable[str]) -> Roles:
    """What columns are for, by their names; the column of an attribute is for that."""
    attributes = set(attributes)
    by_name = {_plain(column): column for column in reversed(columns) if column not in attributes}
    roles = Roles()
    for role, names in _NAMES.items():
        column = next((by_name[name] for name in names if name in by_name), None)
        if column is not None:
            roles.columns[role] = column
    if "box" not in roles.columns:
        for names, box_format in _BOX_COLUMNS.items():
            if all(name in by_name for name in names):
                roles.box_columns = tuple(by_name[name] for name in names)
                roles.box_format = box_format
                break
    taken = {*roles.columns.values(), *roles.box_columns, *attributes}
    roles.rest = [column for column in columns if column not in taken]
    return roles


def similar_column(column: str, roles: Roles) -> str | None:
    """The role that a column would have if its name were spelt rightly, where no column has that role."""
    names = [name for role in _NAMES if role not in roles.columns for name in _NAMES[role][:1]]
    near = difflib.get_close_matches(_plain(column)[:100], names, n=1, cutoff=0.75)
    return near[0] if near else None


def _plain(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().casefold())


def read_rows(path: Path, attributes: Sequence[str] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, {column: cell}) of each row of a table.

    The columns of a text file are divided by commas, semicolons or tabs, as its first line says. A list without a
    header is a path and then a label per attribute, in the order of the schema, divided by any of these or by spaces;
    its path is in the column `image`.

    Args:
        path: of a .jsonl file, or of any other text file.
        attributes: names of the attributes in their order; None if they are not known yet.

    Raises:
        ValueError: a row that cannot be read; the message names the line.
    """
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        yield from _read_jsonl(path)
        return
    first_line, first = _first_line(path)
    separator = _SEPARATOR_LINE.fullmatch(first)
    names = {_plain(name) for name in attributes or ()} | {name for names in _NAMES.values() for name in names}
    delimiter = separator[1] if separator else _find_delimiter(first, names)
    if not separator and not any(_plain(cell) in names for cell in _cells(first, delimiter)):
        if _PATH.fullmatch(first) is not None:
            yield from _read_list(path, attributes)
            return
        if attributes is not None:
            is_spaced = any(_plain(word) in names for word in first.split())
            wrong = (
                "its columns are divided by spaces" if is_spaced else "it is no header and no row 'path label label'"
            )
            raise ParValueError(
                f"{path}, line {first_line}: begins with {shorten(first[:100])}: {wrong}; expected the names of the "
                "columns, divided by commas, semicolons or tabs, in the first line, such as "
                f"{shorten(','.join(['image', *attributes]))} (also split, person_id, camera_id, box)"
            )
    yield from _read_csv(path, delimiter, skip=first_line if separator else 0)


def _read_csv(path: Path, delimiter: str, skip: int) -> Iterator[tuple[int, dict[str, str]]]:
    header: list[str] | None = None
    for line, row in read_csv_rows(path, delimiter):
        if line <= skip:
            continue
        if header is None:
            header = row
            for position, name in enumerate(header):
                if name in header[:position]:
                    raise ParValueError(f"{path}, line {line}: column {shorten(name)} appears twice")
            continue
        if len(row) != len(header):
            raise ParValueError(f"{path}, line {line}: {len(row)} cells; the header has {len(header)}")
        yield line, dict(zip(header, row))


def _read_list(path: Path, attributes: Sequence[str] | None) -> Iterator[tuple[int, dict[str, str]]]:
    with open_table(path) as stream:
        for line, text in _lines(path, stream):
            found = _PATH.fullmatch(text.rstrip("\r\n"))
            if found is None:
                raise ParValueError(f"{path}, line {line}: {shorten(text.strip())} is no path with labels after it")
            rest = found[3]
            cells = re.split(r" *[,;\t] *", rest) if re.search(r"[,;\t]", rest) else rest.split()
            if attributes is None:
                raise ParValueError(
                    f"{path} has no header and {len(cells)} labels after each path: name these attributes in their "
                    "order (names=[...], --names A,B,...)"
                )
            if len(cells) != len(attributes):
                raise ParValueError(
                    f"{path}, line {line}: {len(cells)} labels after the path {shorten(found[1] or found[2])}; "
                    f"expected one for each of the {len(attributes)} attributes "
                    f"({shorten(', '.join(attributes), 200)}), or a first line with the names of the columns"
                )
            yield line, {"image": (found[1] or found[2]).strip(), **dict(zip(attributes, cells))}


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_table(path) as stream:
        for line, text in _lines(path, stream):
            try:
                row = read_json(text)
            except ValueError as error:
                raise ParValueError(f"{path}, line {line}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ParValueError(f"{path}, line {line}: a {type(row).__name__}; expected an object")
            yield line, row


def _lines(path: Path, stream: io.TextIOBase) -> Iterator[tuple[int, str]]:
    line = 0
    while text := stream.readline(_MAX_LINE):
        line += 1
        if len(text) == _MAX_LINE:
            raise ParValueError(f"{path}, line {line}: longer than {_MAX_LINE} characters")
        if text.strip():
            yield line, text


def _first_line(path: Path) -> tuple[int, str]:
    with open_table(path) as stream:
        for line, text in _lines(path, stream):
            return line, text.strip()
    raise ParValueError(f"{path} is empty; expected a header line with the column 'image'")


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:  # reading the file says why
        return []


def _find_delimiter(line: str, names: set[str]) -> str:
    """The separator by which a line has the most cells with known names, then the most cells."""

    def score(delimiter: str) -> tuple[int, int]:
        cells = _cells(line, delimiter)
        return sum(_plain(cell) in names for cell in cells), len(cells)

    return max((",", ";", "\t"), key=score)


def image_below(root: Path, folder: Path, value: Any) -> str | None:
    """The path of an image below `root`, with slashes, as a table in `folder` writes it: relative to the table, or
    whole; None if it leads out of `root`."""
    if isinstance(value, str) and os.path.isabs(value):
        place = os.path.normpath(value)
        return relative_path(os.path.relpath(place, root)) if place.startswith(f"{root}{os.sep}") else None
    path = relative_path(value)
    return path if path is None or folder == root else f"{folder.relative_to(root).as_posix()}/{path}"
