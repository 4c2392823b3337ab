"""The HTTP/1.1 client of the forwarding path: what a proxy needs of one, and nothing else.

A request goes out as one write of bytes that are ready; an answer comes in as its status, its headers as bytes, and
chunks as they arrive. There are no cookies, redirects, retries or decoding, and no conversion of headers to text and
back. With aiohttp's client, which has all of them, the same bare forwarder took 202 µs of CPU time for a small call; it
takes 87 with this one.

The parser is llhttp, which the server side uses as well. What can go wrong is told apart by one question: may the
server have acted?

- ``UpstreamError``
    - ``NotSentError``: no connection could be made; nothing was sent.
    - ``NoAnswerError``: sent, perhaps; the connection ended before an answer began, or what came was no HTTP.
    - ``SlowAnswerError``: sent; no answer began in time.
    - ``BrokenAnswerError``: an answer began and was not whole, or fell silent.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, cast
from urllib.parse import quote, urlsplit

import httptools

from mcp_middleware.errors import UnknownOutcomeError
from mcp_middleware.types import Headers

__all__ = [
    "Answer",
    "BrokenAnswerError",
    "Endpoint",
    "NoAnswerError",
    "NotSentError",
    "SlowAnswerError",
    "UpstreamClient",
    "UpstreamConnection",
    "UpstreamError",
]

CONNECT_TIMEOUT: Final = 5.0
"""Seconds for a connection to be made, TLS included."""
KEEP_ALIVE: Final = 4.0
"""Seconds after which an unused connection is closed: below the 5 s at which uvicorn and Node.js close it, so that a
request seldom meets a connection that is closing."""
MAX_IDLE: Final = 256
"""Unused connections to keep for one instance."""
TICK: Final = 0.25
"""Seconds between two looks at what takes too long: one timer for all requests instead of one for each."""
MAX_HEAD_BYTES: Final = 64 * 1024
"""Bytes of an answer's headers."""
_HIGH_WATER: Final = 128 * 1024
"""Bytes of an answer that may wait to be read; then the connection is not read."""
_MAX_INTERIM: Final = 8
"""Answers with a status of 1xx before the final one."""
_CREDIT: Final = 9
"""Bytes of framing that a byte of content pays for: a chunk of one byte comes in six, and some servers extend it."""

_OWN_FAULTS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""What keeps this machine from opening a connection to anybody: no instance is to blame."""


_URL_SAFE: Final = "/?%:@!$&'()*+,;=~-._"


class UpstreamError(Exception):
    """An instance gave no whole answer."""


class NotSentError(UpstreamError):
    """No connection could be made. ``gone``: nobody takes connections there; ``ours``: it is this machine's fault."""

    def __init__(self, text: str, *, gone: bool = False, ours: bool = False) -> None:
        super().__init__(text)
        self.gone = gone
        self.ours = ours


class NoAnswerError(UpstreamError, UnknownOutcomeError):
    """The request may have been sent, and no answer began."""


class SlowAnswerError(UpstreamError, UnknownOutcomeError):
    """The request was sent, and no answer began in time."""


class BrokenAnswerError(UpstreamError, UnknownOutcomeError):
    """The answer ended before it was whole, or nothing came for too long."""


class _RefusedError(Exception):
    """Thrown through the parser: why this is no answer."""


class Endpoint:
    """Where an instance is: the parts of its URL that a request needs, as bytes that are ready."""

    __slots__ = ("host", "path", "port", "start", "tls")

    def __init__(self, url: str, extra: Headers) -> None:
        parts = urlsplit(url)
        self.tls = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.tls else 80)
        self.path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_URL_SAFE)
        if not self.host.isascii():
            self.host = self.host.encode("idna").decode()
        authority = f"[{self.host}]" if ":" in self.host else self.host
        if parts.port is not None:
            authority += f":{parts.port}"
        lines = [b"host: " + authority.encode()]
        lines += [name + b": " + value for name, value in extra]
        self.start = b" " + self.path.encode("ascii") + b" HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n"


class Answer:
    """What comes back for one request, as it comes."""

    __slots__ = (
        "_chunks",
        "_connection",
        "_deadline",
        "_error",
        "_idle",
        "_size",
        "_waiter",
        "complete",
        "headers",
        "on_slow",
        "started",
        "status",
    )

    def __init__(self, connection: "UpstreamConnection", deadline: float, idle: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._idle = idle
        self._chunks: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self.status = 0
        self.headers: Headers = []
        self.started = False
        """Whether status and headers are here."""
        self.complete = False
        self.on_slow: Callable[[], None] | None = None
        """Called once, within ``TICK`` and twice ``TICK``, if the answer is not complete by then."""

    async def head(self) -> None:
        """Wait for status and headers. Raises NoAnswerError, SlowAnswerError, or what ``interrupt`` was given."""
        while not self.started:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """The next bytes of the body; empty at its end. Raises BrokenAnswerError, or what ``interrupt`` was given."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.complete:
                return b""
            await self._wait()
        chunks = self._chunks
        self._chunks = []
        if self._size > _HIGH_WATER:
            self._connection.resume()
        self._size = 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _wait(self) -> None:
        self._waiter = self._connection.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def interrupt(self, error: Exception) -> None:
        """Let whoever reads see ``error`` now, and end the connection."""
        if not self.complete and self._error is None:
            self._chunks.clear()
            self._fail(error)
            self._connection.abort()

    def end_within(self, seconds: float) -> None:
        """Let the answer take at most ``seconds`` from now, whatever arrives."""
        self._deadline = min(self._deadline, self._connection.loop.time() + seconds)
        self._idle = 0.0

    def close(self) -> None:
        """Be done with it. A connection on which something is still to come is ended, so that the server notices."""
        self._connection.release(self)
        self._error = None  # its traceback holds us

    # What the connection tells.

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._wake()

    def _arrived(self, now: float) -> None:
        if self._idle:
            self._deadline = now + self._idle
        self._wake()

    def _check(self, now: float) -> None:
        if self._idle and self._connection.paused:
            self._deadline = now + self._idle  # it is the caller who does not read; the server may have much to say
        elif now >= self._deadline:
            if self.started:
                self.interrupt(BrokenAnswerError("the server fell silent"))
            else:
                self.interrupt(SlowAnswerError("the server did not begin to answer in time"))
        on_slow, self.on_slow = self.on_slow, None
        if on_slow is not None:
            on_slow()


class UpstreamConnection(asyncio.Protocol):
    """One connection to an instance, with one request at a time."""

    __slots__ = (
        "_answer",
        "_client",
        "_framing",
        "_head_bytes",
        "_interim",
        "_kept",
        "_parser",
        "_transport",
        "endpoint",
        "idle_since",
        "loop",
        "lost",
        "paused",
        "ticks",
    )

    def __init__(self, client: "UpstreamClient", endpoint: Endpoint, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self.endpoint = endpoint
        self.loop = loop
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._head_bytes = 0
        self._framing = 0
        """Bytes after the head that were no content: chunk sizes, their extensions, trailers."""
        self._interim = 0
        self._kept = False
        self.paused = False
        self.idle_since = 0.0
        self.lost = False
        self.ticks = 0

    def request(self, head: bytes, body: bytes, *, timeout: float, idle: float) -> Answer:
        """Send a request. ``timeout`` is seconds until its answer must begin, ``idle`` between two of its bytes."""
        answer = Answer(self, self.loop.time() + timeout, idle)
        self._answer = answer
        self._head_bytes = self._framing = self._interim = self.ticks = 0
        self._client._busy.add(self)
        if self._transport is not None and not self.lost:
            self._transport.write(head + body if len(body) < _HIGH_WATER else head)
            if len(body) >= _HIGH_WATER:
                self._transport.write(body)
        else:
            answer._fail(NoAnswerError("the connection was lost"))
        return answer

    def release(self, answer: Answer) -> None:
        """``answer`` is done with."""
        if self._answer is not answer:
            return  # the connection is somebody else's already
        self._answer = None
        self._client._busy.discard(self)
        answer.on_slow = None
        if answer.complete and self._kept and self._is_sent():
            if self.paused:
                self.resume()
            self._client._keep(self)
        else:
            self.abort()

    def _is_sent(self) -> bool:
        """Whether nothing of the request waits to be sent: an early answer may leave some, which holds up the next."""
        return self._transport is not None and not self.lost and not self._transport.get_write_buffer_size()

    def tick(self, now: float) -> None:
        """Look whether the answer takes too long."""
        self.ticks += 1
        if self._answer is not None and self.ticks > 1:
            self._answer._check(now)

    def resume(self) -> None:
        """Read again."""
        if self.paused and self._transport is not None and not self.lost:
            self.paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None and not self.lost:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:  # nobody asked
            self._client._forget(self)
            self.abort()
            return
        if answer.started:
            self._framing += len(data)
        else:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            said = error.__context__ if isinstance(error.__context__, _RefusedError) else error
            self._refuse(answer, f"what the server sent is no HTTP answer: {said}")
            return
        if not answer.started:
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(answer, "the headers of the server's answer are too large")
            return  # a head that comes byte by byte, or an interim answer, is no answer yet: the time runs on
        self._framing = max(0, self._framing)
        if self._framing > MAX_HEAD_BYTES and not answer.complete:
            self._refuse(answer, "the server's answer has more framing than content")
            return
        answer._arrived(self.loop.time())
        if answer._size > _HIGH_WATER and not self.paused and not answer.complete and self._transport is not None:
            self.paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        if self._answer is None:  # nothing is sent on it between now and ``connection_lost``
            self._client._forget(self)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._transport = None
        self._parser = None  # it holds us: a connection is to go without the garbage collector
        answer = self._answer
        if answer is None:
            self._client._forget(self)
        elif not answer.complete:
            if not answer.started:
                answer._fail(NoAnswerError("the server closed the connection without an answer"))
            elif error is None and answer._error is None and _ends_with_connection(answer.headers):
                answer.complete = True
                answer._wake()
            else:
                answer._fail(BrokenAnswerError("the server closed the connection in the middle of its answer"))

    def _refuse(self, answer: Answer, text: str) -> None:
        if answer.complete:
            answer._wake()  # the answer is good; what came after it is nobody's
        else:
            answer._fail(BrokenAnswerError(text) if answer.started else NoAnswerError(text))
        self._kept = False
        self.abort()

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        answer = self._answer
        if answer is not None and not answer.started:  # a trailer is no header (RFC 9110 section 6.5.1)
            answer.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        answer = self._answer
        if answer is None or answer.complete:
            raise _RefusedError("an answer to no request")
        status = self._parser.get_status_code()
        if not 100 <= status < 600 or status == 101:  # RFC 9110 section 15
            raise _RefusedError(f"its status is {status:03}")
        if status < 200:
            self._interim += 1
            answer.headers.clear()
            if self._interim > _MAX_INTERIM:
                raise _RefusedError("too many interim answers")
            return
        if self._head_bytes > MAX_HEAD_BYTES and sum(len(n) + len(v) for n, v in answer.headers) > MAX_HEAD_BYTES:
            raise _RefusedError("its headers are too large")
        if any(name == b"transfer-encoding" and value.lower() != b"chunked" for name, value in answer.headers):
            raise _RefusedError("its transfer coding is not chunked, and nobody asked for another")
        answer.status = status
        answer.started = True

    def on_body(self, data: bytes) -> None:
        self._framing -= _CREDIT * len(data)
        answer = self._answer
        if answer is not None and answer._error is None:
            answer._chunks.append(data)
            answer._size += len(data)

    def on_message_complete(self) -> None:
        answer = self._answer
        if answer is not None and answer.started:
            answer.complete = True
            self._kept = self._parser.should_keep_alive()  # only now: the parser is ready for the next answer after it


def _ends_with_connection(headers: Headers) -> bool:
    """Whether the end of the connection is how the body's end is told (RFC 9112 section 6.3, rule 8)."""
    return not any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)


class UpstreamClient:
    """The connections to all instances of all servers, kept open and used again."""

    def __init__(self) -> None:
        self._idle: dict[Endpoint, list[UpstreamConnection]] = {}
        self._busy: set[UpstreamConnection] = set()
        self._tls: ssl.SSLContext | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begin to look after the connections."""
        if self._timer is None:
            self._loop = asyncio.get_running_loop()
            self._timer = self._loop.call_later(TICK, self._tick)

    async def aclose(self) -> None:
        """End every connection; whoever waits for an answer sees it break off."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in [*self._busy, *(one for idle in self._idle.values() for one in idle)]:
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)  # connection_lost is called by the loop

    async def connect(self, endpoint: Endpoint, *, fresh: bool = False) -> UpstreamConnection:
        """A connection to ``endpoint``, one that is unused if there is one and ``fresh`` does not forbid it.

        Raises NotSentError.
        """
        if self._loop is None:
            await self.start()
        loop = cast(asyncio.AbstractEventLoop, self._loop)
        idle = None if fresh else self._idle.get(endpoint)
        oldest = loop.time() - KEEP_ALIVE
        while idle:
            connection = idle.pop()
            if connection.lost:
                continue
            if connection.idle_since > oldest:
                return connection
            connection.abort()  # the tick is late where the loop is busy, and a server closes in time
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self, endpoint, loop),
                    endpoint.host,
                    endpoint.port,
                    ssl=self._context() if endpoint.tls else None,
                )
        except TimeoutError:
            raise NotSentError(f"no connection within {CONNECT_TIMEOUT:g} s") from None
        except ssl.SSLError as error:
            raise NotSentError(f"TLS failed: {error.reason or error}") from None
        except socket.gaierror as error:
            raise NotSentError(f"the name does not resolve: {error.strerror}") from None
        except UnicodeError as error:
            raise NotSentError(f"the name cannot be looked up: {error}") from None
        except OSError as error:
            ours = error.errno in _OWN_FAULTS
            raise NotSentError(f"no connection: {error.strerror or error}", gone=not ours, ours=ours) from None
        if connection.lost:  # accepted and closed at once
            raise NotSentError("the connection was closed before anything was sent")
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def _keep(self, connection: UpstreamConnection) -> None:
        idle = self._idle.setdefault(connection.endpoint, [])
        if self._timer is None or len(idle) >= MAX_IDLE:
            connection.abort()
            return
        connection.idle_since = cast(asyncio.AbstractEventLoop, self._loop).time()
        idle.append(connection)

    def _forget(self, connection: UpstreamConnection) -> None:
        idle = self._idle.get(connection.endpoint)
        if idle is not None and connection in idle:
            idle.remove(connection)

    def _tick(self) -> None:
        loop = cast(asyncio.AbstractEventLoop, self._loop)
        now = loop.time()
        self._timer = loop.call_later(TICK, self._tick)
        for connection in list(self._busy):
            connection.tick(now)
        for endpoint, idle in list(self._idle.items()):
            while idle and idle[0].idle_since + KEEP_ALIVE <= now:
                idle.pop(0).abort()
            if not idle:
                del self._idle[endpoint]
