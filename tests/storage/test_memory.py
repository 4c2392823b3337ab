"""Buckets in memory: the contract of every storage, and the bound on what is kept."""

import tracemalloc
from dataclasses import replace

import pytest

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.storage import Limit, Limits, MemoryStorage, Reservation, Shortage
from mcp_middleware.testing import FakeClock, LimitStorageContract

LIMITS = Limits(Limit(60, 1), Limit(50_000, 50_000 / 60))
SLOW = Limits(Limit(1, 0.001), None)
DEEP = Limits(Limit(60, 0.001), Limit(50_000, 0.001))


class TestMemoryStorage(LimitStorageContract):
    def storage(self, clock: FakeClock) -> MemoryStorage:
        return MemoryStorage(max_keys=1000, clock=clock)


def key(number: int) -> bytes:
    return number.to_bytes(20, "big")


async def reserve(storage: MemoryStorage, name: bytes, tokens: float = 0, limits: Limits = LIMITS) -> Reservation:
    answer = await storage.reserve(name, limits, tokens)
    assert isinstance(answer, Reservation)
    return answer


async def test_case_26_invented_keys_are_bounded() -> None:
    storage = MemoryStorage(max_keys=500, clock=FakeClock())
    for number in range(20_000):
        await reserve(storage, key(number), 1000)
        assert len(storage) <= 500


async def test_case_26_a_key_takes_less_than_a_kibibyte() -> None:
    clock = FakeClock()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        storage = MemoryStorage(max_keys=5000, clock=clock)
        for number in range(5000):
            clock.advance(0.0001)
            await reserve(storage, key(number), 1000.5)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(storage) == 5000
    assert taken < 5000 * 1024


async def test_case_26_a_flood_of_keys_does_not_refill_the_one_that_used_most() -> None:
    storage = MemoryStorage(max_keys=100, clock=FakeClock())
    for _ in range(60):
        await reserve(storage, b"greedy")
    for number in range(5000):
        await reserve(storage, key(number))
    assert isinstance(await storage.reserve(b"greedy", LIMITS, 0), Shortage)


async def test_case_26_nobody_gets_rid_of_a_debt_by_a_flood_of_keys() -> None:
    clock = FakeClock()
    storage = MemoryStorage(max_keys=100, clock=clock)
    await storage.settle(await reserve(storage, b"debtor", 50_000), 100_000)
    spent = await storage.reserve(b"spent", replace(LIMITS, parts=(("tool:a", SLOW),)), 0)
    assert isinstance(spent, Reservation)
    for number in range(5000):
        await storage.reserve(key(number), DEEP, 50_000)
    assert b"debtor" not in storage._buckets
    shortage = await storage.reserve(b"debtor", LIMITS, 1)
    assert isinstance(shortage, Shortage)
    assert shortage.retry_after_ms >= 60_000
    assert isinstance(await storage.reserve(b"spent", replace(LIMITS, parts=(("tool:a", SLOW),)), 0), Shortage)
    strangers = [await storage.reserve(b"stranger %d" % number, LIMITS, 1) for number in range(100)]
    assert sum(isinstance(answer, Shortage) for answer in strangers) <= 5
    clock.advance(1000)
    await reserve(storage, b"debtor", 1)


async def test_case_26_what_is_remembered_of_many_keys_has_one_size() -> None:
    storage = MemoryStorage(max_keys=1000, clock=FakeClock())
    for number in range(3000):
        await reserve(storage, key(number), 1000)
    tracemalloc.start()
    try:
        for number in range(3000, 13_000):
            await reserve(storage, key(number), 1000)
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(storage) == 1000
    assert grown < 1000 * 1024  # the thousand keys that are kept, made anew


async def test_full_buckets_are_let_go_first_and_nothing_is_forgotten_by_it() -> None:
    clock = FakeClock()
    storage = MemoryStorage(max_keys=10, clock=clock)
    for number in range(9):
        await reserve(storage, key(number))
    clock.advance(1)  # these nine are full again
    await reserve(storage, b"busy", 50_000)
    for number in range(100, 108):
        await reserve(storage, key(number))
    assert len(storage) <= 10
    assert (await reserve(storage, b"busy")).remaining_tokens == 0


@pytest.mark.parametrize("of_a_tool", [False, True])
async def test_full_buckets_for_which_a_request_waits_are_not_let_go(of_a_tool: bool) -> None:
    """Else newcomers would take a large request its turn, again and again."""
    clock = FakeClock()
    storage = MemoryStorage(clock=clock)
    limits = Limits(None, Limit(100, 100))
    if of_a_tool:
        limits = Limits(None, None, parts=(("tool:a", limits),))
    await reserve(storage, b"agent", 1, limits)
    for number, small in enumerate([Reservation, Shortage]):  # the first overtakes it, then it has the turn
        assert isinstance(await storage.reserve(b"agent", limits, 100), Shortage)
        clock.advance(1)
        await reserve(storage, key(number))
        assert isinstance(await storage.reserve(b"agent", limits, 5), small)
    await reserve(storage, b"agent", 100, limits)
    clock.advance(10)
    await reserve(storage, key(2))
    await reserve(storage, key(3))
    assert len(storage) == 2


async def test_case_44_idle_keys_do_not_pile_up() -> None:
    clock = FakeClock()
    storage = MemoryStorage(clock=clock)
    for number in range(1000):
        await reserve(storage, key(number), 100)
    clock.advance(60)
    for number in range(600):
        await reserve(storage, key(10_000 + number), 100)
    assert len(storage) == 600


async def test_a_debt_outlives_the_bucket_it_was_made_in() -> None:
    clock = FakeClock()
    storage = MemoryStorage(clock=clock)
    long_call = await reserve(storage, b"agent", 100)
    clock.advance(600)
    await reserve(storage, b"other")  # lets go of the full bucket
    assert len(storage) == 1
    await storage.settle(long_call, 100_000)
    shortage = await storage.reserve(b"agent", LIMITS, 1)
    assert isinstance(shortage, Shortage)
    assert shortage.dimension == "tokens"


async def test_case_26_a_part_does_not_outlive_its_principal() -> None:
    clock = FakeClock()
    storage = MemoryStorage(max_keys=2, clock=clock)
    with_a_tool = replace(LIMITS, parts=(("tool:a", Limits(None, Limit(500, 0.01))),))
    long_call = await reserve(storage, b"agent", 800, with_a_tool)
    for number in range(5):
        await reserve(storage, key(number), 50_000, DEEP)
    await storage.settle(long_call, 700)  # less than was taken of its own, more than of the tool's
    assert len(storage) == 2
    assert b"agent" not in storage._parts
    shortage = await storage.reserve(b"agent", with_a_tool, 1)
    assert isinstance(shortage, Shortage)
    assert shortage.part == "tool:a"
    assert shortage.retry_after_ms > 1000
    assert storage._parts.keys() <= storage._buckets.keys()


async def test_a_refund_to_a_bucket_let_go_keeps_nothing() -> None:
    clock = FakeClock()
    storage = MemoryStorage(clock=clock)
    call = await reserve(storage, b"agent", 100)
    clock.advance(600)
    await reserve(storage, b"other")
    await storage.settle(call, 0)
    assert len(storage) == 1


@pytest.mark.parametrize("max_keys", [0, -1, 1.5, True, "10", None])
def test_a_wrong_bound_is_refused(max_keys: object) -> None:
    with pytest.raises(ConfigurationError, match=r"MemoryStorage: max_keys is .*; it must be"):
        MemoryStorage(max_keys=max_keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("lifetime", [0, -1, float("inf"), float("nan"), True, "1h"])
def test_a_wrong_lifetime_is_refused(lifetime: object) -> None:
    with pytest.raises(ConfigurationError, match=r"MemoryStorage: reservation_lifetime is .*; it must be"):
        MemoryStorage(reservation_lifetime=lifetime)  # type: ignore[arg-type]
