"""`vlm-par train`."""

import json

import pytest

from vlm_par_hf.cli.main import build_parser, main


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


def test_a_second_run_in_the_same_folder_is_refused(checkpoint, files, capsys):
    arguments = ["train", "folder", "--root", files["data"], "--backbone", files["backbone"], "--out", str(checkpoint)]
    assert main(arguments) == 2
    assert "holds an earlier run" in capsys.readouterr().err
