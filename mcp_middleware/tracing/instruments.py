"""The histograms."""

from collections.abc import Sequence

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram, MeterProvider

from . import conventions as names
from .attributes import Attributes

__all__ = ["Instruments", "durations"]


class Instruments:
    """The durations of operations, of sessions, and of what the members themselves cost; all in seconds."""

    __slots__ = ("_operations", "_overheads", "_sessions")

    def __init__(self, provider: MeterProvider | None) -> None:
        self._operations = durations(
            provider,
            names.OPERATION_DURATION,
            "Time from the arrival of an MCP request or notification to the end of its answer",
        )
        self._sessions = durations(
            provider, names.SESSION_DURATION, "Time from the answer to initialize to the end of the MCP session"
        )
        self._overheads = durations(
            provider,
            names.OVERHEAD_DURATION,
            "Time that one message spent in the middleware, without the server and the network",
            names.OVERHEAD_BOUNDARIES,
        )

    def record_message(self, seconds: float, overhead: float, labels: Attributes, context: Context | None) -> None:
        """A message is answered. ``context`` holds its span, for exemplars."""
        self._operations.record(seconds, labels, context)
        self._overheads.record(overhead, {names.METHOD: labels[names.METHOD]})

    def record_session(self, seconds: float) -> None:
        """A session is over."""
        self._sessions.record(seconds)


def durations(
    provider: MeterProvider | None,
    name: str,
    description: str,
    boundaries: Sequence[float] = names.DURATION_BOUNDARIES,
) -> Histogram:
    """A histogram of seconds."""
    meter = metrics.get_meter(names.SCOPE, meter_provider=provider)
    return meter.create_histogram(
        name, unit="s", description=description, explicit_bucket_boundaries_advisory=boundaries
    )
