"""The members' shape, and the pipeline that runs them.

A member is an ordinary ASGI middleware. Members that stand directly inside each other find each other when they are
made and run as one pipeline in ``ORDER``, so that the order in which a user lists them changes no answer, the request
and its answer are parsed once, and a request passes one wrapper instead of six. Where something else stands between
two members, each group runs its own pipeline over the same Exchange.

One request goes through four steps:

1. ``on_headers`` of every member, outermost first: who calls? Nothing of the body has been read.
2. The body is read, parsed and checked (``exchange.read_message``).
3. ``on_request`` of every member, outermost first. The first Rejection, here or above, is the answer. If there is
   none, ``on_forward``: what must be known before the server can act. A refusal that a member has deferred is the
   answer after all where nobody further in had another.
4. The server is called. Its messages pass ``on_response_message`` of every member, innermost first.

Then, whatever happened, ``on_finish`` of every member, innermost first.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final, TypeAlias

from .cutoff import Cutoff
from .errors import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    UNAUTHORIZED,
    ConfigurationError,
    UnknownOutcomeError,
)
from .exchange import Exchange, Receive, Scope, Send, open_exchange, read_message
from .message import Batch, Message, Request, ServerMessage, parse_server_message
from .responses import error_body, headers_of, media_type, rejection_answer, send_document
from .sse import Decoder, EventTooLargeError, encode
from .types import Document, Headers, Rejection

__all__ = ["ORDER", "ASGIApp", "Bounds", "Member"]

logger = logging.getLogger("mcp_middleware")

ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

ORDER: Final = ("audit", "tracing", "edge", "resource_server", "limiter", "affinity", "authorization")
"""Outermost first, and the only place where order exists. The audit sees every refusal; the limiter refuses before
the server sees anything; a denied call is charged as a request but never as tokens. A session that is none is answered
before the policy is asked, so that what is hidden and what does not exist differ no more there than elsewhere."""


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
    """Bytes of one message from the server; a larger one becomes an error."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ConfigurationError(f"Bounds.{name} is {value!r}; it must be a number above 0")

    @classmethod
    def tightest(cls, several: Sequence["Bounds"]) -> "Bounds":
        """The smallest of each bound."""
        return cls(*(min(getattr(bounds, name) for bounds in several) for name in cls.__slots__))


class Member:
    """Base of every middleware of this package. A member overrides the hooks it needs, and names its stage."""

    stage: ClassVar[str]
    """One of ``ORDER``."""

    def __init__(self, app: ASGIApp, *, bounds: Bounds | None = None) -> None:
        if not callable(app):
            raise ConfigurationError(f"{type(self).__name__}: app is {app!r}; it must be an ASGI application")
        if bounds is not None and not isinstance(bounds, Bounds):
            raise ConfigurationError(f"{type(self).__name__}: bounds is {bounds!r}; it must be a Bounds")
        self.app = app
        self.bounds = bounds or Bounds()
        inner = app._members if isinstance(app, Member) else []
        self._members: list[Member] = sorted([self, *inner], key=lambda member: ORDER.index(member.stage))
        self._server: ASGIApp = app._server if isinstance(app, Member) else app
        self._pipeline: _Pipeline | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "lifespan"):
            await self._server(scope, receive, send)
            return
        if self._pipeline is None:
            self._pipeline = _Pipeline(self._members, self._server)
        if scope["type"] == "http":
            await self._pipeline.serve(scope, receive, send)
        else:
            await self._pipeline.lifespan(scope, receive, send)

    async def on_startup(self) -> None:
        """Check and prepare, before the application is told to start. Whatever is raised fails the start, with the
        message of a ConfigurationError. Not called where nobody runs the application's lifespan."""

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        """Judge a request by its headers; a Document is served as it is."""
        return None

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        """Judge a request; ``exchange.message`` is None for a GET or DELETE."""
        return None

    def on_forward(self, exchange: Exchange) -> Rejection | None:
        """Note that a request which every member accepted goes on to the server now; a Rejection still keeps it."""
        return None

    def on_response_start(self, exchange: Exchange, status: int, headers: Headers) -> None:
        """See the answer's status, and change its headers in place."""

    def on_response_message(self, exchange: Exchange, message: ServerMessage) -> ServerMessage | None:
        """See a message of the server; return it, another in its place, or None to drop it."""
        return message

    async def on_finish(self, exchange: Exchange) -> None:
        """Settle and record. Called exactly once for every exchange, also when another member refused it first."""

    async def aclose(self) -> None:
        """Let go of resources, when the application shuts down."""


class _Pipeline:
    """A group of adjacent members and the server inside them."""

    def __init__(self, members: list[Member], server: ASGIApp) -> None:
        def hooks(name: str, *, innermost_first: bool = False) -> list[Any]:
            found = [getattr(m, name) for m in members if getattr(type(m), name) is not getattr(Member, name)]
            return found[::-1] if innermost_first else found

        self.server = server
        self.on_startup = hooks("on_startup")
        self.on_headers = hooks("on_headers")
        self.on_request = hooks("on_request")
        self.on_forward = hooks("on_forward")
        self.on_response_start = hooks("on_response_start", innermost_first=True)
        self.on_response_message = hooks("on_response_message", innermost_first=True)
        self.on_finish = hooks("on_finish", innermost_first=True)
        self.aclose = hooks("aclose", innermost_first=True)
        self.bounds = Bounds.tightest([member.bounds for member in members])

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
        """Neither one member's failure nor the end of the task may keep the others from settling and recording."""
        cancelled: asyncio.CancelledError | None = None
        for on_finish in self.on_finish:
            try:
                await on_finish(exchange)
            except asyncio.CancelledError as error:
                cancelled = error
            except Exception:
                logger.exception("a member failed while finishing a request")
        if cancelled is not None:
            raise cancelled

    async def _serve_batch(self, exchange: Exchange, batch: Batch, send: Send, cutoff: Cutoff) -> None:
        """Judge and serve each message by itself, one after the other, and put the answers together (A16)."""
        answer = _BatchAnswer(send)
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
        await answer.end()

    async def _call_server(self, exchange: Exchange, send: Send, cutoff: Cutoff) -> None:
        exchange.edit_headers()
        body = exchange.body
        receive = exchange.receive if body is None else _replay(exchange, body)
        answer = _Answer(self, exchange, send, cutoff)
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


def _check_method(exchange: Exchange) -> Rejection | None:
    """MCP has three methods, and bodies only with POST; HEAD and OPTIONS are HTTP's own (T25, SH). A call that came in
    another would pass by everybody who judges messages."""
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


_MAX_HELD: Final = 4 * 1024 * 1024
"""Bytes of answers to a batch that are held for a JSON array."""
_SLICE: Final = 2 * 1024
"""Bytes of an event stream that are looked at between two looks at the clock."""
_TURN: Final = 0.002
"""Seconds that one stream may take before others have their turn."""
_TOO_LARGE: Final = "the server's answer is too large"
_LEFT_UNREAD: Final = 64 * 1024
_TOKEN_CHECK: Final = 20.0
"""Seconds between two looks at the token of an open stream: with the 30 for which an issuer's word on a token may be
kept, and the time to ask for it, a stream ends within a minute of a revocation."""


def _leaves_body_unread(exchange: Exchange) -> bool:
    """Whether an answer now leaves more of the body behind than is worth reading for the sake of the connection."""
    if exchange.body is not None:
        return False
    length = exchange.headers.get(b"content-length", b"")
    return b"transfer-encoding" in exchange.headers or (length.isdigit() and int(length[:19]) > _LEFT_UNREAD)


def _replay(exchange: Exchange, body: bytes) -> Receive:
    """The canonical body once, then the real ``receive``: a server that waits for the disconnect must get it."""
    pending = True
    receive_on = exchange.receive

    async def receive() -> MutableMapping[str, Any]:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        event = await receive_on()
        if event["type"] == "http.disconnect":
            exchange.disconnected = True
        return event

    return receive


class _Answer:
    """The server's answer on its way out.

    JSON is held until it is whole, because its length may change. An event stream passes event by event; whatever
    else a server answers passes untouched.
    """

    __slots__ = (
        "body",
        "cutoff",
        "decoder",
        "dropped",
        "ended",
        "exchange",
        "pipeline",
        "send_on",
        "size",
        "start",
    )

    def __init__(self, pipeline: _Pipeline, exchange: Exchange, send: Send, cutoff: Cutoff) -> None:
        self.pipeline = pipeline
        self.exchange = exchange
        self.send_on = send
        self.cutoff = cutoff
        self.dropped = False
        self.start: MutableMapping[str, Any] | None = None
        self.body: list[bytes] = []
        self.size = 0
        self.decoder: Decoder | None = None
        self.ended = False

    async def send(self, event: MutableMapping[str, Any]) -> None:
        if self.ended:
            return
        if event["type"] == "http.response.body":
            if self.decoder is not None:
                await self._send_events(event)
            elif self.start is not None:
                await self._hold(event)
            else:
                self._count(event)
                await self.send_on(event)
        elif event["type"] == "http.response.start":
            await self._begin(event)
        else:
            await self.send_on(event)

    def _count(self, event: MutableMapping[str, Any]) -> None:
        self.size += len(event.get("body", b""))
        self.exchange.response_bytes = self.size

    async def _begin(self, event: MutableMapping[str, Any]) -> None:
        exchange = self.exchange
        exchange.status = event["status"]
        headers: Headers = list(event.get("headers", ()))
        for on_response_start in self.pipeline.on_response_start:
            on_response_start(exchange, event["status"], headers)
        event["headers"] = headers
        media = media_type(headers)
        if media == b"text/event-stream":
            event["headers"] = [line for line in headers if line[0] != b"content-length"]
            self.decoder = Decoder(limit=self.pipeline.bounds.max_answer_bytes)
            self._end_with_token()
            await self.send_on(event)
        elif isinstance(exchange.message, Request) and (media == b"application/json" or exchange.strict):
            self.start = event
        else:
            await self.send_on(event)

    def _end_with_token(self) -> None:
        """At its end, which the caller knows; or when it has been revoked, which its issuer alone knows."""
        exchange = self.exchange
        principal, still_good = exchange.principal, exchange.still_good
        if principal is not None and principal.expires_at is not None:
            self.cutoff.start(max(0.0, principal.expires_at - time.time()))
        if still_good is not None:
            self.cutoff.ask(partial(still_good, exchange), every=_TOKEN_CHECK)

    async def _hold(self, event: MutableMapping[str, Any]) -> None:
        self.body.append(event.get("body", b""))
        self._count(event)
        too_large = self.size > self.pipeline.bounds.max_answer_bytes
        if event.get("more_body", False) and not too_large:
            return
        start = self.start or {}
        body = b"".join(self.body)
        message = None if too_large else parse_server_message(body)
        passed = self._observe(message) if message is not None else None
        if message is not None:
            if passed is not message:
                body = bytes(passed.raw) if passed is not None else b""
                start["status"] = self.exchange.status = (passed and passed.status) or start["status"]
        elif too_large or (self.exchange.strict and start["status"] < 400):  # a server's own refusal is no list
            if too_large:
                self.exchange.failed = UnknownOutcomeError(_TOO_LARGE)
            body = self._error(_TOO_LARGE if too_large else "the server's answer cannot be read")
            start["status"] = self.exchange.status = 502
            kept = [line for line in start["headers"] if line[0] not in (b"content-type", b"content-encoding")]
            start["headers"] = [*kept, (b"content-type", b"application/json")]
        if message is None or passed is not message:
            headers = [line for line in start["headers"] if line[0] != b"content-length"]
            start["headers"] = [*headers, (b"content-length", str(len(body)).encode())]
        self.ended = True
        await self.send_on(start)
        await self.send_on({"type": "http.response.body", "body": body, "more_body": False})

    async def _send_events(self, event: MutableMapping[str, Any]) -> None:
        chunk: bytes = event.get("body", b"")
        more = event.get("more_body", False)
        self._count(event)
        out: list[bytes] = []
        began = time.monotonic() if len(chunk) > _SLICE else 0.0
        for start in range(0, len(chunk), _SLICE):
            if start and time.monotonic() - began > _TURN:  # a server of many small events must leave others their turn
                if out:
                    await self.send_on({"type": "http.response.body", "body": b"".join(out), "more_body": True})
                    out.clear()
                await asyncio.sleep(0)
                began = time.monotonic()
            try:
                self._take(chunk if len(chunk) <= _SLICE else chunk[start : start + _SLICE], out)
            except EventTooLargeError:
                if self.exchange.answer is None:
                    self.exchange.failed = UnknownOutcomeError(_TOO_LARGE)  # the words below are ours, as in cut_off
                await self.end_stream(INTERNAL_ERROR, _TOO_LARGE, b"".join(out))
                return
            if self.exchange.ended:  # by a member, whose last word was among these events
                more = False
                break
        if not more:
            self.ended = True
            if self.dropped and self.exchange.answer is None and self.exchange.request_id is not None:
                out.append(encode(self._error("the server's answer cannot be read")))
        if out or not more:
            await self.send_on({"type": "http.response.body", "body": b"".join(out), "more_body": more})

    def _take(self, chunk: bytes, out: list[bytes]) -> None:
        """Put the events that ``chunk`` completes into ``out``, as they are to be sent on."""
        decoder = self.decoder or Decoder(limit=0)
        for frame in decoder.feed(chunk):
            data = frame.data
            message = parse_server_message(data) if data else None
            if message is None:
                if self.exchange.strict and data and (frame.event == b"message" or data.lstrip()[:1] in (b"[", b"{")):
                    self.dropped = True
                else:
                    out.append(frame.raw)
                continue
            passed = self._observe(message)
            if passed is message:
                out.append(frame.raw)
            elif passed is not None:
                out.append(frame.with_data(bytes(passed.raw)).raw)

    def _observe(self, message: ServerMessage) -> ServerMessage | None:
        began = time.monotonic()
        passed: ServerMessage | None = message
        for on_response_message in self.pipeline.on_response_message:
            passed = on_response_message(self.exchange, passed)
            if passed is None:
                break
        self.exchange.overhead += time.monotonic() - began
        if passed is not None and passed.is_answer and passed.id == self.exchange.request_id:
            self.exchange.answer = passed
        return passed

    async def end_stream(self, code: int, text: str, rest: bytes = b"") -> bool:
        """End an event stream that the server did not end, with ``rest`` and an error for the request it leaves open.
        Whether there was one to end."""
        if self.decoder is None or self.ended:
            return False
        self.ended = self.exchange.ended = True
        body = rest
        if self.exchange.request_id is not None and self.exchange.answer is None:
            body += encode(self._error(text, code))
        await self.send_on({"type": "http.response.body", "body": body, "more_body": False})
        return True

    async def cut_off(self) -> None:
        """The process stops, and this call with it: say so with the request's id, as far as an answer still can."""
        text = "the server stopped before it answered"
        if self.exchange.answer is None:
            self.exchange.failed = UnknownOutcomeError(text)  # the words below are ours, and say nothing of the server
        if await self.end_stream(INTERNAL_ERROR, text) or self.ended or not isinstance(self.exchange.message, Request):
            return
        if self.start is None and self.exchange.status is not None:
            return  # an answer of another kind is under way
        self.ended = True
        self.exchange.status = 503
        document = Document(self._error(text), 503, ((b"content-type", b"application/json"),))
        await send_document(document, self.send_on)

    def _error(self, text: str, code: int = INTERNAL_ERROR) -> bytes:
        data = error_body(code, text, self.exchange.request_id)
        self.exchange.answer = parse_server_message(data)
        return data


class _BatchAnswer:
    """The answers to a batch: a JSON array, or an event stream as soon as one answer is one, or all are too much to
    hold."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.answers: list[bytes] = []
        self.held = 0
        self.parts = 0
        self.streaming = False

    def sender(self, child: Exchange) -> Send:
        """The ``send`` for one message of the batch."""
        events = False
        body: list[bytes] = []

        async def send(event: MutableMapping[str, Any]) -> None:
            nonlocal events
            if event["type"] == "http.response.start":
                events = any(k == b"content-type" and v.startswith(b"text/event-stream") for k, v in event["headers"])
                if events:
                    await self._stream()
            elif event["type"] == "http.response.body" and events:
                if event.get("body"):
                    self.parts += 1
                    await self._send_part(event["body"])
            elif event["type"] == "http.response.body":
                body.append(event.get("body", b""))
                if not event.get("more_body", False) and child.request_id is not None:
                    await self._add(child, b"".join(body))

        return send

    async def fail(self, child: Exchange) -> None:
        """Answer a message whose handling raised."""
        if child.request_id is not None and child.answer is None:
            await self._add(child, error_body(INTERNAL_ERROR, "the server failed before it answered", child.request_id))

    async def _add(self, child: Exchange, body: bytes) -> None:
        message = parse_server_message(body)
        if message is None or not message.is_answer:
            body = error_body(INTERNAL_ERROR, "the server's answer cannot be read", child.request_id)
        self.parts += 1
        if self.streaming:
            await self._send_part(encode(body))
            return
        self.answers.append(body)
        self.held += len(body)
        if self.held > _MAX_HELD:
            await self._stream()

    async def _stream(self) -> None:
        if self.streaming:
            return
        self.streaming = True
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        for body in self.answers:
            await self._send_part(encode(body))
        self.answers.clear()

    async def _send_part(self, body: bytes) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """Complete the HTTP answer."""
        if self.streaming:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})
        elif self.answers:
            body = b"[" + b",".join(self.answers) + b"]"
            await send_document(Document(body, 200, ((b"content-type", b"application/json"),)), self.send)
        else:
            await send_document(Document(b"", 202), self.send)
