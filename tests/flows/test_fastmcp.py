"""The same flow to a FastMCP server that has the members as its own middleware."""

from typing import Any

from starlette.middleware import Middleware

from mcp_middleware import (
    OAuthResourceServerMiddleware,
    Policy,
    RateLimitMiddleware,
    SessionAffinityMiddleware,
    ToolAuthorizationMiddleware,
)
from mcp_middleware.types import Era
from tests.authorization_server.running import running
from tests.flows.targets import ACCESS, SCOPES
from tests.flows.test_python_client import by_secret, connected
from tests.integration.stack import build_server
from tests.support import SESSION_KEY, each_era, listener, origin_of, serve


@each_era
async def test_a_machine_steps_up_and_the_tool_knows_it(era: Era) -> None:
    bound = listener()
    url = f"{origin_of(bound)}/mcp"
    async with running(resources=[url], scopes=SCOPES) as issuer:
        members: list[Any] = [
            Middleware(OAuthResourceServerMiddleware, resource=url, issuers=[issuer.issuer], scopes=["mcp:use"]),
            Middleware(RateLimitMiddleware, requests="1000/minute", tokens="1000000/minute"),
            Middleware(ToolAuthorizationMiddleware, policy=Policy.from_mapping(ACCESS)),
            Middleware(SessionAffinityMiddleware, keys=[SESSION_KEY]),
        ]
        async with serve(build_server("fastmcp", *members), bound=bound):
            agent_of = issuer.add_client()
            async with connected(url, by_secret(url, agent_of, issuer.issuer), era) as agent:
                assert await agent.call("whoami") == f"{agent_of.client_id} {agent_of.client_id}"
                assert await agent.call("write", text="x") == "wrote x"
                assert [form["scope"] for form in agent.forms()] == ["mcp:use", "mcp:use files:write"]
