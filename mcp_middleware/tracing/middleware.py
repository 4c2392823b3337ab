"""The trace context member: one SERVER span for each MCP message, and one trace context for the server to see."""

import logging
import time
from collections.abc import Sequence
from contextvars import Token
from typing import Literal, get_args

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TracerProvider,
    set_span_in_context,
)

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.exchange import Exchange, TraceIds, name_session
from mcp_middleware.member import ASGIApp, Bounds, Member
from mcp_middleware.message import Notification, Request
from mcp_middleware.options import flag, one_of
from mcp_middleware.revision import SESSION_HEADER
from mcp_middleware.types import Headers, Rejection

from . import conventions as names
from .attributes import KnownTargets, label_of, metric_labels, outcome_of, span_attributes
from .carrier import NOTHING, Carried, carried_by, carries_anything, introduce, keep_baggage, pass_on
from .instruments import Instruments
from .propagation import is_baggage_key, span_id_of, trace_id_of, with_sampled
from .providers import Listeners
from .sampling import root_decision
from .sessions import SessionTimes

__all__ = ["TraceContextMiddleware", "Trust"]

logger = logging.getLogger("mcp_middleware")

Trust = Literal["none", "authenticated", "all"]
"""Whose sampled flag is followed: nobody's, authenticated callers', or everybody's."""


class _State:
    """What one request keeps between the hooks."""

    __slots__ = ("context", "name", "session", "span", "token")

    def __init__(self) -> None:
        self.span: Span = INVALID_SPAN
        self.name = ""
        self.context: Context | None = None
        """The context with our span in it."""
        self.token: Token[Context] | None = None
        self.session: bytes | None = None
        """The session id as the client sees it."""


class TraceContextMiddleware(Member):
    """Traces and measures MCP messages, by the OpenTelemetry conventions for MCP.

    Each request and notification gets a SERVER span. Its parent is the trace context in ``params._meta``, else the
    ambient span (an HTTP span of ``opentelemetry-instrumentation-asgi``), else the ``traceparent`` header, else
    nothing; a surrounding context that was not chosen is linked. The server sees our span as its parent, in ``_meta``
    and as the ambient context alike. Without an OpenTelemetry SDK nothing is recorded, valid contexts pass unchanged
    and invalid ones are removed.

    Args:
        app: the ASGI application.
        baggage: keys of W3C baggage that go on to the server. All other baggage stops here.
        trust: whose sampled flag is followed, ``"none"``, ``"authenticated"`` or ``"all"``. For everybody else our
            own sampler decides as if the trace began here; trace id and parent are the caller's all the same.
        capture_content: put arguments, results and error messages of tool calls on spans, the first 16 KiB of each.
            They may hold secrets.
        tracer_provider: instead of the global one.
        meter_provider: instead of the global one.
        bounds: what one request may take.

    Raises:
        ConfigurationError: an option has a value that is not allowed.
    """

    stage = "tracing"

    def __init__(
        self,
        app: ASGIApp,
        *,
        baggage: Sequence[str] = (),
        trust: Trust = "none",
        capture_content: bool = False,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__(app, bounds=bounds)
        _check_options(baggage, trust, capture_content, tracer_provider, meter_provider)
        self._baggage = frozenset(baggage)
        self._trust = trust
        self._capture_content = capture_content
        self._tracer_provider = tracer_provider
        self._tracer = trace.get_tracer(names.SCOPE, tracer_provider=tracer_provider)
        self._listeners = Listeners(tracer_provider, meter_provider)
        self._instruments = Instruments(meter_provider)
        self._known = KnownTargets()
        self._sessions = SessionTimes()

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        """Choose a parent, start the span, and let the server read one context, ours or the one that was chosen."""
        current = get_current()
        listening = self._listeners.any(exchange.started)
        # An empty context has neither span nor baggage. Without an SDK as well, there is nothing to do.
        alone = not current and not carries_anything(exchange)
        if alone and not listening:
            return None
        state = _State()
        if exchange.era == "legacy":
            state.session = exchange.headers.get(SESSION_HEADER)
        carried = NOTHING if alone else carried_by(exchange, current)
        own: SpanContext | None = None
        if isinstance(exchange.message, (Request, Notification)):
            own = self._start(exchange, state, carried, current)
        exchange.trace = _ids(own or carried.parent)
        context = state.context or current
        if not alone:
            context, members = keep_baggage(exchange, context, self._baggage)
            pass_on(exchange, carried, own, members)
        elif own is not None:
            introduce(exchange, own)
        if context is not current:
            state.token = attach(context)
        if listening or state.token is not None:
            exchange.state[self] = state
        return None

    def on_response_start(self, exchange: Exchange, status: int, headers: Headers) -> None:
        """Note the session that an ``initialize`` opens."""
        message = exchange.message
        if isinstance(message, Request) and message.method == "initialize":
            state: _State | None = exchange.state.get(self)
            if state is not None:
                state.session = next((value for name, value in headers if name == SESSION_HEADER), None)

    async def on_finish(self, exchange: Exchange) -> None:
        """End the span and measure. What was refused before it could be read has its span from here."""
        state: _State | None = exchange.state.pop(self, None)
        if state is not None and state.token is not None:
            detach(state.token)
        failed = exchange.rejection is not None or isinstance(exchange.failed, Exception)
        if exchange.silent or (state is None and not failed):
            return
        listening = self._listeners.any(exchange.started)
        if state is None or (failed and not state.name):
            state = state or _State()
            current = get_current()
            carried = carried_by(exchange, current)
            exchange.trace = _ids(self._start(exchange, state, carried, current) or carried.parent)
        if not listening:
            return
        session = exchange.session
        if session is None and state.session is not None:
            session = name_session(state.session)
        self._time_session(exchange, session)
        if state.name:
            self._end(exchange, state, session)

    async def aclose(self) -> None:
        """Measure the sessions that are open: they end with the application."""
        for seconds in self._sessions.end_all():
            self._instruments.record_session(seconds)

    def _start(self, exchange: Exchange, state: _State, carried: Carried, current: Context) -> SpanContext | None:
        """Start the span of ``exchange``. Its context, or None if nobody makes spans (then we only relay)."""
        state.name = label_of(exchange, self._known)
        if not self._listeners.tracing:
            return None
        try:
            context, links = self._parent(exchange, carried, current, state.name)
            state.span = self._tracer.start_span(
                state.name,
                context,
                kind=SpanKind.SERVER,
                links=[Link(link) for link in links] if links else (),
                start_time=int(exchange.started_at * 1e9),
            )
        except Exception:
            logger.exception("the tracer failed; the request is served without a span")
            return None
        own = state.span.get_span_context()
        if not own.is_valid or (carried.parent is not None and own.span_id == carried.parent.span_id):
            return None
        state.context = set_span_in_context(state.span, current)
        return own

    def _parent(
        self, exchange: Exchange, carried: Carried, current: Context, name: str
    ) -> tuple[Context, list[SpanContext]]:
        """The context to start the span in, and what to link."""
        parent = carried.parent
        links = [carried.linked] if carried.linked is not None else []
        if parent is not None and parent.is_remote and not self._trusts(exchange):
            provider = self._tracer_provider or trace.get_tracer_provider()
            sampled = root_decision(provider, parent, name)
            if sampled is None:
                return set_span_in_context(INVALID_SPAN, current), [*links, parent]
            parent = with_sampled(parent, sampled)
        if parent is None or parent is carried.ambient:
            return current, links
        return set_span_in_context(NonRecordingSpan(parent), current), links

    def _trusts(self, exchange: Exchange) -> bool:
        return self._trust == "all" or (self._trust == "authenticated" and exchange.principal is not None)

    def _end(self, exchange: Exchange, state: _State, session: str | None) -> None:
        """End the span and record the durations, where somebody listens."""
        span = state.span
        measuring = self._listeners.measuring
        if not measuring and not span.is_recording():
            span.end()
            return
        outcome = outcome_of(exchange)
        self._known.learn(exchange, outcome)
        if span.is_recording():
            if " " not in state.name:  # the target was not known then, and may be now
                name = label_of(exchange, self._known)
                if name != state.name:
                    span.update_name(name)
            content = self._capture_content
            span.set_attributes(span_attributes(exchange, outcome, session=session, content=content))
            if outcome.fault:
                span.set_status(StatusCode.ERROR, outcome.text if content else None)
        span.end()
        if measuring:
            seconds = time.monotonic() - exchange.started
            labels = metric_labels(exchange, outcome, self._known)
            self._instruments.record_message(seconds, exchange.overhead, labels, state.context)

    def _time_session(self, exchange: Exchange, session: str | None) -> None:
        if session is None or exchange.rejection is not None or not 200 <= (exchange.status or 0) < 300:
            return
        message, answer = exchange.message, exchange.answer
        if exchange.http_method == "DELETE":
            seconds = self._sessions.end(session)
            if seconds is not None:
                self._instruments.record_session(seconds)
        elif isinstance(message, Request) and message.method == "initialize" and answer and answer.error is None:
            self._sessions.begin(session)


def _ids(context: SpanContext | None) -> TraceIds | None:
    return None if context is None else TraceIds(trace_id_of(context), span_id_of(context))


def _check_options(
    baggage: object, trust: object, capture_content: object, tracer_provider: object, meter_provider: object
) -> None:
    place = "TraceContextMiddleware"
    if isinstance(baggage, str | bytes) or not isinstance(baggage, Sequence):
        raise ConfigurationError(f"{place}: baggage is {baggage!r}; it must be a list of keys")
    for key in baggage:
        if not isinstance(key, str) or not is_baggage_key(key):
            raise ConfigurationError(f"{place}: baggage has {key!r}; a key is a token, as in W3C Baggage")
    one_of(f"{place}: trust", trust, get_args(Trust))
    flag(f"{place}: capture_content", capture_content)
    if tracer_provider is not None and not isinstance(tracer_provider, TracerProvider):
        raise ConfigurationError(f"{place}: tracer_provider is {tracer_provider!r}; it must be a TracerProvider")
    if meter_provider is not None and not isinstance(meter_provider, MeterProvider):
        raise ConfigurationError(f"{place}: meter_provider is {meter_provider!r}; it must be a MeterProvider")
