"""Augmentation for pedestrian crops, and the data set that applies it reproducibly. NumPy and Pillow only."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from vlm_par_hf.errors import ParTypeError, ParValueError
from vlm_par_hf.images.opening import open_image, open_images
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import thread_map

from .carried import disable_decoding


__all__ = ["AugmentedDataset", "ParAugmentation"]


class ParAugmentation:
    """The field's usual augmentation: horizontal flip, pad and random crop, mild colors, random erasing, in this
    order.

    Args:
        schema: says by each attribute's `mirror` what a flip does to the labels.
        flip: probability of the horizontal flip.
        pad: the picture is padded by this share of its height and width on every side (edge pixels repeated) and
            cropped at random to its old size; 0 turns it off. Published code pads 256 x 192 by 10 pixels: about 0.05.
        color: brightness, contrast and saturation are each multiplied by a factor from [1 - color, 1 + color]; 0
            turns it off. Hue never changes, because colors are attributes.
        erasing: probability that one rectangle is filled with noise.
        erasing_area: smallest and largest share of the picture that is erased; its height / width is between 0.3 and
            3.3.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self,
        schema: AttributeSchema,
        *,
        flip: float = 0.5,
        pad: float = 0.05,
        color: float = 0.0,
        erasing: float = 0.0,
        erasing_area: tuple[float, float] = (0.02, 0.2),
    ) -> None:
        ranges = {"flip": (flip, 1.0), "pad": (pad, 0.5), "color": (color, 1.0), "erasing": (erasing, 1.0)}
        for name, (value, largest) in ranges.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= largest:
                raise ParValueError(f"{name} is {value!r}; expected a number from 0 to {largest}")
        low, high = erasing_area
        if not 0.0 < low <= high <= 1.0:
            raise ParValueError(f"erasing_area is {erasing_area!r}; expected two shares, 0 < smallest <= largest <= 1")
        self.schema = schema
        self.flip = flip
        self.pad = pad
        self.color = color
        self.erasing = erasing
        self.erasing_area = (low, high)

    def __repr__(self) -> str:
        return (
            f"ParAugmentation(flip={self.flip}, pad={self.pad}, color={self.color}, erasing={self.erasing}, "
            f"erasing_area={self.erasing_area})"
        )

    def __call__(
        self, image: Any, labels: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[Image.Image, np.ndarray | None]:
        """Augments one picture.

        Args:
            image: anything that `open_image` takes; never changed in place.
            labels: int64 `(A,)` in the order of the schema, or None.
            rng: all randomness comes from here.

        Returns:
            An RGB picture of the same size, and its labels (a new array if they changed).

        Raises:
            ValueError: `labels` has another length than the schema.
        """
        picture = open_image(image)
        if labels is not None:
            labels = np.asarray(labels, dtype=np.int64)
            if labels.shape != (len(self.schema),):
                raise ParValueError(f"labels have shape {labels.shape}; the schema has {len(self.schema)} attributes")
        if rng.random() < self.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if labels is not None:
                labels = self.schema.mirror_labels(labels)
        if self.pad > 0:
            picture = _shift(picture, self.pad, rng)
        if self.color > 0:
            for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                picture = enhancer(picture).enhance(rng.uniform(1 - self.color, 1 + self.color))
        if rng.random() < self.erasing:
            picture = _erase(picture, self.erasing_area, rng)
        return picture, labels

    def augment_frames(
        self, images: Sequence[Any], labels: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[list[Image.Image], np.ndarray | None]:
        """As a call, for the frames of one person: all of them are flipped or none, the rest is drawn for each."""
        one = copy.copy(self)
        one.flip = float(rng.random() < self.flip)
        found = [one(image, labels, rng) for image in images]
        return [picture for picture, _ in found], found[0][1]


class AugmentedDataset:
    """A map-style data set whose augmentation is a function of (seed, epoch, index) alone.

    The number of workers, the order of access and a restart change nothing: a sample looks the same whenever it is
    read in the same epoch, so a resumed training sees what an uninterrupted one would have seen.

    With a plain `DataLoader` call `set_epoch(epoch)` before each epoch (it also reaches persistent workers that are
    running). With `transformers.Trainer` pass `callbacks=[epoch_callback()]` from `vlm_par_hf.data.transforms`,
    because accelerate does not forward `set_epoch` to a data set on several devices or after a resume in the middle of
    an epoch; and set `remove_unused_columns=False`, because the model has no argument `image`.

    Args:
        dataset: rows with `image` and, if known, `labels`: a `datasets.Dataset` from `load_par_dataset`, or any
            sequence of such dicts.
        transform: `(image, labels, rng) -> (image, labels)` such as `ParAugmentation`; None changes nothing. It is
            called from several threads, so all its randomness must come from `rng`.
        seed: a non-negative integer.
    """

    def __init__(self, dataset: Any, transform: Any | None = None, seed: int = 0) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ParValueError(f"seed is {seed!r}; expected a non-negative integer")
        if transform is not None and not callable(transform):
            raise ParTypeError(f"transform is a {type(transform).__name__}; expected a callable (image, labels, rng)")
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ParTypeError(f"dataset is a {type(dataset).__name__}; expected rows that can be counted and indexed")
        import torch

        self.dataset = dataset
        self.transform = transform
        self.seed = int(seed)
        # In shared memory: persistent workers keep the copy of this object that they got in the first epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._rows = disable_decoding(dataset)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, a non-negative integer, whose augmentations are applied from now on."""
        if epoch != int(epoch) or epoch < 0:
            raise ParValueError(f"epoch is {epoch!r}; expected a non-negative integer")
        self._epoch.fill_(int(epoch))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The row as a new dict: `image` a PIL RGB picture, `labels` int64 `(A,)` if the row has them."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows at `indices`, as a `DataLoader` asks for them; several threads read and transform the pictures."""
        for index in indices:
            if not -len(self) <= index < len(self):
                raise IndexError(f"index {index} is out of range for {len(self)} rows")
        indices = [int(index) % len(self) for index in indices]
        rows = [dict(self._rows[index]) for index in indices]
        images = open_images([row["image"] for row in rows])
        return thread_map(
            lambda position: self._augment_row(rows[position], images[position], indices[position]), range(len(rows))
        )

    def _augment_row(self, row: dict[str, Any], image: Image.Image, index: int) -> dict[str, Any]:
        labels = row.get("labels")
        labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        if self.transform is not None:
            rng = np.random.default_rng((self.seed, self.epoch, index))
            image, labels = self.transform(image, labels, rng)
        row["image"] = image
        if labels is not None:
            row["labels"] = labels
        return row


def epoch_callback(sampler: Any = None) -> Any:
    """A `transformers.TrainerCallback` that tells the training data set the epoch (see `AugmentedDataset`), and a
    sampler, if one is given."""
    from transformers import TrainerCallback

    class EpochCallback(TrainerCallback):
        def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
            for one in (getattr(train_dataloader, "dataset", None), sampler):
                if hasattr(one, "set_epoch"):
                    # `state.epoch` is a float: after a resume in the middle of epoch 1 it is 1.5.
                    one.set_epoch(int((state.epoch or 0.0) + 1e-6))

    return EpochCallback()


def _shift(picture: Image.Image, pad: float, rng: np.random.Generator) -> Image.Image:
    # Reading at shifted, clipped positions equals padding with repeated edges and cropping to the old size.
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    margin_y, margin_x = round(pad * height), round(pad * width)
    shift_y, shift_x = rng.integers(-margin_y, margin_y + 1), rng.integers(-margin_x, margin_x + 1)
    rows = np.clip(np.arange(height) + shift_y, 0, height - 1)
    columns = np.clip(np.arange(width) + shift_x, 0, width - 1)
    return Image.fromarray(pixels[rows][:, columns])


def _erase(picture: Image.Image, area: tuple[float, float], rng: np.random.Generator) -> Image.Image:
    pixels = np.array(picture)
    height, width = pixels.shape[:2]
    num_erased = rng.uniform(*area) * height * width
    aspect = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
    h = min(height, max(1, round(math.sqrt(num_erased * aspect))))
    w = min(width, max(1, round(num_erased / h)))
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    pixels[top : top + h, left : left + w] = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
