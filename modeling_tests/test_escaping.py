"""Text of strangers in a terminal, in Markdown and in a spreadsheet."""

import csv
import io

import pytest

from vlm_par_hf import errors
from vlm_par_hf.escaping import csv_cell, markdown_code, markdown_text, printable


def test_a_terminal_gets_no_commands():
    assert (
        printable("\x1b]0;title\x07 red\x1b[31m\r\n\tcafé 帽子") == "\\x1b]0;title\\x07 red\\x1b[31m\\r\n\tcafé 帽子"
    )
    assert printable("a\nb\tc", one_line=True) == "a\\nb\\tc"
    assert printable("gpj.\u202eexe") == "gpj.\\u202eexe" and printable("\ud800") == "\\ud800"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wearing a hat", "wearing a hat"), ("upper_color", "upper_color"), ("帽子", "帽子"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("[click](https://evil.example)", r"\[click\](https:&#47;&#47;evil.example)"),
        ("a | b\n# title", r"a \| b # title"), ("**bold** `code` _x_", r"\*\*bold\*\* \`code\` \_x\_"),
        ("&lt;", "&amp;lt;"), ("Skirt&Dress", "Skirt&Dress"), (5, "5"),
    ],
)  # fmt: skip
def test_markdown_gets_no_markup(text, expected):
    assert markdown_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("mA", "`mA`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("a|b\nc", r"`a\|b c`"), ("```", "```` ``` ````")],
)
def test_a_code_span_ends_where_the_text_ends(text, expected):
    assert markdown_code(text) == expected


def test_a_spreadsheet_computes_nothing():
    formulas = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]
    assert [csv_cell(one) for one in formulas] == [f"'{one}" for one in formulas]
    plain = ["hat", "", -0.5, None, 3, "a=b"]
    assert [csv_cell(one) for one in plain] == plain


def test_errors_quote_files_without_commands():
    for kind in (errors.ParValueError, errors.ParKeyError, errors.ParOSError, errors.ParFileNotFoundError):
        assert str(kind("a \x1b[31mred\x1b name")) == "a \\x1b[31mred\\x1b name"


def test_tables_of_results_escape_names():
    from vlm_par_hf.training.plots import table_text

    text = table_text([{"name": '=HYPERLINK("x")', "@label": -0.25}])
    assert list(csv.reader(io.StringIO(text))) == [["name", "'@label"], ['\'=HYPERLINK("x")', "-0.25"]]
