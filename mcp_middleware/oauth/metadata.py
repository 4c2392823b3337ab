"""What an authorization server says of itself: RFC 8414 and OpenID Connect discovery, the issuer exact (F8)."""

import asyncio
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.types import Clock

from .http import FetchError, IssuerUnavailableError, OAuthHTTPClient, RefusedAddressError
from .urls import absolute_url, is_loopback, is_private

__all__ = ["MetadataSource", "ServerMetadata", "WrongMetadataError", "discover", "discovery_urls", "parse_metadata"]

logger = logging.getLogger("mcp_middleware.oauth")

Endpoint: TypeAlias = Literal["token_endpoint", "introspection_endpoint", "jwks_uri"]

_ENDPOINTS: Final[tuple[Endpoint, ...]] = get_args(Endpoint)

_TIMEOUT: Final = 10.0
"""Seconds for all the places that one discovery tries."""
_DEFAULT_METHODS: Final = ("client_secret_basic",)
"""What a server that says nothing of it accepts (RFC 8414 section 2)."""


class WrongMetadataError(FetchError):
    """Metadata came, and it contradicts the configuration: what was fetched, and what was expected."""


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """The metadata of one authorization server. An endpoint that is absent, or may not be used, is None."""

    issuer: str
    url: str
    """Where it was found."""
    token_endpoint: str | None
    introspection_endpoint: str | None
    jwks_uri: str | None
    token_endpoint_auth_methods: tuple[str, ...]
    """How a client may prove itself there; a server that says nothing of it means ``client_secret_basic``."""
    introspection_endpoint_auth_methods: tuple[str, ...]
    """The same there; a server that says nothing of it is taken to mean those of the token endpoint."""
    document: Mapping[str, Any] = field(repr=False)
    """All of it."""
    body: bytes = field(repr=False)
    """As it came, byte for byte."""
    unusable: Mapping[str, str] = field(default_factory=dict, repr=False)
    """For an endpoint that is there and may not be used: why."""

    def endpoint(self, name: Endpoint) -> str:
        """The URL of an endpoint that is needed. Raises WrongMetadataError where it is absent or may not be used."""
        found: str | None = getattr(self, name)
        if found is None:
            raise WrongMetadataError(f"{self.url} {self.unusable.get(name, f'names no {name}')}")
        return found


def discovery_urls(issuer: str) -> list[str]:
    """Where the metadata of ``issuer`` may be, in the order to try: RFC 8414 section 3.1, the same for OpenID
    Connect (RFC 8414 section 5), and OpenID Connect Discovery 1.0 section 4 (MCP, authorization server discovery)."""
    parts = urlsplit(issuer)
    origin = f"{parts.scheme}://{parts.netloc}"
    path = parts.path.rstrip("/")
    urls = [
        f"{origin}/.well-known/oauth-authorization-server{path}",
        f"{origin}/.well-known/openid-configuration{path}",
        f"{origin}{path}/.well-known/openid-configuration",
    ]
    return list(dict.fromkeys(urls))


def parse_metadata(body: bytes, *, url: str, issuer: str, allow_private: bool = False) -> ServerMetadata:
    """The metadata of ``issuer`` in ``body``, which was found at ``url``.

    Raises FetchError where it is no metadata, WrongMetadataError where it is another issuer's (RFC 8414 section 3.3).
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise FetchError(f"{url} has no JSON object", status=200)
    found = document.get("issuer")
    if found != issuer:
        raise WrongMetadataError(f"{url} has the issuer {_shown(found)}; {_shown(issuer)} was expected")
    usable: dict[Endpoint, str | None] = {}
    unusable: dict[str, str] = {}
    for name in _ENDPOINTS:
        value = document.get(name)
        reason = None if value is None else _why_unusable(name, value, issuer, allow_private)
        if reason is not None:
            unusable[name] = reason
        usable[name] = value if reason is None else None
    methods = _methods(document, "token_endpoint") or _DEFAULT_METHODS
    return ServerMetadata(
        issuer=issuer,
        url=url,
        token_endpoint_auth_methods=methods,
        introspection_endpoint_auth_methods=_methods(document, "introspection_endpoint") or methods,
        document=document,
        body=body,
        unusable=unusable,
        **usable,
    )


def _methods(document: Mapping[str, Any], endpoint: str) -> tuple[str, ...]:
    methods = document.get(f"{endpoint}_auth_methods_supported")
    if not isinstance(methods, list) or not all(isinstance(method, str) for method in methods):
        return ()
    return tuple(methods)


def _why_unusable(name: str, value: object, issuer: str, allow_private: bool) -> str | None:
    """Why an endpoint must not be used. Metadata must not send us to a private host: only the issuer's own may be
    one, or one where such are allowed; and to this machine only an issuer sends us that is on it."""
    try:
        parts = absolute_url(name, value, query=True)
    except ConfigurationError:
        return f"has the {name} {_shown(value)}, which is no https URL without user and fragment"
    host, own = parts.hostname or "", urlsplit(issuer).hostname or ""
    if host == own or not is_private(host) or is_loopback(own) or (allow_private and not is_loopback(host)):
        return None
    return f"has the {name} {_shown(value)}, which is on a private host"


def _shown(value: object) -> str:
    """A value that came from outside, fit for a log line."""
    return ascii(value)[:200]


async def discover(client: OAuthHTTPClient, issuer: str, *, allow_private: bool = False) -> ServerMetadata:
    """The metadata of ``issuer``, from the first place that has it.

    Raises WrongMetadataError where the places that answer have another issuer's, RefusedAddressError where they must
    not be asked, else FetchError, with a status only if every place answered: the highest.
    """
    failures: list[FetchError] = []
    wrong: FetchError | None = None
    for url in discovery_urls(issuer):
        try:
            body = await client.get(url, allow_private=allow_private)
            return parse_metadata(body, url=url, issuer=issuer, allow_private=allow_private)
        except (WrongMetadataError, RefusedAddressError) as error:
            wrong = wrong or error
        except FetchError as error:
            failures.append(error)
    if wrong is not None:
        raise wrong
    statuses = [error.status for error in failures if error.status is not None]
    status = max(statuses) if len(statuses) == len(failures) else None
    failure = FetchError("; ".join(map(str, failures)), status=status)
    if failure.final:
        raise FetchError(f"{failure}; the metadata of {_shown(issuer)} was expected at one of them", status=status)
    raise failure


class MetadataSource:
    """One issuer's metadata: fetched when first needed, kept, and fetched again when it ages.

    It is fresh for ``lifetime`` seconds, and used beyond that while the issuer does not answer. A failed fetch is
    not repeated within ``cooldown`` seconds. At any time one fetch runs, and everybody waits for that one.
    """

    def __init__(
        self,
        issuer: str,
        client: OAuthHTTPClient,
        *,
        allow_private: bool = False,
        lifetime: float = 3600.0,
        cooldown: float = 10.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self.issuer = issuer
        self._client = client
        self._allow_private = allow_private
        self._lifetime = lifetime
        self._cooldown = cooldown
        self._clock = clock
        self._known: ServerMetadata | None = None
        self._fetched_at = -math.inf
        self._failed_at = -math.inf
        self._doubted = False
        self._failure: FetchError | None = None
        self._fetch: asyncio.Task[None] | None = None

    @property
    def known(self) -> ServerMetadata | None:
        """What was fetched last, however old."""
        return self._known

    @property
    def failure(self) -> FetchError | None:
        """Why the last fetch failed, if it did."""
        return self._failure

    async def get(self) -> ServerMetadata:
        """The metadata. Raises WrongMetadataError and RefusedAddressError as ``discover``, IssuerUnavailableError."""
        now = self._clock()
        if self._known is not None and now - self._fetched_at < self._lifetime and not self._doubted:
            return self._known
        if now - self._failed_at >= self._cooldown:
            if self._fetch is None or self._fetch.done():
                # A task: a caller that goes away does not end it for the others.
                self._fetch = asyncio.create_task(self._refresh(), name=f"metadata of {self.issuer}")
            if self._known is not None and not self._doubted:
                return self._known  # good enough until the new one is there
            await asyncio.wait({self._fetch})
        if self._known is not None:
            return self._known
        failure = self._failure
        if isinstance(failure, WrongMetadataError | RefusedAddressError):
            raise type(failure)(str(failure))
        raise IssuerUnavailableError(
            f"the metadata of {self.issuer} cannot be fetched: {failure}",
            retry_after=self._failed_at + self._cooldown - self._clock(),
        )

    def doubt(self) -> None:
        """What it names has failed, and may have moved: who asks next waits for a new one, unless this one is new."""
        if self._clock() - self._fetched_at >= self._cooldown:
            self._doubted = True

    async def aclose(self) -> None:
        """Stop a fetch that runs."""
        fetch, self._fetch = self._fetch, None
        if fetch is not None:
            fetch.cancel()
            await asyncio.wait({fetch})

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                self._known = await discover(self._client, self.issuer, allow_private=self._allow_private)
        except TimeoutError:
            self._fail(FetchError(f"no answer within {_TIMEOUT:g} s"))
        except FetchError as error:
            self._fail(error)
        except Exception:
            logger.exception("fetching metadata failed in a way that is not foreseen")
            self._fail(FetchError("an error of our own"))
        else:
            self._fetched_at = self._clock()
            self._doubted = False
            self._failure = None

    def _fail(self, failure: FetchError) -> None:
        self._failed_at = self._clock()
        self._failure = failure
        # Without any, who asks is told, and says it: once is enough.
        level = logging.DEBUG if self._known is None else logging.WARNING
        logger.log(level, "the metadata of %s could not be fetched: %s", self.issuer, failure)
