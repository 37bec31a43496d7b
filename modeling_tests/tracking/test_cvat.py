"""The file for annotators: what CVAT reads, and where its straight lines put the boxes."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from modeling_tests.videos import write_numbered, write_tracks
from vlm_par_hf import Attribute, AttributeSchema
from vlm_par_hf.inference.track_files import read_track_file
from vlm_par_hf.inference.videos import Video
from vlm_par_hf.tracking import write_cvat


pytest.importorskip("av")
SCHEMA = AttributeSchema(
    [
        Attribute("Hat", "is there a hat?", ("no", "yes"), ("a", "b")),
        Attribute("Color<&>", "which color?", ("red & blue", 'a "b"', "c"), ("a", "b", "c")),
    ]
)


def answer(label):
    return {"label": label}


def interpolated(track, count):
    """Frame -> box, as CVAT places them: on straight lines between key frames, none where outside."""
    keys = [
        (int(box.get("frame")), box.get("outside") == "1", [float(box.get(e)) for e in ("xtl", "ytl", "xbr", "ybr")])
        for box in track.findall("box")
    ]
    found = {}
    for (frame, outside, box), following in zip(keys, [*keys[1:], None]):
        if outside:
            continue
        end = (count, None, box) if following is None else following
        last = box if following is None or following[1] else end[2]
        for k in range(frame, end[0]):
            share = (k - frame) / (end[0] - frame)
            found[k] = np.array(box) + share * (np.array(last) - np.array(box))
    return found


def test_what_it_says(tmp_path):
    video = Video(write_numbered(tmp_path / "a & b.mp4", 40))
    rng, rows = np.random.default_rng(0), []
    for k in range(40):
        x = 5 + 2 * k + (8 if k > 20 else 0)
        rows.append((k + 1, 4, x, 10, 20, 50))
        if k < 12 or 15 <= k < 30:
            rows.append((k + 1, 9, 100 + round(rng.normal(0, 4), 2), 70, 90, 50))
    boxes = read_track_file(write_tracks(tmp_path / "t.txt", rows))
    people = [
        {"id": 4, "attributes": {"Hat": answer("yes"), "Color<&>": answer("red & blue")}},
        {"id": 9, "attributes": {"Hat": answer("unknown"), "Color<&>": answer(None)}},
    ]
    write_cvat(video, people, boxes, tmp_path / "c.xml", SCHEMA)
    root = ElementTree.parse(tmp_path / "c.xml").getroot()
    assert root.findtext("version") == "1.1" and root.findtext("meta/task/size") == "40"
    assert root.findtext("meta/task/original_size/width") == "160"
    assert root.findtext("meta/task/labels/label/name") == "person"
    attributes = root.findall("meta/task/labels/label/attributes/attribute")
    assert {one.findtext("name"): one.findtext("values").split("\n") for one in attributes} == {
        "Hat": ["no", "yes", "unknown"],
        "Color<&>": ["red & blue", 'a "b"', "c", "unknown"],
    }
    first, second = root.findall("track")
    for box in first.findall("box"):
        assert {one.get("name"): one.text for one in box.findall("attribute")} == {
            "Hat": "yes",
            "Color<&>": "red & blue",
        }
    # Two straight lines, with a jump between them: few key frames.
    assert 3 <= len(first.findall("box")) <= 5
    for track, number in ((first, 4), (second, 9)):
        found = interpolated(track, 40)
        expected = {frame - 1: row for frame, who, *row in rows if who == number}
        assert found.keys() == expected.keys()
        for k, (x, y, width, height) in expected.items():
            corners = np.clip([x, y, x + width, y + height], 0, (160, 128, 160, 128))
            assert np.abs(found[k] - corners).max() <= 0.02 * height + 0.01
