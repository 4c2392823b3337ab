"""Hostile servers behind the gateway: what one of them sends costs its own callers an answer, nobody else anything."""

import asyncio
import itertools
import json
import socket
from pathlib import Path
from typing import cast

import httpx2
import pytest

from mcp_middleware.errors import UnknownOutcomeError
from mcp_middleware.exchange import Exchange, Receive, Scope, Send
from mcp_middleware.member import Bounds, Member
from mcp_middleware.server_message import ServerMessage
from mcp_middleware.types import Era
from tests.support import (
    Turns,
    answer_of,
    each_era,
    headers_for,
    listener,
    message,
    messages_of,
    origin_of,
    post,
    serve,
    until,
)

from .forwarding import CALL, RESULT, Caller, gateway, raw_server
from .gateways import gateway as whole_gateway


class Narrow(Member):
    """Does nothing, within bounds of its own."""

    stage = "limiter"


JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
CHUNKED = JSON + b"transfer-encoding: chunked\r\n\r\n"
LENGTH = b"content-length: %d\r\n\r\n" % len(RESULT)


async def test_case_38_a_trailer_is_no_header() -> None:
    async def trail(caller: Caller) -> None:
        trailers = b"mcp-session-id: theirs\r\nx-trailer: injected\r\ncontent-type: text/html\r\n"
        await caller.send(CHUNKED + b"%x\r\n%b\r\n0\r\n" % (len(RESULT), RESULT) + trailers + b"\r\n")

    async with raw_server(trail) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "tools/call", CALL)
        assert response.content == RESULT
        assert "x-trailer" not in response.headers
        assert response.headers.get_list("content-type") == ["application/json"]
        assert (await post(http, gate.url, "tools/call", CALL)).content == RESULT
        assert server.connections == 1


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"%x\r\n%b\r\n0\r\n" % (len(RESULT), RESULT), b"x-more: " + b"x" * 1000 + b"\r\n"),
        (b"%x\r\n%b\r\n0\r\nx-more: " % (len(RESULT), RESULT), b"x" * 1000),
        (b"5;extension=", b"x" * 1000),
    ],
    ids=["many trailers", "one trailer", "a chunk extension"],
)
async def test_case_39_framing_without_an_end_is_cut_off(begin: bytes, more: bytes) -> None:
    sent = 0

    async def flood(caller: Caller) -> None:
        nonlocal sent
        await caller.send(CHUNKED + begin)
        while True:
            await caller.send(more)
            sent += len(more)

    async with raw_server(flood) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "tools/call", CALL)
        assert response.status_code == 502
        assert sent < 16 * 1024 * 1024  # what fits into sockets


@each_era
async def test_case_37_nobody_reads_on_after_an_event_that_is_too_large(era: Era) -> None:
    gone = asyncio.Event()

    async def flood(caller: Caller) -> None:
        await caller.start_stream()
        try:
            while True:
                await caller.send_chunk(b"data: " + b"x" * 60_000)
        finally:
            gone.set()

    async with (
        raw_server(flood) as server,
        gateway(
            server.origin,
            first_byte=3600,
            around=lambda app: Narrow(app, bounds=Bounds(max_answer_bytes=100_000)),
        ) as gate,
        httpx2.AsyncClient() as http,
    ):
        response = await post(http, gate.url, "tools/call", CALL, era=era)
        assert answer_of(response)["error"]["message"] == "the server's answer is too large"
        async with asyncio.timeout(20):
            await gone.wait()
        assert not gate.client._busy
        assert isinstance((await gate.seen.get()).failed, UnknownOutcomeError), "it may have acted"


async def test_case_31_a_flood_of_small_events_leaves_others_their_turn() -> None:
    others = Turns()

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
            )
            events = b'data: {"jsonrpc":"2.0","method":"notifications/message"}\n\n' * 20_000
            with others:
                await send({"type": "http.response.body", "body": events, "more_body": True})
            await send({"type": "http.response.body", "body": b"data: " + RESULT + b"\n\n", "more_body": False})

    async with serve(Narrow(flood)) as origin, httpx2.AsyncClient() as http:
        response = await post(http, origin + "/mcp", "tools/call", CALL)
        assert len(messages_of(response)) == 20_001
        assert others.taken > 11


async def test_a_caller_who_reads_late_loses_nothing_and_makes_nobody_hold_it() -> None:
    event = b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{"data":"' + b"x" * 10_000 + b'"}}\n\n'
    sent = 0

    async def talk(caller: Caller) -> None:
        nonlocal sent
        await caller.start_stream()
        for _ in range(3_000):
            await caller.send_chunk(event)
            sent += 1
        await caller.send_chunk(b"data: " + RESULT + b"\n\n")
        await caller.send(b"0\r\n\r\n")

    async with raw_server(talk) as server, gateway(server.origin, stream_idle=0.3) as gate:
        host, port = gate.origin.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = message("tools/call", CALL)
        content = json.dumps(body).encode()
        lines = [f"{name}: {value}" for name, value in headers_for(body).items()]
        head = ["POST /mcp HTTP/1.1", f"host: {host}:{port}", *lines, f"content-length: {len(content)}", "", ""]
        writer.write("\r\n".join(head).encode() + content)
        # Six ticks are longer than the server may be silent.
        await until(lambda: any(connection.paused and connection.ticks > 6 for connection in gate.client._busy))
        assert sent < 3_000
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            piece = await reader.read(65536)
            assert piece
            received = received[-1000:] + piece
        assert RESULT in received
        writer.close()


async def test_case_39_the_answers_to_a_batch_are_not_held_beyond_a_bound() -> None:
    async def say(caller: Caller) -> None:
        text = json.dumps("x" * 1_000_000).encode()
        result = b'{"content":[{"type":"text","text":' + text + b"}]}"
        await caller.send_json(b'{"jsonrpc":"2.0","id":%d,"result":' % json.loads(caller.body)["id"] + result + b"}")

    async with raw_server(say) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        for count, media in ((3, "application/json"), (8, "text/event-stream")):
            batch = [message("tools/call", CALL, id=number, era="legacy") for number in range(count)]
            headers = headers_for(batch[0], era="legacy", version="2025-03-26")
            response = await http.post(gate.url, content=json.dumps(batch), headers=headers)
            assert response.headers["content-type"] == media
            answers = response.json() if media == "application/json" else messages_of(response)
            assert [answer["id"] for answer in answers] == list(range(count))


class Strict(Member):
    """Lets nothing pass that cannot be read, and sees what can."""

    stage = "authorization"

    async def on_request(self, exchange: Exchange) -> None:
        exchange.strict = True

    def on_response_message(self, exchange: Exchange, message: ServerMessage) -> ServerMessage:
        return message.with_result({"tools": []})


LISTED = b'{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"hidden"}]}}'


@pytest.mark.parametrize(
    ("status", "media", "body", "passes"),
    [
        (b"200 OK", b"text/plain", LISTED, False),
        (b"400 Bad Request", b"text/plain", LISTED, False),
        (b"404 Not Found", b"", LISTED, False),
        (b"200 OK", b"text/event-stream", b"event: other\ndata: [" + LISTED + b"]\n\n", False),
        (b"200 OK", b"text/event-stream", b"event: other\ndata: " + LISTED + b"\n\n", False),
        (b"421 Misdirected Request", b"text/plain", b"hidden away", True),
    ],
)
async def test_case_16_no_label_carries_a_list_past_who_filters_it(
    status: bytes, media: bytes, body: bytes, passes: bool
) -> None:
    async def say(caller: Caller) -> None:
        line = b"content-type: " + media + b"\r\n" if media else b""
        await caller.send(b"HTTP/1.1 " + status + b"\r\n" + line + b"content-length: %d\r\n\r\n" % len(body) + body)

    async with raw_server(say) as server, gateway(server.origin, around=Strict) as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "tools/list", {})
        assert ("hidden" in response.text) is passes


@pytest.mark.parametrize("media", ["application/json", "text/event-stream"])
async def test_case_14_an_answer_that_is_no_utf8_is_read_by_nobody(media: str, tmp_path: Path) -> None:
    """It goes on as it is: no member raises over a part that it reads later, and the trail says that nobody knows."""
    answer = b'{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"\xeb"}]}}'

    async def say(caller: Caller) -> None:
        if caller.number > 1:
            await caller.send_json(RESULT)
        elif media == "application/json":
            await caller.send_json(answer)
        else:
            await caller.start_stream()
            await caller.send_chunk(b"data: " + answer + b"\n\n")
            await caller.send(b"0\r\n\r\n")

    async with raw_server(say) as server, whole_gateway(tmp_path, {"files": f"{server.origin}/mcp"}) as running:
        response = await post(running.http, running.url(), "tools/call", CALL, token=running.token())
        assert (response.status_code, answer in response.content) == (200, True)
        assert (await post(running.http, running.url(), "tools/call", CALL, token=running.token())).content == RESULT
    assert [record.outcome for record in running.records()] == ["unknown", "ok"]


async def test_chunks_of_one_byte_are_no_flood() -> None:
    async def crumble(caller: Caller) -> None:
        body = RESULT + b" " * 70_000
        for start in range(0, len(body), 1000):
            await caller.send(
                (CHUNKED if not start else b"")
                + b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body[start : start + 1000])
            )
        await caller.send(b"0\r\n\r\n")

    async with raw_server(crumble) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        assert answer_of(await post(http, gate.url, "tools/call", CALL))["result"] == {
            "content": [],
            "resultType": "complete",
        }


@pytest.mark.parametrize("head", [b"x-more: y\r\n", b"\r\nHTTP/1.1 102 Processing\r\n"], ids=["headers", "interim"])
async def test_case_40_a_head_that_does_not_end_is_504_in_time(head: bytes) -> None:
    async def dribble(caller: Caller) -> None:
        await caller.send(b"HTTP/1.1 102 Processing\r\n")
        for _ in itertools.count():
            await caller.send(head)
            await asyncio.sleep(0.3)

    async with (
        raw_server(dribble) as server,
        gateway(server.origin, first_byte=0.5) as gate,
        httpx2.AsyncClient() as http,
    ):
        assert (await post(http, gate.url, "tools/call", CALL)).status_code == 504


@pytest.mark.parametrize(
    "answer",
    [
        JSON.replace(b"200", b"999") + LENGTH + RESULT,
        JSON.replace(b"200", b"600") + LENGTH + RESULT,
        JSON.replace(b"200", b"000") + LENGTH + RESULT,
        JSON + b"transfer-encoding: gzip\r\n\r\n" + RESULT,
        JSON + b"transfer-encoding: chunked, gzip\r\n\r\n" + RESULT,
        JSON + b"transfer-encoding: xchunked\r\n\r\n" + RESULT,
        JSON + b"transfer-encoding: chunked\r\n" + LENGTH + RESULT,
        JSON + b"content-length: 3\r\n" + LENGTH + RESULT,
        JSON + b"x-folded: one\r\n set-cookie: two\r\n" + LENGTH + RESULT,
        JSON + b"x-bare: one\rset-cookie: two\r\n" + LENGTH + RESULT,
    ],
)
async def test_what_is_no_answer_of_http_is_502(answer: bytes) -> None:
    async def say(caller: Caller) -> None:
        if caller.number == 1:
            await caller.send(answer)
            caller.close()
        else:
            await caller.send_json(RESULT)

    async with raw_server(say) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "tools/call", CALL)
        assert response.status_code == 502
        assert answer_of(response)["id"] == 1
        assert "callback" not in response.text
        assert (await post(http, gate.url, "tools/call", CALL)).content == RESULT


async def test_an_answer_before_the_request_was_taken_ends_the_connection() -> None:
    """What is left of a request would stand before the next one, of somebody else."""
    connections: list[asyncio.StreamWriter] = []

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        cast(asyncio.Transport, writer.transport).pause_reading()
        writer.write(JSON + LENGTH + RESULT)

    bound = listener()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    server = await asyncio.start_server(hasty, sock=bound, limit=1024)
    async with server, gateway(origin_of(bound)) as gate, httpx2.AsyncClient() as http:
        for argument in ("x" * 3_900_000, "x"):
            call = {"name": "echo", "arguments": {"text": argument}}
            assert (await post(http, gate.url, "tools/call", call)).content == RESULT
        assert len(connections) == 2
        for writer in connections:
            writer.close()


@pytest.mark.parametrize("media", [b"text/html", b"text/plain; charset=utf-8", b"", b"text/event-stream"])
async def test_case_40_what_a_failed_server_shows_stays_there(media: bytes) -> None:
    page = b"Traceback: /srv/app.py at 10.0.0.7, password=hunter2"

    async def fail(caller: Caller) -> None:
        line = b"content-type: " + media + b"\r\n" if media else b""
        length = b"content-length: %d\r\n\r\n" % len(page)
        await caller.send(b"HTTP/1.1 500 Internal Server Error\r\n" + line + length + page)

    async with raw_server(fail) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "tools/call", CALL)
        assert response.status_code == 500
        assert answer_of(response)["error"]["message"] == "the server failed"
        assert "hunter2" not in response.text


@pytest.mark.parametrize("media", [b"text/plain", b"application/vnd.other+json", b""])
async def test_case_40_any_answer_that_breaks_off_is_502(media: bytes) -> None:
    async def break_off(caller: Caller) -> None:
        line = b"content-type: " + media + b"\r\n" if media else b""
        await caller.send(b"HTTP/1.1 200 OK\r\n" + line + b"content-length: 5000\r\n\r\n" + RESULT)
        caller.close()

    async with raw_server(break_off) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        for method in ("tools/call", "tools/list"):
            response = await post(http, gate.url, method, CALL if method == "tools/call" else {})
            assert response.status_code == 502
            assert "error" in answer_of(response)


async def test_case_14_two_content_types_are_not_passed_on() -> None:
    async def say(caller: Caller) -> None:
        await caller.send_json(RESULT, headers=b"content-type: text/event-stream\r\n")

    async with raw_server(say) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        assert (await post(http, gate.url, "tools/call", CALL)).status_code == 502


async def test_case_38_a_server_gives_no_orders_to_proxies_in_front() -> None:
    orders = ("x-accel-redirect", "x-sendfile", "x-lighttpd-send-file", "x-litespeed-location", "x-reproxy-url")

    async def order(caller: Caller) -> None:
        lines = "".join(f"{name}: /secret\r\n" for name in orders) + "x-accel-buffering: no\r\n"
        await caller.send_json(RESULT, headers=lines.encode())

    async with raw_server(order) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "tools/call", CALL)
        assert not set(orders) & set(response.headers)
        assert response.headers["x-accel-buffering"] == "no"


async def test_case_8_no_invented_identity_and_no_second_spelling_of_mcp_headers_reaches_a_server() -> None:
    invented = [
        "X-User", "X_User", "X-User-Id", "Remote_User", "X-Forwarded_User", "X-Remote-User", "X-Email", "X-Roles",
        "X-Goog-Authenticated-User-Email", "X-Amzn-Oidc-Data", "X-Ms-Client-Principal", "Cf-Access-Jwt-Assertion",
        "X-Consumer-Username", "Tailscale-User-Login", "X-Webauth-User", "Client-Cert", "Ssl-Client-S-Dn",
        "X-Ssl-Client-Cert", "True-Client-Ip", "X-Client-Ip", "X-Rewrite-Url", "X-Original-Url",
        "X-Http-Method-Override", "Mcp_Session_Id", "Mcp_Method", "Mcp-Protocol_Version", "Mcp_Param-Secret",
    ]  # fmt: skip

    async def say(caller: Caller) -> None:
        await caller.send_json(RESULT)

    async with (
        raw_server(say) as server,
        gateway(server.origin, forward_headers=("x-custom_thing",)) as gate,
        httpx2.AsyncClient() as http,
    ):
        mine = dict.fromkeys(invented, "root") | {"Mcp-Param-Unknown": "kept", "X-Custom_Thing": "kept"}
        assert (await post(http, gate.url, "tools/call", CALL, headers=mine)).content == RESULT
        head = server.requests[0].head.lower()
        assert b"root" not in head
        assert b"mcp-param-unknown: kept" in head
        assert b"x-custom_thing: kept" in head
