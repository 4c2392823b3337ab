"""One Exchange per HTTP request: what the members know of it, and the reading of its body.

Each field has one writer, named beside it; everybody else only reads.
"""

import asyncio
import hashlib
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Set
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Final, TypeAlias, TypeVar

from .cutoff import Cutoff
from .errors import INVALID_REQUEST, RATE_LIMITED, UNAUTHORIZED
from .message import Batch, Message, Notification, Request, Response, parse
from .revision import Standing, check_headers
from .server_message import ServerMessage
from .types import ANONYMOUS, Decision, Era, Money, Principal, Rejection, Usage, Verdict

__all__ = [
    "Exchange",
    "Receive",
    "Scope",
    "Send",
    "TraceIds",
    "exchange_of",
    "in_thread",
    "name_session",
    "open_exchange",
    "read_body",
    "read_message",
]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_Read = TypeVar("_Read")

_SCOPE_KEY: Final = "mcp_middleware.exchange"
_MCP_HEADER_PREFIX: Final = b"mcp-"
_SMALL: Final = 64 * 1024
"""Bytes of a body that is parsed at once. A larger one is in a thread, so that others have their turns meanwhile."""
_CONTENT_HEADERS: Final = frozenset({b"content-type", b"content-encoding"})


class TraceIds:
    """Where a request stands in a trace, as lower-case hexadecimal."""

    __slots__ = ("span_id", "trace_id")

    def __init__(self, trace_id: str, span_id: str) -> None:
        self.trace_id = trace_id
        self.span_id = span_id


class Exchange:
    """One HTTP request and its answer."""

    __slots__ = (
        "_body",
        "_edits",
        "access_token",
        "answer",
        "base_scopes",
        "cost",
        "decision",
        "deferred",
        "disconnected",
        "ended",
        "era",
        "failed",
        "header_bytes",
        "headers",
        "http_method",
        "instance",
        "late",
        "message",
        "overhead",
        "owed",
        "path",
        "principal",
        "receive",
        "rejection",
        "repeated",
        "request_bytes",
        "resource_metadata",
        "response_bytes",
        "resumed",
        "scope",
        "session",
        "silent",
        "started",
        "started_at",
        "state",
        "status",
        "still_good",
        "strict",
        "tell",
        "trace",
        "usage",
        "version",
    )

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.receive = receive
        """The server's own ``receive``; after the body has been read, what is left of it is the disconnect."""
        self.http_method: str = scope["method"]
        self.path: str = scope["path"]
        self._edits: dict[bytes, bytes | None] = {}
        """What becomes of request headers on their way to the server: a value, or None for none."""
        self.read_headers()

        # The request. Written by the pipeline; `message` is replaced only through `replace_message`.
        self.message: Message | None = None
        self.era: Era = "legacy"
        self.version: str | None = None
        self._body: bytes | None = None
        self.request_bytes = 0
        self.started = time.monotonic()
        self.started_at = time.time()

        self.principal: Principal | None = _foreign_principal(scope)  # the resource server
        self.resource_metadata: str | None = None  # the resource server: the URL that a challenge names (RFC 9728)
        self.base_scopes: tuple[str, ...] = ()  # the resource server: what every request needs, and so every challenge
        self.access_token: str | None = None  # the resource server: verified, for token exchange alone; in no record
        self.still_good: Callable[[Exchange], Awaitable[bool]] | None = None  # the resource server: asked of a stream
        self.deferred: Rejection | None = None  # the resource server
        """A refusal that stands, in whatever words: who judges the message further in may put it in fuller ones."""
        self.rejection: Rejection | None = None  # whoever refused
        self.decision: Decision | None = None  # tool authorization
        self.session: str | None = None  # affinity: names the session in records, opens nothing
        self.instance: str | None = None  # affinity
        self.usage: Usage | None = None  # the limiter
        self.cost: Money | None = None  # the limiter
        self.trace: TraceIds | None = None  # tracing
        self.strict = False  # tool authorization: a message that cannot be read must not pass

        # The answer. Written by the pipeline.
        self.status: int | None = None
        self.answer: ServerMessage | None = None
        self.response_bytes = 0
        self.disconnected = False  # also the gateway's forwarder
        self.owed = False
        """Its stream has ended without its answer, which may come on another (``owed``)."""
        self.late = False
        """So it has."""
        self.resumed = False
        """Its client has left, and asks for the rest of its stream."""
        self.tell: Callable[[], None] | None = None
        """Once its client has left: tells the server so, which does not know of it."""
        self.ended = False
        """The stream that the server sends has been ended, by the pipeline or the limiter: whatever more the server
        says is for nobody."""
        self.failed: BaseException | None = None
        self.overhead = 0.0
        """Seconds spent in members so far: without the body's arrival, the server, and sending."""
        self.silent = False
        """No message of its own: a metadata document, or a batch, whose messages have exchanges of their own."""

        self.state: dict[object, Any] = {}
        """What one member keeps for itself over the hooks of this request, keyed by that member."""

    def read_headers(self) -> None:
        """Index ``scope["headers"]``, and take the white space off the ``mcp-*`` values that go on: a server behind
        httptools would compare it (RFC 9110 section 5.5 makes it no part of the value)."""
        headers: dict[bytes, bytes] = {}
        repeated: set[bytes] = set()
        size = 0
        blanks = False
        for name, value in self.scope["headers"]:
            size += len(name) + len(value)
            bare = value.strip(b" \t")
            if bare is not value:
                blanks = True
            if name in headers:
                repeated.add(name)
            else:
                headers[name] = bare
        self.headers = headers
        """Lower-case names, values without surrounding white space; of a repeated header the first."""
        self.repeated = repeated
        self.header_bytes = size
        if blanks:
            self.scope["headers"] = [
                (name, value.strip(b" \t") if name.startswith(_MCP_HEADER_PREFIX) else value)
                for name, value in self.scope["headers"]
            ]

    @property
    def caller(self) -> Principal:
        """The principal, or ANONYMOUS where nobody authenticated one."""
        return self.principal or ANONYMOUS

    @property
    def body(self) -> bytes | None:
        """What the server receives; None where there is no message. Written out once it is asked for, because members
        may replace the message before."""
        if self._body is None and self.message is not None:
            self._body = self.message.encode()
        return self._body

    @property
    def request_id(self) -> int | str | None:
        """The id an answer must carry."""
        return self.message.id if isinstance(self.message, Request) else None

    @property
    def verdict(self) -> Verdict:
        """What was decided of the message, in the one word that records and spans have for it."""
        rejection = self.rejection
        if self.decision is not None and not self.decision.allowed:
            return "denied"
        if rejection is None:
            body_is_missing = self.http_method == "POST" and self.message is None
            return "rejected" if body_is_missing else "allowed"
        if rejection.status == 401 or (rejection.status == 400 and rejection.code == UNAUTHORIZED):
            return "unauthenticated"
        if rejection.status == 429 or rejection.code == RATE_LIMITED:
            return "limited"
        if rejection.status == 403:
            return "denied"
        return "unavailable" if rejection.status >= 500 else "rejected"

    @property
    def tool_failed(self) -> bool | None:
        """Whether a called tool says that it failed (``isError``); None where no tool's result has come."""
        message, answer = self.message, self.answer
        if answer is None or not isinstance(message, Request) or message.method != "tools/call":
            return None
        result = answer.tool_result
        return None if result is None else result.is_error

    def set_header(self, name: bytes, value: bytes | None) -> None:
        """Set a request header for the server, or remove it with None."""
        self._edits[name] = value
        if value is not None:
            self.headers[name] = value
        else:
            self.headers.pop(name, None)

    def remove_headers(self, names: Set[bytes]) -> None:
        """Keep the headers called one of ``names`` from the server."""
        for name in names & self.headers.keys():
            self._edits[name] = None
            del self.headers[name]

    def edit_headers(self) -> None:
        """Make ``scope["headers"]`` what the server is to get: what members set and removed, with the length of the
        body, and without a wish for an encoding in which members could not read the answer."""
        headers, body = self.headers, self.body
        if body is not None:
            if b"accept-encoding" in headers:
                self.set_header(b"accept-encoding", None)
            length = str(len(body)).encode()
            if headers.get(b"content-length", length) != length:
                self.set_header(b"content-length", length)
        edits = self._edits
        if not edits:
            return
        if self.repeated:
            lines = [line for line in self.scope["headers"] if line[0] not in edits]
            lines.extend([(name, value) for name, value in edits.items() if value is not None])
        else:
            lines = list(headers.items())
        self.scope["headers"] = lines
        self._edits = {}

    def replace_message(self, message: Message) -> None:
        """Make ``message`` what the server receives."""
        self.message = message
        self._body = None

    def close(self) -> None:
        """Let go of the server's objects, which refer to this one: a cycle for each request would leave all of it to
        the garbage collector, whose rounds cost a large application more than all members do."""
        self.scope = {"client": self.scope.get("client")} if self.owed else {}
        self.receive = _closed
        self.access_token = self.still_good = self.tell = None
        if not self.owed:
            self.state.clear()

    def child(self, message: Message) -> "Exchange":
        """An exchange for one message of a batch: same caller and headers, an answer of its own."""
        self.edit_headers()
        scope = dict(self.scope)
        child = Exchange(scope, self.receive)
        scope[_SCOPE_KEY] = child
        child.principal = self.principal
        child.access_token, child.still_good = self.access_token, self.still_good
        child.deferred = self.deferred
        child.resource_metadata, child.base_scopes = self.resource_metadata, self.base_scopes
        child.era, child.version = self.era, self.version
        child.replace_message(message)
        child.request_bytes = len(child.body or b"")
        return child


async def _closed() -> MutableMapping[str, Any]:
    return {"type": "http.disconnect"}


def open_exchange(scope: Scope, receive: Receive) -> tuple[Exchange, bool]:
    """The Exchange of this HTTP request, and whether it is new: members further out may have opened it.

    What stands between may have changed the headers, so they are read again; ``read_message`` looks at the body.
    """
    exchange = exchange_of(scope)
    if exchange is not None:
        exchange.scope, exchange.receive = scope, receive
        exchange.read_headers()
        return exchange, False
    exchange = scope[_SCOPE_KEY] = Exchange(scope, receive)
    return exchange, True


def exchange_of(scope: Scope) -> "Exchange | None":
    """The Exchange that members further out have opened for this request, if any did."""
    exchange = scope.get(_SCOPE_KEY)
    return exchange if isinstance(exchange, Exchange) else None


def name_session(session_id: bytes) -> str:
    """What records call the session whose id the client knows as ``session_id``: 64 bits of its SHA-256, in
    hexadecimal. The id itself opens the session, so it stands in no record."""
    return hashlib.sha256(session_id).hexdigest()[:16]


def _foreign_principal(scope: Scope) -> Principal | None:
    """The caller as another layer authenticated it: the MCP SDK's and FastMCP's user carries an access token."""
    token: Any = getattr(scope.get("user"), "access_token", None)
    return Principal.from_access_token(token) if isinstance(getattr(token, "client_id", None), str) else None


@cache
def _large_messages() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="mcp-messages")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_large_messages.cache_clear)  # threads stay with the parent


async def in_thread(read: Callable[..., _Read], *args: Any) -> _Read:
    """What ``read`` returns for a message that is too large for the event loop.

    There is one thread for all of them: only one can have the interpreter's lock, and with every other that asks for it
    the loop, which asks too, would wait longer.
    """
    return await asyncio.get_running_loop().run_in_executor(_large_messages(), read, *args)


async def read_message(
    exchange: Exchange, receive: Receive, cutoff: Cutoff, *, max_bytes: int, seconds: float
) -> Message | Batch | Rejection | None:
    """Read the body of a POST, parse it once, and check the headers against it. None: the client went away.

    A body that members further out have parsed already is not parsed again, unless it was changed since.

    ``max_bytes`` bounds the body, ``seconds`` the time until its last byte, by way of ``cutoff``.
    """
    refused = _check_content_headers(exchange.headers, exchange.repeated, max_bytes)
    if refused is not None:
        return refused
    cutoff.start(seconds)
    try:
        body = await read_body(receive, max_bytes)
    except asyncio.CancelledError:
        if not cutoff.absorbs():
            raise
        return Rejection(408, INVALID_REQUEST, f"the body did not arrive within {seconds:g} s", "slow_body")
    finally:
        cutoff.stop()
    if body is None:
        exchange.disconnected = True
        return None
    if len(body) > max_bytes:
        return _too_large(max_bytes)
    message: Message | Batch
    if exchange.message is not None and body == exchange.body:
        message = exchange.message
    else:
        exchange.request_bytes = len(body)
        parsed = parse(body) if len(body) <= _SMALL else await in_thread(parse, body)
        if isinstance(parsed, Rejection):
            return parsed
        message = parsed
        if isinstance(message, Request | Notification | Response):
            exchange.replace_message(message)  # also for a refusal below: the record says what was asked
    standing = check_headers(message, exchange.headers, exchange.repeated)
    if not isinstance(standing, Standing):
        return standing
    exchange.era, exchange.version = standing.era, standing.version
    return message


async def read_body(receive: Receive, max_bytes: float = math.inf) -> bytes | None:
    """The body, or what of it has come when it is larger than ``max_bytes``; None if the caller left before."""
    chunks: list[bytes] = []
    size = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        chunk: bytes = event.get("body", b"")
        more = event.get("more_body", False)
        if not chunks and not more:
            return chunk
        size += len(chunk)
        chunks.append(chunk)
        if size > max_bytes or not more:
            return b"".join(chunks)


def _check_content_headers(headers: Mapping[bytes, bytes], repeated: Set[bytes], max_bytes: int) -> Rejection | None:
    if not repeated.isdisjoint(_CONTENT_HEADERS):  # of two, the server might read the other
        return Rejection(415, INVALID_REQUEST, "Content-Type and Content-Encoding may be sent once", "content_type")
    content_type = headers.get(b"content-type", b"").lower()
    if content_type != b"application/json":
        media, _, parameters = content_type.partition(b";")
        charset = parameters.replace(b" ", b"").replace(b'"', b"")
        if media.strip() != b"application/json" or charset not in (b"", b"charset=utf-8"):
            return Rejection(415, INVALID_REQUEST, "Content-Type must be application/json in UTF-8", "content_type")
    if b"content-encoding" in headers and headers[b"content-encoding"].lower() != b"identity":
        return Rejection(415, INVALID_REQUEST, "Content-Encoding is not supported; send the body plain", "encoding")
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and len(length) < 20 and int(length) > max_bytes:
        return _too_large(max_bytes)
    return None


def _too_large(max_bytes: int) -> Rejection:
    return Rejection(413, INVALID_REQUEST, f"the body is larger than {max_bytes} bytes", "body_too_large")
