"""What a server says of its own usage: nothing, something that can be true, or nonsense."""

import pytest

from mcp_middleware.ratelimit.reports import NONSENSE, Report, reported
from mcp_middleware.server_message import ServerMessage, parse_server_message


def read(usage: str) -> Report | None:
    body = b'{"jsonrpc":"2.0","id":1,"result":{"content":[],"_meta":{"usage":%b}}}' % usage.encode()
    message = parse_server_message(body)
    assert isinstance(message, ServerMessage)
    return reported(message)


@pytest.mark.parametrize("nothing", ["null", "{}", '{"totalTokens":5}'])
def test_what_names_no_tokens_is_no_report(nothing: str) -> None:
    assert read(nothing) is None


@pytest.mark.parametrize(
    "number",
    ["-1", "1.5", "10000001", "true", "null", '"5"', "[1]", "1e400", "-1e400", "1" + "0" * 400, "1e999999999"],
)
def test_case_30_a_number_that_cannot_be_true_is_flagged(number: str) -> None:
    assert read(f'{{"inputTokens":{number},"outputTokens":5}}') is NONSENSE


@pytest.mark.parametrize("usage", ["7", '"text"', "[]", "true", '{"padding":"' + "x" * 20_000 + '"}'])
def test_case_30_what_is_no_report_at_all_is_flagged(usage: str) -> None:
    assert read(usage) is NONSENSE


@pytest.mark.parametrize(
    ("usage", "report"),
    [
        ('{"inputTokens":0,"outputTokens":10000000}', Report(0, 10_000_000)),
        ('{"input_tokens":2.0}', Report(2, None)),
        ('{"output_tokens":1e2,"other":-1}', Report(None, 100)),
    ],
)
def test_what_can_be_true_is_taken(usage: str, report: Report) -> None:
    assert read(usage) == report
