"""Who a token speaks of: which of its claims name the agent, the subject, the scopes and the roles. Pure.

Issuers agree on little here (Entra ID has ``appid``, Okta ``cid``, Keycloak ``realm_access.roles``), so each has its
own mapping. A claim that is mapped and is not of the type it must be refuses the token: to drop it would let in
somebody with other rights than the issuer gave.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeGuard

from mcp_middleware.errors import ConfigurationError

__all__ = ["MAX_NAME", "Claims", "Identity", "InvalidTokenError", "identity_of", "is_name", "shown"]

MAX_NAME: Final = 512
"""Characters of a name that comes from a token."""
_MAX_NAMES: Final = 1000
"""Scopes, or roles, of one token."""
_MAX_PATH: Final = 256
"""Characters of a claim's name in the configuration."""
_MAX_DEPTH: Final = 8
"""Dots in it."""
_NONE: Final[frozenset[str]] = frozenset()
"""One for all tokens without roles."""


class InvalidTokenError(Exception):
    """Why a token proves nothing; for the log, never for the caller."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Where an issuer's tokens say what, as a claim's name or several: of those the first that is there counts.

    A name with dots is a path into objects (``realm_access.roles``), unless a claim has that very name
    (``https://example.com/roles``, ``resource_access.my.client.roles``). A claim that is null is not there.

    Raises ConfigurationError.
    """

    agent: str | Sequence[str] = ("client_id", "azp")
    """The OAuth client, which is the agent. Where none is there, the subject acts for itself."""
    subject: str | Sequence[str] = "sub"
    """On whose behalf it acts. Where none is there ``sub`` counts, and without that the client is its own subject."""
    scopes: str | Sequence[str] = ("scope", "scp")
    """A string of scopes with spaces between them (RFC 8693 section 4.2), or a list of strings."""
    roles: str | Sequence[str] = "roles"
    """A list of strings, or one string, which is one role whatever is in it."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            paths = getattr(self, name)
            if isinstance(paths, list):  # so that it can be hashed, and nobody changes it later
                object.__setattr__(self, name, tuple(paths))
            several = (paths,) if isinstance(paths, str) else paths
            if not isinstance(several, list | tuple) or not several or not all(map(_is_path, several)):
                rule = f"of 1 to {_MAX_PATH} printable characters, with at most {_MAX_DEPTH} dots"
                raise ConfigurationError(
                    f"Claims.{name} is {paths!r}; it must be the name of a claim {rule}, or a list of such names"
                )


def _is_path(path: object) -> bool:
    if not isinstance(path, str) or not 0 < len(path) <= _MAX_PATH or not path.isprintable():
        return False
    return path.count(".") <= _MAX_DEPTH


class Identity(NamedTuple):
    """Who a token speaks of, in values that can stand in logs, keys and headers."""

    client: str
    subject: str
    scopes: list[str]
    roles: frozenset[str]


def identity_of(claims: Mapping[str, Any], mapping: Claims) -> Identity:
    """What ``claims`` say by ``mapping``. Raises InvalidTokenError."""
    subject = _name(claims, mapping.subject) or _name(claims, "sub")
    client = _name(claims, mapping.agent) or subject
    if client is None:
        raise InvalidTokenError("it names neither a client nor a subject")
    return Identity(client, subject or client, _scopes(claims, mapping.scopes), _roles(claims, mapping.roles))


def _name(claims: Mapping[str, Any], paths: str | Sequence[str]) -> str | None:
    path, value = _first(claims, paths)
    if value is None or is_name(value):
        return value
    raise InvalidTokenError(f"{path} is no printable string of 1 to {MAX_NAME} characters")


def _scopes(claims: Mapping[str, Any], paths: str | Sequence[str]) -> list[str]:
    path, value = _first(claims, paths)
    names = [name for name in value.split(" ") if name] if isinstance(value, str) else _list(path, value)
    for name in names:
        if not is_name(name) or " " in name:  # with a space it would be read as two by whoever reads it next
            raise InvalidTokenError(f"{path} holds {shown(name)}, which is no scope")
    return names


def _roles(claims: Mapping[str, Any], paths: str | Sequence[str]) -> frozenset[str]:
    path, value = _first(claims, paths)
    if value is None:
        return _NONE
    names = [value] if isinstance(value, str) else _list(path, value)
    for name in names:
        if not is_name(name):
            raise InvalidTokenError(f"{path} holds {shown(name)}, which is no printable role")
    return frozenset(names)


def _list(path: str, value: object) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > _MAX_NAMES:
        raise InvalidTokenError(f"{path} is neither a string nor a list of at most {_MAX_NAMES} strings")
    return value


def is_name(value: object) -> TypeGuard[str]:
    """Whether ``value`` can stand in logs, keys and headers."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def _first(claims: Mapping[str, Any], paths: str | Sequence[str]) -> tuple[str, Any]:
    """The first of ``paths`` that leads to something, and that; else the last of them, and None."""
    path, value = "", None
    for path in (paths,) if isinstance(paths, str) else paths:
        value = claims.get(path)
        if value is None and "." in path:
            value = _inside(claims, path)
        if value is not None:
            break
    return path, value


def _inside(claims: Mapping[str, Any], path: str) -> Any:
    """What stands at ``path``, which no claim is named. At each level the longest name that is there counts, so that
    names may have dots."""
    head = path
    while "." in head:
        head = head.rpartition(".")[0]
        inner = claims.get(head)
        if isinstance(inner, dict):
            return _first(inner, path[len(head) + 1 :])[1]
        if inner is not None:
            raise InvalidTokenError(f"{head} is no object, so that {path} cannot be read")
    return None


def shown(value: object) -> str:
    """A value of an unverified token, fit for a log line."""
    return ascii(value)[:100]
