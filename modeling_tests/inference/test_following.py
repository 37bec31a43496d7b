"""Which pictures of a person are asked about."""

from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from vlm_par_hf.errors import ParError
from vlm_par_hf.inference.following import Follower, measure_quality, pixel_box


SIZE = (200, 160)


class Still(NamedTuple):
    """A frame of a video in memory."""

    index: int
    time: float
    pixels: np.ndarray = np.random.default_rng(0).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)

    @property
    def size(self):
        return SIZE

    def crop(self, box):
        return Image.fromarray(self.pixels[box[1] : box[3], box[0] : box[2]])

    def brightness(self, box):
        return self.pixels[box[1] : box[3], box[0] : box[2], 1]


def follow(heights, *, rate=10, qualities=None, **options):
    """A person who is so high in each frame; what is asked about."""
    follower, final = Follower(**options), []
    for index, height in enumerate(heights):
        boxes = np.array([[20, 20, 50, 20 + height]], float)
        given = None if qualities is None else [qualities[index]]
        _, new = follower.observe(Still(index, index / rate), [1], boxes, [1.0], given)
        final += new
    (person,) = follower.leave()
    return person, final


def test_the_best_picture_of_each_span():
    heights = [50] * 30
    heights[7], heights[13], heights[21] = 90, 80, 70
    person, final = follow(heights, every=1.0, budget=12)
    assert [one.frame for one in person.sightings] == [7, 13, 21] and final == []
    assert person.best.frame == 7 and person.seen == 30 and person.first == (0, 0.0) and person.last == (29, 2.9)
    assert all(one.image.size == (30, heights[one.frame]) for one in person.sightings)
    assert person.best.box == (20, 20, 50, 110)


@pytest.mark.parametrize("budget", [1, 2, 3, 6])
def test_a_budget_is_kept_and_spreads_over_the_time(budget):
    rng = np.random.default_rng(1)
    heights = rng.integers(40, 120, 400)
    person, _ = follow(heights, every=1.0, budget=budget)
    times = [one.time for one in person.sightings]
    assert len(times) == budget and times == sorted(times)
    if budget == 6:
        assert max(np.diff([0, *times, 40])) < 20
    if budget == 1:
        assert person.best.quality == max(one.quality for one in follow(heights, every=1.0, budget=99)[0].sightings)


def test_without_a_budget_each_span_is_final_when_it_ends():
    person, final = follow([50] * 35, every=1.0, budget=0)
    assert [one.frame for one in final] == [0, 10, 20]
    assert [one.frame for one in person.sightings] == [0, 10, 20, 30]


def test_an_earlier_run_is_repeated_from_its_qualities():
    heights = np.random.default_rng(2).integers(30, 120, 120)
    for budget in (0, 4):
        follower, seen = Follower(every=0.7, budget=budget), []
        for index, height in enumerate(heights):
            boxes = np.array([[20, 20, 50, 20 + height]], float)
            seen.append(follower.observe(Still(index, index / 10), [1], boxes, [1.0])[0][0])
        (first,) = follower.leave()
        again, _ = follow(heights, qualities=seen, every=0.7, budget=budget)
        assert [(one.frame, one.quality) for one in first.sightings] == [
            (one.frame, one.quality) for one in again.sightings
        ]
        assert all(one.image is None for one in again.sightings)


def test_people_leave_when_they_were_not_seen_for_long():
    follower = Follower(max_gap=10)
    box = np.array([[20, 20, 50, 90]], float)
    for index in range(40):  # ten seconds apart: frames count, not their times
        here = [5] if index < 10 or index == 15 else []
        follower.observe(Still(index, index * 10), here, box[: len(here)], [1.0] * len(here))
        gone = follower.leave(())
        assert [one.id for one in gone] == ([5] if index == 26 else [])
    assert follower.leave() == []


def test_boxes_of_nobody_and_boxes_outside():
    follower = Follower()
    boxes = np.array([[20, 20, 50, 90], [300, 20, 330, 90]], float)
    qualities, _ = follower.observe(Still(0, 0.0), [-1, 4], boxes, [1.0, 1.0])
    (person,) = follower.leave()
    assert qualities == [0.0, 0.0] and person.id == 4 and person.sightings == [] and person.best is None
    assert pixel_box([-5, -5, 3.2, 4.0], SIZE) == (0, 0, 4, 4) and pixel_box([-5, 3, 0, 9], SIZE) is None


def test_what_makes_a_picture_better():
    def quality(box, others=(), blur=False, score=1.0):
        still = Still(0, 0.0)
        if blur:
            smooth = np.cumsum(np.cumsum(still.pixels.astype(float), 0), 1)
            still = Still(0, 0.0, np.uint8(255 * smooth / smooth.max()))
        boxes = np.array([box, *others], float)
        return measure_quality(still, boxes, 0, pixel_box(box, SIZE), score)

    whole = quality([50, 20, 90, 120])
    assert 0 < whole <= 1
    assert quality([50, 20, 90, 80]) < whole  # small
    assert quality([50, 20, 90, 120], score=0.5) < whole
    assert quality([50, 20, 90, 120], blur=True) < whole
    assert quality([0, 20, 40, 120]) < whole  # at the edge
    assert quality([-20, 20, 20, 120]) < quality([0, 20, 40, 120])  # and beyond it
    assert quality([50, 20, 90, 120], [[60, 30, 100, 130]]) < whole  # behind somebody
    assert quality([50, 20, 90, 120], [[60, 10, 100, 110]]) == whole  # before somebody


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every": 0}, "every is 0, expected a number of seconds above 0"),
        ({"every": "1"}, "every is '1'"),
        ({"budget": -1}, "budget is -1"),
        ({"budget": 1.5}, "budget is 1.5"),
    ],
)
def test_wrong_options(options, expected):
    with pytest.raises(ParError, match=expected):
        Follower(**options)
