"""The rendered street: people are where the boxes say, and who is nearer hides who is behind."""

import numpy as np
import pytest

from vlm_par_hf.data.synthetic.rendered import RenderedPerson, Walker, render_street
from vlm_par_hf.errors import ParError


pytest.importorskip("numba")


def test_people_are_in_their_boxes():
    near = Walker(RenderedPerson.sample(5, 1), (-3.0, 1.5), (3.0, 1.5))
    far = Walker(RenderedPerson.sample(5, 3), (0.0, -2.0), (0.1, -2.0))
    options = {"seconds": 3, "rate": 1, "size": (320, 180), "seed": 11}
    both = list(render_street([near, far], **options))
    again = list(render_street([near, far], **options))
    assert all(
        np.array_equal(*map(np.asarray, pair)) for pair in zip(*([one for one, _ in run] for run in (both, again)))
    )
    centres = {0: [], 1: []}
    for picture, boxes in both:
        assert picture.size == (320, 180)
        for number, (x0, y0, x1, y1) in boxes:
            assert 0 <= x0 < x1 <= 320 and 0 <= y0 < y1 <= 180
            centres[number].append(((x0 + x1) / 2, y1))
    assert np.diff([x for x, _ in centres[0]]).min() > 40  # to the right, by two metres of 8.5
    assert abs(centres[1][0][0] - centres[1][-1][0]) < 12
    assert min(y for _, y in centres[0]) > max(y for _, y in centres[1])  # who is nearer stands lower

    alone = list(render_street([far], **options))
    change = [np.abs(np.asarray(a[0], int) - np.asarray(b[0], int)).mean((1, 2)) for a, b in zip(both, alone)]
    assert all(one.max() > 2 for one in change)


def test_wrong_arguments():
    with pytest.raises(ParError, match="walkers=0"):
        next(render_street([]))
