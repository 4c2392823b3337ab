"""Mounted apps start and stop with the app that mounts them, and so do the members around them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette

from mcp_middleware import AuditLogMiddleware, JSONLinesSink, lifespan_of
from mcp_middleware.audit import AuditTrail
from tests.support import post


def app_that_notes(events: list[str]) -> Starlette:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        events.append("started")
        yield
        events.append("stopped")

    return Starlette(lifespan=lifespan)


async def test_the_app_runs_for_the_length_of_the_block() -> None:
    events: list[str] = []
    async with lifespan_of(app_that_notes(events)):
        assert events == ["started"]
    assert events == ["started", "stopped"]


async def test_the_app_stops_when_the_block_fails() -> None:
    events: list[str] = []
    with pytest.raises(LookupError):
        async with lifespan_of(app_that_notes(events)):
            raise LookupError
    assert events == ["started", "stopped"]


async def test_a_failed_start_is_an_error() -> None:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        raise LookupError("no database")
        yield

    with pytest.raises(RuntimeError, match="no database"):
        async with lifespan_of(Starlette(lifespan=lifespan)):
            raise AssertionError("it started")


async def test_members_are_closed_at_the_end(tmp_path: Path) -> None:
    trail = tmp_path / "audit.jsonl"
    app = AuditLogMiddleware(app_that_notes([]), sink=JSONLinesSink(trail))
    async with lifespan_of(app), httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http:
        await post(http, "http://127.0.0.1/mcp", "tools/list")
    assert [record.method for record in AuditTrail(trail).read()] == ["tools/list"]
