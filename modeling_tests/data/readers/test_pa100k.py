"""PA-100K's original layout: what is read is what the file says, and a file that is wrong is named."""

import numpy as np
import pytest

from modeling_tests.pa100k_files import cell, pa100k_variables
from vlm_par_hf.data import read_pa100k
from vlm_par_hf.labels.tables import get_schema


@pytest.mark.parametrize("split, prefix, size", [("train", "train", 6), ("validation", "val", 3), ("test", "test", 2)])
def test_reads_a_split(write_pa100k, split, prefix, size):
    variables = pa100k_variables()
    records = read_pa100k(write_pa100k(variables), split)
    assert [record.image_id for record in records] == [str(e[0]) for e in variables[f"{prefix}_images_name"].ravel()]
    assert np.array_equal([record.labels for record in records], variables[f"{prefix}_label"])
    assert len(records) == size and all(record.labels.dtype == np.int64 for record in records)
    assert all(record.person_id is None and record.camera_id is None for record in records)


@pytest.mark.parametrize("images", ["data", "release_data/release_data", "release_data", "images", "."])
@pytest.mark.parametrize("name", ["annotation.mat", "annotation/annotation.mat"])
def test_finds_images_and_annotation_where_archives_put_them(write_pa100k, images, name):
    root = write_pa100k(images=images, name=name)
    for record in read_pa100k(root, "test"):
        assert (root / images / record.image_id).samefile(record.image)


def test_attributes_in_another_order_are_matched_by_name(write_pa100k):
    variables = pa100k_variables()
    expected = variables["test_label"].copy()
    order = np.random.default_rng(1).permutation(26)
    variables["attributes"] = variables["attributes"][order]
    variables["test_label"] = variables["test_label"][:, order]
    records = read_pa100k(write_pa100k(variables), "test")
    assert np.array_equal([record.labels for record in records], expected)


def test_person_groups_become_person_ids(write_pa100k):
    root = write_pa100k()
    rows = [f"{number:06d}.jpg,{number // 2}" for number in range(1, 12)]
    (root / "person_groups.csv").write_text("image,group\n" + "\n".join(rows) + "\n")
    assert [record.person_id for record in read_pa100k(root, "train")] == [0, 1, 1, 2, 2, 3]
    (root / "person_groups.csv").write_text("image,group\n" + "\n".join(rows[1:]) + "\n")
    with pytest.raises(ValueError, match="person_groups.csv has no group for '000001.jpg'"):
        read_pa100k(root, "train")
    (root / "person_groups.csv").write_text("image,group\n000001.jpg,one\n")
    with pytest.raises(ValueError, match="person_groups.csv, line 2"):
        read_pa100k(root, "train")
    (root / "person_groups.csv").write_text("name,id\n")
    with pytest.raises(ValueError, match="line 1: columns are .*expected image,group"):
        read_pa100k(root, "train")


def change(key, value):
    def apply(variables):
        variables[key] = value(variables[key])

    return apply


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda v: v.pop("test_label"), "lacks the variable 'test_label'"),
        (lambda v: v.pop("attributes"), "lacks the variable 'attributes'"),
        (change("test_label", lambda a: a[:1]), "test_images_name has 2 entries but test_label has 1 rows"),
        (change("test_label", lambda a: a[:, :25]), r"test_label has shape \(2, 25\); expected any x 26"),
        (change("test_label", lambda a: a * 2), "test_label holds values other than 0 and 1"),
        (change("test_label", lambda a: a + 0.5), "test_label holds values other than whole numbers"),
        (change("attributes", lambda a: cell(["Cape", *get_schema("pa100k").names[1:]])), r"missing \['Female'\]"),
        (change("attributes", lambda a: a[:25]), r"missing \['boots'\].*25 names where 26"),
        (change("test_images_name", lambda a: a[[0, 0]]), "lists '000010.jpg' more than once"),
        (change("test_images_name", lambda a: cell(["../a.jpg", "b.jpg"])), "holds '../a.jpg'; expected a plain file"),
        (change("test_images_name", lambda a: np.arange(2.0)), "test_images_name holds 0.0 where a text was"),
    ],
)
def test_wrong_files_are_named(write_pa100k, break_it, message):
    variables = pa100k_variables()
    root = write_pa100k(variables)
    break_it(variables)
    root = write_pa100k(variables, images=None)
    with pytest.raises(ValueError, match=f"annotation.mat.*{message}"):
        read_pa100k(root, "test")


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.7, 0.99])
def test_truncated_file_is_named(write_pa100k, share):
    path = write_pa100k(images=None) / "annotation.mat"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="annotation.mat (cannot be read as a MATLAB file|lacks the variable)"):
        for split in ("train", "validation", "test"):  # a split is read without what follows it in the file
            read_pa100k(path.parent, split)


def test_other_kinds_of_file_are_named(write_pa100k):
    path = write_pa100k(images=None) / "annotation.mat"
    web_page = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n"
    for content in (
        web_page,
        b"image,label\n" * 50,
        b"PK\x03\x04" + b"\x00" * 200,
        b"\x89HDF\r\n\x1a\n" + b"\x00" * 600,
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="annotation.mat (cannot be read as a MATLAB file|lacks the variable)"):
            read_pa100k(path.parent, "train")


def test_another_data_set_is_named(write_pa100k):
    from scipy.io import savemat

    path = write_pa100k(images=None) / "annotation.mat"
    savemat(path, {"peta": np.zeros((1, 1))})
    with pytest.raises(ValueError, match="lacks the variable 'attributes'.*annotation of PETA; expected.*of PA-100K"):
        read_pa100k(path.parent, "test")


def test_person_groups_that_are_not_utf8(write_pa100k):
    root = write_pa100k()
    (root / "person_groups.csv").write_bytes("image,group\ncafé.jpg,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="person_groups.csv, line [0-9]+ is not UTF-8 text"):
        read_pa100k(root, "train")


def test_wrong_arguments(write_pa100k, tmp_path):
    with pytest.raises(ValueError, match="split is 'val'; expected one of .'test', 'train', 'validation'"):
        read_pa100k(write_pa100k(images=None), "val")
    with pytest.raises(FileNotFoundError, match="holds no annotation.mat"):
        read_pa100k(tmp_path / "nowhere", "train")


def test_official_annotation(par_data):
    sizes = {"train": 80_000, "validation": 10_000, "test": 10_000}
    for split, size in sizes.items():
        records = read_pa100k(par_data / "pa100k", split)
        assert len(records) == size
        if split == "test":
            positives = np.sum([record.labels for record in records], axis=0)
            assert positives.argmax() == get_schema("pa100k").index("Age18-60") and positives.min() > 0
            assert records[0].image_id == "090001.jpg" and records[-1].image_id == "100000.jpg"
