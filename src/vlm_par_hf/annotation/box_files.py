"""Boxes of people in pictures, from a file beside the pictures."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from vlm_par_hf.data.readers.own_tables import Roles, find_roles, read_rows
from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.utils import read_json, shorten


__all__ = ["BOX_FILES", "Boxes", "read_boxes"]

BOX_FILES = (".json", ".jsonl", ".csv", ".tsv")


class Boxes(NamedTuple):
    """The boxes of each image."""

    of: dict[str, list[Any]]
    box_format: str | None  # that the names of columns say


def read_boxes(path: str | os.PathLike) -> Boxes:
    """The boxes in a file.

    Args:
        path: one of
            - `.json`: `{"street.jpg": [[10, 20, 60, 160], ...], ...}`;
            - `.jsonl`: an object per image with `"image"` and `"boxes"`, or per person with `"image"` and `"box"`, as
              `annotate` writes them;
            - `.csv`, `.tsv`: a row per person, with a column `image` and its box: four columns whose names say the
              form (`x0,y0,x1,y1`, `xmin,ymin,xmax,ymax`, `x,y,width,height`, ...), or a column `box` of four numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another form; the message names file, line or image.
    """
    path = Path(path)
    if path.suffix.lower() not in BOX_FILES:
        raise ParValueError(f"boxes={str(path)!r}: expected a file ending in {', '.join(BOX_FILES)}")
    if not path.is_file():
        raise ParFileNotFoundError(f"boxes={str(path)!r}: there is no such file")
    if path.suffix.lower() == ".json":
        return Boxes(_read_json(path), None)
    found: dict[str, list[Any]] = {}
    roles: Roles | None = None
    for line, row in read_rows(path, None):
        where = f"{path}, line {line}"
        if roles is None or path.suffix.lower() == ".jsonl":
            roles = find_roles(list(row), ())
        name = row.get(roles.columns.get("image", ""))
        if not isinstance(name, str) or not name:
            raise ParValueError(f"{where}: image is {shorten(name)}; expected a column with the paths of images")
        found.setdefault(name, []).extend(_boxes_of_row(row, roles, where))
    return Boxes(found, None if roles is None or not roles.box_columns else roles.box_format)


def _read_json(path: Path) -> dict[str, list[Any]]:
    try:
        data = read_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ParValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ParValueError(f"{path} holds {shorten(data)}; expected {{image: list of boxes}}")
    for name, boxes in data.items():
        if not isinstance(boxes, list) or any(isinstance(box, (int, float)) for box in boxes):
            raise ParValueError(f"{path}: {shorten(name)} has {shorten(boxes)}; expected a list of boxes")
    return data


def _boxes_of_row(row: dict[str, Any], roles: Roles, where: str) -> list[Any]:
    if "boxes" in row:
        if not isinstance(row["boxes"], list):
            raise ParValueError(f"{where}: boxes is {shorten(row['boxes'])}; expected a list of boxes")
        return row["boxes"]
    cells: Any = (
        [row[one] for one in roles.box_columns] if roles.box_columns else row.get(roles.columns.get("box", ""))
    )
    if isinstance(cells, str):
        cells = re.split(r"[\s,;]+", cells.strip(" []()"))
    try:
        box = [float(cell) for cell in cells]
    except (TypeError, ValueError):
        box = []
    if len(box) != 4:
        raise ParValueError(
            f"{where}: the box is {shorten(cells)}; expected four numbers, in columns such as x0, y0, x1, y1 or in "
            "one column box"
        )
    return [box]
