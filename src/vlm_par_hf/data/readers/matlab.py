"""MATLAB files with checks: variables and fields by name, indices made to count from 0, errors that name the field."""

from pathlib import Path
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.utils import require


__all__ = [
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


def load_mat_struct(path: Path, variable: str) -> np.ndarray:
    """The 1 x 1 struct `variable` of a file; its fields are read with `read_field`.

    Raises:
        ValueError: as `load_mat_variables`.
    """
    return load_mat_variables(path, (variable,), _KNOWN_VARIABLES[variable])[variable]


def load_mat_variables(path: Path, variables: tuple[str, ...], data_set: str) -> dict[str, Any]:
    """These variables of a file, and none of the others: they are not unpacked.

    Args:
        data_set: whose annotation is expected.

    Raises:
        ValueError: the file is damaged, or holds another data set, which is then named.
    """
    scipy_io = require("scipy.io", "train")
    try:
        # A MATLAB file holds plain arrays and runs no code when read.
        found = scipy_io.loadmat(path, variable_names=list(variables))
        missing = [name for name in variables if name not in found]
        names = [name for name, _, _ in scipy_io.whosmat(path)] if missing else []
    except Exception as error:  # scipy raises OSError, ValueError, TypeError, zlib.error, ... on damaged files
        raise ParValueError(f"{path} cannot be read as a MATLAB file (downloaded in part?): {error}") from error
    if missing:
        others = (_KNOWN_VARIABLES[name] for name in names if name in _KNOWN_VARIABLES)
        other = next((name for name in others if name != data_set), None)
        known = f", which is the annotation of {other}" if other else ""
        raise ParValueError(
            f"{path} lacks the variable {missing[0]!r}: it holds {names}{known}; expected the annotation of {data_set}"
        )
    return {name: found[name] for name in variables}


def field_names(struct: Any) -> tuple[str, ...]:
    return getattr(getattr(struct, "dtype", None), "names", None) or ()


def read_field(struct: np.ndarray, path: Path, *names: str) -> Any:
    """The field that has one of these names, wherever in the struct it stands.

    Raises:
        ValueError: there is none.
    """
    present = field_names(struct)
    for name in names:
        if name in present:
            return np.asarray(struct).ravel()[0][name]
    raise ParValueError(f"{path} lacks the field {names[0]!r}; it has {list(present)}")


def read_cells(cell: Any) -> list[Any]:
    """The entries of a cell array of any orientation."""
    return list(np.asarray(cell).ravel())


def read_strings(cell: Any, path: Path, field: str) -> list[str]:
    """A cell array of texts, `(N, 1)` or `(1, N)`, to N strings.

    Raises:
        ValueError: an entry is no text.
    """
    texts = []
    for entry in np.asarray(cell, dtype=object).ravel():
        while isinstance(entry, np.ndarray) and entry.size:
            entry = entry.ravel()[0]
        if not isinstance(entry, str):
            raise ParValueError(f"{path}: {field} holds {entry!r} where a text was expected")
        texts.append(str(entry).strip())
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
    if matrix.dtype.kind not in "uibf" or (matrix.dtype.kind == "f" and not (matrix == np.rint(matrix)).all()):
        raise ParValueError(f"{path}: {field} holds values other than whole numbers")
    return matrix.astype(np.int64)


def read_indices(values: Any, path: Path, field: str, count: int) -> np.ndarray:
    """A row or column of indices as MATLAB counts, from 1, to int64 `(n,)` from 0.

    Raises:
        ValueError: an index outside 1 to `count`, or one twice.
    """
    numbers = np.asarray(values)
    if numbers.dtype.kind not in "uif" or numbers.size == 0:
        raise ParValueError(f"{path}: {field} is no list of image numbers")
    indices = numbers.ravel().astype(np.int64) - 1
    if indices.min() < 0 or indices.max() >= count:
        wrong = indices.min() if indices.min() < 0 else indices.max()
        raise ParValueError(f"{path}: {field} holds the image number {wrong + 1}; expected 1 to {count}")
    if len(np.unique(indices)) != len(indices):
        raise ParValueError(f"{path}: {field} lists an image twice")
    return indices
