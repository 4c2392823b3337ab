"""A copy of the issuer's metadata for clients of 2025-03-26, which look for it at the origin of the MCP server."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from mcp_middleware.oauth.http import FetchError, IssuerUnavailableError
from mcp_middleware.oauth.metadata import ServerMetadata
from mcp_middleware.types import Document, TokenVerifier

from .metadata import metadata_answer, unavailable_answer

__all__ = ["LEGACY_WELL_KNOWN", "IssuerMetadata", "issuer_metadata"]

LEGACY_WELL_KNOWN: Final = "/.well-known/oauth-authorization-server"
"""RFC 8414 section 3, as 2025-03-26 has it ("Authorization Base URL"): without the path of the MCP server."""

_DEFAULT_PORTS: Final = {"https": 443, "http": 80}

logger = logging.getLogger("mcp_middleware.resource_server")


class IssuerMetadata:
    """The metadata of one issuer, byte for byte: it names the issuer's own endpoints and the issuer itself, so that
    nothing of a client's flow passes through here, and a client that checks the name is not deceived."""

    __slots__ = ("_fetch", "issuer")

    def __init__(self, issuer: str, fetch: Callable[[str], Awaitable[ServerMetadata]]) -> None:
        self.issuer = issuer
        self._fetch = fetch

    async def answer(self, method: str) -> Document:
        """The answer to a request with this HTTP method. The issuer is asked when it has to be, and only then."""
        if method not in ("GET", "HEAD"):
            return metadata_answer(b"", method)
        try:
            found = await self._fetch(self.issuer)
        except IssuerUnavailableError as error:
            logger.info("the metadata of %s cannot be repeated: %s", self.issuer, error)
            return unavailable_answer(error.retry_after)
        except FetchError as error:  # the start has said so, if there was one
            logger.warning("the metadata of %s cannot be repeated: %s", self.issuer, error)
            return unavailable_answer(60)
        return metadata_answer(found.body, method)


def issuer_metadata(resource: str, verifier: TokenVerifier) -> IssuerMetadata | None:
    """The metadata of the first issuer of ``verifier``.

    None where the verifier knows none, as one of somebody else's may not, and where the issuer is at the resource's
    own origin: then its own metadata is there, and not ours to answer.
    """
    fetch = getattr(verifier, "metadata", None)
    issuers = getattr(verifier, "authorization_servers", ())
    if not callable(fetch) or not issuers or _origin(issuers[0]) == _origin(resource):
        return None
    return IssuerMetadata(issuers[0], fetch)


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme)
