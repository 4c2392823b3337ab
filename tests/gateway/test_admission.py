"""What one caller may have under way: calls and streams, a reserve for the rest, and bytes of bodies."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from examples.authorization_server import Client
from tests.support import HELLO, headers_for, message, post, until

from .forwarding import CALL, Caller, RawServer, raw_server
from .gateways import CI, OTHER, SCOPES, Running, gateway

SLOW = {"name": "echo", "arguments": {"slow": True}}
KIB = 1024
AGENTS = [Client(client_id=f"agent-{number}", scopes=SCOPES) for number in range(5)]


@dataclass
class Scene:
    running: Running
    server: RawServer
    go_on: asyncio.Event

    async def arrived(self, word: bytes, times: int = 1) -> None:
        """Wait until so many requests with ``word`` in them are at the server."""
        async with asyncio.timeout(20):
            while times:
                times -= word in (await self.server.arrived.get()).body

    @property
    def held(self) -> tuple[int, int, int]:
        """Requests, calls and bytes that are counted."""
        under_way = self.running.app._shared.under_way
        return under_way.requests.total, under_way.calls.total, under_way.bodies.total

    async def over(self) -> None:
        """Wait until nothing is under way any more."""
        await until(lambda: self.held == (0, 0, 0))


@asynccontextmanager
async def scene(directory: Path, **sections: Any) -> AsyncIterator[Scene]:
    """A gateway before a server that answers what has ``slow`` in it once it may."""
    go_on = asyncio.Event()

    async def answer(caller: Caller) -> None:
        if b"slow" in caller.body:
            await go_on.wait()
        body = json.loads(caller.body)
        if "id" in body and "method" in body:
            result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "b", "version": "1"}}
            await caller.send_json(json.dumps({"jsonrpc": "2.0", "id": body["id"], "result": result}).encode())
        else:
            await caller.send(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")

    async with (
        raw_server(answer) as server,
        gateway(directory, {"files": f"{server.origin}/mcp"}, access=None, **sections) as running,
    ):
        yield Scene(running, server, go_on)
        go_on.set()


async def test_case_22_calls_that_wait_leave_a_reserve_and_that_ends_too(tmp_path: Path) -> None:
    async with scene(tmp_path, connections_per_agent=2) as on, httpx2.AsyncClient(timeout=20) as http:
        token, url = on.running.token(), on.running.url()

        async def say(body: dict[str, Any], bearer: str = token) -> int:
            headers = headers_for(era="legacy", token=bearer)
            return (await http.post(url, json={"jsonrpc": "2.0", **body}, headers=headers)).status_code

        slow = [asyncio.create_task(post(http, url, "tools/call", SLOW, token=token)) for _ in range(2)]
        await on.arrived(b"slow", 2)
        assert (await post(http, url, "tools/call", CALL, token=token)).status_code == 429
        assert await say({"id": 1, "method": "ping"}) == 200
        assert await say({"method": "notifications/cancelled", "params": {"requestId": 1}}) == 202
        assert await say({"id": 1, "result": {}}) == 202
        assert await say({"id": 1, "method": "initialize", "params": HELLO}) == 200

        notes = [asyncio.create_task(say({"method": "notifications/slow"})) for _ in range(16)]
        await on.arrived(b"notifications/slow", 16)
        assert on.held == (18, 2, 0)
        assert await say({"id": 1, "method": "ping"}) == 429
        assert await say({"method": "notifications/x"}) == 429
        assert await say({"id": 1, "result": {}}) == 429
        assert await say({"id": 1, "method": "ping"}, on.running.token(OTHER)) == 200
        on.go_on.set()
        assert await asyncio.gather(*notes) == [202] * 16
        assert [reply.status_code for reply in await asyncio.gather(*slow)] == [200, 200]
        await on.over()
        assert (await post(http, url, "tools/call", CALL, token=token)).status_code == 200


class Upload:
    """A call whose body does not come, unless somebody sends it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.head = b""

    async def read_status(self) -> int:
        self.head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        self.status = int(self.head.split(b" ", 2)[1])
        return self.status

    def close(self) -> None:
        self.writer.close()


@asynccontextmanager
async def uploads(running: Running) -> AsyncIterator[Callable[..., Awaitable[Upload]]]:
    """What announces a body, and waits for what the gateway says to that: 100 asks for it."""
    host, port = running.origin.removeprefix("http://").split(":")
    made: list[Upload] = []

    async def upload(size: int | None, token: str, headers: dict[str, str] | None = None) -> Upload:
        made.append(one := Upload(*await asyncio.open_connection(host, int(port))))
        framing = "transfer-encoding: chunked" if size is None else f"content-length: {size}"
        headers = headers or headers_for(message("tools/call", CALL))
        headers = headers | {"host": f"{host}:{port}", "authorization": f"Bearer {token}"}
        lines = [f"{name}: {value}" for name, value in headers.items()]
        text = "\r\n".join(["POST /files/mcp HTTP/1.1", *lines, framing, "expect: 100-continue", "", ""])
        one.writer.write(text.encode())
        await one.read_status()
        return one

    yield upload
    for one in made:
        one.close()


async def test_case_37_bodies_under_way_are_bounded_for_each_caller_and_for_all(tmp_path: Path) -> None:
    async with (
        scene(tmp_path, clients=(CI, *AGENTS), body_memory="800KiB") as on,
        uploads(on.running) as upload,
        httpx2.AsyncClient(timeout=20) as http,
    ):
        mine = on.running.token()
        first = await upload(150 * KIB, mine)
        assert first.status == 100
        second = await upload(150 * KIB, mine)
        assert second.status == 503
        assert b"retry-after: 1" in second.head
        assert (await post(http, on.running.url(), "tools/call", CALL, token=mine)).status_code == 200
        assert (await upload(64 * KIB, mine)).status == 100, "what is small is not counted"

        others = [await upload(150 * KIB, on.running.token(agent)) for agent in AGENTS]
        assert [other.status for other in others] == [100, 100, 100, 100, 503]
        first.close()
        async with asyncio.timeout(20):
            while (again := await upload(150 * KIB, mine)).status != 100:
                again.close()
        assert on.held[2] == 750 * KIB


async def test_case_37_a_token_without_the_scope_takes_its_place_too(tmp_path: Path) -> None:
    async with scene(tmp_path, connections_per_agent=1, body_memory="400KiB") as on, uploads(on.running) as upload:
        token = on.running.token(scopes=frozenset())
        assert [(await upload(100 * KIB, token)).status for _ in range(2)] == [100, 503]
        assert [(await upload(1 * KIB, token)).status for _ in range(17)] == [100] * 16 + [429]
        assert on.held[0] == 17


async def test_a_chunked_body_is_what_may_come_until_it_has_come(tmp_path: Path) -> None:
    async with scene(tmp_path, body_memory="1MiB") as on, uploads(on.running) as upload:
        token = on.running.token()
        chunked = await upload(None, token)
        assert (chunked.status, on.held[2]) == (100, 4 * KIB * KIB), "one alone always fits"
        assert (await upload(100 * KIB, token)).status == 503
        for size, held in ((100 * KIB, 100 * KIB), (0, 0)):
            params = {"name": "echo", "arguments": {"slow": "x" * size}}
            body = json.dumps(message("tools/call", params)).encode()
            chunked.writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            await on.arrived(b"slow")
            assert held <= on.held[2] <= held + KIB
            on.go_on.set()
            assert await chunked.read_status() == 200
            chunked.close()
            await on.over()
            on.go_on.clear()
            chunked = await upload(None, token)


async def test_a_chunked_batch_is_what_has_come_while_it_is_answered(tmp_path: Path) -> None:
    async with scene(tmp_path, body_memory="8MiB") as on, uploads(on.running) as upload:
        batch = [message("tools/call", SLOW | {"pad": "x" * pad}, id=pad, era="legacy") for pad in (50 * KIB, 51 * KIB)]
        headers = headers_for(batch[0], era="legacy", version="2025-03-26")
        chunked = await upload(None, on.running.token(), headers)
        assert on.held[2] == 4 * KIB * KIB
        body = json.dumps(batch).encode()
        chunked.writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        await on.arrived(b"slow")
        assert on.held[2] == len(body)
        on.go_on.set()
        assert await chunked.read_status() == 200
        await on.over()


async def test_the_messages_of_a_batch_take_their_places_in_turn(tmp_path: Path) -> None:
    async with scene(tmp_path, connections_per_agent=1) as on:
        batch = [message("tools/call", CALL, id=number, era="legacy") for number in range(5)]
        headers = headers_for(batch[0], era="legacy", version="2025-03-26", token=on.running.token())
        reply = await on.running.http.post(on.running.url(), json=batch, headers=headers)
        assert [(answer["id"], "result" in answer) for answer in reply.json()] == [
            (number, True) for number in range(5)
        ]
        await on.over()


async def test_case_26_nothing_is_kept_of_who_did_not_authenticate(tmp_path: Path) -> None:
    async with scene(tmp_path) as on, uploads(on.running) as upload:
        assert (await upload(1000 * KIB, "junk")).status == 401
        assert on.held == (0, 0, 0)
