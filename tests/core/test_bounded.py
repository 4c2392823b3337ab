"""bounded.py: what is counted before it is decoded."""

import tracemalloc

import msgspec
import pytest
from msgspec import Raw

from mcp_middleware.bounded import TooManyError, items_of, members_of


@pytest.mark.parametrize("item", [b"1", b"[]", b'"a,b"', b'{"a":[1,2,3]}', b"[[],[],[]]"])
def test_items_are_counted_and_not_what_is_in_them(item: bytes) -> None:
    for most in (10, 6000):
        text = b" [" + b",".join([item] * most) + b"]"
        assert [bytes(one) for one in items_of(text, most)] == [item] * most
        for more in (1, 20_000):
            with pytest.raises(TooManyError):
                items_of(text[:-1] + b"," + b",".join([item] * more) + b"]", most)


@pytest.mark.parametrize("text", [b"{}", b"1", b"[", b"", b"[1,]", b"{" + b"1," * 20_000, b"[" + b"1," * 20_000])
def test_what_is_no_array_is_malformed(text: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, TooManyError)):
        items_of(text, 10)


def test_members_are_counted_and_not_what_is_in_those_that_may_hold_much() -> None:
    many = b"{" + b",".join(b'"%d":1' % number for number in range(20_000)) + b"}"
    names = (b"params", b"result", b"error", b"_meta", b"arguments", b"inputResponses", b"context", b"contents")
    for name in names:
        assert members_of(b'{"a":1,"%b":%b}' % (name, many)) == {"a": Raw(b"1"), name.decode(): Raw(many)}
    for text in (many, b'{"other":%b}' % many, b'{"arguments":%b,%b' % (many, many[1:])):
        with pytest.raises(TooManyError):
            members_of(text)
    repeated = b"{" + b'"arguments":1,' * 20_000 + b'"a":1}'
    with pytest.raises(TooManyError):
        members_of(repeated)
    for text in (b"[]", b"[" + b"1," * 40_000 + b"1]", b"{"):
        with pytest.raises(msgspec.DecodeError):
            members_of(text)


def test_a_large_text_is_not_kept_twice() -> None:
    outer = members_of(b'{"params":{"arguments":"%b"}}' % (b"x" * 4_000_000))
    listed = Raw(b"[" + b",".join([b'"%b"' % (b"x" * 200)] * 20_000) + b"]")
    items_of(listed, 20_000)  # makes what is made once
    tracemalloc.start()
    inner, items = members_of(outer["params"]), items_of(listed, 20_000)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(inner), len(items)) == (1, 20_000)
    assert held < 3_500_000
