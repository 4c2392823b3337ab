"""Case 37 at the socket: what a client may take before the gateway knows what it asks for."""

import asyncio
import gc
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import cast

import pytest

from mcp_middleware.exchange import Receive, Scope, Send
from mcp_middleware.gateway import connection
from mcp_middleware.gateway.client import Endpoint, UpstreamClient, UpstreamConnection
from mcp_middleware.gateway.connection import Connections, accept
from mcp_middleware.member import Bounds, Member
from tests.support import listener, until

GOOD = b"POST /x/mcp HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"


@dataclass
class Served:
    """An application behind our connections: what it was asked, and what it waits for."""

    port: int = 0
    connections: Connections = field(default_factory=lambda: Connections(most=100, max_header_bytes=64 * 1024))
    seen: list[tuple[str, str, bytes]] = field(default_factory=list)
    headers: list[list[tuple[bytes, bytes]]] = field(default_factory=list)
    gone: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)

    def open(self) -> set[connection.Connection]:
        """Its connections."""
        return cast("set[connection.Connection]", self.connections.connections)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with what it read; ``/wait`` once it may go on, ``/early`` without reading."""
        body = b""
        more = scope["path"] != "/early"
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                self.gone += 1
                return
            body += event["body"]
            more = event["more_body"]
        self.seen.append((scope["method"], scope["path"], body))
        self.headers.append(scope["headers"])
        self.started.set()
        if scope["path"] == "/wait":
            await self.go_on.wait()
        answer = f"{scope['path']} {len(body)}".encode()
        length = str(len(answer)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": answer})


@asynccontextmanager
async def serving(
    *, wrap: Callable[[Served], Callable[[Scope, Receive, Send], Awaitable[None]]] | None = None, most: int = 100
) -> AsyncIterator[Served]:
    served = Served(connections=Connections(most=most, max_header_bytes=64 * 1024))
    bound = listener()
    served.port = bound.getsockname()[1]
    server = await accept(wrap(served) if wrap else served.app, bound, served.connections)
    try:
        yield served
    finally:
        served.go_on.set()
        server.close()
        for one in list(served.connections.connections):
            one.raw.abort()  # type: ignore[union-attr]
        await asyncio.gather(*served.connections.tasks, return_exceptions=True)


async def talk(served: Served, *parts: bytes, half_close: bool = False) -> bytes:
    """Everything that comes back until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


async def is_well(served: Served) -> bool:
    """Whether the next good request succeeds."""
    answer = await talk(served, GOOD.replace(b"Host", b"Connection: close\r\nHost"))
    return statuses(answer) == [200] and answer.endswith(b"/x/mcp 2")


@pytest.mark.parametrize(
    ("request_bytes", "status", "says"),
    [
        (b"NONSENSE /x HTTP/1.1\r\n\r\n", 501, b"method"),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501, b"CONNECT"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, b"http, not https"),
        (b"\x00\x01\x02", 400, b"not a valid"),
        (b"GET / HTTP/0.9\r\n\r\n", 505, b"HTTP/1.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, b"not a valid"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, b"8192"),
        (b"GET /" + b"a" * 300_000, 414, b"8192"),
        (b"GET noslash HTTP/1.1\r\nHost: a\r\n\r\n", 400, b"not a valid"),
        (b"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", 400, b"target"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\n\r\n", 417, b"100-continue"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", 501, b"WebSocket"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, b"chunked"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\nxx", 501, b"chunked"),
        (
            b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            b"Transfer-Encoding",
        ),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            400,
            b"Content-Length",
        ),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400, b"Content-Length"),
        (b"POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc", 400, b"Content-Length"),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400, b"not a valid"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400, b"not a valid"),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, b"not a valid"),
        (b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n", 400, b"not a valid"),
    ],
)
async def test_what_is_no_request_is_refused_and_says_why(request_bytes: bytes, status: int, says: bytes) -> None:
    async with serving() as served:
        answer = await talk(served, request_bytes)
        assert statuses(answer) == [status]
        assert b"connection: close" in answer
        _, _, body = answer.partition(b"\r\n\r\n")
        assert json.loads(body)["error"]["code"] == -32600
        assert says in body
        assert served.seen == []
        assert await is_well(served)


async def test_a_body_in_broken_chunks_ends_the_request_and_the_connection() -> None:
    async with serving() as served:
        answer = await talk(
            served, b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nzz\r\n"
        )
        assert statuses(answer) == [400]
        assert served.seen == []
        assert served.gone == 1
        assert await is_well(served)


async def test_trailers_are_no_headers() -> None:
    async with serving() as served:
        answer = await talk(
            served,
            b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"2\r\nhi\r\n0\r\nX-Forwarded-User: root\r\n\r\n",
        )
        assert statuses(answer) == [200]
        assert [name for name, _ in served.headers[0]] == [b"host", b"connection", b"transfer-encoding"]


@pytest.mark.parametrize("filler", [b"X: y\r\n" * 100_000, b"X: " + b"y" * 1_000_000], ids=["trailers", "one trailer"])
async def test_trailers_are_bounded(filler: bytes) -> None:
    async with serving() as served:
        answer = await talk(served, b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n", filler)
        assert statuses(answer) in ([400], [200])  # 200 where the last read held all of the body's end
        assert await is_well(served)


async def test_chunk_extensions_are_bounded() -> None:
    async with serving() as served:
        answer = await talk(served, b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;", b"x" * 1_000_000)
        assert statuses(answer) == [400]
        assert served.seen == []


class Refusing(Member):
    """A member that is there for its bounds."""

    stage = "audit"


@pytest.mark.parametrize(
    "flood",
    [
        b"".join(b"X-%d: %b\r\n" % (index, b"y" * 1000) for index in range(100)),
        b"".join(b"X-%d: y\r\n" % index for index in range(1000)),
        b"".join(b"X-%d: %b\r\n" % (index, b"y" * 1000) for index in range(2000)),
        b"X: " + b"y" * 100_000 + b"\r\n",
        b"X: " + b"y" * 2_000_000 + b"\r\n",
    ],
    ids=["100 KB", "many small ones", "2 MB", "one of 100 KB", "one of 2 MB"],
)
async def test_case_37_a_header_flood_is_answered_431_by_whoever_records_refusals(flood: bytes) -> None:
    async with serving(wrap=lambda served: Refusing(served.app, bounds=Bounds())) as served:
        answer = await talk(served, b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + flood + b"\r\n")
        assert statuses(answer) == [431]
        assert b"larger than 65536 bytes" in answer
        assert served.seen == []


async def test_case_37_slow_headers_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT", 0.3)
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"POST /x/mcp HTTP/1.1\r\nHost: a\r\n")
        sending = asyncio.create_task(_drip(writer, b"X-Slow: y\r\n"))
        answer = await _read_while_swept(served, reader)
        sending.cancel()
        assert statuses(answer) == [408]
        assert served.seen == []
        assert await is_well(served)
        writer.close()


async def test_case_37_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT", 0.1)
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        assert await _read_while_swept(served, reader) == b""
        writer.close()


async def test_an_idle_connection_is_closed_and_line_breaks_do_not_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection._PATIENCE, 0, 0.3)
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(GOOD)
        assert statuses(await reader.readuntil(b"/x/mcp 2")) == [200]
        sending = asyncio.create_task(_drip(writer, b"\r\n"))
        with suppress(ConnectionResetError):
            assert await _read_while_swept(served, reader) == b""
        sending.cancel()
        writer.close()


async def test_the_rest_of_a_body_nobody_wants_does_not_hold_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection._PATIENCE, 2, 0.3)
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        sending = asyncio.create_task(_drip(writer, b"x"))
        answer = await _read_while_swept(served, reader)
        sending.cancel()
        assert statuses(answer) == [200]
        writer.close()


async def test_a_client_that_reads_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_TIMEOUT", 0.2)

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while served.connections.connections:
            await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})

    async with serving(wrap=lambda _: flood) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
        writer.write(GOOD)
        await writer.drain()
        await until(lambda: bool(served.connections.tasks))
        while served.connections.connections:
            served.connections.sweep(asyncio.get_running_loop().time())
            await asyncio.sleep(0.02)
        writer.close()


async def test_the_answer_to_a_refused_upload_is_read_before_the_connection_ends() -> None:
    """Closing at once would reset the connection under a client that still sends."""
    body = b"x" * (32 * 1024 * 1024)
    async with serving(wrap=lambda served: Refusing(served.app, bounds=Bounds(max_body_bytes=1000))) as served:
        head = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
            body
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(head)
        sending = asyncio.create_task(_send_all(writer, body))
        answer = await asyncio.wait_for(reader.read(), 20)
        assert statuses(answer) == [413]
        assert b"connection: close" in answer
        sending.cancel()
        writer.close()


async def test_a_client_that_expects_100_continue_and_is_refused_loses_its_connection() -> None:
    """It may send the body or not, so nobody knows what comes next on this connection."""
    async with serving() as served:
        head = b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n"
        answer = await talk(served, head)
        assert statuses(answer) == [200]
        answer = await talk(
            served, head.replace(b"/early", b"/x").replace(b"Expect", b"Connection: close\r\nExpect"), b"0123456789"
        )
        assert statuses(answer) == [100, 200]
        assert answer.endswith(b"/x 10")


async def test_a_host_in_the_target_counts_instead_of_the_header() -> None:
    async with serving() as served:
        answer = await talk(
            served, b"GET http://Evil.example:81/p?q HTTP/1.1\r\nHost: good\r\nConnection: close\r\n\r\n"
        )
        assert statuses(answer) == [200]
        assert (b"host", b"Evil.example:81") in served.headers[0]
        assert (b"host", b"good") not in served.headers[0]
        assert served.seen[0][1] == "/p"


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving() as served:
        served.go_on.set()
        two = GOOD.replace(b"/x/mcp", b"/wait") + GOOD.replace(b"Host", b"Connection: close\r\nHost")
        answer = await talk(served, two)
        assert statuses(answer) == [200, 200]
        assert answer.index(b"/wait 2") < answer.index(b"/x/mcp 2")


async def test_too_many_pipelined_requests_end_the_connection_after_those_that_were_taken() -> None:
    async with serving() as served:
        served.go_on.set()
        answer = await talk(served, GOOD * 1000)
        assert statuses(answer) == [200] * (connection.MAX_PIPELINED + 1)
        assert await is_well(served)


async def test_nonsense_behind_a_request_does_not_break_into_its_answer() -> None:
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(GOOD.replace(b"/x/mcp", b"/wait") + b"NONSENSE\r\n\r\n")
        await served.started.wait()
        served.go_on.set()
        answer = await asyncio.wait_for(reader.read(), 20)
        assert statuses(answer) == [200]
        assert answer.endswith(b"/wait 2")
        writer.close()


async def test_a_client_that_leaves_is_noticed_by_every_request_of_its_connection() -> None:
    async def until_gone(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            served.started.set()
        served.gone += 1

    async with serving(wrap=lambda _: until_gone) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(GOOD * 2)
        await served.started.wait()
        writer.close()
        await until(lambda: served.gone > 0)


async def test_an_upgrade_nobody_follows_is_an_ordinary_request() -> None:
    """Java's HTTP client offers h2c with its first request, the body included."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nHost"
    async with serving() as served:
        closing = GOOD.replace(b"Host", b"Connection: close\r\nHost")
        answer = await talk(served, GOOD.replace(b"Host", offer) + closing)
        assert statuses(answer) == [200, 200]
        chunked = b"POST /x HTTP/1.1\r\n" + offer + b": a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
        bodiless = b"GET /x HTTP/1.1\r\n" + offer + b": a\r\n\r\n"
        for first, *rest in ([chunked + bodiless, closing], [chunked[:-9], chunked[-9:] + bodiless + closing]):
            answer = await talk(served, first, *rest)
            assert statuses(answer) == [200, 200, 200]
        assert [body for _, _, body in served.seen] == [b"hi", b"hi"] + [b"hi", b"", b"hi"] * 2


async def test_one_connection_too_many_is_told_so() -> None:
    async with serving(most=2) as served:
        open_ones = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(2)]
        await until(lambda: len(served.connections.connections) == 2)
        answer = await talk(served)
        assert statuses(answer) == [503]
        assert b"retry-after: 1" in answer
        open_ones[0][1].close()
        await until(lambda: len(served.connections.connections) == 1)
        assert await is_well(served)
        open_ones[1][1].close()


async def _drip(writer: asyncio.StreamWriter, piece: bytes) -> None:
    while True:
        writer.write(piece)
        await asyncio.sleep(0.05)


async def _send_all(writer: asyncio.StreamWriter, data: bytes) -> None:
    try:
        for start in range(0, len(data), 65536):
            writer.write(data[start : start + 65536])
            await writer.drain()
    except ConnectionError:
        pass


async def _read_while_swept(served: Served, reader: asyncio.StreamReader) -> bytes:
    reading = asyncio.ensure_future(reader.read())
    while not reading.done():
        served.connections.sweep(asyncio.get_running_loop().time())
        await asyncio.wait({reading}, timeout=0.05)
    return reading.result()


async def test_a_broken_body_behind_a_request_does_not_break_into_its_answer() -> None:
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        broken = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
        writer.write(GOOD.replace(b"/x/mcp", b"/wait") + broken)
        await served.started.wait()
        served.go_on.set()
        answer = await asyncio.wait_for(reader.read(), 20)
        assert statuses(answer) == [200]
        assert answer.endswith(b"/wait 2")
        assert len(served.seen) == 1
        writer.close()


async def test_a_slow_head_behind_a_request_is_judged_after_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT", 0.05)
    monkeypatch.setitem(connection._PATIENCE, 1, 0.05)
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(GOOD.replace(b"/x/mcp", b"/wait") + b"POST /x HT")
        await served.started.wait()
        (one,) = served.open()
        assert one.deadline < math.inf
        served.connections.sweep(one.deadline + 1)
        assert one.deadline == math.inf
        served.go_on.set()
        assert statuses(await _read_while_swept(served, reader)) == [200, 408]
        writer.close()


async def test_a_client_that_reads_slowly_gets_everything() -> None:
    size = 16 * 1024 * 1024

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(16):
            await send({"type": "http.response.body", "body": b"x" * (size // 16), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with serving(wrap=lambda _: large) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(GOOD.replace(b"Host", b"Connection: close\r\nHost"))
        await until(lambda: any(one.stalled < math.inf for one in served.open()))
        answer = await asyncio.wait_for(reader.read(), 20)
        assert answer.count(b"x") >= size
        writer.close()


async def test_an_end_lets_the_answer_under_way_be_the_last_of_its_connection() -> None:
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(GOOD.replace(b"/x/mcp", b"/wait"))
        await served.started.wait()
        await until(lambda: len(served.connections.connections) == 2)
        for one in list(served.connections.connections):
            one.shutdown()
        assert await asyncio.wait_for(idle_reader.read(), 20) == b""
        served.go_on.set()
        answer = await asyncio.wait_for(reader.read(), 20)
        assert statuses(answer) == [200]
        assert b"connection: close" in answer
        served.connections.ended = True
        assert statuses(await talk(served)) == [503]
        writer.close()
        idle_writer.close()


def _connections() -> list[object]:
    return [one for one in gc.get_objects() if isinstance(one, connection.Connection | UpstreamConnection)]


async def test_case_44_connections_that_have_ended_do_not_wait_for_the_garbage_collector() -> None:
    client = UpstreamClient()
    async with serving() as served:
        endpoint = Endpoint(f"http://127.0.0.1:{served.port}/wait", [])
        gc.collect()
        gc.disable()
        before = _connections()  # other tests' in this process
        try:
            ours = await client.connect(endpoint)
            answer = ours.request(b"GET" + endpoint.start + b"\r\n", b"", timeout=30.0, idle=0.0)
            reading = asyncio.create_task(answer.head())
            await served.started.wait()
            answer.interrupt(ConnectionError("the caller has left"))
            with suppress(ConnectionError):
                await reading
            answer.close()
            del ours, answer, reading
            served.go_on.set()
            await until(lambda: not served.open())
            await asyncio.sleep(0)
            left = [type(one) for one in _connections() if not any(one is other for other in before)]
        finally:
            gc.enable()
    await client.aclose()
    assert not left
