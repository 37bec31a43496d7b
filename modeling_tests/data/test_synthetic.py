import hashlib

import numpy as np
import pytest

from vlm_par_hf.data.synthetic import (
    UNKNOWN,
    Frame,
    SyntheticPerson,
    build_synthetic_dataset,
    caption,
    person_labels,
    render_person,
    render_tracklet,
)
from vlm_par_hf.schemas import get_schema


SCHEMA = get_schema("synthetic")


def _people(count, seed=0):
    return [SyntheticPerson.sample(seed, number) for number in range(count)]


def _label_matrix(count):
    return np.stack([person_labels(p, Frame.sample(p, 0)) for p in _people(count)])


def test_schema_size():
    assert len(SCHEMA) >= 24
    assert {a.region for a in SCHEMA} == {"head", "upper", "lower", "foot", "attachment", "whole"}
    assert any(not a.is_binary for a in SCHEMA) and any(a.sensitive for a in SCHEMA)


def test_same_arguments_draw_the_same_picture():
    person = SyntheticPerson.sample(3, 14)
    frame = Frame.sample(person, 1)
    first, second = render_person(person, frame), render_person(SyntheticPerson.sample(3, 14), Frame.sample(person, 1))
    assert first.tobytes() == second.tobytes()
    assert first.size == (96, 192) and first.mode == "RGB"
    other = render_person(person, Frame.sample(person, 2))
    assert other.tobytes() != first.tobytes()


def test_every_person_can_be_drawn_from_every_side():
    for person in _people(60):
        for view in ("front", "back", "left", "right"):
            picture = np.asarray(render_person(person, Frame(0, view, True, 0.3), nuisance=0.0))
            assert picture.std() > 5


def test_labels_are_long_tailed_and_complete():
    labels = _label_matrix(4000)
    for position, attribute in enumerate(SCHEMA):
        known = labels[:, position][labels[:, position] != UNKNOWN]
        counts = np.bincount(known, minlength=attribute.num_labels)
        assert len(counts) == attribute.num_labels and (counts > 0).all(), attribute.name
    rarest = min((labels[:, k] == 1).mean() for k, a in enumerate(SCHEMA) if a.is_binary)
    assert 0.005 < rarest < 0.02


def test_attributes_depend_on_each_other():
    labels = _label_matrix(4000)
    coat, scarf = labels[:, SCHEMA.index("LongCoat")] == 1, labels[:, SCHEMA.index("Scarf")] == 1
    assert scarf[coat].mean() > 3 * scarf[~coat].mean()
    cane, elderly = labels[:, SCHEMA.index("Cane")] == 1, labels[:, SCHEMA.index("Age")] == 2
    assert elderly[cane].mean() > 0.8


def test_what_cannot_be_seen_is_unknown():
    for person in _people(200):
        back = person_labels(person, Frame(0, "back", False, 0.0))
        assert back[SCHEMA.index("Glasses")] == back[SCHEMA.index("Mask")] == UNKNOWN
        front = person_labels(person, Frame(0, "front", False, 0.0))
        assert front[SCHEMA.index("Glasses")] != UNKNOWN
        assert (front[SCHEMA.index("HatColor")] == UNKNOWN) == (front[SCHEMA.index("Hat")] == 0)


@pytest.mark.parametrize(
    "name", ["Backpack", "Hat", "Glasses", "SafetyVest", "Umbrella", "Boots", "ShoulderBag", "Mask"]
)
def test_an_attribute_changes_the_picture(name):
    """What a label says must be drawn: the clean drawing with and without the thing differs."""
    person = next(p for p in _people(3000) if p.traits[name] == "yes" and p.traits["CarryingInFront"] == "no")
    without = SyntheticPerson(
        person.person_id, person.seed, person.traits | {name: "no"}, person.shades, person.stature, person.girth
    )
    frame = Frame(0, "front", False, 0.0)
    a, b = (np.asarray(render_person(p, frame, nuisance=0.0), int) for p in (person, without))
    assert (np.abs(a - b).max(-1) > 20).sum() > 15


def test_the_second_camera_is_another_domain():
    people = _people(60)

    def mean_color(camera):
        return np.mean([np.asarray(render_person(p, Frame.sample(p, 0, camera))).mean((0, 1)) for p in people], 0)

    first, second = mean_color(0), mean_color(1)
    assert first[0] - second[0] > 15  # less red


def test_captions_are_true():
    rng = np.random.default_rng(0)
    for person in _people(300):
        labels = person_labels(person, Frame.sample(person, 0))
        text, told = caption(labels, rng)
        assert told and len(set(told)) == len(told) and (labels[told] != UNKNOWN).all()
        assert text == text.lower()
        if SCHEMA.index("UpperColor") in told:
            assert SCHEMA["UpperColor"].labels[labels[SCHEMA.index("UpperColor")]] in text


def test_tracklets_keep_the_view_and_go_on_walking():
    person = SyntheticPerson.sample(0, 5)
    frames = [frame for _, frame in render_tracklet(person, 5)]
    assert len({f.view for f in frames}) == 1 and len({f.phase for f in frames}) == 5
    pictures = {picture.tobytes() for picture, _ in render_tracklet(person, 3)}
    assert len(pictures) == 3
    with pytest.raises(ValueError, match="num_frames is 0"):
        render_tracklet(person, 0)


def _digest(dataset):
    table = dataset.data.column("image").to_pylist()
    return hashlib.sha256(b"".join(row["bytes"] for row in table)).hexdigest()


def test_dataset_is_the_same_for_any_number_of_processes():
    sizes = {"num_train": 130, "num_validation": 20, "num_test": 21, "seed": 4}
    serial, parallel = build_synthetic_dataset(num_proc=1, **sizes), build_synthetic_dataset(num_proc=2, **sizes)
    assert {split: len(part) for split, part in serial.items()} == {"train": 130, "validation": 20, "test": 21}
    for split in serial:
        assert _digest(serial[split]) == _digest(parallel[split])
    people = [set(part["person_id"]) for part in serial.values()]
    assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
    example = serial["train"][0]
    assert example["image"].size == (96, 192) and len(example["labels"]) == len(SCHEMA)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "num_train is 0"),
        ({"cameras": (2,)}, "cameras is"),
        ({"seed": 1000}, "embedded backbone"),
        ({"pictures_per_person": 0}, "pictures_per_person is 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_synthetic_dataset(**arguments)
