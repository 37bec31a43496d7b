"""Data sets of drawn pedestrians, as `datasets` knows them."""

import io
import math
import multiprocessing
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from vlm_par_hf.data.carried import attach_schema
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.utils import require

from .camera import HEIGHT, render_person
from .people import Frame, SyntheticPerson, person_labels


if TYPE_CHECKING:
    import datasets


__all__ = ["build_synthetic_dataset"]

_PEOPLE_PER_JOB = 32


def build_synthetic_dataset(
    *,
    num_train: int = 6000,
    num_validation: int = 1000,
    num_test: int = 2000,
    pictures_per_person: int = 2,
    cameras: tuple[int, ...] = (0,),
    height: int = HEIGHT,
    seed: int = 0,
    num_proc: int | None = None,
) -> "datasets.DatasetDict":
    """Draw a data set of pedestrians: the same pictures for the same arguments, whatever `num_proc`.

    Args:
        num_train, num_validation, num_test: pictures per split; no person is in two splits.
        pictures_per_person: pictures of each person, differing in view, pose and everything that disturbs.
        cameras: which cameras take them, in turn: `(0,)`, `(1,)` (the shifted domain) or `(0, 1)`.
        height: picture height in pixels, the width is half of it.
        seed: the population. The embedded backbone was trained on population 1000, which is refused here.
        num_proc: drawing processes, all cores when None.

    Returns:
        `datasets.DatasetDict` with `image`, `image_id`, `labels` int64 `(A,)` (-100 = cannot be seen), `person_id` and
        `camera_id`, carrying its schema.

    Raises:
        ValueError: an argument is outside its range; the message names it.
        ImportError: the extra `train` is not installed.
    """
    datasets = require("datasets", "train")
    from vlm_par_hf.data.image_column import PedestrianImage

    sizes = {"train": num_train, "validation": num_validation, "test": num_test}
    _check_arguments(sizes, pictures_per_person, cameras, seed)
    schema = get_schema("synthetic")
    features = datasets.Features(
        {
            "image": PedestrianImage(),
            "image_id": datasets.Value("string"),
            "labels": datasets.List(datasets.Value("int64"), length=len(schema)),
            "person_id": datasets.Value("int64"),
            "camera_id": datasets.Value("int64"),
        }
    )
    options = {
        "seed": seed,
        "num_train": num_train,
        "num_validation": num_validation,
        "pictures_per_person": pictures_per_person,
        "cameras": list(cameras),
    }
    result, start = {}, 0
    for split, size in sizes.items():
        people = range(start, start + math.ceil(size / pictures_per_person))
        start = people.stop
        parts = [people[i : i + _PEOPLE_PER_JOB] for i in range(0, len(people), _PEOPLE_PER_JOB)]
        jobs = [(seed, part, pictures_per_person, tuple(cameras), height) for part in parts]
        rows = [row for job in _map_jobs(jobs, num_proc or os.cpu_count() or 1) for row in job][:size]
        pictures, names, labels, person_ids, camera_ids = zip(*rows, strict=True)
        table = {
            "image": [{"bytes": data, "path": name} for data, name in zip(pictures, names, strict=True)],
            "image_id": list(names),
            "labels": [row.tolist() for row in labels],
            "person_id": list(person_ids),
            "camera_id": list(camera_ids),
        }
        dataset = datasets.Dataset.from_dict(table, features=features)
        result[split] = attach_schema(dataset, schema, name="synthetic", options=options)
    return datasets.DatasetDict(result)


def _check_arguments(sizes: dict[str, int], pictures_per_person: int, cameras: tuple[int, ...], seed: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ParValueError(f"num_{name} is {value!r}; expected a positive integer")
    if pictures_per_person < 1:
        raise ParValueError(f"pictures_per_person is {pictures_per_person!r}; expected at least 1")
    if not cameras or not set(cameras) <= {0, 1}:
        raise ParValueError(f"cameras is {cameras!r}; expected a non-empty tuple of 0 and 1")
    if seed == 1000:
        raise ParValueError("seed 1000 is the population that the embedded backbone was trained on; choose another")


def _picture_rows(job: tuple) -> list[tuple[bytes, str, np.ndarray, int, int]]:
    """The JPEG, its name, labels, person and camera of each picture; a job is plain values that a process is sent."""
    seed, people, pictures_per_person, cameras, height = job
    rows = []
    for person_id in people:
        person = SyntheticPerson.sample(seed, person_id)
        for index in range(pictures_per_person):
            camera = cameras[index % len(cameras)]
            frame = Frame.sample(person, index, camera)
            file = io.BytesIO()
            render_person(person, frame, height).save(file, "JPEG", quality=90)
            name = f"{person_id:06d}_c{camera}_{index}.jpg"
            rows.append((file.getvalue(), name, person_labels(person, frame), person_id, camera))
    return rows


def _map_jobs(jobs: list, num_proc: int) -> Iterator:
    # Drawing is pure Python over PIL: processes, not threads. Where fork does not exist a child would have to import
    # the caller's main module, which scripts without a guard do not survive: draw in this process there.
    if num_proc <= 1 or len(jobs) < 4 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(_picture_rows, jobs)
        return
    with multiprocessing.get_context("fork").Pool(num_proc) as pool:
        yield from pool.imap(_picture_rows, jobs)
