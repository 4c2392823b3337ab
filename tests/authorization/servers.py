"""Two real servers with the same tools, prompts and resources, and callers whom somebody else authenticated."""

from collections.abc import Mapping
from typing import Any, Final

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from mcp_middleware.authorization import Authorizer, ToolAuthorizationMiddleware
from tests.mcp_servers import Kind, app_of, server_of

POLICY: Final = """
default: deny
rules:
  - {agents: ["reader"], tools: ["read_*", "echo"], prompts: ["greet"], resources: ["file:///srv/public/*"]}
  - {agents: ["writer"], tools: ["write_*"], scopes: ["files:read", "files:write"]}
  - {agents: ["admin"], tools: ["*"], prompts: ["*"], resources: ["*"]}
  - {effect: deny, agents: ["admin"], tools: ["secret_*"], prompts: ["secret_*"], resources: ["file:///srv/secret/*"]}
"""

CALLERS: Final = {
    "reader": [],
    "writer": ["files:read"],
    "admin": [],
    "full-writer": ["files:read", "files:write"],
}
"""The tokens that ``Authenticated`` accepts, with their scopes; ``full-writer`` is the agent ``writer``."""


class Authenticated:
    """Authenticates ``Authorization: Bearer <name>`` as another layer would: by setting the scope's user."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = dict(scope.get("headers", ())).get(b"authorization", b"").decode().removeprefix("Bearer ")
        if name in CALLERS:
            client = name.removeprefix("full-")
            token = AccessToken(token=name, client_id=client, scopes=list(CALLERS[name]), subject=client)
            scope = {**scope, "user": AuthenticatedUser(token)}
        await self.app(scope, receive, send)


def governed(kind: Kind, policy: Authorizer, **options: Any) -> ASGIApp:
    """A server of that kind under tool authorization, with its endpoint at ``/mcp``."""
    server = server_of(kind)
    _furnish(server)
    members = Middleware(Authenticated), Middleware(ToolAuthorizationMiddleware, policy=policy)
    return app_of(server, *members, **options)


def _furnish(server: Any) -> None:
    async def answer(text: str = "") -> str:
        return f"done {text}"

    for name in ("read_file", "read_log", "write_file", "echo", "secret_key", "Echo"):
        server.tool(name=name)(answer)

    def prompt() -> str:
        return "prompted"

    for name in ("greet", "secret_plan"):
        server.prompt(name=name)(prompt)

    async def resource() -> str:
        return "content"

    for uri in ("file:///srv/public/a", "file:///srv/secret/b"):
        server.resource(uri)(resource)

    async def public(path: str) -> str:
        return f"public {path}"

    async def secret(path: str) -> str:
        return f"secret {path}"

    server.resource("file:///srv/public/in/{path}")(public)
    server.resource("file:///srv/secret/in/{path}")(secret)


def names(answer: Mapping[str, Any], member: str, key: str = "name") -> list[str]:
    """The names in a list answer."""
    return [item[key] for item in answer["result"][member]]
