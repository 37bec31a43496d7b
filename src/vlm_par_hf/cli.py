"""The command `vlm-par`: demo, predict, train, evaluate, card, prepare, export.

Nothing heavy is imported before a subcommand runs. What a user can get wrong ends in one line on standard error and
exit status 2; `--debug` shows the traceback.
"""

import argparse
import dataclasses
import json
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from vlm_par_hf.families import FAMILIES, trainable_families
from vlm_par_hf.training.settings import TrainSettings


__all__ = ["build_parser", "main"]

# Errors whose message is written for the user. Everything else is a fault of ours and keeps its traceback.
_USER_ERRORS = (ValueError, TypeError, KeyError, OSError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0 done, 1 done but for images that cannot be read, 2 wrong use, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(arguments)
    args.command_line = ["vlm-par", *arguments]
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # Of the processes that torchrun starts, the first one speaks for all.
    level = logging.DEBUG if args.debug else logging.ERROR if _process_index() else logging.INFO
    logging.getLogger("vlm_par_hf").setLevel(level)
    try:
        processes = int(os.environ.get("WORLD_SIZE", 1))
        if processes > 1 and args.run is not _run_train:
            raise ValueError(
                f"{arguments[0]} runs in one process and WORLD_SIZE={processes}: start it without torchrun, which is "
                "for train"
            )
        return args.run(args) or 0
    except KeyboardInterrupt:
        sys.stderr.write("vlm-par: interrupted\n")
        return 130
    except BrokenPipeError:
        # The reader (head, less) went away: nothing to say, and Python must not try to flush into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _USER_ERRORS as error:
        if args.debug:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        lines = [line.strip() for line in str(message).splitlines()]
        sys.stderr.write(f"vlm-par: error: {' '.join(line for line in lines if line)}\n")
        return 2


def _process_index() -> int:
    return int(os.environ.get("RANK", 0))


def build_parser() -> argparse.ArgumentParser:
    """The parser with its subcommands."""
    parser = argparse.ArgumentParser(
        prog="vlm-par", description="Attributes of pedestrians: VLM-PAR on a frozen SigLIP 2 backbone."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (_add_demo, _add_predict, _add_train, _add_evaluate, _add_card, _add_prepare, _add_export):
        command = add(commands)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error, log more")
    return parser


def _add_demo(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "demo",
        help="train, evaluate and predict on drawn pedestrians in a few minutes",
        description="Train VLM-PAR heads on drawn pedestrians with the embedded backbone, evaluate, predict on "
        "pictures. With the environment variable PAR_DATA also on the real images of $PAR_DATA/pa100k_mini.",
    )
    parser.add_argument("--out", default="demo_output", metavar="DIR", help="result folder (default: %(default)s)")
    parser.add_argument("--num-train", type=int, default=6000, metavar="N", help="drawings (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=6.0, help="passes over them (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of drawings and training (default: %(default)s)")
    parser.add_argument("--no-real", action="store_true", help="skip pa100k_mini even where PAR_DATA is set")
    parser.set_defaults(run=_run_demo)
    return parser


def _quiet_transformers() -> None:
    """Bars about reading and writing files say nothing about the job; those of the job itself stay. Printing a SigLIP
    configuration makes transformers warn of its own default token ids, which no checkpoint has."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    without_bars = are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    if not without_bars:
        enable_progress_bars()  # transformers switches those of huggingface_hub off too, which ours are
    logging.getLogger("transformers.configuration_utils").setLevel(logging.ERROR)


def _run_demo(args) -> None:
    _quiet_transformers()
    from vlm_par_hf.demo import run_demo

    run_demo(
        args.out,
        num_train=args.num_train,
        epochs=args.epochs,
        seed=args.seed,
        real_root=None if args.no_real else os.environ.get("PAR_DATA"),
        command=args.command_line,
        say=_say,
    )


def _add_predict(commands) -> argparse.ArgumentParser:
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
    parser.add_argument("--image-column", default="image", metavar="NAME", help="of parquet files (default: image)")
    parser.add_argument("--overwrite", action="store_true", help="replace other work in --out")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda:0, ... (default: as transformers chooses)")
    parser.add_argument(
        "--dtype", choices=("auto", "bfloat16", "float32"),
        help="of the weights; auto: bfloat16 where the device is fast with it, else float32 (default: as saved)",
    )  # fmt: skip
    group = parser.add_argument_group("Ray", "with --out; on the Ray that RAY_ADDRESS names, else on this machine")
    group.add_argument("--ray", type=int, default=0, metavar="N", help="annotate with N worker processes of Ray")
    group.add_argument("--ray-cpus", type=int, default=1, metavar="N", help="of a worker (default: %(default)s)")
    group.add_argument("--ray-gpus", type=float, default=0, metavar="N", help="of a worker (default: %(default)s)")
    parser.set_defaults(run=_run_predict)
    return parser


def _run_predict(args) -> int:
    _quiet_transformers()
    from vlm_par_hf.annotation import annotate

    options = {
        "model": args.model,
        "batch_size": args.batch_size,
        "only_positive": args.only_positive,
        "sensitive": not args.no_sensitive,
        "device": args.device,
        "dtype": args.dtype,
    }
    if args.out in (None, "-"):
        for name in ("overwrite", "ray"):
            if getattr(args, name):
                raise ValueError(f"--{name} needs --out with the name of a file")
        return _print_predictions(args, options)
    report = annotate(
        args.images,
        args.out,
        draw=args.draw,
        image_column=args.image_column,
        overwrite=args.overwrite,
        ray_workers=args.ray,
        cpus_per_worker=args.ray_cpus,
        gpus_per_worker=args.ray_gpus,
        **options,
    )
    _say(f"{report['predictions']} predictions in {args.out}")
    broken = report["broken"]
    if broken:
        place = Path(args.out).with_suffix(".report.json")
        _say(f"{len(broken)} images cannot be read, the first is {broken[0]['image']}; reasons: {place}")
    return 1 if broken else 0


def _print_predictions(args, options: dict) -> int:
    from vlm_par_hf.annotation import Annotator, ImageList, draw_annotation

    images = ImageList(args.images, image_column=args.image_column, without=[args.draw] if args.draw else [])
    broken = 0
    for row, answer, error in Annotator(**options).rows(images):
        if error is not None:
            broken += 1
            sys.stderr.write(f"vlm-par: {row.name}: {error}\n")
            continue
        if args.out:
            _say(json.dumps({"image": row.name, **answer}, ensure_ascii=False))
        else:
            _say(_table(row.name, answer["attributes"]))
        if args.draw:
            draw_annotation(row, answer, Path(args.draw) / images.picture_name(row))
    if broken:
        sys.stderr.write(f"vlm-par: {broken} of {len(images)} images cannot be read\n")
    return 1 if broken else 0


def _table(name: str, attributes: dict) -> str:
    width = max((len(name) for name in attributes), default=0)
    labels = max((len(answer["label"]) for answer in attributes.values()), default=0)
    lines = [name]
    lines += [
        f"  {name:<{width}}  {answer['label']:<{labels}}  {answer['score']:6.1%}"
        for name, answer in attributes.items()
    ]
    return "\n".join(lines if attributes else [*lines, "  nothing positive"])


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("dataset", help="name of a data set: pa100k, folder, synthetic, ...")
    group.add_argument("--root", metavar="DIR", help="where the data set lies")
    group.add_argument("--schema", metavar="FILE", help="JSON file with your own attributes (data set folder)")
    group.add_argument("--partition", type=int, default=0, help="which of the official partitions (default: 0)")
    group.add_argument(
        "--missing",
        choices=("error", "skip"),
        default="error",
        help="what to do about missing images (default: error)",
    )
    group.add_argument("--data-seed", type=int, default=0, help="of random splits and drawings (default: 0)")
    for split in ("train", "validation", "test"):
        group.add_argument(f"--num-{split}", type=int, metavar="N", help=f"{split} drawings (data set synthetic)")


def _data_arguments(args) -> dict:
    options = {"partition": args.partition, "missing": args.missing, "seed": args.data_seed}
    numbers = {name: getattr(args, name) for name in ("num_train", "num_validation", "num_test")}
    options.update({name: value for name, value in numbers.items() if value is not None})
    schema = None
    if args.schema:
        from vlm_par_hf.schema import AttributeSchema

        schema = AttributeSchema.from_json(args.schema)
    return {"root": args.root, "schema": schema, "dataset_options": options}


def _add_train(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "train",
        help="train a model on a data set",
        description="Train VLM-PAR heads, or FOCUS, on a frozen backbone. The weights with the best mA on the "
        "validation split are kept; the test split is never looked at.",
    )
    _add_data_options(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="checkpoint folder to write")
    parser.add_argument(
        "--family", choices=trainable_families(), default=trainable_families()[0],
        help="; ".join(f"{one.model_type}: {one.purpose}" for one in FAMILIES if one.trainable)
        + " (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--backbone", default="embedded", metavar="NAME",
        help="SigLIP or SigLIP 2 repository or folder, for instance google/siglip2-base-patch16-naflex (default: the "
        "small embedded one, which has only seen drawings)",
    )  # fmt: skip
    parser.add_argument("--model", metavar="PATH", help="go on from a checkpoint instead of a backbone")
    parser.add_argument(
        "--cache-features", metavar="DIR",
        help="run the frozen backbone over the images once, keep its features in DIR and train from there; later runs "
        "with other label spaces, heads, seeds or recipes read them",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="continue the run in --out after an interruption")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    group = parser.add_argument_group("model")
    for family in FAMILIES:
        for option in family.train_options:
            group.add_argument(
                f"--{option.name.replace('_', '-')}", choices=option.choices, help=f"default: {option.choices[0]}"
            )
    group.add_argument("--paper", action="store_true", help="every choice of the model as the paper has it")
    group.add_argument("--loss", metavar="KIND", help="ce, focal, ce_focal, fused, weighted_bce (default: ce_focal)")
    group.add_argument("--train-backbone", action="store_true", help="train the vision tower too")
    group.add_argument("--heads-only", action="store_true", help="save the heads alone; the backbone by its name")
    group.add_argument(
        "--max-num-patches", type=int, metavar="N", help="patches per image, NaFlex only (default: 128)"
    )
    settings = parser.add_argument_group("training")
    for item in dataclasses.fields(TrainSettings):
        flag = "--" + item.name.replace("_", "-")
        if isinstance(item.default, bool):
            settings.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=item.default, help=item.metadata["help"]
            )
        else:
            text = item.metadata["help"] + ("" if item.default == "" else " (default: %(default)s)")
            settings.add_argument(
                flag, type=type(item.default), default=item.default, choices=item.metadata["choices"], help=text,
                metavar=None if item.metadata["choices"] else type(item.default).__name__.upper(),
            )  # fmt: skip
    parser.set_defaults(run=_run_train)
    return parser


def _run_train(args) -> None:
    _quiet_transformers()
    settings = TrainSettings(**{item.name: getattr(args, item.name) for item in dataclasses.fields(TrainSettings)})
    options: dict = {}
    for name in (option.name for family in FAMILIES for option in family.train_options):
        if getattr(args, name):
            options[name] = getattr(args, name)
    if args.paper:
        options["paper"] = True
    if args.loss:
        options["loss"] = {"kind": args.loss}
    if args.train_backbone:
        options["freeze_backbone"] = False
    if args.heads_only:
        options["save_backbone"] = False
    data = _data_arguments(args)
    from vlm_par_hf.training import train

    result = train(
        args.dataset,
        args.out,
        family=args.family,
        backbone=args.backbone,
        model=args.model,
        model_options=options,
        max_num_patches=args.max_num_patches,
        settings=settings,
        cache_features=args.cache_features,
        resume=args.resume,
        overwrite=args.overwrite,
        command=args.command_line,
        **data,
    )
    if _process_index():
        return
    _say(f"best validation mA {100 * result.best_mA:.2f}% at step {result.best_step} of {result.steps}")
    _say(f"checkpoint: {result.output_dir}")
    _say(f"measure it: {shlex.join(['vlm-par', 'evaluate', args.out, args.dataset, *_data_flags(args)])}")


def _data_flags(args) -> list[str]:
    """The options of the data set that differ from their defaults: evaluation must divide it in the same way."""
    flags = []
    for name in ("root", "schema", "partition", "data_seed", "num_train", "num_validation", "num_test"):
        value = getattr(args, name)
        if value:
            flags += [f"--{name.replace('_', '-')}", str(value)]
    return flags if args.missing == "error" else [*flags, "--missing", args.missing]


def _add_evaluate(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "evaluate",
        help="measure a checkpoint on a split",
        description="Measure a checkpoint; writes metrics.json, attributes.csv, attributes.md and attributes.png.",
    )
    parser.add_argument("model", help="checkpoint folder or repository")
    _add_data_options(parser)
    parser.add_argument("--out", metavar="DIR", help="result folder (default: MODEL/evaluation_DATASET_SPLIT)")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test", help="default: test")
    parser.add_argument("--preset", choices=("rethinking", "vtb", "rap"), default="rethinking", help="conventions")
    parser.add_argument("--threshold", metavar="T", help="a number, or schema for each attribute's own")
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="resamples for intervals (0: none)")
    parser.add_argument("--by-person", action="store_true", help="resample persons, not images")
    parser.add_argument("--min-positives", type=int, metavar="N", help="also mA over attributes with so many samples")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="data loader processes")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.set_defaults(run=_run_evaluate)
    return parser


def _threshold(text: str | None):
    if text is None or text == "schema":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"threshold={text!r}: expected a number or 'schema'") from None


def _run_evaluate(args) -> None:
    _quiet_transformers()
    threshold = _threshold(args.threshold)
    folder = args.out
    if folder is None:
        if not Path(args.model).is_dir():
            raise ValueError(f"model={args.model!r} is no folder: name the result folder with --out")
        folder = Path(args.model) / f"evaluation_{args.dataset}_{args.split}"
    data = _data_arguments(args)
    from vlm_par_hf.training import evaluate

    record = evaluate(
        args.model,
        args.dataset,
        split=args.split,
        output_dir=folder,
        preset=args.preset,
        threshold=threshold,
        bootstrap=args.bootstrap,
        min_positives=args.min_positives,
        by_person=args.by_person,
        batch_size=args.batch_size,
        workers=args.workers,
        seed=args.seed,
        command=args.command_line,
        **data,
    )
    _say(f"{args.dataset}, {args.split}, {record['data']['images']} images, conventions of {args.preset}")
    if record["note"]:
        _say(record["note"])
    for name, value in record["metrics"].items():
        low, high = record["intervals"].get(name) or (None, None)
        interval = "" if low is None else f"   {100 * low:.2f} to {100 * high:.2f}"
        _say(f"  {name:<24} " + ("undefined" if value is None else f"{100 * value:6.2f}{interval}"))
    _say(f"record, tables and picture: {folder}")


def _add_card(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "card",
        help="write the model card of a checkpoint",
        description="Write the model card of a checkpoint from its configuration, its training record and its "
        "evaluation records, with the metadata that the Hub reads.",
    )
    parser.add_argument("checkpoint", help="checkpoint folder")
    parser.add_argument(
        "--metrics", action="append", metavar="FILE",
        help="metrics.json of an evaluation; may be given several times (default: those in the checkpoint folder)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="the card to write (default: CHECKPOINT/README.md)")
    parser.add_argument("--name", metavar="ORG/NAME", help="the repository's name on the Hub")
    parser.add_argument("--license", metavar="ID", help="licence of the weights, as the Hub names it")
    parser.add_argument(
        "--dataset-id", action="append", default=[], metavar="NAME=ORG/NAME",
        help="Hub id of a data set of the records, for the Hub's file of evaluation results; may be repeated",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace a card that is there")
    parser.set_defaults(run=_run_card)
    return parser


def _run_card(args) -> None:
    dataset_ids = {}
    for item in args.dataset_id:
        name, equals, dataset_id = item.partition("=")
        if not (name and equals and dataset_id):
            raise ValueError(f"dataset_id={item!r}: expected NAME=ORG/NAME, such as pa100k=my-org/pa100k")
        dataset_ids[name] = dataset_id
    from vlm_par_hf.model_card import write_model_card

    for path in write_model_card(
        args.checkpoint,
        args.metrics,
        out=args.out,
        dataset_ids=dataset_ids,
        overwrite=args.overwrite,
        name=args.name,
        license=args.license,
    ):
        _say(f"written: {path}")


def _add_prepare(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "prepare",
        help="check a data set and write it as parquet",
        description="Open every image, check every label, count, and write parquet files with the images inside, the "
        'schema, a report and a card: what load_dataset and load_par_dataset("hub", DIR) read. Goes on where it was '
        "interrupted.",
    )
    parser.add_argument("dataset", help="name of a data set: pa100k, peta35, market1501, rapv2, upar, folder, ...")
    parser.add_argument("root", nargs="?", metavar="ROOT", help="where the data set lies (none for synthetic)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--schema", metavar="FILE", help="JSON file with the attributes to keep")
    parser.add_argument("--partition", type=int, default=0, help="which of the official partitions (default: 0)")
    parser.add_argument("--missing", choices=("error", "skip"), default="error", help="files that are not there")
    parser.add_argument("--broken", choices=("error", "skip"), default="error", help="files that cannot be read")
    parser.add_argument("--data-seed", type=int, default=0, help="of random splits and drawings (default: 0)")
    for split in ("train", "validation", "test"):
        parser.add_argument(f"--num-{split}", type=int, metavar="N", help=f"{split} drawings (data set synthetic)")
    parser.add_argument("--images-per-file", type=int, default=5000, metavar="N", help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="start anew where DIR holds other work")
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="upload to this data set repository, made private")
    parser.add_argument("--public", action="store_true", help="make that repository public")
    parser.set_defaults(run=_run_prepare)
    return parser


def _run_prepare(args) -> None:
    data = _data_arguments(args)
    from vlm_par_hf.data import prepare_dataset

    report = prepare_dataset(
        args.dataset,
        data["root"],
        args.out,
        broken=args.broken,
        images_per_file=args.images_per_file,
        overwrite=args.overwrite,
        push_to_hub=args.push_to_hub,
        private=not args.public,
        schema=data["schema"],
        **data["dataset_options"],
    )
    for split, part in report["splits"].items():
        _say(f"{split}: {part['images']} images" + (f" of {part['persons']} persons" if part["persons"] else ""))
    for key, text in (
        ("broken_images", "broken images left out"),
        ("same_content_within_a_split", "images with the content of another in their split"),
        ("same_content_across_splits", "images with the content of one in another split"),
        ("persons_in_several_splits", "persons in several splits"),
    ):
        _say(f"{report[key]['count']} {text}")
    _say(f"parquet, schema.json, report.json: {args.out}")
    if args.push_to_hub:
        _say(f"uploaded to {args.push_to_hub}")


def _add_export(commands) -> argparse.ArgumentParser:
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
    parser.add_argument("--overwrite", action="store_true", help="replace what DIR holds")
    parser.set_defaults(run=_run_export)
    return parser


def _patch_grid(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise ValueError(f"patch_grid={text!r}: expected ROWSxCOLUMNS, such as 16x8")
    return int(rows), int(columns)


def _run_export(args) -> None:
    _quiet_transformers()
    patch_grid = _patch_grid(args.patch_grid)
    from vlm_par_hf.export import export_model, pick_images

    images = {}
    if args.calibrate:
        calibration, compared, source = pick_images(
            args.calibrate, args.root, num_calibration=args.calibration_images, num_compared=args.compared_images
        )
        images = {"calibration_images": calibration, "compared_images": compared, "images_from": source}
    elif args.root:
        raise ValueError("--root names the folder of a data set: name the data set with --calibrate")
    record = export_model(
        args.checkpoint,
        args.out,
        to=args.to,
        precision="int8" if args.int8 else "bfloat16" if args.bf16 else "float32",
        patch_grid=patch_grid,
        overwrite=args.overwrite,
        **images,
    )
    _say(f"{record['format']}, {record['precision']}: {args.out}")
    _say(
        f"on {record['images']['compared']} images ({record['images']['from']}) {record['changed_decisions']} of "
        f"{record['decisions']} decisions differ from the checkpoint's; logits by up to "
        f"{record['max_abs_difference']:.2g}"
    )


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
