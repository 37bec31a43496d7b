"""Computes the missing parts of a run with Ray Data: each worker does one part at a time, again if a worker dies."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from vlm_par_hf.errors import ParRuntimeError

from .annotator import Annotator
from .inputs import Columns, Segment, read_segments
from .results import make_line


__all__ = ["ReadForRay", "run_on_ray"]


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
    model = annotator.model
    options = {
        "model": os.path.abspath(model) if model is not None and os.path.exists(model) else model,
        "batch_size": annotator.batch_size,
        "only_positive": annotator.only_positive,
        "sensitive": annotator.sensitive,
        "device": annotator.device,
        "dtype": annotator.dtype,
        **annotator.row_options._asdict(),
    }
    items = [
        {"segments": json.dumps(list(inputs.segments(part.start, part.stop)))}
        for part in map(ranges.__getitem__, missing)
    ]
    with _ray_session(workers * cpus):
        data = (
            ray.data.from_items(items, override_num_blocks=len(items))
            .map_batches(ReadForRay(inputs.columns, inputs.folder), batch_size=1)
            .map_batches(
                Annotator,
                fn_constructor_kwargs=options,
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
                lines[row["index"]] = make_line(row["name"], row["image_id"], row["prediction"], row["error"])
                if len(lines) == len(ranges[number]):
                    del waiting[number]
                    yield number, [lines[index] for index in ranges[number]]
                    bar.update(len(lines))
        if waiting:
            raise ParRuntimeError(f"Ray ended without an answer to {len(waiting)} parts, the first is {min(waiting)}")


@contextmanager
def _ray_session(cpus: int) -> Iterator[None]:
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
        if self.columns.box is not None:
            image["box"] = pyarrow.list_(pyarrow.float64())
        schema = pyarrow.schema(
            {
                "index": pyarrow.int64(),
                "name": pyarrow.string(),
                "image_id": pyarrow.string(),
                "image": pyarrow.struct(image),
            }
        )
        segments = [Segment(*segment) for text in batch["segments"] for segment in json.loads(text)]
        rows = []
        for row in read_segments(segments, self.columns, self.folder):
            image = row.image if isinstance(row.image, dict) else {"bytes": None, "path": row.image}
            rows.append({**row._asdict(), "image": image})
        return pyarrow.Table.from_pylist(rows, schema=schema)
