"""`vlm-par train`: train a model on a data set."""

import argparse
import dataclasses
import shlex

from vlm_par_hf.families import FAMILIES, TrainOption, trainable_families
from vlm_par_hf.training.settings import TrainSettings

from .options import add_data_options, add_overwrite_options, data_arguments, process_index, quiet_transformers, say


__all__ = ["add_parser", "run"]


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "train",
        help="train a model on a data set",
        description="Train VLM-PAR heads, or FOCUS, on a frozen backbone, or CLEAR as a whole. The weights with the "
        "best score on the validation split (--select) are kept, and thresholds fitted there; the test split is never "
        "looked at.",
    )
    add_data_options(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="checkpoint folder to write")
    parser.add_argument(
        "--family", choices=trainable_families(), default=trainable_families()[0],
        help="; ".join(f"{one.model_type}: {one.purpose}" for one in FAMILIES if one.trainable)
        + " (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--backbone", metavar="NAME",
        help="SigLIP or SigLIP 2 repository or folder, for instance google/siglip2-base-patch16-naflex (default: the "
        "small embedded one, which has seen drawn and rendered people); for clear_par VIT+SWIN, two repositories or "
        "folders, or fresh-tiny, fresh-small, fresh-paper, fresh-released: random weights (default: fresh-tiny)",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="PATH",
        help="go on from a checkpoint instead of a backbone; heads of other attributes than the "
        "data's are replaced by fresh ones",
    )  # fmt: skip
    parser.add_argument(
        "--cache-features", metavar="DIR",
        help="run the frozen backbone over the images once, keep its features in DIR and train from there; later runs "
        "with other label spaces, heads, seeds or recipes read them",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="continue the run in --out after an interruption")
    add_overwrite_options(parser, "replace the run in --out")
    group = parser.add_argument_group("model")
    options: dict[str, dict[str, TrainOption]] = {}  # name -> family -> option: families may share a name
    for family in FAMILIES:
        for option in family.train_options:
            options.setdefault(option.name, {})[family.model_type] = option
    for name, by_family in options.items():
        flag, option = f"--{name.replace('_', '-')}", next(iter(by_family.values()))
        if option.choices:
            group.add_argument(
                flag, choices=list(dict.fromkeys(choice for one in by_family.values() for choice in one.choices)),
                help="; ".join(f"{family}: {', '.join(one.choices)}" for family, one in by_family.items())
                + " (default: the first)",
            )  # fmt: skip
        elif isinstance(option.default, bool):
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=None,
                help=f"{option.help} (default: {'yes' if option.default else 'no'})",
            )  # fmt: skip
        else:
            group.add_argument(flag, type=int, metavar="N", help=f"{option.help} (default: {option.default})")
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
    parser.set_defaults(run=run)
    return parser


def run(args) -> None:
    quiet_transformers()
    settings = TrainSettings(**{item.name: getattr(args, item.name) for item in dataclasses.fields(TrainSettings)})
    options: dict = {}
    for name in {option.name: None for family in FAMILIES for option in family.train_options}:
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    if args.paper:
        options["paper"] = True
    if args.loss:
        options["loss"] = {"kind": args.loss}
    if args.train_backbone:
        options["freeze_backbone"] = False
    if args.heads_only:
        options["save_backbone"] = False
    data = data_arguments(args)
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
        delete_listed=args.delete_listed,
        command=args.command_line,
        **data,
    )
    if process_index():
        return
    best = "best validation mA" if settings.select == "mA" else f"best validation {settings.select}; mA"
    say(f"{best} {100 * result.best_mA:.2f}% at step {result.best_step} of {result.steps}")
    say(f"checkpoint: {result.output_dir}")
    say(f"measure it: {shlex.join(['vlm-par', 'evaluate', args.out, args.dataset, *_data_flags(args)])}")


def _data_flags(args) -> list[str]:
    """Options of the data set that are not at their defaults; evaluation needs them to divide it in the same way."""
    flags = ["--roots", *args.roots] if args.roots else []
    names = ("root", "schema", "partition", "data_seed", "negative", "unknown", "box_format")
    for name in (*names, "num_train", "num_validation", "num_test"):
        value = getattr(args, name)
        if value:
            flags += [f"--{name.replace('_', '-')}", str(value)]
    for name in args.ignore or ():
        flags += ["--ignore", name]
    if args.follow_links:
        flags.append("--follow-links")
    return flags if args.missing == "error" else [*flags, "--missing", args.missing]
