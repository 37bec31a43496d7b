"""Ids of persons and cameras as tables write them: what says "nobody knows" is None, and one id has one form."""

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.utils import shorten


__all__ = ["UNKNOWN_IDS", "common_ids", "read_id"]

# As person -1 these would be one person with thousands of images.
UNKNOWN_IDS = frozenset(
    {"", "-", "?", "-1", "-100", "n/a", "na", "<na>", "nan", "nat", "none", "null", "unknown", "undefined"}
)
_WHOLE = re.compile(r"([+-]?)0*([0-9]+)(\.0*)?", re.ASCII)
_ROUNDED = re.compile(r"[0-9](\.[0-9]+)?e\+[0-9]+", re.ASCII | re.IGNORECASE)
_EXACT_FLOAT = 2**53
_MAX_CHARACTERS = 1000


def read_id(value: Any) -> str | None:
    """One id as text, None where unknown.

    A whole number has one form, however it is written ("7", "0007", 7.0, "7.0"). An empty cell, null, NaN, -1, -100,
    "unknown" and the like (`UNKNOWN_IDS`) are None.

    Raises:
        ValueError: neither text nor number; a number that was rounded, so that several ids became one; a text with
            control characters.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float):
        if math.isinf(value) or abs(value) >= _EXACT_FLOAT:
            raise ParValueError(f"is {value!r}, a rounded number; expected a text or a whole number")
        value = int(value) if value.is_integer() else repr(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ParValueError(f"is {shorten(value)}; expected a text or a whole number")
    if isinstance(value, int) and value.bit_length() > 3000:
        raise ParValueError("is a number of more than 900 digits; expected a text or a whole number")
    text = unicodedata.normalize("NFC", str(value).strip())
    if len(text) > _MAX_CHARACTERS or any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ParValueError(
            f"is {shorten(text)}; expected at most {_MAX_CHARACTERS} characters and no control characters"
        )
    if _ROUNDED.fullmatch(text):
        raise ParValueError(f"is {text!r}, a number rounded by a spreadsheet; expected all of its digits")
    whole = _WHOLE.fullmatch(text)
    if whole:
        sign, digits = whole.group(1), whole.group(2)
        text = f"-{digits}" if sign == "-" and digits != "0" else digits
    return None if text.lower() in UNKNOWN_IDS else text


def common_ids(ids: Sequence[str | None]) -> list[int | str | None]:
    """Ids as int if every one is a whole number that int64 holds, else as text."""
    if all(text is None or (text.isdecimal() and text.isascii() and len(text) < 19) for text in ids):
        return [None if text is None else int(text) for text in ids]
    return list(ids)
