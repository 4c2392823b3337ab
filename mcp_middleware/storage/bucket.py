"""The arithmetic of two token buckets that admit together. Functions of values: no clock, no loop, no state.

A bucket has a capacity (the burst) and a rate at which it refills. A request takes one unit from the requests bucket
and its estimated tokens from the tokens bucket, both or neither. When the true number is known the difference is
given back or taken; that may leave a bucket in debt (below zero), which later refills pay off first.

**Turns.** A request that waits as long as it was told could find its tokens taken by others of the same agent, again
and again. So a pair of buckets remembers refused requests in the order in which they came: the tokens of each, and the
moment that it was told. One that is refused once more at that moment or soon after has been overtaken, and is given a
*turn*: until it is admitted, or has not come back for ``PATIENCE`` seconds, no other request is let through that would
delay it, but for those whose turns are older. So each of them can hold it up once, and nothing else can. Requests have
no names: those less than a factor of two apart are taken for each other, one of them is remembered, and whichever asks
first is let through. Whoever does not come back as told holds nobody up, and every refusal is still told the exact
time, turns included.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from mcp_middleware.errors import ConfigurationError

__all__ = [
    "AT_ONCE",
    "Dimension",
    "Levels",
    "Limit",
    "Limits",
    "Shortage",
    "Turns",
    "after_admission",
    "after_refusal",
    "filling",
    "full",
    "longest",
    "refill",
    "remaining",
    "seconds_until_full",
    "settle",
    "take",
    "takeable",
]

Dimension: TypeAlias = Literal["requests", "tokens", "concurrency"]

_TOLERANCE: Final = 1e-6
"""Seconds of refill that count as there: finer than any clock is read, coarser than the rounding of its sums."""

PATIENCE: Final = 5.0
"""Seconds beyond the told time within which a refused request that comes back is recognized, and its turn is kept."""

_MOST_TURNS: Final = 8
"""Refused requests that are remembered; each is another size."""

AT_ONCE: Final = 1000
"""Milliseconds to wait for one of the agent's own requests to end; when it will, nobody knows."""

_MOST: Final = 1e12
_LEAST_RATE: Final = 1e-9
"""Figures beyond these lose whole units in the rounding of a sum."""
_DEEPEST: Final = -1e15
"""The deepest debt: beyond it nothing is paid off, and the time that it takes is soon no number any more."""


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
    concurrency: int | None = None
    """Requests of one key that may be open at once."""
    parts: tuple[tuple[str, "Limits"], ...] = ()
    """More pairs of buckets of the same key, by name, for a part of what it asks for: a tool's, a server's. A request
    takes from all of them or from none. Their own ``concurrency`` and ``parts`` are not looked at."""


Levels: TypeAlias = tuple[float, float, float]
"""What the two buckets held at one moment: requests, tokens, and that moment in seconds by the storage's clock. A
dimension that never had a limit holds infinity; one whose limit was taken away fills on, and nothing is taken."""

Turns: TypeAlias = tuple[tuple[float, float, bool], ...]
"""Refused requests, the oldest first: the tokens of each, the moment at which it fits, and whether others have
overtaken it, so that it has a turn."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a request does not fit now, by the dimension it has to wait for longest."""

    dimension: Dimension
    limit: int
    """Capacity of that bucket."""
    remaining: int
    """Whole units in it; 0 also when it is in debt."""
    retry_after_ms: int
    """The fewest milliseconds after which this request fits, and fits after ``retry_after`` too, if nothing else is
    taken before. At least 1. For ``concurrency`` a guess."""
    part: str | None = None
    """The part of ``Limits`` that is short; None for the key's own buckets."""
    local: bool = False
    """Whether a replica decided it by itself, its store being away."""

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
    # Spelled out twice rather than by calls: this runs twice for every call an agent makes.
    if requests_limit is not None:
        requests += requests_limit.rate * (now - at)
        if requests > requests_limit.capacity:
            requests = requests_limit.capacity
    if tokens_limit is not None:
        tokens += tokens_limit.rate * (now - at)
        if tokens > tokens_limit.capacity:
            tokens = tokens_limit.capacity
    return (requests, tokens, now)


def filling(limits: Limits, before: Limits) -> Limits:
    """The figures by which buckets fill: those of before where a limit was taken away. So one that is put back, or that
    only some of those who use the buckets have, has lost no time."""
    if before is limits or (limits.requests is not None and limits.tokens is not None):
        return limits
    return Limits(limits.requests or before.requests, limits.tokens or before.tokens)


def remaining(levels: Levels, limits: Limits) -> tuple[float, float]:
    """What is left of requests and of tokens; infinity without a limit."""
    requests, tokens, _ = levels
    return (math.inf if limits.requests is None else requests, math.inf if limits.tokens is None else tokens)


def take(
    levels: Levels, limits: Limits, tokens: float, now: float, turns: Turns = (), fill: Limits | None = None
) -> Levels | Shortage:
    """Take one request and ``tokens`` tokens (as many as the bucket can hold at most), both or neither. ``fill``: see
    ``filling``."""
    tokens = takeable(limits, tokens)
    there = refill(levels, fill or limits, now)
    requests_there, tokens_there, at = there
    if turns:
        turns = _waiting(turns, at)
    if (
        (requests_there >= 1 or _fits(requests_there, limits.requests, 1))
        and (tokens_there >= tokens or _fits(tokens_there, limits.tokens, tokens))
        and not (turns and _delays(turns, tokens_there, limits.tokens, tokens, at))
    ):
        return (
            requests_there if limits.requests is None else requests_there - 1,
            tokens_there if limits.tokens is None else tokens_there - tokens,
            at,
        )
    return _shortage(levels, there, limits, tokens, now, turns)


def longest(
    shortages: Sequence[Shortage], pairs: Sequence[tuple[Limits, Levels, Turns]], tokens: float, now: float
) -> Shortage:
    """Of the shortages in several pairs of buckets the one to wait for longest; and longer, where it is somebody's turn
    in another pair by then."""
    last = max(shortages, key=lambda one: one.retry_after_ms)
    if len(pairs) == 1 or not any(turns for *_, turns in pairs):
        return last
    waiting = [(limits, levels, after_refusal(turns, levels, limits, tokens, now)) for limits, levels, turns in pairs]
    wait = last.retry_after_ms
    for _ in range(_MOST_TURNS * len(pairs)):
        for after in (wait, -(-wait // 1000) * 1000):
            answers = (take(levels, limits, tokens, now + after / 1000, turns) for limits, levels, turns in waiting)
            more = max((one.retry_after_ms for one in answers if isinstance(one, Shortage)), default=0)
            if more:
                break
        else:
            break
        wait = after + more
    return replace(last, retry_after_ms=wait)


def takeable(limits: Limits, tokens: float) -> float:
    """``tokens``, or the bucket's capacity if that is less."""
    limit = limits.tokens
    return tokens if limit is None or tokens < limit.capacity else limit.capacity


def _fits(level: float, limit: Limit | None, cost: float) -> bool:
    # A request that takes nothing is not held up by another's debt.
    return limit is None or cost <= 0 or level + limit.rate * _TOLERANCE >= cost


def _is_alike(tokens: float, others: float) -> bool:
    """An estimate may differ from the last one of the same request, which must not lose its turn by it."""
    return tokens < others * 2 and others < tokens * 2


def _waiting(turns: Turns, now: float) -> Turns:
    """Without those who have not come back: the same that is remembered of a refusal, which is told by it."""
    return tuple(turn for turn in turns if now < turn[1] + PATIENCE)


def _own(turns: Turns, tokens: float, now: float) -> int:
    """Which turn is that of a request that comes now; their number if none is."""
    for index, (others, at, overtaken) in enumerate(turns):
        if overtaken and now + _TOLERANCE >= at and _is_alike(tokens, others):
            return index
    return len(turns)


def _delays(turns: Turns, level: float, limit: Limit | None, cost: float, now: float) -> bool:
    """Whether taking ``cost`` now would make one of those who wait wait longer whose turn is older than its own."""
    if limit is None or cost <= 0:
        return False
    for tokens, at, overtaken in turns[: _own(turns, cost, now)]:
        if overtaken:
            left = level - cost
            if at > now:
                left += limit.rate * (at - now)
            if left + limit.rate * _TOLERANCE < min(tokens, limit.capacity):
                return True
    return False


def _fits_at(turns: Turns, level: float, limit: Limit, cost: float, now: float) -> float:
    """The moment from which on ``cost`` fits and delays nobody whose turn is older, if nothing happens until then."""
    fits_at = now + max(0.0, (cost - level) / limit.rate)
    for tokens, at, overtaken in turns[: _own(turns, cost, now)]:
        both = tokens + cost
        if overtaken and level + limit.rate * (at - now) < both:  # at that moment; later, or never
            ends_at = at + PATIENCE
            if both <= limit.capacity:
                ends_at = min(ends_at, now + (both - level) / limit.rate)
            fits_at = max(fits_at, ends_at)
    return fits_at


def after_admission(turns: Turns, tokens: float, now: float) -> Turns:
    """What is remembered of refused requests once one with ``tokens`` was admitted: not that one."""
    turns = _waiting(turns, now)
    for index, (others, at, overtaken) in enumerate(turns):
        if _is_alike(tokens, others) and (not overtaken or now + _TOLERANCE >= at):
            return turns[:index] + turns[index + 1 :]
    return turns


def after_refusal(turns: Turns, levels: Levels, limits: Limits, tokens: float, now: float) -> Turns:
    """What is remembered of refused requests after this one, which may be short of tokens or not."""
    limit = limits.tokens
    tokens = takeable(limits, tokens)
    _, level, at = refill(levels, limits, now)
    waiting = _waiting(turns, at)
    if limit is None or (_fits(level, limit, tokens) and not _delays(waiting, level, limit, tokens, at)):
        return turns
    fits_at = _fits_at(waiting, level, limit, tokens, at)
    for index, (others, told, _) in enumerate(waiting):
        if _is_alike(tokens, others):
            if at + _TOLERANCE < told:
                return turns
            return (*waiting[:index], (tokens, fits_at, True), *waiting[index + 1 :])
    return turns if len(waiting) == _MOST_TURNS else (*waiting, (tokens, fits_at, False))


def _shortage(levels: Levels, there: Levels, limits: Limits, tokens: float, now: float, turns: Turns) -> Shortage:
    requests, left, at = levels
    starts = [at - now]
    for limit, level, cost in ((limits.requests, requests, 1), (limits.tokens, left, tokens)):
        if limit is not None and cost > 0:
            starts[0] = max(starts[0], at - now + (cost - min(level, limit.capacity)) / limit.rate)
    if turns and limits.tokens is not None:
        turns = after_refusal(turns, levels, limits, tokens, now)  # as it will find them when it comes back
        left = min(left, limits.tokens.capacity)
        for others, told, overtaken in turns:
            if overtaken:
                both_at = at + (others + tokens - left) / limits.tokens.rate
                starts += (told - now, told + PATIENCE - now, both_at - now)

    def fits_after(milliseconds: int) -> bool:
        later = max(at, now + milliseconds / 1000)
        requests, left, _ = refill(levels, limits, later)
        return (
            _fits(requests, limits.requests, 1)
            and _fits(left, limits.tokens, tokens)
            and not (turns and _delays(_waiting(turns, later), left, limits.tokens, tokens, later))
        )

    wait = _wait(fits_after, starts)
    requests, *_ = refill(levels, limits, max(at, now + (wait - 1) / 1000))
    last = 1 if _fits(requests, limits.requests, 1) else 0
    dimension: Dimension = "tokens" if last else "requests"
    return Shortage(dimension, int(full(limits, now)[last]), max(0, math.floor(there[last])), wait)


def _wait(fits_after: Callable[[int], bool], starts: list[float]) -> int:
    """Milliseconds until a request fits, at least 1. ``starts``: after how many seconds all of it is there, and at what
    else it may begin to fit.

    Those are only first guesses: the answer is the least number for which the very sums that will decide say yes, so
    that rounding can make it neither too short nor too long. Where it is somebody's turn a yes may end: with the turn,
    or in a full bucket, where what is taken closer to another's moment has less time to flow back. So the first whole
    second with a yes is found, which the header tells, and then the least number within it.
    """
    too_short, enough = 0, max(1, math.ceil(starts[0] * 1000))
    if len(starts) > 1:
        later = [start + by for start in starts if start >= starts[0] for by in (-_TOLERANCE, _TOLERANCE)]
        seconds = sorted({max(1, math.ceil(start)) for start in later})
        whole = next((second for second in seconds if fits_after(second * 1000)), seconds[-1])
        before = max((second for second in seconds if second < whole), default=0)
        whole = _least(lambda second: fits_after(second * 1000), before, whole) * 1000
        too_short = whole - 1000
        if not (too_short < enough < whole and fits_after(enough)):
            enough = whole
    return _least(fits_after, too_short, enough)


def _least(is_enough: Callable[[int], bool], too_short: int, enough: int) -> int:
    """The least number that is enough, above one that is too short, from a guess on."""
    while not is_enough(enough):
        too_short, enough = enough, enough + 2 * (enough - too_short)
    guess = enough - 1
    while enough - too_short > 1:
        if is_enough(guess):
            enough = guess
        else:
            too_short = guess
        guess = (too_short + enough) // 2
    return enough


def settle(levels: Levels, limits: Limits, taken: float, actual: float, now: float, *, requests: int = 1) -> Levels:
    """Put the ``actual`` tokens in place of the ``taken`` ones: the difference goes back, or is taken too. With 0
    ``requests`` the request goes back as well."""
    requests_there, tokens, at = refill(levels, limits, now)
    limit = limits.tokens
    if limit is not None:
        tokens += taken - actual
        if tokens > limit.capacity:
            tokens = limit.capacity
        elif tokens < _DEEPEST:
            tokens = _DEEPEST
    if not requests and limits.requests is not None:
        requests_there = min(requests_there + 1, limits.requests.capacity)
    return (requests_there, tokens, at)


def seconds_until_full(levels: Levels, limits: Limits, now: float, turns: Turns = ()) -> float:
    """How long until nothing is left to remember: full buckets for which nobody waits are as good as none. 0 then."""
    requests, tokens, _ = refill(levels, limits, now)
    return max(
        max((at + PATIENCE - now for _, at, _ in turns), default=0),
        0 if limits.requests is None else (limits.requests.capacity - requests) / limits.requests.rate,
        0 if limits.tokens is None else (limits.tokens.capacity - tokens) / limits.tokens.rate,
    )
