"""`vlm-par predict`: attributes of the person in each image, as a table or in a file."""

import argparse
import json
import sys
from pathlib import Path

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.escaping import printable
from vlm_par_hf.images.regions import REGION_FORMATS
from vlm_par_hf.labels.decisions import answer_text, is_unknown

from .options import (
    add_answer_options,
    add_device_options,
    add_overwrite_options,
    answer_arguments,
    quiet_transformers,
    say,
    split_names,
)


__all__ = ["add_parser", "run"]


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "predict",
        help="attributes of the person in each image",
        description="Attributes of the person in each image, or of the people that --boxes or --detector cut out of "
        "it. Prints a table, or writes to --out: there any number of images go through in little memory, and a run "
        "that was stopped goes on when it is started again. Images that cannot be read are named and left out "
        "(exit status 1).",
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES", help="image files, folders, parquet files, globs in quotes"
    )
    parser.add_argument("--model", metavar="PATH", help="checkpoint folder or repository (default: the embedded one)")
    parser.add_argument(
        "--out", metavar="FILE",
        help=".jsonl (an object per person), .parquet or .csv (columns per attribute), with a report beside it; - "
        "for objects on standard output",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument("--draw", metavar="DIR", help="save each image with its attributes beside it here")
    group = add_answer_options(parser)
    group.add_argument(
        "--explain", metavar="NAMES",
        help="show the parts of the image that the answers to these attributes rest on, divided by commas, or all; "
        "with --draw, or as numbers in .jsonl",
    )  # fmt: skip
    add_overwrite_options(parser, "replace other work in --out")
    add_device_options(parser)
    group = parser.add_argument_group("images", "paths in tables and links in folders lead nowhere out of them")
    group.add_argument("--image-column", default="image", metavar="NAME", help="of parquet files (default: image)")
    group.add_argument(
        "--image-root", metavar="DIR", help="paths in parquet files lie below it (default: the folder of the file)"
    )
    group.add_argument("--follow-links", action="store_true", help="also links in folders that lead out of them")
    group.add_argument("--allow-urls", action="store_true", help="read http(s) URLs, named here or in parquet files")
    group = parser.add_argument_group("people in images", "without these each image is one person")
    group.add_argument(
        "--boxes", metavar="FILE|COLUMN",
        help="boxes of people: a .csv (image,x0,y0,x1,y1), .jsonl or .json file ({image: [boxes]}), or the column of "
        "parquet files that holds them",
    )  # fmt: skip
    group.add_argument(
        "--box-format", choices=REGION_FORMATS,
        help="corners, corner and size, or center and size; in pixels, or with n as shares (default: what columns are "
        "called, else xyxy)",
    )  # fmt: skip
    group.add_argument(
        "--box-margin", type=float, default=0.0, metavar="SHARE", help="of a box's size, added on each side"
    )
    group.add_argument(
        "--detector",
        metavar="NAME",
        help="folder or repository of a model for object detection, which finds the people",
    )
    group.add_argument("--detector-label", default="person", metavar="LABEL", help="of people (default: %(default)s)")
    group.add_argument(
        "--detector-threshold", type=float, default=0.5, metavar="P", help="lowest score of a person (default: 0.5)"
    )
    group = parser.add_argument_group("Ray", "with --out; on the Ray that RAY_ADDRESS names, else on this machine")
    group.add_argument("--ray", type=int, default=0, metavar="N", help="annotate with N worker processes of Ray")
    group.add_argument("--ray-cpus", type=int, default=1, metavar="N", help="of a worker (default: %(default)s)")
    group.add_argument("--ray-gpus", type=float, default=0, metavar="N", help="of a worker (default: %(default)s)")
    parser.set_defaults(run=run)
    return parser


def run(args) -> int:
    quiet_transformers()
    from vlm_par_hf.annotation import annotate

    options = {
        "model": args.model,
        "batch_size": args.batch_size,
        **answer_arguments(args),
        "explain": args.explain == "all" or split_names(args.explain, "--explain") or False,
        "device": args.device,
        "dtype": args.dtype,
        "box_margin": args.box_margin,
        "detector": args.detector,
        "detector_label": args.detector_label,
        "detector_threshold": args.detector_threshold,
        "allow_urls": args.allow_urls,
    }
    inputs = {
        "image_column": args.image_column,
        "image_root": args.image_root,
        "follow_links": args.follow_links,
        "boxes": args.boxes,
        "box_format": args.box_format,
    }
    if args.boxes is None and args.box_format is not None:
        raise ParValueError("--box-format needs --boxes, the file or the column of parquet files with boxes")
    if args.boxes is None and args.detector is None and args.box_margin:
        raise ParValueError("--box-margin needs --boxes or --detector")
    if args.out in (None, "-"):
        for name in ("overwrite", "delete_listed", "ray"):
            if getattr(args, name):
                raise ParValueError(f"--{name.replace('_', '-')} needs --out with the name of a file")
        return _print_predictions(args, options, inputs)
    report = annotate(
        args.images,
        args.out,
        draw=args.draw,
        overwrite=args.overwrite,
        delete_listed=args.delete_listed,
        ray_workers=args.ray,
        cpus_per_worker=args.ray_cpus,
        gpus_per_worker=args.ray_gpus,
        **inputs,
        **options,
    )
    say(f"{report['predictions']} predictions in {args.out}")
    nobody, broken = report["without_people"], report["broken"]
    if nobody["count"]:
        say(f"{nobody['count']} images without people, the first is {nobody['first']}")
    if broken:
        place = Path(args.out).with_suffix(".report.json")
        say(f"{len(broken)} images cannot be read, the first is {broken[0]['image']}; reasons: {place}")
    return 1 if broken else 0


def _print_predictions(args, options: dict, inputs: dict) -> int:
    from vlm_par_hf.annotation import Annotator, draw_annotation, list_images

    if args.explain and not args.draw and args.out != "-":
        raise ParValueError("--explain needs --draw, the folder of the pictures, or --out")
    images, box_format = list_images(
        args.images,
        detector=args.detector,
        without=[args.draw] if args.draw else [],
        allow_urls=args.allow_urls,
        **inputs,
    )
    annotator, broken = Annotator(**options, box_format=box_format), 0
    for row, people, error in annotator.rows(images):
        if error is not None:
            broken += 1
            sys.stderr.write(f"vlm-par: {printable(f'{row.name}: {error}', one_line=True)}\n")
            continue
        for answer in people:
            if args.out:
                say(json.dumps({"image": row.name, **answer}, ensure_ascii=False, allow_nan=False))
            else:
                say(_table(row.name, answer))
        if not people and not args.out:
            say(f"{printable(row.name, one_line=True)}\n  no people")
        if args.draw:
            draw_annotation(row, people, Path(args.draw) / images.picture_name(row), annotator.row_options)
    if broken:
        sys.stderr.write(f"vlm-par: {broken} of {len(images)} images cannot be read\n")
    return 1 if broken else 0


def _table(name: str, answer: dict) -> str:
    attributes = {name: one for name, one in answer["attributes"].items() if one["label"] is not None}
    name_width = max((len(attribute) for attribute in attributes), default=0)
    texts = {attribute: answer_text(answer) for attribute, answer in attributes.items()}
    label_width = max(map(len, texts.values()), default=0)
    box = f"  [{', '.join(map(str, answer['box']))}]" if "box" in answer else ""
    lines = [printable(name, one_line=True) + box]
    lines += [
        f"  {attribute:<{name_width}}  {texts[attribute]:<{label_width}}  {_share(answer)}"
        for attribute, answer in attributes.items()
    ]
    return "\n".join(lines if attributes else [*lines, "  nothing positive"])


def _share(answer: dict) -> str:
    """The probability of an answer; of one that is left open what it may be."""
    return " or ".join(answer["set"]) if is_unknown(answer) else f"{answer['score']:6.1%}"
