"""``python -m benchmarks.costs``: what pricing a call costs, and how long a report over a long trail takes.

1. The price of one call, found and computed.
2. What may be spent in a day and a month, taken and settled in memory.
3. A report by agent and tool over a trail of a million records of 50 agents and 40 tools, from SQLite and from JSON
   Lines: processor time, time on the clock, and the most memory of its process.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mcp_middleware import JSONLinesSink, Price, Prices, SQLiteSink
from mcp_middleware.audit import AuditRecord
from mcp_middleware.message import Request, parse
from mcp_middleware.storage.budgets import MemoryBudgets, Spending, Wallet
from mcp_middleware.types import Usage

RECORDS = 1_000_000
CALLS = 200_000
AT_ONCE = 5000

REPORT = """
import resource, sys, time
from mcp_middleware.audit.__main__ import main
began = time.perf_counter()
main(["report", sys.argv[1], "--by", "agent,tool", "--format", "csv"])
took = time.perf_counter() - began
usage = resource.getrusage(resource.RUSAGE_SELF)
print(took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, file=sys.stderr)
"""


def records(count: int) -> Iterator[AuditRecord]:
    """Calls of four weeks, one in ten refused."""
    chance = random.Random(7)  # noqa: S311  # the same ones each time
    for number in range(count):
        allowed = chance.random() < 0.9
        yield AuditRecord(
            time=f"2026-07-{1 + 28 * number // count:02d}T{number % 24:02d}:00:00.{number % 1000:03d}Z",
            method="tools/call",
            target_kind="tool",
            target=f"tool-{chance.randrange(40)}",
            agent=f"agent-{chance.randrange(50)}",
            issuer="https://login.example.com",
            subject=f"user-{chance.randrange(1000)}",
            decision="allowed" if allowed else "limited",
            outcome="ok" if allowed else "refused",
            status=200 if allowed else 429,
            duration_ms=1.5,
            input_tokens=chance.randrange(1000) if allowed else None,
            output_tokens=chance.randrange(10_000) if allowed else None,
            cost=chance.randrange(10**8) / 10**9 if allowed else None,
            currency="EUR" if allowed else None,
            session="5e55" * 4,
            server="files",
            trace_id="ab" * 16,
            span_id="cd" * 8,
            request_id=number,
            request_bytes=400,
            response_bytes=4000,
            era="modern",
            version="2026-07-28",
            http_method="POST",
            client_address="192.0.2.1",
        )


def report(sink: SQLiteSink | JSONLinesSink, path: Path, count: int) -> dict[str, float]:
    """Seconds on the clock, seconds of processor time, MiB."""
    for number, one in enumerate(records(count), start=1):
        sink.write(one)
        if number % AT_ONCE == 0:
            sink.flush(timeout=60)
    sink.close()
    done = subprocess.run([sys.executable, "-c", REPORT, path], capture_output=True, text=True, check=True)
    took, processor, memory = map(float, done.stderr.splitlines()[-1].split())
    return {"rows": done.stdout.count("\n") - 1, "s": took, "s of processor time": processor, "MiB": memory}


def price(count: int) -> float:
    """Microseconds for one call."""
    prices = Prices(
        "EUR", [*(Price(tools=[f"tool-{number}"], call=1) for number in range(20)), Price(input=15, output=3)]
    )
    request = parse(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search"}}')
    if not isinstance(request, Request):
        raise TypeError(request)
    usage = Usage(100, 1000)
    began = time.perf_counter()
    for _ in range(count):
        prices.cost("files", request, usage)
    return (time.perf_counter() - began) / count * 1e6


async def spend(count: int) -> float:
    """Microseconds for taking an estimate and settling it."""
    budgets = MemoryBudgets()
    wallets = (Wallet("EUR day", "day", 10**18), Wallet("EUR month", "month", 10**18))
    began = time.perf_counter()
    for _ in range(count):
        spending = await budgets.spend(b"agent", wallets, 1000)
        if isinstance(spending, Spending):
            await budgets.settle(spending, 900)
    return (time.perf_counter() - began) / count * 1e6


def measure(count: int, calls: int) -> dict[str, Any]:
    """All figures."""
    with TemporaryDirectory() as directory:
        base = Path(directory)
        reports = {
            "SQLite": report(SQLiteSink(base / "audit.db"), base / "audit.db", count),
            "JSON Lines": report(JSONLinesSink(base / "audit.jsonl"), base / "audit.jsonl", count),
        }
    figures = {"price, us": price(calls), "spend and settle, us": asyncio.run(spend(calls))}
    return {"records": count, "reports": reports, **figures}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.costs", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the records: some seconds")
    options = parser.parse_args()
    part = 100 if options.quick else 1
    print(json.dumps(measure(RECORDS // part, CALLS // part), indent=1))


if __name__ == "__main__":
    main()
