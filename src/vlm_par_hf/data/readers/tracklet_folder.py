"""Your own tracklets: a folder of frames per tracklet, and a table of labels with a row for each.

    my_tracklets/
      schema.json             list of attributes
      labels.csv              column `tracklet`: the folder of the frames; one column per attribute
      0001/frame_0001.jpg ...

The table is read as that of `read_folder`, with `split`, `person_id` and `camera_id` if they are there.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import shorten

from .files import list_images
from .folder import read_folder_and_rest
from .records import PedestrianRecord
from .tracklet_tables import check_num_frames, frame_records, in_order


__all__ = ["read_tracklets"]


def read_tracklets(
    root: str | os.PathLike,
    schema: AttributeSchema | None = None,
    *,
    seed: int = 0,
    num_frames: int | None = None,
    negative: str | int | None = None,
    unknown: str | int | None = None,
    ignore: Iterable[str] = (),
) -> tuple[AttributeSchema, dict[str, list[PedestrianRecord]], dict[str, Any]]:
    """Reads a folder of the user's own tracklets. Frames are in the order of the numbers in their names.

    Args:
        root: the folder.
        schema, seed, negative, unknown, ignore: as for `read_folder`.
        num_frames: read at most so many frames of each tracklet, spread evenly; None: all.

    Returns:
        The schema, the records of each split, one per frame, and how many cells each column holds that was not read.

    Raises:
        FileNotFoundError: no table, no schema, or a folder of frames that does not exist.
        ValueError: as `read_folder`; a tracklet has no frame.
    """
    check_num_frames(num_frames)
    schema, tracklets, unread = read_folder_and_rest(
        root, schema, seed=seed, negative=negative, unknown=unknown, ignore=ignore
    )
    splits: dict[str, list[PedestrianRecord]] = {}
    for split, records in tracklets.items():
        splits[split] = []
        for one in records:
            folder = Path(one.image)
            if not folder.is_dir():
                raise ParFileNotFoundError(
                    f"tracklet {shorten(one.image_id)}: {folder} is no folder; expected that of its frames"
                )
            names = in_order(list_images(folder))
            if not names:
                raise ParValueError(f"tracklet {shorten(one.image_id)}: {folder} holds no image; expected its frames")
            splits[split] += frame_records(
                folder, names, f"{one.image_id}/", one.labels, one.image_id,
                person_id=one.person_id, camera_id=one.camera_id, num_frames=num_frames,
            )  # fmt: skip
    return schema, splits, unread
