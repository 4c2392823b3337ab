"""One connection to a Redis or Valkey, on which no caller waits longer than a budget.

All callers' commands go out on it one after the other, those of one turn of the event loop in one packet, and answers
come back in the same order. So there is no pool to wait for, and the oldest unanswered command tells how the store is.

- **Budget.** Its time is counted in ticks of the event loop, a late tick as one. A loop that was busy for 200 ms has
  not waited 200 ms for the store: answers that have arrived meanwhile are read before the next tick.
- **Breaker.** The first command that gets no answer within the budget, or a connection that breaks, opens it: everybody
  who waits is told at once, and so is who comes later. Calls then start attempts to connect in the background, with
  growing pauses; the first that succeeds closes the breaker. Only before the very first does a call wait for one.
- **Deadline.** A command that nobody waits for any more must not be carried out when the store comes back to it. So
  scripts that take something get a deadline in the store's own time, which is learnt from its answers.

In a cluster each node has a connection, breaker and clock of its own. Which node keeps a key is learnt from the nodes'
redirections, and forgotten when a node is lost.
"""

import asyncio
import hashlib
import logging
import time
from binascii import crc_hqx
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.options import seconds

from .interface import StorageUnavailableError

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

__all__ = ["RedisConnection", "Script"]

logger = logging.getLogger("mcp_middleware.storage")

_TICKS: Final = 10
"""Ticks in a budget. A command is given up at the ninth after it was sent: ticks come late, and never early."""
_HEARD: Final = 0.75
"""The part of a budget in which the store may begin to carry a command out; the rest is for its answer's way back."""
_ATTEMPT: Final = 1.0
"""Seconds an attempt to connect may take. Nobody waits for it longer than the budget."""
_SHORTEST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
_SLOTS: Final = 16_384
_MOST_REDIRECTIONS: Final = 3
_COMPLAIN_EVERY: Final = 60.0
"""Seconds between two log lines about commands that the store refused; there would be one for each call."""


class Script:
    """A Lua script from files of this package, joined. ``replies``: what its answer is."""

    __slots__ = ("digest", "replies", "source")

    def __init__(self, *names: str, replies: type[list[Any]] | type[int] = list) -> None:
        self.source = b"\n".join(Path(__file__).with_name(name).read_bytes() for name in names)
        self.digest = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()
        """What ``EVALSHA`` calls it."""
        self.replies = replies


class _Waiting:
    """A command that has not been answered."""

    __slots__ = ("future", "sent_at", "tick")

    def __init__(self, future: "asyncio.Future[Any]", tick: int, sent_at: float) -> None:
        self.future = future
        self.tick = tick
        self.sent_at = sent_at


class RedisConnection:
    """A Redis or Valkey, shared by what is kept there (``RedisStorage``, ``RedisSessions``).

    ``url``: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as redis-py reads it; options in its query are passed on.
    Neither its password nor the rest of it stands in any error or log line, only host and port. ``budget``: the seconds
    one command may take before its caller is told that the store is away.

    Needs the extra ``redis``. For one event loop; after ``aclose`` it connects anew when it is used again. Raises
    ConfigurationError for a wrong option.
    """

    def __init__(self, url: str, *, budget: float = 0.05) -> None:
        self._budget = seconds("RedisConnection: budget", budget)
        self._url = url
        self._address: tuple[str, int] | None = None  # of a cluster's node, in place of the URL's
        self._nodes: dict[tuple[str, int], RedisConnection] = {}
        self._slots: dict[int, RedisConnection] = {}
        self.place = _place(url)
        """Host and port, for people."""
        self.host = self.place.rpartition(":")[0]
        _connect(url)
        self._connection: AbstractConnection | None = None
        self._waiting: deque[_Waiting] = deque()
        self._outbox: list[Callable[[], bytes]] = []
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._ticker: asyncio.TimerHandle | None = None
        self._ticks = 0
        self._attempt: asyncio.Task[None] | None = None
        self._tried = False
        self._pause = _SHORTEST_PAUSE
        self._next_attempt = 0.0
        self._next_complaint = 0.0
        self._offset: float | None = None

    def __repr__(self) -> str:
        return f"RedisConnection({self.place!r})"

    @property
    def is_up(self) -> bool:
        """Whether the store answered last time. False before the first use."""
        return self._connection is not None

    def deadline(self) -> float:
        """The moment, by the store's clock, after which nobody waits for a command sent now; 0 while its clock is
        unknown."""
        return 0.0 if self._offset is None else time.monotonic() + self._offset + self._budget * _HEARD

    def learn_time(self, now: float, sent_at: float) -> None:
        """The store's clock showed ``now`` at some moment since ``sent_at`` (monotonic seconds)."""
        earliest, latest = now - time.monotonic(), now - sent_at
        self._offset = latest if self._offset is None else min(max(self._offset, earliest), latest)

    async def connect(self) -> bool:
        """Connect, if it is not connected yet, and say whether it is: for an application's start. At most a second."""
        if self._connection is None:
            await asyncio.wait({self._start_attempt()})
        return self._connection is not None

    async def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        arguments: "Sequence[bytes] | Callable[[RedisConnection], Sequence[bytes]]",
    ) -> Any:
        """Carry ``script`` out and return its reply. Raises StorageUnavailableError, within the budget.

        ``keys`` live together. ``arguments`` may depend on the node that is asked (``deadline``). Such are made when
        the command is written: what our own loop was busy with until then is not the store's time.
        """
        from redis.exceptions import MovedError, ReadOnlyError, RedisError

        for _ in range(_MOST_REDIRECTIONS):
            node = self.node_of(keys[0])
            try:
                reply = await node._run_here(script, keys, arguments)
                if isinstance(reply, script.replies):
                    return reply
                node._lose("its answers are out of step")  # so others would be taken for what they are not
                raise StorageUnavailableError(f"Redis at {node.place} answered nonsense", sent=True)
            except MovedError as moved:
                self._slots[moved.slot_id] = self._node_at(moved.host or node.host, moved.port)
            except RedisError as error:
                # An answer, so the store is there; but out of memory, read-only, loading, or without the rights.
                if time.monotonic() >= self._next_complaint:
                    self._next_complaint = time.monotonic() + _COMPLAIN_EVERY
                    logger.error("Redis at %s refused a command: %s", node.place, error)
                if isinstance(error, ReadOnlyError) or "READONLY" in str(error):  # 6.2 puts it into other words
                    node._pause = _LONGEST_PAUSE  # by then its name may be another's
                    node._lose("it has become a replica")
                break
        raise StorageUnavailableError(f"Redis at {self.place} refused a command", sent=False)

    def node_of(self, key: bytes) -> "RedisConnection":
        """The connection to the node that keeps ``key``; this one where there is no cluster, or nothing known of it."""
        if not self._slots:
            return self
        tag = key.partition(b"{")[2].partition(b"}")[0] or key
        slot = crc_hqx(tag, 0) % _SLOTS
        node = self._slots.get(slot, self)
        if node is not self and node._tried and not node.is_up:  # perhaps another has taken its place
            del self._slots[slot]
            return self
        return node

    def _node_at(self, host: str, port: int) -> "RedisConnection":
        address = (host, port)
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = RedisConnection(self._url, budget=self._budget)
            node._address, node.place, node.host = address, f"{host}:{port}", host
        return node

    async def _run_here(
        self,
        script: Script,
        keys: Sequence[bytes],
        arguments: "Sequence[bytes] | Callable[[RedisConnection], Sequence[bytes]]",
    ) -> Any:
        from redis.exceptions import NoScriptError

        if self._connection is None:
            await self._wait_for_the_first_attempt()

        def command(*words: bytes) -> Callable[[], bytes]:
            return lambda: _pack(
                (*words, b"%d" % len(keys), *keys, *(arguments(self) if callable(arguments) else arguments))
            )

        try:
            return await self._send(command(b"EVALSHA", script.digest))
        except NoScriptError:  # the store was restarted, or its scripts flushed
            return await self._send(command(b"EVAL", script.source))

    async def aclose(self) -> None:
        """Disconnect. Whoever waits is told that the store is away."""
        self._slots.clear()
        for node in self._nodes.values():
            await node.aclose()
        self._nodes.clear()
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()
            await asyncio.wait({attempt})
        tasks = self._tasks
        self._drop("closed")
        if tasks:
            await asyncio.wait(tasks)
        self._tried, self._pause, self._next_attempt = False, _SHORTEST_PAUSE, 0.0

    def _send(self, command: Callable[[], bytes]) -> "asyncio.Future[Any]":
        if self._connection is None:
            raise StorageUnavailableError(f"Redis at {self.place} is away", sent=False)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(_Waiting(future, self._ticks, time.monotonic()))
        self._outbox.append(command)
        self._wake.set()
        if self._ticker is None:
            self._ticker = loop.call_later(self._budget / _TICKS, self._tick)
        return future

    def _tick(self) -> None:
        self._ticks += 1
        self._ticker = None
        if not self._waiting:
            return
        if self._ticks - self._waiting[0].tick >= _TICKS - 1:
            self._lose(f"no answer within {self._budget * 1000:g} ms")
            return
        self._ticker = asyncio.get_running_loop().call_later(self._budget / _TICKS, self._tick)

    async def _write(self, connection: "AbstractConnection") -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            commands, self._outbox = self._outbox, []
            try:
                await connection.send_packed_command([command() for command in commands], check_health=False)
            except Exception as error:
                self._lose(_reason(error), connection)
                return

    async def _read(self, connection: "AbstractConnection") -> None:
        from redis.exceptions import ResponseError

        try:
            while True:
                reply: Any
                try:
                    reply = await connection.read_response(disable_decoding=True)
                except ResponseError as error:
                    reply = error
                future = self._waiting.popleft().future
                if future.done():  # whoever asked went away
                    continue
                if isinstance(reply, ResponseError):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        except Exception as error:
            self._lose(_reason(error), connection)
        finally:
            await connection.disconnect(nowait=True)

    def _lose(self, reason: str, connection: "AbstractConnection | None" = None) -> None:
        """Open the breaker."""
        lost = self._connection
        if lost is None or connection not in (None, lost):
            return
        logger.warning("Redis at %s is away: %s", self.place, reason)
        self._drop(reason)
        self._next_attempt = time.monotonic() + self._pause

    def _drop(self, reason: str) -> None:
        self._connection = None
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._tasks = []
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        waiting, self._waiting, self._outbox = self._waiting, deque(), []
        for one in waiting:
            if not one.future.done():
                one.future.set_exception(StorageUnavailableError(f"Redis at {self.place} is away: {reason}", sent=True))

    async def _wait_for_the_first_attempt(self) -> None:
        if self._tried:
            if time.monotonic() >= self._next_attempt:
                self._start_attempt()
        else:
            await asyncio.wait({self._start_attempt()}, timeout=self._budget)
            self._tried = True

    def _start_attempt(self) -> "asyncio.Task[None]":
        if self._attempt is None or self._attempt.done():
            self._attempt = asyncio.create_task(self._try_to_connect(), name="connect to Redis")
        return self._attempt

    async def _try_to_connect(self) -> None:
        connection = _connect(self._url, self._address)
        try:
            async with asyncio.timeout(_ATTEMPT):
                await connection.connect()  # type: ignore[no-untyped-call]
                sent_at = time.monotonic()
                await connection.send_command("TIME", check_health=False)
                seconds, microseconds = await connection.read_response(disable_decoding=True)
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if isinstance(error, asyncio.CancelledError):
                raise
            log = logger.info if self._tried else logger.warning  # the loss itself was a warning
            log("Redis at %s cannot be reached: %s", self.place, _reason(error))
            self._tried = True
            self._next_attempt = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            return
        self._offset = None
        self.learn_time(int(seconds) + int(microseconds) / 1e6, sent_at)
        logger.info("connected to Redis at %s", self.place)
        self._tried, self._pause = True, _SHORTEST_PAUSE
        self._connection, self._wake = connection, asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._write(connection), name="write to Redis"),
            asyncio.create_task(self._read(connection), name="read from Redis"),
        ]


def _pack(parts: Sequence[bytes]) -> bytes:
    return b"".join((b"*%d\r\n" % len(parts), *(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)))


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _connect(url: str, address: tuple[str, int] | None = None) -> "AbstractConnection":
    """A connection object, not connected; to ``address``, if given, with all else as the URL says.

    Errors do not show the URL, nor what a library says of it.
    """
    try:
        from redis.asyncio.connection import Connection, parse_url
    except ImportError:
        raise ConfigurationError("RedisConnection needs the package redis: install mcp-middleware[redis]") from None
    if not isinstance(url, str):
        raise ConfigurationError(f"RedisConnection: url is of type {type(url).__name__}; it must be a str")
    try:
        options: dict[str, Any] = dict(parse_url(url))
        kind = options.pop("connection_class", Connection)
        # Nothing is sent twice by itself: a command whose answer was lost may have been carried out.
        options |= {"socket_timeout": None, "socket_connect_timeout": None, "retry_on_timeout": False, "protocol": 2}
        if address is not None:
            options["host"], options["port"] = address
        connection: AbstractConnection = kind(**options)
    except Exception:
        raise ConfigurationError(
            "RedisConnection: url cannot be read; it must be redis://[[user]:password@]host[:port][/db], the same with "
            "rediss:// for TLS, or unix://[[user]:password@]/path?db=0"
        ) from None
    return connection


def _place(url: object) -> str:
    """What may be said of a URL: host and port, or the path of a socket."""
    try:
        split = urlsplit(str(url))
        return split.path if split.scheme == "unix" else f"{split.hostname or 'localhost'}:{split.port or 6379}"
    except ValueError:
        return "?"
