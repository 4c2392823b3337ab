"""What our gateway takes: time to start, memory at rest, and memory for each open event stream."""

import socket
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks import load

from .contenders import EVERYTHING, NOTHING, STREAMS, Contender, Site, resident, start

__all__ = ["Footprint", "measure"]

_WARMING = 200
"""Calls before the streams, so that what is allocated once is there."""
_SETTLING = 1.0
"""Seconds until the last stream is at rest."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Everything on; ``nothing_rest`` is with nothing on."""

    ready: float
    """Seconds from the start of the process to its first answer, the median of some starts."""
    rest: int
    """Bytes resident then."""
    nothing_ready: float
    nothing_rest: int
    stream: float
    """Bytes for each of ``STREAMS`` event streams, each in a session of its own."""


def measure(site: Site, starts: int, tell: Callable[[str], None]) -> Footprint:
    """Start it some times, and open streams at the last one."""
    tell("starts, and memory at rest")
    nothing = [_started(site, NOTHING) for _ in range(starts)]
    everything = [_started(site, EVERYTHING) for _ in range(starts)]
    tell(f"{STREAMS} event streams")
    with start(site, EVERYTHING) as contender:
        each = _stream_bytes(contender)
    return Footprint(
        ready=statistics.median(one.ready for one in everything),
        rest=round(statistics.median(one.rest for one in everything)),
        nothing_ready=statistics.median(one.ready for one in nothing),
        nothing_rest=round(statistics.median(one.rest for one in nothing)),
        stream=each,
    )


def _started(site: Site, name: str) -> Contender:
    with start(site, name) as contender:
        return contender


def _stream_bytes(contender: Contender) -> float:
    endpoint, pid = contender.endpoint, contender.proxy.pids[0]
    for number in range(_WARMING):
        load.ask(endpoint.port, endpoint.call(contender.session, "x", number))
    before = resident(pid)
    with ExitStack() as open_streams:
        for _ in range(STREAMS):
            answer, _ = load.ask(endpoint.port, endpoint.initialize())
            stream = open_streams.enter_context(socket.create_connection(("127.0.0.1", endpoint.port), 10))
            stream.sendall(endpoint.listen(answer.header(b"mcp-session-id")))
            _await_first_event(stream)
        time.sleep(_SETTLING)
        return (resident(pid) - before) / STREAMS


def _await_first_event(stream: socket.socket) -> None:
    received = b""
    while b": here" not in received:
        chunk = stream.recv(1 << 16)
        if not chunk or not received.startswith(b"HTTP/1.1 200"[: len(received)]):
            raise RuntimeError(f"no event stream: {(received + chunk)[:500]!r}")
        received += chunk
