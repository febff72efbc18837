"""What `/metrics` tells Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

STAGES = ("read", "parse", "decode", "wait", "compute")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Measures:
    """Counters of one server, apart from whatever else the process counts."""

    def __init__(self, waiting: Callable[[], float], held: Callable[[], float]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "byol_requests", "Requests answered, by route and status", ["route", "status"], registry=registry
        )
        self._images = Counter("byol_images", "Images computed, by model", ["model"], registry=registry)
        self._seconds = Histogram("byol_request_seconds", "Of a request", ["route"], buckets=SECONDS, registry=registry)
        stages = Histogram(
            "byol_stage_seconds",
            "Of a stage: read and parse per request, decode and wait per image, compute per batch",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        Gauge("byol_queue_images", "Images accepted and not yet answered", registry=registry).set_function(waiting)
        Gauge("byol_body_bytes", "Bytes of requests in memory", registry=registry).set_function(held)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered; status 499: its client went away before."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def images(self, model: str, count: int) -> None:
        """Count images that were computed."""
        self._images.labels(model).inc(count)

    def spent(self, stage: str, seconds: float) -> None:
        """Note the seconds of a stage."""
        self._stages[stage].observe(seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage, also when it fails."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent(name, time.perf_counter() - started)

    def text(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self._registry)
