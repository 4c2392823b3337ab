"""The figures as one document, and that document as a table and as JSON. Times in microseconds, unless named else."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .cases import Case, Figures, base_of
from .footprint import Footprint
from .processes import NGINX

__all__ = ["document", "find", "micro", "processor", "table", "to_json"]

_PACKAGES = ("fastmcp", "httptools", "mcp", "msgspec", "opentelemetry-sdk", "uvicorn", "uvloop")


def document(figures: Mapping[Case, Figures], footprint: Footprint, *, seconds: float) -> dict[str, Any]:
    """Everything that was measured and what follows from it."""
    cases = [_row(case, own, figures) for case, own in figures.items()]
    return {
        "measured_in_seconds": round(seconds),
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "goals": [*_footprint_goals(footprint), *_speed_goals(cases)],
        "cases": cases,
    }


def _row(case: Case, own: Figures, figures: Mapping[Case, Figures]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "variant": case.variant,
        "era": case.era,
        "bytes": case.size,
        "connections": case.connections,
        "requests": len(own.latencies),
        "p50": micro(own.p50),
        "p99": micro(own.p99),
        "cpu": micro(own.cpu),
        "requests_per_second": round(own.rate),
    }
    base = figures.get(Case(base_of(case.variant), case.era, case.size, case.connections))
    if base is not None and base is not own:
        row |= {
            "base": base_of(case.variant),
            "added_p50": micro(own.added_p50(base)),
            "added_p99": micro(own.p99 - base.p99),
            "added_cpu": micro(own.cpu - base.cpu),
        }
        hop = figures.get(Case(NGINX, case.era, case.size, case.connections))
        bare = figures.get(Case(base_of(NGINX), case.era, case.size, case.connections))
        if hop is not None and bare is not None and case.connections == 1 and case.variant != NGINX:
            row["nginx_hops"] = round(own.added_p50(base) / hop.added_p50(bare), 2)
        row["added_share"] = round(own.added_p50(base) / base.p50, 3)
    return row


def micro(seconds: float) -> float:
    """Microseconds."""
    return round(seconds * 1e6, 1)


def processor() -> str:
    """What the machine calls its processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def find(cases: list[dict[str, Any]], **wanted: object) -> dict[str, Any] | None:
    """The case with these values, if it was measured."""
    return next((row for row in cases if all(row[key] == value for key, value in wanted.items())), None)


def _footprint_goals(footprint: Footprint) -> list[dict[str, Any]]:
    return [
        _goal("limiter, each caller", footprint.bytes_per_caller, "bytes", 1024),
        _goal("affinity, each session", footprint.bytes_per_session, "bytes", 4096),
        _goal("import of the package, without a member", footprint.import_package, "seconds", 0.3),
        _goal("import of the limiter alone", footprint.import_limiter, "seconds", 0.3),
        _goal("import of all six members", footprint.import_all, "seconds", 0.3),
    ]


def _speed_goals(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At one connection and the smallest body, where nothing else hides what is added."""
    goals = []
    smallest = min((row["bytes"] for row in cases), default=0)
    for era in ("legacy", "modern"):
        load = {"era": era, "bytes": smallest, "connections": 1}
        row = find(cases, variant="echo+all", **load)
        if row is not None and "nginx_hops" in row:
            goals.append(_goal(f"all six, {era}: added p50", row["nginx_hops"], "nginx hops", 1.5))
        for server in ("fastmcp", "fastmcp-sse"):
            row = find(cases, variant=f"{server}+all", **load)
            if row is not None and "added_share" in row:
                goals.append(_goal(f"all six on {server}, {era}: added p50", row["added_share"], "of a call", 0.1))
    return goals


def _goal(name: str, value: float, unit: str, below: float) -> dict[str, Any]:
    return {"name": name, "value": round(value, 3), "unit": unit, "goal": below, "met": value < below}


def to_json(results: Mapping[str, Any]) -> str:
    """The document as a file."""
    return json.dumps(results, indent=1) + "\n"


def table(results: Mapping[str, Any]) -> str:
    """The document as Markdown."""
    lines = ["| goal | measured | below | met |", "|---|---:|---:|---|"]
    for goal in results["goals"]:
        met = "yes" if goal["met"] else "no"
        lines.append(f"| {goal['name']} | {goal['value']:g} {goal['unit']} | {goal['goal']:g} | {met} |")
    loads = sorted({(row["era"], row["bytes"], row["connections"]) for row in results["cases"]})
    for era, size, connections in loads:
        plural = "s" if connections > 1 else ""
        lines += [
            "",
            f"**{era}, {size / 1000:g} KB, {connections} connection{plural}** (µs)",
            "",
            "| server | p50 | p99 | added p50 | added p99 | nginx hops | requests/s | CPU a request |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in results["cases"]:
            if (row["era"], row["bytes"], row["connections"]) == (era, size, connections):
                lines.append(_line(row))
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    def number(key: str, format_spec: str = ".0f") -> str:
        return format(row[key], format_spec) if key in row else ""

    cells = [
        row["variant"],
        number("p50"),
        number("p99"),
        number("added_p50"),
        number("added_p99"),
        number("nginx_hops", ".2f"),
        number("requests_per_second"),
        number("cpu"),
    ]
    return f"| {' | '.join(cells)} |"
