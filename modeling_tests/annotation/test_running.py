"""Annotating many images: order, broken files, resumption after SIGKILL, tables in and out, Ray."""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from transformers import pipeline

from modeling_tests.tiny import randomize, tiny_model, tiny_processor, tiny_schema
from vlm_par_hf.annotation import Annotator, ImageList, annotate
from vlm_par_hf.annotation import annotator as annotator_module
from vlm_par_hf.annotation.on_ray import ReadForRay
from vlm_par_hf.annotation.results import lock_parts
from vlm_par_hf.models.vlm_par import VlmParModel


ROOT = Path(__file__).parents[2]


def save_image(path: Path, number: int, size=(12, 24)) -> None:
    rng = np.random.default_rng(number)
    pixels = np.uint8(rng.uniform(0, 1, (size[1], size[0], 3)) * rng.uniform(0, 255, (size[1], 1, 3)))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_model(folder, seed=2, processor=None) -> None:
    randomize(tiny_model("kway"), seed, scale=2.0).save_pretrained(folder)
    (processor or tiny_processor("naflex")).save_pretrained(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twenty images: 1.png to 20.png."""
    for number in range(1, 21):
        save_image(tmp_path / "images" / f"{number}.png", number)
    return tmp_path / "images"


def names(images: ImageList) -> list[str]:
    return [row.name for row in images.rows()]


def read(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def run(images, out, model, **options):
    return annotate(images, out, model=model, **{"batch_size": 3, "images_per_part": 8, "progress": False, **options})


# The order of the inputs


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


# Answers


def test_the_output_is_that_of_the_pipeline_in_order(folder, model, tmp_path):
    files = [str(folder / f"{number}.png") for number in range(1, 21)]
    expected = pipeline("pedestrian-attributes", model=model)(files)
    outputs = []
    for batch_size in (1, 3, 50):
        out = tmp_path / f"{batch_size}.jsonl"
        report = run(folder, out, model, batch_size=batch_size)
        rows = read(out)
        assert [row["image"] for row in rows] == files
        for row, answer in zip(rows, expected):
            assert list(row) == ["image", "attributes"] and list(row["attributes"]) == list(answer["attributes"])
            for name, found in row["attributes"].items():
                assert found["label"] == answer["attributes"][name]["label"]
                assert found["score"] == pytest.approx(answer["attributes"][name]["score"], abs=1e-6)
        assert report == json.loads(out.with_suffix(".report.json").read_text())
        assert report["predictions"] == report["images"] == 20 and report["broken"] == []
        assert not Path(f"{out}.partial").exists()
        outputs.append([{name: one["label"] for name, one in row["attributes"].items()} for row in rows])
    assert outputs[0] == outputs[1] == outputs[2] and len({str(one) for one in outputs[0]}) > 1


def test_parquet_output(folder, model, tmp_path):
    run(folder, tmp_path / "out.jsonl", model)
    run(folder, tmp_path / "out.parquet", model)
    rows = read(tmp_path / "out.jsonl")
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    schema = tiny_schema(kway=True)
    assert table.column_names == ["image", *(f"{name}{end}" for name in schema.names for end in ("", "_score"))]
    assert table["image"].to_pylist() == [row["image"] for row in rows]
    for name in schema.names:
        assert table[name].to_pylist() == [row["attributes"][name]["label"] for row in rows]
        scores = np.float32([row["attributes"][name]["score"] for row in rows])
        np.testing.assert_array_equal(table[f"{name}_score"].to_numpy(), scores)
    run(folder, tmp_path / "some.parquet", model, only_positive=True, sensitive=False)
    some = pyarrow.parquet.read_table(tmp_path / "some.parquet")
    assert set(table.column_names) - set(some.column_names) == {"Female", "Female_score"}
    for name in ("Hat", "Backpack"):
        assert some[name].to_pylist() == [one if one == "yes" else None for one in table[name].to_pylist()]
        assert some[f"{name}_score"].null_count == table[name].to_pylist().count("no")
    assert 0 < table["Hat"].to_pylist().count("no") < 20


def test_columns_of_one_name_are_refused_before_the_work(folder, tmp_path):
    schema = [{"name": name, "question": "?", "prompts": ["no", "yes"]} for name in ("Hat", "Hat_score")]
    tiny_model("naflex", attributes=schema).save_pretrained(tmp_path / "model")
    tiny_processor("naflex").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="two columns of the output are called 'Hat_score': write .jsonl instead"):
        run(folder, tmp_path / "out.parquet", str(tmp_path / "model"))


def test_an_annotator_is_a_function_of_batches_that_can_be_pickled(folder, model):
    import datasets

    annotator = Annotator(model, batch_size=3, sensitive=False)
    files = names(ImageList(folder))
    with Image.open(files[1]) as opened:
        picture = opened.convert("RGB")
    sources = [files[0], picture, Path(files[2]).read_bytes(), np.asarray(picture), picture, "none.png", None]
    found = annotator({"image": sources, "key": list("abcdefg")})
    assert set(found) == {"key", "prediction", "error"} and found["key"] == list("abcdefg")
    assert found["error"][:5] == [None] * 5 and found["prediction"][5:] == [None, None]
    assert found["error"][5] == "image file 'none.png' does not exist" and "NoneType" in found["error"][6]
    answers = [json.loads(text) for text in found["prediction"][:5]]
    assert "Female" not in answers[0]["attributes"]
    scores = [answer["attributes"]["Hat"]["score"] for answer in answers]
    assert scores[1] == pytest.approx(scores[3], abs=1e-6) == pytest.approx(scores[4], abs=1e-6) != scores[0]
    copy = pickle.loads(pickle.dumps(annotator))
    assert "pipe" in vars(annotator) and "pipe" not in vars(copy)
    assert copy({"image": files})["prediction"] == annotator({"image": files})["prediction"]
    data = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    mapped = data.map(Annotator(model, batch_size=3, sensitive=False), batched=True, batch_size=6)
    assert mapped["prediction"][:] == annotator({"image": files})["prediction"]


def test_a_fingerprint_follows_the_weights_and_the_settings_not_the_place(model, tmp_path):
    first = Annotator(model).fingerprint()
    processor = tiny_processor("naflex")
    processor.image_processor.max_num_patches = 9
    found = []
    for options in ({}, {"processor": processor}, {"seed": 1}):
        save_model(tmp_path / "moved", **options)
        found.append(Annotator(str(tmp_path / "moved")).fingerprint())
    assert found[0] == first and len(set(found)) == 3


def test_pictures_of_every_image(folder, model, tmp_path):
    save_image(folder / "more" / "1.jpg", 99)
    draw = folder / "drawn"  # inside what is searched: it must not become input of the next run
    for out in ("first.jsonl", "second.jsonl"):
        report = run(folder, tmp_path / out, model, draw=draw)
        assert report["images"] == 21
    drawn = {path.name for path in draw.iterdir()}
    assert drawn == {f"{number}_attributes.png" for number in range(2, 21)} | {
        "1_attributes_0.png",
        "1_attributes_20.png",
    }
    with Image.open(draw / "2_attributes.png") as picture:
        assert picture.width > 100
    with pytest.raises(ValueError, match="drawn by one process"):
        run(folder, tmp_path / "third.jsonl", model, draw=draw, ray_workers=2)


# Broken images


def test_broken_images_are_named_and_change_nothing_else(folder, model, tmp_path):
    run(folder, tmp_path / "good.jsonl", model)
    whole = (folder / "5.png").read_bytes()
    broken = {
        "4b.png": (b"<!DOCTYPE html><html>404</html>", "web page"),
        "5b.png": (whole[: len(whole) // 2], "truncated"),
        "6b.jpg": (b"", "cannot be read as an image: it is empty"),
        "7b.png": (None, "does not exist"),
    }
    for name, (data, _) in broken.items():
        if data is None:
            (folder / name).symlink_to(folder / "nothing")
        else:
            (folder / name).write_bytes(data)
    report = run(folder, tmp_path / "out.jsonl", model)
    # Other batches: equal up to rounding.
    good, found = read(tmp_path / "good.jsonl"), read(tmp_path / "out.jsonl")
    assert [row["image"] for row in found] == [row["image"] for row in good]
    for one, other in zip(good, found):
        for name in one["attributes"]:
            assert one["attributes"][name]["score"] == pytest.approx(other["attributes"][name]["score"], abs=1e-6)
    assert report["images"] == 24 and report["predictions"] == 20
    assert [entry["image"] for entry in report["broken"]] == [str(folder / name) for name in broken]
    for entry, (_, words) in zip(report["broken"], broken.values()):
        assert words in entry["error"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_image_without_permission_is_named(folder, model, tmp_path):
    (folder / "3.png").chmod(0)
    (entry,) = run(folder, tmp_path / "out.jsonl", model)["broken"]
    assert entry["image"].endswith("3.png") and "ermission" in entry["error"]


def test_an_image_that_fails_on_reading_is_named(folder, model, tmp_path, monkeypatch):
    real = annotator_module.open_image

    def open_image(image):
        if str(image).endswith("/3.png"):
            raise PermissionError(13, "Permission denied", image)
        return real(image)

    monkeypatch.setattr(annotator_module, "open_image", open_image)
    (entry,) = run(folder, tmp_path / "out.jsonl", model)["broken"]
    assert entry["image"].endswith("3.png") and "Permission denied" in entry["error"]


def test_an_image_that_the_processor_refuses_is_named(folder, model, tmp_path, monkeypatch):
    save_image(folder / "5b.png", 0, size=(1, 300))
    processor = type(Annotator(model).pipe.processor)
    real = processor.__call__

    def call(self, images, **options):
        if any(image.width == 1 for image in images):
            raise ValueError("height/width is 300, expected at most 200")
        return real(self, images, **options)

    monkeypatch.setattr(processor, "__call__", call)
    report = run(folder, tmp_path / "out.jsonl", model)
    (entry,) = report["broken"]
    assert entry["image"].endswith("5b.png") and report["predictions"] == 20
    assert entry["error"] == (
        "the image of size (1, 300) cannot be prepared for the model: height/width is 300, expected at most 200"
    )


def test_rows_without_an_image_are_named(model, tmp_path):
    values = [None, {"bytes": b"no image", "path": "a.png"}, {"bytes": None, "path": "nowhere.png"}]
    table = pyarrow.table({"image": values, "image_id": [7, 8, 9]})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    report = run(tmp_path / "in.parquet", tmp_path / "out.parquet", model)
    assert [entry["image"] for entry in report["broken"]] == [f"{tmp_path}/in.parquet#{row}" for row in range(3)]
    assert [entry["image_id"] for entry in report["broken"]] == ["7", "8", "9"]
    for entry, words in zip(report["broken"], ("neither 'path' nor 'bytes'", "a.png", f"{tmp_path}/nowhere.png")):
        assert words in entry["error"]
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").num_rows == 0


# Going on


# Kills itself at the given one of its reads and renames; tells what it read.
KILLED = """
import os, signal, sys
import vlm_par_hf.utils
from vlm_par_hf.annotation import annotate, annotator

images, out, model, steps = sys.argv[1:]
real_open, real_replace = annotator.open_image, os.replace
count = 0

def step():
    global count
    count += 1
    if count == int(steps):
        os.kill(os.getpid(), signal.SIGKILL)

def open_image(image):
    step()
    os.write(log, f"{os.path.basename(image)}\\n".encode())
    return real_open(image)

def replace(*paths):
    step()
    real_replace(*paths)

for number in range(100):
    before = sorted(os.listdir(out + ".partial")) if os.path.isdir(out + ".partial") else []
    reader, log = os.pipe()
    # Nothing has run in this process that a fork could not survive.
    child = os.fork()
    if not child:
        os.close(reader)
        annotator.open_image, os.replace = open_image, replace
        annotate(images, out, model=model, batch_size=2, images_per_part=4, progress=False)
        os._exit(0)
    os.close(log)
    with os.fdopen(reader) as file:
        opened = file.read().split()
    _, status = os.waitpid(child, 0)
    parts = [name for name in before if name.startswith("part-")]
    print(os.WTERMSIG(status), ",".join(parts), ",".join(opened), sep=";")
    if not os.WIFSIGNALED(status):
        sys.exit(os.WEXITSTATUS(status))
"""


@pytest.mark.parametrize("form", ["jsonl", pytest.param("parquet", marks=pytest.mark.slow)])
def test_killed_again_and_again_the_output_is_that_of_a_run_that_was_not(form, folder, model, tmp_path):
    (folder / "7.png").write_bytes(b"<html>")
    whole, out = tmp_path / f"whole.{form}", tmp_path / f"out.{form}"
    run(folder, whole, model, batch_size=2, images_per_part=4)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, folder, out, model, "13"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    runs = [line.split(";") for line in done.stdout.splitlines()]
    assert [int(sign) for sign, _, _ in runs] == [signal.SIGKILL] * (len(runs) - 1) + [0] and len(runs) > 3
    for _, parts, opened in runs:
        there = {int(name[5:11]) for name in parts.split(",") if name}
        again = {(int(name.removesuffix(".png")) - 1) // 4 for name in opened.split(",") if name}
        assert not there & again, "an image of a finished part was read again"
    assert out.read_bytes() == whole.read_bytes()
    reports = [json.loads(path.with_suffix(".report.json").read_text()) for path in (whole, out)]
    assert reports[0] == reports[1] and len(reports[0]["broken"]) == 1
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(("out", ".out"))} == {
        f"out.{form}", "out.report.json",
    }  # fmt: skip


@pytest.fixture
def stopped(folder, model, tmp_path, monkeypatch):
    """A run that an error in the model ended after two parts of three."""
    real, calls = VlmParModel.forward, iter(range(100))

    def answer(self, *inputs, **named):
        if next(calls) == 6:
            raise RuntimeError("out of memory")
        return real(self, *inputs, **named)

    with monkeypatch.context() as patch:
        patch.setattr(VlmParModel, "forward", answer)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(folder, tmp_path / "out.jsonl", model)
    assert sorted(path.name for path in (tmp_path / "out.jsonl.partial").glob("part*")) == [
        "part-000000.jsonl",
        "part-000001.jsonl",
    ]
    return tmp_path / "out.jsonl"


def test_an_error_of_the_model_ends_the_run_and_keeps_the_parts(stopped, folder, model, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="vlm_par_hf"):
        # Another batch size may be why it can go on.
        run(folder, stopped, model, batch_size=2)
    assert "going on: 16 of 20 images were done before" in caplog.text
    assert [row["image"] for row in read(stopped)] == names(ImageList(folder))


def test_a_run_over_other_images_is_refused_with_the_differences(stopped, folder, model):
    save_image(folder / "21.png", 21)
    (folder / "2.png").unlink()
    (folder / "3.png").write_bytes(b"something else")
    kept = sorted(os.listdir(f"{stopped}.partial"))
    expected = (
        r"out.jsonl.partial' holds the work of another run: the images differ \(20 then, 20 now\): "
        r"1 added, the first '.*/21.png'; 1 removed, the first '.*/2.png'; 1 changed, the first '.*/3.png'; name"
    )
    with pytest.raises(ValueError, match=expected):
        run(folder, stopped, model)
    assert sorted(os.listdir(f"{stopped}.partial")) == kept
    with pytest.raises(ValueError, match="they are in another order"):
        for number, name in ((2, "2.png"), (3, "3.png")):
            save_image(folder / name, number)
        (folder / "21.png").unlink()
        listing = Path(f"{stopped}.partial") / "inputs.jsonl"
        listing.write_text(ImageList(folder).listing())
        run([folder / "2.png", folder / "1.png", *names(ImageList(folder))[2:]], stopped, model)
    report = run(folder, stopped, model, overwrite=True)
    assert report["predictions"] == 20 and not Path(f"{stopped}.partial").exists()


def test_a_run_with_other_options_or_another_model_is_refused(stopped, folder, model, tmp_path):
    with pytest.raises(ValueError, match="only_positive was False and is True; sensitive was True and is False; name"):
        run(folder, stopped, model, only_positive=True, sensitive=False)
    save_model(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match="the model differs"):
        run(folder, stopped, str(tmp_path / "other"))
    run(folder, stopped, model)


def test_a_finished_output_is_left_alone(folder, model, tmp_path, caplog):
    out = tmp_path / "out.jsonl"
    report = run(folder, out, model)
    changed = out.stat().st_mtime_ns
    with caplog.at_level(logging.INFO, logger="vlm_par_hf"):
        assert run(folder, out, model) == report
    assert out.stat().st_mtime_ns == changed and "was finished before" in caplog.text
    with pytest.raises(ValueError, match=r"out='.*out.jsonl' is the work of another run: sensitive was True"):
        run(folder, out, model, sensitive=False)
    assert run(folder, out, model, sensitive=False, overwrite=True)["run"]["sensitive"] is False
    (tmp_path / "mine.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="mine.jsonl' exists, and no report says what it is"):
        run(folder, tmp_path / "mine.jsonl", model)
    assert (tmp_path / "mine.jsonl").read_text() == "mine" and not (tmp_path / "mine.jsonl.partial").exists()


def test_two_processes_do_not_write_one_output(folder, model, tmp_path):
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    with lock_parts(partial, out):
        with pytest.raises(ValueError, match=r"out='.*out.jsonl': another process is writing it"):
            run(folder, out, model)
        assert partial.exists()
    run(folder, out, model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": "out.csv"}, r"out='out.csv': expected a file ending in .jsonl or .parquet"),
        ({"out": "folder.jsonl"}, "is a folder: expected a file"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"images_per_part": 0}, "images_per_part=0: expected at least 1"),
        ({"ray_workers": -1}, "ray_workers=-1: expected at least 0"),
    ],
)
def test_arguments_that_are_refused(options, words, folder, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.jsonl").mkdir()
    with pytest.raises(ValueError, match=words):
        run(folder, options.pop("out", "out.jsonl"), model, **options)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "folder.jsonl"}


# Ray


@pytest.fixture
def heavy(tmp_path) -> Path:
    """Images that take some time, so that a worker can be killed at its work."""
    save_image(tmp_path / "heavy" / "0.png", 0, size=(900, 1200))
    for number in range(1, 120):
        os.link(tmp_path / "heavy" / "0.png", tmp_path / "heavy" / f"{number}.png")
    save_image(tmp_path / "heavy" / "120.png", 1)
    (tmp_path / "heavy" / "60.png").unlink()
    (tmp_path / "heavy" / "60.png").write_bytes(b"<html>")
    return tmp_path / "heavy"


def test_what_a_worker_of_ray_does_gives_the_same(heavy, model, tmp_path):
    """One batch is one part; columns come as NumPy arrays. Relative paths start where the run does, not the worker."""
    run(heavy, tmp_path / "here.jsonl", model, images_per_part=50)
    before = os.getcwd()
    try:
        os.chdir(heavy.parent)
        images = ImageList("heavy")
    finally:
        os.chdir(before)
    lines = []
    annotator = Annotator(model, batch_size=3)
    for start in range(0, 121, 50):
        segments = json.dumps(list(images.segments(start, start + 50)))
        table = ReadForRay("image", images.folder)({"segments": np.array([segments], dtype=object)})
        batch = {name: np.array(table[name].to_pylist(), dtype=object) for name in table.column_names}
        found = annotator(batch)
        assert list(found["index"]) == list(range(start, min(start + 50, 121)))
        lines += [
            {"image": f"{heavy.parent}/{name}", **json.loads(prediction)}
            for name, prediction in zip(found["name"], found["prediction"])
            if prediction is not None
        ]
    assert lines == read(tmp_path / "here.jsonl") and len(lines) == 120


@pytest.mark.slow
def test_ray_gives_the_same_though_a_worker_is_killed(heavy, model, tmp_path, monkeypatch):
    pytest.importorskip("ray.data", reason="needs the extra ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    expected = run(heavy, here, model, images_per_part=4)
    killed = []

    def kill_one():
        partial = tmp_path / "there.jsonl.partial"
        while not killed:
            time.sleep(0.01)
            if len(list(partial.glob("part-*"))) < 3:
                continue
            workers = [
                process
                for process in psutil.Process().children(recursive=True)
                if any("MapWorker" in word for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
            ]
            workers[0].kill()  # SIGKILL
            killed.append((len(workers), len(list(partial.glob("part-*")))))

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    report = run(heavy, there, model, images_per_part=4, ray_workers=2)
    killer.join(timeout=10)
    assert killed and killed[0][0] == 2, "two workers were at work"
    assert killed[0][1] < 28, "the worker was killed in the middle"
    assert there.read_bytes() == here.read_bytes()
    assert report == expected and len(report["broken"]) == 1


# Size


MEMORY = """
import json, resource, sys
from vlm_par_hf.annotation import annotate
images, out, model = sys.argv[1:]
report = annotate(images, out, model=model, batch_size=64, progress=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([report["predictions"], peak / 1024]))
"""


@pytest.mark.slow
def test_a_hundred_thousand_images_need_hardly_more_memory_than_ten_thousand(model, tmp_path):
    for number in range(20):
        save_image(tmp_path / "originals" / f"{number}.png", number)
    peaks = {}
    for count in (10_000, 100_000):
        images = tmp_path / str(count)
        for number in range(count):
            folder = images / str(number // 1000)
            folder.mkdir(parents=True, exist_ok=True)
            os.link(tmp_path / "originals" / f"{number % 20}.png", folder / f"{number}.png")
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, images, tmp_path / f"{count}.parquet", model],
            cwd=ROOT, capture_output=True, text=True, timeout=3000, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        predictions, peaks[count] = json.loads(done.stdout.splitlines()[-1])
        assert predictions == count
    # Paths, sizes and times of change, and their listing: some hundred bytes an image.
    assert peaks[100_000] - peaks[10_000] < 60, peaks
