"""MATLAB files with checks: variables and fields by name, indices made to count from 0, errors that name the field."""

from pathlib import Path
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.utils import shorten

from .mat_file import MatFileError, read_mat_file


__all__ = [
    "field_names",
    "load_mat_struct",
    "load_mat_variables",
    "read_cells",
    "read_field",
    "read_indices",
    "read_matrix",
    "read_strings",
]

# The variable of each annotation file that users mix up.
_KNOWN_VARIABLES = {
    "RAP_annotation": "RAP",
    "duke_attribute": "DukeMTMC-attribute",
    "market_attribute": "Market-1501 attributes",
    "peta": "PETA",
    "train_label": "PA-100K",
}
_LARGEST = 2**53


def load_mat_struct(path: Path, variable: str) -> Any:
    """The 1 x 1 struct `variable` of a file; its fields are read with `read_field`.

    Raises:
        ValueError: as `load_mat_variables`.
    """
    return load_mat_variables(path, (variable,), _KNOWN_VARIABLES[variable])[variable]


def load_mat_variables(path: Path, variables: tuple[str, ...], data_set: str) -> dict[str, Any]:
    """These variables of a file, and none of the others, which are not unpacked.

    Args:
        data_set: whose annotation is expected.

    Raises:
        ValueError: the file is damaged, or holds another data set, which is then named.
    """
    try:
        # A MATLAB file holds plain arrays and runs no code when read.
        found, names = read_mat_file(path, variables)
    except (MatFileError, OSError) as error:
        raise ParValueError(f"{path} cannot be read as a MATLAB file (downloaded in part?): {error}") from error
    missing = [name for name in variables if name not in found]
    if missing:
        others = (_KNOWN_VARIABLES[name] for name in names if name in _KNOWN_VARIABLES)
        other = next((name for name in others if name != data_set), None)
        known = f", which is the annotation of {other}" if other else ""
        raise ParValueError(
            f"{path} lacks the variable {missing[0]!r}: it holds {shorten(names)}{known}; expected the annotation of "
            f"{data_set}"
        )
    return {name: found[name] for name in variables}


def field_names(struct: Any) -> tuple[str, ...]:
    entry = _first_struct(struct)
    return () if entry is None else tuple(entry)


def read_field(struct: Any, path: Path, *names: str) -> Any:
    """The field that has one of these names, wherever in the struct it stands.

    Raises:
        ValueError: there is none.
    """
    entry = _first_struct(struct) or {}
    for name in names:
        if name in entry:
            return entry[name]
    raise ParValueError(f"{path} lacks the field {names[0]!r}; it has {shorten(list(entry))}")


def _first_struct(values: Any) -> dict[str, Any] | None:
    """The first struct of an array of structs, or of a cell array around it."""
    while isinstance(values, np.ndarray) and values.dtype == object and values.size:
        values = values.ravel(order="F")[0]
    return values if isinstance(values, dict) else None


def read_cells(cell: Any) -> list[Any]:
    """The entries of a cell array of any orientation."""
    return cell.ravel().tolist() if isinstance(cell, np.ndarray) else [cell]


def read_strings(cell: Any, path: Path, field: str) -> list[str]:
    """A cell array of texts, `(N, 1)` or `(1, N)`, to N strings.

    Raises:
        ValueError: an entry is no text.
    """
    texts = []
    for entry in read_cells(cell):
        while isinstance(entry, np.ndarray) and entry.size:
            entry = entry.ravel()[0]
        if not isinstance(entry, str):
            raise ParValueError(f"{path}: {field} holds {shorten(entry)} where a text was expected")
        texts.append(entry.strip())
    return texts


def read_matrix(values: Any, path: Path, field: str, shape: tuple[int | None, int]) -> np.ndarray:
    """A matrix of whole numbers as int64, `(rows, columns)`; None in `shape` stands for any number.

    Raises:
        ValueError: another shape, or values that are no whole numbers.
    """
    matrix = np.asarray(values)
    fits = matrix.ndim == 2 and all(want is None or want == have for want, have in zip(shape, matrix.shape))
    if not fits:
        wanted = " x ".join("any" if size is None else str(size) for size in shape)
        raise ParValueError(f"{path}: {field} has shape {matrix.shape}; expected {wanted}")
    return _whole_numbers(matrix, path, field)


def read_indices(values: Any, path: Path, field: str, count: int) -> np.ndarray:
    """A row or column of indices as MATLAB counts, from 1, to int64 `(n,)` from 0.

    Raises:
        ValueError: no whole numbers, an index outside 1 to `count`, or one twice.
    """
    numbers = np.asarray(values)
    if numbers.dtype.kind not in "uif" or numbers.size == 0:
        raise ParValueError(f"{path}: {field} is no list of image numbers")
    indices = _whole_numbers(numbers.ravel(), path, field) - 1
    if indices.min() < 0 or indices.max() >= count:
        wrong = indices.min() if indices.min() < 0 else indices.max()
        raise ParValueError(f"{path}: {field} holds the image number {wrong + 1}; expected 1 to {count}")
    if len(np.unique(indices)) != len(indices):
        raise ParValueError(f"{path}: {field} lists an image twice")
    return indices


def _whole_numbers(numbers: np.ndarray, path: Path, field: str) -> np.ndarray:
    """The same numbers as int64. Doubles count exactly up to 2**53, which also keeps uint64 from turning negative."""
    if numbers.dtype.kind not in "uibf":
        raise ParValueError(f"{path}: {field} holds values other than whole numbers")
    if numbers.dtype.kind == "f" and not (np.isfinite(numbers) & (numbers == np.rint(numbers))).all():
        raise ParValueError(f"{path}: {field} holds values other than whole numbers")
    if numbers.dtype.itemsize == 8 and ((numbers > _LARGEST) | (numbers < -_LARGEST)).any():
        raise ParValueError(f"{path}: {field} holds numbers beyond {_LARGEST}")
    return numbers.astype(np.int64)
