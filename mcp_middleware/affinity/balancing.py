"""Which instance takes the next request, and which is taken for dead. Pure: no I/O, and the clock is given.

Each instance has a breaker. These are its states and all that moves it:

==========  ============================  =====================================================================
state       what happens                  then
==========  ============================  =====================================================================
healthy     ``THRESHOLD`` failures in a   ejected, for ``EJECTION`` seconds
            row, or a failed probe
healthy     a failure within ``CALM``     ejected, for twice as long as the last time, at most ``MAX_EJECTION``
            seconds of its readmission
ejected     its time is over              trial
trial       a success, or a good probe    healthy
trial       a failure, or a failed probe  ejected, for ``retry`` seconds
==========  ============================  =====================================================================

- A failure is a connection that could not be made, and the statuses 502, 503 and 504, with which a proxy says that
  nobody is behind it. Any other answer is a success, an error too: what a caller can provoke must not take a server
  away from the others.
- An answer that did not come, not in time, or not to its end is no failure, for the same reason: one slow tool would
  do, or a proxy that cuts long streams. It makes an instance *suspect*, and a probe decides.
- An instance that fails as soon as it is back grows its time away, so that one that flaps is mostly away. ``CALM``
  seconds without a failure and its past is forgotten.
- A request is given the instance with the fewest requests in flight among the healthy ones, in turn where several
  have equally few. An instance on trial is chosen only where none is healthy, by one request every ``retry`` seconds:
  probes try it at nobody's expense. Requests that are bound to it (sessions) may go there.
"""

import math
import time
from collections.abc import Collection, Sequence
from typing import Final, Literal, TypeAlias

from mcp_middleware.types import Clock

__all__ = ["Balancer", "State"]

State: TypeAlias = Literal["healthy", "trial", "ejected"]

THRESHOLD: Final = 3
"""Failures in a row that eject an instance."""
EJECTION: Final = 1.0
"""Seconds of a first ejection."""
MAX_EJECTION: Final = 60.0
"""Seconds of the longest."""
CALM: Final = 60.0
"""Seconds after its readmission during which one failure ejects an instance again."""


class _Instance:
    """One instance's breaker."""

    __slots__ = ("ejected", "failures", "in_flight", "last", "name", "readmitted", "suspect", "tried_at", "until")

    def __init__(self, name: str) -> None:
        self.name = name
        self.in_flight = 0
        self.failures = 0
        """In a row."""
        self.ejected = False
        self.until = 0.0
        """The end of the last ejection; from then on it is on trial."""
        self.last = 0.0
        """Seconds of the last ejection that was no failed trial."""
        self.readmitted = -math.inf
        self.suspect = False
        self.tried_at = -math.inf
        """When the last request was sent on trial."""

    def state(self, now: float) -> State:
        if not self.ejected:
            return "healthy"
        return "trial" if now >= self.until else "ejected"


class Balancer:
    """The instances of one server.

    ``names`` are what they are called, at least one; ``retry`` is seconds from one trial to the next; ``clock`` gives
    seconds.
    """

    def __init__(self, names: Sequence[str], *, retry: float = 5.0, clock: Clock = time.monotonic) -> None:
        self._retry = retry
        self._clock = clock
        self._instances = [_Instance(name) for name in names]
        self._by_name = {instance.name: instance for instance in self._instances}
        self._turn = 0

    def choose(self, tried: Collection[str] = ()) -> str | None:
        """The instance for the next request, none of those ``tried`` already; None where there is none."""
        instances = self._instances
        count = len(instances)
        self._turn = turn = (self._turn + 1) % count
        best: _Instance | None = None
        for place in range(turn, turn + count):
            instance = instances[place % count]
            if (
                not instance.ejected
                and (best is None or instance.in_flight < best.in_flight)
                and instance.name not in tried
            ):
                best = instance
        if best is not None:
            return best.name
        now = self._clock()
        waiting = [
            instance
            for instance in instances
            if instance.state(now) == "trial" and now >= instance.tried_at + self._retry and instance.name not in tried
        ]
        if not waiting:
            return None
        trial = min(waiting, key=lambda instance: instance.tried_at)
        trial.tried_at = now
        return trial.name

    def is_usable(self, name: str) -> bool:
        """Whether a request that is bound to ``name`` may go there: it is known, and not ejected."""
        instance = self._by_name.get(name)
        return instance is not None and (not instance.ejected or self._clock() >= instance.until)

    def enter(self, name: str) -> None:
        """A request to ``name`` begins."""
        self._by_name[name].in_flight += 1

    def leave(self, name: str) -> None:
        """A request to ``name`` has ended, however it did."""
        self._by_name[name].in_flight -= 1

    def succeed(self, name: str) -> bool:
        """``name`` has answered, a request or a probe. Whether that readmitted it."""
        instance = self._by_name[name]
        instance.failures = 0
        instance.suspect = False
        if not instance.ejected:
            return False
        now = self._clock()
        if now < instance.until:
            return False  # an answer to what was sent before it was ejected; its time has to pass
        instance.ejected = False
        instance.readmitted = now
        return True

    def fail(self, name: str, *, conclusive: bool = False) -> bool:
        """``name`` has failed a request, or, which is ``conclusive``, a probe. Whether that ejected it."""
        instance = self._by_name[name]
        now = self._clock()
        state = instance.state(now)
        if state == "ejected":
            return False
        instance.failures += 1
        if state == "trial":
            instance.until = now + self._retry
            return False
        recent = now < instance.readmitted + CALM
        if not (conclusive or recent or instance.failures >= THRESHOLD):
            return False
        instance.last = min(MAX_EJECTION, instance.last * 2) if recent else EJECTION
        instance.ejected = True
        instance.suspect = False
        instance.until = now + instance.last
        return True

    def suspect(self, name: str) -> None:
        """``name`` did not answer, or not to the end: a probe should ask whether it lives."""
        instance = self._by_name[name]
        instance.suspect = not instance.ejected

    def due(self) -> list[str]:
        """The instances that a probe should ask now."""
        now = self._clock()
        return [one.name for one in self._instances if one.suspect or (one.ejected and now >= one.until)]

    def wait(self) -> float:
        """Seconds until the next instance may be tried; 0 where one may be used now, or all are healthy."""
        now = self._clock()
        waits = [max(one.until, one.tried_at + self._retry) - now if one.ejected else 0.0 for one in self._instances]
        return max(0.0, min(waits))

    def next_due(self) -> float:
        """Seconds until ``due`` names an instance; infinite where all are well."""
        now = self._clock()
        waits = (one.until - now for one in self._instances if one.ejected or one.suspect)
        return max(0.0, min(waits, default=math.inf))

    def in_flight(self, name: str) -> int:
        """Requests to ``name`` that have not ended."""
        return self._by_name[name].in_flight

    def state(self, name: str) -> State:
        """Where the breaker of ``name`` stands."""
        return self._by_name[name].state(self._clock())
