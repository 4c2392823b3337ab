"""The process that serves the gateway: sockets, signals, reloads, and the end.

One worker is one event loop around one ``Gateway``. It ends in three steps: it is not ready any more and streams that
would stay open end; calls under way finish, up to ``drain`` seconds; then everything closes. A second signal skips the
waiting.
"""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import uvloop

from mcp_middleware.errors import ConfigurationError

from .app import Gateway, create_app
from .certificate import Certificate
from .config import Config, load
from .connection import BACKLOG, Connection, Connections, accept
from .edge import AccessLog
from .files import WatchedFiles

__all__ = ["Announce", "StartError", "Worker", "listen", "most_connections", "why_not"]

logger = logging.getLogger("mcp_middleware.gateway")

Announce: TypeAlias = Callable[[Gateway, int], Coroutine[Any, Any, None]]
"""Tells people what has started: the gateway, and the port it listens on."""

MOST_CONNECTIONS: Final = 16_384
"""Client connections of one worker, where the process may have as many files open as these and theirs to servers."""
SPARE_FILES: Final = 256
"""Files that are no client's: logs, databases, libraries, idle connections to servers."""
CLOSING: Final = 5.0
"""Seconds for what comes after the last request: writing the audit trail out, sending spans."""
YOUNGEST: Final = 10_000
"""New containers that make the garbage collector look at the young ones, which then takes 3 ms (Python's own: 700)."""


class StartError(Exception):
    """It cannot start here; the message is for the one who tried. ``wrong``: not as the file says, anywhere."""

    def __init__(self, text: str, *, wrong: bool = False) -> None:
        super().__init__(text)
        self.wrong = wrong


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to ``host`` and ``port``. Raises StartError where it cannot be had."""
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        # With its protocol named, asyncio turns Nagle off on what it accepts; without, every answer waits for an ACK.
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(f"cannot listen on {shown}: {why_not(error)}") from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart does not wait for old connections
    try:
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise StartError(f"cannot listen on {shown}: {why_not(error)}") from None
    return bound


def why_not(error: OSError) -> str:
    """Why a socket cannot be had, and what to do about it."""
    reasons = {
        errno.EADDRINUSE: "another program does; stop it, or change `listen`",
        errno.EADDRNOTAVAIL: "this machine has no such address; change `listen`",
        errno.EACCES: "a port below 1024 needs a right to it (CAP_NET_BIND_SERVICE); grant it, or change `listen`",
    }
    return reasons.get(error.errno or 0) or f"{error.strerror or error}; change `listen`"


def most_connections() -> int:
    """How many clients may be connected to one worker. Raises the limit of open files as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MOST_CONNECTIONS + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(16, min(MOST_CONNECTIONS, (soft - SPARE_FILES) // 2))
    return MOST_CONNECTIONS


class Worker:
    """One process that serves. ``announce`` runs once it does; ``parent`` is the process without which it ends; with
    ``again`` it replaces one that ended, which may have read its file since ``config`` was made of it."""

    def __init__(
        self,
        bound: socket.socket,
        config: Config,
        *,
        path: Path,
        access_log: AccessLog | None = None,
        announce: Announce | None = None,
        parent: int | None = None,
        again: bool = False,
    ) -> None:
        self._bound = bound
        self._config = config
        self._path = path
        self._access_log = access_log
        self._announce = announce
        self._parent = parent
        self._again = again
        self._connections = Connections(most=most_connections(), max_header_bytes=config.bounds.max_header_bytes)
        self._tls = Certificate(config.tls) if config.tls is not None else None
        self._files = WatchedFiles(_files_of(config, path))
        self._told = asyncio.Event()
        self._forced = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._signal: signal.Signals | None = None

    def run(self) -> int:
        """Serve until told to stop; the process's exit status. Raises StartError."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._run())

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        try:
            gateway = create_app(self._config, access_log=self._access_log)
            if self._again:
                await self._catch_up(gateway)
        except ConfigurationError as error:
            raise StartError(str(error)) from None
        context = self._tls.context if self._tls is not None else None
        starting = asyncio.create_task(gateway.startup(), name="start")
        # The start waits for authorization servers that may be slow: whoever asks meanwhile is told so.
        server = await accept(gateway, self._bound, self._connections, context=context)
        running = [asyncio.create_task(self._tick(), name="tick")]
        try:
            has_started = await self._has_started(starting)
        except StartError:
            await self._hang_up(server, loop.time() + 1.0)
            await _cancel(running)
            await gateway.shutdown()
            raise
        if has_started:
            _settle_heap()
            running.append(asyncio.create_task(self._reload_when_told(gateway), name="reloads"))
            if self._announce is not None:
                told = self._announce(gateway, self._bound.getsockname()[1])
                running.append(asyncio.create_task(told, name="banner"))
            await self._told.wait()
        await self._drain(gateway, server)
        await _cancel(running)
        return await self._close(gateway)

    async def _has_started(self, starting: "asyncio.Task[None]") -> bool:
        """Whether the start came to its end before somebody told it to stop. Raises StartError."""
        told = asyncio.create_task(self._told.wait(), name="told to stop")
        await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return False
        try:
            starting.result()
        except ConfigurationError as error:
            raise StartError(str(error), wrong=True) from None
        except OSError as error:
            raise StartError(f"cannot start: {error}") from error
        return True

    def _stop(self, number: signal.Signals) -> None:
        if self._told.is_set():
            self._signal = number
            self._forced.set()
        self._told.set()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._connections.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]
            self._connections.sweep(loop.time())
            if self._parent is not None and os.getppid() != self._parent:
                logger.error("the process that started this worker is gone; it ends too")
                self._told.set()
            await asyncio.sleep(1.0)

    # Reloads

    async def _catch_up(self, gateway: Gateway) -> None:
        """Serve by what the file says now, as the other workers do. By what it said when the first of them started,
        what has been forbidden since would be allowed again, so that one who cannot read it does not serve."""
        config = await asyncio.to_thread(load, self._path)
        await gateway.reload(config)
        self._take(config)

    def _take(self, config: Config) -> None:
        self._connections.max_header_bytes = config.bounds.max_header_bytes
        self._files.watch(_files_of(config, self._path))

    async def _reload_when_told(self, gateway: Gateway) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._reload_wanted.wait()
            if self._reload_wanted.is_set() or self._files.changed():
                self._reload_wanted.clear()
                await self._reload(gateway)

    async def _reload(self, gateway: Gateway) -> None:
        try:
            config = await asyncio.to_thread(load, self._path)
            if self._tls is not None:
                self._tls.renew()
            await gateway.reload(config)
        except (ConfigurationError, OSError) as error:
            gateway.note_bad_reload(str(error))
            return
        except Exception as error:  # serve on, whatever it was
            logger.exception("a reload failed")
            gateway.note_bad_reload(f"{type(error).__name__}: {error}")
            return
        self._take(config)
        gc.collect()  # the configuration before

    # The end

    async def _drain(self, gateway: Gateway, server: asyncio.AbstractServer) -> None:
        loop = asyncio.get_running_loop()
        seconds = gateway.config.drain
        deadline = loop.time() + seconds
        under_way = set(self._connections.tasks)
        logger.info("stopping: %d requests are open, and have %g s to finish", len(under_way), seconds)
        gateway.begin_drain()
        self._connections.ending = True
        # What still comes is answered: whoever balances load sees that this one is not ready, and loses no call.
        await self._wait(lambda: all(task.done() for task in under_way), deadline)
        await self._hang_up(server, deadline)

    async def _hang_up(self, server: asyncio.AbstractServer, deadline: float) -> None:
        """Take no more, and end every connection: those that are being answered after that, until ``deadline``."""
        self._connections.ended = True
        server.close()
        for connection in list(self._connections.connections):
            connection.shutdown()
        await self._wait(lambda: not self._connections.connections and not self._connections.tasks, deadline)
        left = set(self._connections.tasks)
        if left:
            logger.warning("%d requests did not finish in time, and are ended", len(left))
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=1.0)
        for connection in list(self._connections.connections):
            cast(Connection, connection).raw.abort()

    async def _wait(self, until: Callable[[], bool], deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while not until() and loop.time() < deadline and not self._forced.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def _close(self, gateway: Gateway) -> int:
        """Close what the gateway holds; the exit status."""
        status = 0 if self._signal is None else 128 + self._signal
        try:
            async with asyncio.timeout(CLOSING):
                await gateway.shutdown()
        except TimeoutError:
            logger.error("closing took longer than %g s; what was not written or sent by now is lost", CLOSING)
            logging.shutdown()
            os._exit(status or 1)  # a thread that hangs would keep the process
        except Exception:
            logger.exception("closing failed")
            status = status or 1
        logger.info("stopped")
        return status


async def _cancel(tasks: "list[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _files_of(config: Config, path: Path) -> list[Path]:
    files = {path, *config.files}
    return sorted(files | ({config.tls.cert, config.tls.key} if config.tls is not None else set()))


def _settle_heap() -> None:
    """Keep the garbage collector from what does not become garbage.

    A started gateway of one server holds 43,000 objects that live as long as it does. To walk them takes 23 ms, and
    every request waits so long; frozen, they are out of the collector's sight, and a full collection takes 0.01 ms. A
    finished request leaves no cycles behind (``Exchange.close``), so the young ones need no frequent look either.
    What a reload makes is not frozen, and the next one collects it: with it only what is counted by then is walked, a
    millisecond where that is little. The first configuration alone stays: a thousand objects for a server, and some
    fifty more for each other.
    While it started, the collector was off (``cli``), and what has become garbage by then is not worth a walk: a
    thousand objects of 140,000.
    """
    gc.freeze()
    gc.set_threshold(YOUNGEST, 20, 50)
    gc.enable()
