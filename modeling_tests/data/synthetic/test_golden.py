"""Drawings, labels and sentences are to the last bit what they were when `golden.json` was written.

Models and measurements of this repository were made on these drawings: a change of one number here makes them results
on other data. Where that is meant, `python modeling_tests/data/synthetic/test_golden.py` writes the file anew.

People, labels and sentences depend on numpy's random numbers only and are always checked. How Pillow fills a polygon
or writes a JPEG may change with its version, so pixels are checked with the version that the file names.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
import pytest

from vlm_par_hf.data.synthetic import (
    Frame,
    SyntheticPerson,
    build_synthetic_dataset,
    caption,
    person_labels,
    render_person,
    render_tracklet,
)
from vlm_par_hf.labels.tables import get_schema


FILE = Path(__file__).with_name("golden.json")
SCHEMA = get_schema("synthetic")

# Things that meet in a drawing: they share hands, cover each other or change each other's place.
TOGETHER = (
    {"Umbrella": "yes", "Cane": "yes"},
    {"Umbrella": "yes", "Suitcase": "yes"},
    {"Umbrella": "yes", "HandBag": "yes"},
    {"Cane": "yes", "Suitcase": "yes", "Age": "elderly"},
    {"Cane": "yes", "HandBag": "yes"},
    {"Suitcase": "yes", "HandBag": "yes"},
    {"Phone": "yes", "Suitcase": "yes"},
    {"Phone": "yes", "HandBag": "yes", "Hat": "yes"},
    {"Phone": "yes", "Umbrella": "yes"},
    {"CarryingInFront": "yes", "LongCoat": "yes", "Backpack": "yes"},
    {"CarryingInFront": "yes", "Age": "child", "Backpack": "yes"},
    {"CarryingInFront": "yes", "Age": "elderly"},
    {"LowerType": "skirt", "Boots": "yes", "Age": "child"},
    {"LowerType": "shorts", "Boots": "yes", "ShortSleeve": "yes"},
    {"LowerType": "shorts", "Age": "child"},
    {"SideStripe": "yes", "Boots": "yes"},
    {"SafetyVest": "yes", "UpperPattern": "plaid", "ShortSleeve": "yes"},
    {"SafetyVest": "yes", "LongCoat": "yes", "Age": "elderly"},
    {"Backpack": "yes", "ShoulderBag": "yes", "Age": "elderly"},
    {"LongHair": "yes", "LongCoat": "yes", "Scarf": "yes", "Backpack": "yes"},
    {"LongHair": "yes", "Headphones": "yes", "Age": "child"},
    {"Hat": "yes", "Glasses": "yes", "Mask": "yes", "Scarf": "yes", "Age": "elderly"},
)


def describe_person(person: SyntheticPerson) -> str:
    return repr((person.person_id, person.seed, person.traits, person.shades, person.stature, person.girth))


def person_with(traits: dict[str, str], person_id: int = 0) -> SyntheticPerson:
    """Person `person_id` in plain trousers and without any thing, changed by `traits`."""
    person = SyntheticPerson.sample(11, person_id)
    plain = {a.name: "no" for a in SCHEMA if a.is_binary and a.name != "Walking"}
    plain |= {"Age": "adult", "LowerType": "trousers", "UpperPattern": "plain"}
    return SyntheticPerson(
        person_id, person.seed, person.traits | plain | traits, person.shades, person.stature, person.girth
    )


def digest(pictures) -> str:
    """sha256 of sizes and RGB bytes."""
    value = hashlib.sha256()
    for picture in pictures:
        assert picture.mode == "RGB"
        value.update(f"{picture.width}x{picture.height} ".encode() + picture.tobytes())
    return value.hexdigest()


def from_all_sides(person: SyntheticPerson, height: int = 96) -> Iterator:
    """Standing and with either leg in front, from four sides, by both cameras, small and clean."""
    for index, view in enumerate(("front", "back", "left", "right")):
        for walking, phase in ((False, 0.0), (True, 0.0), (True, 0.7)):
            yield render_person(person, Frame(index, view, walking, phase, index % 2), height, nuisance=0.0)


def compute_drawings() -> dict[str, str]:
    """Who or what is drawn -> sha256 of the pictures."""
    result = {}
    for number in range(48):
        person = SyntheticPerson.sample(number % 3, number)
        frame = Frame.sample(person, number % 5, camera=number % 2)
        result[f"person {number}"] = digest([render_person(person, frame)])
    for nuisance in (0.5, 3.0):
        person = SyntheticPerson.sample(5, 1)
        frames = [Frame.sample(person, index, camera=index % 2) for index in range(40)]
        result[f"nuisance {nuisance}"] = digest(render_person(person, f, 128, nuisance) for f in frames)
    result["plain"] = digest(from_all_sides(person_with({})))
    for attribute in SCHEMA:
        if attribute.is_binary and attribute.name != "Walking":
            result[attribute.name] = digest(from_all_sides(person_with({attribute.name: "yes"})))
    for name in ("Age", "LowerType"):
        for label in SCHEMA[name].labels:
            result[f"{name} {label}"] = digest(from_all_sides(person_with({name: label})))
    for label in SCHEMA["UpperPattern"].labels:
        for number, height in enumerate((96, 192, 40)):  # each person has another logo and other stripes
            person = person_with({"UpperPattern": label}, number)
            result[f"UpperPattern {label}, person {number}"] = digest(from_all_sides(person, height))
    for number, traits in enumerate(TOGETHER):
        result[", ".join(f"{name} {value}" for name, value in traits.items())] = digest(
            from_all_sides(person_with(traits, number))
        )
    for camera in (0, 1):
        tracklet = render_tracklet(SyntheticPerson.sample(2, 9), 4, camera, track=3 + camera)
        result[f"tracklet, camera {camera}"] = digest(picture for picture, _ in tracklet)
    return result


def compute_people() -> dict[str, str]:
    """sha256 of who people are, how they stand, and their labels: every value of every attribute occurs."""
    who, stands, labels = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for number in range(3000):
        person = SyntheticPerson.sample(number % 2, number)
        frame = Frame.sample(person, number % 3, camera=number % 2)
        who.update(describe_person(person).encode())
        stands.update(repr((frame.index, frame.view, frame.walking, frame.phase, frame.camera)).encode())
        labels.update(person_labels(person, frame).astype("<i8").tobytes())
    tracks = [[frame for _, frame in render_tracklet(SyntheticPerson.sample(2, 9), 4, 1, track)] for track in (0, 7)]
    track = repr([(f.index, f.view, f.walking, f.phase, f.camera) for frames in tracks for f in frames])
    return {
        "people": who.hexdigest(),
        "frames": stands.hexdigest(),
        "labels": labels.hexdigest(),
        "frames of tracklets": hashlib.sha256(track.encode()).hexdigest(),
    }


def compute_captions() -> dict[str, str]:
    """sha256 of many sentences with what they tell, and a few of them to read."""
    rng, value, result = np.random.default_rng(0), hashlib.sha256(), {}
    for number in range(1500):
        person = SyntheticPerson.sample(4, number)
        text, told = caption(person_labels(person, Frame.sample(person, 0)), rng, (None, 1, 40)[number % 3])
        value.update(f"{text} {told}\n".encode())
        if number < 6:
            result[f"sentence {number}"] = text
    return result | {"all": value.hexdigest()}


def compute_dataset() -> tuple[dict[str, str], dict[str, str]]:
    """Per split sha256 of all that is no image, with the description of the data set, and of the images' bytes."""
    sizes = {"num_train": 9, "num_validation": 3, "num_test": 4}
    data = build_synthetic_dataset(**sizes, pictures_per_person=2, cameras=(0, 1), height=64, seed=7, num_proc=1)
    rows, images = {}, {}
    for split, part in data.items():
        files = part.data.column("image").to_pylist()
        columns = {name: part[name][:] for name in part.column_names if name != "image"}
        text = json.dumps([columns, [file["path"] for file in files], json.loads(part.info.description)])
        rows[split] = hashlib.sha256(text.encode()).hexdigest()
        images[split] = hashlib.sha256(b"".join(file["bytes"] for file in files)).hexdigest()
    return rows, images


def compute_golden() -> dict:
    rows, files = compute_dataset()
    return {
        "pillow": PIL.__version__,
        "people": compute_people(),
        "captions": compute_captions(),
        "rows": rows,
        "files": files,
        "drawings": compute_drawings(),
    }


@pytest.fixture(scope="module")
def golden():
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def dataset():
    return compute_dataset()


@pytest.fixture
def same_pillow(golden):
    if PIL.__version__ != golden["pillow"]:
        pytest.skip(f"{FILE.name} was made with Pillow {golden['pillow']}; {PIL.__version__} may draw other pixels")


def assert_same(found: dict[str, str], wanted: dict[str, str]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in found if found[name] != wanted[name]] == []


def test_people_and_labels(golden):
    assert_same(compute_people(), golden["people"])


def test_captions(golden):
    assert_same(compute_captions(), golden["captions"])


def test_rows_of_a_data_set(golden, dataset):
    assert_same(dataset[0], golden["rows"])


def test_files_of_a_data_set(golden, dataset, same_pillow):
    assert_same(dataset[1], golden["files"])


def test_drawings(golden, same_pillow):
    assert_same(compute_drawings(), golden["drawings"])


def test_every_thing_shows(golden):
    """Two names may share a hash only where both name the plain person."""
    plain = [name for name, value in golden["drawings"].items() if value == golden["drawings"]["plain"]]
    assert plain == ["plain", "Age adult", "LowerType trousers", "UpperPattern plain, person 0"]
    assert len(set(golden["drawings"].values())) == len(golden["drawings"]) - 3


if __name__ == "__main__":
    FILE.write_text(json.dumps(compute_golden(), indent=1) + "\n", encoding="utf-8")
