"""`annotate`: answers for a list of images in one file, computed here or on Ray; a stopped run can be continued."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.utils import tqdm

from vlm_par_hf.errors import ParTypeError, ParValueError
from vlm_par_hf.inference.boxes import scale_box
from vlm_par_hf.output_folders import refuse_overlap
from vlm_par_hf.utils import iterate, redact, require, shorten
from vlm_par_hf.visualization import draw_boxes, explanation_grid, overlay_relevance, people_grid

from .annotator import Annotator, check_finite
from .box_files import BOX_FILES, read_boxes
from .inputs import TABLE_SUFFIX, ImageList, Row, RowOptions, open_row
from .on_ray import run_on_ray
from .results import (
    TableColumns,
    assemble,
    check_earlier_work,
    has_part,
    lock_parts,
    make_line,
    part_name,
    write_part,
)


__all__ = ["annotate", "draw_annotation", "list_images"]

logger = logging.getLogger(__name__)

_OUT_SUFFIXES = (".jsonl", TABLE_SUFFIX, ".csv")


def annotate(
    images: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    model: str | os.PathLike | None = None,
    batch_size: int = 16,
    only_positive: bool = False,
    sensitive: bool = True,
    attributes: Any = None,
    threshold: float | None = None,
    thresholds: Mapping[str, float] | None = None,
    decide: str | None = None,
    abstain: float | None = None,
    consistent: bool | None = None,
    explain: bool | str | Sequence[str] = False,
    device: Any = None,
    dtype: Any = None,
    draw: str | os.PathLike | None = None,
    image_column: str = "image",
    image_root: str | os.PathLike | None = None,
    boxes: str | os.PathLike | None = None,
    box_format: str | None = None,
    box_margin: float = 0.0,
    detector: str | os.PathLike | None = None,
    detector_label: str = "person",
    detector_threshold: float = 0.5,
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

    `out.jsonl` has a line `{"image": name, "attributes": {...}}` per person, with what the pipeline answers.
    `out.parquet` and `out.csv` have the columns `image` and, per attribute, NAME (the label), NAME_score (its
    probability, float32), and NAME_LABEL: the probability of that label, whichever one is the answer, such as
    `Hat_yes` (of a binary attribute that of its second label, of others one for each). All are null if
    `only_positive` leaves the attribute out; what `abstain` leaves open is "unknown" (or "unknown: 14 pixels high")
    without a score, and its set is in `.jsonl`; label and score are null where the question makes no sense
    (`consistent`). `image` is the path as it was found, or FILE#ROW for a row of a parquet file, whose column
    `image_id`, if it has one, is copied. Where people are cut out of images, there is a line for each, with its `box`
    in pixels (`x0`, `y0`, `x1`, `y1` in tables) and, from a detector, its `score` (`person_score`). Images that cannot
    be read are not in the output: the report names them, each with the reason.

    Args:
        images, image_column, image_root, follow_links: as for `ImageList`.
        out: the file to write, `.jsonl`, `.parquet` or `.csv`; the report stands beside it as `.report.json`. A
            finished output of the same images, model and options is left alone and its report returned.
        model, batch_size, only_positive, sensitive, attributes, threshold, thresholds, decide, abstain, consistent,
            device, dtype, box_margin, detector, detector_label, detector_threshold: as for `Annotator`; a detector is
            named, so that the record of the run can say which one it was.
        explain: as for `Annotator`; for pictures (`draw`) and `.jsonl`.
        boxes: where people are: a file (`read_boxes`), or the column of parquet files.
        box_format: as for the pipeline; by default what the names of the columns in `boxes` say, else `"xyxy"`.
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
        The report: `images`, `predictions` (people), `broken` (`{"image", "error"}` each), `without_people` (how many
        images have no box, or nobody whom the detector found: `{"count", "first"}`), `left_out` (what folders hold and
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
        raise ParValueError(f"out={str(out)!r}: expected a file ending in {', '.join(_OUT_SUFFIXES)}")
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
    if explain and draw is None and out.suffix != ".jsonl":
        raise ParValueError(
            f"explain={explain!r}: relevance is written to .jsonl and to pictures, expected such an output, or draw"
        )
    if detector is not None and not isinstance(detector, (str, os.PathLike)):
        raise ParTypeError(
            f"detector is {shorten(detector)}, expected the name of a model; Annotator(detector=) takes functions"
        )
    if out.suffix == TABLE_SUFFIX:
        require("pyarrow.parquet", "train")
    if ray_workers:
        require("ray.data", "ray")
    partial = out.with_name(f"{out.name}.partial")
    sources = [images] if isinstance(images, (str, os.PathLike)) else list(iterate(images, "images"))
    refuse_overlap(out, {"images" if index == 0 else f"images[{index}]": one for index, one in enumerate(sources)})
    inputs, box_format = list_images(
        sources,
        boxes=boxes,
        box_format=box_format,
        detector=detector,
        image_column=image_column,
        image_root=image_root,
        without=[partial, *([draw] if draw is not None else [])],
        follow_links=follow_links,
        allow_urls=allow_urls,
    )
    annotator = Annotator(
        model,
        batch_size=batch_size,
        only_positive=only_positive,
        sensitive=sensitive,
        attributes=attributes,
        threshold=threshold,
        thresholds=thresholds,
        decide=decide,
        abstain=abstain,
        consistent=consistent,
        explain=explain,
        device=device,
        dtype=dtype,
        box_format=box_format,
        box_margin=box_margin,
        detector=detector,
        detector_label=detector_label,
        detector_threshold=detector_threshold,
        allow_urls=allow_urls,
    )
    schema = annotator.pipe.label_space
    schema = schema if sensitive else schema.without_sensitive()
    cuts = inputs.is_boxed or detector is not None
    columns = TableColumns(schema, inputs.has_ids, has_boxes=cuts, has_scores=detector is not None)
    if out.suffix != ".jsonl":
        columns.kinds()  # raises now what would otherwise be raised after hours
    listing = inputs.listing()
    run = {
        "images": len(inputs),
        "images_digest": hashlib.blake2b(listing.encode(), digest_size=16).hexdigest(),
        "image_column": image_column,
        "image_root": None if image_root is None else redact(os.fspath(image_root)),
        "boxes": None if boxes is None else redact(os.fspath(boxes)),
        "box_format": box_format if inputs.is_boxed else None,
        "box_margin": box_margin if cuts else None,
        "detector": None if detector is None else os.fspath(detector),
        "detector_label": None if detector is None else detector_label,
        "detector_threshold": None if detector is None else detector_threshold,
        "model": "embedded" if model is None else os.fspath(model),
        "model_digest": annotator.fingerprint(),
        "only_positive": only_positive,
        "sensitive": sensitive,
        "attributes": list(schema.names),
        "prompts": None if attributes is None else [list(one.prompts) for one in schema],
        "thresholds": {one.name: one.threshold for one in schema if one.is_binary},
        "decide": decide,
        "abstain": abstain,
        "consistent": consistent,
        "explain": explain if isinstance(explain, (bool, str)) else list(explain),
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
        return assemble(out, partial, len(ranges), run, columns, inputs.left_out)


def list_images(
    images: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    boxes: str | os.PathLike | None = None,
    box_format: str | None = None,
    detector: Any = None,
    **options: Any,
) -> tuple[ImageList, str]:
    """The images with the boxes of their people, and the form of the boxes.

    Args:
        images, options: as for `ImageList`.
        boxes: a file (`read_boxes`), or the column of parquet files.
        box_format: None: what the names of the columns in the file say, else `"xyxy"`.
        detector: finds people; only where there are no boxes.

    Raises:
        ValueError: there are boxes and a detector, or `box_format` contradicts the names of columns.
        What `read_boxes` and `ImageList` raise.
    """
    if boxes is None:
        return ImageList(images, **options), box_format or "xyxy"
    if detector is not None:
        raise ParValueError("both boxes and detector were given, expected one of them: each says where people are")
    if Path(boxes).suffix.lower() not in BOX_FILES:
        return ImageList(images, box_column=os.fspath(boxes), **options), box_format or "xyxy"
    found = read_boxes(boxes)
    if found.box_format is not None and (box_format or found.box_format).removesuffix("n") != found.box_format:
        raise ParValueError(
            f"box_format is {box_format!r}, but the names of the columns in {os.fspath(boxes)!r} say "
            f"{found.box_format!r}"
        )
    return ImageList(images, boxes=found.of, **options), box_format or found.box_format or "xyxy"


def draw_annotation(
    row: Row, people: Sequence[Mapping[str, Any]], path: str | os.PathLike, options: RowOptions | None = None
) -> None:
    """Saves a picture of an image with the answers for its people: a person with their attributes beside them, or the
    boxes in the picture; with relevance, the parts that the answers rest on.

    Args:
        row: the image.
        people: the answers of `Annotator.rows`.
        path: the file to write.
        options: how the image is opened.
    """
    is_cut = any("box" in one for one in people)
    opened = open_row(row.image, options, one_person=not is_cut)
    picture = opened.picture
    boxes = [scale_box(one["box"], opened.size, picture.size) for one in people] if is_cut else []
    notes = {"note": people[0].get("note") if people else None}
    if people and "relevance" in people[0]:
        persons = [picture.crop(box) for box in boxes] or [picture]
        results = [
            {
                "attributes": one["attributes"],
                "overlays": {
                    name: overlay_relevance(person, np.float32(relevance))
                    for name, relevance in one["relevance"].items()
                },
            }
            for one, person in zip(people, persons)
        ]
        drawn = explanation_grid(persons, results, title=Path(row.name).name, **notes)
    elif people and not is_cut:
        drawn = people_grid([picture], [people[0]["attributes"]], names=[Path(row.name).name], **notes)
    else:
        drawn = draw_boxes(picture, [{**one, "box": box} for one, box in zip(people, boxes)])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(path)


def _run_here(inputs, annotator, ranges, missing, draw, bar) -> Iterator[tuple[int, list[str]]]:
    answers = annotator.rows(inputs, [ranges[number] for number in missing])
    for number in missing:
        lines = []
        for row, people, error in islice(answers, len(ranges[number])):
            check_finite(people or (), f"image {row.name!r}")
            if draw is not None and people is not None:
                draw_annotation(row, people, Path(draw) / inputs.picture_name(row), annotator.row_options)
            lines.append(make_line(row.name, row.image_id, people, error))
            bar.update(1)
        yield number, lines
