import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlm_par_hf.data.synthetic.pen import Pen, contrast, darker


def draw_box(side=1, stretch=1.0):
    """The pixels that a box of the body fills: right of the axis, in the upper half."""
    canvas = Image.new("L", (100, 100))
    pen = Pen(ImageDraw.Draw(canvas), x0=50, y0=0, height=100, side=side, stretch=stretch)
    pen.box(0.1, 0.2, 0.3, 0.4, 255)
    rows, columns = np.nonzero(np.asarray(canvas))
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_a_pen_draws_in_body_heights():
    assert draw_box() == (60, 20, 80, 40)
    assert draw_box(side=-1) == (20, 20, 40, 40)
    assert draw_box(stretch=0.5) == (60, 10, 80, 20)


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (28, 28, 32), (128, 130, 134), (226, 196, 52)])
def test_a_contrast_stands_out(color):
    assert all(0 <= c <= 255 for c in contrast(color))
    assert abs(sum(contrast(color)) - sum(color)) > 150


def test_darker():
    assert darker((100, 50, 0), 0.5) == (50, 25, 0)
