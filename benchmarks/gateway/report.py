"""The figures as one document, and that document as tables. Times in microseconds, unless named else."""

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cases import Figures
from benchmarks.processes import NGINX
from benchmarks.report import micro, processor

from .contenders import DIRECT, EVERYTHING, FORWARDER, LABELS, STREAMS, Contender, resident
from .footprint import Footprint
from .rounds import TEXT, Case, WrkFigures

__all__ = ["document", "find", "table"]

_PACKAGES = ("fastmcp", "httptools", "mcp", "msgspec", "opentelemetry-sdk", "uvicorn", "uvloop")
_LOAD_PY, _WRK = "load.py", "wrk"
_KIB, _MB = 1024, 1e6

_HOPS, _RATE, _SHARE, _TAIL = 5, 5000, 0.6, 5
_STREAM_KIB, _READY, _REST_MB = 64, 1, 80


def document(
    figures: Mapping[Case, Figures],
    by_wrk: Mapping[Case, WrkFigures],
    footprint: Footprint,
    contenders: Sequence[Contender],
    *,
    skipped: Mapping[str, str],
    versions: Mapping[str, str],
    seconds: float,
) -> dict[str, Any]:
    """Everything that was measured and what follows from it. ``skipped`` says why something was not."""
    cases = [*_rows(_LOAD_PY, figures), *_rows(_WRK, by_wrk)]
    return {
        "measured_in_seconds": round(seconds),
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES} | dict(versions),
        "bytes": len(TEXT),
        "skipped": dict(skipped),
        "goals": [*_speed_goals(cases), *_footprint_goals(footprint)],
        "cases": cases,
        "processes": [
            {
                "name": contender.name,
                "ready_seconds": round(contender.ready, 3),
                "rest_mb": round(contender.rest / _MB, 1),
                "after_load_mb": round(resident(contender.proxy.pids[0]) / _MB, 1),
            }
            for contender in contenders
            if contender.name != DIRECT
        ],
        "gateway_with_nothing_on": {
            "ready_seconds": round(footprint.nothing_ready, 3),
            "rest_mb": round(footprint.nothing_rest / _MB, 1),
        },
    }


def _rows(client: str, figures: Mapping[Case, Figures] | Mapping[Case, WrkFigures]) -> list[dict[str, Any]]:
    return [_row(client, case, own, figures) for case, own in figures.items()]


def _row(
    client: str, case: Case, own: Any, figures: Mapping[Case, Figures] | Mapping[Case, WrkFigures]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": case.name,
        "client": client,
        "connections": case.connections,
        "apart": case.apart,
        "p50": micro(own.p50),
        "p99": micro(own.p99),
        "p99_by_p50": round(own.p99 / own.p50, 2),
        "requests_per_second": round(own.rate),
    }
    if isinstance(own, Figures):
        row["requests"] = len(own.latencies)
        row["cpu"] = micro(own.cpu)
    base: Any = figures.get(Case(DIRECT, case.connections, case.apart))
    if base is not None and base is not own:
        row["added_p50"] = micro(own.added_p50(base))
        hop: Any = figures.get(Case(NGINX, case.connections, case.apart))
        if hop is not None and case.connections == 1 and case.name != NGINX:
            row["nginx_hops"] = round(own.added_p50(base) / hop.added_p50(base), 2)
    bare: Any = figures.get(Case(FORWARDER, case.connections, case.apart))
    if bare is not None:
        ratios = [one / other for one, other in zip(own.rates, bare.rates, strict=True)]
        row["rate_by_forwarder"] = round(statistics.median(ratios), 3)
    return row


def find(cases: Sequence[Mapping[str, Any]], **wanted: object) -> Mapping[str, Any] | None:
    """The case with these values, if it was measured."""
    return next((row for row in cases if all(row[key] == value for key, value in wanted.items())), None)


def _speed_goals(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By our own load, which is there on every machine. The rates where our gateway has a core to itself, if there are
    two: how much of it the server behind takes as well says nothing about us."""
    ours = {"name": EVERYTHING, "client": _LOAD_PY}
    one = find(cases, connections=1, apart=False, **ours)
    many = find(cases, connections=16, apart=True, **ours) or find(cases, connections=16, apart=False, **ours)
    goals = []
    if one is not None and "nginx_hops" in one:
        goals.append(_below("added p50, 1 connection", one["nginx_hops"], "nginx hops", _HOPS))
    if many is not None:
        goals.append(_above("16 connections", many["requests_per_second"], "requests/s", _RATE))
        if "rate_by_forwarder" in many:
            goals.append(_above("16 connections, by our bare forwarder", many["rate_by_forwarder"], "of it", _SHARE))
    for row in (one, many):
        if row is not None:
            plural = "s" if row["connections"] > 1 else ""
            goals.append(_below(f"p99, {row['connections']} connection{plural}", row["p99_by_p50"], "times p50", _TAIL))
    return goals


def _footprint_goals(footprint: Footprint) -> list[dict[str, Any]]:
    return [
        _below(f"each of {STREAMS} event streams and sessions", footprint.stream / _KIB, "KiB", _STREAM_KIB),
        _below("start to first answer", footprint.ready, "s", _READY),
        _below("memory at rest", footprint.rest / _MB, "MB", _REST_MB),
    ]


def _below(name: str, value: float, unit: str, goal: float) -> dict[str, Any]:
    return {"name": name, "value": round(value, 3), "unit": unit, "goal": f"< {goal:g}", "met": value < goal}


def _above(name: str, value: float, unit: str, goal: float) -> dict[str, Any]:
    return {"name": name, "value": round(value, 3), "unit": unit, "goal": f"> {goal:g}", "met": value > goal}


def table(results: Mapping[str, Any]) -> str:
    """The document as Markdown."""
    lines = ["| goal, everything on | measured | wanted | met |", "|---|---:|---:|---|"]
    for goal in results["goals"]:
        met = "yes" if goal["met"] else "**no**"
        lines.append(f"| {goal['name']} | {goal['value']:g} {goal['unit']} | {goal['goal']} | {met} |")
    for client, connections, apart in _loads(results["cases"]):
        plural = "s" if connections > 1 else ""
        where = "the proxy has a core to itself" if apart else "proxy and server share a core"
        lines += ["", f"**{connections} connection{plural}, {where}, by {client}** (µs)", ""]
        lines += [
            "| in front of the server | p50 | added p50 | nginx hops | p99 | p99/p50 | requests/s | of our forwarder "
            "| CPU a request |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        wanted = {"client": client, "connections": connections, "apart": apart}
        lines += [_line(row) for row in results["cases"] if all(row[key] == value for key, value in wanted.items())]
    lines += [
        "",
        "| process | start to first answer | memory at rest | after the load |",
        "|---|---:|---:|---:|",
    ]
    for row in results["processes"]:
        cells = f"{row['ready_seconds']:.2f} s | {row['rest_mb']:.0f} MB | {row['after_load_mb']:.0f} MB"
        lines.append(f"| {LABELS[row['name']]} | {cells} |")
    for name, why in results["skipped"].items():
        lines += ["", f"Not measured: {name}, because {why}."]
    return "\n".join(lines)


def _loads(cases: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, bool]]:
    return list(dict.fromkeys((row["client"], row["connections"], row["apart"]) for row in cases))


def _line(row: Mapping[str, Any]) -> str:
    def number(key: str, format_spec: str = ".0f") -> str:
        return format(row[key], format_spec) if key in row else ""

    cells = [
        LABELS[row["name"]],
        number("p50"),
        number("added_p50"),
        number("nginx_hops", ".2f"),
        number("p99"),
        number("p99_by_p50", ".1f"),
        number("requests_per_second"),
        number("rate_by_forwarder", ".2f"),
        number("cpu"),
    ]
    return f"| {' | '.join(cells)} |"
