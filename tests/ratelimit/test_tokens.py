"""Counting tokens. ``corpus.json`` has texts with their true numbers by two public byte-pair vocabularies."""

import base64
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.message import Request, parse
from mcp_middleware.ratelimit import EstimatingCounter
from mcp_middleware.ratelimit.tokens import AUDIO_TOKENS, IMAGE_TOKENS, input_tokens, output_tokens
from mcp_middleware.server_message import ServerMessage, parse_server_message

CORPUS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "corpus.json").read_text(encoding="utf-8"))
CLASSES = sorted({entry["class"] for entry in CORPUS})
NOT_ASCII = {"Chinese", "Japanese", "Korean", "European"}


class Characters:
    """A counter whose answer a test can tell by hand."""

    def count(self, text: str) -> int:
        return len(text)


def request(method: str = "tools/call", **params: Any) -> Request:
    if method == "tools/call":
        params.setdefault("name", "t")
    message = parse(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode())
    assert isinstance(message, Request)
    return message


def answer(result: Any, *, ascii_only: bool = False) -> ServerMessage:
    text = json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}, ensure_ascii=ascii_only, separators=(",", ":"))
    message = parse_server_message(text.encode())
    assert message is not None
    return message


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in NOT_ASCII])
@pytest.mark.parametrize("vocabulary", ["o200k_base", "cl100k_base"])
def test_the_estimate_of_ascii_is_within_a_tenth_by_class_and_a_quarter_by_text(name: str, vocabulary: str) -> None:
    counter = EstimatingCounter()
    pairs = [(counter.count(e["text"]), e["tokens"][vocabulary]) for e in CORPUS if e["class"] == name]
    assert sum(estimate for estimate, _ in pairs) == pytest.approx(sum(true for _, true in pairs), rel=0.1)
    for estimate, true in pairs:
        assert estimate == pytest.approx(true, rel=0.25)


@pytest.mark.parametrize("name", sorted(NOT_ASCII))
def test_the_estimate_of_other_scripts_is_between_the_vocabularies(name: str) -> None:
    counter = EstimatingCounter()
    for entry in CORPUS:
        if entry["class"] == name:
            low, high = sorted(entry["tokens"].values())
            assert 0.75 * low <= counter.count(entry["text"]) <= max(1.1 * high, 1.25 * low)


@pytest.mark.parametrize("entry", [e for e in CORPUS if len(e["text"]) > 500], ids=lambda e: e["class"])
def test_a_long_text_is_estimated_from_slices(entry: dict[str, Any]) -> None:
    counter = EstimatingCounter()
    once = counter.count(entry["text"])
    assert counter.count(entry["text"] * 200) == pytest.approx(200 * once, rel=0.2)


def test_a_long_text_cannot_hide_its_weight_between_the_slices() -> None:
    counter = EstimatingCounter()
    text = " " * 100_000
    dense = base64.b64encode(bytes(range(256)) * 200).decode()
    step = len(text) // 8
    hidden = "".join(text[:512] + dense[: step - 512] for _ in range(8))
    counts = sorted(counter.count(hidden) for _ in range(21))
    assert counts[10] > counter.count(dense[:4000]) * (8 * (step - 512) / 4000) * 0.6


@given(st.text())
def test_any_text_has_a_number_of_tokens(text: str) -> None:
    assert 0 <= EstimatingCounter().count(text) <= 3 * len(text) + 1


@given(st.text(st.characters(codec="utf-8"), max_size=3000), st.integers(2, 20))
def test_more_of_a_text_is_not_less(text: str, times: int) -> None:
    counter = EstimatingCounter()
    assert counter.count(text * times) >= counter.count(text) * 0.5


def test_empty_and_broken_texts() -> None:
    assert EstimatingCounter().count("") == 0
    assert EstimatingCounter().count("\ud800") >= 0


def test_what_the_model_wrote_is_counted_and_what_the_protocol_adds_is_not() -> None:
    call = request(name="search", arguments={"q": "x"}, _meta={"traceparent": "0" * 500}, requestState="s" * 500)
    assert input_tokens(call, Characters()) == len('"search"') + len('{"q": "x"}')


@pytest.mark.parametrize("text", ["é" * 300_000, "中" * 100_000, "été 中文 plain words " * 20_000])
def test_case_30_a_large_structured_result_counts_alike_with_and_without_escapes(text: str) -> None:
    """Servers of the modern era escape what is not ASCII."""
    request = parse(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read"}}')
    assert isinstance(request, Request)

    def tokens(ascii_only: bool) -> int:
        result = {"content": [], "structuredContent": {"result": text}}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}, ensure_ascii=ascii_only).encode()
        answer = parse_server_message(body)
        assert answer is not None
        return output_tokens(request, answer, EstimatingCounter())

    assert tokens(True) == pytest.approx(tokens(False), rel=0.1)


def test_case_30_no_beginning_makes_a_large_text_with_escapes_look_short() -> None:
    dense = base64.b64encode(Random(1).randbytes(450_000)).decode()
    for beginning in ("\\u0020" * 6000, " " * 40_000 + "\\u0020"):
        body = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":{"a":"%s"}}}'
        call = parse((body % (beginning + dense)).encode())
        assert isinstance(call, Request)
        counts = sorted(input_tokens(call, EstimatingCounter()) for _ in range(21))
        assert counts[10] == pytest.approx(EstimatingCounter().count(dense), rel=0.15)


def test_a_counter_that_may_take_long_reads_all_of_a_large_text_with_escapes() -> None:
    class Slow(Characters):
        threaded_above = 1000

    call = request(name="t", arguments={"q": "速率限制 🎉" * 30_000})  # sent as six ASCII characters each
    assert input_tokens(call, Slow()) == len('"t"') + len('{"q": ""}') + 6 * 30_000


def test_escapes_are_read_before_they_are_counted() -> None:
    call = request(name="t", arguments={"q": "速率限制"})  # sent as six ASCII characters each
    assert input_tokens(call, Characters()) == len('"t"') + len('{"q":"速率限制"}')
    assert output_tokens(call, answer({"structuredContent": {"a": "限"}}, ascii_only=True), Characters()) == 9


IMAGE = {"type": "image", "data": "A" * 90_000, "mimeType": "image/png"}
PICTURE = {"uri": "a:b", "mimeType": "image/png", "blob": "A" * 999}
AUDIO = {"type": "audio", "data": "A" * 90_000, "mimeType": "audio/wav"}
LINK = {"type": "resource_link", "uri": "file:///a", "name": "a", "description": "d" * 5000}
UNKNOWN = {"type": "json", "json": {"x": "a" * 5000}}


def size(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")))


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"content": [{"type": "text", "text": "12345"}]}, 5),
        ({"content": [{"type": "text", "text": "12345"}, {"type": "text", "text": "678"}]}, 8),
        ({"content": [{"type": "text", "text": '{"a":1}'}], "structuredContent": {"a": 1}}, 7),
        ({"content": [{"type": "text", "text": "short"}], "structuredContent": {"longer": "text"}}, 17),
        ({"content": [], "structuredContent": {"a": 1}}, 7),
        ({"content": [IMAGE]}, IMAGE_TOKENS),
        ({"content": [AUDIO]}, AUDIO_TOKENS),
        ({"content": [{"type": "video", "data": "A" * 999, "mimeType": "video/mp4"}]}, 999),
        ({"content": [IMAGE, {"type": "text", "text": "12345"}]}, IMAGE_TOKENS + 5),
        ({"content": [{"type": "resource", "resource": {"uri": "a:b", "text": "12345"}}]}, 5),
        ({"content": [{"type": "resource", "resource": PICTURE}]}, IMAGE_TOKENS),
        ({"content": [{"type": "resource", "resource": {"uri": "a:b", "blob": "A" * 999}}]}, 999),
        ({"content": [{"type": "resource", "resource": PICTURE | {"mimeType": "IMAGE/PNG"}}]}, IMAGE_TOKENS),
        ({"content": [{"type": "resource", "resource": PICTURE | {"text": ""}}]}, IMAGE_TOKENS),
        ({"content": [{"type": "resource", "resource": {"uri": "a:b", "text": "", "blob": "A" * 999}}]}, 999),
        ({"content": [{"type": "resource", "resource": {"uri": "a:b", "text": ""}}]}, 0),
        ({"content": [IMAGE | {"text": ""}]}, IMAGE_TOKENS),
        ({"content": [AUDIO | {"text": "12345"}]}, AUDIO_TOKENS),
        ({"content": [{"type": "text", "text": ""}]}, 0),
        ({"content": [{"type": "resource_link", "uri": "file:///a", "name": "a"}]}, 40),
        ({"content": [LINK, {"type": "text", "text": "12345"}, UNKNOWN]}, size(LINK) + 5 + size(UNKNOWN)),
        ({"content": [{"type": "text", "text": "12345"}, {"type": "nothing"}]}, 5 + 40),
        ({"content": [{"type": "text", "text": "no such thing"}], "isError": True}, 13),
        ({"content": [{"type": "text", "text": "1"}], "_meta": {"usage": {"output_tokens": 10**9}}}, 1),
    ],
)  # fmt: skip
def test_a_tool_result_counts_what_a_model_sees_once(result: Any, expected: int) -> None:
    assert output_tokens(request(), answer(result), Characters()) == expected


@pytest.mark.parametrize("shape", ["content", "contents", "messages"])
def test_a_million_small_texts_are_not_counted_one_by_one(shape: str) -> None:
    class Counted(Characters):
        times = 0

        def count(self, text: str) -> int:
            self.times += 1
            return super().count(text)

    text = {"type": "text", "text": "12345"}
    one, method = {
        "content": (text, "tools/call"),
        "contents": ({"uri": "a:b", "text": "12345"}, "resources/read"),
        "messages": ({"role": "user", "content": text}, "prompts/get"),
    }[shape]
    counter = Counted()
    made = request(method, **{"resources/read": {"uri": "a:b"}, "prompts/get": {"name": "p"}}.get(method, {}))
    tokens = output_tokens(made, answer({shape: [one] * 5000}), counter)
    assert counter.times < 300
    assert 25_000 <= tokens <= 25_000 + 5000  # a line break between two


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"content": []},
        {"content": "text"},
        {"content": [3]},
        {"content": [{"type": "text", "text": 3}]},
        {"content": [{"type": "resource", "resource": "text"}]},
        {"resultType": "input_required", "inputRequests": {"a": {"method": "elicitation/create"}}},
        [],
        "text",
        None,
    ],
)
def test_a_result_of_another_shape_counts_as_the_json_it_is(result: Any) -> None:
    assert output_tokens(request(), answer(result), Characters()) == size(result)


def test_an_error_counts_as_its_message() -> None:
    message = parse_server_message(b'{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"12345","data":"..."}}')
    assert message is not None
    assert output_tokens(request(), message, Characters()) == 5


def test_resources_prompts_and_completions() -> None:
    read = {"contents": [{"uri": "a:b", "text": "12345"}, {"uri": "a:c", "mimeType": "audio/ogg", "blob": "A" * 99}]}
    assert output_tokens(request("resources/read", uri="a:b"), answer(read), Characters()) == 5 + AUDIO_TOKENS
    prompt = {
        "messages": [{"role": "user", "content": {"type": "text", "text": "123"}}, {"role": "user", "content": IMAGE}]
    }
    assert output_tokens(request("prompts/get", name="p"), answer(prompt), Characters()) == 3 + IMAGE_TOKENS
    prompt = {"messages": [{"role": "user", "content": LINK}, {"role": "user", "content": IMAGE | {"text": ""}}]}
    assert output_tokens(request("prompts/get", name="p"), answer(prompt), Characters()) == size(LINK) + IMAGE_TOKENS
    complete = {"completion": {"values": ["a", "b"]}}
    assert output_tokens(request("completion/complete"), answer(complete), Characters()) == 35
