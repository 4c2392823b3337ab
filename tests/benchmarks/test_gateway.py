"""The benchmark of the gateway asks what it says, takes no failure for a figure, and judges its goals right."""

import asyncio
import json
import socket
from array import array
from typing import Any

import pytest

from benchmarks.cases import Figures
from benchmarks.gateway import picture, report, rounds, wrk
from benchmarks.gateway.footprint import Footprint
from benchmarks.gateway.rounds import Case
from benchmarks.gateway.servers import behind
from benchmarks.gateway.wire import Endpoint
from benchmarks.load import ask
from benchmarks.wire import check_echo
from mcp_middleware.gateway.app import create_app
from mcp_middleware.gateway.config import from_mapping
from tests.support import listener, serve

MICRO = 1e-6


def figures(p50: float, rate: float, p99: float | None = None) -> Figures:
    made = Figures(p50s=[p50] * 3, cpus=[p50] * 3, rates=[rate] * 3)
    made.latencies = array("d", [p50] * 97 + [p50 if p99 is None else p99] * 3)
    return made


def measured_cases(gateway: Figures, gateway_of_many: Figures) -> dict[Case, Figures]:
    return {
        Case("direct", 1): figures(100 * MICRO, 10_000),
        Case("nginx", 1): figures(150 * MICRO, 6_000),
        Case("gateway", 1): gateway,
        Case("forwarder", 16, apart=True): figures(1000 * MICRO, 10_000),
        Case("gateway", 16, apart=True): gateway_of_many,
    }


def document(cases: dict[Case, Figures], footprint: Footprint) -> dict[str, Any]:
    return report.document(cases, {}, footprint, [], skipped={"x": "of y"}, versions={}, seconds=1.0)


GOOD = Footprint(ready=0.9, rest=79_000_000, nothing_ready=0.5, nothing_rest=1, stream=63 * 1024)
BAD = Footprint(ready=1.1, rest=81_000_000, nothing_ready=0.5, nothing_rest=1, stream=65 * 1024)


def test_goals_that_are_met_and_missed() -> None:
    met = document(measured_cases(figures(340 * MICRO, 3_000), figures(2000 * MICRO, 6_500)), GOOD)
    missed = document(
        measured_cases(figures(360 * MICRO, 3_000, 2000 * MICRO), figures(4000 * MICRO, 4_900, 21_000 * MICRO)), BAD
    )
    assert [goal["met"] for goal in met["goals"]] == [True] * 8
    assert [goal["met"] for goal in missed["goals"]] == [False] * 8
    assert [goal["value"] for goal in met["goals"]][:3] == [4.8, 6500, 0.65]
    assert "Not measured: x, because of y." in report.table(met)
    assert "**no**" in report.table(missed)
    assert "our gateway, everything on" in picture.draw(met)


def test_what_wrk_is_told_and_tells() -> None:
    request = Endpoint(8080, "/echo/mcp", token="t").call("s", 'a "quoted" text', 1)
    written = wrk.script(request)
    assert 'wrk.method = "POST"' in written
    assert 'wrk.headers["authorization"] = "Bearer t"' in written
    assert "content-length" not in written
    assert "host" not in written
    parts = next(line for line in written.splitlines() if line.startswith("local "))
    before, after, _ = json.loads(f"[{parts.partition(' = ')[2]}]")
    assert json.loads(f'{before}"id":7,{after}')["params"]["arguments"]["text"] == 'a "quoted" text'
    assert wrk.read("Running\nseen 250 1000 5000 1000000 0\n") == wrk.Seen(250 * MICRO, 0.001, 5000.0)


@pytest.mark.parametrize("output", ["", "seen 250 1000 5000 1000000 1\n", "seen 0 0 0 1000000 0\n"])
def test_a_failed_run_of_wrk_is_none(output: str) -> None:
    with pytest.raises(RuntimeError):
        wrk.read(output)


async def test_every_request_is_answered_through_the_gateway() -> None:
    bound = listener()
    port: int = bound.getsockname()[1]
    async with serve(behind) as origin:
        servers = {"echo": {"url": f"{origin}/mcp"}}
        config = from_mapping({"listen": f"127.0.0.1:{port}", "servers": servers, "auth": "off"})
        async with serve(create_app(config), bound=bound):
            await asyncio.to_thread(ask_everything, Endpoint(port, "/echo/mcp"))


def ask_everything(endpoint: Endpoint) -> None:
    opened, _ = ask(endpoint.port, endpoint.initialize())
    assert opened.status == 200
    session = opened.header(b"mcp-session-id")
    noted, _ = ask(endpoint.port, endpoint.initialized(session))
    assert noted.status == 202
    _, raw = ask(endpoint.port, endpoint.call(session, rounds.TEXT, 1))
    check_echo(raw, rounds.TEXT)
    _, raw = ask(endpoint.port, endpoint.post({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}, session))
    assert b'"name":"echo"' in raw
    assert first_of_stream(endpoint, session).startswith(b"HTTP/1.1 200")


def first_of_stream(endpoint: Endpoint, session: str | None) -> bytes:
    received = b""
    with socket.create_connection(("127.0.0.1", endpoint.port), 10) as connection:
        connection.sendall(endpoint.listen(session))
        while b": here" not in received:
            received += connection.recv(65536) or b": here"
    return received
