"""Cases for the gateway's whole path: what was judged is what a server gets, and what happens when parts die."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from mcp_middleware.types import Era
from tests.integration.stack import build_server
from tests.storage.redis_server import RedisServer
from tests.support import LEGACY, SESSION_KEY, answer_of, each_era, headers_for, initialize, message, post, serve

from .gateways import ECHO, OTHER, Running, gateway
from .test_gateway import before


class Recorder:
    """A server that keeps the bodies it gets, byte for byte, and answers each request."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = await Request(scope, receive).body()
        if scope["method"] == "POST":
            self.bodies.append(body)
        answer = json.dumps({"jsonrpc": "2.0", "id": json.loads(body or b"{}").get("id"), "result": {"content": []}})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": answer.encode()})


@asynccontextmanager
async def recorded(directory: Path, **changes: Any) -> AsyncIterator[tuple[Running, Recorder]]:
    recorder = Recorder()
    async with serve(recorder) as upstream, gateway(directory, {"files": f"{upstream}/mcp"}, **changes) as running:
        yield running, recorder


DIFFERENTIALS = (
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","name":"admin_reset"}}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"admin_reset","name":"echo"}}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"Name":"admin_reset","name":"echo"}}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call","params":{"name":"echo"}}',
    b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"}}',
    '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"}}'.encode("utf-16"),
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"x":NaN}}}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"ec\\ud800ho"}}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":%s1%s}}'
    % (b"[" * 200, b"]" * 200),
)


async def test_case_14_a_body_two_parsers_read_differently_is_refused_or_made_one(tmp_path: Path) -> None:
    async with recorded(tmp_path) as (running, recorder):
        token = running.token()
        headers = headers_for(era="legacy", token=token) | {"mcp-protocol-version": LEGACY}
        for body in DIFFERENTIALS:
            recorder.bodies.clear()
            reply = await running.http.post(running.url(), content=body, headers=headers)
            if reply.status_code == 200 and recorder.bodies:
                forwarded = recorder.bodies[0]
                assert json.loads(forwarded)["params"]["name"] == "echo"
                assert forwarded.count(b'"name"') == 1
            else:
                assert not recorder.bodies


async def test_case_14_arguments_reach_the_server_byte_for_byte(tmp_path: Path) -> None:
    spellings = (b'{"n":1.0,"big":123456789012345678901234567890,"e":1E5}', b'{ "a" : [ 1 ,2 ] }', b'{"u":"\\u00e9"}')
    async with recorded(tmp_path) as (running, recorder):
        headers = headers_for(era="legacy", token=running.token()) | {"mcp-protocol-version": LEGACY}
        for arguments in spellings:
            body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":%s}}' % arguments
            reply = await running.http.post(running.url(), content=body, headers=headers)
            assert reply.status_code == 200
            assert arguments in recorder.bodies[-1]


async def test_case_15_a_call_without_a_valid_id_is_never_forwarded(tmp_path: Path) -> None:
    async with recorded(tmp_path) as (running, recorder):
        ids: tuple[Any, ...] = (None, True, 1.5, [], {}, "absent")
        for request_id in ids:
            body = message("tools/call", ECHO, era="legacy")
            body["id"] = request_id
            if request_id == "absent":
                del body["id"]
            for version in (LEGACY, None):
                headers = headers_for(body, era="legacy", token=running.token())
                if version is None:
                    del headers["mcp-protocol-version"]
                reply = await running.http.post(running.url(), json=body, headers=headers)
                assert reply.status_code == 400
        assert not recorder.bodies
    assert len(running.records()) == 12


@each_era
async def test_case_16_a_filtered_list_is_private_and_shows_no_gap(era: Era, tmp_path: Path) -> None:
    async with before(tmp_path) as running:
        token = running.token()
        session = await initialize(running.http, running.url(), token=token) if era == "legacy" else None
        for method, kind in (("tools/list", "tools"), ("prompts/list", "prompts"), ("resources/list", "resources")):
            reply = await post(running.http, running.url(), method, era=era, token=token, session=session)
            result = answer_of(reply)["result"]
            assert not [item for item in result[kind] if "admin" in json.dumps(item) or "secret" in json.dumps(item)]
            if era == "modern":
                assert result["cacheScope"] == "private"
                assert result["ttlMs"] <= 60_000


@each_era
async def test_case_17_what_no_rule_names_is_denied(era: Era, tmp_path: Path) -> None:
    async with recorded(tmp_path) as (running, recorder):
        asked: list[tuple[str, dict[str, Any]]] = [
            ("prompts/get", {"name": "hidden"}),
            ("resources/read", {"uri": "secret://one"}),
            ("completion/complete", {"ref": {"type": "ref/prompt", "name": "hidden"}, "argument": {"name": "a"}}),
            ("made/up", {}),
            ("tools/execute", {"name": "echo"}),
        ]
        for method, params in asked:
            reply = await post(running.http, running.url(), method, params, era=era, token=running.token())
            assert "error" in answer_of(reply), method
        assert not recorder.bodies
    assert {record.decision for record in running.records()} == {"denied"}


async def test_case_24_a_session_outlives_its_token_and_a_stream_does_not(tmp_path: Path) -> None:
    async with before(tmp_path) as running:
        short = running.token(lifetime=3)
        session = await initialize(running.http, running.url(), token=short)
        headers = headers_for(era="legacy", token=short, session=session)
        async with running.http.stream("GET", running.url(), headers=headers) as stream:
            assert stream.status_code == 200
            async for _ in stream.aiter_bytes():  # it ends by itself
                pass
        refused = await post(
            running.http, running.url(), "tools/call", ECHO, era="legacy", token=short, session=session
        )
        assert refused.status_code == 401
        fresh = running.token()
        reply = await post(running.http, running.url(), "tools/call", ECHO, era="legacy", token=fresh, session=session)
        assert answer_of(reply)["result"]["content"][0]["text"] == "x"


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.kill()


async def test_case_42_redis_dies_and_calls_go_on_within_the_replicas_share(redis: RedisServer, tmp_path: Path) -> None:
    limits = {"requests": {"rate": "600/hour", "burst": 40}}
    async with before(tmp_path, state=redis.url, limits=limits) as running:
        token = running.token()
        session = await initialize(running.http, running.url(), token=token)
        options: dict[str, Any] = {"token": token, "era": "legacy", "session": session}
        assert (await post(running.http, running.url(), "tools/call", ECHO, **options)).status_code == 200
        redis.kill()
        statuses = [
            (await post(running.http, running.url(), "tools/call", ECHO, **options)).status_code for _ in range(60)
        ]
        assert set(statuses) == {200, 429}, "never open, never closed"
        assert statuses.count(200) <= 40
        opening = await post(
            running.http, running.url(), "initialize", {"protocolVersion": LEGACY}, era="legacy", token=token
        )
        assert opening.status_code == 503, "what needs the store says so"
        assert "retry-after" in opening.headers


async def test_case_42_revoked_sessions_and_caps_are_shared_through_redis(redis: RedisServer, tmp_path: Path) -> None:
    sessions = {"keys": [SESSION_KEY], "per_agent": 2}
    first_home, second_home = tmp_path / "a", tmp_path / "b"
    first_home.mkdir()
    second_home.mkdir()
    async with (
        serve(build_server("sdk")) as upstream,
        gateway(first_home, {"files": f"{upstream}/mcp"}, state=redis.url, sessions=sessions) as first,
    ):
        auth = {"issuers": [first.issuer.issuer], "scopes": ["mcp:use"]}
        shared: dict[str, Any] = {"state": redis.url, "sessions": sessions, "auth": auth, "public_url": first.origin}
        async with gateway(second_home, {"files": f"{upstream}/mcp"}, **shared) as second:
            token = first.token()
            host = {"host": first.origin.removeprefix("http://")}
            held = await initialize(first.http, first.url(), token=token)
            assert await initialize(first.http, second.url(), token=token, headers=host) is not None
            opening = await post(
                first.http, second.url(), "initialize", {"protocolVersion": LEGACY}, era="legacy", token=token
            )
            assert opening.status_code == 429, "two in all, wherever they were opened"
            ended = await first.http.delete(first.url(), headers=headers_for(era="legacy", token=token, session=held))
            assert ended.status_code == 200
            reply = await post(
                first.http, second.url(), "tools/call", ECHO, era="legacy", token=token, session=held, headers=host
            )
            assert reply.status_code == 404


async def test_case_42_a_dead_issuer_is_no_callers_fault(tmp_path: Path) -> None:
    async with before(tmp_path, auth={"issuers": ["http://127.0.0.1:9"], "scopes": ["mcp:use"]}) as running:
        running.issuer.issuer = "http://127.0.0.1:9"
        reply = await post(running.http, running.url(), "tools/call", ECHO, token=running.token())
        assert reply.status_code == 503
        assert "retry-after" in reply.headers
        assert "www-authenticate" not in reply.headers


async def test_case_42_a_dead_collector_costs_no_call(tmp_path: Path) -> None:
    async with before(tmp_path, tracing={"otlp": "http://127.0.0.1:9"}) as running:
        for _ in range(50):
            reply = await post(running.http, running.url(), "tools/call", ECHO, token=running.token())
            assert reply.status_code == 200


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full disk is made with /dev/full")  # noqa: PTH110
async def test_case_42_a_full_disk_refuses_calls_or_lets_them_pass_as_configured(tmp_path: Path) -> None:
    for on_failure, status in (("refuse", 503), ("continue", 200)):
        audit = {"jsonl": "/dev/full", "on_failure": on_failure}
        async with before(tmp_path, audit=audit) as running:
            for _ in range(200):
                reply = await post(running.http, running.url(), "tools/call", ECHO, token=running.token())
                if reply.status_code == status:
                    break
                await asyncio.sleep(0.02)
            assert reply.status_code == status


async def test_case_25_a_new_token_or_session_is_the_same_agent(tmp_path: Path) -> None:
    async with before(tmp_path, names=("files", "notes"), limits={"requests": "4/hour"}) as running:
        for n in range(5):
            name = ("files", "notes")[n % 2]
            reply = await post(running.http, running.url(name), "tools/call", ECHO, token=running.token(server=name))
            assert reply.status_code == (200 if n < 4 else 429), "one budget for all servers"
        other = await post(running.http, running.url(), "tools/call", ECHO, token=running.token(OTHER))
        assert other.status_code == 200


DYING = {
    "no answer": (b"", 502),
    "half an answer": (b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 90\r\n\r\n{"json', 502),
    "half a stream": (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        b'3f\r\ndata: {"jsonrpc":"2.0","method":"notifications/progress","par\r\n',
        200,
    ),
}


@asynccontextmanager
async def dying(sent: bytes, calls: list[bytes]) -> AsyncIterator[dict[str, str]]:
    """A server that sends no more than that, and notes what it was sent."""

    async def serve_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            calls.append(head)
            writer.write(sent)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve_once, "127.0.0.1", 0) as server:
        yield {"files": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"}


@pytest.mark.parametrize("how", DYING)
async def test_case_40_an_upstream_that_dies_leaves_one_error_and_the_outcome_unknown(how: str, tmp_path: Path) -> None:
    sent, status = DYING[how]
    calls: list[bytes] = []
    async with dying(sent, calls) as servers, gateway(tmp_path, servers) as running:
        reply = await post(running.http, running.url(), "tools/call", ECHO, token=running.token(), id="mine")
        assert reply.status_code == status
        answer = answer_of(reply)
        assert answer["id"] == "mine"
        assert "error" in answer
        assert len(calls) == 1, "what may have been sent is never sent again"
    assert [(record.decision, record.outcome) for record in running.records()] == [("allowed", "unknown")]


async def test_case_40_an_upstream_that_dies_after_its_answer_has_answered(tmp_path: Path) -> None:
    """The call is recorded, settled and priced like any other."""
    event = b'data: {"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"done"}]}}\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    governed: dict[str, Any] = {
        "limits": {"tokens": "1000/hour"},
        "prices": {"currency": "EUR", "rules": [{"call": 1}]},
    }
    async with (
        dying(head + b"%x\r\n%b\r\n" % (len(event), event), []) as servers,
        gateway(tmp_path, servers, **governed) as running,
    ):
        reply = await post(running.http, running.url(), "tools/call", ECHO, token=running.token(), id=1)
        assert reply.status_code == 200
        assert reply.content == event
    assert [(record.outcome, record.cost) for record in running.records()] == [("ok", 1.0)]
