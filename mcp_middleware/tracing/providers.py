"""Whether anybody listens to spans and metrics. Without a provider of somebody's, the API has its own, which make and
record nothing."""

from typing import Final

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

__all__ = ["Listeners"]

_LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks for a global provider: looking costs more than all the rest without an SDK."""


class Listeners:
    """Who listens: the given providers, or the global ones, which may be set at any time."""

    __slots__ = ("_meter_provider", "_next_look", "_tracer_provider", "measuring", "tracing")

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._next_look = 0.0
        self.tracing = False
        """Whether spans are made, as of the last look."""
        self.measuring = False
        """Whether metrics are recorded, as of the last look."""

    def any(self, now: float) -> bool:
        """Whether there is one at ``now``, in seconds of ``time.monotonic``. A global provider that is set after the
        first request is noticed within a second."""
        if now >= self._next_look:
            self._next_look = now + _LOOK_INTERVAL
            tracers = self._tracer_provider or trace.get_tracer_provider()
            meters = self._meter_provider or metrics.get_meter_provider()
            self.tracing = not type(tracers).__module__.startswith("opentelemetry.trace")
            self.measuring = not type(meters).__module__.startswith("opentelemetry.metrics")
        return self.tracing or self.measuring
