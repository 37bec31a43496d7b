"""A service in this process, over a real port, and small clients for it."""

import base64
import io
import json
import socket
import struct
import threading
import time

import numpy as np
import uvicorn
from PIL import Image

from modeling_tests.tiny import randomize, tiny_model, tiny_processor
from vlm_par_hf.inference.pipelines import PedestrianAttributesPipeline
from vlm_par_hf.serving.app import create_app
from vlm_par_hf.serving.handler import AttributeHandler, Limits
from vlm_par_hf.serving.measures import Measures
from vlm_par_hf.serving.running import _Http, take_port


__all__ = ["Service", "ask_raw", "base64_text", "binary_infer", "picture", "tiny_pipe"]


def tiny_pipe(kind="kway", **options):
    return PedestrianAttributesPipeline(
        model=randomize(tiny_model(kind)), processor=tiny_processor(kind), device="cpu", **options
    )


def picture(seed=0, size=(24, 48), kind="PNG"):
    """The bytes of an image file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def base64_text(data):
    return base64.b64encode(data).decode()


class Service:
    """`with Service(pipe) as service:` serves at `service.url` in a thread."""

    def __init__(self, pipe, limits=None, head_seconds=10.0, **options):
        self.measures = Measures()
        self.handler = AttributeHandler(pipe, limits or Limits(), self.measures)
        app = create_app(self.handler, name="tiny", measures=self.measures, **options)
        protocol = type("Http", (_Http,), {"head_seconds": head_seconds})
        config = uvicorn.Config(app, http=protocol, ws="none", log_config=None, access_log=False)
        self.server = uvicorn.Server(config)
        self.socket = take_port("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "the service did not start"
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()


def ask_raw(port, data, *, timeout=10.0, pause=0.0, finish=True):
    """Sends bytes as they are; the status and the text of the answer. None: the connection was closed without one.

    Args:
        data: bytes, or a list of them that is sent with pauses.
        finish: whether to say that nothing more will come.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as stream:
        try:
            for chunk in [data] if isinstance(data, bytes) else data:
                stream.sendall(chunk)
                time.sleep(pause)
            if finish:
                stream.shutdown(socket.SHUT_WR)
        except OSError:  # it has answered already
            pass
        answer = b""
        try:
            while chunk := stream.recv(65536):
                answer += chunk
                head, end, body = answer.partition(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")),
                    None,
                )
                if end and length is not None and len(body) >= length:
                    break
        except OSError:
            pass
    if not answer:
        return None, ""
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2].decode("utf-8", "replace")


def binary_infer(client, url, images, outputs=None, **changes):
    """An inference request in the binary form, as a client of the protocol writes it: names to arrays or texts."""
    blob = b"".join(struct.pack("<I", len(one)) + one for one in images)
    tensor = {
        "name": "image", "datatype": "BYTES", "shape": [len(images)], "parameters": {"binary_data_size": len(blob)},
    } | changes  # fmt: skip
    request = {"id": "7", "inputs": [tensor]}
    if outputs is None:
        request["parameters"] = {"binary_data_output": True}
    else:
        request["outputs"] = outputs
    head = json.dumps(request).encode()
    answer = client.post(url, content=head + blob, headers={"Inference-Header-Content-Length": str(len(head))})
    length = answer.headers.get("Inference-Header-Content-Length")
    if length is None:
        return answer, {}
    found, rest, arrays = json.loads(answer.content[: int(length)]), answer.content[int(length) :], {}
    for one in found["outputs"]:
        if "data" in one:
            values = one["data"]
        else:
            size = one["parameters"]["binary_data_size"]
            own, rest = rest[:size], rest[size:]
            values = np.frombuffer(own, "<f4") if one["datatype"] == "FP32" else _texts(own)
        arrays[one["name"]] = np.array(values).reshape(one["shape"])
    assert rest == b""
    return answer, arrays


def _texts(data):
    found = []
    while data:
        (length,) = struct.unpack("<I", data[:4])
        found.append(data[4 : 4 + length].decode())
        data = data[4 + length :]
    return found
