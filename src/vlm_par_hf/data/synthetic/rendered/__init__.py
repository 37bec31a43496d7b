"""Rendered pedestrians: posed, clothed 3D people whose attributes are known exactly, as a street camera sees them.

Everything is a function of integers: `RenderedPerson.sample(seed, person_id)` draws who a person is, `Shot.sample` how
a camera sees them, and `render_picture` makes the picture. Labels come from what it shows: what is hidden is unknown.
"""

from .captions import caption
from .dataset import build_rendered_dataset, write_rendered_dataset
from .labels import as_pa100k, picture_labels
from .people import Garment, RenderedPerson, Shot, Thing, sample_tracklet
from .render import RenderedPicture, render_picture
from .street import Walker, render_street


__all__ = [
    "Garment",
    "RenderedPerson",
    "RenderedPicture",
    "Shot",
    "Thing",
    "Walker",
    "as_pa100k",
    "build_rendered_dataset",
    "caption",
    "picture_labels",
    "render_picture",
    "render_street",
    "sample_tracklet",
    "write_rendered_dataset",
]
