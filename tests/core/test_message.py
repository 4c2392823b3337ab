"""message.py: what is accepted, what is refused and why, and that what was judged is what goes on."""

import json
import threading
import tracemalloc
from typing import Any

import pydantic
import pydantic_core
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types import jsonrpc

from mcp_middleware import message as message_module
from mcp_middleware.errors import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    PARSE_ERROR,
)
from mcp_middleware.message import (
    MAX_BATCH,
    MAX_DEPTH,
    MAX_NAMES,
    MAX_NAMES_TEXT,
    MAX_NESTED,
    Batch,
    Notification,
    Request,
    Response,
    parse,
    with_meta,
)
from mcp_middleware.types import Rejection

from .asgi import Call, EchoServer, rpc
from .recording import Audit


def refused(body: bytes | dict[str, Any] | list[Any]) -> Rejection:
    result = parse(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert isinstance(result, Rejection), result
    assert result.status == 400
    return result


def accepted(body: bytes | dict[str, Any]) -> Request:
    result = parse(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert isinstance(result, Request), result
    return result


def call(name: str = "echo", **params: Any) -> dict[str, Any]:
    return rpc("tools/call", {"name": name, "arguments": {}, **params})


def test_a_request_shows_its_parts() -> None:
    message = accepted(call(arguments={"text": "hi"}, _meta={"progressToken": 7}))
    assert (message.method, message.id, message.target, message.target_kind) == ("tools/call", 1, "echo", "tool")
    assert json.loads(message.arguments()) == {"text": "hi"}
    assert bytes(message.meta["progressToken"]) == b"7"


@pytest.mark.parametrize(
    ("method", "params", "kind", "target"),
    [
        ("prompts/get", {"name": "p"}, "prompt", "p"),
        ("resources/read", {"uri": "file:///x"}, "resource", "file:///x"),
        ("resources/subscribe", {"uri": "file:///x"}, "resource", "file:///x"),
        ("tasks/get", {"taskId": "t1"}, "task", "t1"),
        ("tools/list", {}, None, None),
        ("initialize", None, None, None),
    ],
)
def test_targets(method: str, params: dict[str, Any] | None, kind: str | None, target: str | None) -> None:
    message = accepted(rpc(method, params))
    assert (message.target_kind, message.target) == (kind, target)


def test_notifications_and_responses() -> None:
    assert isinstance(parse(b'{"jsonrpc":"2.0","method":"notifications/initialized"}'), Notification)
    response = parse(b'{"jsonrpc":"2.0","id":"a","result":{}}')
    assert isinstance(response, Response)
    assert response.id == "a"
    assert isinstance(parse(b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":""}}'), Response)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xef\xbb\xbf" + json.dumps(call()).encode(),
        json.dumps(call()).encode("utf-16"),
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":NaN}}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":Infinity}}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":"\xff"}}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":"\\ud800"}}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":"\\ud800\\u0041"}}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":"\\udc00"}}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":"\xed\xa0\x80"}}}',
        json.dumps(call()).encode() + b"{}",
        b'{"jsonrpc":"2.0","id":01,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping",}',
        b"[" * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_case_14_text_that_two_parsers_read_differently_is_refused(body: bytes) -> None:
    assert refused(body).code == PARSE_ERROR


def test_surrogate_pairs_and_escaped_backslashes_are_text() -> None:
    for text in ('"\\ud83d\\ude00"', '"\\\\ud800"', '"\\\\\\ud83d\\ude00"', '"a\\u0000b"'):
        body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":%s}}}'
        assert accepted(body % text.encode()).target == "a"


def test_depth_is_bounded_at_the_stated_level() -> None:
    def nested(levels: int) -> bytes:
        value = b"[" * levels + b"]" * levels
        return b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":%s}}}' % value

    accepted(nested(MAX_DEPTH - 3))
    assert refused(nested(MAX_DEPTH - 2)).code == PARSE_ERROR
    brackets_in_strings = call(arguments={"x": "[{" * 10_000})
    accepted(brackets_in_strings)
    accepted(call(arguments={"x": [{} for _ in range(5_000)]}))


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"jsonrpc": "1.0", "id": 1, "method": "ping"},
        {"id": 1, "method": "ping"},
        {"jsonrpc": "2.0", "id": 1, "method": 5},
        {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []},
        {"jsonrpc": "2.0", "id": 1, "method": "ping", "result": {}},
        {"jsonrpc": "2.0", "id": 1, "result": {}, "error": {}},
        {"jsonrpc": "2.0", "result": {}},
        {"jsonrpc": "2.0", "id": 1, "Method": "ping"},
        {"jsonrpc": "2.0", "id": 1, "method": "ping", "METHOD": "tools/call"},
    ],
)
def test_what_is_not_one_message_is_refused(body: Any) -> None:
    assert refused(body).code == INVALID_REQUEST


@pytest.mark.parametrize("request_id", [None, True, 1.5, [], {}, {"a": 1}])
def test_case_15_a_call_without_a_valid_id_is_refused(request_id: Any) -> None:
    assert refused({**call(), "id": request_id}).code == INVALID_REQUEST
    assert refused({key: value for key, value in call().items() if key != "id"}).code == INVALID_REQUEST


@pytest.mark.parametrize(
    ("place", "params"),
    [
        ("params", {"name": "echo", "Name": "admin"}),
        ("params", {"Name": "admin"}),
        ("params", {"name": "echo", "NAME": "admin"}),
        ("params", {"name": "echo", "ſtuff": 1, "stuff": 2}),
        ("params", {"name": "echo", "_META": {}}),
        ("params", {"name": "echo", "meta": {}}),
        ("params", {"name": "echo", "task_id": "t"}),
        ("params._meta", {"name": "echo", "_meta": {"TraceParent": "x"}}),
        ("params._meta", {"name": "echo", "_meta": {"io.modelcontextprotocol/ProtocolVersion": "2026-07-28"}}),
    ],
)
def test_case_14_names_in_another_spelling_are_refused_with_the_place(place: str, params: dict[str, Any]) -> None:
    rejection = refused(rpc("tools/call", params))
    assert rejection.code == INVALID_REQUEST
    assert rejection.message.startswith(place + " has ")


@pytest.mark.parametrize("extra", ["Name", "TYPE", "URI", "u_r_i"])
def test_case_14_a_reference_has_no_name_in_another_spelling(extra: str) -> None:
    """A reader that folds case would complete another prompt than was judged."""
    ref = {"type": "ref/prompt", "name": "open", extra: "hidden"}
    assert refused(rpc("completion/complete", {"ref": ref})).message.startswith(f"params.ref has {extra!r}")
    asked = {"resourceSubscriptions": ["x://a"], "ResourceSubscriptions": ["x://b"]}
    assert refused(rpc("subscriptions/listen", {"notifications": asked})).message.startswith("params.notifications has")


@pytest.mark.parametrize(
    ("method", "name"), [("completion/complete", "ref"), ("subscriptions/listen", "notifications")]
)
@pytest.mark.parametrize("value", ["[%s]", '{"a":[%s]}'])
def test_case_39_what_a_policy_reads_of_a_request_is_bounded(method: str, name: str, value: str) -> None:
    body = '{"jsonrpc":"2.0","id":1,"method":"%s","params":{"%s":%s,"":[%s]}}'
    items = ",".join(["{}"] * (MAX_NESTED // 3 - 10))
    accepted((body % (method, name, value % items, f"{items},{items}")).encode())
    rejection = refused((body % (method, name, value % (items + " " * 40), "")).encode())
    assert (rejection.code, rejection.request_id) == (INVALID_PARAMS, 1)
    assert str(MAX_NESTED) in rejection.message


@pytest.mark.parametrize("name", [None, 5, ["echo"], {"a": 1}])
def test_a_target_that_is_no_string_is_refused(name: Any) -> None:
    rejection = refused(rpc("tools/call", {"name": name}))
    assert (rejection.code, rejection.request_id) == (INVALID_PARAMS, 1)
    assert "params.name" in rejection.message


def test_a_method_that_a_later_revision_dropped_may_come_without_its_target() -> None:
    """2026-07-28 answers that it knows no such method; for that it must reach the server."""
    assert accepted(rpc("resources/subscribe", {})).target is None
    assert refused(rpc("resources/subscribe", {"uri": 5})).code == INVALID_PARAMS
    assert refused(rpc("resources/read", {})).code == INVALID_PARAMS


def test_case_14_of_equal_names_one_value_goes_on_at_every_judged_level() -> None:
    body = (
        b'{"jsonrpc":"2.0","id":1,"id":2,"method":"tools/list","method":"tools/call",'
        b'"params":{"name":"admin","name":"echo","_meta":{"traceparent":"a","traceparent":"b"}}}'
    )
    message = accepted(body)
    assert (message.id, message.method, message.target) == (2, "tools/call", "echo")
    sent = message.encode()
    for once in (b'"id"', b'"method"', b'"name"', b'"traceparent"'):
        assert sent.count(once) == 1
    nested = accepted(
        b'{"jsonrpc":"2.0","id":1,"method":"completion/complete",'
        b'"params":{"ref":{"type":"ref/prompt","name":"a","name":"b"}}}'
    )
    assert nested.text("ref", "name") == "b"
    assert nested.encode().count(b'"name"') == 1


def test_d5_numbers_and_strings_pass_byte_for_byte() -> None:
    arguments = b'{ "big": 123456789012345678901234567890, "f": 1.10e+2, "s": "\\u00e9\\/", "f2":-0.0 }'
    body = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "a", "arguments": %s}}' % arguments
    message = accepted(body)
    assert message.arguments() == arguments
    assert arguments in message.encode()
    traced = with_meta(message, {"traceparent": "00-x", "tracestate": None})
    assert arguments in traced.encode()
    assert json.loads(traced.encode())["params"]["_meta"] == {"traceparent": "00-x"}
    without_params = with_meta(accepted(rpc("ping")), {"traceparent": "00-x"})
    assert json.loads(without_params.encode())["params"] == {"_meta": {"traceparent": "00-x"}}


@pytest.mark.parametrize("params", [None, {"_meta": None}])
def test_null_params_and_meta_count_as_absent(params: Any) -> None:
    message = parse(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": params}).encode())
    assert isinstance(message, Request)
    assert b"null" not in message.encode()


@pytest.mark.parametrize(
    "arguments",
    [
        b"[" * 5_000 + b"]" * 5_000,
        b'{"a":' * 1_600,
        b'"' + b'\\"' * 5_000,
        b'["' + b'\\"' * 4_000 + b'",' + b"[],[{" * 300,
        b'"' + b"\\\\" * 5_000 + b'"',
        b'"' + b"\\ud83d" * 1_600 + b'"',
        b"1" * 10_000,
        b'"' + b"s" * 80_000 + b'"',
        b"[" + (b"[" * 120 + b"]" * 120 + b",") * 40 + b"1]",
        b'{"' + b'a":1,"' * 1_600 + b'b":1}',
    ],
)
def test_case_39_a_degenerate_10_kib_body_costs_little_memory(arguments: bytes) -> None:
    """And ends: the same shapes a hundred times larger are read in the time a linear scan takes."""
    template = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":%s}}'
    tracemalloc.start()
    try:
        parse(template % arguments)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    parse(template % (arguments * 100))


pieces = st.sampled_from(
    ["\\ud83d", "\\uDE00", "\\ud83d\\ude00", "\\\\", '\\"', "\\n", "\\u00e9", "u", "d83d", "[", "}", "{", "é", " "]
)
texts = st.lists(pieces, max_size=12).map(lambda some: '"' + "".join(some) + '"')
nests = st.recursive(
    texts | st.just("1"),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda some: "[" + ",".join(some) + "]")
        | st.lists(inner, max_size=3).map(
            lambda some: "{" + ",".join(f'"[{n}":{one}' for n, one in enumerate(some)) + "}"
        )
    ),
    max_leaves=12,
)


def depth_of(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)


def has_lone_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    return isinstance(value, list | dict) and any(
        map(has_lone_surrogate, value.values() if isinstance(value, dict) else value)
    )


@given(nests, st.integers(1, 9), st.integers(3, 9))
def test_case_14_a_body_that_is_read_in_pieces_is_judged_as_a_whole(text: str, piece: int, levels: int) -> None:
    """Wherever the cuts fall: in a string, an escape, a pair of surrogates, or among brackets."""
    value = json.loads(text)
    body = f'{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"a":{text}}}}}'.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(message_module, "_SLICE", piece)
        patch.setattr(message_module, "MAX_DEPTH", levels)
        result = parse(body)
    assert isinstance(result, Rejection) == (has_lone_surrogate(value) or depth_of(value) + 2 > levels)


@pytest.mark.parametrize("place", ["", "params", "_meta", "arguments", "result"])
@pytest.mark.parametrize("pad", [1, 20])
def test_case_39_members_are_counted_before_they_are_decoded(place: str, pad: int) -> None:
    """Where nobody reads, there may be any number; where names are compared, the decoder is not even asked."""
    many = ",".join(f'"{n:0{pad}}":1' for n in range(30_000))
    within = {
        "": '"id":1,"method":"x",%s',
        "params": '"id":1,"method":"x","params":{%s}',
        "_meta": '"id":1,"method":"x","params":{"_meta":{%s}}',
        "arguments": '"id":1,"method":"x","params":{"arguments":{%s}}',
        "result": '"id":1,"result":{%s}',
    }[place]
    message = parse(('{"jsonrpc":"2.0",' + within % many + "}").encode())
    if place in ("arguments", "result"):
        assert not isinstance(message, Rejection)
    else:
        assert isinstance(message, Rejection)
        assert message.message.endswith("has too many members, or text that looks like them")


@pytest.mark.parametrize(
    "params",
    [
        {"text": "12:30 :" * 10_000},
        {"_meta": {"com.example/state": ":" * 70_000}},
        {"_meta": {"com.example/state": ' " : ' * 5_000 + ":" * 70_000}},
        {"requestState": json.dumps({str(number): 1 for number in range(20_000)})},
        {"context": {"arguments": {str(number): "12:30" for number in range(20_000)}}},
    ],
)
def test_text_is_not_counted_as_members(params: dict[str, Any]) -> None:
    assert isinstance(parse(json.dumps(rpc("x/y", params)).encode()), Request)


def test_names_are_counted_however_far_from_their_colons() -> None:
    for blank in " \t\r\n":
        many = ",".join(f'"{number}"{blank}{blank}:1' for number in range(10_001))
        refused = parse(('{"jsonrpc":"2.0","id":1,"method":"x","params":{' + many + "}}").encode())
        assert isinstance(refused, Rejection)
        assert "too many members" in refused.message


@pytest.mark.parametrize("letter", ["k", "ŉ"])
def test_case_39_the_text_of_names_is_bounded_where_each_is_compared(letter: str) -> None:
    for length, right in ((MAX_NAMES_TEXT - 1, True), (MAX_NAMES_TEXT + 1, False)):
        result = parse(('{"jsonrpc":"2.0","id":1,"method":"x","params":{"%s":1}}' % (letter * length)).encode())
        assert isinstance(result, Request) is right


async def test_case_31_others_run_while_a_large_body_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def noting(body: bytes) -> Any:
        threads.append(threading.get_ident())
        return parse(body)

    monkeypatch.setattr("mcp_middleware.exchange.parse", noting)
    server = EchoServer()
    for text in ("x", "x" * 200_000):
        await Call(Audit(server, []), call(arguments={"text": text})).run()
    assert [thread == threading.get_ident() for thread in threads] == [True, False]
    assert len(server.received[1]["params"]["arguments"]["text"]) == 200_000


def test_batches() -> None:
    batch = parse(json.dumps([call(), rpc("notifications/cancelled", request_id=None)]).encode())
    assert isinstance(batch, Batch)
    assert [type(message) for message in batch.messages] == [Request, Notification]
    assert refused([]).code == INVALID_REQUEST
    assert "initialize" in refused([rpc("initialize"), call()]).message
    assert refused([call(), 5]).code == INVALID_REQUEST
    assert refused([[call()]]).code == INVALID_REQUEST
    assert str(MAX_BATCH) in refused([call()] * (MAX_BATCH + 1)).message
    assert str(MAX_BATCH) in refused(b"[" + b"1," * 50_000 + b"1]").message
    assert refused(b"[" + b"1," * 50_000 + b"1").code in (PARSE_ERROR, INVALID_REQUEST)


# Bodies near the protocol: envelopes whose names repeat, change case, and hold odd values.

names = st.sampled_from(["name", "Name", "NAME", "n\\u0061me", "uri", "arguments", "_meta", "x"])
scalars = st.sampled_from(
    ['"echo"', '"admin"', "1", "1.0", "true", "null", "{}", "[]", '"\\ud800"', '"\\ud83d\\ude00"', "NaN", "1e999"]
)
methods = st.sampled_from(
    ['"tools/call"', '"tools\\/call"', '"prompts/get"', '"resources/read"', '"ping"', '"notifications/x"', "7"]
)


def joined(pairs: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f'"{key}":{value}' for key, value in pairs) + "}"


params_text = st.lists(st.tuples(names, scalars), max_size=4).map(joined) | scalars
envelopes = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["jsonrpc"]), st.sampled_from(['"2.0"', '"2.0"', "2.0"])),
        st.tuples(st.sampled_from(["id", "ID"]), scalars),
        st.tuples(st.sampled_from(["method", "Method"]), methods),
        st.tuples(st.sampled_from(["params", "Params"]), params_text),
    ),
    max_size=7,
).map(lambda pairs: joined([("jsonrpc", '"2.0"'), *pairs]))
bodies = envelopes.map(str.encode) | st.binary(max_size=60)


def first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def folding(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key.casefold(): value for key, value in pairs}


@given(bodies)
def test_case_14_what_was_judged_is_what_every_parser_reads(body: bytes) -> None:
    """For any body: it was refused, or the SDK (both of its parsers), a reader that keeps the first of two equal
    names and one that folds case all read what was judged."""
    message = parse(body)
    if not isinstance(message, Request):
        return
    sent = message.encode()
    for value in (
        pydantic_core.from_json(sent),
        json.loads(sent),
        json.loads(sent, object_pairs_hook=first_wins),
        json.loads(sent, object_pairs_hook=folding),
    ):
        assert value["method"] == message.method
        assert value["id"] == message.id
        assert type(value["id"]) is type(message.id)
        if message.target is not None:
            key = {"tool": "name", "prompt": "name", "resource": "uri", "task": "taskId"}[message.target_kind or ""]
            assert value["params"][key] == message.target
    try:
        seen = jsonrpc.jsonrpc_message_adapter.validate_python(pydantic_core.from_json(sent), by_name=False)
    except pydantic.ValidationError:
        return  # refused by the server
    assert isinstance(seen, jsonrpc.JSONRPCRequest)
    assert (seen.method, seen.id) == (message.method, message.id)


@given(st.binary(max_size=200))
def test_parse_never_raises(body: bytes) -> None:
    parse(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(json_values, st.booleans())
def test_arguments_arrive_as_they_were_sent(value: Any, ascii_only: bool) -> None:
    text = json.dumps({"v": value}, ensure_ascii=ascii_only)
    try:
        body = f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"a","arguments":{text}}}}}'.encode()
    except UnicodeEncodeError:
        return
    message = parse(body)
    if isinstance(message, Rejection):
        assert "\\ud" in text
        return
    assert isinstance(message, Request)
    assert message.arguments() == text.encode()
    assert text.encode() in message.encode()


@pytest.mark.parametrize(
    "place", ['{%s,"jsonrpc":"2.0","id":1,"method":"x"}', '{"jsonrpc":"2.0","id":1,"method":"x","params":{%s}}']
)
def test_case_39_names_are_bounded_where_each_is_compared(place: str) -> None:
    for count, refused in ((MAX_NAMES - 3, False), (MAX_NAMES + 1, True)):
        body = place % ",".join(f'"k{number}":1' for number in range(count))
        assert isinstance(parse(body.encode()), Rejection) is refused
