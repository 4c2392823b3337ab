"""The arithmetic of two buckets, for any figures and any sequence of events."""

import heapq
import math
from random import Random

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.storage.bucket import (
    PATIENCE,
    Levels,
    Limit,
    Limits,
    Shortage,
    Turns,
    after_admission,
    after_refusal,
    full,
    refill,
    seconds_until_full,
    settle,
    take,
)
from mcp_middleware.storage.connection import Script

from .redis_server import RedisServer

limit = st.builds(
    Limit,
    capacity=st.integers(1, 10**6) | st.floats(1, 1e12),
    rate=st.floats(0.01, 1000) | st.floats(1e-9, 1e12),
)
limits = st.builds(Limits, requests=st.none() | limit, tokens=st.none() | limit)
moments = st.floats(0, 1e8)
pauses = st.floats(0, 100_000) | st.sampled_from([0.0, 0.001, 0.5, 1.0, 60.0])
Asked = tuple[Limits, Levels, float, float, Turns]
"""What somebody asks for: the limits, what is in the buckets, the time, the tokens, and who waits."""
costs = st.integers(0, 10**7) | st.floats(0, 1e7)


@st.composite
def states(draw: st.DrawFn) -> tuple[Limits, Levels, float]:
    """Limits, what is in the buckets (down to a deep debt), and the time a while later."""
    figures = draw(limits)
    at = draw(moments)

    def level(figure: Limit | None) -> float:
        return math.inf if figure is None else draw(st.floats(-2 * figure.capacity, figure.capacity))

    now = at + draw(pauses | st.floats(-1000, 0))
    return figures, (level(figures.requests), level(figures.tokens), at), now


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    """Any figures, with refused requests that are still to come back, have just, or will not any more."""
    figures, levels, now = draw(states())
    turns: Turns = ()
    if figures.tokens is not None and draw(st.booleans()):
        tokens = st.floats(1e-3, figures.tokens.capacity)
        told = st.floats(-7, 100_000).map(lambda seconds: now + seconds)
        turns = tuple(draw(st.lists(st.tuples(tokens, told, st.booleans()), max_size=4)))
    return figures, levels, now, draw(costs), turns


@st.composite
def crowds(draw: st.DrawFn) -> Asked:
    """Figures so close together that everybody is in everybody's way."""
    capacity = draw(st.sampled_from([10, 100]))
    requests = draw(st.none() | st.builds(Limit, capacity=st.integers(1, 10), rate=st.floats(0.1, 5)))
    figures = Limits(requests, Limit(capacity, draw(st.sampled_from([0.5, 1, 3.7, 10, 30]))))
    left = draw(st.integers(-10, 20))
    now = draw(st.sampled_from([0.0, 1.5, 1.79e9]))
    cost = st.integers(1, 20).map(lambda parts: capacity * parts / 20)
    told = st.integers(-10, draw(st.sampled_from([2, 20, 40]))).map(lambda halves: now + halves / 2)
    turns = draw(st.lists(st.tuples(cost, told, st.booleans()), min_size=1, max_size=8))
    levels = (math.inf if requests is None else draw(st.integers(-3, 1)), capacity * left / 20, now)
    return figures, levels, now, draw(cost), tuple(turns)


@given(asked() | crowds())
@example(
    (
        Limits(Limit(1, 1), Limit(329, 0.05)),
        (0.0, -657.0, 0.0),
        0.0,
        313.0,
        ((158.0, 1.0, True), (1.0, 19416.0, True)),  # the first runs out before it fits, and the other one is kept
    )
)
@settings(max_examples=1000)
def test_case_28_retry_after_is_exact_to_the_millisecond_and_to_the_second(asked: Asked) -> None:
    """Also where it is another request's turn, or its own that runs out."""
    figures, levels, now, cost, turns = asked
    answer = take(levels, figures, cost, now, turns)
    if not isinstance(answer, Shortage):
        return
    assert answer.retry_after_ms >= 1
    assert (answer.retry_after - 1) * 1000 < answer.retry_after_ms <= answer.retry_after * 1000
    turns = after_refusal(turns, levels, figures, cost, now)

    def fits_after(seconds: float) -> bool:
        return not isinstance(take(levels, figures, cost, now + seconds, turns), Shortage)

    assert fits_after(answer.retry_after_ms / 1000)
    assert not fits_after((answer.retry_after_ms - 1) / 1000)
    assert fits_after(answer.retry_after)
    assert not fits_after(answer.retry_after - 1)
    assert not any(fits_after(seconds) for seconds in range(min(answer.retry_after, 30)))


_TURNS = (
    Script("bucket.lua", "turns.lua").source
    + b"""
local level, capacity, rate, cost, now, turns = cmsgpack.unpack(ARGV[1])
local waiting = waiting_of(turns, now)
if fits(level, capacity, rate, cost) and not delays(waiting, level, capacity, rate, cost, now) then
  after_admission(waiting, cost, now)
  return cmsgpack.pack(waiting)
end
local after, is_new = after_refusal(waiting, level, capacity, rate, cost, now)
return cmsgpack.pack(is_new and after or turns)
"""
)


def test_turns_are_the_same_in_redis(shared_redis: RedisServer) -> None:
    with shared_redis.client() as client:

        @given(asked() | crowds())
        @settings(max_examples=300, deadline=None)
        def same(asked: Asked) -> None:
            figures, (_, level, _), now, cost, turns = asked
            limit = figures.tokens
            if limit is None:
                return
            cost = min(cost, limit.capacity)
            found = [(tokens, at, int(overtaken)) for tokens, at, overtaken in turns]
            words = (level, limit.capacity, limit.rate, cost, now, found)
            answer = client.eval(_TURNS, 0, b"".join(msgspec.msgpack.encode(word) for word in words))
            figures, levels = Limits(None, limit), (math.inf, level, now)
            refused = isinstance(take(levels, figures, cost, now, turns), Shortage)
            after = after_refusal(turns, levels, figures, cost, now) if refused else after_admission(turns, cost, now)
            assert msgspec.msgpack.decode(answer, type=Turns, strict=False) == after

        same()


def test_case_28_a_yes_that_ends_before_the_header_says_is_not_told() -> None:
    """In a full bucket less flows back before another's moment: 10 to 120 ms would do, and then not before its end."""
    figures, turns = Limits(None, Limit(100, 10)), ((40.0, 4.02, True),)
    answer = take((math.inf, 98.9, 0), figures, 99, 0, turns)
    assert isinstance(answer, Shortage)
    assert answer.retry_after_ms == 9020
    assert not isinstance(take((math.inf, 98.9, 0), figures, 99, answer.retry_after, turns), Shortage)


def test_case_28_a_turn_that_has_run_out_shortens_no_wait() -> None:
    figures = Limits(None, Limit(100, 10))
    levels: Levels = (math.inf, 10, 6.5)
    turns: Turns = ((20.0, 1.0, True), (100.0, 15.5, True))
    answer = take(levels, figures, 20, 6.5, turns)
    assert isinstance(answer, Shortage)
    turns = after_refusal(turns, levels, figures, 20, 6.5)
    assert isinstance(take(levels, figures, 20, 6.5 + (answer.retry_after_ms - 1) / 1000, turns), Shortage)
    assert not isinstance(take(levels, figures, 20, 6.5 + answer.retry_after_ms / 1000, turns), Shortage)


@given(st.floats(0.1, 1000), st.floats(0.3, 1), st.lists(st.tuples(st.floats(0, 2), st.floats(0, 0.4)), max_size=200))
def test_a_request_that_has_the_turn_is_not_delayed_by_small_ones(
    rate: float, size: float, steps: list[tuple[float, float]]
) -> None:
    """Whatever small requests come in between, the moment at which it fits stays."""
    figures = Limits(None, Limit(1000, rate))
    large = size * 1000
    levels: Levels = (math.inf, 0.0, 0.0)
    waiting = after_refusal(((large, 0.0, False),), levels, figures, large, 0.0)
    ((_, fits_at, overtaken),) = waiting
    assert overtaken
    now = 0.0
    for pause, part in steps:
        now += pause
        if now >= fits_at:
            break
        answer = take(levels, figures, part * large, now, waiting)
        if not isinstance(answer, Shortage):
            levels = answer
    assert not isinstance(take(levels, figures, large, max(now, fits_at), waiting), Shortage)


@given(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=4),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.2, 3)), max_size=4),
    st.floats(2, 10),
    st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_no_request_starves_that_waits_as_it_is_told(
    sizes: list[float], others: list[tuple[float, float]], refill_time: float, random: Random
) -> None:
    """Whatever requests of other sizes do, of those too that ask again and again and never wait."""
    figures = Limits(None, Limit(1000, 1000 / refill_time))
    polite: list[float] = []
    for size in sizes:
        if all(_differ(size * 1000, one) for one in polite):
            polite.append(size * 1000)
    rude = [(size * 1000, step) for size, step in others if all(_differ(size * 1000, one) for one in polite)]
    levels: Levels = (math.inf, 1000.0, 0.0)
    waiting: Turns = ()
    due = [(0.0, index, 0.0) for index in range(len(polite) + len(rude))]
    most = 3 * (refill_time + PATIENCE)
    while due:
        now, who, since = heapq.heappop(due)
        if now > 2 * most:
            continue
        is_polite = who < len(polite)
        cost, step = (polite[who], 0.5) if is_polite else rude[who - len(polite)]
        answer = take(levels, figures, cost, now, waiting)
        if isinstance(answer, Shortage):
            waiting = after_refusal(waiting, levels, figures, cost, now)
            told = now + answer.retry_after_ms / 1000
            assert not is_polite or told - since <= most
            heapq.heappush(
                due, (told + random.choice([0, random.random()]), who, since) if is_polite else (now + step, who, since)
            )
        else:
            levels, waiting = answer, after_admission(waiting, cost, now)
            heapq.heappush(due, (now + step, who, now + step))


def _differ(size: float, other: float) -> bool:
    return size >= 2 * other or other >= 2 * size


@given(limits, st.lists(st.tuples(pauses | st.floats(-100, 0), costs), max_size=60), moments)
def test_case_27_never_more_than_the_burst_and_the_rate(
    figures: Limits, steps: list[tuple[float, float]], start: float
) -> None:
    levels = full(figures, start)
    now = latest = start
    requests = tokens = 0.0
    for pause, cost in steps:
        now += pause
        latest = max(latest, now)
        answer = take(levels, figures, cost, now)
        if isinstance(answer, Shortage):
            continue
        levels = answer
        requests += 1
        tokens += cost if figures.tokens is None else min(cost, figures.tokens.capacity)
        for figure, used in ((figures.requests, requests), (figures.tokens, tokens)):
            if figure is not None:
                ceiling = figure.capacity + figure.rate * (latest - start)
                assert used <= ceiling * (1 + 1e-9) + figure.rate * 2e-6


@given(states(), costs, costs)
def test_settling_leaves_what_taking_the_truth_at_once_would_have(
    state: tuple[Limits, Levels, float], estimate: float, actual: float
) -> None:
    figures, levels, now = state
    answer = take(levels, figures, estimate, now)
    if isinstance(answer, Shortage):
        return
    taken = estimate if figures.tokens is None else min(estimate, figures.tokens.capacity)
    _, tokens, _ = settle(answer, figures, taken, actual, now)
    _, before, _ = refill(levels, figures, now)
    if figures.tokens is None:
        assert tokens == math.inf
    else:
        assert tokens == pytest.approx(min(before - actual, figures.tokens.capacity), rel=1e-9, abs=1e-3)


@given(states(), costs, costs, pauses)
def test_a_bucket_never_holds_more_than_its_capacity(
    state: tuple[Limits, Levels, float], taken: float, actual: float, pause: float
) -> None:
    figures, levels, now = state
    for requests, tokens, _ in (refill(levels, figures, now), settle(levels, figures, taken, actual, now + pause)):
        assert requests <= (math.inf if figures.requests is None else figures.requests.capacity)
        assert tokens <= (math.inf if figures.tokens is None else figures.tokens.capacity)


@given(states())
def test_a_clock_that_goes_back_refills_nothing(state: tuple[Limits, Levels, float]) -> None:
    figures, levels, now = state
    before = refill(levels, figures, now)
    assert refill(before, figures, before[2] - 1000) == before


@given(states())
def test_full_is_full_after_the_time_it_takes(state: tuple[Limits, Levels, float]) -> None:
    figures, levels, now = state
    current = refill(levels, figures, now)
    wait = seconds_until_full(current, figures, current[2])
    assert wait >= 0
    requests, tokens, _ = refill(current, figures, current[2] + wait)
    for level, figure in ((requests, figures.requests), (tokens, figures.tokens)):
        if figure is not None:
            assert level == pytest.approx(figure.capacity, rel=1e-9, abs=figure.rate * 1e-6)


@pytest.mark.parametrize("at", [0.0, 1e8, 1.9e9])
@pytest.mark.parametrize("debt", [0.0, 1e6, 1e12])
def test_case_28_a_wait_is_found_also_where_milliseconds_are_lost_in_rounding(at: float, debt: float) -> None:
    figures = Limits(None, Limit(1e12, 1e-9))
    answer = take((math.inf, -debt, at), figures, 1e12, at)
    assert isinstance(answer, Shortage)
    assert answer.retry_after_ms == pytest.approx((1e12 + debt) * 1e12, rel=1e-6)
    assert not isinstance(take((math.inf, -debt, at), figures, 1e12, at + answer.retry_after_ms / 1000), Shortage)


def test_a_clock_behind_the_last_moment_lengthens_the_wait() -> None:
    figures = Limits(Limit(10, 1), None)
    answer = take((0, math.inf, 100), figures, 0, 95)
    assert isinstance(answer, Shortage)
    assert answer.retry_after == 6


def test_what_takes_no_tokens_does_not_wait_for_a_debt_of_tokens() -> None:
    figures = Limits(Limit(10, 1), Limit(100, 1))
    assert take((10, -50, 0), figures, 0, 0) == (9, -50, 0)


@pytest.mark.parametrize("capacity", [0, 0.5, 1e13, math.inf, math.nan])
def test_an_impossible_capacity_is_refused(capacity: float) -> None:
    with pytest.raises(ConfigurationError, match=r"Limit.capacity is .*; it must be from 1 to 1e\+12"):
        Limit(capacity, 1)


@pytest.mark.parametrize("rate", [0, -1, 1e-10, 1e13, math.inf, math.nan])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(ConfigurationError, match=r"Limit.rate is .*; it must be from 1e-09 to 1e\+12"):
        Limit(1, rate)
