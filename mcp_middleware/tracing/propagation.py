"""W3C trace context and baggage: reading, writing, and which of two contexts wins. Pure functions, no I/O.

Sources: W3C Trace Context (Recommendation, level 1) and W3C Baggage; SEP-414 for the keys in ``params._meta``; the
OpenTelemetry conventions for MCP for the order of precedence.
"""

import re
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import quote, unquote

from opentelemetry.trace import SpanContext, TraceFlags, TraceState

__all__ = [
    "BAGGAGE",
    "TRACEPARENT",
    "TRACESTATE",
    "baggage_member",
    "baggage_value",
    "choose",
    "format_traceparent",
    "is_baggage_key",
    "join_baggage",
    "parse_context",
    "select_baggage",
    "span_id_of",
    "trace_id_of",
    "traceparent_of",
    "with_sampled",
]

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
BAGGAGE: Final = "baggage"

MAX_TRACEPARENT: Final = 512
MAX_LIST: Final = 8192
"""Characters of a tracestate or baggage that are read; a longer one is dropped whole."""
MAX_TRACESTATE_MEMBERS: Final = 32

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]*)?")
_STATE_MEMBER: Final = re.compile(
    r"([a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
    r"=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])"
)
_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_VALUE: Final = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*+"
_BAGGAGE_KEY: Final = re.compile(_TOKEN)
_BAGGAGE_MEMBER: Final = re.compile(
    rf"({_TOKEN})[ \t]*+=[ \t]*+({_VALUE})(?:[ \t]*+;[ \t]*+{_TOKEN}(?:[ \t]*+=[ \t]*+{_VALUE})?+)*+"
)
"""What a part has taken it never gives back: white space stands where several parts may claim it."""


def parse_context(traceparent: str | None, tracestate: str | None = None) -> SpanContext | None:
    """The context that a caller sent, or None if it is not valid (then its tracestate means nothing either).

    An invalid tracestate is dropped, the context stays.
    A later version is read by the parts that version 00 defines (Trace Context, "Versioning of traceparent").
    """
    if not traceparent or len(traceparent) > MAX_TRACEPARENT:
        return None
    match = _TRACEPARENT.fullmatch(traceparent.strip(" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest):
        return None
    context = SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(flags, 16)),
        trace_state=TraceState(_parse_tracestate(tracestate)),
    )
    return context if context.is_valid else None


def _parse_tracestate(text: str | None) -> list[tuple[str, str]]:
    """The members of a tracestate in their order; none if any is malformed or repeated, or if there are too many."""
    if not text or len(text) > MAX_LIST:
        return []
    members: dict[str, str] = {}
    for item in text.split(","):
        item = item.strip(" \t")
        if not item:
            continue
        match = _STATE_MEMBER.fullmatch(item)
        if match is None or match[1] in members or len(members) == MAX_TRACESTATE_MEMBERS:
            return []
        members[match[1]] = match[2]
    return list(members.items())


def format_traceparent(context: SpanContext) -> str:
    """``context`` as a version 00 traceparent."""
    return traceparent_of(trace_id_of(context), span_id_of(context), context.trace_flags)


def traceparent_of(trace_id: str, span_id: str, flags: int) -> str:
    """A version 00 traceparent, of ids that are in hexadecimal already."""
    return f"00-{trace_id}-{span_id}-{flags & 0xFF:02x}"


def trace_id_of(context: SpanContext) -> str:
    """The trace id as 32 lower-case hexadecimal digits. By bytes: formatting so large an integer takes five times as
    long."""
    return context.trace_id.to_bytes(16, "big").hex()


def span_id_of(context: SpanContext) -> str:
    """The span id as 16 lower-case hexadecimal digits."""
    return context.span_id.to_bytes(8, "big").hex()


def with_sampled(context: SpanContext, sampled: bool) -> SpanContext:
    """``context`` with the sampled flag as we decide it; everything else as the caller sent it."""
    flags = context.trace_flags & ~TraceFlags.SAMPLED
    if sampled:
        flags |= TraceFlags.SAMPLED
    if flags == context.trace_flags:
        return context
    return SpanContext(context.trace_id, context.span_id, context.is_remote, TraceFlags(flags), context.trace_state)


def choose(meta: SpanContext | None, surrounding: SpanContext | None) -> tuple[SpanContext | None, SpanContext | None]:
    """The parent of our span and the context to link, each None where there is none.

    ``meta`` came in ``params._meta``, ``surrounding`` is the ambient span or, without one, the HTTP header's context.
    The message's own context wins: one HTTP exchange can carry several messages, and a message can be sent again over
    another (conventions for MCP, "Context propagation").
    """
    if surrounding is None:
        return meta, None
    if meta is None or (surrounding.trace_id, surrounding.span_id) == (meta.trace_id, meta.span_id):
        return surrounding, None
    return meta, surrounding


def is_baggage_key(key: str) -> bool:
    """Whether ``key`` can name baggage: a token (RFC 9110, section 5.6.2)."""
    return _BAGGAGE_KEY.fullmatch(key) is not None


def select_baggage(text: str | None, allowed: Collection[str]) -> dict[str, str]:
    """The allowed members of a baggage string, by key, each as it was sent. Malformed members are dropped.

    Keys compare byte for byte. Of a repeated key the last counts.
    """
    if not text or not allowed or len(text) > MAX_LIST:
        return {}
    members: dict[str, str] = {}
    for item in text.split(","):
        item = item.strip(" \t")
        match = _BAGGAGE_MEMBER.fullmatch(item)
        if match is not None and match[1] in allowed:
            members[match[1]] = item
    return members


def baggage_value(member: str) -> str:
    """The decoded value of one well-formed member, without its properties."""
    match = _BAGGAGE_MEMBER.fullmatch(member)
    return unquote(match[2]) if match is not None else ""


def baggage_member(key: str, value: str) -> str:
    """One member, its value percent-encoded."""
    return f"{key}={quote(value, safe='', errors='replace')}"


def join_baggage(members: Mapping[str, str]) -> str | None:
    """The members as a baggage string; None if there are none, or if they are longer than a receiver must accept."""
    text = ",".join(members.values())
    return text if text and len(text) <= MAX_LIST else None
