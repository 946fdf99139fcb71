"""Numbers for Prometheus, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "vitrail_requests", "Requests, by route, method and status", ["route", "method", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "vitrail_request_seconds", "Time to the answer", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self._batches = Histogram(
            "vitrail_batch_images", "Images in a batch", ["model", "work"], buckets=_IMAGES, registry=self.registry
        )
        self._compute = Counter(
            "vitrail_compute_seconds", "Time of the model's thread", ["model", "work"], registry=self.registry
        )
        self._inside = Gauge(
            "vitrail_images_inside", "Images that wait or are computed", ["model", "work"], registry=self.registry
        )

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request; methods that HTTP does not know are one."""
        known = method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
        self._requests.labels(route, known, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def observe_batch(self, model: str, work: str, images: int, seconds: float) -> None:
        """Count a batch; called in the model's thread."""
        self._batches.labels(model, work).observe(images)
        self._compute.labels(model, work).inc(seconds)

    def set_inside(self, model: str, work: str, images: int) -> None:
        """Set the number of images inside."""
        self._inside.labels(model, work).set(images)

    def text(self) -> bytes:
        """Return all numbers in Prometheus' text format."""
        return generate_latest(self.registry)
