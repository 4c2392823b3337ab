"""How much work may be spent on what turns out to be worth nothing. Pure arithmetic, given a clock."""

from collections.abc import Hashable
from typing import Final

from mcp_middleware.types import Clock

__all__ = ["Allowance", "Forgeries"]

_FORGED: Final = 0.005
"""The part of the time that may go into checking signatures which turn out to be forged, so that hardly one good
request in a hundred meets such a check. Beyond it, tokens that are not known are answered "not now"."""
_FORGED_AS_FAMILIAR: Final = 0.05
"""The same for tokens in the name of somebody who has had a good one. Who does not know such a name cannot keep these
callers from their next token."""
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

    __slots__ = ("_as_familiar", "_as_others", "_familiar", "_most")

    def __init__(self, *, most: int, clock: Clock) -> None:
        self._most = most
        self._as_others = Allowance(_FORGED, most=_FORGED_BURST, clock=clock)
        self._as_familiar = Allowance(_FORGED_AS_FAMILIAR, most=_FORGED_BURST, clock=clock)
        self._familiar: dict[Hashable, None] = {}  # the latest last

    def allowance(self, name: Hashable) -> Allowance:
        """What is left for tokens in this name."""
        return self._as_familiar if name in self._familiar else self._as_others

    def meet(self, name: Hashable) -> None:
        """Note that somebody of this name has had a good token."""
        self._familiar.pop(name, None)
        self._familiar[name] = None
        if len(self._familiar) > self._most:
            del self._familiar[next(iter(self._familiar))]
