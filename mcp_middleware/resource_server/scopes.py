"""Scopes, and which of them imply others. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mcp_middleware.errors import ConfigurationError

__all__ = ["ScopeHierarchy", "scope_names"]

_SCOPE_CHARACTERS: Final = frozenset(map(chr, range(0x21, 0x7F))) - {'"', "\\"}
"""RFC 6749 section 3.3, ``NQCHAR``."""


def scope_names(scopes: Sequence[str]) -> tuple[str, ...]:
    """``scopes`` in order, each once, without ``offline_access``. Raises ConfigurationError for what is no scope."""
    return tuple(scope for scope in _scopes("scopes", scopes) if scope != "offline_access")


def _scopes(place: str, scopes: Any) -> list[str]:
    if isinstance(scopes, str | Mapping) or not isinstance(scopes, Iterable):
        raise ConfigurationError(f"{place} is {scopes!r}; it must be a list of scope names")
    named = list(scopes)
    for scope in named:
        if not isinstance(scope, str) or not scope or not _SCOPE_CHARACTERS.issuperset(scope):
            raise ConfigurationError(
                f"{place} has {scope!r}; a scope is printable ASCII without space, double quote and backslash"
            )
    return list(dict.fromkeys(named))


class ScopeHierarchy:
    """Scopes that contain others: a token with the greater need not name the smaller (B10, "MUST account for scope
    hierarchy").

    ``implied`` names for a scope those that it contains; what these contain is contained as well. Raises
    ConfigurationError, also where a scope would contain itself: two scopes that contain each other are one scope, and
    more likely a mistake that gives everybody the greater one.
    """

    __slots__ = ("_contained",)

    def __init__(self, implied: Mapping[str, Sequence[str]]) -> None:
        if not isinstance(implied, Mapping):
            raise ConfigurationError(
                f"implied_scopes is {implied!r}; it must be a mapping from a scope to a list of those it contains"
            )
        _scopes("implied_scopes", list(implied))
        direct = {scope: _scopes(f"implied_scopes[{scope!r}]", several) for scope, several in implied.items()}
        self._contained = {scope: _contained(scope, direct) for scope in direct}

    def widened(self, scopes: frozenset[str]) -> frozenset[str]:
        """``scopes`` with all that they contain; the same object where that is nothing new."""
        found = [self._contained[scope] for scope in scopes if scope in self._contained]
        wide = scopes.union(*found)
        return scopes if len(wide) == len(scopes) else wide


def _contained(scope: str, direct: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """All that ``scope`` contains, by whatever way."""
    found: dict[str, str] = {}  # and by what it was found first
    waiting = [scope]
    for holder in waiting:
        for held in direct.get(holder, ()):
            if held == scope:
                way = [scope, holder]
                while way[-1] != scope:
                    way.append(found[way[-1]])
                circle = " contains ".join(reversed(way))
                raise ConfigurationError(f"implied_scopes[{scope!r}]: {circle}; no scope may contain itself")
            if held not in found:
                found[held] = holder
                waiting.append(held)
    return frozenset(found)
