"""The one record type that every reader returns. A reader neither decodes an image nor needs torch."""

from dataclasses import dataclass

import numpy as np

from vlm_par_hf.images.regions import Region


__all__ = ["PedestrianRecord"]


@dataclass(frozen=True, slots=True, eq=False)
class PedestrianRecord:
    """One image of one person as a data set lists it.

    `image` is the absolute path of the file, `image_id` its name inside the data set, `labels` int64 `(A,)` in the
    order of the data set's schema: class index, or -100 where unknown. `person_id` and `camera_id` are None where not
    known. With a `region` only that part of the picture shows the person. Of tracklets `tracklet_id` and `frame`, the
    place in the tracklet, are set.
    """

    image: str
    image_id: str
    labels: np.ndarray
    person_id: int | str | None = None
    camera_id: int | str | None = None
    region: Region | None = None
    tracklet_id: str | None = None
    frame: int | None = None
