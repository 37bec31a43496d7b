"""Annotating many images: answers in order, broken files, resumption after SIGKILL, memory."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from transformers import pipeline

from modeling_tests.image_folders import names, read, run, save_image
from vlm_par_hf.annotation import ImageList


ROOT = Path(__file__).parents[2]


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
real_open, real_replace = annotator.open_row, os.replace
count = 0

def step():
    global count
    count += 1
    if count == int(steps):
        os.kill(os.getpid(), signal.SIGKILL)

def open_row(image, options, **named):
    step()
    os.write(log, f"{os.path.basename(image)}\\n".encode())
    return real_open(image, options, **named)

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
        annotator.open_row, os.replace = open_row, replace
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


def test_an_error_of_the_model_ends_the_run_and_keeps_the_parts(stopped, folder, model, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="vlm_par_hf"):
        # Another batch size may be why it can go on.
        run(folder, stopped, model, batch_size=2)
    assert "going on: 16 of 20 images were done before" in caplog.text
    assert [row["image"] for row in read(stopped)] == names(ImageList(folder))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": "out.txt"}, r"out='out.txt': expected a file ending in .jsonl, .parquet, .csv"),
        ({"out": "folder.jsonl"}, "is a folder: expected a file"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"images_per_part": 0}, "images_per_part=0: expected at least 1"),
        ({"ray_workers": -1}, "ray_workers=-1: expected at least 0"),
        ({"detector": print}, "detector is .*print.*, expected the name of a model"),
        ({"detector": "a/b", "boxes": "boxes.csv"}, "both boxes and detector were given"),
        ({"explain": ["Hat"], "out": "out.csv"}, "relevance is written to .jsonl and to pictures"),
    ],
)
def test_arguments_that_are_refused(options, words, folder, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.jsonl").mkdir()
    with pytest.raises((ValueError, TypeError), match=words):
        run(folder, options.pop("out", "out.jsonl"), model, **options)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "folder.jsonl"}


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
