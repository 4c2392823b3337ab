"""The limiter in front of real servers, over sockets, with the official client of both eras."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from mcp_middleware.errors import RATE_LIMITED
from mcp_middleware.ratelimit import RateLimitMiddleware
from mcp_middleware.storage import MemoryStorage
from mcp_middleware.testing import FakeClock
from mcp_middleware.types import Era
from tests.gateway.gateways import CI, gateway
from tests.mcp_servers import CONTEXTS, KINDS, Kind, app_of, server_of
from tests.support import answer_of, connect, each_era, headers_for, message, post, serve, text_of


def limited(kind: Kind, entered: asyncio.Event, options: dict[str, Any]) -> ASGIApp:
    server = server_of(kind)

    @server.tool()
    def write(words: int) -> str:
        """Write that many words."""
        return "word " * words

    @server.tool()
    async def wait() -> str:
        """Wait for ever."""
        entered.set()
        await asyncio.Event().wait()
        return "done"

    @server.resource("file:///notes.txt")
    def notes() -> str:
        """Some notes."""
        return "word " * 50

    @server.prompt()
    def greet(name: str) -> str:
        """Greet somebody."""
        return f"Say hello to {name}."

    async def talk(times: int, ctx: Any) -> str:
        """Tell much before the answer."""
        for number in range(times):
            await ctx.report_progress(number, times, "word " * 400)
        return "done"

    talk.__annotations__["ctx"] = CONTEXTS[kind]
    server.tool()(talk)
    return app_of(server, Middleware(RateLimitMiddleware, **options))


class Posts:
    """Knows when no POST is being served any more: an answer may arrive just before it is settled."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.open = 0
        self.changed = asyncio.Condition()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope.get("method") != "POST":
            await self.app(scope, receive, send)
            return
        self.open += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.open -= 1
            async with self.changed:
                self.changed.notify_all()

    async def settled(self) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.open == 0)


class Running:
    """A served app and the clock of its limiter."""

    def __init__(self, url: str, clock: FakeClock, entered: asyncio.Event, posts: Posts) -> None:
        self.url = url
        self.clock = clock
        self.entered = entered
        self.settled = posts.settled


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Serves one of the two servers behind a limiter with the given options."""

    @asynccontextmanager
    async def running(**options: Any) -> AsyncIterator[Running]:
        clock, entered = FakeClock(), asyncio.Event()
        posts = Posts(limited(request.param, entered, {"storage": MemoryStorage(clock=clock), **options}))
        async with serve(posts, drain=0.1) as origin:
            yield Running(f"{origin}/mcp", clock, entered, posts)

    return running


async def refusal(client: Client, tool: str, arguments: dict[str, Any]) -> MCPError:
    with pytest.raises(MCPError) as refused:
        await client.call_tool(tool, arguments)
    return refused.value


@each_era
async def test_case_28_the_official_client_sees_the_refusal_and_succeeds_after_it(
    run: Callable[..., Any], era: Era
) -> None:
    async with run(requests={"rate": "60/minute", "burst": 4}) as server, connect(server.url, era=era) as client:
        for _ in range(4):
            await client.list_prompts()
        error = await refusal(client, "write", {"words": 2})
        assert error.code == RATE_LIMITED
        assert error.error.data == {"dimension": "requests", "limit": 4, "remaining": 0, "retryAfterMs": 1000}
        server.clock.advance(4)  # the client lists the tools by itself to check a result
        assert text_of(await client.call_tool("write", {"words": 2})) == "word word "


@each_era
async def test_case_29_a_client_connects_and_says_goodbye_when_nothing_is_left(
    run: Callable[..., Any], era: Era
) -> None:
    async with run(requests="1/day") as server:
        async with connect(server.url, era=era) as client:
            await client.list_tools()
        for _ in range(3):
            async with connect(server.url, era=era) as client:
                with pytest.raises(MCPError):
                    await client.list_tools()


@each_era
async def test_long_answers_use_up_the_tokens(run: Callable[..., Any], era: Era) -> None:
    limits = {"requests": "1000/minute", "tokens": "1000/minute", "initial_output_tokens": 10}
    async with run(**limits) as server, connect(server.url, era=era) as client:
        assert text_of(await client.call_tool("write", {"words": 3000})).startswith("word")
        await server.settled()
        error = await refusal(client, "write", {"words": 1})
        assert error.error.data["dimension"] == "tokens"
        assert error.error.data["remaining"] == 0
        assert len((await client.list_tools()).tools) == 3  # a request without tokens does not wait for them
        server.clock.advance(error.error.data["retryAfterMs"] / 1000)
        await client.call_tool("write", {"words": 1})


@each_era
async def test_case_28_arguments_that_never_fit_are_refused_for_good(run: Callable[..., Any], era: Era) -> None:
    async with run(tokens="1000/minute") as server, connect(server.url, era=era) as client:
        error = await refusal(client, "write", {"words": 1, "padding": "long " * 2000})
        assert error.code == RATE_LIMITED
        assert error.error.data["limit"] == 1000
        assert "retryAfterMs" not in error.error.data


@each_era
async def test_the_official_client_takes_a_refusal_as_what_the_tool_says(run: Callable[..., Any], era: Era) -> None:
    async with (
        run(tools={"write": {"requests": "1/minute"}}, refuse_with="tool_result") as server,
        connect(server.url, era=era) as client,
    ):
        assert text_of(await client.call_tool("write", {"words": 2})) == "word word "
        refused = await client.call_tool("write", {"words": 2})
        assert refused.is_error
        assert text_of(refused) == "Not done: the limit on requests of this tool is reached; this request fits in 60 s."
        assert refused.meta is not None
        assert refused.meta["mcp-middleware/limit"]["retryAfterMs"] == 60_000
        server.clock.advance(60)
        assert not (await client.call_tool("write", {"words": 2})).is_error


@each_era
async def test_an_agent_has_no_more_calls_open_than_allowed(run: Callable[..., Any], era: Era) -> None:
    async with (
        run(concurrency=1) as server,
        connect(server.url, era=era) as client,
        connect(server.url, era=era) as other,
    ):
        waiting = asyncio.create_task(client.call_tool("wait", {}))
        await server.entered.wait()
        error = await refusal(other, "write", {"words": 1})
        assert error.error.data == {"dimension": "concurrency", "limit": 1, "remaining": 0, "retryAfterMs": 1000}
        waiting.cancel()
        await asyncio.wait({waiting})


@pytest.mark.parametrize("cut", [False, True])
@each_era
async def test_a_stream_that_tells_much_before_its_answer_is_charged_for_it(
    run: Callable[..., Any], era: Era, cut: bool
) -> None:
    heard: list[str | None] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message)

    limits = {"tokens": "1500/day", "initial_output_tokens": 100, "cut_streams": cut}
    async with run(**limits) as server, connect(server.url, era=era) as client:
        called = client.call_tool("talk", {"times": 12}, progress_callback=hear)
        if cut:
            with pytest.raises(MCPError) as ended:
                await called
            assert ended.value.code == RATE_LIMITED
            assert ended.value.error.data == {"dimension": "tokens", "cut": True}
            assert 2 <= len(heard) < 12
        else:
            assert text_of(await called) == "done"
            assert len(heard) == 12
        await server.settled()
        assert (await refusal(client, "write", {"words": 1})).error.data["dimension"] == "tokens"


async def test_a_gateway_that_cuts_a_stream_leaves_its_server(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        told = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "word " * 400}}
        event = b"data: " + json.dumps(told).encode() + b"\n\n"
        leaving = asyncio.create_task(receive())
        while not leaving.done():
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await asyncio.sleep(0.005)
        left.set()

    limits = {"tokens": "1500/day", "concurrency": 1, "initial_output_tokens": 100, "cut_streams": True}
    async with (
        serve(endless) as origin,
        gateway(tmp_path, {"files": f"{origin}/mcp"}, access={"default": "allow"}, limits=limits) as running,
    ):
        called = {"name": "talk", "arguments": {}}
        token = running.token(CI, "files")
        reply = await post(running.http, running.url("files"), "tools/call", called, token=token)
        assert answer_of(reply)["error"]["data"] == {"dimension": "tokens", "cut": True}
        async with asyncio.timeout(10):
            await left.wait()
    assert [(record.outcome, record.error_code) for record in running.records()] == [("error", RATE_LIMITED)]


async def tokens_left(http: httpx2.AsyncClient, server: Running) -> int:
    await server.settled()
    reply = await post(http, server.url, "tools/list")
    return int(reply.headers["ratelimit"].rpartition("r=")[2])


async def test_resources_and_prompts_take_tokens_and_lists_take_none(run: Callable[..., Any]) -> None:
    async with run(tokens="1000/minute", initial_output_tokens=200) as server, httpx2.AsyncClient() as http:
        assert await tokens_left(http, server) == 1000
        read = answer_of(await post(http, server.url, "resources/read", {"uri": "file:///notes.txt"}))
        assert "result" in read
        after_read = await tokens_left(http, server)
        assert 900 < after_read < 970
        params = {"name": "greet", "arguments": {"name": "Ann"}}
        assert "result" in answer_of(await post(http, server.url, "prompts/get", params))
        assert after_read - 40 < await tokens_left(http, server) < after_read - 5


async def test_text_and_structured_content_of_one_result_count_once(run: Callable[..., Any]) -> None:
    async with run(tokens="10000/minute") as server, httpx2.AsyncClient() as http:
        params = {"name": "write", "arguments": {"words": 2000}}
        result = answer_of(await post(http, server.url, "tools/call", params))["result"]
        assert result["structuredContent"]["result"] == result["content"][0]["text"]
        assert 1800 < 10_000 - await tokens_left(http, server) < 2800


async def test_case_30_a_client_that_goes_away_keeps_its_estimate_taken(run: Callable[..., Any]) -> None:
    async with run(tokens="5000/minute", initial_output_tokens=3000) as server, httpx2.AsyncClient() as http:
        body = message("tools/call", {"name": "wait", "arguments": {}})
        call = asyncio.create_task(http.post(server.url, json=body, headers=headers_for(body)))
        await server.entered.wait()
        call.cancel()
        await asyncio.wait({call})
        assert 1900 < await tokens_left(http, server) < 2000
