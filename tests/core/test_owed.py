"""Calls whose answer comes on another stream than their own."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mcp_middleware.audit import AuditLogMiddleware, AuditTrail, SQLiteSink
from mcp_middleware.audit.journal import journals_of, parse
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import Member
from mcp_middleware.owed import Owed
from mcp_middleware.server_message import ServerMessage
from tests.support import LEGACY, until

from .asgi import Call, rpc, user_of
from .recording import body, start

HEADERS = {"mcp-protocol-version": LEGACY, "mcp-session-id": "s"}
EVENT = b"id: 1\r\ndata: \r\n\r\n"


class Waiting(Member):
    """Notes of each call when its stream has ended without an answer, and when it has finished, with what."""

    stage = "limiter"

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.owed: list[int | str | None] = []
        self.finished: list[tuple[int | str | None, bool, bytes | None]] = []
        self.fails = False

    async def on_owed(self, exchange: Exchange) -> None:
        self.owed.append(exchange.request_id)

    async def on_finish(self, exchange: Exchange) -> None:
        if exchange.message is None:
            return
        said = None if exchange.answer is None else bytes(exchange.answer.raw)
        self.finished.append((exchange.request_id, exchange.late, said))
        if self.fails:
            raise RuntimeError("broken")


class Prompt(Member):
    """One that does not wait."""

    stage = "tracing"

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.finished: list[Exchange] = []

    async def on_finish(self, exchange: Exchange) -> None:
        self.finished.append(exchange)


class Polled:
    """Ends the stream of each call before it answers; what a GET stream carries is chosen by the test."""

    def __init__(self) -> None:
        self.before = EVENT
        """What comes of it before; each byte by itself, if it is ``split``."""
        self.split = False
        self.status = 200
        self.raises: Exception | None = None
        self.last: asyncio.Event | None = None
        """Waited for before the stream of a call ends."""
        self.stream: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(start(b"text/event-stream", self.status))
        if scope["method"] == "GET":
            for number, data in enumerate(self.stream, 2):
                await send(body(b"id: %d\r\ndata: %b\r\n\r\n" % (number, data), more=True))
        else:
            pieces = [bytes([byte]) for byte in self.before] if self.split else [self.before]
            for piece in pieces:
                await send(body(piece, more=True))
            if self.raises is not None:
                raise self.raises
            if self.last is not None:
                await self.last.wait()
        await send(body(b""))


class Bench:
    def __init__(self) -> None:
        self.server = Polled()
        self.waiting = Waiting(self.server)
        self.prompt: Member = Prompt(self.waiting)

    async def call(
        self,
        request_id: int | str = 1,
        *,
        session: str | None = "s",
        client: str = "agent",
        expires_at: float | None = None,
    ) -> Call:
        message = rpc("tools/call", {"name": "tool"}, request_id)
        return await self._send(message, "POST", session, client, expires_at)

    async def resume(self, *answers: dict[str, Any], session: str = "s", client: str = "agent") -> Call:
        self.server.stream = [json.dumps(answer).encode() for answer in answers]
        return await self._send(b"", "GET", session, client)

    async def end_session(self) -> Call:
        return await self._send(b"", "DELETE", "s", "agent")

    async def _send(
        self, message: Any, method: str, session: str | None, client: str, expires_at: float | None = None
    ) -> Call:
        headers = {"mcp-protocol-version": LEGACY} | ({} if session is None else {"mcp-session-id": session})
        call = Call(self.prompt, message, method=method, headers=headers)
        call.scope["user"] = user_of(client)
        call.scope["user"].access_token.expires_at = expires_at
        return await call.run()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def answer(request_id: int | str = 1, **result: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "result": result}


async def test_a_call_finishes_with_the_answer_that_comes_on_another_stream(bench: Bench) -> None:
    await bench.call()
    assert (bench.waiting.owed, bench.waiting.finished) == ([1], [])
    assert isinstance(bench.prompt, Prompt)
    (exchange,) = bench.prompt.finished  # what does not wait has finished with the stream
    resumed = await bench.resume({"jsonrpc": "2.0", "method": "notifications/message"}, answer(done=True))
    assert resumed.body.count(b"data: ") == 2
    said = json.dumps(answer(done=True)).encode()
    assert bench.waiting.finished == [(1, True, said)]
    assert exchange.response_bytes == len(EVENT) + len(said)
    assert exchange.scope == {"client": ("127.0.0.1", 1234)}


async def test_what_is_sent_again_answers_nothing(bench: Bench) -> None:
    await bench.call(1)
    await bench.call(2)
    for _ in range(3):
        await bench.resume(answer(1))
    assert [one[0] for one in bench.waiting.finished] == [1]
    await bench.call(1)
    await bench.resume(answer(1), answer(2), answer(1))
    assert [one[0] for one in bench.waiting.finished] == [1, 2, 1]


@pytest.mark.parametrize(
    ("session", "client", "request_id"), [("other", "agent", 1), ("s", "other", 1), ("s", "agent", "1")]
)
async def test_nobody_elses_answer_counts(bench: Bench, session: str, client: str, request_id: int | str) -> None:
    await bench.call()
    await bench.resume(answer(request_id), session=session, client=client)
    assert bench.waiting.finished == []


@pytest.mark.parametrize("why", ["no event has an id", "no session", "answered", "it failed"])
async def test_only_a_stream_that_can_be_resumed_is_waited_for(bench: Bench, why: str) -> None:
    if why == "no event has an id":
        bench.server.before = b"data: \r\n\r\n"
    elif why == "answered":
        bench.server.before = EVENT + b"data: " + json.dumps(answer()).encode() + b"\r\n\r\n"
    elif why == "it failed":
        bench.server.raises = RuntimeError("crashed")
        with pytest.raises(RuntimeError, match="crashed"):
            await bench.call()
    if why != "it failed":
        await bench.call(session=None if why == "no session" else "s")
    assert bench.waiting.owed == []
    assert [one[:2] for one in bench.waiting.finished] == [(1, False)]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    "events",
    [
        b": ping\n\nid: 1\ndata: \n\n",
        b"event: message\r\nid: 1\r\ndata: \r\n\r\n",
        b"data: \rid: 1\r\r",
        b"\xef\xbb\xbfid: 1\ndata: \n\n",
    ],
)
async def test_an_events_id_is_found_wherever_chunks_and_lines_end(bench: Bench, events: bytes, split: bool) -> None:
    bench.server.before, bench.server.split = events, split
    await bench.call()
    assert bench.waiting.owed == [1]


async def test_what_is_kept_of_an_answer_that_came_is_small_whatever_its_id_is(bench: Bench) -> None:
    async def finish(exchange: Exchange) -> None:
        """None is waited for."""

    owed = Owed(finish)
    await bench.call("x" * 10_000)
    assert isinstance(bench.prompt, Prompt)
    for number in range(3):
        owed.leave(bench.prompt.finished[0], b"%d" % number + b"y" * 10_000)
    assert [type(event) for event in owed._events] == [int] * 3
    assert all(sys.getsizeof(event) < 100 for event in owed._events)


async def test_an_id_that_is_used_again_hides_no_answer(bench: Bench) -> None:
    for _ in range(3):
        await bench.call()
    await bench.resume(answer(said="little"))
    for _ in range(3):
        await bench.resume(answer(said="little"))
        await bench.resume(answer(said="little"), answer(said="much"))
    await bench.call()
    await bench.resume(answer(said="little"), answer(said="much"), answer(said="more"))
    await bench.resume(answer(said="little"), answer(said="much"), answer(said="more"), answer(said="most"))
    told = [json.loads(said or b"")["result"]["said"] for _, _, said in bench.waiting.finished]
    assert told == ["little", "much", "more", "most"]


@pytest.mark.parametrize("most", ["_MOST", "_MOST_BYTES"])
async def test_the_calls_that_are_kept_are_bounded(bench: Bench, most: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(json.dumps(rpc("tools/call", {"name": "tool"}, 1)))
    monkeypatch.setattr(f"mcp_middleware.owed.{most}", 3 if most == "_MOST" else 3 * size)
    for number in range(5):
        await bench.call(number)
    await until(lambda: len(bench.waiting.finished) == 2)
    assert bench.waiting.finished == [(0, False, None), (1, False, None)]


@pytest.mark.parametrize("most", ["_MOST", "_MOST_BYTES"])
async def test_a_caller_of_many_calls_ends_its_own(bench: Bench, most: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(json.dumps(rpc("tools/call", {"name": "tool"}, 1)))
    monkeypatch.setattr(f"mcp_middleware.owed.{most}", 3 if most == "_MOST" else 3 * size)
    await bench.call(1)
    for number in range(2, 7):
        await bench.call(number, client="busy")
    await until(lambda: len(bench.waiting.finished) == 3)
    assert [one[0] for one in bench.waiting.finished] == [2, 3, 4]
    await bench.resume(answer(1))
    assert bench.waiting.finished[-1][:2] == (1, True)


async def test_a_call_is_not_waited_for_without_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_middleware.owed._KEPT", 0.01)
    await bench.call()
    await until(lambda: bench.waiting.finished)
    await bench.resume(answer())
    assert bench.waiting.finished == [(1, False, None)]


async def test_calls_finish_with_their_session(bench: Bench) -> None:
    await bench.call(1)
    await bench.call(2, session="other")
    bench.server.status = 405
    await bench.end_session()
    assert bench.waiting.finished == []
    bench.server.status = 200
    await bench.end_session()
    await until(lambda: bench.waiting.finished)
    assert bench.waiting.finished == [(1, False, None)]


async def test_calls_finish_with_the_application(bench: Bench) -> None:
    await bench.call(1)
    await bench.call(2)
    await bench.prompt.end_waiting()
    assert bench.waiting.finished == [(1, False, None), (2, False, None)]


async def test_a_member_that_fails_then_keeps_the_answer_from_nobody(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.waiting.fails = True
    await bench.call()
    assert b'"result"' in (await bench.resume(answer())).body
    assert "a member failed while finishing" in caplog.text


async def test_what_a_member_says_for_the_server_is_not_the_answer(bench: Bench) -> None:
    class Cutting(Member):
        stage = "authorization"

        def on_response_message(self, exchange: Exchange, message: ServerMessage) -> ServerMessage:
            return ServerMessage(id=1).with_error(-1, "cut") if message.method else message

    bench.waiting = Waiting(Cutting(bench.server))
    bench.prompt = Prompt(bench.waiting)
    bench.server.before = EVENT + b'data: {"jsonrpc":"2.0","method":"notifications/message"}\r\n\r\n'
    assert b"cut" in (await bench.call()).body
    await bench.resume(answer())
    assert [one[:2] for one in bench.waiting.finished] == [(1, True)]


async def test_a_stream_that_ends_with_its_token_is_waited_for(bench: Bench) -> None:
    bench.server.last = asyncio.Event()
    call = await bench.call(expires_at=time.time())
    assert b"has ended" in call.body
    await bench.resume(answer(done=True))
    assert bench.waiting.finished == [(1, True, json.dumps(answer(done=True)).encode())]


async def test_case_36_a_call_that_waits_for_its_answer_has_begun(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    bench.prompt = AuditLogMiddleware(bench.server, sink=SQLiteSink(path))
    await bench.call()
    (journal,) = journals_of(path)
    contents = parse(journal.read_bytes(), 1, 0)
    assert contents is not None
    assert [(one.target, one.outcome) for one in contents.begun] == [("tool", "unknown")]
    await bench.resume(answer())
    await bench.prompt.aclose()
    told = [(one.http_method, one.target, one.outcome) for one in AuditTrail(path).read()]
    assert told == [("POST", "tool", "ok"), ("GET", None, "ok")]


@pytest.mark.parametrize("leaves", ["before", "after"])
async def test_a_call_whose_stream_hangs_while_another_has_its_answer_ends_with_that(leaves: str) -> None:
    """As with a server to which one of two calls of the same id is lost."""
    bench, polled = Bench(), Polled()
    first = asyncio.Event()

    async def server(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "GET" or first.is_set():
            await polled(scope, receive, send)
            return
        await receive()
        await send(start(b"text/event-stream"))
        await send(body(EVENT, more=True))
        first.set()
        await receive()

    bench.server = polled
    bench.waiting = Waiting(server)
    bench.prompt = Prompt(bench.waiting)
    hanging = Call(bench.prompt, rpc("tools/call", {"name": "tool"}, 1), headers=HEADERS)
    hanging.scope["user"] = user_of("agent")
    if leaves == "before":
        hanging.disconnect()
    running = asyncio.create_task(hanging.run())
    await first.wait()
    own = b"id: 2\r\ndata: " + json.dumps(answer(said="little")).encode() + b"\r\n\r\n"
    polled.before = EVENT + own
    await bench.call()
    await bench.resume(answer(said="little"), answer(said="much"))
    if leaves == "after":
        hanging.disconnect()
    await running
    told = [(late, json.loads(said or b"")["result"]["said"]) for _, late, said in bench.waiting.finished]
    assert told == [(False, "little"), (True, "much")]
    await bench.resume(answer(said="little"), answer(said="much"), answer(said="nothing"))
    assert len(bench.waiting.finished) == 2


async def test_groups_with_another_layer_between_them_wait_together() -> None:
    server = Polled()
    inner = Waiting(server)

    async def between(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)

    outer = Waiting(between)
    bench = Bench()
    bench.server = server
    bench.prompt = Prompt(outer)
    await bench.call()
    assert (inner.finished, outer.finished) == ([], [])
    await bench.resume(answer())
    assert [one[:2] for one in [*inner.finished, *outer.finished]] == [(1, True), (1, True)]


async def test_a_client_that_leaves_as_the_answer_comes_does_not_keep_the_call_from_finishing(bench: Bench) -> None:
    gate, entered = asyncio.Event(), asyncio.Event()

    class Slow(Waiting):
        async def on_finish(self, exchange: Exchange) -> None:
            if exchange.message is not None:
                entered.set()
                await gate.wait()
            await super().on_finish(exchange)

    bench.waiting = Slow(bench.server)
    bench.prompt = Prompt(bench.waiting)
    await bench.call()
    resuming = asyncio.create_task(bench.resume(answer()))
    await entered.wait()
    resuming.cancel()
    await asyncio.wait({resuming})
    gate.set()
    await until(lambda: bench.waiting.finished)
    assert [one[:2] for one in bench.waiting.finished] == [(1, True)]
