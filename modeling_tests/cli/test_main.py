import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet
import pytest
from PIL import Image

from modeling_tests.bands import build_data
from modeling_tests.tiny import tiny_model, tiny_processor, tiny_schema
from vlm_par_hf.cli.main import build_parser, main


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What a user has: a folder of images with labels.csv and schema.json, and a backbone folder."""
    root = tmp_path_factory.mktemp("cli")
    data, backbone = root / "data", root / "backbone"
    data.mkdir()
    schema = tiny_schema()
    schema.to_json(data / "schema.json")
    lines = [",".join(["image", "split", "person_id", *schema.names])]
    for split, rows in build_data(schema, {"train": 24, "validation": 12, "test": 12}).items():
        for row in rows:
            row["image"].save(data / row["image_id"])
            labels = ["" if label < 0 else str(label) for label in row["labels"]]
            lines.append(",".join([row["image_id"], split, f"{split}{row['person_id']}", *labels]))
    (data / "labels.csv").write_text("\n".join(lines) + "\n")
    processor = tiny_processor("naflex")
    tiny_model("naflex").vlm.save_pretrained(backbone)
    processor.image_processor.save_pretrained(backbone)
    processor.tokenizer.save_pretrained(backbone)
    return {"data": str(data), "backbone": str(backbone)}


@pytest.fixture(scope="module")
def checkpoint(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "checkpoint"
    status = main(
        ["train", "folder", "--root", files["data"], "--backbone", files["backbone"], "--out", str(out), "--epochs",
         "2", "--batch-size", "8", "--no-progress", "--precompute-features", "--fusion", "text_to_image"]
    )  # fmt: skip
    assert status == 0
    return out


@pytest.mark.parametrize("command", ["demo", "predict", "train", "evaluate", "prepare"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_every_setting_of_training_has_its_option(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["train", "--help"])
    text = capsys.readouterr().out
    for option in ("--learning-rate", "--fusion-learning-rate", "--no-bf16", "--resume", "--early-stopping-patience"):
        assert option in text


def test_the_module_is_the_command_and_its_help_loads_nothing_heavy():
    code = (
        "import runpy, sys\nsys.argv = ['vlm-par', '--help']\n"
        "try:\n    runpy.run_module('vlm_par_hf', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'datasets', 'matplotlib', 'transformers.trainer'} & set(sys.modules)\nassert not heavy, heavy"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("usage: vlm-par")


def test_training_says_what_it_kept(checkpoint):
    record = json.loads((checkpoint / "run.json").read_text())
    assert record["command"].startswith("vlm-par train folder --root")
    assert record["settings"]["precompute_features"] and record["model"]["options"] == {"fusion": "text_to_image"}
    assert (checkpoint / "config.json").exists() and (checkpoint / "learning_curve.png").exists()


def test_training_prints_the_command_that_measures_it(files, tmp_path, capsys):
    arguments = [
        "train",
        "synthetic",
        "--num-train",
        "16",
        "--num-validation",
        "8",
        "--num-test",
        "8",
        "--data-seed",
        "3",
    ]
    arguments += ["--backbone", files["backbone"], "--out", str(tmp_path / "out"), "--max-steps", "1", "--no-progress"]
    assert main(arguments) == 0
    command = capsys.readouterr().out.strip().splitlines()[-1].removeprefix("measure it: vlm-par ").split()
    assert command[:3] == ["evaluate", str(tmp_path / "out"), "synthetic"]
    assert main([*command, "--bootstrap", "0"]) == 0
    assert "SYNTHETIC" in capsys.readouterr().out
    # Without its options the data set would be divided in another way.
    assert main([*command[:3], "--data-seed", "3"]) == 2
    assert "could be in the split that is measured" in capsys.readouterr().err


def test_evaluate(checkpoint, files, capsys):
    arguments = ["evaluate", str(checkpoint), "folder", "--root", files["data"], "--bootstrap", "20"]
    assert main([*arguments, "--by-person", "--threshold", "schema"]) == 0
    text = capsys.readouterr().out
    assert "folder, test, 12 images" in text and "instance_f1_harmonic" in text
    record = json.loads((checkpoint / "evaluation_folder_test" / "metrics.json").read_text())
    assert record["threshold"] == "schema" and record["resampled"] == "persons"


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "nowhere.jpg"], "no such image or folder: 'nowhere.jpg'"),
        (["predict", "DATA", "--out", "out.txt"], "out='out.txt': expected a file ending in .jsonl or .parquet"),
        (["predict", "DATA", "--out", "-", "--ray", "2"], "--ray needs --out with the name of a file"),
        (["predict", "DATA", "--image-column", "photo", "--batch-size", "0"], "batch_size=0: expected at least 1"),
        (["train", "pa100k", "--out", "OUT"], "root"),
        (["train", "no_such_set", "--out", "OUT"], "no_such_set"),
        (["train", "folder", "--root", "DATA", "--out", "OUT", "--batch-size", "0"], "batch_size=0"),
        (["train", "folder", "--root", "DATA", "--out", "OUT", "--backbone", "no/where"], "no/where"),
        (["evaluate", "MODEL", "folder", "--root", "nowhere"], "nowhere"),
        (["evaluate", "MODEL", "folder", "--root", "DATA", "--threshold", "high"], "threshold='high'"),
        (["evaluate", "repository/name", "folder", "--root", "DATA"], "--out"),
    ],
)
def test_an_error_is_one_line_and_status_2(arguments, words, checkpoint, files, tmp_path, capsys):
    places = {"OUT": str(tmp_path / "out"), "DATA": files["data"], "MODEL": str(checkpoint)}
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err.splitlines()
    errors = [line for line in error if line.startswith("vlm-par: error: ")]
    assert len(errors) == 1 and errors[0] == error[-1] and words in errors[0]
    assert not any("Traceback" in line for line in error)


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


def test_debug_shows_the_traceback():
    with pytest.raises(FileNotFoundError):
        main(["predict", "nowhere.jpg", "--debug"])


def test_a_second_run_in_the_same_folder_is_refused(checkpoint, files, capsys):
    arguments = ["train", "folder", "--root", files["data"], "--backbone", files["backbone"], "--out", str(checkpoint)]
    assert main(arguments) == 2
    assert "holds an earlier run" in capsys.readouterr().err


def test_predict_in_bfloat16_answers_nearly_the_same(tmp_path, capsys):
    Image.new("RGB", (48, 96), (90, 40, 160)).save(tmp_path / "crop.png")
    found = []
    for dtype in ("float32", "bfloat16"):
        assert main(["predict", str(tmp_path / "crop.png"), "--out", "-", "--dtype", dtype]) == 0
        answers = json.loads(capsys.readouterr().out)["attributes"]
        found.append([p for answer in answers.values() for p in answer["probabilities"].values()])
    assert found[0] != found[1] and found[0] == pytest.approx(found[1], abs=0.05)
