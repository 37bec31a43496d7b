"""What the pipeline answers: dicts and lists as `json` and `pickle` know them, which can also be drawn."""

import os
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from PIL import Image

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.images.opening import Opened
from vlm_par_hf.visualization import draw_boxes, explanation_grid, people_grid

from .boxes import scale_box
from .opening import open_picture


__all__ = ["PersonResult", "PictureResult"]


class _Drawable:
    """`draw` and `save` of a result.

    The picture is opened again for it. Results of one picture and of a list remember it, those of a stream only its
    path or URL, so that memory stays bounded.
    """

    _source: Any = None
    _url_options: Mapping[str, Any] = {}

    def remember(self, source: Any, url_options: Mapping[str, Any]) -> None:
        """Sets the picture that `draw` opens, and the keywords of `open_picture` for it."""
        self._source, self._url_options = source, url_options

    def draw(self, image: Any = None) -> Image.Image:
        """A picture of this result.

        Args:
            image: the picture that was answered, of any kind that the pipeline takes; None: it is opened again.

        Returns:
            `PIL.Image.Image`: RGB.

        Raises:
            ValueError: `image` is None, and the result does not remember its picture.
            What the pipeline raises for a picture that cannot be read.
        """
        source = self._source if image is None else image
        if source is None:
            raise ParValueError("this result does not remember its picture, as it comes from a stream: pass image=")
        return self._drawn(open_picture(source, one_person=False, **self._url_options))

    def save(self, path: str | os.PathLike[str], image: Any = None) -> None:
        """Writes what `draw` returns to a file, in the format that its ending names.

        Raises:
            ValueError: as `draw`; also for an ending that is none of an image.
        """
        picture = self.draw(image)
        try:
            picture.save(path)
        except ValueError as error:
            raise ParValueError(f"path={os.fspath(path)!r}: {error}; expected an ending such as .png") from error

    @abstractmethod
    def _drawn(self, opened: Opened) -> Image.Image:
        """The result over its picture."""


class PersonResult(dict[str, Any], _Drawable):
    """The answer for one person: `{"attributes": {name: {"label", "score", "probabilities", "threshold"}}}`.

    A dict, which `json` and `pickle` take. With boxes or a detector it also holds `"box"`. `draw()` shows the person
    with their attributes, and with `explain` the parts of the picture that answers rest on.
    """

    def _drawn(self, opened: Opened) -> Image.Image:
        person = opened.image
        if "box" in self:
            person = person.crop(scale_box(self["box"], opened.full_size, person.size))
        if "overlays" in self:
            return explanation_grid([person], [self])
        return people_grid([person], [self])


class PictureResult(list[PersonResult], _Drawable):
    """The people of one picture, in the order of the boxes: a list of `PersonResult`, which `json` and `pickle` take.

    `draw()` shows the picture with a box and the positive answers for each person.
    """

    def _drawn(self, opened: Opened) -> Image.Image:
        image = opened.image
        return draw_boxes(image, [{**one, "box": scale_box(one["box"], opened.full_size, image.size)} for one in self])
