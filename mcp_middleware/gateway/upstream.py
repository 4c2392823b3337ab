"""One configured server: its instances, which of them live, and where its tasks are.

An instance's name goes into sealed session ids, so it is the same on every replica, in whatever order the
configuration lists it: host, port and path of its URL.

What failed is asked again by a probe: ``OPTIONS`` on the endpoint itself. A connection alone would prove little, since
the kernel accepts for a process that hangs; ``OPTIONS`` is safe by definition (RFC 9110 section 9.2.1), opens no
session and no stream, and every server answers it somehow. Any answer counts but 502, 503 and 504. A probe that is
refused ejects the instance at once; one that is merely slow has to be so several times, because ejection ends sessions
and a busy event loop is no death. A probe has the headers that are the same in every request and no credential that
would have to be asked for: a 401 proves life, and whether a server lives must not hang on its authorization server.
"""

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Final

from mcp_middleware.affinity.balancing import Balancer
from mcp_middleware.types import Clock, Headers

from .client import Endpoint, SlowAnswerError, UpstreamClient, UpstreamError
from .headers import passing
from .sections.servers import ServerConfig

__all__ = ["UNAVAILABLE_STATUSES", "Upstream", "instance_name"]

logger = logging.getLogger("mcp_middleware.gateway")

UNAVAILABLE_STATUSES: Final = frozenset({502, 503, 504})
"""How a proxy in front of a server says that the server is not there (RFC 9110 sections 15.6.3 to 15.6.5)."""

PROBE_TIMEOUT: Final = 3.0
"""Seconds until a probe's answer must begin."""
MAX_TASKS: Final = 10_000
"""Tasks whose instance is remembered; of more the oldest are forgotten, and asked for in turn."""
MAX_TASK_NAME: Final = 256
"""Characters of a task's id that is remembered."""
_MAX_NAME: Final = 64


def instance_name(url: str) -> str:
    """What the instance at ``url`` is called: at most 64 visible ASCII characters, the same wherever it is asked."""
    endpoint = Endpoint(url, [])
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    name = f"{host}:{endpoint.port}{endpoint.path}"
    return name if len(name) <= _MAX_NAME else hashlib.sha256(name.encode()).hexdigest()


class Upstream:
    """The instances of one server. Implements ``types.Instances``.

    ``clock`` gives the seconds by which instances are ejected and readmitted.
    """

    def __init__(self, config: ServerConfig, client: UpstreamClient, *, clock: Clock = time.monotonic) -> None:
        self.name = config.name
        self.timeout = config.timeout
        self.stream_idle = config.stream_idle
        self._client = client
        own: Headers = [
            (name.lower().encode("latin-1"), value.encode()) for name, value in config.fixed_headers.items()
        ]
        names = [name for name, _ in own] + ([config.caller.header.encode()] if config.caller is not None else [])
        self.passing = passing(config.forward_headers, frozenset(name.replace(b"_", b"-") for name in names))
        """Names of the headers of a caller that it gets: none that the gateway sets, in either spelling of the hyphen,
        which some servers take for one another."""
        self._endpoints = {instance_name(url): Endpoint(url, own) for url in config.instances}
        self._balancer = Balancer(tuple(self._endpoints), retry=config.probe_interval, clock=clock)
        self._tasks: dict[str, str] = {}
        self._probing: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    # types.Instances

    def choose(self, tried: Collection[str] = ()) -> str | None:
        """The least busy instance that may be used, none of those ``tried``; None where there is none."""
        return self._balancer.choose(tried)

    def is_usable(self, name: str) -> bool:
        """Whether ``name`` is an instance that is not taken for dead."""
        return self._balancer.is_usable(name)

    # What the forwarder asks and tells

    def endpoint(self, name: str) -> Endpoint | None:
        """Where the instance ``name`` is."""
        return self._endpoints.get(name)

    def __len__(self) -> int:
        return len(self._endpoints)

    def enter(self, name: str) -> None:
        """A request to ``name`` begins."""
        self._balancer.enter(name)

    def leave(self, name: str) -> None:
        """A request to ``name`` has ended."""
        self._balancer.leave(name)

    def answered(self, name: str, status: int) -> None:
        """``name`` began to answer with ``status``."""
        if status in UNAVAILABLE_STATUSES:
            self.failed(name, f"it answered {status}")
        elif self._balancer.succeed(name):
            logger.info("%s: the instance %s is back", self.name, name)

    def failed(self, name: str, why: str) -> None:
        """No connection to ``name`` could be made, or a proxy said that it is not there."""
        if self._balancer.fail(name):
            self._tell_ejected(name, why)

    def suspect(self, name: str) -> None:
        """``name`` did not answer, not in time, or not to the end."""
        self._balancer.suspect(name)
        self._news.set()

    def retry_after(self) -> float:
        """Seconds until an instance may be tried again."""
        return self._balancer.wait()

    def task_instance(self, task: str) -> str | None:
        """The instance that has the task, if that is known."""
        return self._tasks.get(task)

    def remember_task(self, task: str, name: str) -> None:
        """``name`` has the task. A name without bounds is not worth the memory: that task is asked for in turn."""
        if len(task) > MAX_TASK_NAME:
            return
        self._tasks.pop(task, None)
        self._tasks[task] = name
        if len(self._tasks) > MAX_TASKS:
            del self._tasks[next(iter(self._tasks))]

    def snapshot(self) -> dict[str, Any]:
        """How this server is, and each of its instances."""
        instances = {
            name: {"state": self._balancer.state(name), "in_flight": self._balancer.in_flight(name)}
            for name in self._endpoints
        }
        return {"usable": any(self._balancer.is_usable(name) for name in self._endpoints), "instances": instances}

    # Probes

    async def start(self) -> None:
        """Begin to probe what fails. Does nothing if it has begun."""
        if self._probing is None:
            self._probing = asyncio.create_task(self._probe_failing(), name=f"probe {self.name}")

    async def aclose(self) -> None:
        """Stop probing."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
            self._probing = None

    async def probe_all(self) -> dict[str, str | None]:
        """Ask every instance whether it lives, and note it: why not, or None."""
        names = list(self._endpoints)
        return dict(zip(names, await asyncio.gather(*map(self._probe, names)), strict=True))

    async def _probe_failing(self) -> None:
        while True:
            self._news.clear()
            await asyncio.gather(*map(self._probe, self._balancer.due()))
            seconds = self._balancer.next_due()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds if math.isfinite(seconds) else None):
                    await self._news.wait()

    async def _probe(self, name: str) -> str | None:
        """Why ``name`` is dead, or None."""
        endpoint, conclusive = self._endpoints[name], True
        try:
            connection = await self._client.connect(endpoint, fresh=True)
            answer = connection.request(b"OPTIONS" + endpoint.start + b"\r\n", b"", timeout=PROBE_TIMEOUT, idle=0.0)
            try:
                await answer.head()
                why = f"it answered {answer.status}" if answer.status in UNAVAILABLE_STATUSES else None
            finally:
                answer.close()
        except UpstreamError as error:
            why, conclusive = str(error), not isinstance(error, SlowAnswerError)
        if why is None:
            if self._balancer.succeed(name):
                logger.info("%s: the instance %s is back", self.name, name)
        elif self._balancer.fail(name, conclusive=conclusive):
            self._tell_ejected(name, why)
        return why

    def _tell_ejected(self, name: str, why: str) -> None:
        logger.warning("%s: the instance %s is ejected: %s", self.name, name, why)
        self._news.set()
