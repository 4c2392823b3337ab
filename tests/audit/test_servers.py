"""The trail of real servers and the official client, over sockets: as many records as messages, each with its end."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mcp_middleware import (
    Policy,
    RateLimitMiddleware,
    SessionAffinityMiddleware,
    SQLiteSink,
    ToolAuthorizationMiddleware,
    TraceContextMiddleware,
)
from mcp_middleware.audit import AuditLogMiddleware, AuditRecord, AuditTrail, JSONLinesSink
from mcp_middleware.types import Era
from tests.mcp_servers import Kind, app_of, each_server, server_of
from tests.support import (
    LEGACY,
    MODERN,
    SESSION_KEY,
    answer_of,
    connect,
    each_era,
    headers_for,
    initialize,
    message,
    post,
    serve,
)


class Slow:
    """A tool that says when it runs, and ends when it is told to."""

    def __init__(self) -> None:
        self.running = asyncio.Event()
        self.ending = asyncio.Event()

    async def __call__(self) -> str:
        self.running.set()
        await self.ending.wait()
        return "done"


def app(kind: Kind, slow: Slow) -> Any:
    server = server_of(kind)

    @server.tool()
    async def echo(text: str) -> str:
        return text

    @server.tool()
    async def broken() -> str:
        raise ValueError("broken")

    server.tool(name="slow")(slow.__call__)
    return app_of(server)


class Counting:
    """Counts what comes in by HTTP."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.requests: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.requests.append(scope["method"])
        await self.app(scope, receive, send)


class Site:
    """A served stack with its trail, which is complete once the stack is down."""

    def __init__(self, path: Path, slow: Slow) -> None:
        self.path = path
        self.slow = slow
        self.url = ""
        self.counting = Counting(None)

    @property
    def records(self) -> list[AuditRecord]:
        trail = AuditTrail(self.path)
        found = list(trail.read())
        assert trail.damaged == 0
        return found

    def calls(self) -> list[AuditRecord]:
        return [one for one in self.records if one.method == "tools/call"]


@asynccontextmanager
async def site(path: Path, kind: Kind, wrap: Callable[[Any], Any] = lambda app: app) -> AsyncIterator[Site]:
    made = Site(path, Slow())
    sink = SQLiteSink(path) if path.suffix == ".db" else JSONLinesSink(path)
    made.counting = Counting(AuditLogMiddleware(wrap(app(kind, made.slow)), sink=sink))
    async with serve(made.counting) as origin:
        made.url = f"{origin}/mcp"
        yield made


@pytest.mark.parametrize("suffix", [".db", ".jsonl"])
@each_era
@each_server
async def test_as_many_records_as_messages(kind: Kind, era: Era, suffix: str, tmp_path: Path) -> None:
    async with site(tmp_path / f"audit{suffix}", kind) as at, connect(at.url, era=era) as client:
        await client.list_tools()
        await client.call_tool("echo", {"text": "hello"})
        await client.call_tool("broken", {})
    records = at.records
    assert len(records) == len(at.counting.requests)
    found = [(one.target, one.outcome, one.tool_error) for one in at.calls()]
    assert found == [("echo", "ok", False), ("broken", "error", True)]
    assert {one.era for one in at.calls()} == {era}
    assert {one.version for one in at.calls()} == {LEGACY if era == "legacy" else MODERN}
    sessions = {one.session for one in records}
    assert len(sessions) == 1
    assert (sessions == {None}) == (era == "modern")


@each_server
async def test_an_unknown_tool_and_an_unknown_method_are_errors(kind: Kind, tmp_path: Path) -> None:
    async with site(tmp_path / "audit.db", kind) as at, httpx2.AsyncClient() as http:
        await post(http, at.url, "tools/call", {"name": "nothing", "arguments": {}})
        unknown = answer_of(await post(http, at.url, "nothing/at-all"))
    call, other = at.records
    assert (call.target, call.decision, call.outcome) == ("nothing", "allowed", "error")
    assert (other.method, other.outcome, other.error_code) == ("nothing/at-all", "error", unknown["error"]["code"])


@each_era
@each_server
async def test_case_41_a_client_that_leaves_its_stream_is_recorded_once(kind: Kind, era: Era, tmp_path: Path) -> None:
    async with site(tmp_path / "audit.db", kind) as at, httpx2.AsyncClient() as http:
        session = await initialize(http, at.url) if era == "legacy" else None
        body = message("tools/call", {"name": "slow", "arguments": {}}, era=era)
        headers = headers_for(body, era=era, session=session)
        call = asyncio.create_task(http.post(at.url, content=json.dumps(body), headers=headers))
        await at.slow.running.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        if era == "legacy":  # there it goes on without its client
            at.slow.ending.set()
    (found,) = at.calls()
    outcome = "ok" if era == "legacy" else "disconnected"
    assert (found.target, found.decision, found.outcome) == ("slow", "allowed", outcome)


POLICY = {"default": "deny", "rules": [{"agents": ["*"], "tools": ["echo"]}]}


@each_server
async def test_a_record_says_what_the_other_members_did(kind: Kind, tmp_path: Path) -> None:
    def stack(app: Any) -> Any:
        app = SessionAffinityMiddleware(app, keys=[SESSION_KEY])
        app = ToolAuthorizationMiddleware(app, policy=Policy.from_mapping(POLICY))
        app = RateLimitMiddleware(app, requests="2/hour", tokens="5000/hour")
        return TraceContextMiddleware(app)

    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with site(tmp_path / "audit.db", kind, stack) as at, httpx2.AsyncClient() as http:
        traced = {"name": "echo", "arguments": {"text": "hi"}, "_meta": {"traceparent": parent}}
        await post(http, at.url, "tools/call", traced)
        await post(http, at.url, "tools/call", {"name": "broken", "arguments": {}})
        await post(http, at.url, "tools/call", {"name": "echo", "arguments": {"text": "hi"}})
    allowed, denied, limited = at.calls()
    assert (allowed.decision, allowed.rule, allowed.outcome) == ("allowed", "rules[0]", "ok")
    assert allowed.input_tokens is not None
    assert allowed.output_tokens is not None
    assert allowed.input_tokens > 0
    assert allowed.output_tokens > 0
    assert allowed.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert (denied.decision, denied.outcome, denied.target) == ("denied", "refused", "broken")
    assert (limited.decision, limited.outcome, limited.status) == ("limited", "refused", 429)


async def test_the_session_in_the_trail_is_the_one_affinity_names(tmp_path: Path) -> None:
    def stack(app: Any) -> Any:
        return SessionAffinityMiddleware(app, keys=[SESSION_KEY])

    async with site(tmp_path / "audit.db", "fastmcp", stack) as at, connect(at.url, era="legacy") as client:
        await client.call_tool("echo", {"text": "hello"})
    assert len(at.records) == len(at.counting.requests)
    sessions = {one.session for one in at.records}
    assert len(sessions) == 1
    assert None not in sessions
