"""Buckets in this process's memory, bounded however many keys are invented."""

import math
import time
from collections import OrderedDict
from itertools import islice
from typing import Final

from mcp_middleware.options import seconds, whole_number
from mcp_middleware.types import Clock

from .bucket import Levels, Limits, Shortage, full, seconds_until_full, settle, take, takeable
from .interface import Reservation, check_tokens

__all__ = ["MemoryStorage"]

_SWEEP: Final = 2
"""Full buckets dropped for each new key: more than come in, so that idle keys do not pile up."""
_CANDIDATES: Final = 8
"""Longest unused keys looked at to find the one to drop when there is no more room."""


class MemoryStorage:
    """A ``LimitStorage`` for one process and one event loop; a step is atomic because it never awaits.

    ``max_keys``: the most principals to keep. Full buckets are dropped first, which forgets nothing; when there are
    none, of the longest unused the one that would be full soonest. ``reservation_lifetime``: seconds within which a
    request must be settled; later its estimate stands. ``clock``: monotonic seconds.
    """

    def __init__(
        self, *, max_keys: int = 100_000, reservation_lifetime: float = 3600.0, clock: Clock = time.monotonic
    ) -> None:
        self._max_keys = whole_number("MemoryStorage: max_keys", max_keys)
        self._lifetime = seconds("MemoryStorage: reservation_lifetime", reservation_lifetime)
        self._clock = clock
        self._buckets: OrderedDict[bytes, tuple[Levels, Limits]] = OrderedDict()  # longest unused first

    def __len__(self) -> int:
        """Keys that are kept."""
        return len(self._buckets)

    async def reserve(self, key: bytes, limits: Limits, tokens: float) -> Reservation | Shortage:
        """See ``LimitStorage.reserve``."""
        check_tokens(tokens)
        now = self._clock()
        found = self._buckets.get(key)
        if found is None:
            taken = take(full(limits, now), limits, tokens, now)
        else:
            self._buckets.move_to_end(key)
            taken = take(found[0], limits, tokens, now)
        if isinstance(taken, Shortage):
            return taken
        if found is None:
            self._make_room(now)
        self._buckets[key] = (taken, limits)
        return Reservation(key, limits, takeable(limits, tokens), taken[0], taken[1], now + self._lifetime)

    async def settle(self, reservation: Reservation, tokens: float) -> None:
        """See ``LimitStorage.settle``."""
        check_tokens(tokens)
        now = self._clock()
        if now >= reservation.expires_at:
            return
        reservation.expires_at = -math.inf
        key, taken = reservation.key, reservation.tokens
        found = self._buckets.get(key)
        if found is not None:
            levels, limits = found
            self._buckets[key] = (settle(levels, limits, taken, tokens, now), limits)
        elif tokens > taken:  # dropped meanwhile, full or as good as full: only a debt is worth remembering
            limits = reservation.limits
            self._make_room(now)
            self._buckets[key] = (settle(full(limits, now), limits, taken, tokens, now), limits)

    async def aclose(self) -> None:
        """Nothing to let go of."""

    def _make_room(self, now: float) -> None:
        """Drop some full buckets, and one that is not if there is still no room for another."""
        buckets = self._buckets
        for _ in range(_SWEEP):
            if not buckets:
                return
            oldest = next(iter(buckets))
            if seconds_until_full(*buckets[oldest], now) > 0:
                break
            del buckets[oldest]
        if len(buckets) >= self._max_keys:
            candidates = islice(buckets, _CANDIDATES)
            del buckets[min(candidates, key=lambda key: seconds_until_full(*buckets[key], now))]
