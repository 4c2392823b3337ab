"""The pipeline: what reaches members and the server, and what is refused before."""

import asyncio
import gc
import json
import subprocess
import sys
import threading
from typing import Any

import pytest

from mcp_middleware.exchange import Exchange
from mcp_middleware.member import Bounds
from mcp_middleware.message import parse
from mcp_middleware.server_message import parse_server_message
from mcp_middleware.types import Document, Rejection
from tests.support import MODERN_META, until

from .asgi import Call, EchoServer, modern_headers, rpc
from .recording import CALL, Audit, Limiter, Recorder, Refusing, body, start


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
    order: list[str] = []
    message = rpc("tools/call", {"name": "echo", "_meta": MODERN_META})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        order.append((await receive())["type"])
        order.append((await receive())["type"])

    audit = Audit(app, [])
    call = Call(audit, message, headers=modern_headers("tools/call", "echo"))
    call.disconnect()
    await call.run()
    assert order == ["http.request", "http.disconnect"]
    assert audit.exchanges[0].disconnected


class Listening:
    """A server that looks whether its client leaves, until it is, or has answered once ``gate`` is open."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.events = events
        self.gate = asyncio.Event()
        self.order: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.order.append((await receive())["type"])
        told = asyncio.create_task(receive())
        await asyncio.wait({told, asyncio.create_task(self.gate.wait())}, return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            for event in self.events:
                await send(event)
            self.order.append("answered")
        self.order.append((await told)["type"])


ANSWERS = {
    "json": (start(b"application/json"), body(b'{"jsonrpc":"2.0","id":1,"result":{}}')),
    "stream": (
        start(b"text/event-stream"),
        body(b'data: {"jsonrpc":"2.0","id":1,"result":{}}\n\n', more=True),
        body(b""),
    ),
    "page": (start(b"text/plain", 400), body(b"No such ", more=True), body(b"session")),
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_case_41_a_legacy_call_outlives_its_client_and_is_seen_to_its_end(answer: str) -> None:
    server = Listening(*ANSWERS[answer])
    audit = Audit(server, [])
    call = Call(audit, CALL)
    call.disconnect()
    running = asyncio.create_task(call.run())
    await until(call.incoming.empty)
    server.gate.set()
    await running
    assert server.order == ["http.request", "answered", "http.disconnect"]
    assert call.events == []
    (exchange,) = audit.exchanges
    assert exchange.disconnected
    assert (exchange.answer is None) == (answer == "page")
    assert exchange.response_bytes > 0


async def test_a_server_is_told_in_the_end_that_the_client_of_its_legacy_call_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mcp_middleware.answer._OUTLIVES", 0.01)
    server = Listening()
    call = Call(Audit(server, []), CALL)
    call.disconnect()
    await call.run()
    assert server.order == ["http.request", "http.disconnect"]


async def test_the_end_of_a_legacy_answer_is_not_taken_for_its_client_leaving() -> None:
    server = Listening(*ANSWERS["stream"])
    server.gate.set()
    audit = Audit(server, [])
    call = Call(audit, CALL)
    running = asyncio.create_task(call.run())
    await call.seen(3)
    call.disconnect()  # as servers say it of an answer that is complete
    await running
    assert server.order == ["http.request", "answered", "http.disconnect"]
    assert not audit.exchanges[0].disconnected


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


async def test_one_thread_reads_large_messages_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one has the interpreter's lock, and the loop would wait for all that ask for it."""
    threads: set[int] = set()

    def noting(data: bytes) -> Any:
        threads.add(threading.get_ident())
        return parse(data)

    def noting_answer(data: bytes) -> Any:
        threads.add(threading.get_ident())
        return parse_server_message(data)

    monkeypatch.setattr("mcp_middleware.exchange.parse", noting)
    monkeypatch.setattr("mcp_middleware.answer.parse_server_message", noting_answer)
    call = rpc("tools/call", {"name": "a", "arguments": {"a": "x" * 300_000}})
    audits = [Audit(EchoServer(sse=bool(number % 2)), []) for number in range(8)]
    await asyncio.gather(*(Call(audit, call).run() for audit in audits))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_large_messages_are_read_after_a_fork_too() -> None:
    """Threads stay with the parent: workers may be forked from a process that has served."""
    program = """
import asyncio, os
from mcp_middleware.exchange import in_thread
assert asyncio.run(in_thread(len, b"12")) == 2
child = os.fork()
read = asyncio.run(asyncio.wait_for(in_thread(len, b"123"), 10))
if child == 0:
    os._exit(read)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), read)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
    assert done.stdout == b"3 3\n"
