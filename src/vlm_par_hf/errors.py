"""The errors that this package raises on purpose. Needs no torch.

Each is a `ParError` and the built-in error that Python has for the case: `except ValueError` works as everywhere, and
`except ParError` tells what was refused from a fault in the code. The message names the thing, its value and what was
expected. The command line prints it in one line; any other error is a fault of ours and keeps its traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm_par_hf.escaping import printable


__all__ = [
    "ParError",
    "ParFileExistsError",
    "ParFileNotFoundError",
    "ParImportError",
    "ParKeyError",
    "ParOSError",
    "ParRuntimeError",
    "ParTypeError",
    "ParValueError",
    "argument_in_errors",
    "check_folder",
    "raised_elsewhere",
    "unreadable",
]


class ParError(Exception):
    """Something that this package was given is refused: an argument, a file, a folder, a model.

    Control characters in the message, which may quote a file, are escaped.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ParValueError(ParError, ValueError):
    """A value is not one of those expected."""


class ParTypeError(ParError, TypeError):
    """A thing of another kind than expected."""


class ParKeyError(ParError, KeyError):
    """A name that is not there."""

    def __str__(self) -> str:
        # KeyError would show the message in quotes, with its line breaks escaped.
        return printable(Exception.__str__(self))


class ParOSError(ParError, OSError):
    """A file or a repository that cannot be used."""


class ParFileNotFoundError(ParError, FileNotFoundError):
    """A file or a folder that is not there."""


class ParFileExistsError(ParError, FileExistsError):
    """A file or a folder that is there already and is not ours to replace."""


class ParImportError(ParError, ImportError):
    """A package that is needed and not installed."""


class ParRuntimeError(ParError, RuntimeError):
    """Something that cannot be done in this state."""


@contextmanager
def argument_in_errors(argument: str, value: str) -> Iterator[None]:
    """Puts an argument and its value in front of what other packages say of a checkpoint that they cannot load.

    Without a network, for instance, the Hub's message names neither.

    Raises:
        OSError: another package raised an error, or there is no such folder.
    """
    check_folder(value, argument)
    try:
        yield
    except Exception as error:
        if isinstance(error, ParError) and not isinstance(error, OSError):
            raise
        if not isinstance(error, (OSError, ImportError)) and not raised_elsewhere(error):
            raise
        raise ParOSError(f"{argument}={value!r} could not be loaded: {error}") from error


def check_folder(name: str | Path, argument: str = "the checkpoint") -> None:
    """Refuses what looks like a folder and is none, before the Hub is asked for it, for a minute where there is no
    network.

    Like a folder looks what starts with `.`, `/` or `~`, has more than one slash or a backslash, or would lie in a
    folder that there is. All else may be a repository. Several names with a plus between them are checked one by one.

    Raises:
        FileNotFoundError: names the folder.
    """
    text = str(name)
    path = Path(text)
    if path.exists():
        return
    if "+" in text:
        for one in text.split("+"):
            check_folder(one, argument)
        return
    parent = path.parent
    looks = text.startswith((".", "/", "~")) or "\\" in text or text.count("/") > 1 or path.is_absolute()
    if looks or (str(parent) != "." and parent.is_dir()):
        hint = "; Python does not read ~ as the home folder" if text.startswith("~") else ""
        raise ParFileNotFoundError(
            f"{argument}: there is no folder {text!r:.200} (in {str(Path.cwd())!r:.200}){hint}; a repository of the "
            "Hub is named like 'owner/name'"
        )


@contextmanager
def unreadable(name: object, what: str) -> Iterator[None]:
    """Turns what other packages raise for damaged files of a checkpoint, such as a KeyError, into an error that says
    so.

    Args:
        name: the checkpoint.
        what: which of its files, such as "config.json".

    Raises:
        ValueError: another package raised an error that is no OSError.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (ParError, OSError, MemoryError)) or not raised_elsewhere(error):
            raise
        raise ParValueError(
            f"{name}: {what} cannot be read, it is damaged or was written for something else "
            f"({type(error).__name__}: {str(error)[:500]})"
        ) from error


def raised_elsewhere(error: BaseException) -> bool:
    """Whether an error was raised by the code of another package."""
    here, trace = str(Path(__file__).parent), error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is None or not trace.tb_frame.f_code.co_filename.startswith(here)
