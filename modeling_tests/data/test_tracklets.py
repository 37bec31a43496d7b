"""Tracklets out of the rows of a data set: order, sampling, one flip, errors that name tracklet and frame."""

import numpy as np
import pytest

from modeling_tests.tiny import tiny_schema, tiny_vtf_processor
from vlm_par_hf.data import ParAugmentation, ParCollator, TrackletDataset, dataset_schema, load_par_dataset
from vlm_par_hf.data.tracklets import combine_labels, group_tracklets, one_row_per_tracklet, sample_frames


def drawn(**options):
    sizes = {"num_train": 3, "num_validation": 1, "num_test": 1, "length": 5}
    return load_par_dataset("synthetic_tracklets", **{**sizes, **options})


@pytest.fixture(scope="module")
def split():
    return drawn()["train"]


def test_sampling():
    assert (
        sample_frames(3, 6) == [0, 1, 2] and sample_frames(12, 1) == [5] and sample_frames(12, 12) == list(range(12))
    )
    assert sample_frames(12, 4) == [1, 4, 7, 10]
    for count, num_frames in ((7, 3), (100, 6), (13, 12)):
        edges = [count * place // num_frames for place in range(num_frames + 1)]
        draws = np.array([sample_frames(count, num_frames, np.random.default_rng(seed)) for seed in range(200)])
        for place in range(num_frames):
            assert set(draws[:, place]) == set(range(edges[place], edges[place + 1]))
    with pytest.raises(ValueError, match="expected at least 1"):
        sample_frames(0, 3)


def test_groups(split):
    shuffled = split.shuffle(seed=3)
    groups = group_tracklets(shuffled)
    assert sorted(len(rows) for rows in groups) == [5, 5, 5]
    for rows in groups:
        assert [shuffled[int(row)]["frame"] for row in rows] == [0, 1, 2, 3, 4]
        assert len({shuffled[int(row)]["tracklet_id"] for row in rows}) == 1
    assert len(one_row_per_tracklet(split)) == 3
    alone = split.remove_columns("tracklet_id").add_column("tracklet_id", [None] * len(split))
    assert [len(rows) for rows in group_tracklets(alone)] == [1] * 15


def test_groups_that_contradict_themselves(split):
    labels = np.asarray(split["labels"][:])
    labels[1, 0] = 1 - max(labels[1, 0], 0)
    changed = split.remove_columns("labels").add_column("labels", labels.tolist())
    with pytest.raises(ValueError, match="tracklet '000000_c0_0': its frames have different labels"):
        group_tracklets(changed)
    with pytest.raises(ValueError, match="tracklet '000000_c0_0' has frame 0 twice"):
        group_tracklets(split.select([0, 0, 1]))
    with pytest.raises(ValueError, match="the data set has no column tracklet_id"):
        group_tracklets(split.remove_columns("tracklet_id"))


def test_frames_are_spread_evenly_or_drawn_by_seed_epoch_and_index(split):
    data = TrackletDataset(split, 2)
    assert len(data) == 3 and len(data[0]["frames"]) == 2
    wanted = [np.asarray(split[row]["image"]) for row in (0, 3)]
    assert all(np.array_equal(np.asarray(one), two) for one, two in zip(data[0]["frames"], wanted))
    augmentation = ParAugmentation(dataset_schema(split), flip=0.0, pad=0.0)
    random = TrackletDataset(split, 2, augmentation, random=True, seed=1)
    first = [np.asarray(one).sum() for one in random[1]["frames"]]
    assert [np.asarray(one).sum() for one in random[1]["frames"]] == first
    seen = set()
    for epoch in range(12):
        random.set_epoch(epoch)
        seen.add(tuple(int(np.asarray(one).sum()) for one in random[1]["frames"]))
    assert len(seen) > 2


def test_one_flip_for_all_frames_of_a_tracklet():
    schema = tiny_schema(kway=True)
    frames = [np.random.default_rng(place).integers(0, 256, (8, 4, 3), dtype=np.uint8) for place in range(4)]
    augmentation, flips = ParAugmentation(schema, flip=0.5, pad=0.0), set()
    for seed in range(20):
        found, labels = augmentation.augment_frames(frames, np.array([0, 0, 0, 1, 0]), np.random.default_rng(seed))
        mirrored = [np.array_equal(np.asarray(one), frame[:, ::-1]) for one, frame in zip(found, frames)]
        assert len(set(mirrored)) == 1 and labels.tolist()[4] == int(mirrored[0])
        flips.add(mirrored[0])
    assert flips == {True, False}


def test_a_corrupt_frame_is_named(split):
    rows = [dict(row) for row in split.with_format(None).select_columns(["tracklet_id", "frame"])]
    images = [row["image"] for row in split]
    images[2] = b"no image"

    class Rows:
        column_names = ("image", "tracklet_id", "frame")

        def __len__(self):
            return len(rows)

        def __getitem__(self, index):
            if isinstance(index, str):
                return [row[index] for row in rows]
            return {**rows[index], "image": images[index]}

    with pytest.raises(ValueError, match="tracklet '000000_c0_0', frame 2: .*cannot be read as an image"):
        TrackletDataset(Rows())[0]


def test_the_collator_takes_tracklets_where_the_model_does(split):
    items = TrackletDataset(split, 3)[0], {**TrackletDataset(split, 1)[1]}
    batch = ParCollator(tiny_vtf_processor())(list(items))
    assert batch["pixel_values"].shape[:2] == (2, 3) and batch["frame_mask"].tolist() == [
        [True] * 3,
        [True, False, False],
    ]
    assert batch["labels"].shape == (2, 29)
    from modeling_tests.tiny import tiny_processor

    with pytest.raises(ValueError, match="VlmParProcessor prepares single pictures"):
        ParCollator(tiny_processor())(list(items))
    with pytest.raises(ValueError, match="row 1 has no frame"):
        ParCollator(tiny_vtf_processor())([items[0], {**items[1], "frames": []}])


def test_labels_of_a_tracklet():
    schema = tiny_schema()
    found = combine_labels(np.array([[1, -100, -100], [0, 1, -100], [1, -100, -100]]), schema)
    assert found.tolist() == [1, 1, -100]
