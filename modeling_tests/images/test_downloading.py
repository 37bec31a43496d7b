"""URLs: limits of time, bytes and addresses; redirects; secrets in messages. All servers are of this machine."""

import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vlm_par_hf.images import downloading
from vlm_par_hf.images.downloading import download, is_url


class Handler(BaseHTTPRequestHandler):
    """/SIZE sends so many bytes; /to?URL redirects; /drip sends a byte now and then; /short less than it said."""

    def do_GET(self):
        name, _, rest = self.path[1:].partition("?")
        if name == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
        elif name == "drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif name == "headers":
            for _ in range(100):
                self.wfile.write(b"H")
                time.sleep(0.05)
        elif name in ("short", "sized"):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"x" * (40 if name == "short" else 100))
        elif name.isdigit():
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * int(name))
        else:
            self.send_error(404)

    def log_message(self, *words):
        pass

    def handle(self):
        with suppress(OSError):  # the client has left
            super().handle()


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_bytes_of_a_url(server):
    assert download(f"{server}/1000", allow_private=True) == b"x" * 1000
    assert download(f"{server}/sized", allow_private=True) == b"x" * 100
    assert download(f"{server}/to?/to?{server}/7", allow_private=True) == b"x" * 7


@pytest.mark.parametrize(
    "path, options, message",
    [
        ("gone", {}, "could not read http://.*gone: the server answered 404 Not Found"),
        ("1000", {"max_bytes": 999}, "more than 999 bytes"),
        ("sized", {"max_bytes": 99}, "it has 100 bytes; expected a picture of at most 99"),
        ("short", {}, "it ended after 40 of 100 bytes"),
        ("drip", {"timeout": 0.3}, "it took more than 0.3 seconds"),
        ("headers", {"timeout": 0.3}, "it took more than 0.3 seconds"),
        ("to?/to?/to?/to?/to?/to?/to?/1", {}, "more than 5 redirects"),
        ("to?file:///etc/passwd", {}, r"redirected to file:///etc/passwd.*the scheme is 'file'"),
        ("to?http://user:word@127.0.0.1/", {}, r"http://\*\*\*@127.0.0.1/\): it holds a user name or password"),
        ("gone?token=abc&id=7", {}, r"gone\?token=\*\*\*&id=7: "),
    ],
)
def test_what_is_refused(server, path, options, message):
    start = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        download(f"{server}/{path}", allow_private=True, **options)
    assert time.monotonic() - start < 3 and "abc" not in str(caught.value) and "word@" not in str(caught.value)


@pytest.mark.parametrize(
    "url, message",
    [
        ("ftp://example.org/a", "the scheme is 'ftp'"),
        ("http:///a", "it names no host"),
        ("http://a b/", "spaces or control characters"),
        ("http://a\n/", "spaces or control characters"),
        ("http://127.0.0.1:99999/", "could not read"),
        ("http://[::1", "could not read"),
        ("http://user:word@example.org/", r"http://\*\*\*@example.org/.*user name or password"),
    ],
)
def test_urls_that_are_none(url, message):
    with pytest.raises(ValueError, match=message):
        download(url)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "::ffff:127.0.0.1",
        "64:ff9b::7f00:1", "2002:7f00:1::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not downloading._is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are_public(address):
    assert downloading._is_public(address)


def test_this_machine_is_not_asked_unless_it_is_allowed(server, monkeypatch):
    """Also not behind a name, after a redirect from a public address, or when a name has several addresses."""
    with pytest.raises(ValueError, match="'127.0.0.1' has the address 127.0.0.1, which is not public"):
        download(f"{server}/1")
    with pytest.raises(ValueError, match="'localhost' has the address"):
        download(f"http://localhost:{server.rpartition(':')[2]}/1")
    port = int(server.rpartition(":")[2])
    hosts = {"public.test": "8.8.8.8", "inside.test": "10.0.0.1"}
    asked = []

    def resolve(host, port, **options):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (hosts[host], port))]

    def connect(addresses, deadline):
        asked.append(addresses[0][1])
        stream = socket.socket()
        stream.connect(("127.0.0.1", port))
        return stream

    monkeypatch.setattr(downloading.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(downloading, "_connect", connect)
    assert download("http://public.test/3") == b"xxx"
    with pytest.raises(ValueError, match="redirected to http://inside.test/1.: .*10.0.0.1, which is not public"):
        download("http://public.test/to?http://inside.test/1")
    # The connection goes to the address that was checked, whatever the name means a moment later.
    assert asked == [("8.8.8.8", 80), ("8.8.8.8", 80)]


def test_a_name_that_resolves_without_end(monkeypatch):
    monkeypatch.setattr(downloading.socket, "getaddrinfo", lambda *names, **options: time.sleep(2))
    with pytest.raises(ValueError, match="it took more than 0.2 seconds"):
        download("http://slow.test/1", timeout=0.2)


@pytest.mark.parametrize("timeout, error", [(0, ValueError), (float("nan"), ValueError), ("1", TypeError)])
def test_timeouts_that_are_refused(timeout, error):
    with pytest.raises(error, match="timeout is .*expected seconds"):
        download("http://example.org/", timeout=timeout)


def test_what_is_a_url():
    assert is_url("http://a") and is_url("HTTPS://a") and not is_url("https.jpg") and not is_url(b"http://a")
