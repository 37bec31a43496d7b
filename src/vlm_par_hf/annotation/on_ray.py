"""Computes the missing parts of a run with Ray Data: each worker does one part at a time, again if a worker dies."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from vlm_par_hf.errors import ParRuntimeError

from .annotator import Annotator, check_finite
from .inputs import Boxed, Columns, Segment, read_segments
from .results import make_line


__all__ = ["AnswerForRay", "ReadForRay", "ray_session", "run_on_ray"]


def run_on_ray(inputs, annotator, ranges, missing, resources, bar) -> Iterator[tuple[int, list[str]]]:
    """The missing parts, as number and lines, in the order in which they are finished.

    Args:
        inputs: the `ImageList`.
        annotator: the `Annotator` whose options the workers get.
        ranges: the images of each part.
        missing: numbers of the parts to compute.
        resources: number of workers, CPUs and GPUs of each.
        bar: a progress bar, moved on by the images of each finished part.
    """
    import ray.data

    workers, cpus, gpus = resources
    items = [
        {"segments": json.dumps(list(inputs.segments(part.start, part.stop)))}
        for part in map(ranges.__getitem__, missing)
    ]
    with ray_session(workers * cpus):
        data = (
            ray.data.from_items(items, override_num_blocks=len(items))
            .map_batches(ReadForRay(inputs.columns, inputs.folder), batch_size=1)
            .map_batches(
                AnswerForRay,
                fn_constructor_kwargs=annotator.arguments,
                batch_size=None,
                num_cpus=cpus,
                num_gpus=gpus or None,
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
            )
        )
        # Parts come in the order in which workers finish them, and Ray may cut a large one into several blocks.
        waiting: dict[int, dict[int, str]] = {number: {} for number in missing}
        for block in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in block.to_pylist():
                number = row["index"] // len(ranges[0])
                lines = waiting[number]
                lines[row["index"]] = row["lines"]
                if len(lines) == len(ranges[number]):
                    del waiting[number]
                    yield number, [lines[index] for index in ranges[number]]
                    bar.update(len(lines))
        if waiting:
            raise ParRuntimeError(f"Ray ended without an answer to {len(waiting)} parts, the first is {min(waiting)}")


@contextmanager
def ray_session(cpus: int) -> Iterator[None]:
    """Uses the Ray that runs, or starts one and shuts it down at the end."""
    import ray.data

    started = not ray.is_initialized()
    if started:
        is_remote = "RAY_ADDRESS" in os.environ
        options = {} if is_remote else {"num_cpus": max(cpus, os.cpu_count() or 1), "include_dashboard": False}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # by default Ray sends usage statistics to its makers
        ray.init(log_to_driver=False, **options)
    # Ray's progress bars and log lines would be mixed with our own bar.
    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        log.setLevel(before[1])
        if started:
            ray.shutdown()


class ReadForRay:
    """Reads segments to a table of rows whose column types are the same for all rows."""

    def __init__(self, columns: Columns, folder: str):
        self.columns, self.folder = columns, folder

    def __call__(self, batch):
        import pyarrow

        image = {"bytes": pyarrow.binary(), "path": pyarrow.string(), "root": pyarrow.string()}
        schema = pyarrow.schema(
            {
                "index": pyarrow.int64(),
                "name": pyarrow.string(),
                "image_id": pyarrow.string(),
                "image": pyarrow.struct(image),
                "boxes": pyarrow.string(),  # as JSON; null: the image is not boxed
            }
        )
        segments = [Segment(*segment) for text in batch["segments"] for segment in json.loads(text)]
        rows = []
        for row in read_segments(segments, self.columns, self.folder):
            image, boxes = row.image, None
            if isinstance(image, Boxed):
                image, boxes = image.image, json.dumps(image.boxes)
            image = image if isinstance(image, dict) else {"bytes": None, "path": image}
            rows.append({**row._asdict(), "image": image, "boxes": boxes})
        return pyarrow.Table.from_pylist(rows, schema=schema)


class AnswerForRay(Annotator):
    """Answers the rows that `ReadForRay` read with what a part says of each image."""

    def __call__(self, batch):
        images = [
            image if boxes is None else Boxed(image, json.loads(boxes))
            for image, boxes in zip(batch["image"], batch["boxes"])
        ]
        answers = self.stream(self.batches(images))
        lines = []
        for name, image_id, (people, error) in zip(batch["name"], batch["image_id"], answers, strict=True):
            check_finite(people or (), f"image {name!r}")
            lines.append(make_line(name, image_id, people, error))
        return {"index": batch["index"], "lines": lines}
