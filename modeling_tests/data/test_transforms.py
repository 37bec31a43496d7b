"""Augmentation: labels stay true, pictures keep their size, and a sample depends on (seed, epoch, index) alone."""

import copy
import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from vlm_par_hf.data import AugmentedDataset, ParAugmentation, attach_schema, dataset_schema, load_par_dataset
from vlm_par_hf.data.transforms import epoch_callback
from vlm_par_hf.labels.schema import AttributeSchema


VIEW = {
    "name": "View",
    "question": "which side?",
    "labels": ["front", "left", "right"],
    "prompts": ["from the front", "from the left", "from the right"],
    "mirror": [0, 2, 1],
}
SCHEMA = AttributeSchema(
    [
        {"name": "LeftBag", "question": "a bag left?", "prompts": ["none left", "one left"], "mirror": "RightBag"},
        {"name": "RightBag", "question": "a bag right?", "prompts": ["none right", "one right"], "mirror": "LeftBag"},
        VIEW,
    ]
)
EVERYTHING = {"flip": 0.5, "pad": 0.1, "color": 0.3, "erasing": 0.5}
OFF = {"flip": 0.0, "pad": 0.0, "color": 0.0, "erasing": 0.0}


def picture(seed=0, size=(30, 60)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def augment(image, labels=None, seed=0, **settings):
    return ParAugmentation(SCHEMA, **{**OFF, **settings})(image, labels, np.random.default_rng(seed))


def test_off_changes_nothing():
    image, labels = augment(picture(), np.array([1, 0, -100]))
    assert np.array_equal(image, picture()) and labels.tolist() == [1, 0, -100]


def test_flip_mirrors_picture_and_labels():
    image, labels = augment(picture(), np.array([1, 0, 2]), flip=1.0)
    assert np.array_equal(image, np.asarray(picture())[:, ::-1]) and labels.tolist() == [0, 1, 1]
    assert augment(picture(), np.array([-100, 0, -100]), flip=1.0)[1].tolist() == [0, -100, -100]
    assert augment(picture(), None, flip=1.0)[1] is None


def test_flip_happens_as_often_as_asked():
    flips = [augment(picture(), np.array([1, 0, 0]), seed=s, flip=0.3)[1][0] == 0 for s in range(500)]
    assert 0.24 < np.mean(flips) < 0.36


def test_pad_and_crop_is_a_bounded_shift_with_repeated_edges():
    source, shifts = np.asarray(picture()), set()
    padded = np.pad(source, ((6, 6), (3, 3), (0, 0)), mode="edge")
    for seed in range(60):
        image = np.asarray(augment(picture(), seed=seed, pad=0.1)[0])
        places = [(y, x) for y in range(13) for x in range(7) if np.array_equal(padded[y : y + 60, x : x + 30], image)]
        assert places
        shifts.add(places[0])
    assert len(shifts) > 25 and {y for y, _ in shifts} >= {0, 12} and {x for _, x in shifts} == set(range(7))


def test_erasing_fills_one_rectangle_of_bounded_area():
    source, shares = np.asarray(Image.new("RGB", (100, 200), (300 % 256, 0, 0))), []
    for seed in range(40):
        image = np.asarray(augment(Image.fromarray(source), seed=seed, erasing=1.0)[0])
        rows, columns = np.nonzero((image != source).any(-1))
        area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert len(rows) > 0.95 * area
        shares.append(area / (100 * 200))
    assert 0.015 < min(shares) < 0.06 and 0.14 < max(shares) < 0.21


def test_color_keeps_gray_gray():
    gray = Image.new("RGB", (4, 4), (100, 100, 100))
    values = {augment(gray, seed=seed, color=0.3)[0].getpixel((0, 0)) for seed in range(20)}
    assert len(values) > 10 and all(red == green == blue and 65 <= red <= 135 for red, green, blue in values)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2), (323, 714)])
def test_size_stays_at_every_size(size):
    for seed in range(8):
        image, _ = augment(picture(size=size), seed=seed, **EVERYTHING)
        assert image.size == size and image.mode == "RGB"


def test_source_is_never_changed():
    image, labels = picture(), np.array([1, 0, 2])
    for seed in range(10):
        augment(image, labels, seed=seed, **EVERYTHING)
    assert np.array_equal(image, picture()) and labels.tolist() == [1, 0, 2]


def test_gray_pictures_and_paths(tmp_path):
    picture().convert("L").save(tmp_path / "a.png")
    assert augment(tmp_path / "a.png", **EVERYTHING)[0].mode == "RGB"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"flip": 1.5}, "flip is 1.5; expected a number from 0 to 1.0"),
        ({"pad": 0.6}, "pad is 0.6; expected a number from 0 to 0.5"),
        ({"erasing": -0.1}, "erasing is -0.1"),
        ({"color": "strong"}, "color is 'strong'"),
        ({"flip": float("nan")}, "flip is nan"),
        ({"flip": True}, "flip is True"),
        ({"erasing_area": (0.3, 0.1)}, r"erasing_area is \(0.3, 0.1\)"),
        ({"erasing_area": (0, 0.1)}, "erasing_area"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ParAugmentation(SCHEMA, **settings)


def test_wrong_labels():
    with pytest.raises(ValueError, match=r"labels have shape \(2,\); the schema has 3 attributes"):
        augment(picture(), np.array([0, 1]))


# -- the data set --------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path):
    for number in range(12):
        picture(number).save(tmp_path / f"{number}.png")
    features = datasets.Features(
        {"image": datasets.Image(), "labels": datasets.List(datasets.Value("int64"), length=3)}
    )
    columns = {"image": [str(tmp_path / f"{i}.png") for i in range(12)], "labels": [[1, 0, i % 3] for i in range(12)]}
    return attach_schema(datasets.Dataset.from_dict(columns, features=features), SCHEMA)


@pytest.fixture
def augmented(rows):
    return AugmentedDataset(rows, ParAugmentation(SCHEMA, **EVERYTHING), seed=7)


def content(row):
    return np.asarray(row["image"]).tobytes() + np.asarray(row["labels"]).tobytes()


def test_rows(augmented, rows):
    row = augmented[3]
    assert len(augmented) == 12 and row["image"].size == (30, 60)
    assert row["labels"].dtype == np.int64 and row["labels"].shape == (3,)
    assert dataset_schema(augmented) == dataset_schema(Subset(augmented, [0])) == SCHEMA
    plain = AugmentedDataset(rows)[3]
    assert np.array_equal(plain["image"], picture(3)) and plain["labels"].tolist() == [1, 0, 0]


def test_sample_depends_on_seed_epoch_and_index_alone(augmented, rows):
    first = [content(augmented[i]) for i in range(12)]
    assert [content(augmented[i]) for i in reversed(range(12))] == first[::-1]
    assert content(augmented[-1]) == first[11] == content(augmented[np.int64(11)])
    augmented.set_epoch(1)
    assert augmented.epoch == 1
    second = [content(augmented[i]) for i in range(12)]
    assert all(a != b for a, b in zip(first, second))
    augmented.set_epoch(0)
    assert [content(augmented[i]) for i in range(12)] == first
    other = AugmentedDataset(rows, augmented.transform, seed=8)
    assert all(content(other[i]) != first[i] for i in range(12))


def test_list_of_dicts_and_rows_without_labels():
    data = AugmentedDataset([{"image": picture(), "note": "x"}], ParAugmentation(SCHEMA, **EVERYTHING))
    assert set(data[0]) == {"image", "note"}


def test_source_rows_stay_as_they_were():
    source = [{"image": picture(), "labels": [1, 0, 2]}]
    AugmentedDataset(source, ParAugmentation(SCHEMA, flip=1.0))[0]
    assert source[0]["labels"] == [1, 0, 2] and np.array_equal(source[0]["image"], picture())


def test_damaged_file_is_named(rows, tmp_path):
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"4\.png.*truncated"):
        AugmentedDataset(rows)[4]
    (tmp_path / "5.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"5\.png"):
        AugmentedDataset(rows)[5]


def test_formatted_and_changed_data_sets(rows):
    for changed in (rows.with_format("torch"), rows.shuffle(seed=0).select(range(4)), rows.map(lambda row: {"n": 1})):
        row = AugmentedDataset(changed, ParAugmentation(SCHEMA))[0]
        assert isinstance(row["image"], Image.Image) and row["labels"].dtype == np.int64


def test_copies_and_pickles(augmented):
    augmented.set_epoch(3)
    expected = content(augmented[2])
    for twin in (copy.deepcopy(augmented), pickle.loads(pickle.dumps(augmented))):
        assert content(twin[2]) == expected


def test_many_rows_at_once_are_the_rows_one_by_one(augmented, monkeypatch):
    monkeypatch.setattr("vlm_par_hf.utils.default_threads", lambda: 3)
    augmented.set_epoch(1)
    order = [3, 0, 11, 7, -1, 5, 3, 2, 8, 9, 1, np.int64(4), 10]
    assert [content(row) for row in augmented.__getitems__(order)] == [content(augmented[index]) for index in order]
    with pytest.raises(IndexError, match="index 12 is out of range for 12 rows"):
        augmented.__getitems__([0, 12])


def test_a_transform_of_the_user_stays(rows):
    black = rows.with_transform(lambda batch: {"image": [Image.new("RGB", (5, 6)) for _ in batch["image"]]})
    assert AugmentedDataset(black)[0]["image"].size == (5, 6)


@pytest.mark.parametrize("index", [12, -13])
def test_index_out_of_range(augmented, index):
    with pytest.raises(IndexError, match=f"index {index} is out of range for 12 rows"):
        augmented[index]


def test_wrong_arguments(rows):
    with pytest.raises(ValueError, match="seed is -1"):
        AugmentedDataset(rows, seed=-1)
    with pytest.raises(ValueError, match="seed is 0.5"):
        AugmentedDataset(rows, seed=0.5)
    with pytest.raises(TypeError, match="transform is a str"):
        AugmentedDataset(rows, "flip")
    with pytest.raises(TypeError, match="dataset is a IterableDataset; expected rows that can be counted"):
        AugmentedDataset(rows.to_iterable_dataset())
    with pytest.raises(ValueError, match="epoch is -1"):
        AugmentedDataset(rows).set_epoch(-1)


# Spawned workers import torch and this file anew: seconds each.
@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_see_the_epoch_persistent_ones_too(augmented, context):
    def read(epoch):
        augmented.set_epoch(epoch)
        return [content(augmented[i]) for i in range(12)]

    expected = [read(epoch) for epoch in range(3)]
    loader = DataLoader(
        augmented,
        batch_size=4,
        num_workers=1,
        persistent_workers=True,
        collate_fn=contents,
        multiprocessing_context=context,
    )
    for epoch in (0, 1, 2, 0):
        augmented.set_epoch(epoch)
        assert [entry for batch in loader for entry in batch] == expected[epoch]


def contents(batch):
    return [content(row) for row in batch]


# -- with transformers.Trainer -------------------------------------------------------------------------------------


class Recorder(torch.nn.Module):
    """Stands for a model; remembers what it was fed."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, pixels=None, labels=None):
        self.seen += [hash(image.numpy().tobytes()) for image in pixels]
        return {"loss": self.weight * pixels.float().mean()}


def collate(batch):
    return {"pixels": torch.stack([torch.from_numpy(np.array(row["image"])) for row in batch])}


def train(augmented, folder, *, max_steps, resume=None, callbacks=()):
    from transformers import Trainer, TrainingArguments

    model = Recorder()
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=4,
        max_steps=max_steps,
        save_steps=5,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
        save_strategy="steps",
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=augmented, data_collator=collate, callbacks=list(callbacks)
    )
    trainer.train(resume_from_checkpoint=resume)
    return model.seen


def test_training_resumed_inside_an_epoch_sees_the_same_pictures(rows, tmp_path):
    def fresh():
        return AugmentedDataset(rows, ParAugmentation(SCHEMA, **EVERYTHING), seed=7)

    whole = train(fresh(), tmp_path / "whole", max_steps=9, callbacks=[epoch_callback()])
    epochs = [whole[0:12], whole[12:24], whole[24:36]]  # 3 batches of 4 are an epoch; step 5 is inside the second
    assert len(set(whole)) == 36, "every epoch has its own augmentations"
    augmented = fresh()
    for epoch, seen in enumerate(epochs):
        augmented.set_epoch(epoch)
        assert sorted(seen) == sorted(hash(np.asarray(augmented[i]["image"]).tobytes()) for i in range(12))
    resumed = train(
        fresh(), tmp_path / "rest", max_steps=9, resume=tmp_path / "whole/checkpoint-5", callbacks=[epoch_callback()]
    )
    assert resumed == whole[20:]


def test_why_the_callback_is_needed(rows, tmp_path):
    """accelerate's loader does not forward the epoch to the data set while it skips batches.

    When this test fails, it does, and `epoch_callback` can go.
    """

    def fresh():
        return AugmentedDataset(rows, ParAugmentation(SCHEMA, **EVERYTHING), seed=7)

    whole = train(fresh(), tmp_path / "whole", max_steps=9)
    resumed = train(fresh(), tmp_path / "rest", max_steps=9, resume=tmp_path / "whole/checkpoint-5")
    assert resumed != whole[20:]


def test_real_images(par_data):
    data = load_par_dataset("pa100k", par_data / "pa100k_mini")["validation"]
    schema = dataset_schema(data)
    augmented = AugmentedDataset(data, ParAugmentation(schema, erasing=1.0))
    for index in range(0, len(data), 10):
        row = augmented[index]
        assert row["image"].size == data[index]["image"].size
        # PA-100K has no attribute with a side: a flip changes no label
        assert row["labels"].tolist() == data[index]["labels"]
