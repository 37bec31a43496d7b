"""`vlm-par predict`: attributes of the person in each image, as a table or in a file."""

import argparse
import json
import sys
from pathlib import Path

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.escaping import printable
from vlm_par_hf.inference.boxes import BOX_FORMATS

from .options import add_overwrite_options, quiet_transformers, say


__all__ = ["add_parser", "run"]


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "predict",
        help="attributes of the person in each image",
        description="Attributes of the person in each image. One image is one person: crop people first. Prints a "
        "table, or writes to --out: there any number of images go through in little memory, and a run that was "
        "stopped goes on when it is started again. Images that cannot be read are named and left out (exit status 1).",
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES", help="image files, folders, parquet files, globs in quotes"
    )
    parser.add_argument("--model", metavar="PATH", help="checkpoint folder or repository (default: the embedded one)")
    parser.add_argument(
        "--out", metavar="FILE",
        help=".jsonl (an object per image) or .parquet (columns per attribute), with a report beside it; - for "
        "objects on standard output",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument("--only-positive", action="store_true", help="leave out what a person does not have")
    parser.add_argument("--no-sensitive", action="store_true", help="leave out perceived gender and age")
    parser.add_argument("--draw", metavar="DIR", help="save each image with its attributes beside it here")
    add_overwrite_options(parser, "replace other work in --out")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda:0, ... (default: as transformers chooses)")
    parser.add_argument(
        "--dtype", choices=("auto", "bfloat16", "float32"),
        help="of the weights; auto: bfloat16 where the device is fast with it, else float32 (default: as saved)",
    )  # fmt: skip
    group = parser.add_argument_group("images", "paths in tables and links in folders lead nowhere out of them")
    group.add_argument("--image-column", default="image", metavar="NAME", help="of parquet files (default: image)")
    group.add_argument(
        "--image-root", metavar="DIR", help="paths in parquet files lie below it (default: the folder of the file)"
    )
    group.add_argument("--box-column", metavar="NAME", help="of parquet files: the box of the person in the image")
    group.add_argument(
        "--box-format", choices=BOX_FORMATS, default="xyxy",
        help="corners, corner and size, or center and size; in pixels, or with n as shares (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--box-margin", type=float, default=0.0, metavar="SHARE", help="of a box's size, added on each side"
    )
    group.add_argument("--follow-links", action="store_true", help="also links in folders that lead out of them")
    group.add_argument("--allow-urls", action="store_true", help="read http(s) URLs, named here or in parquet files")
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
        "only_positive": args.only_positive,
        "sensitive": not args.no_sensitive,
        "device": args.device,
        "dtype": args.dtype,
    }
    inputs = {
        "image_column": args.image_column,
        "image_root": args.image_root,
        "box_column": args.box_column,
        "follow_links": args.follow_links,
        "allow_urls": args.allow_urls,
    }
    boxes = {"box_format": args.box_format, "box_margin": args.box_margin}
    if args.box_column is None and boxes != {"box_format": "xyxy", "box_margin": 0.0}:
        raise ParValueError("--box-format and --box-margin need --box-column, the column of parquet files with boxes")
    options.update(boxes)
    if args.out in (None, "-"):
        for name in ("overwrite", "delete_listed", "ray"):
            if getattr(args, name):
                raise ParValueError(f"--{name.replace('_', '-')} needs --out with the name of a file")
        return _print_predictions(args, {**options, "allow_urls": args.allow_urls}, inputs)
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
    broken = report["broken"]
    if broken:
        place = Path(args.out).with_suffix(".report.json")
        say(f"{len(broken)} images cannot be read, the first is {broken[0]['image']}; reasons: {place}")
    return 1 if broken else 0


def _print_predictions(args, options: dict, inputs: dict) -> int:
    from vlm_par_hf.annotation import Annotator, ImageList, draw_annotation

    images = ImageList(args.images, without=[args.draw] if args.draw else [], **inputs)
    annotator, broken = Annotator(**options), 0
    for row, answer, error in annotator.rows(images):
        if error is not None:
            broken += 1
            sys.stderr.write(f"vlm-par: {printable(f'{row.name}: {error}', one_line=True)}\n")
            continue
        if args.out:
            say(json.dumps({"image": row.name, **answer}, ensure_ascii=False, allow_nan=False))
        else:
            say(_table(row.name, answer["attributes"]))
        if args.draw:
            path = Path(args.draw) / images.picture_name(row)
            draw_annotation(row, answer, path, annotator.row_options, answer.get("note"))
    if broken:
        sys.stderr.write(f"vlm-par: {broken} of {len(images)} images cannot be read\n")
    return 1 if broken else 0


def _table(name: str, attributes: dict) -> str:
    name_width = max((len(attribute) for attribute in attributes), default=0)
    label_width = max((len(answer["label"]) for answer in attributes.values()), default=0)
    lines = [printable(name, one_line=True)]
    lines += [
        f"  {attribute:<{name_width}}  {answer['label']:<{label_width}}  {answer['score']:6.1%}"
        for attribute, answer in attributes.items()
    ]
    return "\n".join(lines if attributes else [*lines, "  nothing positive"])
