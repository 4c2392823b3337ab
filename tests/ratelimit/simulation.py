"""Agents that call without pause, in simulated time: what a limiter lets through, and what it should have.

Beside ours a *post-paid* one, as gateways in front of models have it: a call is let through while anything is left, and
what it took is subtracted when it has ended. ``python -m tests.ratelimit.simulation`` prints the table of the docs.
"""

import asyncio
import heapq
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from mcp_middleware.ratelimit.forecast import Forecast
from mcp_middleware.storage import Limit, Limits, MemoryStorage, Reservation
from mcp_middleware.testing import FakeClock

__all__ = ["LIMITS", "Figures", "Ours", "PostPaid", "simulate"]

LIMITS = Limits(Limit(400, 20), Limit(300_000, 5_000))
INPUT = 200
START = 1000
"""The estimate of an output before any was seen."""
IN_FLIGHT = 160


@dataclass
class Figures:
    """What was let through."""

    requests: int = 0
    requests_over: float = 0.0
    """The most by which requests were above burst + rate x time, at any moment."""
    tokens: float = 0.0
    tokens_over: float = 0.0
    """The same of tokens, as a part of what was allowed until then."""
    tokens_over_at_the_end: float = 0.0
    """The same when the time was over."""
    tokens_over_by: float = 0.0
    """The most tokens above burst + rate x time, at any moment."""
    under: float = 0.0
    """The most by which calls in flight together had been under-estimated."""


class Limiter(Protocol):
    """Lets a call through and is told its end, or says how long to wait."""

    async def admit(self) -> tuple[object, float] | float:
        """What to settle with the estimated tokens, or seconds to wait."""
        ...

    async def settle(self, admitted: object, output: int) -> None:
        """The call has ended."""
        ...


class Ours:
    """Reserve, then settle."""

    def __init__(self, clock: FakeClock) -> None:
        self.storage = MemoryStorage(clock=clock)
        self.forecast = Forecast()

    async def admit(self) -> tuple[object, float] | float:
        estimate = INPUT + self.forecast.guess("agent", "tool", START)
        answer = await self.storage.reserve(b"agent", LIMITS, estimate)
        if isinstance(answer, Reservation):
            return answer, estimate
        return answer.retry_after_ms / 1000

    async def settle(self, admitted: object, output: int) -> None:
        assert isinstance(admitted, Reservation)
        await self.storage.settle(admitted, INPUT + output)
        self.forecast.add("agent", "tool", output)


class PostPaid:
    """Subtract what a call took when it has ended; until then it has taken nothing."""

    def __init__(self, clock: FakeClock) -> None:
        self.storage = MemoryStorage(clock=clock)

    async def admit(self) -> tuple[object, float] | float:
        answer = await self.storage.reserve(b"agent", LIMITS, 1)
        if isinstance(answer, Reservation):
            return answer, 0.0
        return answer.retry_after_ms / 1000

    async def settle(self, admitted: object, output: int) -> None:
        assert isinstance(admitted, Reservation)
        await self.storage.settle(admitted, INPUT + output)


async def simulate(make: Callable[[FakeClock], Limiter], *, seed: int, seconds: float = 60.0) -> Figures:
    """``IN_FLIGHT`` callers of one agent; a call takes half a second to two, and its answer about 1,000 tokens."""
    random, clock, figures = Random(seed), FakeClock(0.0), Figures()
    limiter = make(clock)
    events: list[tuple[float, int, Callable[[], Awaitable[None]]]] = []
    serial = under = 0.0

    def later(wait: float, what: Callable[[], Awaitable[None]]) -> None:
        nonlocal serial
        serial += 1
        heapq.heappush(events, (clock() + wait, int(serial), what))

    async def call() -> None:
        nonlocal under
        admitted = await limiter.admit()
        if isinstance(admitted, float):
            later(math.ceil(admitted), call)
            return
        token, estimate = admitted
        output = min(20_000, round(random.lognormvariate(math.log(900), 0.5)))
        missing = max(0.0, INPUT + output - estimate)
        under += missing
        figures.under = max(figures.under, under)
        figures.requests += 1
        figures.tokens += INPUT + output
        assert LIMITS.requests is not None
        assert LIMITS.tokens is not None
        allowed = LIMITS.requests.capacity + LIMITS.requests.rate * clock()
        figures.requests_over = max(figures.requests_over, figures.requests - allowed)
        allowed = LIMITS.tokens.capacity + LIMITS.tokens.rate * clock()
        figures.tokens_over = max(figures.tokens_over, figures.tokens / allowed - 1)
        figures.tokens_over_by = max(figures.tokens_over_by, figures.tokens - allowed)

        async def end() -> None:
            nonlocal under
            under -= missing
            await limiter.settle(token, output)
            await call()

        later(random.uniform(0.5, 2.0), end)

    for _ in range(IN_FLIGHT):
        later(random.uniform(0, 0.1), call)
    while events and events[0][0] < seconds:
        clock.now, _, what = heapq.heappop(events)
        await what()
    assert LIMITS.tokens is not None
    figures.tokens_over_at_the_end = figures.tokens / (LIMITS.tokens.capacity + LIMITS.tokens.rate * seconds) - 1
    return figures


def main() -> None:
    """The table."""
    for make in (Ours, PostPaid):
        runs = [asyncio.run(simulate(make, seed=seed)) for seed in range(10)]
        over = [run.tokens_over for run in runs]
        ends = [run.tokens_over_at_the_end for run in runs]
        requests = max(run.requests_over for run in runs)
        print(
            f"{make.__name__}: tokens {min(over):+.1%} to {max(over):+.1%} at worst, "
            f"{min(ends):+.1%} to {max(ends):+.1%} at the end; requests {requests:+.0f}"
        )


if __name__ == "__main__":
    main()
