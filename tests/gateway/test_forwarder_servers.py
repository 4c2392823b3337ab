"""The official client through the forwarder to real SDK and FastMCP servers, both eras, two instances."""

import asyncio

from mcp_middleware.types import Era
from tests.gateway.forwarding import gateway
from tests.gateway.gateways import located
from tests.mcp_servers import Kind, each_server
from tests.support import connect, each_era, serve, text_of


@each_era
@each_server
async def test_official_clients_are_served_by_either_instance_and_sessions_stay(kind: Kind, era: Era) -> None:
    async with (
        serve(located("a", kind)) as a,
        serve(located("b", kind)) as b,
        gateway(a, b, probing=True) as gate,
    ):
        assert set((await gate.upstream.probe_all()).values()) == {None}, "every server answers the probe"

        async def visit() -> list[str]:
            async with connect(gate.url, era=era) as client:
                assert [tool.name for tool in (await client.list_tools()).tools] == ["where"]
                return [text_of(await client.call_tool("where", {})) for _ in range(5)]

        visits = await asyncio.gather(*(visit() for _ in range(6)))
        assert {name for names in visits for name in names} == {"a", "b"}
        if era == "legacy":
            assert all(len(set(names)) == 1 for names in visits)
