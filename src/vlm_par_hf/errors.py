"""The errors that this package raises on purpose. Needs no torch.

Each is a `ParError` and the built-in error that Python has for the case: `except ValueError` works as everywhere, and
`except ParError` tells what was refused from a fault in the code. The message names the thing, its value and what was
expected. The command line prints it in one line; any other error is a fault of ours and keeps its traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager


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
]


class ParError(Exception):
    """Something that this package was given is refused: an argument, a file, a folder, a model."""


class ParValueError(ParError, ValueError):
    """A value is not one of those expected."""


class ParTypeError(ParError, TypeError):
    """A thing of another kind than expected."""


class ParKeyError(ParError, KeyError):
    """A name that is not there."""

    # KeyError would show the message in quotes, with its line breaks escaped.
    __str__ = Exception.__str__


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
        OSError: another package raised an error of a kind that it raises for bad files and names.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (OSError, ValueError, ImportError, StrictDataclassError) as error:
        if isinstance(error, ParError) and not isinstance(error, OSError):
            raise
        raise ParOSError(f"{argument}={value!r} could not be loaded: {error}") from error
