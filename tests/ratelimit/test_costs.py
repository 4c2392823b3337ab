"""What a call costs, from its answer to the audit trail and the metrics; and budgets, from a first call to the 429."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any, cast

import pytest
from fastmcp import FastMCP
from mcp.shared.exceptions import MCPError
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from starlette.middleware import Middleware

from mcp_middleware import AuditLogMiddleware, Policy, SQLiteSink, ToolAuthorizationMiddleware
from mcp_middleware.audit import AuditRecord
from mcp_middleware.audit.__main__ import main
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.ratelimit import RateLimitMiddleware, counts
from mcp_middleware.ratelimit.budgets import Budget
from mcp_middleware.ratelimit.prices import Price, Prices
from mcp_middleware.storage import LimitStorage, MemoryStorage, RedisConnection, RedisStorage
from mcp_middleware.storage.budgets import MemoryBudgets
from mcp_middleware.testing import FakeClock
from mcp_middleware.types import Era
from tests.audit.trails import ListSink
from tests.ratelimit.conftest import Characters, Make, Stack
from tests.storage.redis_server import running_redis
from tests.support import connect, each_era, serve

PRICES: dict[str, Any] = {
    "currency": "EUR",
    "rules": [
        {"tools": ["free"], "call": 0},
        {"tools": ["tool", "other"], "input": 1, "output": "2.5", "call": 0.002},
        {"servers": ["elsewhere"], "call": 9},
    ],
}
DAY = 86_400.0


@pytest.fixture
def make(clock: FakeClock) -> Make:
    def made(**options: Any) -> Stack:
        stack = Stack(clock, requests="1/day")
        stack.storage.budgets = MemoryBudgets(clock=clock)  # of the test's time
        given = {"server": "files", "prices": PRICES, "initial_output_tokens": 100, **options}
        stack.limiter = RateLimitMiddleware(stack.server, storage=stack.storage, counter=Characters(), **given)
        stack.app.app = stack.limiter
        return stack

    return made


def audited(stack: Stack) -> ListSink:
    sink = ListSink()
    stack.app.app = AuditLogMiddleware(stack.limiter, sink=sink)
    return sink


def data(call: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call.body)["error"]["data"]
    return found


async def test_a_calls_cost_is_in_its_record(make: Make) -> None:
    stack = make()
    sink = audited(stack)
    await stack.call(arguments={"a": "b" * 50})
    record: AuditRecord = sink.only
    assert record.input_tokens is not None
    assert record.output_tokens is not None
    nanos = 1000 * record.input_tokens + 2500 * record.output_tokens + 2_000_000
    assert (record.cost, record.currency) == (nanos / 10**9, "EUR")


@pytest.mark.parametrize(
    ("change", "cost"),
    [
        ({"result": {"content": [], "_meta": {"usage": {"inputTokens": 3, "outputTokens": 4}}}}, 0.002013),
        ({"error": {"code": -32602, "message": "x" * 10}}, None),
        ({"status": 404}, None),
        ({"raises": RuntimeError("boom")}, None),
    ],
)
async def test_what_is_known_of_a_call_is_priced(change: dict[str, Any], cost: float | None, make: Make) -> None:
    """An error has tokens too, and a refusal by the server the input; a call that broke off has no known cost."""
    stack = make()
    sink = audited(stack)
    for name, value in change.items():
        setattr(stack.server, name, value)
    if "raises" in change:
        with pytest.raises(RuntimeError):
            await stack.call()
        assert sink.only.cost is None
        return
    await stack.call()
    if cost is not None:
        assert sink.only.cost == cost
    else:
        assert sink.only.cost is not None
        assert 0.002 < sink.only.cost < 0.0025


async def test_what_has_no_price_has_no_cost_and_what_is_free_costs_nothing(make: Make) -> None:
    stack = make()
    sink = audited(stack)
    await stack.call(name="unpriced")
    await stack.call(name="free")
    await stack.call("prompts/get", name="tool")
    await stack.call("tools/list")
    assert [(one.cost, one.currency) for one in sink.records] == [
        (None, None),
        (0.0, "EUR"),
        (None, None),
        (None, None),
    ]


async def test_what_is_refused_costs_nothing(make: Make) -> None:
    stack = make(requests="1/day")
    sink = audited(stack)
    await stack.call()
    await stack.call()
    assert [one.cost is None for one in sink.records] == [False, True]


BUDGETS = [
    {"agents": ["batch-*"], "period": "day", "amount": 0.01},
    {"agents": ["batch-*"], "period": "day", "amount": 0.005, "action": "warn"},
]


async def test_an_agent_is_refused_once_its_budget_is_spent_and_served_when_the_next_begins(
    make: Make, clock: FakeClock
) -> None:
    clock.now = 3 * DAY - 7200.5
    stack = make(budgets=BUDGETS)
    sink = audited(stack)
    served = 0
    while (answer := await stack.call(caller="batch-1")).status == 200:
        served += 1
    assert served == 4
    spent = sum(one.cost or 0 for one in sink.records)
    assert 0.008 < spent <= 0.01
    assert (answer.status, answer.headers["retry-after"]) == (429, "7201")
    told = data(answer)
    assert told.pop("remaining") == pytest.approx(0.01 - spent)
    assert told == {
        **{"dimension": "budget", "period": "day", "currency": "EUR", "limit": 0.01},
        "retryAfterMs": 7_200_500,
    }
    record = sink.records[-1]
    assert (record.decision, record.reason, record.rule) == ("limited", "budget_spent", "budgets[0]")
    assert len(stack.server.received) == served
    assert (await stack.call(caller="batch-2")).status == 200
    assert (await stack.call(caller="somebody")).status == 200
    assert (await stack.call("tools/list", caller="batch-1")).status == 200
    assert (await stack.call(caller="batch-1", name="unpriced")).status == 200
    clock.now += 7200
    assert (await stack.call(caller="batch-1")).status == 429
    clock.now += 0.5
    assert (await stack.call(caller="batch-1")).status == 200


async def test_a_call_that_a_limit_refuses_is_not_paid_for(make: Make) -> None:
    stack = make(requests="1/day", budgets=[{"period": "day", "amount": 0.005}])
    assert (await stack.call()).status == 200
    for _ in range(3):
        assert data(await stack.call())["dimension"] == "requests"


async def test_an_estimate_stands_where_nobody_knows_the_cost(make: Make) -> None:
    stack = make(initial_output_tokens=10_000, budgets=[{"period": "day", "amount": 0.05}])
    stack.server.raises = RuntimeError("boom")
    with pytest.raises(RuntimeError):
        await stack.call()  # 10,000 tokens: 0.027
    assert data(await stack.call())["dimension"] == "budget"


async def test_a_shadow_refuses_nobody_and_off_asks_nobody(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stack = make(mode="shadow", budgets=[{"period": "day", "amount": 0.003}])
    for _ in range(3):
        assert (await stack.call()).status == 200
    assert sum("the budget of this day is spent" in one.getMessage() for one in caplog.records) == 2
    stack.limiter.mode = "enforce"
    assert (await stack.call()).status == 429
    stack.limiter.mode = "off"
    sink = audited(stack)
    assert (await stack.call()).status == 200
    assert sink.only.cost is None


async def test_a_refusal_can_be_a_tools_result(make: Make) -> None:
    stack = make(refuse_with="tool_result", budgets=[{"period": "month", "amount": 0.003}])
    await stack.call()
    result = json.loads((await stack.call()).body)["result"]
    assert result["isError"] is True
    assert result["content"][0]["text"].startswith("Not done: the budget of this month is spent; the next begins in")


async def test_prices_and_budgets_are_changed_while_the_limiter_runs(make: Make) -> None:
    stack = make(budgets=[{"period": "day", "amount": 0.003}])
    sink = audited(stack)
    await stack.call()
    assert (await stack.call()).status == 429
    stack.limiter.update(prices=Prices("EUR", [Price(call=1)]), budgets=[Budget("day", 1.002)])
    assert (await stack.call()).status == 429  # what was spent stays spent
    stack.limiter.update(prices=Prices("EUR", [Price(call=1)]), budgets=[Budget("day", 1.003)])
    assert (await stack.call()).status == 200
    stack.limiter.update(prices=Prices("USD", [Price(call=1)]), budgets=[Budget("day", 1)])
    assert (await stack.call()).status == 200
    assert [one.currency for one in sink.records if one.cost] == ["EUR", "EUR", "USD"]


async def test_costs_are_metrics_without_agents_and_without_invented_tools(make: Make) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    stack = make(
        meter_provider=provider,
        prices={"currency": "EUR", "rules": [{"call": 0.5}]},
        budgets=[
            {"agents": ["poor"], "period": "day", "amount": 0.1},
            {"period": "day", "amount": 1, "action": "warn"},
        ],
    )
    for agent in ("a", "b", "b", "poor", "poor"):
        await stack.call(caller=agent)
    stack.server.error = {"code": -32602, "message": "unknown tool"}
    for number in range(3):
        await stack.call(name=f"invented-{number}")
    found: dict[str, list[tuple[dict[str, Any], float]]] = {}
    metrics = reader.get_metrics_data()
    assert metrics is not None
    for metric in metrics.resource_metrics[0].scope_metrics[0].metrics:
        points = [(dict(point.attributes or {}), getattr(point, "value", 0)) for point in metric.data.data_points]
        found[metric.name.removeprefix("mcp_middleware.limiter.")] = points
    currency = {"mcp_middleware.limiter.currency": "EUR", "mcp_middleware.limiter.server": "files"}
    assert found["cost"] == [({**currency, "gen_ai.tool.name": "tool"}, 2.0), (currency, 1.5)]
    period = "mcp_middleware.limiter.period"
    assert found["budget.warnings"] == [({period: "day"}, 2), ({period: "month"}, 0)]
    assert [
        number for labels, number in found["refused"] if labels["mcp_middleware.limiter.dimension"] == "budget"
    ] == [1]
    provider.shutdown()


async def test_only_so_many_tools_are_labels(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "_MOST_TOOLS", 1)
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    stack = make(meter_provider=provider)
    for name in ("tool", "other", "tool"):
        await stack.call(name=name)
    seen = reader.get_metrics_data()
    assert seen is not None
    data = json.loads(seen.to_json())
    (cost,) = [
        one
        for one in data["resource_metrics"][0]["scope_metrics"][0]["metrics"]
        if one["name"] == "mcp_middleware.limiter.cost"
    ]
    assert [point["attributes"].get("gen_ai.tool.name") for point in cost["data"]["data_points"]] == ["tool", None]
    provider.shutdown()


async def test_replicas_share_a_budget() -> None:
    with running_redis() as server:
        stacks = []
        for _ in range(2):
            stack = Stack(FakeClock(), prices={"currency": "EUR", "rules": [{"call": 1}]})
            storage = RedisStorage(RedisConnection(server.url, budget=10.0))
            stack.limiter = RateLimitMiddleware(
                stack.server,
                storage=storage,
                prices={"currency": "EUR", "rules": [{"call": 1}]},
                budgets=[{"period": "month", "amount": 5}],
            )
            stack.app.app = stack.limiter
            stacks.append(stack)
        statuses = [(await stacks[number % 2].call()).status for number in range(8)]
        assert statuses == [200] * 5 + [429] * 3
        for stack in stacks:
            await stack.limiter.aclose()


async def app(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("not called")


class NoBudgets:
    async def reserve(self, *_: Any) -> Any: ...


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prices": {}}, "RateLimitMiddleware: prices: 'currency' is missing"),
        ({"prices": PRICES}, "prices: rules[2].servers is ['elsewhere'], and this server has no name; give server"),
        ({"budgets": BUDGETS}, "RateLimitMiddleware: budgets need prices"),
        ({"prices": PRICES, "server": "a", "budgets": []}, "RateLimitMiddleware: budgets is []; it must be a list"),
        ({"prices": PRICES, "server": "a", "budgets": [{"period": "day"}]}, "budgets[0]: 'amount' is missing"),
        (
            {"prices": PRICES, "server": "a", "budgets": BUDGETS, "storage": NoBudgets()},
            "RateLimitMiddleware: budgets need a storage that keeps them",
        ),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        RateLimitMiddleware(app, **options)
    assert said in str(error.value)


async def test_of_two_refusals_the_longer_is_told_and_neither_takes_from_the_other(
    make: Make, clock: FakeClock
) -> None:
    clock.now = DAY - 100
    stack = make(requests="2/hour", tokens="1000000/hour", budgets=[{"period": "day", "amount": 0.003}])
    assert (await stack.call()).status == 200
    for _ in range(3):
        answer = await stack.call()
        assert (data(answer)["dimension"], answer.headers["retry-after"]) == ("budget", "100")
    assert (await stack.call("tools/list")).headers["ratelimit"].startswith('"requests";r=0, "tokens";r=9')
    for _ in range(3):
        answer = await stack.call()
        assert (data(answer)["dimension"], answer.headers["retry-after"]) == ("requests", "1800")
    clock.now = DAY + 1700
    assert (await stack.call()).status == 200
    clock.now = DAY + 3600
    assert data(await stack.call())["dimension"] == "budget"


async def test_a_shadow_charges_what_would_have_been_refused_to_nothing(make: Make) -> None:
    stack = make(mode="shadow", requests="9/day", tokens="9000/day", budgets=[{"period": "day", "amount": 0.003}])
    sink = audited(stack)
    for _ in range(4):
        assert (await stack.call()).status == 200
    assert all(record.cost for record in sink.records)
    stack.limiter.mode = "enforce"
    assert (await stack.call("tools/list")).headers["ratelimit"].startswith('"requests";r=7, ')


async def test_an_agent_has_one_budget_for_all_its_users(make: Make) -> None:
    stack = make(budgets=[{"period": "day", "amount": 0.003}])
    assert (await stack.call(caller="desktop ann https://a.example")).status == 200
    assert data(await stack.call(caller="desktop bob https://a.example"))["dimension"] == "budget"
    assert (await stack.call(caller="desktop ann https://b.example")).status == 200  # that is another agent
    assert (await stack.call(caller="laptop ann https://a.example")).status == 200


class Shared:
    """A store as shared ones are, asked for limits and budgets at once. It is this process's memory."""

    def __init__(self, memory: MemoryStorage, budgets: MemoryBudgets) -> None:
        self.reserve, self.top_up, self.settle, self.aclose = (
            memory.reserve,
            memory.top_up,
            memory.settle,
            memory.aclose,
        )
        self.budgets = budgets


async def test_case_30_a_call_that_is_cancelled_at_any_moment_is_not_open_any_more(make: Make) -> None:
    class Slow(MemoryBudgets):
        async def spend(self, *arguments: Any) -> Any:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return await super().spend(*arguments)

    ended = False
    turns = 0
    while not ended:
        stack = make()
        stack.server.notices = [{"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x" * 999}}]
        stack.app.app = RateLimitMiddleware(
            stack.server,
            storage=cast("LimitStorage", Shared(stack.storage, Slow())),
            concurrency=1,
            tokens="9000/day",
            server="files",
            prices=PRICES,
            budgets=[{"period": "day", "amount": 1}],
        )
        running = asyncio.create_task(stack.call())
        for _ in range(turns):
            await asyncio.sleep(0)
        ended = running.done()
        running.cancel()
        await asyncio.wait({running})
        await asyncio.sleep(0)
        assert (await stack.call()).status == 200, turns
        turns += 1
    assert turns > 5


async def test_a_refusal_further_in_gives_a_budget_back(make: Make) -> None:
    stack = make()
    policy = Policy.from_mapping({"rules": [{"effect": "allow", "tools": ["tool"]}]})
    stack.app.app = RateLimitMiddleware(
        ToolAuthorizationMiddleware(stack.server, policy=policy),
        storage=stack.storage,
        server="files",
        prices=PRICES,
        budgets=[{"period": "day", "amount": 0.003}],
    )
    for _ in range(4):
        assert "result" not in json.loads((await stack.call(name="other")).body)
    assert stack.server.received == []
    assert (await stack.call()).status == 200
    assert len(stack.server.received) == 1


@each_era
async def test_the_official_client_pays_a_real_server_and_the_report_adds_up(
    era: Era, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mcp = FastMCP("shop")

    @mcp.tool
    def write(words: int) -> str:
        return "word " * words

    path = tmp_path / "audit.db"
    prices = {"currency": "EUR", "rules": [{"servers": ["sh*"], "tools": ["write"], "output": 1000, "call": 1}]}
    members = [
        Middleware(AuditLogMiddleware, sink=SQLiteSink(path), server="shop"),
        Middleware(RateLimitMiddleware, server="shop", prices=prices, budgets=[{"period": "day", "amount": 5}]),
    ]
    app = mcp.http_app(path="/mcp", middleware=members)
    async with serve(app) as origin, connect(f"{origin}/mcp", era=era) as client:
        for _ in range(4):
            await client.call_tool("write", {"words": 100})
        with pytest.raises(MCPError) as refused:
            await client.call_tool("write", {"words": 100})
        assert refused.value.error.data["dimension"] == "budget"
    assert main(["report", str(path), "--by", "server,tool", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    calls, tokens = row["calls"], row["output_tokens"]
    assert (row["server"], row["tool"], row["refused"], row["unpriced"]) == ("shop", "write", 1, 0)
    assert row["cost"] == {"EUR": pytest.approx(calls + tokens / 1000, abs=1e-12)}
    assert (calls, 4 < row["cost"]["EUR"] <= 5) == (4, True)
