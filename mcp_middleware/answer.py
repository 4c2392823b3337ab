"""A server's answer on its way out: its messages pass the members, and a batch's answers become one."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias

from .cutoff import Cutoff
from .errors import INTERNAL_ERROR, UnknownOutcomeError
from .exchange import Exchange, Send, in_thread
from .message import Request
from .owed import Owed
from .responses import NOSNIFF, error_body, media_type, send_document
from .revision import SESSION_HEADER
from .server_message import ServerMessage, parse_server_message
from .sse import Decoder, EventTooLargeError, Frame, encode
from .types import Document, Headers

__all__ = ["Answer", "BatchAnswer"]

_OnMessage: TypeAlias = Callable[[Exchange, ServerMessage], ServerMessage | Awaitable[ServerMessage | None] | None]

_MAX_HELD: Final = 4 * 1024 * 1024
"""Bytes of answers to a batch that are held for a JSON array."""
_SMALL: Final = 256 * 1024
"""Bytes of a message that is read at once. A larger one is in a thread, so that others have their turns meanwhile."""
_FEW_LINES: Final = 5_000
"""Lines of an event that is read at once."""
_SLICE: Final = 2 * 1024
"""Bytes of an event stream that are looked at between two looks at the clock."""
_TURN: Final = 0.0005
"""Seconds that one stream may take before others have their turn: forty at once, and each waits for all others."""
_MAX_TURN: Final = 64 * 1024
"""Bytes of a stream after which others have their turn in any case: what is there already is read without waiting."""
_OUTLIVES: Final = 3600.0
"""Seconds for which a call may go on whose client has left: as long as its place among the open ones is kept."""
_TOO_LARGE: Final = "the server's answer is too large"
_TOKEN_CHECK: Final = 20.0
"""Seconds between two looks at the token of an open stream: with the 30 for which an issuer's word on a token may be
kept, and the time to ask for it, a stream ends within a minute of a revocation."""


class Answer:
    """The server's answer on its way out.

    JSON is held until it is whole, because its length may change. An event stream passes event by event; whatever
    else a server answers passes untouched.
    """

    __slots__ = (
        "answered",
        "body",
        "cutoff",
        "decoder",
        "dropped",
        "end",
        "ended",
        "exchange",
        "is_owed",
        "is_resumable",
        "max_bytes",
        "on_response_message",
        "on_response_start",
        "owed",
        "send_on",
        "size",
        "start",
        "taken",
        "turn",
        "until",
    )

    def __init__(
        self,
        exchange: Exchange,
        send: Send,
        cutoff: Cutoff,
        *,
        on_response_start: Sequence[Callable[[Exchange, int, Headers], None]],
        on_response_message: Sequence[_OnMessage],
        max_bytes: int,
        owed: Owed,
    ) -> None:
        self.exchange = exchange
        self.send_on = send
        self.cutoff = cutoff
        self.on_response_start = on_response_start
        self.on_response_message = on_response_message
        self.max_bytes = max_bytes
        self.owed = owed
        self.is_resumable = False
        """Whether a client could ask for the rest of the stream, did it know an event of it."""
        self.is_owed = False
        """A client can, and the server has not answered on it yet."""
        self.end: asyncio.Event | None = None
        """Of an answer whose client has left."""
        self.until = 0.0
        """When the server is told that it has."""
        self.dropped = False
        self.start: MutableMapping[str, Any] | None = None
        self.body: list[bytes] = []
        self.size = 0
        self.taken = 0
        """Bytes of a stream since others had their turn."""
        self.decoder: Decoder | None = None
        self.turn: asyncio.Lock
        """Of those who send of one stream at once, as sse_starlette does for its pings: one whose event is still being
        read must not find another's in the middle of it."""
        self.answered = False
        """A stream has carried the answer: what it still carries is for nobody, and the server should have ended it
        (2026-07-28 and 2025-11-25, transports)."""
        self.ended = False

    async def send(self, event: MutableMapping[str, Any]) -> None:
        if self.ended:
            return
        if event["type"] == "http.response.body":
            if self.decoder is not None:
                async with self.turn:
                    if self.ended:  # meanwhile
                        return
                    try:
                        await self._send_events(event)
                    except asyncio.CancelledError:
                        self.decoder = Decoder(limit=self.max_bytes)  # an event whose rest never comes is none
                        raise
            elif self.start is not None:
                await self._hold(event)
            else:
                self._count(event)
                if not event.get("more_body", False):
                    self._set_ended()
                await self.send_on(event)
        elif event["type"] == "http.response.start":
            await self._begin(event)
        else:
            await self.send_on(event)

    async def outlive_client(self) -> None:
        """Go on without the client, which has left: what comes is seen by the members, and then dropped. Returns when
        the answer has ended, or the server is to be told."""
        if self.end is None:
            self.end = asyncio.Event()
            if self.exchange.late:
                self.end.set()
            self.until = asyncio.get_running_loop().time() + _OUTLIVES
            self.send_on = _drop
            self.exchange.tell = self.end.set
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self.until):
                await self.end.wait()

    def _answered_elsewhere(self) -> None:
        """Nobody waits for this stream any more, unless its client does."""
        self.is_resumable = self.is_owed = False
        if self.end is not None:
            self.end.set()

    def _end_owing(self, frame: Frame | None) -> None:
        if self.is_owed and frame is not None:
            self.owed.leave(self.exchange, frame.id)
        self.is_resumable = self.is_owed = False

    def _set_ended(self) -> None:
        self.ended = True
        if self.end is not None:
            self.end.set()

    def _count(self, event: MutableMapping[str, Any]) -> None:
        self.size += len(event.get("body", b""))
        self.exchange.response_bytes = self.size

    async def _begin(self, event: MutableMapping[str, Any]) -> None:
        exchange = self.exchange
        exchange.status = event["status"]
        headers: Headers = list(event.get("headers", ()))
        for on_response_start in self.on_response_start:
            on_response_start(exchange, event["status"], headers)
        for name, _ in headers:
            if name == NOSNIFF[0]:
                break
        else:
            headers.append(NOSNIFF)  # our own answers have it, and must not be told from the server's by it
        event["headers"] = headers
        media = media_type(headers)
        if media == b"text/event-stream":
            event["headers"] = [line for line in headers if line[0] != b"content-length"]
            self.decoder = Decoder(limit=self.max_bytes)
            self.turn = asyncio.Lock()
            self._end_with_token()
            is_call = exchange.era == "legacy" and isinstance(exchange.message, Request)
            self.is_resumable = is_call and event["status"] < 300 and SESSION_HEADER in exchange.headers
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
        too_large = self.size > self.max_bytes
        if event.get("more_body", False) and not too_large:
            return
        start = self.start or {}
        body = b"".join(self.body)
        message: ServerMessage | None = None
        if not too_large:
            small = len(body) <= _SMALL
            message = parse_server_message(body) if small else await in_thread(_read_large, body, self._is_call())
        passed = await self._observe(message) if message is not None else None
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
        self._set_ended()
        await self.send_on(start)
        await self.send_on({"type": "http.response.body", "body": body, "more_body": False})

    async def _send_events(self, event: MutableMapping[str, Any]) -> None:
        chunk: bytes = event.get("body", b"")
        more = event.get("more_body", False)
        self._count(event)
        out: list[bytes] = []
        began = time.monotonic() if len(chunk) > _SLICE else 0.0
        for start in range(0, len(chunk), _SLICE):
            # a server of many small events must leave others their turn
            if self.taken >= _MAX_TURN or (start and time.monotonic() - began > _TURN):
                if out:
                    await self.send_on({"type": "http.response.body", "body": b"".join(out), "more_body": True})
                    out.clear()
                await asyncio.sleep(0)
                self.taken = 0
                began = time.monotonic()
            self.taken += _SLICE
            if self.answered:
                self.exchange.ended = True
                more = False
                break
            try:
                await self._take(chunk if len(chunk) <= _SLICE else chunk[start : start + _SLICE], out)
            except EventTooLargeError:
                if self.exchange.answer is None:
                    self.exchange.failed = UnknownOutcomeError(_TOO_LARGE)  # the words below are ours, as in cut_off
                await self.end_stream(INTERNAL_ERROR, _TOO_LARGE, b"".join(out))
                return
            if self.ended:  # by who ends what the server does not, and has said the last word
                return
            if self.exchange.ended:  # by a member, whose last word was among these events
                more = False
                break
        if not more:
            self._set_ended()
            if self.dropped and self.exchange.answer is None and self.exchange.request_id is not None:
                out.append(encode(self._error("the server's answer cannot be read")))
        if out or not more:
            await self.send_on({"type": "http.response.body", "body": b"".join(out), "more_body": more})

    async def _take(self, chunk: bytes, out: list[bytes]) -> None:
        """Put the events that ``chunk`` completes into ``out``, as they are to be sent on."""
        decoder = self.decoder or Decoder(limit=0)
        for frame in decoder.feed(chunk, unread=self._is_unread):
            if self.answered:
                self.exchange.ended = True
                break
            if self.is_resumable and not self.is_owed and frame.id:
                self.is_owed = True
                self.owed.begin(self.exchange, self._answered_elsewhere)
            if frame.unread:
                out.append(frame.raw)
                continue
            is_large = len(frame.raw) > _FEW_LINES and (len(frame.raw) > _SMALL or frame.lines > _FEW_LINES)
            if is_large:
                message, unclear = await in_thread(_read_event, frame, self._is_call())
            else:
                message, unclear = _read_event(frame)
            if message is None:
                if unclear and self.exchange.strict:
                    self.dropped = True
                else:
                    out.append(frame.raw)
                continue
            passed = await self._observe(message, frame)
            if passed is message:
                out.append(frame.raw)
            elif passed is not None:
                data = bytes(passed.raw)
                changed = await in_thread(frame.with_data, data) if is_large else frame.with_data(data)
                out.append(changed.raw)

    def _is_call(self) -> bool:
        asked = self.exchange.message
        return asked.method == "tools/call" if isinstance(asked, Request) else len(self.owed) > 0

    def _is_unread(self, data: bytes) -> bool:
        """Whether no message is in these events, nor anything that must not pass for being none."""
        return b"data" not in data or (b"{" not in data and not self.exchange.strict)

    async def _observe(self, message: ServerMessage, frame: Frame | None = None) -> ServerMessage | None:
        began = time.monotonic()
        passed: ServerMessage | None = message
        for on_response_message in self.on_response_message:
            if passed is None:
                break
            said = on_response_message(self.exchange, passed)
            if said is not passed:
                passed = said if said is None or isinstance(said, ServerMessage) else await said
        self.exchange.overhead += time.monotonic() - began
        if passed is not None and passed.is_answer and passed.id == self.exchange.request_id:
            self.exchange.answer = passed
            self.answered = passed.id is not None
            if message.is_answer:  # the server's own; a member may have said in its place that the stream was cut
                self._end_owing(frame)
        elif passed is not None and passed.is_answer and self.owed and frame and self.exchange.http_method == "GET":
            await self.owed.answer(self.exchange, passed, frame.id)
        return passed

    async def end_stream(self, code: int, text: str, rest: bytes = b"") -> bool:
        """End an event stream that the server did not end, with ``rest`` and an error for the request it leaves open.
        Whether there was one to end, or has been."""
        if self.decoder is None or self.ended:
            return self.decoder is not None
        self._set_ended()
        self.exchange.ended = True
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
        self._set_ended()
        self.exchange.status = 503
        document = Document(self._error(text), 503, ((b"content-type", b"application/json"),))
        await send_document(document, self.send_on)

    def _error(self, text: str, code: int = INTERNAL_ERROR) -> bytes:
        data = error_body(code, text, self.exchange.request_id)
        self.exchange.answer = parse_server_message(data)
        return data


async def _drop(event: MutableMapping[str, Any]) -> None:
    """Send nobody anything."""


def _read_event(frame: Frame, is_call: bool = False) -> tuple[ServerMessage | None, bool]:
    """The message in an event; or none, and whether somebody might take it for one all the same."""
    data = frame.data
    if not data:
        return None, False
    message = _read_large(data, is_call)
    return message, message is None and (frame.event == b"message" or data.lstrip()[:1] in (b"[", b"{"))


def _read_large(data: bytes, is_call: bool) -> ServerMessage | None:
    """The message; with what members will read of it, where that is worth a thread."""
    message = parse_server_message(data)
    if message is not None and is_call:
        _ = message.tool_result
    return message


class BatchAnswer:
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
            NOSNIFF,
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
