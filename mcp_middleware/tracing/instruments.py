"""The three histograms."""

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider

from . import conventions as names
from .attributes import Attributes
from .providers import is_measuring

__all__ = ["Instruments"]


class Instruments:
    """The durations of operations, of sessions, and of what the members themselves cost; all in seconds."""

    __slots__ = ("_operations", "_overheads", "_provider", "_sessions", "recording")

    def __init__(self, provider: MeterProvider | None) -> None:
        self._provider = provider
        self.recording = False
        """Whether somebody listens, as of the last ``look``."""
        meter = metrics.get_meter(names.SCOPE, meter_provider=provider)
        self._operations = meter.create_histogram(
            names.OPERATION_DURATION,
            unit="s",
            description="Time from the arrival of an MCP request or notification to the end of its answer",
            explicit_bucket_boundaries_advisory=names.DURATION_BOUNDARIES,
        )
        self._sessions = meter.create_histogram(
            names.SESSION_DURATION,
            unit="s",
            description="Time from the answer to initialize to the end of the MCP session",
            explicit_bucket_boundaries_advisory=names.DURATION_BOUNDARIES,
        )
        self._overheads = meter.create_histogram(
            names.OVERHEAD_DURATION,
            unit="s",
            description="Time that one message spent in the middleware, without the server and the network",
            explicit_bucket_boundaries_advisory=names.OVERHEAD_BOUNDARIES,
        )

    def look(self) -> None:
        """Note whether anybody set a meter provider."""
        self.recording = is_measuring(self._provider)

    def record_message(self, seconds: float, overhead: float, labels: Attributes, context: Context | None) -> None:
        """A message is answered. ``context`` holds its span, for exemplars."""
        self._operations.record(seconds, labels, context)
        self._overheads.record(overhead, {names.METHOD: labels[names.METHOD]})

    def record_session(self, seconds: float) -> None:
        """A session is over."""
        self._sessions.record(seconds)
