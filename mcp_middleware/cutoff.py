"""Ends what a task waits for at a given time.

``asyncio.timeout`` does the same; it costs a tenth of all our work on a request that never runs into it, and a body's
arrival is timed in every one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["Cutoff"]


class Cutoff:
    """Cancels a task, the one that made it, unless it is stopped before.

    ``start`` and ``ask`` may come later and from another task, such as one that the server runs for its answer; after
    ``stop`` they may come again. The task catches its ``CancelledError`` and asks ``absorbs()`` whether this cutoff
    alone was the cause.
    """

    __slots__ = ("_asking", "_cancelling", "_fired", "_handle", "_next", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._cancelling = 0
        self._fired = False
        self._handle: asyncio.TimerHandle | None = None
        self._next: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None

    def start(self, seconds: float) -> None:
        """Fire ``seconds`` from now."""
        if self._task is not None:
            self._cancelling = self._task.cancelling()
        self._handle = asyncio.get_running_loop().call_later(seconds, self._fire)

    def ask(self, good: Callable[[], Awaitable[bool]], *, every: float) -> None:
        """Ask ``good`` after each ``every`` seconds, and fire once it says no."""
        if self._task is not None:
            self._cancelling = self._task.cancelling()
        self._wait_to_ask(good, every)

    def _wait_to_ask(self, good: Callable[[], Awaitable[bool]], every: float) -> None:
        self._next = asyncio.get_running_loop().call_later(every, self._begin_to_ask, good, every)

    def _begin_to_ask(self, good: Callable[[], Awaitable[bool]], every: float) -> None:
        self._asking = asyncio.create_task(self._ask(good, every), name="cutoff")

    async def _ask(self, good: Callable[[], Awaitable[bool]], every: float) -> None:
        if await good():
            self._wait_to_ask(good, every)
        else:
            self._fire()

    def _fire(self) -> None:
        self.stop()
        self._fired = True
        if self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        """Never fire any more."""
        if self._handle is not None:
            self._handle.cancel()
        if self._next is not None:
            self._next.cancel()
        if self._asking is not None:
            self._asking.cancel()

    def absorbs(self) -> bool:
        """Whether the cancellation in hand was this cutoff's and nobody else's; it then counts as handled."""
        if not self._fired or self._task is None:
            return False
        self._fired = False
        return self._task.uncancel() <= self._cancelling
