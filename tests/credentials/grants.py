"""The credentials that tests make of their issuer, and who calls."""

import asyncio
from typing import Any

from mcp_middleware.credentials import Caller, ClientCredentials, TokenExchange
from mcp_middleware.oauth import ClientSecret
from mcp_middleware.testing import FakeClock
from mcp_middleware.types import Principal
from tests.credentials.issuer import SECRET, TokenIssuer

PROOF = ClientSecret("gateway", SECRET)
SERVER = "https://mail.example.com/mcp"
NOBODY = Caller()


def caller(name: str = "alice", token: str | None = None, *, ends: float | None = None) -> Caller:
    principal = Principal("https://login.example.com", "agent", name, expires_at=ends)
    return Caller(principal, token or f"{name}s-token")


class Made:
    """Makes credentials of one issuer that share a clock, and closes them."""

    def __init__(self, issuer: TokenIssuer, clock: FakeClock) -> None:
        self.issuer, self.clock = issuer, clock
        self.open: list[ClientCredentials | TokenExchange] = []

    def own(self, **changes: Any) -> ClientCredentials:
        options: dict[str, Any] = {"issuer": self.issuer.issuer, "authentication": PROOF} | changes
        made = ClientCredentials(clock=self.clock, monotonic=self.clock, **options)
        self.open.append(made)
        return made

    def exchange(self, **changes: Any) -> TokenExchange:
        options: dict[str, Any] = {"issuer": self.issuer.issuer, "authentication": PROOF, "audience": SERVER} | changes
        made = TokenExchange(clock=self.clock, monotonic=self.clock, **options)
        self.open.append(made)
        return made


async def renewed(credential: ClientCredentials | TokenExchange) -> None:
    """Wait for the fetches that run in the background."""
    fetches = list(credential._keeper._fetches.values())
    assert fetches
    await asyncio.wait(fetches)
