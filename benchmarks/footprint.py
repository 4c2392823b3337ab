"""What the members keep: bytes for each caller and each session, and what importing them takes."""

import asyncio
import gc
import json
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mcp_middleware.affinity import SessionAffinityMiddleware
from mcp_middleware.exchange import Receive, Scope, Send
from mcp_middleware.member import ASGIApp
from mcp_middleware.ratelimit import RateLimitMiddleware

from .echo import echo
from .stack import SESSION_KEY

__all__ = ["Footprint", "measure"]

_COUNT = 5000
_SIX = (
    "AuditLogMiddleware, OAuthResourceServerMiddleware, RateLimitMiddleware, SessionAffinityMiddleware, "
    "ToolAuthorizationMiddleware, TraceContextMiddleware"
)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of Python objects, and processor seconds of a fresh interpreter beyond an empty one."""

    bytes_per_caller: float
    """Limiter, one call by each of many callers: buckets, and what else is kept of a call for a while."""
    bytes_per_session: float
    """Session affinity, one open session of each of many callers: both the session and the caller's count."""
    import_package: float
    """``import mcp_middleware``, which loads no member."""
    import_limiter: float
    import_all: float
    """All six members."""


def measure() -> Footprint:
    """All of it; takes some seconds."""
    return Footprint(
        bytes_per_caller=_bytes_each(
            lambda app: RateLimitMiddleware(app, requests="60/hour", tokens="50000/hour"), "tools/call"
        ),
        bytes_per_session=_bytes_each(lambda app: SessionAffinityMiddleware(app, keys=[SESSION_KEY]), "initialize"),
        import_package=_run_seconds("import mcp_middleware") - _run_seconds("pass"),
        import_limiter=_run_seconds("from mcp_middleware import RateLimitMiddleware") - _run_seconds("pass"),
        import_all=_run_seconds(f"from mcp_middleware import {_SIX}") - _run_seconds("pass"),
    )


@dataclass(frozen=True, slots=True)
class _Token:
    """The parts of the MCP SDK's access token that tell callers apart."""

    client_id: str
    subject: str
    scopes: tuple[str, ...] = ()
    expires_at: int | None = None
    claims: dict[str, str] = field(default_factory=lambda: {"iss": "https://login.example.com"})


@dataclass(frozen=True, slots=True)
class _User:
    access_token: _Token


def _bytes_each(wrap: Callable[[ASGIApp], ASGIApp], method: str) -> float:
    """Bytes that ``_COUNT`` callers leave behind in a member, by one request each."""
    app = wrap(echo)

    async def run() -> float:
        await _call_as(app, "warm-up", method)
        gc.collect()
        tracemalloc.start()
        for number in range(_COUNT):
            await _call_as(app, f"agent-{number}", method)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return kept / _COUNT

    return asyncio.run(run())


async def _call_as(app: ASGIApp, agent: str, method: str) -> None:
    params = {"name": "echo", "arguments": {"text": "x"}} if method == "tools/call" else {}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    scope: Scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/mcp",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "user": _User(_Token(agent, f"subject-of-{agent}")),
    }
    events: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: Any) -> None:
        events.append(event)

    receiving: Receive = receive
    sending: Send = send
    await app(scope, receiving, sending)
    if events[0]["status"] != 200:
        raise RuntimeError(f"{method} as {agent} was answered {events!r}")


def _run_seconds(code: str) -> float:
    def taken() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def once() -> float:
        before = taken()
        subprocess.run([sys.executable, "-c", code], check=True)
        return taken() - before

    once()  # compiles, and warms the file cache
    return min(once() for _ in range(9))  # what else the machine does only adds to it
