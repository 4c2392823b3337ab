"""The credential that a server gets, in place of its caller's.

A caller's token was issued for the gateway and never goes on (F1). What does is one of three: a header of the file's, a
token of the gateway's own (RFC 6749 section 4.4), or one that was exchanged for the caller's (RFC 8693). Beside each of
them, or alone, a signed header can name the caller.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from mcp_middleware.credentials import (
    Caller,
    CallerSigner,
    ClientCredentials,
    Credential,
    CredentialRefusedError,
    CredentialUnavailableError,
    TokenExchange,
)
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.exchange import Exchange
from mcp_middleware.oauth import IssuerUnavailableError, OAuthHTTPClient
from mcp_middleware.oauth.waiting import until_answered
from mcp_middleware.types import Clock, Headers

from .sections.credentials import GrantConfig
from .sections.servers import ServerConfig

__all__ = ["ServerCredentials"]

logger = logging.getLogger("mcp_middleware.gateway")

_GRANTS: Final = {"client_credentials": ClientCredentials, "token_exchange": TokenExchange}


class ServerCredentials:
    """What one server is to know the gateway by, of what has to be made for a request.

    ``issuer`` and ``audience`` are those of the signed header: the gateway's URL, and that of the server's endpoint
    at it. ``count`` is told of each failure, ``clock`` gives Unix seconds. Raises ConfigurationError.
    """

    def __init__(
        self,
        server: ServerConfig,
        http: OAuthHTTPClient,
        *,
        issuer: str,
        audience: str,
        count: Callable[[str, str], None] | None = None,
        clock: Clock = time.time,
    ) -> None:
        self._name = server.name
        self._count = count
        self._place = f"servers.{server.name}.credentials"
        self._grant: Credential | None = None
        self._signer: CallerSigner | None = None
        grant, caller = server.credentials, server.caller
        if isinstance(grant, GrantConfig):
            self._grant = _GRANTS[grant.type](
                issuer=grant.issuer,
                authentication=grant.authentication,
                audience=grant.audience,
                resource=grant.resource,
                scope=grant.scope,
                allow_private_addresses=grant.allow_private_addresses,
                http=http,
                clock=clock,
            )
        if caller is not None:
            self._signer = CallerSigner(key=caller.key, issuer=issuer, audience=audience, header=caller.header)
        self._asking: asyncio.Task[None] | None = None
        self.waiting: str | None = None
        """Why there is no credential yet, while the authorization server has not answered once."""

    async def start(self) -> None:
        """Ask the authorization server whether the configuration is right. One that is down is asked again until it
        answers. Raises ConfigurationError, with what was sent, fetched and expected."""
        seconds = await self._heard()
        if seconds is not None:
            waiting = until_answered(self._ask_again, first=seconds)
            self._asking = asyncio.create_task(waiting, name=f"ask for {self._place}")

    async def ask(self) -> None:
        """Ask the authorization server once whether the configuration is right. Raises ConfigurationError, and
        IssuerUnavailableError where it does not answer."""
        try:
            if self._grant is not None:
                await self._grant.start()
        except ConfigurationError as error:
            raise ConfigurationError(f"{self._place}: {error}") from None

    async def _heard(self) -> float | None:
        """Seconds after which to ask again, if there was no answer. Raises ConfigurationError."""
        try:
            await self.ask()
        except IssuerUnavailableError as error:
            logger.warning("%s: %s; it is asked again", self._place, error)
            self.waiting = f"The authorization server of {self._place} has not answered yet"
            return error.retry_after
        self.waiting = None
        return None

    async def _ask_again(self) -> bool:
        """Whether there was an answer that fits the configuration; one that does not may be mended, here or there."""
        try:
            answered = await self._heard() is None
        except ConfigurationError as error:
            logger.error("%s", error)
            self.waiting = f"The authorization server of {self._place} contradicts it; the log says how"
            return False
        if answered:
            logger.info("%s: the authorization server answers", self._place)
        return answered

    async def headers(self, exchange: Exchange) -> Headers:
        """The headers for a request. Raises CredentialUnavailableError and CredentialRefusedError."""
        caller = Caller(exchange.principal, exchange.access_token)
        try:
            lines = [] if self._grant is None else list(await self._grant.headers(caller))
        except CredentialUnavailableError:
            self._note("unavailable")
            raise
        except CredentialRefusedError:
            self._note("refused")
            raise
        if self._signer is not None:
            lines.append(self._signer.header(caller))
        return lines

    def rejected(self, exchange: Exchange, headers: Headers) -> bool:
        """The server answered 401 to ``headers``. Whether there may be better ones now."""
        if self._grant is None:
            return False
        self._note("rejected")
        own = headers if self._signer is None else headers[:-1]
        return self._grant.rejected(Caller(exchange.principal, exchange.access_token), own)

    def _note(self, failure: str) -> None:
        if self._count is not None:
            self._count(self._name, failure)

    async def aclose(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
            self._asking = None
        if self._grant is not None:
            await self._grant.aclose()
