"""The rounds: short slices of every contender under every load, one after the other, every other round backwards."""

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks import load
from benchmarks.cases import Figures
from benchmarks.processes import Server
from benchmarks.wire import check_echo

from . import wrk
from .contenders import DIRECT, Contender, Site

__all__ = ["Case", "Plan", "WrkFigures", "measure", "quick_enough", "with_wrk"]

TEXT = "x" * 50
_WARM_UP = 0.05
"""Seconds."""
_SLOW = 0.01
"""Seconds of a call from which a second is too short for wrk: sixteen at once may all be unanswered at its end."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how much."""

    rounds: int
    seconds: float
    """Of one case in one round."""
    wrk_rounds: int
    """Of a second each."""
    starts: int
    """Of our gateway, to see how long they take."""

    @staticmethod
    def full() -> "Plan":
        return Plan(rounds=9, seconds=0.5, wrk_rounds=3, starts=5)

    @staticmethod
    def quick() -> "Plan":
        return Plan(rounds=3, seconds=0.2, wrk_rounds=0, starts=2)


@dataclass(frozen=True, slots=True)
class Case:
    """One contender under one load. ``apart``: the server behind it is on the load's core, so that the contender has
    one to itself; otherwise they share one."""

    name: str
    connections: int
    apart: bool = False


@dataclass(slots=True)
class WrkFigures:
    """What wrk saw, a value for each round. Seconds, and requests per second."""

    p50s: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @property
    def p50(self) -> float:
        return statistics.median(self.p50s)

    @property
    def p99(self) -> float:
        return statistics.median(self.p99s)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def added_p50(self, base: "WrkFigures") -> float:
        """Median over the rounds of what this round's p50 had over the base's in the same round."""
        return statistics.median(own - other for own, other in zip(self.p50s, base.p50s, strict=True))


def cases_of(contenders: Sequence[Contender], site: Site) -> list[Case]:
    """One connection and sixteen on shared cores; and sixteen with a core for each contender, where there are two."""
    loads = [(1, False), (16, False), *([(16, True)] if site.servers_core != site.load_core else [])]
    return [
        Case(contender.name, connections, apart)
        for connections, apart in loads
        for contender in contenders
        if not (apart and contender.name == DIRECT)
    ]


def measure(
    plan: Plan, site: Site, echo: Server, contenders: Sequence[Contender], tell: Callable[[str], None]
) -> dict[Case, Figures]:
    """By ``load``: one thread over raw sockets."""
    by_name = {contender.name: contender for contender in contenders}
    figures = {case: Figures() for case in cases_of(contenders, site)}
    for contender in contenders:
        _check(contender)
    for number in range(plan.rounds):
        tell(f"round {number + 1} of {plan.rounds}")
        for case in _back_and_forth(list(figures), number):
            with _placed(site, echo, case):
                _measure_once(by_name[case.name], case, plan.seconds, figures[case])
    return figures


def with_wrk(
    plan: Plan, site: Site, echo: Server, contenders: Sequence[Contender], tell: Callable[[str], None]
) -> dict[Case, WrkFigures]:
    """The same by wrk, which needs less of its core and asks for a second at least. It is for contenders that answer
    many times in one."""
    by_name = {contender.name: contender for contender in contenders}
    figures = {case: WrkFigures() for case in cases_of(contenders, site)} if plan.wrk_rounds else {}
    for number in range(plan.wrk_rounds):
        tell(f"wrk, round {number + 1} of {plan.wrk_rounds}")
        for case in _back_and_forth(list(figures), number):
            contender = by_name[case.name]
            request = contender.endpoint.call(contender.session, TEXT, 1)
            with _placed(site, echo, case):
                seen = wrk.run(contender.endpoint.port, request, case.connections, site.directory)
            own = figures[case]
            own.p50s.append(seen.p50)
            own.p99s.append(seen.p99)
            own.rates.append(seen.rate)
    return figures


def quick_enough(contenders: Sequence[Contender], figures: Mapping[Case, Figures]) -> list[Contender]:
    """Those that wrk can measure."""
    return [one for one in contenders if figures[Case(one.name, 1)].p50 < _SLOW]


def _back_and_forth(cases: list[Case], number: int) -> Iterator[Case]:
    return iter(cases) if number % 2 == 0 else reversed(cases)


@contextmanager
def _placed(site: Site, echo: Server, case: Case) -> Iterator[None]:
    """The server behind where the case wants it."""
    for pid in echo.pids:
        os.sched_setaffinity(pid, {site.load_core if case.apart else site.servers_core})
    yield


def _check(contender: Contender) -> None:
    """One call, answered right."""
    answer, raw = load.ask(contender.endpoint.port, contender.endpoint.call(contender.session, TEXT, 1))
    if answer.status != 200:
        raise RuntimeError(f"{contender.name} answered {raw[:500]!r}")
    check_echo(raw, TEXT)


def _measure_once(contender: Contender, case: Case, seconds: float, figures: Figures) -> None:
    endpoint, session = contender.endpoint, contender.session
    requests = [endpoint.call(session, TEXT, number + 1) for number in range(case.connections)]
    with load.Load(endpoint.port, requests) as asking:
        asking.run(_WARM_UP)
        before = contender.proxy.cpu_seconds()
        latencies, elapsed = asking.run(seconds)
        spent = contender.proxy.cpu_seconds() - before
    figures.p50s.append(statistics.median(latencies))
    figures.cpus.append(spent / len(latencies))
    figures.rates.append(len(latencies) / elapsed)
    figures.latencies.extend(latencies)
