"""The innermost application of the gateway: sends a judged request to an instance of its server, and the answer back.

What goes on is the canonical body that the members judged; what comes back are the status and the body. Which headers
go along either way is for ``headers``. An event stream is passed on as it arrives. Everything else is sent when
it is whole, because the members look at it whole, so that an answer which breaks off becomes an error with the right
status. The page of a server that failed (5xx, no JSON) becomes an error with the request's id: clients cannot read it,
and it may show what is nobody's business.

These answers of a server become 502, because they are between it and us:

- a redirect: following one would carry the request, and our credential, to where nobody configured;
- 401, 407, and 403 with a challenge: our credential was refused, not the caller's. As a 401 they would make the
  caller's client throw its good token away, or ask for scopes that mean nothing here;
- an encoding that nobody asked for and that we cannot undo;
- two content types, of which members and client might believe one each;
- what is neither JSON nor an event stream: no client reads it, and a browser would show it as a page of ours. Where it
  comes with an error (4xx), it becomes one with the request's id, but for plain text, which says what is wrong; where
  no answer was asked for, the status is all that passes. An answer of JSON-RPC that names no type at all goes on as
  JSON: so do servers of the official TypeScript SDK refuse (1.17), and clients go by what they say.

A server that answers 401 to a credential which can be had anew gets the same request once more, with a new one: it has
refused, so it has not acted. The caller's own token never goes on (F1).

When a request fails, what counts is whether the server may have acted (``client.UpstreamError``):

=============================  ==================================================================================
no connection                  the next instance; none left: 502, or 404 where the request is bound to a session
                               whose instance is gone, so that the client opens a new one
no instance may be used        503 with ``Retry-After``
no credential can be had       503 with ``Retry-After``; 403 where the authorization server refuses the caller, 502
                               where it refuses the gateway. Nothing was sent to the server
no answer                      502, never again sent; recorded as of unknown outcome
no answer in time              504, likewise
answer ends too early          502; in an event stream one error event with the request's id, by the pipeline
client gone                    2026-07-28: the server's connection is closed, which cancels the call.
                               Earlier: an event stream of a GET is closed; a call goes on, as long as ``timeout``
                               says, because there a lost connection cancels nothing
=============================  ==================================================================================

The deprecated HTTP+SSE transport of 2024-11-05 is not forwarded (its event stream names a URL of its own).
"""

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mcp_middleware.affinity.middleware import INSTANCE_DOWN
from mcp_middleware.credentials import CredentialRefusedError, CredentialUnavailableError
from mcp_middleware.errors import INTERNAL_ERROR, INVALID_REQUEST, UNAUTHORIZED, UNAVAILABLE
from mcp_middleware.exchange import Exchange, Receive, Scope, Send, exchange_of, open_exchange, read_body
from mcp_middleware.member import Bounds
from mcp_middleware.message import Request
from mcp_middleware.responses import error_body, media_type, rejection_answer, retry_later, send_document
from mcp_middleware.revision import SESSION_HEADER
from mcp_middleware.types import Document, Headers, Rejection

from .answers import begun_task, ends_event, farewell, is_answer, knows_no_task, unfit
from .client import (
    Answer,
    BrokenAnswerError,
    NotSentError,
    SlowAnswerError,
    UpstreamClient,
    UpstreamConnection,
    UpstreamError,
)
from .credentials import ServerCredentials
from .decoding import decoded, read_whole
from .headers import for_caller, for_server
from .upstream import UNAVAILABLE_STATUSES, Upstream

if TYPE_CHECKING:
    from mcp_middleware.tracing.upstream import ClientSpans

__all__ = ["Forwarder"]

logger = logging.getLogger("mcp_middleware.gateway")

_MAX_TAIL: Final = 4

_METHODS: Final = {"POST": b"POST", "GET": b"GET", "DELETE": b"DELETE"}
_LISTEN: Final = "subscriptions/listen"
_READ: Final = frozenset({b"application/json", b"text/event-stream"})
"""What clients read (transports, "Sending Messages to the Server")."""

_JSON: Final = (b"content-type", b"application/json")


class _ClientGoneError(Exception):
    """The caller has left, and its request with it."""


class _EndingError(Exception):
    """Streams end: the gateway is about to stop, or they were opened by what does not hold any more."""


class Forwarder:
    """Sends requests to the instances of ``upstream``.

    Inside the members it reads which instance a request is for from their Exchange; without them it chooses one.
    ``credentials`` are what the server knows the gateway by, besides the headers of ``upstream``. ``spans`` makes a
    span for each request to an instance. Once ``draining`` is set, and after ``end_streams``, streams that would stay
    open end properly, and no new ones begin. Of ``bounds`` it heeds ``max_answer_bytes``. An event stream that breaks
    off raises ``UpstreamError``.
    """

    def __init__(
        self,
        upstream: Upstream,
        client: UpstreamClient,
        *,
        credentials: ServerCredentials | None = None,
        spans: "ClientSpans | None" = None,
        draining: asyncio.Event | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        self._upstream = upstream
        self._client = client
        self._credentials = credentials
        self._spans = spans
        self._draining = draining or asyncio.Event()
        self._most = (bounds or Bounds()).max_answer_bytes
        self._streams: set[Answer] = set()
        self._ending: asyncio.Task[None] | None = None
        self._revoked = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = exchange_of(scope)
        if exchange is not None:
            await self._forward(exchange, receive, send)
            return
        exchange, _ = open_exchange(scope, receive)
        exchange.instance = self._upstream.choose()
        try:
            await self._forward(exchange, receive, send)
        finally:
            exchange.close()

    async def _forward(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        method = _METHODS.get(exchange.scope["method"])
        if method is None:
            allow = ((b"allow", b"GET, POST, DELETE"),)
            text = "use POST, GET or DELETE"
            await _refuse(exchange, send, Rejection(405, INVALID_REQUEST, text, "method_not_allowed", headers=allow))
            return
        body = await read_body(receive) if method == b"POST" else b""
        if body is None:
            return
        request = exchange.message if isinstance(exchange.message, Request) else None
        streams = method == b"GET" or (request is not None and request.method == _LISTEN)
        if streams and (self._revoked or self._draining.is_set()):
            await _refuse(exchange, send, _unavailable(self.why_ending, 1.0))
            return
        call = _Call(self, exchange, request, receive, send, method=method, body=body, streams=streams)
        try:
            await call.run()
        finally:
            call.close()

    @property
    def why_ending(self) -> str:
        """Why streams end."""
        return "the rules have changed; open the stream anew" if self._revoked else "the gateway is about to stop"

    def end_streams(self) -> None:
        """Let all streams end, and begin none: what they were opened by does not hold any more."""
        self._revoked = True
        self._interrupt()

    def follow(self, answer: Answer) -> None:
        """End ``answer`` when the gateway drains."""
        self._streams.add(answer)
        if self._revoked:
            answer.interrupt(_EndingError())
        if self._ending is None:
            self._ending = asyncio.create_task(self._end_streams(), name="end streams")

    def forget(self, answer: Answer) -> None:
        """``answer`` has ended."""
        self._streams.discard(answer)
        if not self._streams and self._ending is not None:
            self._ending.cancel()
            self._ending = None

    async def _end_streams(self) -> None:
        await self._draining.wait()
        self._interrupt()

    def _interrupt(self) -> None:
        for answer in list(self._streams):
            answer.interrupt(_EndingError())


class _Call:
    """One request on its way to an instance, and its answer on the way back."""

    __slots__ = (
        "answer",
        "body",
        "credential",
        "exchange",
        "forwarder",
        "method",
        "name",
        "receive",
        "request",
        "send",
        "span",
        "streams",
        "upstream",
        "watch",
    )

    def __init__(
        self,
        forwarder: Forwarder,
        exchange: Exchange,
        request: Request | None,
        receive: Receive,
        send: Send,
        *,
        method: bytes,
        body: bytes,
        streams: bool,
    ) -> None:
        self.forwarder = forwarder
        self.upstream = forwarder._upstream
        self.exchange = exchange
        self.request = request
        self.receive = receive
        self.send = send
        self.method = method
        self.body = body
        self.streams = streams
        self.credential: Headers = []
        """What the server is to know the gateway by, of what is asked for with each request."""
        self.name = ""
        """The instance that was asked last."""
        self.answer: Answer | None = None
        self.watch: asyncio.Task[None] | None = None
        self.span: Any = None

    async def run(self) -> None:
        """Forward the request and its answer."""
        exchange, request = self.exchange, self.request
        if self.forwarder._credentials is not None and not await self._prove(self.forwarder._credentials):
            return
        task = None
        if request is not None and request.target_kind == "task" and exchange.era == "modern":
            task = request.target
        if task and len(self.upstream) > 1:
            await self._run_task(task)
            return
        answer = await self._begin(exchange.instance, set())
        if answer is not None:
            await self._pass_on(answer)

    # Out

    async def _prove(self, credentials: ServerCredentials) -> bool:
        """Have the credential for this caller's request. Whether there is one; if not, the caller has been answered."""
        try:
            self.credential = await credentials.headers(self.exchange)
        except CredentialUnavailableError as error:
            text = "the credential for the server cannot be had now; nothing was done there"
            refusal = retry_later(503, UNAVAILABLE, text, "credential_unavailable", seconds=error.retry_after)
        except CredentialRefusedError as error:
            refusal = _no_credential(error)
        else:
            return True
        await _refuse(self.exchange, self.send, refusal)
        return False

    async def _begin(self, name: str | None, tried: set[str]) -> Answer | None:
        """Send the request to ``name``, or where no connection can be made to another instance, and wait until the
        answer begins. None where it does not, and the caller has been answered."""
        answer, credentials = await self._attempt(name, tried), self.forwarder._credentials
        if answer is None or answer.status != 401 or credentials is None:
            return answer
        if not credentials.rejected(self.exchange, self.credential):
            return answer  # ``unfit`` says what is to be said
        self._let_go()
        return await self._attempt(self.name, tried) if await self._prove(credentials) else None

    async def _attempt(self, name: str | None, tried: set[str]) -> Answer | None:
        """As ``_begin``, with the credential that is there."""
        found = await self._connect(name, tried)
        if found is None:
            return None
        name, connection, head = found
        upstream = self.upstream
        self.name = name
        upstream.enter(name)
        self.answer = answer = connection.request(head, self.body, timeout=upstream.timeout, idle=upstream.stream_idle)
        if self.streams:
            self.forwarder.follow(answer)
            self._watch()
        else:
            answer.on_slow = self._watch
        try:
            await answer.head()
        except UpstreamError as error:
            upstream.suspect(name)
            await self._fail(504 if isinstance(error, SlowAnswerError) else 502, str(error), error)
            return None
        except _ClientGoneError:
            return None
        except _EndingError:
            await self._say_ending()
            return None
        upstream.answered(name, answer.status)
        return answer

    async def _connect(self, name: str | None, tried: set[str]) -> tuple[str, UpstreamConnection, bytes] | None:
        """An instance, a connection to it, and the head to send on it; None where the caller has been answered."""
        exchange, upstream, spans = self.exchange, self.upstream, self.forwarder._spans
        bound = exchange.era == "legacy" and SESSION_HEADER in exchange.headers
        failure: NotSentError | None = None
        while True:
            endpoint = None if name is None else upstream.endpoint(name)
            if name is None or endpoint is None:
                await self._refuse_unsent(bound and name is not None, failure)
                return None
            tried.add(name)
            exchange.instance = name
            if spans is not None and self.span is None:
                self.span = spans.start(exchange, endpoint.host, endpoint.port)
                if self.span is not None and exchange.body is not None:
                    self.body = exchange.body  # it names the span as its parent now
            token = None if exchange.access_token is None else exchange.access_token.encode()
            lines = for_server(exchange.scope["headers"], upstream.passing, token)
            if lines is None:
                text = "a header has a line break in it"
                await _refuse(exchange, self.send, Rejection(400, INVALID_REQUEST, text, "bad_header"))
                return None
            try:
                connection = await self.forwarder._client.connect(endpoint)
            except NotSentError as error:
                self._end_span(error)
                failure = error
                if not error.ours:
                    upstream.failed(name, str(error))
                if bound:
                    await self._refuse_unsent(error.gone, error)
                    return None
                name = upstream.choose(tried)
            else:
                length = b"content-length: %d\r\n\r\n" % len(self.body) if self.method == b"POST" else b"\r\n"
                if self.credential:
                    lines += b"".join(b"%b: %b\r\n" % line for line in self.credential)
                return name, connection, self.method + endpoint.start + lines + length

    async def _run_task(self, task: str) -> None:
        """A task is on the instance that began it. Where that is not known, ask each in turn: one that does not know
        it says so and has done nothing (SEP-2663)."""
        upstream, tried = self.upstream, set[str]()
        name = upstream.task_instance(task) or self.exchange.instance
        while True:
            answer = await self._begin(name, tried)
            if answer is None:
                return
            if media_type(answer.headers) != b"application/json" or unfit(answer) is not None:
                await self._pass_on(answer)
                return
            data = await self._read_whole(answer)
            if data is None:
                return
            unknown = knows_no_task(data)
            following = upstream.choose(tried) if unknown else None
            if following is None:
                await self._send_whole(answer, data)
                if not unknown:
                    upstream.remember_task(task, self.name)
                return
            self.close()
            name = following

    # Back

    async def _pass_on(self, answer: Answer) -> None:
        """Pass on an answer that has begun."""
        refusal = unfit(answer)
        if refusal is not None:
            await self._fail(502, refusal, BrokenAnswerError(refusal))
            return
        media = media_type(answer.headers)
        if answer.status >= 500 and media != b"application/json":
            retry = tuple(line for line in for_caller(answer.headers) if line[0] == b"retry-after")
            text = "the server is not available" if answer.status in UNAVAILABLE_STATUSES else "the server failed"
            self.exchange.failed = BrokenAnswerError(f"the server answered {answer.status}")
            await self._send_error(answer.status, INTERNAL_ERROR, text, retry)
        elif media == b"text/event-stream" and not answer.complete:
            await self._stream(answer)
            self._note_task()
        else:
            data = await self._read_whole(answer)
            if data and not media and await asyncio.to_thread(is_answer, data):
                answer.headers.append(_JSON)
                media = b"application/json"
            if data and media not in _READ and not (media == b"text/plain" and answer.status >= 400):
                await self._replace(answer)
            elif data is not None:
                await self._send_whole(answer, data)
                self._note_task()

    async def _replace(self, answer: Answer) -> None:
        """Answer in place of what no client reads."""
        if answer.status >= 400:
            kept = tuple(line for line in for_caller(answer.headers) if line[0] in (b"allow", b"retry-after"))
            await self._send_error(answer.status, INVALID_REQUEST, f"the server answered {answer.status}", kept)
        elif self.request is None and self.method != b"GET":
            await send_document(Document(b"", answer.status), self.send)
        else:
            text = "the server answered what is neither JSON nor an event stream"
            await self._fail(502, text, BrokenAnswerError(text))

    async def _read_whole(self, answer: Answer) -> bytes | None:
        """The whole body; None where there is none, and the caller has been answered."""
        try:
            return await read_whole(answer, self.forwarder._most)
        except UpstreamError as error:
            if not answer.complete:
                self.upstream.suspect(self.name)
            await self._fail(502, str(error), error)
        except _ClientGoneError:
            pass
        except _EndingError:
            await self._say_ending()
        return None

    async def _send_whole(self, answer: Answer, data: bytes) -> None:
        headers = for_caller(answer.headers)
        if answer.status != 204:  # RFC 9110 section 8.6
            headers.append((b"content-length", str(len(data)).encode()))
        await self.send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": data, "more_body": False})

    async def _stream(self, answer: Answer) -> None:
        send, source = self.send, decoded(answer)
        await send({"type": "http.response.start", "status": answer.status, "headers": for_caller(answer.headers)})
        tail = b"\n\n"
        try:
            while data := await source.read():
                tail = (tail + data)[-_MAX_TAIL:] if len(data) < _MAX_TAIL else data[-_MAX_TAIL:]
                await send({"type": "http.response.body", "body": data, "more_body": True})
                if self.exchange.ended:
                    return
        except UpstreamError as error:
            self.upstream.suspect(self.name)
            logger.warning("%s: a stream of the instance %s broke off: %s", self.upstream.name, self.name, error)
            raise
        except _ClientGoneError:
            return
        except _EndingError:
            asked = self.request if self.exchange.answer is None and ends_event(tail) else None
            data = b"" if asked is None else farewell(asked.id)  # a GET stream just ends
        await send({"type": "http.response.body", "body": data, "more_body": False})

    def _note_task(self) -> None:
        """Remember where a task is that this answer began."""
        answer, request = self.exchange.answer, self.request
        if answer is None or request is None or request.method != "tools/call" or len(self.upstream) == 1:
            return
        task = begun_task(answer.result)
        if task is not None:
            self.upstream.remember_task(task, self.name)

    # What goes wrong

    async def _refuse_unsent(self, session: bool, failure: NotSentError | None) -> None:
        """Say that nothing was sent."""
        if session:
            refusal = Rejection(404, INVALID_REQUEST, "Session not found", INSTANCE_DOWN)
        elif failure is not None and not failure.ours:
            text = "the server cannot be reached; nothing was sent to it"
            refusal = Rejection(502, UNAVAILABLE, text, "upstream_unreachable")
        else:
            refusal = _unavailable("no instance of the server is available", self.upstream.retry_after())
        await _refuse(self.exchange, self.send, refusal)

    async def _fail(self, status: int, text: str, error: Exception) -> None:
        """Answer for a server that may have acted and has not said so."""
        self.exchange.failed = error
        logger.warning("%s: the instance %s failed: %s", self.upstream.name, self.name, text)
        await self._send_error(status, INTERNAL_ERROR, text, ())

    async def _say_ending(self) -> None:
        await self._send_error(503, UNAVAILABLE, self.forwarder.why_ending, ((b"retry-after", b"1"),))

    async def _send_error(self, status: int, code: int, text: str, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        body = error_body(code, text, self.exchange.request_id)
        await send_document(Document(body, status, ((b"content-type", b"application/json"), *headers)), self.send)

    # The caller's connection

    def _watch(self) -> None:
        """Begin to look whether the caller leaves. Most answers are there before that is worth a task."""
        if self.watch is None and self.answer is not None:
            self.watch = asyncio.ensure_future(self._await_disconnect(self.answer))

    async def _await_disconnect(self, answer: Answer) -> None:
        while (await self.exchange.receive())["type"] != "http.disconnect":  # the pipeline's would be told much later
            pass
        self.exchange.disconnected = True
        if self.exchange.era == "modern" or self.method == b"GET":
            answer.interrupt(_ClientGoneError())
        else:
            answer.end_within(self.upstream.timeout)
            self.exchange.tell = partial(answer.interrupt, _ClientGoneError())  # where it is resumed, by the pipeline

    def close(self) -> None:
        """Be done with the answer, however it ended, and with the request."""
        self._let_go()
        self._end_span(None)

    def _let_go(self) -> None:
        """Be done with the answer."""
        if self.watch is not None:
            self.watch.cancel()
            self.watch = None
        if self.answer is not None:
            if self.streams:
                self.forwarder.forget(self.answer)
            self.answer.close()
            self.answer = None
            self.upstream.leave(self.name)

    def _end_span(self, error: Exception | None) -> None:
        span, self.span = self.span, None
        if span is not None and self.forwarder._spans is not None:
            self.forwarder._spans.end(span, self.exchange, error)


def _unavailable(text: str, seconds: float) -> Rejection:
    return retry_later(503, UNAVAILABLE, text, "upstream_unavailable", seconds=seconds)


def _no_credential(error: CredentialRefusedError) -> Rejection:
    """The authorization server gives the caller no token for the server, or the gateway none at all."""
    if error.caller:
        text = "no token for the server is issued on behalf of this caller; nothing was done there"
        return Rejection(403, UNAUTHORIZED, text, "credential_refused")
    text = "the credential for the server is refused to the gateway; nothing was done there"
    return Rejection(502, UNAVAILABLE, text, "credential_refused")


async def _refuse(exchange: Exchange, send: Send, rejection: Rejection) -> None:
    """Answer a request of which nothing was sent."""
    exchange.rejection = rejection
    await send_document(rejection_answer(rejection, exchange.request_id), send)
