"""What calls are counted, guessed and reported to have, and who counts."""

import threading
from typing import Any

import pytest

from mcp_middleware.ratelimit import Forecast
from mcp_middleware.types import Usage
from tests.core.asgi import Call, rpc

from .conftest import INPUT, OUTPUT, BrokenCounter, Make, Reader


async def test_only_the_guessed_part_of_an_estimate_is_capped(make: Make) -> None:
    stack = make(tokens="200/minute", initial_output_tokens=10**6)
    assert (await stack.call(arguments={"text": "y" * 100})).status == 200
    refused = await stack.call(arguments={"text": "y" * 190})
    assert refused.status == 413


async def test_the_next_estimate_is_what_the_tool_answered(make: Make) -> None:
    stack = make(requests="60/minute", tokens="5000/minute", initial_output_tokens=3000)
    await stack.call()
    answer = await stack.call()
    assert answer.headers["ratelimit"] == f'"requests";r=58, "tokens";r={5000 - 2 * INPUT - 2 * OUTPUT}'


async def test_case_31_one_agents_long_answers_reserve_nothing_of_the_others(make: Make) -> None:
    stack = make(tokens="5000/minute", agents={"batch": {"tokens": None}})
    await stack.call(caller="polite")
    stack.server.result = {"content": [{"type": "text", "text": "x" * 60_000}]}
    for _ in range(8):
        await stack.call(caller="batch")
    polite, newcomer = await stack.call(caller="polite"), await stack.call(caller="newcomer")
    assert polite.headers["ratelimit"] == f'"tokens";r={5000 - 2 * INPUT - 2 * OUTPUT}'
    assert newcomer.headers["ratelimit"] == f'"tokens";r={5000 - INPUT - OUTPUT}'


@pytest.mark.parametrize(("status", "tokens"), [(404, INPUT), (400, INPUT), (500, INPUT + 3000), (502, INPUT + 3000)])
async def test_an_answer_without_a_message(make: Make, status: int, tokens: int) -> None:
    stack = make(requests="60/minute", tokens="5000/minute", initial_output_tokens=3000)
    stack.server.status = status
    await stack.call()
    stack.server.status = 200
    assert await stack.left() == (58, 5000 - tokens)


@pytest.mark.parametrize(
    "usage",
    [
        *({"output_tokens": wrong} for wrong in (-1, -(10**9), 10**9, 1.5, "NaN", "7", True, None, [1], 10**400)),
        {"inputTokens": 5, "outputTokens": -1},
        {"outputTokens": 5, "output_tokens": 6},
        {"outputTokens": 5, "padding": "x" * 20_000},
        {"total_tokens": 1e308},
        {},
        7,
        None,
    ],
)
async def test_case_30_nonsense_that_a_server_reports_is_not_believed(make: Make, usage: Any) -> None:
    stack = make(requests="60/minute", tokens="5000/minute")
    stack.server.result = {"content": [{"type": "text", "text": "x" * 100}], "_meta": {"usage": usage}, "usage": usage}
    await stack.call()
    assert await stack.left() == (58, 5000 - INPUT - OUTPUT)


async def test_case_30_a_report_in_numbers_that_no_json_has_is_not_believed(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    stack = make(requests="60/minute", tokens="5000/minute")
    for number in ("1e999", "-0.5", "1e8", "NaN"):
        stack.server.raw = (
            b'{"jsonrpc":"2.0","id":7,"result":{"_meta":{"usage":{"outputTokens":%b}}}}' % number.encode()
        )
        await stack.call()
    stack.server.raw = None
    _, left = await stack.left()
    assert 4700 < left < 5000
    assert caplog.text.count("cannot be true") == 1


async def test_an_answer_that_cannot_be_read_counts_by_its_bytes_and_is_learnt_from(make: Make) -> None:
    stack = make(tokens="100000/day")
    stack.server.raw = b'{"jsonrpc":"2.0","id":7,"result":{"structuredContent":{"x":NaN,"t":"%b"}}}' % (b"x" * 30_000)
    used = INPUT + len((await stack.call()).body) // 3
    assert used > 10_000
    assert (await stack.call()).headers["ratelimit"] == f'"tokens";r={100_000 - 2 * used}'


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"inputTokens": 20, "outputTokens": 700}, Usage(20, 700)),
        ({"input_tokens": 20, "output_tokens": 700.0}, Usage(20, 700)),
        ({"outputTokens": 700}, Usage(INPUT, 700)),
        ({"inputTokens": 20}, Usage(20, OUTPUT)),
        ({"outputTokens": 0}, Usage(INPUT, 0)),
    ],
)
async def test_usage_that_a_server_reports_is_used_where_it_can_be_true(
    make: Make, usage: Any, expected: Usage
) -> None:
    stack = make(requests="60/minute", tokens="5000/minute")
    reader = Reader(stack.limiter)
    stack.app.app = reader
    stack.server.result = {"content": [{"type": "text", "text": "x" * 100}], "_meta": {"usage": usage}}
    await stack.call()
    assert reader.usages == [expected]
    assert (await stack.left())[1] == 5000 - expected.input_tokens - expected.output_tokens


async def test_failed_calls_do_not_teach_the_forecast(make: Make) -> None:
    forecast = Forecast()
    stack = make(requests="60/minute", tokens="50000/minute", initial_output_tokens=3000, forecast=forecast)
    stack.server.result = {"content": [{"type": "text", "text": "no"}], "isError": True}
    await stack.call(name="invented")
    stack.server.error = {"code": -32602, "message": "no such tool"}
    await stack.call(name="invented too")
    assert len(forecast) == 0


async def test_usage_is_there_for_the_record_also_without_limits(make: Make) -> None:
    stack = make(agents={"batch": {"tokens": "100/minute"}})
    reader = Reader(stack.limiter)
    for body in (rpc("tools/call", {"name": "tool"}), rpc("tools/list"), rpc("ping")):
        await Call(reader, body).run()
    assert reader.usages == [Usage(INPUT, OUTPUT), None, None]


@pytest.mark.parametrize(
    "value", [-5, 1.5, float("nan"), float("inf"), "7", None, 10**9 + 1, pytest.param(10**400, id="more than a float")]
)
async def test_case_30_a_counter_that_answers_nonsense_changes_no_bucket(
    make: Make, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stack = make(requests="60/minute", tokens="5000/minute", counter=BrokenCounter(value))
    assert (await stack.call()).status == 200
    assert await stack.left() == (58, 5000 - 1 - 100)
    assert "the token counter answered" in caplog.text
    with pytest.raises(ValueError, match="the token counter answered"):
        await stack.call(name="x")
    assert len(stack.server.received) == 2


async def test_images_and_sounds_count_what_was_configured(make: Make) -> None:
    stack = make(requests="60/minute", tokens="5000/minute", image_tokens=70, audio_tokens=300)
    image = {"type": "image", "data": "A" * 900, "mimeType": "image/png"}
    sound = {"uri": "a:b", "mimeType": "audio/wav", "blob": "A" * 900}
    stack.server.result = {"content": [image, {"type": "resource", "resource": sound}]}
    await stack.call()
    assert await stack.left() == (58, 5000 - INPUT - 370)


class Threaded:
    """A counter that says where it was called."""

    threaded_above = 1000

    def __init__(self) -> None:
        self.threads: list[tuple[int, bool]] = []

    def count(self, text: str) -> int:
        self.threads.append((len(text), threading.current_thread() is threading.main_thread()))
        return len(text)


async def test_a_slow_counter_is_called_in_a_thread_for_large_messages(make: Make) -> None:
    counter = Threaded()
    stack = make(tokens="50000/minute", counter=counter)
    await stack.call()
    stack.server.result = {"content": [{"type": "text", "text": "x" * 3000}]}
    await stack.call(arguments={"text": "y" * 2000})
    assert [main for _, main in counter.threads] == [True, True, False, False]


async def test_a_slow_counter_is_not_asked_about_large_messages_of_a_stream(make: Make) -> None:
    counter = Threaded()
    stack = make(requests="60/minute", tokens="50000/minute", counter=counter)
    stack.server.notices = [
        {"jsonrpc": "2.0", "method": "notifications/message", "params": ["word " * words]} for words in (10, 2000)
    ]
    await stack.call()
    assert max(size for size, _ in counter.threads) < 1000
    _, left = await stack.left()
    assert 50_000 - 3500 < left < 50_000 - 1500  # a word is a token or two
