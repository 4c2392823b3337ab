"""server_message.py: what is read of a server's message, and what takes its place."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import DecodeError, Raw

from mcp_middleware.server_message import MAX_BLOCKS, ToolResult, parse_server_message


def test_server_messages() -> None:
    answer = parse_server_message(b'{"jsonrpc":"2.0","id":1,"result":{"content":[],"isError":true}}')
    assert answer is not None
    assert answer.is_answer
    assert answer.tool_result is not None
    assert answer.tool_result.is_error
    error = answer.with_error(-32602, "no", status=400)
    assert json.loads(error.raw) == {"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "no"}}
    assert error.status == 400
    assert json.loads(answer.with_result({"a": 1}).raw) == {"jsonrpc": "2.0", "id": 1, "result": {"a": 1}}
    notification = parse_server_message(b'{"jsonrpc":"2.0","method":"notifications/progress","params":{}}')
    assert notification is not None
    assert not notification.is_answer
    for broken in (b"", b"[]", b"5", b'{"id":{}}', b"[" * 100_000, b"\xff"):
        assert parse_server_message(broken) is None


@pytest.mark.parametrize(
    "result", [b'{"content":[{"type":"text","text":"\xeb"}]}', b'{"content":[],"_meta":{"\xeb":1}}', b'"\xed\xa0\x80"']
)
def test_what_is_not_utf8_is_no_message_whose_parts_would_raise_later(result: bytes) -> None:
    template = b'{"jsonrpc":"2.0","id":1,"result":%s}'
    assert parse_server_message(template % result) is None
    assert parse_server_message(template % '{"content":[{"type":"text","text":"é"}]}'.encode()) is not None


@pytest.mark.parametrize("pad", ["", "x" * 100_000])
def test_case_39_of_a_result_in_too_many_pieces_only_the_rest_is_read(pad: str) -> None:
    """Each block would be an object of ours. Up to the bound all are, however large the result."""
    for count, read in ((MAX_BLOCKS, MAX_BLOCKS), (60_000, 0)):
        content = ",".join(['{"type":"text","text":"a,b"}'] * count)
        answer = parse_server_message(
            f'{{"id":1,"result":{{"content":[{content}],"pad":"{pad}","structuredContent":[{pad and 1}],'
            f'"isError":true,"_meta":{{"a":1}}}}}}'.encode()
        )
        assert answer is not None
        result = answer.tool_result
        assert result is not None
        assert result is answer.tool_result
        assert (len(result.content), result.is_error, bytes(result._meta)) == (read, True, b'{"a":1}')
        assert bytes(result.structured) == (f"[{pad and 1}]".encode() if read else b"")


def test_a_result_that_is_no_tools_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    answer = parse_server_message(b'{"id":1,"result":[]}')
    assert answer is not None

    def noting(result: Raw) -> ToolResult:
        asked.append(result)
        raise DecodeError

    monkeypatch.setattr("mcp_middleware.server_message._read_tool_result", noting)
    assert (answer.tool_result, answer.tool_result, len(asked)) == (None, None, 1)


@given(st.binary(max_size=200))
def test_reading_never_raises(data: bytes) -> None:
    parse_server_message(data)
