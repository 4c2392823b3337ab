"""What those whom a configuration names say of it, for ``mcp-gateway check --online``. Nothing is served, and only what
a gateway asks at its start is asked."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth import OAuthHTTPClient
from mcp_middleware.oauth.http import FetchError
from mcp_middleware.resource_server import Issuer, IssuerUnavailableError
from mcp_middleware.resource_server.sources import Source
from mcp_middleware.storage import RedisConnection
from mcp_middleware.storage.rights import refusal

from .client import UpstreamClient
from .config import Config
from .stack import credentials
from .upstream import Upstream

__all__ = ["Finding", "ask"]

_REDIS_BUDGET: Final = 1.0
"""Seconds that Redis may take here: whoever checks has more time than whoever serves."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one of them said, or that it said nothing."""

    text: str
    wrong: bool = False
    silent: bool = False


async def ask(config: Config) -> list[Finding]:
    """Ask every authorization server whether it is the one of the file, every instance whether it lives, and Redis
    whether it lets us do what we have to."""
    http, client = OAuthHTTPClient(), UpstreamClient()
    await client.start()
    try:
        issuers = () if config.auth is None else config.auth.issuers
        questions: list[Awaitable[list[Finding]]] = [_ask_issuer(issuer, http) for issuer in issuers]
        for name in config.servers:
            questions += [_ask_credentials(config, name, http), _ask_instances(config, name, client)]
        if config.state != "memory":
            questions.append(_ask_redis(RedisConnection(config.state, budget=_REDIS_BUDGET)))
        return [finding for found in await asyncio.gather(*questions) for finding in found]
    finally:
        await client.aclose()
        await http.aclose()


async def _ask_issuer(issuer: Issuer, http: OAuthHTTPClient) -> list[Finding]:
    once = {"lifetime": 1.0, "staleness": 0.0, "cooldown": 1.0}  # nothing is kept: it is asked, and that is all
    source = Source(issuer, http, **once, clock=time.time, monotonic=time.monotonic)
    try:
        await source.check()
    except ConfigurationError as error:
        return [Finding(str(error), wrong=True)]
    except FetchError as error:
        return [Finding(f"the issuer {issuer.issuer} does not answer: {error}", silent=True)]
    else:
        return [Finding(f"{issuer.issuer} answers as expected")]
    finally:
        await source.asked.aclose()
        await source.metadata.aclose()


async def _ask_credentials(config: Config, name: str, http: OAuthHTTPClient) -> list[Finding]:
    made = credentials(config, config.servers[name], http)
    if made is None:
        return []
    try:
        await made.ask()
    except ConfigurationError as error:
        return [Finding(str(error), wrong=True)]
    except IssuerUnavailableError as error:
        return [Finding(f"servers.{name} gets no credential: {error}", silent=True)]
    else:
        return [Finding(f"servers.{name} gets its credential")]
    finally:
        await made.aclose()


async def _ask_instances(config: Config, name: str, client: UpstreamClient) -> list[Finding]:
    upstream = Upstream(config.servers[name], client)
    found = await upstream.probe_all()
    return [
        Finding(f"servers.{name}: {instance} {f'is not usable: {why}' if why else 'answers'}", silent=why is not None)
        for instance, why in found.items()
    ]


async def _ask_redis(connection: RedisConnection) -> list[Finding]:
    try:
        refused = await refusal(connection) if await connection.connect() else None
        if refused is not None:
            return [Finding(f"state: {refused}", wrong=True)]
        if not connection.is_up:  # the log says why
            return [Finding(f"state: Redis at {connection.place} does not answer, or not to this user", silent=True)]
        return [Finding(f"state: Redis at {connection.place} answers as expected")]
    finally:
        await connection.aclose()
