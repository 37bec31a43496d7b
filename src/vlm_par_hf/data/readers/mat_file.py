"""MATLAB files of level 5, which `save` writes unless told otherwise, read with nothing but struct, zlib and NumPy.

Every length that a file states is compared with the bytes that are there before anything is made of it. A damaged or
hostile file therefore ends in an error; the reader of scipy, written in C, ends the process on some of them.

The format is that of "MAT-File Format" (MathWorks): a header of 128 bytes, then one element per variable, compressed
or not. Numbers, texts, cell arrays and structs are read; objects, functions, sparse and complex matrices are refused.
"""

import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np


__all__ = ["MatFileError", "read_mat_file"]

MAX_FILE_BYTES = 1 << 30
MAX_VARIABLE_BYTES = 1 << 28  # of one variable, unpacked: twice the labels of RAP version 2 as doubles
MAX_ENTRIES = 2_000_000  # of all cells and struct fields of one variable
MAX_DEPTH = 16  # cells in cells
_HEADER = 128
_NAME_BYTES = 4096  # flags, dimensions and name of a variable lie within its first bytes

_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_CELL, _STRUCT, _CHAR, _FIRST_NUMBER, _LAST_NUMBER = 1, 2, 4, 6, 15
_COMPLEX = 0x800
_FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class MatFileError(Exception):
    """The bytes are not those of a MATLAB file that is read here."""


def read_mat_file(path: Path, wanted: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """Some variables of a file; the others are skipped without being unpacked.

    Returns:
        The wanted variables that the file holds, and the names of all variables up to the last wanted one. A matrix of
        numbers is an array in the type that the file stores; a text of one row is a str; a cell array is an array of
        objects; a struct is an array of dicts.

    Raises:
        MatFileError: the file is damaged, too large, or of another kind.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise MatFileError(f"it has {size} bytes, more than the {MAX_FILE_BYTES} that are read")
    data = path.read_bytes()
    order = _byte_order(data)
    found: dict[str, Any] = {}
    names: list[str] = []
    position = _HEADER
    while position < len(data) and not all(name in found for name in wanted):
        kind, start, end, position = _Reader(data, order).element(position, len(data), padded=False)
        if kind not in (_MATRIX, _COMPRESSED):
            raise MatFileError(f"an element of kind {kind} where a variable was expected")
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            reader = _Reader(_unpack(unpacker, data[start:end], _NAME_BYTES), order)
            start, end = reader.compressed_body()
        else:
            reader = _Reader(data, order)
        name = reader.variable_name(start, end)
        names.append(name)
        if name not in wanted:
            continue
        if name in found:
            raise MatFileError(f"it holds the variable {name!r} twice")
        if end - start > MAX_VARIABLE_BYTES:
            raise MatFileError(f"the variable {name!r} has {end - start} bytes, more than {MAX_VARIABLE_BYTES}")
        if kind == _COMPRESSED:
            reader.data += _unpack(unpacker, unpacker.unconsumed_tail, end - len(reader.data))
            # The checksum follows the last byte.
            if len(reader.data) != end or _unpack(unpacker, unpacker.unconsumed_tail, 1) or not unpacker.eof:
                raise MatFileError(f"the variable {name!r} is not as long as it says")
        found[name] = reader.matrix(start, end)
    return found, names


def _byte_order(data: bytes) -> str:
    if data[:8] == b"\x89HDF\r\n\x1a\n" or data[512:520] == b"\x89HDF\r\n\x1a\n":
        raise MatFileError("it is of version 7.3 (HDF5); save it with -v7")
    if len(data) < _HEADER:
        raise MatFileError(f"it has {len(data)} bytes; a header alone has {_HEADER}")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or struct.unpack(f"{order}H", data[124:126])[0] != 0x0100:
        raise MatFileError("it does not begin with the header of a MATLAB 5 file")
    return order


def _unpack(unpacker: Any, data: bytes, size: int) -> bytes:
    """The next bytes, at most `size`."""
    if size <= 0:
        return b""  # zlib reads 0 as "without a limit"
    try:
        return unpacker.decompress(data, size)
    except zlib.error as error:
        raise MatFileError(f"compressed data are damaged ({error})") from error


class _Reader:
    """The elements inside one variable."""

    def __init__(self, data: bytes, order: str) -> None:
        self.data = data
        self.order = order
        self.entries_left = MAX_ENTRIES
        self._two = struct.Struct(f"{order}II").unpack_from
        self._numbers = {kind: np.dtype(order + name) for kind, name in _NUMBERS.items()}

    def element(self, position: int, limit: int, padded: bool = True) -> tuple[int, int, int, int]:
        """(kind, start, end, position of the next element) of the element at `position`, which ends by `limit`."""
        if limit - position < 8:
            raise MatFileError("it ends within an element")
        kind, size = self._two(self.data, position)
        if kind >> 16:  # up to four bytes lie in the tag itself
            size, kind = kind >> 16, kind & 0xFFFF
            if size > 4:
                raise MatFileError("a short element says that it is long")
            return kind, position + 4, position + 4 + size, position + 8
        start = position + 8
        end = start + size
        if end > limit:
            raise MatFileError(f"it ends within an element of {size} bytes")
        return kind, start, end, min(limit, end + (-size % 8 if padded else 0))

    def compressed_body(self) -> tuple[int, int]:
        """Where the one matrix of an unpacked element starts and ends; the end may lie behind what is unpacked yet."""
        if len(self.data) < 8:
            raise MatFileError("a compressed variable is empty")
        kind, size = self._two(self.data, 0)
        if kind != _MATRIX:
            raise MatFileError(f"a compressed element of kind {kind} where a variable was expected")
        return 8, 8 + size

    def variable_name(self, start: int, end: int) -> str:
        limit = min(end, len(self.data))
        _, _, _, position = self.element(start, limit)
        _, _, _, position = self.element(position, limit)
        _, first, last, _ = self.element(position, limit)
        return self.data[first:last].decode("latin-1")

    def matrix(self, start: int, end: int, depth: int = 0) -> Any:
        """The value of the matrix whose parts lie in `start` to `end`."""
        if start == end:
            return np.empty((0, 0))  # MATLAB's []
        if depth > MAX_DEPTH:
            raise MatFileError(f"cells lie {depth} deep in cells; {MAX_DEPTH} are read")
        kind, first, last, position = self.element(start, end)
        if kind != 6 or last - first != 8:
            raise MatFileError("a matrix without its flags")
        flags = self._two(self.data, first)[0]
        kind, first, last, position = self.element(position, end)
        count = (last - first) // 4
        if kind != 5 or (last - first) % 4 or not 2 <= count <= 32:
            raise MatFileError("a matrix without its dimensions")
        shape = struct.unpack_from(f"{self.order}{count}i", self.data, first)
        if min(shape) < 0:
            raise MatFileError(f"a matrix of shape {shape}")
        kind, _, _, position = self.element(position, end)  # its name, empty inside of cells
        if kind != 1:
            raise MatFileError("a matrix without a name")
        kind = flags & 0xFF
        size = math.prod(shape)
        if kind == _CHAR:
            value, position = self._text(position, end, shape, size)
        elif kind == _CELL:
            values, position = self._entries(position, end, size, depth)
            value = _as_array(values, shape)
        elif kind == _STRUCT:
            value, position = self._struct(position, end, shape, size, depth)
        elif _FIRST_NUMBER <= kind <= _LAST_NUMBER and not flags & _COMPLEX:
            value, position = self._number(position, end, shape, size)
        else:
            raise MatFileError(f"a matrix of class {kind}{' (complex)' if flags & _COMPLEX else ''} is not read")
        if end - position >= 8:
            raise MatFileError(f"a matrix of shape {shape} is followed by {end - position} bytes")
        return value

    def _number(self, position: int, end: int, shape: tuple[int, ...], size: int) -> tuple[np.ndarray, int]:
        kind, first, last, position = self.element(position, end)
        dtype = self._numbers.get(kind)
        if dtype is None or last - first != size * dtype.itemsize:
            raise MatFileError(f"a matrix of shape {shape} has {last - first} bytes of kind {kind}")
        return np.frombuffer(self.data, dtype, size, first).reshape(shape, order="F"), position

    def _text(self, position: int, end: int, shape: tuple[int, ...], size: int) -> tuple[Any, int]:
        kind, first, last, position = self.element(position, end)
        encoding = _ENCODINGS.get(kind)
        if encoding is None:
            raise MatFileError(f"a text of kind {kind}")
        if encoding.startswith("utf-") and encoding != "utf-8":
            encoding += "-le" if self.order == "<" else "-be"
        try:
            text = self.data[first:last].decode(encoding)
        except UnicodeDecodeError as error:
            raise MatFileError(f"a text that is not {encoding}") from error
        # MATLAB counts the two halves of a rare character.
        if size not in (len(text), len(text.encode("utf-16-le")) // 2):
            raise MatFileError(f"a text of shape {shape} has {len(text)} characters")
        if len(shape) == 2 and (shape[0] == 1 or size == 0):
            return text, position
        if len(shape) != 2 or len(text) != size:
            raise MatFileError(f"a text of shape {shape} is not read")
        rows = ["".join(text[row :: shape[0]]) for row in range(shape[0])]
        return _as_array(rows, (shape[0],)), position

    def _entries(self, position: int, end: int, count: int, depth: int) -> tuple[list[Any], int]:
        """`count` matrices one after the other."""
        self.entries_left -= count
        if self.entries_left < 0 or 8 * count > end - position:
            raise MatFileError(f"a cell array or struct of {count} entries in {end - position} bytes")
        values = []
        for _ in range(count):
            kind, first, last, position = self.element(position, end)
            if kind != _MATRIX:
                raise MatFileError(f"an element of kind {kind} where an entry was expected")
            values.append(self.matrix(first, last, depth + 1))
        return values, position

    def _struct(self, position: int, end: int, shape: tuple[int, ...], size: int, depth: int) -> tuple[Any, int]:
        kind, first, last, position = self.element(position, end)
        if kind != 5 or last - first != 4:
            raise MatFileError("a struct without the length of its names")
        length = struct.unpack_from(f"{self.order}i", self.data, first)[0]
        kind, first, last, position = self.element(position, end)
        if kind != 1 or length < 1 or (last - first) % length:
            raise MatFileError(f"a struct with names of {length} bytes")
        names = [self.data[at : at + length].rstrip(b"\0").decode("latin-1") for at in range(first, last, length)]
        if len(set(names)) != len(names) or not all(map(_FIELD_NAME.fullmatch, names)):
            raise MatFileError("a struct whose fields have no names, or the same")
        values, position = self._entries(position, end, size * len(names), depth)
        fields = [dict(zip(names, values[at : at + len(names)])) for at in range(0, len(values), len(names) or 1)]
        return _as_array(fields, shape if names else (0, 0)), position


def _as_array(values: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        array[index] = value
    return array.reshape(shape, order="F")
