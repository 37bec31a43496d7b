"""Track files: boxes of people in the frames of a video, in the form of the MOT Challenge (Milan et al., 2016)."""

import csv
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.utils import shorten, shorten_text


__all__ = ["TRACK_SUFFIXES", "TrackFile", "read_track_file"]

TRACK_SUFFIXES = (".txt", ".csv")
_FORM = "frame, id, x, y, width, height[, score[, class, ...]]"
_PEDESTRIAN = 1  # of the classes of MOT16's ground truth


class TrackFile(NamedTuple):
    """The boxes of a file, sorted by frame.

    Attributes:
        path: of the file.
        frames: of each box, int64 `(N,)`, from 0.
        ids: of the people, int64 `(N,)`; None: the file holds detections (id -1), and a tracker is to number them.
        boxes: float64 `(N, 4)`: x0, y0, x1, y1 in pixels, some of which may lie outside the picture.
        scores: float64 `(N,)`, 0 to 1.
        left_out: rows that the file itself marks as not to be used: of a track file those with score 0 or a class
            that is no pedestrian.
    """

    path: str
    frames: np.ndarray
    ids: np.ndarray | None
    boxes: np.ndarray
    scores: np.ndarray
    left_out: int = 0

    def of(self, frame: int) -> slice:
        """The rows of a frame."""
        return slice(*np.searchsorted(self.frames, (frame, frame + 1)))

    def ends(self) -> dict[int, list[int]]:
        """The people whose last box is in a frame, by the frame."""
        ends: dict[int, list[int]] = {}
        for number, frame in dict(zip(self.ids.tolist(), self.frames.tolist())).items():
            ends.setdefault(frame, []).append(number)
        return ends


def read_track_file(path: str | os.PathLike, *, first_frame: int = 1, num_frames: int | None = None) -> TrackFile:
    """Reads a MOT file: a row `frame, id, x, y, width, height[, score[, class, visibility]]` per box.

    The left upper pixel of the picture is 0, 0. A header row is allowed. The file holds tracks, or detections, which
    have the id -1.

    Args:
        path: of the file.
        first_frame: the number of the video's first frame in this file, 1 (as MOT has it) or 0.
        num_frames: of the video.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is of another form, names a frame that the video does not have, holds an empty box, an id
            that its frame has already, or a score that is not between 0 and 1; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise ParFileNotFoundError(f"track file {shorten_text(str(path))!r}: there is no such file")
    if first_frame not in (0, 1):
        raise ParValueError(f"first_frame is {shorten(first_frame)}, expected 1 (as MOT files have it) or 0")
    name = f"track file {shorten_text(str(path))!r}"
    rows: list[tuple[float, ...]] = []
    lines: list[int] = []
    left_out = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, cells in enumerate(csv.reader(file), start=1):
                if not any(cell.strip() for cell in cells):
                    continue
                where = f"{name}, line {line}"
                numbers = _numbers(cells)
                if numbers is None and not rows and line == 1:
                    continue  # the header
                if numbers is None or len(numbers) < 6:
                    raise ParValueError(f"{where} is {shorten(','.join(cells))}, expected numbers {_FORM}")
                row = _check_row(numbers, where, first_frame, num_frames)
                if row is None:
                    left_out += 1
                else:
                    rows.append(row)
                    lines.append(line)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ParValueError(f"{name} is no text: {error}; expected rows {_FORM}") from error
    table = np.array(rows, np.float64).reshape(-1, 7)
    order = np.lexsort((table[:, 1], table[:, 0]))
    table, line_of = table[order], np.array(lines, np.int64)[order]
    frames, ids = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    has_ids = _check_ids(name, frames, ids, line_of, first_frame)
    boxes = np.concatenate([table[:, 2:4], table[:, 2:4] + table[:, 4:6]], 1)
    return TrackFile(str(path), frames, ids if has_ids else None, boxes, table[:, 6], left_out)


def _numbers(cells: list[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in cells if cell.strip()]
    except ValueError:
        return None


def _check_row(numbers: list[float], where: str, first_frame: int, num_frames: int | None) -> tuple[float, ...] | None:
    """Frame (from 0), id, x, y, width, height, score; None for a row that is not to be used."""
    if not np.isfinite(numbers).all():
        raise ParValueError(f"{where} holds {shorten(numbers)}, expected finite numbers {_FORM}")
    frame, person, x, y, width, height, *more = numbers
    if frame != int(frame) or person != int(person):
        raise ParValueError(f"{where}: frame {frame:g} and id {person:g}, expected whole numbers")
    if frame < first_frame:
        hint = "; if the file counts from 0, say so (first_frame=0, --first-frame 0)" if frame == 0 else ""
        raise ParValueError(f"{where} names frame {frame:g}, expected {first_frame} for the first frame{hint}")
    if num_frames is not None and frame >= num_frames + first_frame:
        raise ParValueError(
            f"{where} names frame {frame:g}, and the video has {num_frames} frames: expected {first_frame} to "
            f"{num_frames + first_frame - 1}"
        )
    if width <= 0 or height <= 0:
        raise ParValueError(f"{where}: a box of width {width:g} and height {height:g}, expected both above 0")
    is_track = person >= 0
    if is_track and more and (more[0] == 0 or (len(more) > 1 and more[1] not in (-1, _PEDESTRIAN))):
        return None
    score = more[0] if more and not (is_track and more[0] == -1) else 1.0
    if not 0 <= score <= 1:
        raise ParValueError(f"{where}: score {score:g}, expected a number from 0 to 1")
    return frame - first_frame, person, x, y, width, height, score


def _check_ids(name: str, frames: np.ndarray, ids: np.ndarray, lines: np.ndarray, first_frame: int) -> bool:
    """Whether rows have ids; each is once in a frame."""
    if (ids < 0).all():
        return not len(ids)  # a file without rows: nobody is there, and nothing is to be numbered
    if (ids < 0).any():
        line = lines[np.argmax(ids < 0)]
        raise ParValueError(f"{name}, line {line} has no id (-1), and others have one: expected tracks or detections")
    twice = np.flatnonzero((frames[1:] == frames[:-1]) & (ids[1:] == ids[:-1]))
    if len(twice):
        row = int(twice[0])
        both = sorted((int(lines[row]), int(lines[row + 1])))
        raise ParValueError(
            f"{name}, lines {both[0]} and {both[1]}: id {ids[row]} is twice in frame {frames[row] + first_frame}, "
            "expected each person once in a frame"
        )
    return True
