"""What is limited, whom it is charged to, and how it is refused."""

import asyncio
import json

import pytest

from mcp_middleware.errors import RATE_LIMITED, ConfigurationError
from mcp_middleware.ratelimit import Forecast, Rate
from mcp_middleware.testing import FakeClock
from tests.core.asgi import Call, modern_headers, rpc
from tests.support import MODERN_META, each_era

from .conftest import INPUT, Make, Reader


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


@pytest.mark.parametrize(
    ("rate", "burst", "policy"),
    [
        ("60/minute", None, "q=60;w=60"),
        ("60/minute", 10, "q=10;w=10"),
        ("60/minute", 90, "q=90;w=90"),
        ("7/minute", 3, "q=3;w=26"),
        ("600/minute", 3, "q=3;w=1"),
        ("100 per 2 hours", 150, "q=150;w=10800"),
    ],
)
async def test_a_policy_is_what_a_bucket_holds_and_the_time_in_which_that_flows_back(
    make: Make, clock: FakeClock, rate: str, burst: int | None, policy: str
) -> None:
    stack = make(requests=Rate(rate, burst=burst))
    answer = await stack.call("tools/list")
    assert answer.headers["ratelimit-policy"] == f'"requests";{policy}'
    quota, window = (int(part[2:]) for part in policy.split(";"))
    assert answer.headers["ratelimit"] == f'"requests";r={quota - 1}'
    for _ in range(3):  # whoever uses all of it at once in each such time is not refused
        clock.advance(window)
        for _ in range(quota):
            assert (await stack.call("tools/list")).status == 200


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


@pytest.mark.parametrize(
    "method",
    ["initialize", "ping", "server/discover", "logging/setLevel", "notifications/initialized", "notifications/x"],
)
async def test_case_29_handshakes_and_notifications_are_never_limited(make: Make, method: str) -> None:
    stack = make(requests="1/day")
    for _ in range(5):
        answer = await stack.call(method)
        assert answer.status == 200
        assert "ratelimit" not in answer.headers
    assert (await stack.call("tools/list")).status == 200
    assert (await stack.call("tools/list")).status == 429
    assert (await stack.call(method)).status == 200


async def test_case_29_answers_get_and_delete_are_never_limited(make: Make) -> None:
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


async def test_a_refusal_says_its_reason_to_the_record(make: Make) -> None:
    reader = Reader(make(requests="1/day").limiter)
    for _ in range(2):
        await Call(reader, rpc("tools/list")).run()
    assert reader.rejections[0] is None
    assert reader.rejections[1] is not None
    assert (reader.rejections[1].reason, reader.rejections[1].rule) == ("rate_limited", "requests")
    assert reader.usages == [None, None]


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
    never = await stack.call(name="read", arguments={"text": "y" * 400})  # more than the tool's bucket
    assert never.status == 413
    assert never.json["error"]["data"] == {"dimension": "tokens", "limit": 300, "needed": 418, "of": "tool"}
    assert "the limit of this tool holds 300" in never.json["error"]["message"]
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


@each_era
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
