"""The service under load, beside what one would write without it.

    python benchmarks/serving.py --work DIR            # writes benchmarks/results/serving.json
    python benchmarks/serving.py --work DIR --seconds 5 --clients 1 8
    python benchmarks/serving.py --work DIR --soak 10  # minutes at 80 % of the load that it can carry

Forms, each a process of its own, one after another, all of one thread for the model:
  ours         `vlm-par serve` of the exported int8 file (OpenVINO): batched across requests
  plain        the pipeline in FastAPI, float32 torch: a request is a call
  plain int8   the same with the exported int8 file, so what batching alone is worth
  litserve     LitServe with the exported int8 file and its own batching; with --litserve PYTHON, an interpreter that
               has it beside this package

Work: JPEG crops of one person, and 1080p frames with 8 boxes. Clients keep their connection and ask again at once
(closed loop); then all forms get the same offered load, 80 % of what the plain form carried with most clients, from
clients that do not wait for answers before they send (open loop), so that latencies can be compared. The load
generator is a process of its own; its share of a core is in the results: near 1 it is what was measured. Ratios
compare forms of one run.
"""

import argparse
import http.client
import json
import os
import platform
import queue
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_par_hf.utils import atomic_write_json, embedded_path


RESULTS = Path(__file__).parent / "results" / "serving.json"
BOXES = [[40 + 230 * one, 300, 240 + 230 * one, 900] for one in range(8)]


# Load: `--generate`, a process of its own


def bodies(work: str, folder: str) -> list[tuple[bytes, str]]:
    """Requests of one kind: body and content type."""
    files = sorted(Path(folder).glob("*.jpg"))[:64]
    return [form(file.read_bytes(), BOXES if work == "frames" else None) for file in files]


def form(data: bytes, boxes: list | None) -> tuple[bytes, str]:
    boundary = uuid.uuid4().hex
    parts = [("file", data)] if boxes is None else [("file", data), ("boxes", json.dumps(boxes).encode())]
    body = b""
    for name, value in parts:
        file = '; filename="a.jpg"' if name == "file" else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + value + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def generate(url: str, work: str, folder: str, clients: int, seconds: float, rate: float) -> dict:
    """What `clients` connections saw; with `rate` above 0 as many requests per second are due, whatever comes back."""
    host = url.removeprefix("http://")
    requests = bodies(work, folder)
    seen: list[tuple[float, int]] = []
    due: queue.Queue = queue.Queue()
    end = time.perf_counter() + seconds

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection(host, timeout=60)
        place = number
        while True:
            started = due.get() if rate else time.perf_counter()
            if started is None or started >= end:
                return
            body, kind = requests[place % len(requests)]
            place += clients
            try:
                connection.request("POST", "/v1/attributes", body, {"Content-Type": kind})
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0
            seen.append((time.perf_counter() - started, status))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    for thread in threads:
        thread.start()
    if rate:  # latency counts from when a request was due, also while all clients are busy
        moment = started
        while moment < end:
            time.sleep(max(0.0, moment - time.perf_counter()))
            due.put(moment)
            moment += 1 / rate
        for _ in threads:
            due.put(None)
    for thread in threads:
        thread.join()
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    latencies = np.array([one for one, status in seen if status == 200] or [float("nan")])
    statuses = [status for _, status in seen]
    return {
        "requests": len(seen),
        "per_second": sum(status == 200 for status in statuses) / wall,
        "errors": {str(one): statuses.count(one) for one in sorted(set(statuses) - {200})},
        **{f"p{one}": float(np.percentile(latencies, one)) for one in (50, 95, 99)},
        "generator_cpu": (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / wall,
    }


# The forms without batching, `--plain`, and LitServe, `--lit`


def serve_plain(checkpoint: str, port: int) -> None:
    """What one writes first: the pipeline in FastAPI."""
    import uvicorn
    from fastapi import FastAPI, File, Form, Response

    from vlm_par_hf.inference.pipelines import PedestrianAttributesPipeline

    pipe = PedestrianAttributesPipeline.from_pretrained(checkpoint, device="cpu")
    app = FastAPI()

    @app.post("/v1/attributes")
    def attributes(file: bytes = File(), boxes: str | None = Form(None)) -> dict:  # noqa: B008
        found = pipe(file, boxes=None if boxes is None else json.loads(boxes))
        return {"people": found if boxes is not None else [found]}

    @app.get("/v2/health/ready")
    def ready() -> Response:
        return Response()

    uvicorn.run(app, port=port, log_level="error")


def serve_lit(checkpoint: str, port: int) -> None:
    import litserve
    from fastapi import UploadFile

    from vlm_par_hf.inference.pipelines import PedestrianAttributesPipeline

    class Attributes(litserve.LitAPI):
        def setup(self, device):
            self.pipe = PedestrianAttributesPipeline.from_pretrained(checkpoint, device="cpu", batch_size=16)

        def decode_request(self, request):
            file, boxes = request["file"], request.get("boxes")
            data = file.file.read() if isinstance(file, UploadFile) or hasattr(file, "file") else file
            return {"image": data, "boxes": None if boxes is None else json.loads(boxes)}

        def predict(self, rows):
            return self.pipe(rows)

        def encode_response(self, output):
            return {"people": output if isinstance(output, list) else [output]}

    api = Attributes(max_batch_size=16, batch_timeout=0.005, api_path="/v1/attributes")
    litserve.LitServer(api, accelerator="cpu", healthcheck_path="/v2/health/ready").run(
        port=port, generate_client_file=False, log_level="error"
    )


# The run


class Form:
    """One form as a process, ready when the block begins."""

    def __init__(self, name: str, command: list[str], port: int) -> None:
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)

    def __enter__(self) -> "Form":
        deadline = time.monotonic() + 300
        while True:
            try:
                connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=5)
                connection.request("GET", "/v2/health/ready")
                if connection.getresponse().status == 200:
                    return self
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise SystemExit(f"{self.name} did not start")
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)

    def memory(self) -> float:
        """Resident megabytes."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def cpu_seconds(self) -> float:
        """What all of its processes have computed."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            if int(fields[2]) == self._process.pid:  # its group
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def ask(self, work: str, folder: Path, clients: int, seconds: float, rate: float = 0.0) -> dict:
        words = [self.url, work, str(folder), str(clients), str(seconds), str(rate)]
        before = self.cpu_seconds()
        done = subprocess.run([sys.executable, __file__, "--generate", *words], capture_output=True, check=True)
        found = json.loads(done.stdout)
        return found | {"cpu_per_request": (self.cpu_seconds() - before) / max(1, found["requests"])}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def make_pictures(work: Path) -> dict[str, Path]:
    """Crops and frames as JPEG files: photographs of PA_DATA's kind if there are some, else drawings; frames are crops
    on a canvas, each in its box."""
    from vlm_par_hf.export.parity import draw_people

    real = Path(os.environ["PAR_DATA"], "pa100k_mini", "data") if "PAR_DATA" in os.environ else None
    if real is not None and real.is_dir():
        people = [Image.open(path).convert("RGB") for path in sorted(real.glob("*.jpg"))[:64]]
    else:
        people = draw_people(64)
    folders = {"crops": work / "crops", "frames": work / "frames"}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    for number, person in enumerate(people):
        person.save(folders["crops"] / f"{number:02}.jpg", quality=90)
    noise = np.random.default_rng(0).integers(90, 150, (68, 120, 3), dtype=np.uint8)
    for number in range(8):
        frame = Image.fromarray(noise).resize((1920, 1080))
        for place, (x0, y0, x1, y1) in enumerate(BOXES):
            frame.paste(people[(8 * number + place) % len(people)].resize((x1 - x0, y1 - y0)), (x0, y0))
        frame.save(folders["frames"] / f"{number}.jpg", quality=90)
    return folders


def export_int8(checkpoint: str, work: Path, crops: Path) -> str:
    from vlm_par_hf.export import export_model

    out = work / "int8"
    if not (out / "config.json").exists():
        export_model(
            checkpoint, out, to="openvino", precision="int8", calibration_images=sorted(crops.glob("*.jpg")),
            compared_images=sorted(crops.glob("*.jpg"))[:8], images_from="the crops of this benchmark",
        )  # fmt: skip
    return str(out)


def commands(options: argparse.Namespace, int8: str) -> dict[str, tuple[list[str], int]]:
    python, port = sys.executable, free_port()
    ours = [python, "-m", "vlm_par_hf", "serve", int8, "--port", str(port), "--max-in-work", "256"]
    forms = {
        "ours": ours,
        "plain": [python, __file__, "--plain", options.checkpoint, str(port)],
        "plain int8": [python, __file__, "--plain", int8, str(port)],
    }
    if options.litserve:
        forms["litserve"] = [options.litserve, __file__, "--lit", int8, str(port)]
    return {name: (command, port) for name, command in forms.items()}


def measure(options: argparse.Namespace) -> dict:
    folders = make_pictures(options.work)
    int8 = export_int8(options.checkpoint, options.work, folders["crops"])
    forms = commands(options, int8)
    most = max(options.clients)
    rows = []

    def note(form: Form, work: str, clients: int, **more: object) -> dict:
        row = {"form": form.name, "work": work, "clients": clients, **more}
        row |= form.ask(work, folders[work], clients, options.seconds, float(more.get("offered", 0.0)))
        rows.append(row)
        print(json.dumps(row), flush=True)
        return row

    for name, (command, port) in forms.items():
        with Form(name, command, port) as form:
            for work in folders:
                form.ask(work, folders[work], 2, min(3.0, options.seconds))  # warm
                for clients in options.clients:
                    note(form, work, clients)
    carried = {row["work"]: row["per_second"] for row in rows if row["form"] == "plain" and row["clients"] == most}
    for name, (command, port) in forms.items():
        with Form(name, command, port) as form:
            for work in folders:
                form.ask(work, folders[work], 2, min(3.0, options.seconds))
                note(form, work, most, offered=0.8 * carried[work])
    return {
        "rows": rows,
        "ratios": ratios(rows, most),
        "clients": options.clients,
        "seconds": options.seconds,
        "load_average": os.getloadavg(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs",
        "command": "python benchmarks/serving.py " + " ".join(
            f"--seconds {options.seconds:g} --clients".split() + [str(one) for one in options.clients]
        ),
    }  # fmt: skip


def ratios(rows: list[dict], most: int) -> list[dict]:
    """Ours beside each other form, with most clients and at the same offered load: requests per second, p95, and CPU
    seconds of the server per request, which other work on the machine changes least."""
    found = []
    ours = {(row["work"], "offered" in row): row for row in rows if row["form"] == "ours" and row["clients"] == most}
    for row in rows:
        own = ours.get((row["work"], "offered" in row))
        if row["form"] == "ours" or row["clients"] != most or own is None:
            continue
        kind = "offered load" if "offered" in row else "closed loop"
        found.append(
            {
                "work": row["work"], "to": row["form"], "kind": kind,
                "per_second": own["per_second"] / row["per_second"] if row["per_second"] else None,
                "cpu_per_request": own["cpu_per_request"] / row["cpu_per_request"],
                "p95": own["p95"] / row["p95"],
            }
        )  # fmt: skip
    return found


def soak(options: argparse.Namespace) -> dict:
    folders = make_pictures(options.work)
    command, port = commands(options, export_int8(options.checkpoint, options.work, folders["crops"]))["ours"]
    with Form("ours", command, port) as form:
        rate = 0.8 * form.ask("crops", folders["crops"], 8, 20.0)["per_second"]
        parts, memory = [], [form.memory()]
        for _ in range(max(1, round(options.soak))):
            parts.append(form.ask("crops", folders["crops"], 32, 60.0, rate))
            memory.append(form.memory())
            print(json.dumps({**parts[-1], "memory": memory[-1]}), flush=True)
    return {
        "minutes": options.soak, "offered": rate, "requests": sum(one["requests"] for one in parts),
        "errors": [one["errors"] for one in parts if one["errors"]], "memory_mb": memory,
        "p95": [one["p95"] for one in parts],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for pictures and the exported model")
    parser.add_argument("--checkpoint", default=str(embedded_path("heads")), help="default: the embedded one")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--litserve", metavar="PYTHON", help="an interpreter with litserve and this package")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="only this: at 80 %% of the load of 8 clients")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--generate", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--plain", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--lit", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        url, work, folder, clients, seconds, rate = options.generate
        print(json.dumps(generate(url, work, folder, int(clients), float(seconds), float(rate))))
    elif options.plain:
        serve_plain(options.plain[0], int(options.plain[1]))
    elif options.lit:
        serve_lit(options.lit[0], int(options.lit[1]))
    elif options.work is None:
        parser.error("--work is needed: a folder for pictures and the exported model")
    else:
        before = json.loads(options.out.read_text()) if options.out.exists() else {}
        part = {"soak": soak(options)} if options.soak else measure(options)
        atomic_write_json(options.out, {**before, **part})
        print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
