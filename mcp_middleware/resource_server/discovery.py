"""Where an issuer's keys are, and the keeping of them: RFC 8414 and OpenID Connect discovery, JWKS.

Nothing here trusts the network: https except on loopback, no redirect followed, bodies and time bounded, the
issuer's identity compared exactly (F4, F8).
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.types import Clock

from .keys import Key, KeySet, parse_jwks
from .urls import absolute_url, is_loopback, is_private

if TYPE_CHECKING:
    import httpx2

__all__ = ["IssuerClient", "IssuerKeys", "IssuerUnavailableError", "discovery_urls", "keys_url"]

logger = logging.getLogger("mcp_middleware.resource_server")

_MAX_BODY_BYTES: Final = 256 * 1024
_TIMEOUT: Final = 5.0
"""Seconds for all requests that one fetch of the keys takes."""
_PATIENCE: Final = 0.03
"""Seconds that a request waits for fresher keys while it has stale ones."""


class IssuerUnavailableError(Exception):
    """What a token proves cannot be found out now, because its issuer does not answer. Never the caller's fault.

    A TokenVerifier raises it; it is answered 503. ``retry_after`` is when to try again, in seconds.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = math.ceil(max(1.0, retry_after))


class FetchError(Exception):
    """One document could not be had, or is not what it must be."""


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


def keys_url(metadata: dict[str, Any], issuer: str) -> str:
    """The ``jwks_uri`` of an issuer's metadata. Raises FetchError where it must not be used.

    The metadata must not send us to a private address: only the issuer's own host may be one.
    """
    try:
        parts = absolute_url("jwks_uri", metadata.get("jwks_uri"), query=True)
    except ConfigurationError as error:
        raise FetchError(str(error)) from None
    own = urlsplit(issuer).hostname or ""
    host = parts.hostname or ""
    if host != own and is_private(host) and not is_loopback(own):
        raise FetchError(f"its metadata has its keys on the private host {host}")
    return str(metadata["jwks_uri"])


class IssuerClient:
    """Fetches small JSON documents from issuers: one HTTP client, made at the first fetch and shared by all."""

    __slots__ = ("_http",)

    def __init__(self) -> None:
        self._http: httpx2.AsyncClient | None = None

    async def get(self, url: str) -> bytes:
        """The body at ``url``. Raises FetchError for every answer but a 200 within the bounds."""
        import httpx2  # not at the top: takes 0.1 s

        if self._http is None:
            # No connection is kept: fetches are minutes apart, and the client may outlive an event loop.
            self._http = httpx2.AsyncClient(
                follow_redirects=False,
                timeout=_TIMEOUT,
                limits=httpx2.Limits(max_connections=20, max_keepalive_connections=0),
                headers={"accept": "application/json", "accept-encoding": "identity"},
            )
        try:
            async with self._http.stream("GET", url) as response:
                if response.status_code != 200:
                    raise FetchError(f"{url} answered {response.status_code}")
                body = bytearray()
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > _MAX_BODY_BYTES:
                        raise FetchError(f"{url} answered more than {_MAX_BODY_BYTES} bytes")
                return bytes(body)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise FetchError(f"{url}: {type(error).__name__}") from error

    async def discover(self, issuer: str) -> dict[str, Any]:
        """The metadata of ``issuer``, from the first place that has it. Raises FetchError.

        It must name the issuer exactly as configured (RFC 8414 section 3.3, F8).
        """
        failures = []
        for url in discovery_urls(issuer):
            try:
                metadata = json.loads(await self.get(url))
            except (FetchError, ValueError, RecursionError) as error:
                failures.append(str(error))
                continue
            if isinstance(metadata, dict) and metadata.get("issuer") == issuer:
                return metadata
            failures.append(f"{url} does not name {issuer} as its issuer")
        raise FetchError("; ".join(failures))

    async def aclose(self) -> None:
        """Close the client; a later fetch makes a new one."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()


class IssuerKeys:
    """One issuer's keys: fetched when first needed, kept, and fetched again when they age or a key is unknown.

    Keys are fresh for ``lifetime`` seconds. After that the next request has them fetched again; while the issuer
    does not answer they stay usable for another ``staleness`` seconds. An unknown key has them fetched again at most
    once in ``cooldown`` seconds, and a failed fetch is not repeated before that either. At any time one fetch runs,
    and everybody waits for that one.
    """

    def __init__(
        self,
        issuer: str,
        client: IssuerClient,
        *,
        jwks_uri: str | None,
        lifetime: float,
        staleness: float,
        cooldown: float,
        clock: Clock = time.monotonic,
    ) -> None:
        self.issuer = issuer
        self._client = client
        self._configured_uri = jwks_uri
        self._found_uri: str | None = None
        self._lifetime = lifetime
        self._staleness = staleness
        self._cooldown = cooldown
        self._clock = clock
        self._keys: KeySet | None = None
        self._fetched = 0
        """How often they have been fetched."""
        self._fetched_at = -math.inf
        self._failed_at = -math.inf
        self._searched_at = -math.inf
        """When an unknown key last had the keys fetched."""
        self._fetch: asyncio.Task[None] | None = None

    @property
    def fresh(self) -> KeySet | None:
        """The keys, if they need no fetch."""
        return self._keys if self._clock() - self._fetched_at < self._lifetime else None

    async def find(self, kid: str | None, algorithm: str, verifies: Callable[[Key], bool]) -> KeySet | None:
        """The keys, if one of them that is named ``kid`` and may verify ``algorithm`` does verify; else None.

        The issuer is asked again only where the key may be a new one: the name is unknown, or the token has none.
        Raises IssuerUnavailableError where the issuer has to be asked and does not answer.
        """
        fetched = self._fetched
        keys = await self._current()
        candidates = keys.find(kid, algorithm)
        if any(map(verifies, candidates)):
            return keys
        if candidates and kid is not None:
            return None
        if self._fetched > fetched:
            return None  # fetched for this very token: no newer ones can be had
        newer = await self._newer()
        if newer is not keys and any(map(verifies, newer.find(kid, algorithm))):
            return newer
        return None

    async def _current(self) -> KeySet:
        now = self._clock()
        age = now - self._fetched_at
        if self._keys is not None and age < self._lifetime:
            return self._keys
        usable = self._keys is not None and age < self._lifetime + self._staleness
        fetched = self._fetched
        if now - self._failed_at >= self._cooldown:
            await self._wait_for_fetch(_PATIENCE if usable else None)
        if self._keys is not None and (usable or self._fetched > fetched):
            return self._keys
        raise self._unavailable()

    async def _newer(self) -> KeySet:
        """The keys, fetched again unless that was done a short while ago."""
        now = self._clock()
        if now - self._failed_at < self._cooldown:
            raise self._unavailable()  # it may be a new key; nobody can know
        failed_at = self._failed_at
        if now - self._searched_at >= self._cooldown:
            self._searched_at = now
            await self._wait_for_fetch(None)
        elif self._fetch is not None:
            await asyncio.wait({self._fetch})
        if self._keys is None or self._failed_at != failed_at:
            raise self._unavailable()
        return self._keys

    async def aclose(self) -> None:
        """Stop a fetch that runs."""
        if self._fetch is not None:
            self._fetch.cancel()
            await asyncio.wait({self._fetch})

    def _unavailable(self) -> IssuerUnavailableError:
        wait = self._failed_at + self._cooldown - self._clock()
        return IssuerUnavailableError(f"the keys of {self.issuer} cannot be fetched", retry_after=wait)

    async def _wait_for_fetch(self, patience: float | None) -> None:
        """Wait for the fetch that runs, or start it. A caller that goes away does not end it for the others."""
        if self._fetch is None or self._fetch.done():
            self._fetch = asyncio.create_task(self._refresh(), name=f"keys of {self.issuer}")
        await asyncio.wait({self._fetch}, timeout=patience)

    async def _refresh(self) -> None:
        """Fetch the keys and keep them; a failure is noted and logged, and leaves those that are there."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                keys = await self._fetch_keys()
        except (FetchError, ValueError) as error:
            self._fail(str(error))
        except TimeoutError:
            self._fail(f"no answer within {_TIMEOUT:g} s")
        except Exception:
            logger.exception("fetching keys failed in a way that is not foreseen")
            self._fail("an error of our own")
        else:
            self._fetched += 1
            self._fetched_at = self._clock()
            if keys != self._keys:
                self._keys = keys

    async def _fetch_keys(self) -> KeySet:
        uri = self._configured_uri or self._found_uri
        if uri is None:
            uri = self._found_uri = keys_url(await self._client.discover(self.issuer), self.issuer)
        return parse_jwks(await self._client.get(uri))

    def _fail(self, reason: str) -> None:
        self._failed_at = self._clock()
        self._found_uri = None  # the keys may have moved
        logger.warning("the keys of %s could not be fetched: %s", self.issuer, reason)
