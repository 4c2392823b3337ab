"""The verifier for access tokens in JWT form: finds the issuer's key and keeps what was verified."""

import logging
import time
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from typing import Any, Final, NamedTuple

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.http import OAuthHTTPClient
from mcp_middleware.oauth.urls import absolute_url
from mcp_middleware.types import Clock, Principal

from .cache import TokenCache
from .challenge import MAX_TOKEN_BYTES
from .discovery import IssuerKeys
from .identity import principal_of
from .keys import Key, KeySet
from .tokens import InvalidTokenError, Issuer, ParsedToken, check_claims, check_header, parse_token, scopes_of, shown

__all__ = ["JWTVerifier", "VerifiedToken"]

logger = logging.getLogger("mcp_middleware.resource_server")

_BEARER: Final = b"Bearer "

MAX_LEEWAY: Final = 60.0
"""Seconds."""


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """What a verified token says: the fields of the MCP SDK's ``AccessToken``."""

    token: str
    client_id: str
    scopes: list[str]
    expires_at: int
    """Unix seconds."""
    resource: str
    subject: str
    claims: dict[str, Any]
    principal: Principal = field(init=False, repr=False, compare=False)
    """Whose it is, worked out once for all requests that bear it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "principal", principal_of(self))


class _Verified(NamedTuple):
    """A cached result, with the keys it rests on: when those are replaced, it is checked anew."""

    token: VerifiedToken
    source: IssuerKeys
    keys: KeySet


class JWTVerifier:
    """A TokenVerifier for JWT access tokens of the configured issuers, meant for one resource.

    ``resource`` is the audience tokens must name. ``issuers`` are identifiers, or ``Issuer`` for one that differs.
    ``leeway`` (seconds, 60 at most) excuses clocks. Keys are fetched again after ``key_lifetime`` seconds, stay
    usable for ``key_staleness`` more while the issuer is down, and an unknown key has them fetched again once in
    ``key_cooldown`` seconds. Up to ``cache_size`` verified tokens are kept until they end. ``clock`` gives Unix
    seconds, ``monotonic`` measures the age of keys.

    Raises ConfigurationError.
    """

    def __init__(
        self,
        *,
        resource: str,
        issuers: Sequence[str | Issuer],
        leeway: float = MAX_LEEWAY,
        key_lifetime: float = 600.0,
        key_staleness: float = 3600.0,
        key_cooldown: float = 10.0,
        cache_size: int = 4096,
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        import_module("jwt")  # 0.1 s: when the application starts, not in its first request
        absolute_url("resource", resource)
        _check_number("leeway", leeway, 0.0, MAX_LEEWAY)
        _check_number("key_lifetime", key_lifetime, 1.0, 86_400.0)
        _check_number("key_staleness", key_staleness, 0.0, 7 * 86_400.0)
        _check_number("key_cooldown", key_cooldown, 1.0, 3600.0)
        _check_number("cache_size", cache_size, 1, 1_000_000)
        self.resource = resource
        named = _issuers(issuers)
        self.authorization_servers = [issuer.issuer for issuer in named]
        """What the metadata document lists."""
        self._leeway = leeway
        self._clock = clock
        self._client = OAuthHTTPClient()
        self._cache: TokenCache[_Verified] = TokenCache(int(cache_size))
        self._issuers = {
            issuer.issuer: (
                issuer,
                IssuerKeys(
                    issuer.issuer,
                    self._client,
                    jwks_uri=issuer.jwks_uri,
                    lifetime=key_lifetime,
                    staleness=key_staleness,
                    cooldown=key_cooldown,
                    clock=monotonic,
                ),
            )
            for issuer in named
        }

    def for_resource(self, resource: str) -> "JWTVerifier":
        """A verifier of the same issuers for another resource. It shares their keys and connections, and no token:
        what is good for one resource proves nothing at another."""
        absolute_url("resource", resource)
        other = copy(self)
        other.resource = resource
        other._cache = TokenCache(self._cache.size)
        return other

    async def verify_token(self, token: str) -> VerifiedToken | None:
        """What ``token`` proves, or None, with the reason in the log.

        Raises IssuerUnavailableError where the keys that could prove it cannot be had.
        """
        digest = self._cache.digest(token.encode())
        known = self._known(digest)
        if known is not None:
            return known
        try:
            verified = await self._verify(token)
        except InvalidTokenError as error:
            logger.info("a token was refused: %s", error)
            return None
        self._cache.put(digest, verified, verified.token.expires_at)
        return verified.token

    def recall(self, authorization: bytes) -> VerifiedToken | None:
        """What ``verify_token`` has answered for the token in this ``Authorization`` header, if it still holds: a
        token that is known byte for byte need not be looked at again. None decides nothing."""
        if not authorization.startswith(_BEARER) or len(authorization) > len(_BEARER) + MAX_TOKEN_BYTES:
            return None
        return self._known(self._cache.digest(authorization[len(_BEARER) :]))

    def _known(self, digest: bytes) -> VerifiedToken | None:
        known = self._cache.get(digest, self._clock())
        return known.token if known is not None and known.source.fresh is known.keys else None

    async def _verify(self, token: str) -> _Verified:
        """The cheap checks first, then the keys, then the signature."""
        parsed = parse_token(token)
        issuer, source = self._issuer_of(parsed.claims)
        algorithm, kid = check_header(parsed.header, issuer)
        claims = parsed.claims
        client, subject, ends = check_claims(
            claims, issuer, resource=self.resource, now=self._clock(), leeway=self._leeway
        )
        scopes = scopes_of(claims)
        keys = await source.find(kid, algorithm, partial(_signed_by, parsed, algorithm))
        if keys is None:
            raise InvalidTokenError("no key of its issuer made its signature")
        verified = VerifiedToken(token, client, scopes, ends, self.resource, subject, claims)
        return _Verified(verified, source, keys)

    def _issuer_of(self, claims: Mapping[str, Any]) -> tuple[Issuer, IssuerKeys]:
        """The configured issuer that the token names; never another, and nothing is fetched from its mere word."""
        name = claims.get("iss")
        found = self._issuers.get(name) if isinstance(name, str) else None
        if found is None:
            raise InvalidTokenError(f"iss {shown(name)} is not configured")
        return found

    async def aclose(self) -> None:
        """Stop fetches and close the connections to the issuers. The verifier stays usable."""
        for _, source in self._issuers.values():
            await source.aclose()
        await self._client.aclose()


def _signed_by(parsed: ParsedToken, algorithm: str, key: Key) -> bool:
    verified: bool = _algorithm(algorithm).verify(parsed.signed, key.key, parsed.signature)
    return verified


@cache
def _algorithm(name: str) -> Any:
    from jwt.algorithms import get_default_algorithms  # not at the top: takes 0.1 s

    return get_default_algorithms()[name]


def _issuers(issuers: Sequence[str | Issuer]) -> list[Issuer]:
    if isinstance(issuers, str) or not isinstance(issuers, Sequence) or not issuers:
        raise ConfigurationError(f"issuers is {issuers!r}; it must be a list of at least one issuer")
    named = [issuer if isinstance(issuer, Issuer) else Issuer(issuer) for issuer in issuers]
    if len({issuer.issuer for issuer in named}) != len(named):
        raise ConfigurationError(f"issuers is {issuers!r}; it names one issuer twice")
    return named


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigurationError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")
