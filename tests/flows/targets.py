"""What the clients are led to: the same tools behind the same rules, in process and behind the gateway, both with
tokens of one authorization server."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from joserfc.jwk import ECKey, KeySet

from mcp_middleware import (
    AuditLogMiddleware,
    OAuthResourceServerMiddleware,
    Policy,
    RateLimitMiddleware,
    SessionAffinityMiddleware,
    ToolAuthorizationMiddleware,
    TraceContextMiddleware,
)
from mcp_middleware.audit.record import AuditRecord
from mcp_middleware.gateway.app import create_app
from mcp_middleware.gateway.config import from_mapping
from mcp_middleware.resource_server import ClientSecret, Introspection, Issuer
from tests.audit.trails import ListSink
from tests.authorization_server.running import RunningServer, running
from tests.gateway.gateways import sections
from tests.integration.stack import build_server
from tests.support import SESSION_KEY, listener, origin_of, serve

ACCESS = {
    "default": "deny",
    "rules": [
        {"tools": ["echo", "whoami"]},
        {"tools": ["write"], "scopes": ["files:write"]},
    ],
}
IDENTITY_PROVIDER: Final = "https://idp.example.com"
IDENTITY_PROVIDER_KEY: Final = ECKey.generate_key("P-256", {"kid": "1"})
SCOPES = {"mcp:use": "Use the server", "files:write": "Write files", "other": "Something else"}


@dataclass
class Target:
    """A governed server: all that a client is told of it is ``url``."""

    name: str
    url: str
    sink: Any
    read: Callable[[], list[AuditRecord]]
    _seen: int = field(default=0, repr=False)

    async def forget(self) -> None:
        """Leave out of ``records`` what there is by now."""
        self._seen += len(await self.records())

    async def records(self) -> list[AuditRecord]:
        """The audit trail since ``forget``, oldest first."""
        await asyncio.to_thread(self.sink.flush)
        return self.read()[self._seen :]


class Kept(ListSink):
    """The sink of the stack in process; it is asked to flush as a file's is."""

    def flush(self) -> None: ...


def in_process(url: str, issuer: str | Issuer, kept: Kept, scopes: Sequence[str] = ("mcp:use",)) -> Any:
    """The members as the documentation lists them, round an unchanged server of the official SDK."""
    app = build_server("sdk")
    app = ToolAuthorizationMiddleware(app, policy=Policy.from_mapping(ACCESS))
    app = SessionAffinityMiddleware(app, keys=[SESSION_KEY])
    app = RateLimitMiddleware(app, requests="100000/minute", tokens="100000000/minute")
    app = OAuthResourceServerMiddleware(app, resource=url, issuers=[issuer], scopes=scopes)
    return AuditLogMiddleware(TraceContextMiddleware(app), sink=kept)


@asynccontextmanager
async def targets(directory: Path) -> AsyncIterator[tuple[RunningServer, dict[str, Target]]]:
    """The authorization server, and both ways to the tools, each with JWTs and with opaque tokens."""
    bound = {name: listener() for name in ("in-process", "gateway", "in-process, opaque", "gateway, opaque", "behind")}
    paths = {name: "/files/mcp" if "gateway" in name else "/mcp" for name in bound}
    urls = {name: origin_of(own) + paths[name] for name, own in bound.items()}
    opaque = {url: "opaque" for name, url in urls.items() if "opaque" in name}
    found = {}
    async with AsyncExitStack() as stack:
        issuer = await stack.enter_async_context(
            running(
                resources=list(urls.values()),
                scopes=SCOPES,
                forms=opaque,
                identity_providers={IDENTITY_PROVIDER: KeySet([IDENTITY_PROVIDER_KEY])},
            )
        )
        asking = issuer.add_client("resource-server")
        await stack.enter_async_context(serve(build_server("sdk"), bound=bound["behind"]))
        for name in ("in-process", "in-process, opaque"):
            asked = Introspection(ClientSecret(asking.client_id, asking.secret or ""), cache=0.001)
            trusted = Issuer(issuer.issuer, introspection=asked if "opaque" in name else None)
            kept = Kept()
            await stack.enter_async_context(serve(in_process(urls[name], trusted, kept), bound=bound[name]))
            found[name] = Target(name, urls[name], kept, partial(list, kept.records))
        for name in ("gateway", "gateway, opaque"):
            trail = directory / f"{name}.jsonl"
            introspection = {"client_id": asking.client_id, "client_secret": asking.secret, "cache": "1ms"}
            auth = {"issuer": issuer.issuer} | ({"introspection": introspection} if "opaque" in name else {})
            written = sections(
                {"files": {"url": urls["behind"]}},
                origin=origin_of(bound[name]),
                issuer=issuer.issuer,
                trail=trail,
                access=ACCESS,
                auth={"issuers": [auth], "scopes": ["mcp:use"]},
                audit={"jsonl": str(trail)},
            )
            app = create_app(from_mapping(written))
            await stack.enter_async_context(serve(app, bound=bound[name]))
            found[name] = Target(name, urls[name], app._shared.sinks[0], partial(in_the_trail, trail))
        yield issuer, found


def in_the_trail(trail: Path) -> list[AuditRecord]:
    """What is in a trail of JSON Lines."""
    lines = trail.read_bytes().splitlines() if trail.exists() else []
    return [msgspec.json.decode(line, type=AuditRecord) for line in lines]
