"""Hostile requests: each is refused with a reason, none is a fault, and the service goes on."""

import io
import json
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from modeling_tests.services import Service, ask_raw, base64_text, picture
from modeling_tests.serving.conftest import LIMITS


JSON = "application/json"


def post(body, content_type=JSON, path="/v1/attributes", length=None, headers=()):
    """A request as bytes."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {content_type}",
        f"Content-Length: {len(body) if length is None else length}", *headers,
    ]  # fmt: skip
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def form(data=None, *, end=True, disposition='form-data; name="file"; filename="a.png"', boundary="B"):
    data = picture() if data is None else data
    head = f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
    return head + data + (f"\r\n--{boundary}--\r\n".encode() if end else b"")


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side):
    """A PNG file of some kilobytes that says that it has `side` * `side` pixels."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(bytes(100_000))) + png_chunk(b"IEND", b"")


def jpeg_that_says(width, height):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


MULTIPART = "multipart/form-data; boundary=B"
INFER = "/v2/models/tiny/infer"
HOSTILE = {
    "no body": post(b""),
    "no JSON": post(b"{'image': 1}"),
    "wrong type": post({"image": {"path": "/etc/passwd"}}),
    "list": post([1, 2, 3]),
    "deep JSON": post(b"[" * 50_000),
    "deep value": post(b'{"image": ' + b"[" * 50_000),
    "a path": post({"image": "/etc/passwd"}),
    "a file URL": post({"image": "file:///etc/passwd"}),
    "a path in a data URI": post({"image": "data:,/etc/passwd"}),
    "a path as a file": post(form(b"/etc/passwd"), MULTIPART),
    "NaN": post(b'{"image": "AAAA", "threshold": NaN}'),
    "infinity": post(b'{"image": "AAAA", "boxes": [[0, 0, 1e999, 5]]}'),
    "huge number": post(b'{"image": "AAAA", "threshold": 1' + b"0" * 5000 + b"}"),
    "not UTF-8": post(b'{"image": "\xff\xfe"}'),
    "lone surrogate": post(b'{"image": "\\ud800"}'),
    "null bytes": post({"image": "\0\0\0\0"}),
    "many boxes": post({"image": base64_text(picture()), "boxes": [[0, 0, 5, 5]] * 1000}),
    "many attributes": post({"image": base64_text(picture()), "attributes": ["Hat"] * 1000}),
    "a long attribute": post({"image": base64_text(picture()), "attributes": ["a" * 10_000]}),
    "negative box": post({"image": base64_text(picture()), "boxes": [[-1e30, -1e30, -1e29, -1e29]]}),
    "too many pictures": post({"images": [{"image": "AAAA"}] * 1000}),
    "pixel bomb": post(form(bomb(30_000)), MULTIPART),
    "smaller bomb": post(form(bomb(3_000)), MULTIPART),
    "bomb in base64": post({"image": base64_text(bomb(60_000))}),
    "JPEG bomb": post(form(jpeg_that_says(65_000, 65_000)), MULTIPART),
    "bomb below": post(form(bomb(900)), MULTIPART),
    "bomb in a tensor": post(
        {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64_text(bomb(30_000))]}]},
        path=INFER,
    ),
    "truncated picture": post(form(picture()[:500]), MULTIPART),
    "web page": post(form(b"<!doctype html><html></html>"), MULTIPART),
    "SVG": post(form(b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>"), MULTIPART),
    "EPS": post(form(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"), MULTIPART),
    "zip": post(form(b"PK\x03\x04" + bytes(200)), MULTIPART),
    "truncated multipart": post(form(end=False), MULTIPART),
    "no boundary": post(form(), "multipart/form-data"),
    "wrong boundary": post(form(), "multipart/form-data; boundary=C"),
    "long boundary": post(form(), f"multipart/form-data; boundary={'B' * 5000}"),
    "nameless part": post(form(disposition="form-data"), MULTIPART),
    "no disposition": post(b"--B\r\n\r\nx\r\n--B--\r\n", MULTIPART),
    "many parts": post(form(b"", end=False) * 500 + b"\r\n--B--\r\n", MULTIPART),
    "long part header": post(form(disposition="x" * 20_000), MULTIPART),
    "form without a file": post(form(disposition='form-data; name="image"'), MULTIPART),
    "other type": post(b"<xml/>", "text/xml"),
    "no type": post(b"{}", ""),
    "compressed": post(zlib.compress(bytes(1000)), headers=["Content-Encoding: gzip"]),
    "too large": post(b"x" * (LIMITS.max_bytes + 1)),
    "says too large": post(b"{}", length=10**15),
    "says no number": post(b"{}", length="1e3"),
    "says two lengths": post(b"{}", headers=["Content-Length: 3"]),
    "says less": post({"image": base64_text(picture())}, length=20),
    "huge header": post(b"{}", headers=[f"X-A: {'a' * 200_000}"]),
    "many headers": post(b"{}", headers=[f"X-{one}: {'a' * 100}" for one in range(2000)]),
    "header without colon": post(b"{}", headers=["nonsense"]),
    "control character": post(b"{}", headers=["X-A: a\x00b"]),
    "expects": post(b"x" * (LIMITS.max_bytes + 1), headers=["Expect: 100-continue"]),
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
    "long path": f"GET /{'a' * 100_000} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "dots": b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "other method": b"DELETE /v1/attributes HTTP/1.1\r\nHost: x\r\n\r\n",
    "no host": b"POST /v1/attributes HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "upgrade": b"GET /v1/attributes HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "chunks of nothing": b"POST /v1/attributes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n",
    "endless chunks": b"POST /v1/attributes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n" + b"8000\r\n" + bytes(32768) + b"\r\n",
    "tensor of another size": post(
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 9}}]}',
        path=INFER,
    ),
    "tensor of a huge shape": post(
        {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [10**30], "data": []}]}, path=INFER
    ),
    "header length of another": post(b"{}", path=INFER, headers=["Inference-Header-Content-Length: 99999999999"]),
}  # fmt: skip


def assert_refused(name, found):
    status, text = found
    assert status is not None, f"{name}: closed without an answer"
    assert 400 <= status < 500, f"{name}: {status} {text[:300]}"
    assert len(text) > 10, f"{name}: {status} without a reason"
    assert "/etc/passwd" not in text or name in ("dots",), f"{name}: {text[:300]}"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(service, name):
    # A body that is shorter than it says is not ended by closing: the client would look as if it went away.
    assert_refused(name, ask_raw(service.port, HOSTILE[name], finish=False))


def test_slow_heads_and_bodies_are_given_up(service):
    """The limits here: 1 second for a head, 3 for a body."""
    head = b"POST /v1/attributes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 90\r\n"
    slow = {
        "head": [head[one : one + 1] for one in range(20)],
        "no head": [b""],
        "body": [head + b"\r\n{", *[b" "] * 60],
        "no body": [head + b"\r\n"],
    }
    with ThreadPoolExecutor(4) as pool:
        tasks = {
            name: pool.submit(ask_raw, service.port, chunks, pause=0.1, finish=False) for name, chunks in slow.items()
        }
        found = {name: task.result() for name, task in tasks.items()}
    for name, one in found.items():
        assert_refused(name, one)
    assert found["body"][0] == found["no body"][0] == 408 and "came within 3 seconds" in found["body"][1]
    assert found["head"][0] == found["no head"][0] == 400 and "did not come within 1 seconds" in found["head"][1]


def test_a_second_slow_head_on_the_same_connection(service):
    first = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    chunks = [first, *(b"GET /v2/health/live HTTP/1.1\r\n"[one : one + 1] for one in range(20))]
    with_socket = ask_raw_all(service.port, chunks)
    assert b"HTTP/1.1 200" in with_socket and b"did not come within 1 seconds" in with_socket


def ask_raw_all(port, chunks):
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stream:
        for chunk in chunks:
            try:
                stream.sendall(chunk)
            except OSError:
                break
            time.sleep(0.1)
        try:
            while chunk := stream.recv(65536):
                answer += chunk
        except OSError:
            pass
    return answer


def test_clients_that_go_away_leave_nothing_behind(service, client):
    body = post(form(), MULTIPART)
    for cut in (10, 200, len(body) - 5, len(body)):
        with socket.create_connection(("127.0.0.1", service.port)) as stream:
            stream.sendall(body[:cut])
    assert client.post("/v1/attributes", files={"file": picture()}).status_code == 200
    assert service.handler.in_work == 0 and service.handler.waiting == 0


def mutated(generator):
    """A request with some of its bytes changed, cut or doubled."""
    names = list(HOSTILE)
    data = bytearray(HOSTILE[names[generator.integers(len(names))]])
    head = data.find(b"\r\n\r\n")
    for _ in range(generator.integers(1, 6)):
        place = int(generator.integers(max(1, min(len(data), head + 200))))
        kind = generator.integers(3)
        if kind == 0:
            data[place] = int(generator.integers(256))
        elif kind == 1:
            del data[place : place + int(generator.integers(1, 20))]
        else:
            data[place:place] = data[place : place + 20]
    return bytes(data)


@pytest.mark.slow
def test_a_thousand_hostile_requests(pipe):
    generator = np.random.default_rng(0)
    wanted = [mutated(generator) for _ in range(1000)]
    with Service(pipe, replace(LIMITS, seconds=1.0), head_seconds=0.5) as service:
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda one: ask_raw(service.port, one, finish=False, timeout=60), wanted))
        answered = [(request[:300], *one) for request, one in zip(wanted, found) if one[0] is not None]
        refused = [one for one in answered if one[1] >= 400]  # a change may leave a request that is right
        assert not [one for one in refused if one[1] >= 500]
        assert not [one for one in refused if len(one[2]) <= 10]
        assert len(answered) == 1000 and len(refused) > 900
        assert service.measures.faults._value.get() == 0
        assert ask_raw(service.port, post(form(), MULTIPART), finish=False)[0] == 200
        assert service.handler.in_work == 0
