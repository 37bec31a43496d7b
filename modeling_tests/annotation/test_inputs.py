"""Image lists: the order of the inputs, tables, and what is refused."""

import logging
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from modeling_tests.image_folders import names, read, run, save_image
from vlm_par_hf.annotation import ImageList


def test_a_folder_is_searched_in_natural_order(tmp_path):
    for name in ("2.png", "10.png", "1/b10.JPG", "1/b9.png", ".hidden/3.png", ".4.png", "11/5.png", "x.png/6.png"):
        save_image(tmp_path / name, 0)
    (tmp_path / "notes.txt").write_text("not an image")
    expected = ["1/b9.png", "1/b10.JPG", "2.png", "10.png", "11/5.png", "x.png/6.png"]
    images = ImageList(tmp_path)
    assert names(images) == [str(tmp_path / name) for name in expected] and len(images) == 6
    assert [row.index for row in images.rows(2, 5)] == [2, 3, 4] and list(images.rows(6)) == []
    assert names(ImageList([tmp_path / "11", tmp_path / "2.png", tmp_path / "2.png"])) == [
        str(tmp_path / name) for name in ("11/5.png", "2.png", "2.png")
    ]
    assert names(ImageList(f"{tmp_path}/*.png")) == [
        str(tmp_path / name) for name in ("2.png", "10.png", "x.png/6.png")
    ]
    assert names(ImageList(f"{tmp_path}/**/*.png"))[:2] == [str(tmp_path / name) for name in ("1/b9.png", "2.png")]
    assert len(ImageList(tmp_path, without=[tmp_path / "1", tmp_path / "none"])) == 4


def test_links_to_folders_are_followed_once_and_one_that_leads_nowhere_is_listed(tmp_path):
    save_image(tmp_path / "elsewhere" / "a.png", 0)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "gone.png").symlink_to(tmp_path / "nothing.png")
    found = names(ImageList(tmp_path / "images"))
    assert found == [str(tmp_path / "images" / name) for name in ("gone.png", "linked/a.png")]


def test_names_in_brackets_and_names_that_are_not_utf8(tmp_path):
    save_image(tmp_path / "a[1].png", 0)
    assert names(ImageList(tmp_path / "a[1].png")) == [str(tmp_path / "a[1].png")]
    (tmp_path / "a[1].png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    assert names(ImageList(tmp_path)) == [f"{tmp_path}/\\xff.png"]
    assert ImageList(tmp_path).listing().isascii()


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        ("nowhere", FileNotFoundError, "no such image or folder"),
        ("nowhere*.jpg", FileNotFoundError, "nothing matches"),
        ("empty", ValueError, "no image in the folder"),
        ("out", ValueError, "also one to write to"),
        ([], ValueError, r"images=\[\]: expected at least one"),
        ("broken.parquet", ValueError, "broken.parquet' cannot be read as parquet"),
        ("other.parquet", ValueError, "image_column='image': .*other.parquet' has the columns x"),
        ("numbers.parquet", ValueError, "holds int64; expected encoded images"),
    ],
)
def test_inputs_that_are_refused(images, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("out").mkdir()
    Path("broken.parquet").write_bytes(b"PAR1 no")
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), "other.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"image": [1]}), "numbers.parquet")
    with pytest.raises(error, match=words):
        ImageList(images, without=["out"])


def test_beside_images_tables_are_read_only_when_named(tmp_path, caplog):
    save_image(tmp_path / "a.png", 0)
    pyarrow.parquet.write_table(pyarrow.table({"image": [b"x"]}), tmp_path / "old.parquet")
    with caplog.at_level(logging.WARNING, logger="vlm_par_hf"):
        assert names(ImageList(tmp_path)) == [str(tmp_path / "a.png")]
    assert "its 1 parquet files are not" in caplog.text
    assert len(ImageList([tmp_path, tmp_path / "old.parquet"])) == 2


@pytest.mark.parametrize("form", ["struct", "bytes", "path"])
def test_rows_of_tables(form, folder, model, tmp_path):
    """From any start, over the borders of row groups and files, the same images as from the files themselves."""
    files = names(ImageList(folder))
    tables = tmp_path / "tables"
    tables.mkdir()
    for number, part in enumerate((files[:13], files[13:])):
        data = [Path(path).read_bytes() for path in part]
        images = {
            "struct": [{"bytes": one, "path": Path(path).name} for one, path in zip(data, part)],
            "bytes": data,
            "path": [os.path.relpath(path, tables) for path in part],
        }[form]
        columns = {"image": images, "label": list(range(len(part)))} | ({"image_id": part} if number else {})
        pyarrow.parquet.write_table(pyarrow.table(columns), tables / f"{number}.parquet", row_group_size=5)
    images = ImageList(tables)
    rows = list(images.rows())
    assert len(images) == 20 and [row.index for row in rows] == list(range(20))
    assert [row.name for row in rows[12:15]] == [
        f"{tables}/{name}" for name in ("0.parquet#12", "1.parquet#0", "1.parquet#1")
    ]
    assert [row.image_id for row in rows] == [None] * 13 + files[13:]
    for start in range(20):
        assert list(images.rows(start, start + 7)) == rows[start : start + 7]
    run(folder, tmp_path / "files.jsonl", model)
    run(tables, tmp_path / "tables.jsonl", model)
    expected, found = read(tmp_path / "files.jsonl"), read(tmp_path / "tables.jsonl")
    assert [row["attributes"] for row in found] == [row["attributes"] for row in expected]
    assert "image_id" not in found[0] and found[13]["image_id"] == files[13]
    run(tables, tmp_path / "tables.parquet", model)
    table = pyarrow.parquet.read_table(tmp_path / "tables.parquet")
    assert table.column_names[:2] == ["image", "image_id"]
    assert table["image_id"].to_pylist() == [None] * 13 + files[13:]
