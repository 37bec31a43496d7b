"""Data sets of rendered pedestrians, kept as parquet files with the pictures inside.

    FOLDER/data/train-00000-of-00098.parquet ...    also read by `load_dataset(FOLDER)`
    FOLDER/schema.json                              the attributes: what the labels mean
    FOLDER/report.json                              what was asked for

Rendering takes a while, so files that are complete are never made again: an interrupted run goes on where it stopped.

    python -m vlm_par_hf.data.synthetic.rendered --out FOLDER --train 50000 --num-proc 2
"""

import argparse
import hashlib
import io
import json
import logging
import math
import multiprocessing
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_par_hf.data.carried import attach_schema
from vlm_par_hf.data.prepared import REPORT_FILE, SCHEMA_FILE
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.utils import atomic_write_json, require

from .captions import caption
from .labels import picture_labels
from .people import RenderedPerson, Shot, sample_tracklet
from .render import render_picture


if TYPE_CHECKING:
    import datasets


__all__ = ["BOXES", "build_rendered_dataset", "main", "write_rendered_dataset"]

logger = logging.getLogger(__name__)

EDITION = 2  # raised when the same arguments give other pictures: files of an earlier edition are not taken for them
_PEOPLE_PER_JOB = 16
_JOBS_PER_FILE = 16
_BACKBONE_SEED = 1000
_QUALITY = 95  # of the files; the camera's own JPEG artefacts are in the pixels already
# Box -> the parts that it surrounds, in the order of the column `boxes`.
BOXES: dict[str, tuple[str, ...]] = {
    "head": ("head", "face", "eyes", "hair", "hat", "glasses", "mask", "headphones"),
    "upper": ("upper", "sleeves", "torso_front", "torso_back", "print", "inner", "arms", "hands", "scarf"),
    "lower": ("lower", "legs"),
    "feet": ("shoes",),
    "carried": (
        "backpack", "backpack_straps", "shoulder_bag", "handbag", "suitcase", "umbrella", "phone", "in_front", "cane",
    ),
}  # fmt: skip


def build_rendered_dataset(
    *,
    num_train: int = 6000,
    num_validation: int = 1000,
    num_test: int = 2000,
    pictures_per_person: int = 2,
    cameras: tuple[int, ...] = (0,),
    tracklet_length: int | None = None,
    seed: int = 0,
    num_proc: int | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> "datasets.DatasetDict":
    """Render a data set of pedestrians: the same pictures for the same arguments, whatever `num_proc`.

    Args:
        num_train, num_validation, num_test: pictures per split; no person is in two splits.
        pictures_per_person: pictures of each person, differing in view, pose and everything that disturbs.
        cameras: which cameras take them, in turn: `(0,)`, `(1,)` (the shifted domain) or `(0, 1)`.
        tracklet_length: frames (8 to 16 are usual) that follow each other in place of each picture; None for single
            pictures.
        seed: the population. The embedded backbone was trained on population 1000, which is refused here.
        num_proc: rendering processes, all cores when None.
        cache_dir: where the files are kept, in a folder for each set of arguments; by default `vlm_par_hf` in the
            cache of `datasets`. Rendered once, they are only read.

    Returns:
        `datasets.DatasetDict` with `image`, `image_id`, `labels` int64 `(A,)` (-100 = cannot be seen), `person_id`,
        `camera_id`, `caption` (a sentence that tells part of the labels) and `boxes` (int64 `(5, 4)`: left, top,
        right, bottom in pixels of what is seen of head, upper body, lower body, feet and what is carried; -1 if
        nothing is), and for tracklets `tracklet_id` and `frame`. It carries its schema. The encoded pictures are in
        memory, some 5 KB each.

    Raises:
        ValueError: an argument is outside its range; the message names it.
        ImportError: the extra `train` or `rendered` is not installed.
    """
    datasets = require("datasets", "train")
    sizes = {"train": num_train, "validation": num_validation, "test": num_test}
    for name, value in sizes.items():
        _check_number(f"num_{name}", value, 1)
    if seed == _BACKBONE_SEED:
        raise ParValueError(f"seed {seed} is the population that the embedded backbone was trained on; choose another")
    arguments = _arguments(sizes, pictures_per_person, cameras, tracklet_length, seed)
    base = Path(datasets.config.HF_DATASETS_CACHE) / "vlm_par_hf" if cache_dir is None else Path(cache_dir)
    digest = hashlib.blake2b(json.dumps(arguments, sort_keys=True).encode(), digest_size=8).hexdigest()
    folder = base / f"rendered-{digest}"
    _write(folder, arguments, num_proc)
    options = {
        "seed": seed,
        "num_train": num_train,
        "num_validation": num_validation,
        "pictures_per_person": pictures_per_person,
        "cameras": list(cameras),
        "tracklet_length": tracklet_length,
    }
    return _read(folder, arguments, options)


def write_rendered_dataset(
    folder: str | os.PathLike,
    *,
    num_train: int,
    num_validation: int = 0,
    num_test: int = 0,
    pictures_per_person: int = 2,
    cameras: tuple[int, ...] = (0,),
    tracklet_length: int | None = None,
    seed: int = 0,
    num_proc: int | None = None,
) -> Path:
    """Render a data set into a folder, which `load_par_dataset("hub", folder)` and `load_dataset(folder)` read.

    Args:
        folder: a new one, or one in which a run with the same arguments was interrupted.
        num_train, num_validation, num_test: pictures per split, 0 for none.
        pictures_per_person, cameras, tracklet_length, seed, num_proc: as for `build_rendered_dataset`; every seed is
            allowed.

    Returns:
        The folder.

    Raises:
        ValueError: an argument is outside its range, or the folder holds something else.
    """
    sizes = {"train": num_train, "validation": num_validation, "test": num_test}
    for name, value in sizes.items():
        _check_number(f"num_{name}", value, 0)
    folder = Path(folder)
    _write(folder, _arguments(sizes, pictures_per_person, cameras, tracklet_length, seed), num_proc)
    return folder


def _check_number(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ParValueError(f"{name} is {value!r}; expected an integer of at least {least}")


def _arguments(sizes, pictures_per_person, cameras, tracklet_length, seed) -> dict[str, Any]:
    """What the pictures depend on, checked."""
    _check_number("pictures_per_person", pictures_per_person, 1)
    _check_number("seed", seed, 0)
    if not cameras or not set(cameras) <= {0, 1}:
        raise ParValueError(f"cameras is {cameras!r}; expected a non-empty tuple of 0 and 1")
    if tracklet_length is not None:
        _check_number("tracklet_length", tracklet_length, 2)
    return {
        "edition": EDITION,
        "sizes": sizes,
        "pictures_per_person": pictures_per_person,
        "cameras": list(cameras),
        "tracklet_length": tracklet_length,
        "seed": seed,
        "attributes": {attribute.name: list(attribute.labels) for attribute in get_schema("rendered")},
    }


def _files(arguments: dict[str, Any]) -> dict[str, list[tuple[str, range, int]]]:
    """Of each split the files: name, people, and how many pictures."""
    per_person = arguments["pictures_per_person"] * (arguments["tracklet_length"] or 1)
    files: dict[str, list[tuple[str, range, int]]] = {}
    start = 0
    for split, size in arguments["sizes"].items():
        people = range(start, start + math.ceil(size / per_person))
        start = people.stop
        step = _PEOPLE_PER_JOB * _JOBS_PER_FILE
        parts = [people[i : i + step] for i in range(0, len(people), step)]
        files[split] = [
            (
                f"{split}-{number:05d}-of-{len(parts):05d}.parquet",
                part,
                min(len(part) * per_person, size - number * step * per_person),
            )
            for number, part in enumerate(parts)
        ]
    return files


# --- writing ---------------------------------------------------------------------------------------------------------


def _write(folder: Path, arguments: dict[str, Any], num_proc: int | None) -> None:
    """Renders the files of a folder that are not there yet."""
    from huggingface_hub.utils import tqdm

    _prepare_folder(folder, arguments)
    every = [file for files in _files(arguments).values() for file in files]
    missing = [file for file in every if not (folder / "data" / file[0]).is_file()]
    if not missing:
        return
    settings = tuple(arguments[key] for key in ("seed", "pictures_per_person", "cameras", "tracklet_length"))
    counts = [math.ceil(len(people) / _PEOPLE_PER_JOB) for _, people, _ in missing]
    jobs = [
        (people[i : i + _PEOPLE_PER_JOB], *settings)
        for _, people, _ in missing
        for i in range(0, len(people), _PEOPLE_PER_JOB)
    ]
    done = _map_jobs(jobs, num_proc or os.cpu_count() or 1)
    logger.info("rendering %d pictures into %s", sum(size for *_, size in missing), folder)
    with tqdm(total=sum(size for *_, size in every), desc="rendering", unit="picture") as bar:
        bar.update(sum(size for *_, size in every) - sum(size for *_, size in missing))
        for (name, _, size), count in zip(missing, counts, strict=True):
            rows: list[dict[str, Any]] = []
            for _ in range(count):
                part = next(done)
                bar.update(min(len(part), size - len(rows)))
                rows += part
            _write_file(folder / "data" / name, rows[:size], tracklets=arguments["tracklet_length"] is not None)


def _prepare_folder(folder: Path, arguments: dict[str, Any]) -> None:
    path = folder / REPORT_FILE
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")).get("arguments") != arguments:
            raise ParValueError(f"folder {str(folder)!r} holds pictures of other arguments; expected a new folder")
    elif folder.is_dir() and any(folder.iterdir()):
        raise ParValueError(f"folder {str(folder)!r} is not empty; expected a new folder")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    get_schema("rendered").to_json(folder / SCHEMA_FILE)
    options = {key: value for key, value in arguments.items() if key not in ("edition", "sizes", "attributes")}
    options |= {f"num_{split}": size for split, size in arguments["sizes"].items()}
    atomic_write_json(path, {"notes": {"name": "rendered", "options": options}, "arguments": arguments})


def _features(tracklets: bool) -> "datasets.Features":
    datasets = require("datasets", "train")
    from vlm_par_hf.data.image_column import PedestrianImage

    columns = {
        "image": PedestrianImage(),
        "image_id": datasets.Value("string"),
        "labels": datasets.List(datasets.Value("int64"), length=len(get_schema("rendered"))),
        "person_id": datasets.Value("int64"),
        "camera_id": datasets.Value("int64"),
        "caption": datasets.Value("string"),
        "boxes": datasets.List(datasets.List(datasets.Value("int64"), length=4), length=len(BOXES)),
    }
    if tracklets:
        columns |= {"tracklet_id": datasets.Value("string"), "frame": datasets.Value("int64")}
    return datasets.Features(columns)


def _write_file(path: Path, rows: list[dict[str, Any]], *, tracklets: bool) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = _features(tracklets).arrow_schema  # holds the features too, so that readers recognise the image column
    columns = {name: [row[name] for row in rows] for name in schema.names}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _map_jobs(jobs: list, num_proc: int) -> Iterator[list[dict[str, Any]]]:
    # Where fork does not exist a child would have to import the caller's main module, which scripts without a guard do
    # not survive: render in this process there.
    if num_proc <= 1 or len(jobs) < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(_render_people, jobs)
        return
    with multiprocessing.get_context("fork").Pool(min(num_proc, len(jobs))) as pool:
        yield from pool.imap(_render_people, jobs)


def _render_people(job: tuple) -> list[dict[str, Any]]:
    """The rows of some people; a job is plain values that a process is sent."""
    people, seed, pictures_per_person, cameras, tracklet_length = job
    rows = []
    for person_id in people:
        person = RenderedPerson.sample(seed, person_id)
        for index in range(pictures_per_person):
            camera = cameras[index % len(cameras)]
            name = f"{person_id:06d}_c{camera}_{index}"
            if tracklet_length is None:
                rows.append(_row(person, Shot.sample(person, index, camera), f"{name}.jpg"))
                continue
            for frame, shot in enumerate(sample_tracklet(person, tracklet_length, camera, index)):
                row = _row(person, shot, f"{name}_{frame:03d}.jpg")
                rows.append(row | {"tracklet_id": name, "frame": frame})
    return rows


def _row(person: RenderedPerson, shot: Shot, name: str) -> dict[str, Any]:
    picture = render_picture(person, shot)
    labels = picture_labels(person, shot, picture.visible, picture.whole)
    rng = np.random.default_rng((person.seed, person.person_id, 20, shot.index, shot.camera))
    file = io.BytesIO()
    picture.image.save(file, "JPEG", quality=_QUALITY)
    return {
        "image": {"bytes": file.getvalue(), "path": name},
        "image_id": name,
        "labels": labels.tolist(),
        "person_id": person.person_id,
        "camera_id": shot.camera,
        "caption": caption(labels, rng)[0] if (labels >= 0).any() else "",
        "boxes": [
            _union([picture.boxes[part] for part in parts if part in picture.boxes]) for parts in BOXES.values()
        ],
    }


def _union(boxes: list[tuple[int, int, int, int]]) -> list[int]:
    """The box around some boxes; all -1 if there is none."""
    if not boxes:
        return [-1] * 4
    left, top, right, bottom = zip(*boxes, strict=True)
    return [min(left), min(top), max(right), max(bottom)]


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(folder: Path, arguments: dict[str, Any], options: dict[str, Any]) -> "datasets.DatasetDict":
    datasets = require("datasets", "train")
    import pyarrow
    import pyarrow.parquet

    features = _features(arguments["tracklet_length"] is not None)
    result = {}
    for split, files in _files(arguments).items():
        tables = [pyarrow.parquet.read_table(folder / "data" / name) for name, *_ in files]
        table = datasets.table.InMemoryTable(pyarrow.concat_tables(tables))
        dataset = datasets.Dataset(table, info=datasets.DatasetInfo(features=features))
        result[split] = attach_schema(dataset, get_schema("rendered"), name="rendered", options=options)
    return datasets.DatasetDict(result)


def main(argv: list[str] | None = None) -> None:
    """Render a data set from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vlm_par_hf.data.synthetic.rendered",
        description="Render pedestrians into parquet files; goes on where it was interrupted.",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--train", type=int, required=True, metavar="N", help="training pictures")
    parser.add_argument("--validation", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--test", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--pictures-per-person", type=int, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--cameras", type=int, nargs="+", default=(0,), help="0, 1 or both (default: 0)")
    parser.add_argument("--tracklet-length", type=int, metavar="N", help="frames; default: single pictures")
    parser.add_argument("--seed", type=int, default=0, help="the population (default: %(default)s)")
    parser.add_argument("--num-proc", type=int, metavar="N", help="processes; default: all cores")
    args = parser.parse_args(argv)
    write_rendered_dataset(
        args.out,
        num_train=args.train,
        num_validation=args.validation,
        num_test=args.test,
        pictures_per_person=args.pictures_per_person,
        cameras=tuple(args.cameras),
        tracklet_length=args.tracklet_length,
        seed=args.seed,
        num_proc=args.num_proc,
    )
