"""The keeping of an issuer's keys (JWKS), which are found by its metadata or where the configuration says."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Final

from mcp_middleware.oauth.http import FetchError, IssuerUnavailableError, OAuthHTTPClient
from mcp_middleware.oauth.metadata import discover
from mcp_middleware.types import Clock

from .keys import Key, KeySet, parse_jwks

__all__ = ["IssuerKeys"]

logger = logging.getLogger("mcp_middleware.resource_server")

_TIMEOUT: Final = 5.0
"""Seconds for all requests that one fetch of the keys takes."""
_PATIENCE: Final = 0.03
"""Seconds that a request waits for fresher keys while it has stale ones."""


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
        client: OAuthHTTPClient,
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
            uri = self._found_uri = (await discover(self._client, self.issuer)).endpoint("jwks_uri")
        return parse_jwks(await self._client.get(uri))

    def _fail(self, reason: str) -> None:
        self._failed_at = self._clock()
        self._found_uri = None  # the keys may have moved
        logger.warning("the keys of %s could not be fetched: %s", self.issuer, reason)
