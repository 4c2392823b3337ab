"""Trace context and baggage in a request: in ``params._meta``, in the HTTP headers, and around both."""

from collections.abc import Collection
from typing import Final

from opentelemetry import baggage as otel_baggage
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, get_current_span

from mcp_middleware.exchange import Exchange
from mcp_middleware.message import Notification, Request, with_meta

from .propagation import (
    BAGGAGE,
    TRACEPARENT,
    TRACESTATE,
    baggage_member,
    baggage_value,
    choose,
    join_baggage,
    parse_context,
    select_baggage,
    traceparent_of,
)

__all__ = ["NOTHING", "Carried", "carried_by", "carries_anything", "introduce", "keep_baggage", "pass_on"]

_KEYS: Final = (TRACEPARENT, TRACESTATE, BAGGAGE)
_HEADERS: Final = {key: key.encode() for key in _KEYS}

_Values = dict[str, str | None]
"""What a carrier is to say of each of ``_KEYS``; None: nothing."""


class Carried:
    """The trace contexts that stand around a message, and which one wins."""

    __slots__ = ("ambient", "header", "linked", "meta", "parent")

    def __init__(
        self, ambient: SpanContext | None = None, header: SpanContext | None = None, meta: SpanContext | None = None
    ) -> None:
        self.ambient = ambient
        """The span we run in, such as the HTTP span of an instrumentation around us."""
        self.header = header
        self.meta = meta
        self.parent, self.linked = choose(meta, ambient or header)


NOTHING: Final = Carried()
"""Nobody brought a context."""


def carried_by(exchange: Exchange, current: Context) -> Carried:
    """What the request brings, and the ambient context ``current``."""
    ambient = get_current_span(current).get_span_context()
    return Carried(ambient if ambient.is_valid else None, _header_context(exchange), _meta_context(exchange))


def carries_anything(exchange: Exchange) -> bool:
    """Whether the request has trace context or baggage, valid or not."""
    headers, message = exchange.headers, exchange.message
    if b"traceparent" in headers or b"tracestate" in headers or b"baggage" in headers:
        return True
    if not isinstance(message, (Request, Notification)) or not message.meta:
        return False
    return TRACEPARENT in message.meta or TRACESTATE in message.meta or BAGGAGE in message.meta


def introduce(exchange: Exchange, own: SpanContext) -> None:
    """Let the server read our span as the parent, where the request has nothing that ``pass_on`` had to replace.

    ``exchange.trace`` names our span, here and in ``pass_on``."""
    message = exchange.message
    if isinstance(message, (Request, Notification)):
        exchange.replace_message(with_meta(message, _own_values(exchange, own)))


def pass_on(exchange: Exchange, carried: Carried, own: SpanContext | None, members: dict[str, str]) -> None:
    """Let the server read one trace context and the baggage of ``members``, in ``_meta`` and in the headers alike.

    With ``own``, our span is the parent and says so. Without, we only relay: what was sent stays if it is valid, and
    goes if it is not (Trace Context, "Relationship between the headers"). Headers are replaced or removed, never
    added.
    """
    message = exchange.message
    baggage = join_baggage(members)
    values: _Values = {TRACEPARENT: None, TRACESTATE: None, BAGGAGE: baggage}
    if own is not None:
        values |= _own_values(exchange, own)
    if isinstance(message, (Request, Notification)):
        if own is None and carried.meta is not None:
            values[TRACEPARENT] = message.text("_meta", TRACEPARENT)
            values[TRACESTATE] = message.text("_meta", TRACESTATE) if carried.meta.trace_state else None
        if own is None and BAGGAGE not in message.meta:
            values[BAGGAGE] = None
        _write_meta(exchange, message, values)
    if own is None and carried.meta is None and carried.header is not None:
        values[TRACEPARENT] = _header(exchange, TRACEPARENT)
        values[TRACESTATE] = _header(exchange, TRACESTATE) if carried.header.trace_state else None
    values[BAGGAGE] = baggage
    _write_headers(exchange, values)


def keep_baggage(exchange: Exchange, context: Context, allowed: Collection[str]) -> tuple[Context, dict[str, str]]:
    """The ambient context with no other baggage than what may go on, and that baggage as members by key.

    The message's own counts, else the header's; then what was ambient already.
    """
    message = exchange.message
    sent: str | None
    if isinstance(message, (Request, Notification)) and BAGGAGE in message.meta:
        sent = message.text("_meta", BAGGAGE)
    else:
        sent = _header(exchange, BAGGAGE)
    members = select_baggage(sent, allowed)
    ambient = otel_baggage.get_all(context)
    if not ambient and not members:
        return context, members
    values = {key: value for key, value in ambient.items() if key in allowed}
    for key, value in values.items():
        members.setdefault(key, baggage_member(key, str(value)))
    context = otel_baggage.clear(context)
    for key, member in members.items():
        context = otel_baggage.set_baggage(key, baggage_value(member), context)
    return context, members


def _meta_context(exchange: Exchange) -> SpanContext | None:
    message = exchange.message
    if not isinstance(message, (Request, Notification)) or TRACEPARENT not in message.meta:
        return None
    return parse_context(message.text("_meta", TRACEPARENT), message.text("_meta", TRACESTATE))


def _header_context(exchange: Exchange) -> SpanContext | None:
    """The context of the HTTP headers. Of two traceparents none is the right one."""
    if b"traceparent" not in exchange.headers or b"traceparent" in exchange.repeated:
        return None
    return parse_context(_header(exchange, TRACEPARENT), _header(exchange, TRACESTATE))


def _header(exchange: Exchange, key: str) -> str | None:
    """A header's value; several lines are one list (RFC 9110, section 5.3)."""
    name = _HEADERS[key]
    value = exchange.headers.get(name)
    if value is None:
        return None
    if name in exchange.repeated:
        value = b",".join(line for header, line in exchange.scope["headers"] if header == name)
    return value.decode("latin-1")


def _own_values(exchange: Exchange, own: SpanContext) -> _Values:
    ids = exchange.trace
    parent = traceparent_of(ids.trace_id, ids.span_id, own.trace_flags) if ids is not None else None
    return {TRACEPARENT: parent, TRACESTATE: own.trace_state.to_header() if own.trace_state else None}


def _write_meta(exchange: Exchange, message: Request | Notification, values: _Values) -> None:
    changes = {
        key: value
        for key, value in values.items()
        if (key in message.meta if value is None else key not in message.meta or message.text("_meta", key) != value)
    }
    if changes:
        exchange.replace_message(with_meta(message, changes))


def _write_headers(exchange: Exchange, values: _Values) -> None:
    """Only what was there, but a ``tracestate`` that belongs to a ``traceparent`` written here comes with it."""
    for key, name in _HEADERS.items():
        present = name in exchange.headers or (key == TRACESTATE and _HEADERS[TRACEPARENT] in exchange.headers)
        if present and values[key] != _header(exchange, key):
            value = values[key]
            exchange.set_header(name, None if value is None else value.encode("latin-1"))
