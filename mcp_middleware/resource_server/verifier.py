"""The verifiers for tokens of issuers: JWTs by the issuers' keys, other tokens by asking the issuers."""

import logging
import time
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final, NamedTuple, TypeVar

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.http import IssuerUnavailableError, OAuthHTTPClient
from mcp_middleware.oauth.metadata import ServerMetadata
from mcp_middleware.oauth.urls import absolute_url
from mcp_middleware.types import Clock, Principal

from .allowance import Forgeries
from .cache import TokenCache
from .challenge import MAX_TOKEN_BYTES
from .claims import Identity, InvalidTokenError, shown
from .introspection import Introspector, check_introspected, parse_introspection
from .issuers import Issuer, named_issuers
from .jwks import IssuerKeys
from .keys import Key, KeySet
from .refusals import Refusals
from .sources import Source, Sources
from .tokens import ParsedToken, check_claims, check_header, looks_like_jwt, parse_token

__all__ = ["IntrospectionVerifier", "IssuersVerifier", "JWTVerifier", "VerifiedToken"]

logger = logging.getLogger("mcp_middleware.resource_server")

_BEARER: Final = b"Bearer "

MAX_LEEWAY: Final = 60.0
"""Seconds."""
_REFUSED_FOR: Final = 10.0
"""Seconds for which a token that it cost something to refuse stays refused."""


@dataclass(slots=True)
class VerifiedToken:
    """What a verified token says, with the fields of the MCP SDK's ``AccessToken``; and what that rests on."""

    token: str = field(repr=False)
    principal: Principal
    """Whose it is, worked out once for all requests that bear it."""
    scopes: list[str]
    """In the token's order."""
    expires_at: int | None
    """Unix seconds; None where the issuer does not say."""
    resource: str
    claims: dict[str, Any] = field(repr=False)
    until: float
    """How long it need not be looked at again, on the monotonic clock."""
    source: IssuerKeys | None = field(default=None, repr=False)
    keys: KeySet | None = field(default=None, repr=False)
    key: Key | None = field(default=None, repr=False)
    """The key that made the signature, of those keys from that source; None where the issuer was asked."""

    @property
    def client_id(self) -> str:
        return self.principal.client

    @property
    def subject(self) -> str | None:
        return self.principal.subject

    def holds(self, now: float) -> bool:
        """Whether the issuer's keys still have the one that made the signature; ``now`` is on the monotonic clock."""
        if self.source is None:
            return True
        keys = self.source.usable(now)
        if keys is self.keys:
            return keys is not None
        if keys is None or self.key not in keys.keys:
            return False
        self.keys = keys
        return True


class _Refused(NamedTuple):
    """Why a token was refused, and until when it is not looked at again, on the monotonic clock."""

    reason: str
    until: float


class _RefusedTokenError(InvalidTokenError):
    """It took work to refuse the token, and it would be refused again."""


Verifier = TypeVar("Verifier", bound="IssuersVerifier")


class IssuersVerifier:
    """A TokenVerifier for access tokens of the configured issuers, meant for one resource.

    ``resource`` is the audience tokens must name. ``issuers`` are identifiers, or ``Issuer`` for one that differs.
    A JWT goes to the issuer that it names; the name decides nothing but whose keys, or whose introspection, it is
    verified by. Another token is introspected by the issuers that do so, in their order.

    ``leeway`` (seconds, 60 at most) excuses clocks. Keys are fetched again before they are ``key_lifetime`` seconds
    old, stay usable for ``key_staleness`` more while the issuer is down, and an unknown key has them fetched again
    once in ``key_cooldown`` seconds, and once more where the token is in the name of somebody who has had a good one.
    Up to ``cache_size`` verified tokens are kept until they end, or as long as their issuer's introspection says.
    ``clock`` gives Unix seconds, ``monotonic`` measures times.

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
        named = self._checked(named_issuers(issuers))
        self.authorization_servers = [issuer.issuer for issuer in named]
        """What the metadata document lists."""
        self._leeway = leeway
        self._clock = clock
        self._monotonic = monotonic
        self._cache: TokenCache[VerifiedToken] = TokenCache(int(cache_size))
        self._refused: TokenCache[_Refused] = TokenCache(int(cache_size))
        """Tokens that were refused a moment ago. Kept apart, so that junk pushes out no good token."""
        self._forgeries = Forgeries(most=int(cache_size), clock=monotonic)
        self._refusals = Refusals(monotonic)
        client = OAuthHTTPClient()
        self._sources = Sources(
            client,
            [
                Source(
                    issuer,
                    client,
                    lifetime=key_lifetime,
                    staleness=key_staleness,
                    cooldown=key_cooldown,
                    clock=clock,
                    monotonic=monotonic,
                )
                for issuer in named
            ],
        )

    @staticmethod
    def _checked(issuers: list[Issuer]) -> list[Issuer]:
        """``issuers``, if this verifier can do with them. Raises ConfigurationError."""
        return issuers

    def for_resource(self: Verifier, resource: str) -> Verifier:
        """A verifier of the same issuers for another resource. It shares their keys and connections, and no token:
        what is good for one resource proves nothing at another."""
        absolute_url("resource", resource)
        other = copy(self)
        other.resource = resource
        other._cache = TokenCache(self._cache.size)
        other._refused = TokenCache(self._refused.size)
        return other

    async def start(self) -> None:
        """Ask every issuer, so that what is wrong shows when the application starts.

        Raises ConfigurationError where an issuer answers and contradicts the configuration, saying what was fetched
        and what was expected. One that does not answer is asked again in the background, and named in ``waiting``.
        """
        await self._sources.start()

    @property
    def waiting(self) -> tuple[str, ...]:
        """A sentence for each issuer that has not answered since the start; none: everything is ready."""
        return self._sources.waiting

    async def metadata(self, issuer: str) -> ServerMetadata:
        """The metadata of one of the issuers. Raises IssuerUnavailableError, and WrongMetadataError (a FetchError)
        where it is another issuer's."""
        return await self._sources.named[issuer].metadata.get()

    async def verify_token(self, token: str) -> VerifiedToken | None:
        """What ``token`` proves, or None, with the reason in the log.

        Raises IssuerUnavailableError where its issuer would have to be asked and cannot be.
        """
        if not 0 < len(token) <= MAX_TOKEN_BYTES or not token.isascii():
            self._refusals.note(f"it is empty, longer than {MAX_TOKEN_BYTES} bytes, or not ASCII")
            return None
        digest = self._cache.digest(token.encode("ascii"))
        known = self._known(digest)
        if known is not None:
            return known
        refused = self._refused.get(digest, self._monotonic())
        if refused is None:
            try:
                verified = await self._verify(token, digest)
            except InvalidTokenError as error:
                refused = _Refused(str(error), self._monotonic() + _REFUSED_FOR)
                if isinstance(error, _RefusedTokenError):
                    self._refused.put(digest, refused)
            else:
                self._cache.put(digest, verified)
                return verified
        self._refusals.note(refused.reason)
        return None

    def recall(self, authorization: bytes) -> VerifiedToken | None:
        """What ``verify_token`` has answered for the token in this ``Authorization`` header, if it still holds: a
        token that is known byte for byte need not be looked at again. None decides nothing."""
        if not authorization.startswith(_BEARER) or len(authorization) > len(_BEARER) + MAX_TOKEN_BYTES:
            return None
        return self._known(self._cache.digest(authorization[len(_BEARER) :]))

    def _known(self, digest: bytes) -> VerifiedToken | None:
        now = self._monotonic()
        known = self._cache.get(digest, now)
        if known is None or not known.holds(now):
            return None
        ends = known.expires_at
        return known if ends is None or ends > self._clock() else None

    async def _verify(self, token: str, digest: bytes) -> VerifiedToken:
        introspecting = self._sources.introspecting
        if introspecting and not looks_like_jwt(token):
            return await self._introspect(introspecting, token, digest)
        parsed = parse_token(token)
        source = self._source_of(parsed.claims)
        if isinstance(source.asked, Introspector):
            return await self._introspect((source,), token, digest)
        return await self._verify_jwt(source.issuer, source.asked, token, parsed)

    def _source_of(self, claims: Mapping[str, Any]) -> Source:
        """The configured issuer that the token names; never another, and nothing is fetched from its mere word."""
        name = claims.get("iss")
        found = self._sources.named.get(name) if isinstance(name, str) else None
        if found is None:
            raise InvalidTokenError(f"iss {shown(name)} is not configured")
        return found

    async def _verify_jwt(self, issuer: Issuer, source: IssuerKeys, token: str, parsed: ParsedToken) -> VerifiedToken:
        """The cheap checks first, then the keys, then the signature."""
        algorithm, kid = check_header(parsed.header, issuer)
        identity, ends = check_claims(
            parsed.claims, issuer, resource=self.resource, now=self._clock(), leeway=self._leeway
        )
        who = (issuer.issuer, identity.client, identity.subject)
        familiar = self._forgeries.is_familiar(who)
        if source.lacks(kid, algorithm, familiar=familiar):
            raise InvalidTokenError("no key of its issuer made its signature")
        if not self._forgeries.may_check(who):
            raise IssuerUnavailableError("too many tokens with forged signatures")
        forged = False

        def verifies(key: Key) -> bool:
            nonlocal forged
            begun = time.perf_counter()  # the thread's own time is a system call, in which a busy machine takes turns
            if key.verifies(algorithm, parsed.signed, parsed.signature):
                return True
            self._forgeries.spend(who, time.perf_counter() - begun)
            forged = kid is not None
            return False

        found = await source.find(kid, algorithm, verifies, familiar=familiar)
        if found is None:
            # Without a check, or without a name, the key may be one that is about to be published.
            kind = _RefusedTokenError if forged else InvalidTokenError
            raise kind("no key of its issuer made its signature")
        self._forgeries.meet(who)
        until = self._monotonic() + ends - self._clock()
        principal = _principal(issuer, identity, ends, parsed.claims)
        return VerifiedToken(
            token, principal, identity.scopes, ends, self.resource, parsed.claims, until, source, *found
        )

    async def _introspect(self, sources: Sequence[Source], token: str, digest: bytes) -> VerifiedToken:
        """Ask one issuer after the other, until one calls the token good."""
        unavailable: IssuerUnavailableError | None = None
        reasons, asked = [], []
        for source in sources:
            introspector, options = source.asked, source.issuer.introspection
            if not isinstance(introspector, Introspector) or options is None:
                continue
            try:
                body, asked_at = await introspector.ask(token, digest, was_good=digest in self._cache)
                asked.append(introspector)
                claims = parse_introspection(body)
                if claims is None:
                    raise InvalidTokenError("its issuer does not call it active")
                said = check_introspected(
                    claims, source.issuer, resource=self.resource, now=self._clock(), leeway=self._leeway
                )
            except IssuerUnavailableError as error:
                unavailable = error
            except InvalidTokenError as error:
                reasons.append(str(error))
            except ValueError as error:
                introspector.refused()
                logger.warning("the introspection of %s gave no answer: %s", source.issuer.issuer, error)
                unavailable = IssuerUnavailableError(f"{source.issuer.issuer} does not introspect this token")
            else:
                identity, ends, claims = said
                until = asked_at + options.cache
                if ends is not None:
                    until = min(until, self._monotonic() + ends - self._clock())
                principal = _principal(source.issuer, identity, ends, claims)
                return VerifiedToken(token, principal, identity.scopes, ends, self.resource, claims, until)
        if unavailable is not None:
            raise unavailable
        self._cache.drop(digest)
        for each in asked:
            each.refused()
        raise _RefusedTokenError("; ".join(reasons))

    async def aclose(self) -> None:
        """Stop what is under way and close the connections to the issuers. The verifier stays usable."""
        await self._sources.aclose()


class JWTVerifier(IssuersVerifier):
    """An ``IssuersVerifier`` for JWTs alone: nothing is asked about a token, and every other one is refused.

    Its options are the same. Raises ConfigurationError.
    """

    @staticmethod
    def _checked(issuers: list[Issuer]) -> list[Issuer]:
        for issuer in issuers:
            if issuer.introspection is not None:
                raise ConfigurationError(f"{issuer.issuer} has introspection; an IssuersVerifier takes such issuers")
        return issuers


class IntrospectionVerifier(IssuersVerifier):
    """An ``IssuersVerifier`` for one issuer that is asked about each of its tokens.

    ``issuer`` has to have ``introspection``; ``cache_size``, ``leeway`` and the clocks are those of an
    ``IssuersVerifier``. Raises ConfigurationError.
    """

    def __init__(
        self,
        *,
        resource: str,
        issuer: Issuer,
        leeway: float = MAX_LEEWAY,
        cache_size: int = 4096,
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        if not isinstance(issuer, Issuer) or issuer.introspection is None:
            raise ConfigurationError(f"issuer is {issuer!r}; it must be an Issuer with introspection")
        super().__init__(
            resource=resource,
            issuers=[issuer],
            leeway=leeway,
            cache_size=cache_size,
            clock=clock,
            monotonic=monotonic,
        )


def _principal(issuer: Issuer, identity: Identity, ends: int | None, claims: dict[str, Any]) -> Principal:
    client, subject, scopes, roles = identity
    return Principal(issuer.issuer, client, subject, frozenset(scopes), roles, ends, claims)


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigurationError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")
