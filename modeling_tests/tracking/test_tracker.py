"""The tracker: who is who through crossings, gaps and weak boxes; the assignment against scipy's."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from vlm_par_hf.errors import ParError
from vlm_par_hf.tracking import ByteTracker
from vlm_par_hf.tracking.tracker import assign, overlaps


def box(x, y, width=50, height=150):
    return [x, y, x + width, y + height]


def test_the_assignment_is_the_best_one():
    rng = np.random.default_rng(0)
    for _ in range(200):
        similarity = rng.random(rng.integers(0, 8, 2))
        if rng.random() < 0.3:
            similarity = np.round(similarity * 3)  # with ties
        found = assign(similarity)
        rows, columns = linear_sum_assignment(similarity, maximize=True)
        assert len(found) == min(similarity.shape) == len({row for row, _ in found}) == len({one for _, one in found})
        assert sum(similarity[pair] for pair in found) == pytest.approx(similarity[rows, columns].sum())


def test_overlaps():
    found = overlaps(np.array([[0, 0, 10, 10], [0, 0, 0, 0]], float), np.array([[5, 0, 15, 10]], float))
    np.testing.assert_allclose(found, [[50 / 150], [0]])


def run(tracker, frames):
    """Ids per frame; a frame is a list of boxes with scores."""
    return [
        tracker.update(np.array([one for one, _ in frame]), np.array([score for _, score in frame])).tolist()
        for frame in frames
    ]


def test_people_who_cross_keep_their_ids():
    """One passes behind the other and is not found meanwhile."""
    rng = np.random.default_rng(1)
    frames, truth = [], []
    for k in range(100):
        near, far = box(10 + 5 * k, 110, 55, 170), box(510 - 5 * k, 100)
        hidden = abs(near[0] - far[0]) < 40
        shown = [(1, near)] if hidden else [(1, near), (2, far)]
        order = rng.permutation(len(shown))
        frames.append([(np.array(shown[i][1]) + rng.normal(0, 1.5, 4), 0.9) for i in order])
        truth.append([shown[i][0] for i in order])
    found = run(ByteTracker(), frames)
    names = {}
    for ids, people in zip(found, truth):
        for number, person in zip(ids, people):
            assert names.setdefault(number, person) == person
    assert len(names) == 2


def test_a_gap_is_bridged_and_a_long_one_is_not():
    def walk(gap):
        steps = [*range(20), *([None] * gap), *range(20 + gap, 40 + gap)]
        found = run(ByteTracker(max_gap=15), [[] if k is None else [(box(4 * k, 50), 0.9)] for k in steps])
        return {one for ids in found for one in ids}

    assert walk(12) == {1} and walk(15) == {1}
    assert walk(16) == {1, 2}


def test_a_weak_box_keeps_a_person_and_begins_none():
    frames = [[(box(4 * k, 50), 0.9 if k < 10 or k > 20 else 0.2)] for k in range(30)]
    assert run(ByteTracker(max_gap=5), frames) == [[1]] * 30
    assert run(ByteTracker(), [[(box(4 * k, 50), 0.2)] for k in range(9)]) == [[-1]] * 9
    # The second stage is for those who were seen just now: a weak box far from the prediction is nobody's.
    assert run(ByteTracker(), [[(box(0, 0), 0.9)]] * 5 + [[(box(300, 0), 0.3)]])[-1] == [-1]
    # Below `low` nothing counts.
    assert run(ByteTracker(low=0.1), [[(box(0, 0), 0.9)]] * 5 + [[(box(0, 0), 0.05)]])[-1] == [-1]


def test_a_single_box_is_forgotten():
    found = run(ByteTracker(), [[(box(0, 0), 0.9)], [], [(box(0, 0), 0.9)]])
    assert found == [[1], [], [2]]


def test_a_busy_stream():
    """Twenty people, false alarms, every tenth box missing: few people get a second id."""
    rng = np.random.default_rng(3)
    starts, speeds = rng.uniform(0, 1500, (20, 2)), rng.uniform(-4, 4, (20, 2))
    tracker, ids_of = ByteTracker(), {person: set() for person in range(20)}
    for k in range(120):
        seen = [person for person in range(20) if rng.random() > 0.1]
        boxes = [np.array(box(*(starts[p] + k * speeds[p]))) + rng.normal(0, 1, 4) for p in seen]
        boxes += [np.array(box(*rng.uniform(0, 1500, 2))) for _ in range(rng.poisson(0.3))]
        ids = tracker.update(np.array(boxes), np.full(len(boxes), 0.8))
        assert len(set(ids.tolist())) == len(ids)
        for person, number in zip(seen, ids):
            ids_of[person].add(int(number))
    assert sum(len(ids) for ids in ids_of.values()) <= 24
    numbers = [number for ids in ids_of.values() for number in ids]
    assert len(numbers) == len(set(numbers)), "two people had the same id"


def test_nobody_and_wrong_options():
    assert run(ByteTracker(), [[], []]) == [[], []]
    with pytest.raises(ParError, match="low is 0.6 and high is 0.5"):
        ByteTracker(low=0.6)
    with pytest.raises(ParError, match="max_gap is -1"):
        ByteTracker(max_gap=-1)
