"""`vlm-par card`: write the model card of a checkpoint."""

import argparse

from vlm_par_hf.errors import ParValueError

from .options import say


__all__ = ["add_parser", "run"]


def add_parser(commands) -> argparse.ArgumentParser:
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
    parser.set_defaults(run=run)
    return parser


def run(args) -> None:
    dataset_ids = {}
    for item in args.dataset_id:
        name, equals, dataset_id = item.partition("=")
        if not (name and equals and dataset_id):
            raise ParValueError(f"dataset_id={item!r}: expected NAME=ORG/NAME, such as pa100k=my-org/pa100k")
        dataset_ids[name] = dataset_id
    from vlm_par_hf.hub.model_card import write_model_card

    for path in write_model_card(
        args.checkpoint,
        args.metrics,
        out=args.out,
        dataset_ids=dataset_ids,
        overwrite=args.overwrite,
        name=args.name,
        license=args.license,
    ):
        say(f"written: {path}")
