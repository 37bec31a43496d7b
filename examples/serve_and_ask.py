"""Start the service, ask it in three ways, and stop it.

    python examples/serve_and_ask.py                               # the embedded model, the example crops
    python examples/serve_and_ask.py crops/*.jpg --model folder    # your checkpoint, your crops (one person each)

1. Indexes the crops in a gallery, as `vlm-par index` does, and starts `vlm-par serve` with it on a free port.
2. Asks `POST /v1/attributes`, with a file as `curl -F file=@person.jpg` sends it.
3. Asks by the Open Inference Protocol v2, with `tritonclient` where it is installed (`pip install tritonclient[http]`,
   in an environment of its own if need be), else with the protocol's JSON.
4. Asks `POST /v1/search` for those who have what the first person has.
5. Stops it with SIGTERM: what was taken is answered, and the exit status is 0.

Answers are written to `answers.json`. It takes half a minute on one CPU core.
"""

import argparse
import base64
import json
import signal
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path

import vlm_par_hf
from vlm_par_hf.images.example_crops import EXAMPLES
from vlm_par_hf.labels.decisions import is_positive_answer
from vlm_par_hf.utils import atomic_write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="crops of one person each; none: the example crops")
    parser.add_argument("--model", help="a checkpoint folder or repository; by default the embedded model")
    parser.add_argument("--out", type=Path, default=Path("outputs/serving"))
    options = parser.parse_args()
    images = [Path(one) for one in options.images or map(vlm_par_hf.example_crop, EXAMPLES)]
    options.out.mkdir(parents=True, exist_ok=True)

    command = [sys.executable, "-m", "vlm_par_hf"]
    model = ["--model", options.model] if options.model else []
    gallery = options.out / "gallery"
    index = [*command, "index", *map(str, images), "--out", str(gallery), *model]
    subprocess.run(index, check=True)  # into a gallery that is there only new pictures go

    checkpoint = [options.model] if options.model else []
    serve = [*command, "serve", *checkpoint, "--name", "par", "--port", "0", "--gallery", str(gallery)]
    service = subprocess.Popen(serve, stderr=subprocess.PIPE, text=True)
    try:
        url = wait_until_ready(service)
        print(f"ready at {url}, described at {url}/docs")
        answers = {"attributes": ask_with_a_file(url, images[0])}
        answers["open inference"] = ask_open_inference(url, images)
        answers["search"] = search(url, answers["attributes"]["people"][0])
    finally:
        service.send_signal(signal.SIGTERM)
        service.stderr.read()  # its log, until it ends
        print(f"stopped with status {service.wait()}")
    atomic_write_json(options.out / "answers.json", answers)
    print(f"wrote {options.out / 'answers.json'}")


def wait_until_ready(service: subprocess.Popen) -> str:
    """The URL of the service. Its log is JSON in lines; it logs `ready` when the model is warm and the port open."""
    for line in service.stderr:
        if line.startswith("{") and json.loads(line)["event"] == "ready":
            return json.loads(line)["url"]
        print(line, end="", file=sys.stderr)
    raise SystemExit("the service did not start")


def post(url: str, body: bytes, content_type: str) -> dict:
    request = urllib.request.Request(url, body, {"Content-Type": content_type})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def ask_with_a_file(url: str, image: Path) -> dict:
    boundary = uuid.uuid4().hex
    head = f'Content-Disposition: form-data; name="file"; filename="{image.name}"\r\n\r\n'
    parts = [b'Content-Disposition: form-data; name="sensitive"\r\n\r\nfalse', head.encode() + image.read_bytes()]
    body = b"".join(b"--" + boundary.encode() + b"\r\n" + part + b"\r\n" for part in parts)
    body += b"--" + boundary.encode() + b"--\r\n"
    answer = post(f"{url}/v1/attributes", body, f"multipart/form-data; boundary={boundary}")
    for person in answer["people"]:
        print(f"{image.name}: {', '.join(positive(person)) or 'nothing'}")
    return answer


def positive(person: dict) -> list[str]:
    return [name for name, one in person["attributes"].items() if is_positive_answer(one["label"])]


def ask_open_inference(url: str, images: list[Path]) -> dict:
    with urllib.request.urlopen(f"{url}/v2/models/par", timeout=60) as answer:
        attributes = json.load(answer)["parameters"]["attributes"]
    try:
        import numpy as np
        from tritonclient.http import InferenceServerClient, InferInput
    except ImportError:
        data = [base64.b64encode(image.read_bytes()).decode() for image in images]
        tensor = {"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}
        body = json.dumps({"inputs": [tensor], "outputs": [{"name": "decided"}]}).encode()
        (decided,) = post(f"{url}/v2/models/par/infer", body, "application/json")["outputs"]
        count = decided["shape"][1]
        rows = [decided["data"][start : start + count] for start in range(0, len(decided["data"]), count)]
    else:
        tensor = InferInput("image", [len(images)], "BYTES")
        tensor.set_data_from_numpy(np.array([image.read_bytes() for image in images], dtype=object))
        found = InferenceServerClient(url.removeprefix("http://")).infer("par", [tensor]).as_numpy("decided")
        rows = [[label.decode() for label in row] for row in found]
    decided = {}
    for image, row in zip(images, rows):
        decided[image.name] = {one["name"]: label for one, label in zip(attributes, row) if not one["sensitive"]}
        print(f"{image.name}, by the Open Inference Protocol: {len(decided[image.name])} attributes")
    return decided


def search(url: str, person: dict) -> dict:
    query = {
        name: person["attributes"][name]["label"] for name in (positive(person) or list(person["attributes"]))[:2]
    }
    answer = post(f"{url}/v1/search", json.dumps({"query": query, "top": 3}).encode(), "application/json")
    for one in answer["people"]:
        print(f"{answer['query']}: {one['rank']}. {Path(one['path']).name}")
    return answer


if __name__ == "__main__":
    main()
