"""What is charged, what is refused and how, and what is settled."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mcp_middleware.errors import INVALID_PARAMS, RATE_LIMITED, ConfigurationError
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import Member
from mcp_middleware.ratelimit import Forecast, Rate
from mcp_middleware.testing import FakeClock
from mcp_middleware.types import Rejection, Usage
from tests.core.asgi import MODERN_META, Call, modern_headers, rpc

from .conftest import Characters, Stack

Make = Callable[..., Stack]
INPUT = len('"tool"')
OUTPUT = 100


class Judge(Member):
    """Stands in the place of tool authorization: refuses on request, and sees what the limiter wrote."""

    stage = "authorization"
    refuse = False

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        return Rejection(200, INVALID_PARAMS, "Unknown tool: tool", "not_allowed") if self.refuse else None


class Reader(Member):
    """Stands in the place of the audit log."""

    stage = "audit"

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.usages: list[Usage | None] = []
        self.rejections: list[Rejection | None] = []

    async def on_finish(self, exchange: Exchange) -> None:
        self.usages.append(exchange.usage)
        self.rejections.append(exchange.rejection)


async def test_a_refusal_is_429_with_retry_after_and_an_error_with_the_id(make: Make) -> None:
    stack = make(requests="60/minute", tokens="5000/minute")
    for _ in range(60):
        assert (await stack.call("tools/list")).status == 200
    refused = await stack.call("tools/list")
    assert refused.status == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["ratelimit"] == '"requests";r=0;t=1'
    assert refused.headers["ratelimit-policy"] == '"requests";q=60;w=60, "tokens";q=5000;w=60;qu="tokens"'
    assert refused.json["id"] == 7
    assert refused.json["error"]["code"] == RATE_LIMITED
    assert refused.json["error"]["data"] == {"dimension": "requests", "limit": 60, "remaining": 0, "retryAfterMs": 1000}
    assert len(stack.server.received) == 60


async def test_case_28_waiting_retry_after_is_enough_and_a_second_less_is_not(make: Make, clock: FakeClock) -> None:
    stack = make(requests=None, tokens="600/minute")
    stack.server.result = {"content": [{"type": "text", "text": "x" * 500}]}
    await stack.call()
    refused = await stack.call(arguments={"text": "y" * 300})
    assert refused.json["error"]["data"]["dimension"] == "tokens"
    wait = int(refused.headers["retry-after"])
    assert wait > 1
    clock.advance(wait - 1)
    assert (await stack.call(arguments={"text": "y" * 300})).status == 429
    clock.advance(1)
    assert (await stack.call(arguments={"text": "y" * 300})).status == 200


async def test_case_28_a_request_that_never_fits_is_told_so_for_good(make: Make, clock: FakeClock) -> None:
    stack = make(requests="60/minute", tokens=Rate("60/minute", burst=200))
    for _ in range(3):
        refused = await stack.call(arguments={"text": "y" * 300})
        assert refused.status == 413
        assert "retry-after" not in refused.headers
        assert refused.json["error"]["code"] == RATE_LIMITED
        assert refused.json["error"]["data"] == {"dimension": "tokens", "limit": 200, "needed": 318}
        clock.advance(10_000)
    assert stack.server.received == []
    assert await stack.left() == (59, 200)  # nothing was charged


async def test_only_the_guessed_part_of_an_estimate_is_capped(make: Make) -> None:
    stack = make(tokens="200/minute", initial_output_tokens=10**6)
    assert (await stack.call(arguments={"text": "y" * 100})).status == 200
    refused = await stack.call(arguments={"text": "y" * 190})
    assert refused.status == 413


@pytest.mark.parametrize(
    "method",
    ["initialize", "ping", "server/discover", "logging/setLevel", "notifications/initialized", "notifications/x"],
)
async def test_case_29_handshakes_and_notifications_are_never_limited(make: Make, method: str) -> None:
    """E2."""
    stack = make(requests="1/day")
    for _ in range(5):
        answer = await stack.call(method)
        assert answer.status == 200
        assert "ratelimit" not in answer.headers
    assert (await stack.call("tools/list")).status == 200
    assert (await stack.call("tools/list")).status == 429
    assert (await stack.call(method)).status == 200


async def test_case_29_answers_get_and_delete_are_never_limited(make: Make) -> None:
    """E2."""
    stack = make(requests="1/day")
    await stack.call("tools/list")
    posted = {"jsonrpc": "2.0", "id": 3, "result": {"action": "accept"}}
    for _ in range(5):
        assert (await Call(stack.app, posted, headers={"caller": "agent"}).run()).status == 200
        for method in ("GET", "DELETE"):
            assert (await Call(stack.app, method=method, headers={"caller": "agent"}).run()).status == 200
    assert (await stack.call("tools/list")).status == 429


@pytest.mark.parametrize(
    "method", ["tools/list", "prompts/list", "resources/subscribe", "subscriptions/listen", "tasks/get", "no/such"]
)
async def test_every_other_request_costs_one(make: Make, method: str) -> None:
    stack = make(requests="2/day")
    params = {"resources/subscribe": {"uri": "a:b"}, "tasks/get": {"taskId": "1"}}.get(method, {})
    assert (await stack.call(method, **params)).headers["ratelimit"] == '"requests";r=1'


async def test_each_message_of_a_batch_costs_one(make: Make) -> None:
    """E3."""
    stack = make(requests="3/day")
    batch = [rpc("tools/list", None, number) for number in range(5)] + [rpc("notifications/x", None, None)]
    headers = {"caller": "agent", "mcp-protocol-version": "2025-03-26"}
    answers = (await Call(stack.app, batch, headers=headers).run()).json
    assert [("result" in answer, answer["id"]) for answer in answers] == [
        (True, 0),
        (True, 1),
        (True, 2),
        (False, 3),
        (False, 4),
    ]
    assert answers[4]["error"]["code"] == RATE_LIMITED


async def test_case_25_new_sessions_tokens_and_addresses_are_the_same_agent(make: Make) -> None:
    stack = make(requests="3/day")
    for number in range(3):
        headers = {"caller": "agent ann", "mcp-session-id": str(number), "x-forwarded-for": f"10.0.0.{number}"}
        call = Call(stack.app, rpc("tools/list"), headers=headers)
        call.scope["client"] = (f"10.0.0.{number}", 1000 + number)
        assert (await call.run()).status == 200
        await stack.call("initialize", "agent ann")
    assert (await stack.call("tools/list", "agent ann")).status == 429


async def test_case_25_issuer_client_and_subject_each_make_another_principal(make: Make) -> None:
    stack = make(requests="1/day")
    callers = [
        "agent",
        "agent ann",
        "agent bob",
        "agent ann https://a.example",
        "agent ann https://b.example",
        "other ann",
    ]
    for caller in callers:
        assert (await stack.call("tools/list", caller)).status == 200
        assert (await stack.call("tools/list", caller)).status == 429


async def test_case_26_callers_without_identity_share_one_key(make: Make) -> None:
    stack = make(requests="2/day")
    statuses = []
    for number in range(50):
        headers = {"x-client-id": str(number), "mcp-session-id": str(number)}
        statuses.append((await Call(stack.app, rpc("tools/list"), headers=headers).run()).status)
    assert statuses == [200, 200] + [429] * 48
    assert len(stack.storage) == 1


async def test_case_26_a_principal_of_any_size_takes_the_same_room(make: Make) -> None:
    stack = make(requests="2/day")
    await stack.call("tools/list", "agent " + "s" * 100_000)
    await stack.call("tools/list", "agent \ud7ff\ufffd")
    assert {len(key) for key in stack.storage._buckets} == {20}


@pytest.mark.parametrize(
    ("client", "requests"),
    [("batch-1", 600), ("batch-", 600), ("Batch-1", 60), ("x-batch-1", 60), ("ci", 5), ("ci2", 60)],
)
async def test_agents_have_their_own_limits_by_the_first_glob_that_matches(
    make: Make, client: str, requests: int
) -> None:
    agents = {"batch-*": {"requests": "600/minute"}, "ci": {"requests": {"rate": "60/minute", "burst": 5}}, "c?": {}}
    stack = make(requests="60/minute", tokens="1000/minute", agents=agents)
    assert await stack.left(client) == (requests - 1, 1000)


async def test_limits_of_agents_alone(make: Make) -> None:
    stack = make(agents={"batch-*": {"tokens": "100/minute"}})
    assert "ratelimit" not in (await stack.call(caller="agent")).headers
    limited = await stack.call("tools/list", "batch-1")
    assert limited.headers["ratelimit"] == '"tokens";r=100'
    assert limited.headers["ratelimit-policy"] == '"tokens";q=100;w=60;qu="tokens"'
    assert len(stack.storage) == 1


@pytest.mark.parametrize("sse", [False, True])
async def test_the_true_number_of_tokens_takes_the_place_of_the_estimate(make: Make, sse: bool) -> None:
    stack = make(requests="60/minute", tokens="5000/minute", initial_output_tokens=3000)
    stack.server.sse = sse
    answer = await stack.call()
    assert answer.headers["ratelimit"] == f'"requests";r=59, "tokens";r={5000 - INPUT - 3000}'
    assert await stack.left() == (58, 5000 - INPUT - OUTPUT)


async def test_the_next_estimate_is_what_the_tool_answered(make: Make) -> None:
    stack = make(requests="60/minute", tokens="5000/minute", initial_output_tokens=3000)
    await stack.call()
    answer = await stack.call()
    assert answer.headers["ratelimit"] == f'"requests";r=58, "tokens";r={5000 - 2 * INPUT - 2 * OUTPUT}'


async def test_an_answer_longer_than_the_estimate_leaves_a_debt(make: Make, clock: FakeClock) -> None:
    stack = make(requests="60/minute", tokens="600/minute")
    stack.server.result = {"content": [{"type": "text", "text": "x" * 2000}]}
    assert (await stack.call()).status == 200
    refused = await stack.call()
    assert refused.json["error"]["data"]["dimension"] == "tokens"
    assert refused.json["error"]["data"]["remaining"] == 0
    # a bucket of 600 that is 1406 in debt, and this tool is now known to answer with 2,000
    assert refused.headers["retry-after"] == str((2000 + INPUT - 600 + 600) // 10 + 1)
    assert (await stack.left())[1] == 0  # a request without tokens does not wait for them


async def test_a_call_the_policy_denies_is_a_request_but_no_tokens(make: Make) -> None:
    stack = make(requests="60/minute", tokens="5000/minute")
    judge = Judge(stack.server)
    judge.refuse = True
    limited = Stack(FakeClock(), requests="60/minute", tokens="5000/minute")
    limited.limiter = type(limited.limiter)(judge, requests="60/minute", tokens="5000/minute", storage=limited.storage)
    limited.app.app = limited.limiter
    for _ in range(5):
        assert (await limited.call()).json["error"]["message"] == "Unknown tool: tool"
    judge.refuse = False
    assert await limited.left() == (54, 5000)
    assert [message["method"] for message in stack.server.received] == ["tools/list"]


async def test_case_30_a_disconnect_before_the_answer_keeps_the_estimate(make: Make) -> None:
    stack = make(requests="60/minute", tokens="5000/minute", initial_output_tokens=3000)
    stack.server.gate.clear()
    call = stack.prepare()
    running = asyncio.create_task(call.run())
    await stack.server.entered.wait()
    call.disconnect()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    stack.server.gate.set()
    assert await stack.left() == (58, 5000 - INPUT - 3000)


async def test_case_30_a_crash_before_the_answer_keeps_the_estimate(make: Make) -> None:
    stack = make(requests="60/minute", tokens="5000/minute", initial_output_tokens=3000)
    stack.server.raises = RuntimeError("crashed")
    with pytest.raises(RuntimeError, match="crashed"):
        await stack.call()
    stack.server.raises = None
    assert await stack.left() == (58, 5000 - INPUT - 3000)


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


async def test_a_refusal_says_its_reason_to_the_record(make: Make) -> None:
    reader = Reader(make(requests="1/day").limiter)
    for _ in range(2):
        await Call(reader, rpc("tools/list")).run()
    assert reader.rejections[0] is None
    assert reader.rejections[1] is not None
    assert (reader.rejections[1].reason, reader.rejections[1].rule) == ("rate_limited", "requests")
    assert reader.usages == [None, None]


class BrokenCounter:
    """Counts arguments well and answers badly."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def count(self, text: str) -> Any:
        return self.value if "x" in text else 1


@pytest.mark.parametrize("value", [-5, 1.5, float("nan"), float("inf"), "7", None])
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


async def test_one_agent_without_tokens_leaves_the_others_alone(make: Make) -> None:
    stack = make(requests="60/minute", tokens="600/minute")
    stack.server.result = {"content": [{"type": "text", "text": "x" * 5000}]}
    await stack.call(caller="greedy")
    assert (await stack.call(caller="greedy")).status == 429
    assert (await stack.call(caller="polite", name="other")).status == 200


async def test_case_31_one_agent_at_a_hundred_times_its_limit_beside_nine_polite_ones(
    make: Make, clock: FakeClock
) -> None:
    """None of the polite ones' calls fails; what they wait for is measured by the benchmarks."""
    stack = make(requests=Rate("60/minute", burst=5), tokens="6000/minute", concurrency=3)
    statuses: dict[str, list[int | None]] = {}
    for _ in range(20):
        callers = ["greedy"] * 100 + [f"polite-{number}" for number in range(9)]
        calls = [(caller, stack.prepare(caller=caller)) for caller in callers]
        await asyncio.gather(*(call.run() for _, call in calls))
        for caller, call in calls:
            statuses.setdefault(caller, []).append(call.status)
        clock.advance(1)
    greedy = statuses.pop("greedy")
    assert greedy.count(200) <= 5 + 20
    assert greedy.count(429) == 2000 - greedy.count(200)
    assert all(answers == [200] * 20 for answers in statuses.values())


async def test_case_27_concurrent_calls_are_admitted_up_to_the_burst_only(make: Make) -> None:
    stack = make(requests="1000/minute", tokens=Rate("1/minute", burst=1000), initial_output_tokens=94)
    stack.server.gate.clear()
    calls = [stack.prepare() for _ in range(100)]
    running = asyncio.gather(*(call.run() for call in calls))
    await stack.server.entered.wait()
    for _ in range(100):
        await asyncio.sleep(0)
    stack.server.gate.set()
    await running
    assert sorted(call.status for call in calls) == [200] * 10 + [429] * 90


async def test_the_answer_is_not_changed(make: Make) -> None:
    stack = make(requests="60/minute", tokens="5000/minute")
    stack.server.result = {"content": [{"type": "text", "text": "x"}], "big": 10**30, "_meta": {"a": [1.50]}}
    answer = await stack.call()
    assert answer.json["result"] == json.loads(json.dumps(stack.server.result))


async def test_a_tool_has_limits_of_its_own_on_top(make: Make) -> None:
    stack = make(
        requests="60/minute",
        tokens="5000/minute",
        tools={"search_*": {"requests": "2/minute"}, "*": {"tokens": {"rate": "60/minute", "burst": 300}}},
    )
    answer = await stack.call(name="search_web")
    policy = '"requests";q=60;w=60, "tokens";q=5000;w=60;qu="tokens", "tool-requests";q=2;w=60'
    assert answer.headers["ratelimit-policy"] == policy
    assert answer.headers["ratelimit"].endswith(', "tool-requests";r=1')
    await stack.call(name="search_mail")  # one glob, one pair of buckets
    refused = await stack.call(name="search_web")
    assert refused.status == 429
    assert refused.headers["ratelimit"] == '"tool-requests";r=0;t=30'
    assert refused.json["error"]["data"] == {
        "dimension": "requests",
        "limit": 2,
        "remaining": 0,
        "retryAfterMs": 30_000,
        "of": "tool",
    }
    assert "of this tool" in refused.json["error"]["message"]
    assert (await stack.call(name="search_web", caller="other")).status == 200
    assert (await stack.call("tools/list")).status == 200
    assert (await stack.call(name="read")).headers["ratelimit"].endswith(', "tool-tokens";r=194')
    assert (await stack.call(name="read", arguments={"text": "y" * 400})).status == 413  # more than the tool's bucket
    assert (
        (await stack.call(name="search_web", arguments={"text": "y" * 400}))
        .headers["ratelimit"]
        .startswith('"tool-requests"')
    )


async def test_servers_that_share_a_storage_share_the_agent_and_not_the_tools(make: Make) -> None:
    one = make(requests="5/day", server="a", tools={"t": {"requests": "2/day"}}, server_limits={"requests": "3/day"})
    other = make(
        requests="5/day",
        server="b",
        tools={"t": {"requests": "2/day"}},
        server_limits={"requests": "3/day"},
        storage=one.storage,
    )
    assert [(await one.call(name="t")).status for _ in range(3)] == [200, 200, 429]
    assert (await one.call(name="u")).status == 200
    refused = await one.call(name="u")
    assert refused.json["error"]["data"]["of"] == "server"
    assert refused.headers["ratelimit"].startswith('"server-requests";r=0;t=')
    assert [(await other.call(name="t")).status for _ in range(2)] == [200, 200]
    assert "of" not in (await other.call(name="u")).json["error"]["data"]


async def test_no_more_calls_of_one_agent_are_open_than_allowed(make: Make) -> None:
    stack = make(concurrency=2, agents={"busy-*": {"concurrency": 3}, "free": {"concurrency": None}})
    stack.server.gate.clear()
    for agent, most in (("agent", 2), ("busy-1", 3)):
        calls = [stack.prepare(caller=agent) for _ in range(most)]
        running = [asyncio.create_task(call.run()) for call in calls]
        while len(stack.server.received) < most:  # noqa: ASYNC110
            await asyncio.sleep(0)
        refused = await stack.call(caller=agent)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert refused.json["error"]["data"] == {
            "dimension": "concurrency",
            "limit": most,
            "remaining": 0,
            "retryAfterMs": 1000,
        }
        stack.server.gate.set()
        await asyncio.gather(*running)
        assert calls[0].headers["ratelimit"] == f'"concurrency";r={most - 1}'
        after = await stack.call("tools/list", agent)
        assert after.status == 200
        assert after.headers["ratelimit-policy"] == f'"concurrency";q={most};qu="concurrent-requests"'
        stack.server.received.clear()
        stack.server.gate.clear()
    assert not stack.storage._open


@pytest.mark.parametrize("broken", ["raise", "disconnect", "counter"])
async def test_case_30_a_call_that_ends_badly_is_not_open_any_more(
    make: Make, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    counter = BrokenCounter(-1) if broken == "counter" else Characters()
    stack = make(concurrency=1, tokens="50000/minute", counter=counter)
    if broken == "raise":
        stack.server.raises = RuntimeError("crashed")
        with pytest.raises(RuntimeError, match="crashed"):
            await stack.call()
        stack.server.raises = None
    elif broken == "counter":
        await stack.call()
    else:
        stack.server.gate.clear()
        running = asyncio.create_task(stack.call())
        await stack.server.entered.wait()
        assert (await stack.call()).status == 429
        running.cancel()
        await asyncio.wait({running})
        stack.server.gate.set()
    assert not stack.storage._open
    assert (await stack.call("tools/list")).status == 200


async def test_shadow_lets_everything_through_and_says_what_it_would_have_refused(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    stack = make(requests="2/day", tokens="500/day", mode="shadow")
    with caplog.at_level("INFO"):
        answers = [await stack.call() for _ in range(4)] + [await stack.call(arguments={"text": "y" * 900})]
    assert [answer.status for answer in answers] == [200] * 5
    assert not any("ratelimit" in answer.headers for answer in answers)
    said = [record.getMessage() for record in caplog.records if "shadow" in record.getMessage()]
    assert len(said) == 3
    assert "918 tokens are more than the limit ever holds" in said[-1]
    assert "client 'agent' would have been refused: requests of the agent" in said[0]
    stack.limiter.mode = "enforce"
    assert (await stack.call()).status == 429  # charged as if it had been enforced all the time


async def test_the_kill_switch_lets_everything_through_at_once_and_back(make: Make) -> None:
    stack = make(requests="1/day", concurrency=1)
    assert [(await stack.call()).status for _ in range(2)] == [200, 429]
    stack.limiter.mode = "off"
    answers = [await stack.call() for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3
    assert not any("ratelimit" in answer.headers for answer in answers)
    stack.limiter.mode = "enforce"
    assert (await stack.call()).status == 429


async def test_limits_change_and_what_was_used_stays_used(make: Make) -> None:
    forecast = Forecast()
    stack = make(requests="3/day", tokens="1000/day", forecast=forecast)
    for _ in range(3):
        await stack.call()
    assert (await stack.call()).status == 429
    stack.limiter.update(requests="1000/day", tokens="2000/day", agents={"other": {"requests": None}})
    assert (await stack.call()).status == 429
    with pytest.raises(ConfigurationError, match="tokens: the rate is 'many'"):
        stack.limiter.update(tokens="many")
    assert (await stack.call()).headers["ratelimit-policy"].startswith('"requests";q=1000')
    assert "requests" not in (await stack.call(caller="other")).headers["ratelimit"]
    successor = make(tokens="5000/day", forecast=forecast, initial_output_tokens=4000)
    assert (await successor.call()).headers["ratelimit"] == f'"tokens";r={5000 - INPUT - 100}'


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_refusal_may_be_a_tool_result_for_agents_that_see_nothing_else(make: Make, era: str) -> None:
    stack = make(requests="1/day", tokens="600/day", refuse_with="tool_result")
    reader = Reader(stack.limiter)
    stack.app.app = reader
    meta = {"_meta": MODERN_META} if era == "modern" else {}
    headers = {"caller": "agent", **(modern_headers("tools/call", "tool") if era == "modern" else {})}
    for arguments in ({"text": "y" * 900}, {}, {}):
        call = Call(stack.app, rpc("tools/call", {"name": "tool", "arguments": arguments, **meta}, 7), headers=headers)
        answer = await call.run()
        if arguments:
            assert "send less" in answer.json["result"]["content"][0]["text"]
    result = answer.json["result"]
    assert (answer.status, answer.json["id"], result["isError"]) == (200, 7, True)
    assert result["content"][0]["text"] == "Not done: the limit on requests is reached; this request fits in 86400 s."
    assert result["_meta"]["mcp-middleware/limit"]["retryAfterMs"] == 86_400_000
    assert ("resultType" in result) == (era == "modern")
    assert "retry-after" not in answer.headers
    assert answer.headers["ratelimit"] == '"requests";r=0;t=86400'
    assert [rejection and rejection.reason for rejection in reader.rejections] == [
        "too_many_tokens",
        None,
        "rate_limited",
    ]
    assert (await stack.call("tools/list")).status == 429


def notice(text: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": text}}


async def test_a_long_stream_is_topped_up_as_it_flows(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = make(tokens="5000/day")
    seen: list[float] = []
    top_up = stack.storage.top_up

    async def spy(reservation: Any, tokens: float) -> float:
        seen.append(await top_up(reservation, tokens))
        return seen[-1]

    monkeypatch.setattr(stack.storage, "top_up", spy)
    stack.server.notices = [notice("x" * 400) for _ in range(12)]
    answer = await stack.call()
    assert "error" not in answer.body.decode()
    # an event has 425 tokens: 100 were reserved, and what is missing is taken in steps of at least 500
    assert seen
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 1000
    refused = await stack.call()
    assert refused.json["error"]["data"]["dimension"] == "tokens"


async def test_a_stream_without_tokens_left_goes_on_unless_it_is_to_be_cut(make: Make) -> None:
    for cut in (False, True):
        stack = make(tokens="1000/day", cut_streams=cut)
        stack.server.notices = [notice("x" * 400) for _ in range(12)]
        answer = await stack.call()
        events = [json.loads(line[6:]) for line in answer.body.decode().splitlines() if line.startswith("data: ")]
        if not cut:
            assert len(events) == 13
            continue
        assert 3 <= len(events) <= 6
        assert [event["method"] for event in events[:-1]] == ["notifications/message"] * (len(events) - 1)
        assert events[-1]["id"] == 7
        assert events[-1]["error"]["code"] == RATE_LIMITED
        assert events[-1]["error"]["data"] == {"dimension": "tokens", "cut": True}
        assert (await stack.call()).status == 429


async def test_a_stream_that_is_cut_ends_although_its_server_goes_on(make: Make) -> None:
    stack, goes_on = make(tokens="1000/day", concurrency=1, cut_streams=True), asyncio.Event()
    stack.server.notices = [notice("x" * 400) for _ in range(12)]
    stack.server.last = goes_on
    call = stack.prepare()
    running = asyncio.create_task(call.run())
    async with asyncio.timeout(10), call.arrived:
        await call.arrived.wait_for(lambda: call.events and call.events[-1].get("more_body") is False)
    assert call.body.count(b'"cut":true') == 1
    assert not running.done()
    assert (await stack.call("tools/list")).json["error"]["data"]["dimension"] == "concurrency"  # it still runs
    goes_on.set()
    await running
    assert (await stack.call("tools/list")).status == 200


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
