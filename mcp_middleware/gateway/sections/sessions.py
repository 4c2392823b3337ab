"""``sessions``: the sessions of the revisions that have them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mcp_middleware.affinity.sealing import KeyRing
from mcp_middleware.gateway.scalars import Duration, Secret
from mcp_middleware.gateway.shapes import Key, ListOf, Section
from mcp_middleware.gateway.values import MOST, unless_off

__all__ = ["SESSIONS", "SessionsConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionsConfig:
    """As ``SessionAffinityMiddleware`` takes them."""

    keys: tuple[str, ...] = field(default=(), repr=False)
    """The first seals, all open. Empty: a key has to be made, for this process alone."""
    idle: float = 1800.0
    """Seconds."""
    lifetime: float = 43_200.0
    """Seconds."""
    per_agent: int | None = 100
    """Open sessions of one caller; None does not limit."""


def _key(text: str) -> str:
    KeyRing([text])
    return text


def _sessions(values: Mapping[str, Any]) -> SessionsConfig:
    return SessionsConfig(**{**values, "per_agent": unless_off(values["per_agent"])})


_KEY: Final = Secret(
    "secret",
    "be 32 random bytes in base64, as `openssl rand -base64 32` prints, or {file: PATH}",
    _key,
    ("${SESSION_KEY}",),
)
SESSIONS: Final = Section(
    "sessions",
    (
        Key(
            "keys",
            ListOf(_KEY, least=0),
            "The keys that seal session ids: the first seals, all open, so that keys can be replaced in "
            "turn. Every replica needs the same. Without any, a key is made for this process alone, and a restart "
            "ends all sessions.",
            [],
        ),
        Key("idle", Duration(), "How long a session may be without a request.", "30m"),
        Key("lifetime", Duration(), "How long a session may live.", "12h"),
        Key("per_agent", MOST, "Open sessions of one caller (an agent, and the person it acts for).", 100),
    ),
    _sessions,
)
