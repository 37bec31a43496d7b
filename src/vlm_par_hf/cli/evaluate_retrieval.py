"""`vlm-par evaluate-retrieval`: measure how well people are found by attributes."""

import argparse
from pathlib import Path

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.retrieval.scoring import SCORINGS

from .options import add_data_options, data_arguments, quiet_transformers, say
from .train_retrieval import split_names


__all__ = ["add_parser", "run"]

_SHOWN = ("rank_1", "rank_5", "rank_10", "mAP_standard", "mAP_trapezoid", "mINP", "mADM")


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "evaluate-retrieval",
        help="measure how well people are found by attributes",
        description="Every attribute vector of the split is a query; right is who has exactly it. Writes "
        "retrieval.json and retrieval.md.",
    )
    parser.add_argument("checkpoint", help="checkpoint folder or repository of the recogniser")
    add_data_options(parser)
    parser.add_argument("--head", metavar="DIR", help="what vlm-par train-retrieval wrote; without: no adapters")
    parser.add_argument("--scoring", metavar="NAMES", help=f"some of {','.join(SCORINGS)} (default: all that can be)")
    parser.add_argument(
        "--attributes", metavar="NAMES", help="what queries ask for, such as Hat,Backpack (default: all)"
    )
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test", help="default: test")
    parser.add_argument(
        "--out", metavar="DIR", help="result folder (default: HEAD or CHECKPOINT/retrieval_DATASET_SPLIT)"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="pictures per pass (default: 64)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="data loader processes")
    parser.add_argument("--overwrite", action="store_true", help="replace the result")
    parser.set_defaults(run=run)
    return parser


def run(args) -> None:
    quiet_transformers()
    folder = args.out
    if folder is None:
        base = args.head or args.checkpoint
        if not Path(base).is_dir():
            raise ParValueError(f"{base!r} is no folder: name the result folder with --out")
        folder = Path(base) / f"retrieval_{args.dataset}_{args.split}"
    data = data_arguments(args)
    from vlm_par_hf.training.retrieval import evaluate_retrieval

    record = evaluate_retrieval(
        args.checkpoint,
        args.dataset,
        retriever=args.head,
        scorings=split_names(args.scoring),
        split=args.split,
        attributes=split_names(args.attributes),
        output_dir=folder,
        batch_size=args.batch_size,
        workers=args.workers,
        overwrite=args.overwrite,
        command=args.command_line,
        **data,
    )
    kind = "SYNTHETIC " if record["data"]["synthetic"] else ""
    say(f"{kind}{args.dataset}, {args.split}, {record['data']['people']} people")
    say(f"  {'':<16}{'queries':>16}" + "".join(f"{name:>15}" for name in _SHOWN))
    for name, found in record["scorings"].items():
        for which, one in (("all", found), ("unseen", found["unseen"])):
            values = "".join(f"{'-' if one[key] is None else f'{100 * one[key]:.2f}':>15}" for key in _SHOWN)
            say(f"  {name:<16}{which:>9}{one['queries']:>7}{values}")
    for name, reason in record["left_out"].items():
        say(f"  {name}: not measured, {reason}")
    say(f"record and table: {folder}")
