"""A whole gateway on real sockets: an issuer, MCP servers behind it, and the gateway of a configuration."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from starlette.types import ASGIApp

from examples.authorization_server import AuthorizationServer, Client
from examples.authorization_server import create_app as authorization_server
from mcp_middleware.audit.query import AuditTrail
from mcp_middleware.audit.record import AuditRecord
from mcp_middleware.gateway.app import Gateway, create_app
from mcp_middleware.gateway.config import from_mapping
from tests.authorization_server.running import RunningServer, mint
from tests.mcp_servers import Kind, app_of, server_of
from tests.support import SESSION_KEY, TIMEOUT, listener, origin_of, serve

SCOPES = frozenset({"mcp:use", "files:write"})
CI = Client(client_id="ci-1", scopes=SCOPES)
OTHER = Client(client_id="other", scopes=SCOPES)

ECHO = {"name": "echo", "arguments": {"text": "x"}}
"""What ``tools/call`` asks of a server of ``build_server``."""

ACCESS = {
    "default": "deny",
    "rules": [
        {"agents": ["ci-*"], "tools": ["echo", "whoami", "where", "missing", "test_*", "json_*"]},
        {"agents": ["ci-*"], "prompts": ["greet", "test_*"], "resources": ["memo://*", "test://*"]},
        {"agents": ["ci-*"], "servers": ["files"], "tools": ["write"], "scopes": ["files:write"]},
        {"agents": ["other"], "tools": ["echo"]},
        {"effect": "deny", "agents": ["*"], "tools": ["admin_*"]},
    ],
}


def located(name: str, kind: Kind = "sdk") -> ASGIApp:
    """A server that says which instance it is."""
    server = server_of(kind)

    @server.tool()
    def where() -> str:
        return name

    return app_of(server)


@dataclass(slots=True)
class Running:
    """A gateway that serves."""

    app: Gateway
    origin: str
    http: httpx2.AsyncClient
    issuer: AuthorizationServer
    audit: Path

    def url(self, server: str = "files") -> str:
        return f"{self.origin}/{server}/mcp"

    def token(
        self, client: Client = CI, server: str = "files", scopes: frozenset[str] = frozenset({"mcp:use"}), **claims: Any
    ) -> str:
        return mint(self.issuer, client, resource=self.url(server), scopes=scopes, **claims)

    def records(self) -> list[AuditRecord]:
        """The audit trail, oldest first; whole once the gateway has been left."""
        return list(AuditTrail(self.audit).read())


def sections(servers: Mapping[str, Any], *, origin: str, issuer: str, trail: Path, **changes: Any) -> dict[str, Any]:
    """A configuration with everything on; ``changes`` replace sections, None leaves one out."""
    whole = {
        "listen": origin.removeprefix("http://"),
        "public_url": origin,
        "servers": servers,
        "auth": {"issuers": [issuer], "scopes": ["mcp:use"]},
        "access": ACCESS,
        "limits": {"requests": "100000/minute", "tokens": "100000000/minute"},
        "sessions": {"keys": [SESSION_KEY]},
        "audit": {"sqlite": str(trail)},
    }
    whole |= changes
    return {name: value for name, value in whole.items() if value is not None}


@asynccontextmanager
async def gateway(
    directory: Path,
    servers: Mapping[str, Any],
    *,
    clients: tuple[Client, ...] = (CI, OTHER),
    authorities: Sequence[RunningServer] = (),
    access_log: Any = None,
    **changes: Any,
) -> AsyncIterator[Running]:
    """Serve the gateway before ``servers``: names to URLs, to lists of them, or to their section.

    Its issuer is ``Running.issuer``, which knows ``clients``; or those of ``authorities``, which then issue tokens for
    its servers too.
    """
    own, issuers = listener(), listener()
    origin = origin_of(own)
    resources = [f"{origin}/{name}/mcp" for name in servers]
    issuer = AuthorizationServer(origin_of(issuers), clients=clients, resources=resources)
    for authority in authorities:
        authority.server.resources = (*authority.server.resources, *resources)
    if authorities:
        changes.setdefault("auth", {"issuers": [one.issuer for one in authorities], "scopes": ["mcp:use"]})
    audit = directory / "audit.db"
    written = {name: _section(given) for name, given in servers.items()}
    config = from_mapping(sections(written, origin=origin, issuer=issuer.issuer, trail=audit, **changes))
    app = create_app(config, access_log=access_log)
    async with AsyncExitStack() as stack:
        if authorities:
            issuers.close()
        else:
            await stack.enter_async_context(serve(authorization_server(issuer), bound=issuers))
        await stack.enter_async_context(serve(app, bound=own))
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=TIMEOUT))
        yield Running(app, origin, http, issuer, audit)


def _section(given: Any) -> Any:
    if isinstance(given, str):
        return {"url": given}
    return {"instances": given} if isinstance(given, list) else given
