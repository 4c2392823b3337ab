"""What requests are charged: taken from buckets and budgets before the server is called, and settled when it is known
what they took."""

import asyncio
import time
from collections.abc import Awaitable, Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

import msgspec

from mcp_middleware.background import Background
from mcp_middleware.message import Request
from mcp_middleware.server_message import ServerMessage
from mcp_middleware.storage import Limits, LimitStorage, MemoryStorage, Reservation, Shortage
from mcp_middleware.types import Principal, Usage

from .counts import Counts
from .metering import Estimate
from .payments import Payment, Payments, Unpaid
from .rules import Profile

__all__ = ["Charge", "Charges", "Shortfall"]

_STEP: Final = 500
"""Tokens by which a stream is topped up at least, so that not every event asks the store."""


class Charge(msgspec.Struct, eq=False):
    """What one request is charged, until its answer is known."""

    request: Request
    profile: Profile
    estimate: Estimate
    payments: Payments | None
    """By what it is priced."""
    reservation: Reservation | None = None
    """What was taken from its principal's buckets."""
    reserved: float = 0.0
    """Tokens that were taken at first: a stream that is topped up was under-estimated by all that comes after."""
    payment: Payment | None = None
    """What was taken from its agent's budgets."""
    streamed: int = 0
    """Tokens of what has come before the answer."""
    answer: ServerMessage | None = None
    """The answer that has come; words that others say in the server's place are none."""
    topping: asyncio.Task[None] | None = None
    overdrawn: bool = False
    """Whether the stream has used tokens that are not there."""


class Shortfall(NamedTuple):
    """Why nothing was taken: for want of units in the buckets, of money in the budgets, or of both."""

    shortage: Shortage | None
    unpaid: Unpaid | None


_Answer: TypeAlias = Payment | Unpaid | Reservation | Shortage


class Charges:
    """Takes what requests need from the buckets in ``storage`` and from budgets, and settles it: with a shared store in
    one round trip for both."""

    def __init__(self, storage: LimitStorage, counts: Counts) -> None:
        self._is_shared = not isinstance(storage, MemoryStorage)
        self._storage = _Watched(storage, counts) if self._is_shared else storage
        self._counts = counts
        self._giving_back = Background()

    async def take(self, charge: Charge, key: bytes, caller: Principal) -> Shortfall | None:
        """Take all that a request of ``caller`` is estimated to need, or nothing and say why. ``key``: its buckets'."""
        estimate, payments = charge.estimate, charge.payments
        steps: list[Awaitable[_Answer]] = []
        if payments is not None and estimate.name is not None:
            due = payments.estimate(caller, charge.request, Usage(estimate.input_tokens, estimate.output_tokens))
            if due is not None:
                steps.append(payments.take(due))
        if charge.profile.policy:
            tokens = estimate.input_tokens + estimate.output_tokens
            steps.append(self._storage.reserve(key, charge.profile.limits, tokens))
        shortfall = _sort(charge, await self._answers(charge, steps))
        if shortfall.shortage is None and shortfall.unpaid is None:
            if charge.reservation is not None:
                self._counts.admitted += 1
            return None
        await self._give_back(charge)
        return shortfall

    async def _answers(self, charge: Charge, steps: Sequence[Awaitable[_Answer]]) -> Sequence[_Answer]:
        """Two are asked at once of a shared store."""
        if not self._is_shared or len(steps) < 2:
            return [await step for step in steps]
        asking = asyncio.gather(*steps)
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:  # nobody else would learn what the store has taken
            self._giving_back.start(self._give_back_later(charge, asking), "give back what was taken")
            raise

    async def _give_back_later(self, charge: Charge, asking: Awaitable[Sequence[_Answer]]) -> None:
        _sort(charge, await asking)
        await self._give_back(charge)

    async def _give_back(self, charge: Charge) -> None:
        """Undo what was taken where not all was there."""
        try:
            if charge.payments is not None and charge.payment is not None:
                await charge.payments.settle(charge.payment, 0)
                charge.payment = None
        finally:  # the other is asked of the store even if who waits is cancelled
            if charge.reservation is not None:
                await self._storage.settle(charge.reservation, 0, requests=0)
                charge.reservation = None

    def top_up(self, charge: Charge) -> None:
        """Begin to take more for a stream that has brought more than was reserved; one step at a time."""
        reservation = charge.reservation
        if reservation is None or (charge.topping is not None and not charge.topping.done()):
            return
        short = charge.estimate.input_tokens + charge.streamed - reservation.tokens
        if short > 0:
            charge.topping = asyncio.create_task(self._top_up(charge, reservation, max(short, _STEP)))

    async def _top_up(self, charge: Charge, reservation: Reservation, tokens: float) -> None:
        left = await self._storage.top_up(reservation, tokens)
        unused = reservation.tokens - charge.estimate.input_tokens - charge.streamed
        charge.overdrawn = left + unused < 0

    def settle(self, charge: Charge, tokens: int | None, nanos: int | None) -> Awaitable[None]:
        """Put what a call took, and cost in billionths, in place of what was taken; None: nobody knows, and that
        stands."""
        payments, payment = charge.payments, charge.payment
        if payments is None or payment is None:
            return self._settle_tokens(charge, tokens)
        if nanos is None:
            payments.stand(payment)
            return self._settle_tokens(charge, tokens)
        return self._settle_both(charge, tokens, payments, payment, nanos)

    async def _settle_both(
        self, charge: Charge, tokens: int | None, payments: Payments, payment: Payment, nanos: int
    ) -> None:
        if not self._is_shared:
            await self._settle_tokens(charge, tokens)
            await payments.settle(payment, nanos)
            return
        both = asyncio.gather(self._settle_tokens(charge, tokens), payments.settle(payment, nanos))
        await asyncio.shield(both)  # else who is cancelled now would not even have begun

    async def _settle_tokens(self, charge: Charge, tokens: int | None) -> None:
        reservation = charge.reservation
        if reservation is None or (tokens is None and not reservation.place):
            return
        left = await self._storage.settle(reservation, tokens)
        if tokens is not None:
            self._counts.settle(charge.reserved, tokens, left)

    async def aclose(self) -> None:
        """Close the storage, once what is on its way back has arrived there."""
        await self._giving_back.finish()
        await self._storage.aclose()


def _sort(charge: Charge, answers: Iterable[_Answer]) -> Shortfall:
    """Keep what was taken; what was not."""
    shortage = unpaid = None
    for answer in answers:
        if isinstance(answer, Reservation):
            charge.reservation, charge.reserved = answer, answer.tokens
        elif isinstance(answer, Payment):
            charge.payment = answer
        elif isinstance(answer, Shortage):
            shortage = answer
        else:
            unpaid = answer
    return Shortfall(shortage, unpaid)


class _Watched:
    """A shared storage: the time it takes is a metric, and what replicas decide without it is counted."""

    def __init__(self, storage: LimitStorage, counts: Counts) -> None:
        self._storage = storage
        self._counts = counts

    async def reserve(self, key: bytes, limits: Limits, tokens: float) -> Reservation | Shortage:
        began = time.monotonic()
        answer = await self._storage.reserve(key, limits, tokens)
        self._counts.took("reserve", time.monotonic() - began)
        if answer.local:
            self._counts.fallbacks += 1
        return answer

    async def settle(self, reservation: Reservation, tokens: float | None, *, requests: int = 1) -> float:
        began = time.monotonic()
        left = await self._storage.settle(reservation, tokens, requests=requests)
        self._counts.took("settle", time.monotonic() - began)
        return left

    async def top_up(self, reservation: Reservation, tokens: float) -> float:
        return await self._storage.top_up(reservation, tokens)

    async def aclose(self) -> None:
        await self._storage.aclose()
