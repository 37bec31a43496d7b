"""Tables of attributes per tracklet, as MARS-Attribute and DukeMTMC-VID-Attribute have them, and folders of frames."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlm_par_hf.data.tracklets import sample_frames
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema
from vlm_par_hf.utils import shorten

from .files import read_csv_rows
from .records import PedestrianRecord


__all__ = ["TrackletKey", "check_num_frames", "frame_records", "in_order", "read_tracklet_table"]

KEYS = ("person_id", "camera_id", "tracklets_id")
_KEY_NAMES = {"person-id": "person_id", "camera": "camera_id", "tracklet": "tracklets_id"}


class TrackletKey(NamedTuple):
    """What a row of a table belongs to."""

    person: int
    camera: int
    tracklet: int


def read_tracklet_table(
    path: Path, schema: AttributeSchema, other_names: Mapping[str, str], quality: Sequence[str]
) -> tuple[dict[TrackletKey, np.ndarray], list[str], dict[str, int]]:
    """Labels of each tracklet, int64 `(A,)`, from whole numbers that count classes from 0.

    Args:
        path: CSV with a header.
        schema: the attributes; one that the table lacks is unknown everywhere.
        other_names: how a column is called in another edition of the table -> the name of the attribute.
        quality: columns of 0 and 1 that say what is wrong with a tracklet; no attributes.

    Returns:
        The labels; the attributes that the table lacks; how many tracklets each quality column marks.

    Raises:
        ValueError: a column is missing or unknown, a tracklet is there twice, or a cell is no class index. The message
            names file, line and column.
    """
    rows = read_csv_rows(path)
    _, header = next(rows, (0, []))
    names = [_KEY_NAMES.get(name, other_names.get(name, name)) for name in header]
    known = {*KEYS, *schema.names, *quality}
    strange = next((name for name, read in zip(header, names) if read not in known), None)
    missing = [name for name in KEYS if name not in names]
    if strange is not None or missing or len(set(names)) < len(names):
        problem = f"no column {missing[0]!r}" if missing else f"column {shorten(strange)}"
        raise ParValueError(
            f"{path}, line 1: {problem}; expected {', '.join(KEYS)} and attributes such as {schema.names[0]!r}"
        )
    absent = [name for name in schema.names if name not in names]
    if len(absent) == len(schema):
        raise ParValueError(f"{path}, line 1: no attribute; expected columns such as {schema.names[0]!r}")
    found: dict[TrackletKey, np.ndarray] = {}
    flags = dict.fromkeys((name for name in quality if name in names), 0)
    for line, cells in rows:
        if len(cells) != len(names):
            raise ParValueError(f"{path}, line {line}: {len(cells)} cells; expected {len(names)}, as the header has")
        row = dict(zip(names, cells))
        key = TrackletKey(*(_number(row[name], 10**9, f"{path}, line {line}: {name}") for name in KEYS))
        if key in found:
            raise ParValueError(f"{path}, line {line}: tracklet {tuple(key)} (person, camera, number) is there twice")
        labels = np.full(len(schema), UNKNOWN_LABEL, np.int64)
        for place, one in enumerate(schema):
            if one.name in row:
                labels[place] = _number(row[one.name], one.num_labels - 1, f"{path}, line {line}: {one.name}")
        found[key] = labels
        for name in flags:
            flags[name] += _number(row[name], 1, f"{path}, line {line}: {name}")
    if not found:
        raise ParValueError(f"{path} lists no tracklet")
    return found, absent, flags


def _number(cell: str, largest: int, where: str) -> int:
    if re.fullmatch(r"[0-9]{1,9}", cell) is None or int(cell) > largest:
        raise ParValueError(f"{where} is {shorten(cell)}; expected a whole number from 0 to {largest:,}")
    return int(cell)


def check_num_frames(num_frames: int | None) -> None:
    """Refuses a number of frames per tracklet that is none."""
    if num_frames is not None and (isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 1):
        raise ParValueError(f"num_frames is {num_frames!r}; expected at least 1, or None for all frames")


def in_order(names: Iterable[str]) -> list[str]:
    """File names in the order of the numbers in them: frame2 before frame10."""
    return sorted(names, key=lambda name: [int(part) if part.isdecimal() else part for part in _split(name)])


def _split(name: str) -> list[str]:
    # Text and numbers in turn, beginning with text, so that positions compare like with like.
    return re.split(r"([0-9]+)", name)


def frame_records(
    folder: str | os.PathLike,
    names: Sequence[str],
    prefix: str,
    labels: np.ndarray,
    tracklet_id: str,
    *,
    person_id: int | str | None,
    camera_id: int | str | None,
    num_frames: int | None,
) -> list[PedestrianRecord]:
    """The records of a tracklet's frames.

    Args:
        folder, names: its files, in their order.
        prefix: of the frames' `image_id`, in front of the file's name.
        labels: of the tracklet.
        tracklet_id, person_id, camera_id: of all its frames.
        num_frames: at most so many frames, spread evenly; None: all.
    """
    places = range(len(names)) if num_frames is None else sample_frames(len(names), num_frames)
    return [
        PedestrianRecord(
            os.path.join(folder, names[place]), f"{prefix}{names[place]}", labels, person_id, camera_id,
            tracklet_id=tracklet_id, frame=place,
        )
        for place in places
    ]  # fmt: skip
