"""A governed server over real sockets: all six members, an issuer of their own, and a real MCP server inside."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from examples.authorization_server import AuthorizationServer, Client, create_app
from mcp_middleware import (
    AuditLogMiddleware,
    OAuthResourceServerMiddleware,
    Policy,
    RateLimitMiddleware,
    SessionAffinityMiddleware,
    SQLiteSink,
    ToolAuthorizationMiddleware,
    TraceContextMiddleware,
)
from mcp_middleware.audit.query import AuditTrail
from mcp_middleware.audit.record import AuditRecord
from tests.authorization_server.running import mint
from tests.mcp_servers import Kind, app_of, server_of
from tests.support import SESSION_KEY, TIMEOUT, listener, origin_of, serve

POLICY = """
default: deny
rules:
  - {agents: ["ci-*"], tools: ["echo", "whoami", "missing"], prompts: ["greet"], resources: ["memo://*"]}
  - {agents: ["ci-*"], tools: ["write"], scopes: ["files:write"]}
  - {agents: ["other"], tools: ["echo"]}
  - {effect: deny, agents: ["*"], tools: ["admin_*"]}
"""

SCOPES = frozenset({"mcp:use", "files:write"})
CI = Client(client_id="ci-1", scopes=SCOPES)
OTHER = Client(client_id="other", scopes=SCOPES)


def build_server(kind: Kind, *middleware: Middleware) -> ASGIApp:
    """A real MCP server with tools that some may use and some may not, as its ASGI application."""
    server = server_of(kind)

    @server.tool()
    def echo(text: str) -> str:
        return text

    @server.tool()
    def whoami() -> str:
        token: Any
        if kind == "fastmcp":
            from fastmcp.server.dependencies import get_access_token as fastmcp_token

            token = fastmcp_token()
        else:
            from mcp.server.auth.middleware.auth_context import get_access_token as sdk_token

            token = sdk_token()
        return f"{token.client_id} {token.subject}"

    @server.tool()
    def write(text: str) -> str:
        return f"wrote {text}"

    @server.tool()
    def admin_reset() -> str:
        return "reset"

    @server.prompt()
    def greet() -> str:
        return "hello"

    @server.prompt()
    def hidden_prompt() -> str:
        return "secret"

    @server.resource("memo://one")
    def memo() -> str:
        return "memo"

    @server.resource("secret://one")
    def secret() -> str:
        return "secret"

    return app_of(server, *middleware)


@dataclass(slots=True)
class Stack:
    """A running stack."""

    url: str
    http: httpx2.AsyncClient
    issuer: AuthorizationServer
    audit: Path
    members: dict[str, Callable[[Any], Any]]
    """Each member ready to be put round an application."""

    def token(self, client: Client = CI, scopes: frozenset[str] = frozenset({"mcp:use"})) -> str:
        return mint(self.issuer, client, resource=self.url, scopes=scopes)

    def records(self) -> list[AuditRecord]:
        """The audit trail, oldest first; whole once the stack has been left."""
        return list(AuditTrail(self.audit).read())


def members_for(resource: str, issuer: str, audit: Path, **limits: Any) -> dict[str, Callable[[Any], Any]]:
    """The six members of the documented stack, outermost first, each waiting for its application."""
    limits = {"requests": "1000/minute", "tokens": "100000/minute"} | limits
    return {
        "audit": partial(AuditLogMiddleware, sink=SQLiteSink(audit)),
        "tracing": TraceContextMiddleware,
        "resource_server": partial(
            OAuthResourceServerMiddleware, resource=resource, issuers=[issuer], scopes=["mcp:use"]
        ),
        "limiter": partial(RateLimitMiddleware, **limits),
        "authorization": partial(ToolAuthorizationMiddleware, policy=Policy.from_text(POLICY)),
        "affinity": partial(SessionAffinityMiddleware, keys=[SESSION_KEY]),
    }


@asynccontextmanager
async def governed(
    directory: Path,
    server: Any,
    *,
    order: Sequence[str] | None = None,
    **limits: Any,
) -> AsyncIterator[Stack]:
    """Serve ``server`` under the members, listed in ``order`` (outermost first)."""
    server_socket, issuer_socket = listener(), listener()
    resource = origin_of(server_socket) + "/mcp"
    issuer = AuthorizationServer(origin_of(issuer_socket), clients=[CI, OTHER], resources=[resource])
    audit = directory / "audit.db"
    members = members_for(resource, issuer.issuer, audit, **limits)
    app = server
    for name in reversed(order or list(members)):
        app = members[name](app)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serve(create_app(issuer), bound=issuer_socket))
        await stack.enter_async_context(serve(app, bound=server_socket))
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=TIMEOUT))
        yield Stack(resource, http, issuer, audit, members)
