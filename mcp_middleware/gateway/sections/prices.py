"""``prices``: what calls cost."""

from collections.abc import Iterator, Sequence
from typing import Final

from mcp_middleware.gateway.scalars import Amount
from mcp_middleware.gateway.shapes import Key, ListOf, Section, Text
from mcp_middleware.gateway.values import SERVER_GLOB, TOOL_GLOB, some_of
from mcp_middleware.ratelimit import Price, Prices
from mcp_middleware.ratelimit.reading import matches_any

__all__ = ["PRICES", "server_globs", "unmatched_globs"]


def server_globs(prices: Prices) -> list[Sequence[str] | None]:
    """For each rule the globs of the servers it is for; None where it is for all."""
    return [rule.servers for rule in prices.rules if isinstance(rule, Price)]


def unmatched_globs(prices: Prices, servers: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The globs of servers that match none, each with the number of its rule."""
    for number, globs in enumerate(server_globs(prices)):
        for one in globs or ():
            if not any(matches_any([one], server) for server in servers):
                yield number, one


def _currency(text: str) -> str:
    Prices(text, [Price(call=0)])
    return text


_CURRENCY: Final = Text(
    "currency",
    "be a code such as EUR: a letter, then at most 15 letters, digits, - and _",
    _currency,
    r"^[A-Za-z][A-Za-z0-9_-]{0,15}$",
    ("EUR",),
)
_TOKEN_PRICE: Final = Amount(
    "be a number from 0 to 1000000, with at most 6 decimals", lambda amount: Price(input=amount)
)
_CALL_PRICE: Final = Amount("be a number from 0 to 1000000, with at most 9 decimals", lambda amount: Price(call=amount))

_PRICE: Final = Section(
    "prices.rules[]",
    (
        Key("servers", ListOf(SERVER_GLOB), "Globs of servers' names. Without it: calls of every server."),
        Key(
            "tools",
            ListOf(TOOL_GLOB),
            "Globs of tools' names. Without it: every call, also of prompts and resources.",
        ),
        Key("input", _TOKEN_PRICE, "For a million tokens of the call's parameters, which the agent's model wrote."),
        Key("output", _TOKEN_PRICE, "For a million tokens of the answer, which it reads."),
        Key("call", _CALL_PRICE, "For each call."),
    ),
    lambda values: Price(**values),
    lambda given: some_of(given, "input", "output", "call"),
)
PRICES: Final = Section(
    "prices",
    (
        Key("currency", _CURRENCY, "A code such as `EUR`, or a word for a unit of your own.", required=True),
        Key("rules", ListOf(_PRICE), "The prices; the first that holds for a call counts.", required=True),
    ),
    lambda values: Prices(**values),
)
