"""Ids: one form for one person, and nobody where nobody is known."""

import numpy as np
import pytest

from vlm_par_hf.data.readers.ids import common_ids, read_id


@pytest.mark.parametrize(
    "cell",
    [None, "", " ", "-1", -1, -1.0, "-1.0", "nan", float("nan"), "NaN", "Unknown", "N/A", "null", "<NA>", -100, "?"],
)
def test_unknown(cell):
    assert read_id(cell) is None


@pytest.mark.parametrize("cell", ["7", "0007", "7.0", " 7 ", 7, 7.0, "+7"])
def test_a_whole_number_has_one_form(cell):
    assert read_id(cell) == "7"


@pytest.mark.parametrize(
    ("cell", "text"), [("p07", "p07"), ("e\u0301", "é"), ("0", "0"), ("-2", "-2"), (2.5, "2.5"), ("3e10", "3e10")]
)
def test_texts_stay(cell, text):
    assert read_id(cell) == text


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (True, "is True; expected a text or a whole number"),
        ([7], r"is \[7\]; expected"),
        (1e17, "is 1e\\+17, a rounded number"),
        (float("inf"), "is inf, a rounded number"),
        ("1.23457E+17", "is '1.23457E\\+17', a number rounded by a spreadsheet"),
        ("a\x07", r"is 'a\\x07'; expected .* no control characters"),
        ("\ud800", "no control characters"),
        ("a" * 2000, "expected at most 1000 characters"),
        (2**4000, "is a number of more than 900 digits"),
    ],
)
def test_refused(cell, message):
    with pytest.raises(ValueError, match=message):
        read_id(cell)


def test_int_where_all_are_whole_numbers():
    assert common_ids(["7", None, "12"]) == [7, None, 12]
    assert common_ids(["7", "p"]) == ["7", "p"]
    assert common_ids(["7", "9" * 19]) == ["7", "9" * 19]
    assert np.asarray(common_ids(["9" * 18]), np.int64)[0] == int("9" * 18)
