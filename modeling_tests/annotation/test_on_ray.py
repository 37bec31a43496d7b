"""The parts of a run on Ray are those of a run without it."""

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from modeling_tests.image_folders import read, run, save_image
from vlm_par_hf.annotation import Annotator, ImageList
from vlm_par_hf.annotation.on_ray import AnswerForRay, ReadForRay


@pytest.fixture
def heavy(tmp_path) -> Path:
    """Images that take some time, so that a worker can be killed at its work."""
    save_image(tmp_path / "heavy" / "0.png", 0, size=(900, 1200))
    for number in range(1, 120):
        os.link(tmp_path / "heavy" / "0.png", tmp_path / "heavy" / f"{number}.png")
    save_image(tmp_path / "heavy" / "120.png", 1)
    (tmp_path / "heavy" / "60.png").unlink()
    (tmp_path / "heavy" / "60.png").write_bytes(b"<html>")
    return tmp_path / "heavy"


def test_what_a_worker_of_ray_does_gives_the_same(heavy, model, tmp_path):
    """One batch is one part; columns come as NumPy arrays. Relative paths start where the run does, not the worker."""
    run(heavy, tmp_path / "here.jsonl", model, images_per_part=50)
    before = os.getcwd()
    try:
        os.chdir(heavy.parent)
        images = ImageList("heavy")
    finally:
        os.chdir(before)
    lines = []
    annotator = AnswerForRay(**Annotator(model, batch_size=3).arguments)
    for start in range(0, 121, 50):
        segments = json.dumps(list(images.segments(start, start + 50)))
        table = ReadForRay(images.columns, images.folder)({"segments": np.array([segments], dtype=object)})
        batch = {name: np.array(table[name].to_pylist(), dtype=object) for name in table.column_names}
        found = annotator(batch)
        assert list(found["index"]) == list(range(start, min(start + 50, 121)))
        lines += [json.loads(line) for line in found["lines"] if not line.startswith('{"error"')]
    lines = [{**line, "image": f"{heavy.parent}/{line['image']}"} for line in lines]
    assert lines == read(tmp_path / "here.jsonl") and len(lines) == 120


@pytest.mark.slow
def test_ray_gives_the_same_though_a_worker_is_killed(heavy, model, tmp_path, monkeypatch):
    pytest.importorskip("ray.data", reason="needs the extra ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    expected = run(heavy, here, model, images_per_part=4)
    killed = []

    def kill_one():
        partial = tmp_path / "there.jsonl.partial"
        while not killed:
            time.sleep(0.01)
            if len(list(partial.glob("part-*"))) < 3:
                continue
            workers = [
                process
                for process in psutil.Process().children(recursive=True)
                if any("MapWorker" in word for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
            ]
            workers[0].kill()  # SIGKILL
            killed.append((len(workers), len(list(partial.glob("part-*")))))

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    report = run(heavy, there, model, images_per_part=4, ray_workers=2)
    killer.join(timeout=10)
    assert killed and killed[0][0] == 2, "two workers were at work"
    assert killed[0][1] < 28, "the worker was killed in the middle"
    assert there.read_bytes() == here.read_bytes()
    assert report == expected and len(report["broken"]) == 1
