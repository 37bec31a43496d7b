"""Views of pictures for the training of the embedded backbone: crops of one patch grid, disturbed as cameras do.

The views of a group have one grid of patches (rows x columns), so that a batch needs no padding; grids are drawn as
NaFlex gives them to crops of people. A view is cut out of its picture with that aspect, so people are hardly squashed.
Everything is a function of integers: the same group has the same views.
"""

import io
import logging
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from vlm_par_hf.data.synthetic import HEIGHT, WIDTH, Frame, SyntheticPerson, person_labels, render_person
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import require


__all__ = [
    "GRIDS", "PATCH", "POPULATION", "Pictures", "View", "disturb", "draw_pictures", "group_grid", "make_view",
    "mix_views", "read_parquet",
]  # fmt: skip

logger = logging.getLogger("vlm_par_hf.embedded.views")

POPULATION = 1000  # seed of the people drawn for the backbone, refused by `load_par_dataset("synthetic")`
PATCH = 16
# Rows and columns of patches, and how often: with 72 patches, PA-100K's crops get the first six in about these shares.
GRIDS = {(14, 5): 0.50, (13, 5): 0.19, (12, 6): 0.17, (15, 4): 0.04, (16, 4): 0.03, (11, 6): 0.04, (10, 7): 0.03}


@dataclass
class Pictures:
    """Labelled pictures to make views of.

    Attributes:
        images: `images[i]` is uint8 `(H, W, 3)` or the bytes of a file.
        labels: int64 `(N, A)` in the order of the schema, -100 = unknown.
        schema: their label space.
        persons: int64 `(N,)`, who is in each, None if that is not known.
    """

    images: Sequence
    labels: np.ndarray
    schema: AttributeSchema
    persons: np.ndarray | None = None

    def read(self, index: int) -> Image.Image:
        """Picture number `index`, RGB."""
        image = self.images[index]
        if isinstance(image, bytes):
            return Image.open(io.BytesIO(image)).convert("RGB")
        return Image.fromarray(np.asarray(image))


@dataclass
class View:
    """uint8 `(H, W, 3)`, and the labels `(A,)` of what it shows."""

    pixels: np.ndarray
    labels: np.ndarray


def _draw(number: int) -> tuple[np.ndarray, np.ndarray]:
    person = SyntheticPerson.sample(POPULATION, number // 2)
    frame = Frame.sample(person, number % 2, camera=int(number % 10 == 0))
    return np.asarray(render_person(person, frame)), person_labels(person, frame)


def draw_pictures(count: int, work: Path, processes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """`count` pictures as uint8 `(count, 192, 96, 3)` and labels int64 `(count, A)`, drawn once and memory-mapped."""
    pictures, labels = work / f"pictures_{count}.npy", work / f"labels_{count}.npy"
    if not labels.exists():  # the labels are written last, so that with them the pictures are complete
        logger.info("drawing %d pictures", count)
        target = np.lib.format.open_memmap(pictures, "w+", np.uint8, (count, HEIGHT, WIDTH, 3))
        rows = []
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            for number, (picture, row) in enumerate(pool.imap(_draw, range(count), chunksize=64)):
                target[number] = picture
                rows.append(row)
        target.flush()
        np.save(labels, np.stack(rows))
    return np.load(pictures, mmap_mode="r"), np.load(labels)


def read_parquet(files: Sequence[Path], schema: AttributeSchema) -> Pictures:
    """Pictures from parquet files with the columns `image` (bytes of a file, or a struct with them), `labels` and, if
    there is one, `person_id`."""
    pq = require("pyarrow.parquet", extra="train")
    images, labels, persons = [], [], []
    for file in sorted(files):
        wanted = {"image", "labels", "person_id"} & set(pq.read_schema(file).names)
        table = pq.read_table(file, columns=sorted(wanted))
        column = table.column("image").to_pylist()
        images += [image["bytes"] if isinstance(image, dict) else image for image in column]
        labels += table.column("labels").to_pylist()
        if "person_id" in table.column_names:
            persons += table.column("person_id").to_pylist()
    numbers = np.unique(persons, return_inverse=True)[1] if len(persons) == len(images) else None
    return Pictures(images, np.asarray(labels, np.int64), schema, numbers)


def group_grid(rng: np.random.Generator) -> tuple[int, int]:
    """Rows and columns of patches of one group."""
    return list(GRIDS)[rng.choice(len(GRIDS), p=list(GRIDS.values()))]


def make_view(picture: Image.Image, labels: np.ndarray, schema, grid, rng: np.random.Generator) -> View:
    """A crop of the picture with the aspect of the grid, flipped at random."""
    rows, columns = grid
    width, height = picture.size
    # At least 78 % of the height, so that hardly anything that the labels name is cut off; the width follows from the
    # aspect. What does not fit is squeezed: people of other shapes exist as well.
    cut_height = height * (1.0 if rng.random() < 0.3 else rng.uniform(0.78, 1.0))
    aspect = columns / rows * np.exp(rng.uniform(-0.12, 0.12))
    cut_width = min(width, max(cut_height * aspect, 0.6 * width))
    left, top = rng.uniform(0, width - cut_width), rng.uniform(0, height - cut_height)
    if cut_width < width:  # people stand near the middle
        left = (left + (width - cut_width) / 2) / 2
    size = (columns * PATCH, rows * PATCH)
    view = picture.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + cut_width, top + cut_height))
    pixels, labels = np.asarray(view), labels.copy()
    if rng.random() < 0.5:
        pixels, labels = pixels[:, ::-1], schema.mirror_labels(labels[None])[0]
    return View(np.ascontiguousarray(pixels), labels)


def mix_views(view: View, other: View, unknown: int, rng: np.random.Generator) -> View:
    """Both views blended, or a part of the second pasted into the first; the labels of a mixture are unknown.

    The teacher answers mixtures as well, which tells more of its function than clean pictures do alone (Beyer et al.
    2022, "Knowledge distillation: a good teacher is patient and consistent").
    """
    labels = np.full_like(view.labels, unknown)
    if rng.random() < 0.5:
        share = rng.uniform(0.2, 0.8)
        mixed = share * view.pixels.astype(np.float32) + (1 - share) * other.pixels
        return View(mixed.round().astype(np.uint8), labels)
    height, width = view.pixels.shape[:2]
    tall, wide = int(height * rng.uniform(0.2, 0.6)), int(width * rng.uniform(0.4, 1.0))
    top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
    pixels = view.pixels.copy()
    pixels[top : top + tall, left : left + wide] = other.pixels[top : top + tall, left : left + wide]
    return View(pixels, labels)


def disturb(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light, color, erased parts, low resolution, blur, noise and JPEG, each at random; uint8 `(H, W, 3)`."""
    values = pixels.astype(np.float32) / 255
    if rng.random() < 0.8:
        values = _light_and_color(values, rng)
    if rng.random() < 0.2:
        _erase(values, rng)
    image = Image.fromarray((np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8))
    if rng.random() < 0.3:
        factor = rng.uniform(0.3, 0.9)
        small = (max(8, round(image.width * factor)), max(16, round(image.height * factor)))
        image = image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BILINEAR)
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.6)))
    if rng.random() < 0.3:
        sigma = rng.uniform(2, 14)
        noise = rng.standard_normal((image.height, image.width, 3), dtype=np.float32) * sigma
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(20, 90)))
        image = Image.open(file).convert("RGB")
    return np.asarray(image)


def _light_and_color(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    gray = values @ np.array([0.299, 0.587, 0.114], np.float32)
    saturation = 0.0 if rng.random() < 0.06 else rng.uniform(0.4, 1.5)
    values = gray[..., None] + np.float32(saturation) * (values - gray[..., None])
    values = (values - gray.mean()) * np.float32(rng.uniform(0.6, 1.35)) + gray.mean()
    gain = rng.uniform(0.6, 1.35) * rng.uniform(0.88, 1.12, 3)
    values = np.clip(values * gain.astype(np.float32) + np.float32(rng.uniform(-0.08, 0.08)), 0, 1)
    return values ** np.float32(np.exp(rng.uniform(-0.35, 0.35)))


def _erase(values: np.ndarray, rng: np.random.Generator) -> None:
    height, width = values.shape[:2]
    tall, wide = int(height * rng.uniform(0.1, 0.4)), int(width * rng.uniform(0.2, 0.7))
    top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
    part = values[top : top + tall, left : left + wide]
    part[:] = rng.random(3) if rng.random() < 0.5 else rng.random(part.shape)
