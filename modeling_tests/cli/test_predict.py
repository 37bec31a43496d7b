"""`vlm-par predict`: tables, files, pictures, and images that cannot be read."""

import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet
import pytest
from PIL import Image

from modeling_tests.tiny import tiny_schema
from vlm_par_hf.cli.main import main


def test_predict_prints_a_table(checkpoint, files, capsys):
    assert main(["predict", "--model", str(checkpoint), f"{files['data']}/test_000.png"]) == 0
    text = capsys.readouterr().out
    assert "test_000.png" in text and "Hat" in text and "%" in text


def test_predict_writes_objects_and_pictures(checkpoint, files, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    arguments = ["predict", "--model", str(checkpoint), files["data"], "--batch-size", "5"]
    assert main([*arguments, "--out", str(out), "--draw", str(tmp_path / "drawn")]) == 0
    assert f"48 predictions in {out}" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 48 and rows == sorted(rows, key=lambda row: row["image"])
    assert set(rows[0]["attributes"]) == set(tiny_schema().names)
    pictures = sorted((tmp_path / "drawn").iterdir())
    assert len(pictures) == 48
    with Image.open(pictures[0]) as picture:
        assert picture.width > 100
    assert main([*arguments, "--out", "-"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    assert main([*arguments, "--out", str(tmp_path / "out.parquet")]) == 0
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet")["image"].to_pylist() == [row["image"] for row in rows]
    assert main([*arguments, "--out", str(out), "--only-positive"]) == 2
    assert "only_positive was False and is True" in capsys.readouterr().err
    assert main([*arguments, "--out", str(out), "--only-positive", "--overwrite"]) == 0
    assert all(
        answer["label"] != "no" for answer in json.loads(out.read_text().splitlines()[0])["attributes"].values()
    )


def test_predict_leaves_out_what_is_asked(checkpoint, files, capsys):
    image = f"{files['data']}/test_000.png"
    sensitive = {attribute.name for attribute in tiny_schema() if attribute.sensitive}
    assert main(["predict", "--model", str(checkpoint), image, "--out", "-", "--no-sensitive"]) == 0
    assert set(json.loads(capsys.readouterr().out)["attributes"]) == set(tiny_schema().names) - sensitive
    assert main(["predict", "--model", str(checkpoint), image, "--out", "-", "--only-positive"]) == 0
    answers = json.loads(capsys.readouterr().out)["attributes"]
    assert all(answer["label"] != "no" for answer in answers.values())


def test_predict_shows_how_far_it_is_and_no_other_bars(checkpoint, files, tmp_path):
    arguments = ["predict", "--model", str(checkpoint), files["data"], "--out", str(tmp_path / "out.jsonl")]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    code = f"import sys; from vlm_par_hf.cli import main; sys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "48/48" in done.stderr and "Loading weights" not in done.stderr


def test_a_broken_image_is_named_and_the_others_answered(checkpoint, files, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    shutil.copy(f"{files['data']}/test_000.png", folder)
    assert main(["predict", "--model", str(checkpoint), str(folder)]) == 1
    captured = capsys.readouterr()
    assert "test_000.png" in captured.out and "broken.jpg" not in captured.out
    assert f"vlm-par: {folder}/broken.jpg: image" in captured.err and "1 of 2 images cannot be read" in captured.err
    out = tmp_path / "out.jsonl"
    assert main(["predict", "--model", str(checkpoint), str(folder), "--out", str(out)]) == 1
    assert f"1 images cannot be read, the first is {folder}/broken.jpg; reasons: {tmp_path}/out.report.json" in (
        capsys.readouterr().out
    )
    assert len(out.read_text().splitlines()) == 1
    (entry,) = json.loads((tmp_path / "out.report.json").read_text())["broken"]
    assert entry["image"] == f"{folder}/broken.jpg"


def test_a_folder_without_images(checkpoint, tmp_path, capsys):
    assert main(["predict", "--model", str(checkpoint), str(tmp_path)]) == 2
    assert "no image in the folder" in capsys.readouterr().err


def test_predict_in_bfloat16_answers_nearly_the_same(tmp_path, capsys):
    Image.new("RGB", (48, 96), (90, 40, 160)).save(tmp_path / "crop.png")
    found = []
    for dtype in ("float32", "bfloat16"):
        assert main(["predict", str(tmp_path / "crop.png"), "--out", "-", "--dtype", dtype]) == 0
        answers = json.loads(capsys.readouterr().out)["attributes"]
        found.append([p for answer in answers.values() for p in answer["probabilities"].values()])
    assert found[0] != found[1] and found[0] == pytest.approx(found[1], abs=0.05)


def test_boxes_links_and_urls_on_the_command_line(checkpoint, files, tmp_path, capsys):
    table = tmp_path / "t.parquet"
    with open(f"{files['data']}/test_000.png", "rb") as file:
        data = file.read()
    with Image.open(f"{files['data']}/test_000.png") as picture:
        width, height = picture.size
    columns = {"image": [data, data], "box": [[0.0, 0.5, 0.5, 1.0], [0.0, 0.0, 1.0, 0.5]]}
    pyarrow.parquet.write_table(pyarrow.table(columns), table)
    arguments = ["predict", "--model", str(checkpoint), "--out", "-", str(table), "--boxes", "box"]
    assert main([*arguments, "--box-format", "xyxyn"]) == 0
    boxes = [json.loads(line)["box"] for line in capsys.readouterr().out.splitlines()]
    assert boxes == [[0, height // 2, width // 2, height], [0, 0, width, height // 2]]
    assert main(arguments) == 1
    assert "are shares of the picture, not pixels" in capsys.readouterr().err
    for option, value in (("--box-margin", "0.1"), ("--box-format", "xywh")):
        assert main(["predict", str(table), option, value]) == 2
        assert f"{option} needs --boxes" in capsys.readouterr().err
    assert main(["predict", "https://u:word@example.org/a.jpg?token=abc"]) == 2
    error = capsys.readouterr().err
    assert "a URL: it is read only with allow_urls" in error and "word" not in error and "abc" not in error


def test_what_is_asked_on_the_command_line(checkpoint, files, tmp_path, capsys):
    image, thresholds = f"{files['data']}/test_000.png", tmp_path / "thresholds.json"
    arguments = ["predict", "--model", str(checkpoint), image, "--attributes", "Backpack, Hat"]
    thresholds.write_text('{"Hat": 0}')
    assert main([*arguments, "--threshold", "1", "--thresholds", str(thresholds), "--out", "-"]) == 0
    answers = json.loads(capsys.readouterr().out)["attributes"]
    assert [(name, one["label"], one["threshold"]) for name, one in answers.items()] == [
        ("Backpack", "no", 1.0),
        ("Hat", "yes", 0.0),
    ]
    out = tmp_path / "out.csv"
    assert main([*arguments, "--out", str(out), "--explain", "Hat", "--draw", str(tmp_path / "drawn")]) == 0
    assert out.read_text().splitlines()[0] == "image,Backpack,Backpack_score,Backpack_yes,Hat,Hat_score,Hat_yes"
    assert (tmp_path / "drawn" / "test_000_attributes.png").exists()
    capsys.readouterr()
    for options, message in (
        (["--attributes", "Hat,,"], "--attributes is 'Hat,,', expected names divided by commas"),
        (["--thresholds", "none.json"], "--thresholds none.json: there is no such file"),
        (["--threshold", "2"], "threshold is 2.0, expected a number in [0, 1]"),
        (["--explain", "Hat"], "--explain needs --draw, the folder of the pictures, or --out"),
        (["--explain", "Hat", "--out", str(tmp_path / "other.csv")], "relevance is written to .jsonl and to pictures"),
    ):
        assert main(["predict", "--model", str(checkpoint), image, *options]) == 2
        assert message in capsys.readouterr().err


def test_people_in_images_on_the_command_line(checkpoint, files, tmp_path, capsys):
    (tmp_path / "boxes.csv").write_text("image,x,y,w,h\ntest_000.png,0,0,8,20\ntest_000.png,4,2,10,20\n")
    images = [f"{files['data']}/test_00{number}.png" for number in range(2)]
    arguments = ["predict", "--model", str(checkpoint), *images]
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    assert (
        main([*arguments, "--boxes", str(tmp_path / "boxes.csv"), "--out", str(first), "--draw", f"{tmp_path}/d"]) == 0
    )
    assert f"1 images without people, the first is {images[1]}" in capsys.readouterr().out
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    assert [(row["image"], row["box"]) for row in rows] == [(images[0], [0, 0, 8, 20]), (images[0], [4, 2, 14, 22])]
    with Image.open(images[0]) as picture, Image.open(tmp_path / "d" / "test_000_attributes.png") as drawn:
        assert drawn.size == picture.size
    assert main([*arguments, "--boxes", str(first), "--out", str(second)]) == 0  # what was written is read again
    assert second.read_text() == first.read_text()
    for options, message in (
        (["--boxes", str(tmp_path / "boxes.csv"), "--box-format", "xyxy"], "the names of the columns in"),
        (["--boxes", str(tmp_path / "none.csv")], "there is no such file"),
        (["--boxes", "where"], "there is no parquet file that has it"),
        (["--boxes", str(tmp_path / "boxes.csv"), "--detector", "a/b"], "both boxes and detector were given"),
    ):
        assert main([*arguments, *options]) == 2
        assert message in capsys.readouterr().err


def test_points_and_sets_on_the_command_line(checkpoint, files, tmp_path, capsys):
    """`train` wrote the checkpoint with decisions: both points are there, and sets without a promise."""
    image = f"{files['data']}/test_000.png"
    arguments = ["predict", "--model", str(checkpoint), image]
    decisions = json.loads((checkpoint / "config.json").read_text())["decisions"]
    for name in ("mA", "instance_f1"):
        assert main([*arguments, "--out", "-", "--decide", name]) == 0
        answers = json.loads(capsys.readouterr().out)["attributes"]
        assert answers["Hat"]["threshold"] == decisions["attributes"]["Hat"]["points"][name]
    assert main([*arguments, "--decide", "f1"]) == 2
    assert "decide is 'f1', expected a point" in capsys.readouterr().err
    with Image.open(image) as opened:
        opened.resize((8, 15)).save(tmp_path / "low.png")
    assert main(["predict", "--model", str(checkpoint), str(tmp_path / "low.png"), "--abstain", "0.9"]) == 0
    assert "unknown: 15 pixels high  no or yes" in capsys.readouterr().out
    for flag, wanted in (("--consistency", True), ("--no-consistency", False)):
        out = tmp_path / f"{flag}.jsonl"
        assert main([*arguments, flag, "--out", str(out)]) == 0
        assert json.loads(out.with_suffix(".report.json").read_text())["run"]["consistent"] is wanted
    capsys.readouterr()
    assert main([*arguments, "--abstain", "2"]) == 2
    assert "abstain is 2.0, expected a number between 0 and 1" in capsys.readouterr().err
