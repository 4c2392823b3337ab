"""What outlives a configuration of the gateway: limits, sessions, the audit trail, telemetry, connections."""

import asyncio
import base64
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from mcp_middleware.audit import JSONLinesSink, SQLiteSink
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth import OAuthHTTPClient
from mcp_middleware.ratelimit import Forecast, GuardStorage
from mcp_middleware.storage import (
    LimitStorage,
    MemorySessions,
    MemoryStorage,
    RedisConnection,
    RedisSessions,
    RedisStorage,
    SessionStore,
)
from mcp_middleware.storage.rights import refusal

from .admission import UnderWay
from .client import UpstreamClient
from .config import Config
from .edge import AccessLog
from .telemetry import Telemetry

__all__ = ["Shared"]

logger = logging.getLogger("mcp_middleware.gateway")


class Shared:
    """What outlives a reload."""

    def __init__(self, config: Config, access_log: AccessLog | None) -> None:
        self.access_log = access_log
        self.under_way = UnderWay()
        self.draining = asyncio.Event()
        self.client = UpstreamClient()
        self.http = OAuthHTTPClient()
        """To authorization servers, whosever they are."""
        self.telemetry = Telemetry(config.tracing)
        self.sinks = _sinks(config)
        self.connection: RedisConnection | None = None
        self.storage: LimitStorage
        self.sessions: SessionStore
        if config.state == "memory":
            self.storage, self.sessions = MemoryStorage(), MemorySessions()
        else:
            self.connection = RedisConnection(config.state)
            self.storage = RedisStorage(self.connection, replicas=config.workers * config.replicas)
            self.sessions = RedisSessions(self.connection)
        self.forecasts: defaultdict[str, Forecast] = defaultdict(Forecast)
        """By server: tools of one name on two servers have nothing to do with each other."""
        self.session_keys: tuple[str, ...] = (base64.b64encode(secrets.token_bytes(32)).decode(),)
        """For a configuration without keys: good for this process alone."""

    @cached_property
    def guarded(self) -> GuardStorage:
        """Made when it is first asked for: most configurations have no guard."""
        return GuardStorage()

    async def start(self) -> None:
        await self.client.start()
        if self.connection is None:
            return
        if not await self.connection.connect():
            logger.warning(
                "Redis at %s does not answer; until it does, limits are this process's share", self.connection.place
            )
        elif (refused := await refusal(self.connection)) is not None:
            logger.warning("%s; until then it counts as away", refused)

    async def aclose(self) -> None:
        for sink in self.sinks:
            try:
                await asyncio.to_thread(sink.close)
            except Exception:
                logger.exception("the audit sink %s failed while closing", sink)
        await self.storage.aclose()
        await self.sessions.aclose()
        await self.client.aclose()
        await self.http.aclose()
        await asyncio.to_thread(self.telemetry.close)


def _sinks(config: Config) -> list[Any]:
    if config.audit is None:
        return []
    made: tuple[tuple[str, Callable[[Path], Any], Path | None], ...] = (
        ("sqlite", SQLiteSink, config.audit.sqlite),
        ("jsonl", JSONLinesSink, config.audit.jsonl),
    )
    sinks = []
    for key, sink, path in made:
        if path is not None:
            try:
                sinks.append(sink(path))
            except ConfigurationError as error:
                raise ConfigurationError(f"{config.source}: audit.{key}: {error}") from None
    return sinks
