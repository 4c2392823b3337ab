"""What a call costs its agent: taken from budgets before it, told and settled after it."""

import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final, NamedTuple

from mcp_middleware.message import Request
from mcp_middleware.storage.budgets import BudgetStorage, Overspending, Spending
from mcp_middleware.types import Money, Principal, Usage

from .budgets import Budgets, Purse, Threshold
from .counts import Counts
from .prices import Prices
from .thresholds import Thresholds, thresholds_for

__all__ = ["Due", "Payment", "Payments", "Unpaid"]

logger = logging.getLogger("mcp_middleware.ratelimit")

_CACHED: Final = 4096


class Due(NamedTuple):
    """What is to be taken for one call."""

    key: bytes
    """The agent's."""
    client: str
    purse: Purse
    nanos: int
    storage: BudgetStorage


class Payment(NamedTuple):
    """What was taken."""

    due: Due
    spending: Spending


class Unpaid(NamedTuple):
    """Why nothing could be taken."""

    purse: Purse
    overspending: Overspending
    currency: str


class Payments:
    """The prices of a limiter; its budgets, and where what is spent of them is kept."""

    def __init__(
        self,
        prices: Prices,
        budgets: tuple[Budgets, BudgetStorage] | None,
        *,
        server: str | None,
        counts: Counts,
    ) -> None:
        self._prices = prices
        self._budgets = budgets
        self._server = server
        self._counts = counts
        self._thresholds = Thresholds() if budgets is None else thresholds_for(budgets[1])

    def estimate(self, caller: Principal, request: Request, usage: Usage) -> Due | None:
        """What has to be taken from the agent's budgets for a call that takes ``usage``; None: nothing."""
        if self._budgets is None:
            return None
        budgets, storage = self._budgets
        purse = budgets.purse(caller.client)
        cost = None if purse is None else self._prices.cost(self._server, request, usage)
        if purse is None or cost is None:
            return None
        return Due(_agent_key(caller.issuer, caller.client), caller.client, purse, cost.nanos, storage)

    async def take(self, due: Due) -> Payment | Unpaid:
        """Take it from every budget, or from none."""
        answer = await due.storage.spend(due.key, due.purse.wallets, due.nanos)
        if answer.local:
            self._counts.fallbacks += 1
        if isinstance(answer, Overspending):
            return Unpaid(due.purse, answer, self._prices.currency)
        self._warn(due, self._thresholds.begin(answer, due.purse))
        return Payment(due, answer)

    def cost(self, request: Request, usage: Usage, *, is_known: bool) -> Money | None:
        """What the call cost, counted; ``is_known``: whether it is of a tool that its server has."""
        cost = self._prices.cost(self._server, request, usage)
        if cost is not None:
            self._counts.add_cost(cost, self._server, request.target if is_known else None)
        return cost

    async def settle(self, payment: Payment, nanos: int) -> None:
        """Put ``nanos`` in place of what was taken."""
        due, spending = payment
        after: Sequence[int | None] = (None,) * len(spending.until)
        try:
            after = await due.storage.settle(spending, nanos)
        finally:  # it is under way no more, whatever became of that
            self._warn(due, self._thresholds.settle(spending, due.purse, after))

    def stand(self, payment: Payment) -> None:
        """Nobody will know what the call cost: what was taken is spent."""
        due, spending = payment
        self._warn(due, self._thresholds.stand(spending, due.purse))

    def _warn(self, due: Due, reached: Sequence[Threshold]) -> None:
        for threshold in reached:
            wallet = due.purse.wallets[threshold.wallet]
            self._counts.warnings[wallet.period] += 1
            client, amount = due.client[:200], threshold.nanos / 10**9
            logger.warning("client %r has reached %s: %s for %s", client, threshold.budget, amount, wallet.name)


@lru_cache(_CACHED)
def _agent_key(issuer: str | None, client: str) -> bytes:
    """By what the budgets of an agent are kept: all its users together, as reports and invoices add them up."""
    return blake2b(json.dumps((issuer, client)).encode(), digest_size=20).digest()
