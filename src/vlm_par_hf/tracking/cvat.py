"""Tracks as a file of CVAT, the annotation tool: "CVAT for video 1.1", which it imports into a task of the video."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from vlm_par_hf.inference.track_files import TrackFile
from vlm_par_hf.inference.videos import Video
from vlm_par_hf.labels.decisions import UNKNOWN_ANSWER
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import atomic_write_text


__all__ = ["write_cvat"]

_LABEL = "person"
_TOLERANCE = 0.02  # of its height, by which a box between two key frames may differ from what was found


def write_cvat(
    video: Video, rows: Sequence[Mapping[str, Any]], boxes: TrackFile, path: str | os.PathLike, schema: AttributeSchema
) -> None:
    """Writes boxes and answers as tracks of the label "person", with an attribute for each of the schema.

    Between key frames CVAT places boxes on a straight line. Key frames are only those without which a box would be
    off by more than 2 % of its height, so that an annotator has few to correct. Where a person is not seen, the track
    is marked as outside.

    Args:
        video: that was followed.
        rows: of the people, as `track` writes them.
        boxes: of the frames, as `track` writes them.
        path: the file to write (`.xml`).
        schema: the attributes that rows answer.
    """
    answered = [one for one in schema if any(one.name in row["attributes"] for row in rows)]
    width, height = video.size
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>", "  <meta>",
        "    <task>",
        f"      <name>{escape(video.path.stem)}</name>", f"      <size>{video.num_frames}</size>",
        "      <mode>interpolation</mode>", "      <overlap>0</overlap>", "      <start_frame>0</start_frame>",
        f"      <stop_frame>{video.num_frames - 1}</stop_frame>", "      <labels>", "        <label>",
        f"          <name>{_LABEL}</name>", "          <attributes>",
    ]  # fmt: skip
    for one in answered:
        given = {_value(row["attributes"][one.name]) for row in rows if one.name in row["attributes"]}
        values = [*one.labels, *sorted(given - set(one.labels))]
        lines += [
            "            <attribute>", f"              <name>{escape(one.name)}</name>",
            "              <mutable>False</mutable>", "              <input_type>select</input_type>",
            f"              <default_value>{escape(values[0])}</default_value>",
            f"              <values>{escape(chr(10).join(values))}</values>", "            </attribute>",
        ]  # fmt: skip
    lines += [
        "          </attributes>", "        </label>", "      </labels>", "      <original_size>",
        f"        <width>{width}</width>", f"        <height>{height}</height>", "      </original_size>",
        "    </task>", "  </meta>",
    ]  # fmt: skip
    for number, row in enumerate(rows):
        mine = np.flatnonzero(boxes.ids == row["id"])
        found = np.clip(boxes.boxes[mine], 0, (width, height, width, height))
        answers = [
            f"      <attribute name={quoteattr(name)}>{escape(_value(one))}</attribute>"
            for name, one in row["attributes"].items()
        ]
        lines.append(f'  <track id="{number}" label="{_LABEL}" source="auto">')
        for frame, box, outside in _key_frames(boxes.frames[mine], found, video.num_frames):
            edges = " ".join(f'{edge}="{value:.2f}"' for edge, value in zip(("xtl", "ytl", "xbr", "ybr"), box))
            state = f'frame="{frame}" outside="{outside:d}" occluded="0" keyframe="1"'
            lines += [f'    <box {state} {edges} z_order="0">', *answers, "    </box>"]
        lines.append("  </track>")
    atomic_write_text(Path(path), "\n".join([*lines, "</annotations>", ""]))


def _value(answer: Mapping[str, Any]) -> str:
    """The label of an answer; "unknown" too where the question makes no sense."""
    return UNKNOWN_ANSWER if answer["label"] is None else answer["label"]


def _key_frames(frames: np.ndarray, boxes: np.ndarray, count: int) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Frame, box and whether the person is outside, for each key frame of a track."""
    # Runs of frames without a gap.
    cuts = np.flatnonzero(np.diff(frames) > 1) + 1
    for run, run_boxes in zip(np.split(frames, cuts), np.split(boxes, cuts)):
        start = 0
        yield int(run[0]), run_boxes[0], False
        while start < len(run) - 1:
            start = _straight_until(run_boxes, start)
            yield int(run[start]), run_boxes[start], False
        if run[-1] + 1 < count:
            yield int(run[-1]) + 1, run_boxes[-1], True


def _straight_until(boxes: np.ndarray, start: int) -> int:
    """The last position up to which a straight line from `start` is near all boxes."""
    end = start + 1
    while end + 1 < len(boxes):
        share = np.linspace(0, 1, end + 2 - start)[1:-1, None]
        line = boxes[start] + share * (boxes[end + 1] - boxes[start])
        between = boxes[start + 1 : end + 1]
        if (np.abs(line - between) > _TOLERANCE * (between[:, 3:] - between[:, 1:2])).any():
            break
        end += 1
    return end
