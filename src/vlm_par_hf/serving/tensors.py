"""Tensors of the Open Inference Protocol v2 over REST, as JSON and in its binary tensor extension.

In the binary form a body is JSON, whose length the header `Inference-Header-Content-Length` says, and after it the
bytes of those tensors that name a `binary_data_size`, one after another. An element of a BYTES tensor is its length,
four bytes, little-endian, and its bytes. Protocol: https://github.com/kserve/open-inference-protocol; extension:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md.
"""

import base64
import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_par_hf.utils import read_json, shorten

from .refusals import Refusal


__all__ = ["BYTES", "FP32", "join_bytes", "read_request", "split_bytes", "write_response"]

BYTES, FP32 = "BYTES", "FP32"


def _wrong(reason: str) -> Refusal:
    return Refusal(400, "request", reason)


def split_bytes(data: bytes, name: str = "image") -> list[bytes]:
    """The elements of a binary BYTES tensor.

    Raises:
        Refusal: 400, a length leads out of the data.
    """
    found, place = [], 0
    while place < len(data):
        start = place + 4
        length = struct.unpack_from("<I", data, place)[0] if start <= len(data) else None
        if length is None or start + length > len(data):
            raise _wrong(f"the binary data of {name} ends in the middle of element {len(found)}")
        found.append(data[start : start + length])
        place = start + length
    return found


def join_bytes(elements: Sequence[bytes]) -> bytes:
    """A binary BYTES tensor."""
    return b"".join(struct.pack("<I", len(one)) + one for one in elements)


def read_request(body: bytes, header_length: str | None) -> tuple[dict[str, Any], bytes]:
    """The JSON of an inference request, and the binary data behind it.

    Args:
        body: of the request.
        header_length: what the header `Inference-Header-Content-Length` says; None: all of the body is JSON.

    Raises:
        Refusal: 400, the length or the JSON is wrong.
    """
    length = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or int(header_length[:20]) > len(body):
            raise _wrong(
                f"Inference-Header-Content-Length is {header_length[:40]!r}, expected at most {len(body)}, the length "
                "of the body"
            )
        length = int(header_length)
    try:
        found = read_json(body[:length].decode("utf-8"))
    except ValueError as error:
        raise _wrong(f"the request is not JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise _wrong(f"the request is a {type(found).__name__}, expected a JSON object with inputs")
    return found, body[length:]


def read_input(request: Mapping[str, Any], binary: bytes, name: str) -> list[bytes]:
    """The elements of the only input, a BYTES tensor of shape `[N]` or `[N, 1]`.

    Raises:
        Refusal: 400, there is another input, or it is of another type or shape.
    """
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _wrong(f"inputs is {shorten(inputs)}, expected a list of one tensor, {name!r}")
    (tensor,) = inputs
    if tensor.get("name") != name:
        raise _wrong(f"the input is named {shorten(tensor.get('name'))}, expected {name!r}")
    if tensor.get("datatype") != BYTES:
        raise _wrong(f"the datatype of {name} is {shorten(tensor.get('datatype'))}, expected 'BYTES'")
    shape = tensor.get("shape")
    if (
        not isinstance(shape, list)
        or not all(isinstance(one, int) and not isinstance(one, bool) and one >= 1 for one in shape)
        or len(shape) not in (1, 2)
        or shape[1:] not in ([], [1])
    ):
        raise _wrong(f"the shape of {name} is {shorten(shape)}, expected [N] with N at least 1")
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        if binary:
            raise _wrong(f"{len(binary)} bytes follow the JSON, and {name} names no binary_data_size")
        elements = _decoded(tensor.get("data"), name)
    else:
        if isinstance(size, bool) or size != len(binary):
            raise _wrong(f"binary_data_size of {name} is {shorten(size)}, and {len(binary)} bytes follow the JSON")
        elements = split_bytes(binary, name)
    if len(elements) != math.prod(shape):
        raise _wrong(f"{name} has {len(elements)} elements, and its shape is {shape}")
    return elements


def _decoded(data: Any, name: str) -> list[bytes]:
    """Elements of a BYTES tensor in JSON, which holds no bytes: base64 text."""
    if isinstance(data, list) and data and all(isinstance(one, list) for one in data):
        data = [element for row in data for element in row]
    if not isinstance(data, list) or not all(isinstance(one, str) for one in data):
        raise _wrong(f"the data of {name} is no list of texts, expected the base64 text of each image file")
    try:
        return [base64.b64decode(one.rpartition("base64,")[2], validate=True) for one in data]
    except (binascii.Error, ValueError):
        raise _wrong(f"the data of {name} is no base64 text, expected that of each image file") from None


def _parameters(holder: Mapping[str, Any]) -> Mapping[str, Any]:
    found = holder.get("parameters", {})
    if not isinstance(found, Mapping):
        raise _wrong(f"parameters is {shorten(found)}, expected a JSON object")
    return found


def wanted_outputs(request: Mapping[str, Any], names: Sequence[str]) -> dict[str, bool]:
    """Names of the outputs that a request asks for, all by default, and whether each is wanted in binary form.

    Raises:
        Refusal: 400, an output that there is not.
    """
    everywhere = _parameters(request).get("binary_data_output", False)
    asked = request.get("outputs") or [{"name": name} for name in names]
    if not isinstance(asked, list) or not all(isinstance(one, dict) for one in asked):
        raise _wrong(f"outputs is {shorten(asked)}, expected a list of objects with a name")
    unknown = [one.get("name") for one in asked if one.get("name") not in names]
    if unknown:
        raise _wrong(f"there is no output {shorten(unknown[0])}, expected some of {', '.join(names)}")
    return {one["name"]: bool(_parameters(one).get("binary_data", everywhere)) for one in asked}


def write_response(
    head: Mapping[str, Any], outputs: Mapping[str, np.ndarray], binary: Mapping[str, bool]
) -> tuple[dict[str, Any], bytes]:
    """The JSON of an inference response, and the binary data to put behind it.

    Args:
        head: model name and the like.
        outputs: by name: float32, or objects that are `str` for BYTES.
        binary: by name, whether an output is wanted in binary form.
    """
    tensors, blobs = [], []
    for name, as_binary in binary.items():
        values = outputs[name]
        is_text = values.dtype == object
        tensor: dict[str, Any] = {
            "name": name, "datatype": BYTES if is_text else FP32, "shape": list(values.shape),
        }  # fmt: skip
        flat = values.ravel().tolist()
        if as_binary:
            blob = join_bytes([one.encode() for one in flat]) if is_text else values.astype("<f4").tobytes()
            tensor["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            tensor["data"] = flat
        tensors.append(tensor)
    return {**head, "outputs": tensors}, b"".join(blobs)
