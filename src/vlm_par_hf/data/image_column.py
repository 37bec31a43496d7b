"""The image column of our data sets. Imports `datasets`, so it is itself imported inside functions only."""

from dataclasses import dataclass, field, fields
from typing import Any

import datasets
from PIL import Image

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.images.opening import open_image
from vlm_par_hf.utils import shorten


__all__ = ["PedestrianImage"]


@dataclass
class PedestrianImage(datasets.Image):
    """`datasets.Image` that decodes with `open_image`: always RGB, and an error names the file.

    On disk and on the Hub it is an ordinary `datasets.Image` (`_type` stays "Image"), so that a saved data set can be
    read without this package. Loaded from there, the column decodes as `datasets.Image` does.
    """

    _type: str = field(default="Image", init=False, repr=False)

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> Image.Image:
        path = value.get("path") if isinstance(value, dict) else None
        if not isinstance(value, dict):
            return super().decode_example(value, token_per_repo_id)
        if value.get("bytes") is None and "://" in (path or ""):
            # `datasets` would download it.
            raise ParValueError(f"image {shorten(path)} is an address; expected an image file or its bytes")
        return open_image(value)

    def __eq__(self, other: object) -> bool:
        # Equal to the plain feature; otherwise a data set and its copy loaded from disk could not be concatenated.
        if not isinstance(other, datasets.Image):
            return NotImplemented
        return all(getattr(self, f.name) == getattr(other, f.name) for f in fields(datasets.Image))

    __hash__ = datasets.Image.__hash__
