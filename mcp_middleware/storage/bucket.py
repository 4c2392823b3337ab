"""The arithmetic of two token buckets that admit together. Functions of values: no clock, no loop, no state.

A bucket has a capacity (the burst) and a rate at which it refills. A request takes one unit from the requests bucket
and its estimated tokens from the tokens bucket, both or neither. When the true number is known the difference is
given back or taken; that may leave a bucket in debt (below zero), which later refills pay off first.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from mcp_middleware.errors import ConfigurationError

__all__ = [
    "Dimension",
    "Levels",
    "Limit",
    "Limits",
    "Shortage",
    "full",
    "refill",
    "seconds_until_full",
    "settle",
    "shortage",
    "take",
    "takeable",
]

Dimension: TypeAlias = Literal["requests", "tokens"]

_TOLERANCE: Final = 1e-6
"""Seconds of refill that count as there: finer than any clock is read, coarser than the rounding of its sums."""

_MOST: Final = 1e12
_LEAST_RATE: Final = 1e-9
"""Figures beyond these lose whole units in the rounding of a sum."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One bucket's figures."""

    capacity: float
    """Units it holds when full: the burst. 1 to 1e12."""
    rate: float
    """Units that flow back per second. 1e-9 (one in 30 years) to 1e12."""

    def __post_init__(self) -> None:
        if not 1 <= self.capacity <= _MOST:
            raise ConfigurationError(f"Limit.capacity is {self.capacity!r}; it must be from 1 to {_MOST:g}")
        if not _LEAST_RATE <= self.rate <= _MOST:
            raise ConfigurationError(f"Limit.rate is {self.rate!r}; it must be from {_LEAST_RATE:g} to {_MOST:g}")


@dataclass(frozen=True, slots=True)
class Limits:
    """The two buckets' figures; None does not limit that dimension."""

    requests: Limit | None
    tokens: Limit | None


Levels: TypeAlias = tuple[float, float, float]
"""What the two buckets held at one moment: requests, tokens, and that moment in seconds by the storage's clock. A
dimension without a limit holds infinity."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a request does not fit now, by the dimension it has to wait for longest."""

    dimension: Dimension
    limit: int
    """Capacity of that bucket."""
    remaining: int
    """Whole units in it; 0 also when it is in debt."""
    retry_after_ms: int
    """The fewest milliseconds after which this request fits, if nothing else is taken before. At least 1."""

    @property
    def retry_after(self) -> int:
        """The same in whole seconds, rounded up: ``Retry-After`` (RFC 9110 section 10.2.3)."""
        return -(-self.retry_after_ms // 1000)


def full(limits: Limits, now: float) -> Levels:
    """Two full buckets."""
    return (
        math.inf if limits.requests is None else limits.requests.capacity,
        math.inf if limits.tokens is None else limits.tokens.capacity,
        now,
    )


def refill(levels: Levels, limits: Limits, now: float) -> Levels:
    """``levels`` as they are at ``now``. A clock that went back refills nothing until it has caught up."""
    requests, tokens, at = levels
    if now < at:
        now = at
    requests_limit, tokens_limit = limits.requests, limits.tokens
    # Spelled out rather than by calls of _level: this runs twice for every call an agent makes.
    if requests_limit is None:
        requests = math.inf
    else:
        requests += requests_limit.rate * (now - at)
        if requests > requests_limit.capacity:
            requests = requests_limit.capacity
    if tokens_limit is None:
        tokens = math.inf
    else:
        tokens += tokens_limit.rate * (now - at)
        if tokens > tokens_limit.capacity:
            tokens = tokens_limit.capacity
    return (requests, tokens, now)


def _level(level: float, limit: Limit, seconds: float) -> float:
    level += limit.rate * seconds
    return level if level < limit.capacity else limit.capacity


def take(levels: Levels, limits: Limits, tokens: float, now: float) -> Levels | Shortage:
    """Take one request and ``tokens`` tokens (as many as the bucket can hold at most), both or neither."""
    tokens = takeable(limits, tokens)
    there = refill(levels, limits, now)
    requests_there, tokens_there, at = there
    if (requests_there >= 1 or _fits(requests_there, limits.requests, 1)) and (
        tokens_there >= tokens or _fits(tokens_there, limits.tokens, tokens)
    ):
        return (requests_there - 1, tokens_there - tokens, at)
    return _shortage(levels, there, limits, tokens, now)


def takeable(limits: Limits, tokens: float) -> float:
    """``tokens``, or the bucket's capacity if that is less."""
    limit = limits.tokens
    return tokens if limit is None or tokens < limit.capacity else limit.capacity


def _fits(level: float, limit: Limit | None, cost: float) -> bool:
    # A request that takes nothing is not held up by another's debt.
    return limit is None or cost <= 0 or level + limit.rate * _TOLERANCE >= cost


def shortage(levels: Levels, limits: Limits, tokens: float, now: float) -> Shortage:
    """Why ``tokens`` tokens, which do not fit at ``now``, do not: for a store that has decided it by itself."""
    return _shortage(levels, refill(levels, limits, now), limits, takeable(limits, tokens), now)


def _shortage(levels: Levels, there: Levels, limits: Limits, tokens: float, now: float) -> Shortage:
    shortages: list[Shortage] = []
    dimensions: tuple[tuple[Dimension, float, float, Limit | None, float], ...] = (
        ("requests", levels[0], there[0], limits.requests, 1),
        ("tokens", levels[1], there[1], limits.tokens, tokens),
    )
    for dimension, level, level_there, limit, cost in dimensions:
        if limit is not None and not _fits(level_there, limit, cost):
            wait = _wait(level, levels[2], limit, cost, now)
            shortages.append(Shortage(dimension, int(limit.capacity), max(0, math.floor(level_there)), wait))
    return max(shortages, key=lambda shortage: shortage.retry_after_ms)


def _wait(level: float, at: float, limit: Limit, cost: float, now: float) -> int:
    """Milliseconds until ``cost`` fits into a bucket that held ``level`` at ``at``, at least 1.

    The quotient is only a first guess: the answer is the least number for which the very sum that will decide says
    yes, so that rounding can make it neither too short nor too long.
    """

    def fits_after(milliseconds: int) -> bool:
        later = max(at, now + milliseconds / 1000)
        return _fits(_level(level, limit, later - at), limit, cost)

    guess = max(1, math.ceil((at - now + (cost - level) / limit.rate) * 1000))
    if fits_after(guess) and not (guess > 1 and fits_after(guess - 1)):
        return guess
    too_short, enough = 0, guess
    while not fits_after(enough):
        too_short, enough = enough, enough * 2
    while enough - too_short > 1:
        middle = (too_short + enough) // 2
        if fits_after(middle):
            enough = middle
        else:
            too_short = middle
    return enough


def settle(levels: Levels, limits: Limits, taken: float, actual: float, now: float) -> Levels:
    """Put the ``actual`` tokens in place of the ``taken`` ones: the difference goes back, or is taken too."""
    requests, tokens, at = refill(levels, limits, now)
    tokens += taken - actual
    limit = limits.tokens
    return (requests, tokens if limit is None or tokens < limit.capacity else limit.capacity, at)


def seconds_until_full(levels: Levels, limits: Limits, now: float) -> float:
    """How long until nothing is left to remember: full buckets are as good as none. 0 when full."""
    requests, tokens, _ = refill(levels, limits, now)
    return max(
        0 if limits.requests is None else (limits.requests.capacity - requests) / limits.requests.rate,
        0 if limits.tokens is None else (limits.tokens.capacity - tokens) / limits.tokens.rate,
    )
