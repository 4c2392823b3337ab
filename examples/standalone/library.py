"""The gateway as a library: an ASGI application like any other, beside routes of your own.

    uvicorn --factory examples.standalone.library:create      # with the variables of gateway.yaml

What ``mcp-gateway run`` does around it is then yours: HTTP limits, draining, reloading a changed file.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from mcp_middleware import lifespan_of
from mcp_middleware.gateway import create_app, load

__all__ = ["create"]


def create() -> Starlette:
    """The application. Raises ConfigurationError, which lists everything that is wrong."""
    config = load(Path(__file__).with_name("gateway.yaml"))
    gateway = create_app(config)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with lifespan_of(gateway):
            yield

    async def index(_: Request) -> PlainTextResponse:
        return PlainTextResponse("".join(f"{config.resource(name)}\n" for name in config.servers))

    # The gateway is mounted last, and at the root: its paths are part of what its tokens are for.
    return Starlette(routes=[Route("/", index), Mount("/", gateway)], lifespan=lifespan)
