"""`vlm-par card`: write the model card of a checkpoint."""

import argparse
from pathlib import Path

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.utils import read_json_object

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
    config = read_json_object(Path(args.checkpoint) / "config.json") or {}
    if config.get("model_type") == "par_retriever":
        from vlm_par_hf.retrieval.card import write_retriever_card

        options = {"out": args.out, "name": args.name, "overwrite": args.overwrite}
        say(f"written: {write_retriever_card(args.checkpoint, args.metrics, **options)}")
        return
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
