"""The keeping of an issuer's keys (JWKS), which are found by its metadata or where the configuration says.

1. While the keys are fresh, no request waits. They are fetched again in the background before their time is up.
2. While the issuer does not answer, they stay usable for a stated time, and nobody waits for one that is known to be
   down.
3. An unknown key has them fetched again at once, so that a rotation refuses no good token; but if that brought
   nothing, not again for a while, and for that key for longer and longer, up to a minute, so that invented and
   forgotten keys cost the issuer nothing. Whoever has had a good token does not share that while with strangers, so
   that no stranger's invention keeps a new key from those who work here.
4. A key that is withdrawn counts no longer than keys are fresh (or usable, while the issuer is down).
"""

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from mcp_middleware.oauth.http import FetchError, IssuerUnavailableError, OAuthHTTPClient
from mcp_middleware.oauth.metadata import MetadataSource, discover
from mcp_middleware.types import Clock

from .issuers import Issuer
from .keys import Key, KeySet, parse_jwks

__all__ = ["IssuerKeys"]

logger = logging.getLogger("mcp_middleware.resource_server")

_TIMEOUT: Final = 5.0
"""Seconds for all requests that one fetch of the keys takes."""
_PATIENCE: Final = 0.03
"""Seconds that a request waits for fresher keys while it has stale ones, or for an issuer that was silent."""
_SILENT: Final = 1.0
"""Seconds without an answer after which nobody waits for the next one."""
_MAX_MISSING: Final = 256
"""Names of keys that are remembered as missing, and the characters of one."""
_LONGEST_PAUSE: Final = 60.0
"""Seconds between two searches for such a name. Who guesses the name of an issuer's next key keeps its tokens out no
longer."""
_AHEAD: Final = 0.75
"""The part of the keys' time after which they are fetched again in the background."""


class IssuerKeys:
    """One issuer's keys: fetched when first needed, and kept.

    They are fresh for ``lifetime`` seconds, and stay usable for another ``staleness`` seconds while the issuer does
    not answer. Unknown keys have them fetched again at most twice in ``cooldown`` seconds, once for all tokens in
    familiar names and once for all others, but for those that were found by it; and a failed fetch is not repeated
    before that either. At any time one fetch runs, and everybody waits for that one.
    """

    def __init__(
        self,
        issuer: Issuer,
        client: OAuthHTTPClient,
        metadata: MetadataSource,
        *,
        lifetime: float,
        staleness: float,
        cooldown: float,
        clock: Clock = time.monotonic,
    ) -> None:
        self.issuer = issuer.issuer
        self._client = client
        self._metadata = metadata
        self._configured_uri = issuer.jwks_uri
        self._private = issuer.allow_private_addresses
        self._lifetime = lifetime
        self._ahead = lifetime * _AHEAD
        self._staleness = staleness
        self._cooldown = cooldown
        self._clock = clock
        self._keys: KeySet | None = None
        self._fetched = 0
        """How often they have been fetched."""
        self._fetched_at = -math.inf
        self._failed_at = -math.inf
        self._failure: FetchError | None = None
        """Why the last fetch failed; None after one that did not."""
        self._silent = False
        """Whether it failed because no answer came."""
        self._searched_at = {True: -math.inf, False: -math.inf}
        """When an unknown key last had the keys fetched in vain: of a token in a familiar name, and of another."""
        self._missing: OrderedDict[tuple[bool, str], tuple[float, float]] = OrderedDict()
        """Names of keys that were searched for in vain, likewise: until when not again, and after what pause."""
        self._fetch: asyncio.Task[None] | None = None
        self._checking = False
        """Who asks for the fetch tells of its failure, so that it is not told twice."""

    def usable(self, now: float) -> KeySet | None:
        """The keys, if a request may use them without waiting. Has them fetched again where it is time; ``now`` is
        on this object's clock."""
        age = now - self._fetched_at
        if age < self._ahead:
            return self._keys
        if self._keys is None or age >= self._lifetime + self._staleness:
            return None
        if now - self._failed_at >= self._cooldown:
            self._start_fetch()
        return self._keys if age < self._lifetime or self._failure is not None else None

    def lacks(self, kid: str | None, algorithm: str, *, familiar: bool) -> bool:
        """Whether ``find`` would find nothing, and can say so at once: such keys were searched for in vain a moment
        ago. Most tokens of a flood with invented keys are refused by this."""
        now = self._clock()
        if kid is None or self._keys is None or now - self._failed_at < self._cooldown:
            return False
        searched = not self._may_search(familiar, now) and (self._fetch is None or self._fetch.done())
        return (searched or self._is_missing(kid, familiar, now)) and not self._keys.find(kid, algorithm)

    def _may_search(self, familiar: bool, now: float) -> bool:
        return now - self._searched_at[familiar] >= self._cooldown

    def _is_missing(self, kid: str, familiar: bool, now: float) -> bool:
        missing = self._missing.get((familiar, kid))
        return missing is not None and now < missing[0]

    def _note_missing(self, kid: str | None, familiar: bool) -> None:
        """Search less and less often for a key that is never there: a client that keeps sending an old token must not
        use up the searches that a new key needs."""
        now = self._clock()
        if kid is None or len(kid) > _MAX_MISSING or self._is_missing(kid, familiar, now):
            return  # the last: one vain search is noted once, however many waited for it
        name = familiar, kid
        _, pause = self._missing.pop(name, (0.0, self._cooldown / 2))
        pause = min(2 * pause, max(self._cooldown, _LONGEST_PAUSE))
        self._missing[name] = (now + pause, pause)
        if len(self._missing) > _MAX_MISSING:
            self._missing.popitem(last=False)

    async def find(
        self, kid: str | None, algorithm: str, verifies: Callable[[Key], bool], *, familiar: bool
    ) -> tuple[KeySet, Key] | None:
        """The keys, and the one of them that is named ``kid``, may verify ``algorithm`` and does verify; else None.

        The issuer is asked again only where the key may be a new one: the name is unknown, or the token has none.
        ``familiar``: the token is in the name of somebody who has had a good one.
        Raises IssuerUnavailableError where the issuer has to be asked and does not answer.
        """
        fetched = self._fetched
        keys = self.usable(self._clock()) or await self._current()
        candidates = keys.find(kid, algorithm)
        for key in candidates:
            if verifies(key):
                return keys, key
        if candidates and kid is not None:
            return None
        if self._fetched > fetched:  # for this very token: no newer ones can be had
            self._note_missing(kid, familiar)
            return None
        newer = await self._newer(familiar)
        for key in newer.find(kid, algorithm) if newer is not keys else ():
            if verifies(key):
                self._searched_at[
                    familiar
                ] = -math.inf  # only the issuer can have brought this about: it may do so again
                return newer, key
        if self._fetched > fetched:
            self._note_missing(kid, familiar)
        return None

    @property
    def answered(self) -> bool:
        """Whether they have ever been fetched."""
        return self._keys is not None

    async def check(self) -> None:
        """Fetch the keys, unless they are there. Raises FetchError."""
        if self._keys is None:
            self._checking = True
            try:
                await self._wait_for_fetch(None)
            finally:
                self._checking = False
        if self._keys is None:
            raise self._failure or FetchError("the fetch was broken off")

    async def _current(self) -> KeySet:
        """The keys, where a request has to wait for them."""
        now = self._clock()
        usable = self._keys is not None and now - self._fetched_at < self._lifetime + self._staleness
        fetched = self._fetched
        if now - self._failed_at >= self._cooldown:
            await self._wait_for_fetch(_PATIENCE if usable or self._silent else None)
        if self._keys is not None and (usable or self._fetched > fetched):
            return self._keys
        raise self._unavailable()

    async def _newer(self, familiar: bool) -> KeySet:
        """The keys, fetched again unless that was done in vain a short while ago."""
        now = self._clock()
        if now - self._failed_at < self._cooldown:
            raise self._unavailable()  # it may be a new key; nobody can know
        failed_at, keys = self._failed_at, self._keys
        patience = _PATIENCE if self._silent else None
        if self._fetch is not None and not self._fetch.done():
            await self._wait_for_fetch(patience)  # it may have been answered before the key was published
        if self._keys is keys and self._failed_at == failed_at and self._may_search(familiar, now):
            self._searched_at[familiar] = now
            await self._wait_for_fetch(patience)
        answered = self._fetch is None or self._fetch.done()
        if self._keys is None or self._failed_at != failed_at or not answered:
            raise self._unavailable()
        return self._keys

    async def aclose(self) -> None:
        """Stop a fetch that runs."""
        fetch, self._fetch = self._fetch, None
        if fetch is not None:
            fetch.cancel()
            await asyncio.wait({fetch})

    def _unavailable(self) -> IssuerUnavailableError:
        wait = self._failed_at + self._cooldown - self._clock()
        return IssuerUnavailableError(f"the keys of {self.issuer} cannot be fetched", retry_after=wait)

    def _start_fetch(self) -> asyncio.Task[None]:
        """The fetch that runs, or a new one."""
        if self._fetch is None or self._fetch.done():
            self._fetch = asyncio.create_task(self._refresh(), name=f"keys of {self.issuer}")
        return self._fetch

    async def _wait_for_fetch(self, patience: float | None) -> None:
        """Have the keys fetched. A caller that goes away does not end it for the others."""
        await asyncio.wait({self._start_fetch()}, timeout=patience)

    async def _refresh(self) -> None:
        """Fetch the keys and keep them; a failure is noted and logged, and leaves those that are there."""
        begun, asked_at = asyncio.get_running_loop().time(), self._clock()
        try:
            async with asyncio.timeout(_TIMEOUT):
                keys = await self._fetch_keys()
        except FetchError as error:
            self._fail(error)
        except IssuerUnavailableError as error:
            self._fail(self._metadata.failure or FetchError(str(error)))
        except TimeoutError:
            self._fail(FetchError(f"no answer within {_TIMEOUT:g} s"))
        except Exception:
            logger.exception("fetching keys failed in a way that is not foreseen")
            self._fail(FetchError("an error of our own"))
        else:
            self._fetched += 1
            self._fetched_at = asked_at
            self._failure = None
            if keys != self._keys:
                self._keys = keys
        self._silent = self._failure is not None and asyncio.get_running_loop().time() - begun >= _SILENT

    async def _fetch_keys(self) -> KeySet:
        uri = self._configured_uri or await self._discovered_uri()
        try:
            return parse_jwks(await self._client.get(uri, allow_private=self._private))
        except ValueError as error:
            failure = FetchError(f"{uri}: {error}", status=200)
        except FetchError as error:
            if not error.final:
                raise
            failure = error
        raise FetchError(f"{failure}; the keys of {self.issuer} were expected there", status=failure.status)

    async def _discovered_uri(self) -> str:
        if self._failure is None:
            return (await self._metadata.get()).endpoint("jwks_uri")
        # They may have moved, and metadata that is kept would not say so.
        return (await discover(self._client, self.issuer, allow_private=self._private)).endpoint("jwks_uri")

    def _fail(self, failure: FetchError) -> None:
        self._failed_at = self._clock()
        self._failure = failure
        level = logging.DEBUG if self._checking else logging.WARNING
        logger.log(level, "the keys of %s could not be fetched: %s", self.issuer, failure)
