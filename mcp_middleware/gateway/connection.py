"""One client's HTTP/1.1 connection: uvicorn's, with bounds on what a hostile client may take.

uvicorn parses (httptools) and writes; what it leaves open is closed here:

1. A head (request line and headers) arrives whole within ``HEAD_TIMEOUT``, or is answered 408.
2. A head has at most ``HeadBounds``. What is larger is handed to the application cut off, which refuses it (431) and
   records that as every refusal; a longer request target is answered 414.
3. What frames a body in two ways, or in a way this parser does not undo, is refused; so are trailers as headers.
4. At most ``MAX_PIPELINED`` requests wait on one connection, and at most ``most`` connections are open; more get 503.
5. An answer that leaves a request unread ends the connection, and the client gets to read that answer first: closing a
   socket with unread data resets it, and the reset overtakes the answer (RFC 9112 section 9.6).
6. A client that does not read what it asked for is dropped after ``STALL_TIMEOUT``.

How long a body may take and how large it may be is the members' affair (``Bounds``).
"""

import asyncio
import logging
import math
import re
import socket
import ssl
from typing import Any, Final, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from mcp_middleware.errors import INVALID_REQUEST, UNAVAILABLE
from mcp_middleware.member import ASGIApp
from mcp_middleware.responses import headers_of, rejection_answer
from mcp_middleware.types import Rejection

__all__ = ["BACKLOG", "Connection", "Connections", "accept"]

logger = logging.getLogger("mcp_middleware.gateway")

HEAD_TIMEOUT: Final = 9.0
"""Seconds until a head is whole. ``Connections.sweep`` looks once a second, so this is within 10 s."""
IDLE_TIMEOUT: Final = 75.0
"""Seconds between two requests; longer than clients and proxies keep idle connections, so that they close first."""
STALL_TIMEOUT: Final = 60.0
"""Seconds in which a client reads nothing of an answer that waits for it."""
REST_TIMEOUT: Final = 5.0
"""Seconds for the rest of a small body that was not wanted, after its answer."""
LINGER: Final = 2.0
"""Seconds in which what still arrives is thrown away, so that the client can read the answer that ends it all."""
MAX_TARGET: Final = 8 * 1024
"""Bytes of a request target (RFC 9112 section 3 recommends to take at least 8,000)."""
MAX_HEADER_LINES: Final = 256
"""Headers of one request."""
CREDIT: Final = 9
"""Bytes of framing that a byte of content pays for: a chunk of one byte comes in six, and some clients extend it."""
MAX_PIPELINED: Final = 8
"""Requests that wait for the one before them to be answered."""

BACKLOG: Final = 2048
"""Connections that the kernel holds before we accept them."""
TLS_HANDSHAKE: Final = 10.0
"""Seconds."""
TLS_GOODBYE: Final = 2.0
"""Seconds in which a client may say that it closes as well."""

_IDLE, _HEAD, _BODY = range(3)
_METHOD: Final = re.compile(rb"[A-Za-z]{1,32} ")
_CLIENT_HELLO: Final = b"\x16\x03"
"""How a client begins that takes this for a port of https."""


async def accept(
    app: ASGIApp, bound: socket.socket, connections: "Connections", *, context: ssl.SSLContext | None = None
) -> asyncio.AbstractServer:
    """Serve ``app`` on a bound socket, over TLS with ``context``. The lifespan is the caller's affair, and so is to
    ``sweep`` the connections once a second."""
    config = uvicorn.Config(
        cast(Any, app),
        http=Connection,
        interface="asgi3",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    config.load()
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: Connection(config, connections, {}, loop),
        sock=bound,
        backlog=BACKLOG,
        ssl=context,
        ssl_handshake_timeout=TLS_HANDSHAKE if context is not None else None,
        ssl_shutdown_timeout=TLS_GOODBYE if context is not None else None,
    )


class Connections(ServerState):
    """The connections of one process, and what each of them may take."""

    def __init__(self, *, most: int, max_header_bytes: int) -> None:
        super().__init__()
        self.most = most
        """Connections at once."""
        self.max_header_bytes = max_header_bytes
        """Bytes of headers that the application takes; a head is read up to twice of that."""
        self.ending = False
        """Each answer ends its connection, so that clients go elsewhere between two requests and not during one."""
        self.ended = False
        """Nobody listens any more; what was accepted in that moment is refused."""
        self.refused = 0
        """Answers since the last ``sweep`` to what never became a request to the application."""
        self.last_refused = ""

    def sweep(self, now: float) -> None:
        """End every connection whose time is over; ``now`` as the event loop has it. To be called once a second: one
        look at all of them costs less than a timer for each request."""
        for connection in list(cast("set[Connection]", self.connections)):
            if connection.deadline < now or connection.stalled < now:
                connection.expire(now)
        if self.refused:  # in one line, however many: who floods us does not get to flood the log
            logger.info(
                "%d times something was refused before it was a request; last %s", self.refused, self.last_refused
            )
            self.refused = 0


class _RefusedError(Exception):
    """Thrown through the parser: the request that is being read is answered with this."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Transport:
    """The transport as uvicorn sees it: closing lets the client read what was written first."""

    __slots__ = ("_connection", "_raw", "get_extra_info", "write")

    def __init__(self, raw: asyncio.Transport, connection: "Connection") -> None:
        self._raw = raw
        self._connection: Connection | None = connection
        self.write = raw.write
        self.get_extra_info = raw.get_extra_info

    def is_closing(self) -> bool:
        return self._connection is None or self._connection.lingers or self._raw.is_closing()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def let_go(self) -> None:
        """The connection has ended. Held on to, it and its last request would wait for the garbage collector, which
        comes late to what has lived long."""
        self._connection = None


class Connection(HttpToolsProtocol):
    """The protocol of one accepted socket."""

    server_state: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.raw = transport
        self.phase = _IDLE
        self.deaf = False
        """Nothing more is read from this client."""
        self.lingers = False
        self.running: RequestResponseCycle | None = None
        """The request that is being answered; uvicorn's ``cycle`` is the one that came last."""
        self.head_bytes = 0
        self.framing_bytes = 0
        self.stalled = math.inf
        self.deadline = self.loop.time() + HEAD_TIMEOUT
        full = len(self.connections) >= self.server_state.most
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, _Transport(transport, self))
        if self.server_state.ended:
            self._answer(503, "This gateway has stopped", UNAVAILABLE)
        elif full:
            self._answer(503, "Too many connections are open; come back in a moment", UNAVAILABLE)

    def connection_lost(self, exc: Exception | None) -> None:
        self.deadline = self.stalled = math.inf
        running, self.running = self.running, None
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)
        self.raw.close()
        cast(_Transport, self.transport).let_go()

    # Reading

    def data_received(self, data: bytes) -> None:
        if self.deaf:
            return
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._refuse(data, error)
            return
        if self.phase == _HEAD:
            self._bound_head(len(data))
        elif self.phase == _BODY:
            self._bound_framing(len(data))

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # An upgrade that we do not follow (h2c, as Java's client offers it) is an ordinary request, and what
                # comes behind it is its body and then another (RFC 9110 section 7.8).
                data = data[upgrade.args[0] :]
                if self.phase == _BODY:
                    self.parser = _parser_of_body(self)

    def _bound_head(self, size: int) -> None:
        if not self.head_bytes:
            self.deadline = min(self.deadline, self.loop.time() + HEAD_TIMEOUT)
        self.head_bytes += size
        if len(self.url) > MAX_TARGET:
            self._answer_in_turn(414, f"The request target is longer than {MAX_TARGET} bytes")
        elif self.head_bytes > 2 * self.server_state.max_header_bytes + MAX_TARGET:
            if self.url:
                self._hand_on_cut_off()
            else:
                self._answer_in_turn(400, "The request line is too long")

    def _bound_framing(self, size: int) -> None:
        """Chunk sizes, extensions and trailers are read without the application, which could not bound them."""
        self.framing_bytes += size
        if self.framing_bytes > 2 * self.server_state.max_header_bytes:
            self._answer_in_turn(400, "The body has more framing than content; send larger chunks")

    def on_message_begin(self) -> None:
        self.phase = _HEAD
        self.head_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.phase != _HEAD:
            return  # a trailer (RFC 9110 section 6.5.1): what comes after a body must not pass for a header
        name = name.lower()
        if name in _CHECKS:
            _CHECKS[name](self, value)
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise _RefusedError(501, "CONNECT is not supported; this is no proxy")
        if self.parser.get_http_version() not in ("1.1", "1.0"):
            raise _RefusedError(505, "Use HTTP/1.1")
        if len(self.url) > MAX_TARGET:
            raise _RefusedError(414, f"The request target is longer than {MAX_TARGET} bytes")
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _RefusedError(503, "Too many requests wait on this connection")
        if not self.url.startswith(b"/") and self.url != b"*":
            self._take_host_from_target()
        if len(self.headers) > MAX_HEADER_LINES:
            self._pad_headers()
        self.phase = _BODY
        self.framing_bytes = 0
        self.deadline = math.inf
        super().on_headers_complete()
        if self.server_state.ending:
            self.cycle.keep_alive = False
        if self.running is None:
            self.running = self.cycle

    def on_body(self, body: bytes) -> None:
        self.framing_bytes -= CREDIT * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and self._has_body():
            return  # httptools does not look for it; _feed does
        self.phase = _IDLE
        super().on_message_complete()

    def check_expect(self, value: bytes) -> None:
        """RFC 9110 section 10.1.1: there is one expectation."""
        if value.lower() != b"100-continue":
            raise _RefusedError(417, "The only expectation known here is 100-continue")
        self.expect_100_continue = True

    def check_transfer_encoding(self, value: bytes) -> None:
        """RFC 9112 section 6.1: a body in a coding that nobody here undoes must not be read as if it were plain."""
        if value.strip(b" \t").lower() != b"chunked":
            raise _RefusedError(501, "The only transfer coding known here is chunked")

    def check_upgrade(self, value: bytes) -> None:
        """MCP has no websocket transport, and a client that asks for one would wait."""
        if b"websocket" in value.lower():
            raise _RefusedError(501, "WebSocket is not supported; MCP is spoken by POST and GET here")

    def _has_body(self) -> bool:
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
            for name, value in self.headers
        )

    def _take_host_from_target(self) -> None:
        """RFC 9112 section 3.2.2: the host in a target in absolute form counts, the header does not."""
        try:
            target = httptools.parse_url(self.url)
        except httptools.HttpParserInvalidURLError:
            raise _RefusedError(400, "The request target is not a valid path") from None
        if target.host is None or target.path is None:
            raise _RefusedError(400, "The request target is not a valid path")
        host = b"[%b]" % target.host if b":" in target.host else target.host
        authority = host if target.port is None else b"%b:%d" % (host, target.port)
        self.headers[:] = [line for line in self.headers if line[0] != b"host"]
        self.headers.append((b"host", authority))

    def _pad_headers(self) -> None:
        """Make the headers as large as they would have been, for whoever bounds and records them."""
        self.headers.append((b"x-cut-off", bytes(self.server_state.max_header_bytes)))

    def _hand_on_cut_off(self) -> None:
        """Let the application refuse the head that has come so far."""
        self._pad_headers()
        try:
            self.on_headers_complete()
        except (_RefusedError, httptools.HttpParserError):
            self._answer_in_turn(431, "The headers are too large")
            return
        self.deaf = True
        self.cycle.keep_alive = self.cycle.more_body = False

    # Answering

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        cycle, self.running = self.running, None
        if self.transport.is_closing():
            return
        if self.phase == _BODY and self.expect_100_continue and cycle is self.cycle:
            self.close()  # whether the body comes now is anybody's guess (RFC 9110 section 10.1.1)
            return
        self.flow.resume_reading()
        if self.pipeline:
            self.running, app = self.pipeline.pop()
            self._start_asgi_task(self.running, app)
            return
        self.deadline = self.loop.time() + _PATIENCE[self.phase]

    def pause_writing(self) -> None:
        self.stalled = self.loop.time() + STALL_TIMEOUT
        super().pause_writing()

    def resume_writing(self) -> None:
        self.stalled = math.inf
        super().resume_writing()

    def shutdown(self) -> None:
        """End with the answer that is under way, or at once where there is none."""
        if self.running is None:
            self.raw.close()
        else:
            self.cycle.keep_alive = False

    def expire(self, now: float) -> None:
        """A time is over; which one, follows from what this connection waits for."""
        if self.lingers or self.stalled < now:
            self.raw.abort()
        elif self.running is not None:
            self.deadline = math.inf  # what was begun behind it is judged when it has been answered
        elif self.phase == _HEAD:
            self._answer(408, "The headers did not arrive within 10 s")
        else:
            self.close()

    def close(self) -> None:
        """Close after what was written; while a client may still be sending, not before it could read that."""
        if self.lingers or self.raw.is_closing():
            return
        self.deaf = True
        if self.phase == _IDLE:
            self.raw.close()
            return
        self.lingers = True
        self.stalled = math.inf
        self.deadline = self.loop.time() + LINGER
        self.flow.resume_reading()
        if self.raw.can_write_eof():
            self.raw.write_eof()

    def _refuse(self, data: bytes, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if isinstance(cause, _RefusedError):
            self._answer_in_turn(cause.status, str(cause))
        elif isinstance(error, httptools.HttpParserInvalidMethodError) and _METHOD.match(data):
            self._answer_in_turn(501, "This method is not known here; use POST, GET or DELETE")
        elif self.phase != _BODY and data.startswith(_CLIENT_HELLO):
            self._answer_in_turn(400, "This port speaks http, not https")
        else:
            self._answer_in_turn(400, f"This is not a valid HTTP/1.1 request: {error}")

    def _answer_in_turn(self, status: int, text: str) -> None:
        """Refuse what is being read, and read no more; what was read before it is still answered."""
        self.deaf = True
        if self.phase == _BODY:
            self._refuse_body(status, text)
        elif self.running is not None:
            self.cycle.keep_alive = False
        else:
            self._answer(status, text)

    def _refuse_body(self, status: int, text: str) -> None:
        cycle = self.cycle
        if cycle.response_started:
            self.close()
        elif cycle is self.running:
            self.running = None
            cycle.disconnected = True
            cycle.message_event.set()
            self._answer(status, text)
        else:
            self.pipeline.popleft()
            (self.pipeline[0][0] if self.pipeline else cast(RequestResponseCycle, self.running)).keep_alive = False

    def _answer(self, status: int, text: str, code: int = INVALID_REQUEST) -> None:
        """Answer what never became a request to the application, and end the connection."""
        self.server_state.refused += 1
        self.server_state.last_refused = f"{self.client[0] if self.client else 'a client'}, {status}: {text}"
        retry = ((b"retry-after", b"1"),) if status == 503 else ()
        document = rejection_answer(Rejection(status, code, text, "http", headers=retry), None, close=True)
        lines = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers_of(document)):
            lines += (name, b": ", value, b"\r\n")
        self.raw.write(b"".join((*lines, b"\r\n", document.body)))
        self.phase = _HEAD  # not between two requests: it may still be sending, and gets to read this
        self.close()


class _AfterOffer:
    """Takes a parser's callbacks for a connection, but for those of the first head."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._ready = False
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete

    def on_message_begin(self) -> None:
        if self._ready:
            self._connection.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._ready:
            self._connection.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._ready:
            self._connection.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._ready:
            self._connection.on_headers_complete()
        self._ready = True


def _parser_of_body(connection: Connection) -> httptools.HttpRequestParser:
    """A parser that stands at the beginning of the body of the connection's request, and has not seen its offer to
    upgrade: with that, httptools takes the body for another protocol's."""
    parser = httptools.HttpRequestParser(_AfterOffer(connection))
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    framing = [line for line in connection.headers if line[0] in (b"content-length", b"transfer-encoding")]
    lines = [b"%b: %b\r\n" % line for line in framing]
    parser.feed_data(b"".join((b"POST / HTTP/1.1\r\n", *lines, b"\r\n")))
    return parser


_PATIENCE: Final = {_IDLE: IDLE_TIMEOUT, _HEAD: HEAD_TIMEOUT, _BODY: REST_TIMEOUT}
_CHECKS: Final = {
    b"expect": Connection.check_expect,
    b"transfer-encoding": Connection.check_transfer_encoding,
    b"upgrade": Connection.check_upgrade,
}
