"""Tools for testing members and storages: a clock that a test moves, and what every limit storage must do.

A storage's own tests derive from ``LimitStorageContract`` in a class that pytest collects:

    class TestMyStorage(LimitStorageContract):
        def storage(self, clock): return MyStorage(clock=clock)

A storage with connections closes them itself, in a fixture of that class.
"""
# ruff: noqa: S101  # assertions are what these tests are made of

import asyncio
import math
from abc import ABC, abstractmethod

from .storage import Limit, Limits, LimitStorage, Reservation, Shortage

__all__ = ["FakeClock", "LimitStorageContract"]


class FakeClock:
    """A clock (``Clock``) that stands still until it is told to move. Seconds."""

    __slots__ = ("now",)

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds``; a negative number moves back, as a clock that is set does."""
        self.now += seconds


_AGENT = b"agent"
_OTHER = b"other"
_LIMITS = Limits(Limit(capacity=10, rate=1), Limit(capacity=1000, rate=10))
_WITH_A_TOOL = Limits(_LIMITS.requests, _LIMITS.tokens, parts=(("tool:a", Limits(Limit(3, 1), Limit(500, 1))),))
_TWO_AT_ONCE = Limits(_LIMITS.requests, _LIMITS.tokens, concurrency=2)


async def _admitted(storage: LimitStorage, tokens: float, limits: Limits = _LIMITS, key: bytes = _AGENT) -> Reservation:
    answer = await storage.reserve(key, limits, tokens)
    assert isinstance(answer, Reservation), answer
    return answer


async def _refused(storage: LimitStorage, tokens: float, limits: Limits = _LIMITS, key: bytes = _AGENT) -> Shortage:
    answer = await storage.reserve(key, limits, tokens)
    assert isinstance(answer, Shortage), answer
    return answer


class LimitStorageContract(ABC):
    """What every ``LimitStorage`` does. Reservations of ``storage`` must live longer than 100 and shorter than 10,000
    seconds; it must have room for 100 keys."""

    @abstractmethod
    def storage(self, clock: FakeClock) -> LimitStorage:
        """The storage to test, empty, with ``clock`` as its time."""

    async def test_a_burst_then_the_rate(self) -> None:
        clock = FakeClock()
        storage = self.storage(clock)
        for left in reversed(range(10)):
            assert (await _admitted(storage, 0)).remaining_requests == left
        assert (await _refused(storage, 0)).dimension == "requests"
        clock.advance(1)
        await _admitted(storage, 0)
        await _refused(storage, 0)

    async def test_both_or_neither(self) -> None:
        storage = self.storage(FakeClock())
        await _admitted(storage, 900)
        shortage = await _refused(storage, 200)
        assert (shortage.dimension, shortage.limit, shortage.remaining) == ("tokens", 1000, 100)
        after = await _admitted(storage, 100)  # the refused request took neither a request nor tokens
        assert (after.remaining_requests, after.remaining_tokens) == (8, 0)

    async def test_case_28_waiting_retry_after_is_enough_and_less_is_not(self) -> None:
        for tokens, wait in ((0, 1), (4, 1), (5, 1), (500, 50), (501, 51)):
            clock = FakeClock()
            storage = self.storage(clock)
            for _ in range(9):
                await _admitted(storage, 0)
            await _admitted(storage, 1000)
            shortage = await _refused(storage, tokens)
            assert shortage.retry_after == wait
            clock.advance(wait - 1)
            await _refused(storage, tokens)
            clock.advance(1)
            await _admitted(storage, tokens)

    async def test_the_longer_wait_is_told(self) -> None:
        storage = self.storage(FakeClock())
        for _ in range(10):
            await _admitted(storage, 100)
        assert (await _refused(storage, 5)).dimension == "requests"
        assert (await _refused(storage, 500)).dimension == "tokens"

    async def test_an_estimate_above_the_capacity_takes_what_there_can_be(self) -> None:
        storage = self.storage(FakeClock())
        reservation = await _admitted(storage, 5000)
        assert (reservation.tokens, reservation.remaining_tokens) == (1000, 0)

    async def test_settling_gives_back_what_was_not_used(self) -> None:
        storage = self.storage(FakeClock())
        await storage.settle(await _admitted(storage, 800), 300)
        assert (await _admitted(storage, 0)).remaining_tokens == 700

    async def test_settling_takes_what_was_used_beyond_and_leaves_a_debt(self) -> None:
        clock = FakeClock()
        storage = self.storage(clock)
        await storage.settle(await _admitted(storage, 900), 1500)
        shortage = await _refused(storage, 1)
        assert (shortage.remaining, shortage.retry_after_ms) == (0, 50_100)
        await _admitted(storage, 0)  # what takes no tokens does not wait for them
        clock.advance(51)
        await _admitted(storage, 1)

    async def test_case_30_settling_twice_counts_once(self) -> None:
        storage = self.storage(FakeClock())
        reservation = await _admitted(storage, 800)
        await storage.settle(reservation, 300)
        await storage.settle(reservation, 0)
        await storage.settle(reservation, 900)
        assert (await _admitted(storage, 0)).remaining_tokens == 700

    async def test_what_was_refused_for_another_reason_goes_back_whole(self) -> None:
        storage = self.storage(FakeClock())
        await _admitted(storage, 100, _WITH_A_TOOL)
        for _ in range(4):
            reservation = await _admitted(storage, 400, _WITH_A_TOOL)
            await storage.settle(reservation, 0, requests=0)
            await storage.settle(reservation, 0, requests=0)  # counts once
        after = await _admitted(storage, 0, _WITH_A_TOOL)
        assert (after.remaining_requests, after.remaining_tokens, after.parts) == (8, 900, ((0, 1, 400),))

    async def test_case_30_what_is_never_settled_stays_taken(self) -> None:
        clock = FakeClock()
        storage = self.storage(clock)
        await _admitted(storage, 800)
        clock.advance(10)
        assert (await _admitted(storage, 0)).remaining_tokens == 300

    async def test_case_30_an_expired_reservation_is_not_settled(self) -> None:
        clock = FakeClock()
        storage = self.storage(clock)
        slow = Limits(None, Limit(capacity=1000, rate=0.01))
        reservation = await _admitted(storage, 1000, slow)
        clock.advance(10_000)
        await storage.settle(reservation, 0)
        assert (await _admitted(storage, 0, slow)).remaining_tokens == 100

    async def test_a_refund_fills_no_bucket_beyond_its_capacity(self) -> None:
        clock = FakeClock()
        storage = self.storage(clock)
        reservation = await _admitted(storage, 800)
        clock.advance(99)
        await storage.settle(reservation, 0)
        assert (await _admitted(storage, 0)).remaining_tokens == 1000

    async def test_case_30_nonsense_is_no_number_of_tokens(self) -> None:
        storage = self.storage(FakeClock())
        reservation = await _admitted(storage, 800)
        for nonsense in (-1, float("nan"), float("inf"), float("-inf"), 10**400):
            for attempt in (storage.reserve(_AGENT, _LIMITS, nonsense), storage.settle(reservation, nonsense)):
                try:
                    await attempt
                except ValueError:
                    continue
                raise AssertionError(f"{nonsense} was taken for a number of tokens")
        assert (await _admitted(storage, 0)).remaining_tokens == 200

    async def test_case_30_a_debt_of_any_size_has_a_time_to_wait(self) -> None:
        for used in (1e12, 1e308):
            clock = FakeClock()
            storage = self.storage(clock)
            reservation = await _admitted(storage, 1000, key=b"%d" % used)
            await storage.settle(reservation, used)
            shortage = await _refused(storage, 1, key=b"%d" % used)
            assert shortage.remaining == 0
            clock.advance(shortage.retry_after_ms / 1000)
            await _admitted(storage, 1, key=b"%d" % used)

    async def test_keys_do_not_touch_each_other(self) -> None:
        storage = self.storage(FakeClock())
        for _ in range(10):
            await _admitted(storage, 100)
        await _refused(storage, 0)
        assert (await _admitted(storage, 0, key=_OTHER)).remaining_tokens == 1000

    async def test_a_dimension_without_a_limit(self) -> None:
        storage = self.storage(FakeClock())
        for _ in range(20):
            await storage.settle(await _admitted(storage, 50, Limits(None, Limit(1000, 1))), 50)
        assert (await _refused(storage, 1, Limits(None, Limit(1000, 1)))).dimension == "tokens"
        for _ in range(10):
            reservation = await _admitted(storage, 10**9, Limits(Limit(10, 1), None), _OTHER)
            await storage.settle(reservation, 10**9)
        assert (await _refused(storage, 0, Limits(Limit(10, 1), None), _OTHER)).dimension == "requests"

    async def test_changed_limits_keep_what_was_used(self) -> None:
        clock = FakeClock()
        storage = self.storage(clock)
        await _admitted(storage, 900)
        smaller = await _admitted(storage, 0, Limits(Limit(5, 1), Limit(50, 10)))
        assert (smaller.remaining_requests, smaller.remaining_tokens) == (4, 50)
        larger = await _admitted(storage, 0)
        assert (larger.remaining_requests, larger.remaining_tokens) == (3, 50)

    async def test_a_limit_that_is_put_back_gives_no_burst(self) -> None:
        clock = FakeClock()
        storage = self.storage(clock)
        for key, limits in ((_AGENT, Limits(Limit(10, 1), None)), (_OTHER, Limits(None, Limit(1000, 10)))):
            for _ in range(10):
                await _admitted(storage, 100, limits, key)
            without = await _admitted(storage, 500, Limits(None, None), key)
            assert (without.remaining_requests, without.remaining_tokens) == (math.inf, math.inf)
            assert await storage.settle(without, 10_000) == math.inf
            assert (await _refused(storage, 10, limits, key)).retry_after_ms == 1000
            clock.advance(1)
            await _admitted(storage, 10, limits, key)

    async def test_who_has_no_limit_takes_no_time_from_one_of_the_others(self) -> None:
        clock = FakeClock()
        storage = self.storage(clock)
        free = Limits(None, None)
        await storage.settle(await _admitted(storage, 1000), 900)
        for _ in range(10):
            clock.advance(1)
            await _admitted(storage, 500, free)
        under_way = await _admitted(storage, 200)
        await _admitted(storage, 500, free)
        await storage.settle(under_way, 100)
        after = await _admitted(storage, 0)
        assert (after.remaining_requests, after.remaining_tokens) == (8, 100)

    async def test_what_began_without_a_limit_gives_nothing_to_one_that_is_new(self) -> None:
        storage = self.storage(FakeClock())
        free = [await _admitted(storage, 500, Limits(None, None)) for _ in range(3)]
        await _admitted(storage, 600)
        assert await storage.settle(free[0], 0, requests=0) == math.inf
        assert await storage.settle(free[1], 900) == math.inf
        assert await storage.top_up(free[2], 900) == math.inf
        after = await _admitted(storage, 0)
        assert (after.remaining_requests, after.remaining_tokens) == (8, 400)

    async def test_a_clock_that_goes_back_gives_nothing(self) -> None:
        clock = FakeClock()
        storage = self.storage(clock)
        for _ in range(10):
            await _admitted(storage, 100)
        for _ in range(5):
            clock.advance(-11)
            await _refused(storage, 0)
            clock.advance(11)
            await _refused(storage, 0)
        clock.advance(1)
        await _admitted(storage, 0)

    async def test_changed_limits_hold_for_what_is_settled_later(self) -> None:
        storage = self.storage(FakeClock())
        reservation = await _admitted(storage, 900)
        larger = Limits(Limit(20, 1), Limit(5000, 10))
        await _admitted(storage, 0, larger)
        await storage.settle(reservation, 0)
        assert (await _admitted(storage, 0, larger)).remaining_tokens == 1000

    async def test_a_long_pause_fills_both_buckets(self) -> None:
        clock = FakeClock()
        storage = self.storage(clock)
        await storage.settle(await _admitted(storage, 1000), 2000)
        clock.advance(10**7)
        after = await _admitted(storage, 1000)
        assert (after.remaining_requests, after.remaining_tokens) == (9, 0)

    async def test_fractions_are_kept_to_the_last_digit(self) -> None:
        clock = FakeClock(1_790_000_000.123_456_7)
        storage = self.storage(clock)
        limits = Limits(Limit(60, 60 / 7), Limit(50_000, 50_000 / 3))
        for _ in range(20):
            await storage.settle(await _admitted(storage, 1000 / 3, limits), 100 / 7)
            clock.advance(0.000_1)
        exact, tokens = 60.0, 50_000.0
        at = now = 1_790_000_000.123_456_7
        for _ in range(20):
            exact = min(60.0, exact + 60 / 7 * (now - at)) - 1
            tokens = min(50_000.0, tokens + 50_000 / 3 * (now - at)) - 1000 / 3
            at = now
            tokens = min(50_000.0, tokens + (1000 / 3 - 100 / 7))
            now += 0.000_1
        after = await _admitted(storage, 0, limits)
        assert after.remaining_requests == min(60.0, exact + 60 / 7 * (now - at)) - 1
        assert after.remaining_tokens == min(50_000.0, tokens + 50_000 / 3 * (now - at))

    async def test_a_part_has_buckets_of_its_own_on_top(self) -> None:
        storage = self.storage(FakeClock())
        for left in reversed(range(3)):
            reservation = await _admitted(storage, 100, _WITH_A_TOOL)
            assert [kept[1] for kept in reservation.parts] == [left]
        shortage = await _refused(storage, 0, _WITH_A_TOOL)
        assert (shortage.part, shortage.dimension, shortage.limit) == ("tool:a", "requests", 3)
        after = await _admitted(storage, 0)  # refused as a whole; other tools go on
        assert (after.remaining_requests, after.remaining_tokens) == (6, 700)

    async def test_a_part_takes_no_more_than_it_can_hold(self) -> None:
        storage = self.storage(FakeClock())
        reservation = await _admitted(storage, 800, _WITH_A_TOOL)
        assert (reservation.tokens, reservation.parts) == (800, ((500, 2, 0),))
        await storage.settle(reservation, 600)
        assert (await _refused(storage, 1, _WITH_A_TOOL)).part == "tool:a"
        await storage.settle(await _admitted(storage, 0), 0)
        assert (await _admitted(storage, 0)).remaining_tokens == 400

    async def test_the_longest_wait_of_all_parts_is_told(self) -> None:
        storage = self.storage(FakeClock())
        await _admitted(storage, 500, _WITH_A_TOOL)
        shortage = await _refused(storage, 300, _WITH_A_TOOL)
        assert (shortage.part, shortage.retry_after) == ("tool:a", 300)
        await _admitted(storage, 500)
        shortage = await _refused(storage, 1, _WITH_A_TOOL)
        assert (shortage.part, shortage.retry_after) == ("tool:a", 1)

    async def test_no_more_requests_are_open_at_once_than_allowed(self) -> None:
        storage = self.storage(FakeClock())
        open_requests = [await _admitted(storage, 10, _TWO_AT_ONCE) for _ in range(2)]
        assert [one.remaining_concurrency for one in open_requests] == [1, 0]
        shortage = await _refused(storage, 10, _TWO_AT_ONCE)
        assert (shortage.dimension, shortage.limit, shortage.remaining, shortage.retry_after) == (
            "concurrency",
            2,
            0,
            1,
        )
        await _admitted(storage, 10, _TWO_AT_ONCE, _OTHER)
        await storage.settle(open_requests[0], 10)
        await storage.settle(open_requests[0], 10)
        third = await _admitted(storage, 10, _TWO_AT_ONCE)
        await _refused(storage, 10, _TWO_AT_ONCE)
        await storage.settle(third, None)
        after = await _admitted(storage, 10, _TWO_AT_ONCE)
        assert (after.remaining_requests, after.remaining_tokens) == (6, 960)

    async def test_of_two_equal_waits_that_for_a_bucket_is_told(self) -> None:
        storage = self.storage(FakeClock())
        limits = Limits(Limit(1, 1), None, concurrency=1)
        await _admitted(storage, 0, limits)
        shortage = await _refused(storage, 0, limits)
        assert (shortage.dimension, shortage.retry_after_ms) == ("requests", 1000)

    async def test_case_30_settling_with_nothing_lets_the_estimate_stand(self) -> None:
        storage = self.storage(FakeClock())
        reservation = await _admitted(storage, 800)
        await storage.settle(reservation, None)
        await storage.settle(reservation, 0)
        assert (await _admitted(storage, 0)).remaining_tokens == 200

    async def test_a_request_under_way_is_topped_up_and_may_go_into_debt(self) -> None:
        storage = self.storage(FakeClock())
        reservation = await _admitted(storage, 300)
        assert await storage.top_up(reservation, 400) == 300
        assert await storage.top_up(reservation, 400) == -100
        assert reservation.tokens == 1100
        await storage.settle(reservation, 1050)
        assert await storage.top_up(reservation, 500) == math.inf
        assert (await _refused(storage, 1)).retry_after == 6

    async def test_small_requests_do_not_starve_a_large_one_that_waits_as_told(self) -> None:
        clock = FakeClock()
        storage = self.storage(clock)
        limits = Limits(None, Limit(1000, 10))
        await _admitted(storage, 1000, limits)
        told = (await _refused(storage, 900, limits)).retry_after
        assert told == 90
        for _ in range(told):  # small ones overtake it
            clock.advance(1)
            await _admitted(storage, 10, limits)
        told = (await _refused(storage, 900, limits)).retry_after
        assert told == 90
        for _ in range(told - 1):  # now it has the turn
            clock.advance(1)
            await _refused(storage, 10, limits)
        clock.advance(1)
        await _admitted(storage, 900, limits)
        assert (await _refused(storage, 10, limits)).retry_after == 1

    async def test_a_turn_ends_when_its_request_does_not_come_back(self) -> None:
        clock = FakeClock()
        storage = self.storage(clock)
        limits = Limits(None, Limit(1000, 10))
        await _admitted(storage, 1000, limits)
        await _refused(storage, 400, limits)
        clock.advance(40)
        await _admitted(storage, 200, limits)
        await _refused(storage, 400, limits)
        wait = (await _refused(storage, 100, limits)).retry_after
        clock.advance(wait - 1)
        await _refused(storage, 100, limits)
        clock.advance(1)
        await _admitted(storage, 100, limits)

    async def test_a_turn_that_was_used_is_over_though_the_clock_went_back(self) -> None:
        clock = FakeClock()
        storage = self.storage(clock)
        limits = Limits(None, Limit(1000, 10))
        await _admitted(storage, 1000, limits)
        await _refused(storage, 400, limits)
        clock.advance(40)
        await _admitted(storage, 200, limits)
        await _refused(storage, 400, limits)
        clock.advance(20)
        await _admitted(storage, 0, limits)
        clock.advance(-1)
        await _admitted(storage, 400, limits)
        clock.advance(2)
        await _admitted(storage, 10, limits)

    async def test_what_does_not_delay_the_one_whose_turn_it_is_goes_on(self) -> None:
        clock = FakeClock()
        storage = self.storage(clock)
        limits = Limits(None, Limit(1000, 10))
        await _admitted(storage, 1000, limits)
        await _refused(storage, 400, limits)
        clock.advance(40)
        reservation = await _admitted(storage, 200, limits)
        await _refused(storage, 400, limits)
        await storage.settle(reservation, 100)
        await _admitted(storage, 100, limits)
        await _refused(storage, 1, limits)
        await _admitted(storage, 0, limits)
        clock.advance(20)
        await _admitted(storage, 400, limits)

    async def test_none_of_several_starves_that_waits_as_told(self) -> None:
        """Requests of three sizes that come back when they are told to, beside one that asks again and again."""
        clock = FakeClock()
        storage = self.storage(clock)
        limits = Limits(None, Limit(100, 10))
        due, since = dict.fromkeys((80, 40, 20), clock()), dict.fromkeys((80, 40, 20), clock())
        for _ in range(240):
            await storage.reserve(_AGENT, limits, 5)
            for tokens, moment in due.items():
                if clock() >= moment:
                    answer = await storage.reserve(_AGENT, limits, tokens)
                    due[tokens] = clock() + (0.5 if isinstance(answer, Reservation) else answer.retry_after)
                    if isinstance(answer, Reservation):
                        since[tokens] = due[tokens]
                    assert due[tokens] - since[tokens] <= 40
            clock.advance(0.5)

    async def test_closing_twice_does_no_harm(self) -> None:
        storage = self.storage(FakeClock())
        await _admitted(storage, 0)
        await storage.aclose()
        await storage.aclose()

    async def test_case_27_concurrent_callers_get_no_more_than_the_burst(self) -> None:
        storage = self.storage(FakeClock())
        answers = await asyncio.gather(*(storage.reserve(_AGENT, _LIMITS, 30) for _ in range(100)))
        assert sum(isinstance(answer, Reservation) for answer in answers) == 10
        answers = await asyncio.gather(*(storage.reserve(_OTHER, _LIMITS, 300) for _ in range(100)))
        assert sum(isinstance(answer, Reservation) for answer in answers) == 3
