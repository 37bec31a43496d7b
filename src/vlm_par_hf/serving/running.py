"""Starts the service: the port is taken, the pipeline loaded and warmed, and only then is the port open."""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlm_par_hf.errors import ParError, ParRuntimeError, ParValueError, argument_in_errors
from vlm_par_hf.inference.boxes import check_detector_label
from vlm_par_hf.inference.pipelines import TASK, PedestrianAttributesPipeline
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.retrieval.gallery import Gallery

from .app import create_app, log_event
from .handler import AttributeHandler, Handler, Limits
from .measures import Measures


__all__ = ["ServiceSettings", "build_app", "load_pipeline", "serve", "take_port"]

_MOST_RESTARTS = 5  # of one worker's place


@dataclass(frozen=True)
class ServiceSettings:
    """What a service is started with; each worker builds the same from it.

    Args:
        checkpoint: folder or repository; None: the embedded one.
        name: of the model in the Open Inference Protocol; None: the last part of `checkpoint`.
        detector: folder or repository of a model for object detection; None: pictures without boxes are one person.
        detector_label, detector_threshold: as for the pipeline.
        gallery: place of a gallery that `vlm-par index` made; None: no search.
        allow_sensitive: whether searches may name perceived gender and age.
        device, dtype: of the pipeline.
        limits: of requests.
        api_key: asked of every request; None: none.
        allow_urls: whether pictures may be named by URLs.
        drain: seconds from the signal to stop until no connection is taken any more, in which the service says that it
            is not ready, so that a load balancer can send its requests elsewhere.
    """

    checkpoint: str | None = None
    name: str | None = None
    detector: str | None = None
    detector_label: str = "person"
    detector_threshold: float = 0.5
    gallery: str | None = None
    allow_sensitive: bool = False
    device: str | None = None
    dtype: str | None = None
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = None
    allow_urls: bool = False
    drain: float = 1.0

    def of_the_app(self) -> dict[str, Any]:
        """Keywords of `create_app`."""
        return {
            "name": self.name or Path(self.checkpoint or "embedded").name,
            "api_key": self.api_key,
            "allow_urls": self.allow_urls,
            "allow_sensitive": self.allow_sensitive,
        }


def take_port(host: str, port: int) -> socket.socket:
    """A socket at this address, which does not listen yet; port 0: any free one.

    Raises:
        ValueError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except (OSError, OverflowError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or error
        raise ParValueError(f"--host {host} --port {port} cannot be used: {reason}") from error
    return sock


def load_pipeline(settings: ServiceSettings) -> PedestrianAttributesPipeline:
    """The pipeline of a service, with its detector.

    Raises:
        OSError, ValueError, TypeError: checkpoint or detector cannot be loaded, or is of another kind.
    """
    from transformers import pipeline

    from vlm_par_hf.inference.devices import inference_dtype

    device = {} if settings.device is None else {"device": settings.device}
    dtype = {}
    if settings.dtype is not None:
        dtype = {"dtype": inference_dtype(settings.device) if settings.dtype == "auto" else settings.dtype}
    options: dict[str, Any] = {}
    if settings.detector is not None:
        with argument_in_errors("detector", settings.detector):
            detector = pipeline("object-detection", model=settings.detector, **device)
        check_detector_label(detector, settings.detector_label)
        options = {
            "detector": detector,
            "detector_label": settings.detector_label,
            "detector_threshold": settings.detector_threshold,
        }
    if settings.checkpoint is None:
        return pipeline(TASK, **device, **dtype, **options)
    with argument_in_errors("checkpoint", settings.checkpoint):
        return pipeline(TASK, model=settings.checkpoint, **device, **dtype, **options)


def open_gallery(place: str, schema: AttributeSchema) -> Gallery:
    """The gallery of a service.

    Raises:
        OSError, ValueError: it cannot be opened, or has another label space than the model.
    """
    gallery = Gallery.open(place)
    theirs, ours = ([(one.name, one.labels) for one in one_schema] for one_schema in (gallery.schema, schema))
    if theirs != ours:
        raise ParValueError(
            f"the gallery {place!r} was built by {gallery.info.model!r} with another label space than the checkpoint "
            f"has: {'; '.join(gallery.schema.diff(schema)[:3])}; serve that checkpoint, or build "
            "another gallery (vlm-par index)"
        )
    return gallery


def serve(settings: ServiceSettings, *, host: str = "127.0.0.1", port: int = 8000, workers: int = 1) -> None:
    """Serves until it gets SIGTERM or SIGINT; what was taken until then is answered.

    Args:
        settings: of the service.
        host, port: where it listens.
        workers: processes that share the port, each with its own model.

    Raises:
        ValueError: the port cannot be used, or an argument is wrong.
        OSError, TypeError, RuntimeError: checkpoint, detector or gallery cannot be loaded or do not work.
    """
    if workers < 1:
        raise ParValueError(f"workers is {workers}, expected at least 1")
    with contextlib.closing(take_port(host, port)) as sock:
        if workers == 1:
            asyncio.run(_serve(settings, sock, lambda: _announce(sock, 1)))
        else:
            _Workers(settings, sock, workers).run()
    log_event("stopped")


def _announce(sock: socket.socket, workers: int) -> None:
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log_event("ready", url=f"http://{shown}:{port}", workers=workers)


def build_app(settings: ServiceSettings) -> FastAPI:
    """The application with everything that it needs, loaded and not yet warm: its lifespan, or `start` of the handler
    in its state, does that.

    Raises:
        OSError, ValueError, TypeError: checkpoint, detector or gallery cannot be loaded or do not fit.
    """
    measures = Measures()
    pipe = load_pipeline(settings)
    gallery = None if settings.gallery is None else open_gallery(settings.gallery, pipe.model.config.schema)
    return create_app(
        AttributeHandler(pipe, settings.limits, measures),
        measures=measures,
        gallery=gallery,
        **settings.of_the_app(),
    )


async def _serve(settings: ServiceSettings, sock: socket.socket, on_ready: Callable[[], None]) -> None:
    """One process of the service."""
    app = build_app(settings)
    handler = app.state.handler
    await handler.start()
    config = uvicorn.Config(
        app, http=_Http, ws="none", log_config=None, access_log=False, server_header=False, backlog=1024
    )
    try:
        await _Server(config, handler, settings.drain, on_ready).serve(sockets=[sock])
    except OSError as error:
        raise ParRuntimeError(f"the port cannot be opened: {error}") from error


class _Server(uvicorn.Server):
    """Stops in two steps: first it says that it is not ready, and takes requests on; then it takes no more, and ends
    when those that it took are answered. A second signal shortens the first step, a third one ends it all."""

    def __init__(self, config: uvicorn.Config, handler: Handler, drain: float, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._handler, self._drain, self._on_ready, self._signals = handler, drain, on_ready, 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if sys.platform == "win32":  # its event loop knows no signals
            with super().capture_signals():
                yield
            return
        # uvicorn would raise the signal once more at its end, so that a stop in good order looked like a crash.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    def _stop(self, number: int) -> None:
        self._signals += 1
        self._handler.is_ready = False
        log_event("stopping", signal=signal.Signals(number).name, in_work=self._handler.in_work)
        if self._signals == 1:
            asyncio.get_running_loop().call_later(self._drain, self._end)
        else:
            self.force_exit = self._signals > 2
            self._end()

    def _end(self) -> None:
        self.should_exit = True


class _Http(H11Protocol):
    """HTTP with a limit of time for the head of a request, which uvicorn waits for without end."""

    head_seconds = 10.0
    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # the head is there
            self._stop_waiting()
        elif self._waits is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self.cycle is None:  # just connected: its request may be on the way
            self.loop.call_later(0.3, super().shutdown)
        else:
            super().shutdown()

    def _wait_for_head(self) -> None:
        self._waits = self.loop.call_later(self.head_seconds, self._refuse_head)

    def _stop_waiting(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None

    def _refuse_head(self) -> None:
        self._waits = None
        if not self.transport.is_closing():
            self.send_400_response(f"The head of the request did not come within {self.head_seconds:g} seconds.")


class _Workers:
    """Processes that share one socket; one that dies is replaced."""

    def __init__(self, settings: ServiceSettings, sock: socket.socket, number: int) -> None:
        self._settings, self._sock, self._number = settings, sock, number
        self._context = multiprocessing.get_context("spawn")
        self._running: dict[Any, Connection] = {}
        self._stopping = False

    def run(self) -> None:
        """Runs until a signal comes.

        Raises:
            RuntimeError: a worker did not get ready, or died too often.
        """
        from prometheus_client import multiprocess

        folder = tempfile.mkdtemp(prefix="vlm-par-metrics-")
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        restarts = 0
        try:
            for _ in range(self._number):
                self._start()
            for process, messages in list(self._running.items()):
                self._check_ready(process, messages)
            if not self._stopping:
                _announce(self._sock, self._number)
            while self._running:
                wait([process.sentinel for process in self._running], timeout=1.0)
                for process in [one for one in self._running if not one.is_alive()]:
                    del self._running[process]
                    multiprocess.mark_process_dead(process.pid, folder)
                    if self._stopping:
                        continue
                    log_event("worker died", logging.ERROR, exit_code=process.exitcode)
                    restarts += 1
                    if restarts > _MOST_RESTARTS * self._number:
                        raise ParRuntimeError(f"workers died {restarts} times, the last one with {process.exitcode}")
                    self._start()
        finally:
            for process in self._running:
                process.terminate()
            for process in self._running:
                process.join()
            for number, handler in before.items():
                signal.signal(number, handler)
            shutil.rmtree(folder, ignore_errors=True)
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]

    def _start(self) -> None:
        messages, theirs = self._context.Pipe(duplex=False)
        threads = max(1, (os.cpu_count() or 1) // self._number)
        process = self._context.Process(target=_work, args=(self._settings, self._sock, theirs, threads))
        process.start()
        theirs.close()
        self._running[process] = messages

    def _check_ready(self, process: Any, messages: Connection) -> None:
        try:
            reason = messages.recv()
        except EOFError:
            reason = f"it ended with {process.exitcode}"
        if reason is not None and not self._stopping:
            raise ParRuntimeError(f"a worker did not get ready: {reason}")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        if number == signal.SIGTERM:  # of Ctrl+C the workers hear themselves
            for process in self._running:
                process.terminate()


def _work(settings: ServiceSettings, sock: socket.socket, messages: Connection, threads: int) -> None:
    """A worker process: tells its parent None when it is ready, or why it is not."""
    import torch

    from vlm_par_hf.auto import register

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    logging.getLogger("vlm_par_hf").setLevel(logging.INFO)
    register()
    try:
        asyncio.run(_serve(settings, sock, lambda: messages.send(None)))
    except ParError as error:
        with contextlib.suppress(OSError):
            messages.send(str(error))
        sys.exit(2)


def _end_with_parent() -> None:
    """Stops this worker when its parent is gone without having said so: nobody else would."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
