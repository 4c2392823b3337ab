"""Access tokens in JWT form (RFC 9068): what must hold before one is believed. Pure; no signature is checked here."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, Literal, NamedTuple

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.urls import absolute_url

from .challenge import MAX_TOKEN_BYTES
from .keys import ALGORITHMS

__all__ = [
    "InvalidTokenError",
    "Issuer",
    "ParsedToken",
    "check_claims",
    "check_header",
    "parse_token",
    "scopes_of",
    "shown",
]

_MAX_LIFETIME: Final = 10 * 366 * 86_400
"""Seconds; a token that claims to live longer is not believed."""

_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_ACCESS_TOKEN: Final = "at+jwt"
_NOT_AN_ACCESS_TOKEN: Final = ("nonce", "at_hash", "c_hash", "s_hash", "events")
"""Claims of ID tokens (OpenID Connect Core 2, 3.3.2.11) and of security events and logout tokens (RFC 8417)."""
_PURPOSES: Final = {"typ": "Bearer", "token_use": "access"}
"""Claims in which some issuers say what a token is for (``ID``, ``Refresh``, ``id``, ...), with ours."""


class InvalidTokenError(Exception):
    """Why a token proves nothing; for the log, never for the caller."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """An authorization server whose tokens are accepted, and how its tokens differ from RFC 9068.

    Raises ConfigurationError.
    """

    issuer: str
    """Its identifier, exactly as in the ``iss`` claim and in its metadata; a trailing slash counts."""
    _: KW_ONLY
    typ: Literal["at+jwt", "any"] = "at+jwt"
    """``at+jwt``: only tokens that their header names access tokens (RFC 9068 section 4). ``any``: also tokens of
    type ``JWT`` or of none, as many servers issue them; ID tokens are then told apart by their claims."""
    audiences: Sequence[str] = ()
    """The audiences of its tokens, where the server cannot issue them for the resource's URL; in its place."""
    algorithms: Sequence[str] = tuple(sorted(ALGORITHMS))
    """The signature algorithms it may use: asymmetric ones."""
    jwks_uri: str | None = None
    """Where its keys are; None finds them by discovery."""

    def __post_init__(self) -> None:
        absolute_url("Issuer.issuer", self.issuer)
        if self.typ not in ("at+jwt", "any"):
            raise ConfigurationError(f"Issuer.typ is {self.typ!r}; it must be 'at+jwt' or 'any'")
        if not _strings(self.audiences):
            raise ConfigurationError(f"Issuer.audiences is {self.audiences!r}; it must be a list of strings")
        if not _strings(self.algorithms) or not self.algorithms or not ALGORITHMS.issuperset(self.algorithms):
            allowed = ", ".join(sorted(ALGORITHMS))
            raise ConfigurationError(f"Issuer.algorithms is {self.algorithms!r}; it must be a list of: {allowed}")
        if self.jwks_uri is not None:
            absolute_url("Issuer.jwks_uri", self.jwks_uri, query=True)


def _strings(values: object) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, str) and value for value in values)


class ParsedToken(NamedTuple):
    """A token taken apart. Nothing in it has been verified."""

    header: dict[str, Any]
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


def parse_token(token: str) -> ParsedToken:
    """Take a compact JWS apart (RFC 7515 section 7.1). Raises InvalidTokenError.

    A name that occurs twice in an object is refused, because two readers may take different ones (RFC 7515
    section 4, RFC 7519 section 4), and so are the numbers that JSON does not have.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidTokenError(f"longer than {MAX_TOKEN_BYTES} bytes")
    if _COMPACT.fullmatch(token) is None:
        raise InvalidTokenError("not three parts in base64url")
    header, payload, signature = token.split(".")
    try:
        return ParsedToken(
            _json_object(_decode(header)),
            _json_object(_decode(payload)),
            f"{header}.{payload}".encode("ascii"),
            _decode(signature),
        )
    except (ValueError, RecursionError) as error:
        raise InvalidTokenError(f"not a JWT: {ascii(str(error))[:100]}") from None


def _decode(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _json_object(data: bytes) -> dict[str, Any]:
    document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    if not isinstance(document, dict):
        raise ValueError("a part is no JSON object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name occurs twice")
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def check_header(header: Mapping[str, Any], issuer: Issuer) -> tuple[str, str | None]:
    """The algorithm and the key's name of a token of ``issuer``. Raises InvalidTokenError.

    Keys and places of keys that the header itself offers (``jwk``, ``jku``, ``x5c``, ``x5u``) are not looked at
    (RFC 8725 section 3.10).
    """
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in issuer.algorithms:
        raise InvalidTokenError(f"algorithm {shown(algorithm)} is not allowed")
    if "crit" in header or "b64" in header:
        raise InvalidTokenError("it demands an extension (crit) that is not understood")  # RFC 7515 section 4.1.11
    typ = header.get("typ")
    if typ is not None and not isinstance(typ, str):
        raise InvalidTokenError("typ is no string")
    media_type = (typ or "").lower().removeprefix("application/")
    if media_type != _ACCESS_TOKEN and (issuer.typ == _ACCESS_TOKEN or media_type not in ("", "jwt")):
        raise InvalidTokenError(f"typ {shown(typ)} is no access token")
    kid = header.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise InvalidTokenError("kid is no string")
    return algorithm, kid


def check_claims(
    claims: Mapping[str, Any], issuer: Issuer, *, resource: str, now: float, leeway: float
) -> tuple[str, str, int]:
    """The client, the subject and the end (Unix seconds) of a token. Raises InvalidTokenError.

    ``now`` is in Unix seconds. ``leeway`` excuses a clock that is behind the issuer's (``nbf``, ``iat``); the end of
    a token is never put off.
    """
    if claims.get("iss") != issuer.issuer:
        raise InvalidTokenError("iss is another issuer")
    audience = claims.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(audiences, list) or not all(isinstance(value, str) for value in audiences):
        raise InvalidTokenError("aud is missing or no list of strings")
    if not set(audiences).intersection(issuer.audiences or (resource,)):
        raise InvalidTokenError(f"aud {shown(audience)} is not this resource")
    ends = _date(claims, "exp")
    if ends is None:
        raise InvalidTokenError("exp is missing")
    if ends <= now:
        raise InvalidTokenError("it has expired")
    if ends > now + _MAX_LIFETIME:
        raise InvalidTokenError("exp is too far away")
    for name in ("nbf", "iat"):
        begins = _date(claims, name)
        if begins is not None and begins > now + leeway:
            raise InvalidTokenError(f"{name} is in the future")
    _check_purpose(claims, issuer)
    subject, client = _name(claims, "sub"), _name(claims, "client_id") or _name(claims, "azp")
    identity = client or subject
    if identity is None:
        raise InvalidTokenError("it names neither a client nor a subject")
    return identity, subject or identity, int(ends)


def _check_purpose(claims: Mapping[str, Any], issuer: Issuer) -> None:
    if "cnf" in claims:
        raise InvalidTokenError("it is bound to a key (cnf) and so no bearer token")
    if issuer.typ == _ACCESS_TOKEN:
        return
    for name, purpose in _PURPOSES.items():
        if claims.get(name, purpose) != purpose:
            raise InvalidTokenError(f"claim {name} {shown(claims[name])} is no access token")
    for name in _NOT_AN_ACCESS_TOKEN:
        if name in claims:
            raise InvalidTokenError(f"claim {name} belongs to another kind of token")


def _date(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519 section 2), or None where it is absent."""
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidTokenError(f"{name} is no number")
    if not 0 <= value <= 2**53:
        raise InvalidTokenError(f"{name} is no date")
    return value


def _name(claims: Mapping[str, Any], name: str) -> str | None:
    """A claim that identifies somebody: printable, so that it can stand in logs, keys and headers."""
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= 512 or not value.isprintable():
        raise InvalidTokenError(f"{name} is no printable string of 1 to 512 characters")
    return value


def scopes_of(claims: Mapping[str, Any]) -> list[str]:
    """The scopes of ``scope`` (RFC 8693 section 4.2), else of ``scp``; either a string or a list."""
    value = claims.get("scope", claims.get("scp"))
    if value is None:
        return []
    scopes = value.split(" ") if isinstance(value, str) else value
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise InvalidTokenError("scope is neither a string nor a list of strings")
    return [scope for scope in scopes if scope]


def shown(value: object) -> str:
    """A value of an unverified token, fit for a log line."""
    return ascii(value)[:100]
