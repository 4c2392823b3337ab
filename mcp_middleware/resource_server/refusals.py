"""Why tokens were refused, in the log: a line a second at most, since anybody may send bad ones without end."""

import logging
import time
from typing import Final

from mcp_middleware.types import Clock

__all__ = ["Refusals"]

logger = logging.getLogger("mcp_middleware.resource_server")

_EVERY: Final = 1.0
"""Seconds between two lines."""


class Refusals:
    """The refusals of one verifier. ``clock`` gives seconds."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._next = -_EVERY
        self._unsaid = 0

    def note(self, reason: str) -> None:
        """Say why a token was refused, and how many others were since the line before; or count it."""
        now = self._clock()
        if now < self._next:
            self._unsaid += 1
            return
        more, self._unsaid, self._next = self._unsaid, 0, now + _EVERY
        logger.info("a token was refused: %s%s", reason, f" ({more} others since the line before)" if more else "")
