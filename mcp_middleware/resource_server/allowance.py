"""How much work may be spent on what turns out to be worth nothing. Pure arithmetic, given a clock."""

from mcp_middleware.types import Clock

__all__ = ["Allowance"]


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
