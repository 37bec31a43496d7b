"""Synthetic pedestrians: drawn people whose attributes are known exactly.

Nothing here is a photograph, and no number measured on it says how a model does on one. The drawings exist so that
every path of the package (training, evaluation, pipeline, retrieval, video) runs on data that behaves like a PAR data
set: long-tailed (safety vests and canes about 1 %), co-dependent (winter brings coats, scarves and boots; canes go
with age), disturbed by pose, scale, light, background, occlusion, blur, noise and JPEG, seen by two differing cameras,
and grouped by person and tracklet.

Everything is a function of integers: `SyntheticPerson.sample(seed, person_id)` draws who a person is, and
`render_person(person, frame)` one picture of them. Labels are class indices in the order of `get_schema("synthetic")`;
what cannot be seen is unknown (-100): the face seen from the back, the color of a hat that is not there.
"""

from .camera import HEIGHT, SUPERSAMPLE, WIDTH, render_person, render_tracklet
from .captions import caption
from .dataset import build_synthetic_dataset
from .people import UNKNOWN, Frame, SyntheticPerson, person_labels


__all__ = [
    "HEIGHT",
    "SUPERSAMPLE",
    "UNKNOWN",
    "WIDTH",
    "Frame",
    "SyntheticPerson",
    "build_synthetic_dataset",
    "caption",
    "person_labels",
    "render_person",
    "render_tracklet",
]
