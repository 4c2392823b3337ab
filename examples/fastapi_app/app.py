"""One FastAPI app, two MCP servers below it, and the same six members around each.

python -m examples.fastapi_app.app --port 8000 --issuer http://127.0.0.1:9000 --audit audit.db
"""

import argparse
import secrets
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from starlette.middleware import Middleware

from mcp_middleware import (
    AuditLogMiddleware,
    MemoryStorage,
    OAuthResourceServerMiddleware,
    Policy,
    ProtectedResource,
    Rate,
    RateLimitMiddleware,
    SessionAffinityMiddleware,
    SQLiteSink,
    ToolAuthorizationMiddleware,
    TraceContextMiddleware,
    lifespan_of,
    metadata_routes,
)

from .servers import files_server, notes_server

__all__ = ["create_app"]

SCOPE = "mcp:use"
"""What a token needs to be let in at all; the policy asks for more, tool by tool."""


def create_app(*, origin: str, issuer: str, audit: Path) -> FastAPI:
    """The app as it is reached at ``origin``, trusting ``issuer``, with its audit trail in the file ``audit``."""
    policy = Policy.from_file(Path(__file__).with_name("policy.yaml"))
    sink = SQLiteSink(audit)
    storage = MemoryStorage()
    session_key = b64encode(secrets.token_bytes(32)).decode()  # in production from your secrets, or sessions end here

    def governed(resource: str) -> list[Middleware]:
        return [
            Middleware(AuditLogMiddleware, sink=sink),
            Middleware(TraceContextMiddleware),
            Middleware(OAuthResourceServerMiddleware, resource=resource, issuers=[issuer], scopes=[SCOPE]),
            Middleware(
                RateLimitMiddleware,
                requests=Rate("30/minute", burst=20),
                tokens="20000/minute",
                storage=storage,  # one for both servers: an agent has one budget
            ),
            Middleware(ToolAuthorizationMiddleware, policy=policy),
            Middleware(SessionAffinityMiddleware, keys=[session_key]),
        ]

    files_url, notes_url = f"{origin}/files/mcp", f"{origin}/notes/mcp"

    # FastMCP takes the list as it is; an app of the SDK, or any other, is wrapped in it.
    files = files_server().http_app(path="/mcp", middleware=governed(files_url))
    notes: Any = notes_server().streamable_http_app(streamable_http_path="/mcp")
    for member, arguments, options in reversed(governed(notes_url)):
        notes = member(notes, *arguments, **options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for mounted in (files, notes):
                await stack.enter_async_context(lifespan_of(mounted))
            yield

    # Clients look for the metadata of a resource at the root of its host, outside of what is mounted.
    documents = [
        ProtectedResource(url, authorization_servers=[issuer], scopes=[SCOPE]) for url in (files_url, notes_url)
    ]
    app = FastAPI(lifespan=lifespan, routes=metadata_routes(*documents))
    app.mount("/files", files)
    app.mount("/notes", notes)

    @app.get("/")
    async def index() -> dict[str, str]:
        return {"files": files_url, "notes": notes_url}

    return app


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="Two governed MCP servers in one FastAPI app.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--issuer", default="http://127.0.0.1:9000")
    parser.add_argument("--audit", type=Path, default=Path("audit.db"))
    options = parser.parse_args()
    trace.set_tracer_provider(TracerProvider())  # add a span processor with an exporter to see the spans
    app = create_app(origin=f"http://127.0.0.1:{options.port}", issuer=options.issuer, audit=options.audit)
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
