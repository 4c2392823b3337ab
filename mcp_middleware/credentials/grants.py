"""Tokens for a server that an authorization server issues: to us (RFC 6749 section 4.4), or for the caller's
(RFC 8693)."""

import math
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Final

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.authentication import ClientAuthentication, ClientSecret, PrivateKeyJWT
from mcp_middleware.oauth.http import FetchError, IssuerUnavailableError, OAuthHTTPClient, RefusedAddressError
from mcp_middleware.oauth.metadata import MetadataSource, WrongMetadataError
from mcp_middleware.oauth.tokens import IssuedToken, TokenRequestError, request_token
from mcp_middleware.oauth.urls import absolute_url
from mcp_middleware.options import whole_number
from mcp_middleware.types import Clock

from .interface import Caller, CredentialRefusedError
from .keeping import KeptToken, TokenKeeper, keep

if TYPE_CHECKING:
    from .auth import CredentialAuth

__all__ = ["ClientCredentials", "TokenExchange"]

_TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
_ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"
_JWT: Final = "urn:ietf:params:oauth:token-type:jwt"

_ABOUT_US: Final = frozenset({"invalid_client", "invalid_target", "unauthorized_client", "unsupported_grant_type"})
"""What a server would say whoever calls. All else that it says of an exchange is about the subject token: that it is
not accepted (invalid_request by RFC 8693 section 2.2.2; others say invalid_grant), has none of the scopes, or that its
owner must do something first."""


class _Grant:
    """What both grants have: the authorization server, and what is asked of it in each request."""

    def __init__(
        self,
        name: str,
        grant_type: str,
        *,
        issuer: str,
        authentication: ClientAuthentication,
        resource: str | None,
        audience: str | None,
        scope: str | None,
        http: OAuthHTTPClient | None,
        allow_private_addresses: bool,
        clock: Clock,
        monotonic: Clock,
    ) -> None:
        absolute_url(f"{name}.issuer", issuer)
        if resource is not None:
            absolute_url(f"{name}.resource", resource)
        if not isinstance(authentication, ClientSecret | PrivateKeyJWT):
            raise ConfigurationError(f"{name}.authentication must be a ClientSecret or a PrivateKeyJWT")
        asked = {"resource": resource, "audience": audience, "scope": scope}
        for option, value in asked.items():
            if value is not None and (not isinstance(value, str) or not value or not value.isprintable()):
                raise ConfigurationError(f"{name}.{option} is {value!r}; it must be a printable string")
        self.issuer = issuer
        self._authentication = authentication
        self._form = {"grant_type": grant_type, **{key: value for key, value in asked.items() if value is not None}}
        self._http = http if http is not None else OAuthHTTPClient()
        self._owns_http = http is None
        self._allow_private = allow_private_addresses
        self._clock = clock
        self._metadata = MetadataSource(issuer, self._http, allow_private=allow_private_addresses, clock=monotonic)

    async def issue(self, form: Mapping[str, str] = {}) -> IssuedToken:
        """Ask for a token. Raises TokenRequestError, FetchError and IssuerUnavailableError."""
        metadata = await self._metadata.get()
        try:
            return await request_token(
                self._http,
                metadata,
                self._authentication,
                {**self._form, **form},
                allow_private=self._allow_private,
                clock=self._clock,
            )
        except (FetchError, TokenRequestError) as error:
            if isinstance(error, FetchError) or not error.permanent:
                self._metadata.doubt()
            raise

    async def check(self, form: Mapping[str, str] = {}) -> IssuedToken | TokenRequestError:
        """Ask for a token once; it, or the refusal that came.

        Raises ConfigurationError where the metadata contradicts the configuration, or is not there;
        IssuerUnavailableError where the server cannot be asked.
        """
        try:
            return await self.issue(form)
        except IssuerUnavailableError:
            failure = self._metadata.failure
            if failure is None or not failure.final:
                raise
            raise ConfigurationError(f"no token can be had of {self.issuer}: {failure}") from None
        except (WrongMetadataError, RefusedAddressError) as error:
            raise ConfigurationError(f"no token can be had of {self.issuer}: {error}") from None
        except FetchError as error:
            raise IssuerUnavailableError(f"no token can be had of {self.issuer}: {error}") from None
        except TokenRequestError as error:
            if not error.permanent:
                raise IssuerUnavailableError(f"no token can be had of {self.issuer}: {error}") from None
            return error

    def wrong(self, refusal: TokenRequestError) -> ConfigurationError:
        """What is wrong with the configuration, as ``refusal`` says it: what was sent and what came."""
        sent = ", ".join(f"{name}={value}" for name, value in self._form.items())
        known = self._metadata.known
        accepts = f"; it accepts {', '.join(known.token_endpoint_auth_methods)}" if known is not None else ""
        how = "a signed assertion" if isinstance(self._authentication, PrivateKeyJWT) else "a secret"
        return ConfigurationError(
            f"no token can be had of {self.issuer}: {str(refusal).rstrip('.')}. Sent were {sent}, "
            f"and client_id={self._authentication.client_id} with {how}{accepts}"
        )

    async def aclose(self) -> None:
        await self._metadata.aclose()
        if self._owns_http:
            await self._http.aclose()


class ClientCredentials:
    """A token of our own for a server, whoever calls (RFC 6749 section 4.4).

    ``issuer`` is the authorization server, ``authentication`` how we prove ourselves to it. ``resource`` is the
    server's identifier (RFC 8707), ``audience`` the name that some authorization servers want instead, ``scope`` what
    is asked for, separated by spaces. ``http`` is shared with others if it is given, and then not closed here.
    ``allow_private_addresses``: the authorization server may be on a private network. ``clock`` gives Unix seconds,
    ``monotonic`` measures pauses.

    Raises ConfigurationError.
    """

    def __init__(
        self,
        *,
        issuer: str,
        authentication: ClientAuthentication,
        resource: str | None = None,
        audience: str | None = None,
        scope: str | None = None,
        http: OAuthHTTPClient | None = None,
        allow_private_addresses: bool = False,
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        self._grant = _Grant(
            "ClientCredentials",
            "client_credentials",
            issuer=issuer,
            authentication=authentication,
            resource=resource,
            audience=audience,
            scope=scope,
            http=http,
            allow_private_addresses=allow_private_addresses,
            clock=clock,
            monotonic=monotonic,
        )
        self._keeper = TokenKeeper(issuer=issuer, size=1, refuses_caller=lambda _: False, clock=clock)
        self._clock = clock

    async def token(self) -> str:
        """The token. Raises CredentialUnavailableError and CredentialRefusedError."""
        return (await self._keeper.get(None, self._grant.issue)).value

    async def headers(self, caller: Caller) -> Sequence[tuple[bytes, bytes]]:
        """``Authorization`` with the token. Raises CredentialUnavailableError and CredentialRefusedError."""
        return (await self._keeper.get(None, self._grant.issue)).headers

    def rejected(self, caller: Caller, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """A server answered 401 to ``headers``; True where a new token is worth one more try."""
        return self._keeper.rejected(None, headers)

    def auth(self) -> "CredentialAuth":
        """The same for an ``httpx2.AsyncClient``: ``AsyncClient(auth=credentials.auth())``."""
        from .auth import CredentialAuth  # not at the top: takes 0.1 s

        return CredentialAuth(self, Caller())

    async def start(self) -> None:
        """Get the first token. Raises ConfigurationError where it is refused, IssuerUnavailableError where the
        authorization server cannot be asked."""
        now = self._clock()
        answer = await self._grant.check()
        if isinstance(answer, TokenRequestError):
            raise self._grant.wrong(answer)
        self._keeper.put(None, keep(answer, now=now))

    async def aclose(self) -> None:
        """Stop what runs. It stays usable."""
        await self._keeper.aclose()
        await self._grant.aclose()


class TokenExchange:
    """A token for a server in exchange for the caller's, which names the same caller (RFC 8693).

    The options are those of ``ClientCredentials``; ``audience`` or ``resource`` must name the server, so that the token
    is good there. Up to ``cache_size`` tokens are kept.

    Raises ConfigurationError.
    """

    def __init__(
        self,
        *,
        issuer: str,
        authentication: ClientAuthentication,
        audience: str | None = None,
        resource: str | None = None,
        scope: str | None = None,
        http: OAuthHTTPClient | None = None,
        allow_private_addresses: bool = False,
        cache_size: int = 4096,
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        if audience is None and resource is None:
            raise ConfigurationError("TokenExchange has neither audience nor resource; one must name the server")
        self._grant = _Grant(
            "TokenExchange",
            _TOKEN_EXCHANGE,
            issuer=issuer,
            authentication=authentication,
            resource=resource,
            audience=audience,
            scope=scope,
            http=http,
            allow_private_addresses=allow_private_addresses,
            clock=clock,
            monotonic=monotonic,
        )
        self._keeper = TokenKeeper(
            issuer=issuer,
            size=whole_number("TokenExchange.cache_size", cache_size),
            refuses_caller=lambda error: error.error not in _ABOUT_US,
            clock=clock,
        )
        self._clock = clock

    async def token(self, caller: Caller) -> str:
        """The token for ``caller``. Raises CredentialUnavailableError and CredentialRefusedError."""
        return (await self._kept(caller)).value

    async def headers(self, caller: Caller) -> Sequence[tuple[bytes, bytes]]:
        """``Authorization`` with the token. Raises CredentialUnavailableError and CredentialRefusedError."""
        return (await self._kept(caller)).headers

    def rejected(self, caller: Caller, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """A server answered 401 to ``headers``; True where a new token is worth one more try."""
        return caller.token is not None and self._keeper.rejected(_key(caller, caller.token), headers)

    def auth(self, caller: Caller) -> "CredentialAuth":
        """The same for the requests of an ``httpx2.AsyncClient`` that are made for ``caller``."""
        from .auth import CredentialAuth  # not at the top: takes 0.1 s

        return CredentialAuth(self, caller)

    async def _kept(self, caller: Caller) -> KeptToken:
        subject = caller.token
        if subject is None:
            raise CredentialRefusedError("the caller has no token to exchange", caller=True)
        ends = caller.principal.expires_at if caller.principal is not None else None
        until = math.inf if ends is None else ends
        if until <= self._clock():
            raise CredentialRefusedError("the caller's token has ended", caller=True)
        return await self._keeper.get(_key(caller, subject), lambda: self._exchange(subject), until=until)

    async def _exchange(self, subject: str) -> IssuedToken:
        token = await self._grant.issue(_about(subject))
        if token.issued_token_type not in (None, _ACCESS_TOKEN, _JWT):
            kind = ascii(token.issued_token_type)[:100]
            raise CredentialRefusedError(f"{self._grant.issuer} issued a {kind}, no access token", caller=False)
        if _same(token.value, subject):
            raise CredentialRefusedError(
                f"{self._grant.issuer} gave the caller's own token back, which must not go on", caller=False
            )
        return token

    async def start(self) -> None:
        """Have a token exchanged that nobody issued, and look what is said of the rest.

        Raises ConfigurationError where the authorization server refuses us, or exchanges anything; and
        IssuerUnavailableError where it cannot be asked.
        """
        answer = await self._grant.check(_about(token_urlsafe(32)))
        if isinstance(answer, IssuedToken):
            raise ConfigurationError(f"{self._grant.issuer} exchanged a token that nobody issued; it must check them")
        if answer.error in _ABOUT_US or answer.error == "invalid_scope":
            raise self._grant.wrong(answer)

    async def aclose(self) -> None:
        """Stop what runs. It stays usable."""
        await self._keeper.aclose()
        await self._grant.aclose()


def _about(subject: str) -> dict[str, str]:
    return {
        "subject_token": subject,
        "subject_token_type": _ACCESS_TOKEN,
        "requested_token_type": _ACCESS_TOKEN,
    }


def _key(caller: Caller, subject: str) -> tuple[object, bytes]:
    """Whose the exchanged token is. The whole subject token counts: a new one may have other scopes."""
    principal = caller.principal
    return (None if principal is None else principal.key, sha256(subject.encode("utf-8", "surrogatepass")).digest())


def _same(issued: str, subject: str) -> bool:
    """Whether two tokens are one; the same JWT with its signature written differently is still the same."""
    if issued == subject:
        return True
    ours, theirs = issued.split("."), subject.split(".")
    return len(ours) == len(theirs) == 3 and ours[:2] == theirs[:2]
