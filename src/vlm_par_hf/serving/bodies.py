"""Bodies of requests: read within limits, and taken apart in memory: nothing is written to a disk."""

import asyncio
import json
from typing import Any, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from .refusals import Refusal, too_large


__all__ = ["Part", "field_value", "read_body", "split_multipart"]

_MAX_PARTS = 256


class Part(NamedTuple):
    """A part of a multipart body."""

    name: str
    data: bytes
    is_file: bool


async def read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """The whole body.

    Raises:
        Refusal: 413, it is larger than `max_bytes`; 408, it takes longer than `seconds`; 400, the client went away;
            415, it is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise Refusal(
            415, "encoding", f"Content-Encoding is {encoding[:40]!r}, expected a body that is not compressed"
        )
    declared = request.headers.get("content-length", "")
    refusal = too_large(f"the body has {declared[:20] or 'too many'} bytes, expected at most {max_bytes}")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise refusal
    size, chunks = 0, []
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise refusal
                chunks.append(chunk)
    except TimeoutError:
        raise Refusal(408, "slow", f"only {size} bytes of the body came within {seconds:g} seconds") from None
    except ClientDisconnect:
        raise Refusal(400, "gone", f"the client went away after {size} bytes of the body") from None
    return b"".join(chunks)


def split_multipart(body: bytes, content_type: str) -> list[Part]:
    """The parts of a `multipart/form-data` body.

    Raises:
        Refusal: 400, it is damaged or ends early, or has too many parts.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise Refusal(
            400, "multipart", "the Content-Type names no boundary, expected multipart/form-data; boundary=..."
        )
    reader = _Parts()
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise Refusal(400, "multipart", f"the multipart body is damaged: {type(error).__name__}") from error
    if not reader.ended:
        raise Refusal(400, "multipart", "the multipart body ends early: its last boundary is missing")
    return reader.parts


class _Parts:
    """Collects what the parser of multipart bodies finds."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._field, self._value, self._data = bytearray(), bytearray(), bytearray()
        self._disposition = b""

    def callbacks(self) -> dict[str, Any]:
        names = (
            "part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "end",
        )  # fmt: skip
        return {f"on_{name}": getattr(self, f"_{name}") for name in names}

    def _part_begin(self) -> None:
        if len(self.parts) >= _MAX_PARTS:
            raise Refusal(400, "multipart", f"the multipart body has more than {_MAX_PARTS} parts")
        self._data, self._disposition = bytearray(), b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def _part_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise Refusal(400, "multipart", "a part of the multipart body has no name")
        name = options[b"name"].decode("utf-8", "replace")
        self.parts.append(Part(name, bytes(self._data), b"filename" in options))

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def _end(self) -> None:
        self.ended = True


def field_value(data: bytes, name: str) -> Any:
    """The value of a form field: JSON (`true`, `0.6`, `[[10, 20, 60, 160]]`), or else text.

    Raises:
        Refusal: 400, it is no UTF-8.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Refusal(400, "multipart", f"the field {name[:40]!r} is no UTF-8 text") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
