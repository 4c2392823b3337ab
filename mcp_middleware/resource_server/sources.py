"""The issuers of a verifier: what each is asked through, and asking all of them when the application starts."""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.http import FetchError, OAuthHTTPClient, RefusedAddressError
from mcp_middleware.oauth.metadata import MetadataSource, WrongMetadataError
from mcp_middleware.oauth.waiting import until_answered
from mcp_middleware.types import Clock

from .introspection import Introspector
from .issuers import Issuer
from .jwks import IssuerKeys

__all__ = ["Source", "Sources"]

logger = logging.getLogger("mcp_middleware.resource_server")

_METADATA_COOLDOWN: Final = 1.0
"""Seconds after a failed fetch of metadata; what needs them has a longer pause of its own."""


class Source:
    """One issuer: its metadata, and either its keys or its introspection."""

    def __init__(
        self,
        issuer: Issuer,
        client: OAuthHTTPClient,
        *,
        lifetime: float,
        staleness: float,
        cooldown: float,
        clock: Clock,
        monotonic: Clock,
    ) -> None:
        self.issuer = issuer
        self.metadata = MetadataSource(
            issuer.issuer,
            client,
            allow_private=issuer.allow_private_addresses,
            cooldown=_METADATA_COOLDOWN,
            clock=monotonic,
        )
        self.asked: IssuerKeys | Introspector
        if issuer.introspection is None:
            self.asked = IssuerKeys(
                issuer,
                client,
                self.metadata,
                lifetime=lifetime,
                staleness=staleness,
                cooldown=cooldown,
                clock=monotonic,
            )
        else:
            self.asked = Introspector(
                issuer, issuer.introspection, client, self.metadata, clock=clock, monotonic=monotonic
            )

    async def check(self) -> None:
        """Ask the issuer. Raises ConfigurationError where what it answers contradicts the configuration, FetchError
        where it does not answer."""
        try:
            await self.asked.check()
        except FetchError as error:
            if error.final or isinstance(error, WrongMetadataError | RefusedAddressError):
                raise ConfigurationError(f"the issuer {self.issuer.issuer}: {error}") from None
            raise


class Sources:
    """All issuers of a verifier and of its siblings for other resources."""

    def __init__(self, client: OAuthHTTPClient, sources: Sequence[Source]) -> None:
        self._client = client
        self.named = {source.issuer.issuer: source for source in sources}
        self.introspecting = tuple(source for source in sources if isinstance(source.asked, Introspector))
        self._start: asyncio.Task[list[str]] | None = None
        self._retries: dict[str, asyncio.Task[None]] = {}
        self._wrong: set[str] = set()
        """Of those the ones whose last answer was not what it must be."""

    @property
    def waiting(self) -> tuple[str, ...]:
        """A sentence for each issuer that has been asked at the start and has not answered yet, or wrongly."""
        silent = [name for name in self._retries if not self.named[name].asked.answered]
        wrong, none = "contradicts the configuration; the log says how", "has not answered yet"
        return tuple(f"The issuer {name} {wrong if name in self._wrong else none}" for name in silent)

    async def start(self) -> None:
        """Ask every issuer once, whoever calls. Raises ConfigurationError."""
        start = self._start
        if start is None:
            start = self._start = asyncio.create_task(self._ask_all(), name="asking the issuers")
        await asyncio.wait({start})
        wrong = start.result()
        if wrong:
            raise ConfigurationError("\n".join(wrong))

    async def _ask_all(self) -> list[str]:
        """What is wrong, in sentences. Not raised: nobody may be waiting for it any more, and a task that ends by an
        error which nobody takes is logged as a failure of ours."""
        sources = list(self.named.values())
        outcomes = await asyncio.gather(*(source.check() for source in sources), return_exceptions=True)
        wrong = [str(outcome) for outcome in outcomes if isinstance(outcome, ConfigurationError)]
        if wrong:
            return wrong
        for source, outcome in zip(sources, outcomes, strict=True):
            if isinstance(outcome, FetchError):
                name = source.issuer.issuer
                logger.warning("the issuer %s does not answer, and is waited for: %s", name, outcome)
                self._retries[name] = asyncio.create_task(self._wait_for(source), name=f"waiting for {name}")
            elif outcome is not None:
                raise outcome
        return []

    async def _wait_for(self, source: Source) -> None:
        await until_answered(partial(self._answers, source))
        self._retries.pop(source.issuer.issuer, None)

    async def _answers(self, source: Source) -> bool:
        """Whether an issuer that was silent answers now. One that turns out to be wrong does not: it may be mended."""
        name = source.issuer.issuer
        try:
            await source.check()
        except FetchError as error:
            logger.info("the issuer %s does not answer: %s", name, error)
            self._wrong.discard(name)
            return False
        except ConfigurationError as error:
            logger.error("%s", error)
            self._wrong.add(name)
            return False
        logger.info("the issuer %s answers", name)
        return True

    async def aclose(self) -> None:
        """Stop what is under way and close the connections."""
        tasks = [*self._retries.values(), *([] if self._start is None else [self._start])]
        self._retries, self._start = {}, None
        running = {task for task in tasks if not task.done()}
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        for source in self.named.values():
            await source.asked.aclose()
            await source.metadata.aclose()
        await self._client.aclose()
