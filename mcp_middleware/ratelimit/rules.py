"""Which limits a request falls under: those of its agent, its server and its tool, put together."""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, Literal

import msgspec

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.storage import Limits

from .rate import (
    AgentLimits,
    PartLimits,
    RateOption,
    Rates,
    read_agent_limits,
    read_concurrency,
    read_part,
    read_rate,
)
from .reading import by_glob, is_text

__all__ = ["Profile", "Rules", "whose"]

_CACHED: Final = 4096
_LONG: Final = 256
"""Characters of a tool's name that is not cached: a caller invents it, and it may be megabytes."""

_UNITS: Final = {"requests": "", "tokens": ';qu="tokens"'}
"""Quota units. The draft registers none for tokens, and takes a policy without one for a number of requests."""


class Profile(msgspec.Struct, frozen=True):
    """The limits that hold for some requests, and how they are stated."""

    limits: Limits
    policy: bytes
    """``RateLimit-Policy``; empty where nothing is limited."""
    left: bytes
    """``RateLimit`` with a place for every number: requests and tokens of each pair, the principal's own first, as far
    as they are limited, and the open requests."""
    most_tokens: float
    """What the smallest tokens bucket holds when it is full."""
    smallest: str | None
    """The part of ``limits`` that has it; None for the principal's own."""


def whose(part: str | None) -> Literal["agent", "tool", "server"]:
    """Whose limit a part of ``Limits`` is."""
    if part is None:
        return "agent"
    return "tool" if part.startswith("tool:") else "server"


class Rules:
    """The options of a limiter that say how much, read. Raises ConfigurationError for a wrong one, naming ``name``."""

    def __init__(
        self,
        name: str,
        *,
        requests: RateOption = None,
        tokens: RateOption = None,
        concurrency: int | None = None,
        agents: Mapping[str, Mapping[str, Any] | AgentLimits] | None = None,
        tools: Mapping[str, Mapping[str, Any] | PartLimits] | None = None,
        server: str | None = None,
        server_limits: Mapping[str, Any] | PartLimits | None = None,
        is_priced: bool = False,
    ) -> None:
        everybody = Rates(
            read_rate(f"{name}: requests", requests),
            read_rate(f"{name}: tokens", tokens),
            read_concurrency(f"{name}: concurrency", concurrency),
        )
        if server is not None and not is_text(server):
            raise ConfigurationError(f"{name}: server is {server!r}; it must be a name")
        parts: list[tuple[str, Rates]] = []
        if server_limits is not None:
            if server is None:
                raise ConfigurationError(f"{name}: server_limits needs server, the name of whose limits they are")
            parts.append((f"server:{server}", read_part(f"{name}: server_limits", server_limits)))
        prefix = "tool:" if server is None else f"tool:{server}/"
        self._tools = [
            (pattern, (f"{prefix}{glob}", read_part(f"{name}: tools[{glob!r}]", option)))
            for glob, pattern, option in by_glob(f"{name}: tools", tools, names="tool names", values="limits")
        ]
        self._agents = [
            (pattern, self._profiles(read_agent_limits(f"{name}: agents[{glob!r}]", option, everybody), parts))
            for glob, pattern, option in by_glob(f"{name}: agents", agents, names="client ids", values="limits")
        ]
        self._everybody = self._profiles(everybody, parts)
        every = (self._everybody, *(profiles for _, profiles in self._agents))
        if not is_priced and not any(profile.policy for profiles in every for profile in profiles):
            raise ConfigurationError(
                f"{name} limits nothing; give requests, tokens, concurrency, agents, tools, server_limits or prices"
            )
        self._caller = lru_cache(_CACHED)(self._find_caller)
        self._tool = lru_cache(_CACHED)(self._find_tool) if self._tools else None

    def find(self, principal_key: tuple[str | None, str, str | None], tool: str | None) -> tuple[bytes, Profile]:
        """The storage's key for a principal, and the limits of its call of ``tool``; None is another request."""
        key, profiles = self._caller(principal_key)
        if tool is None or self._tool is None:
            return key, profiles[0]
        return key, profiles[self._tool(tool) if len(tool) <= _LONG else self._find_tool(tool)]

    def _find_caller(self, principal_key: tuple[str | None, str, str | None]) -> tuple[bytes, tuple[Profile, ...]]:
        """The key is of one size whatever a token says."""
        key = blake2b(json.dumps(principal_key).encode(), digest_size=20).digest()
        client = principal_key[1]
        for pattern, profiles in self._agents:
            if pattern.fullmatch(client):
                return key, profiles
        return key, self._everybody

    def _find_tool(self, tool: str) -> int:
        for number, (pattern, _) in enumerate(self._tools, start=1):
            if pattern.fullmatch(tool):
                return number
        return 0

    def _profiles(self, rates: Rates, parts: list[tuple[str, Rates]]) -> tuple[Profile, ...]:
        """Without a tool of its own limits, and for each that has some."""
        return (_profile(rates, parts), *(_profile(rates, [*parts, tool]) for _, tool in self._tools))


def _profile(rates: Rates, parts: list[tuple[str, Rates]]) -> Profile:
    """A bucket's policy (draft-ietf-httpapi-ratelimit-headers-11, section 3.1) is its capacity and the time in which
    that flows back: whoever uses no more in any such time is not refused, and there is never more left than that.
    Rounded up to a second, which promises less rather than more."""
    policies: list[str] = []
    names: list[str] = []
    every: list[tuple[str | None, Rates]] = [(None, rates), *parts]
    for part, figures in every:
        kind = "" if part is None else f"{whose(part)}-"
        for unit, rate in (("requests", figures.requests), ("tokens", figures.tokens)):
            if rate is not None:
                policies.append(f'"{kind}{unit}";q={rate.capacity};w={rate.window}{_UNITS[unit]}')
                names.append(f"{kind}{unit}")
    if rates.concurrency is not None:
        policies.append(f'"concurrency";q={rates.concurrency};qu="concurrent-requests"')
        names.append("concurrency")
    own = _limits(rates)
    limits = Limits(
        own.requests, own.tokens, rates.concurrency, tuple((part, _limits(figures)) for part, figures in parts)
    )
    held = [(figures.tokens.capacity, part) for part, figures in every if figures.tokens is not None]
    most, smallest = min(held, key=lambda one: one[0], default=(math.inf, None))
    left = ", ".join(f'"{name}";r=%d' for name in names)
    return Profile(limits, ", ".join(policies).encode(), left.encode(), most, smallest)


def _limits(rates: Rates) -> Limits:
    requests, tokens = (None if rate is None else rate.limit for rate in (rates.requests, rates.tokens))
    return Limits(requests, tokens)
