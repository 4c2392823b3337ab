"""Scopes, and which of them imply others. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mcp_middleware.errors import ConfigurationError

__all__ = ["ScopeHierarchy", "scope_names"]

_SCOPE_CHARACTERS: Final = frozenset(map(chr, range(0x21, 0x7F))) - {'"', "\\"}
"""RFC 6749 section 3.3, ``NQCHAR``."""


def scope_names(scopes: Sequence[str]) -> tuple[str, ...]:
    """``scopes`` in order, each once. Raises ConfigurationError for what is no scope, and for ``offline_access``, which
    no challenge and no metadata should name (B11)."""
    return tuple(_scopes("scopes", scopes))


def _scopes(place: str, scopes: Any) -> list[str]:
    if isinstance(scopes, str | Mapping) or not isinstance(scopes, Iterable):
        raise ConfigurationError(f"{place} is {scopes!r}; it must be a list of scope names")
    named = list(scopes)
    for scope in named:
        if not isinstance(scope, str) or not scope or not _SCOPE_CHARACTERS.issuperset(scope):
            raise ConfigurationError(
                f"{place} has {scope!r}; a scope is printable ASCII without space, double quote and backslash"
            )
        if scope == "offline_access":
            raise ConfigurationError(
                f"{place} has 'offline_access', which asks for a refresh token and permits nothing; leave it out"
            )
    return list(dict.fromkeys(named))


class ScopeHierarchy:
    """Scopes that contain others: a token with the greater need not name the smaller (B10, "MUST account for scope
    hierarchy").

    ``implied`` names for a scope those that it contains; what these contain is contained as well. Raises
    ConfigurationError, also where a scope would contain itself: two scopes that contain each other are one scope, and
    more likely a mistake that gives everybody the greater one.
    """

    __slots__ = ("_direct",)

    def __init__(self, implied: Mapping[str, Sequence[str]]) -> None:
        if not isinstance(implied, Mapping):
            raise ConfigurationError(
                f"implied_scopes is {implied!r}; it must be a mapping from a scope to a list of those it contains"
            )
        _scopes("implied_scopes", list(implied))
        self._direct = {scope: _scopes(f"implied_scopes[{scope!r}]", several) for scope, several in implied.items()}
        circle = _circle(self._direct)
        if circle:
            shown = " contains ".join(circle)
            raise ConfigurationError(f"implied_scopes[{circle[0]!r}]: {shown}; no scope may contain itself")

    def widened(self, scopes: frozenset[str]) -> frozenset[str]:
        """``scopes`` with all that they contain; the same object where that is nothing new."""
        found, waiting = set(scopes), list(scopes)
        for holder in waiting:
            for held in self._direct.get(holder, ()):
                if held not in found:
                    found.add(held)
                    waiting.append(held)
        return scopes if len(found) == len(scopes) else frozenset(found)


def _circle(direct: Mapping[str, Sequence[str]]) -> list[str]:
    """The way from a scope through those that it contains back to itself; nothing where there is none."""
    done = set[str]()
    for first in direct:
        way = {first: iter(direct[first])} if first not in done else {}
        while way:
            holder = next(reversed(way))
            held = next(way[holder], None)
            if held is None:
                done.add(holder)
                del way[holder]
            elif held in way:
                scopes = list(way)
                return [*scopes[scopes.index(held) :], held]
            elif held not in done:
                way[held] = iter(direct.get(held, ()))
    return []
