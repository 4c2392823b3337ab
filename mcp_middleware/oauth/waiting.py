"""Waiting for an authorization server that gave no answer when it was asked at the start."""

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["until_answered"]


async def until_answered(ask: Callable[[], Awaitable[bool]], *, first: float, longest: float) -> None:
    """Call ``ask`` until it says that there was an answer. ``first`` is the pause before it, in seconds; each pause is
    twice the one before, up to ``longest``."""
    pause = first
    while True:
        await asyncio.sleep(pause)
        if await ask():
            return
        pause = min(longest, 2 * pause)
