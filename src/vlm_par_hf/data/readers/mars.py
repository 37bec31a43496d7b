"""MARS with its attribute annotation: tracklets of persons, joined to the table by person, camera and tracklet.

MARS: A Video Benchmark for Large-Scale Person Re-Identification, Zheng et al., ECCV 2016; A Temporal Attentive
Approach for Video-Based Pedestrian Attribute Recognition, Chen et al., PRCV 2019. The layout is that of the archives,
with the annotation beside them:

    bbox_train/0001/0001C1T0001F001.jpg, bbox_test/...      person, camera, tracklet, frame
    mars_attributes.csv

The table exists in two editions: of 24 columns with motion, pose and seven columns about the quality of a tracklet,
and an older one of 15, without these, whose columns have other names. Both are read; what a file lacks is unknown.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.utils import shorten

from .files import find_file, list_images
from .label_check import check_labels, count_positives
from .records import PedestrianRecord
from .splits import choose_groups
from .tracklet_tables import TrackletKey, check_num_frames, frame_records, in_order, read_tracklet_table


__all__ = ["QUALITY", "read_mars"]

QUALITY = (
    "occlusion", "cut-out", "multi-person", "background-dominant", "target-change", "target-miss", "wrong-target",
)  # fmt: skip
_OLD_NAMES = {
    "Tops.c": "top color", "Bottoms.c": "bottom color", "Age": "age", "Tops.l": "top length",
    "Bottoms.l": "bottom length", "handbag": "hand bag", "Bottoms.t": "bottom type",
}  # fmt: skip
_FOLDERS = {"train": "bbox_train", "test": "bbox_test"}
_HOMES = ("", "MARS", "mars", "MARS-v160809")
_NAME = re.compile(r"(00-1|\d{4})C(\d)T(\d{4})F(\d{3,6})\.", re.ASCII)
_JUNK, _DISTRACTOR = "00-1", "0000"
_VALIDATION_SHARE = 0.1
_OFFICIAL_TRACKLETS = {"train": 8_298, "test": 8_062}


def read_mars(
    root: str | os.PathLike, *, seed: int = 0, num_frames: int | None = None, ignore: Iterable[str] = ()
) -> tuple[AttributeSchema, dict[str, list[PedestrianRecord]], dict[str, Any]]:
    """Reads MARS with attributes.

    Args:
        root: the folder with `bbox_train`, `bbox_test` and `mars_attributes.csv` (or the one above the first two).
        seed: there is no official validation: a tenth of the training frames, by person, is taken by this seed.
        num_frames: read at most so many frames of each tracklet, spread evenly; None: all.
        ignore: attributes that may have no positive.

    Returns:
        The schema `mars`; the records of train, validation and test, one per frame; notes. Junk (00-1) and distractors
        (0000) have no attributes; they are left out and counted in the notes.

    Raises:
        FileNotFoundError: no table, or no folder of images.
        ValueError: a file is not what it should be, or a tracklet has no row; the message names it.
    """
    check_num_frames(num_frames)
    root, schema = Path(root).absolute(), get_schema("mars")
    path = find_file(root, [f"{home}/mars_attributes.csv".lstrip("/") for home in _HOMES], "mars_attributes.csv")
    labels_of, absent, flags = read_tracklet_table(path, schema, _OLD_NAMES, QUALITY)
    home = next((root / one for one in _HOMES if (root / one / "bbox_train").is_dir()), None)
    if home is None:
        raise ParFileNotFoundError(f"root {str(root)!r} holds no folder bbox_train; expected the unpacked MARS")
    splits: dict[str, list[PedestrianRecord]] = {}
    left_out = {"junk": 0, "distractors": 0}
    for split, folder in _FOLDERS.items():
        if not (home / folder).is_dir():
            raise ParFileNotFoundError(f"{home} holds no folder {folder}; expected the unpacked MARS")
        splits[split] = _read_images(home, folder, labels_of, path, left_out, num_frames)
        if not splits[split]:
            raise ParFileNotFoundError(f"{home / folder} holds no image; expected the unpacked MARS")
    counts = {split: len({one.tracklet_id for one in records}) for split, records in splits.items()}
    positives = {name: count for name, count in count_positives(schema, splits).items() if name not in absent}
    notes = check_labels(path, positives, {}, complete=counts == _OFFICIAL_TRACKLETS, ignore=ignore)
    train = splits["train"]
    chosen = choose_groups([record.person_id for record in train], _VALIDATION_SHARE, seed)
    parts = {
        "train": [record for record, taken in zip(train, chosen) if not taken],
        "validation": [record for record, taken in zip(train, chosen) if taken],
        "test": splits["test"],
    }
    return schema, parts, {
        "division": f"test official; validation ours: a tenth of the training frames by person, seed {seed}",
        "left_out": left_out,
        "marked_in_table": flags,
        **({"attributes_not_in_table": absent} if absent else {}),
        **notes,
    }  # fmt: skip


def _read_images(home, folder, labels_of, path, left_out, num_frames) -> list[PedestrianRecord]:
    records = []
    for person in sorted(os.listdir(home / folder)):
        if not (home / folder / person).is_dir():
            continue
        names = list_images(home / folder / person)
        if person in (_JUNK, _DISTRACTOR):
            left_out["junk" if person == _JUNK else "distractors"] += len(names)
            continue
        tracklets: dict[str, list[str]] = {}
        for name in names:
            if _NAME.match(name) is None or not name.startswith(person):
                raise ParValueError(
                    f"{home / folder / person} holds {shorten(name)}; expected names like {person}C1T0001F001.jpg"
                )
            tracklets.setdefault(name.partition("F")[0], []).append(name)
        for tracklet, frames in tracklets.items():
            _, camera, number, _ = _NAME.match(frames[0]).groups()
            key = TrackletKey(int(person), int(camera), int(number))
            if key not in labels_of:
                raise ParValueError(
                    f"{path} has no row of person {key.person}, camera {key.camera}, tracklet {key.tracklet}, but "
                    f"{home / folder} holds {frames[0]!r}"
                )
            records += frame_records(
                home / folder / person, in_order(frames), f"{folder}/{person}/", labels_of[key], tracklet,
                person_id=key.person, camera_id=key.camera, num_frames=num_frames,
            )  # fmt: skip
    return records
