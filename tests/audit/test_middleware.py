"""One record a message, whatever becomes of it, and no call without one."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mcp_middleware import errors
from mcp_middleware.audit import AuditLogMiddleware, AuditTrail, JSONLinesSink, SQLiteSink
from mcp_middleware.audit.journal import journals_of, parse
from mcp_middleware.audit.sinks import QueuedSink
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.exchange import Exchange, name_session
from mcp_middleware.member import Bounds, Member
from mcp_middleware.types import Document, Rejection
from tests.audit.trails import ListSink
from tests.core.asgi import Call, EchoServer, modern_headers, rpc
from tests.support import MODERN_META

CALL = rpc("tools/call", {"name": "echo", "arguments": {}})


class Refusing(Member):
    """A member that refuses everything by its headers."""

    stage = "resource_server"

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        return Rejection(401, errors.UNAUTHORIZED, "no token", "no_token")


class Publishing(Member):
    """A member that serves a document."""

    stage = "resource_server"

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        return Document(b"{}")


def app_with(sink: ListSink, server: Any = None) -> AuditLogMiddleware:
    return AuditLogMiddleware(server or EchoServer(), sink=sink)


@pytest.mark.parametrize("sse", [False, True])
async def test_one_record_for_an_answered_call(sse: bool) -> None:
    sink = ListSink()
    answer = await Call(app_with(sink, EchoServer(sse=sse)), CALL).run()
    found = sink.only
    assert (found.method, found.target_kind, found.target, found.request_id) == ("tools/call", "tool", "echo", 1)
    assert (found.decision, found.outcome, found.status, found.tool_error) == ("allowed", "ok", 200, False)
    assert (found.request_bytes, found.response_bytes) == (len(json.dumps(CALL)), len(answer.body))
    assert (found.era, found.http_method, found.client_address) == ("legacy", "POST", "127.0.0.1")


async def test_one_record_in_the_modern_era() -> None:
    sink = ListSink()
    message = rpc("tools/call", {"name": "echo", "_meta": MODERN_META})
    headers = {**modern_headers("tools/call", "echo"), "mcp-session-id": "chosen-by-the-client"}
    await Call(app_with(sink), message, headers=headers).run()
    found = sink.only
    assert (found.era, found.version, found.session) == ("modern", "2026-07-28", None)


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "not json": ({"body": b"{"}, 400, "parse_error"),
    "no message": ({"body": b"[]"}, 400, "invalid_message"),
    "wrong type": ({"body": CALL, "headers": {"content-type": "text/plain"}}, 415, "content_type"),
    "compressed": (
        {"body": b"x", "headers": {"content-type": "application/json", "content-encoding": "gzip"}},
        415,
        "encoding",
    ),
    "too large": ({"body": b" " * 2000}, 413, "body_too_large"),
    "too large in chunks": ({"chunks": [b" " * 600] * 4}, 413, "body_too_large"),
    "header differs": (
        {
            "body": rpc("tools/call", {"name": "echo", "_meta": MODERN_META}),
            "headers": modern_headers("tools/call", "other"),
        },
        400,
        "header_mismatch",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_one_record_for_a_message_that_is_refused(name: str) -> None:
    request, status, reason = REFUSED[name]
    sink, server = ListSink(), EchoServer()
    app = AuditLogMiddleware(server, sink=sink, bounds=Bounds(max_body_bytes=1000))
    assert (await Call(app, **request).run()).status == status
    found = sink.only
    assert (found.decision, found.outcome, found.status, found.reason) == ("rejected", "refused", status, reason)
    assert server.scopes == []


async def test_a_message_whose_headers_lie_is_recorded_with_what_it_asked_for() -> None:
    sink = ListSink()
    request, _, _ = REFUSED["header differs"]
    await Call(app_with(sink), **request).run()
    assert (sink.only.target, sink.only.error_code) == ("echo", errors.HEADER_MISMATCH)


@pytest.mark.parametrize("http_method", ["POST", "GET", "DELETE", "PUT"])
async def test_one_record_for_what_another_member_refuses(http_method: str) -> None:
    sink = ListSink()
    app = AuditLogMiddleware(Refusing(EchoServer()), sink=sink)
    assert (await Call(app, CALL, method=http_method).run()).status == 401
    found = sink.only
    assert (found.decision, found.reason, found.http_method) == ("unauthenticated", "no_token", http_method)
    assert found.method is None


async def test_a_refusal_behind_a_foreign_middleware_is_recorded_once() -> None:
    sink = ListSink()
    inner = Refusing(EchoServer())

    async def foreign(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)

    await Call(AuditLogMiddleware(foreign, sink=sink), CALL).run()
    assert (sink.only.decision, sink.only.target) == ("unauthenticated", "echo")


async def test_a_metadata_document_is_no_message() -> None:
    sink = ListSink()
    await Call(AuditLogMiddleware(Publishing(EchoServer()), sink=sink), method="GET").run()
    assert sink.records == []


async def test_one_record_for_notifications_and_for_answers_of_the_client() -> None:
    sink = ListSink()
    app = app_with(sink)
    await Call(app, rpc("notifications/initialized", request_id=None)).run()
    await Call(app, {"jsonrpc": "2.0", "id": "ask-1", "result": {}}).run()
    told, answer = sink.records
    assert (told.method, told.request_id, told.outcome, told.status) == ("notifications/initialized", None, "ok", 202)
    assert (answer.method, answer.request_id, answer.outcome) == (None, "ask-1", "ok")


async def test_one_record_for_each_message_of_a_batch() -> None:
    """2025-03-26, transports."""
    sink = ListSink()
    batch = [rpc("tools/call", {"name": name}, index) for index, name in enumerate(["a", "b", "c"])]
    batch.append(rpc("notifications/cancelled", {"requestId": 0}, None))
    answer = await Call(app_with(sink), batch).run()
    assert len(answer.json) == 3
    assert [found.target for found in sink.records] == ["a", "b", "c", None]
    assert {found.outcome for found in sink.records} == {"ok"}


async def test_one_record_for_a_batch_that_is_refused() -> None:
    """Case 12"""
    sink = ListSink()
    answer = await Call(app_with(sink), [CALL], headers={"mcp-protocol-version": "2025-11-25"}).run()
    assert answer.status == 400
    assert sink.only.decision == "rejected"


async def test_one_record_when_the_server_raises() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("boom")

    sink = ListSink()
    with pytest.raises(RuntimeError, match="boom"):
        await Call(app_with(sink, broken), CALL).run()
    assert (sink.only.outcome, sink.only.status, sink.only.target) == ("failed", None, "echo")


async def test_one_record_when_the_server_raises_in_its_stream() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b": hello\n\n", "more_body": True})
        raise RuntimeError("boom")

    sink = ListSink()
    with pytest.raises(RuntimeError, match="boom"):
        await Call(app_with(sink, broken), CALL).run()
    assert (sink.only.outcome, sink.only.error_code) == ("failed", errors.INTERNAL_ERROR)


async def _streams_until_disconnected(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b": hello\n\n", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


async def test_one_record_when_the_client_leaves_the_stream() -> None:
    sink = ListSink()
    message = rpc("tools/call", {"name": "echo", "_meta": MODERN_META})
    request = Call(app_with(sink, _streams_until_disconnected), message, headers=modern_headers("tools/call", "echo"))
    running = asyncio.create_task(request.run())
    await request.seen(2)
    assert sink.records == []
    request.disconnect()
    await running
    assert (sink.only.outcome, sink.only.status, sink.only.response_bytes) == ("disconnected", 200, 9)


async def test_one_record_when_the_client_leaves_before_its_body_is_there() -> None:
    sink, server = ListSink(), EchoServer()
    request = Call(app_with(sink, server), chunks=[])
    request.disconnect()
    await request.run()
    assert (sink.only.decision, sink.only.outcome, sink.only.method) == ("rejected", "disconnected", None)
    assert server.scopes == []


async def test_one_record_when_the_request_is_cancelled() -> None:
    sink = ListSink()
    request = Call(app_with(sink, _streams_until_disconnected), CALL)
    running = asyncio.create_task(request.run())
    await request.seen(2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sink.only.outcome == "unknown"


async def test_a_stream_that_was_asked_for_by_get_is_recorded_when_it_ends() -> None:
    sink = ListSink()
    headers = {"mcp-session-id": "0123456789abcdef"}
    request = Call(app_with(sink, _streams_until_disconnected), method="GET", headers=headers)
    running = asyncio.create_task(request.run())
    await request.seen(2)
    assert sink.records == []
    request.disconnect()
    await running
    found = sink.only
    assert (found.http_method, found.method, found.outcome, found.status) == ("GET", None, "ok", 200)
    assert found.session == name_session(b"0123456789abcdef")


async def test_the_end_of_a_session_is_recorded() -> None:
    sink = ListSink()
    await Call(app_with(sink), method="DELETE", headers={"mcp-session-id": "0123456789abcdef"}).run()
    found = sink.only
    assert (found.http_method, found.method, found.session) == ("DELETE", None, name_session(b"0123456789abcdef"))


@pytest.mark.parametrize("http_method", ["GET", "HEAD", "OPTIONS"])
async def test_what_is_neither_message_nor_stream_nor_refused_is_no_record(http_method: str) -> None:
    sink = ListSink()
    await Call(app_with(sink), method=http_method, path="/health").run()
    assert sink.records == []


async def test_the_call_that_opens_a_session_names_it() -> None:
    async def server(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json"), (b"mcp-session-id", b"opened-by-the-server")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"jsonrpc":"2.0","id":1,"result":{}}'})

    sink = ListSink()
    await Call(app_with(sink, server), rpc("initialize", {})).run()
    assert sink.only.session == name_session(b"opened-by-the-server")


async def test_case_34_no_secret_is_in_any_sink_or_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """F7: neither tokens nor arguments nor live session ids, at any log level."""
    caplog.set_level(logging.DEBUG)
    sinks = [SQLiteSink(tmp_path / "audit.db"), JSONLinesSink(tmp_path / "audit.jsonl")]
    app = AuditLogMiddleware(EchoServer(), sinks=sinks)
    headers = {"authorization": "Bearer s3cret-token", "mcp-session-id": "s3cret-session"}
    message = rpc("tools/call", {"name": "echo", "arguments": {"password": "s3cret-argument"}})
    await Call(app, message, headers=headers).run()
    await Call(app, b'{"s3cret-garbage', headers=headers).run()
    await app.aclose()
    kept = b"".join((tmp_path / name).read_bytes() for name in ("audit.db", "audit.jsonl"))
    assert kept.count(b"tools/call") == 2
    assert b"s3cret" not in kept
    assert "s3cret" not in caplog.text


async def test_a_record_names_the_server() -> None:
    sink = ListSink()
    await Call(AuditLogMiddleware(EchoServer(), sink=sink, server="files"), CALL).run()
    await Call(AuditLogMiddleware(Refusing(EchoServer()), sink=sink, server="files"), CALL).run()
    assert [one.server for one in sink.records] == ["files", "files"]


async def test_a_refusal_further_in_ends_what_began(tmp_path: Path) -> None:
    """Behind a foreign middleware stands another group of members: what it refuses was begun, and reached no server."""
    inner = Refusing(EchoServer())

    async def foreign(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)

    app = AuditLogMiddleware(foreign, sink=SQLiteSink(tmp_path / "audit.db"))
    await Call(app, CALL).run()
    await app.aclose()
    (found,) = AuditTrail(tmp_path / "audit.db").read()
    assert (found.decision, found.outcome, found.reason) == ("unauthenticated", "refused", "no_token")


async def test_case_36_a_stream_that_is_open_has_begun(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    app = AuditLogMiddleware(_streams_until_disconnected, sink=SQLiteSink(path))
    request = Call(app, method="GET")
    running = asyncio.create_task(request.run())
    await request.seen(2)
    (journal,) = journals_of(path)
    contents = parse(journal.read_bytes(), 1, 0)
    assert contents is not None
    assert [(one.http_method, one.outcome) for one in contents.begun] == [("GET", "unknown")]
    request.disconnect()
    await running
    await app.aclose()
    assert [(one.http_method, one.outcome) for one in AuditTrail(path).read()] == [("GET", "ok")]


async def test_case_42_a_beginning_that_cannot_be_kept_is_refused_or_served_as_told() -> None:
    class Full(ListSink):
        def begin(self, record: Any) -> int:
            raise OSError("full")

        def end(self, ticket: int, record: Any) -> None:
            raise AssertionError("nothing began")

    sink, server = Full(), EchoServer()
    assert (await Call(AuditLogMiddleware(server, sink=sink), CALL).run()).status == 503
    assert server.scopes == []
    assert (await Call(AuditLogMiddleware(server, sink=sink, on_failure="continue"), CALL).run()).status == 200
    notification = rpc("notifications/cancelled", {"requestId": 1}, None)
    assert (await Call(AuditLogMiddleware(server, sink=sink), notification).run()).status == 202
    assert [one.reason for one in sink.records] == ["audit_unavailable", None, None]


async def test_every_sink_gets_every_record(tmp_path: Path) -> None:
    listing = ListSink()
    app = AuditLogMiddleware(EchoServer(), sink=listing, sinks=[SQLiteSink(tmp_path / "audit.db")])
    await Call(app, CALL).run()
    await app.aclose()
    assert list(AuditTrail(tmp_path / "audit.db").read()) == listing.records
    assert listing.closed


async def test_the_default_is_one_sqlite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = AuditLogMiddleware(EchoServer())
    monkeypatch.chdir("/")
    await Call(app, CALL).run()
    await app.aclose()
    assert [found.target for found in AuditTrail(tmp_path / "audit.db").read()] == ["echo"]


async def test_a_record_after_closing_opens_the_sink_again(tmp_path: Path) -> None:
    app = AuditLogMiddleware(EchoServer(), sink=SQLiteSink(tmp_path / "audit.db"))
    for _ in range(3):
        await Call(app, CALL).run()
        await app.aclose()
    assert len(list(AuditTrail(tmp_path / "audit.db").read())) == 3


async def test_case_42_a_request_is_refused_while_a_sink_takes_nothing() -> None:
    sink, server = ListSink(), EchoServer()
    app = app_with(sink, server)
    sink.accepting = False
    refused = await Call(app, CALL).run()
    assert refused.status == 503
    assert refused.headers["retry-after"] == "5"
    assert refused.json["error"]["code"] == errors.UNAVAILABLE
    assert refused.json["id"] == 1
    assert server.scopes == []
    found = sink.only
    assert (found.decision, found.outcome, found.reason) == ("unavailable", "refused", "audit_unavailable")
    sink.accepting = True
    assert (await Call(app, CALL).run()).status == 200


async def test_notifications_and_the_end_of_a_session_pass_while_a_sink_takes_nothing() -> None:
    sink, server = ListSink(), EchoServer()
    app = app_with(sink, server)
    sink.accepting = False
    await Call(app, rpc("notifications/cancelled", {"requestId": 1}, None)).run()
    await Call(app, method="DELETE").run()
    assert len(server.scopes) == 2


async def test_case_42_on_failure_continue_serves_without_a_record() -> None:
    sink, server = ListSink(), EchoServer()
    sink.accepting = False
    app = AuditLogMiddleware(server, sink=sink, on_failure="continue")
    assert (await Call(app, CALL).run()).status == 200


@pytest.mark.parametrize("make", [SQLiteSink, JSONLinesSink])
async def test_case_42_a_lost_disk_refuses_calls_and_loses_no_record(make: Any, tmp_path: Path) -> None:
    """The directory goes, and comes back; what was served or refused in between is in the trail."""
    disk, away = tmp_path / "disk", tmp_path / "away"
    disk.mkdir()
    sink: QueuedSink = make(disk / "trail")
    server = EchoServer()
    app = AuditLogMiddleware(server, sink=sink)
    assert (await Call(app, CALL).run()).status == 200
    assert await asyncio.to_thread(sink.flush)
    disk.rename(away)
    assert (await Call(app, CALL).run()).status == 200  # nobody knows yet; its record waits
    assert not await asyncio.to_thread(sink.flush)
    assert (await Call(app, CALL).run()).status == 503
    assert len(server.scopes) == 2
    away.rename(disk)
    while not sink.accepting:
        await asyncio.to_thread(sink.flush)
    assert (await Call(app, CALL).run()).status == 200
    await app.aclose()
    found = [one.decision for one in AuditTrail(disk / "trail").read()]
    assert found == ["allowed", "allowed", "unavailable", "allowed"]
    assert sink.lost == 0


async def test_a_sink_that_raises_neither_breaks_the_answer_nor_the_other_sinks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Raising(ListSink):
        def write(self, record: Any) -> None:
            raise RuntimeError("no")

        def close(self) -> None:
            raise RuntimeError("no")

    good = ListSink()
    app = AuditLogMiddleware(EchoServer(), sinks=[Raising(), good])
    assert (await Call(app, CALL).run()).status == 200
    await app.aclose()
    assert len(good.records) == 1
    assert good.closed
    assert "an audit record was lost" in caplog.text


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "on_failure": ({"on_failure": "open"}, "on_failure is 'open'; it must be 'refuse' or 'continue'"),
    "a path": ({"sink": "audit.db"}, "a sink is 'audit.db'; it must be a SQLiteSink"),
    "a class": ({"sink": SQLiteSink}, "a sink is <class"),
    "a server without a name": ({"server": ""}, "server is ''; it must be a name of 1 to 512 characters"),
    "a server by number": ({"server": 7}, "server is 7; it must be a name"),
    "half a sink": ({"sinks": [logging.getLogger()]}, "or an object with accepting, write and close"),
    "one sink as several": ({"sinks": ListSink()}, "sinks is"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_option_is_refused(name: str) -> None:
    options, text = WRONG[name]
    with pytest.raises(ConfigurationError, match=r"AuditLogMiddleware: ") as caught:
        AuditLogMiddleware(EchoServer(), **options)
    assert text in str(caught.value)
