"""How much work may be spent on what turns out to be worth nothing. Pure arithmetic, given a clock."""

from collections.abc import Hashable
from typing import Final

from mcp_middleware.types import Clock

__all__ = ["Allowance", "Forgeries"]

_FORGED: Final = 0.05
"""The part of the time that may go into checking signatures which turn out to be forged, so that hardly one good
request in twenty meets such a check, of a tenth of a millisecond or so. Beyond it, tokens that are not known are
answered "not now". It is counted apart in the names of those who have had a good token, and of all others: so who
knows no such name keeps none of these callers from their next token."""
_FORGED_IN_A_NAME: Final = 0.005
"""The same for one name of somebody who has had a good token: who knows a name keeps that one from its next token."""
_FORGED_BURST: Final = 0.25
"""Seconds of it that can be saved up: some thousand signatures."""


class Allowance:
    """``rate`` units a second, of which ``most`` can be saved up. It may be overdrawn: the price of a piece of work is
    known when it is done."""

    __slots__ = ("_clock", "_filled_at", "_left", "_most", "_rate")

    def __init__(self, rate: float, *, most: float, clock: Clock) -> None:
        self._rate = rate
        self._most = most
        self._clock = clock
        self._left = most
        self._filled_at = clock()

    @property
    def left(self) -> bool:
        """Whether anything is left."""
        if self._left <= 0:
            self._fill()
        return self._left > 0

    def spend(self, units: float) -> None:
        """Take ``units`` away."""
        self._fill()
        self._left -= units

    def _fill(self) -> None:
        now = self._clock()
        self._left = min(self._most, self._left + max(0.0, now - self._filled_at) * self._rate)
        self._filled_at = now


class Forgeries:
    """The time, in seconds, that may go into checking forged signatures, by whose name the token has.

    ``most`` names are remembered of those who have had a good token; the one whose last was longest ago goes first.
    """

    __slots__ = ("_as_familiar", "_as_others", "_clock", "_familiar", "_most")

    def __init__(self, *, most: int, clock: Clock) -> None:
        self._most = most
        self._clock = clock
        self._as_others = Allowance(_FORGED, most=_FORGED_BURST, clock=clock)
        self._as_familiar = Allowance(_FORGED, most=_FORGED_BURST, clock=clock)
        self._familiar: dict[Hashable, Allowance | None] = {}
        """The latest last; with an allowance of its own once somebody has forged a token in that name."""

    def is_familiar(self, name: Hashable) -> bool:
        """Whether somebody of this name has had a good token, as far as it is remembered."""
        return name in self._familiar

    def may_check(self, name: Hashable) -> bool:
        """Whether a signature may be checked of a token in this name."""
        if name not in self._familiar:
            return self._as_others.left
        own = self._familiar[name]
        return (own is None or own.left) and self._as_familiar.left

    def spend(self, name: Hashable, seconds: float) -> None:
        """Note that a check took so long, and that the signature was forged."""
        if name not in self._familiar:
            self._as_others.spend(seconds)
            return
        own = self._familiar[name]
        if own is None:
            own = self._familiar[name] = Allowance(_FORGED_IN_A_NAME, most=_FORGED_BURST, clock=self._clock)
        own.spend(seconds)
        self._as_familiar.spend(seconds)

    def meet(self, name: Hashable) -> None:
        """Note that somebody of this name has had a good token."""
        self._familiar[name] = self._familiar.pop(name, None)
        if len(self._familiar) > self._most:
            del self._familiar[next(iter(self._familiar))]
