"""What several commands share: options of data sets, output, and fewer messages from libraries."""

import argparse
import logging
import os
import sys

from vlm_par_hf.escaping import printable


__all__ = ["add_data_options", "data_arguments", "process_index", "quiet_transformers", "say"]


def process_index() -> int:
    """The number of this process among those that torchrun started; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def quiet_transformers() -> None:
    """Turns off two kinds of messages of transformers.

    Its progress bars show the reading and writing of single files; those of the command itself stay. And whenever a
    SigLIP configuration is printed, it warns of its own default token ids, which no checkpoint has.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    without_bars = are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    if not without_bars:
        enable_progress_bars()  # transformers also turned off those of huggingface_hub, which are ours
    logging.getLogger("transformers.configuration_utils").setLevel(logging.ERROR)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Adds the data set and its options to the parser of a command."""
    group = parser.add_argument_group("data")
    group.add_argument("dataset", help="name of a data set: pa100k, folder, rendered, ...")
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
        group.add_argument(
            f"--num-{split}", type=int, metavar="N", help=f"{split} pictures (data sets synthetic and rendered)"
        )


def data_arguments(args) -> dict:
    """Keywords `root`, `schema` and `dataset_options` of `train` and `evaluate` from the parsed options."""
    options = {"partition": args.partition, "missing": args.missing, "seed": args.data_seed}
    numbers = {name: getattr(args, name) for name in ("num_train", "num_validation", "num_test")}
    options.update({name: value for name, value in numbers.items() if value is not None})
    schema = None
    if args.schema:
        from vlm_par_hf.labels.schema import AttributeSchema

        schema = AttributeSchema.from_json(args.schema)
    return {"root": args.root, "schema": schema, "dataset_options": options}


def say(text: str) -> None:
    """Writes a line to standard output, at once even into a pipe."""
    sys.stdout.write(f"{printable(text)}\n")
    sys.stdout.flush()
