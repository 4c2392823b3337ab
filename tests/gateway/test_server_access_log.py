"""The lines of the access log."""

import json
from typing import Any

import msgspec

from mcp_middleware.exchange import Exchange
from mcp_middleware.gateway.access_log import AccessLogWriter, as_json, as_text
from mcp_middleware.message import Message, parse
from mcp_middleware.types import Decision, Principal, Rejection


def exchange(body: dict[str, Any] | None = None, *, client: str = "ci-1") -> Exchange:
    async def receive() -> dict[str, Any]:
        raise AssertionError

    scope: dict[str, Any] = {"type": "http", "method": "POST" if body else "GET", "path": "/files/mcp", "headers": []}
    made = Exchange(scope, receive)
    made.principal = Principal(None, client, "someone")
    if body is not None:
        message = parse(msgspec.json.encode({"jsonrpc": "2.0"} | body))
        assert isinstance(message, Message)
        made.message = message
    made.status = 200
    return made


def words(made: Exchange) -> list[str]:
    return as_text("files", made, 0.0123, 0.5).split()[1:]


def test_a_call() -> None:
    made = exchange({"id": 1, "method": "tools/call", "params": {"name": "read", "arguments": {}}})
    made.instance = "10.0.0.5:9002/mcp"
    made.decision = Decision(allowed=True, rule="rules[2]")
    told = ["ci-1", "tools/call", "read", "files@10.0.0.5:9002/mcp", "200", "12.3ms", "allowed", "rules[2]"]
    assert words(made) == told


def test_a_refusal_names_its_reason() -> None:
    made = exchange({"id": 1, "method": "tools/call", "params": {"name": "read", "arguments": {}}})
    made.rejection = Rejection(403, 1, "no", "not_allowed", rule="rules[0]")
    made.status = 403
    assert words(made)[3:] == ["files", "403", "12.3ms", "not_allowed", "rules[0]"]


def test_notifications_answers_and_streams() -> None:
    assert words(exchange({"method": "notifications/initialized"}))[1:3] == ["notifications/initialized", "-"]
    assert words(exchange({"id": 1, "result": {}}))[1:3] == ["answer", "-"]
    assert words(exchange())[1:3] == ["GET", "-"]


def test_how_it_ended_without_an_answer() -> None:
    made = exchange()
    made.status = None
    assert words(made)[4:] == ["-", "12.3ms", "-"]
    made.failed = RuntimeError()
    assert words(made)[-1] == "failed"
    made.disconnected = True
    assert words(made)[-1] == "client-gone"


def test_case_34_hostile_text_stays_one_word_of_one_line() -> None:
    hostile = "a b\n\x1b[2J\u202e\"' \u200b"
    made = exchange({"id": 1, "method": "tools/call", "params": {"name": hostile, "arguments": {}}}, client=hostile)
    line = as_text("files", made, 0.0, 0.0)
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert line.count('"') == 4 + 2  # two quoted words, and one escaped quote in each
    found = json.loads(as_json("files", made, 0.0, 0.0))
    assert (found["agent"], found["target"], found["subject"]) == (hostile, hostile, "someone")


def test_case_37_a_line_is_bounded_whatever_is_called() -> None:
    called = exchange({"id": 1, "method": "tools/call", "params": {"name": "n" * 1_000_000}}, client="c" * 5000)
    found = json.loads(as_json("files", called, 0.0, 0.0))
    assert (found["agent"], found["target"]) == ("c" * 509 + "...", "n" * 509 + "...")
    unknown = exchange({"id": 1, "method": "m" * 1_000_000})
    assert len(json.loads(as_json("files", unknown, 0.0, 0.0))["method"]) == 512


def test_the_writer_notes_when_it_ended() -> None:
    lines: list[str] = []
    AccessLogWriter(lines.append, as_text)("files", exchange(), 0.0123)
    (line,) = lines
    assert line.split()[1:] == ["ci-1", "GET", "-", "files", "200", "12.3ms", "-"]
