"""`--config`: options from a file, the command line goes first, and what is wrong is named."""

import json

import pytest
import yaml

from vlm_par_hf.cli import export, predict, train
from vlm_par_hf.cli.config import expand_config
from vlm_par_hf.cli.main import COMMANDS, build_parser, main


@pytest.fixture
def config(tmp_path):
    def write(values, name="config.yaml"):
        path = tmp_path / name
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return str(path)

    return write


def parse(*arguments):
    return build_parser().parse_args(expand_config(arguments, build_parser))


TRAIN = {
    "dataset": "folder", "root": "my data", "out": "runs/mine", "learning-rate": "1e-4", "epochs": 3, "bf16": True,
    "progress": False, "resume": True, "ignore": ["notes", "height"], "negative": -1, "partition": 2, "loss": None,
}  # fmt: skip


def test_every_kind_of_option(config):
    args = parse("train", "--config", config(TRAIN))
    assert (args.dataset, args.root, args.out) == ("folder", "my data", "runs/mine")
    assert (args.learning_rate, args.epochs, args.partition, args.negative) == (1e-4, 3.0, 2, "-1")
    assert args.bf16 and args.resume and not args.progress and args.ignore == ["notes", "height"]
    assert args.loss is None and args.config is None and args.batch_size == 64
    assert parse("train", f"--conf={config(json.dumps(TRAIN), 'config.json')}") == args


def test_the_command_line_goes_first(config):
    path = config(TRAIN)
    args = parse("train", "pa100k", "--config", path, "--epochs", "5", "--progress", "--ignore", "boots", "--no-bf16")
    assert (args.dataset, args.epochs, args.progress, args.ignore) == ("pa100k", 5.0, True, ["boots"])
    assert args.bf16 is False and args.root == "my data"
    assert parse("train", "--config", path, "--epochs", "64").epochs == 64.0
    # A value that is the default counts as given too.
    assert parse("train", "--config", path, "--epochs", "10").epochs == 10.0
    path = config({"checkpoint": "model", "out": "exported", "int8": True, "to": "onnx"})
    args = parse("export", "--config", path, "--bf16")
    assert args.bf16 and not args.int8 and args.checkpoint == "model"


def test_lists_of_places(config):
    path = config({"images": ["a.jpg", "b c.jpg"], "out": "out.jsonl"})
    assert parse("predict", "--config", path).images == ["a.jpg", "b c.jpg"]
    assert parse("predict", "x.jpg", "--config", path).images == ["x.jpg"]
    args = parse("evaluate", "--config", config({"model": "runs/a", "dataset": "pa100k"}), "runs/b")
    assert (args.model, args.dataset) == ("runs/b", "pa100k")


@pytest.mark.parametrize("command", [one.__name__.rpartition(".")[2].replace("_", "-") for one in COMMANDS])
def test_every_command_takes_one(command, config):
    top = build_parser()
    with pytest.raises(SystemExit) as stop:
        top.parse_args([command, "--help"])
    assert stop.value.code == 0
    assert main([command, "--config", config({"no_such_option": 1})]) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "vlm-par train has no option 'learning_rat'; did you mean 'learning_rate'?"),
        ({"zzz": 1}, "vlm-par train has no option 'zzz'; it has "),
        ({"epochs": "many"}, "epochs is 'many'; expected float"),
        ({"epochs": True}, "epochs is True; expected one text or number"),
        ({"epochs": [1, 2]}, "epochs is [1, 2]; expected one text or number"),
        ({"bf16": "yes please"}, "bf16 is 'yes please'; expected true or false"),
        ({"schedule": "spiral"}, "schedule is 'spiral'; expected one of cosine, linear"),
        ({"ignore": [{"a": 1}]}, "ignore is [{'a': 1}]; expected a list of texts or numbers"),
        ({"bf-16": 1, "bf16": True}, "has no option 'bf-16'"),
        ({"batch-size": 1, "batch_size": 2}, "'batch_size' is there twice, with - and with _"),
        ("epochs: 1\nepochs: 2\n", "cannot be read: the key 'epochs' appears twice"),
        ("epochs: [1\n", "cannot be read: while parsing"),
        ("- epochs\n", "holds ['epochs']; expected 'name: value' lines"),
        ("", "holds None; expected 'name: value' lines"),
        ("!!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ({"command_line": "x"}, "has no option 'command_line'"),
        ({"run": "x"}, "has no option 'run'"),
    ],
)
def test_what_is_wrong_is_named(values, message, config, capsys):
    path = config(values)
    assert main(["train", "--config", path]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vlm-par: error: config file {path}") and message in error and error.count("\n") == 1


def test_no_file_and_two_files(config, capsys):
    assert main(["train", "--config", "nowhere.yaml"]) == 2
    assert "config file nowhere.yaml does not exist" in capsys.readouterr().err
    path = config(TRAIN)
    assert main(["train", "--config", path, "--config", path]) == 2
    assert "--config is given 2 times" in capsys.readouterr().err


def test_what_neither_says_is_missing(config, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--config", config({"dataset": "folder"})])
    assert "the following arguments are required: --out" in capsys.readouterr().err


def test_the_record_names_the_options_and_not_the_file(config, monkeypatch):
    seen = []
    monkeypatch.setattr(predict, "run", lambda args: seen.append(args.command_line))
    assert main(["predict", "--config", config({"images": ["a.jpg"], "batch_size": 4}), "--draw", "out"]) == 0
    assert seen == [["vlm-par", "predict", "a.jpg", "--batch-size=4", "--draw=out"]]


def test_the_record_of_a_run_starts_it_again(checkpoint, tmp_path, capsys):
    """The same run in another folder, and the same folder continued: its record says all that it was started with."""
    record = str(checkpoint / "run.json")
    assert main(["train", "--config", record, "--out", str(tmp_path / "again")]) == 0
    first, again = (json.loads((folder / "run.json").read_text()) for folder in (checkpoint, tmp_path / "again"))
    assert all(first[part] == again[part] for part in ("settings", "data", "model"))
    results = [json.loads((folder / "training.json").read_text()) for folder in (checkpoint, tmp_path / "again")]
    assert results[0] == results[1]
    capsys.readouterr()
    assert main(["train", "--config", record]) == 2
    assert "holds an earlier run: continue it (resume=True, --resume)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("train", "python script.py", "was not started by vlm-par train but by 'python script.py'"),
        ("train", "vlm-par train folder --out x --root 'https://***@host/x'", "its command hides a secret in"),
        ("predict", "vlm-par train folder --out x", "is the record of a training run; expected it for vlm-par train"),
    ],
)
def test_records_that_start_nothing(command, words, message, config, capsys):
    record = {"settings": {}, "data": {}, "model": {}, "command": words}
    assert main([command, "--config", config(json.dumps(record), "run.json")]) == 2
    assert message in capsys.readouterr().err


def test_settings_of_a_record_go_before_defaults_and_its_home_is_ours(config, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    words = "vlm-par train folder --root ~/data --out x --epochs 2"
    record = {"settings": {"epochs": 2.0, "batch_size": 7, "report_to": "none"}, "data": {}, "model": {}}
    path = config(json.dumps({**record, "command": words}), "run.json")
    args = parse("train", "--config", path, "--batch-size", "9")
    assert (args.root, args.epochs, args.batch_size) == ("/somewhere/data", 2.0, 9)
    assert args.run is train.run and export.run is not train.run
