r"""Fonts for names in any script: Pillow's own where it has the letters, else one that is found on this machine.

Pillow's font has little more than the letters of English; what it lacks it draws as empty boxes. A character that no
font has is written as its number, `\u5e3d`, and a warning says so.
"""

import logging
import os
import unicodedata
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import ImageDraw, ImageFont


__all__ = ["Lettering", "fit_text"]

logger = logging.getLogger(__name__)

_FOLDERS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts",
    "/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts",
    "C:/Windows/Fonts",
)  # fmt: skip
_SUFFIXES = (".otf", ".ttc", ".ttf")
_MOST_FONTS = 500
_OTHER_STYLES = ("bold", "italic", "oblique", "mono", "condensed", "light", "thin", "black", "serif")
_MISSING = "\U0010fffe"  # no font has it: it is no character
_FOR_ESCAPES = "\\uUx0123456789abcdef"
_TEST_SIZE = 24


class Lettering:
    """Draws and measures single lines of one size, each in a font that has its letters.

    Args:
        size: in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def length(self, text: str) -> float:
        """The width of a line in pixels."""
        path, text = fit_text(text.replace("\n", "\\n"))
        return _font(path, self.size).getlength(text)

    def draw(self, draw: ImageDraw.ImageDraw, where: tuple[float, float], text: str, **options: Any) -> None:
        """`draw.text` for a line."""
        path, text = fit_text(text.replace("\n", "\\n"))
        draw.text(where, text, font=_font(path, self.size), **options)

    def fit(self, text: str) -> tuple[ImageFont.ImageFont | ImageFont.FreeTypeFont, str]:
        """A font for a text of several lines, and the text with what the font lacks escaped."""
        path, text = fit_text(text)
        return _font(path, self.size), text


@lru_cache(maxsize=4096)
def fit_text(text: str) -> tuple[str | None, str]:
    """The file of the first font that has all letters of a text, and the text with what no font has escaped.

    Returns:
        None as the file means Pillow's own font.
    """
    needed = {character for character in text if character != "\n" and not _is_invisible(character)}
    best: tuple[int, str | None] = (len(needed) + 1, None)
    for path in (None, *_font_files()):
        lacking = sum(not _has(path, character) for character in needed)
        if lacking < best[0] and (not lacking or all(_has(path, character) for character in _FOR_ESCAPES)):
            best = lacking, path
        if not lacking:
            break
    lacking, path = best
    if lacking:
        missing = {character for character in needed if not _has(path, character)}
        text = "".join(_escape(character) if character in missing else character for character in text)
        logger.warning(
            "no font on this machine has all letters of %r: what is missing is drawn as numbers; install one, such as "
            "Noto Sans of its script", text,
        )  # fmt: skip
    return path, text


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _is_invisible(character: str) -> bool:
    """Spaces, and marks that join or turn letters; control characters are shown escaped."""
    return unicodedata.category(character) in ("Zs", "Cf")


@lru_cache(maxsize=16384)
def _has(path: str | None, character: str) -> bool:
    if unicodedata.category(character) in ("Cc", "Cs", "Cn", "Zl", "Zp"):
        return False
    font = _font(path, _TEST_SIZE)
    if font is None:
        return False
    try:
        return _shape(font, character) != _missing_shape(path)
    except (OSError, ValueError, UnicodeError):
        return False


@lru_cache(maxsize=1024)
def _missing_shape(path: str | None) -> tuple[Any, bytes]:
    return _shape(_font(path, _TEST_SIZE), _MISSING)


def _shape(font: Any, character: str) -> tuple[Any, bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


@lru_cache(maxsize=128)
def _font(path: str | None, size: int) -> Any:
    """None for a file that is no font of this size."""
    if path is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(path, size)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=1)
def _font_files() -> tuple[str, ...]:
    """Font files of this machine, plain styles first."""
    found = []
    for folder in _FOLDERS:
        for here, folders, names in os.walk(os.path.expanduser(folder)):
            folders.sort()
            found += [os.path.join(here, name) for name in names if name.lower().endswith(_SUFFIXES)]
    found.sort(key=lambda path: (any(style in os.path.basename(path).lower() for style in _OTHER_STYLES), path))
    return (*_font_of_matplotlib(), *found[:_MOST_FONTS])


def _font_of_matplotlib() -> list[str]:
    """The font that matplotlib brings along, without importing it."""
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return []
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return [str(path)] if path.is_file() else []
