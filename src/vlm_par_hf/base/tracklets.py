"""The processor of models that take several frames of a person at once."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature

from vlm_par_hf.errors import ParError, ParTypeError, ParValueError
from vlm_par_hf.images.opening import is_one_image, open_image, open_images

from .processing import ParProcessor


__all__ = ["TrackletProcessor"]


class TrackletProcessor(ParProcessor):
    """Prepares tracklets, images and texts and names the answers of a model, as `ParProcessor` describes.

    Args:
        image_processor, tokenizer, patch_grid: as in `ParProcessor`. The frames of a tracklet are averaged place by
            place, so with NaFlex all of them need one grid: `from_backbone` sets it.
        pad_to_square: fill pictures up with black to a square before they are resized, as the paper does, in place of
            squashing them. For fixed resolution only.
    """

    reads_tracklets = True

    def __init__(self, image_processor, tokenizer, patch_grid=None, pad_to_square=False):
        super().__init__(image_processor, tokenizer, patch_grid)
        if pad_to_square and hasattr(image_processor, "max_num_patches"):
            raise ParValueError("pad_to_square is True, but NaFlex does not squash pictures: expected False")
        self.pad_to_square = bool(pad_to_square)

    @classmethod
    def from_backbone(
        cls, name: str | Path, *, max_num_patches: int | None = None, pad_to_square: bool = False, **kwargs: Any
    ) -> "TrackletProcessor":
        """As `ParProcessor.from_backbone`; a NaFlex backbone gets a grid that is about twice as high as wide, 16 x 8
        for 128 patches."""
        processor = super().from_backbone(name, max_num_patches=max_num_patches, **kwargs)
        if hasattr(processor.image_processor, "max_num_patches"):
            count = processor.image_processor.max_num_patches
            columns = max(1, math.isqrt(count // 2))
            processor.fix_patch_grid([count // columns, columns])
        return cls(processor.image_processor, processor.tokenizer, processor.patch_grid, pad_to_square)

    def __call__(self, images: Any = None, text: Any = None, *, videos: Any = None, **kwargs: Any) -> BatchFeature:
        """As `ParProcessor.__call__`, and prepares tracklets.

        Args:
            images: pictures of one person each, of one frame each.
            text: one text or a list.
            videos: a list of tracklets, each a list of pictures of one person in their order; they may be of different
                sizes, and tracklets of different lengths. One list of pictures is one tracklet.
            kwargs: as in `ParProcessor.__call__`.

        Returns:
            Of `videos` the tensors of `images` with an axis of frames, `(B, T, ...)`, T of the longest tracklet, and
            `frame_mask`, bool `(B, T)`, False where a shorter one has none.

        Raises:
            ValueError, TypeError, OSError: as in `ParProcessor.__call__`; a tracklet has no frame. The message names
                tracklet and frame.
        """
        if videos is None:
            return super().__call__(self._prepared(images), text, **kwargs)
        if images is not None:
            raise ParValueError("images and videos were both given, expected one of them")
        tracklets = self._read_tracklets(videos)
        T = max(map(len, tracklets))
        # What fills up short tracklets is a frame as any other, which the mask leaves out.
        frames = [one for frames in tracklets for one in (*frames, *frames[-1:] * (T - len(frames)))]
        found = super().__call__(self._prepared(frames), text, **{**kwargs, "return_tensors": "pt"})
        data = {
            key: value.unflatten(0, (len(tracklets), T)) if key != "input_ids" else value
            for key, value in found.items()
        }
        lengths = torch.tensor([len(frames) for frames in tracklets])
        data["frame_mask"] = torch.arange(T) < lengths[:, None]
        return BatchFeature(data, tensor_type=kwargs.get("return_tensors", "pt"))

    def _read_tracklets(self, videos: Any) -> list[list[Image.Image]]:
        """The pictures of each tracklet, opened."""
        if is_one_image(videos) or isinstance(videos, Mapping) or not isinstance(videos, Sequence):
            raise ParTypeError(f"videos is a {type(videos).__name__}, expected a list of lists of pictures")
        if not videos:
            raise ParValueError("videos is empty, expected at least one tracklet")
        tracklets = [videos] if is_one_image(videos[0]) else videos
        opened = []
        for number, frames in enumerate(tracklets):
            if not isinstance(frames, Sequence) or is_one_image(frames):
                raise ParTypeError(f"tracklet {number} is a {type(frames).__name__}, expected a list of pictures")
            if not frames:
                raise ParValueError(f"tracklet {number} has no frame, expected at least one")
            opened.append([_open_frame(frame, number, place) for place, frame in enumerate(frames)])
        return opened

    def _prepared(self, images: Any) -> Any:
        if images is None or not self.pad_to_square:
            return images
        return [_pad_to_square(one) for one in open_images([images] if is_one_image(images) else list(images))]


def _open_frame(frame: Any, tracklet: int, place: int) -> Image.Image:
    try:
        return open_image(frame)
    except ParError as error:
        raise type(error)(f"tracklet {tracklet}, frame {place}: {error}") from error


def _pad_to_square(picture: Image.Image) -> Image.Image:
    """The picture in the middle of a black square."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
