"""What the gateway's file says of limits, prices, budgets and the guard, as typed values, and what about them is
dangerous. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Final, Literal, TypeAlias

from mcp_middleware.ratelimit import Budget, LimiterMode, PartLimits, Prices, Refusal
from mcp_middleware.ratelimit.prices import Price
from mcp_middleware.ratelimit.rate import AgentLimits, Rate
from mcp_middleware.ratelimit.reading import matches_any
from mcp_middleware.ratelimit.tokens import AUDIO_TOKENS, IMAGE_TOKENS

__all__ = [
    "INITIAL_OUTPUT_TOKENS",
    "Counting",
    "GuardConfig",
    "LimitsConfig",
    "ServerLimits",
    "dangers",
    "unpriced_globs",
]

Counting: TypeAlias = Literal["estimate", "o200k_base", "cl100k_base"]
"""How tokens are counted: by an estimate, or by a vocabulary, which needs the extra ``exact``."""

INITIAL_OUTPUT_TOKENS: Final = 1000
_NARROW: Final = 8
"""Bits of a network that is not everybody's."""
_LOCAL: Final = ip_network("fc00::/7")
"""The private addresses of IPv6 (RFC 4193)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Limits of each agent on one server, on top of its own."""

    all: PartLimits | None = None
    """On all that it asks of this server."""
    tools: Mapping[str, PartLimits] = field(default_factory=dict)
    """On its calls of tools, by globs; these come before those for every server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """As ``RateLimitMiddleware`` takes them; None does not limit."""

    requests: Rate | None = None
    tokens: Rate | None = None
    concurrency: int | None = None
    agents: Mapping[str, AgentLimits] = field(default_factory=dict)
    tools: Mapping[str, PartLimits] = field(default_factory=dict)
    servers: Mapping[str, ServerLimits] = field(default_factory=dict)
    """By the server's name. Not in ``ServerConfig``: a change of them is none of the server's."""
    initial_output_tokens: int = INITIAL_OUTPUT_TOKENS
    image_tokens: int = IMAGE_TOKENS
    audio_tokens: int = AUDIO_TOKENS
    counter: Counting = "estimate"
    mode: LimiterMode = "enforce"
    refuse_with: Refusal = "error"
    cut_streams: bool = False

    def hold_for(self, server: str) -> bool:
        """Whether anything that is asked of ``server`` is limited."""
        own = (self.requests, self.tokens, self.concurrency)
        return any(rate is not None for rate in own) or bool(self.agents or self.tools or server in self.servers)

    @property
    def limit_nothing(self) -> bool:
        return not self.servers and not self.hold_for("")

    def of_server(self, server: str) -> PartLimits | None:
        """What limits all that an agent asks of ``server``."""
        return self.servers[server].all if server in self.servers else None

    def of_tools(self, server: str) -> dict[str, PartLimits]:
        """What limits the tools of ``server``, the first glob that matches first."""
        own = self.servers[server].tools if server in self.servers else {}
        return {**own, **{glob: limits for glob, limits in self.tools.items() if glob not in own}}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardConfig:
    """As ``RequestGuardMiddleware`` takes it."""

    addresses: str | None = None
    tools: Mapping[str, str] = field(default_factory=dict)
    trusted_proxies: tuple[str, ...] = ()


def dangers(
    limits: LimitsConfig | None,
    prices: Prices | None,
    budgets: Sequence[Budget],
    guard: GuardConfig | None,
    servers: Sequence[str],
) -> Iterator[str]:
    """A sentence for each thing that may cost more than it seems."""
    if limits is not None and limits.mode == "shadow":
        budgeted = " and budgets" if budgets else ""
        yield f"limits.mode is shadow: limits{budgeted} are only reported, and what does not fit goes on"
    if limits is not None and limits.mode == "off":
        priced = ", and no call has a cost" if prices is not None else ""
        yield f"limits.mode is off: nothing is limited{priced}"
    for number, budget in enumerate(budgets):
        if budget.action == "warn" and not _is_bounded(budget, budgets):
            yield f"budgets[{number}] only warns, and no budget refuses those agents: they can spend more"
    if budgets and prices is not None:
        for server in servers:
            if not any(globs is None or matches_any(globs, server) for globs in _priced(prices)):
                yield f"prices has no rule for {server}: no budget counts what is called there"
    for proxy in () if guard is None else guard.trusted_proxies:
        network = ip_network(proxy)
        if network.prefixlen < _NARROW and network != _LOCAL:
            yield f"guard.trusted_proxies has {proxy}: callers there can name any address as theirs"


def _is_bounded(budget: Budget, budgets: Sequence[Budget]) -> bool:
    """Whether another one refuses, for all whom this one warns of as far as that can be seen."""
    refusing = [other for other in budgets if other.action == "refuse"]
    return any("*" in other.agents or set(budget.agents) <= set(other.agents) for other in refusing)


def _priced(prices: Prices) -> list[Sequence[str] | None]:
    """For each rule the globs of the servers it is for."""
    return [rule.servers for rule in prices.rules if isinstance(rule, Price)]


def unpriced_globs(prices: Prices, servers: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The globs of servers that match none, each with the number of its rule."""
    for number, globs in enumerate(_priced(prices)):
        for glob in globs or ():
            if not any(matches_any([glob], server) for server in servers):
                yield number, glob
