"""The record as a function of an exchange, and its forms: no value of a caller's choice may leave its place."""

import csv
import io
import json
import time
import unicodedata
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware import errors
from mcp_middleware.audit import AuditRecord
from mcp_middleware.audit.jsonl import encode_line
from mcp_middleware.audit.record import MAX_TEXT, build_record
from mcp_middleware.audit.render import as_csv, as_json, as_table
from mcp_middleware.exchange import Exchange, TraceIds, name_session
from mcp_middleware.message import Request, parse
from mcp_middleware.server_message import parse_server_message
from mcp_middleware.types import Decision, Money, Principal, Rejection, Usage
from tests.audit.trails import record


async def _receive() -> dict[str, Any]:
    return {"type": "http.disconnect"}


def exchange(body: dict[str, Any] | None = None, *, http_method: str = "POST") -> Exchange:
    scope = {"type": "http", "method": http_method, "path": "/mcp", "headers": [], "client": ("192.0.2.7", 4711)}
    made = Exchange(scope, _receive)
    if body is not None:
        message = parse(json.dumps({"jsonrpc": "2.0", **body}).encode())
        assert isinstance(message, Request)
        made.replace_message(message)
    return made


def call(name: str = "echo", request_id: int | str = 7) -> Exchange:
    return exchange({"id": request_id, "method": "tools/call", "params": {"name": name, "arguments": {"secret": "s"}}})


def answered(made: Exchange, **answer: Any) -> Exchange:
    made.status = 200
    made.answer = parse_server_message(json.dumps({"jsonrpc": "2.0", "id": 7, **answer}).encode())
    return made


def built(made: Exchange) -> AuditRecord:
    return build_record(made, finished=made.started + 0.25)


def test_everything_known_of_a_call_is_in_its_record() -> None:
    made = answered(call(), result={"content": [{"type": "text", "text": "hi"}]})
    made.principal = Principal("https://login.example.com", "ci-bot", "alice")
    made.decision = Decision(True, rule="rules[2]")
    made.usage = Usage(input_tokens=11, output_tokens=22)
    made.trace = TraceIds("ab" * 16, "cd" * 8)
    made.session, made.instance, made.cost = "5e55", "one", Money(250_000_001, "EUR")
    made.era, made.version = "modern", "2026-07-28"
    made.request_bytes, made.response_bytes = 123, 456
    made.started_at = 1785232800.0629
    assert built(made) == record(
        time="2026-07-28T10:00:00.062Z",
        rule="rules[2]",
        duration_ms=250.0,
        input_tokens=11,
        output_tokens=22,
        cost=0.250000001,
        currency="EUR",
        session="5e55",
        instance="one",
        trace_id="ab" * 16,
        span_id="cd" * 8,
        request_id=7,
        request_bytes=123,
        response_bytes=456,
        client_address="192.0.2.7",
    )


def test_no_argument_and_no_result_is_recorded() -> None:
    """F7"""
    made = answered(call(), result={"content": [{"type": "text", "text": "classified"}]})
    line = encode_line(built(made))
    assert b"secret" not in line
    assert b"classified" not in line


REFUSALS = {
    "no token": (Rejection(401, errors.UNAUTHORIZED, "", "no_token"), "unauthenticated"),
    "malformed token": (Rejection(400, errors.UNAUTHORIZED, "", "bad_scheme"), "unauthenticated"),
    "short of a scope": (Rejection(403, errors.UNAUTHORIZED, "", "insufficient_scope"), "denied"),
    "limit": (Rejection(429, errors.RATE_LIMITED, "", "rate_limited"), "limited"),
    "can never fit": (Rejection(400, errors.RATE_LIMITED, "", "too_large"), "limited"),
    "parse error": (Rejection(400, errors.PARSE_ERROR, "", "parse_error"), "rejected"),
    "unknown session": (Rejection(404, errors.INVALID_REQUEST, "", "session_unknown"), "rejected"),
    "issuer down": (Rejection(503, errors.UNAVAILABLE, "", "issuer_unavailable"), "unavailable"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_says_what_was_decided_and_why(name: str) -> None:
    rejection, decision = REFUSALS[name]
    made = call()
    made.rejection, made.status = rejection, rejection.status
    found = built(made)
    assert (found.decision, found.outcome, found.reason) == (decision, "refused", rejection.reason)
    assert (found.status, found.error_code) == (rejection.status, rejection.code)


def test_a_call_the_policy_hid_is_denied_whatever_its_answer_looks_like() -> None:
    made = call()
    made.decision = Decision(False, rule="rules[0]")
    made.rejection = Rejection(200, errors.INVALID_PARAMS, "Unknown tool: echo", "not_allowed")
    made.status = 200
    found = built(made)
    assert (found.decision, found.outcome, found.rule) == ("denied", "refused", "rules[0]")


def _nothing(made: Exchange) -> None:
    """The server returned without an answer."""


OUTCOMES: dict[str, tuple[Callable[[Exchange], object], str, int | None, bool | None]] = {
    "result": (lambda made: answered(made, result={"content": []}), "ok", None, False),
    "tool error": (lambda made: answered(made, result={"content": [], "isError": True}), "error", None, True),
    "json-rpc error": (lambda made: answered(made, error={"code": -32602, "message": ""}), "error", -32602, None),
    "http error": (lambda made: setattr(made, "status", 500), "error", None, None),
    "server raised": (lambda made: setattr(made, "failed", RuntimeError()), "failed", None, None),
    "no whole answer": (lambda made: setattr(made, "failed", errors.UnknownOutcomeError()), "unknown", None, None),
    "server cancelled": (lambda made: setattr(made, "failed", KeyboardInterrupt()), "unknown", None, None),
    "client left": (lambda made: setattr(made, "disconnected", True), "disconnected", None, None),
    "no answer": (_nothing, "unknown", None, None),
    "stream without answer": (lambda made: setattr(made, "status", 200), "unknown", None, None),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_the_outcome_of_a_call(name: str) -> None:
    happen, outcome, code, tool_error = OUTCOMES[name]
    made = call()
    happen(made)
    found = built(made)
    assert (found.decision, found.outcome, found.error_code, found.tool_error) == ("allowed", outcome, code, tool_error)


def test_a_body_that_never_arrived_is_rejected() -> None:
    made = exchange()
    made.disconnected = True
    found = built(made)
    assert (found.decision, found.outcome, found.method) == ("rejected", "disconnected", None)


def test_nobody_authenticated_is_anonymous_without_an_issuer() -> None:
    found = built(call())
    assert (found.agent, found.issuer, found.subject) == ("anonymous", None, None)


def test_case_34_a_long_value_is_cut_and_says_so() -> None:
    found = built(call("x" * 100_000))
    assert found.target is not None
    assert len(found.target) == MAX_TEXT
    assert found.target.endswith("xxx... (100000 characters)")


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**4000])
def test_an_integer_no_database_holds_is_described(number: int) -> None:
    made = answered(call(), error={"code": 10**30, "message": ""})
    message = made.message
    assert isinstance(message, Request)
    made.message = msgspec.structs.replace(message, id=number)
    found = built(made)
    assert found.request_id == f"({number.bit_length()}-bit integer)"
    assert found.error_code is None


def test_a_lone_surrogate_in_a_claim_does_not_break_the_record() -> None:
    made = call()
    made.principal = Principal("https://login.example.com", "ci\ud800bot", None)
    assert built(made).agent == "ci?bot"


def test_a_claim_that_is_no_text_does_not_break_the_record() -> None:
    made = call()
    made.principal = Principal("https://login.example.com", "ci-bot", ["a", "b"])  # type: ignore[arg-type]
    assert (built(made).agent, built(made).subject) == ("ci-bot", "['a', 'b']")


def test_a_session_id_is_not_readable_from_its_name() -> None:
    name = name_session(b"0123456789abcdef")
    assert len(name) == 16
    assert name != name_session(b"0123456789abcdee")
    assert "0123456789abcdef" not in name


def _forbidden(text: str) -> list[str]:
    """Characters that could move a cursor, turn the reading direction, end a line, or hide."""
    return [one for one in text if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]


HOSTILE = st.one_of(
    st.text(),
    st.sampled_from(
        [
            '"},{"time":"2026-07-28T10:00:00.000Z","agent":"root"}',
            "line\nbreak\r\nand\x0bmore\x0c\x1c\x85\u2028\u2029",
            "\x1b[2J\x1b]0;title\x07\x9b31m",
            "\u202eevil\u2066\u200f\u061c\ufeff\u200b",
            "=cmd|'/c calc'!A1",
            "  @SUM(1)",
            "＝1",
            "\U000e0041\U000f0000\x7f\x00",
            "a  tools/call  b",
            "",
            "-",
        ]
    ),
).map(lambda text: text.encode("utf-8", "replace").decode())

RECORDS = st.builds(
    record,
    method=HOSTILE,
    target=HOSTILE,
    agent=HOSTILE,
    subject=HOSTILE,
    reason=HOSTILE,
    request_id=HOSTILE,
    session=HOSTILE,
    client_address=HOSTILE,
    version=HOSTILE,
)


@given(RECORDS)
def test_case_34_any_text_makes_one_valid_line(hostile: AuditRecord) -> None:
    line = encode_line(hostile)
    assert msgspec.json.decode(line, type=AuditRecord) == hostile
    assert json.loads(line)["target"] == hostile.target
    text = line.decode()
    assert text.splitlines() == [text[:-1]]
    assert _forbidden(text[:-1]) == []


@given(st.lists(RECORDS, max_size=4))
def test_case_34_any_text_makes_a_valid_json_array(hostile: list[AuditRecord]) -> None:
    text = "".join(as_json(hostile))
    assert [one["agent"] for one in json.loads(text)] == [one.agent for one in hostile]
    assert _forbidden(text.replace("\n", "")) == []


@given(st.lists(RECORDS, max_size=4))
def test_case_34_any_text_makes_one_row_of_the_table(hostile: list[AuditRecord]) -> None:
    lines = list(as_table(hostile))
    assert len(lines) == len(hostile) + 1
    for line in lines:
        assert line.endswith("\n")
        assert _forbidden(line[:-1]) == []


@given(st.lists(RECORDS, max_size=4))
def test_case_34_any_text_makes_one_row_of_csv_and_no_formula(hostile: list[AuditRecord]) -> None:
    text = "".join(as_csv(hostile))
    rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    assert len(rows) == len(hostile)
    assert len(text.splitlines()) == len(hostile) + 1
    assert _forbidden(text.replace("\r\n", "")) == []
    for row in rows:
        assert list(row) == list(AuditRecord.__struct_fields__)
        for cell in row.values():
            assert not cell.lstrip().startswith(tuple("=+-@＝＋－＠"))


def test_case_34_no_formula_hides_behind_a_semicolon() -> None:
    _, line = as_csv([record(agent="a;=cmd()", target='b; "@SUM(1)";c;=;d=1;e-1;')])
    assert "a;'=cmd()" in line
    assert """b;' ""@SUM(1)"";c;'=;d=1;e-1;""" in line
    for rest in line.split(";")[1:]:
        assert not rest.lstrip(' "').startswith(tuple("=+-@"))


def test_case_34_a_name_with_spaces_cannot_pass_for_columns() -> None:
    _, line = as_table([record(agent="ci-bot  alice  tools/call", target=None)])
    assert '"ci-bot  alice  tools/call"' in line


def test_case_34_the_table_shows_what_it_neutralised() -> None:
    _, line = as_table([record(target="\x1b[2J\u202e\U000e0041")])
    assert r"\u001b[2J\u202e\U000e0041" in line


def test_durations_come_from_the_monotonic_clock() -> None:
    made = call()
    made.started_at = time.time() + 3600
    assert build_record(made, finished=made.started + 0.002).duration_ms == 2.0
