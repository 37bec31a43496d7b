"""`vlm-par serve` as it is started: what it refuses before the port is open, and how it stops."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from modeling_tests.retrieval.test_gallery import INFO
from modeling_tests.services import picture
from modeling_tests.tiny import randomize, tiny_model, tiny_processor
from vlm_par_hf.cli import main
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.retrieval.gallery import Gallery
from vlm_par_hf.serving.running import serve, take_port


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving") / "tiny"
    randomize(tiny_model("naflex")).save_pretrained(folder)
    tiny_processor("naflex").save_pretrained(folder)
    return str(folder)


@contextmanager
def started(checkpoint, *options):
    """A service as a process, its URL, and the events that it logs."""
    command = [sys.executable, "-m", "vlm_par_hf", "serve", checkpoint, "--port", "0", *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )  # fmt: skip
    events, ready = [], threading.Event()

    def read():
        for line in process.stderr:
            if line.startswith("{"):
                events.append(json.loads(line))
                if events[-1]["event"] == "ready":
                    ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        ready.wait(300)
        yield process, next(one["url"] for one in events if one["event"] == "ready"), events
    finally:
        process.kill()
        process.wait()
        reader.join()


class Load:
    """Clients that ask without a pause until the service is gone: what they sent, and what came back."""

    def __init__(self, url, clients=6):
        self.url, self.answered, self.lost = url, [], []
        self._stop = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]
        for thread in self.threads:
            thread.start()

    def _ask(self, number):
        data = picture(number)
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post("/v1/attributes", files={"file": data})
                    self.answered.append(answer.status_code)
                except httpx.ConnectError:  # the port is closed: nothing was sent
                    return
                except httpx.HTTPError as error:
                    self.lost.append(repr(error))
                    return

    def wait_for(self, number):
        deadline = time.monotonic() + 60
        while len(self.answered) < number:
            assert time.monotonic() < deadline, f"{len(self.answered)} answers"
            time.sleep(0.02)

    def end(self):
        self._stop.set()
        for thread in self.threads:
            thread.join()


def test_a_signal_under_load_loses_nothing_that_was_taken(checkpoint):
    with started(checkpoint, "--drain", "0.5") as (process, url, events):
        assert httpx.get(f"{url}/v2/models/tiny").json()["name"] == "tiny"
        load = Load(url)
        load.wait_for(30)
        process.send_signal(signal.SIGTERM)
        while not any(one["event"] == "stopping" for one in events):
            time.sleep(0.01)
        before = len(load.answered)
        assert httpx.get(f"{url}/v2/health/ready").status_code == 503
        assert process.wait(30) == 0
        load.end()
    assert load.lost == [] and set(load.answered) == {200}
    assert len(load.answered) > before, "it answers on while it says that it is not ready"
    assert [one["event"] for one in events if one["event"] != "request"] == ["ready", "stopping", "stopped"]


@pytest.mark.slow
def test_workers_share_the_port_and_one_that_dies_is_replaced(checkpoint):
    with started(checkpoint, "--workers", "2") as (process, url, events):
        load = Load(url, 4)
        load.wait_for(40)
        text = httpx.get(f"{url}/metrics").text
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert float(samples["vlm_par_pictures_total"]) >= 40, "of both workers"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [int(one) for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]
        assert len(workers) == 2
        load.end()
        os.kill(workers[0], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while not any(one["event"] == "worker died" and one["exit_code"] == -9 for one in events):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for _ in range(5):
            assert httpx.get(f"{url}/v2/health/ready").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert load.lost == [] and set(load.answered) == {200}


@pytest.mark.slow
def test_workers_end_with_their_parent(checkpoint):
    with started(checkpoint, "--workers", "2", "--drain", "0.1") as (process, url, events):
        process.kill()
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{url}/v2/health/live")
            except httpx.ConnectError:
                break
            assert time.monotonic() < deadline, "the workers live on"
            time.sleep(0.1)


def refused(capsys, *arguments):
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_a_port_in_use(checkpoint, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        error = refused(capsys, checkpoint, "--port", str(port))
    assert f"--host 127.0.0.1 --port {port} cannot be used: Address already in use" in error


def test_an_address_that_is_not_ours(checkpoint, capsys):
    assert "--host 203.0.113.7 --port 8000 cannot be used" in refused(capsys, checkpoint, "--host", "203.0.113.7")
    assert "--port 99999 cannot be used" in refused(capsys, checkpoint, "--port", "99999")


@pytest.mark.parametrize("detector", [False, True])
def test_what_cannot_be_loaded(checkpoint, capsys, tmp_path, detector):
    missing = str(tmp_path / "missing")
    arguments = [checkpoint, "--detector", missing] if detector else [missing]
    error = refused(capsys, *arguments, "--port", "0")
    assert f"{'detector' if detector else 'checkpoint'}: there is no folder {missing!r}" in error


def test_a_checkpoint_of_another_kind(capsys, tmp_path):
    model = tiny_model("naflex")
    model.vlm.save_pretrained(tmp_path)
    tiny_processor("naflex").save_pretrained(tmp_path)
    assert "without attributes" in refused(capsys, str(tmp_path), "--port", "0")


def test_a_gallery_that_does_not_fit(checkpoint, capsys, tmp_path):
    Gallery.create(tmp_path / "gallery", INFO)
    error = refused(capsys, checkpoint, "--port", "0", "--gallery", str(tmp_path / "gallery"))
    assert "was built by 'the-model' with another label space than the checkpoint has: " in error
    error = refused(capsys, checkpoint, "--port", "0", "--gallery", str(tmp_path / "none"))
    assert "there is no gallery" in error


def test_the_port_is_closed_until_the_model_is_warm(checkpoint, monkeypatch):
    from vlm_par_hf.serving import running

    tried = []
    with take_port("127.0.0.1", 0) as free:
        port = free.getsockname()[1]

    def load(settings):
        with socket.socket() as client:
            tried.append(client.connect_ex(("127.0.0.1", port)))
        raise ParValueError("seen")

    monkeypatch.setattr(running, "load_pipeline", load)
    with pytest.raises(ParValueError, match="seen"):
        serve(running.ServiceSettings(checkpoint), port=port)
    assert tried and tried[0] != 0


def test_workers_must_be_a_number_of_processes(checkpoint):
    with pytest.raises(ParValueError, match="workers is 0, expected at least 1"):
        serve(None, workers=0)
