"""PETA from PETA.mat and from the original archive: the same persons, labels by name, partitions as in the file."""

import json

import numpy as np
import pytest
from scipy.io import savemat

from modeling_tests.original_files import (
    PETA_NAMES,
    market_variables,
    peta_data,
    peta_variables,
    struct,
    write_peta_archive,
    write_picture,
)
from vlm_par_hf.data import dataset_schema, load_par_dataset, read_peta
from vlm_par_hf.data.readers import peta
from vlm_par_hf.errors import ParTypeError, ParValueError
from vlm_par_hf.labels.tables import get_schema


DATA = peta_data()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """All 19,000 rows, and three of the images."""
    root = tmp_path_factory.mktemp("peta")
    savemat(root / "PETA.mat", peta_variables(DATA))
    for number in (1, 9500, 19000):
        write_picture(root / "images" / f"{number:05d}.png", number)
    return root


def expected_labels(numbers, names):
    return DATA[np.asarray(numbers) - 1][:, [4 + PETA_NAMES.index(name) for name in names]]


@pytest.mark.parametrize("partition", [0, 4])
def test_partitions_count_from_one_and_labels_go_by_name(full, partition):
    schema, splits, notes = read_peta(full, partition=partition)
    assert schema == get_schema("peta35")
    assert {split: len(records) for split, records in splits.items()} == {
        "train": 9500,
        "validation": 1900,
        "test": 7600,
    }
    wanted = peta_variables(DATA)["peta"][0, 0]["partion_attribute"][partition, 0][0, 0]
    for split, field in (("train", "train"), ("validation", "val"), ("test", "test")):
        numbers = wanted[field].ravel().tolist()
        assert [record.image_id for record in splits[split]] == [f"{number:05d}.png" for number in numbers]
        labels = np.stack([record.labels for record in splits[split]])
        assert np.array_equal(labels, expected_labels(numbers, schema.names)) and labels.dtype == np.int64
        assert [record.person_id for record in splits[split][:50]] == [int(DATA[n - 1, 1]) for n in numbers[:50]]
    assert f"partition {partition} of PETA.mat" in notes["division"]


def test_peta65_has_unknown_colors_where_there_is_none_or_several(full, caplog):
    caplog.set_level("INFO", "vlm_par_hf")
    schema, splits, notes = read_peta(full, "peta65")
    assert len(schema) == 65
    record = splits["test"][0]
    number = int(record.image_id[:5])
    for position, attribute in enumerate(schema):
        if attribute.is_binary:
            assert record.labels[position] == DATA[number - 1, 4 + PETA_NAMES.index(attribute.name)]
    columns = [4 + PETA_NAMES.index(f"hair{color}") for color in ("Black", "Blue", "Brown")]
    hair = schema.index("hairColor")
    by_number = {int(r.image_id[:5]): r.labels[hair] for records in splits.values() for r in records}
    first = PETA_NAMES.index("hairBlack") + 4
    for row in DATA[:500]:
        positive = np.flatnonzero(row[first : first + 11])
        assert by_number[int(row[0])] == (positive[0] if len(positive) == 1 else -100)
    assert columns[1] == first + 1
    counts = DATA[:, first : first + 11].sum(axis=1)
    assert notes["images_without_color"]["hairColor"] == (counts == 0).sum() > 0
    assert notes["images_with_several_colors"]["hairColor"] == (counts > 1).sum() > 0
    assert "colors that are unknown" in caplog.text


def test_load_and_skip_what_is_missing(full):
    data = load_par_dataset("peta35", full, partition=2, missing="skip")
    assert dataset_schema(data) == get_schema("peta35")
    rows = {row["image_id"]: row for part in data.values() for row in part}
    assert set(rows) == {"00001.png", "09500.png", "19000.png"}
    assert rows["09500.png"]["image"].getpixel((0, 0)) == (9500 % 256, 9500 // 256, 0)
    with pytest.raises(FileNotFoundError, match="18997 of 19000 listed images do not exist"):
        load_par_dataset("peta35", full)
    with pytest.raises(ValueError, match="partition is 5; 'peta35' has 5"):
        load_par_dataset("peta35", full, partition=5)


@pytest.fixture(scope="module")
def small():
    """60 images from every sub-folder with their own numbers 1 to 60."""
    first = np.cumsum([0, 1012, 1220, 4563, 1275, 477, 888, 1134, 200, 6967])
    data = DATA[np.concatenate([np.arange(start, start + 6) for start in first])].copy()
    data[:, 0] = np.arange(1, len(data) + 1)
    return data


@pytest.fixture
def archive(small, tmp_path):
    return tmp_path, write_peta_archive(tmp_path / "PETA dataset", small)


def test_original_archive_with_mat_has_the_official_partition(archive, small):
    root, files = archive
    savemat(root / "PETA.mat", peta_variables(small, sizes=(30, 6, 24)))
    data = load_par_dataset("peta35", root, partition=1)
    wanted = peta_variables(small, sizes=(30, 6, 24))["peta"][0, 0]["partion_attribute"][1, 0][0, 0]
    for split, field in (("train", "train"), ("validation", "val"), ("test", "test")):
        numbers = wanted[field].ravel().tolist()
        assert data[split]["image_id"][:] == [files[number] for number in numbers]
        for row, number in zip(data[split], numbers):
            assert row["labels"] == small[number - 1, 4:39].tolist()
            red = row["image"].getpixel((0, 0))[0]
            assert abs(red - number) < 4  # the picture of that number, through JPEG


def test_a_person_with_a_missing_file_is_not_guessed(archive, small):
    root, files = archive
    savemat(root / "PETA.mat", peta_variables(small, sizes=(30, 6, 24)))
    persons = small[:, 1].tolist()
    number = next(n for n in files if persons.count(small[n - 1, 1]) > 1)
    same = [n for n in files if small[n - 1, 1] == small[number - 1, 1]]
    (root / "PETA dataset" / files[number].replace("/", "/archive/")).unlink()
    with pytest.raises(FileNotFoundError, match=f"{len(same)} of 60 listed images do not exist"):
        load_par_dataset("peta35", root)
    data = load_par_dataset("peta35", root, missing="skip")
    kept = {image for part in data.values() for image in part["image_id"]}
    assert kept == {file for n, file in files.items() if n not in same}


def test_original_archive_alone_is_divided_by_person(archive, small, caplog):
    root, files = archive
    schema, splits, notes = read_peta(root, "peta65", seed=3)
    assert notes["division"].startswith("ours, by person, seed 3") and "no official partition" in caplog.text
    records = {record.image_id: record for part in splits.values() for record in part}
    assert set(records) == set(files.values())
    for number, file in files.items():
        assert np.array_equal(records[file].labels[:35], small[number - 1, 4:39])
    persons = [{record.person_id for record in part} for part in splits.values()]
    assert all(persons) and sum(map(len, persons)) == len(set().union(*persons))
    again = read_peta(root, "peta65", seed=3)[1]
    other = read_peta(root, "peta65", seed=4)[1]
    assert [r.image_id for r in again["test"]] == [r.image_id for r in splits["test"]]
    assert [r.image_id for r in other["test"]] != [r.image_id for r in splits["test"]]
    with pytest.raises(ValueError, match="partition is 1; without PETA.mat"):
        read_peta(root, partition=1)


@pytest.fixture
def complete(small, tmp_path, monkeypatch):
    """The original archive without PETA.mat, and its 60 images are all there are."""
    monkeypatch.setattr(peta, "_OFFICIAL_IMAGES", len(small))
    write_peta_archive(tmp_path / "PETA dataset", small, extra_line=b"")
    return tmp_path


def relabel(root, old, new):
    for path in root.glob("PETA dataset/*/archive/Label.txt"):
        path.write_bytes(path.read_bytes().replace(old, new))


def column(splits, schema, name):
    return {
        record.image_id: int(record.labels[schema.index(name)]) for records in splits.values() for record in records
    }


def test_sneakers_of_the_archive_are_the_sneaker_of_the_mat_file(complete, small, caplog):
    assert b"footwearSneakers" in (complete / "PETA dataset/VIPeR/archive/Label.txt").read_bytes()
    schema, splits, notes = read_peta(complete)
    found = column(splits, schema, "footwearSneaker")
    assert sum(found.values()) == small[:, 4 + PETA_NAMES.index("footwearSneaker")].sum() > 0
    savemat(complete / "PETA.mat", peta_variables(small, sizes=(30, 6, 24)))
    schema, splits, _ = read_peta(complete)
    assert column(splits, schema, "footwearSneaker") == found
    # The four that the authors left out are no error, and are not hidden either.
    assert notes["labels_left_out"] == {"accessoryFaceMask": len({tuple(row) for row in small[:, 2:4].tolist()})}
    assert "labels_not_taken" not in notes and "no attribute takes" not in caplog.text


def test_a_complete_archive_with_another_spelling_is_refused(complete, small):
    relabel(complete, b"upperBodyLogo", b"upperBodyLogos")
    message = (
        r"PETA dataset: no image has 'upperBodyLogo'; no attribute takes the label 'upperBodyLogos' \(\d+ times; did "
        r"they mean 'upperBodyLogo'\?\)\. All images.*name it in ignore \(--ignore NAME\)"
    )
    with pytest.raises(ParValueError, match=message):
        read_peta(complete)
    with pytest.raises(ParValueError, match="no image has 'upperBodyLogo'\\. All images"):
        load_par_dataset("peta35", complete, ignore=["upperBodyLogos"])
    data = load_par_dataset("peta35", complete, ignore=("upperBodyLogos", "upperBodyLogo"))
    notes = json.loads(data["train"].info.description)
    assert notes["attributes_without_positive"] == ["upperBodyLogo"]
    assert list(notes["labels_not_taken"]) == ["upperBodyLogos"] and notes["labels_not_taken"]["upperBodyLogos"] > 5
    assert notes["options"]["ignore"] == ["upperBodyLogos", "upperBodyLogo"]
    assert sum(len(part) for part in data.values()) == len(small)


def test_a_label_that_nobody_takes_is_refused_in_a_complete_archive_and_told_in_a_part(complete, caplog):
    relabel(complete, b"accessoryFaceMask", b"carryingDog")
    with pytest.raises(ParValueError, match=r"no attribute takes the label 'carryingDog' \(\d+ times\)\. All images"):
        read_peta(complete)
    (complete / "PETA dataset" / "VIPeR" / "archive").rename(complete / "elsewhere")
    _, _, notes = read_peta(complete)
    assert "no attribute takes the label 'carryingDog'" in caplog.text and notes["labels_not_taken"]["carryingDog"] > 0
    assert [record.levelname for record in caplog.records if "carryingDog" in record.message] == ["WARNING"]
    caplog.clear()
    read_peta(complete, ignore=["carryingDog"])
    assert "carryingDog" not in caplog.text


def test_a_color_that_no_person_has_is_refused_but_for_the_two_of_the_data_set(complete):
    for color in (b"Blue", b"Pink"):
        relabel(complete, b" hair" + color, b"")
    schema, _, notes = read_peta(complete, "peta65")
    assert len(schema) == 65 and "attributes_without_positive" not in notes
    relabel(complete, b" hairRed", b"")
    with pytest.raises(ParValueError, match="no image has 'hairRed'"):
        read_peta(complete, "peta65")
    assert read_peta(complete, "peta65", ignore=["hairRed"])[2]["attributes_without_positive"] == ["hairRed"]
    read_peta(complete)  # peta35 has no colors


def test_a_mat_file_with_an_empty_or_an_unknown_column(small, tmp_path, monkeypatch, caplog):
    data = np.column_stack([small, small[:, 4]])
    data[:, 4 + PETA_NAMES.index("hairLong")] = 0
    savemat(tmp_path / "PETA.mat", peta_variables(data, sizes=(30, 6, 24), names=(*PETA_NAMES, "carryingDog")))
    _, _, notes = read_peta(tmp_path)
    assert "no image has 'hairLong'; no attribute takes the label 'carryingDog'" in caplog.text
    assert notes["attributes_without_positive"] == ["hairLong"]
    monkeypatch.setattr(peta, "_OFFICIAL_IMAGES", 60)
    with pytest.raises(ParValueError, match="PETA.mat: no image has 'hairLong'; no attribute takes .*'carryingDog'"):
        read_peta(tmp_path)


def test_ignore_takes_names_that_are_there(complete):
    with pytest.raises(ParValueError, match="ignore names 'footwearSneakrs', .* did you mean 'footwearSneaker'"):
        read_peta(complete, ignore=["footwearSneakrs"])
    for wrong in ("hairLong", [3], 7):
        with pytest.raises(ParTypeError, match="ignore is .*; expected a list of names"):
            load_par_dataset("peta35", complete, ignore=wrong)


def test_half_unpacked_archive_is_said(archive, caplog):
    root, _ = archive
    (root / "PETA dataset" / "VIPeR" / "archive").rename(root / "elsewhere")
    _, _, notes = read_peta(root)
    assert "lacks 1 of the ten sub-folders of PETA: VIPeR" in caplog.text and "VIPeR" in notes["division"]
    (root / "PETA dataset" / "MIT" / "archive" / "Label.txt").unlink()
    with pytest.raises(FileNotFoundError, match="MIT.*holds no Label.txt"):
        read_peta(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>not found</html>", "Label.txt, line 1: begins with '<html>not'"),
        (b"001 hasHat isTall\n", "Label.txt, line 1: 'hasHat' is no attribute of PETA|'isTall'|line 1"),
        (b"\n", "Label.txt is empty"),
    ],
)
def test_label_file_of_something_else(archive, content, message):
    root, _ = archive
    (root / "PETA dataset" / "MIT" / "archive" / "Label.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_peta(root)


def break_data(change):
    def apply(variables):
        change(variables["peta"][0, 0]["data"])

    return apply


def set_value(row, column, value):
    return break_data(lambda data: data.__setitem__((row, column), value))


def rename_field(variables):
    fields = variables["peta"][0, 0]
    variables["peta"] = struct(data=fields["data"], attributes=fields["attribute"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_value(3, 0, 77), "does not count the images from 1"),
        (set_value(3, 2, 11), "subset.*outside 1 to 10"),
        (set_value(3, 50, 2), "labels other than 0 and 1"),
        (rename_field, r"lacks the field 'attribute'; it has \['data', 'attributes'\]"),
        (lambda v: v["peta"][0, 0]["attribute"].__setitem__((0, 0), "hasHat"), "lacks the attribute 'personalLess30'"),
        (
            lambda v: v["peta"][0, 0].__setitem__("data", DATA[:60, :90]),
            r"data has shape \(60, 90\); expected any x 109",
        ),
        (
            lambda v: v["peta"][0, 0]["partion_attribute"][0, 0][0, 0]["train"].__setitem__((0, 0), 61),
            "partition 0, train holds the image number 61; expected 1 to 60",
        ),
        (
            lambda v: v["peta"][0, 0]["partion_attribute"][0, 0][0, 0]["train"].__setitem__((0, 0), 0),
            "partition 0, train holds the image number 0",
        ),
    ],
)
def test_wrong_files_are_named(small, tmp_path, change, message):
    variables = peta_variables(small.copy(), sizes=(30, 6, 24))
    change(variables)
    savemat(tmp_path / "PETA.mat", variables)
    with pytest.raises(ValueError, match=f"PETA.mat.*{message}"):
        read_peta(tmp_path)


def test_another_data_set_and_damage_are_named(tmp_path):
    savemat(tmp_path / "PETA.mat", market_variables())
    with pytest.raises(ValueError, match="lacks the variable 'peta'.*annotation of Market-1501.*expected.*PETA"):
        read_peta(tmp_path)
    data = (tmp_path / "PETA.mat").read_bytes()
    (tmp_path / "PETA.mat").write_bytes(data[:3000])
    with pytest.raises(ValueError, match="PETA.mat (cannot be read as a MATLAB file|lacks the variable)"):
        read_peta(tmp_path)


def test_nothing_there_and_a_pickle(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' holds no PETA.mat"):
        read_peta(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no PETA.mat"):
        read_peta(tmp_path)
    (tmp_path / "dataset_zs_run0.pkl").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="dataset_zs_run0.pkl is another project's cache.*labels.csv"):
        read_peta(tmp_path)
