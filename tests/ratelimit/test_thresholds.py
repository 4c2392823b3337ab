"""Budgets that only warn: once a period, of what is spent and not of what was estimated."""

import asyncio
from typing import Any

import pytest

from mcp_middleware.ratelimit import thresholds
from mcp_middleware.ratelimit.counts import counts_for
from mcp_middleware.storage import MemoryStorage, RedisConnection, RedisStorage
from mcp_middleware.storage.budgets import MemoryBudgets
from mcp_middleware.testing import FakeClock
from tests.ratelimit.conftest import INPUT, OUTPUT, Stack
from tests.storage.redis_server import running_redis

DAY = 86_400.0
COST = INPUT + OUTPUT
"""What a call costs, in millionths."""


class Servers:
    """Limiters of one process that share a storage, as those of a gateway's servers do."""

    def __init__(self, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
        self.clock = clock
        self.storage: Any = MemoryStorage(clock=clock)
        self.storage.budgets = MemoryBudgets(clock=clock)  # of the test's time
        self.caplog = caplog

    def add(self, *millionths: int, period: str = "day", **options: Any) -> Stack:
        """One more, with budgets that warn at these amounts."""
        budgets = [{"period": period, "amount": f"{one / 10**6:f}", "action": "warn"} for one in millionths]
        prices = {"currency": "EUR", "rules": [{"input": 1, "output": 1}]}
        return Stack(self.clock, storage=self.storage, prices=prices, budgets=budgets, **options)

    @property
    def warned(self) -> list[str]:
        return [one.getMessage() for one in self.caplog.records if " has reached " in one.msg]


@pytest.fixture
def servers(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> Servers:
    return Servers(clock, caplog)


async def test_a_warning_comes_once_a_period(servers: Servers) -> None:
    stack = servers.add(2 * COST)
    for day in range(2):
        servers.clock.now = day * DAY
        await stack.call(caller="a\n\x1b[2J")
        assert len(servers.warned) == day
        for _ in range(4):
            await stack.call(caller="a\n\x1b[2J")
        assert len(servers.warned) == day + 1
    assert servers.warned[0].endswith(" has reached budgets[0]: 0.000212 for EUR day")
    assert all(text.isprintable() for text in servers.warned)


async def test_an_estimate_warns_of_nothing(servers: Servers) -> None:
    stack = servers.add(2 * COST, 3 * COST, initial_output_tokens=4 * COST)
    stack.server.error = {"code": -32602, "message": "x" * OUTPUT}  # of which nothing is learnt
    await stack.call()
    assert servers.warned == []
    stack.server.gate.clear()
    calls = []
    for _ in range(2):
        stack.server.entered.clear()
        calls.append(asyncio.create_task(stack.call()))
        await stack.server.entered.wait()
    assert servers.warned == []
    stack.server.gate.set()
    await asyncio.gather(*calls)
    assert [text.partition(" has reached ")[2] for text in servers.warned] == [
        "budgets[0]: 0.000212 for EUR day",
        "budgets[1]: 0.000318 for EUR day",
    ]


async def test_an_estimate_that_stands_is_spent(servers: Servers) -> None:
    stack = servers.add(2 * COST, initial_output_tokens=3 * COST)
    stack.server.raises = RuntimeError("boom")
    for _ in range(2):
        with pytest.raises(RuntimeError):
            await stack.call()
        assert len(servers.warned) == 1


async def test_several_servers_and_a_reload_warn_once_of_an_amount(servers: Servers) -> None:
    before = counts_for(None).warnings["month"]
    stacks = [servers.add(2 * COST, period="month", server=name) for name in ("one", "two", "three")]
    for stack in [*stacks, *stacks]:
        await stack.call()
    assert len(servers.warned) == 1
    stacks = [servers.add(2 * COST, 6 * COST, 9 * COST, period="month", server=name) for name in ("one", "two")]
    for stack in stacks:
        await stack.call()
    assert [text.partition(" has reached ")[2] for text in servers.warned] == [
        "budgets[0]: 0.000212 for EUR month",
        "budgets[1]: 0.000636 for EUR month",
    ]
    assert counts_for(None).warnings["month"] - before == 2


async def test_a_call_that_ends_in_the_next_period_changes_nothing_of_it(servers: Servers) -> None:
    stack = servers.add(2 * COST)
    stack.server.gate.clear()
    late = asyncio.create_task(stack.call())
    await stack.server.entered.wait()
    servers.clock.now = DAY
    stack.server.gate.set()
    await stack.call()
    await late
    assert servers.warned == []
    await stack.call()
    assert len(servers.warned) == 1


async def test_replicas_warn_once_each(servers: Servers) -> None:
    with running_redis() as server:
        stacks = []
        for _ in range(2):
            servers.storage = RedisStorage(RedisConnection(server.url, budget=10.0), clock=servers.clock)
            stacks.append(servers.add(2 * COST, period="month"))
        await stacks[0].call()
        assert servers.warned == []
        for stack in (*stacks, *stacks, *stacks):
            await stack.call()
        assert len(servers.warned) == 2
        for stack in stacks:
            await stack.limiter.aclose()


async def test_who_was_warned_is_remembered_in_a_bounded_memory(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thresholds, "_MOST", 2)
    stack = servers.add(COST)
    for number in range(5):
        await stack.call(caller=f"agent-{number}")
    assert len(servers.warned) == 5
    assert len(thresholds.thresholds_for(servers.storage.budgets)._sums) == 2
    await stack.call(caller="agent-4")
    assert len(servers.warned) == 5
