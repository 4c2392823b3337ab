"""Access tokens in JWT form (RFC 9068): what must hold before one is believed. Pure; no signature is checked here.

What both ways of verification ask of a token's claims stands here too (``check_audience`` and what follows it).
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from .challenge import MAX_TOKEN_BYTES
from .claims import Identity, InvalidTokenError, identity_of, shown
from .issuers import Issuer
from .keys import EDDSA

__all__ = [
    "ParsedToken",
    "check_audience",
    "check_claims",
    "check_header",
    "check_purpose",
    "check_times",
    "json_object",
    "looks_like_jwt",
    "parse_token",
]

_MAX_LIFETIME: Final = 10 * 366 * 86_400
"""Seconds; a token that claims to live longer is not believed."""

_STANDARD: Final = bytes.maketrans(b"-_+/=", b"+/***")
"""From base64url to base64, and from what only the latter has to what neither has."""
_LAST: Final = (b"", b"", b"AQgw", b"AEIMQUYcgkosw048")
"""By the length of a base64url text modulo 4, what its last character may be: others have bits that encode nothing,
so that many texts would be the same token (RFC 4648 section 3.5). A remainder of 1 encodes no bytes."""
_USUAL_HEADER: Final = 512
"""Characters; longer ones are not kept."""
_PADDING: Final = (b"", b"", b"==", b"=")
_NUMBERS: Final = (int, float)
_ACCESS_TOKEN: Final = "at+jwt"
_NOT_AN_ACCESS_TOKEN: Final = ("nonce", "at_hash", "c_hash", "s_hash", "events")
"""Claims of ID tokens (OpenID Connect Core 2, 3.3.2.11) and of security events and logout tokens (RFC 8417)."""
_PURPOSES: Final = {"typ": ("Bearer",), "token_use": ("access", "access_token")}
"""Claims in which some issuers say what a token is for (``ID``, ``Refresh``, ``id``, ...), with what ours is."""


class ParsedToken(NamedTuple):
    """A token taken apart. Nothing in it has been verified."""

    header: Mapping[str, Any]
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


def looks_like_jwt(token: str) -> bool:
    """Whether ``token`` is to be judged as a JWT: it has the three parts, and the first is a JSON object. Any other is
    only for its issuer to understand."""
    header, _, rest = token.encode("ascii").partition(b".")
    if rest.count(b".") != 1:
        return False
    try:
        return bool(json_object(_decode(header)))
    except (ValueError, RecursionError):
        return False


def parse_token(token: str) -> ParsedToken:
    """Take a compact JWS apart (RFC 7515 section 7.1). Raises InvalidTokenError.

    A name that occurs twice in an object is refused, because two readers may take different ones (RFC 7515
    section 4, RFC 7519 section 4), and so are the numbers that JSON does not have, and base64url that is not the one
    way to write what it encodes.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidTokenError(f"longer than {MAX_TOKEN_BYTES} bytes")
    try:
        signed, _, signature = token.encode("ascii").rpartition(b".")
        header, _, payload = signed.partition(b".")
        if not header or not payload or not signature or b"." in payload:
            raise InvalidTokenError("not three parts in base64url")
        return ParsedToken(
            _header(header) if len(header) <= _USUAL_HEADER else json_object(_decode(header)),
            json_object(_decode(payload)),
            signed,
            _decode(signature),
        )
    except (ValueError, RecursionError) as error:
        raise InvalidTokenError(f"not a JWT: {ascii(str(error))[:100]}") from None


@lru_cache(maxsize=256)
def _header(part: bytes) -> Mapping[str, Any]:
    """All tokens that are signed with one key have the same header."""
    return json_object(_decode(part))


def _decode(part: bytes) -> bytes:
    """What ``part`` is the base64url of. Raises ValueError."""
    standard = part.translate(_STANDARD)
    rest = len(standard) % 4
    if rest and standard[-1] not in _LAST[rest]:
        raise ValueError("not the base64url of anything")
    return msgspec.convert((standard + _PADDING[rest]).decode("ascii"), bytes)  # as strict as binascii, and faster


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name occurs twice")
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_STRICT: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
_READ: Final = msgspec.json.Decoder().decode
_WRITE: Final = msgspec.json.Encoder().encode


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object that ``data`` is, each name once. Raises ValueError or RecursionError."""
    document = _plain(data) or _STRICT.decode(data.decode("utf-8"))
    if not isinstance(document, dict):
        raise ValueError("a part is no JSON object")
    return document


def _plain(data: bytes) -> Any:
    """What ``data`` says, if it is written as most issuers write: without spaces and needless escapes. Then what was
    read, written again, is the same text, which shows that it holds each name once. This takes a third of the time."""
    try:
        document = _READ(data)
        return document if _WRITE(document) == data else None
    except (ValueError, RecursionError):
        return None  # the strict reader says why, or takes it


def check_header(header: Mapping[str, Any], issuer: Issuer) -> tuple[str, str | None]:
    """The algorithm and the key's name of a token of ``issuer``, EdDSA by this name. Raises InvalidTokenError.

    Keys and places of keys that the header itself offers (``jwk``, ``jku``, ``x5c``, ``x5u``) are not looked at
    (RFC 8725 section 3.10).
    """
    named = header.get("alg")
    algorithm = EDDSA.get(named, named) if isinstance(named, str) else None
    if algorithm is None or algorithm not in issuer.algorithms:
        raise InvalidTokenError(f"algorithm {shown(named)} is not allowed")
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
) -> tuple[Identity, int]:
    """Who a JWT speaks of, and its end (Unix seconds). Raises InvalidTokenError.

    ``now`` is in Unix seconds. ``leeway`` excuses a clock that is behind the issuer's (``nbf``, ``iat``); the end of
    a token is never put off.
    """
    if claims.get("iss") != issuer.issuer:
        raise InvalidTokenError("iss is another issuer")
    check_audience(claims, issuer, resource)
    ends = check_times(claims, now=now, leeway=leeway)
    if ends is None:
        raise InvalidTokenError("exp is missing")
    check_purpose(claims, typed=issuer.typ == _ACCESS_TOKEN)
    return identity_of(claims, issuer.mapping), ends


def check_audience(claims: Mapping[str, Any], issuer: Issuer, resource: str) -> None:
    """That a token is meant for ``resource``, or for one of the audiences in its place. Absent is refused (B5)."""
    audience = claims.get("aud")
    accepted = issuer.audiences or (resource,)
    if isinstance(audience, str):
        meant = audience in accepted
    elif isinstance(audience, list) and all(isinstance(value, str) for value in audience):
        meant = not set(audience).isdisjoint(accepted)
    else:
        raise InvalidTokenError("aud is missing or no list of strings")
    if not meant:
        raise InvalidTokenError(f"aud {shown(audience)} is not this resource")


def check_times(claims: Mapping[str, Any], *, now: float, leeway: float) -> int | None:
    """The end of a token that holds ``now``, or None where it names none. Raises InvalidTokenError."""
    ends = _date(claims, "exp")
    if ends is not None and ends <= now:
        raise InvalidTokenError("it has expired")
    if ends is not None and ends > now + _MAX_LIFETIME:
        raise InvalidTokenError("exp is too far away")
    for name in ("nbf", "iat"):
        begins = _date(claims, name)
        if begins is not None and begins > now + leeway:
            raise InvalidTokenError(f"{name} is in the future")
    return None if ends is None else int(ends)


def check_purpose(claims: Mapping[str, Any], *, typed: bool) -> None:
    """That a token is one to bear, and no ID token, refresh token or proof. ``typed``: its header says what it is, so
    that its claims need not (RFC 9068 section 4). Raises InvalidTokenError."""
    if "cnf" in claims:
        raise InvalidTokenError("it is bound to a key (cnf) and so no bearer token")
    if typed:
        return
    for name, purposes in _PURPOSES.items():
        if name in claims and claims[name] not in purposes:
            raise InvalidTokenError(f"claim {name} {shown(claims[name])} is no access token")
    for name in _NOT_AN_ACCESS_TOKEN:
        if name in claims:
            raise InvalidTokenError(f"claim {name} belongs to another kind of token")


def _date(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519 section 2), or None where it is absent."""
    if name not in claims:
        return None
    value = claims[name]
    if type(value) not in _NUMBERS:  # a boolean is an int too
        raise InvalidTokenError(f"{name} is no number")
    if not 0 <= value <= 2**53:
        raise InvalidTokenError(f"{name} is no date")
    return float(value)
