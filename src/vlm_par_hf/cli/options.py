"""What several commands share: options of data sets, output, and fewer messages from libraries."""

import argparse
import logging
import os
import sys
from pathlib import Path

from vlm_par_hf.errors import ParFileExistsError, ParFileNotFoundError, ParValueError
from vlm_par_hf.escaping import printable
from vlm_par_hf.images.regions import REGION_FORMATS
from vlm_par_hf.utils import read_json, shorten


__all__ = [
    "add_answer_options",
    "add_data_options",
    "add_device_options",
    "add_folder_options",
    "add_overwrite_options",
    "answer_arguments",
    "data_arguments",
    "process_index",
    "quiet_transformers",
    "refuse_existing",
    "say",
    "split_names",
]


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
    group.add_argument(
        "dataset", help="name of a data set: pa100k, folder, rendered, ...; or several: pa100k+rendered"
    )
    group.add_argument("--root", metavar="DIR", help="where the data set lies")
    group.add_argument(
        "--roots",
        nargs="+",
        metavar="DIR",
        help="where several lie, in their order; - for one that lies nowhere (rendered)",
    )
    group.add_argument("--schema", metavar="FILE", help="JSON file with your own attributes (data set folder)")
    group.add_argument("--partition", type=int, default=0, help="which of the official partitions (default: 0)")
    group.add_argument(
        "--missing",
        choices=("error", "skip"),
        default="error",
        help="what to do about missing images (default: error)",
    )
    group.add_argument("--data-seed", type=int, default=0, help="of random splits and drawings (default: 0)")
    add_folder_options(group)
    for split in ("train", "validation", "test"):
        group.add_argument(
            f"--num-{split}", type=int, metavar="N", help=f"{split} pictures (data sets synthetic and rendered)"
        )


def add_folder_options(group) -> None:
    """Adds how cells, labels and links of a data set are read."""
    group.add_argument("--negative", metavar="CELL", help='cell of a table that means "no", such as -1 (folder)')
    group.add_argument("--unknown", metavar="CELL", help='cell of a table that means "not annotated" (folder)')
    group.add_argument(
        "--ignore", action="append", metavar="NAME",
        help="attribute that may have no positive, or label in the files that no attribute takes, of a published data "
        "set; column that is not read (folder); more than once for several",
    )  # fmt: skip
    group.add_argument(
        "--box-format", choices=REGION_FORMATS, help="of boxes in a table (folder; default: xyxy, corners in pixels)"
    )
    group.add_argument("--follow-links", action="store_true", help="links below the folder may lead out of it")


def add_overwrite_options(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds `--overwrite` and `--delete-listed`, which every command that replaces an output has."""
    parser.add_argument("--overwrite", action="store_true", help=f"{text}; only what vlm-par wrote is deleted")
    parser.add_argument(
        "--delete-listed", action="store_true",
        help="with --overwrite: also delete the files that it names and asks about (changed since they were written, "
        "or written by an earlier version)",
    )  # fmt: skip


def add_answer_options(parser: argparse.ArgumentParser):
    """Adds what a model is asked and how it answers, which `answer_arguments` reads; returns the group."""
    group = parser.add_argument_group("what is asked")
    group.add_argument("--only-positive", action="store_true", help="leave out what a person does not have")
    group.add_argument("--no-sensitive", action="store_true", help="leave out perceived gender and age")
    group.add_argument(
        "--attributes", metavar="NAMES",
        help='only these, divided by commas: "Hat,Age", or in words for models that read them: "wearing a red scarf,'
        'a backpack | a handbag | no bag"',
    )  # fmt: skip
    group.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help='a probability above it is "yes" (default: that of each attribute)',
    )
    group.add_argument(
        "--thresholds", metavar="FILE", help='JSON file with thresholds of single attributes: {"Hat": 0.7}'
    )
    group.add_argument(
        "--decide", metavar="NAME",
        help="take thresholds from this fitted point of the model: instance_f1, mA, ... (default: the one in use)",
    )  # fmt: skip
    group.add_argument(
        "--abstain", type=float, metavar="LEVEL",
        help='answer "unknown" where a set of answers for this level, such as 0.9, holds more than one',
    )  # fmt: skip
    group.add_argument(
        "--consistency", action=argparse.BooleanOptionalAction,
        help="answers that fit together: no hat color for a bare head, one age (default: for models with fitted "
        "decisions or conditions in their label space)",
    )  # fmt: skip
    return group


def answer_arguments(args) -> dict:
    """Keywords of `Annotator` from the options of `add_answer_options`."""
    return {
        "only_positive": args.only_positive,
        "sensitive": not args.no_sensitive,
        "attributes": split_names(args.attributes, "--attributes"),
        "threshold": args.threshold,
        "thresholds": _read_thresholds(args.thresholds),
        "decide": args.decide,
        "abstain": args.abstain,
        "consistent": args.consistency,
    }


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Adds the device and the dtype of a model that answers."""
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda:0, ... (default: as transformers chooses)")
    parser.add_argument(
        "--dtype", choices=("auto", "bfloat16", "float32"),
        help="of the weights; auto: bfloat16 where the device is fast with it, else float32 (default: as saved)",
    )  # fmt: skip


def split_names(text: str | None, option: str) -> list[str] | None:
    """The names or texts between commas."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ParValueError(f"{option} is {text!r}, expected names divided by commas")
    return names


def _read_thresholds(path: str | None) -> dict | None:
    if path is None:
        return None
    if not os.path.isfile(path):
        raise ParFileNotFoundError(f'--thresholds {path}: there is no such file; expected JSON such as {{"Hat": 0.7}}')
    try:
        found = read_json(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ParValueError(f"--thresholds {path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ParValueError(f'--thresholds {path} holds {shorten(found)}; expected JSON such as {{"Hat": 0.7}}')
    return found


def data_arguments(args) -> dict:
    """Keywords `root`, `schema` and `dataset_options` of `train` and `evaluate` from the parsed options."""
    options = {"partition": args.partition, "missing": args.missing, "seed": args.data_seed}
    names = ("num_train", "num_validation", "num_test", "negative", "unknown", "ignore", "box_format")
    given = {name: getattr(args, name) for name in names}
    options.update({name: value for name, value in given.items() if value is not None})
    if args.follow_links:
        options["follow_links"] = True
    schema = None
    if args.schema:
        from vlm_par_hf.labels.schema import AttributeSchema

        schema = AttributeSchema.from_json(args.schema)
    root = args.root
    if getattr(args, "roots", None):
        if root is not None:
            raise ParValueError("--root and --roots were both given, expected one of them")
        root = args.roots
    return {"root": root, "schema": schema, "dataset_options": options}


def refuse_existing(path: str, overwrite: bool) -> None:
    """Refuses a file that is there already, unless it is to be replaced.

    Raises:
        FileExistsError: it is there.
    """
    if os.path.lexists(path) and not overwrite:
        raise ParFileExistsError(f"{path} is there already: replace it (--overwrite) or name another file (--out)")


def say(text: str) -> None:
    """Writes a line to standard output, at once even into a pipe."""
    sys.stdout.write(f"{printable(text)}\n")
    sys.stdout.flush()
