"""Whether anybody listens to spans and metrics. Without a provider of somebody's, the API has its own, which make and
record nothing."""

from typing import Final

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

__all__ = ["LOOK_INTERVAL", "is_measuring", "is_tracing"]

LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks for a global provider: looking costs more than all the rest without an SDK."""


def is_tracing(provider: TracerProvider | None) -> bool:
    """Whether ``provider``, or the global one, makes spans."""
    provider = provider or trace.get_tracer_provider()
    return not type(provider).__module__.startswith("opentelemetry.trace")


def is_measuring(provider: MeterProvider | None) -> bool:
    """Whether ``provider``, or the global one, records metrics."""
    provider = provider or metrics.get_meter_provider()
    return not type(provider).__module__.startswith("opentelemetry.metrics")
