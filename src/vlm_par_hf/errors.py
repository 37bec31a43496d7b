"""The errors that this package raises on purpose. Needs nothing.

Each is a `ParError` and the built-in error that Python has for the case: `except ValueError` works as everywhere, and
`except ParError` tells what was refused from a fault in the code. The message names the thing, its value and what was
expected. The command line prints it in one line; any other error is a fault of ours and keeps its traceback.
"""

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
