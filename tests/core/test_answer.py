"""Answers: streams event by event, one that breaks off, the end of a token, batches."""

import asyncio
import json
import threading
import time
from typing import Any

import pytest

from mcp_middleware.cutoff import Cutoff
from mcp_middleware.errors import UnknownOutcomeError
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import Bounds, Member
from mcp_middleware.message import Request
from mcp_middleware.server_message import ServerMessage, parse_server_message
from mcp_middleware.types import Document, Principal, Rejection
from tests.support import Turns

from .asgi import Call, EchoServer, rpc
from .recording import CALL, Audit, Recorder, Transforming, body, scripted, start


async def test_a13_events_pass_one_by_one_and_comments_at_once() -> None:
    gate = asyncio.Event()
    answer = b'event: message\r\nid: 2\r\ndata: {"jsonrpc":"2.0","id":1,"result":{}}\r\n\r\n'

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream; charset=utf-8"))
        await send(body(b"id: 1\r\ndata: \r\n\r\n", more=True))
        await send(body(b": ping\r\n", more=True))
        await send(body(answer[:20], more=True))
        await gate.wait()
        await send(body(answer[20:], more=False))

    audit = Audit(app, [])
    call = Call(audit, CALL)
    task = asyncio.create_task(call.run())
    await call.seen(3)
    assert call.body == b"id: 1\r\ndata: \r\n\r\n: ping\r\n"
    gate.set()
    await task
    assert call.body.endswith(answer)
    assert audit.exchanges[0].answer is not None
    assert audit.exchanges[0].answer.id == 1


async def test_messages_are_rewritten_and_dropped_in_streams_and_json() -> None:
    secret = b'data: {"jsonrpc":"2.0","method":"notifications/secret"}\n\n'
    answer = b'{"jsonrpc":"2.0","id":1,"result":{"a":1}}'
    stream = Transforming(scripted(start(b"text/event-stream"), body(secret + b"id: 9\ndata: " + answer + b"\n\n")))
    done = await Call(stream, CALL).run()
    assert done.body == b'id: 9\ndata: {"jsonrpc":"2.0","id":1,"result":{"changed":true}}\n\n'
    plain = Transforming(scripted(start(b"application/json"), body(answer[:9], more=True), body(answer[9:])))
    done = await Call(plain, CALL).run()
    assert done.json == {"jsonrpc": "2.0", "id": 1, "result": {"changed": True}}
    assert done.headers["content-length"] == str(len(done.body))


class Strict(Member):
    stage = "authorization"

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        exchange.strict = True
        return None


@pytest.mark.parametrize("media", [b"application/json", b"text/plain", b"application/octet-stream"])
async def test_an_unreadable_answer_fails_closed_where_a_member_must_read_it(media: bytes) -> None:
    app = scripted(start(media), body(b'{"tools":[{"name":"secret"}]'))
    done = await Call(Strict(app), rpc("tools/list")).run()
    assert (done.status, done.json["error"]["code"]) == (502, -32603)
    assert b"secret" not in done.body
    events = scripted(start(b"text/event-stream"), body(b"data: secret\n\n: c\n\nevent: endpoint\ndata: /m\n\n"))
    passed, _, error = (await Call(Strict(events), rpc("tools/list")).run()).body.rpartition(b"event: message")
    assert passed == b": c\n\nevent: endpoint\ndata: /m\n\n"
    assert b'"code":-32603' in error
    refusal = scripted(start(media, 404), body(b"no such place"))
    done = await Call(Strict(refusal), rpc("tools/list")).run()
    assert (done.status, done.body) == (404, b"no such place")
    assert (await Call(Strict(scripted(start(media, 300), body(b"secret"))), rpc("tools/list")).run()).status == 502
    open_app = scripted(start(media), body(b"anything"))
    assert (await Call(Audit(open_app, []), rpc("tools/list")).run()).body == b"anything"


async def test_an_answer_over_the_bound_becomes_an_error() -> None:
    bounds = Bounds(max_answer_bytes=100)
    big = b'{"jsonrpc":"2.0","id":1,"result":{"a":"' + b"x" * 200 + b'"}}'
    done = await Call(Audit(scripted(start(b"application/json"), body(big)), [], bounds=bounds), CALL).run()
    assert (done.status, done.json["id"], done.json["error"]["code"]) == (502, 1, -32603)
    stream = scripted(start(b"text/event-stream"), body(b"data: " + big, more=True), body(b"\n\n"))
    done = await Call(Audit(stream, [], bounds=bounds), CALL).run()
    assert b'"code":-32603' in done.body
    assert done.events[-1]["more_body"] is False


async def test_case_40_a_server_that_fails_in_mid_stream_leaves_one_error_event_with_the_id() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        await send(body(b": x\n\n", more=True))
        raise RuntimeError("boom")

    audit = Audit(app, [])
    call = Call(audit, CALL)
    with pytest.raises(RuntimeError):
        await call.run()
    assert call.body.count(b"data: ") == 1
    assert b'"id":1' in call.body
    assert b"boom" not in call.body
    assert call.events[-1]["more_body"] is False
    assert isinstance(audit.exchanges[0].failed, RuntimeError)


@pytest.mark.parametrize(
    "events", [[], [start(b"application/json")], [start(b"text/event-stream"), body(b": x\n\n", more=True)]]
)
async def test_case_43_a_call_that_the_processs_end_cuts_off_is_told_so(events: list[Any]) -> None:
    reached = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for event in events:
            await send(event)
        reached.set()
        await asyncio.Event().wait()

    audit = Audit(app, [])
    call = Call(audit, CALL)
    task = asyncio.create_task(call.run())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.events[0]["status"] == (200 if len(events) == 2 else 503)
    assert b'"id":1' in call.body
    assert b'"code":-32603' in call.body, "not the code that says that nothing was done"
    assert call.events[-1].get("more_body", False) is False


async def test_case_40_a_stream_of_unknown_outcome_ends_without_ending_the_connection() -> None:
    """The client may use it again as soon as its answer has ended."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        await send(body(b": x\n\n", more=True))
        raise UnknownOutcomeError

    audit = Audit(app, [])
    call = await Call(audit, CALL).run()
    assert call.body.count(b"data: ") == 1
    assert isinstance(audit.exchanges[0].failed, UnknownOutcomeError)


async def test_a_stream_that_breaks_off_after_its_answer_has_a_known_outcome() -> None:
    answer = b'data: {"jsonrpc":"2.0","id":1,"result":{"content":[]}}\n\n'

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        await send(body(answer, more=True))
        raise UnknownOutcomeError

    audit = Audit(app, [])
    call = await Call(audit, CALL).run()
    assert call.body == answer
    assert call.events[-1]["more_body"] is False
    assert audit.exchanges[0].failed is None


RESULT = b'data: {"jsonrpc":"2.0","id":1,"result":{"content":[]}}\n\n'
ERROR = b'data: {"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"no"}}\n\n'
NOTE = b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{}}\n\n'


@pytest.mark.parametrize("parts", [[RESULT + ERROR], [RESULT, ERROR], [RESULT[:-1], b"\n" + ERROR[:20], ERROR[20:]]])
@pytest.mark.parametrize("unread", [b"", b": ping\n\n" * 300])
async def test_case_40_the_first_answer_ends_its_stream(parts: list[bytes], unread: bytes) -> None:
    """Of two the client would believe one, and the trail the other."""
    passed: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        for part in [NOTE, unread, *parts, NOTE, NOTE]:
            await send(body(part, more=True))
            passed.append(len(call.events))
        await send(body(b""))

    audit = Audit(app, [])
    call = Call(audit, CALL)
    await call.run()
    assert call.body == NOTE + unread + RESULT
    assert call.events[-1]["more_body"] is False
    answer = audit.exchanges[0].answer
    assert answer is not None
    assert answer.error is None
    assert passed[-2:] == [len(call.events)] * 2, "what came later was for nobody"


async def test_an_answer_to_another_request_ends_no_stream() -> None:
    other = RESULT.replace(b'"id":1', b'"id":2')
    nobody = ERROR.replace(b'"id":1', b'"id":null')
    app = scripted(start(b"text/event-stream"), body(other + nobody, more=True), body(NOTE))
    assert (await Call(Audit(app, []), CALL).run()).body == other + nobody + NOTE
    assert (await Call(Audit(app, []), method="GET").run()).body == other + nobody + NOTE


@pytest.mark.parametrize("piece", [NOTE, b"data: x\n\n", b"\n", b"event: a\n"])
async def test_case_31_others_have_their_turn_while_a_stream_is_read(
    monkeypatch: pytest.MonkeyPatch, piece: bytes
) -> None:
    monkeypatch.setattr("mcp_middleware.answer._TURN", -1.0)
    data = piece * (64 * 1024 // len(piece)) + b"\n\n"
    with Turns() as others:
        done = await Call(Audit(scripted(start(b"text/event-stream"), body(data)), []), CALL).run()
    assert done.body == data
    assert others.taken >= 30


@pytest.mark.parametrize("step", [100, 64 * 1024])
async def test_case_31_others_have_their_turn_however_fast_a_stream_is(step: int) -> None:
    """Nothing of it has to be waited for, and each piece by itself takes no time."""
    data = b"\n" * (640 * 1024)
    events = [body(data[at : at + step], more=True) for at in range(0, len(data), step)]
    with Turns() as others:
        done = await Call(Audit(scripted(start(b"text/event-stream"), *events, body(b"")), []), CALL).run()
    assert done.body == data
    assert others.taken >= 9


PING = b": ping\n\n"


async def test_what_other_tasks_send_is_in_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """As sse_starlette's pings, which the MCP SDK's servers send: a large event is looked at in pieces, and others have
    their turn in between."""
    monkeypatch.setattr("mcp_middleware.answer._TURN", -1.0)
    large = NOTE.replace(b"{}", b'{"a":"%b"}' % (b"x" * 20_000))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        await asyncio.gather(*(send(body(data, more=True)) for data in (large, PING, large, NOTE)))
        await send(body(RESULT))

    assert (await Call(Audit(app, []), CALL).run()).body == large + PING + large + NOTE + RESULT


async def test_a_sender_that_is_cancelled_keeps_nobody_from_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_middleware.answer._TURN", -1.0)
    large = NOTE.replace(b"{}", b'{"a":"%b"}' % (b"x" * 20_000))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        tasks = [asyncio.create_task(send(body(data, more=True))) for data in (NOTE + large, PING, NOTE)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[1].cancel()
        assert await tasks[2] is None
        await send(body(RESULT))

    assert (await Call(Audit(app, []), CALL).run()).body == NOTE + NOTE + RESULT


async def test_nothing_follows_the_end_of_a_stream_that_its_server_is_still_sending() -> None:
    """The server fails, and leaves a task behind in the middle of an event."""
    reading, go_on = asyncio.Event(), asyncio.Event()
    left: list[asyncio.Task[None]] = []

    class Slow(Member):
        stage = "audit"

        def on_response_message(self, exchange: Exchange, message: ServerMessage) -> Any:
            async def observed() -> ServerMessage:
                reading.set()
                await go_on.wait()
                return message

            return observed()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        left.append(asyncio.create_task(send(body(NOTE, more=True))))
        left.append(asyncio.create_task(send(body(PING, more=True))))
        await reading.wait()
        raise OSError("gone")

    call = Call(Slow(app), CALL)
    with pytest.raises(OSError, match="gone"):
        await call.run()
    go_on.set()
    await asyncio.gather(*left)
    assert len(call.events) == 2
    assert b'"code":-32603' in call.body


@pytest.mark.parametrize("media", [b"application/json", b"text/event-stream"])
async def test_case_31_others_run_while_a_large_answer_is_read(monkeypatch: pytest.MonkeyPatch, media: bytes) -> None:
    """Small ones are not worth a thread."""
    threads: list[bool] = []

    def noting(data: bytes) -> ServerMessage | None:
        threads.append(threading.current_thread() is threading.main_thread())
        return parse_server_message(data)

    monkeypatch.setattr("mcp_middleware.answer.parse_server_message", noting)
    for size in (10, 300_000):
        answer = b'{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"%b"}]}}' % (b"x" * size)
        sent = b"data: " + answer + b"\n\n" if b"event" in media else answer
        audit = Audit(scripted(start(media), body(sent)), [])
        assert (await Call(audit, CALL).run()).body == sent
        assert audit.exchanges[0].answer is not None
        assert audit.exchanges[0].tool_failed is False
    assert threads == [True, False]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_case_31_others_run_while_an_event_of_many_lines_is_read_and_rewritten(
    monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    """JSON as people read it has a line for each number."""
    threads: set[bool] = set()

    def noting(data: bytes) -> ServerMessage | None:
        threads.add(threading.current_thread() is threading.main_thread())
        return parse_server_message(data)

    monkeypatch.setattr("mcp_middleware.answer.parse_server_message", noting)
    pretty = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"content": [], "a": [1] * 45_000}}, indent=1)
    event = end.join([b"id: 7", *(b"data: " + line.encode() for line in pretty.split("\n")), b"", b""])
    app = scripted(start(b"text/event-stream"), body(event))
    assert (await Call(Audit(app, []), CALL).run()).body == event
    changed = (await Call(Transforming(app), CALL).run()).body
    assert changed == b'id: 7\ndata: {"jsonrpc":"2.0","id":1,"result":{"changed":true}}\n\n'
    assert threads == {False}


class Authenticating(Member):
    stage = "resource_server"
    expires_at = 0.0

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        exchange.principal = Principal("https://i", "agent", "s", expires_at=self.expires_at)
        return None


@pytest.mark.parametrize("own_task", [False, True])
async def test_case_24_the_end_of_the_token_ends_open_streams(own_task: bool) -> None:
    closed: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        try:
            await asyncio.Event().wait()
        finally:
            closed.append(scope["method"])

    async def in_a_task_of_its_own(scope: Any, receive: Any, send: Any) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(app(scope, receive, send))

    member = Authenticating(in_a_task_of_its_own if own_task else app)
    member.expires_at = time.time() + 0.1
    post = await Call(member, CALL).run()
    assert b"has ended" in post.body
    assert post.events[-1]["more_body"] is False
    get = await Call(member, method="GET").run()
    assert get.body == b""
    assert closed == ["POST", "GET"]


class Revocable(Member):
    """A token without an end that its issuer may revoke."""

    stage = "resource_server"

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.good = [True, True, False]

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        exchange.principal = Principal("https://i", "agent", "s")
        exchange.still_good = self.is_still_good
        return None

    async def is_still_good(self, exchange: Exchange) -> bool:
        assert exchange.principal is not None
        return self.good.pop(0)


async def test_case_24_a_revoked_token_ends_open_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_middleware.answer._TOKEN_CHECK", 0.01)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        await asyncio.Event().wait()

    member = Revocable(app)
    post = await Call(member, CALL).run()
    assert b"401001" in post.body
    assert member.good == []
    member.good = [True, False]
    assert (await Call(member, method="GET").run()).events[-1]["more_body"] is False
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "cutoff"]


async def test_case_24_a_stream_that_ends_by_itself_is_asked_about_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_middleware.answer._TOKEN_CHECK", 0.01)
    waiting = asyncio.Event()
    answer = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(b"text/event-stream"))
        await waiting.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    class Slow(Revocable):
        async def is_still_good(self, exchange: Exchange) -> bool:
            waiting.set()
            await answer.wait()
            raise AssertionError

    done = await Call(Slow(app), CALL).run()
    assert done.events[-1]["more_body"] is False
    answer.set()
    await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "cutoff"]


async def test_case_24_the_end_and_the_revocation_at_once_end_a_stream_once() -> None:
    """Both timers may fire in one turn of the loop; a second cancellation would be taken for one from outside."""
    cutoff = Cutoff()
    loop = asyncio.get_running_loop()

    async def bad() -> bool:
        return False

    cutoff.start(0.0)
    cutoff.ask(bad, every=0.0)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.Event().wait()
    assert cutoff.absorbs()
    cutoff.stop()
    turn = loop.create_future()
    loop.call_later(0.01, turn.set_result, None)
    await turn


class DenyAdmin(Recorder):
    stage = "authorization"

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        message = exchange.message
        if isinstance(message, Request) and message.target == "admin":
            return Rejection(200, -32602, "Unknown tool: admin", "not_allowed")
        return None


@pytest.mark.parametrize("sse", [False, True])
async def test_case_12_each_message_of_a_batch_is_judged_by_itself(sse: bool) -> None:
    """2025-03-26, transports."""
    server = EchoServer(sse=sse)
    audit = Audit(DenyAdmin(server, []), [])
    batch = [
        rpc("tools/call", {"name": "echo"}, 1),
        rpc("tools/call", {"name": "admin"}, 2),
        rpc("notifications/cancelled", request_id=None),
        rpc("tools/call", {"name": "echo"}, "three"),
    ]
    done = await Call(audit, batch).run()
    assert done.status == 200
    if sse:
        answers = [json.loads(line[6:]) for line in done.body.splitlines() if line.startswith(b"data: ")]
        assert done.events[-1]["more_body"] is False
    else:
        answers = done.json
    assert [answer["id"] for answer in answers] == [1, 2, "three"]
    assert answers[1]["error"]["message"] == "Unknown tool: admin"
    assert [message.get("id") for message in server.received] == [1, None, "three"]
    recorded = [(x.silent, x.rejection is not None) for x in audit.exchanges]
    assert recorded == [(False, False), (False, True), (False, False), (False, False), (True, False)]


async def test_case_31_others_have_their_turn_between_the_messages_of_a_batch() -> None:
    """Also where nothing has to be waited for, because all of them are refused."""
    batch = [rpc("tools/call", {"name": "admin"}, number) for number in range(50)]
    with Turns() as others:
        done = await Call(DenyAdmin(EchoServer(), []), batch).run()
    assert len(done.json) == 50
    assert others.taken >= 50


async def test_a_batch_of_notifications_is_accepted_without_a_body() -> None:
    done = await Call(Audit(EchoServer(), []), [rpc("notifications/x", request_id=None)]).run()
    assert (done.status, done.body) == (202, b"")


async def test_a_call_of_a_batch_that_the_server_leaves_open_is_answered_all_the_same() -> None:
    silent = scripted({"type": "http.response.start", "status": 202, "headers": []}, body(b""))
    done = await Call(Audit(silent, []), [rpc("ping", request_id=1), rpc("ping", request_id=2)]).run()
    assert [(answer["id"], answer["error"]["code"]) for answer in done.json] == [(1, -32603), (2, -32603)]


async def test_one_failing_message_of_a_batch_does_not_fail_the_others(caplog: pytest.LogCaptureFixture) -> None:
    echo = EchoServer()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if not echo.scopes:
            echo.scopes.append(scope)
            raise RuntimeError("boom")
        await echo(scope, receive, send)

    done = await Call(Audit(app, []), [rpc("ping", request_id=1), rpc("ping", request_id=2)]).run()
    assert [answer["id"] for answer in done.json] == [1, 2]
    assert done.json[0]["error"]["code"] == -32603
    assert "boom" not in done.body.decode()
