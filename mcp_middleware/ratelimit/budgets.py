"""What agents may spend in a day or a month: budgets as a user writes them, and what they mean for one call. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from mcp_middleware.errors import RATE_LIMITED, ConfigurationError
from mcp_middleware.options import one_of
from mcp_middleware.storage.budgets import Overspending, Period, Wallet
from mcp_middleware.types import Rejection

from .prices import Amount, amount_in_nanos
from .reading import globs, list_of, matches_any, read_mapping

__all__ = ["Budget", "BudgetAction", "Budgets", "Purse", "Threshold", "overspent"]

BudgetAction: TypeAlias = Literal["refuse", "warn"]
"""``refuse``: calls that would spend more are refused until the period ends. ``warn``: it is logged and counted once a
period by each process, and calls go on."""

_MOST: Final = 1_000_000_000
_CACHED: Final = 4096


@dataclass(frozen=True, slots=True)
class Budget:
    """What each of some agents may spend in a day or a month, all its users together. Raises ConfigurationError."""

    period: Period
    """``day`` or ``month`` of the calendar, in UTC."""
    amount: Amount
    """Above 0, in the currency of the prices, with at most 9 decimals."""
    agents: Sequence[str] = ("*",)
    """Globs of client ids. Each agent (issuer and client id) has the budget for itself."""
    action: BudgetAction = "refuse"
    nanos: int = field(init=False, repr=False, compare=False)
    """The amount in billionths."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "agents", globs("agents", self.agents))
        for name, kind in (("period", Period), ("action", BudgetAction)):
            one_of(name, getattr(self, name), get_args(kind))
        if self.amount is None:
            raise ConfigurationError("amount is None; it must be a number above 0")
        object.__setattr__(self, "nanos", amount_in_nanos("amount", self.amount, most=_MOST))


class Threshold(NamedTuple):
    """An amount at which to warn."""

    wallet: int
    """Index of the wallet."""
    nanos: int
    budget: str
    """The place of the budget in the options, such as ``budgets[2]``."""


@dataclass(frozen=True, slots=True)
class Purse:
    """What the budgets say of one agent: the sums to keep, the most of each, and when to warn."""

    wallets: tuple[Wallet, ...]
    warnings: tuple[Threshold, ...]
    places: tuple[str | None, ...]
    """For each wallet the budget that refuses."""

    def reached(self, before: Sequence[int | None], after: Sequence[int | None]) -> list[Threshold]:
        """The thresholds that lie between two states of the wallets."""
        return [
            one
            for one in self.warnings
            if (was := before[one.wallet]) is not None
            and (is_ := after[one.wallet]) is not None
            and was < one.nanos <= is_
        ]


class Budgets:
    """The budgets of a limiter. Raises ConfigurationError, naming ``place``, for a wrong one."""

    def __init__(self, place: str, option: Sequence[Budget | Mapping[str, Any]], *, currency: str) -> None:
        budgets = list_of(place, option, "budgets")
        self._budgets = [
            budget if isinstance(budget, Budget) else read_mapping(f"{place}[{number}]", budget, Budget)
            for number, budget in enumerate(budgets)
        ]
        self._currency = currency
        self._place = place.rpartition(" ")[2]
        self.purse = lru_cache(_CACHED)(self._purse)
        """What holds for an agent, by its client id; None if no budget does."""

    def _purse(self, client: str) -> Purse | None:
        """Every budget whose globs match holds. Those of one period are one sum, and the least refuses."""
        wallets: list[Wallet] = []
        warnings: list[Threshold] = []
        places: list[str | None] = []
        for period in get_args(Period):
            held = [
                (budget, f"{self._place}[{number}]")
                for number, budget in enumerate(self._budgets)
                if budget.period == period and matches_any(budget.agents, client)
            ]
            if not held:
                continue
            refusing = [one for one in held if one[0].action == "refuse"]
            least = min(refusing, key=lambda one: one[0].nanos, default=None)
            for budget, place in held:
                if budget.action == "warn":
                    warnings.append(Threshold(len(wallets), budget.nanos, place))
            wallets.append(Wallet(f"{self._currency} {period}", period, None if least is None else least[0].nanos))
            places.append(None if least is None else least[1])
        return Purse(tuple(wallets), tuple(warnings), tuple(places)) if wallets else None


def overspent(overspending: Overspending, purse: Purse, currency: str) -> Rejection:
    """HTTP 429 until the period ends (RFC 6585). What is left of the budget is told to whoever has it."""
    wallet, spent, milliseconds = overspending.wallet, overspending.spent, overspending.retry_after_ms
    seconds = math.ceil(milliseconds / 1000)
    most = wallet.most or 0
    left = max(0, most - spent)
    return Rejection(
        status=429,
        code=RATE_LIMITED,
        message=f"the budget of this {wallet.period} is spent; the next begins in {seconds} s",
        reason="budget_spent",
        data={
            "dimension": "budget",
            "period": wallet.period,
            "currency": currency,
            "limit": most / 10**9,
            "remaining": left / 10**9,
            "retryAfterMs": milliseconds,
        },
        headers=((b"retry-after", b"%d" % seconds),),
        rule=purse.places[purse.wallets.index(wallet)],
    )
