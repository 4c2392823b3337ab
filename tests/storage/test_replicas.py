"""Four processes at one Redis, hammering it at once (case 27). Whole gateways try it while Redis is not well."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from .redis_server import RedisServer, running_redis

HAMMER = Path(__file__).with_name("hammer.py")
REPLICAS = 4
IN_FLIGHT = 40
"""In each replica: 160 together."""
SECONDS = 4
RATE = 100
TOKENS = 50

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@contextmanager
def hammers(server: RedisServer) -> Iterator[list["subprocess.Popen[str]"]]:
    with ExitStack() as stack:
        arguments = [server.url, *map(str, (REPLICAS, IN_FLIGHT, SECONDS, RATE, TOKENS))]
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(HAMMER), *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=HAMMER.parents[2],
                    env={"PYTHONPATH": str(HAMMER.parents[2])},
                )
            )
            for _ in range(REPLICAS)
        ]
        try:
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            yield processes
        finally:
            for process in processes:
                process.kill()


def hammer(server: RedisServer) -> tuple[dict[str, Any], float]:
    """What all replicas were given together, and the most that burst and rate allow for the time it took."""
    with hammers(server) as processes:
        began = time.monotonic()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        reports = [json.loads(process.communicate()[0]) for process in processes]
        took = time.monotonic() - began
    total = {name: sum(report[name] for report in reports) for name in ("requests", "tokens", "refused")}
    total["up"] = all(report["up"] for report in reports)
    total["slowest"] = max(report["slowest"] for report in reports)
    print(total, "allowed", 2 * RATE + RATE * took)
    return total, 2 * RATE + RATE * took


def test_case_27_four_replicas_at_once_keep_the_limit() -> None:
    with running_redis() as server:
        total, allowed = hammer(server)
    assert total["up"]
    assert 0 < total["requests"] <= allowed
    assert total["tokens"] <= allowed * TOKENS
    assert total["refused"] > total["requests"]
