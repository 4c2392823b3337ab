"""A web site over https on this machine, where a client publishes what it is: client ID metadata documents."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.certificates import certificate
from tests.support import serve

__all__ = ["Site", "serve_site"]


@dataclass
class Site:
    """``document`` is what is at ``url``; by ``certificate`` the site is known."""

    url: str
    certificate: Path
    document: dict[str, Any] = field(default_factory=dict)


@asynccontextmanager
async def serve_site(directory: Path) -> AsyncIterator[Site]:
    """Serve a site with one document."""
    cert, private = certificate(directory, "127.0.0.1")
    site = Site("", cert)

    async def document(_: Request) -> JSONResponse:
        return JSONResponse(site.document)

    app = Starlette(routes=[Route("/agent.json", document)])
    async with serve(app, tls=(str(cert), str(private))) as origin:
        site.url = f"{origin}/agent.json"
        yield site
