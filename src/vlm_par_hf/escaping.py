"""Text from files or users in the form that a reader of it takes as text: a terminal, Markdown, a spreadsheet.

Names of attributes, data sets and files come from strangers. Each place that writes them for a program that also
obeys commands in its text escapes them with the function for that program.
"""

import re
import unicodedata
from typing import Any


__all__ = ["csv_cell", "markdown_code", "markdown_text", "printable"]

# Embeddings, overrides and isolates of writing direction.
_DIRECTIONS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_ENTITY = re.compile(r"&(?=#?\w+;)")
_MARKDOWN = re.compile(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))")


def printable(text: str, *, one_line: bool = False) -> str:
    """For a terminal: control characters and marks of writing direction become escapes.

    ESC starts a command to the terminal, and a mark of direction shows a name in another order than it has.

    Args:
        text: any text.
        one_line: escape line breaks and tabulators too, as in the name of a file.
    """
    kept = "" if one_line else "\n\t"
    return "".join(
        character.encode("unicode_escape").decode()
        if (unicodedata.category(character) in ("Cc", "Cs") and character not in kept) or character in _DIRECTIONS
        else character
        for character in text
    )


def markdown_text(text: Any) -> str:
    """For running text or a table of Markdown: no markup, HTML, link or line break comes of it."""
    line = printable(" ".join(str(text).split()), one_line=True)
    line = _ENTITY.sub("&amp;", line).replace("<", "&lt;").replace(">", "&gt;").replace("://", ":&#47;&#47;")
    return _MARKDOWN.sub(r"\\\1", line)


def markdown_code(text: Any) -> str:
    """A code span of Markdown, also in a table; the fence is longer than any in the text."""
    line = printable(" ".join(str(text).split()), one_line=True).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def csv_cell(value: Any) -> Any:
    """For a CSV file: a spreadsheet would compute text that starts like a formula; an apostrophe keeps it text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
