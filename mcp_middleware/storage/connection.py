"""One connection to a Redis or Valkey, on which no caller waits longer than a budget.

All callers' commands go out on it one after the other, those of one turn of the event loop in one packet, and answers
come back in the same order. So there is no pool to wait for, and the oldest unanswered command tells how the store is.

- **Budget.** Its time is counted in ticks of the event loop, a late tick as one. A loop that was busy for 200 ms has
  not waited 200 ms for the store: answers that have arrived meanwhile are read before the next tick.
- **Breaker.** The first command that gets no answer within the budget, or a connection that breaks, opens it: everybody
  who waits is told at once, and so is who comes later. Attempts to connect go on in the background, with pauses that
  grow until a script is answered; one that succeeds closes the breaker. Only for the very first does a call wait.
- **Deadline.** A command that nobody waits for any more must not be carried out when the store comes back to it. So
  scripts that take something get a deadline in the store's own time, which is learnt from its answers.

In a cluster each node has a connection, breaker and clock of its own. The URL names one of them; which others there are
and which keeps a key is learnt from the nodes' redirections, and forgotten when a node is lost.
"""

import asyncio
import hashlib
import logging
import re
import socket
import time
from binascii import crc_hqx
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from ssl import SSLContext
from typing import Any, Final, NamedTuple, TypeAlias, cast
from urllib.parse import urlsplit

import msgspec

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.options import seconds

from .interface import StorageUnavailableError

__all__ = ["RedisConnection", "Script", "connection_of", "prefix_of"]

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
_MOST_ANSWERS: Final = 4
"""To one call: redirected twice, the script not known there, and its reply."""
_REDIRECTED: Final = re.compile(r"(MOVED|ASK) (\d+) (.*):(\d+)")
_MORE: Final = object()
_KEEP_ALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Whoever vanishes without a word is missed within 45 s, although nobody asks; as far as the system can."""
_COMPLAIN_EVERY: Final = 60.0
"""Seconds between two log lines about commands that the store refused; there would be one for each call."""


class Script:
    """A Lua script from files of this package, joined. ``replies``: what its answer is; ``packed``: or of what type,
    where it is in MessagePack."""

    __slots__ = ("_decoder", "_replies", "digest", "source")

    def __init__(self, *names: str, replies: type[list[Any] | int] = list, packed: Any = None) -> None:
        self.source = b"\n".join(Path(__file__).with_name(name).read_bytes() for name in names)
        self.digest = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()
        """What ``EVALSHA`` calls it."""
        self._replies = replies
        self._decoder: msgspec.msgpack.Decoder[Any] | None = None if packed is None else msgspec.msgpack.Decoder(packed)

    def read(self, reply: Any) -> Any:
        """What it has answered. Raises TypeError or DecodeError for what can be no answer of it."""
        if self._decoder is not None:
            return self._decoder.decode(reply)
        if not isinstance(reply, self._replies):
            raise TypeError
        return reply


Word: TypeAlias = bytes | str | float
"""Part of a command; numbers are sent as Python writes them."""
Arguments: TypeAlias = "Sequence[Word] | Callable[[RedisConnection], Sequence[Word]]"
GivenUp: TypeAlias = Callable[[Any], None]
"""Gets a reply, for ``Script.read``, or the exception in its place."""


class _RefusedError(Exception):
    """An error that the store answered with; its first word says which."""


class _Link(asyncio.Protocol):
    """An open connection: who asks on it, in the order in which they will be answered.

    By the streams of a client library a round trip would take two tasks more, each woken by the loop.
    """

    def __init__(self, node: "RedisConnection") -> None:
        from hiredis import Reader, pack_command

        self._node = node
        self._transport: asyncio.Transport
        self._pack: Callable[..., bytes] = pack_command
        self._answers = Reader(replyError=_RefusedError, notEnoughData=_MORE)
        self._outbox: list[tuple[Sequence[Word], Arguments]] = []
        self._waiting: deque[tuple[asyncio.Future[Any], int, GivenUp | None]] = deque()
        """Who waits for an answer, since which tick, and who wants it should that one have been cancelled."""
        self._tick_seconds = node.budget / _TICKS
        self._ticks = 0
        self._ticker: asyncio.TimerHandle | None = None
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is open."""
        self._transport = cast(asyncio.Transport, transport)
        opened = transport.get_extra_info("socket")
        if opened.family in (socket.AF_INET, socket.AF_INET6):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEP_ALIVE.items():
                if hasattr(socket, name):
                    opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def ask(
        self, words: Sequence[Word], arguments: Arguments, given_up: "GivenUp | None" = None
    ) -> "asyncio.Future[Any]":
        """Send a command; its answer. ``given_up`` gets what comes for an answer that was cancelled meanwhile."""
        loop = asyncio.get_running_loop()
        if not self._outbox:
            loop.call_soon(self._write)  # with all that is asked in this turn
        if self._ticker is None:
            self._ticker = loop.call_later(self._tick_seconds, self._tick)
        future = loop.create_future()
        self._outbox.append((words, arguments))
        self._waiting.append((future, self._ticks, given_up))
        return future

    def _write(self) -> None:
        outbox, self._outbox = self._outbox, []
        try:
            packets = [
                self._pack((*words, *(arguments(self._node) if callable(arguments) else arguments)))
                for words, arguments in outbox
            ]
            self._transport.write(b"".join(packets))
        except Exception as error:
            self.lose(_reason(error))

    def data_received(self, data: bytes) -> None:
        """Hand answers to those who asked."""
        try:
            self._answers.feed(data)
            while (answer := self._answers.gets(False)) is not _MORE:
                future, _, given_up = self._waiting.popleft()
                if future.cancelled():
                    if given_up is not None:
                        given_up(answer)
                elif isinstance(answer, _RefusedError):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        except Exception as error:
            self.lose(_reason(error))

    def connection_lost(self, error: Exception | None) -> None:
        """The transport is closed."""
        self.gone.set()
        self.lose("it closed the connection" if error is None else _reason(error))

    def lose(self, reason: str) -> None:
        """Close it, and tell whoever waits that the store is away."""
        self._node._open_breaker(reason, self)
        self._transport.abort()
        if self._ticker is not None:
            self._ticker.cancel()
        waiting, self._waiting, self._outbox = self._waiting, deque(), []
        for future, _, given_up in waiting:
            away = StorageUnavailableError(f"Redis at {self._node.place} is away: {reason}", sent=True)
            if not future.cancelled():
                future.set_exception(away)
            elif given_up is not None:
                given_up(away)

    def _tick(self) -> None:
        self._ticks += 1
        self._ticker = None
        if not self._waiting:
            return
        # What is said while connecting has that attempt's time.
        if self._ticks - self._waiting[0][1] >= _TICKS - 1 and self._node._link is self:
            self.lose(f"no answer within {self._node.budget * 1000:g} ms")
            return
        self._ticker = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)


class RedisConnection:
    """A Redis or Valkey, shared by what is kept there (``RedisStorage``, ``RedisSessions``).

    ``url``: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as redis-py reads it, with ``db``, ``client_name`` and
    the ``ssl_`` options in its query. Neither its password nor the rest of it stands in any error or log line, only
    host and port. ``budget``: the seconds one command may take before its caller is told that the store is away.

    Needs the extra ``redis``. For one event loop; after ``aclose`` it connects anew when it is used again. Raises
    ConfigurationError for a wrong option.
    """

    def __init__(self, url: str, *, budget: float = 0.05) -> None:
        self.budget = seconds("RedisConnection: budget", budget)
        """Seconds one command may take."""
        self._url = url
        self._server = _read(url)
        self._nodes: dict[tuple[str, int], RedisConnection] = {}
        self._slots: dict[int, RedisConnection] = {}
        self.place = _place(url)
        """Host and port, for people."""
        self.host = self.place.rpartition(":")[0]
        self._link: _Link | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._tried = False
        self._pause = _SHORTEST_PAUSE
        self._again: asyncio.TimerHandle | None = None
        self._why = ""
        """The reason for which it could not be reached last."""
        self._next_complaint = 0.0
        self._offset: float | None = None
        self.losses = 0
        """How often the store was lost."""
        self.lost_at = self.back_at = 0.0
        """When it was last lost, and when last found: monotonic seconds."""

    def __repr__(self) -> str:
        return f"RedisConnection({self.place!r})"

    @property
    def is_up(self) -> bool:
        """Whether the store answered last time. False before the first use."""
        return self._link is not None

    def deadline(self) -> float:
        """The moment, by the store's clock, after which nobody waits for a command sent now; 0 while its clock is
        unknown."""
        return 0.0 if self._offset is None else time.monotonic() + self._offset + self.budget * _HEARD

    def learn_time(self, now: float, sent_at: float) -> None:
        """The store's clock showed ``now`` at some moment since ``sent_at`` (monotonic seconds)."""
        earliest, latest = now - time.monotonic(), now - sent_at
        self._offset = latest if self._offset is None else min(max(self._offset, earliest), latest)

    async def connect(self) -> bool:
        """Connect, if it is not connected yet, and say whether it is: for an application's start. At most a second."""
        if self._link is None:
            await asyncio.wait({self._start_attempt()})
        return self._link is not None

    async def run(
        self, script: Script, keys: Sequence[bytes], arguments: Arguments, given_up: GivenUp | None = None
    ) -> Any:
        """Carry ``script`` out and return its reply. Raises StorageUnavailableError, within the budget.

        ``keys`` live together. ``arguments`` may depend on the node that is asked (``deadline``). Such are made when
        the command is written: what our own loop was busy with until then is not the store's time.

        Whoever is cancelled meanwhile has it carried out all the same, if it was asked already. ``given_up`` learns
        what came of it: once, and at once or within the budget.
        """
        command: tuple[Word, ...] = (b"EVALSHA", script.digest, len(keys), *keys)
        node, is_moving = self.node_of(keys[0]), False
        answer: asyncio.Future[Any] | None = None
        for _ in range(_MOST_ANSWERS):
            try:
                link = node._link or await node._connected()
                if is_moving:
                    link.ask((b"ASKING",), ()).cancel()  # its answer says nothing
                answer = link.ask(command, arguments, given_up)
                reply = await answer
            except _RefusedError as error:
                text = str(error)
                if text.startswith("NOSCRIPT"):  # the store was restarted, or its scripts flushed
                    command = (b"EVAL", script.source, *command[2:])
                elif redirected := _REDIRECTED.fullmatch(text):
                    node = self._node_at(redirected[3] or node.host, int(redirected[4]))
                    is_moving = redirected[1] == "ASK"
                    if not is_moving:
                        self._slots[int(redirected[2])] = node
                else:
                    node._complain(text, link)
                    break
            except asyncio.CancelledError:
                if given_up is not None and (answer is None or not answer.cancelled()):
                    given_up(_came_of(answer))
                raise
            else:
                try:
                    answered = script.read(reply)
                except (TypeError, msgspec.DecodeError):
                    link.lose("its answers are out of step")  # so others would be taken for what they are not
                    raise StorageUnavailableError(f"Redis at {node.place} answered nonsense", sent=True) from None
                node._pause = _SHORTEST_PAUSE
                return answered
        raise StorageUnavailableError(f"Redis at {self.place} refused a command", sent=False)

    def node_of(self, key: bytes) -> "RedisConnection":
        """The connection to the node that keeps ``key``; this one where there is no cluster, or nothing known of it."""
        if not self._nodes:
            return self
        tag = key.partition(b"{")[2].partition(b"}")[0] or key
        slot = crc_hqx(tag, 0) % _SLOTS
        node = self._slots.get(slot, self)
        if node._is_lost:  # perhaps another has taken its place, of which those that are left know
            self._slots.pop(slot, None)
            return next((one for one in (self, *self._nodes.values()) if one.is_up), self)
        return node

    @property
    def _is_lost(self) -> bool:
        return self._tried and not self.is_up

    def _node_at(self, host: str, port: int) -> "RedisConnection":
        address = (host, port)
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = RedisConnection(self._url, budget=self.budget)
            node._server = node._server._replace(host=host, port=port, path=None)
            node.place, node.host = f"{host}:{port}", host
        return node

    async def aclose(self) -> None:
        """Disconnect. Whoever waits is told that the store is away."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()
            await asyncio.wait({attempt})
        link, self._link = self._link, None
        if link is not None:
            link.lose("closed")
            await link.gone.wait()
        if self._again is not None:
            self._again.cancel()
        self._tried, self._pause = False, _SHORTEST_PAUSE
        self._slots.clear()
        while self._nodes:  # whoever is redirected meanwhile brings more
            await self._nodes.popitem()[1].aclose()

    def _open_breaker(self, reason: str, link: _Link) -> None:
        """``link`` is lost, by which everybody asks; if it is."""
        if link is not self._link:
            return
        logger.warning("Redis at %s is away: %s", self.place, reason)
        self._link = None
        self.losses += 1
        self.lost_at = time.monotonic()
        self._try_again()

    def _complain(self, text: str, link: _Link) -> None:
        """It answered, so it is there; but out of memory, read-only, loading, or without the rights."""
        if time.monotonic() >= self._next_complaint:
            self._next_complaint = time.monotonic() + _COMPLAIN_EVERY
            logger.error("Redis at %s refused a command: %s", self.place, text)
        if "READONLY" in text:
            self._pause = _LONGEST_PAUSE  # by then its name may be another's
            link.lose("it has become a replica")

    async def _connected(self) -> _Link:
        """The link; there is none while the breaker is open."""
        if not self._tried:
            await asyncio.wait({self._start_attempt()}, timeout=self.budget)
            self._tried = True
        if self._link is None:
            raise StorageUnavailableError(f"Redis at {self.place} is away", sent=False)
        return self._link

    def _try_again(self) -> None:
        """After a pause. Also where nobody calls, who would find the store away still."""
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(self._pause, self._start_attempt)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _start_attempt(self) -> "asyncio.Task[None]":
        if self._attempt is None or self._attempt.done():
            self._attempt = asyncio.create_task(self._try_to_connect(), name="connect to Redis")
        return self._attempt

    async def _try_to_connect(self) -> None:
        link: _Link | None = None
        try:
            async with asyncio.timeout(_ATTEMPT):
                link = await self._server.open(partial(_Link, self))
                sent_at = time.monotonic()
                answers = await asyncio.gather(*(link.ask(words, ()) for words in self._server.greeting))
            if link.gone.is_set():  # after its answers, and before anybody asks by it
                raise ConnectionError("it closed the connection")
            seconds, microseconds = answers[-1]
        except BaseException as error:
            if link is not None:
                link.lose("it could not be used")
            if isinstance(error, asyncio.CancelledError):
                raise
            if (why := _reason(error)) != self._why:
                log = logger.info if self._tried else logger.warning  # the loss itself was a warning
                log("Redis at %s cannot be reached: %s", self.place, why)
            self._tried, self._why = True, why
            self._try_again()
            return
        self._offset = None
        self.learn_time(int(seconds) + int(microseconds) / 1e6, sent_at)
        logger.info("connected to Redis at %s", self.place)
        self._tried, self._why, self._link = True, "", link
        if self._again is not None:
            self._again.cancel()
        self.back_at = time.monotonic()


def connection_of(connection: Any) -> RedisConnection:
    """A connection, or one for a URL."""
    return connection if isinstance(connection, RedisConnection) else RedisConnection(connection)


def prefix_of(name: str, prefix: Any) -> bytes:
    """What stands before every key; braces in it would decide where keys live in a cluster."""
    if not isinstance(prefix, str) or not prefix or not all("!" <= char <= "~" and char not in "{}" for char in prefix):
        raise ConfigurationError(
            f"{name}: prefix is {prefix!r}; it must be visible ASCII characters, without spaces and braces"
        )
    return prefix.encode()


def _came_of(answer: "asyncio.Future[Any] | None") -> Any:
    """What came of a command whose caller was cancelled when its answer was there, or before it was asked."""
    if answer is None:
        return StorageUnavailableError("given up before it was asked", sent=False)
    return answer.exception() or answer.result()


def _reason(error: BaseException) -> str:
    if isinstance(error, _RefusedError):
        return str(error).partition(", with args")[0]  # where a command is unknown: its arguments, which are secret
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class _Server(NamedTuple):
    """Where a server is, and what it is told first."""

    host: str
    port: int
    path: str | None
    """Of its socket, in place of host and port."""
    tls: SSLContext | None
    greeting: tuple[Sequence[Word], ...]
    """Commands: who we are, and in which database everything is; at last for the time."""

    async def open(self, link: Callable[[], _Link]) -> _Link:
        """Connect."""
        loop = asyncio.get_running_loop()
        if self.path is not None:
            return (await loop.create_unix_connection(link, self.path))[1]
        return (await loop.create_connection(link, self.host, self.port, ssl=self.tls))[1]


def _read(url: str) -> _Server:
    """The server that a URL means. Errors do not show the URL, nor what a library says of it."""
    try:
        import hiredis  # noqa: F401  # by which a link reads and writes
        from redis.asyncio.connection import Connection, SSLConnection, parse_url
    except ModuleNotFoundError:
        raise ConfigurationError("RedisConnection needs the package redis: install mcp-middleware[redis]") from None
    if not isinstance(url, str):
        raise ConfigurationError(f"RedisConnection: url is of type {type(url).__name__}; it must be a str")
    try:
        options: dict[str, Any] = dict(parse_url(url))
        connection = options.pop("connection_class", Connection)(**options)  # knows which options there are
        if not re.fullmatch(r"unix:(//[^/?]*)?/.*|[^:]+://[^/]*(/[0-9]*)?(\?.*)?", url):
            raise ValueError  # the library takes a database that it cannot read for number 0
        tls = connection.ssl_context.get() if isinstance(connection, SSLConnection) else None
    except Exception:
        raise ConfigurationError(
            "RedisConnection: url cannot be read; it must be redis://[[user]:password@]host[:port][/db], the same with "
            "rediss:// for TLS, or unix://[[user]:password@]/path?db=0"
        ) from None
    user, password, name, db = map(options.get, ("username", "password", "client_name", "db"))
    greeting: list[Sequence[Word]] = []
    if user or password:
        greeting.append(("AUTH", *([user] if user else []), password or ""))
    if name:
        greeting.append(("CLIENT", "SETNAME", name))
    if db:
        greeting.append(("SELECT", db))
    where = options.get("host", "localhost"), options.get("port", 6379), options.get("path")
    return _Server(*where, tls, (*greeting, ("TIME",)))


def _place(url: object) -> str:
    """What may be said of a URL: host and port, or the path of a socket."""
    try:
        split = urlsplit(str(url))
        return split.path if split.scheme == "unix" else f"{split.hostname or 'localhost'}:{split.port or 6379}"
    except ValueError:
        return "?"
