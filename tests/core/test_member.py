"""The pipeline: order, one parse, refusals, streams, batches, disconnects, the end of a token."""

import asyncio
import gc
import itertools
import json
import time
from typing import Any

import pytest

from mcp_middleware.cutoff import Cutoff
from mcp_middleware.errors import ConfigurationError, UnknownOutcomeError
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import ORDER, Bounds, Member
from mcp_middleware.message import Request, ServerMessage
from mcp_middleware.types import Document, Headers, Principal, Rejection
from tests.support import serve

from .asgi import MODERN_META, Call, EchoServer, modern_headers, rpc


class Recorder(Member):
    """Notes which hooks ran, in a log shared by the members of a test."""

    def __init__(self, app: Any, log: list[str], *, bounds: Bounds | None = None) -> None:
        super().__init__(app, bounds=bounds)
        self.log = log
        self.exchanges: list[Exchange] = []

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        self.log.append(f"{self.stage}.headers")
        return None

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        self.log.append(f"{self.stage}.request")
        return None

    def on_response_start(self, exchange: Exchange, status: int, headers: Headers) -> None:
        self.log.append(f"{self.stage}.start")

    def on_response_message(self, exchange: Exchange, message: ServerMessage) -> ServerMessage | None:
        self.log.append(f"{self.stage}.message")
        return message

    async def on_finish(self, exchange: Exchange) -> None:
        self.log.append(f"{self.stage}.finish")
        self.exchanges.append(exchange)

    async def aclose(self) -> None:
        self.log.append(f"{self.stage}.close")


def recorder(stage: str) -> type[Recorder]:
    return type(stage.title(), (Recorder,), {"stage": stage})


Audit = recorder("audit")
Limiter = recorder("limiter")
STAGES = {stage: recorder(stage) for stage in ORDER}

CALL = rpc("tools/call", {"name": "echo", "arguments": {"text": "hi"}})


class Refusing(Recorder):
    stage = "limiter"

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        return Rejection(
            429, 429001, "too many", "rate_limited", data={"retryAfterMs": 5}, headers=((b"retry-after", b"1"),)
        )


class Transforming(Member):
    """Rewrites or drops answers by what they say."""

    stage = "authorization"

    def on_response_message(self, exchange: Exchange, message: ServerMessage) -> ServerMessage | None:
        if message.method == "notifications/secret":
            return None
        return message.with_result({"changed": True}) if message.is_answer else message


def scripted(*events: dict[str, Any]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for event in events:
            await send(event)

    return app


def start(media: bytes, status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", media)]}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


@pytest.mark.parametrize("order", list(itertools.permutations(ORDER))[::60])
async def test_members_run_in_one_order_however_they_are_listed(order: tuple[str, ...]) -> None:
    log: list[str] = []
    app: Any = EchoServer()
    for stage in reversed(order):
        app = STAGES[stage](app, log)
    await Call(app, CALL).run()
    inward = [f"{stage}.{hook}" for hook in ("headers", "request") for stage in ORDER]
    outward = [f"{stage}.{hook}" for hook in ("start", "message", "finish") for stage in reversed(ORDER)]
    assert log == inward + outward


async def test_members_apart_share_the_exchange_and_one_parse() -> None:
    log: list[str] = []
    server = EchoServer()
    inner = Audit(server, log)

    async def between(scope: Any, receive: Any, send: Any) -> None:
        await inner(dict(scope), receive, send)

    outer = Limiter(between, log)
    done = await Call(outer, CALL).run()
    assert done.status == 200
    assert server.received == [CALL]
    assert outer.exchanges == inner.exchanges


async def test_the_server_receives_the_canonical_body_with_its_length() -> None:
    server = EchoServer()
    raw = b'{ "jsonrpc": "2.0", "id": 1, "id": 2, "method": "tools/call", "params": {"name": "a", "name": "echo"} }'
    done = await Call(Audit(server, []), raw).run()
    assert server.bodies[0].count(b'"name"') == 1
    headers = dict(server.scopes[0]["headers"])
    assert headers[b"content-length"] == str(len(server.bodies[0])).encode()
    assert done.json["id"] == 2
    assert done.headers["content-length"] == str(len(done.body))


@pytest.mark.parametrize("kind", ["websocket", "other"])
async def test_other_scopes_pass_untouched(kind: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    member = Audit(app, [])
    call = Call(app)
    scope = {"type": kind}
    await member(scope, call.incoming.get, call.send)
    assert seen == [(scope, call.incoming.get, call.send)]
    assert scope == {"type": kind}


async def test_lifespan_passes_through_and_closes_the_members() -> None:
    log: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        log.append("app")
        await send({"type": "lifespan.shutdown.complete"})

    call = Call(None)
    call.incoming = asyncio.Queue()
    call.incoming.put_nowait({"type": "lifespan.startup"})
    call.incoming.put_nowait({"type": "lifespan.shutdown"})
    await Audit(Limiter(app, log), log)({"type": "lifespan"}, call.incoming.get, call.send)
    assert log == ["app", "limiter.close", "audit.close"]
    assert [event["type"] for event in call.events] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


class Starting(Recorder):
    """Says when it is started, and fails if it is given how."""

    stage = "resource_server"
    failure: Exception | None = None

    async def on_startup(self) -> None:
        self.log.append(f"{self.stage}.startup")
        if self.failure is not None:
            raise self.failure


class StartingFirst(Starting):
    stage = "audit"


class Lifespan:
    """An application with a lifespan of its own."""

    def __init__(self, log: list[str], *, fails: bool = False) -> None:
        self.log = log
        self.fails = fails

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        self.log.append("app.start")
        if self.fails:
            await send({"type": "lifespan.startup.failed", "message": "no"})
            return
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        await send({"type": "lifespan.shutdown.complete"})


async def run_lifespan(app: Any) -> list[Any]:
    call = Call(None)
    call.incoming = asyncio.Queue()
    call.incoming.put_nowait({"type": "lifespan.startup"})
    call.incoming.put_nowait({"type": "lifespan.shutdown"})
    await app({"type": "lifespan"}, call.incoming.get, call.send)
    return call.events


async def test_members_start_before_the_application_outermost_first() -> None:
    log: list[str] = []
    events = await run_lifespan(Starting(StartingFirst(Lifespan(log), log), log))
    assert log[:3] == ["audit.startup", "resource_server.startup", "app.start"]
    assert [event["type"] for event in events] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ConfigurationError("issuers[0] is wrong"), "issuers[0] is wrong"),
        (RuntimeError("secret"), "a member failed while starting: RuntimeError"),
    ],
)
async def test_a_member_that_cannot_start_keeps_the_application_from_starting(failure: Any, message: str) -> None:
    log: list[str] = []
    member = Starting(Limiter(Lifespan(log), log), log)
    member.failure = failure
    events = await run_lifespan(member)
    assert events == [{"type": "lifespan.startup.failed", "message": message}]
    assert log == ["resource_server.startup", "limiter.close", "resource_server.close"]


async def test_a_server_does_not_serve_an_application_whose_member_cannot_start() -> None:
    log: list[str] = []
    member = Starting(Lifespan(log), log)
    member.failure = ConfigurationError("issuers[0] is wrong")
    with pytest.raises(RuntimeError, match="failed in its lifespan start-up"):
        async with serve(member):
            pass
    assert "app.start" not in log


async def test_an_application_that_fails_to_start_leaves_no_member_open() -> None:
    log: list[str] = []
    events = await run_lifespan(Starting(Lifespan(log, fails=True), log))
    assert log == ["resource_server.startup", "app.start", "resource_server.close"]
    assert [event["type"] for event in events] == ["lifespan.startup.failed"]


async def test_without_a_lifespan_members_serve_all_the_same() -> None:
    log: list[str] = []
    assert (await Call(Starting(EchoServer(), log), CALL).run()).status == 200
    assert "resource_server.startup" not in log


class Deferring(Recorder):
    """Refuses in the end, and lets others say more."""

    stage = "resource_server"

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        exchange.deferred = Rejection(403, 401001, "less", "less")
        return None


class Noting(Recorder):
    stage = "audit"

    def on_forward(self, exchange: Exchange) -> Rejection | None:
        self.log.append("audit.forward")
        return None


class Judging(Recorder):
    stage = "authorization"

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        await super().on_request(exchange)
        return Rejection(403, 401001, "more", "more") if exchange.message.target == "known" else None  # type: ignore[union-attr]


def asked(name: str, request_id: int | None = 1) -> dict[str, Any]:
    return rpc("tools/call", {"name": name}, request_id)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (asked("known"), "more"),
        (asked("other"), "less"),
        (rpc("ping"), "less"),
        (rpc("initialize", {"protocolVersion": "2025-11-25"}), "less"),
        (rpc("notifications/initialized", request_id=None), "less"),
        ([asked("known", 1), asked("other", 2)], "less"),
        ([rpc("notifications/progress", request_id=None)], "less"),
    ],
)
async def test_a_deferred_refusal_always_stands(body: Any, said: str) -> None:
    log: list[str] = []
    server = EchoServer()
    headers = {"mcp-protocol-version": "2025-03-26"} if isinstance(body, list) else {}
    done = await Call(Noting(Judging(Deferring(server, log), log), log), body, headers=headers).run()
    assert done.status == 403
    assert done.json["error"]["message"] == said
    assert not server.scopes
    assert log.count("audit.finish") == 1
    judged = said == "more" or (isinstance(body, dict) and body["method"] in ("tools/call", "ping"))
    assert ("authorization.request" in log) is judged
    assert "audit.forward" not in log


async def test_a_deferred_refusal_stands_before_a_document_further_in() -> None:
    class Telling(Recorder):
        stage = "limiter"

        async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
            return Document(b"secret")

    log: list[str] = []
    done = await Call(Telling(Deferring(EchoServer(), log), log), asked("known")).run()
    assert (done.status, done.json["error"]["message"]) == (403, "less")


async def test_a_deferred_refusal_goes_no_further_than_its_own_group() -> None:
    log: list[str] = []
    server = EchoServer()
    inner = Judging(server, log)

    async def foreign(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)

    done = await Call(Deferring(foreign, log), asked("known")).run()
    assert (done.status, done.json["error"]["message"]) == (403, "less")
    assert not log.count("authorization.request")


async def test_a_refusal_reaches_nobody_further_in_and_every_member_finishes() -> None:
    log: list[str] = []
    server = EchoServer()
    audit = Audit(Refusing(server, log), log)
    done = await Call(audit, CALL).run()
    assert (done.status, done.headers["retry-after"]) == (429, "1")
    assert done.json == {
        "jsonrpc": "2.0",
        "id": 1,
        "error": {"code": 429001, "message": "too many", "data": {"retryAfterMs": 5}},
    }
    assert server.scopes == []
    assert log[-2:] == ["limiter.finish", "audit.finish"]
    exchange = audit.exchanges[0]
    assert exchange.rejection is not None
    assert (exchange.rejection.reason, exchange.status) == ("rate_limited", 429)


@pytest.mark.parametrize(
    ("status", "reason", "headers", "content"),
    [
        (415, "content_type", {"content-type": "text/plain"}, b"{}"),
        (415, "content_type", {"content-type": "application/json; charset=utf-16"}, b"{}"),
        (415, "encoding", {"content-type": "application/json", "content-encoding": "gzip"}, b"{}"),
        (413, "body_too_large", {}, b" " * 201),
        (400, "parse_error", {}, b"{"),
        (400, "invalid_message", {}, b"{}"),
        (400, "header_mismatch", {"mcp-name": "other"}, json.dumps(CALL).encode()),
    ],
)
async def test_bad_requests_are_refused_once_and_the_next_good_one_is_served(
    status: int, reason: str, headers: dict[str, str], content: bytes
) -> None:
    server = EchoServer()
    audit = Audit(server, [], bounds=Bounds(max_body_bytes=200))
    done = await Call(audit, content, headers=headers).run()
    assert done.status == status
    assert server.scopes == []
    assert [exchange.rejection and exchange.rejection.reason for exchange in audit.exchanges] == [reason]
    assert (await Call(audit, rpc("ping")).run()).status == 200


async def test_case_37_a_chunked_body_over_the_limit_is_413_before_parsing() -> None:
    server = EchoServer()
    audit = Audit(server, [], bounds=Bounds(max_body_bytes=100))
    call = Call(audit, chunks=[b"x" * 60, b"x" * 60, b"x" * 60])
    assert (await call.run()).status == 413
    assert call.incoming.qsize() == 1  # what was beyond the limit was not read


async def test_case_37_a_slow_body_is_cut_off() -> None:
    audit = Audit(EchoServer(), [], bounds=Bounds(body_timeout=0.05))
    call = Call(audit, chunks=[b"{", b"}"])
    await call.incoming.get()
    await call.incoming.get()
    assert (await call.run()).status == 408
    assert audit.exchanges[0].rejection is not None
    assert audit.exchanges[0].rejection.reason == "slow_body"


async def test_case_37_an_answer_before_the_end_of_a_large_body_ends_the_connection() -> None:
    """Else the server reads on, for as long as the client sends."""
    slow = Call(Audit(EchoServer(), [], bounds=Bounds(body_timeout=0.01)), chunks=[])
    slow.incoming = asyncio.Queue()
    assert (await slow.run()).headers["connection"] == "close"
    large = Call(Audit(EchoServer(), []), b" " * 5_000_000)
    assert (await large.run()).headers["connection"] == "close"
    small = Call(Audit(EchoServer(), []), b"{")
    assert "connection" not in (await small.run()).headers


async def test_case_37_too_many_headers_are_431() -> None:
    server = EchoServer()
    headers = [(f"x-{n}", "v" * 100) for n in range(2000)]
    done = await Call(Audit(server, []), CALL, headers=headers).run()
    assert (done.status, server.scopes) == (431, [])


@pytest.mark.parametrize("method", ["PUT", "PATCH", "QUERY", "post", "CONNECT"])
async def test_case_14_a_call_in_another_method_reaches_nobody(method: str) -> None:
    server = EchoServer()
    audit = Audit(server, [])
    done = await Call(audit, CALL, method=method).run()
    assert (done.status, done.headers["allow"], server.scopes) == (405, "GET, POST, DELETE", [])
    assert audit.exchanges[0].rejection is not None


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD", "OPTIONS"])
async def test_case_14_a_body_comes_with_post_only(method: str) -> None:
    server = EchoServer()
    for headers in ({"content-length": "5"}, {"transfer-encoding": "chunked"}):
        done = await Call(Audit(server, []), CALL, method=method, headers=headers).run()
        assert (done.status, server.scopes) == (400, [])
    assert (await Call(Audit(server, []), method=method).run()).status == 202


async def test_what_stands_between_members_may_change_headers_and_body() -> None:
    """And the inner members judge what it made of them."""
    server = EchoServer()
    inner = Limiter(server, [])
    changed = json.dumps(rpc("tools/call", {"name": "other"})).encode()

    async def between(scope: Any, receive: Any, send: Any) -> None:
        async def receive_changed() -> Any:
            event = await receive()
            return {**event, "body": changed} if event["type"] == "http.request" else event

        headers = [line for line in scope["headers"] if line[0] != b"content-length"]
        await inner({**scope, "headers": [*headers, (b"x-added", b"1")]}, receive_changed, send)

    audit = Audit(between, [])
    await Call(audit, CALL, headers={"x-added-before": "1"}).run()
    assert server.received[0]["params"]["name"] == "other"
    assert audit.exchanges[0].headers[b"x-added"] == b"1"


async def test_headers_that_changed_between_members_are_compared_with_the_body_again() -> None:
    inner = Limiter(EchoServer(), [])

    async def between(scope: Any, receive: Any, send: Any) -> None:
        await inner({**scope, "headers": [*scope["headers"], (b"mcp-name", b"other")]}, receive, send)

    assert (await Call(Audit(between, []), CALL).run()).json["error"]["code"] == -32020


async def test_a_finished_exchange_refers_to_nothing_of_the_server() -> None:
    """A cycle for each request would leave all of it to the garbage collector."""
    audit = Audit(EchoServer(), [])
    call = Call(audit, CALL)
    await call.run()
    exchange = audit.exchanges[0]
    assert call.scope not in gc.get_referents(exchange)
    assert exchange.status == 200


async def test_cancellation_from_outside_is_not_taken_for_a_slow_body() -> None:
    audit = Audit(EchoServer(), [])
    call = Call(audit, chunks=[])
    call.incoming = asyncio.Queue()
    task = asyncio.create_task(call.run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(audit.exchanges[0].failed, asyncio.CancelledError)


async def test_a_client_that_leaves_while_it_sends_reaches_nobody() -> None:
    server = EchoServer()
    audit = Audit(server, [])
    call = Call(audit, chunks=[b"{", b""])
    call.incoming = asyncio.Queue()
    call.incoming.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
    call.disconnect()
    await call.run()
    assert (server.scopes, call.events) == ([], [])
    assert audit.exchanges[0].disconnected


async def test_the_disconnect_reaches_a_server_that_waits_for_it() -> None:
    """A12."""
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        order.append((await receive())["type"])
        order.append((await receive())["type"])

    audit = Audit(app, [])
    call = Call(audit, CALL)
    call.disconnect()
    await call.run()
    assert order == ["http.request", "http.disconnect"]
    assert audit.exchanges[0].disconnected


async def test_a13_events_pass_one_by_one_and_comments_at_once() -> None:
    gate = asyncio.Event()
    answer = b'event: message\r\nid: 2\r\ndata: {"jsonrpc":"2.0","id":1,"result":{}}\r\n\r\n'

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream; charset=utf-8"))
        await send(body(b"id: 1\r\ndata: \r\n\r\n", more=True))
        await send(body(b": ping\r\n", more=True))
        await send(body(answer[:20], more=True))
        await gate.wait()
        await send(body(answer[20:], more=False))

    audit = Audit(app, [])
    call = Call(audit, CALL)
    task = asyncio.create_task(call.run())
    await call.seen(3)
    assert call.body == b"id: 1\r\ndata: \r\n\r\n: ping\r\n"
    gate.set()
    await task
    assert call.body.endswith(answer)
    assert audit.exchanges[0].answer is not None
    assert audit.exchanges[0].answer.id == 1


async def test_messages_are_rewritten_and_dropped_in_streams_and_json() -> None:
    secret = b'data: {"jsonrpc":"2.0","method":"notifications/secret"}\n\n'
    answer = b'{"jsonrpc":"2.0","id":1,"result":{"a":1}}'
    stream = Transforming(scripted(start(b"text/event-stream"), body(secret + b"id: 9\ndata: " + answer + b"\n\n")))
    done = await Call(stream, CALL).run()
    assert done.body == b'id: 9\ndata: {"jsonrpc":"2.0","id":1,"result":{"changed":true}}\n\n'
    plain = Transforming(scripted(start(b"application/json"), body(answer[:9], more=True), body(answer[9:])))
    done = await Call(plain, CALL).run()
    assert done.json == {"jsonrpc": "2.0", "id": 1, "result": {"changed": True}}
    assert done.headers["content-length"] == str(len(done.body))


class Strict(Member):
    stage = "authorization"

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        exchange.strict = True
        return None


@pytest.mark.parametrize("media", [b"application/json", b"text/plain", b"application/octet-stream"])
async def test_an_unreadable_answer_fails_closed_where_a_member_must_read_it(media: bytes) -> None:
    app = scripted(start(media), body(b'{"tools":[{"name":"secret"}]'))
    done = await Call(Strict(app), rpc("tools/list")).run()
    assert (done.status, done.json["error"]["code"]) == (502, -32603)
    assert b"secret" not in done.body
    events = scripted(start(b"text/event-stream"), body(b"data: secret\n\n: c\n\nevent: endpoint\ndata: /m\n\n"))
    passed, _, error = (await Call(Strict(events), rpc("tools/list")).run()).body.rpartition(b"event: message")
    assert passed == b": c\n\nevent: endpoint\ndata: /m\n\n"
    assert b'"code":-32603' in error
    refusal = scripted(start(media, 404), body(b"no such place"))
    done = await Call(Strict(refusal), rpc("tools/list")).run()
    assert (done.status, done.body) == (404, b"no such place")
    assert (await Call(Strict(scripted(start(media, 300), body(b"secret"))), rpc("tools/list")).run()).status == 502
    open_app = scripted(start(media), body(b"anything"))
    assert (await Call(Audit(open_app, []), rpc("tools/list")).run()).body == b"anything"


async def test_an_answer_over_the_bound_becomes_an_error() -> None:
    bounds = Bounds(max_answer_bytes=100)
    big = b'{"jsonrpc":"2.0","id":1,"result":{"a":"' + b"x" * 200 + b'"}}'
    done = await Call(Audit(scripted(start(b"application/json"), body(big)), [], bounds=bounds), CALL).run()
    assert (done.status, done.json["id"], done.json["error"]["code"]) == (502, 1, -32603)
    stream = scripted(start(b"text/event-stream"), body(b"data: " + big, more=True), body(b"\n\n"))
    done = await Call(Audit(stream, [], bounds=bounds), CALL).run()
    assert b'"code":-32603' in done.body
    assert done.events[-1]["more_body"] is False


async def test_case_40_a_server_that_fails_in_mid_stream_leaves_one_error_event_with_the_id() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        await send(body(b": x\n\n", more=True))
        raise RuntimeError("boom")

    audit = Audit(app, [])
    call = Call(audit, CALL)
    with pytest.raises(RuntimeError):
        await call.run()
    assert call.body.count(b"data: ") == 1
    assert b'"id":1' in call.body
    assert b"boom" not in call.body
    assert call.events[-1]["more_body"] is False
    assert isinstance(audit.exchanges[0].failed, RuntimeError)


@pytest.mark.parametrize(
    "events", [[], [start(b"application/json")], [start(b"text/event-stream"), body(b": x\n\n", more=True)]]
)
async def test_case_43_a_call_that_the_processs_end_cuts_off_is_told_so(events: list[Any]) -> None:
    reached = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for event in events:
            await send(event)
        reached.set()
        await asyncio.Event().wait()

    audit = Audit(app, [])
    call = Call(audit, CALL)
    task = asyncio.create_task(call.run())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.events[0]["status"] == (200 if len(events) == 2 else 503)
    assert b'"id":1' in call.body
    assert b'"code":-32603' in call.body, "not the code that says that nothing was done"
    assert call.events[-1].get("more_body", False) is False


async def test_case_40_a_stream_of_unknown_outcome_ends_without_ending_the_connection() -> None:
    """The client may use it again as soon as its answer has ended."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        await send(body(b": x\n\n", more=True))
        raise UnknownOutcomeError

    audit = Audit(app, [])
    call = await Call(audit, CALL).run()
    assert call.body.count(b"data: ") == 1
    assert isinstance(audit.exchanges[0].failed, UnknownOutcomeError)


async def test_a_stream_that_breaks_off_after_its_answer_has_a_known_outcome() -> None:
    answer = b'data: {"jsonrpc":"2.0","id":1,"result":{"content":[]}}\n\n'

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        await send(body(answer, more=True))
        raise UnknownOutcomeError

    audit = Audit(app, [])
    call = await Call(audit, CALL).run()
    assert call.body == answer
    assert call.events[-1]["more_body"] is False
    assert audit.exchanges[0].failed is None


class Authenticating(Member):
    stage = "resource_server"
    expires_at = 0.0

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        exchange.principal = Principal("https://i", "agent", "s", expires_at=self.expires_at)
        return None


@pytest.mark.parametrize("own_task", [False, True])
async def test_case_24_the_end_of_the_token_ends_open_streams(own_task: bool) -> None:
    closed: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        try:
            await asyncio.Event().wait()
        finally:
            closed.append(scope["method"])

    async def in_a_task_of_its_own(scope: Any, receive: Any, send: Any) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(app(scope, receive, send))

    member = Authenticating(in_a_task_of_its_own if own_task else app)
    member.expires_at = time.time() + 0.1
    post = await Call(member, CALL).run()
    assert b"has ended" in post.body
    assert post.events[-1]["more_body"] is False
    get = await Call(member, method="GET").run()
    assert get.body == b""
    assert closed == ["POST", "GET"]


class Revocable(Member):
    """A token without an end that its issuer may revoke."""

    stage = "resource_server"

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.good = [True, True, False]

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        exchange.principal = Principal("https://i", "agent", "s")
        exchange.still_good = self.is_still_good
        return None

    async def is_still_good(self, exchange: Exchange) -> bool:
        assert exchange.principal is not None
        return self.good.pop(0)


async def test_case_24_a_revoked_token_ends_open_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_middleware.answer._TOKEN_CHECK", 0.01)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        await asyncio.Event().wait()

    member = Revocable(app)
    post = await Call(member, CALL).run()
    assert b"401001" in post.body
    assert member.good == []
    member.good = [True, False]
    assert (await Call(member, method="GET").run()).events[-1]["more_body"] is False
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "cutoff"]


async def test_case_24_a_stream_that_ends_by_itself_is_asked_about_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_middleware.answer._TOKEN_CHECK", 0.01)
    waiting = asyncio.Event()
    answer = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        await waiting.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    class Slow(Revocable):
        async def is_still_good(self, exchange: Exchange) -> bool:
            waiting.set()
            await answer.wait()
            raise AssertionError

    done = await Call(Slow(app), CALL).run()
    assert done.events[-1]["more_body"] is False
    answer.set()
    await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "cutoff"]


async def test_case_24_the_end_and_the_revocation_at_once_end_a_stream_once() -> None:
    """Both timers may fire in one turn of the loop; a second cancellation would be taken for one from outside."""
    cutoff = Cutoff()
    loop = asyncio.get_running_loop()

    async def bad() -> bool:
        return False

    cutoff.start(0.0)
    cutoff.ask(bad, every=0.0)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.Event().wait()
    assert cutoff.absorbs()
    cutoff.stop()
    turn = loop.create_future()
    loop.call_later(0.01, turn.set_result, None)
    await turn


async def test_a_closing_hook_that_fails_keeps_no_other_from_running(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Recorder):
        stage = "affinity"

        async def on_finish(self, exchange: Exchange) -> None:
            raise RuntimeError("closing")

    log: list[str] = []
    done = await Call(Audit(Failing(EchoServer(), log), log), CALL).run()
    assert done.status == 200
    assert log[-1] == "audit.finish"
    assert "a member failed while finishing" in caplog.text


class DenyAdmin(Recorder):
    stage = "authorization"

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        message = exchange.message
        if isinstance(message, Request) and message.target == "admin":
            return Rejection(200, -32602, "Unknown tool: admin", "not_allowed")
        return None


@pytest.mark.parametrize("sse", [False, True])
async def test_case_12_each_message_of_a_batch_is_judged_by_itself(sse: bool) -> None:
    """A16."""
    server = EchoServer(sse=sse)
    audit = Audit(DenyAdmin(server, []), [])
    batch = [
        rpc("tools/call", {"name": "echo"}, 1),
        rpc("tools/call", {"name": "admin"}, 2),
        rpc("notifications/cancelled", request_id=None),
        rpc("tools/call", {"name": "echo"}, "three"),
    ]
    done = await Call(audit, batch).run()
    assert done.status == 200
    if sse:
        answers = [json.loads(line[6:]) for line in done.body.splitlines() if line.startswith(b"data: ")]
        assert done.events[-1]["more_body"] is False
    else:
        answers = done.json
    assert [answer["id"] for answer in answers] == [1, 2, "three"]
    assert answers[1]["error"]["message"] == "Unknown tool: admin"
    assert [message.get("id") for message in server.received] == [1, None, "three"]
    recorded = [(x.silent, x.rejection is not None) for x in audit.exchanges]
    assert recorded == [(False, False), (False, True), (False, False), (False, False), (True, False)]


async def test_a_batch_of_notifications_is_accepted_without_a_body() -> None:
    done = await Call(Audit(EchoServer(), []), [rpc("notifications/x", request_id=None)]).run()
    assert (done.status, done.body) == (202, b"")


async def test_a_call_of_a_batch_that_the_server_leaves_open_is_answered_all_the_same() -> None:
    silent = scripted({"type": "http.response.start", "status": 202, "headers": []}, body(b""))
    done = await Call(Audit(silent, []), [rpc("ping", request_id=1), rpc("ping", request_id=2)]).run()
    assert [(answer["id"], answer["error"]["code"]) for answer in done.json] == [(1, -32603), (2, -32603)]


async def test_one_failing_message_of_a_batch_does_not_fail_the_others(caplog: pytest.LogCaptureFixture) -> None:
    echo = EchoServer()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if not echo.scopes:
            echo.scopes.append(scope)
            raise RuntimeError("boom")
        await echo(scope, receive, send)

    done = await Call(Audit(app, []), [rpc("ping", request_id=1), rpc("ping", request_id=2)]).run()
    assert [answer["id"] for answer in done.json] == [1, 2]
    assert done.json[0]["error"]["code"] == -32603
    assert "boom" not in done.body.decode()


async def test_a6_white_space_round_mirrored_headers_is_neither_compared_nor_forwarded() -> None:
    server = EchoServer()
    message = rpc("tools/call", {"name": "echo", "_meta": MODERN_META})
    headers = {**modern_headers("tools/call", " echo \t"), "mcp-param-region": " eu "}
    assert (await Call(Audit(server, []), message, headers=headers).run()).status == 200
    sent = dict(server.scopes[0]["headers"])
    assert (sent[b"mcp-name"], sent[b"mcp-param-region"]) == (b"echo", b"eu")


async def test_a1_parameter_headers_pass_unchanged_and_the_answer_stays_readable() -> None:
    server = EchoServer()
    headers = {"mcp-param-Region": "eu", "x-other": "1", "accept-encoding": "gzip"}
    await Call(Audit(server, []), CALL, headers=headers).run()
    sent = dict(server.scopes[0]["headers"])
    assert sent[b"mcp-param-Region"] == b"eu"
    assert sent[b"x-other"] == b"1"
    assert b"accept-encoding" not in sent


async def test_case_21_equal_ids_at_once_never_cross() -> None:
    app = Audit(EchoServer(), [])
    calls = [Call(app, rpc("tools/call", {"name": "echo", "arguments": {"n": n}})) for n in range(500)]
    await asyncio.gather(*(call.run() for call in calls))
    for n, call in enumerate(calls):
        assert call.json["result"]["echo"]["arguments"] == {"n": n}


@pytest.mark.parametrize("value", [0, -1, "4", None, True])
def test_wrong_bounds_are_refused_with_their_name(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Bounds\.max_body_bytes"):
        Bounds(max_body_bytes=value)


def test_something_that_is_no_application_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="ASGI application"):
        Audit(5, [])


async def test_case_41_a_task_that_is_cancelled_while_one_member_settles_lets_the_others_settle_too() -> None:
    log: list[str] = []
    settling = asyncio.Event()

    class Slow(Recorder):
        stage = "affinity"

        async def on_finish(self, exchange: Exchange) -> None:
            settling.set()
            await asyncio.Event().wait()

    running = asyncio.create_task(Call(Audit(Limiter(Slow(EchoServer(), log), log), log), CALL).run())
    await settling.wait()
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert log[-2:] == ["limiter.finish", "audit.finish"]
