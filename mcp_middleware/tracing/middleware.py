"""The trace context member: one SERVER span for each MCP message, and one trace context for the server to see."""

import logging
import time
from collections.abc import Sequence
from typing import Final, Literal, get_args

from opentelemetry import baggage as otel_baggage
from opentelemetry import metrics, trace
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
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.exchange import Exchange, TraceIds
from mcp_middleware.member import ASGIApp, Bounds, Member
from mcp_middleware.message import Notification, Request, with_meta
from mcp_middleware.types import Headers, Rejection

from . import conventions as names
from .attributes import Attributes, KnownTargets, label_of, metric_labels, outcome_of, session_digest, span_attributes
from .propagation import (
    BAGGAGE,
    TRACEPARENT,
    TRACESTATE,
    baggage_member,
    baggage_value,
    choose,
    format_traceparent,
    is_baggage_key,
    join_baggage,
    parse_context,
    select_baggage,
    with_sampled,
)
from .sampling import root_decision
from .sessions import SessionTimes

__all__ = ["TraceContextMiddleware", "Trust"]

logger = logging.getLogger("mcp_middleware")

Trust = Literal["none", "authenticated", "all"]
"""Whose sampled flag is followed: nobody's, authenticated callers', or everybody's."""

_KEYS: Final = (TRACEPARENT, TRACESTATE, BAGGAGE)
_HEADERS: Final = tuple(key.encode() for key in _KEYS)
_TRACEPARENT_HEADER, _TRACESTATE_HEADER, _BAGGAGE_HEADER = _HEADERS
_SESSION_HEADER: Final = b"mcp-session-id"

_Values = dict[str, str | None]
"""What a carrier is to say of each of ``_KEYS``; None: nothing."""


class _Sent:
    """The contexts that stand around a message, and the one that wins."""

    __slots__ = ("ambient", "header", "linked", "meta", "parent")

    def __init__(self, exchange: Exchange, current: Context) -> None:
        ambient = get_current_span(current).get_span_context()
        self.ambient = ambient if ambient.is_valid else None
        self.header = _header_context(exchange)
        self.meta = _meta_context(exchange)
        self.parent, self.linked = choose(self.meta, self.ambient or self.header)


class _State:
    """What one request keeps between the hooks."""

    __slots__ = ("context", "name", "session", "span", "token")

    def __init__(self) -> None:
        self.span: Span | None = None
        self.name = ""
        self.context: Context | None = None
        self.token: object = None
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
        self._meter_provider = meter_provider
        self._tracer = trace.get_tracer(names.SCOPE, tracer_provider=tracer_provider)
        meter = metrics.get_meter(names.SCOPE, meter_provider=meter_provider)
        self._durations = meter.create_histogram(
            names.OPERATION_DURATION,
            unit="s",
            description="Time from the arrival of an MCP request or notification to the end of its answer",
            explicit_bucket_boundaries_advisory=names.DURATION_BOUNDARIES,
        )
        self._session_durations = meter.create_histogram(
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
        self._measures = False
        self._known = KnownTargets()
        self._sessions = SessionTimes()

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        state = exchange.state[self] = _State()
        if exchange.era == "legacy":
            state.session = exchange.headers.get(_SESSION_HEADER)
        current = get_current()
        sent = _Sent(exchange, current)
        own: SpanContext | None = None
        context = current
        if isinstance(exchange.message, Request | Notification):
            own = self._start(exchange, state, sent, current)
            if own is not None and state.context is not None:
                context = state.context
        exchange.trace = _ids(own or sent.parent)
        context = self._propagate(exchange, sent, own, context)
        if context is not current:
            state.token = attach(context)
        return None

    def on_response_start(self, exchange: Exchange, status: int, headers: Headers) -> None:
        message = exchange.message
        if isinstance(message, Request) and message.method == "initialize":
            state = exchange.state.get(self)
            if state is not None:
                state.session = next((value for name, value in headers if name == _SESSION_HEADER), None)

    async def on_finish(self, exchange: Exchange) -> None:
        state: _State | None = exchange.state.pop(self, None)
        if state is not None and state.token is not None:
            detach(state.token)  # type: ignore[arg-type]  # attach() gave it
        if exchange.silent:
            return
        state = state or _State()
        if state.span is None and (exchange.rejection is not None or isinstance(exchange.failed, Exception)):
            current = get_current()
            sent = _Sent(exchange, current)
            exchange.trace = _ids(self._start(exchange, state, sent, current) or sent.parent)
        session = exchange.session
        if session is None and state.session is not None:
            session = session_digest(state.session)
        self._time_session(exchange, session)
        if state.span is not None:
            self._end(exchange, state, session)

    async def aclose(self) -> None:
        for seconds in self._sessions.end_all():
            self._record_session(seconds)

    def _start(self, exchange: Exchange, state: _State, sent: _Sent, current: Context) -> SpanContext | None:
        """Start the span of ``exchange``. Its context, or None if nobody makes spans (then we only relay)."""
        parent = sent.parent
        links = [sent.linked] if sent.linked is not None else []
        state.name = name = label_of(exchange, self._known)
        attributes: Attributes = {}
        if isinstance(exchange.message, Request | Notification):
            attributes[names.METHOD] = exchange.message.method
        context = current
        try:
            if parent is not None and parent.is_remote and not self._trusts(exchange):
                provider = self._tracer_provider or trace.get_tracer_provider()
                sampled = root_decision(provider, parent, name, attributes)
                if sampled is None:
                    links.append(parent)
                    parent, context = None, set_span_in_context(INVALID_SPAN, current)
                else:
                    parent = with_sampled(parent, sampled)
            if parent is not None and parent is not sent.ambient:
                context = set_span_in_context(NonRecordingSpan(parent), current)
            state.span = self._tracer.start_span(
                name,
                context,
                kind=SpanKind.SERVER,
                attributes=attributes,
                links=[Link(link) for link in links],
                start_time=int(exchange.started_at * 1e9),
            )
        except Exception:
            logger.exception("the tracer failed; the request is served without a span")
            state.span = INVALID_SPAN
        own = state.span.get_span_context()
        if not own.is_valid or (sent.parent is not None and own.span_id == sent.parent.span_id):
            return None
        state.context = set_span_in_context(state.span, current)
        return own

    def _trusts(self, exchange: Exchange) -> bool:
        return self._trust == "all" or (self._trust == "authenticated" and exchange.principal is not None)

    def _propagate(self, exchange: Exchange, sent: _Sent, own: SpanContext | None, context: Context) -> Context:
        """Let the server see one context, in ``_meta`` and in the headers, and only the baggage that may go on.

        Taking part (``own``), we are the parent and say so; relaying, what was sent stays, if it is valid. Headers are
        never added: the ambient context says the same. Returns the ambient context to run the server in.
        """
        message, headers = exchange.message, exchange.headers
        meta = message.meta if isinstance(message, Request | Notification) else {}
        in_headers = any(header in headers for header in _HEADERS)
        ambient_baggage = otel_baggage.get_all(context)
        if own is None and not in_headers and not ambient_baggage and not any(key in meta for key in _KEYS):
            return context

        members: dict[str, str] = {}
        if BAGGAGE in meta and isinstance(message, Request | Notification):
            members = select_baggage(message.text("_meta", BAGGAGE), self._baggage)
        elif _BAGGAGE_HEADER in headers:
            members = select_baggage(",".join(_header_lines(exchange, _BAGGAGE_HEADER)), self._baggage)
        if ambient_baggage or members:
            context = self._keep_baggage(context, members)
            for key, value in otel_baggage.get_all(context).items():
                members.setdefault(key, baggage_member(key, str(value)))

        values: _Values
        if own is not None:
            values = {TRACEPARENT: format_traceparent(own), TRACESTATE: own.trace_state.to_header() or None}
        elif sent.meta is not None and isinstance(message, Request | Notification):
            state = message.text("_meta", TRACESTATE) if sent.meta.trace_state else None
            values = {TRACEPARENT: message.text("_meta", TRACEPARENT), TRACESTATE: state}
        else:
            values = {TRACEPARENT: None, TRACESTATE: None}
        values[BAGGAGE] = join_baggage(members) if own is not None or BAGGAGE in meta else None
        if isinstance(message, Request | Notification):
            _write_meta(exchange, message, values)
        if in_headers:
            if own is None and sent.meta is None and sent.header is not None:
                values[TRACEPARENT] = headers[_TRACEPARENT_HEADER].decode("latin-1")
                state = ",".join(_header_lines(exchange, _TRACESTATE_HEADER))
                values[TRACESTATE] = state if sent.header.trace_state else None
            values[BAGGAGE] = join_baggage(members)
            _write_headers(exchange, values)
        return context

    def _keep_baggage(self, context: Context, members: dict[str, str]) -> Context:
        """``context`` with the allowed baggage: what the message brought, then what was there already."""
        kept = {key: value for key, value in otel_baggage.get_all(context).items() if key in self._baggage}
        kept.update((key, baggage_value(member)) for key, member in members.items())
        context = otel_baggage.clear(context)
        for key, value in kept.items():
            context = otel_baggage.set_baggage(key, value, context)
        return context

    def _end(self, exchange: Exchange, state: _State, session: str | None) -> None:
        """End the span and record the durations, where somebody listens."""
        span = state.span or INVALID_SPAN
        recording = span.is_recording()
        measuring = self._is_measuring()
        if not (recording or measuring):
            span.end()
            return
        outcome = outcome_of(exchange)
        self._known.learn(exchange, outcome)
        if recording:
            name = label_of(exchange, self._known)
            if name != state.name:
                span.update_name(name)
            content = self._capture_content
            span.set_attributes(span_attributes(exchange, outcome, session=session, content=content))
            if outcome.fault:
                span.set_status(StatusCode.ERROR, outcome.text if content else None)
        span.end()
        if measuring:
            labels = metric_labels(exchange, outcome, self._known)
            self._durations.record(time.monotonic() - exchange.started, labels, state.context)
            self._overheads.record(exchange.overhead, {names.METHOD: labels[names.METHOD]}, state.context)

    def _is_measuring(self) -> bool:
        """Whether a meter provider is set that is more than the API's placeholder."""
        if not self._measures:
            provider = self._meter_provider or metrics.get_meter_provider()
            self._measures = not type(provider).__module__.startswith("opentelemetry.metrics")
        return self._measures

    def _time_session(self, exchange: Exchange, session: str | None) -> None:
        status = exchange.status or 0
        if session is None or exchange.rejection is not None or not 200 <= status < 300:
            return
        message, answer = exchange.message, exchange.answer
        if exchange.http_method == "DELETE":
            seconds = self._sessions.end(session)
            if seconds is not None:
                self._record_session(seconds)
        elif isinstance(message, Request) and message.method == "initialize" and answer and answer.error is None:
            self._sessions.begin(session)

    def _record_session(self, seconds: float) -> None:
        self._session_durations.record(seconds, {names.NETWORK_PROTOCOL_NAME: "http", names.NETWORK_TRANSPORT: "tcp"})


def _ids(context: SpanContext | None) -> TraceIds | None:
    return None if context is None else TraceIds(format_trace_id(context.trace_id), format_span_id(context.span_id))


def _meta_context(exchange: Exchange) -> SpanContext | None:
    message = exchange.message
    if not isinstance(message, Request | Notification) or TRACEPARENT not in message.meta:
        return None
    return parse_context(message.text("_meta", TRACEPARENT), [message.text("_meta", TRACESTATE)])


def _header_context(exchange: Exchange) -> SpanContext | None:
    """The context of the HTTP headers. Of two traceparents none is the right one."""
    traceparent = exchange.headers.get(_TRACEPARENT_HEADER)
    if traceparent is None or _TRACEPARENT_HEADER in exchange.repeated:
        return None
    return parse_context(traceparent.decode("latin-1"), _header_lines(exchange, _TRACESTATE_HEADER))


def _header_lines(exchange: Exchange, name: bytes) -> list[str]:
    if name not in exchange.headers:
        return []
    return [value.decode("latin-1") for header, value in exchange.scope["headers"] if header == name]


def _write_meta(exchange: Exchange, message: Request | Notification, values: _Values) -> None:
    changes = {
        key: value
        for key, value in values.items()
        if (key in message.meta if value is None else message.text("_meta", key) != value)
    }
    if changes:
        exchange.replace_message(with_meta(message, changes))


def _write_headers(exchange: Exchange, values: _Values) -> None:
    for key, header in zip(_KEYS, _HEADERS, strict=True):
        if header not in exchange.headers:
            continue
        value = values[key]
        raw = None if value is None else value.encode("latin-1")
        if raw != exchange.headers[header] or header in exchange.repeated:
            exchange.set_header(header, raw)


def _check_options(
    baggage: object, trust: object, capture_content: object, tracer_provider: object, meter_provider: object
) -> None:
    place = "TraceContextMiddleware"
    if isinstance(baggage, str | bytes) or not isinstance(baggage, Sequence):
        raise ConfigurationError(f"{place}: baggage is {baggage!r}; it must be a list of keys")
    for key in baggage:
        if not isinstance(key, str) or not is_baggage_key(key):
            raise ConfigurationError(f"{place}: baggage has {key!r}; a key is a token, as in W3C Baggage")
    if trust not in get_args(Trust):
        raise ConfigurationError(f"{place}: trust is {trust!r}; it must be one of {', '.join(get_args(Trust))}")
    if not isinstance(capture_content, bool):
        raise ConfigurationError(f"{place}: capture_content is {capture_content!r}; it must be True or False")
    if tracer_provider is not None and not isinstance(tracer_provider, TracerProvider):
        raise ConfigurationError(f"{place}: tracer_provider is {tracer_provider!r}; it must be a TracerProvider")
    if meter_provider is not None and not isinstance(meter_provider, MeterProvider):
        raise ConfigurationError(f"{place}: meter_provider is {meter_provider!r}; it must be a MeterProvider")
