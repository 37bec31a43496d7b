"""What disturbs made tracklets, and that nobody else's labels come with it."""

import numpy as np
import pytest

from vlm_par_hf.data import dataset_schema, load_par_dataset
from vlm_par_hf.data.synthetic import SyntheticPerson, render_tracklet
from vlm_par_hf.data.synthetic.tracklets import DISTURBANCES, disturb_tracklet
from vlm_par_hf.labels.tables import get_schema


QUIET = {"occluded": 0.0, "blurred": 0.0, "jittered": 0.0, "wrong": 0.0, "switched": 0.0}


@pytest.fixture(scope="module")
def people():
    return [[picture for picture, _ in render_tracklet(SyntheticPerson.sample(3, i), 8)] for i in range(2)]


def disturb(people, seed=0, **shares):
    return disturb_tracklet(*people, np.random.default_rng(seed), **{**QUIET, **shares})


def changed(people, found):
    return [not np.array_equal(np.asarray(one), np.asarray(two)) for one, two in zip(found, people[0])]


def test_nothing_changes_without_disturbances(people):
    found, kinds = disturb(people)
    assert kinds == ["none"] * 8 and not any(changed(people, found))


@pytest.mark.parametrize(
    ("share", "kind"),
    [("blurred", "blur"), ("jittered", "jitter"), ("wrong", "other_person"), ("occluded", "occluder")],
)
def test_each_disturbance_by_itself(people, share, kind):
    found, kinds = disturb(people, **{share: 1.0})
    assert kinds == [kind] * 8 and all(changed(people, found)) and kind in DISTURBANCES


def test_an_occluder_passes_in_a_row_and_hides_most_of_the_picture(people):
    shares = []
    for seed in range(30):
        found, kinds = disturb(people, seed, occluded=0.5)
        places = [place for place, kind in enumerate(kinds) if kind == "occluder"]
        assert len(places) == 4 and places == list(range(places[0], places[0] + 4))
        assert changed(people, found) == [place in places for place in range(8)]
        for place in places:
            before, after = (np.asarray(one, np.int64) for one in (people[0][place], found[place]))
            shares.append((np.abs(before - after).sum(-1) > 24).mean())
    assert np.mean(shares) > 0.6


def test_a_switch_is_at_the_end_and_shows_somebody_else(people):
    found, kinds = disturb(people, switched=1.0)
    count = kinds.count("switch")
    assert 1 <= count <= 2 and kinds[-count:] == ["switch"] * count
    assert found[-1] is people[1][-1]


def test_shares_out_of_range(people):
    with pytest.raises(ValueError, match="occluded is 1.5; expected a share from 0 to 1"):
        disturb(people, occluded=1.5)


def test_drawn_tracklets():
    options = {"num_train": 3, "num_validation": 1, "num_test": 2, "length": 4, "seed": 4}
    data = load_par_dataset("synthetic_tracklets", **options)
    again = load_par_dataset("synthetic_tracklets", **options)
    assert dataset_schema(data) == get_schema("synthetic")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 12, "validation": 4, "test": 8}
    assert data["train"]["tracklet_id"][:4] == ["000000_c0_0"] * 4 and data["train"]["frame"][:5] == [0, 1, 2, 3, 0]
    for split in data:
        assert np.array_equal(np.asarray(data[split][1]["image"]), np.asarray(again[split][1]["image"]))
    people = [set(data[split]["person_id"]) for split in data]
    assert not people[0] & people[1] and not people[1] & people[2]
    labels = np.asarray(data["train"]["labels"][:]).reshape(3, 4, -1)
    assert (labels == labels[:, :1]).all()
    clean = load_par_dataset("synthetic_tracklets", **options, **QUIET)
    assert set(clean["train"]["disturbance"]) == {"none"}
    assert np.array_equal(clean["train"]["labels"][:], data["train"]["labels"][:])


@pytest.mark.parametrize("name", ["synthetic_tracklets", "rendered_tracklets"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 0}, "num_train is 0, expected an integer of at least 1"),
        ({"num_test": "x"}, "num_test is 'x', expected an integer of at least 1"),
        ({"length": 1}, "length is 1, expected an integer of at least 2"),
        ({"length": "x"}, "length is 'x', expected an integer of at least 2"),
    ],
)
def test_sizes_are_checked_before_anything_is_made(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_par_dataset(name, **options)


def test_rendered_tracklets(tmp_path):
    pytest.importorskip("numba")
    options = {"num_train": 2, "num_validation": 1, "num_test": 1, "length": 2, "num_proc": 1, "cache_dir": tmp_path}
    data = load_par_dataset("rendered_tracklets", **options, seed=6)
    assert dataset_schema(data) == get_schema("rendered")
    assert data["train"]["frame"][:] == [0, 1, 0, 1] and len(set(data["train"]["tracklet_id"])) == 2
    assert set(data["train"]["disturbance"]) <= set(DISTURBANCES)
