import pytest

from vlm_par_hf.data.synthetic.rendered.colors import (
    COLOR_NAMES,
    HAIR_COLORS,
    color_distance,
    color_name,
    hair_color_name,
)
from vlm_par_hf.labels.tables import get_schema


@pytest.mark.parametrize(
    ("color", "name"),
    [
        ((0, 0, 0), "black"), ((255, 255, 255), "white"), ((120, 120, 120), "gray"), ((255, 0, 0), "red"),
        ((0, 0, 200), "blue"), ((20, 30, 80), "blue"), ((0, 130, 40), "green"), ((250, 220, 40), "yellow"),
        ((255, 130, 20), "orange"), ((120, 50, 150), "purple"), ((245, 160, 190), "pink"), ((100, 65, 40), "brown"),
        ((205, 175, 135), "brown"),
    ],
)  # fmt: skip
def test_everybody_would_call_it_so(color, name):
    assert color_name(color) == name


def test_a_shade_between_two_names_has_none():
    assert color_name((62, 62, 64)) is None  # dark gray, nearly black
    assert hair_color_name((56, 42, 34)) is None


def test_the_schema_has_the_same_names():
    schema = get_schema("rendered")
    for name in ("HatColor", "UpperColor", "LowerColor", "ShoeColor"):
        assert schema[name].labels == COLOR_NAMES
    assert schema["HairColor"].labels == HAIR_COLORS


def test_distances_are_those_of_lab():
    assert color_distance((0, 0, 0), (255, 255, 255)) == pytest.approx(100, abs=0.1)
    assert color_distance((10, 200, 30), (10, 200, 30)) == 0
