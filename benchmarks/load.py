"""The load: some connections, each with one request in flight, driven from one thread over raw sockets.

It lives in the process that measures, which has a core to itself; the servers have another.
"""

import gc
import select
import socket
import time
from array import array
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from .wire import Answer

__all__ = ["Load", "ask"]

_CHUNK = 1 << 18
_BUFFER = 1 << 20
_SILENCE = 30.0
"""Seconds without an answer after which a run is given up."""


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    connection.settimeout(_SILENCE)
    return connection


def ask(port: int, request: bytes) -> tuple[Answer, bytes]:
    """One request on a connection of its own: its answer, and the answer's bytes."""
    with _connect(port) as connection:
        connection.sendall(request)
        answer, raw = Answer(), b""
        while not answer.complete:
            chunk = connection.recv(_CHUNK)
            if not chunk:
                raise RuntimeError(f"the server closed the connection after {raw[:500]!r}")
            raw += chunk
            answer.feed(chunk)
    return answer, raw


class Load:
    """As many connections as there are ``requests``, each repeating its own with one in flight."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self._requests = requests
        self._connections = [_connect(port) for _ in requests]
        self._index = {connection.fileno(): index for index, connection in enumerate(self._connections)}
        self._poll = select.epoll()
        for descriptor in self._index:
            self._poll.register(descriptor, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._poll.close()
        for connection in self._connections:
            connection.close()

    def run(self, seconds: float) -> tuple["array[float]", float]:
        """Ask for ``seconds``; then wait for what is in flight.

        Returns the seconds from the first byte sent to the last received, one a request, and those the run took.
        """
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self._run(seconds)
        finally:
            if collecting:
                gc.enable()

    def _run(self, seconds: float) -> tuple["array[float]", float]:
        requests, connections, index_of = self._requests, self._connections, self._index
        clock = time.perf_counter
        latencies = array("d")
        answers = [Answer() for _ in requests]
        begun = clock()
        end = begun + seconds
        sent = []
        for connection, request in zip(connections, requests, strict=True):
            sent.append(clock())
            connection.sendall(request)
        in_flight = len(requests)
        while in_flight:
            ready = self._poll.poll(_SILENCE)
            if not ready:
                raise RuntimeError(f"no answer for {_SILENCE} s")
            for descriptor, _ in ready:
                index = index_of[descriptor]
                chunk = connections[index].recv(_CHUNK)
                if not chunk:
                    raise RuntimeError("the server closed a connection")
                answer = answers[index]
                if not answer.feed(chunk):
                    continue
                now = clock()
                if answer.status != 200:
                    raise RuntimeError(f"answered {answer.head[:500]!r}")
                latencies.append(now - sent[index])
                if now < end:
                    answers[index] = Answer()
                    sent[index] = clock()
                    connections[index].sendall(requests[index])
                else:
                    in_flight -= 1
        return latencies, clock() - begun
