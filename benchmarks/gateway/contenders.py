"""Who is compared: each is started as its documentation says, on the servers' core, and asked until it answers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load
from benchmarks.identity import RESOURCE, Issuer
from benchmarks.processes import NGINX, Server, announced_port, free_port, has_nginx, nginx, process
from benchmarks.stack import POLICY, SESSION_KEY

from .contextforge import ContextForge
from .wire import Endpoint

__all__ = [
    "DIRECT",
    "EVERYTHING",
    "FORWARDER",
    "LABELS",
    "NOTHING",
    "SAMPLED",
    "STREAMS",
    "Contender",
    "Site",
    "names",
    "resident",
    "serving",
    "site",
    "start",
]

DIRECT = "direct"
FORWARDER = "forwarder"
NOTHING = "gateway-off"
EVERYTHING = "gateway"
SAMPLED = "gateway-sampled"
FASTMCP_SHARED = "fastmcp-shared"
FASTMCP = "fastmcp"
CONTEXTFORGE = "contextforge"

LABELS = {
    DIRECT: "the server itself",
    NGINX: "nginx, plain proxy",
    FORWARDER: "our forwarder alone, no members",
    NOTHING: "our gateway, nothing on",
    EVERYTHING: "our gateway, everything on",
    SAMPLED: "our gateway, one trace in ten recorded",
    FASTMCP_SHARED: "FastMCP proxy, one shared session",
    FASTMCP: "FastMCP proxy, as documented",
    CONTEXTFORGE: "ContextForge, limits and UI off",
}

STREAMS = 1000
"""Event streams that are opened at once to see what each takes."""
_ROOM = 2 * STREAMS
_PATIENCE = 120.0
"""Seconds that a contender may take to its first answer."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A server that listens: where to ask it, in which session, and what its start was like."""

    name: str
    endpoint: Endpoint
    session: str | None
    proxy: Server
    """The processes that are this contender's own: without the server behind it."""
    ready: float
    """Seconds from the start of the process to the first answer to an initialize."""
    rest: int
    """Bytes of memory that were resident then."""


@dataclass(frozen=True, slots=True)
class Site:
    """What every contender needs to know."""

    directory: Path
    upstream: int
    """The port of the echo server."""
    sink: int
    issuer: Issuer
    servers_core: int
    load_core: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.upstream}/mcp"

    @contextmanager
    def on(self, core: int) -> Iterator[None]:
        """Start processes on this core."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def names(*, with_contextforge: bool) -> list[str]:
    """All that can be measured here, in the order of the tables."""
    unavailable = set() if has_nginx() else {NGINX}
    if not with_contextforge:
        unavailable.add(CONTEXTFORGE)
    return [name for name in LABELS if name not in unavailable]


@contextmanager
def site(directory: Path, issuer: Issuer) -> Iterator[tuple[Site, Server]]:
    """The echo server and the collector, and the cores: one for servers, another for this process where there is
    one."""
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as running:
        os.sched_setaffinity(0, {cores[-1]})
        running.callback(os.sched_setaffinity, 0, cores)
        sink = announced_port(running.enter_context(process(_python("sink"))))
        made = Site(directory, 0, sink, issuer, cores[0], cores[-1])
        with made.on(cores[0]):
            echo = running.enter_context(process(_python("echo")))
        upstream = announced_port(echo)
        made = Site(directory, upstream, sink, issuer, cores[0], cores[-1])
        _first_answer(Endpoint(upstream), echo)
        yield made, Server(upstream, (echo.pid,))


@contextmanager
def serving(at: Site, echo: Server, wanted: Sequence[str], tell: Callable[[str], None]) -> Iterator[list[Contender]]:
    """Run all that are ``wanted``, started one after the other, so that each one's start can be timed."""
    with ExitStack() as running:
        contenders = []
        for name in wanted:
            tell(f"starting {LABELS[name]}")
            if name == DIRECT:
                contenders.append(Contender(DIRECT, Endpoint(echo.port), None, echo, 0.0, 0))
            else:
                contenders.append(running.enter_context(start(at, name)))
        yield contenders


@contextmanager
def start(at: Site, name: str) -> Iterator[Contender]:
    """Run one, from its start to its first answer and until the context ends."""
    own = at.directory / f"{name}-{time.monotonic_ns()}"
    own.mkdir()
    with ExitStack() as running:
        output = running.enter_context((own / "output.log").open("w"))
        begun = time.monotonic()
        with at.on(at.servers_core):
            if name in (FORWARDER, FASTMCP, FASTMCP_SHARED):
                started = running.enter_context(process(_python(name, at.url), errors=output))
                endpoint = Endpoint(announced_port(started))
            elif name == NGINX:
                endpoint = Endpoint(free_port())
                started = running.enter_context(process(nginx(own, endpoint.port, at.upstream)))
            elif name == CONTEXTFORGE:
                forge = ContextForge.at(free_port(), own)
                environment = forge.environment()
                started = running.enter_context(
                    process(forge.command(), environment=environment, output=output, errors=output)
                )
                endpoint = forge.register(at.url, lambda: _still_starting(started, begun))
            else:
                endpoint, configuration = _gateway(at, own, name)
                file = own / "gateway.yaml"
                file.write_text(json.dumps(configuration))
                command = [sys.executable, "-m", "mcp_middleware.gateway", "run", str(file)]
                started = running.enter_context(process(command, output=output, errors=output))
        try:
            session = _first_answer(endpoint, started)
        except RuntimeError as error:
            raise RuntimeError(f"{error}:\n{(own / 'output.log').read_text()[-2000:]}") from None
        ready = time.monotonic() - begun
        rest = resident(started.pid)
        load.ask(endpoint.port, endpoint.initialized(session))
        yield Contender(name, endpoint, session, Server(endpoint.port, (started.pid,)), ready, rest)


def _python(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gateway.servers", name, *arguments]


def _gateway(at: Site, own: Path, name: str) -> tuple[Endpoint, Mapping[str, object]]:
    """Our gateway's configuration: everything, everything with fewer traces, or the least there may be."""
    port = free_port()
    configuration: dict[str, object] = {"listen": f"127.0.0.1:{port}", "servers": {"echo": {"url": at.url}}}
    if name == NOTHING:
        return Endpoint(port, "/echo/mcp"), {**configuration, "auth": "off", "access_log": False}
    policy = own / "policy.yaml"
    policy.write_text(POLICY)
    rate = "1000000000/minute"
    configuration |= {
        "auth": {
            "issuers": [{"issuer": at.issuer.url, "audiences": [RESOURCE]}],
            "scopes": ["mcp:use"],
        },
        "access": {"file": str(policy)},
        "limits": {"requests": rate, "tokens": rate, "agents": {"batch-*": {"requests": "60/minute"}}},
        "sessions": {"keys": [SESSION_KEY], "per_agent": _ROOM},
        "tracing": {"otlp": f"http://127.0.0.1:{at.sink}", "sample": 0.1 if name == SAMPLED else 1},
        "audit": {"sqlite": str(own / "audit.db")},
        "connections_per_agent": _ROOM,
    }
    return Endpoint(port, "/echo/mcp", token=at.issuer.token()), configuration


def _first_answer(endpoint: Endpoint, started: "subprocess.Popen[str]") -> str | None:
    """Open a session as soon as somebody answers; its id."""
    begun = time.monotonic()
    while True:
        try:
            answer, _ = load.ask(endpoint.port, endpoint.initialize())
        except (OSError, RuntimeError):
            answer = None
        if answer is not None and answer.status == 200:
            return answer.header(b"mcp-session-id")
        _still_starting(started, begun)


def _still_starting(started: "subprocess.Popen[str]", begun: float) -> None:
    """Wait a moment for a process that does not serve yet. Raises RuntimeError where it never will."""
    if started.poll() is not None:
        raise RuntimeError(f"{started.args!r} ended before it served")
    if time.monotonic() - begun > _PATIENCE:
        raise RuntimeError(f"{started.args!r} did not serve in {_PATIENCE:g} s")
    time.sleep(0.005)


def resident(pid: int) -> int:
    """Bytes of memory of a process that are resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the process {pid} has ended")
