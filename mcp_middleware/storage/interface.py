"""What a limiter asks of a storage, whichever keeps the buckets: memory now, a server shared by replicas as well."""

import math
from typing import Protocol

import msgspec

from .bucket import Limits, Shortage

__all__ = ["LimitStorage", "Reservation", "StorageUnavailableError", "check_tokens"]


class StorageUnavailableError(Exception):
    """A store that is shared by several processes does not answer, or not in time."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent
        """Whether the store may have done, or may still do, what it was asked."""


class Reservation(msgspec.Struct, eq=False):
    """What one admitted request has taken. The storage that gave it takes it back once, by ``settle``."""

    key: bytes
    limits: Limits
    tokens: float
    """Tokens taken: the estimate, or the bucket's capacity if that is less."""
    remaining_requests: float
    """Left in the requests bucket after this request; infinity without a limit."""
    remaining_tokens: float
    """Left in the tokens bucket after this request; infinity without a limit."""
    expires_at: float
    """When it can no longer be settled, in seconds by the storage's clock; minus infinity once it has been."""


class LimitStorage(Protocol):
    """Keeps two buckets for each key and decides over both in one atomic step.

    Time is the storage's own: callers never pass it, so that replicas whose clocks differ agree.
    """

    async def reserve(self, key: bytes, limits: Limits, tokens: float) -> Reservation | Shortage:
        """Take one request and ``tokens`` tokens (at most the bucket's capacity) from the buckets of ``key``.

        Both or neither. ``limits`` are the figures of this moment; they may differ from the last call's, and what
        was used stays used. ``tokens`` is finite and not negative (ValueError).
        """
        ...

    async def settle(self, reservation: Reservation, tokens: float) -> None:
        """Put the true number of tokens in place of the reserved one; the bucket may go into debt.

        Counts once: settling again, or after the reservation has expired, changes nothing, and the estimate stands.
        ``tokens`` is finite and not negative (ValueError).
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections, when the application shuts down."""
        ...


def check_tokens(tokens: float) -> None:
    """Raise ValueError for what is no number of tokens."""
    if not 0 <= tokens < math.inf:
        raise ValueError(f"tokens is {tokens!r}; it must be a finite number of at least 0")
