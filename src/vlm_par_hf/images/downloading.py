"""Reads a picture from a URL, within limits: of time in all, of bytes, and of the machines that are asked.

A URL may stand in data that somebody else wrote. It must not make this machine ask a service that only this machine
can reach (a router, a database, the metadata of a cloud), nor wait or read without end. Therefore each name is
resolved here, its addresses are checked, and the connection goes to the address that was checked; a redirect is a new
URL.
"""

import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
from contextlib import suppress
from urllib.parse import SplitResult, urljoin, urlsplit

from vlm_par_hf.errors import ParTypeError, ParValueError
from vlm_par_hf.utils import redact, shorten_text


__all__ = ["MAX_DOWNLOAD_BYTES", "download", "is_url"]

# Far above any photograph, but a wrong URL may point to something larger.
MAX_DOWNLOAD_BYTES = 256 * 1024 * 1024

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # the last 32 bits are an IPv4 address
_Address = tuple[int, tuple]  # family and address of a socket


def is_url(source: object) -> bool:
    """Whether something is the text of an http or https URL."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def download(
    url: str, *, timeout: float = 30.0, max_bytes: int = MAX_DOWNLOAD_BYTES, allow_private: bool = False
) -> bytes:
    """The bytes behind a URL.

    The proxies that environment variables name are not used: the address that a proxy asks cannot be checked here.

    Args:
        url: http or https; without user name and password.
        timeout: seconds for everything together: names, connections, redirects, and all bytes.
        max_bytes: the most that is read.
        allow_private: whether addresses that are not public (of this machine, its network, of multicast, ...) may be
            asked.

    Raises:
        ValueError: the URL has another scheme or no host, holds a password, leads to an address that is not public,
            answers with an error or too many redirects, is too large, ends early, or takes too long. Messages hold no
            secrets of the URL.
        TypeError: `timeout` is no number.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise ParTypeError(f"timeout is {timeout!r}, expected seconds")
    if not 0 < timeout < float("inf"):
        raise ParValueError(f"timeout is {timeout!r}, expected seconds above 0")
    name, here = _shown(url), url
    deadline = time.monotonic() + timeout
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            status, location, data = _request(_checked(here), deadline, max_bytes, allow_private)
            if status in _REDIRECTS and location:
                here = urljoin(here, location)
            elif status == 200:
                return data
            else:
                raise _Refused(f"the server answered {status} {http.client.responses.get(status, '')}".rstrip())
        raise _Refused(f"more than {_MAX_REDIRECTS} redirects")
    except _Refused as error:
        reason = str(error)
    except (OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
        late = time.monotonic() >= deadline
        reason = f"it took more than {timeout:g} seconds" if late else str(error) or type(error).__name__
    where = "" if here == url else f" (redirected to {_shown(here)})"
    raise ParValueError(f"could not read {name}{where}: {shorten_text(redact(reason), 300)}") from None


class _Refused(Exception):
    """Why a URL is not read."""


def _shown(url: str) -> str:
    return shorten_text(redact(url[:4096]))


def _checked(url: str) -> SplitResult:
    if len(url) > 8192 or any(character.isspace() or not character.isprintable() for character in url):
        raise _Refused("it is too long or holds spaces or control characters")
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https"):
        raise _Refused(f"the scheme is {parts.scheme!r}; expected http or https")
    if not parts.hostname:
        raise _Refused("it names no host")
    if parts.username is not None or parts.password is not None:
        raise _Refused("it holds a user name or password, which is sent nowhere; expected a URL without")
    return parts


def _request(
    parts: SplitResult, deadline: float, max_bytes: int, allow_private: bool
) -> tuple[int, str | None, bytes]:
    """One request: status, the header Location, and the body of an answer 200."""
    is_tls = parts.scheme.lower() == "https"
    port = parts.port or (443 if is_tls else 80)
    stream = _connect(_addresses(parts.hostname, port, deadline, allow_private), deadline)
    if is_tls:
        context = ssl.create_default_context()
        stream = context.wrap_socket(stream, server_hostname=parts.hostname, do_handshake_on_connect=False)
    # A limit for one read starts anew with every byte that comes, so the connection is closed at the deadline.
    watch = threading.Timer(max(0.0, deadline - time.monotonic()), _shut, [stream])
    watch.daemon = True
    watch.start()
    try:
        if is_tls:
            stream.do_handshake()
        connection = http.client.HTTPConnection(parts.hostname, port)
        connection.sock = stream
        path = _escaped((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode("ascii")
        connection.request("GET", path, headers={"Host": host, "User-Agent": "vlm-par-hf", "Connection": "close"})
        response = connection.getresponse()
        if response.status != 200:
            return response.status, response.getheader("Location"), b""
        return response.status, None, _read(response, max_bytes, deadline)
    finally:
        watch.cancel()
        stream.close()


def _read(response: http.client.HTTPResponse, max_bytes: int, deadline: float) -> bytes:
    expected = response.length
    if expected is not None and expected > max_bytes:
        raise _Refused(f"it has {expected} bytes; expected a picture of at most {max_bytes}")
    chunks, size = [], 0
    while chunk := response.read(min(1 << 20, max_bytes + 1 - size)):
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise _Refused(f"it has more than {max_bytes} bytes; expected a picture")
    if time.monotonic() >= deadline:
        raise TimeoutError("too late")
    if expected is not None and size != expected:
        raise _Refused(f"it ended after {size} of {expected} bytes")
    return b"".join(chunks)


def _escaped(path: str) -> str:
    return "".join(one if one.isascii() else "".join(f"%{byte:02X}" for byte in one.encode()) for one in path)


def _shut(stream: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        socket.socket.shutdown(stream, socket.SHUT_RDWR)  # that of an SSLSocket would change it under its reader


def _connect(addresses: list[_Address], deadline: float) -> socket.socket:
    failure: OSError = TimeoutError("too late")
    for family, address in addresses:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        stream = socket.socket(family, socket.SOCK_STREAM)
        stream.settimeout(left)
        try:
            stream.connect(address)
        except OSError as error:
            stream.close()
            failure = error
        else:
            return stream
    raise failure


def _addresses(host: str, port: int, deadline: float, allow_private: bool) -> list[_Address]:
    """The addresses of a host, all of them checked; the name is resolved once."""
    # In a thread, because the resolver of the system knows no limit of time.
    answer: queue.SimpleQueue = queue.SimpleQueue()

    def resolve() -> None:
        try:
            answer.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.put(error)

    threading.Thread(target=resolve, daemon=True).start()
    try:
        found = answer.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        raise TimeoutError("too late") from None
    if isinstance(found, Exception):
        raise _Refused(f"the host {shorten_text(host, 80)!r} cannot be found: {found}")
    for *_, address in found:
        if not allow_private and not _is_public(address[0]):
            raise _Refused(
                f"the host {shorten_text(host, 80)!r} has the address {address[0]}, which is not public and is not "
                "asked"
            )
    return [(family, address) for family, *_, address in found]


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inside = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if inside is None and ip in _NAT64:
            inside = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inside is not None:
            return _is_public(str(inside))
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast
