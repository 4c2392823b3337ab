"""The page's proxy before a server that speaks stdio alone: the official client calls it over HTTP."""

import sys
from pathlib import Path
from typing import Any

from mcp import Client

from tests.docs.blocks import ROOT, blocks_of
from tests.support import serve

PAGE = ROOT / "docs" / "gateway" / "migrate.md"
BLOCK = next(block for block in blocks_of(PAGE) if block.title == "over_http.py")
SERVER = """
from mcp.server import MCPServer

mcp = MCPServer("clock")


@mcp.tool()
def now() -> str:
    return "noon"


mcp.run()
"""


async def test_a_server_over_stdio_is_called_over_http(tmp_path: Path) -> None:
    script = tmp_path / "clock.py"
    script.write_text(SERVER)
    code = BLOCK.code.replace('"your-server"', repr(sys.executable)).replace('"--its-option"', repr(str(script)))
    namespace: dict[str, Any] = {}
    exec(compile(code, BLOCK.name, "exec"), namespace)  # noqa: S102 - it is our own documentation
    async with serve(namespace["app"]) as origin, Client(f"{origin}/mcp") as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["now"]
        assert "noon" in str((await client.call_tool("now", {})).content)
