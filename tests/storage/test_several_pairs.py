"""What is told to a request that several pairs of buckets have to admit."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_middleware.storage import Limit, Limits, MemoryStorage, Reservation, Shortage
from mcp_middleware.storage.bucket import Levels, Turns, after_refusal, longest, take
from mcp_middleware.testing import FakeClock

from .test_bucket import Asked, crowds

Pair = tuple[Limits, Levels, Turns]


def at_moment(asked: Asked, now: float) -> Pair:
    """The same, as if it were ``now``."""
    figures, (requests, left, at), then, _, turns = asked
    moved = tuple((tokens, told - then + now, overtaken) for tokens, told, overtaken in turns)
    return figures, (requests, left, at - then + now), moved


@given(st.lists(crowds(), min_size=2, max_size=3), st.integers(1, 100))
@settings(max_examples=300)
def test_case_28_all_pairs_admit_who_has_waited_as_long_as_told(several: list[Asked], cost: float) -> None:
    now = several[0][2]
    pairs = [at_moment(asked, now) for asked in several]
    answers = [take(levels, figures, cost, now, turns) for figures, levels, turns in pairs]
    shortages = [answer for answer in answers if isinstance(answer, Shortage)]
    if not shortages:
        return
    told = longest(shortages, pairs, cost, now)
    assert told.retry_after_ms >= max(one.retry_after_ms for one in shortages)
    after = [(figures, levels, after_refusal(turns, levels, figures, cost, now)) for figures, levels, turns in pairs]
    for seconds in (told.retry_after_ms / 1000, told.retry_after):
        for figures, levels, turns in after:
            assert not isinstance(take(levels, figures, cost, now + seconds, turns), Shortage)


async def test_case_28_a_wait_for_one_pair_does_not_end_in_a_turn_of_another() -> None:
    """The principal's own requests are short for two seconds, and by then it is a large request's turn at the tool."""
    clock = FakeClock()
    storage = MemoryStorage(clock=clock)
    limits = Limits(Limit(1, 0.5), None, parts=(("tool:a", Limits(None, Limit(100, 10))),))
    first = await storage.reserve(b"a", limits, 60)
    assert isinstance(first, Reservation)
    assert isinstance(await storage.reserve(b"a", limits, 90), Shortage)
    clock.advance(6)
    assert isinstance(await storage.reserve(b"a", limits, 10), Reservation)
    assert isinstance(await storage.reserve(b"a", limits, 100), Shortage)
    await storage.settle(first, 0)
    told = await storage.reserve(b"a", limits, 10)
    assert isinstance(told, Shortage)
    clock.advance(told.retry_after)
    assert isinstance(await storage.reserve(b"a", limits, 10), Reservation)
