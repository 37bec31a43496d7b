"""Two processes on the CPU (`torchrun`, gloo) train what one process trains at the same global batch.

This file is also the script that they run: `work` does everything once, in one process or in two that torchrun starts,
and the tests compare what was left behind.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from modeling_tests.bands import build_data
from modeling_tests.tiny import randomize, tiny_model, tiny_processor, tiny_schema
from modeling_tests.training_runs import Interrupt, assert_same_weights, run
from vlm_par_hf.cli.main import main
from vlm_par_hf.data import ParCollator
from vlm_par_hf.metrics.attributes import ParMetrics
from vlm_par_hf.training.runs import last_complete_checkpoint


ROOT = Path(__file__).parents[2]
GLOBAL_BATCH = 8
# 47: no number of processes but one divides it, so the last validation batches are filled with images seen before.
SIZES = {"train": 48, "validation": 47}
RUNS = {
    "images": {"eval_steps": 3},
    "features": {"precompute_features": True},
    "cached": {"cached": True},
    "accumulated": {"gradient_accumulation_steps": 2, "full_determinism": True},
}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, sys.path))}


def work(folder: Path) -> None:
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    writes = watch_writes(folder)
    data = build_data(tiny_schema(), SIZES)

    def start(name, data=data, **settings):
        if settings.pop("cached", False):  # a folder that the processes fill together
            settings["cache_features"] = folder / "features_on_disk"
        steps = settings.get("gradient_accumulation_steps", 1)
        size = GLOBAL_BATCH // processes // steps
        return run(data, folder / name, model=randomize(tiny_model()), batch_size=size, **settings)

    for name, settings in RUNS.items():
        start(name, **settings)
    try:
        start("cut", callbacks=[Interrupt(4)], **RUNS["images"])
    except KeyboardInterrupt:
        start("cut", resume=True, **RUNS["images"])
    start("uneven", build_data(tiny_schema(), {**SIZES, "train": 45}), epochs=1)
    try:
        start("images")
    except ValueError as error:
        (folder / f"refused_{rank}.txt").write_text(str(error))
    train_plainly(data, folder / "plain", GLOBAL_BATCH // processes, rank)
    (folder / f"writes_{rank}.json").write_text(json.dumps(writes))


def train_plainly(data, folder: Path, batch_size: int, rank: int) -> None:
    """The script of docs/training.md: a `Trainer`, and nothing of ours around it."""
    model, processor = randomize(tiny_model()), tiny_processor()
    seen = []

    class Collator(ParCollator):
        def __call__(self, rows):
            seen.append([row["image_id"] for row in rows])
            return super().__call__(rows)

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(folder), remove_unused_columns=False, num_train_epochs=2, per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=5, use_cpu=True, disable_tqdm=True, save_strategy="epoch",
        ),
        train_dataset=data["train"],
        data_collator=Collator(processor),
        compute_metrics=ParMetrics(model.config.schema),
        optimizers=(torch.optim.AdamW(model.parameter_groups(3e-3)), None),
    )  # fmt: skip
    trainer.train()
    order = list(seen)
    output = trainer.predict(data["validation"])
    np.savez(folder.with_name(f"plain_{rank}.npz"), logits=output.predictions, labels=output.label_ids)
    folder.with_name(f"plain_{rank}.json").write_text(json.dumps({"order": order, "metrics": output.metrics}))


def watch_writes(folder: Path) -> list[str]:
    """Paths below `folder` that this process opens for writing, makes, moves or removes from now on."""
    found: list[str] = []

    def hook(event, args):
        if event == "open":
            writing = isinstance(args[1], str) and set(args[1]) & set("wax+") or args[2] & (os.O_WRONLY | os.O_RDWR)
            paths = args[:1] if writing else ()
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
            paths = args[:1]
        else:
            paths = args[:2] if event == "os.rename" else ()
        for path in paths:
            if isinstance(path, (str, Path)) and Path(path).is_relative_to(folder):
                found.append(Path(path).relative_to(folder).as_posix())

    sys.addaudithook(hook)
    return found


def python(*arguments):
    """A process of its own: `full_determinism` would stay in this one."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    python(__file__, folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    python(*TORCHRUN, __file__, folder)
    return folder


def weights(folder):
    state = load_file(folder / "model.safetensors")
    return {name: value for name, value in state.items() if not name.startswith("vlm.")}


def curve(folder):
    return json.loads((folder / "learning_curve.json").read_text())


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_what_one_trains(one, two, name):
    # After the first steps AdamW divides a gradient by its own size: rounding of tiny ones grows to about 1e-6.
    assert_same_weights(weights(two / name), weights(one / name), atol=1e-5, rtol=0)
    found, expected = curve(two / name), curve(one / name)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for mine, other in zip(found, expected):
        for key in ("loss", "grad_norm", "learning_rate"):
            assert mine.get(key) == pytest.approx(other.get(key), rel=1e-4), key
        # Exactly: each image counts once. (The mean of the batches' losses is another one with other batches.)
        for key in ("eval_mA", "eval_instance_f1_harmonic"):
            assert mine.get(key) == other.get(key), key
    summaries = [json.loads((folder / name / "training.json").read_text()) for folder in (one, two)]
    assert summaries[0] == summaries[1]


def test_a_run_of_two_processes_continues_as_if_it_had_not_been_interrupted(two):
    assert_same_weights(weights(two / "cut"), weights(two / "images"), atol=0, rtol=0)
    record = json.loads((two / "cut" / "run.json").read_text())
    assert record["processes"] == 2


def test_a_run_of_two_processes_is_not_continued_by_one(two):
    with pytest.raises(ValueError, match=r"(?s)cannot be continued.*processes: 2 then, 1 now"):
        run(build_data(tiny_schema(), SIZES), two / "images", model=randomize(tiny_model()), batch_size=4,
            resume=True, **RUNS["images"])  # fmt: skip


def test_a_training_split_that_does_not_fill_the_last_step(one, two):
    steps = [json.loads((folder / "uneven" / "training.json").read_text())["steps"] for folder in (one, two)]
    assert steps == [6, 6]


def test_every_process_refuses_what_the_first_one_refuses(two):
    texts = [(two / f"refused_{rank}.txt").read_text() for rank in (0, 1)]
    assert "holds an earlier run" in texts[0] and texts[0] == texts[1]


def test_only_the_first_process_writes(two):
    first, second = (json.loads((two / f"writes_{rank}.json").read_text()) for rank in (0, 1))
    assert "images/run.json" in " ".join(first) and "images/checkpoints/checkpoint-3/trainer_state.json" in first
    # Each process keeps its own random state, and they compute features together.
    own = re.compile(
        r"(\w+/checkpoints|plain)/checkpoint-\d+/rng_state_1\.pth|refused_1\.txt|plain_1\.(npz|json)"
        r"|features_on_disk/.*"
    )
    made = re.compile(r"(\w+|\w+/checkpoints|(\w+/checkpoints|plain)/checkpoint-\d+)")
    assert [path for path in second if own.fullmatch(path)]
    assert not [path for path in second if not own.fullmatch(path) and not made.fullmatch(path)]


def test_a_plain_trainer_in_two_processes(one, two):
    single = json.loads((one / "plain_0.json").read_text())
    first, second = (json.loads((two / f"plain_{rank}.json").read_text()) for rank in (0, 1))
    assert len(single["order"]) == 12 and single["order"][:6] != single["order"][6:]
    assert [a + b for a, b in zip(first["order"], second["order"], strict=True)] == single["order"]
    found, expected = np.load(two / "plain_0.npz"), np.load(one / "plain_0.npz")
    data = build_data(tiny_schema(), SIZES)
    assert found["labels"].tolist() == data["validation"]["labels"][:]
    assert found["logits"].shape == (47, 3, 2)
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-4)
    np.testing.assert_array_equal(np.load(two / "plain_1.npz")["logits"], found["logits"])
    for name in ("test_mA", "test_instance_f1_harmonic", "test_plain_accuracy"):
        assert first["metrics"][name] == second["metrics"][name] == single["metrics"][name]
    checkpoints = [folder / "plain" / "checkpoint-12" for folder in (one, two)]
    assert_same_weights(weights(checkpoints[1]), weights(checkpoints[0]), atol=1e-5, rtol=0)


def test_a_checkpoint_without_the_random_state_of_a_process_is_incomplete(tmp_path):
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text('{"global_step": 3}')
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        (checkpoint / name).touch()
    assert last_complete_checkpoint(tmp_path) == checkpoint
    assert last_complete_checkpoint(tmp_path, processes=2) is None
    (checkpoint / "rng_state_1.pth").touch()
    assert last_complete_checkpoint(tmp_path, processes=2) == checkpoint


def test_the_command_line(tmp_path, capsys):
    options = ["train", "synthetic", "--num-train", 16, "--num-validation", 9, "--num-test", 2, "--epochs", 1,
               "--max-num-patches", 32, "--no-progress"]  # fmt: skip
    result = python(*TORCHRUN, "-m", "vlm_par_hf", *options, "--batch-size", 4, "--out", tmp_path / "two")
    assert main([*map(str, options), "--batch-size", "8", "--out", str(tmp_path / "one")]) == 0
    expected = capsys.readouterr().out.replace(str(tmp_path / "one"), str(tmp_path / "two"))
    assert result.stdout == expected, "said once, and the same"
    assert result.stderr.count("validation loss") == 1
    assert_same_weights(weights(tmp_path / "two"), weights(tmp_path / "one"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("command", [["evaluate", "x", "synthetic"], ["predict", "x.png"], ["demo"]])
def test_other_commands_refuse_several_processes(monkeypatch, capsys, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command) == 2
    assert re.search(rf"{command[0]} runs in one process and WORLD_SIZE=2: start it without torchrun",
                     capsys.readouterr().err)  # fmt: skip


_KILLED = """
import sys
from modeling_tests.tiny import tiny_schema
from modeling_tests.bands import build_data
from modeling_tests.training_runs import run

run(build_data(tiny_schema()), sys.argv[1], resume="resume" in sys.argv, batch_size=4, epochs=12, eval_steps=3)
"""


@pytest.mark.slow
def test_two_processes_killed_and_resumed_equal_an_uninterrupted_run(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(_KILLED)
    python(*TORCHRUN, script, tmp_path / "whole")
    checkpoints = tmp_path / "cut" / "checkpoints"
    process = subprocess.Popen(
        [sys.executable, *TORCHRUN, str(script), str(tmp_path / "cut")], cwd=ROOT, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 300
    while last_complete_checkpoint(checkpoints, processes=2) is None:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # torchrun gives each worker a session of its own: name them before their parent is gone.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "config.json").exists()
    python(*TORCHRUN, script, tmp_path / "cut", "resume")
    assert_same_weights(weights(tmp_path / "cut"), weights(tmp_path / "whole"), atol=0, rtol=0)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
