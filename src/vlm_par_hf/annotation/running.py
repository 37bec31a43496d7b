"""`annotate`: answers for a list of images in one file, computed here or on Ray; a stopped run can be continued."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub.utils import tqdm

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.output_folders import refuse_overlap
from vlm_par_hf.utils import iterate, redact, require
from vlm_par_hf.visualization import people_grid

from .annotator import Annotator, answer_to_json
from .inputs import TABLE_SUFFIX, ImageList, Row, RowOptions, open_row
from .on_ray import run_on_ray
from .results import (
    assemble,
    check_earlier_work,
    has_part,
    lock_parts,
    make_line,
    part_name,
    table_schema,
    write_part,
)


__all__ = ["annotate", "draw_annotation"]

logger = logging.getLogger(__name__)

_OUT_SUFFIXES = (".jsonl", TABLE_SUFFIX)


def annotate(
    images: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    model: str | os.PathLike | None = None,
    batch_size: int = 16,
    only_positive: bool = False,
    sensitive: bool = True,
    device: Any = None,
    dtype: Any = None,
    draw: str | os.PathLike | None = None,
    image_column: str = "image",
    image_root: str | os.PathLike | None = None,
    box_column: str | None = None,
    box_format: str = "xyxy",
    box_margin: float = 0.0,
    follow_links: bool = False,
    allow_urls: bool = False,
    overwrite: bool = False,
    delete_listed: bool = False,
    images_per_part: int = 512,
    ray_workers: int = 0,
    cpus_per_worker: int = 1,
    gpus_per_worker: float = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Annotates images into one file, in the order of `ImageList`; continues an earlier run that was stopped.

    `out.jsonl` has a line `{"image": name, "attributes": {...}}` per image, with what the pipeline answers.
    `out.parquet` has the columns `image` and, per attribute, NAME (the label) and NAME_score (its probability,
    float32; both null if `only_positive` leaves the attribute out). `image` is the path as it was found, or
    FILE#ROW for a row of a parquet file, whose column `image_id`, if it has one, is copied. Images that cannot be read
    are not in the output: the report names them, each with the reason.

    Args:
        images, image_column, image_root, box_column, follow_links: as for `ImageList`.
        out: the file to write, `.jsonl` or `.parquet`; the report stands beside it as `.report.json`. A finished
            output of the same images, model and options is left alone and its report returned.
        model, batch_size, only_positive, sensitive, device, dtype, box_format, box_margin: as for `Annotator`.
        allow_urls: read URLs, those that are named and those in tables.
        draw: folder for a picture of each image with its attributes. It is not searched for images.
        overwrite: start anew if `out` or `out.partial` hold other work.
        delete_listed: with `overwrite`: replace `out` also if it was changed since it was written, or if no report
            says that this function wrote it.
        images_per_part: so many images at most are computed again after a run was killed.
        ray_workers: processes of Ray that annotate; 0: this process annotates. A Ray that runs, or the one that
            RAY_ADDRESS names, is used; otherwise one is started on this machine for the run. Its machines need this
            package and must see images and model under the same absolute paths. A worker that dies is replaced and its
            parts are done again. Row groups of parquet inputs should not be much larger than a part, because a worker
            reads a row group from its beginning to reach its rows.
        cpus_per_worker, gpus_per_worker: of each process of Ray.
        progress: show a bar on standard error.

    Returns:
        The report: `images`, `predictions`, `broken` (`{"image", "error"}` each), `left_out` (what folders hold and
        was not read: `{"what", "count", "first"}` each), `order`, and `run`: what the images, model and options were.

    Raises:
        ValueError: a wrong argument; `out` or `out.partial` hold the work of other images, another model or other
            options (the message says what differs); `out` is one of the inputs or lies in a folder of them; a score
            is not finite; another process is writing `out`.
        FileExistsError: `out` was changed or is of something else, and `delete_listed` is not set.
        OSError: `out.partial` is a link.
        What `ImageList`, loading the model and the model itself raise. Parts that are complete are kept.
    """
    out = Path(out)
    if out.suffix not in _OUT_SUFFIXES:
        raise ParValueError(f"out={str(out)!r}: expected a file ending in {' or '.join(_OUT_SUFFIXES)}")
    if out.is_dir():
        raise ParValueError(f"out={str(out)!r} is a folder: expected a file to write")
    for name, value, least in (
        ("images_per_part", images_per_part, 1),
        ("ray_workers", ray_workers, 0),
        ("cpus_per_worker", cpus_per_worker, 1),
        ("gpus_per_worker", gpus_per_worker, 0),
    ):
        if value < least:
            raise ParValueError(f"{name}={value}: expected at least {least}")
    if draw is not None and ray_workers:
        raise ParValueError(f"draw={os.fspath(draw)!r}: pictures are drawn by one process, expected ray_workers=0")
    if delete_listed and not overwrite:
        raise ParValueError("delete_listed=True: expected overwrite=True too")
    if out.suffix == TABLE_SUFFIX:
        require("pyarrow.parquet", "train")
    if ray_workers:
        require("ray.data", "ray")
    partial = out.with_name(f"{out.name}.partial")
    sources = [images] if isinstance(images, (str, os.PathLike)) else list(iterate(images, "images"))
    refuse_overlap(out, {"images" if index == 0 else f"images[{index}]": one for index, one in enumerate(sources)})
    inputs = ImageList(
        sources,
        image_column=image_column,
        box_column=box_column,
        image_root=image_root,
        without=[partial, *([draw] if draw is not None else [])],
        follow_links=follow_links,
        allow_urls=allow_urls,
    )
    annotator = Annotator(
        model, batch_size=batch_size, only_positive=only_positive, sensitive=sensitive, device=device, dtype=dtype,
        box_format=box_format, box_margin=box_margin, allow_urls=allow_urls,
    )  # fmt: skip
    schema = annotator.pipe.model.config.schema
    attributes = [attribute.name for attribute in schema if sensitive or not attribute.sensitive]
    if out.suffix == TABLE_SUFFIX:
        table_schema(attributes, inputs.has_ids)  # raises now what would otherwise be raised after hours
    listing = inputs.listing()
    run = {
        "images": len(inputs),
        "images_digest": hashlib.blake2b(listing.encode(), digest_size=16).hexdigest(),
        "image_column": image_column,
        "image_root": None if image_root is None else redact(os.fspath(image_root)),
        "box_column": box_column,
        "box_format": None if box_column is None else box_format,
        "box_margin": None if box_column is None else box_margin,
        "model": "embedded" if model is None else os.fspath(model),
        "model_digest": annotator.fingerprint(),
        "attributes": attributes,
        "only_positive": only_positive,
        "sensitive": sensitive,
        "draw": None if draw is None else os.fspath(draw),
        "format": out.suffix,
        "images_per_part": images_per_part,
    }
    with lock_parts(partial, out):
        finished = check_earlier_work(out, partial, run, listing, overwrite, delete_listed)
        if finished is not None:
            return finished
        ranges = [
            range(start, min(start + images_per_part, len(inputs))) for start in range(0, len(inputs), images_per_part)
        ]
        missing = [
            number for number, rows in enumerate(ranges) if not has_part(partial / part_name(number), len(rows), run)
        ]
        done = len(inputs) - sum(len(ranges[number]) for number in missing)
        logger.info("predictions: finished parts lie in %s until all of them are there", partial.absolute())
        if done:
            logger.info("going on: %d of %d images were done before", done, len(inputs))
        with tqdm(total=len(inputs), initial=done, desc="predict", unit="image", disable=not progress) as bar:
            if not missing:
                parts = iter(())
            elif ray_workers:
                del annotator.pipe  # the workers have their own
                resources = (ray_workers, cpus_per_worker, gpus_per_worker)
                parts = run_on_ray(inputs, annotator, ranges, missing, resources, bar)
            else:
                parts = _run_here(inputs, annotator, ranges, missing, draw, bar)
            for number, lines in parts:
                write_part(partial / part_name(number), lines, run)
        return assemble(out, partial, len(ranges), run, inputs.has_ids, inputs.left_out)


def draw_annotation(
    row: Row,
    answer: Mapping[str, Any],
    path: str | os.PathLike,
    options: RowOptions | None = None,
    note: str | None = None,
) -> None:
    """Saves an image with its attributes beside it, and a note above; of an image with a box the box."""
    person, _ = open_row(row.image, options)
    picture = people_grid([person], [answer["attributes"]], names=[Path(row.name).name], note=note)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _run_here(inputs, annotator, ranges, missing, draw, bar) -> Iterator[tuple[int, list[str]]]:
    answers = annotator.rows(inputs, [ranges[number] for number in missing])
    for number in missing:
        lines = []
        for row, answer, error in islice(answers, len(ranges[number])):
            if draw is not None and answer is not None:
                path = Path(draw) / inputs.picture_name(row)
                draw_annotation(row, answer, path, annotator.row_options, answer.get("note"))
            prediction = None if answer is None else answer_to_json(answer, f"image {row.name!r}")
            lines.append(make_line(row.name, row.image_id, prediction, error))
            bar.update(1)
        yield number, lines
