"""The command `vlm-par`: demo, predict, train, evaluate, card, prepare, export.

Slow imports wait until a command runs. A mistake of the user ends in one line on standard error and exit status 2;
`--debug` shows the traceback.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.utils import redact_command

from . import card, demo, evaluate, export, predict, prepare, train
from .options import process_index


__all__ = ["build_parser", "main"]

COMMANDS = (demo, predict, train, evaluate, card, prepare, export)  # in the order of the help
# Errors whose message is written for the user. Any other error is a bug and keeps its traceback.
_USER_ERRORS = (ValueError, TypeError, KeyError, OSError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0: done; 1: done, except for images that cannot be read; 2: wrong use; 130: interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(arguments)
    args.command_line = redact_command(["vlm-par", *arguments])  # for records, which are published
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # Of the processes that torchrun starts, only the first one logs.
    level = logging.DEBUG if args.debug else logging.ERROR if process_index() else logging.INFO
    logging.getLogger("vlm_par_hf").setLevel(level)
    try:
        processes = int(os.environ.get("WORLD_SIZE", 1))
        if processes > 1 and args.run is not train.run:
            raise ParValueError(
                f"{arguments[0]} runs in one process and WORLD_SIZE={processes}: start it without torchrun, which is "
                "for train"
            )
        return args.run(args) or 0
    except KeyboardInterrupt:
        sys.stderr.write("vlm-par: interrupted\n")
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has ended: no error. Python must not flush into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _USER_ERRORS as error:
        if args.debug:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        lines = [line.strip() for line in str(message).splitlines()]
        sys.stderr.write(f"vlm-par: error: {' '.join(line for line in lines if line)}\n")
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = argparse.ArgumentParser(
        prog="vlm-par", description="Attributes of pedestrians: VLM-PAR on a frozen SigLIP 2 backbone."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = command.add_parser(commands)
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error, log more")
    return parser
