"""Servers that die, hang, lie and close at the wrong moment; callers that leave."""

import asyncio
import json
import re
from typing import Any

import httpx2
import pytest

from mcp_middleware.errors import UNAVAILABLE
from mcp_middleware.gateway import client as wire
from mcp_middleware.gateway.client import BrokenAnswerError, NoAnswerError, SlowAnswerError
from tests.gateway.forwarding import (
    CALL,
    INITIALIZED,
    RESULT,
    Caller,
    Gateway,
    answer,
    dead_origin,
    gateway,
    raw_server,
)
from tests.support import answer_of, headers_for, initialize, listener, message, messages_of, origin_of, post, until


async def legacy(caller: Caller) -> None:
    """A server with sessions."""
    if b'"initialize"' in caller.body:
        await caller.send_json(INITIALIZED, headers=b"mcp-session-id: s1\r\n")
    elif b"notifications/" in caller.body:
        await caller.send(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
    else:
        await caller.send_json(RESULT)


async def open_stream(gate: Gateway, method: str, body: Any, headers: dict[str, str]) -> asyncio.StreamWriter:
    """A request on a connection that the test can cut."""
    content = json.dumps(body).encode() if body is not None else b""
    lines = [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"content-length: {len(content)}")
    host, port = gate.origin.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write("\r\n".join([f"{method} /mcp HTTP/1.1", "host: x", *lines]).encode() + b"\r\n\r\n" + content)
    await writer.drain()
    return writer


async def cut(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


# Down


async def test_case_40_down_502_then_the_breaker_opens_and_a_probe_closes_it() -> None:
    bound = listener()
    origin = origin_of(bound)
    async with httpx2.AsyncClient() as http, gateway(origin, probing=False) as gate:
        responses = [await post(http, gate.url, "tools/call", CALL, id=9) for _ in range(4)]
        assert [response.status_code for response in responses] == [502, 502, 502, 503]
        assert all(answer_of(response)["id"] == 9 for response in responses)
        assert all(answer_of(response)["error"]["code"] == UNAVAILABLE for response in responses)
        assert int(responses[-1].headers["retry-after"]) >= 1
        assert answer_of(responses[-1])["error"]["data"]["retryAfterMs"] >= 1000
        for _ in responses:
            seen = await gate.seen.get()
            assert seen.rejection is not None, "nothing was sent, so it counts as refused"
            assert seen.failed is None
        assert not gate.upstream.snapshot()["usable"]
        async with raw_server(answer, bound) as server:
            assert await gate.upstream.probe_all() == {server.origin.removeprefix("http://") + "/mcp": None}
            while not gate.upstream.snapshot()["usable"]:
                await asyncio.sleep(0.05)
                await gate.upstream.probe_all()
            assert (await post(http, gate.url, "tools/call", CALL)).status_code == 200


async def test_case_40_what_could_not_be_sent_goes_to_another_instance() -> None:
    async with (
        raw_server(legacy) as server,
        gateway(dead_origin(), server.origin) as gate,
        httpx2.AsyncClient() as http,
    ):
        for _ in range(6):
            assert (await post(http, gate.url, "tools/call", CALL)).status_code == 200
        while not gate.seen.empty():
            assert gate.seen.get_nowait().instance == server.origin.removeprefix("http://") + "/mcp"
        for _ in range(4):
            session = await initialize(http, gate.url)
            assert (await post(http, gate.url, "tools/call", CALL, era="legacy", session=session)).status_code == 200


async def test_case_40_a_session_whose_instance_is_gone_is_unknown_so_that_the_client_starts_anew() -> None:
    async with raw_server(legacy) as other, httpx2.AsyncClient() as http:
        bound = listener()
        async with gateway(other.origin, origin_of(bound)) as gate:
            async with raw_server(legacy, bound):
                sessions = [await initialize(http, gate.url) for _ in range(2)]
            statuses = []
            for session in sessions:
                response = await post(http, gate.url, "tools/call", CALL, id=5, era="legacy", session=session)
                statuses.append(response.status_code)
                assert answer_of(response)["id"] == (5 if response.status_code == 404 else 1)
            assert sorted(statuses) == [200, 404]
            session = await initialize(http, gate.url)
            assert (await post(http, gate.url, "tools/call", CALL, era="legacy", session=session)).status_code == 200


async def test_a_name_that_does_not_resolve_is_502_and_no_404() -> None:
    async with gateway("http://nowhere.invalid") as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "tools/call", CALL)
        assert response.status_code == 502


@pytest.mark.parametrize("status", [b"502 Bad Gateway", b"503 Service Unavailable", b"504 Gateway Timeout"])
async def test_an_error_page_of_a_proxy_becomes_an_error_with_the_requests_id(status: bytes) -> None:
    async def page(caller: Caller) -> None:
        text = b"<html>gone</html>"
        head = b"\r\ncontent-type: text/html\r\nretry-after: 7\r\ncontent-length: %d\r\n\r\n" % len(text)
        await caller.send(b"HTTP/1.1 " + status + head + text)

    async with raw_server(page) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "tools/call", CALL, id="a")
        assert response.status_code == int(status[:3])
        assert response.headers["retry-after"] == "7"
        assert answer_of(response)["id"] == "a"
        for _ in range(2):
            await post(http, gate.url, "tools/call", CALL)
        assert not gate.upstream.snapshot()["usable"]


# Maybe sent


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
    ],
)
async def test_case_40_no_answer_is_502_and_nothing_is_sent_twice(reply: bytes) -> None:
    async def die(caller: Caller) -> None:
        await caller.send(reply)
        caller.close()

    async with (
        raw_server(die) as one,
        raw_server(die) as two,
        gateway(one.origin, two.origin) as gate,
        httpx2.AsyncClient() as http,
    ):
        response = await post(http, gate.url, "tools/call", CALL, id=3)
        assert response.status_code == 502
        assert answer_of(response)["id"] == 3
        assert len(one.requests) + len(two.requests) == 1
        seen = await gate.seen.get()
        assert isinstance(seen.failed, NoAnswerError)
        assert seen.rejection is None, "the server may have acted"


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_case_40_a_kept_connection_that_closes_as_we_send_is_not_used_twice(method: str) -> None:
    async def once(caller: Caller) -> None:
        if caller.number == 1:
            await caller.send_json(RESULT)
        else:
            caller.close()  # it has read the request, and the connection was used before

    async with raw_server(once) as server, gateway(server.origin, members=False) as gate, httpx2.AsyncClient() as http:
        assert (await post(http, gate.url, "tools/call", CALL)).status_code == 200
        response = await http.request(method, gate.url, content=b"{}" if method == "POST" else b"")
        assert response.status_code == 502
        assert len(server.requests) == 2
        assert server.connections == 1


async def test_a_connection_the_server_closed_is_replaced() -> None:
    async def close_after(caller: Caller) -> None:
        await caller.send_json(RESULT)
        caller.close()

    async with raw_server(close_after) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        for number in range(3):
            assert (await post(http, gate.url, "tools/call", CALL)).status_code == 200
            await until(lambda: not gate.client._idle)  # the close has arrived
            assert server.connections == number + 1


async def test_case_40_slow_is_504_and_only_a_probe_may_eject() -> None:
    async def hang(caller: Caller) -> None:
        if caller.head.startswith(b"OPTIONS"):
            await caller.send(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n")
        else:
            await caller.gone()

    async with (
        raw_server(hang) as server,
        gateway(server.origin, first_byte=0.1, probing=True) as gate,
        httpx2.AsyncClient() as http,
    ):
        for _ in range(4):  # more than would eject, were these failures
            response = await post(http, gate.url, "tools/call", CALL, id=4)
            assert response.status_code == 504
            assert answer_of(response)["id"] == 4
            assert isinstance((await gate.seen.get()).failed, SlowAnswerError)
        assert gate.upstream.snapshot()["usable"]
        assert any(caller.head.startswith(b"OPTIONS /mcp") for caller in server.requests)


async def test_a_server_that_hangs_altogether_is_ejected_by_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    from mcp_middleware.gateway import upstream

    monkeypatch.setattr(upstream, "PROBE_TIMEOUT", 0.2)

    async def hang(caller: Caller) -> None:
        await caller.gone()

    async with (
        raw_server(hang) as server,
        gateway(server.origin, first_byte=0.1, probing=True) as gate,
        httpx2.AsyncClient() as http,
    ):
        assert (await post(http, gate.url, "tools/call", CALL)).status_code == 504
        await until(lambda: not gate.upstream.snapshot()["usable"])


async def test_case_40_a_json_answer_that_breaks_off_is_502() -> None:
    async def die(caller: Caller) -> None:
        await caller.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n" + RESULT)
        caller.close()

    async with raw_server(die) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "tools/call", CALL, id=2)
        assert response.status_code == 502
        assert answer_of(response)["id"] == 2
        assert isinstance((await gate.seen.get()).failed, BrokenAnswerError)
        assert len(server.requests) == 1


@pytest.mark.parametrize("partial", [b"", b'event: message\ndata: {"jsonrpc"'])
async def test_case_40_a_stream_that_dies_ends_with_one_error_event(partial: bytes) -> None:
    notification = b'data: {"jsonrpc":"2.0","method":"notifications/progress","params":{}}\n\n'

    async def die(caller: Caller) -> None:
        await caller.start_stream()
        await caller.send_chunk(notification)
        if partial:
            await caller.send_chunk(partial)
        caller.close()

    async with (
        raw_server(die) as one,
        raw_server(die) as two,
        gateway(one.origin, two.origin) as gate,
        httpx2.AsyncClient() as http,
    ):
        response = await post(http, gate.url, "tools/call", CALL, id="s")
        assert response.status_code == 200
        told, error = messages_of(response)
        assert told["method"] == "notifications/progress"
        assert error["id"] == "s"
        assert "error" in error
        seen = await gate.seen.get()
        assert isinstance(seen.failed, BrokenAnswerError)
        assert len(one.requests) + len(two.requests) == 1


async def test_a_silent_stream_ends_at_its_idle_limit() -> None:
    async def silent(caller: Caller) -> None:
        await caller.start_stream()
        await caller.send_chunk(b": hello\n\n")
        await caller.gone()

    async with (
        raw_server(silent) as server,
        gateway(server.origin, stream_idle=0.1) as gate,
        httpx2.AsyncClient() as http,
    ):
        response = await post(http, gate.url, "tools/call", CALL)
        assert "error" in answer_of(response)
        assert isinstance((await gate.seen.get()).failed, BrokenAnswerError)


async def test_headers_beyond_the_bound_are_502() -> None:
    async def shout(caller: Caller) -> None:
        await caller.send_json(RESULT, headers=b"x-large: " + b"x" * (wire.MAX_HEAD_BYTES + 1) + b"\r\n")

    async def never_end(caller: Caller) -> None:
        await caller.send(b"HTTP/1.1 200 OK\r\n")
        while not caller.writer.is_closing():
            await caller.send(b"x-more: " + b"x" * 1000 + b"\r\n")

    for handler in (shout, never_end):
        async with raw_server(handler) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
            assert (await post(http, gate.url, "tools/call", CALL)).status_code == 502


async def test_a_second_answer_to_one_request_reaches_nobody() -> None:
    poison = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n{"x": 1}'

    async def twice(caller: Caller) -> None:
        length = b"content-length: %d\r\n\r\n" % len(RESULT)
        await caller.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + length + RESULT + poison)

    async with raw_server(twice) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        for _ in range(3):
            response = await post(http, gate.url, "tools/call", CALL)
            assert response.status_code == 502 or response.content == RESULT


# The caller leaves


@pytest.mark.parametrize("streams", [False, True])
async def test_case_41_a_modern_caller_who_leaves_cancels_the_call(streams: bool) -> None:
    left = asyncio.Event()

    async def wait(caller: Caller) -> None:
        if streams:
            await caller.start_stream()
            await caller.send_chunk(b": hello\n\n")
        await caller.gone()
        left.set()

    async with raw_server(wait) as server, gateway(server.origin) as gate:
        body = message("tools/call", CALL)
        writer = await open_stream(gate, "POST", body, headers_for(body))
        await server.arrived.get()
        await cut(writer)
        await left.wait()
        assert (await gate.seen.get()).disconnected


async def test_case_41_a_legacy_call_goes_on_without_its_caller() -> None:
    go_on = asyncio.Event()

    async def slow(caller: Caller) -> None:
        if b"tools/call" in caller.body:
            await go_on.wait()
        await legacy(caller)

    async with raw_server(slow) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        session = await initialize(http, gate.url)
        body = message("tools/call", CALL, era="legacy")
        writer = await open_stream(gate, "POST", body, headers_for(body, era="legacy", session=session))
        while (await server.arrived.get()).number < 3:
            pass
        await cut(writer)
        while (await gate.seen.get()).status != 202:
            pass
        await until(lambda: any(connection.ticks > 2 for connection in gate.client._busy))  # it has been noticed
        go_on.set()
        seen = await gate.seen.get()
        assert seen.failed is None
        assert seen.answer is not None
        assert seen.answer.id == 1


async def test_case_41_a_legacy_call_does_not_go_on_for_ever() -> None:
    left = asyncio.Event()

    async def drip(caller: Caller) -> None:
        await caller.start_stream()
        try:
            while not caller.writer.is_closing():
                await caller.send_chunk(b": still here\n\n")
                await asyncio.sleep(0.02)
        finally:
            left.set()

    async with raw_server(drip) as server, gateway(server.origin, first_byte=0.5) as gate:
        body = message("tools/call", CALL, era="legacy")
        writer = await open_stream(gate, "POST", body, headers_for(body, era="legacy"))
        await server.arrived.get()
        await cut(writer)
        await left.wait()


async def test_case_41_a_get_stream_ends_with_its_caller_at_once() -> None:
    left = asyncio.Event()

    async def stream(caller: Caller) -> None:
        if caller.head.startswith(b"GET"):
            await caller.start_stream()
            await caller.gone()
            left.set()
        else:
            await legacy(caller)

    async with raw_server(stream) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        session = await initialize(http, gate.url)
        headers = headers_for(era="legacy", session=session) | {"last-event-id": "7"}
        writer = await open_stream(gate, "GET", None, headers)
        while not (caller := await server.arrived.get()).head.startswith(b"GET"):
            pass
        assert b"last-event-id: 7" in caller.head
        await cut(writer)
        await left.wait()


# The gateway stops


async def test_case_43_listen_streams_end_with_their_result_and_get_streams_just_end() -> None:
    acknowledged = b'data: {"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{}}\n\n'

    async def stream(caller: Caller) -> None:
        await caller.start_stream()
        await caller.send_chunk(acknowledged)
        await caller.gone()

    async with raw_server(stream) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        body = message("subscriptions/listen", {"notifications": {}}, id="sub")
        request = http.build_request("POST", gate.url, content=json.dumps(body), headers=headers_for(body))
        listening = await http.send(request, stream=True)
        getting = await http.send(http.build_request("GET", gate.url, headers=headers_for(era="legacy")), stream=True)
        listened, got = listening.aiter_raw(), getting.aiter_raw()
        assert await anext(listened) == acknowledged
        assert await anext(got) == acknowledged
        gate.draining.set()
        rest = b"".join([chunk async for chunk in listened])
        result = json.loads(re.search(rb"data: (.*)\n", rest)[1])  # type: ignore[index]
        assert result["id"] == "sub"
        assert result["result"] == {
            "resultType": "complete",
            "_meta": {"io.modelcontextprotocol/subscriptionId": "sub"},
        }
        assert [chunk async for chunk in got] == []
        for _ in range(2):
            assert (await gate.seen.get()).failed is None
        refused = await http.send(request)
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "begun", [b"", b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"]
)
async def test_case_43_a_subscription_that_has_no_stream_yet_is_told_that_the_gateway_stops(begun: bytes) -> None:
    async def hang(caller: Caller) -> None:
        await caller.send(begun)
        await caller.gone()

    async with raw_server(hang) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        listening = asyncio.create_task(post(http, gate.url, "subscriptions/listen", {"notifications": {}}))
        await server.arrived.get()
        await until(lambda: bool(begun) == any(one._answer and one._answer.started for one in gate.client._busy))
        gate.draining.set()
        refused = await listening
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert (await gate.seen.get()).failed is None


async def test_case_43_calls_under_way_are_finished_while_draining() -> None:
    go_on = asyncio.Event()

    async def slow(caller: Caller) -> None:
        await go_on.wait()
        await caller.send_json(RESULT)

    async with raw_server(slow) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        call = asyncio.create_task(post(http, gate.url, "tools/call", CALL))
        await server.arrived.get()
        gate.draining.set()
        await asyncio.sleep(0)
        go_on.set()
        assert (await call).content == RESULT


async def test_no_answer_crosses_and_nothing_is_left_behind() -> None:
    async def echo(caller: Caller) -> None:
        text = json.loads(caller.body)["params"]["arguments"]["text"]
        if caller.number % 3 == 0:
            await asyncio.sleep(0.001)
        await caller.send_json(json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"text": text}}).encode())

    async with raw_server(echo) as server, gateway(server.origin) as gate:
        async with httpx2.AsyncClient(limits=httpx2.Limits(max_connections=50), timeout=30) as http:

            async def call(number: int) -> bool:
                params = {"name": "echo", "arguments": {"text": f"n{number}"}}
                return bool(
                    answer_of(await post(http, gate.url, "tools/call", params))["result"]["text"] == f"n{number}"
                )

            assert all(await asyncio.gather(*map(call, range(500))))
        assert not gate.client._busy
        assert gate.upstream.snapshot()["instances"][server.origin.removeprefix("http://") + "/mcp"]["in_flight"] == 0
