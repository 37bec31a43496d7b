"""The service as a FastAPI application."""

import asyncio
import hmac
import json
import logging
import re
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Protocol

import anyio.to_thread
from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response

from vlm_par_hf.errors import ParError
from vlm_par_hf.images.downloading import download, is_url
from vlm_par_hf.utils import installed_version

from .bodies import field_value, read_body, split_multipart
from .handler import Handler, PictureRequest
from .measures import Measures
from .open_inference import open_inference_routes
from .refusals import Refusal, too_large
from .schemas import Answers, AttributesRequest, Failure, PictureAnswer, SearchRequest, decode_picture, first_errors


__all__ = ["Search", "create_app", "log_event"]

logger = logging.getLogger(__name__)

# Asked by machines that watch over the service; they say nothing of its answers.
_OPEN_PATHS = ("/", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json")
_GRACE = 2.0  # seconds for the rest of a body that is refused
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_REASONS = {
    400: "the request is damaged", 401: "no key, or a wrong one", 408: "the body comes too slowly",
    413: "too many bytes, pixels, pictures or people", 415: "a body of another kind", 422: "a picture, box or option "
    "is refused", 429: "too much is in work; `Retry-After` says when to ask again", 503: "it took too long",
}  # fmt: skip


class Search(Protocol):
    """A gallery that can be searched."""

    def search(self, query: Any, *, top: int, score: str | None, filter: Any, allow_sensitive: bool) -> Any:
        """The best people, an object with `to_dict`: see `vlm_par_hf.retrieval.gallery.Gallery`."""


def create_app(
    handler: Handler,
    *,
    name: str,
    measures: Measures,
    api_key: str | None = None,
    allow_urls: bool = False,
    gallery: Search | None = None,
    allow_sensitive: bool = False,
) -> FastAPI:
    """The application. Its lifespan starts and stops the handler.

    Args:
        handler: answers.
        name: of the model, in the Open Inference Protocol.
        measures: what `/metrics` shows; those of the handler.
        api_key: asked of every request but those for health and documentation, as `Authorization: Bearer KEY` or
            `X-API-Key: KEY`.
        allow_urls: whether pictures may be named by http(s) URLs. Addresses that are not public are never asked.
        gallery: what `/v1/search` searches; None: there is no such route.
        allow_sensitive: whether queries may name perceived gender and age.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if not handler.is_ready:  # who starts a server does it before the port is open
            await handler.start()
        yield
        await handler.stop()

    app = FastAPI(
        title="vlm-par",
        summary="Attributes of the people in pictures",
        description="What a person wears and carries, as perceived by annotators: appearance, not facts.",
        version=installed_version("vlm-par-hf") or "unknown",
        lifespan=lifespan,
        redoc_url=None,
        responses={status: {"model": Failure, "description": reason} for status, reason in _REASONS.items()},
    )
    app.state.handler = handler
    app.include_router(open_inference_routes(handler, name))

    @app.get("/", include_in_schema=False)
    async def start() -> Response:
        return RedirectResponse("/docs")

    @app.get("/metrics", tags=["service"], response_class=Response)
    async def metrics() -> Response:
        """Counters and histograms for Prometheus."""
        measures.update(handler)
        return Response(measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post(
        "/v1/attributes",
        tags=["people"],
        responses={200: {"model": PictureAnswer | Answers, "description": "people of one picture, or of several"}},
        openapi_extra={"requestBody": _request_body()},
    )
    async def attributes(request: Request) -> Response:
        """Attributes of the people in a picture (`image`, or one file), or in several.

        Several pictures are answered one by one: a bad one has its reason in place of people, and its neighbours have
        their answers. If all of them are bad, the status is that of the first one.
        """
        with handler.reserve() as reserve:
            asked, files = await _read_asked(request, handler)
            pictures = asked.pictures if files is None else files
            if len(pictures) <= handler.limits.max_pictures:  # `answer` refuses more
                reserve(len(pictures) - 1)
            is_single = asked.images is None and (files is None or len(files) == 1)
            found = await _answer(handler, pictures, asked.options(), allow_urls)
        answered = [one for one in found if not isinstance(one, Refusal)]
        refused = [one for one in found if isinstance(one, Refusal)]
        for one in refused:
            measures.refused.labels(one.code).inc()
        request.state.pictures = len(answered)
        request.state.people = sum(map(len, answered))
        if is_single:
            if refused:
                request.state.code = refused[0].code
                return _refuse(refused[0])
            return JSONResponse({"people": answered[0]})
        results = [{"people": one} if not isinstance(one, Refusal) else _failure(one) for one in found]
        return JSONResponse({"results": results}, status_code=200 if answered else refused[0].status)

    if gallery is not None:
        # One at a time: a search first goes to the gallery's newest version, under which no other one may read.
        searching = asyncio.Lock()

        @app.post("/v1/search", tags=["people"], openapi_extra={"requestBody": _json_body(SearchRequest)})
        async def search(request: Request) -> Response:
            """People of the gallery who have these attributes, best first, with the reasons."""
            with handler.reserve():
                body = await read_body(request, handler.limits.max_bytes, handler.limits.seconds)
                asked = _validated(SearchRequest, body)
                find = partial(gallery.search, allow_sensitive=allow_sensitive, **asked.model_dump())
                try:
                    async with searching:
                        found = await anyio.to_thread.run_sync(find)
                except ParError as error:
                    raise Refusal(422, "query", str(error)) from error
            return JSONResponse(found.to_dict())

    @app.exception_handler(Refusal)
    async def refuse(request: Request, error: Refusal) -> Response:
        request.state.code = error.code
        measures.refused.labels(error.code).inc()
        return _refuse(error)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        reason = f"{request.method} {request.url.path[:200]}: {error.detail}"
        refusal = Refusal(error.status_code, "unknown", f"{reason}; /docs lists what can be asked")
        request.state.code = refusal.code
        return JSONResponse(_failure(refusal), status_code=refusal.status, headers=error.headers)

    app.add_middleware(_Watch, handler=handler, measures=measures, api_key=api_key)
    return app


async def _read_asked(request: Request, handler: Handler) -> tuple[AttributesRequest, list[PictureRequest] | None]:
    """What is asked, and the files of a multipart body; None for JSON, which holds its pictures."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise Refusal(
            415, "content_type",
            f"Content-Type is {kind[:80]!r}, expected multipart/form-data with a file, or application/json",
        )  # fmt: skip
    body = await read_body(request, handler.limits.max_bytes, handler.limits.seconds)
    if kind == "application/json":
        return _validated(AttributesRequest, body), None
    fields: dict[str, Any] = {}
    files = []
    for part in split_multipart(body, content_type):
        if part.is_file:
            files.append(part.data)
            continue
        value = part.data.decode("utf-8", "replace") if part.name == "image" else field_value(part.data, part.name)
        known = fields.get(part.name, [])
        if part.name in ("attributes", "explain") and isinstance(value, str) and isinstance(known, list):
            fields[part.name] = [*known, value]
        elif part.name in fields:
            raise Refusal(422, "request", f"the field {part.name[:40]!r} is there twice")
        else:
            fields[part.name] = value
    if not files:
        return _validated(AttributesRequest, fields), None
    if fields.keys() & {"image", "images"}:
        raise Refusal(422, "request", "the body has both a file and a field with pictures, expected one of them")
    # In its type the pictures stand as text; here they are files beside it.
    asked = _validated(AttributesRequest, {**fields, "image": "file"})
    if len(files) > 1 and asked.boxes is not None:
        raise Refusal(422, "request", f"boxes with {len(files)} files, expected one file, or JSON with images")
    return asked, [PictureRequest(data, asked.boxes) for data in files]


async def _answer(
    handler: Handler, pictures: Sequence[Any], options: dict[str, Any], allow_urls: bool
) -> list[list[dict[str, Any]] | Refusal]:
    """The people of each picture, or why there are none; those named by a URL are fetched first."""

    async def read(index: int, one: Any) -> PictureRequest | Refusal:
        if isinstance(one, PictureRequest):
            return one
        place = "image" if len(pictures) == 1 else f"images[{index}]"
        try:
            return PictureRequest(await _fetch(handler, decode_picture(one.image, place), allow_urls), one.boxes)
        except Refusal as error:
            return error

    if len(pictures) > handler.limits.max_pictures:
        raise too_large(f"{len(pictures)} pictures were sent, expected at most {handler.limits.max_pictures}")
    ready = await asyncio.gather(*(read(index, one) for index, one in enumerate(pictures)))
    found = iter(await handler.answer([one for one in ready if not isinstance(one, Refusal)], options))
    return [one if isinstance(one, Refusal) else next(found) for one in ready]


async def _fetch(handler: Handler, source: bytes | str, allow_urls: bool) -> bytes:
    if not is_url(source):
        return source
    if not allow_urls:
        raise Refusal(
            422, "url", "the picture is named by a URL, which this service does not read; send its bytes, or start it "
            "with --allow-urls",
        )  # fmt: skip
    limits = handler.limits
    ask = partial(download, source, timeout=min(10.0, limits.seconds), max_bytes=limits.max_bytes, allow_private=False)
    try:
        return await anyio.to_thread.run_sync(ask)
    except ParError as error:
        raise Refusal(422, "url", str(error)) from error


def _validated(kind: type, found: bytes | dict[str, Any]) -> Any:
    try:
        return kind.model_validate_json(found) if isinstance(found, bytes) else kind.model_validate(found)
    except ValidationError as error:
        raise Refusal(422, "request", first_errors(error)) from None


def _failure(refusal: Refusal) -> dict[str, str]:
    return {"error": str(refusal), "code": refusal.code}


def _refuse(refusal: Refusal) -> Response:
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(_failure(refusal), status_code=refusal.status, headers=headers)


def _json_body(kind: type) -> dict[str, Any]:
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _request_body() -> dict[str, Any]:
    """The two forms of a request, for `/docs`."""
    body = _json_body(AttributesRequest)
    definitions = AttributesRequest.model_json_schema()["$defs"]
    schema = body["content"]["application/json"]["schema"]
    schema["properties"]["images"]["anyOf"][0]["items"] = definitions["AskedPicture"]
    options = {name: one for name, one in schema["properties"].items() if name not in ("image", "images")}
    file = {"type": "string", "format": "binary", "description": "an image file; more than one for several pictures"}
    form = {"type": "object", "required": ["file"], "properties": {"file": file, **options}}
    body["content"]["multipart/form-data"] = {"schema": form}
    return body


Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]


class _Watch:
    """Asks for the key; logs and measures every request; turns faults into a 500 without a word of the request."""

    def __init__(
        self, app: Callable[..., Awaitable[None]], handler: Handler, measures: Measures, api_key: str | None
    ) -> None:
        self.app, self.handler, self.measures, self.api_key = app, handler, measures, api_key

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 0
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex[:16]
        state = scope.setdefault("state", {})
        rest = _RestOfBody(receive, headers, 4 * self.handler.limits.max_bytes)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= 400 and status != 408:
                    await rest.drop()
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                if rest.is_coming or not self.handler.is_ready:  # not ready: the service is about to stop
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            if self.api_key is not None and scope["path"] not in _OPEN_PATHS and not self._has_key(headers):
                state["code"] = "key"
                refusal = Refusal(401, "key", "expected the key of this service, as Authorization: Bearer KEY")
                await _refuse(refusal)(scope, rest.receive, answer)
            else:
                await self.app(scope, rest.receive, answer)
        except Exception as error:
            self.measures.faults.inc()
            state["code"] = "fault"
            # The places in the code, without the message, which may quote what was sent.
            places = [
                f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
            ]
            log_event("fault", logging.ERROR, id=request_id, error=type(error).__name__, places=places[-8:])
            if status:
                raise
            text = {"error": f"a fault of the service, which logged it as {request_id}", "code": "fault"}
            await JSONResponse(text, status_code=500)(scope, rest.receive, answer)
        finally:
            seconds = time.monotonic() - started
            route = getattr(scope.get("route"), "path", "other")
            self.measures.requests.labels(route, str(status)).observe(seconds)
            self.measures.pictures.inc(state.get("pictures", 0))
            self.measures.people.inc(state.get("people", 0))
            self.measures.update(self.handler)
            known = {name: state[name] for name in ("pictures", "people", "code") if name in state}
            level = logging.DEBUG if route.startswith("/v2/health") else logging.INFO
            log_event(
                "request", level, id=request_id, method=scope["method"][:10], route=route, status=status,
                seconds=round(seconds, 4), **known,
            )  # fmt: skip

    def _has_key(self, headers: Mapping[bytes, str]) -> bool:
        kind, _, bearer = headers.get(b"authorization", "").partition(" ")
        given = bearer.strip() if kind.lower() == "bearer" else headers.get(b"x-api-key", "")
        return hmac.compare_digest(given.encode(), self.api_key.encode())


class _RestOfBody:
    """What of a body is still to come. A connection that is closed while the client sends loses the answer, so the
    rest of a body that is refused is read and thrown away, for a short while."""

    def __init__(
        self, receive: Callable[[], Awaitable[Message]], headers: Mapping[bytes, str], max_bytes: int
    ) -> None:
        self._receive, self._max_bytes = receive, max_bytes
        self._may_read = b"expect" not in headers
        self.is_coming = headers.get(b"content-length", "0") != "0" or b"transfer-encoding" in headers

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self.is_coming = False
        return message

    async def drop(self) -> None:
        """Reads to the end, or until it is too much. Not for a client that waits to hear whether it may send at all:
        reading would tell it so."""
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE):
                while self.is_coming and self._may_read and size <= self._max_bytes:
                    size += len((await self.receive()).get("body", b""))


def log_event(event: str, level: int = logging.INFO, **values: Any) -> None:
    """Writes a line of JSON to standard error: what happened, and never anything of a picture."""
    if logger.isEnabledFor(level):
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "level": logging.getLevelName(level).lower(),
            "event": event,
        }
        sys.stderr.write(json.dumps({**line, **values}) + "\n")
