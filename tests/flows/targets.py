"""What the clients are led to: the same tools behind the same rules, in process and behind the gateway, both with
tokens of one authorization server."""

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

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
from tests.authorization_server.running import RunningServer, running
from tests.gateway.gateways import sections
from tests.integration.stack import build_server
from tests.support import listener, origin_of, serve

ACCESS = {
    "default": "deny",
    "rules": [
        {"tools": ["echo", "whoami"]},
        {"tools": ["write"], "scopes": ["files:write"]},
    ],
}
SCOPES = {"mcp:use": "Use the server", "files:write": "Write files", "other": "Something else"}


@dataclass
class Target:
    """A governed server: all that a client is told of it is ``url``."""

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


class Kept:
    """An audit sink for the stack in process."""

    accepting = True

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []

    def write(self, record: AuditRecord) -> None:
        self.records.append(record)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def in_process(url: str, issuer: str, kept: Kept) -> Any:
    """The members as the documentation lists them, round an unchanged server of the official SDK."""
    app = build_server("sdk")
    app = ToolAuthorizationMiddleware(app, policy=Policy.from_mapping(ACCESS))
    app = SessionAffinityMiddleware(app, keys=[base64.b64encode(secrets.token_bytes(32))])
    app = RateLimitMiddleware(app, requests="100000/minute", tokens="100000000/minute")
    app = OAuthResourceServerMiddleware(app, resource=url, issuers=[issuer], scopes=["mcp:use"])
    return AuditLogMiddleware(TraceContextMiddleware(app), sink=kept)


@asynccontextmanager
async def targets(directory: Path) -> AsyncIterator[tuple[RunningServer, dict[str, Target]]]:
    """The authorization server, and both ways to the tools."""
    own, gateway, behind = listener(), listener(), listener()
    url = f"{origin_of(own)}/mcp"
    gateway_url = f"{origin_of(gateway)}/files/mcp"
    async with AsyncExitStack() as stack:
        issuer = await stack.enter_async_context(running(resources=[url, gateway_url], scopes=SCOPES))
        kept = Kept()
        await stack.enter_async_context(serve(in_process(url, issuer.issuer, kept), bound=own))
        await stack.enter_async_context(serve(build_server("sdk"), bound=behind))
        trail = directory / "audit.jsonl"
        written = sections(
            {"files": {"url": f"{origin_of(behind)}/mcp"}},
            origin=origin_of(gateway),
            issuer=issuer.issuer,
            trail=trail,
            access=ACCESS,
            audit={"jsonl": str(trail)},
        )
        app = create_app(from_mapping(written))
        await stack.enter_async_context(serve(app, bound=gateway))

        def in_the_trail() -> list[AuditRecord]:
            lines = trail.read_bytes().splitlines() if trail.exists() else []
            return [msgspec.json.decode(line, type=AuditRecord) for line in lines]

        yield (
            issuer,
            {
                "in-process": Target(url, kept, lambda: kept.records),
                "gateway": Target(gateway_url, app._shared.sinks[0], in_the_trail),
            },
        )
