"""The command `vlm-par`: help, errors in one line, and the traceback on request."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_par_hf.cli import predict
from vlm_par_hf.cli.main import build_parser, main
from vlm_par_hf.errors import ParValueError


@pytest.mark.parametrize("command", ["demo", "predict", "train", "evaluate", "prepare"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 200


def run_as_command(arguments, argv0=None):
    """Output of the command in a process of its own, and which heavy packages it imported."""
    start = (
        f"sys.argv = [{argv0!r}, *{arguments!r}]\nfrom vlm_par_hf.cli import main\nsys.exit(main())"
        if argv0
        else f"sys.argv = ['-m', *{arguments!r}]\nsys.orig_argv = ['python', '-m', 'vlm_par_hf', *{arguments!r}]\n"
        "runpy.run_module('vlm_par_hf', run_name='__main__', alter_sys=True)"
    )
    code = (
        "import atexit, runpy, sys\nheavy = ('torch', 'transformers', 'datasets', 'huggingface_hub', 'matplotlib')\n"
        f"atexit.register(lambda: print('HEAVY', [name for name in heavy if name in sys.modules]))\n{start}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    out, _, heavy = done.stdout.rpartition("HEAVY ")
    return done.returncode, out, done.stderr, heavy.strip()


@pytest.mark.parametrize("argv0", [None, "/usr/bin/vlm-par", "C:\\Scripts\\vlm-par.exe"][: 2 + (os.name == "nt")])
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments, argv0):
    status, out, _, heavy = run_as_command(arguments, argv0)
    assert status == 0 and heavy == "[]"
    assert out.startswith("vlm-par 0." if arguments == ["--version"] else "usage: vlm-par")


def test_wrong_use_and_commands_without_models_import_no_torch(tmp_path):
    status, _, error, heavy = run_as_command(["train", "folder"], "vlm-par")
    assert status == 2 and "--out" in error and heavy == "[]"
    (tmp_path / "labels.csv").write_text("image,split,Hat\na.png,train,1\n")
    for arguments in (["schema", "a hat"], ["init", str(tmp_path)]):
        assert run_as_command(arguments, "vlm-par")[3] == "[]"


def test_commands_register_the_models_themselves(checkpoint, files):
    picture = next(str(path) for path in Path(files["data"]).glob("*.png"))
    status, out, error, _ = run_as_command(["predict", picture, "--model", str(checkpoint)], "vlm-par")
    assert status == 0 and picture in out, error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "nowhere.jpg"], "no such image or folder: 'nowhere.jpg'"),
        (["predict", "DATA", "--out", "out.txt"], "out='out.txt': expected a file ending in .jsonl, .parquet, .csv"),
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


def test_debug_shows_the_traceback():
    with pytest.raises(FileNotFoundError):
        main(["predict", "nowhere.jpg", "--debug"])


def test_a_fault_of_ours_keeps_its_traceback_and_asks_for_a_report(monkeypatch, capsys):
    for error in (KeyError("inner"), ValueError("inner"), RecursionError("inner"), AttributeError("inner")):
        monkeypatch.setattr(predict, "_print_predictions", lambda *args, error=error: raise_(error))
        assert main(["predict", "x.jpg"]) == 70
        text = capsys.readouterr().err
        assert "Traceback" in text and type(error).__name__ in text
        assert text.rstrip().splitlines()[-1].startswith("vlm-par: this is a fault of vlm-par")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "big.parquet"), "No space left on device: big.parquet"),
        (PermissionError(errno.EACCES, "Permission denied", "there"), "Permission denied: there"),
        (MemoryError("4 GiB"), "out of memory: 4 GiB; a smaller --batch-size needs less"),
        (ParValueError("two\nlines \x1b[31mred"), "two lines \\x1b[31mred"),
    ],
)
def test_what_the_machine_or_the_package_refuses_is_one_line(error, words, monkeypatch, capsys):
    monkeypatch.setattr(predict, "_print_predictions", lambda *args: raise_(error))
    assert main(["predict", "x.jpg"]) == 2
    assert capsys.readouterr().err == f"vlm-par: error: {words}\n"


def raise_(error):
    raise error


def test_the_command_line_of_records_holds_no_secrets(monkeypatch):
    seen = []
    monkeypatch.setattr(predict, "run", lambda args: seen.append(args.command_line))
    assert main(["predict", "/home/alice/a.jpg", "--model", "https://u:word@host/m?token=abc"]) == 0
    assert seen == [["vlm-par", "predict", "~/a.jpg", "--model", "https://***@host/m?token=***"]]
