"""Globs in the limiter's options: those of policies, with nothing else that is read in silence."""

from collections.abc import Callable
from typing import Any

import pytest

from mcp_middleware import Budget, ConfigurationError, Price, RateLimitMiddleware, RequestGuardMiddleware
from mcp_middleware.ratelimit.reading import by_glob, matches_any


async def server(scope: Any, receive: Any, send: Any) -> None: ...


TAKERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "agents": ("agents", lambda glob: RateLimitMiddleware(server, agents={glob: {"requests": "1/day"}})),
    "tools": ("tools", lambda glob: RateLimitMiddleware(server, tools={glob: {"requests": "1/day"}})),
    "guarded": ("tools", lambda glob: RequestGuardMiddleware(server, tools={glob: "1/day"})),
    "priced tools": ("tools", lambda glob: Price(call=1, tools=[glob])),
    "priced servers": ("servers", lambda glob: Price(call=1, servers=[glob])),
    "budget": ("agents", lambda glob: Budget("day", 1, [glob])),
}


@pytest.mark.parametrize("taker", list(TAKERS))
@pytest.mark.parametrize(
    ("glob", "reason"),
    [
        ("[ab]", "'[' has no meaning in a glob"),
        ("!x", "there is no negation"),
        ("a{b,c}", "'{' has no meaning in a glob"),
        ("a\\*", r"'\\' has no meaning in a glob"),
    ],
)
def test_what_a_policy_refuses_is_refused_where_it_limits(taker: str, glob: str, reason: str) -> None:
    place, take = TAKERS[taker]
    with pytest.raises(ConfigurationError) as refused:
        take(glob)
    assert f"{place} has the glob {glob!r}: {reason}" in str(refused.value)


@pytest.mark.parametrize(
    ("glob", "name", "matches"),
    [
        ("search*", "search", True),
        ("search*", "research", False),
        ("search", "search_mail", False),
        ("read_?", "read_a", True),
        ("read_?", "read_", False),
        ("*", "a\nb", True),
        ("Echo", "echo", False),
        ("a.b", "axb", False),
    ],
)
def test_a_glob_stands_for_whole_names(glob: str, name: str, matches: bool) -> None:
    assert matches_any(["nothing", glob], name) is matches
    ((_, expression, _),) = by_glob("tools", {glob: 1}, names="tool names", values="numbers")
    assert (expression.fullmatch(name) is not None) is matches
