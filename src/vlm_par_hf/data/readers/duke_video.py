"""DukeMTMC-VideoReID with its attribute annotation: tracklets of persons.

Exploit the Unknown Gradually: One-Shot Video-Based Person Re-Identification by Stepwise Learning, Wu et al., CVPR
2018; A Temporal Attentive Approach for Video-Based Pedestrian Attribute Recognition, Chen et al., PRCV 2019. The
images come from DukeMTMC, which its authors withdrew: nothing here says where to get them. Who has them reads

    train/0001/0001/0001_C1_F0001_...jpg, query/..., gallery/...        person, tracklet, frames
    duke_attributes.csv
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
from .mars import QUALITY
from .records import PedestrianRecord
from .splits import choose_groups
from .tracklet_tables import check_num_frames, frame_records, in_order, read_tracklet_table


__all__ = ["read_duke_video"]

_HOMES = ("", "DukeMTMC-VideoReID", "DukeMTMC-VID")
_FOLDERS = {"train": ("train",), "test": ("gallery", "query")}
_OTHER_NAMES = {"muti-person": "multi-person"}  # as the table has it
_CAMERA = re.compile(r"_C(\d)_", re.ASCII)
_VALIDATION_SHARE = 0.1
_OFFICIAL_TRACKLETS = {"train": 2_196, "test": 2_636}


def read_duke_video(
    root: str | os.PathLike, *, seed: int = 0, num_frames: int | None = None, ignore: Iterable[str] = ()
) -> tuple[AttributeSchema, dict[str, list[PedestrianRecord]], dict[str, Any]]:
    """Reads DukeMTMC-VideoReID with attributes.

    Args:
        root: the folder with `train`, `gallery` and `duke_attributes.csv` (or the one above the first two).
        seed: there is no official validation: a tenth of the training frames, by person, is taken by this seed.
        num_frames: read at most so many frames of each tracklet, spread evenly; None: all.
        ignore: attributes that may have no positive.

    Returns:
        The schema `duke_video`; the records of train, validation and test, one per frame; notes. The tracklets of
        `query` that are in `gallery` too are read once.

    Raises:
        FileNotFoundError: no table, or no folder of images.
        ValueError: a file is not what it should be, or a tracklet has no row; the message names it.
    """
    check_num_frames(num_frames)
    root, schema = Path(root).absolute(), get_schema("duke_video")
    path = find_file(root, [f"{home}/duke_attributes.csv".lstrip("/") for home in _HOMES], "duke_attributes.csv")
    labels_of, absent, flags = read_tracklet_table(path, schema, _OTHER_NAMES, QUALITY)
    by_number = {key.tracklet: (key, labels) for key, labels in labels_of.items()}  # the numbers are unique
    home = next((root / one for one in _HOMES if (root / one / "train").is_dir()), None)
    if home is None:
        raise ParFileNotFoundError(f"root {str(root)!r} holds no folder train; expected DukeMTMC-VideoReID")
    splits: dict[str, list[PedestrianRecord]] = {}
    for split, folders in _FOLDERS.items():
        splits[split] = []
        seen: set[int] = set()
        for folder in folders:
            splits[split] += _read_folder(home, folder, by_number, path, seen, num_frames)
        if not splits[split]:
            raise ParFileNotFoundError(f"{home} holds no image in {' or '.join(folders)}; expected DukeMTMC-VideoReID")
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
        "marked_in_table": flags,
        **({"attributes_not_in_table": absent} if absent else {}),
        **notes,
    }  # fmt: skip


def _read_folder(home, folder, by_number, path, seen: set[int], num_frames) -> list[PedestrianRecord]:
    records = []
    if not (home / folder).is_dir():
        return records
    for person in sorted(os.listdir(home / folder)):
        if not (home / folder / person).is_dir():
            continue
        for tracklet in sorted(os.listdir(home / folder / person)):
            place = home / folder / person / tracklet
            if not place.is_dir():
                continue
            if re.fullmatch(r"[0-9]{1,9}", person) is None or re.fullmatch(r"[0-9]{1,9}", tracklet) is None:
                raise ParValueError(f"{place}: expected folders of numbers, those of a person and of a tracklet")
            if int(tracklet) in seen:
                continue
            seen.add(int(tracklet))
            key, labels = by_number.get(int(tracklet), (None, None))
            if key is None or key.person != int(person):
                raise ParValueError(
                    f"{path} has no row of person {int(person)}, tracklet {int(tracklet)}, which is in {place}"
                )
            names = in_order(list_images(place))
            if not names:
                raise ParValueError(f"{place} holds no image; expected the frames of a tracklet")
            camera = _CAMERA.search(names[0])
            if camera is not None and int(camera[1]) != key.camera:
                raise ParValueError(
                    f"{path} says camera {key.camera} of tracklet {key.tracklet}, whose frames are {shorten(names[0])}"
                )
            records += frame_records(
                place, names, f"{folder}/{person}/{tracklet}/", labels, tracklet,
                person_id=key.person, camera_id=key.camera, num_frames=num_frames,
            )  # fmt: skip
    return records
