"""RAP versions 1 and 2 at full size: fields by name, 2 is unknown, images by stem."""

import json

import numpy as np
import pytest
from scipy.io import savemat

from modeling_tests.original_files import market_variables, rapv1_variables, rapv2_variables, write_picture
from vlm_par_hf.data import load_par_dataset, read_rapv1, read_rapv2
from vlm_par_hf.data.readers import rap
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.tables import get_schema


def write(root, variables):
    (root / "RAP_annotation").mkdir(parents=True, exist_ok=True)
    savemat(root / "RAP_annotation" / "RAP_annotation.mat", variables)
    return root


def fields_of(variables):
    return variables["RAP_annotation"][0, 0]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    variables = rapv1_variables()
    return write(tmp_path_factory.mktemp("rapv1"), variables), variables


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    variables = rapv2_variables()
    return write(tmp_path_factory.mktemp("rapv2"), variables), variables


def test_version_1(first):
    root, variables = first
    schema, splits, notes = read_rapv1(root, partition=3, seed=5)
    assert schema == get_schema("rapv1")
    label, images = fields_of(variables)["label"], [str(e[0]) for e in fields_of(variables)["imagesname"].ravel()]
    part = fields_of(variables)["partion"][3, 0][0, 0]
    test = part["test_index"].ravel().astype(int) - 1
    assert [record.image_id for record in splits["test"]] == [images[i] for i in test]
    expected = label[test, :51].astype(np.int64)
    expected[expected == 2] = -100
    assert np.array_equal(np.stack([record.labels for record in splits["test"]]), expected)
    assert (expected == -100).any() and not (expected[:, 1:] == -100).any()
    # no official validation: whole tracks of the training images
    train = {images[i] for i in part["train_index"].ravel().astype(int) - 1}
    names = {split: [record.image_id for record in splits[split]] for split in splits}
    assert set(names["train"]) | set(names["validation"]) == train and len(names["validation"]) == pytest.approx(
        len(train) / 10, abs=9
    )
    tracks = {split: {name.split("-frame")[0] for name in names[split]} for split in names}
    assert not tracks["train"] & tracks["validation"]
    assert "validation ours" in notes["division"] and "seed 5" in notes["division"]
    assert splits["test"][0].camera_id == int(names["test"][0][3:5])


def test_version_2(second):
    root, variables = second
    schema, splits, _ = read_rapv2(root, partition=1)
    assert schema == get_schema("rapv2")
    fields = fields_of(variables)
    part = fields["partition_attribute"][0, 1][0, 0]
    columns = fields["selected_attribute"].ravel().astype(int) - 1
    for split, name in (("train", "train_index"), ("validation", "val_index"), ("test", "test_index")):
        rows = part[name].ravel().astype(int) - 1
        expected = fields["data"][rows][:, columns].astype(np.int64)
        expected[expected == 2] = -100
        assert np.array_equal(np.stack([record.labels for record in splits[split]]), expected)
        persons = fields["person_identity"].ravel()[rows[:200]].tolist()
        assert [record.person_id for record in splits[split][:200]] == [p if p >= 0 else None for p in persons]
    assert sum(map(len, splits.values())) == 84928


def test_images_are_found_by_stem(tmp_path):
    variables = rapv2_variables(images=10)
    write(tmp_path, variables)
    for name in fields_of(variables)["name"].ravel():
        write_picture(tmp_path / "RAP_dataset" / str(name[0]).replace(".jpg", ".PNG"))
    data = load_par_dataset("rapv2", tmp_path)
    assert {split: len(part) for split, part in data.items()} == {"train": 6, "validation": 2, "test": 2}
    assert data["train"][0]["image"].size == (6, 14) and data["train"][0]["image_id"].endswith(".PNG")
    write_picture(tmp_path / "RAP_dataset" / str(fields_of(variables)["name"][0, 0][0]))
    with pytest.raises(ValueError, match="holds both .*expected one image per name"):
        read_rapv2(tmp_path)


def test_the_other_version_is_named(tmp_path):
    write(tmp_path, rapv1_variables(images=10))
    with pytest.raises(ValueError, match='is of RAP version 1 .*load it as "rapv1"'):
        read_rapv2(tmp_path)
    write(tmp_path, rapv2_variables(images=10))
    with pytest.raises(ValueError, match='is of RAP version 2 .*load it as "rapv2"'):
        read_rapv1(tmp_path)
    write(tmp_path, market_variables())
    with pytest.raises(ValueError, match="annotation of Market-1501 attributes; expected the annotation of RAP"):
        read_rapv1(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["label"].__setitem__((3, 0), 3), "label is 3 for 'Female' of image 4; expected 0, 1 or 2"),
        (lambda f: f["attribute_eng"].__setitem__((9, 0), "Cape"), "lacks the attribute 'hs-BaldHead'"),
        (lambda f: f.__setitem__("label", f["label"][:9]), r"label has shape \(9, 92\); expected 10 x 92"),
        (lambda f: f.__setitem__("attribute_eng", f["attribute_eng"][:91]), "attribute_eng has 91 names; expected 92"),
        (
            lambda f: f["partion"][0, 0][0, 0]["test_index"].__setitem__((0, 0), 11),
            "partition 0, test holds the image number 11; expected 1 to 10",
        ),
        (
            lambda f: f["partion"][0, 0][0, 0].__setitem__(
                "test_index", f["partion"][0, 0][0, 0]["train_index"][:, :2]
            ),
            "is in both 'train' and 'test' of partition 0",
        ),
    ],
)
def test_wrong_files_are_named(tmp_path, change, message):
    variables = rapv1_variables(images=10)
    change(fields_of(variables))
    write(tmp_path, variables)
    with pytest.raises(ValueError, match=f"RAP_annotation.mat.*{message}"):
        read_rapv1(tmp_path)


def test_selection_that_lacks_an_attribute(tmp_path):
    variables = rapv2_variables(images=10)
    fields_of(variables)["selected_attribute"][0, 0] = 6
    write(tmp_path, variables)
    with pytest.raises(ValueError, match="selected_attribute does not select 'Female'"):
        read_rapv2(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no RAP_annotation.mat"):
        read_rapv1(tmp_path)


@pytest.mark.parametrize(("name", "make", "official"), [("rapv1", rapv1_variables, "_V1_IMAGES"),
                                                        ("rapv2", rapv2_variables, "_V2_IMAGES")])  # fmt: skip
def test_of_complete_data_every_attribute_has_a_positive(tmp_path, name, make, official, monkeypatch, caplog):
    variables = make(images=60)
    fields = fields_of(variables)
    columns = [str(entry[0]) for entry in fields["attribute_eng" if name == "rapv1" else "attribute"].ravel()]
    attribute = get_schema(name).names[12]
    fields["label" if name == "rapv1" else "data"][:, columns.index(attribute)] = 0
    write(tmp_path, variables)
    data = load_par_dataset(name, tmp_path, missing="skip")
    assert f"no image has '{attribute}'" in caplog.text
    assert json.loads(data["test"].info.description)["attributes_without_positive"] == [attribute]
    monkeypatch.setattr(rap, official, 60)
    with pytest.raises(ParValueError, match=f"RAP_annotation.mat: no image has '{attribute}'. All images"):
        load_par_dataset(name, tmp_path, missing="skip")
    load_par_dataset(name, tmp_path, missing="skip", ignore=[attribute])
