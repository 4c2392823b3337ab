"""What is settled, whatever becomes of a call, and what a stream takes as it flows."""

import asyncio
import contextlib
import json
from typing import Any

import pytest

from mcp_middleware.errors import INVALID_PARAMS, RATE_LIMITED
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import Member
from mcp_middleware.storage import RedisConnection, RedisStorage
from mcp_middleware.testing import FakeClock
from mcp_middleware.types import Rejection, Usage
from tests.storage.redis_server import running_redis
from tests.support import until

from .conftest import INPUT, OUTPUT, BrokenCounter, Characters, Make, Reader, Stack


class Judge(Member):
    """Stands in the place of tool authorization: refuses on request, and sees what the limiter wrote."""

    stage = "authorization"
    refuse = False

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        return Rejection(200, INVALID_PARAMS, "Unknown tool: tool", "not_allowed") if self.refuse else None


@pytest.mark.parametrize("sse", [False, True])
async def test_the_true_number_of_tokens_takes_the_place_of_the_estimate(make: Make, sse: bool) -> None:
    stack = make(requests="60/minute", tokens="5000/minute", initial_output_tokens=3000)
    stack.server.sse = sse
    answer = await stack.call()
    assert answer.headers["ratelimit"] == f'"requests";r=59, "tokens";r={5000 - INPUT - 3000}'
    assert await stack.left() == (58, 5000 - INPUT - OUTPUT)


async def test_an_answer_longer_than_the_estimate_leaves_a_debt(make: Make, clock: FakeClock) -> None:
    stack = make(requests="60/minute", tokens="600/minute")
    stack.server.result = {"content": [{"type": "text", "text": "x" * 2000}]}
    assert (await stack.call()).status == 200
    refused = await stack.call()
    assert refused.json["error"]["data"]["dimension"] == "tokens"
    assert refused.json["error"]["data"]["remaining"] == 0
    # a bucket of 600 that is 1406 in debt, and this tool is now known to answer with 2,000
    assert refused.headers["retry-after"] == str((2000 + INPUT - 600 + 600) // 10 + 1)
    assert (await stack.left())[1] == 0  # a request without tokens does not wait for them


async def test_a_call_the_policy_denies_is_a_request_but_no_tokens(make: Make) -> None:
    stack = make(requests="60/minute", tokens="5000/minute")
    judge = Judge(stack.server)
    judge.refuse = True
    limited = Stack(FakeClock(), requests="60/minute", tokens="5000/minute")
    limited.limiter = type(limited.limiter)(judge, requests="60/minute", tokens="5000/minute", storage=limited.storage)
    limited.app.app = limited.limiter
    for _ in range(5):
        assert (await limited.call()).json["error"]["message"] == "Unknown tool: tool"
    judge.refuse = False
    assert await limited.left() == (54, 5000)
    assert [message["method"] for message in stack.server.received] == ["tools/list"]


async def test_case_30_a_disconnect_before_the_answer_keeps_the_estimate(make: Make) -> None:
    stack = make(requests="60/minute", tokens="5000/minute", initial_output_tokens=3000)
    stack.server.gate.clear()
    call = stack.prepare()
    running = asyncio.create_task(call.run())
    await stack.server.entered.wait()
    call.disconnect()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    stack.server.gate.set()
    assert await stack.left() == (58, 5000 - INPUT - 3000)


async def test_case_30_a_crash_before_the_answer_keeps_the_estimate(make: Make) -> None:
    stack = make(requests="60/minute", tokens="5000/minute", initial_output_tokens=3000)
    stack.server.raises = RuntimeError("crashed")
    with pytest.raises(RuntimeError, match="crashed"):
        await stack.call()
    stack.server.raises = None
    assert await stack.left() == (58, 5000 - INPUT - 3000)


@pytest.mark.parametrize("sse", [False, True])
async def test_a_crash_after_the_answer_changes_nothing_of_what_is_known(make: Make, sse: bool) -> None:
    stack = make(requests="60/minute", tokens="5000/minute", initial_output_tokens=3000)
    reader = Reader(stack.limiter)
    stack.app.app = reader
    stack.server.sse, stack.server.fails = sse, RuntimeError("crashed")
    with pytest.raises(RuntimeError, match="crashed"):
        await stack.call()
    stack.server.fails = None
    assert reader.usages == [Usage(INPUT, OUTPUT)]
    assert await stack.left() == (58, 5000 - INPUT - OUTPUT)


async def test_a_disconnect_after_the_answer_changes_nothing_of_what_is_known(make: Make) -> None:
    stack = make(requests="60/minute", tokens="5000/minute", initial_output_tokens=3000)
    stack.server.sse, stack.server.last = True, asyncio.Event()
    call = stack.prepare()
    running = asyncio.create_task(call.run())
    async with asyncio.timeout(10), call.arrived:
        await call.arrived.wait_for(lambda: b'"result"' in call.body)
    running.cancel()
    await asyncio.wait({running})
    stack.server.last = None
    assert await stack.left() == (58, 5000 - INPUT - OUTPUT)


async def test_what_the_pipeline_says_for_a_server_that_broke_off_is_no_answer_of_its(make: Make) -> None:
    stack = make(requests="60/minute", tokens="5000/minute", initial_output_tokens=3000)
    stack.server.raw, stack.server.sse = b'{"jsonrpc":"2.0","id":8,"result":{}}', True  # nobody asked by that number
    stack.server.fails = RuntimeError("crashed")
    with pytest.raises(RuntimeError, match="crashed"):
        await stack.call()
    stack.server.fails = stack.server.raw = None
    assert await stack.left() == (58, 5000 - INPUT - 3000)


@pytest.mark.parametrize("broken", ["raise", "disconnect", "counter"])
async def test_case_30_a_call_that_ends_badly_is_not_open_any_more(
    make: Make, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    counter = BrokenCounter(-1) if broken == "counter" else Characters()
    stack = make(concurrency=1, tokens="50000/minute", counter=counter)
    if broken == "raise":
        stack.server.raises = RuntimeError("crashed")
        with pytest.raises(RuntimeError, match="crashed"):
            await stack.call()
        stack.server.raises = None
    elif broken == "counter":
        await stack.call()
    else:
        stack.server.gate.clear()
        running = asyncio.create_task(stack.call())
        await stack.server.entered.wait()
        assert (await stack.call()).status == 429
        running.cancel()
        await asyncio.wait({running})
        stack.server.gate.set()
    assert not stack.storage._open
    assert (await stack.call("tools/list")).status == 200


PAID: dict[str, Any] = {
    "prices": {"currency": "EUR", "rules": [{"call": 1}]},
    "budgets": [{"period": "month", "amount": 100}],
}


@pytest.mark.parametrize("paid", [PAID, {}])
@pytest.mark.parametrize("often", [1, 3])
async def test_case_41_a_client_that_goes_away_while_redis_is_asked_has_used_nothing(
    make: Make, paid: dict[str, Any], often: int
) -> None:
    """Nor does it pay twice for what was let through before without Redis. A scope of anyio cancels in each turn."""
    with running_redis() as server:
        storage = RedisStorage(RedisConnection(server.url, budget=10))
        limits: dict[str, Any] = {"requests": "20/year", "tokens": "5000/year", "concurrency": 2}
        stack = make(storage=storage, **paid, **limits)
        await stack.call()
        server.kill()
        await until(lambda: not storage._connection.is_up)
        for _ in range(3):
            await stack.call()
        server.start()
        assert await storage._connection.connect()
        await stack.call(caller="other")  # Redis knows the scripts again
        server.pause()
        gone = asyncio.create_task(stack.call())
        link: Any = storage._connection._link
        await until(lambda: len(link._waiting) == (2 if paid else 1))
        for _ in range(often):
            gone.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await gone
        server.resume()
        await until(lambda: not link._waiting)
        await until(lambda: not (stack.limiter._charges._giving_back or storage._giving_back or link._waiting))
        assert len(stack.server.received) == 5
        assert await stack.left() == (20 - 5, 5000 - 4 * (INPUT + OUTPUT))
        answer = await stack.call()
        assert '"concurrency";r=1' in answer.headers["ratelimit"]
        with server.client() as client:
            spent = [int(client.hget(kept, "EUR month")) for kept in client.keys("*:budget:*")]
            assert sorted(spent) == ([10**9, 5 * 10**9] if paid else [])
        await storage.aclose()


def notice(text: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": text}}


async def test_a_long_stream_is_topped_up_as_it_flows(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = make(tokens="5000/day")
    seen: list[float] = []
    top_up = stack.storage.top_up

    async def spy(reservation: Any, tokens: float) -> float:
        seen.append(await top_up(reservation, tokens))
        return seen[-1]

    monkeypatch.setattr(stack.storage, "top_up", spy)
    stack.server.notices = [notice("x" * 400) for _ in range(12)]
    answer = await stack.call()
    assert "error" not in answer.body.decode()
    # an event has 425 tokens: 100 were reserved, and what is missing is taken in steps of at least 500
    assert seen
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 1000
    refused = await stack.call()
    assert refused.json["error"]["data"]["dimension"] == "tokens"


async def test_a_stream_without_tokens_left_goes_on_unless_it_is_to_be_cut(make: Make) -> None:
    for cut in (False, True):
        stack = make(tokens="1000/day", cut_streams=cut)
        stack.server.notices = [notice("x" * 400) for _ in range(12)]
        answer = await stack.call()
        events = [json.loads(line[6:]) for line in answer.body.decode().splitlines() if line.startswith("data: ")]
        if not cut:
            assert len(events) == 13
            continue
        assert 3 <= len(events) <= 6
        assert [event["method"] for event in events[:-1]] == ["notifications/message"] * (len(events) - 1)
        assert events[-1]["id"] == 7
        assert events[-1]["error"]["code"] == RATE_LIMITED
        assert events[-1]["error"]["data"] == {"dimension": "tokens", "cut": True}
        assert (await stack.call()).status == 429


async def test_a_stream_that_is_cut_ends_although_its_server_goes_on(make: Make) -> None:
    stack, goes_on = make(tokens="1000/day", concurrency=1, cut_streams=True), asyncio.Event()
    stack.server.notices = [notice("x" * 400) for _ in range(12)]
    stack.server.last = goes_on
    call = stack.prepare()
    running = asyncio.create_task(call.run())
    async with asyncio.timeout(10), call.arrived:
        await call.arrived.wait_for(lambda: call.events and call.events[-1].get("more_body") is False)
    assert call.body.count(b'"cut":true') == 1
    assert not running.done()
    assert (await stack.call("tools/list")).json["error"]["data"]["dimension"] == "concurrency"  # it still runs
    goes_on.set()
    await running
    assert (await stack.call("tools/list")).status == 200
