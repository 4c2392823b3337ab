"""The tests' own real sockets: what the other tests rely on without asking."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from mcp.server.mcpserver import MCPServer
from starlette.applications import Starlette

from mcp_middleware.types import Era
from tests.support import (
    LEGACY,
    MODERN,
    Turns,
    answer_of,
    connect,
    initialize,
    listener,
    origin_of,
    post,
    serve,
    text_of,
)


def adder() -> Any:
    mcp = MCPServer("adder")

    @mcp.tool()
    def add(a: int, b: int) -> int:
        return a + b

    return mcp.streamable_http_app()


@pytest.mark.parametrize(("era", "version"), [("legacy", LEGACY), ("modern", MODERN)])
async def test_both_ways_to_call_a_server_get_through(era: Era, version: str) -> None:
    call = {"name": "add", "arguments": {"a": 1, "b": 2}}
    async with serve(adder()) as origin, httpx2.AsyncClient() as http:
        async with connect(f"{origin}/mcp", era=era) as client:
            assert client.protocol_version == version
            assert text_of(await client.call_tool("add", {"a": 1, "b": 2})) == "3"
        session = await initialize(http, f"{origin}/mcp") if era == "legacy" else None
        reply = await post(http, f"{origin}/mcp", "tools/call", call, era=era, session=session)
        assert answer_of(reply)["result"]["structuredContent"] == {"result": 3}


async def test_a_listener_tells_the_url_beforehand() -> None:
    bound = listener()
    expected = origin_of(bound)
    async with serve(adder(), bound=bound) as origin:
        assert origin == expected


async def test_an_app_that_does_not_start_fails_the_test() -> None:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        raise LookupError("no database")
        yield

    with pytest.raises(RuntimeError, match="start-up"):
        async with serve(Starlette(lifespan=lifespan)):
            raise AssertionError("it started")


async def test_turns_are_counted_where_others_could_have_one() -> None:
    with Turns() as others:
        pass
    assert others.taken == 0
    with others:
        for _ in range(3):
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert others.taken == 3
