"""Limits as a user writes them, and the buckets they mean."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final, NamedTuple, TypeAlias

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.options import whole_number
from mcp_middleware.storage import Limit

from .reading import read_mapping

__all__ = [
    "AgentLimits",
    "PartLimits",
    "Rate",
    "RateOption",
    "Rates",
    "limit_anything",
    "read_agent_limits",
    "read_part",
    "read_rate",
]


class _As(Enum):
    EVERYBODY = auto()


DEFAULT: Final[Any] = _As.EVERYBODY
"""In an agent's limits: what everybody has. No text, so that nobody can write it."""

_MOST: Final = 10**12


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate in the notation of the ``limits`` library, and how much of it may come at once.

    ``Rate("60/minute")`` holds 60 and refills one a second. ``Rate("60/minute", burst=10)`` refills as fast and holds
    10. The notation is ``<amount>/<period>`` or ``<amount> per <n> <period>`` with second, minute, hour, day, month
    (30 days) or year.
    """

    rate: str
    burst: int | None = None
    """Units at once; None allows the amount of the rate."""
    amount: int = field(init=False, repr=False, compare=False)
    """Units in one period."""
    seconds: int = field(init=False, repr=False, compare=False)
    """The period."""

    def __post_init__(self) -> None:
        amount, seconds = _parse(self.rate)
        object.__setattr__(self, "amount", amount)
        object.__setattr__(self, "seconds", seconds)
        if self.burst is not None:
            whole_number("burst", self.burst)
        self.limit  # noqa: B018  # figures that no bucket can keep are refused here, not at the first request

    @property
    def limit(self) -> Limit:
        """The bucket."""
        return Limit(self.capacity, self.amount / self.seconds)

    @property
    def capacity(self) -> int:
        """Units at once."""
        return self.amount if self.burst is None else self.burst

    @property
    def window(self) -> int:
        """Whole seconds in which that many flow back."""
        return -(-self.capacity * self.seconds // self.amount)


RateOption: TypeAlias = str | Rate | Mapping[str, Any] | None
"""A limit as an option: a rate, a mapping ``{"rate": ..., "burst": ...}``, or None for no limit."""


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """What is different for some agents. What is not given is as for everybody; None is no limit."""

    requests: RateOption = DEFAULT
    tokens: RateOption = DEFAULT
    concurrency: int | None = DEFAULT


@dataclass(frozen=True, slots=True)
class PartLimits:
    """What one agent may ask of a tool or of a server, beside all it asks for. None is no limit."""

    requests: RateOption = None
    tokens: RateOption = None


def _parse(notation: str) -> tuple[int, int]:
    """Amount and seconds. The library reads the first rate and skips what follows, and reads 0 periods as one, so
    every number it was given is compared with what it understood."""
    from limits import parse  # imports every storage of that library: 0.1 s that only a limiter should pay

    remedy = f"it must be like '60/minute' or '100 per 2 hours', from 1 to {_MOST:,}"
    if not isinstance(notation, str):
        raise ConfigurationError(f"the rate is {notation!r}; {remedy}")
    try:
        item = parse(notation)
    except ValueError:
        raise ConfigurationError(f"the rate is {notation!r}; {remedy}") from None
    numbers = [int(number) for number in re.findall(r"\d+", notation)]
    if not 1 <= item.amount <= _MOST or numbers not in ([item.amount], [item.amount, item.multiples]):
        raise ConfigurationError(f"the rate is {notation!r}; {remedy}, one rate only")
    return item.amount, item.get_expiry()


def read_rate(place: str, option: RateOption) -> Rate | None:
    """The rate an option means; ``place`` names the option in the error."""
    if option is None or isinstance(option, Rate):
        return option
    if isinstance(option, Mapping):
        return read_mapping(place, option, Rate)
    try:
        return Rate(option)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error}") from None


class Rates(NamedTuple):
    """Limits, read."""

    requests: Rate | None
    tokens: Rate | None
    concurrency: int | None = None


def read_agent_limits(place: str, option: Mapping[str, Any] | AgentLimits, everybody: Rates) -> Rates:
    """The limits of some agents, with ``everybody``'s where they say nothing."""
    if not isinstance(option, AgentLimits):
        option = read_mapping(place, option, AgentLimits)
    return Rates(
        everybody.requests if option.requests is DEFAULT else read_rate(f"{place}.requests", option.requests),
        everybody.tokens if option.tokens is DEFAULT else read_rate(f"{place}.tokens", option.tokens),
        everybody.concurrency
        if option.concurrency is DEFAULT
        else read_concurrency(f"{place}.concurrency", option.concurrency),
    )


def limit_anything(option: AgentLimits) -> bool:
    """Whether anything is limited for some agents that is not for everybody."""
    return any(one is not None and one is not DEFAULT for one in (option.requests, option.tokens, option.concurrency))


def read_part(place: str, option: Mapping[str, Any] | PartLimits) -> Rates:
    """The limits of a tool or a server."""
    if not isinstance(option, PartLimits):
        option = read_mapping(place, option, PartLimits)
    rates = Rates(read_rate(f"{place}.requests", option.requests), read_rate(f"{place}.tokens", option.tokens))
    if rates.requests is None and rates.tokens is None:
        raise ConfigurationError(f"{place} limits nothing; give requests, tokens or both")
    return rates


def read_concurrency(place: str, option: Any) -> int | None:
    """A number of open requests, or None for any number."""
    if option is None:
        return None
    try:
        return whole_number(place, option)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}, or None for any number") from None
