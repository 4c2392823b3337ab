"""Members: their order, how they start and close, and that each settles."""

import asyncio
import itertools
from typing import Any

import pytest

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import ORDER, Bounds
from tests.support import serve

from .asgi import Call, EchoServer
from .recording import CALL, STAGES, Audit, Limiter, Recorder


@pytest.mark.parametrize("order", list(itertools.permutations(ORDER))[::60])
async def test_members_run_in_one_order_however_they_are_listed(order: tuple[str, ...]) -> None:
    log: list[str] = []
    app: Any = EchoServer()
    for stage in reversed(order):
        app = STAGES[stage](app, log)
    await Call(app, CALL).run()
    inward = [f"{stage}.{hook}" for hook in ("headers", "request") for stage in ORDER]
    outward = [f"{stage}.{hook}" for hook in ("start", "message", "finish") for stage in reversed(ORDER)]
    assert log == inward + outward


async def test_members_apart_share_the_exchange_and_one_parse() -> None:
    log: list[str] = []
    server = EchoServer()
    inner = Audit(server, log)

    async def between(scope: Any, receive: Any, send: Any) -> None:
        await inner(dict(scope), receive, send)

    outer = Limiter(between, log)
    done = await Call(outer, CALL).run()
    assert done.status == 200
    assert server.received == [CALL]
    assert outer.exchanges == inner.exchanges


async def test_the_server_receives_the_canonical_body_with_its_length() -> None:
    server = EchoServer()
    raw = b'{ "jsonrpc": "2.0", "id": 1, "id": 2, "method": "tools/call", "params": {"name": "a", "name": "echo"} }'
    done = await Call(Audit(server, []), raw).run()
    assert server.bodies[0].count(b'"name"') == 1
    headers = dict(server.scopes[0]["headers"])
    assert headers[b"content-length"] == str(len(server.bodies[0])).encode()
    assert done.json["id"] == 2
    assert done.headers["content-length"] == str(len(done.body))


@pytest.mark.parametrize("kind", ["websocket", "other"])
async def test_other_scopes_pass_untouched(kind: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    member = Audit(app, [])
    call = Call(app)
    scope = {"type": kind}
    await member(scope, call.incoming.get, call.send)
    assert seen == [(scope, call.incoming.get, call.send)]
    assert scope == {"type": kind}


async def test_lifespan_passes_through_and_closes_the_members() -> None:
    log: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        log.append("app")
        await send({"type": "lifespan.shutdown.complete"})

    call = Call(None)
    call.incoming = asyncio.Queue()
    call.incoming.put_nowait({"type": "lifespan.startup"})
    call.incoming.put_nowait({"type": "lifespan.shutdown"})
    await Audit(Limiter(app, log), log)({"type": "lifespan"}, call.incoming.get, call.send)
    assert log == ["app", "limiter.close", "audit.close"]
    assert [event["type"] for event in call.events] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


class Starting(Recorder):
    """Says when it is started, and fails if it is given how."""

    stage = "resource_server"
    failure: Exception | None = None

    async def on_startup(self) -> None:
        self.log.append(f"{self.stage}.startup")
        if self.failure is not None:
            raise self.failure


class StartingFirst(Starting):
    stage = "audit"


class Lifespan:
    """An application with a lifespan of its own."""

    def __init__(self, log: list[str], *, fails: bool = False) -> None:
        self.log = log
        self.fails = fails

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        self.log.append("app.start")
        if self.fails:
            await send({"type": "lifespan.startup.failed", "message": "no"})
            return
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        await send({"type": "lifespan.shutdown.complete"})


async def run_lifespan(app: Any) -> list[Any]:
    call = Call(None)
    call.incoming = asyncio.Queue()
    call.incoming.put_nowait({"type": "lifespan.startup"})
    call.incoming.put_nowait({"type": "lifespan.shutdown"})
    await app({"type": "lifespan"}, call.incoming.get, call.send)
    return call.events


async def test_members_start_before_the_application_outermost_first() -> None:
    log: list[str] = []
    events = await run_lifespan(Starting(StartingFirst(Lifespan(log), log), log))
    assert log[:3] == ["audit.startup", "resource_server.startup", "app.start"]
    assert [event["type"] for event in events] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ConfigurationError("issuers[0] is wrong"), "issuers[0] is wrong"),
        (RuntimeError("secret"), "a member failed while starting: RuntimeError"),
    ],
)
async def test_a_member_that_cannot_start_keeps_the_application_from_starting(failure: Any, message: str) -> None:
    log: list[str] = []
    member = Starting(Limiter(Lifespan(log), log), log)
    member.failure = failure
    events = await run_lifespan(member)
    assert events == [{"type": "lifespan.startup.failed", "message": message}]
    assert log == ["resource_server.startup", "limiter.close", "resource_server.close"]


async def test_a_server_does_not_serve_an_application_whose_member_cannot_start() -> None:
    log: list[str] = []
    member = Starting(Lifespan(log), log)
    member.failure = ConfigurationError("issuers[0] is wrong")
    with pytest.raises(RuntimeError, match="failed in its lifespan start-up"):
        async with serve(member):
            pass
    assert "app.start" not in log


async def test_an_application_that_fails_to_start_leaves_no_member_open() -> None:
    log: list[str] = []
    events = await run_lifespan(Starting(Lifespan(log, fails=True), log))
    assert log == ["resource_server.startup", "app.start", "resource_server.close"]
    assert [event["type"] for event in events] == ["lifespan.startup.failed"]


async def test_without_a_lifespan_members_serve_all_the_same() -> None:
    log: list[str] = []
    assert (await Call(Starting(EchoServer(), log), CALL).run()).status == 200
    assert "resource_server.startup" not in log


async def test_a_closing_hook_that_fails_keeps_no_other_from_running(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Recorder):
        stage = "affinity"

        async def on_finish(self, exchange: Exchange) -> None:
            raise RuntimeError("closing")

    log: list[str] = []
    done = await Call(Audit(Failing(EchoServer(), log), log), CALL).run()
    assert done.status == 200
    assert log[-1] == "audit.finish"
    assert "a member failed while finishing" in caplog.text


@pytest.mark.parametrize("value", [0, -1, "4", None, True])
def test_wrong_bounds_are_refused_with_their_name(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Bounds\.max_body_bytes"):
        Bounds(max_body_bytes=value)


def test_something_that_is_no_application_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="ASGI application"):
        Audit(5, [])


async def test_case_41_a_task_that_is_cancelled_while_one_member_settles_lets_the_others_settle_too() -> None:
    log: list[str] = []
    settling = asyncio.Event()

    class Slow(Recorder):
        stage = "affinity"

        async def on_finish(self, exchange: Exchange) -> None:
            settling.set()
            await asyncio.Event().wait()

    running = asyncio.create_task(Call(Audit(Limiter(Slow(EchoServer(), log), log), log), CALL).run())
    await settling.wait()
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert log[-2:] == ["limiter.finish", "audit.finish"]
