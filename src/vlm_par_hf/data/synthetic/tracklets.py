"""Tracklets of rendered and drawn people, with what disturbs the tracklets of cameras.

A person walks through the frames; in some of them something passes in front, the picture is blurred, or the detector's
box is off; now and then a frame shows somebody else, or the tracker goes on with another person. The labels are those
of the person, as far as any undisturbed frame shows them, and `disturbance` says what was done to a frame.
"""

import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vlm_par_hf.data.carried import attach_schema, dataset_schema, disable_decoding
from vlm_par_hf.data.tracklets import combine_labels
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.utils import require, shorten

from .camera import render_tracklet
from .people import SyntheticPerson, person_labels


if TYPE_CHECKING:
    import datasets


__all__ = [
    "DISTURBANCES",
    "build_rendered_tracklets",
    "build_synthetic_tracklets",
    "disturb_split",
    "disturb_tracklet",
]

DISTURBANCES = ("none", "jitter", "blur", "occluder", "other_person", "switch")
_QUALITY = 92


def disturb_tracklet(
    frames: Sequence[Image.Image],
    others: Sequence[Image.Image],
    rng: np.random.Generator,
    *,
    occluded: float = 0.25,
    blurred: float = 0.1,
    jittered: float = 0.2,
    wrong: float = 0.03,
    switched: float = 0.02,
) -> tuple[list[Image.Image], list[str]]:
    """The frames of a tracklet as a camera, a detector and a tracker would give them.

    Args:
        frames: T RGB pictures of one person.
        others: pictures of somebody else, at least one.
        rng: all randomness comes from here.
        occluded: share of the frames in which something passes in front of the person, in a row; rounded at random.
        blurred, jittered, wrong: probability of each frame to be blurred, to be cut off by a wrong box, to show
            somebody else.
        switched: probability that the last part of the tracklet, at most a third, shows somebody else.

    Returns:
        T pictures, and of each one of `DISTURBANCES`.
    """
    shares = {"occluded": occluded, "blurred": blurred, "jittered": jittered, "wrong": wrong, "switched": switched}
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ParValueError(f"{name} is {share!r}; expected a share from 0 to 1")
    T = len(frames)
    found, kinds = list(frames), ["none"] * T
    if T >= 3 and rng.random() < switched:
        for place in range(T - int(rng.integers(1, T // 3 + 1)), T):
            found[place], kinds[place] = others[place % len(others)], "switch"
    for place in range(T):
        if kinds[place] == "none" and rng.random() < wrong:
            found[place], kinds[place] = others[int(rng.integers(len(others)))], "other_person"
    for place in range(T):
        if rng.random() < jittered:
            found[place] = _shift_box(found[place], rng)
            kinds[place] = "jitter" if kinds[place] == "none" else kinds[place]
    count = min(T, int(occluded * T + rng.random()))
    if count:
        first = int(rng.integers(0, T - count + 1))
        occluder = _Occluder(others, rng)
        for step, place in enumerate(range(first, first + count)):
            found[place] = occluder.cover(found[place], (step + 0.5) / count)
            kinds[place] = "occluder"
    for place in range(T):
        if rng.random() < blurred:
            found[place] = _blur(found[place], rng)
            kinds[place] = "blur" if kinds[place] in ("none", "jitter") else kinds[place]
    return found, kinds


def build_rendered_tracklets(
    *,
    num_train: int = 400,
    num_validation: int = 60,
    num_test: int = 120,
    length: int = 12,
    cameras: tuple[int, ...] = (0,),
    occluded: float = 0.25,
    blurred: float = 0.1,
    jittered: float = 0.2,
    wrong: float = 0.03,
    switched: float = 0.02,
    seed: int = 0,
    num_proc: int | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> "datasets.DatasetDict":
    """Tracklets of rendered people. The clean frames are rendered once and kept, as `build_rendered_dataset` does;
    they are disturbed anew at each call, in the same way for the same arguments.

    Args:
        num_train, num_validation, num_test: tracklets per split, one of each person.
        length: frames of a tracklet, at least 2.
        cameras: which cameras take them, in turn.
        occluded, blurred, jittered, wrong, switched: see `disturb_tracklet`.
        seed: the population, and what disturbs.
        num_proc, cache_dir: as for `build_rendered_dataset`.

    Returns:
        `datasets.DatasetDict` with `image`, `image_id`, `labels` int64 `(A,)` of the tracklet (-100: no undisturbed
        frame shows it), `person_id`, `camera_id`, `tracklet_id`, `frame` and `disturbance`, carrying its schema.

    Raises:
        ValueError: an argument is outside its range; the message names it.
        ImportError: the extra `train` or `rendered` is not installed.
    """
    from .rendered import build_rendered_dataset

    sizes = {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}
    _check_sizes(sizes, length)
    clean = build_rendered_dataset(
        **{name: size * length for name, size in sizes.items()}, pictures_per_person=1, cameras=cameras,
        tracklet_length=length, seed=seed, num_proc=num_proc, cache_dir=cache_dir,
    )  # fmt: skip
    shares = {
        "occluded": occluded, "blurred": blurred, "jittered": jittered, "wrong": wrong, "switched": switched,
    }  # fmt: skip
    options = {"seed": seed, "length": length, "cameras": list(cameras), **sizes, **shares}
    result = {
        split: disturb_split(dataset, (seed, number), name="rendered_tracklets", options=options, **shares)
        for number, (split, dataset) in enumerate(clean.items())
    }
    return require("datasets", "train").DatasetDict(result)


def build_synthetic_tracklets(
    *,
    num_train: int = 400,
    num_validation: int = 60,
    num_test: int = 120,
    length: int = 12,
    cameras: tuple[int, ...] = (0,),
    occluded: float = 0.25,
    blurred: float = 0.1,
    jittered: float = 0.2,
    wrong: float = 0.03,
    switched: float = 0.02,
    seed: int = 0,
) -> "datasets.DatasetDict":
    """Tracklets of drawn people, for tests and quick tries; arguments and result as of `build_rendered_tracklets`."""
    sizes = {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}
    _check_sizes(sizes, length)
    shares = {
        "occluded": occluded, "blurred": blurred, "jittered": jittered, "wrong": wrong, "switched": switched,
    }  # fmt: skip
    options = {"seed": seed, "length": length, "cameras": list(cameras), **sizes, **shares}
    result, start = {}, 0
    for number, (name, size) in enumerate(sizes.items()):
        people = range(start, start + size)
        start = people.stop
        rows = [row for person_id in people for row in _draw_rows(seed, person_id, cameras, length)]
        clean = _as_dataset(rows, get_schema("synthetic"))
        split = name.removeprefix("num_")
        result[split] = disturb_split(clean, (seed, number), name="synthetic_tracklets", options=options, **shares)
    return require("datasets", "train").DatasetDict(result)


def _check_sizes(sizes: Mapping[str, Any], length: Any) -> None:
    for name, value, least in (*((name, size, 1) for name, size in sizes.items()), ("length", length, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ParValueError(f"{name} is {shorten(value)}, expected an integer of at least {least}")


def _draw_rows(seed: int, person_id: int, cameras: Sequence[int], length: int) -> list[dict[str, Any]]:
    """The rows of a drawn tracklet, undisturbed."""
    person, camera = SyntheticPerson.sample(seed, person_id), cameras[person_id % len(cameras)]
    tracklet = f"{person_id:06d}_c{camera}_0"
    return [
        {
            "image": {"bytes": _encode(picture), "path": f"{tracklet}_{place:03d}.jpg"},
            "image_id": f"{tracklet}_{place:03d}.jpg",
            "labels": person_labels(person, frame).tolist(),
            "person_id": person_id,
            "camera_id": camera,
            "tracklet_id": tracklet,
            "frame": place,
            "disturbance": "none",
        }
        for place, (picture, frame) in enumerate(render_tracklet(person, length, camera))
    ]


def disturb_split(
    dataset: "datasets.Dataset",
    seed: Sequence[int] = (0,),
    *,
    name: str = "in memory",
    options: dict[str, Any] | None = None,
    **shares: float,
) -> "datasets.Dataset":
    """A split of clean tracklets, disturbed; somebody else is the person of the next tracklet.

    Args:
        dataset: rows with `image` (as bytes), `image_id`, `labels`, `person_id`, `camera_id`, `tracklet_id` and
            `frame`, the frames of a tracklet behind each other, carrying a schema.
        seed: with the number of a tracklet it decides what disturbs it.
        name, options: of the result.
        shares: of `disturb_tracklet`.

    Returns:
        The same rows with the disturbed pictures, the labels of the tracklet in each, and `disturbance`.
    """
    schema = dataset_schema(dataset)
    by_tracklet: dict[str, list[dict[str, Any]]] = {}
    for row in disable_decoding(dataset).to_list():
        by_tracklet.setdefault(row["tracklet_id"], []).append(row)
    tracklets = list(by_tracklet.values())
    opened = [[_decode(row) for row in rows] for rows in tracklets]
    found = []
    for number, rows in enumerate(tracklets):
        rng = np.random.default_rng((*seed, number))
        pictures, kinds = disturb_tracklet(opened[number], opened[(number + 1) % len(opened)], rng, **shares)
        labels = combine_labels(np.asarray([row["labels"] for row in rows]), schema).tolist()
        for row, clean, picture, kind in zip(rows, opened[number], pictures, kinds, strict=True):
            image = row["image"] if picture is clean else {**row["image"], "bytes": _encode(picture)}
            found.append({**row, "image": image, "labels": labels, "disturbance": kind})
    return attach_schema(_as_dataset(found, schema), schema, name=name, options=options or {})


def _as_dataset(rows: list[dict[str, Any]], schema: AttributeSchema) -> "datasets.Dataset":
    datasets = require("datasets", "train")
    from vlm_par_hf.data.image_column import PedestrianImage

    features = datasets.Features(
        {
            "image": PedestrianImage(),
            "image_id": datasets.Value("string"),
            "labels": datasets.List(datasets.Value("int64"), length=len(schema)),
            "person_id": datasets.Value("int64"),
            "camera_id": datasets.Value("int64"),
            "tracklet_id": datasets.Value("string"),
            "frame": datasets.Value("int64"),
            "disturbance": datasets.Value("string"),
        }
    )
    columns = {column: [row[column] for row in rows] for column in features}
    return attach_schema(datasets.Dataset.from_dict(columns, features=features), schema)


def _encode(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _decode(row: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")


def _shift_box(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """What a box shows that lies beside the person or is too large or small; what is outside repeats the edge."""
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    scale = float(np.exp(rng.normal(0, 0.12)))
    top, left = rng.normal(0, 0.08) * height, rng.normal(0, 0.12) * width
    rows = np.clip((np.arange(height) - height / 2) * scale + height / 2 + top, 0, height - 1).astype(int)
    columns = np.clip((np.arange(width) - width / 2) * scale + width / 2 + left, 0, width - 1).astype(int)
    return Image.fromarray(pixels[rows][:, columns])


def _blur(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    radius = float(rng.uniform(0.012, 0.03)) * picture.height
    return picture.filter(ImageFilter.GaussianBlur(radius))


class _Occluder:
    """Something that passes in front of a person: somebody else, a pillar, a vehicle or foliage."""

    def __init__(self, others: Sequence[Image.Image], rng: np.random.Generator) -> None:
        self.kind = ("person", "pillar", "vehicle", "foliage")[int(rng.choice(4, p=(0.4, 0.2, 0.25, 0.15)))]
        self.other = others[int(rng.integers(len(others)))]
        self.direction = 1 if rng.random() < 0.5 else -1
        self.seed = int(rng.integers(2**31))

    def cover(self, picture: Image.Image, progress: float) -> Image.Image:
        """The picture with the occluder at `progress`, 0 to 1, of its way from one side to the other."""
        rng = np.random.default_rng(self.seed)  # the same thing in every frame
        width, height = picture.size
        # Its middle stays near the person: a frame counts as occluded if it hides most of them.
        offset = self.direction * (progress - 0.5) * 0.5 * width
        layer, mask = getattr(self, f"_{self.kind}")(width, height, offset, rng)
        found = picture.copy()
        found.paste(layer, (0, 0), mask.filter(ImageFilter.GaussianBlur(0.006 * height)))
        return found

    def _person(self, width, height, offset, rng):
        scale = rng.uniform(1.05, 1.35)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        at = round((width - size[0]) / 2 + offset), round((height - size[1]) * rng.uniform(0.3, 0.7))
        layer, mask = Image.new("RGB", (width, height)), Image.new("L", (width, height))
        layer.paste(self.other.resize(size, Image.Resampling.BILINEAR), at)
        ImageDraw.Draw(mask).rounded_rectangle(
            [at[0] + 0.12 * size[0], at[1], at[0] + 0.88 * size[0], at[1] + size[1]], 0.3 * size[0], fill=255
        )
        return layer, mask

    def _pillar(self, width, height, offset, rng):
        base = rng.uniform(40, 200) + rng.normal(0, 8, 3)
        shade = np.linspace(-25, 25, width)[None, :, None] + rng.normal(0, 6, (height, width, 1))
        layer = Image.fromarray(np.clip(base + shade, 0, 255).astype(np.uint8))
        mask, half = Image.new("L", (width, height)), rng.uniform(0.36, 0.48) * width
        middle = width / 2 + 0.6 * offset
        ImageDraw.Draw(mask).rectangle([middle - half, 0, middle + half, height], fill=255)
        return layer, mask

    def _vehicle(self, width, height, offset, rng):
        color = tuple(int(c) for c in rng.integers(20, 235, 3))
        layer, mask = Image.new("RGB", (width, height), color), Image.new("L", (width, height))
        draw, top = ImageDraw.Draw(layer), rng.uniform(0.02, 0.2) * height
        glass = tuple(int(c) for c in rng.integers(20, 90, 3))
        window = top + 0.06 * height
        for left in (-0.4, 0.25, 0.9):
            draw.rectangle(
                [(left + 0.05) * width + offset, window, (left + 0.55) * width + offset, window + 0.2 * height],
                fill=glass,
            )
        draw.line([0, top + 0.55 * height, width, top + 0.55 * height], fill=glass, width=max(1, height // 90))
        ImageDraw.Draw(mask).rectangle([0, top, width, height], fill=255)
        return layer, mask

    def _foliage(self, width, height, offset, rng):
        layer, mask = Image.new("RGB", (width, height), (50, 70, 40)), Image.new("L", (width, height))
        draw, draw_mask = ImageDraw.Draw(layer), ImageDraw.Draw(mask)
        for _ in range(140):
            x, y = rng.uniform(-0.1, 1.1) * width + 0.4 * offset, rng.uniform(0.0, 1.05) * height
            radius = rng.uniform(0.05, 0.13) * width
            box = [x - radius, y - radius, x + radius, y + radius]
            green = rng.uniform(40, 120)
            draw.ellipse(box, fill=(int(0.7 * green), int(green), int(0.45 * green)))
            draw_mask.ellipse(box, fill=255)
        return layer, mask
