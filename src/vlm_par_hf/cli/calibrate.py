"""`vlm-par calibrate`: fit the decisions of a checkpoint to somebody's own pictures."""

import argparse

from vlm_par_hf.errors import ParValueError

from .options import add_data_options, add_overwrite_options, data_arguments, quiet_transformers, say


__all__ = ["add_parser", "run"]


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "calibrate",
        help="fit probabilities and thresholds of a checkpoint to your own pictures",
        description="Fit probabilities, thresholds and sets of answers of a checkpoint to a few hundred labelled "
        "pictures, such as those of your own camera; its weights stay. Writes the checkpoint with them, "
        "decisions.json, thresholds.json, a table and pictures.",
    )
    parser.add_argument("checkpoint", help="checkpoint folder or repository")
    add_data_options(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--objective", default="instance_f1", metavar="NAME",
        help="what answers are best for: instance_f1 (default; a yes can be believed), mA (rare ones are found), f1, "
        "accuracy, cost, or a target such as 'precision>=0.9' or 'recall>=0.9'",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=("train", "validation", "test"), default="validation", help="default: %(default)s"
    )
    parser.add_argument(
        "--priors-only", action="store_true",
        help="use no labels (DATASET may be a folder of images): adapt how frequent the labels are, assuming that "
        "nothing else changed",
    )  # fmt: skip
    parser.add_argument(
        "--isotonic", action="store_true", help="also fit a monotone map per label; needs more pictures"
    )
    parser.add_argument(
        "--costs", metavar="YES:NO", help="for --objective cost: of a wrong yes and of a missed one, such as 1:5"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="data loader processes")
    add_overwrite_options(parser, "replace the calibration in DIR")
    parser.set_defaults(run=run)
    return parser


def _costs(text: str | None, objective: str) -> tuple[float, float]:
    if (text is None) == (objective == "cost"):
        raise ParValueError("--costs and --objective cost belong together: expected both or none, such as --costs 1:5")
    if text is None:
        return 1.0, 1.0
    parts = text.split(":")
    try:
        first, second = map(float, parts)
    except ValueError:
        raise ParValueError(
            f"costs={text!r}: expected two numbers, of a wrong yes and of a missed one, such as 1:5"
        ) from None
    return first, second


def run(args) -> None:
    quiet_transformers()
    costs = _costs(args.costs, args.objective)
    data = data_arguments(args)
    from vlm_par_hf.training.calibrating import calibrate

    record = calibrate(
        args.checkpoint,
        args.dataset,
        args.out,
        split=args.split,
        objective=args.objective,
        isotonic=args.isotonic,
        costs=costs,
        priors_only=args.priors_only,
        batch_size=args.batch_size,
        workers=args.workers,
        overwrite=args.overwrite,
        delete_listed=args.delete_listed,
        command=args.command_line,
        **data,
    )
    if record["priors_only"]:
        say(f"{record['data']['pictures']:,} pictures without labels. Assumed: {record['assumption']}.")
        for name, shares in record["shares"].items():
            before, now = (max(zip(shares[key], range(len(shares[key])))) for key in ("before", "now"))
            if before[1] != now[1] or abs(before[0] - now[0]) > 0.05:
                say(f"  {name:<24} {_shares(shares['before'])} -> {_shares(shares['now'])}")
    else:
        say(f"{record['data']['pictures']:,} pictures of {record['data']['name']}, {record['measured']}")
        for name, one in record["metrics"].items():
            say(
                f"  {name:<16} mA {100 * one['mA']:6.2f}   instance F1 {100 * one['instance_f1_harmonic']:6.2f}   "
                f"ECE {one['calibration_error']:.3f}"
            )
    say(f"checkpoint that answers for {record['objective']}, thresholds, table and pictures: {args.out}")


def _shares(values) -> str:
    return "/".join(f"{100 * one:.0f}" for one in values)
