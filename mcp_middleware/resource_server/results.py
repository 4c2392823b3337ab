"""What a verifier of somebody else's answered: checked once, before anything is read of it. Pure."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

from mcp_middleware.types import AccessToken, Principal

from .claims import MAX_NAME, is_name

__all__ = ["UnusableResultError", "checked"]

_FIELDS: Final = ("token", "client_id", "scopes", "expires_at", "resource")
"""What the tokens of all SDKs have; ``subject`` and ``claims`` are newer."""


class UnusableResultError(Exception):
    """What a verifier answered that it must not. Says no value of it, which may be the token."""


def checked(result: object) -> AccessToken:
    """``result``, if all that is read of it is what an ``AccessToken`` has, and can stand in logs, keys and headers as
    what a JWT says must. Raises UnusableResultError."""
    if not all(hasattr(result, name) for name in _FIELDS):
        raise UnusableResultError(f"a {type(result).__name__}, which is no AccessToken")
    token = cast(AccessToken, result)
    wrong = next(_wrong(token), None)
    if wrong is not None:
        raise UnusableResultError(f"an AccessToken whose {wrong}")
    return token


def _wrong(token: Any) -> Iterator[str]:
    """What is wrong with ``token``: the first of it, since what follows relies on it."""
    if not isinstance(token.token, str):
        yield "token is no string"
    if not isinstance(token.scopes, list | tuple | set | frozenset):
        yield "scopes are no list"
    ends = token.expires_at
    if ends is not None and (isinstance(ends, bool) or not isinstance(ends, int | float) or math.isnan(ends)):
        yield "expires_at is no number"
    if token.resource is not None and not isinstance(token.resource, str):
        yield "resource is no string"
    if not isinstance(getattr(token, "subject", None), str | None):
        yield "subject is no string"
    if not isinstance(getattr(token, "claims", None), Mapping | None):
        yield "claims are no mapping"
    if not is_name(token.client_id):
        yield f"client_id is no printable string of 1 to {MAX_NAME} characters"
    if not all(is_name(scope) and " " not in scope for scope in token.scopes):
        yield "scopes hold what is no scope"
    who = Principal.from_access_token(token)
    names = {"subject": (who.subject,), "claim iss": (who.issuer,), "claim roles": who.roles}
    for name, values in names.items():
        if not all(value is None or is_name(value) for value in values):
            yield f"{name} is no printable string of 1 to {MAX_NAME} characters"
