"""Names in any script: a font that has the letters, and numbers with a warning for letters that no font has."""

import logging
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlm_par_hf.images import fonts


@pytest.fixture
def only(monkeypatch):
    """Sets the font files of the machine."""

    def use(*files):
        monkeypatch.setattr(fonts, "_font_files", lambda: files)
        fonts.fit_text.cache_clear()

    yield use
    fonts.fit_text.cache_clear()


def dejavu():
    pytest.importorskip("matplotlib")
    (path,) = fonts._font_of_matplotlib()
    return path


def test_english_is_drawn_in_pillows_own_font(only):
    only()
    assert fonts.fit_text("Long Hair, 80%") == (None, "Long Hair, 80%")


@pytest.mark.parametrize("text", ["Größe é", "шапка", "قبعة", "καπέλο"])
def test_a_font_that_has_all_letters_is_found(text, only):
    only("/nowhere.ttf", __file__, dejavu())
    assert fonts.fit_text(text) == (dejavu(), text)


def test_letters_that_no_font_has_are_numbers_and_a_warning_says_so(only, caplog):
    only(dejavu())
    with caplog.at_level(logging.WARNING, logger="vlm_par_hf"):
        assert fonts.fit_text("帽子 é") == (dejavu(), "\\u5e3d\\u5b50 é")
        assert fonts.fit_text("a\x07\ud83d") == (None, "a\\x07\\ud83d")
    assert "no font on this machine has all letters" in caplog.text and "Noto" in caplog.text


def test_fonts_are_found_in_folders_plain_styles_first(tmp_path, monkeypatch):
    for name in ("b/Name-Bold.ttf", "c/Name.TTF", "c/readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(dejavu(), tmp_path / name)
    monkeypatch.setattr(fonts, "_FOLDERS", (str(tmp_path), str(tmp_path / "missing")))
    found = fonts._font_files.__wrapped__()
    assert found == (dejavu(), str(tmp_path / "c/Name.TTF"), str(tmp_path / "b/Name-Bold.ttf"))


def test_what_is_drawn_is_no_empty_box(only):
    """Different letters give different pictures; the letters that a font lacks all look alike in it."""

    def drawn(text):
        page = Image.new("L", (60, 30))
        fonts.Lettering(20).draw(ImageDraw.Draw(page), (0, 0), text, fill=255)
        return np.asarray(page).tobytes()

    only(dejavu())
    assert len({drawn(letter) for letter in "шжя帽子"}) == 5
    assert fonts.Lettering(20).length("a\nb") == fonts.Lettering(20).length("a\\nb")
