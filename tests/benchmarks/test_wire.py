"""The benchmarks read answers right, however they are cut, and do not take a wrong one for a good one."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.wire import Answer, check_echo

TEXT = "x" * 40
RESULT = {"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": TEXT}]}}


def sized(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunked(body: bytes, media: str = "text/event-stream") -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {media}\r\ntransfer-encoding: chunked\r\n\r\n"
    return head.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


JSON_ANSWER = sized(json.dumps(RESULT).encode())
STREAMED_ANSWER = chunked(b"event: message\r\ndata: " + json.dumps(RESULT).encode() + b"\r\n\r\n")


@pytest.mark.parametrize("raw", [JSON_ANSWER, STREAMED_ANSWER])
@given(cuts=st.sets(st.integers(1, len(JSON_ANSWER) - 1)))
def test_an_answer_is_whole_at_its_last_byte_only(raw: bytes, cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(raw)]
    answer = Answer()
    *early, last = [answer.feed(raw[start:end]) for start, end in pairwise(edges)]
    assert not any(early)
    assert last
    assert answer.status == 200


@pytest.mark.parametrize("raw", [JSON_ANSWER, STREAMED_ANSWER])
def test_a_good_answer_passes(raw: bytes) -> None:
    check_echo(raw, TEXT)


@pytest.mark.parametrize(
    "message",
    [
        {"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "no"}},
        {"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": "y"}]}},
        {"jsonrpc": "2.0", "id": 1, "result": {"isError": True, "content": [{"type": "text", "text": TEXT}]}},
    ],
)
def test_a_wrong_answer_stops_the_measurement(message: dict[str, object]) -> None:
    with pytest.raises(RuntimeError, match="a wrong answer"):
        check_echo(sized(json.dumps(message).encode()), TEXT)
