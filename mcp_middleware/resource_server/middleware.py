"""The member: who calls? Answered from the request's headers, before anything of the body is read."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Final, Literal

from mcp_middleware.errors import INVALID_REQUEST, UNAUTHORIZED, UNAVAILABLE, ConfigurationError
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import ASGIApp, Bounds, Member
from mcp_middleware.oauth.http import IssuerUnavailableError
from mcp_middleware.options import flag
from mcp_middleware.responses import retry_later
from mcp_middleware.types import AccessToken, Document, Principal, Rejection, TokenVerifier

from .challenge import MalformedAuthorizationError, bearer_token, challenge, without_token
from .identity import IDENTITY_HEADERS, hand_on
from .issuers import Issuer
from .legacy import LEGACY_WELL_KNOWN, issuer_metadata
from .metadata import ProtectedResource, metadata_answer, server_paths
from .origins import AllowedOrigins
from .refusals import Refusals
from .results import UnusableResultError, checked
from .scopes import ScopeHierarchy
from .verifier import IntrospectionVerifier, IssuersVerifier, JWTVerifier, VerifiedToken

__all__ = ["OAuthResourceServerMiddleware"]

_QUERY_TOKEN: Final = b"token"
_OURS: Final = (IssuersVerifier, JWTVerifier, IntrospectionVerifier)
_ANY_WELL_KNOWN: Final = "/.well-known/"
_WIDENED: Final = 4096
"""Tokens whose widened scopes are kept at hand."""

logger = logging.getLogger("mcp_middleware.resource_server")


class OAuthResourceServerMiddleware(Member):
    """Lets in who bears a valid access token for this resource, and tells the others where to get one.

    ``resource`` is the URL clients connect to, and the audience of their tokens. ``issuers`` are the authorization
    servers whose tokens count; ``verifier`` is any other way to verify a token, in their place. ``scopes`` are what
    every request needs. ``implied_scopes`` names for a scope those it contains, so that a token with the greater need
    not name the smaller: ``{"mcp:admin": ["mcp:use"]}``. ``authorization_servers`` are listed in the metadata document:
    the issuers, where nothing is said; a verifier that does not know any needs the option. ``legacy_metadata`` repeats
    the first issuer's metadata at the origin of the resource, where clients of 2025-03-26 look for it, unless the
    issuer itself is there. ``allowed_origins`` are the web origins besides the resource's own whose pages may call,
    ``"*"`` all. ``tell_server`` makes the caller known to the application inside, as the MCP SDK, FastMCP and Starlette
    look for one, with the scopes that the token itself names; a proxy to another machine has no use for it.

    Every request needs a token, whatever its path and method, except those for the metadata documents (RFC 9728).
    Refusals are those of RFC 6750 with MCP's additions (B2, B8 to B12). While an event stream is open its token is
    verified again every 20 seconds, and the stream ends with it. When the application starts, a verifier with an async
    method ``start`` is started. Raises ConfigurationError.
    """

    stage: ClassVar[str] = "resource_server"

    def __init__(
        self,
        app: ASGIApp,
        *,
        resource: str,
        issuers: Sequence[str | Issuer] = (),
        scopes: Sequence[str] = (),
        verifier: TokenVerifier | None = None,
        implied_scopes: Mapping[str, Sequence[str]] | None = None,
        authorization_servers: Sequence[str] = (),
        legacy_metadata: bool = True,
        allowed_origins: Sequence[str] = (),
        tell_server: bool = True,
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__(app, bounds=bounds)
        if verifier is None and not issuers:
            raise ConfigurationError("neither issuers nor verifier is given; one of them must say whose tokens count")
        if verifier is None:
            verifier = IssuersVerifier(resource=resource, issuers=issuers)
        elif issuers:
            raise ConfigurationError("issuers and verifier exclude each other; give a verifier its issuers itself")
        elif not callable(getattr(verifier, "verify_token", None)):
            raise ConfigurationError(f"verifier is {verifier!r}; it must have an async method verify_token(token)")
        if isinstance(verifier, IssuersVerifier) and verifier.resource != resource:
            raise ConfigurationError(f"the verifier is for {verifier.resource!r}; it must be for {resource!r}")
        self._verifier = verifier
        self._refusals = Refusals()
        # What a verifier derived from ours would do besides is not to be passed over.
        self._recall = None
        if isinstance(verifier, IssuersVerifier) and type(verifier) in _OURS:
            self._recall = verifier.recall
        servers = authorization_servers or getattr(verifier, "authorization_servers", ())
        self._resource = ProtectedResource(resource, authorization_servers=servers, scopes=scopes)
        self._required = frozenset(self._resource.scopes)
        self._hierarchy = ScopeHierarchy(implied_scopes) if implied_scopes else None
        self._widened: dict[int, tuple[VerifiedToken, Principal]] = {}
        self._origins = AllowedOrigins(resource, allowed_origins)
        self._legacy = issuer_metadata(resource, verifier) if flag("legacy_metadata", legacy_metadata) else None
        self._hand_on = hand_on() if flag("tell_server", tell_server) else None

    async def on_startup(self) -> None:
        start = getattr(self._verifier, "start", None)
        if start is not None:
            await start()

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        exchange.resource_metadata = self._resource.metadata_url
        exchange.base_scopes = self._resource.scopes
        exchange.principal = None
        if _ANY_WELL_KNOWN in exchange.path:
            document = await self._document(exchange)
            if document is not None:
                return document
        if b"origin" in exchange.repeated or not self._origins.allow(exchange.headers.get(b"origin")):
            return Rejection(403, INVALID_REQUEST, "The Origin of this request is not allowed here", "bad_origin")
        token = await self._authenticate(exchange)
        if isinstance(token, Rejection):
            return token
        exchange.principal = self._principal(token)
        if not self._required <= exchange.principal.scopes:
            text = "The access token lacks a scope: this resource requires " + " ".join(self._resource.scopes)
            refusal = self._refuse(403, "insufficient_scope", text, "insufficient_scope")
            if exchange.http_method != "POST":
                return refusal
            # The message may need more: a client that is told of all at once asks for a token once (B10, H6).
            exchange.deferred = refusal
            return None
        exchange.still_good = self._is_still_good
        exchange.remove_headers(IDENTITY_HEADERS)
        if _QUERY_TOKEN in exchange.scope.get("query_string", b"").lower():
            exchange.scope["query_string"] = without_token(exchange.scope["query_string"])
        if self._hand_on is not None:
            exchange.state[self] = self._hand_on(exchange.scope, token)
        return None

    async def _authenticate(self, exchange: Exchange) -> AccessToken | Rejection:
        """The verified token of the request, or its refusal."""
        authorization, repeated = exchange.headers.get(b"authorization"), b"authorization" in exchange.repeated
        if self._recall is not None and authorization is not None and not repeated:
            known = self._recall(authorization)
            if known is not None and self._is_for_here(known):
                exchange.access_token = known.token
                return known
        try:
            bearer = bearer_token(authorization, repeated=repeated)
        except MalformedAuthorizationError as error:
            text = f"The Authorization header has {error}; send it once, as: Bearer <access token>"
            return self._refuse(400, "malformed_authorization", text, "invalid_request")
        if bearer is None:
            return self._refuse(401, "no_token", "This resource requires an access token: Authorization: Bearer", None)
        try:
            token = await self._verify(bearer) if bearer else None
        except IssuerUnavailableError as error:
            return _unavailable(error.retry_after)
        except UnusableResultError as error:
            logger.error("the token verifier answered %s", error)
            return _unavailable(1)
        except Exception as error:  # a verifier of somebody else's; its message may quote the token
            logger.error("the token verifier failed: %s", type(error).__name__)
            return _unavailable(1)
        if token is None or not self._is_for_here(token):
            text = "The access token has expired, is malformed, or was not issued for this resource; get a new one"
            return self._refuse(401, "invalid_token", text, "invalid_token")
        exchange.access_token = bearer
        return token

    async def _verify(self, bearer: str) -> AccessToken | None:
        """What the verifier says. Raises what it raises, and UnusableResultError."""
        token = await self._verifier.verify_token(bearer)
        return token if token is None or isinstance(token, VerifiedToken) else checked(token)

    async def _document(self, exchange: Exchange) -> Document | None:
        """The metadata document at the request's path, if there is one."""
        paths = server_paths(exchange.scope)
        if not self._resource.paths.isdisjoint(paths):
            return metadata_answer(self._resource.body, exchange.http_method)
        if self._legacy is not None and LEGACY_WELL_KNOWN in paths:
            return await self._legacy.answer(exchange.http_method)
        return None

    def _principal(self, token: AccessToken) -> Principal:
        """Whose the token is, with all that its scopes contain."""
        if not isinstance(token, VerifiedToken):
            return self._widen(Principal.from_access_token(token))
        if self._hierarchy is None:
            return token.principal
        known = self._widened.get(id(token))
        if known is not None and known[0] is token:
            return known[1]
        principal = self._widen(token.principal)
        if len(self._widened) >= _WIDENED:
            self._widened.clear()
        self._widened[id(token)] = token, principal
        return principal

    def _widen(self, principal: Principal) -> Principal:
        if self._hierarchy is None:
            return principal
        scopes = self._hierarchy.widened(principal.scopes)
        return principal if scopes is principal.scopes else replace(principal, scopes=scopes)

    async def _is_still_good(self, exchange: Exchange) -> bool:
        """Whether the token that opened a stream would open it now. An outage of the issuer ends no stream."""
        try:
            token = await self._verify(exchange.access_token or "")
        except UnusableResultError:
            return False
        except Exception as error:
            logger.info("the token of an open stream cannot be verified now: %s", type(error).__name__)
            return True
        return token is not None and self._is_for_here(token)

    def _is_for_here(self, token: AccessToken) -> bool:
        """What any verifier's result must keep to: not expired, and for no other resource where it names one."""
        if token.expires_at is not None and token.expires_at <= time.time():
            self._refusals.note("it has expired")
            return False
        if token.resource is not None and token.resource != self._resource.resource:
            self._refusals.note(f"it is for {ascii(token.resource)[:200]}")
            return False
        return True

    def _refuse(
        self,
        status: int,
        reason: str,
        text: str,
        error: Literal["invalid_request", "invalid_token", "insufficient_scope"] | None,
    ) -> Rejection:
        header = challenge(self._resource.metadata_url, self._resource.scopes, error)
        return Rejection(status, UNAUTHORIZED, text, reason, headers=(header,))

    async def on_finish(self, exchange: Exchange) -> None:
        undo: Callable[[], None] | None = exchange.state.pop(self, None)
        if undo is not None:
            undo()

    async def aclose(self) -> None:
        aclose = getattr(self._verifier, "aclose", None)
        if aclose is not None:
            await aclose()


def _unavailable(retry_after: int) -> Rejection:
    """An outage of the issuer is never the caller's fault: a 401 would make clients drop their credentials."""
    text = "Access tokens cannot be verified now; try again later"
    return retry_later(503, UNAVAILABLE, text, "issuer_unavailable", seconds=retry_after)
