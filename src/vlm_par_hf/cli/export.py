"""`vlm-par export`: write a checkpoint as a file for OpenVINO or ONNX Runtime."""

import argparse

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.output_folders import refuse_overlap

from .options import add_overwrite_options, quiet_transformers, say


__all__ = ["add_parser", "run"]


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "export",
        help="write a checkpoint as a file for OpenVINO or ONNX Runtime",
        description="Write the folded model as a file for OpenVINO or ONNX Runtime, or as a checkpoint for torch; "
        "beside it processor, label space, thresholds and parity.json: how far its answers are from the checkpoint's. "
        "predict, evaluate and pipeline() take the folder as --model. Images keep their own aspect ratio.",
    )
    parser.add_argument("checkpoint", help="checkpoint folder or repository")
    parser.add_argument(
        "--to", choices=("openvino", "onnx", "folded"), default="openvino", help="default: %(default)s, the fastest"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--int8", action="store_true", help="products of the vision tower in int8 (openvino, onnx)")
    precision.add_argument("--bf16", action="store_true", help="compute in bfloat16 (openvino, folded)")
    parser.add_argument(
        "--calibrate", metavar="DATASET",
        help="a data set (pa100k, synthetic, ...) or a folder of images like those to come: calibrates int8 for "
        "openvino, which needs it, and is what the answers are compared on (default: drawn pedestrians)",
    )  # fmt: skip
    parser.add_argument("--root", metavar="DIR", help="where that data set lies")
    parser.add_argument("--calibration-images", type=int, default=128, metavar="N", help="default: %(default)s")
    parser.add_argument("--compared-images", type=int, default=256, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--patch-grid", metavar="RxC",
        help="for runtimes that know nothing of NaFlex: squash every image to so many rows and columns of patches, "
        "such as 16x8, whatever its aspect ratio, which changes answers",
    )  # fmt: skip
    parser.add_argument(
        "--picture", action="store_true",
        help="a file whose input is a picture of any size, uint8 (height, width, 3), for programs without torch and "
        "this package (onnx, openvino); beside it the preprocessing in words and a reference script",
    )  # fmt: skip
    add_overwrite_options(parser, "replace the export in DIR")
    parser.set_defaults(run=run)
    return parser


def _patch_grid(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise ParValueError(f"patch_grid={text!r}: expected ROWSxCOLUMNS, such as 16x8")
    return int(rows), int(columns)


def run(args) -> None:
    quiet_transformers()
    patch_grid = _patch_grid(args.patch_grid)
    from vlm_par_hf.export.exporting import export_model
    from vlm_par_hf.export.parity import pick_images
    from vlm_par_hf.export.picture import export_picture_model

    images = {}
    refuse_overlap(args.out, {"--calibrate": args.calibrate, "--root": args.root}, replaced=True)
    if args.calibrate:
        calibration, compared, source = pick_images(
            args.calibrate, args.root, num_calibration=args.calibration_images, num_compared=args.compared_images
        )
        images = {"calibration_images": calibration, "compared_images": compared, "images_from": source}
    elif args.root:
        raise ParValueError("--root names the folder of a data set: name the data set with --calibrate")
    export = export_picture_model if args.picture else export_model
    record = export(
        args.checkpoint,
        args.out,
        to=args.to,
        precision="int8" if args.int8 else "bfloat16" if args.bf16 else "float32",
        patch_grid=patch_grid,
        overwrite=args.overwrite,
        delete_listed=args.delete_listed,
        **images,
    )
    of_what = "probabilities" if args.picture else "logits"
    say(f"{record['format']}, {record['precision']}: {args.out}")
    say(
        f"on {record['images']['compared']} images ({record['images']['from']}) {record['changed_decisions']} of "
        f"{record['decisions']} decisions differ from the checkpoint's; {of_what} by up to "
        f"{record['max_abs_difference']:.2g}"
    )
