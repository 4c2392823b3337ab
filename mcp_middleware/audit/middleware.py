"""The audit log: one record for every message, and no call without one."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import ClassVar, Final, Literal, cast

import msgspec

from mcp_middleware.errors import UNAVAILABLE, ConfigurationError
from mcp_middleware.exchange import Exchange, name_session
from mcp_middleware.member import ASGIApp, Bounds, Member
from mcp_middleware.message import Request
from mcp_middleware.options import one_of
from mcp_middleware.revision import SESSION_HEADER
from mcp_middleware.types import Headers, Rejection

from .record import MAX_TEXT, AuditRecord, build_record, end_record
from .sinks import AuditSink, DurableSink
from .sqlite import SQLiteSink

__all__ = ["AuditLogMiddleware"]

logger = logging.getLogger("mcp_middleware.audit")

_UNAVAILABLE: Final = Rejection(
    503,
    UNAVAILABLE,
    "the audit log cannot take records; nothing was done, try again later",
    "audit_unavailable",
    headers=((b"retry-after", b"5"),),
)


class _State:
    """What is known of an exchange between its hooks."""

    __slots__ = ("basis", "begun", "session", "tickets")

    def __init__(self) -> None:
        self.begun: AuditRecord | None = None
        """The record as it was before the message went on."""
        self.basis: tuple[object, ...] = ()
        """What that was made of."""
        self.session = b""
        """The id of the session that this exchange begins."""
        self.tickets: dict[AuditSink, int] = {}


class AuditLogMiddleware(Member):
    """Writes one record a message to every sink: who called what, what was decided, how it ended.

    Args:
        app: the ASGI application.
        sink: where records go; ``SQLiteSink("audit.db")`` if neither it nor ``sinks`` is given.
        sinks: several sinks; each gets every record.
        server: the governed server's name for the records' ``server``, where several have one trail.
        on_failure: ``"refuse"`` answers requests with 503 while any sink cannot take records, before the server sees
            them; ``"continue"`` serves them, and the log counts what is lost.
        bounds: what one request may take.

    Raises:
        ConfigurationError: an option has a value that is not allowed.
    """

    stage: ClassVar[str] = "audit"

    def __init__(
        self,
        app: ASGIApp,
        *,
        sink: AuditSink | None = None,
        sinks: Sequence[AuditSink] = (),
        server: str | None = None,
        on_failure: Literal["refuse", "continue"] = "refuse",
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__(app, bounds=bounds)
        one_of("AuditLogMiddleware: on_failure", on_failure, ("refuse", "continue"))
        if server is not None and (not isinstance(server, str) or not 0 < len(server) <= MAX_TEXT):
            raise ConfigurationError(
                f"AuditLogMiddleware: server is {server!r}; it must be a name of 1 to {MAX_TEXT} characters"
            )
        if not isinstance(sinks, list | tuple):
            raise ConfigurationError(f"AuditLogMiddleware: sinks is {sinks!r}; it must be a list of sinks")
        given = [*sinks] if sink is None else [sink, *sinks]
        for one in given:
            if isinstance(one, type) or not isinstance(one, AuditSink):
                raise ConfigurationError(
                    f"AuditLogMiddleware: a sink is {one!r}; it must be a SQLiteSink, a JSONLinesSink, "
                    "or an object with accepting, write and close"
                )
        self._sinks: tuple[AuditSink, ...] = tuple(given) or (SQLiteSink("audit.db"),)
        self._durable = [one for one in self._sinks if isinstance(one, DurableSink)]
        self._server_name = server
        self._refuses = on_failure == "refuse"

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        """Refuse what could not be recorded. Notifications and answers pass: nobody is told that they failed."""
        if not self._refuses or not isinstance(exchange.message, Request):
            return None
        for sink in self._sinks:
            if not sink.accepting:
                return _UNAVAILABLE
        return None

    def on_forward(self, exchange: Exchange) -> Rejection | None:
        """Note the message in every sink that keeps what has only begun, before the server can act on it."""
        if not self._durable or exchange.http_method not in ("POST", "DELETE") or self._begin(exchange):
            return None
        return _UNAVAILABLE if self._refuses and isinstance(exchange.message, Request) else None

    def _begin(self, exchange: Exchange) -> bool:
        """Whether every sink that could keep the beginning has done so."""
        state = exchange.state[self] = _State()
        record = self._record(exchange, state)
        if record.outcome != "unknown":  # a stream has a good status already, and no end
            record = msgspec.structs.replace(record, outcome="unknown")
        state.begun = record
        state.basis = _basis(exchange)
        for sink in self._durable:
            try:
                state.tickets[sink] = sink.begin(record)
            except Exception as error:
                if not isinstance(error, OSError):  # an OSError is the sink's own state, which it has logged
                    logger.exception("the beginning of a call was not recorded: %s failed", sink)
                return False
        return True

    def on_response_start(self, exchange: Exchange, status: int, headers: Headers) -> None:
        """Note what the record needs of the answer's headers: the session that begins, or that a GET is a stream."""
        message = exchange.message
        if message is None:
            if exchange.http_method == "GET" and _header(headers, b"content-type").startswith(b"text/event-stream"):
                if not self._durable:
                    exchange.state[self] = _State()
                elif self not in exchange.state:
                    self._begin(exchange)
        elif status < 300 and isinstance(message, Request) and message.method == "initialize":
            state = exchange.state.setdefault(self, _State())
            state.session = _header(headers, SESSION_HEADER)

    async def on_owed(self, exchange: Exchange) -> None:
        """Record a call when its answer has come; until then its beginning stands."""

    async def on_finish(self, exchange: Exchange) -> None:
        """Record the exchange, if it is a message, a refusal, the end of a session or the end of a stream."""
        if exchange.silent or not self._concerns(exchange):
            return
        state: _State | None = exchange.state.pop(self, None)
        record = self._record(exchange, state)
        for sink in self._sinks:
            ticket = state.tickets.get(sink) if state is not None else None
            try:
                if ticket is not None:
                    cast(DurableSink, sink).end(ticket, record)
                else:
                    sink.write(record)
            except Exception:
                logger.exception("an audit record was lost: %s failed", sink)

    def _record(self, exchange: Exchange, state: _State | None) -> AuditRecord:
        finished = time.monotonic()
        session_id = state.session if state is not None else b""
        if state is not None and state.begun is not None and state.basis == _basis(exchange):
            session = name_session(session_id) if session_id else state.begun.session
            return end_record(state.begun, exchange, finished=finished, session=session)
        if not session_id and exchange.era == "legacy":
            session_id = exchange.headers.get(SESSION_HEADER, b"")
        session = name_session(session_id) if session_id else None
        return build_record(exchange, finished=finished, session=session, server=self._server_name)

    def _concerns(self, exchange: Exchange) -> bool:
        if exchange.http_method in ("POST", "DELETE") or exchange.rejection is not None:
            return True
        return exchange.http_method == "GET" and self in exchange.state

    async def aclose(self) -> None:
        """Write what waits and close the sinks; a later record opens them again."""
        for sink in self._sinks:
            try:
                await asyncio.to_thread(sink.close)
            except Exception:
                logger.exception("the audit sink %s failed while closing", sink)


def _basis(exchange: Exchange) -> tuple[object, ...]:
    """What may change after a message went on, because another group of members stands further in."""
    decision, message = id(exchange.decision), id(exchange.message)
    return exchange.rejection, exchange.principal, decision, message, exchange.trace, exchange.instance


def _header(headers: Headers, wanted: bytes) -> bytes:
    return next((value for name, value in headers if name.lower() == wanted), b"")
