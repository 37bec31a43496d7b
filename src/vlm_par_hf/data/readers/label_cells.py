"""From what people write in a table to class indices: cells of one attribute, and all labels of a row in one value."""

import difflib
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, Attribute, AttributeSchema
from vlm_par_hf.utils import shorten


__all__ = ["UNKNOWN_TEXTS", "LabelReader", "Place", "RowReader", "plain_cell"]

# How people and programs write "nobody annotated this"; "nan" is what pandas writes for a hole in a column.
UNKNOWN_TEXTS = ("", "unknown", "nan", "none", "null", "<na>", "n/a", "-1", "-100")
# A first label that begins with one of these denies, so that false and true are plain: ("no", "yes"), ("no hat",
# "hat"), but not ("male", "female").
_NEGATIONS = ("no", "not", "none", "without", "false", "absent", "off", "negative")
_WHOLE = re.compile(r"([+-]?)0*([0-9]{1,18})(\.0*)?", re.ASCII)
_BETWEEN_NAMES = re.compile(r"\s*[|;,]\s*")


class Place(NamedTuple):
    """Where a cell stands, for messages: `Place("labels.csv", "line", 3)`."""

    what: str
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.what}, {self.unit} {self.number}"


def plain_cell(value: Any) -> str:
    """A cell as text without case; a whole number in one form (1, "1", "01" and "1.0" are "1")."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    text = unicodedata.normalize("NFC", str(value).strip())
    whole = _WHOLE.fullmatch(text)
    if whole is None:
        return text.casefold()
    sign, digits = whole.group(1), whole.group(2)
    return f"-{digits}" if sign == "-" and digits != "0" else digits


class LabelReader:
    """The column of one attribute: from cells to class indices, and what the column holds altogether.

    Args:
        attribute: the attribute.
        negative, unknown: as in `read_folder`.
    """

    def __init__(
        self, attribute: Attribute, negative: str | int | None = None, unknown: str | int | None = None
    ) -> None:
        self.name = attribute.name
        self.labels = attribute.labels
        self._is_binary = attribute.is_binary
        self._exact = {unicodedata.normalize("NFC", text): index for index, text in enumerate(attribute.labels)}
        # What is not a label as it stands is looked up here. Labels that differ by case only are not.
        self._known: dict[str, int | None] = dict.fromkeys(UNKNOWN_TEXTS, UNKNOWN_LABEL)
        self._takes_index = not any(_WHOLE.fullmatch(text) for text in self._exact)
        if self._takes_index:
            self._known |= {str(index): index for index in range(attribute.num_labels)}
        if attribute.is_binary and re.split(r"[\s_-]", self.labels[0].casefold(), maxsplit=1)[0] in _NEGATIONS:
            self._known |= {"false": 0, "true": 1}
        folded: dict[str, int | None] = {}
        for text, index in self._exact.items():
            folded[plain_cell(text)] = None if plain_cell(text) in folded else index
        self._known |= folded
        # What the user says a cell means comes before everything else.
        self._chosen: dict[str, int] = {}
        if attribute.is_binary:
            choices = ((negative, 0), (unknown, UNKNOWN_LABEL))
            self._chosen = {plain_cell(cell): index for cell, index in choices if cell is not None}
        elif unknown is not None:
            self._known.setdefault(plain_cell(unknown), UNKNOWN_LABEL)
        # Where a binary column first has these cells, unless they are labels or the user said what they mean.
        self._first: dict[str, Place] = {}
        self._has_negative = False
        self._seen: dict[tuple[type, Any], int] = {}  # cells that were read before, as they stand

    def __call__(self, value: Any, place: Place) -> int:
        """The class index of a cell, -100 where it says that nobody knows.

        Raises:
            ValueError: it is neither; the message names the column and not the place.
        """
        if not isinstance(value, (str, int)):
            return self._read(value, place)
        key = (type(value), value)  # True is no 1
        index = self._seen.get(key)
        if index is None:
            index = self._seen[key] = self._read(value, place)
        return index

    def can_read(self, value: Any) -> bool:
        """Whether a cell is a label, a class index, or says that nobody knows."""
        return value is None or (isinstance(value, (str, int, float)) and self._find(value)[0] is not None)

    def _find(self, value: Any) -> tuple[int | None, str]:
        text = plain_cell(value)
        index = self._chosen.get(text)
        if index is None:
            index = self._exact.get(unicodedata.normalize("NFC", str(value).strip()))
        return self._known.get(text) if index is None else index, text

    def _read(self, value: Any, place: Place) -> int:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return UNKNOWN_LABEL
        index, text = self._find(value) if isinstance(value, (str, int, float)) else (None, "")
        if index is None:
            numbers = f", a class index from 0 to {len(self.labels) - 1}" if self._takes_index else ""
            raise ParValueError(
                f"column {self.name!r} is {shorten(value)}; expected one of {shorten(list(self.labels))}{numbers}, or "
                "nothing where unknown"
            )
        if text in self._chosen:
            self._has_negative |= index == 0
        elif self._is_binary and self._takes_index:
            if text in ("0", "-1"):
                self._first.setdefault(text, place)
            else:
                self._has_negative |= index == 0
        return index

    def check_column(self) -> None:
        """Refuses a column in which -1 or 0 may mean "no" as well as "unknown".

        Raises:
            ValueError: the message names the readings and the arguments that choose one.
        """
        zero, minus_one = self._first.get("0"), self._first.get("-1")
        no = repr(self.labels[0])
        if zero and self._chosen.get("-1") == 0:
            raise ParValueError(
                f"{zero}: column {self.name!r} holds 0, and negative=-1 says that -1 is {no}: where 0 "
                "is unknown pass unknown=0 (--unknown 0)"
            )
        if minus_one is None or self._has_negative:
            return
        if zero:
            raise ParValueError(
                f"{minus_one}: column {self.name!r} holds both 0 and -1, which is read in two ways: where -1 "
                f"is {no} and 0 is unknown (WIDER) pass negative=-1, unknown=0 (--negative -1 --unknown 0); where 0 "
                f"is {no} and -1 is unknown pass unknown=-1 (--unknown -1)"
            )
        raise ParValueError(
            f"{minus_one}: column {self.name!r} holds -1 and neither 0 nor {no}: where -1 is {no} pass "
            "negative=-1 (--negative -1), where it is unknown pass unknown=-1 (--unknown -1)"
        )


class RowReader:
    """All labels of a row: from cells per attribute, or from one value that holds them.

    Args:
        schema: the label space.
        negative, unknown: as in `read_folder`.
    """

    def __init__(
        self, schema: AttributeSchema, negative: str | int | None = None, unknown: str | int | None = None
    ) -> None:
        self.schema = schema
        self.readers = [LabelReader(attribute, negative, unknown) for attribute in schema]
        # What a list of names may hold: (attribute, class index).
        self._meanings: dict[str, tuple[int, int] | None] = {}
        for position, attribute in enumerate(schema):
            if not attribute.is_binary:
                for index, label in enumerate(attribute.labels):
                    known = plain_cell(label)
                    self._meanings[known] = None if known in self._meanings else (position, index)
                    for mark in ("=", ": "):
                        self._meanings[plain_cell(f"{attribute.name}{mark}{label}")] = (position, index)
        for position, attribute in enumerate(schema):
            if attribute.is_binary:
                self._meanings[plain_cell(attribute.name)] = (position, 1)

    def read_cells(self, cell_of: Callable[[str], Any], place: Place) -> np.ndarray:
        """Labels `(A,)` from a cell per attribute, `cell_of(name)`.

        Raises:
            ValueError: a cell is no label; the message names its column.
        """
        return np.fromiter(
            (read(cell_of(read.name), place) for read in self.readers), np.int64, count=len(self.readers)
        )

    def read_value(self, value: Any, place: Place) -> np.ndarray:
        """Labels `(A,)` from one value.

        Args:
            value: a dict `{attribute: label or class index}`, in which all attributes are named; a list with one of
                these per attribute, in the order of the schema; a list of names of what the person has (binary
                attributes that are not named are "no", categorical ones unknown; "red" or "Color=red" for a label of a
                categorical one); the same as text, divided by `|`, `;` or commas, or numbers by spaces; for a schema
                of one attribute its label or index; None: nothing is known.
            place: of the row.

        Raises:
            ValueError: it is something else; the message names what was not understood.
        """
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return np.full(len(self.schema), UNKNOWN_LABEL, np.int64)
        if isinstance(value, Mapping):
            return self._read_mapping(value, place)
        if isinstance(value, str):
            return self._read_text(value, place)
        if hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, Iterable):
            return self._read_list(list(value), place)
        if len(self.schema) == 1:
            return np.asarray([self.readers[0](value, place)], np.int64)
        raise ParValueError(
            f"labels is {shorten(value)}; expected one label for each of the {len(self.schema)} attributes"
        )

    def _read_mapping(self, value: Mapping, place: Place) -> np.ndarray:
        for name in value:
            if name not in self.schema:
                raise ParValueError(f"labels names {shorten(name)}, which is no attribute{self._suggest(name)}")
        for name in self.schema.names:
            if name not in value:
                raise ParValueError(f"labels names no {name!r}; it names {shorten(list(value))}")
        return self.read_cells(value.__getitem__, place)

    def _read_text(self, text: str, place: Place) -> np.ndarray:
        if len(self.schema) == 1 and self.readers[0].can_read(text):
            return np.asarray([self.readers[0](text, place)], np.int64)
        if not text.strip():
            return np.full(len(self.schema), UNKNOWN_LABEL, np.int64)
        if plain_cell(text) in self._meanings:
            return self._read_list([text.strip()], place)
        parts = _BETWEEN_NAMES.split(text.strip().strip("[]"))
        words = parts[0].split()
        if len(parts) == 1 and len(words) > 1 and all(_WHOLE.fullmatch(word) for word in words):
            parts = words
        return self._read_list([part.strip("'\"") for part in parts], place)

    def _read_list(self, values: list[Any], place: Place) -> np.ndarray:
        readers = self.readers
        if len(values) == len(readers) and all(read.can_read(value) for read, value in zip(readers, values)):
            return np.fromiter((read(value, place) for read, value in zip(readers, values)), np.int64, len(values))
        if not all(isinstance(value, str) and _WHOLE.fullmatch(value.strip()) is None for value in values):
            raise ParValueError(
                f"labels is {shorten(values)}; expected one label or class index for each of the {len(self.schema)} "
                f"attributes ({shorten(', '.join(self.schema.names), 200)}), or names of what the person has"
            )
        labels = np.fromiter((0 if one.is_binary else UNKNOWN_LABEL for one in self.schema), np.int64, len(readers))
        said: dict[int, str] = {}
        for value in values:
            meaning = self._meanings.get(plain_cell(value))
            if meaning is None:
                raise ParValueError(f"labels names {shorten(value)}, which is no attribute{self._suggest(value)}")
            position, index = meaning
            if position in said and labels[position] != index:
                raise ParValueError(
                    f"labels names both {said[position]!r} and {value!r} for {self.schema[position].name!r}"
                )
            said[position], labels[position] = value, index
        return labels

    def _suggest(self, name: Any) -> str:
        choices = [*self.schema.names, *(label for one in self.schema if not one.is_binary for label in one.labels)]
        near = difflib.get_close_matches(str(name)[:100], choices, n=1)
        return f"; did you mean {near[0]!r}?" if near else f"; expected some of {shorten(list(self.schema.names))}"

    def check_columns(self) -> None:
        """`LabelReader.check_column` of every attribute."""
        for reader in self.readers:
            reader.check_column()
