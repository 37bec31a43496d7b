"""`vlm-par train`."""

import json
import shlex
import shutil

import pytest

from modeling_tests.tiny import tiny_schema
from vlm_par_hf.cli import train
from vlm_par_hf.cli.config import expand_config
from vlm_par_hf.cli.main import build_parser, main
from vlm_par_hf.cli.options import data_arguments


def test_every_setting_of_training_has_its_option(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["train", "--help"])
    text = capsys.readouterr().out
    for option in ("--learning-rate", "--fusion-learning-rate", "--no-bf16", "--resume", "--early-stopping-patience"):
        assert option in text


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


def test_training_on_two_data_sets(files, tmp_path, capsys):
    """The whole way: train, the command that is printed, the record as a configuration, refusals."""
    out = tmp_path / "both"
    arguments = [
        "train",
        "folder+synthetic",
        "--roots",
        files["data"],
        "-",
        "--num-train",
        "8",
        "--num-validation",
        "8",
    ]
    arguments += ["--num-test", "8", "--backbone", files["backbone"], "--max-steps", "2", "--no-progress"]
    assert main([*arguments, "--out", str(out)]) == 0
    command = shlex.split(capsys.readouterr().out.strip().splitlines()[-1].removeprefix("measure it: vlm-par "))
    record = json.loads((out / "run.json").read_text())
    assert {name: one["train_images"] for name, one in record["data"]["sources"].items()} == {
        "folder": 24,
        "synthetic": 8,
    }
    assert main([*command, "--bootstrap", "0"]) == 0
    shown = capsys.readouterr().out
    assert "synthetic (SYNTHETIC)" in shown and "read those of each data set" in shown
    again = ["train", "--config", str(out / "run.json"), "--out", str(tmp_path / "again")]
    assert build_parser().parse_args(expand_config(again, build_parser)).roots == [files["data"], "-"]
    for more, message in (
        (["--root", files["data"]], "--root and --roots were both given"),
        (["--roots", "-"], "3 folders for the 2 data sets 'folder+synthetic'"),
        (["--schema", f"{files['data']}/schema.json"], "schema was given for the 2 data sets"),
    ):
        assert main([*arguments, *more, "--out", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err


def test_a_second_run_in_the_same_folder_is_refused(checkpoint, files, capsys):
    arguments = ["train", "folder", "--root", files["data"], "--backbone", files["backbone"], "--out", str(checkpoint)]
    assert main(arguments) == 2
    assert "holds an earlier run" in capsys.readouterr().err


def test_training_on_lists_of_minus_one_and_one(files, tmp_path, capsys, caplog):
    """The command says which options are wanted, takes them, and prints them for the measurement."""
    data = tmp_path / "data"
    shutil.copytree(files["data"], data)
    lines = (data / "labels.csv").read_text().splitlines()
    names = tiny_schema().names
    head = lines[0].split(",")
    rows = [dict(zip(head, line.split(","))) for line in lines[1:]]
    for row in rows:
        row.update({name: {"0": "-1", "1": "1", "": "0"}[row[name]] for name in names})
        if row["split"] == "train":
            row[names[1]] = "1"
    (data / "labels.csv").write_text("\n".join([lines[0], *(",".join(row[name] for name in head) for row in rows)]))
    arguments = ["train", "folder", "--root", str(data), "--backbone", files["backbone"], "--max-steps", "1"]
    arguments += ["--no-progress", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "--negative -1 --unknown 0" in capsys.readouterr().err
    assert main([*arguments, "--negative", "-1", "--unknown", "0"]) == 0
    command = capsys.readouterr().out.strip().splitlines()[-1]
    assert "--negative -1 --unknown 0" in command
    assert f"in train 1 attributes have one label only: {names[1]}" in caplog.text


def test_ignored_names_reach_the_reader_and_the_command_that_measures():
    parser = build_parser()
    words = ["train", "peta35", "--out", "x", "--ignore", "accessoryHat", "--ignore", "a label"]
    args = parser.parse_args(words)
    assert data_arguments(args)["dataset_options"]["ignore"] == ["accessoryHat", "a label"]
    assert train._data_flags(args) == words[4:]
    assert "ignore" not in data_arguments(parser.parse_args(words[:4]))["dataset_options"]


def test_lora_and_last_layers_from_the_command_line(files, tmp_path, capsys):
    pytest.importorskip("peft", reason="needs the extra peft")
    arguments = ["train", "folder", "--root", files["data"], "--backbone", files["backbone"], "--max-steps", "1"]
    arguments += [
        "--no-progress",
        "--heads-only",
        "--lora",
        "2",
        "--lora-layers",
        "1",
        "--lora-targets",
        "q_proj, fc1",
    ]
    assert main([*arguments, "--out", str(tmp_path / "lora")]) == 0
    saved = json.loads((tmp_path / "lora" / "config.json").read_text())
    assert saved["lora"] == {"rank": 2, "alpha": 4, "layers": 1, "targets": ["q_proj", "fc1"]}
    command = capsys.readouterr().out.strip().splitlines()[-1].removeprefix("measure it: vlm-par ").split()
    assert main([*command, "--bootstrap", "0"]) == 0
