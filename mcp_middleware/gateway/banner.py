"""What a person sees when the gateway has started: where it listens, who answers behind it, what is on, and what about
this configuration is dangerous. Pure, no I/O."""

from collections.abc import Iterator, Mapping
from typing import Any

from mcp_middleware.ratelimit.rate import Rate

from .access_log import visible
from .config import Config
from .sections.credentials import GrantConfig, HeaderConfig

__all__ = ["capabilities", "render"]


def render(config: Config, *, port: int, readiness: Mapping[str, Any], version: str) -> str:
    """The banner, some lines of plain text. ``port`` is the one that was got, ``readiness`` as ``Gateway`` has it."""
    return "".join(f"{visible(line)}\n" for line in _lines(config, port, readiness, version))


def _lines(config: Config, port: int, readiness: Mapping[str, Any], version: str) -> Iterator[str]:
    workers = "" if config.workers == 1 else f" by {config.workers} workers"
    yield f"mcp-gateway {version} listens on {config.own_url(port)}{workers}, by {config.source}"
    yield ""
    yield "  servers"
    width = max(len(config.resource(name)) for name in config.servers)
    for name, server in config.servers.items():
        instances = readiness.get("servers", {}).get(name, {}).get("instances", {})
        answering = [instance for instance, told in instances.items() if told.get("state") == "healthy"]
        silent = [instance for instance in instances if instance not in answering]
        if not silent:
            state = "answers" if len(server.instances) == 1 else f"all {len(server.instances)} instances answer"
        elif answering:
            state = f"{len(answering)} of {len(instances)} instances answer, not {', '.join(silent)}"
        else:
            state = f"DOES NOT ANSWER ({', '.join(silent)})"
        yield f"    {config.resource(name):{width}}  {state}"
    yield ""
    if readiness.get("waiting"):
        yield "  WAITING, and not ready until then"
        for sentence in readiness["waiting"]:
            yield f"    ! {sentence}"
        yield ""
    yield "  capabilities"
    for word, text in capabilities(config).items():
        yield f"    {word:14}  {text}"
    if config.warnings:
        yield ""
        yield "  DANGEROUS" if len(config.warnings) == 1 else f"  DANGEROUS, in {len(config.warnings)} ways"
        for warning in config.warnings:
            yield f"    ! {warning}"
    yield ""


def capabilities(config: Config) -> dict[str, str]:
    """What is on and how, a few words for each."""
    found = {}
    if config.auth is None:
        found["authentication"] = "off"
    else:
        issuers = ", ".join(issuer.issuer for issuer in config.auth.issuers)
        scopes = f", scopes {' '.join(config.auth.scopes)}" if config.auth.scopes else ""
        found["authentication"] = f"tokens of {issuers}{scopes}"
    found["authorization"] = _authorization(config)
    found["credentials"] = _credentials(config)
    found["limits"] = _limits(config)
    found["costs"] = _costs(config)
    found["guard"] = _guard(config)
    found["sessions"] = "sealed with a configured key" if config.sessions.keys else "sealed with a key of this process"
    found["state"] = config.state_name
    found["tracing"] = f"OTLP to {config.tracing.otlp}" if config.tracing is not None else "off"
    if config.audit is None:
        found["audit"] = "off"
    else:
        found["audit"] = ", ".join(str(path) for path in (config.audit.sqlite, config.audit.jsonl) if path is not None)
    return found


def _authorization(config: Config) -> str:
    """What the policy does where no rule matches, and which of its rules others deny whole."""
    policies = [policy for policy in config.policies.values() if policy is not None]
    told = dict.fromkeys(warning for policy in policies for warning in policy.warnings)
    return "; ".join([f"policy, {policies[0].default} by default", *told]) if policies else "off"


def _credentials(config: Config) -> str:
    """Of each server that has one: by what it knows the gateway, and whether it is told who calls."""
    told = []
    for name, server in config.servers.items():
        ways = []
        if isinstance(server.credentials, GrantConfig):
            ways.append(f"{server.credentials.type} of {server.credentials.issuer}")
        elif isinstance(server.credentials, HeaderConfig) or "authorization" in server.headers:
            ways.append("a header")
        if server.caller is not None:
            ways.append(f"the caller in {server.caller.header}")
        if ways:
            told.append(f"{name} by {' and '.join(ways)}")
    return ", ".join(told) or "none"


def _limits(config: Config) -> str:
    limits = config.limits
    if limits is None or limits.mode == "off":
        return "off"
    parts = [
        f"{_rate(rate)} {name}" for name, rate in (("requests", limits.requests), ("tokens", limits.tokens)) if rate
    ]
    if limits.concurrency is not None:
        parts.append(f"{limits.concurrency} at once")
    for kind, named in (("", limits.agents), ("tools ", limits.tools), ("servers ", limits.servers)):
        if named:
            parts.append(f"{'more' if kind else 'others'} for {kind}{', '.join(named)}")
    shadow = "in shadow mode: " if limits.mode == "shadow" else ""
    return f"{shadow}{', '.join(parts)}" if parts else "off"


def _costs(config: Config) -> str:
    """Prices and budgets."""
    prices = config.prices
    if prices is None or (config.limits is not None and config.limits.mode == "off"):
        return "off"
    budgets = []
    for budget in config.budgets:
        held = "at most" if budget.action == "refuse" else "a warning at"
        budgets.append(f"{held} {budget.amount} a {budget.period} for {', '.join(budget.agents)}")
    return "; ".join([f"prices in {prices.currency}", *budgets])


def _guard(config: Config) -> str:
    guard = config.guard
    if guard is None:
        return "off"
    counted = "an address" if config.auth is None else "an address without a good token"
    address = [] if guard.addresses is None else [f"{guard.addresses} of {counted}"]
    return ", ".join([*address, *(f"{rate} calls of {glob}" for glob, rate in guard.tools.items())])


def _rate(rate: Rate) -> str:
    return rate.rate if rate.burst is None else f"{rate.rate} (at most {rate.burst} at once)"
