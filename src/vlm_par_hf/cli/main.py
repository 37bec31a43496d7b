"""The command `vlm-par`: demo, predict, track, init, schema, train, evaluate, calibrate, card, prepare, export.

Slow imports wait until a command runs: its help imports no torch. What the package refuses (`ParError`), and what the
machine refuses (no space, no permission), ends in one line on standard error and exit status 2; `--debug` shows the
traceback. Any other error is a fault of the package: it keeps its traceback and asks for a report.
"""

import argparse
import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from vlm_par_hf.errors import ParError, ParValueError
from vlm_par_hf.escaping import printable
from vlm_par_hf.utils import installed_version, redact_command

from . import calibrate, card, demo, evaluate, export, init, predict, prepare, schema, track, train
from .config import add_config_option, expand_config
from .options import process_index


__all__ = ["build_parser", "main"]

COMMANDS = (
    demo,
    predict,
    track,
    init,
    schema,
    train,
    evaluate,
    calibrate,
    card,
    prepare,
    export,
)  # in the order of the help
# What the operating system says when nothing is wrong with us.
_OF_THE_MACHINE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG,
    errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EIO, errno.ESTALE,
}  # fmt: skip
_WITHOUT_MODELS = (init.run, schema.run)  # and so without torch
STATUS_OF_A_FAULT = 70  # EX_SOFTWARE of sysexits.h


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0: done; 1: done, except for images that cannot be read; 2: wrong use, or refused by the machine; 70: a fault of
    this package; 130: interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = expand_config(arguments, build_parser)
    except ParError as error:
        return _refuse(error)
    args = build_parser().parse_args(arguments)
    args.command_line = redact_command(["vlm-par", *arguments])  # for records, which are published
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its messages itself
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
        if args.run not in _WITHOUT_MODELS:
            from vlm_par_hf.auto import register

            register()  # importing the package does so, but for this command
        return args.run(args) or 0
    except KeyboardInterrupt:
        sys.stderr.write("vlm-par: interrupted\n")
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has ended: no error. Python must not flush into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.debug:
            raise
        if _one_line(error) is None:
            traceback.print_exc()
            sys.stderr.write(
                "vlm-par: this is a fault of vlm-par, not of your input. Please report it, with the lines above and "
                "the command.\n"
            )
            return STATUS_OF_A_FAULT
        return _refuse(error)


def _refuse(error: Exception) -> int:
    sys.stderr.write(f"vlm-par: error: {_one_line(error)}\n")
    return 2


class _Printable(logging.Formatter):
    """Escapes control characters: names from files could steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _one_line(error: Exception) -> str | None:
    """The message of an error that is no fault of this package; None for any other."""
    if isinstance(error, ParError):
        text = str(error)
    elif isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        text = f"{error.strerror}: {error.filename}" if error.filename else str(error)
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        text = f"out of memory: {error}; a smaller --batch-size needs less"
    else:
        return None
    return printable(" ".join(line.strip() for line in text.splitlines() if line.strip()))


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = argparse.ArgumentParser(
        prog="vlm-par", description="Attributes of pedestrians: VLM-PAR on a frozen SigLIP 2 backbone."
    )
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = command.add_parser(commands)
        add_config_option(subparser)
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error, log more")
    return parser


def _versions() -> str:
    """This package and what its answers depend on, without importing any."""
    found = [f"{name} {installed_version(name) or 'not installed'}" for name in ("torch", "transformers")]
    return f"vlm-par {installed_version('vlm-par-hf') or 'of unknown version'} ({', '.join(found)})"
