"""What runs the members around a server.

One request goes through four steps:

1. ``on_headers`` of every member, outermost first: who calls? Nothing of the body has been read.
2. The body is read, parsed and checked (``exchange.read_message``).
3. ``on_request`` of every member, outermost first. The first Rejection, here or above, is the answer. If there is
   none, ``on_forward``: what must be known before the server can act. A refusal that a member has deferred is the
   answer after all where nobody further in had another.
4. The server is called. Its messages pass ``on_response_message`` of every member, innermost first.

Then, whatever happened, ``on_finish`` of every member, innermost first. A call whose stream has ended without its
answer may be answered on another (``owed``): members that wait for it have ``on_owed``, and their ``on_finish`` is
then.

A call of the legacy era outlives its client, because there a lost connection cancels nothing (2025-11-25, transports).
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

from .answer import Answer, BatchAnswer
from .cutoff import Cutoff
from .errors import INTERNAL_ERROR, INVALID_REQUEST, UNAUTHORIZED, ConfigurationError, UnknownOutcomeError
from .exchange import Exchange, Receive, Scope, Send, open_exchange, read_message
from .message import Batch, Message, Request
from .owed import Owed
from .responses import headers_of, rejection_answer, send_document
from .types import Document, Rejection

__all__ = ["ASGIApp", "Bounds", "Pipeline"]

logger = logging.getLogger("mcp_middleware")

ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_LEFT_UNREAD: Final = 64 * 1024
"""Bytes of a body that are read for the sake of the connection; with more left over, that is closed."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one request may take. Where members differ, the tightest bound holds."""

    max_body_bytes: int = 4 * 1024 * 1024
    """Bytes of a request's body; more is answered 413."""
    max_header_bytes: int = 64 * 1024
    """Bytes of a request's headers, names and values; more is answered 431."""
    body_timeout: float = 10.0
    """Seconds until the last byte of a request's body; later is answered 408."""
    max_answer_bytes: int = 64 * 1024 * 1024
    """Bytes of one message from the server; a larger one becomes an error. Nothing else runs while the interpreter
    decodes one: for 60 MB some 60 to 160 ms."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ConfigurationError(f"Bounds.{name} is {value!r}; it must be a number above 0")

    @classmethod
    def tightest(cls, several: Sequence["Bounds"]) -> "Bounds":
        """The smallest of each bound."""
        return cls(*(min(getattr(bounds, name) for bounds in several) for name in cls.__slots__))


class Pipeline:
    """A group of adjacent members and the server inside them."""

    def __init__(self, hooks: Callable[[str], list[Any]], server: ASGIApp, bounds: Bounds) -> None:
        """``hooks``: those of a name that the members have, outermost first."""
        self.server = server
        self.bounds = bounds
        self.on_startup = hooks("on_startup")
        self.on_headers = hooks("on_headers")
        self.on_request = hooks("on_request")
        self.on_forward = hooks("on_forward")
        self.on_response_start = hooks("on_response_start")[::-1]
        self.on_response_message = hooks("on_response_message")[::-1]
        self.on_finish = hooks("on_finish")[::-1]
        self.on_owed = hooks("on_owed")[::-1]
        waiting = [on_owed.__self__ for on_owed in self.on_owed]
        self.on_finish_late = [on_finish for on_finish in self.on_finish if on_finish.__self__ in waiting]
        self.on_finish_now = [on_finish for on_finish in self.on_finish if on_finish.__self__ not in waiting]
        self.owed = Owed(partial(self._run, self.on_finish_late))
        self.aclose = hooks("aclose")[::-1]

    async def lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start the members, pass the lifespan through, and close the members once the application has shut down."""
        first: MutableMapping[str, Any] | None = await receive()
        failure = await self._start()
        if failure is not None:
            await self._close()
            await send({"type": "lifespan.startup.failed", "message": failure})
            return

        async def receive_on() -> MutableMapping[str, Any]:
            nonlocal first
            if first is None:
                return await receive()
            event, first = first, None
            return event

        async def closing_send(event: MutableMapping[str, Any]) -> None:
            if event["type"] in ("lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self._close()
            await send(event)

        await self.server(scope, receive_on, closing_send)

    async def end_waiting(self) -> None:
        """Finish what waits for an answer."""
        await self.owed.aclose()

    async def _start(self) -> str | None:
        """Start the members; why that failed, or None. Not by an exception: servers take one for an application that
        has no lifespan, and would go on."""
        for on_startup in self.on_startup:
            try:
                await on_startup()
            except ConfigurationError as error:
                return str(error)
            except Exception as error:
                logger.exception("a member failed while starting")
                return f"a member failed while starting: {type(error).__name__}"
        return None

    async def _close(self) -> None:
        await self.owed.aclose()
        for aclose in self.aclose:
            try:
                await aclose()
            except Exception:
                logger.exception("a member failed while closing")

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request, from its headers to the last hook."""
        exchange, opened = open_exchange(scope, receive)
        cutoff = Cutoff()
        try:
            answer = await self._judge_headers(exchange)
            exchange.overhead += time.monotonic() - exchange.started
            if isinstance(answer, Document):
                exchange.silent = True
                await send_document(answer, send)
                return
            if answer is None and exchange.http_method == "POST":
                message = await read_message(
                    exchange,
                    exchange.receive,
                    cutoff,
                    max_bytes=self.bounds.max_body_bytes,
                    seconds=self.bounds.body_timeout,
                )
                if message is None:
                    return
                if isinstance(message, Rejection):
                    answer = message
                elif exchange.deferred is not None and not _may_be_judged(message):
                    answer = exchange.deferred
                elif isinstance(message, Batch):
                    exchange.silent = True
                    await self._serve_batch(exchange, message, send, cutoff)
                    return
            await self._serve_judged(exchange, answer, send, cutoff)
        except BaseException as error:
            if exchange.failed is None:
                exchange.failed = error
            raise
        finally:
            await self._finish(exchange)
            if opened:
                exchange.close()

    async def _serve_judged(self, exchange: Exchange, rejection: Rejection | None, send: Send, cutoff: Cutoff) -> None:
        if rejection is None:
            began = time.monotonic()
            for on_request in self.on_request:
                rejection = await on_request(exchange)
                if rejection is not None:
                    break
            else:
                rejection = exchange.deferred
                if rejection is None:
                    for on_forward in self.on_forward:
                        rejection = on_forward(exchange)
                        if rejection is not None:
                            break
            exchange.overhead += time.monotonic() - began
        if rejection is None:
            await self._call_server(exchange, send, cutoff)
            return
        exchange.rejection = rejection
        exchange.status = rejection.status
        request_id = exchange.request_id if exchange.request_id is not None else rejection.request_id
        unread = rejection.status in (408, 413) or _leaves_body_unread(exchange)
        document = rejection_answer(rejection, request_id, close=unread)
        exchange.response_bytes = len(document.body)
        headers = headers_of(document)
        for on_response_start in self.on_response_start:  # so that a refusal looks as the server's own would
            on_response_start(exchange, document.status, headers)
        await send({"type": "http.response.start", "status": document.status, "headers": headers})
        await send({"type": "http.response.body", "body": document.body, "more_body": False})

    async def _judge_headers(self, exchange: Exchange) -> Rejection | Document | None:
        if exchange.header_bytes > self.bounds.max_header_bytes:
            text = f"the headers are larger than {self.bounds.max_header_bytes} bytes"
            return Rejection(431, INVALID_REQUEST, text, "headers_too_large")
        for on_headers in self.on_headers:
            answer: Rejection | Document | None = await on_headers(exchange)
            if isinstance(answer, Document) and exchange.deferred is not None:
                return exchange.deferred
            if answer is not None:
                return answer
        return _check_method(exchange)

    async def _finish(self, exchange: Exchange) -> None:
        if not exchange.owed or not self.on_owed:
            await self._run(self.on_finish, exchange)
            return
        self.owed.add(exchange)
        await self._run((*self.on_owed, *self.on_finish_now), exchange)

    async def _run(self, hooks: Sequence[Callable[[Exchange], Awaitable[None]]], exchange: Exchange) -> None:
        """Neither one member's failure nor the end of the task may keep the others from settling and recording."""
        cancelled: asyncio.CancelledError | None = None
        for hook in hooks:
            try:
                await hook(exchange)
            except asyncio.CancelledError as error:
                cancelled = error
            except Exception:
                logger.exception("a member failed while finishing a request")
        if cancelled is not None:
            raise cancelled

    async def _serve_batch(self, exchange: Exchange, batch: Batch, send: Send, cutoff: Cutoff) -> None:
        """Judge and serve each message of a batch (2025-03-26, transports) by itself, one after the other, and put the
        answers together."""
        answer = BatchAnswer(send)
        for message in batch.messages:
            child = exchange.child(message)
            before = answer.parts
            try:
                await self._serve_judged(child, None, answer.sender(child), cutoff)
                if answer.parts == before:
                    await answer.fail(child)
            except Exception as error:
                child.failed = error
                logger.exception("the server failed on one message of a batch")
                await answer.fail(child)
            finally:
                await self._finish(child)
                child.close()
            await asyncio.sleep(0)  # where nothing has to be waited for, all of them would be one turn of the loop
        await answer.end()

    async def _call_server(self, exchange: Exchange, send: Send, cutoff: Cutoff) -> None:
        exchange.edit_headers()
        body = exchange.body
        answer = Answer(
            exchange,
            send,
            cutoff,
            on_response_start=self.on_response_start,
            on_response_message=self.on_response_message,
            max_bytes=self.bounds.max_answer_bytes,
            owed=self.owed,
        )
        if exchange.http_method == "GET" and b"last-event-id" in exchange.headers:
            await self.owed.resume(exchange)
        receive = exchange.receive if body is None else _replay(exchange, body, answer)
        try:
            await self.server(exchange.scope, receive, answer.send)
        except asyncio.CancelledError:
            if not cutoff.absorbs():
                await answer.cut_off()
                raise
            await answer.end_stream(UNAUTHORIZED, "the token that opened this stream has ended")
        except Exception as error:
            answered = exchange.answer is not None
            ended = await answer.end_stream(INTERNAL_ERROR, "the server failed before it answered")
            if not (ended and isinstance(error, UnknownOutcomeError)):
                raise
            # The forwarder has logged it. An HTTP server that is told of an error closes the connection, which the
            # client may have begun to use again, because its answer has ended as it should.
            if not answered:  # else the outcome is known: only the end of the stream is missing
                exchange.failed = error
        finally:
            cutoff.stop()
            if answer.is_owed:
                self.owed.leave(exchange, b"")
        if answer.is_owed:
            exchange.owed = True
        elif exchange.http_method == "DELETE" and exchange.status is not None and exchange.status < 300:
            self.owed.end_session(exchange)


def _check_method(exchange: Exchange) -> Rejection | None:
    """MCP has three methods (transports), and bodies only with POST; HEAD and OPTIONS are HTTP's own. A call that came
    in another would pass by everybody who judges messages."""
    if exchange.http_method == "POST":
        return None
    if exchange.http_method not in ("GET", "DELETE", "HEAD", "OPTIONS"):
        allow = ((b"allow", b"GET, POST, DELETE"),)
        return Rejection(405, INVALID_REQUEST, "use POST, GET or DELETE", "method_not_allowed", headers=allow)
    if exchange.headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in exchange.headers:
        return Rejection(400, INVALID_REQUEST, f"{exchange.http_method} takes no body; use POST", "unexpected_body")
    return None


def _may_be_judged(message: Message | Batch) -> bool:
    """Whether members further in can say anything of it that a deferred refusal does not: of a request, but not of the
    one that opens a session."""
    return isinstance(message, Request) and message.method != "initialize"


def _leaves_body_unread(exchange: Exchange) -> bool:
    """Whether an answer now leaves more of the body behind than is worth reading for the sake of the connection."""
    if exchange.body is not None:
        return False
    length = exchange.headers.get(b"content-length", b"")
    return b"transfer-encoding" in exchange.headers or (length.isdigit() and int(length[:19]) > _LEFT_UNREAD)


def _replay(exchange: Exchange, body: bytes, answer: Answer) -> Receive:
    """The canonical body once, then the real ``receive``: a server that waits for the disconnect must get it. Of a call
    that outlives its client it gets it in the end."""
    pending = True
    receive_on = exchange.receive
    outlives = exchange.era == "legacy" and isinstance(exchange.message, Request)

    async def receive() -> MutableMapping[str, Any]:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        event = await receive_on()
        if event["type"] == "http.disconnect" and not answer.ended:  # else it is the answer's end
            exchange.disconnected = True
            if outlives:
                await answer.outlive_client()
        return event

    return receive
