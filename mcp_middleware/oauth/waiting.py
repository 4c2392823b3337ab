"""Waiting for an authorization server that gave no answer when it was asked at the start."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

__all__ = ["until_answered"]

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
"""Seconds."""


async def until_answered(ask: Callable[[], Awaitable[bool]], *, first: float | None = None) -> None:
    """Call ``ask`` until it says that there was an answer. ``first`` is the pause before it, in seconds, if the server
    named one; each pause is twice the one before, up to half a minute."""
    pause = _FIRST_PAUSE if first is None else first
    while True:
        pause = min(pause, _LONGEST_PAUSE)
        await asyncio.sleep(pause)
        if await ask():
            return
        pause *= 2
