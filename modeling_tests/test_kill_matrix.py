"""Commands that are killed at any moment and started again leave what a run leaves that was not killed.

This file is also the script of the process that forks them: it has imported everything, so that a kill costs none.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from modeling_tests.bands import build_data
from modeling_tests.image_folders import save_image, save_model
from modeling_tests.tiny import save_backbone, tiny_model, tiny_processor, tiny_schema
from vlm_par_hf.output_folders import LIST


KILLS = 20
RECORDS = (LIST, "manifest.json", "run.json")  # a folder that holds one of them was begun
ROOT = Path(__file__).parents[1]
TIMES = ("runtime", "per_second", "_time")  # parts of the names of values that differ from run to run


class Forks:
    """Runs functions of this file, each in a process that is forked from one that has imported everything."""

    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def run(self, function: str, *arguments: object, kill_after: float = 0.0) -> tuple[int, float]:
        """The exit status (minus the signal) and the seconds it took."""
        request = [function, [str(argument) for argument in arguments], kill_after]
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        status, seconds = json.loads(self.process.stdout.readline())
        return status, seconds

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture(scope="module")
def forks():
    server = Forks()
    yield server
    server.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of images with labels, a backbone, a model."""
    root = tmp_path_factory.mktemp("files")
    data = root / "data"
    data.mkdir()
    schema = tiny_schema()
    schema.to_json(data / "schema.json")
    lines = [",".join(["image", "split", *schema.names])]
    for split, rows in build_data(schema, {"train": 24, "validation": 12, "test": 4}).items():
        for row in rows:
            row["image"].save(data / row["image_id"])
            labels = ["" if label < 0 else str(label) for label in row["labels"]]
            lines.append(",".join([row["image_id"], split, *labels]))
    (data / "labels.csv").write_text("\n".join(lines) + "\n")
    for number in range(40):
        save_image(root / "images" / f"{number}.png", number)
    save_backbone(root / "backbone", tiny_model("naflex"), tiny_processor("naflex"))
    save_model(root / "model")
    return root


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_times(text: bytes) -> list:
    rows = json.loads(text)
    return [{name: value for name, value in row.items() if not any(t in name for t in TIMES)} for row in rows]


def kill_and_finish(forks, function, first, again, places, seed, compare):
    """Kills `function` at `KILLS` moments, each in a new folder, finishes it and compares with a run that was not.

    Args:
        first, again: called with a folder; the arguments of the run, and of the one that goes on.
        places: called with a number; an empty folder.
        compare: called with the folder of the whole run and that of a killed one.
    """
    whole = places("whole")
    status, _ = forks.run(function, *first(whole))
    assert status == 0
    status, seconds = forks.run(function, *first(places("timed")))
    assert status == 0
    moments = random.Random(seed)
    for number in range(KILLS):
        # One moment in each twentieth of the time, so that every phase is hit.
        moment = seconds * (number + moments.random()) / KILLS
        for attempt in range(9):
            out = places(f"{number:02d}_{attempt}")
            status, _ = forks.run(function, *first(out), kill_after=moment)
            if status:
                break
            moment *= 0.9  # the machine was faster this time
        assert status == -signal.SIGKILL
        begun = [folder for folder in out.iterdir() if any((folder / name).is_file() for name in RECORDS)]
        notes = [folder / "foreign note.md" for folder in (out, *begun)]
        for note in notes:
            note.write_text("mine")
        status, _ = forks.run(function, *again(out))
        assert status == 0, f"killed after {moment:.3f} of {seconds:.3f} s"
        for note in notes:
            assert note.read_text() == "mine"
            note.unlink()
        for folder in out.glob("*.partial"):
            folder.rmdir()  # which raises an error if anything is left in it
        try:
            compare(whole, out)
        except AssertionError as error:
            raise AssertionError(f"killed after {moment:.3f} of {seconds:.3f} s: {error}") from error


def numbered(tmp_path):
    def place(name):
        folder = tmp_path / name / "out"
        folder.mkdir(parents=True)
        return folder

    return place


def assert_same_files(whole: Path, out: Path, without=()) -> None:
    expected, found = snapshot(whole), snapshot(out)
    assert expected.keys() == found.keys()
    differing = [name for name in expected if name not in without and expected[name] != found[name]]
    assert not differing


@pytest.mark.slow
def test_predict(forks, files, tmp_path):
    def arguments(out):
        return [files / "images", out / "out.jsonl", files / "model"]

    kill_and_finish(forks, "predict", arguments, arguments, numbered(tmp_path), 1, assert_same_files)


@pytest.mark.slow
def test_prepare(forks, files, tmp_path):
    def arguments(out):
        return ["prepare", "folder", files / "data", "--out", out / "data set", "--images-per-file", 5]

    def compare(whole, out):
        assert_same_files(whole, out, without=(f"data set/{LIST}",))
        lists = [json.loads((folder / "data set" / LIST).read_text()) for folder in (whole, out)]
        assert lists[0]["files"].keys() == lists[1]["files"].keys() and lists[1]["being_written"] == []

    kill_and_finish(forks, "command", arguments, arguments, numbered(tmp_path), 2, compare)


@pytest.mark.slow
def test_train(forks, files, tmp_path):
    def arguments(out):
        return [
            "train", "folder", "--root", files / "data", "--backbone", files / "backbone", "--out", out / "run",
            "--epochs", 4, "--batch-size", 6, "--no-progress", "--precompute-features", "--logging-steps", 2,
        ]  # fmt: skip

    def again(out):
        return [*arguments(out), "--resume"]

    def compare(whole, out):
        whole, out = whole / "run", out / "run"
        assert {path.name for path in whole.iterdir()} == {path.name for path in out.iterdir()}
        weights = [load_file(folder / "model.safetensors") for folder in (whole, out)]
        assert weights[0].keys() == weights[1].keys()
        assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
        curves = [without_times((folder / "learning_curve.json").read_bytes()) for folder in (whole, out)]
        assert curves[0] == curves[1]
        for name in ("training.json", "config.json", "processor_config.json"):
            assert (whole / name).read_bytes() == (out / name).read_bytes()
        left = {path.name for path in (out / "checkpoints").iterdir()}
        assert left == {path.name for path in (whole / "checkpoints").iterdir()}
        assert json.loads((out / LIST).read_text())["being_written"] == []

    kill_and_finish(forks, "command", arguments, again, numbered(tmp_path), 3, compare)


@pytest.mark.slow
def test_features(forks, files, tmp_path):
    def arguments(out):
        return [files / "data", files / "backbone", out / "features"]

    def compare(whole, out):
        expected, found = (
            {name: data for name, data in snapshot(folder).items() if "/.lock" not in name} for folder in (whole, out)
        )
        assert expected == found

    kill_and_finish(forks, "features", arguments, arguments, numbered(tmp_path), 4, compare)


@pytest.mark.slow
def test_train_retrieval(forks, files, tmp_path):
    recognizer = tmp_path / "recognizer"
    tiny_model("naflex").save_pretrained(recognizer)
    tiny_processor("naflex").save_pretrained(recognizer)

    def arguments(out):
        return [
            "train-retrieval", recognizer, "folder", "--root", files / "data", "--out", out / "head",
            "--epochs", 4, "--embedding-size", 8,
        ]  # fmt: skip

    def again(out):
        return [*arguments(out), "--resume"]

    def compare(whole, out):
        assert_same_files(whole, out, without=(f"head/{LIST}", "head/run.json"))
        assert json.loads((out / "head" / LIST).read_text())["being_written"] == []

    kill_and_finish(forks, "command", arguments, again, numbered(tmp_path), 5, compare)


# In the forked process


def predict(images, out, model):
    from vlm_par_hf.annotation import annotate

    annotate(images, out, model=model, batch_size=2, images_per_part=4, progress=False)


def command(*arguments):
    from vlm_par_hf.cli.main import main

    os._exit(main(list(arguments)))


def features(data, backbone, folder):
    from vlm_par_hf.data import load_par_dataset
    from vlm_par_hf.features import compute_features, feature_views
    from vlm_par_hf.models.vlm_par import VlmParModel, VlmParProcessor

    rows = load_par_dataset("folder", data)["train"]
    model = VlmParModel.from_backbone(backbone, attributes=tiny_schema())
    compute_features(
        model, rows, VlmParProcessor.from_backbone(backbone), directory=folder, views=feature_views(True, 2),
        rows_per_shard=4, batch_size=2, progress=False,
    )  # fmt: skip


def serve():
    import datasets  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import vlm_par_hf.annotation
    import vlm_par_hf.cli.main
    import vlm_par_hf.training  # noqa: F401

    with contextlib.suppress(ImportError):
        import matplotlib.pyplot  # noqa: F401
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        name, arguments, kill_after = json.loads(line)
        started = time.monotonic()
        child = os.fork()
        if not child:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            status = 1
            try:
                globals()[name](*arguments)
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        ended = None
        while kill_after and time.monotonic() - started < kill_after:
            pid, ended = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            ended = None
            time.sleep(0.001)
        if ended is None:
            if kill_after:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child, signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            _, ended = os.waitpid(child, 0)
        answers.write(json.dumps([os.waitstatus_to_exitcode(ended), time.monotonic() - started]) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
