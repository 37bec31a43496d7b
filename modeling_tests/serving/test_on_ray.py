"""The service as an application of Ray Serve: two replicas, one of which is killed. `make test-services`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_tests.services import base64_text, picture
from modeling_tests.tiny import randomize, tiny_model, tiny_processor
from vlm_par_hf.errors import ParImportError, ParValueError
from vlm_par_hf.serving.on_ray import build_application
from vlm_par_hf.serving.running import ServiceSettings


ROOT = Path(__file__).parents[2]
# It has what Ray Serve needs beside the packages of this environment.
PYTHON = Path(os.environ.get("RAY_SERVE_PYTHON", ROOT / ".venv-ray" / "bin" / "python"))

SCRIPT = """
import json, socket, sys, threading, time, urllib.error, urllib.request
import ray
from ray import serve
from vlm_par_hf.serving.on_ray import build_application
from vlm_par_hf.serving.running import ServiceSettings

checkpoint, body = sys.argv[1], sys.argv[2].encode()
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(build_application(ServiceSettings(checkpoint, name="tiny"), replicas=2, cpus=0.5), route_prefix="/")
url, statuses, stop = f"http://127.0.0.1:{port}", [], threading.Event()

def post():
    request = urllib.request.Request(f"{url}/v1/attributes", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            json.load(answer)["people"]
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code

def ask():
    while not stop.is_set():
        statuses.append(post())

threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads:
    thread.start()
while len(statuses) < 20:
    time.sleep(0.1)
before = len(statuses)
replicas = [one for one in ray.util.list_named_actors(all_namespaces=True) if "#vlm-par#" in one["name"]]
ray.kill(ray.get_actor(**replicas[0]))
time.sleep(10)
while len(statuses) < before + 40:
    time.sleep(0.1)
stop.set()
for thread in threads:
    thread.join()
with urllib.request.urlopen(f"{url}/v2/models/tiny") as answer:
    metadata = json.load(answer)
print(json.dumps({"replicas": len(replicas), "before": statuses[:before], "after": statuses[before:],
                  "metadata": metadata["name"]}))
serve.shutdown()
"""


def test_what_is_refused(monkeypatch):
    with pytest.raises(ParValueError, match="replicas is 0, expected at least 1"):
        build_application(ServiceSettings(), replicas=0)
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(ParImportError, match=r'Ray Serve is needed here .*: pip install "ray\[serve\]"'):
        build_application(ServiceSettings())


@pytest.mark.services
def test_a_replica_that_is_killed_loses_nothing(tmp_path):
    assert PYTHON.is_file(), f"there is no {PYTHON}: run make test-services"
    randomize(tiny_model("naflex")).save_pretrained(tmp_path)
    tiny_processor("naflex").save_pretrained(tmp_path)
    body = json.dumps({"image": base64_text(picture())})
    done = subprocess.run(
        [PYTHON, "-c", SCRIPT, str(tmp_path), body], capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    # Ray prints too.
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"replicas"')))
    assert found["replicas"] == 2 and set(found["before"]) == {200} and found["metadata"] == "tiny"
    assert len(found["after"]) >= 40 and set(found["after"]) == {200}
