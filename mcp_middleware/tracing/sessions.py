"""How long legacy sessions last."""

import time
from typing import Final

from mcp_middleware.types import Clock

__all__ = ["SessionTimes"]

MAX_SESSIONS: Final = 10_000
"""Sessions that are timed at once; beyond it the oldest is forgotten, and no duration is recorded for it."""


class SessionTimes:
    """When each open session began."""

    __slots__ = ("_clock", "_limit", "_started")

    def __init__(self, clock: Clock = time.monotonic, *, limit: int = MAX_SESSIONS) -> None:
        self._clock = clock
        self._limit = limit
        self._started: dict[str, float] = {}

    def begin(self, session: str) -> None:
        """A session was opened."""
        if len(self._started) >= self._limit:
            del self._started[next(iter(self._started))]
        self._started[session] = self._clock()

    def end(self, session: str) -> float | None:
        """A session is over: the seconds it lasted, or None if its beginning is not known."""
        started = self._started.pop(session, None)
        return None if started is None else self._clock() - started

    def end_all(self) -> list[float]:
        """Every session is over: the seconds each lasted."""
        now = self._clock()
        durations = [now - started for started in self._started.values()]
        self._started.clear()
        return durations
