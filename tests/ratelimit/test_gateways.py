"""Four gateways on one Redis, each a process, 160 calls in flight: what they let through together."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from starlette.requests import Request

from mcp_middleware.ratelimit import EstimatingCounter
from tests.gateway.processes import running
from tests.storage.redis_server import RedisServer, running_redis
from tests.support import serve

from .crowd import Crowd, Seen

REPLICAS = 4
IN_FLIGHT = 40
"""Calls of each: 160 together."""
SECONDS = 4.0
REFUSALS = 30
"""By each at least: so long they are called, however slow the machine is."""
REQUESTS_DECIDE = (100, 30_000)
TOKENS_DECIDE = (1000, 15_000)
"""Requests and tokens a second; the burst is twice as much."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SHIFT = """
import time

right = time.time
time.time = lambda: right() + {seconds}
"""
"""A ``sitecustomize`` that makes a process's clock wrong."""


class Tool:
    """A server whose tool answers some hundred tokens after a moment, and adds up what it was asked."""

    def __init__(self) -> None:
        self.random = Random(1)
        self.counter = EstimatingCounter()
        self.calls = 0
        self.tokens = 0
        self.open = self.most_open = 0
        self.longest = 0
        self.began = 0.0
        self.ended = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = await Request(scope, receive).body()
        message = json.loads(body or b"{}")
        if message.get("method") != "tools/call":  # a gateway asks how it is
            await _answer(send, message.get("id"), {})
            return
        self.calls += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        text = "word " * round(self.random.lognormvariate(5, 0.5))
        tokens = self.counter.count(text)
        self.tokens += tokens
        self.longest = max(self.longest, tokens)
        await asyncio.sleep(self.random.uniform(0.005, 0.03))
        await _answer(send, 7, {"content": [{"type": "text", "text": text}]})
        self.open -= 1
        self.ended = time.monotonic()


async def _answer(send: Any, request_id: Any, result: Any) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": request_id, "result": result}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Figures:
    """What all four let through."""

    seen: Seen
    tool: Tool
    rates: tuple[int, int]

    @property
    def allowed(self) -> tuple[float, float]:
        """Burst and rate, of requests and of tokens, over the time in which anybody called."""
        seconds = self.tool.ended - self.tool.began
        requests, tokens = self.rates
        return requests * (2 + seconds), tokens * (2 + seconds)


async def hammered(
    directory: Path,
    redis: RedisServer,
    disturb: Callable[[RedisServer], Awaitable[None]] | None = None,
    wrong_clock: Callable[[int], None] = lambda _: None,
    rates: tuple[int, int] = REQUESTS_DECIDE,
) -> Figures:
    tool = Tool()
    limits = {
        name: {"rate": f"{rate}/second", "burst": 2 * rate}
        for name, rate in zip(("requests", "tokens"), rates, strict=True)
    }
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(serve(tool))
        gateways = []
        for number in range(REPLICAS):
            home = directory / str(number)
            home.mkdir()
            wrong_clock(number)
            gateways.append(
                await stack.enter_async_context(
                    running(home, {"files": origin}, state=redis.url, replicas=REPLICAS, limits=limits)
                )
            )
        crowds = [
            Crowd(gateway.port, callers=IN_FLIGHT, pause=0.1).run(SECONDS, refusals=REFUSALS) for gateway in gateways
        ]
        tool.began = time.monotonic()
        results, _ = await asyncio.gather(asyncio.gather(*crowds), disturb(redis) if disturb else asyncio.sleep(0))
    seen = Seen(*(sum(getattr(one, name) for one in results) for name in ("admitted", "refused", "failed")))
    figures = Figures(seen, tool, rates)
    requests, tokens = figures.allowed
    print(
        f"admitted {tool.calls} of {requests:.0f}, tokens {tool.tokens} of {tokens:.0f}, "
        f"refused {seen.refused}, failed {seen.failed}, open at once {tool.most_open}"
    )
    return figures


def check(figures: Figures, *, in_doubt: int = 0) -> None:
    """``in_doubt``: calls that may have been let through twice over, once by Redis and once by a replica alone."""
    tool, seen = figures.tool, figures.seen
    requests, tokens = figures.allowed
    assert seen.failed == 0
    assert seen.admitted == tool.calls
    assert seen.refused > 100
    assert tool.calls <= requests + in_doubt
    # A call in flight is under-estimated by its whole length at most.
    assert tool.tokens <= tokens + (tool.most_open + in_doubt) * tool.longest
    assert tool.calls > requests / 2 or tool.tokens > tokens / 2  # neither stood still nor was closed


@pytest.mark.parametrize("rates", [REQUESTS_DECIDE, TOKENS_DECIDE])
async def test_case_27_four_gateways_let_through_what_one_would(tmp_path: Path, rates: tuple[int, int]) -> None:
    with running_redis() as redis:
        check(await hammered(tmp_path, redis, rates=rates))


async def test_case_27_a_gateway_whose_clock_is_wrong_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "sitecustomize.py").write_text(SHIFT.format(seconds=11))

    def set_clock(number: int) -> None:
        if number == 1:
            monkeypatch.setenv("PYTHONPATH", str(wrong))
        else:
            monkeypatch.delenv("PYTHONPATH", raising=False)

    with running_redis() as redis:
        check(await hammered(tmp_path, redis, wrong_clock=set_clock))


async def kill_and_start(redis: RedisServer) -> None:
    await asyncio.sleep(1)
    redis.kill()
    await asyncio.sleep(1)
    await asyncio.to_thread(redis.start)


async def pause_and_resume(redis: RedisServer) -> None:
    await asyncio.sleep(1)
    redis.pause()
    await asyncio.sleep(1)
    redis.resume()


async def flush(redis: RedisServer) -> None:
    await asyncio.sleep(1.5)
    await asyncio.to_thread(redis.flush)


@pytest.mark.parametrize("disturb", [kill_and_start, pause_and_resume, flush])
async def test_case_42_a_redis_in_trouble_gives_nobody_a_second_burst(
    tmp_path: Path, disturb: Callable[[RedisServer], Awaitable[None]]
) -> None:
    with running_redis() as redis:
        check(await hammered(tmp_path, redis, disturb), in_doubt=REPLICAS * IN_FLIGHT)
