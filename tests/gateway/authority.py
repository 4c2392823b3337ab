"""An authorization server of a few lines that does as it is told, also what none should."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mcp_middleware.gateway.sections.credentials import GrantConfig
from mcp_middleware.oauth import ClientSecret
from tests.support import serve


class Authority:
    """Issues ``token-1``, ``token-2`` and so on, or answers what it is told to."""

    def __init__(self) -> None:
        self.issuer = ""
        self.app = Starlette(
            routes=[
                Route("/.well-known/oauth-authorization-server", self._metadata),
                Route("/token", self._token, methods=["POST"]),
            ]
        )
        self.forms: list[dict[str, str]] = []
        """What was asked of the token endpoint."""
        self.refusal: tuple[int, str] | None = None
        """The status and the error to answer with, in place of a token."""
        self.asked, self.open = asyncio.Event(), asyncio.Event()
        """Set once its metadata is asked for; and while it answers."""
        self.open.set()
        self.names: str | None = None
        """The issuer that its metadata names; its own where nothing is said."""

    async def _metadata(self, request: Request) -> Response:
        self.asked.set()
        await self.open.wait()
        issuer = self.names or self.issuer
        return JSONResponse({"issuer": issuer, "token_endpoint": f"{self.issuer}/token"})

    async def _token(self, request: Request) -> Response:
        self.forms.append(dict(parse_qsl((await request.body()).decode())))
        if self.refusal is not None:
            status, error = self.refusal
            return JSONResponse({"error": error}, status_code=status)
        return JSONResponse(
            {"access_token": f"token-{len(self.forms)}", "token_type": "Bearer", "expires_in": 600},
            headers={"cache-control": "no-store"},
        )

    def grant(self) -> GrantConfig:
        """What the gateway is told of it."""
        return GrantConfig(
            type="client_credentials", issuer=self.issuer, authentication=ClientSecret("gateway", "s"), scope="files"
        )


@asynccontextmanager
async def authority() -> AsyncIterator[Authority]:
    """An ``Authority`` on a socket."""
    made = Authority()
    async with serve(made.app) as made.issuer:
        yield made
