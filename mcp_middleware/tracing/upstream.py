"""The gateway's spans and metrics: one CLIENT span for each message that is sent to an instance of a server.

It is a child of the message's SERVER span, and what the server reads as its parent (conventions for MCP, "Context
propagation"). Nothing is done, and nothing costs, where neither a tracer nor a meter provider is set.
"""

import logging
import time
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider, set_span_in_context

from mcp_middleware.exchange import Exchange
from mcp_middleware.message import Notification, Request, with_meta

from . import conventions as names
from .attributes import Attributes, KnownTargets, Outcome, label_of, metric_labels, outcome_of, span_attributes
from .instruments import durations
from .propagation import TRACEPARENT, TRACESTATE, format_traceparent
from .providers import Listeners

__all__ = ["ClientSpan", "ClientSpans"]

logger = logging.getLogger("mcp_middleware")

_TRACEPARENT_HEADER: Final = TRACEPARENT.encode()
_TRACESTATE_HEADER: Final = TRACESTATE.encode()

_SERVER_ONLY: Final = (
    names.CLIENT_ADDRESS,
    names.CLIENT_PORT,
    names.NETWORK_PROTOCOL_VERSION,
    names.DECISION,
    names.RULE,
    names.AGENT,
    names.USER,
    names.INPUT_TOKENS,
    names.OUTPUT_TOKENS,
)
"""What the SERVER span says of the caller; said twice, tokens would count twice."""


class ClientSpan:
    """One message under way to an instance."""

    __slots__ = ("address", "context", "name", "port", "span", "started")

    def __init__(self, name: str, address: str, port: int, span: Span, context: Context | None) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.span = span
        self.context = context
        self.started = time.monotonic()


class ClientSpans:
    """Traces and measures messages to servers. The providers are given, or the global ones."""

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        self._tracer = trace.get_tracer(names.SCOPE, tracer_provider=tracer_provider)
        self._durations = durations(
            meter_provider,
            names.CLIENT_OPERATION_DURATION,
            "Time from sending an MCP request or notification to the end of its answer",
        )
        self._listeners = Listeners(tracer_provider, meter_provider)
        self._known = KnownTargets()

    def start(self, exchange: Exchange, address: str, port: int) -> ClientSpan | None:
        """Begin the span of the message of ``exchange``, and let the message name it as its parent.

        None where nobody listens, and for what is no request or notification.
        """
        listening = self._listeners.any(time.monotonic())
        if not listening or not isinstance(exchange.message, Request | Notification):
            return None
        name = label_of(exchange, self._known)
        span: Span = trace.INVALID_SPAN
        context: Context | None = None
        if self._listeners.tracing:
            try:
                current = get_current()
                span = self._tracer.start_span(name, current, kind=SpanKind.CLIENT)
                context = set_span_in_context(span, current)
                _introduce(exchange, span)
            except Exception:
                logger.exception("the tracer failed; the request is sent without a span")
        return ClientSpan(name, address, port, span, context)

    def end(self, started: ClientSpan, exchange: Exchange, error: Exception | None) -> None:
        """The answer has ended; ``error`` is why nothing could be sent, if so."""
        outcome = outcome_of(exchange) if error is None else Outcome(type(error).__qualname__, None, True)
        self._known.learn(exchange, outcome)
        span = started.span
        where: Attributes = {names.SERVER_ADDRESS: started.address, names.SERVER_PORT: started.port}
        if span.is_recording():
            name = label_of(exchange, self._known)
            if name != started.name:
                span.update_name(name)
            found = span_attributes(exchange, outcome, session=exchange.session, content=False)
            span.set_attributes({key: value for key, value in found.items() if key not in _SERVER_ONLY} | where)
            if outcome.fault or outcome.error_type is not None:  # to a client, its own faults are errors as well
                span.set_status(StatusCode.ERROR)
        span.end()
        if self._listeners.measuring:
            labels: Attributes = metric_labels(exchange, outcome, self._known) | where
            labels.pop(names.DECISION, None)
            self._durations.record(time.monotonic() - started.started, labels, started.context)


def _introduce(exchange: Exchange, span: Span) -> None:
    """Let the server read ``span`` as the parent: in ``_meta``, and in a header that said otherwise (never both)."""
    own, message = span.get_span_context(), exchange.message
    if not own.is_valid or not isinstance(message, Request | Notification):
        return
    parent = format_traceparent(own)
    state = own.trace_state.to_header() if own.trace_state else None
    exchange.replace_message(with_meta(message, {TRACEPARENT: parent, TRACESTATE: state}))
    if _TRACEPARENT_HEADER in exchange.headers:
        exchange.set_header(_TRACEPARENT_HEADER, parent.encode())
        exchange.set_header(_TRACESTATE_HEADER, state.encode("latin-1") if state else None)
        exchange.edit_headers()
