"""The official client through the forwarder to real SDK and FastMCP servers, both eras, two instances."""

import asyncio
from typing import Any

import pytest
from fastmcp import FastMCP
from mcp.server.mcpserver import MCPServer

from mcp_middleware.types import Era
from tests.gateway.forwarding import gateway
from tests.support import connect, each_era, serve, text_of


def fastmcp_app(name: str) -> Any:
    server = FastMCP(name)

    @server.tool
    def who() -> str:
        return name

    return server.http_app(path="/mcp")


def sdk_app(name: str) -> Any:
    server = MCPServer(name)

    @server.tool()
    def who() -> str:
        return name

    return server.streamable_http_app()


@each_era
@pytest.mark.parametrize("make", [fastmcp_app, sdk_app])
async def test_official_clients_are_served_by_either_instance_and_sessions_stay(make: Any, era: Era) -> None:
    async with (
        serve(make("a")) as a,
        serve(make("b")) as b,
        gateway(a, b, probing=True) as gate,
    ):
        assert set((await gate.upstream.probe_all()).values()) == {None}, "every server answers the probe"

        async def visit() -> list[str]:
            async with connect(gate.url, era=era) as client:
                assert [tool.name for tool in (await client.list_tools()).tools] == ["who"]
                return [text_of(await client.call_tool("who", {})) for _ in range(5)]

        visits = await asyncio.gather(*(visit() for _ in range(6)))
        assert {name for names in visits for name in names} == {"a", "b"}
        if era == "legacy":
            assert all(len(set(names)) == 1 for names in visits)
