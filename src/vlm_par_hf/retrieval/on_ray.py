"""Reads people for a gallery with Ray Data: workers encode, the process that holds the lock commits."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vlm_par_hf.annotation.inputs import Boxed, ImageList
from vlm_par_hf.annotation.on_ray import ReadForRay, ray_session

from .encoding import PersonEncoder


__all__ = ["EncodeForRay", "encode_on_ray", "runs", "unpack"]

_PER_TASK = 64  # images that a worker reads at a time


def encode_on_ray(
    inputs: ImageList, encoder: PersonEncoder, indices: Sequence[int], resources: tuple[int, int, float]
) -> Iterator[tuple[int, list[dict[str, Any]] | None, str | None]]:
    """What workers say of images, in the order in which they finish: the index, the people, and the error.

    Args:
        inputs: the images.
        encoder: whose options the workers get.
        indices: of the images to read, ascending.
        resources: number of workers, CPUs and GPUs of each.
    """
    import ray.data

    if not indices:
        return
    workers, cpus, gpus = resources
    tasks = [indices[start : start + _PER_TASK] for start in range(0, len(indices), _PER_TASK)]
    items = [{"segments": json.dumps([one for run in runs(task) for one in inputs.segments(*run)])} for task in tasks]
    with ray_session(workers * cpus):
        data = (
            ray.data.from_items(items, override_num_blocks=len(items))
            .map_batches(ReadForRay(inputs.columns, inputs.folder), batch_size=1)
            .map_batches(
                EncodeForRay,
                fn_constructor_kwargs=encoder.arguments,
                batch_size=None,
                num_cpus=cpus,
                num_gpus=gpus or None,
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
            )
        )
        for block in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in block.to_pylist():
                people = None if row["people"] is None else [unpack(one) for one in json.loads(row["people"])]
                yield row["index"], people, row["error"]


class EncodeForRay(PersonEncoder):
    """Encodes the rows that `ReadForRay` read. Numbers travel as JSON, in which float32 is exact."""

    def __call__(self, batch):
        images = [
            image if boxes is None else Boxed(image, json.loads(boxes))
            for image, boxes in zip(batch["image"], batch["boxes"])
        ]
        people, errors = [], []
        for found, error in self.stream(self.batches(images)):
            people.append(None if found is None else json.dumps([_pack(one) for one in found]))
            errors.append(error)
        return {"index": batch["index"], "people": people, "error": errors}


def _pack(person: dict[str, Any]) -> dict[str, Any]:
    return {name: one.tolist() if isinstance(one, np.ndarray) else one for name, one in person.items()}


def unpack(person: dict[str, Any]) -> dict[str, Any]:
    """A person as `PersonEncoder.answer` gives it, from what a worker made of it."""
    arrays = {name: np.float32(person[name]) for name in ("probabilities", "embedding")}
    return {**person, **arrays}


def runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as ranges `(start, stop)`."""
    start = previous = None
    for index in indices:
        if start is None:
            start = index
        elif index != previous + 1:
            yield start, previous + 1
            start = index
        previous = index
    if start is not None:
        yield start, previous + 1
