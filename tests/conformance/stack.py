"""All six members around the fixture, as a user would list them, with a real issuer beside it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

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
from tests.authorization_server.running import mint
from tests.conformance import fixture
from tests.support import SESSION_KEY, listener, origin_of, serve

SCOPES = frozenset({"mcp:use"})
SUITE = Client(client_id="conformance-suite", scopes=SCOPES)
EVERYTHING = {
    "default": "deny",
    "rules": [{"agents": [SUITE.client_id], "tools": ["*"], "prompts": ["*"], "resources": ["*"]}],
}


@dataclass(frozen=True, slots=True)
class Governed:
    """The running stack."""

    url: str
    token: str
    """What the suite calls with."""
    audit: Path


@asynccontextmanager
async def governed(directory: Path) -> AsyncIterator[Governed]:
    """Serve the fixture under the whole stack, and the issuer that its tokens come from."""
    server_socket, issuer_socket = listener(), listener()
    resource = origin_of(server_socket) + fixture.PATH
    issuer = AuthorizationServer(origin_of(issuer_socket), clients=[SUITE], resources=[resource])
    audit = directory / "audit.db"
    app = AuditLogMiddleware(
        TraceContextMiddleware(
            OAuthResourceServerMiddleware(
                RateLimitMiddleware(
                    ToolAuthorizationMiddleware(
                        SessionAffinityMiddleware(fixture.build(), keys=[SESSION_KEY]),
                        policy=Policy.from_mapping(EVERYTHING),
                    ),
                    requests="100000/minute",
                    tokens="100000000/minute",
                ),
                resource=resource,
                issuers=[issuer.issuer],
                scopes=sorted(SCOPES),
            ),
        ),
        sink=SQLiteSink(audit),
    )
    async with serve(create_app(issuer), bound=issuer_socket), serve(app, bound=server_socket):
        yield Governed(resource, mint(issuer, SUITE, resource=resource, scopes=SCOPES), audit)
