"""Budgets: what is spent, in memory and in Redis alike, by whom, and until when."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.ratelimit.budgets import Budget, Budgets, Purse, Threshold, overspent
from mcp_middleware.storage import RedisConnection
from mcp_middleware.storage.budgets import (
    BudgetStorage,
    MemoryBudgets,
    Overspending,
    RedisBudgets,
    Spending,
    Wallet,
    end_of_period,
)
from mcp_middleware.testing import FakeClock
from tests.storage.redis_server import RedisServer, running_redis
from tests.support import until

NOON = datetime(2026, 7, 28, 12, tzinfo=UTC).timestamp()
MIDNIGHT = datetime(2026, 7, 29, tzinfo=UTC).timestamp()
AUGUST = datetime(2026, 8, 1, tzinfo=UTC).timestamp()
DAY = Wallet("EUR day", "day", 100)
MONTH = Wallet("EUR month", "month", 250)
KEY = b"agent"
NAME = b"test:budget:{" + KEY.hex().encode() + b"}"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOON)


class Stores:
    """Replicas of one Redis, each on a connection of its own."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.connections: list[RedisConnection] = []

    def make(self, clock: FakeClock | None = None, *, budget: float = 10.0, **options: Any) -> RedisBudgets:
        self.connections.append(RedisConnection(self.server.url, budget=budget))
        return RedisBudgets(self.connections[-1], prefix=b"test", clock=clock, **options)

    async def aclose(self) -> None:
        for connection in self.connections:
            await connection.aclose()


@pytest.fixture
async def stores(server: RedisServer) -> AsyncIterator[Stores]:
    server.flush()
    made = Stores(server)
    yield made
    await made.aclose()


@pytest.fixture
async def own() -> AsyncIterator[Stores]:
    """On a server that the test may harm."""
    with running_redis() as running:
        made = Stores(running)
        yield made
        await made.aclose()


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, clock: FakeClock) -> BudgetStorage:
    if request.param == "memory":
        return MemoryBudgets(clock=clock)
    made: RedisBudgets = request.getfixturevalue("stores").make(clock)
    return made


async def spend(store: BudgetStorage, nanos: int, *wallets: Wallet, key: bytes = KEY) -> Spending:
    answer = await store.spend(key, wallets or (DAY, MONTH), nanos)
    assert isinstance(answer, Spending), answer
    return answer


async def refused(store: BudgetStorage, nanos: int, *wallets: Wallet, key: bytes = KEY) -> Overspending:
    answer = await store.spend(key, wallets or (DAY, MONTH), nanos)
    assert isinstance(answer, Overspending), answer
    return answer


async def test_an_amount_is_taken_from_all_wallets_or_from_none(store: BudgetStorage) -> None:
    assert (await spend(store, 60)).spent == (60, 60)
    assert (await refused(store, 41)) == Overspending(DAY, 60, (12 * 3600) * 1000)
    assert (await spend(store, 40)).spent == (100, 100)
    assert (await spend(store, 0)).spent == (100, 100)
    assert (await spend(store, 100, key=b"other")).spent == (100, 100)


async def test_what_a_call_cost_takes_the_place_of_its_estimate_once(store: BudgetStorage) -> None:
    first = await spend(store, 60)
    assert await store.settle(first, 10) == (10, 10)
    assert await store.settle(first, 90) == (None, None)
    second = await spend(store, 90)
    assert await store.settle(second, 200) == (210, 210)
    assert (await refused(store, 1)).spent == 210


async def test_a_period_ends_by_the_calendar_of_utc(store: BudgetStorage, clock: FakeClock) -> None:
    await spend(store, 100)
    clock.now = MIDNIGHT - 0.001
    assert (await refused(store, 1)).retry_after_ms == 1
    clock.now = MIDNIGHT
    assert (await spend(store, 100)).spent == (100, 200)
    clock.now += 24 * 3600
    answer = await refused(store, 60)
    assert (answer.wallet, answer.spent) == (MONTH, 200)
    assert answer.retry_after_ms == (AUGUST - clock.now) * 1000
    clock.now = AUGUST
    assert (await spend(store, 60)).spent == (60, 60)


async def test_a_call_belongs_to_the_period_in_which_it_began(store: BudgetStorage, clock: FakeClock) -> None:
    spending = await spend(store, 60)
    clock.now = MIDNIGHT
    assert await store.settle(spending, 10) == (None, 10)
    assert (await spend(store, 5)).spent == (5, 15)
    late = await spend(store, 5)
    clock.now = AUGUST
    assert await store.settle(late, 50) == (None, None)
    assert (await spend(store, 1)).spent == (1, 1)


async def test_a_clock_that_goes_back_gives_no_new_period(store: BudgetStorage, clock: FakeClock) -> None:
    clock.now = MIDNIGHT
    await spend(store, 100)
    clock.now = NOON
    assert (await refused(store, 1)).retry_after_ms == 36 * 3600 * 1000
    clock.now = MIDNIGHT + 1
    await refused(store, 1)


async def test_the_wallet_that_has_to_be_waited_for_longest_is_named(store: BudgetStorage) -> None:
    spending = await spend(store, 0)
    await store.settle(spending, 250)
    assert (await refused(store, 1)).wallet == MONTH


async def test_an_estimate_above_all_there_is_locks_nobody_out(store: BudgetStorage) -> None:
    assert (await spend(store, 1000)).spent == (1000, 1000)
    await refused(store, 1)


async def test_a_wallet_without_a_most_only_adds_up(store: BudgetStorage) -> None:
    endless = Wallet("EUR day", "day", None)
    for sum_ in (10**15, 2 * 10**15):
        assert (await spend(store, 10**15, endless)).spent == (sum_,)


async def test_sums_of_one_name_are_one_and_of_two_currencies_two(store: BudgetStorage) -> None:
    await spend(store, 100, DAY)
    await refused(store, 1, DAY._replace(most=100))
    assert (await spend(store, 1, DAY._replace(most=101))).spent == (101,)
    assert (await spend(store, 1, DAY._replace(name="USD day"))).spent == (1,)


async def test_both_stores_keep_the_same_sums(stores: Stores) -> None:
    random, clock = Random(7), FakeClock(NOON)
    memory, shared = MemoryBudgets(clock=clock), stores.make(clock)
    under_way: list[tuple[Spending, Spending]] = []
    for _ in range(400):
        clock.now += random.choice([0, 1, 3600, 40_000])
        if under_way and random.random() < 0.5:
            one, other = under_way.pop(random.randrange(len(under_way)))
            nanos = random.randrange(60)
            assert await memory.settle(one, nanos) == await shared.settle(other, nanos)
            continue
        wallets = random.choice([(DAY,), (MONTH,), (DAY, MONTH)])
        nanos, key = random.randrange(60), random.choice([b"a", b"b"])
        here, there = await memory.spend(key, wallets, nanos), await shared.spend(key, wallets, nanos)
        if isinstance(here, Overspending) or isinstance(there, Overspending):
            assert here == there
        else:
            assert (here.until, here.spent) == (there.until, there.spent)
            under_way.append((here, there))


async def test_the_scripts_calendar_is_the_libraries(stores: Stores) -> None:
    random, clock = Random(3), FakeClock()
    shared = stores.make(clock)
    moments = [datetime(year, month, 28 + month % 2, tzinfo=UTC) for year in (1999, 2000, 2024) for month in (1, 2, 3)]
    seconds = [int(moment.timestamp()) for moment in moments] + [random.randrange(2**33) for _ in range(150)]
    for number, now in enumerate(seconds):
        for clock.now in (now, now // 86400 * 86400, now // 86400 * 86400 - 0.5):
            spending = await spend(shared, 1, key=b"%d %d" % (number, clock.now * 2))
            assert spending.until == (end_of_period("day", clock.now), end_of_period("month", clock.now))


async def test_a_sum_stays_at_the_most_that_redis_adds_up(own: Stores, clock: FakeClock) -> None:
    store, rest, most = own.make(clock), Wallet("VND month", "month", None), 2**63 - 1
    sums = [await spend(store, 4 * 10**18, rest) for _ in range(4)]
    assert [one.spent for one in sums] == [(4 * 10**18,), (8 * 10**18,), (most,), (most,)]
    assert await store.settle(sums[-1], 10**18) == (most - 3 * 10**18,)
    assert await store.settle(sums[-2], 10**19) == (most,)
    beyond = await spend(store, 10**30, rest)
    assert beyond.spent == (most,)
    own.server.kill()
    assert (await spend(store, 10**19, rest)).local
    own.server.start()
    assert await own.connections[0].connect()
    answer = await spend(store, 1, rest)
    assert (answer.spent, answer.local) == ((most,), False)
    assert await store.settle(beyond, 0) == (0,)


async def test_replicas_share_a_budget_to_the_last_billionth(stores: Stores) -> None:
    replicas = [stores.make() for _ in range(4)]
    most = 10**18
    wallet = Wallet("EUR month", "month", most)
    await spend(replicas[0], most - 100, wallet)
    answers = await asyncio.gather(*(replicas[number % 4].spend(KEY, (wallet,), 3) for number in range(160)))
    taken = [one for one in answers if isinstance(one, Spending)]
    # Redis compares as doubles, whose steps are 128 here, and adds whole numbers.
    assert len(taken) * 3 <= 100 + 128
    await asyncio.gather(*(replicas[0].settle(one, 1) for one in taken))
    with stores.server.client() as client:
        assert client.hget(NAME, "EUR month") == b"%d" % (most - 100 + len(taken))


async def test_replicas_share_a_small_budget_exactly(stores: Stores) -> None:
    replicas = [stores.make() for _ in range(4)]
    answers = await asyncio.gather(*(replicas[number % 4].spend(KEY, (DAY,), 3) for number in range(160)))
    assert sum(isinstance(one, Spending) for one in answers) == 33


async def test_redis_forgets_what_has_ended(stores: Stores) -> None:
    await spend(stores.make(), 1)
    with stores.server.client() as client:
        left = client.pttl(NAME)
        assert isinstance(left, int)
        assert 0 < left <= 32 * 24 * 3600 * 1000


async def test_a_store_that_lost_its_data_starts_from_what_is_remembered(stores: Stores, clock: FakeClock) -> None:
    first, second = stores.make(clock), stores.make(clock)
    under_way = await spend(first, 60)
    stores.server.flush()
    await refused(first, 50)
    stores.server.flush()
    assert await first.settle(under_way, 70) == (70, 70)
    assert (await spend(second, 10)).spent == (80, 80)


async def test_a_call_that_ends_after_the_loss_does_not_stand_for_all_that_was_spent(
    stores: Stores, clock: FakeClock
) -> None:
    store = stores.make(clock)
    await spend(store, 80)
    under_way = await spend(store, 10)
    stores.server.flush()
    assert await store.settle(under_way, 12) == (92, 92)
    await refused(store, 9)


async def test_after_a_loss_the_replica_that_remembers_most_is_believed(stores: Stores, clock: FakeClock) -> None:
    knows_little, knows_most, knows_much = (stores.make(clock) for _ in range(3))
    await spend(knows_little, 1)
    await spend(knows_much, 40)
    under_way = await spend(knows_most, 30)
    stores.server.flush()
    assert (await spend(knows_little, 2)).spent == (3, 3)
    assert await knows_most.settle(under_way, 25) == (68, 68)  # 1 + 40 + 25, and the 2 since
    assert (await spend(knows_much, 4)).spent == (72, 72)
    assert (await spend(knows_little, 0)).spent == (72, 72)
    clock.now = MIDNIGHT
    assert (await spend(knows_little, 0)).spent == (0, 72)
    stores.server.flush()
    assert (await spend(knows_much, 0)).spent == (0, 72)  # what it knows of yesterday is over
    assert (await spend(knows_little, 0)).spent == (0, 72)


async def test_after_a_loss_one_that_remembers_nothing_may_come_first(stores: Stores, clock: FakeClock) -> None:
    knows_nothing, knows_all = stores.make(clock), stores.make(clock)
    await spend(knows_all, 40)
    stores.server.flush()
    assert (await spend(knows_nothing, 2)).spent == (2, 2)
    assert (await spend(knows_all, 4)).spent == (46, 46)
    assert (await spend(knows_nothing, 0)).spent == (46, 46)


async def test_a_settled_call_lets_no_other_budget_be_forgotten_early(stores: Stores) -> None:
    store = stores.make()
    under_way = await spend(store, 1)
    stores.server.flush()
    await spend(store, 1, MONTH)
    await store.settle(under_way, 2)
    with stores.server.client() as client:
        left, ends = client.pttl(NAME), client.hget(NAME, "EUR month:until")
        assert isinstance(left, int)
        assert isinstance(ends, bytes)
        assert abs(int(ends) - (time.time() + left / 1000)) < 60


async def test_without_the_store_each_replica_counts_for_all(own: Stores, clock: FakeClock) -> None:
    store = own.make(clock, replicas=4)
    await spend(store, 20)
    own.server.kill()
    taken = []
    for _ in range(2):
        taken.append(await spend(store, 10))
    assert all(one.local for one in taken)
    assert (await refused(store, 10)).local
    assert await store.settle(taken[0], 5) == (None, None)
    own.server.start()
    assert await own.connections[0].connect()
    assert (await spend(store, 1)).spent == (36, 36)


async def test_what_is_owed_of_a_period_that_is_over_is_not_told(own: Stores, clock: FakeClock) -> None:
    store = own.make(clock)
    await spend(store, 20)
    own.server.kill()
    await spend(store, 30)
    clock.now = MIDNIGHT
    own.server.start()
    assert await own.connections[0].connect()
    assert (await spend(store, 1)).spent == (1, 51)


async def test_memory_is_bounded(clock: FakeClock, stores: Stores) -> None:
    for store in (MemoryBudgets(max_keys=50, clock=clock), stores.make(clock, max_keys=50)):
        for number in range(200):
            await spend(store, 1, key=b"%d" % number)
    memory = MemoryBudgets(max_keys=50, clock=clock)
    await spend(memory, 99, key=b"rich")
    for number in range(200):
        await spend(memory, 1, key=b"%d" % number)
    assert len(memory) == 50
    assert (await refused(memory, 2, key=b"rich")).spent == 99


def budgets(*option: Any) -> Budgets:
    return Budgets("limiter: budgets", option, currency="EUR")


def test_every_budget_that_matches_holds_and_the_least_refuses() -> None:
    made = budgets(
        {"agents": ["batch-*"], "period": "month", "amount": 50.00},
        {"period": "month", "amount": "20.5", "agents": ["batch-x", "x"]},
        {"period": "month", "amount": 10, "action": "warn"},
        Budget("day", 1, agents=["batch-*"], action="warn"),
    )
    month = Wallet("EUR month", "month", 20_500_000_000)
    assert made.purse("x") == Purse((month,), (Threshold(0, 10_000_000_000, "budgets[2]"),), ("budgets[1]",))
    assert made.purse("batch-x") == Purse(
        (Wallet("EUR day", "day", None), month),
        (Threshold(0, 1_000_000_000, "budgets[3]"), Threshold(1, 10_000_000_000, "budgets[2]")),
        (None, "budgets[1]"),
    )
    assert made.purse("other") == Purse(
        (month._replace(most=None),), (Threshold(0, 10_000_000_000, "budgets[2]"),), (None,)
    )
    assert budgets({"agents": ["a"], "period": "day", "amount": 1}).purse("A") is None


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 500))
def test_each_threshold_is_reached_by_exactly_one_call(costs: list[int], threshold: int) -> None:
    purse = budgets({"period": "day", "amount": f"0.{threshold:09d}", "action": "warn"}).purse("a")
    assert purse is not None
    spent, seen = 0, 0
    for cost in costs:
        seen += len(purse.reached((spent,), (spent + cost,)))
        spent += cost
    assert seen == (spent >= threshold)
    assert purse.reached((None,), (10**9,)) == []
    assert purse.reached((0,), (None,)) == []


def test_a_refusal_says_until_when() -> None:
    purse = budgets({"period": "month", "amount": 0.5}).purse("a")
    assert purse is not None
    rejection = overspent(Overspending(purse.wallets[0], 499_999_000, 3_600_001), purse, "EUR")
    assert (rejection.status, rejection.reason, rejection.rule) == (429, "budget_spent", "budgets[0]")
    assert rejection.headers == ((b"retry-after", b"3601"),)
    assert rejection.data == {
        **{"dimension": "budget", "period": "month", "currency": "EUR", "limit": 0.5, "remaining": 0.000001},
        "retryAfterMs": 3_600_001,
    }


@given(st.floats(0, 2**34), st.sampled_from(["day", "month"]))
def test_a_period_ends_after_its_moments(now: float, period: Any) -> None:
    end = end_of_period(period, now)
    assert 0 < end - now <= (86400 if period == "day" else 31 * 86400)
    moment = datetime.fromtimestamp(end, UTC)
    assert (moment.hour, moment.minute, moment.second) == (0, 0, 0)
    assert period == "day" or moment.day == 1
    assert end_of_period(period, math.nextafter(end, 0)) in (end, end_of_period(period, end))


AMOUNTS: list[Any] = [0, -1, None, True, "many", 10**10, 0.0000000001, float("nan"), []]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ([], "limiter: budgets is (); it must be a list of budgets"),
        ([7], "limiter: budgets[0] is 7; it must be a mapping with period, amount, agents, action"),
        ([{"period": "day"}], "limiter: budgets[0]: 'amount' is missing"),
        ([{"amount": 1}], "limiter: budgets[0]: 'period' is missing"),
        (
            [{"period": "day", "amount": 1, "agent": "x"}],
            "'agent' is not known; allowed are period, amount, agents, action",
        ),
        ([{"period": "week", "amount": 1}], "limiter: budgets[0]: period is 'week'; it must be 'day' or 'month'"),
        ([{"period": ["day"], "amount": 1}], "period is ['day']; it must be 'day' or 'month'"),
        ([{"period": "day", "amount": 1, "action": "stop"}], "action is 'stop'; it must be 'refuse' or 'warn'"),
        ([{"period": "day", "amount": 1, "agents": "x"}], "agents is 'x'; it must be a list of globs"),
        ([{"period": "day", "amount": 1, "agents": []}], "agents is []; it must be a list of globs"),
        *(([{"period": "day", "amount": amount}], "amount is ") for amount in AMOUNTS),
    ],
)
def test_a_wrong_budget_is_refused_with_its_place(option: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        budgets(*option)
    assert said in str(error.value)


async def test_what_is_settled_without_the_store_is_told_to_it_later(own: Stores, clock: FakeClock) -> None:
    store = own.make(clock)
    first = await spend(store, 60)
    own.server.kill()
    assert (await spend(store, 10)).local
    assert await store.settle(first, 20) == (None, None)
    own.server.start()
    assert await own.connections[0].connect()
    assert (await spend(store, 1)).spent == (31, 31)


async def test_a_call_that_a_paused_store_comes_to_too_late_is_not_charged_twice(own: Stores) -> None:
    store = own.make(budget=0.2)
    await spend(store, 1)
    own.server.pause()
    assert (await spend(store, 10)).local
    own.server.resume()
    assert await own.connections[0].connect()
    assert (await spend(store, 1)).spent == (12, 12)


async def test_a_store_that_answers_too_late_has_taken_nothing(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores.make()
    await spend(store, 1)
    with monkeypatch.context() as late:
        late.setattr(stores.connections[0], "deadline", lambda: 1.0)
        assert (await spend(store, 10)).local
    assert (await spend(store, 1)).spent == (12, 12)


async def test_a_store_that_never_was_there_is_done_without(clock: FakeClock, own: Stores) -> None:
    own.server.kill()
    store = own.make(clock, replicas=2)
    assert (await spend(store, 50)).local
    assert (await refused(store, 1)).local
    clock.now = MIDNIGHT
    assert (await spend(store, 50, DAY)).local


async def test_what_was_owed_is_owed_still_when_its_caller_went_away(own: Stores, clock: FakeClock) -> None:
    store = own.make(clock)
    await spend(store, 1)
    own.server.kill()
    await spend(store, 10)
    own.server.start()  # without the scripts, so that the first command does nothing but say so
    assert await own.connections[0].connect()
    asking = asyncio.create_task(store.spend(KEY, (DAY, MONTH), 5))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait({asking})
    link: Any = own.connections[0]._link
    await until(lambda: not link._waiting)  # so it is known that nothing was told
    assert (await spend(store, 0)).spent == (11, 11)
