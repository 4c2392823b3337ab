"""Buckets in this process's memory, bounded however many keys are invented."""

import math
import time
from array import array
from collections import OrderedDict
from dataclasses import replace
from itertools import islice
from typing import Final

from mcp_middleware.options import seconds, whole_number
from mcp_middleware.types import Clock

from .bucket import (
    AT_ONCE,
    Levels,
    Limit,
    Limits,
    Shortage,
    Turns,
    after_admission,
    after_refusal,
    filling,
    full,
    longest,
    remaining,
    seconds_until_full,
    settle,
    take,
    takeable,
)
from .budgets import MemoryBudgets
from .interface import MOST_TOKENS, Reservation, check_tokens

__all__ = ["MemoryStorage"]

_SWEEP: Final = 2
"""Full buckets dropped for each new key: more than come in, so that idle keys do not pile up."""
_CANDIDATES: Final = 8
"""Longest unused keys looked at to find the one to drop when there is no more room."""
_SLOTS: Final = 1 << 17


class _Dropped:
    """What is left of buckets that were dropped before they were full: when they would have been.

    Every name has two slots, which it may share with others, and each keeps the latest moment; the earlier of the two
    counts. So a key that comes back has at most what it would have had, debt included, and one that was never here is
    taken for another only if both its slots are. 4 MiB, whatever was dropped.
    """

    __slots__ = ("_requests", "_tokens")

    def __init__(self) -> None:
        self._requests = [array("d", [-math.inf]) * _SLOTS for _ in range(2)]
        self._tokens = [array("d", [-math.inf]) * _SLOTS for _ in range(2)]

    def add(self, name: object, levels: Levels, limits: Limits) -> None:
        """Remember the buckets ``name``."""
        requests, tokens, at = levels
        for limit, level, rows in ((limits.requests, requests, self._requests), (limits.tokens, tokens, self._tokens)):
            if limit is not None:
                full_at = at + (limit.capacity - level) / limit.rate
                for row, slot in zip(rows, _slots(name), strict=True):
                    row[slot] = max(row[slot], full_at)

    def levels(self, name: object, limits: Limits, now: float) -> Levels:
        """What the buckets ``name`` hold now, if nothing else is known of them."""

        def level(limit: Limit | None, rows: list["array[float]"]) -> float:
            if limit is None:
                return math.inf
            full_at = min(row[slot] for row, slot in zip(rows, _slots(name), strict=True))
            return limit.capacity - max(0.0, limit.rate * (full_at - now))

        return (level(limits.requests, self._requests), level(limits.tokens, self._tokens), now)


def _slots(name: object) -> tuple[int, int]:
    digest = hash(name)  # of bytes and text: another one in each process, so that nobody can aim at a slot
    return (digest % _SLOTS, (digest >> 32) % _SLOTS)


_Pair = tuple[Levels, Limits, Turns]
"""Two buckets, the figures by which they fill, and who has to wait for them."""


class MemoryStorage:
    """A ``LimitStorage`` for one process and one event loop; a step is atomic because it never awaits.

    ``max_keys``: the most principals to keep. Full buckets are dropped first, which forgets nothing; when there are
    none, of the longest unused the one that would be full soonest. When that would have been is remembered in a table
    of one size, so that nobody gets a new burst, or rid of a debt, by being dropped. ``reservation_lifetime``: seconds
    within which a request must be settled; later its estimate stands. ``clock``: monotonic seconds.
    """

    def __init__(
        self, *, max_keys: int = 100_000, reservation_lifetime: float = 3600.0, clock: Clock = time.monotonic
    ) -> None:
        self._max_keys = whole_number("MemoryStorage: max_keys", max_keys)
        self._lifetime = seconds("MemoryStorage: reservation_lifetime", reservation_lifetime)
        self._clock = clock
        self._buckets: OrderedDict[bytes, _Pair] = OrderedDict()  # longest unused first
        self._parts: dict[bytes, dict[str, _Pair]] = {}
        self._open: dict[bytes, int] = {}
        self._dropped: _Dropped | None = None
        self.budgets = MemoryBudgets(max_keys=max_keys)

    def __len__(self) -> int:
        """Keys that are kept."""
        return len(self._buckets)

    async def reserve(self, key: bytes, limits: Limits, tokens: float) -> Reservation | Shortage:
        """See ``LimitStorage.reserve``."""
        if not 0 <= tokens <= MOST_TOKENS:
            check_tokens(tokens)
        now = self._clock()
        if limits.parts or limits.concurrency is not None:
            return self._reserve_all(key, limits, tokens, now)
        found = self._buckets.get(key)
        turns: Turns = ()
        if found is None:
            levels, fill = self._new(key, None, limits, now), limits
        else:
            self._buckets.move_to_end(key)
            levels, before, turns = found
            fill = filling(limits, before)
        taken = take(levels, limits, tokens, now, turns, fill)
        if isinstance(taken, Shortage):
            self._remember_refusal(key, None, (levels, fill, turns), limits, tokens, now)
            return taken
        if turns:
            turns = after_admission(turns, takeable(limits, tokens), taken[2])
        if found is None:
            self._make_room(now)
        self._buckets[key] = (taken, fill, turns)
        return Reservation(key, limits, takeable(limits, tokens), *remaining(taken, limits), now + self._lifetime)

    def _reserve_all(self, key: bytes, limits: Limits, tokens: float, now: float) -> Reservation | Shortage:
        """The same over several pairs of buckets, and the number of open requests."""
        names: list[tuple[str | None, Limits]] = [(None, limits), *limits.parts]
        pairs = [self._pair(key, part, figures, now) for part, figures in names]
        taken: list[Levels] = []
        shortages: list[Shortage] = []
        for (part, figures), (levels, fill, turns) in zip(names, pairs, strict=True):
            answer = take(levels, figures, tokens, now, turns, fill)
            if isinstance(answer, Shortage):
                shortages.append(replace(answer, part=part))
            else:
                taken.append(answer)
        is_open, most = self._open.get(key, 0), limits.concurrency
        if most is not None and is_open >= most:
            shortages.append(Shortage("concurrency", most, 0, AT_ONCE))
        if shortages:
            for (part, figures), pair in zip(names, pairs, strict=True):
                self._remember_refusal(key, part, pair, figures, tokens, now)
            found = [(figures, levels, turns) for (_, figures), (levels, _, turns) in zip(names, pairs, strict=True)]
            return longest(shortages, found, tokens, now)
        for (part, figures), (_, fill, turns), left in zip(names, pairs, taken, strict=True):
            self._keep(key, part, (left, fill, after_admission(turns, takeable(figures, tokens), left[2])), now)
        own, *others = taken
        reservation = Reservation(key, limits, takeable(limits, tokens), *remaining(own, limits), now + self._lifetime)
        reservation.parts = tuple(
            (takeable(figures, tokens), *remaining(levels, figures))
            for (_, figures), levels in zip(limits.parts, others, strict=True)
        )
        if most is not None:
            self._open[key] = is_open + 1
            reservation.place = b"open"
            reservation.remaining_concurrency = most - is_open - 1
        return reservation

    async def top_up(self, reservation: Reservation, tokens: float) -> float:
        """See ``LimitStorage.top_up``."""
        check_tokens(tokens)
        now = self._clock()
        if now >= reservation.expires_at:
            return math.inf
        left = self._put(reservation.key, None, reservation.limits, 0, tokens, now)
        reservation.tokens += tokens
        for part, figures in reservation.limits.parts:
            left = min(left, self._put(reservation.key, part, figures, 0, tokens, now))
        reservation.parts = tuple((taken + tokens, requests, left) for taken, requests, left in reservation.parts)
        return left

    async def settle(self, reservation: Reservation, tokens: float | None, *, requests: int = 1) -> float:
        """See ``LimitStorage.settle``."""
        if tokens is not None and not 0 <= tokens <= MOST_TOKENS:
            check_tokens(tokens)
        key = reservation.key
        if reservation.place:
            reservation.place = b""
            is_open = self._open.pop(key, 0) - 1
            if is_open > 0:
                self._open[key] = is_open
        now = self._clock()
        if now >= reservation.expires_at:
            return math.inf
        reservation.expires_at = -math.inf
        if tokens is None:
            return math.inf
        limits = reservation.limits
        left = self._put(key, None, limits, reservation.tokens, tokens, now, requests)
        for (part, figures), (taken, *_) in zip(limits.parts, reservation.parts, strict=True):
            left = min(left, self._put(key, part, figures, taken, tokens, now, requests))
        return left

    async def aclose(self) -> None:
        """Nothing to let go of."""

    def _find(self, key: bytes, part: str | None) -> _Pair | None:
        return self._buckets.get(key) if part is None else self._parts.get(key, {}).get(part)

    def _new(self, key: bytes, part: str | None, limits: Limits, now: float) -> Levels:
        if self._dropped is None:
            return full(limits, now)
        return self._dropped.levels((key, part), limits, now)

    def _pair(self, key: bytes, part: str | None, limits: Limits, now: float) -> _Pair:
        found = self._find(key, part)
        if found is not None:
            if part is None:
                self._buckets.move_to_end(key)
            levels, before, turns = found
            return (levels, filling(limits, before), turns)
        return (self._new(key, part, limits, now), limits, ())

    def _remember_refusal(
        self, key: bytes, part: str | None, pair: _Pair, limits: Limits, tokens: float, now: float
    ) -> None:
        levels, fill, turns = pair
        after = after_refusal(turns, levels, limits, tokens, now)
        if after != turns and (part is None or key in self._buckets):
            self._keep(key, part, (levels, fill, after), now)

    def _keep(self, key: bytes, part: str | None, pair: _Pair, now: float) -> None:
        if part is None:
            if key not in self._buckets:
                self._make_room(now)
            self._buckets[key] = pair
        else:
            self._parts.setdefault(key, {})[part] = pair

    def _put(
        self, key: bytes, part: str | None, limits: Limits, taken: float, actual: float, now: float, requests: int = 1
    ) -> float:
        """Put ``actual`` tokens in the place of the ``taken`` ones, and of the request ``requests``; what is left."""
        is_limited = limits.tokens is not None
        if not is_limited:  # nothing was taken of a limit that there is since
            taken = actual
        if limits.requests is None:
            requests = 1
        found = self._find(key, part)
        turns: Turns = ()
        if found is not None:
            levels, limits, turns = found
        elif actual > taken:  # dropped meanwhile: only what makes it less is worth remembering
            levels = self._new(key, part, limits, now)
        else:
            return math.inf
        levels = settle(levels, limits, taken, actual, now, requests=requests)
        if found is not None and part is None:
            self._buckets[key] = (levels, limits, turns)
        elif part is None or key in self._buckets:
            self._keep(key, part, (levels, limits, turns), now)
        else:  # a part goes with its principal, and could not be let go of without
            self._remember(key, part, levels, limits)
        return remaining(levels, limits)[1] if is_limited else math.inf

    def _make_room(self, now: float) -> None:
        """Drop some full buckets, and one that is not if there is still no room for another."""
        buckets = self._buckets
        for _ in range(_SWEEP):
            if not buckets:
                return
            oldest = next(iter(buckets))
            if self._seconds_until_full(oldest, now) > 0:
                break
            self._drop(oldest)
        if len(buckets) >= self._max_keys:
            candidates = islice(buckets, _CANDIDATES)
            self._drop(min(candidates, key=lambda key: self._seconds_until_full(key, now)), remember=True)

    def _seconds_until_full(self, key: bytes, now: float) -> float:
        levels, limits, turns = self._buckets[key]
        seconds = seconds_until_full(levels, limits, now, turns)
        for levels, limits, turns in self._parts.get(key, {}).values():
            seconds = max(seconds, seconds_until_full(levels, limits, now, turns))
        return seconds

    def _drop(self, key: bytes, *, remember: bool = False) -> None:
        pair, parts = self._buckets.pop(key), self._parts.pop(key, {})
        if not remember:
            return
        self._remember(key, None, *pair[:2])
        for part, (levels, limits, _) in parts.items():
            self._remember(key, part, levels, limits)

    def _remember(self, key: bytes, part: str | None, levels: Levels, limits: Limits) -> None:
        if self._dropped is None:
            self._dropped = _Dropped()
        self._dropped.add((key, part), levels, limits)
