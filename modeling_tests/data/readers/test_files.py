"""Paths in a data set: below its folder, regular files, and links only where the user lets them."""

import os

import pytest
from PIL import Image

from vlm_par_hf.data import load_par_dataset
from vlm_par_hf.data.readers import files
from vlm_par_hf.labels.schema import AttributeSchema


SCHEMA = AttributeSchema([{"name": "Hat", "question": "is there a hat?", "prompts": ["no hat", "a hat"]}])


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    SCHEMA.to_json(root / "schema.json")
    (root / "labels.csv").write_text("image,split,Hat\nimages/a.png,train,1\nimages/b.png,test,0\n")
    for name in ("a", "b"):
        Image.new("RGB", (6, 14)).save(root / "images" / f"{name}.png")
    (tmp_path / "private").mkdir()
    Image.new("RGB", (6, 14), (9, 9, 9)).save(tmp_path / "private" / "secret.png")
    return root


def test_a_link_out_of_the_folder_is_refused_unless_followed(root):
    secret = root.parent / "private" / "secret.png"
    (root / "images" / "a.png").unlink()
    (root / "images" / "a.png").symlink_to(secret)
    with pytest.raises(ValueError, match=r"a.png' is a link to '.*secret.png', out of .*follow_links=True"):
        load_par_dataset("folder", root)
    data = load_par_dataset("folder", root, follow_links=True)
    assert data["train"][0]["image"].getpixel((0, 0)) == (9, 9, 9)


def test_a_linked_folder_and_a_linked_table(root):
    outside = root.parent / "elsewhere"
    (root / "images").rename(outside)
    (root / "images").symlink_to(outside)
    with pytest.raises(ValueError, match="is a link to '.*elsewhere'"):
        load_par_dataset("folder", root)
    assert len(load_par_dataset("folder", root, follow_links=True)["train"]) == 1
    (root / "labels.csv").rename(outside / "labels.csv")
    (root / "labels.csv").symlink_to(outside / "labels.csv")
    with pytest.raises(ValueError, match="labels.csv' is a link"):
        load_par_dataset("folder", root)


def test_links_inside_and_a_linked_root_are_ordinary(root):
    (root / "images" / "a.png").unlink()
    (root / "images" / "a.png").symlink_to("b.png")
    (root.parent / "short").symlink_to(root)
    assert len(load_par_dataset("folder", root.parent / "short")["train"]) == 1


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_regular_file_is_refused(root, kind):
    path = root / "images" / "a.png"
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(ValueError, match="a.png' is no regular file; expected an image file"):
        load_par_dataset("folder", root, missing="skip")


def test_a_link_to_nothing_is_missing(root):
    path = root / "images" / "a.png"
    path.unlink()
    path.symlink_to("nothing.png")
    with pytest.raises(FileNotFoundError, match="1 of 2 listed images do not exist"):
        load_par_dataset("folder", root)


def test_a_huge_table_is_refused(root, monkeypatch):
    monkeypatch.setattr(files, "MAX_TABLE_BYTES", 10)
    with pytest.raises(ValueError, match="has .* bytes; at most 10 are read"):
        load_par_dataset("folder", root)


def test_a_name_that_is_not_utf8(root):
    os.rename(root / "images" / "a.png", os.fsencode(root / "images") + b"/\xe9.png")
    (root / "labels.csv").write_bytes(b"image,split,Hat\nimages/\xe9.png,train,1\n")
    with pytest.raises(ValueError, match="labels.csv, line 2 is not UTF-8 text"):
        load_par_dataset("folder", root)
