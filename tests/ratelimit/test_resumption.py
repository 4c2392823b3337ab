"""Real servers that resume streams, over sockets: a client that leaves, or is sent away, takes what it takes."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastmcp.server.event_store import EventStore
from mcp.shared.exceptions import MCPError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcp_middleware.audit import AuditLogMiddleware, AuditRecord
from mcp_middleware.ratelimit import RateLimitMiddleware
from tests.audit.trails import ListSink
from tests.gateway.gateways import CI, gateway
from tests.mcp_servers import CONTEXTS, KINDS, Kind, app_of, server_of
from tests.support import connect, headers_for, initialize, message, post, serve, text_of, until


class Gate:
    """Of a tool that waits: it says how many calls run, and of how many the client has left, and they end once it is
    open."""

    def __init__(self) -> None:
        self.running = 0
        self.left = 0
        self.opened = asyncio.Event()


def resumable(kind: Kind, gate: Gate) -> ASGIApp:
    """A server that keeps its events."""
    server = server_of(kind)

    async def write(words: int, ctx: Any) -> str:
        """Write that many words, once the client has been sent away to poll for them."""
        await ctx.close_sse_stream()
        return "word " * words

    write.__annotations__["ctx"] = CONTEXTS[kind]
    server.tool()(write)

    @server.tool()
    async def wait(words: int) -> str:
        """Write that many words when the gate opens."""
        gate.running += 1
        await gate.opened.wait()
        return "word " * words

    return app_of(server, event_store=EventStore(), retry_interval=1)


def watched(app: ASGIApp, gate: Gate) -> ASGIApp:
    """``app``, of whose calls that wait the gate learns when it is told that the client has left."""

    async def watching(scope: Scope, receive: Receive, send: Send) -> None:
        called = b""

        async def receive_on() -> Message:
            nonlocal called
            event = await receive()
            called += event.get("body", b"")
            if event["type"] == "http.disconnect" and b'"wait"' in called:
                gate.left += 1
            return event

        await app(scope, receive_on, send)

    return watching


class Running:
    """A served server and what is recorded of it."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.url = ""
        self.sink = ListSink()

    @property
    def calls(self) -> list[AuditRecord]:
        return [record for record in self.sink.records if record.method == "tools/call"]


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Serves one of the two servers inside audit and limiter."""

    @asynccontextmanager
    async def running(**options: Any) -> AsyncIterator[Running]:
        made = Running()
        limiter = RateLimitMiddleware(resumable(request.param, made.gate), **options)
        audited = AuditLogMiddleware(limiter, sink=made.sink)
        async with serve(watched(audited, made.gate), drain=0.1) as origin:
            made.url = f"{origin}/mcp"
            yield made

    return running


LIMITS: dict[str, Any] = {
    "requests": "1000/day",
    "tokens": "1500/day",
    "initial_output_tokens": 10,
    "prices": {"currency": "EUR", "rules": [{"output": 1}]},
}


async def begin(
    http: httpx2.AsyncClient, url: str, session: str | None, tool: str, *, id: int, token: str | None = None
) -> tuple[int, str]:
    """Call a tool and leave at the first event; the status, and that event's id."""
    called = message("tools/call", {"name": tool, "arguments": {"words": 3000}}, id=id, era="legacy")
    headers = headers_for(called, era="legacy", session=session, token=token)
    async with http.stream("POST", url, content=json.dumps(called), headers=headers) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("id:"):
                return reply.status_code, line[3:].strip()
    return reply.status_code, ""


async def resume(
    http: httpx2.AsyncClient,
    url: str,
    session: str | None,
    event: str,
    *,
    id: int,
    token: str | None = None,
    begun: asyncio.Event | None = None,
) -> str:
    """Ask once for what came after ``event``: the answer, or nothing where the stream ends without it."""
    headers = headers_for(None, era="legacy", session=session, token=token) | {"last-event-id": event}
    async with asyncio.timeout(10), http.stream("GET", url, headers=headers) as reply:
        if begun is not None:
            begun.set()
        async for line in reply.aiter_lines():
            if line.startswith("data: {") and json.loads(line[6:]).get("id") == id:
                return line
    return ""


async def poll(http: httpx2.AsyncClient, url: str, session: str | None, event: str, **options: Any) -> str:
    """Ask again and again, as a client that has been sent away to poll."""
    async with asyncio.timeout(10):
        while True:
            if answer := await resume(http, url, session, event, **options):
                return answer
            await asyncio.sleep(0.005)


async def left(http: httpx2.AsyncClient, url: str, session: str | None) -> int:
    reply = await post(http, url, "tools/list", era="legacy", session=session)
    found = re.search(r'"tokens";r=(\d+)', reply.headers["ratelimit"])
    assert found is not None
    return int(found[1])


async def test_what_a_client_polls_for_counts(run: Callable[..., Any]) -> None:
    async with run(**LIMITS) as server, connect(server.url, era="legacy") as client:
        assert text_of(await client.call_tool("write", {"words": 3000})).startswith("word")
        with pytest.raises(MCPError) as refused:
            await client.call_tool("write", {"words": 1})
        assert refused.value.error.data["dimension"] == "tokens"
        counted, limited = server.calls
    assert (counted.outcome, counted.decision, limited.decision) == ("ok", "allowed", "limited")
    assert counted.output_tokens > 3000
    assert counted.cost == pytest.approx(counted.output_tokens / 1_000_000)
    assert counted.response_bytes > 15_000


async def test_what_a_client_polls_for_counts_once(run: Callable[..., Any]) -> None:
    async with run(**LIMITS | {"tokens": "100000/day"}) as server, httpx2.AsyncClient() as http:
        session = await initialize(http, server.url)
        _, event = await begin(http, server.url, session, "write", id=7)
        assert "word word" in await poll(http, server.url, session, event, id=7)
        after = await left(http, server.url, session)
        assert after < 97_000
        assert "word word" in await poll(http, server.url, session, event, id=7)
        assert await left(http, server.url, session) == after
        assert len(server.calls) == 1


async def test_case_30_what_nobody_polls_for_keeps_the_estimate(run: Callable[..., Any]) -> None:
    async with run(**LIMITS | {"initial_output_tokens": 500, "concurrency": 1}) as server, httpx2.AsyncClient() as http:
        session = await initialize(http, server.url)
        await begin(http, server.url, session, "write", id=1)
        async with asyncio.timeout(10):  # it is not open any more, as soon as its stream has ended
            while (await begin(http, server.url, session, "write", id=2))[0] != 200:
                pass
        assert 450 < await left(http, server.url, session) < 500
    ended = [(call.output_tokens, call.cost) for call in server.calls if call.decision == "allowed"]
    assert ended == [(None, None)] * 2


async def test_case_41_a_client_that_leaves_its_stream_gets_the_rest_with_the_first_that_resumes_it(
    run: Callable[..., Any],
) -> None:
    options = LIMITS | {"tokens": "100000/day", "concurrency": 1}
    async with run(**options) as server, httpx2.AsyncClient() as http:
        session = await initialize(http, server.url)
        _, event = await begin(http, server.url, session, "wait", id=7)
        await until(lambda: server.gate.running and server.gate.left)
        begun = asyncio.Event()
        resuming = asyncio.create_task(resume(http, server.url, session, event, id=7, begun=begun))
        await begun.wait()
        assert (await begin(http, server.url, session, "wait", id=8))[0] == 429
        server.gate.opened.set()
        assert "word word" in await resuming
        assert await left(http, server.url, session) < 97_000
        async with asyncio.timeout(10):  # its place is free, as soon as the stream has ended by which its answer came
            while (await begin(http, server.url, session, "wait", id=9))[0] != 200:
                pass
        found = [(one.outcome, one.output_tokens) for one in server.calls if one.decision == "allowed"]
    assert found[0][0] == "ok"
    assert found[0][1] > 3000


async def test_case_41_a_client_that_leaves_its_calls_has_no_more_of_them_at_once(run: Callable[..., Any]) -> None:
    async with run(requests="1000/day", concurrency=2) as server, httpx2.AsyncClient() as http:
        session = await initialize(http, server.url)
        statuses = [(await begin(http, server.url, session, "wait", id=number))[0] for number in range(6)]
        assert statuses == [200, 200, 429, 429, 429, 429]
        await until(lambda: server.gate.running == 2)
        server.gate.opened.set()
        await until(lambda: len(server.calls) == 6)
        assert (await begin(http, server.url, session, "wait", id=7))[0] == 200


async def test_what_is_polled_for_through_a_gateway_counts(tmp_path: Path) -> None:
    limits = {name: LIMITS[name] for name in ("requests", "tokens", "initial_output_tokens")}
    options: dict[str, Any] = {"access": {"default": "allow"}, "limits": limits, "prices": LIMITS["prices"]}
    async with (
        serve(resumable("sdk", Gate()), drain=0.1) as origin,
        gateway(tmp_path, {"files": f"{origin}/mcp"}, **options) as running,
    ):
        url, token = running.url("files"), running.token(CI, "files")
        session = await initialize(running.http, url, token=token)
        _, event = await begin(running.http, url, session, "write", id=7, token=token)
        assert "word word" in await resume(running.http, url, session, event, id=7, token=token)
        assert (await begin(running.http, url, session, "write", id=8, token=token))[0] == 429
    found = [(one.outcome, one.output_tokens, one.cost) for one in running.records() if one.method == "tools/call"]
    ((outcome, tokens, cost), refused) = found
    assert (outcome, refused[0]) == ("ok", "refused")
    assert tokens is not None
    assert tokens > 3000
    assert cost == pytest.approx(tokens / 1_000_000)


async def test_a_server_behind_a_gateway_is_told_that_a_client_has_left_which_resumes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"access": {"default": "allow"}, "limits": {"requests": "100/day"}}
    gate = Gate()
    async with (
        serve(watched(resumable("sdk", gate), gate), drain=0.1) as origin,
        gateway(tmp_path, {"files": f"{origin}/mcp"}, **options) as running,
    ):
        url, token = running.url("files"), running.token(CI, "files")
        session = await initialize(running.http, url, token=token)
        _, event = await begin(running.http, url, session, "wait", id=7, token=token)
        polling = asyncio.create_task(poll(running.http, url, session, event, id=7, token=token))
        await until(lambda: gate.left)
        gate.opened.set()
        assert "word word" in await polling
