import json
import subprocess
import sys

import pytest
from PIL import Image

from modeling_tests.tiny import tiny_model, tiny_processor, tiny_schema
from modeling_tests.training.conftest import build_data
from vlm_par_hf.cli import build_parser, main


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


def test_predict_writes_json_and_pictures(checkpoint, files, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    arguments = ["predict", "--model", str(checkpoint), files["data"], "--batch-size", "5"]
    assert main([*arguments, "--json", str(out), "--draw", str(tmp_path / "drawn")]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 48 and rows == sorted(rows, key=lambda row: row["image"])
    assert set(rows[0]["attributes"]) == set(tiny_schema().names)
    pictures = sorted((tmp_path / "drawn").iterdir())
    assert len(pictures) == 48
    with Image.open(pictures[0]) as picture:
        assert picture.width > 100
    capsys.readouterr()
    assert main(["predict", "--model", str(checkpoint), f"{files['data']}/test_001.png", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["image"].endswith("test_001.png")


def test_predict_leaves_out_what_is_asked(checkpoint, files, capsys):
    image = f"{files['data']}/test_000.png"
    sensitive = {attribute.name for attribute in tiny_schema() if attribute.sensitive}
    assert main(["predict", "--model", str(checkpoint), image, "--json", "-", "--no-sensitive"]) == 0
    assert set(json.loads(capsys.readouterr().out)["attributes"]) == set(tiny_schema().names) - sensitive
    assert main(["predict", "--model", str(checkpoint), image, "--json", "-", "--only-positive"]) == 0
    answers = json.loads(capsys.readouterr().out)["attributes"]
    assert all(answer["label"] != "no" for answer in answers.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "nowhere.jpg"], "no such image or folder: 'nowhere.jpg'"),
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


def test_a_broken_image_is_named(checkpoint, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    assert main(["predict", "--model", str(checkpoint), str(tmp_path)]) == 2
    assert "broken.jpg" in capsys.readouterr().err


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
