"""The audit record: what one message was, who sent it, what was decided, and how it ended. Pure, no I/O.

A record never holds a credential, and never the arguments or the result of a call (F7).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Literal, TypeAlias, get_args

import msgspec

from mcp_middleware.errors import UnknownOutcomeError
from mcp_middleware.exchange import Exchange
from mcp_middleware.message import Notification, Request, Response
from mcp_middleware.types import Era, Verdict

__all__ = ["DECISIONS", "MAX_TEXT", "AuditOutcome", "AuditRecord", "build_record", "end_record"]

AuditOutcome: TypeAlias = Literal["ok", "error", "refused", "disconnected", "failed", "unknown"]
"""How a message ended.

``ok``: answered, accepted, or streamed to its end. ``error``: answered with a JSON-RPC error, a tool error or an HTTP
error. ``refused``: never reached the server. ``disconnected``: the client left before its answer. ``failed``: the
server raised. ``unknown``: the server may have acted, and nobody saw its answer.
"""

DECISIONS: Final[tuple[Verdict, ...]] = get_args(Verdict)

MAX_TEXT: Final = 512
"""Characters of one value; a longer one is cut and says so."""

_INT64: Final = 2**63
_FRACTIONS: Final = tuple(f".{milliseconds:03d}Z" for milliseconds in range(1000))


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One message. None stands for what is absent or was never known."""

    time: str
    """When the message arrived: UTC, ISO 8601 with milliseconds and ``Z``. Of fixed width, so that it sorts as text."""
    method: str | None = None
    """The JSON-RPC method; None for GET, DELETE, a client's response, and a body nobody could read."""
    target_kind: str | None = None
    """``tool``, ``prompt``, ``resource`` or ``task``."""
    target: str | None = None
    """The name or URI the message is about, exactly as it came."""
    agent: str
    """The OAuth client; ``anonymous``, without an issuer, where nobody was authenticated."""
    issuer: str | None = None
    subject: str | None = None
    decision: Verdict
    rule: str | None = None
    """The rule that decided."""
    reason: str | None = None
    """Why it was refused, one stable word: ``no_token``, ``rate_limited``, ``parse_error``, ..."""
    outcome: AuditOutcome
    status: int | None = None
    """HTTP status; None if no answer left us."""
    error_code: int | None = None
    """JSON-RPC error code."""
    tool_error: bool | None = None
    """Whether a tool reported failure in its result (``isError``); None for everything but an answered tool call."""
    duration_ms: float
    """Milliseconds until the last byte of the answer was handed on."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None
    """What the call cost, in units of ``currency``: a number of billionths, so that sums can be exact."""
    currency: str | None = None
    session: str | None = None
    """Names the session, opens nothing."""
    server: str | None = None
    """The governed server the message was for, as ``AuditLogMiddleware(server=...)`` names it."""
    instance: str | None = None
    """The server instance the session lives on."""
    trace_id: str | None = None
    span_id: str | None = None
    request_id: int | str | None = None
    request_bytes: int
    response_bytes: int
    era: Era
    version: str | None = None
    """The protocol revision the client named."""
    http_method: str
    client_address: str | None = None
    """The peer's address as the ASGI server saw it."""


def build_record(
    exchange: Exchange, *, finished: float, session: str | None = None, server: str | None = None
) -> AuditRecord:
    """The record of an exchange: of a finished one, or of one that goes on to the server, as it is to read if its end
    is never known.

    ``finished`` is a ``time.monotonic`` value in seconds; ``session`` stands in where the exchange names none.
    """
    message = exchange.message
    method = target = target_kind = None
    request_id: int | str | None = None
    if isinstance(message, Request):
        method, target, target_kind, request_id = message.method, message.target, message.target_kind, message.id
    elif isinstance(message, Notification):
        method = message.method
    elif isinstance(message, Response):
        request_id = message.id
    rejection, decision, caller = exchange.rejection, exchange.decision, exchange.caller
    if rejection is not None and request_id is None:
        request_id = rejection.request_id
    tool_error = exchange.tool_failed
    usage, cost, trace = exchange.usage, exchange.cost, exchange.trace
    verdict = exchange.verdict
    address = exchange.scope.get("client")
    method, target, agent, issuer, subject, rule, reason, session, instance, version, http_method, address = _texts(
        method,
        target,
        caller.client,
        caller.issuer,
        caller.subject,
        (rejection.rule if rejection else None) or (decision.rule if decision else None),
        rejection.reason if rejection else None,
        exchange.session or session,
        exchange.instance,
        exchange.version,
        exchange.http_method,
        address[0] if address else None,
    )
    return AuditRecord(
        time=_timestamp(exchange.started_at),
        method=method,
        target_kind=target_kind,
        target=target,
        agent=agent or "",
        issuer=issuer,
        subject=subject,
        decision=verdict,
        rule=rule,
        reason=reason,
        outcome=_outcome(exchange, verdict, tool_error),
        status=exchange.status,
        error_code=_error_code(exchange),
        tool_error=tool_error,
        duration_ms=round((finished - exchange.started) * 1000, 3),
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        cost=cost.amount if cost else None,
        currency=cost.currency if cost else None,
        session=session,
        server=server,
        instance=instance,
        trace_id=trace.trace_id if trace else None,
        span_id=trace.span_id if trace else None,
        request_id=request_id if isinstance(request_id, int) and _fits(request_id) else _text(request_id),
        request_bytes=exchange.request_bytes,
        response_bytes=exchange.response_bytes,
        era=exchange.era,
        version=version,
        http_method=http_method or "",
        client_address=address,
    )


def end_record(begun: AuditRecord, exchange: Exchange, *, finished: float, session: str | None = None) -> AuditRecord:
    """``build_record`` for an exchange of which ``begun`` was built before it went on, and is still true: all that
    cannot have changed since is taken from there."""
    tool_error = exchange.tool_failed
    usage, cost = exchange.usage, exchange.cost
    return msgspec.structs.replace(
        begun,
        outcome=_outcome(exchange, begun.decision, tool_error),
        status=exchange.status,
        error_code=_error_code(exchange),
        tool_error=tool_error,
        duration_ms=round((finished - exchange.started) * 1000, 3),
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        cost=cost.amount if cost else None,
        currency=cost.currency if cost else None,
        session=_text(exchange.session or session),
        response_bytes=exchange.response_bytes,
    )


def _outcome(exchange: Exchange, decision: Verdict, tool_error: bool | None) -> AuditOutcome:
    if exchange.rejection is not None or decision == "denied":
        return "refused"
    if isinstance(exchange.failed, Exception):
        return "unknown" if isinstance(exchange.failed, UnknownOutcomeError) else "failed"
    if exchange.answer is not None:
        return "error" if exchange.answer.error is not None or tool_error else "ok"
    if exchange.status is not None and exchange.status >= 400:
        return "error"
    if isinstance(exchange.message, Request) or exchange.status is None:
        return "disconnected" if exchange.disconnected else "unknown"
    return "ok"


def _error_code(exchange: Exchange) -> int | None:
    if exchange.rejection is not None:
        return exchange.rejection.code
    error = exchange.answer.error if exchange.answer is not None else None
    return error.code if error is not None and _fits(error.code) else None


def _fits(value: int) -> bool:
    """Whether a sink can keep an integer of a peer's choice: 64 bits is what databases have."""
    return -_INT64 <= value < _INT64


def _timestamp(seconds: float) -> str:
    milliseconds = int(seconds * 1000)
    return _date_and_time(milliseconds // 1000) + _FRACTIONS[milliseconds % 1000]


@lru_cache(maxsize=16)
def _date_and_time(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).replace(tzinfo=None).isoformat()


def _texts(*values: object) -> Sequence[str | None]:
    """``_text`` of each value, for the price of one where all of them together are a short ASCII text."""
    try:
        joined = "".join([value for value in values if value is not None])  # type: ignore[misc]
    except TypeError:
        joined = None
    if joined is not None and len(joined) <= MAX_TEXT and joined.isascii():
        return values  # type: ignore[return-value]
    return [_text(value) for value in values]


def _text(value: object) -> str | None:
    """A bounded text that every encoder takes; what it says is kept, lone surrogates aside."""
    if value is None:
        return None
    if isinstance(value, str) and len(value) <= MAX_TEXT and value.isascii():
        return value
    if isinstance(value, int):
        return f"({value.bit_length()}-bit integer)"  # a decimal of it could take long, and Python refuses some
    text = str(value)
    if len(text) > MAX_TEXT:
        note = f"... ({len(text)} characters)"
        text = text[: MAX_TEXT - len(note)] + note
    return text.encode("utf-8", "replace").decode("utf-8")
