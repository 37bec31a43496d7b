"""Image lists: the order of the inputs, tables, and what is refused."""

import json
import logging
import os
from pathlib import Path

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from modeling_tests.image_folders import names, read, run, save_image
from vlm_par_hf.annotation import ImageList
from vlm_par_hf.images.opening import IMAGE_SUFFIXES


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


def test_links_are_followed_inside_the_folder_and_once_round_a_circle(tmp_path):
    save_image(tmp_path / "images" / "b" / "a.png", 0)
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "images" / "b")
    (tmp_path / "images" / "b" / "round").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "gone.png").symlink_to(tmp_path / "images" / "nothing.png")
    images = ImageList(tmp_path / "images")
    assert names(images) == [str(tmp_path / "images" / name) for name in ("b/a.png", "gone.png", "linked/a.png")]
    assert images.left_out == []


@pytest.mark.parametrize("form", ["folder", "glob"])
def test_links_that_lead_out_are_counted_and_followed_only_when_asked(form, tmp_path, caplog):
    for number in range(2):
        save_image(tmp_path / "elsewhere" / f"{number}.png", 0)
    save_image(tmp_path / "images" / "a.png", 0)
    (tmp_path / "images" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "file.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    (tmp_path / "imagesque").mkdir()  # no folder is below another because their names begin alike
    (tmp_path / "imagesque" / "0.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    (tmp_path / "images" / "like.png").symlink_to(tmp_path / "imagesque" / "0.png")
    source = tmp_path / "images" if form == "folder" else f"{tmp_path}/images/**/*.png"
    images = ImageList(source)
    assert names(images) == [str(tmp_path / "images" / "a.png")]
    (entry,) = images.left_out
    assert "lead out of the folder" in entry["what"] and entry["count"] == (3 if form == "folder" else 4)
    assert entry["first"] == str(tmp_path / "images" / "file.png")
    assert len(ImageList(source, follow_links=True)) == 5
    assert len(ImageList(tmp_path / "images" / "file.png")) == len(ImageList(tmp_path / "images" / "folder")) - 1 == 1
    (tmp_path / "images" / "a.png").unlink()
    if form == "folder":
        with pytest.raises(ValueError, match="no image in the folder .*holds 3 links that lead out.*--follow-links"):
            ImageList(source)


def test_what_a_folder_holds_beside_images_is_counted_and_named(tmp_path, caplog):
    save_image(tmp_path / "a.png", 0)
    for name in ("b.heic", "c.HEIC", "notes.txt", "README", ".hidden.png", "d.psd"):
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    with caplog.at_level(logging.WARNING, logger="vlm_par_hf"):
        images = ImageList(tmp_path)
    assert len(images) == 1
    counts = {entry["what"]: (entry["count"], Path(entry["first"]).name) for entry in images.left_out}
    assert counts == {
        "hidden files and folders": (1, ".hidden.png"),
        "files without an ending": (1, "README"),
        ".heic files": (2, "b.heic"),
        ".psd files": (1, "d.psd"),
        ".txt files": (1, "notes.txt"),
        "names of images that are no regular files": (1, "pipe.png"),
    }
    assert f"{tmp_path}: not read are 1 files without an ending, 2 .heic files" in caplog.text
    with pytest.raises(ValueError, match="pipe.png' is no regular file"):
        ImageList(tmp_path / "pipe.png")


def test_every_kind_of_file_that_is_read_is_found_in_a_folder(tmp_path):
    for number, suffix in enumerate(IMAGE_SUFFIXES):
        (tmp_path / f"{number}{suffix}").write_bytes(b"")
    assert len(ImageList(tmp_path)) == len(IMAGE_SUFFIXES) and {".webp", ".avif", ".jfif"} < set(IMAGE_SUFFIXES)


def test_the_report_says_what_was_left_out(folder, model, tmp_path):
    (folder / "x.heic").write_bytes(b"")
    report = run(folder, tmp_path / "out.jsonl", model)
    assert report["left_out"] == [{"what": ".heic files", "count": 1, "first": str(folder / "x.heic")}]
    assert json.loads((tmp_path / "out.report.json").read_text())["left_out"] == report["left_out"]


def test_names_in_the_order_of_their_container(tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for path in files:
        save_image(path, 0)
    series = pandas.Series([str(path) for path in files]).iloc[::-1]
    assert names(ImageList(series)) == [str(path) for path in files[::-1]]
    with pytest.raises(TypeError, match="images is a set, which has no order"):
        ImageList(set(files))


def test_a_url_is_read_only_on_request_and_named_without_its_secrets():
    url = "https://example.org/a/b.jpg?id=7&token=abc"
    with pytest.raises(ValueError, match=r"'https://example.org/a/b.jpg\?id=7&token=\*\*\*' is a URL.*--allow-urls"):
        ImageList(url)
    other = url.replace("abc", "def")
    images = ImageList([url, other], allow_urls=True)
    assert names(images) == ["https://example.org/a/b.jpg?id=7&token=***"] * 2
    assert [row.image for row in images.rows()] == [url, other]
    first, second = images.listing().splitlines()
    assert first != second and "abc" not in first


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
            "path": [os.path.relpath(path, folder) for path in part],
        }[form]
        columns = {"image": images, "label": list(range(len(part)))} | ({"image_id": part} if number else {})
        pyarrow.parquet.write_table(pyarrow.table(columns), tables / f"{number}.parquet", row_group_size=5)
    root = {"image_root": folder} if form == "path" else {}
    images = ImageList(tables, **root)
    rows = list(images.rows())
    assert len(images) == 20 and [row.index for row in rows] == list(range(20))
    assert [row.name for row in rows[12:15]] == [
        f"{tables}/{name}" for name in ("0.parquet#12", "1.parquet#0", "1.parquet#1")
    ]
    assert [row.image_id for row in rows] == [None] * 13 + files[13:]
    for start in range(20):
        assert list(images.rows(start, start + 7)) == rows[start : start + 7]
    run(folder, tmp_path / "files.jsonl", model)
    run(tables, tmp_path / "tables.jsonl", model, **root)
    expected, found = read(tmp_path / "files.jsonl"), read(tmp_path / "tables.jsonl")
    assert [row["attributes"] for row in found] == [row["attributes"] for row in expected]
    assert "image_id" not in found[0] and found[13]["image_id"] == files[13]
    run(tables, tmp_path / "tables.parquet", model, **root)
    table = pyarrow.parquet.read_table(tmp_path / "tables.parquet")
    assert table.column_names[:2] == ["image", "image_id"]
    assert table["image_id"].to_pylist() == [None] * 13 + files[13:]


def write_table(path, **columns) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_paths_in_a_table_lead_nowhere_out_of_its_folder(model, tmp_path):
    tables = tmp_path / "tables"
    save_image(tables / "inside.png", 0)
    save_image(tmp_path / "outside.png", 0)
    (tables / "link.png").symlink_to(tmp_path / "outside.png")
    (tables / "other.png").symlink_to(tables / "inside.png")
    os.mkfifo(tables / "pipe.png")
    absolute, url = str(tmp_path / "outside.png"), "http://127.0.0.1:9/a.png?token=abc"
    paths = ["inside.png", "../outside.png", absolute, "link.png", "other.png", "pipe.png", "/dev/zero", url]
    write_table(tables / "t.parquet", image=paths)
    report = run(tables / "t.parquet", tmp_path / "out.jsonl", model)
    errors = {int(entry["image"].rpartition("#")[2]): entry["error"] for entry in report["broken"]}
    assert sorted(errors) == [1, 2, 3, 5, 6, 7]
    assert all("leads out of the folder" in errors[row] and "--image-root" in errors[row] for row in (1, 2, 3, 6))
    assert "no regular file" in errors[5] and "only with allow_urls" in errors[7] and "abc" not in errors[7]
    report = run(tables / "t.parquet", tmp_path / "all.jsonl", model, image_root="/", allow_urls=True)
    errors = {int(entry["image"].rpartition("#")[2]): entry["error"] for entry in report["broken"]}
    assert 2 not in errors and "no regular file" in errors[6]
    assert "127.0.0.1, which is not public" in errors[7] and "abc" not in errors[7]
    with pytest.raises(FileNotFoundError, match="image_root='nowhere': expected a folder"):
        ImageList(tables / "t.parquet", image_root="nowhere")


def test_a_box_of_a_row_is_one_person(folder, model, tmp_path):
    """The answer is that of the crop, and says which pixels it is of."""
    data = [(folder / f"{number}.png").read_bytes() for number in (1, 2, 3)]
    boxes = [[0.0, 0.25, 0.5, 1.0], [0.25, 0.0, 1.0, 0.5], None]  # of 12 x 24 pixels
    write_table(tmp_path / "t.parquet", image=data, where=boxes)
    options = {"boxes": "where", "box_format": "xyxyn", "box_margin": 1 / 6}
    (entry,) = run(tmp_path / "t.parquet", tmp_path / "out.jsonl", model, **options)["broken"]
    assert "#2" in entry["image"] and "the row has no box" in entry["error"]
    found = read(tmp_path / "out.jsonl")
    crops = [(0, 3, 7, 24), (1, 0, 12, 14)]
    assert [row["box"] for row in found] == [list(crop) for crop in crops]
    assert [row["box_without_margin"] for row in found] == [[0, 6, 6, 24], [3, 0, 12, 12]]
    for number, crop in enumerate(crops):
        with Image.open(folder / f"{number + 1}.png") as picture:
            picture.crop(crop).save(tmp_path / f"{number}.png")
    run([tmp_path / "0.png", tmp_path / "1.png"], tmp_path / "crops.jsonl", model)
    assert [row["attributes"] for row in found] == [row["attributes"] for row in read(tmp_path / "crops.jsonl")]
    with pytest.raises(ValueError, match="box_format was 'xyxyn' and is 'xyxy'"):
        run(tmp_path / "t.parquet", tmp_path / "out.jsonl", model, boxes="where", box_margin=1 / 6)
    with pytest.raises(ValueError, match="box_column='image' of .* holds binary; expected lists of four numbers"):
        ImageList(tmp_path / "t.parquet", box_column="image")
