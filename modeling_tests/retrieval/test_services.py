"""Galleries on an object store, an S3 server on this machine, and indexing by workers of Ray: `make test-services`.

The server is moto's, from an environment of its own, because it needs other versions of packages than this one.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from modeling_tests.retrieval.test_gallery import INFO, make_people
from modeling_tests.retrieval.test_indexing import draw, save_checkpoint
from vlm_par_hf.cli.main import main
from vlm_par_hf.errors import ParError
from vlm_par_hf.retrieval.encoding import PersonEncoder
from vlm_par_hf.retrieval.gallery import Gallery
from vlm_par_hf.retrieval.indexing import index_people


pytestmark = pytest.mark.services
ROOT = Path(__file__).parents[2]
SERVER = Path(os.environ.get("MOTO_SERVER", ROOT / ".venv-services" / "bin" / "moto_server"))


@pytest.fixture(scope="module")
def options():
    """The storage options of an S3 server with the bucket `bucket`."""
    assert SERVER.is_file(), f"there is no {SERVER}: run make test-services"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([SERVER, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        else:
            pytest.fail("moto's server did not start in a minute")
        yield {
            "endpoint": url, "region": "us-east-1", "allow_http": "true", "aws_access_key_id": "testing",
            "aws_secret_access_key": "testing",
        }  # fmt: skip
    finally:
        process.terminate()
        process.wait()


def test_a_gallery_on_an_object_store(options):
    place = "s3://bucket/people"
    with pytest.raises(ParError, match="there is no gallery 's3://bucket/people'"):
        Gallery.open(place, storage_options=options)
    writer = Gallery.create(place, INFO, storage_options=options)
    readers = [Gallery.open(place, expected=INFO, storage_options=options) for _ in range(3)]
    people = make_people(300)
    for start in range(0, 300, 100):
        writer.add(people[start : start + 100])
        assert [len(one) for one in readers] == [start + 100] * 3
    assert writer.add(people) == {"added": 0, "already_there": 300}
    vector = np.arange(8.0)
    found = [one.search(vector=vector, filter="hat, Top!=red").people for one in readers]
    assert found[0] == found[1] == found[2] and found[0]
    writer.create_index(partitions=4)
    assert writer.delete("time >= 290") == 10 and writer.compact()["people"] == len(readers[0]) == 290
    assert readers[1].stats()["people_not_in_index"] == 0


WRITER = """
import json, sys
from modeling_tests.retrieval.test_gallery import Gallery, make_people
gallery = Gallery.open(sys.argv[1], storage_options=json.loads(sys.argv[2]))
people = make_people(20_000)
for start in range(0, len(people), 50):
    gallery.add(people[start:start + 50])
    print(start + 50, flush=True)
"""


def test_a_writer_to_an_object_store_is_killed(options):
    place = "s3://bucket/killed"
    gallery = Gallery.create(place, INFO, storage_options=options)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-c", WRITER, place, json.dumps(options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    acknowledged = [int(process.stdout.readline()) for _ in range(4)]
    process.send_signal(signal.SIGKILL)
    acknowledged += map(int, process.stdout.read().split())
    process.wait()
    rows = gallery.files()["id"]
    assert len(rows) >= max(acknowledged) and len(rows) % 50 == 0 and len(set(rows)) == len(rows)
    people = make_people(len(rows) + 50)
    assert gallery.add(people) == {"added": 50, "already_there": len(rows)}


def test_a_server_that_is_not_there_is_named(options):
    away = {**options, "endpoint": "http://127.0.0.1:9", "client_max_retries": "0", "connect_timeout": "1s"}
    with pytest.raises(ParError, match="the gallery 's3://bucket/people'"):
        Gallery.open("s3://bucket/people", storage_options=away)


@pytest.fixture
def crops(tmp_path):
    folder = tmp_path / "crops"
    folder.mkdir()
    for i in range(150):
        draw(folder / f"{i}.png", i)
    (folder / "150.png").write_bytes(b"no picture")
    save_checkpoint(tmp_path / "model")
    return folder


def test_ray_reads_what_one_process_reads(crops, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    here, there = tmp_path / "here", tmp_path / "there"
    encoder = PersonEncoder(tmp_path / "model", batch_size=8)
    expected = index_people(crops, here, encoder=encoder, progress=False)
    report = index_people(crops, there, encoder=encoder, ray_workers=2, progress=False)
    assert {**report, "gallery": None} == {**expected, "gallery": None}
    one, other = (
        {each["path"]: each for each in Gallery.open(place).search("hat", top=1000).people} for place in (here, there)
    )
    assert one.keys() == other.keys() and len(one) == 150
    for path, each in one.items():
        assert other[path]["score"] == pytest.approx(each["score"], abs=1e-3)
    assert index_people(crops, there, encoder=encoder, ray_workers=2, progress=False)["unchanged"] == 150


def test_the_commands_reach_it(crops, tmp_path, options, monkeypatch, capsys):
    keys = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
    for name, variable in keys.items():
        monkeypatch.setenv(variable, options[name])
    given = [f"--storage-option={name}={value}" for name, value in options.items() if name not in keys]
    place = "s3://bucket/commands"
    assert main(["index", str(crops), "--out", place, "--model", str(tmp_path / "model"), *given]) == 1
    out = capsys.readouterr().out
    assert "150 people added" in out and "not read: " in out
    assert main(["search", place, "hat", "--top", "3", *given]) == 0
    assert "150 of 150 people" in capsys.readouterr().out
