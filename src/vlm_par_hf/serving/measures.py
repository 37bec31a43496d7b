"""What a service measures of itself, in the form that Prometheus reads."""

import os
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from .handler import NoMeasures


if TYPE_CHECKING:
    from .handler import Handler

__all__ = ["Measures"]

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Measures(NoMeasures):
    """Counters and histograms of one service.

    Where `PROMETHEUS_MULTIPROC_DIR` is set, as `--workers` does, those of all workers are added up.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Histogram(
            "vlm_par_request_seconds", "From the head of a request to its answer.", ("route", "status"),
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.stages = Histogram(
            "vlm_par_stage_seconds", "prepare: opening and cropping a picture; wait: of a person for a batch; model: "
            "a forward pass.", ("stage",), buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.batches = Histogram(
            "vlm_par_batch_people", "People of a forward pass.", buckets=_SIZES, registry=self._registry
        )
        self.refused = Counter(
            "vlm_par_refused", "Requests and pictures that were refused, by reason.", ("code",),
            registry=self._registry,
        )  # fmt: skip
        self.faults = Counter(
            "vlm_par_faults", "Requests that failed by a fault of the service.", registry=self._registry
        )
        self.pictures = Counter("vlm_par_pictures", "Pictures that were answered.", registry=self._registry)
        self.people = Counter("vlm_par_people", "People who were answered.", registry=self._registry)
        options = {"registry": self._registry, "multiprocess_mode": "livesum"}
        self.in_work = Gauge("vlm_par_pictures_in_work", "Pictures that are in work now.", **options)
        self.queue = Gauge("vlm_par_queue_people", "People who wait for the model now.", **options)

    def stage(self, name: str, seconds: float) -> None:
        self.stages.labels(name).observe(seconds)

    def batch(self, size: int) -> None:
        self.batches.observe(size)

    def update(self, handler: "Handler") -> None:
        """Sets the sizes of the handler's queues."""
        self.in_work.set(handler.in_work)
        self.queue.set(handler.waiting)

    def text(self) -> bytes:
        """All of it, as `/metrics` answers."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)
