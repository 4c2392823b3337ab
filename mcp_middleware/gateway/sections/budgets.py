"""``budgets``: what each agent may spend."""

from typing import Final, get_args

from mcp_middleware.gateway.scalars import Amount, OneOf
from mcp_middleware.gateway.shapes import Key, ListOf, Section
from mcp_middleware.gateway.values import AGENT_GLOB
from mcp_middleware.ratelimit import Budget
from mcp_middleware.ratelimit.budgets import BudgetAction
from mcp_middleware.storage.budgets import Period

__all__ = ["BUDGETS"]

_AMOUNT: Final = Amount(
    "be a number above 0, to 1000000000, with at most 9 decimals", lambda amount: Budget("day", amount)
)
BUDGETS: Final = ListOf(
    Section(
        "budgets[]",
        (
            Key("period", OneOf(get_args(Period)), "Of the calendar, in UTC.", required=True),
            Key("amount", _AMOUNT, "In the currency of `prices`.", required=True),
            Key(
                "agents",
                ListOf(AGENT_GLOB),
                "Globs of client ids; each agent has one budget, whoever it acts for.",
                ["*"],
            ),
            Key(
                "action",
                OneOf(get_args(BudgetAction)),
                "`refuse`: calls that would spend more are refused until the period ends. `warn`: it is logged and "
                "counted, and calls go on.",
                "refuse",
            ),
        ),
        lambda values: Budget(**values),
    )
)
