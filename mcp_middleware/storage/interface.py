"""What a limiter asks of a storage, whichever keeps the buckets: memory now, a server shared by replicas as well."""

import sys
from typing import Final, Protocol

import msgspec

from .bucket import Limits, Shortage

__all__ = ["MOST_TOKENS", "LimitStorage", "Reservation", "StorageUnavailableError", "check_tokens"]

MOST_TOKENS: Final = sys.float_info.max
"""There are whole numbers beyond, of which no float is made."""


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
    """Tokens taken so far: the estimate, or the bucket's capacity if that is less, and what was topped up."""
    remaining_requests: float
    """Left in the requests bucket after this request; infinity without a limit."""
    remaining_tokens: float
    """Left in the tokens bucket after this request; infinity without a limit."""
    expires_at: float
    """When it can no longer be settled, in seconds by the storage's clock; minus infinity once it has been."""
    parts: tuple[tuple[float, float, float], ...] = ()
    """For each of ``limits.parts``: tokens taken, and what is left of requests and of tokens."""
    remaining_concurrency: int | None = None
    """How many more may be open at once; None without a limit."""
    place: bytes = b""
    """Names its place among the open ones, where their number is limited; empty once it has been freed."""
    local: bool = False
    """Whether a replica let it through by itself, its store being away."""


class LimitStorage(Protocol):
    """Keeps the buckets of each key, and decides over all of them in one atomic step.

    Time is the storage's own: callers never pass it, so that replicas whose clocks differ agree.
    """

    async def reserve(self, key: bytes, limits: Limits, tokens: float) -> Reservation | Shortage:
        """Take one request and ``tokens`` tokens (at most the bucket's capacity) from the buckets of ``key``, and a
        place among its open requests where their number is limited.

        All or nothing, over ``limits.parts`` too. ``limits`` are the figures of this moment; they may differ from the
        last call's, and what was used stays used. ``tokens`` is finite and not negative (ValueError).

        Whoever cancels it gets nothing, and what was taken is given back as soon as that is known.
        """
        ...

    async def top_up(self, reservation: Reservation, tokens: float) -> float:
        """Take ``tokens`` more for a request that is under way, whether they are there or not; what is then left in
        the tokens bucket, or in the emptiest of several. Nothing more is taken of a reservation that has expired or
        was settled. ``tokens`` is finite and not negative (ValueError).
        """
        ...

    async def settle(self, reservation: Reservation, tokens: float | None, *, requests: int = 1) -> float:
        """Put the true number of tokens in place of the reserved one, and free the request's place; the bucket may go
        into debt. What is then left in the tokens bucket, or in the emptiest of several; infinity where nobody knows.

        Counts once: settling again, or after the reservation has expired, changes nothing, and the estimate stands.
        It stands with None as well, which only frees the place. ``tokens`` is finite and not negative (ValueError).
        With 0 ``requests`` the request is given back too: it was refused for another reason, and has used nothing.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections, when the application shuts down."""
        ...


def check_tokens(tokens: float) -> None:
    """Raise ValueError for what is no number of tokens."""
    if not 0 <= tokens <= MOST_TOKENS:
        raise ValueError(f"tokens is {tokens!r}; it must be a finite number of at least 0")
