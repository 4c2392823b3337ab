"""What is dangerous about a sound configuration: a sentence for each thing that may cost or tell more than it seems.
Pure."""

from collections.abc import Collection, Iterator, Sequence
from ipaddress import ip_network
from typing import Final
from urllib.parse import urlsplit

from mcp_middleware.authorization import Policy
from mcp_middleware.oauth.urls import is_loopback
from mcp_middleware.ratelimit import Budget
from mcp_middleware.ratelimit.reading import matches_any

from .keys import Config
from .sections.auth import AuthConfig
from .sections.credentials import GrantConfig
from .sections.limits import LimitsConfig
from .sections.prices import server_globs
from .sections.servers import ServerConfig
from .sections.sessions import SessionsConfig

__all__ = ["counted", "dangers", "is_readable_on_the_way"]

_PROMPT: Final = 30.0
"""Seconds within which a revocation is to be seen."""
_NARROW: Final = 8
"""Bits of a network that is not everybody's."""
_LOCAL: Final = ip_network("fc00::/7")
"""The private addresses of IPv6 (RFC 4193)."""


def is_readable_on_the_way(url: str) -> bool:
    """Whether what goes to ``url`` passes over a network as it is."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def counted(limits: LimitsConfig | None, budgets: Sequence[Budget], sessions: SessionsConfig) -> list[str]:
    """The keys by which something is counted, which processes do together or each by itself."""
    off = limits is not None and limits.mode == "off"
    on = {"limits": limits is not None and not off, "budgets": budgets and not off}
    on["sessions.per_agent"] = sessions.per_agent is not None
    return [key for key, holds in on.items() if holds]


def dangers(config: Config, given: Collection[str]) -> Iterator[str]:
    """The sentences about ``config``, whose file has the sections ``given``."""
    for server in config.servers.values():
        yield from _of_server(server, off=config.auth is None)
    if "access" not in given:
        yield "access is not given: every caller may see and call everything"
    yield from _of_access(config)
    if is_readable_on_the_way(config.public_url):
        yield "public_url is http: everybody on the way can read and change what is said"
    if config.auth is None:
        yield "auth is off: nobody is asked who they are, and all callers are one agent"
    else:
        yield from _of_auth(config.auth)
    limited = () if config.limits is None else config.limits.servers
    if "limits" not in given and len(limited) < len(config.servers):
        yield "limits is not given: one agent can take all that the servers have"
    if not config.sessions.keys:
        alone = "for this process alone" if config.replicas == 1 else "that other replicas do not know"
        yield f"sessions.keys is not given: a key is made {alone}, and a restart ends all sessions"
    yield from _of_tracing(config)
    yield from _of_audit(config)
    yield from _of_limits(config)
    yield from _of_guard(config)
    if config.workers > 1 and config.state == "memory":
        yield "workers do not share their state: a session that was ended or idle is so to one worker only"
    counts = counted(config.limits, config.budgets, config.sessions)
    if config.replicas > 1 and config.state == "memory" and counts:
        yield f"replicas is {config.replicas}, and state is memory: each lets the whole of {' and '.join(counts)} pass"


def _of_access(config: Config) -> Iterator[str]:
    on = ", ".join(name for name, policy in config.policies.items() if policy is not None and _is_open(policy))
    if on:
        yield f"access allows by default, and no rule denies anything on {on}: every caller may see and call everything"


def _is_open(policy: Policy) -> bool:
    """Whether it keeps nobody from anything, be it for want of a scope."""
    return policy.default == "allow" and not any(rule.effect == "deny" or rule.scopes for rule in policy.rules)


def _of_server(server: ServerConfig, *, off: bool) -> Iterator[str]:
    place, grant = f"servers.{server.name}", server.credentials
    if off and (grant is not None or "authorization" in server.headers):
        key = "headers" if grant is None else "credentials"
        yield f"{place}.{key} are lent to everybody who reaches the gateway, since auth is off"
    if any(map(is_readable_on_the_way, server.instances)):
        for key, told in (("headers", server.headers), ("credentials", grant), ("caller", server.caller)):
            if told:
                yield f"{place}.{key} go over http to another machine: they can be read on the way"
    if isinstance(grant, GrantConfig) and grant.allow_private_addresses:
        yield _private(f"{place}.credentials")


def _of_auth(auth: AuthConfig) -> Iterator[str]:
    for number, issuer in enumerate(auth.issuers):
        place = f"auth.issuers[{number}]"
        if issuer.allow_private_addresses:
            yield _private(place)
        if issuer.introspection is not None and issuer.introspection.cache > _PROMPT:
            yield f"{place}.introspection.cache is above {_PROMPT:g} s: a revoked token is good for so long"


def _private(place: str) -> str:
    return f"{place}.allow_private_addresses is true: its metadata can have the gateway send requests into this network"


def _of_tracing(config: Config) -> Iterator[str]:
    if config.tracing is not None and config.tracing.capture_content:
        yield "tracing.capture_content is true: spans hold arguments and results, which may hold secrets"
    if config.tracing is not None and config.tracing.trust == "all":
        yield "tracing.trust is all: every caller decides what is sampled"


def _of_audit(config: Config) -> Iterator[str]:
    if config.audit is None:
        yield "audit is not given: nobody will know who called what"
        return
    if config.audit.on_failure == "continue":
        yield "audit.on_failure is continue: calls go on while they cannot be recorded"
    if config.audit.sqlite is None:
        yield "audit.sqlite is not given: a process that is killed loses its last records"


def _of_limits(config: Config) -> Iterator[str]:
    limits, prices, budgets = config.limits, config.prices, config.budgets
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
        for server in config.servers:
            if not any(globs is None or matches_any(globs, server) for globs in server_globs(prices)):
                yield f"prices has no rule for {server}: no budget counts what is called there"


def _is_bounded(budget: Budget, budgets: Sequence[Budget]) -> bool:
    """Whether another one refuses, for all whom this one warns of as far as that can be seen."""
    refusing = [other for other in budgets if other.action == "refuse"]
    return any("*" in other.agents or set(budget.agents) <= set(other.agents) for other in refusing)


def _of_guard(config: Config) -> Iterator[str]:
    guard = config.guard
    if guard is None:
        return
    for proxy in guard.trusted_proxies:
        network = ip_network(proxy)
        if network.prefixlen < _NARROW and network != _LOCAL:
            yield f"guard.trusted_proxies has {proxy}: callers there can name any address as theirs"
    behind_proxy = is_loopback(config.host) and not is_loopback(urlsplit(config.public_url).hostname or "")
    if guard.addresses is not None and not guard.trusted_proxies and behind_proxy:
        yield (
            "guard.trusted_proxies is not given, and only this machine reaches listen: all callers have the address of "
            "the proxy, and one of them locks out all"
        )
