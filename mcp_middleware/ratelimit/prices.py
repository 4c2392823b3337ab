"""What calls cost: prices as a user writes them, and their arithmetic in whole numbers. Pure.

Prices are exact decimals. A call's cost is added up in billionths of a millionth of the currency's unit, where every
price is a whole number, and rounded once, half up, to the billionth that ``Money`` keeps. So no sum depends on its
order, and a call's cost differs from the exact one by half a billionth at most.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, TypeAlias

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.message import Request
from mcp_middleware.types import Money, Usage

from .reading import globs, list_of, matches_any, read_mapping

__all__ = ["Amount", "Price", "Prices", "PricesOption", "amount_in_nanos", "read_prices"]

Amount: TypeAlias = str | int | float | Decimal
"""An amount as a user writes it. A float counts as the shortest decimal that reads as it: 0.1 is a tenth."""

_CURRENCY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,15}")
_WRITTEN: Final = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")
_MOST: Final = 1_000_000
_FARTHEST: Final = 30
"""The exponent of ten of the first digit, beyond which no amount is; as a fraction some would fill the memory."""
_TOKENS: Final = 1_000_000
"""Tokens that a price is for."""
_TOKEN_DECIMALS: Final = 6
_CALL_DECIMALS: Final = 9
_PER_NANO: Final = 1000
"""Parts of a billionth that are counted in: a price for a million tokens, with its decimals, is a whole number of them
for each token."""
_CACHED: Final = 4096
_LONG: Final = 256
"""Characters of a tool's name that is not cached: a caller invents it, and it may be megabytes."""


@dataclass(frozen=True, slots=True)
class Price:
    """What some calls cost, in units of the currency. An amount that is not given is 0.

    Amounts are from 0 to a million, with at most 6 decimals for tokens and 9 for a call. Raises ConfigurationError.
    """

    servers: Sequence[str] | None = None
    """Globs of servers' names. None: calls of every server."""
    tools: Sequence[str] | None = None
    """Globs of tools' names. None: every call, also of prompts and resources."""
    input: Amount | None = None
    """For a million tokens of the call's parameters, which the agent's model wrote."""
    output: Amount | None = None
    """For a million tokens of the answer, which it reads."""
    call: Amount | None = None
    """For each call."""
    _parts: tuple[int, int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("servers", "tools"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, globs(name, getattr(self, name)))
        if self.input is None and self.output is None and self.call is None:
            raise ConfigurationError("it prices nothing; give input, output or call")
        per_token = _PER_NANO * 10**9 // _TOKENS
        parts = (
            _whole("input", self.input, decimals=_TOKEN_DECIMALS, parts=per_token),
            _whole("output", self.output, decimals=_TOKEN_DECIMALS, parts=per_token),
            _whole("call", self.call, decimals=_CALL_DECIMALS, parts=_PER_NANO * 10**9),
        )
        object.__setattr__(self, "_parts", parts)

    def nanos(self, usage: Usage) -> int:
        """The cost of one call in billionths of the currency's unit."""
        for_input, for_output, for_call = self._parts
        parts = usage.input_tokens * for_input + usage.output_tokens * for_output + for_call
        return (parts + _PER_NANO // 2) // _PER_NANO

    def holds_for(self, server: str | None, tool: str | None) -> bool:
        """Whether this is the price of a call of ``tool``, or of something that is no tool (None)."""
        return (self.servers is None or (server is not None and matches_any(self.servers, server))) and (
            self.tools is None or (tool is not None and matches_any(self.tools, tool))
        )


@dataclass(frozen=True, slots=True)
class Prices:
    """The prices of calls, in one currency; the first that holds for a call counts. Raises ConfigurationError.

    ::

        Prices("EUR", [Price(tools=["search*"], input=0.50, output=1.50, call="0.002"), Price(output=1)])
    """

    currency: str
    """A code such as ``EUR``, or a word for a unit of your own: 1 to 16 letters, digits, ``-`` and ``_``."""
    rules: Sequence[Price | Mapping[str, Any]]
    _find: Callable[[str | None, str | None], Price | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.currency, str) or not _CURRENCY.fullmatch(self.currency):
            raise ConfigurationError(
                f"currency is {self.currency!r}; it must be a code such as 'EUR': a letter, "
                "then at most 15 letters, digits, '-' and '_'"
            )
        rules = list_of("rules", self.rules, "prices")
        read = tuple(
            rule if isinstance(rule, Price) else read_mapping(f"rules[{number}]", rule, Price)
            for number, rule in enumerate(rules)
        )
        object.__setattr__(self, "rules", read)

        def find(server: str | None, tool: str | None) -> Price | None:
            return next((price for price in read if price.holds_for(server, tool)), None)

        cached = lru_cache(_CACHED)(find)
        object.__setattr__(
            self, "_find", lambda server, tool: (find if len(tool or "") > _LONG else cached)(server, tool)
        )

    def check_server(self, server: str | None) -> None:
        """Raise ConfigurationError if a price is for certain servers and this one has no name."""
        for number, price in enumerate(self.rules):
            if server is None and isinstance(price, Price) and price.servers is not None:
                raise ConfigurationError(
                    f"rules[{number}].servers is {list(price.servers)!r}, and this server has no name; give server"
                )

    def cost(self, server: str | None, request: Request, usage: Usage) -> Money | None:
        """What a call of a server cost; None if no price holds for it."""
        price = self._find(server, request.target if request.method == "tools/call" else None)
        return None if price is None else Money(price.nanos(usage), self.currency)


PricesOption: TypeAlias = Prices | Mapping[str, Any] | None
"""Prices as an option: ``Prices``, a mapping with ``currency`` and ``rules``, or None for none."""


def read_prices(place: str, option: PricesOption, *, server: str | None) -> Prices | None:
    """The prices an option means; ``place`` names the option in the error."""
    if option is None:
        return None
    prices = option if isinstance(option, Prices) else read_mapping(place, option, Prices)
    try:
        prices.check_server(server)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error}") from None
    return prices


def amount_in_nanos(place: str, option: Any, *, most: int) -> int:
    """An amount above 0 in billionths of its unit."""
    return _whole(place, option, decimals=_CALL_DECIMALS, parts=10**9, most=most, least=1)


def _whole(place: str, option: Any, *, decimals: int, parts: int, most: int = _MOST, least: int = 0) -> int:
    """An amount times ``parts``, which is a whole number; 0 for None."""
    if option is None:
        return 0
    above = "from 0" if least == 0 else "above 0"
    remedy = f"it must be a number {above} to {most:,}, with at most {decimals} decimals"
    amount = _exact(option)
    if amount is None or not 0 <= amount <= most or (amount * 10**decimals).denominator != 1 or amount * parts < least:
        raise ConfigurationError(f"{place} is {option!r}; {remedy}")
    return int(amount * parts)


def _exact(option: Any) -> Fraction | None:
    """What was written. As a fraction: what an application does to the precision of its decimals changes no price."""
    if isinstance(option, bool) or not isinstance(option, str | int | float | Decimal):
        return None
    if isinstance(option, str) and not _WRITTEN.fullmatch(option):
        return None
    if isinstance(option, int) and option.bit_length() > 64:
        return None
    amount = Decimal(str(option))
    if not amount.is_finite() or (amount and abs(amount.adjusted()) > _FARTHEST):
        return None
    return Fraction(amount)
