"""Limits, prices, budgets and the guard through the whole gateway: real servers, official clients, a real Redis."""

import asyncio
import csv
import io
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.shared.exceptions import MCPError

from examples.authorization_server import Client
from mcp_middleware.errors import RATE_LIMITED
from mcp_middleware.gateway.config import from_mapping
from mcp_middleware.ratelimit import EstimatingCounter, ExactCounter
from mcp_middleware.types import Era
from tests.authorization_server.running import running as issuing
from tests.mcp_servers import Kind
from tests.storage.redis_server import RedisServer, running_redis
from tests.support import (
    SESSION_KEY,
    TIMEOUT,
    answer_of,
    connect,
    each_era,
    headers_for,
    initialize,
    message,
    post,
    serve,
)

from .gateways import CI, ECHO, OTHER, SCOPES, Running, gateway, sections
from .processes import Backend, backend, configured
from .processes import running as process
from .test_gateway import before
from .test_telemetry import Collector

OPEN = {"default": "allow"}
"""Access for everybody, where a test is about limits alone."""


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
def state(request: pytest.FixtureRequest) -> str:
    """Where it is counted."""
    if request.param == "memory":
        return "memory"
    server: RedisServer = request.getfixturevalue("redis")
    server.flush()
    return server.url


async def call(
    running: Running,
    server: str = "files",
    *,
    client: Client = CI,
    tool: str = "echo",
    arguments: dict[str, Any] | None = None,
    **options: Any,
) -> httpx2.Response:
    """One call of revision 2026-07-28, by a token of its own."""
    asked = {"name": tool, "arguments": {"text": "x"} if arguments is None else arguments}
    token = running.token(client, server)
    return await post(running.http, running.url(server), "tools/call", asked, token=token, **options)


def refusal(reply: httpx2.Response) -> dict[str, Any]:
    """What a 429 says."""
    assert reply.status_code == 429, reply.text
    error = answer_of(reply)["error"]
    assert error["code"] == RATE_LIMITED
    data: dict[str, Any] = error["data"]
    return data


def left(reply: httpx2.Response) -> dict[str, int]:
    """What is left of each limit, as ``RateLimit`` has it."""
    assert reply.status_code == 200, reply.text
    items = (item.split(";r=") for item in reply.headers["ratelimit"].split(", "))
    return {name.strip('"'): int(number) for name, number in items}


async def change(running: Running, **changes: Any) -> None:
    """Reload with other sections."""
    servers = {name: {"url": server.instances[0]} for name, server in running.app.config.servers.items()}
    for name, limits in changes.pop("of_servers", {}).items():
        servers[name]["limits"] = limits
    issuer = running.issuer.issuer
    written = sections(servers, origin=running.origin, issuer=issuer, trail=running.audit, **changes)
    await running.app.reload(from_mapping(written))


@asynccontextmanager
async def waiting(directory: Path, **changes: Any) -> AsyncIterator[tuple[Running, Backend]]:
    """A gateway before a server that can wait."""
    async with backend() as behind, gateway(directory, {"files": f"{behind.origin}/mcp"}, access=OPEN, **changes) as r:
        yield r, behind


PRICES = {"currency": "EUR", "rules": [{"tools": ["echo"], "input": 15, "output": 3, "call": "0.002"}, {"call": 0}]}


@pytest.mark.parametrize(("era", "kind"), [("legacy", "sdk"), ("modern", "fastmcp")])
async def test_what_calls_cost_is_in_the_trail_and_the_report_adds_it_up(era: Era, kind: Kind, tmp_path: Path) -> None:
    budgets = [{"period": "month", "amount": "0.005", "agents": ["other"]}]
    async with before(tmp_path, kind, names=("files", "notes"), prices=PRICES, budgets=budgets) as running:
        for agent, server, tool in ((CI, "files", "echo"), (CI, "notes", "echo"), (CI, "files", "whoami")):
            async with connect(running.url(server), token=running.token(agent, server), era=era) as client:
                await client.call_tool(tool, ECHO["arguments"] if tool == "echo" else {})  # type: ignore[arg-type]
        for server in ("files", "notes"):  # its budget spans them
            async with connect(running.url(server), token=running.token(OTHER, server), era=era) as client:
                await client.call_tool("echo", {"text": "x"})
                if server == "notes":
                    with pytest.raises(MCPError) as refused:
                        await client.call_tool("echo", {"text": "x"})
                    assert refused.value.error.code == RATE_LIMITED
                    assert refused.value.error.data["dimension"] == "budget"
    charged = [record for record in running.records() if record.cost is not None]
    assert [record.target for record in charged] == ["echo", "echo", "whoami", "echo", "echo"]
    for record in charged:
        assert record.currency == "EUR"
        if record.target == "echo":
            micros = 15 * (record.input_tokens or 0) + 3 * (record.output_tokens or 0) + 2000
            assert record.cost == micros / 10**6
    command = ("-m", "mcp_middleware.audit", "report", str(running.audit), "--by", "agent,tool", "--format", "csv")
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    rows = {(row["agent"], row["tool"]): row for row in csv.DictReader(io.StringIO(out.decode()))}
    assert {key: (row["calls"], row["refused"], row["unpriced"]) for key, row in rows.items()} == {
        ("ci-1", "echo"): ("2", "0", "0"),
        ("ci-1", "whoami"): ("1", "0", "0"),
        ("other", "echo"): ("2", "1", "0"),
    }
    for key, row in rows.items():
        costs = [Decimal(str(one.cost)) for one in charged if (one.agent, one.target) == key]
        assert Decimal(row["cost_EUR"]) == sum(costs)


async def test_an_agents_buckets_span_servers_and_those_of_tools_and_servers_are_their_own(tmp_path: Path) -> None:
    limits = {"requests": "9/hour", "tools": {"echo": {"requests": "2/hour"}}}
    async with before(tmp_path, names=("files", "notes"), limits=limits) as running:
        for server in ("files", "notes"):
            assert [(await call(running, server)).status_code for _ in range(2)] == [200, 200]
            said = refusal(await call(running, server))
            assert (said["dimension"], said["of"], said["limit"]) == ("requests", "tool", 2)
        assert left(await call(running, tool="whoami")) == {"requests": 4}
        files = {"requests": "1/hour", "tools": {"who*": {"requests": "1/hour"}}}
        upstream = running.app._generation.upstreams["files"]
        await change(running, limits=limits, of_servers={"files": files})
        assert left(await call(running, tool="whoami")) == {"requests": 3, "server-requests": 0, "tool-requests": 0}
        assert refusal(await call(running, tool="whoami"))["of"] in ("server", "tool")
        assert left(await call(running, "notes", tool="whoami")) == {"requests": 2}
        assert running.app._generation.upstreams["files"] is upstream, "its instances are no others"
        assert left(await call(running, client=OTHER)) == {"requests": 8, "server-requests": 0, "tool-requests": 1}


async def test_a_reload_keeps_buckets_forecasts_budgets_and_places_while_calls_are_in_flight(
    state: str, tmp_path: Path
) -> None:
    limits = {"requests": "100/day", "tokens": "1000000/day", "concurrency": 1, "initial_output_tokens": 400_000}
    costs = {"prices": {"currency": "EUR", "rules": [{"call": 1}]}, "budgets": [{"period": "month", "amount": 3}]}
    async with waiting(tmp_path, state=state, limits=limits, **costs) as (running, behind):
        assert left(await call(running, tool="learnt"))["tokens"] < 600_000, "nobody knew what it answers"
        await running.app.wait_idle()  # an answer is there before its place is free
        slow = asyncio.create_task(call(running, tool="slow"))
        await behind.begun.wait()
        await change(running, limits=limits | {"requests": "200/day"}, access=OPEN, state=state, **costs)
        assert refusal(await call(running))["dimension"] == "concurrency", "the place is held through the reload"
        behind.go_on.set()
        assert (await slow).status_code == 200
        await running.app.wait_idle()
        learnt = await call(running, tool="learnt")
        assert left(learnt)["requests"] == 97, "one for each that was let through"
        assert 900_000 < left(learnt)["tokens"] < 1_000_000, "the estimate was settled, and the next guess is known"
        budget = refusal(await call(running))
        assert (budget["dimension"], budget["limit"], budget["remaining"]) == ("budget", 3.0, 0.0)
        await running.app.wait_idle()
        await change(running, limits=limits, access=OPEN, state=state)
        assert (await call(running)).status_code == 200
    costs_of = [record.cost for record in running.records() if record.cost is not None]
    assert costs_of == [1.0, 1.0, 1.0]


async def test_a_reload_changes_the_mode_and_the_kill_switch_switches_all_off(tmp_path: Path) -> None:
    limits = {"requests": "1/hour"}
    priced: dict[str, Any] = {"prices": {"currency": "EUR", "rules": [{"call": 1}]}}
    async with before(tmp_path, limits=limits, **priced) as running:
        assert (await call(running)).status_code == 200
        refusal(await call(running))
        await change(running, limits=limits | {"mode": "shadow"}, **priced)
        assert [(await call(running)).status_code for _ in range(3)] == [200] * 3
        await change(running, limits=limits | {"mode": "off"}, **priced)
        reply = await call(running)
        assert reply.status_code == 200
        assert "ratelimit" not in reply.headers
        await change(running, limits=limits, **priced)
        assert refusal(await call(running))["remaining"] == 0, "what was used before is still used"
    costs = [record.cost for record in running.records()]
    assert costs == [1.0, None, 1.0, 1.0, 1.0, None, None]


@each_era
async def test_case_29_who_has_nothing_left_connects_and_reads_why(era: Era, tmp_path: Path) -> None:
    limits: dict[str, Any] = {"requests": "1/hour", "refuse_with": "error"}
    async with before(tmp_path, limits=limits) as running:
        assert (await call(running)).status_code == 200
        token = running.token()
        async with connect(running.url(), token=token, era=era) as client:
            with pytest.raises(MCPError) as refused:
                await client.call_tool("echo", {"text": "x"})
            assert refused.value.error.code == RATE_LIMITED
            assert refused.value.error.data["dimension"] == "requests"
        session = await initialize(running.http, running.url(), token=token)
        notified = message("notifications/initialized", id=None, era="legacy")
        headers = headers_for(notified, era="legacy", token=token, session=session)
        assert (await running.http.post(running.url(), json=notified, headers=headers)).status_code == 202
        asked: dict[str, Any] = {"token": token, "era": "legacy", "session": session}
        for method, params in (("ping", {}), ("logging/setLevel", {"level": "error"})):
            assert (await post(running.http, running.url(), method, params, **asked)).status_code == 200
        assert (await running.http.delete(running.url(), headers=headers)).status_code == 200
        metadata = f"{running.origin}/.well-known/oauth-protected-resource/files/mcp"
        assert (await running.http.get(metadata)).status_code == 200
        await change(running, limits=limits | {"refuse_with": "tool_result"})
        async with connect(running.url(), token=token, era=era) as client:
            result = await client.call_tool("echo", {"text": "x"})
            assert result.is_error
            assert "the limit on requests is reached" in result.content[0].text  # type: ignore[union-attr]


async def test_case_28_waiting_as_long_as_told_is_enough_and_what_never_fits_is_told_no_time(tmp_path: Path) -> None:
    limits = {"requests": {"rate": "1/second", "burst": 1}, "tokens": {"rate": "1000/second", "burst": 50}}
    async with before(tmp_path, limits=limits | {"initial_output_tokens": 0}) as running:
        never = await call(running, arguments={"text": "word " * 500})
        assert never.status_code == 413
        assert "retry-after" not in never.headers
        assert "retryAfterMs" not in answer_of(never)["error"]["data"]
        statuses = {reply.status_code for reply in await asyncio.gather(*(call(running) for _ in range(5)))}
        refused = await call(running)
        while refused.status_code == 200:  # a slow machine: a second went by
            refused = await call(running)
        assert statuses <= {200, 429}
        await asyncio.sleep(int(refused.headers["retry-after"]))
        assert (await call(running)).status_code == 200


async def test_case_30_a_caller_that_goes_away_is_charged_the_estimate_and_nonsense_is_not_believed(
    tmp_path: Path,
) -> None:
    usage: dict[str, Any] = {}

    async def reporting(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        result = {"content": [{"type": "text", "text": "word"}], "_meta": {"usage": usage}}
        reply = httpx2.Response(200, json={"jsonrpc": "2.0", "id": 1, "result": result})
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": reply.content})

    limits = {"tokens": "1000000/day", "initial_output_tokens": 600_000}
    async with backend() as behind, serve(reporting) as other:
        servers = {"files": f"{behind.origin}/mcp", "notes": f"{other}/mcp"}
        async with gateway(tmp_path, servers, access=OPEN, limits=limits) as running:
            gone = asyncio.create_task(call(running, tool="slow"))
            await behind.begun.wait()
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            await running.app.wait_idle()
            said = refusal(await call(running, tool="quick"))
            assert said["dimension"] == "tokens", "what it used nobody knows: the estimate stands"
            nonsense: tuple[Any, ...] = (-5, 1e300, "7", True)
            for number in nonsense:
                usage["outputTokens"] = number
                assert (await call(running, "notes", client=OTHER)).status_code == 200
            usage["outputTokens"] = 1000
            assert (await call(running, "notes", client=OTHER)).status_code == 200
    tokens = [record.output_tokens for record in running.records() if record.server == "notes"]
    assert tokens == [2, 2, 2, 2, 1000]


async def test_case_25_and_26_invented_callers_are_kept_nowhere_and_new_tokens_are_nobody_new(tmp_path: Path) -> None:
    limits = {"requests": "3/hour"}
    async with before(tmp_path, limits=limits) as running:
        for number in range(200):
            junk = f"{running.token()}{number}"
            assert (await post(running.http, running.url(), "tools/call", ECHO, token=junk)).status_code == 401
        assert len(running.app._shared.storage) == 0  # type: ignore[arg-type]
        for number in range(4):
            address = {"x-forwarded-for": f"192.0.2.{number}"}
            session = await initialize(running.http, running.url(), token=running.token())
            reply = await post(
                running.http,
                running.url(),
                "tools/call",
                ECHO,
                era="legacy",
                session=session,
                token=running.token(),
                headers=address,
            )
            assert reply.status_code == (200 if number < 3 else 429)
        assert len(running.app._shared.storage) == 1  # type: ignore[arg-type]


async def test_case_31_one_agent_at_a_hundred_times_its_limit_costs_no_other_a_call(tmp_path: Path) -> None:
    polite = tuple(Client(client_id=f"polite-{number}", scopes=SCOPES) for number in range(9))
    greedy = Client(client_id="greedy", scopes=SCOPES)
    limits = {"requests": {"rate": "60/minute", "burst": 5}, "tokens": "10000/minute", "initial_output_tokens": 10}
    async with before(tmp_path, clients=(*polite, greedy), access=OPEN, limits=limits) as running:
        tokens = {agent: running.token(agent) for agent in (*polite, greedy)}

        async def calls(agent: Client, times: int) -> list[int]:
            token = tokens[agent]
            asked = [post(running.http, running.url(), "tools/call", ECHO, token=token) for _ in range(times)]
            return [(await one).status_code for one in asked]

        done = await asyncio.gather(*(calls(greedy, 50) for _ in range(10)), *(calls(agent, 5) for agent in polite))
    assert done[10:] == [[200] * 5] * 9
    statuses = [status for some in done[:10] for status in some]
    assert set(statuses) == {200, 429}


async def test_the_guard_refuses_floods_of_bad_tokens_before_anybody_looks_at_them(tmp_path: Path) -> None:
    guard = {"addresses": "4/hour", "trusted_proxies": ["127.0.0.1"]}
    async with before(tmp_path, names=("files", "notes"), guard=guard) as running:

        async def ask(address: str, token: str, server: str = "files", **headers: str) -> httpx2.Response:
            sent = {"x-forwarded-for": f"203.0.113.9, {address}", **headers}
            return await post(running.http, running.url(server), "tools/call", ECHO, token=token, headers=sent)

        good = {server: running.token(server=server) for server in ("files", "notes")}
        for _ in range(3):  # taken off again
            assert {(await ask("192.0.2.1", good[server], server)).status_code for server in good} == {200}
        metadata = f"{running.origin}/.well-known/oauth-protected-resource/files/mcp"
        for path in (metadata, f"{running.origin}/healthz"):
            replies = [await running.http.get(path, headers={"x-forwarded-for": "192.0.2.1"}) for _ in range(5)]
            assert {reply.status_code for reply in replies} == {200}
        assert (await ask("192.0.2.1", "junk", host="elsewhere.example.com")).status_code == 421
        assert {(await ask("192.0.2.1", "junk", server)).status_code for server in ("files", "notes")} == {401}
        await change(running, guard=guard | {"tools": {"echo": "2/hour"}})
        assert {(await ask("192.0.2.1", "junk", server)).status_code for server in ("files", "notes")} == {401}
        refused = await ask("192.0.2.1", good["notes"], "notes")
        assert refusal(refused)["of"] == "address"
        assert int(refused.headers["retry-after"]) <= 3600
        assert (await ask("192.0.2.2", "junk")).status_code == 401
        for server in good:  # each server's tool by itself, whoever calls
            both = (CI, OTHER)
            tokens = [running.token(agent, server) for agent in (*both, *both)]
            replies = [await ask("192.0.2.3", token, server) for token in tokens]
            assert [reply.status_code for reply in replies] == [200, 200, 429, 429]
            assert refusal(replies[-1])["of"] == "tool"
    reasons = [record.reason for record in running.records() if record.reason is not None]
    assert reasons == ["bad_host", *["invalid_token"] * 4, "rate_limited", "invalid_token", *["rate_limited"] * 4]


async def test_a_gateways_process_believes_its_proxies_and_takes_up_the_kill_switch(tmp_path: Path) -> None:
    limits, guard = {"requests": "3/hour"}, {"addresses": "2/hour", "trusted_proxies": ["127.0.0.1"]}
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(backend())
        written: dict[str, Any] = {"limits": limits, "guard": guard}
        gateway = await stack.enter_async_context(process(tmp_path, {"files": behind.origin}, **written))
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=TIMEOUT))

        async def ask(address: str | None = None) -> tuple[int, str]:
            headers = {} if address is None else {"x-forwarded-for": f"203.0.113.9, {address}"}
            reply = await post(http, f"{gateway.origin}/files/mcp", "tools/call", ECHO, headers=headers)
            if reply.status_code == 200:
                return 200, ""
            data = refusal(reply)
            return 429, data.get("of", "agent")

        assert [await ask("192.0.2.1") for _ in range(3)] == [(200, ""), (200, ""), (429, "address")]
        assert [await ask("192.0.2.2") for _ in range(3)] == [(200, ""), (429, "agent"), (429, "address")]
        assert await ask() == (429, "agent")
        gateway.reload(configured({"files": behind.origin}, gateway.port, limits=limits | {"mode": "off"}))
        await gateway.wrote("was reloaded")
        assert [await ask("192.0.2.1") for _ in range(5)] == [(200, "")] * 5


async def test_case_27_workers_count_together_and_forget_nothing_when_they_reload(
    redis: RedisServer, tmp_path: Path
) -> None:
    redis.flush()
    written: dict[str, Any] = {
        "workers": 2,
        "state": redis.url,
        "sessions": {"keys": [SESSION_KEY]},
        "limits": {"requests": "10/day"},
        "prices": {"currency": "EUR", "rules": [{"call": 1}]},
        "budgets": [{"period": "month", "amount": 50}],  # more than 40, which may all be taken at once and given back
    }
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(backend())
        gateway = await stack.enter_async_context(process(tmp_path, {"files": behind.origin}, **written))
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=TIMEOUT))

        async def ask(times: int) -> list[int]:
            url = f"{gateway.origin}/files/mcp"
            replies = await asyncio.gather(*(post(http, url, "tools/call", ECHO) for _ in range(times)))
            return [reply.status_code for reply in replies]

        statuses = await ask(40)
        assert set(statuses) == {200, 429}
        assert 10 <= statuses.count(200) < 20, "each by itself would let 10 through; a Redis without a core, a few more"
        written["limits"] = {"tokens": "90000/day"}
        gateway.reload(configured({"files": behind.origin}, gateway.port, **written))
        await gateway.wrote("was reloaded", times=2)
        assert set(await ask(80)) == {200, 429}
        assert 50 <= behind.calls < 60, "the budget knows of those before"


async def test_a_vocabulary_counts_where_it_is_configured(tmp_path: Path) -> None:
    pytest.importorskip("bpe_openai")
    text = "c2VjcmV0IGJ5dGVzIGFyZSBoZXJl" * 9
    limits = {"tokens": "90000/hour"}
    async with before(tmp_path, limits=limits) as running:
        assert (await call(running, arguments={"text": text})).status_code == 200
        await change(running, limits=limits | {"counter": "o200k_base"})
        assert (await call(running, arguments={"text": text})).status_code == 200
    told = json.dumps({"result": text}, separators=(",", ":"))
    counted = [counter.count(told) for counter in (EstimatingCounter(), ExactCounter())]
    assert counted[0] != counted[1]
    assert [record.output_tokens for record in running.records()] == counted


async def test_limits_metrics_reach_the_gateways_collector(tmp_path: Path) -> None:
    collector = Collector()
    limits = {"requests": "2/hour", "tokens": "9000/hour"}
    async with serve(collector.app) as otlp:
        tracing = {"otlp": otlp, "sample": 0}
        async with before(tmp_path, limits=limits, prices=PRICES, tracing=tracing) as running:
            assert [(await call(running)).status_code for _ in range(3)] == [200, 200, 429]
    names = {name.removeprefix("mcp_middleware.limiter.") for name in collector.metrics if ".limiter." in name}
    assert {"admitted", "refused", "cost"} <= names
    assert ("mcp_middleware.limiter.refused", "requests", "agent") in {count[:3] for count in collector.counts}


async def test_case_42_budgets_are_one_sum_over_gateways_and_each_goes_on_from_it_without_redis(
    tmp_path: Path,
) -> None:
    costs = {"prices": {"currency": "EUR", "rules": [{"call": 1}]}, "budgets": [{"period": "month", "amount": 8}]}
    homes = [tmp_path / name for name in "ab"]
    for home in homes:
        home.mkdir()
    with running_redis() as redis:
        async with AsyncExitStack() as stack:
            issuer = await stack.enter_async_context(issuing(clients=[CI], resources=["http://127.0.0.1:9/mcp"]))
            shared: dict[str, Any] = {"state": redis.url, "replicas": 2, "authorities": [issuer], **costs}
            both = [await stack.enter_async_context(before(home, **shared)) for home in homes]
            for running in both:
                running.issuer = issuer.server
            assert [(await call(both[n % 2])).status_code for n in range(4)] == [200] * 4
            redis.kill()
            alone = [(await call(both[n % 2])).status_code for n in range(12)]
            assert set(alone) == {200, 429}, "never open, never closed"
            assert alone.count(200) <= 6, "8 less the 2 at least that each knew of, half for each"
            redis.start()
            async with asyncio.timeout(20):
                while (await call(both[0])).status_code == 200:
                    pass


def test_what_is_off_is_no_part_of_the_stack(tmp_path: Path) -> None:
    from mcp_middleware.gateway.app import create_app

    def members(**changes: Any) -> set[str]:
        url = {"files": {"url": "http://127.0.0.1:9/mcp"}}
        issuer, origin = "http://127.0.0.1:9", "http://127.0.0.1:8080"
        written = sections(url, origin=origin, issuer=issuer, trail=tmp_path / "a.db", audit=None, **changes)
        app: Any = create_app(from_mapping(written))._generation.route("/files/mcp")
        return {type(member).__name__ for member in app._members}

    limiter, guard = "RateLimitMiddleware", "RequestGuardMiddleware"
    rate = {"requests": "1/second"}
    assert not {limiter, guard} & members(limits=None)
    assert not {limiter, guard} & members(limits=rate | {"mode": "off"}, prices=PRICES)
    assert {limiter, guard} & members(limits=None, prices=PRICES) == {limiter}
    assert {limiter, guard} <= members(limits=rate, guard={"addresses": "1/second"})
