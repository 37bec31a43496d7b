"""The Open Inference Protocol v2 over REST: what Triton's, KServe's and OpenVINO Model Server's clients speak."""

import json
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from vlm_par_hf.utils import installed_version

from .bodies import read_body
from .handler import Handler, PictureRequest
from .refusals import Refusal
from .tensors import BYTES, FP32, read_input, read_request, wanted_outputs, write_response


__all__ = ["open_inference_routes"]

_HEADER = "inference-header-content-length"
_INPUT, _OUTPUTS = "image", ("probabilities", "decided")
_VERSION = "1"


def open_inference_routes(handler: Handler, name: str) -> APIRouter:
    """The routes below `/v2`.

    Args:
        handler: answers. Every picture is one person.
        name: of the model.
    """
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])

    def check(model: str, version: str = _VERSION) -> None:
        if model != name or version != _VERSION:
            raise Refusal(
                404, "unknown", f"there is no model {model[:80]!r} of version {version[:20]!r}, expected {name!r}, "
                f"version {_VERSION}",
            )  # fmt: skip

    @routes.get("")
    @routes.get("/", include_in_schema=False)
    async def server() -> dict[str, Any]:
        """What this server is."""
        version = installed_version("vlm-par-hf") or "unknown"
        return {"name": "vlm-par", "version": version, "extensions": ["binary_tensor_data"]}

    @routes.get("/health/live")
    async def live() -> Response:
        """The process answers."""
        return Response()

    @routes.get("/health/ready")
    @routes.get("/models/{model}/ready")
    @routes.get("/models/{model}/versions/{version}/ready")
    async def ready(model: str = name, version: str = _VERSION) -> Response:
        """The model is warm, and the service takes requests."""
        check(model, version)
        return Response(status_code=200 if handler.is_ready else 503)

    @routes.get("/models/{model}")
    @routes.get("/models/{model}/versions/{version}")
    async def metadata(model: str, version: str = _VERSION) -> dict[str, Any]:
        """Inputs and outputs; `parameters.attributes` says which columns of the outputs stand for what."""
        check(model, version)
        return _metadata(handler, name)

    @routes.post("/models/{model}/infer")
    @routes.post("/models/{model}/versions/{version}/infer")
    async def infer(request: Request, model: str, version: str = _VERSION) -> Response:
        """Answers N pictures, each one person; `image` holds the bytes of image files, in JSON as base64 text."""
        check(model, version)
        with handler.reserve() as reserve:
            body = await read_body(request, handler.limits.max_bytes, handler.limits.seconds)
            asked, binary = read_request(body, request.headers.get(_HEADER))
            wanted = wanted_outputs(asked, _OUTPUTS)
            pictures = [PictureRequest(data) for data in read_input(asked, binary, _INPUT)]
            if len(pictures) <= handler.limits.max_pictures:  # `answer` refuses more
                reserve(len(pictures) - 1)
            answers = await handler.answer(pictures, {"detect": False})
        for index, answer in enumerate(answers):
            if isinstance(answer, Refusal):
                reason = f"image {index}: {answer}" if len(answers) > 1 else str(answer)
                raise Refusal(answer.status, answer.code, reason)
        request.state.pictures = request.state.people = len(answers)
        people = [people[0]["attributes"] for people in answers]
        outputs = {
            "probabilities": np.array(
                [[p for one in person.values() for p in one["probabilities"].values()] for person in people],
                dtype=np.float32,
            ),
            "decided": np.array([[one["label"] for one in person.values()] for person in people], dtype=object),
        }
        head = {"model_name": name, "model_version": _VERSION}
        if "id" in asked:
            head["id"] = str(asked["id"])[:200]
        text, blob = write_response(head, outputs, wanted)
        if not blob:
            return JSONResponse(text)
        start = json.dumps(text).encode()
        headers = {_HEADER: str(len(start))}
        return Response(start + blob, media_type="application/octet-stream", headers=headers)

    return routes


def _metadata(handler: Handler, name: str) -> dict[str, Any]:
    attributes, column, note = [], 0, handler.note
    for one in handler.schema:
        columns = [column, column + one.num_labels]
        column = columns[1]
        found = {"name": one.name, "labels": list(one.labels), "columns": columns, "sensitive": one.sensitive}
        attributes.append({**found, "threshold": one.threshold} if one.is_binary else found)
    return {
        "name": name,
        "versions": [_VERSION],
        "platform": "vlm_par_hf",
        "inputs": [{"name": _INPUT, "datatype": BYTES, "shape": [-1]}],
        "outputs": [
            {"name": "probabilities", "datatype": FP32, "shape": [-1, column]},
            {"name": "decided", "datatype": BYTES, "shape": [-1, len(handler.schema)]},
        ],
        "parameters": {"attributes": attributes} if note is None else {"attributes": attributes, "note": note},
    }
