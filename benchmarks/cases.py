"""What is measured: which servers, under which requests, and the rounds that go through them."""

import statistics
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from mcp_middleware.types import Era

from . import wire
from .load import Load, ask
from .processes import NGINX, Server
from .stack import MEMBERS

__all__ = ["Case", "Figures", "Plan", "base_of", "cases_of", "measure", "variants"]

ECHO = "echo"
FASTMCP = "fastmcp"
FASTMCP_STREAM = "fastmcp-sse"

_KB = 1000
_WARM_UP = 0.05
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how much."""

    rounds: int
    seconds: float
    """Of one case in one round."""
    sizes: tuple[int, ...]
    """Bytes of the text that a call carries and gets back."""
    connections: tuple[int, ...] = (1, 16)

    @staticmethod
    def full() -> "Plan":
        return Plan(rounds=7, seconds=0.35, sizes=(_KB // 10, 10 * _KB, 200 * _KB))

    @staticmethod
    def quick() -> "Plan":
        return Plan(rounds=3, seconds=0.12, sizes=(_KB // 10,))


@dataclass(frozen=True, slots=True)
class Case:
    """One server under one kind of load."""

    variant: str
    era: Era
    size: int
    connections: int


@dataclass(slots=True)
class Figures:
    """What the rounds gave for one case; times in seconds."""

    p50s: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    """Processor time of the server's processes, per request."""
    rates: list[float] = field(default_factory=list)
    """Requests per second."""
    latencies: "array[float]" = field(default_factory=lambda: array("d"))

    @property
    def p50(self) -> float:
        return statistics.median(self.p50s)

    @property
    def p99(self) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]

    @property
    def cpu(self) -> float:
        return statistics.median(self.cpus)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def added_p50(self, base: "Figures") -> float:
        """Median over the rounds of what this round's p50 had over the base's in the same round."""
        return statistics.median(own - other for own, other in zip(self.p50s, base.p50s, strict=True))


def variants(*, nginx: bool) -> list[str]:
    """Every server, the bases before what is built on them."""
    names = [ECHO, *([NGINX] if nginx else []), *(f"{ECHO}+{member}" for member in MEMBERS), f"{ECHO}+all"]
    return [*names, FASTMCP, f"{FASTMCP}+all", FASTMCP_STREAM, f"{FASTMCP_STREAM}+all"]


def base_of(variant: str) -> str:
    """What a variant is compared with: the same server without members or proxy."""
    return ECHO if variant == NGINX else variant.partition("+")[0]


def cases_of(plan: Plan, names: Sequence[str]) -> list[Case]:
    """The cases, those to be compared next to each other."""
    eras: tuple[Era, ...] = ("legacy", "modern")
    loads = product(eras, plan.sizes, plan.connections)
    # A modern answer is JSON until a notification makes it a stream: the two FastMCP servers are then the same.
    return [
        Case(name, era, size, connections)
        for era, size, connections in loads
        for name in names
        if not (era == "modern" and name.startswith(FASTMCP_STREAM))
    ]


def measure(
    plan: Plan, cases: Sequence[Case], servers: Mapping[str, Server], token: str, tell: Callable[[str], None]
) -> dict[Case, Figures]:
    """Go through all cases round after round, every other round backwards, so that noise meets all alike."""
    requests = dict(_requests(cases, servers, token))
    figures = {case: Figures() for case in cases}
    for number in range(plan.rounds):
        tell(f"round {number + 1} of {plan.rounds}")
        for case in cases if number % 2 == 0 else reversed(cases):
            _measure_once(servers[case.variant], requests[case], plan.seconds, figures[case])
    return figures


def _requests(cases: Sequence[Case], servers: Mapping[str, Server], token: str) -> Iterator[tuple[Case, list[bytes]]]:
    """The requests of each case, one a connection, each answered once and found right."""
    sessions = {name: _open_session(server, token) for name, server in servers.items()}
    for case in cases:
        text = "x" * case.size
        session = sessions[case.variant]
        requests = [wire.call(case.era, token, session, text, number + 1) for number in range(case.connections)]
        answer, raw = ask(servers[case.variant].port, requests[0])
        if answer.status != 200:
            raise RuntimeError(f"{case}: answered {raw[:500]!r}")
        wire.check_echo(raw, text)
        yield case, requests


def _open_session(server: Server, token: str) -> str | None:
    answer, raw = ask(server.port, wire.initialize(token))
    session = answer.header(b"mcp-session-id")
    if answer.status != 200 or session is None:
        raise RuntimeError(f"initialize was answered {raw[:500]!r}")
    ask(server.port, wire.initialized(token, session))
    return session


def _measure_once(server: Server, requests: list[bytes], seconds: float, figures: Figures) -> None:
    with Load(server.port, requests) as load:
        load.run(_WARM_UP)
        before = server.cpu_seconds()
        latencies, elapsed = load.run(seconds)
        spent = server.cpu_seconds() - before
    figures.p50s.append(statistics.median(latencies))
    figures.cpus.append(spent / len(latencies))
    figures.rates.append(len(latencies) / elapsed)
    figures.latencies.extend(latencies)
