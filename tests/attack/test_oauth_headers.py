"""What a caller writes into headers that are the gateway's to write: none of it reaches a server, in any spelling."""

import httpx2
import pytest

from mcp_middleware.gateway.sections.credentials import CallerConfig, HeaderConfig
from tests.gateway.forwarding import CALL, answer, gateway, head_of, raw_server
from tests.support import post

KEY = "k" * 32
SPELLINGS = (
    "X-Its-Key",
    "X_Its_Key",
    "x-its_key",
    "X-Its-Caller",
    "X_Its_Caller",
    "x_its-caller",
    "X-Other",
    "x_other",
)


@pytest.mark.parametrize("between", ["-", "_"])
async def test_case_8_what_the_gateway_sets_is_the_gateways_alone(between: str) -> None:
    """A server behind WSGI or CGI reads a hyphen and an underscore as one, and of two headers either."""

    def named(name: str) -> str:
        return name.replace("-", between)

    async with (
        raw_server(answer) as server,
        gateway(
            server.origin,
            headers={named("x-other"): "ours"},
            credentials=HeaderConfig(name=named("x-its-key"), value="ours"),
            caller=CallerConfig(header=named("x-its-caller"), key=KEY),
        ) as gate,
        httpx2.AsyncClient() as http,
    ):
        reply = await post(http, gate.url, "tools/call", CALL, headers=dict.fromkeys(SPELLINGS, "forged"))
        assert reply.status_code == 200
        lines = head_of(server.requests[0])
        assert not [name for name, value in lines if value == b"forged"]
        ours = [name.decode() for name, _ in lines if name.replace(b"_", b"-").startswith((b"x-its", b"x-other"))]
        assert sorted(ours) == sorted(map(named, ("x-other", "x-its-key", "x-its-caller")))
