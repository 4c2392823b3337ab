"""What goes on to a server and what comes back, over real sockets."""

import asyncio
import gzip
import json
import zlib
from typing import Any

import httpx2
import pytest

from mcp_middleware.member import Bounds
from mcp_middleware.resource_server.identity import IDENTITY_HEADERS
from tests.gateway.forwarding import CALL, INITIALIZED, RESULT, Caller, answer, gateway, head_of, raw_server
from tests.support import answer_of, headers_for, initialize, message, post, until


async def test_a_call_goes_on_and_its_answer_comes_back() -> None:
    async with raw_server(answer) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        for _ in range(5):
            response = await post(http, gate.url, "tools/call", CALL)
            assert response.status_code == 200
            assert response.headers["content-type"] == "application/json"
            assert response.content == RESULT
        assert server.connections == 1, "connections are used again"
        caller = server.requests[0]
        assert caller.head.startswith(b"POST /mcp HTTP/1.1\r\n")
        assert json.loads(caller.body)["params"]["arguments"] == CALL["arguments"]
        assert dict(head_of(caller))[b"host"] == server.origin.removeprefix("http://").encode()


async def test_without_members_it_forwards_as_well() -> None:
    async with (
        raw_server(answer) as server,
        gateway(server.origin, members=False) as gate,
        httpx2.AsyncClient() as http,
    ):
        response = await post(http, gate.url, "tools/call", CALL)
        assert response.content == RESULT


async def test_case_8_neither_credentials_nor_invented_identities_reach_a_server() -> None:
    invented = {name.decode(): "root" for name in IDENTITY_HEADERS} | {
        "authorization": "Bearer secret",
        "cookie": "session=1",
        "forwarded": "for=1.2.3.4",
        "x-forwarded-for": "1.2.3.4",
        "x-forwarded-host": "evil.example",
        "x_forwarded_user": "root",
        "x-api-key": "the caller's",
    }
    configured = {"x-api-key": "ours", "authorization": "Basic b3Vycw=="}
    async with (
        raw_server(answer) as server,
        gateway(server.origin, headers=configured) as gate,
        httpx2.AsyncClient() as http,
    ):
        response = await post(http, gate.url, "tools/call", CALL, headers=invented)
        assert response.status_code == 200
        head = head_of(server.requests[0])
        names = {name for name, _ in head}
        assert not names & {name.encode() for name in invented} - {b"x-api-key", b"authorization"}
        assert [value for name, value in head if name in (b"x-api-key", b"authorization")] == [
            b"ours",
            b"Basic b3Vycw==",
        ]


async def test_case_38_hop_by_hop_headers_stay_on_their_hop() -> None:
    async def returning(caller: Caller) -> None:
        await caller.send_json(
            RESULT,
            headers=b"connection: keep-alive, x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n"
            b"proxy-authenticate: Basic\r\nset-cookie: a=b\r\nwww-authenticate: Bearer\r\nretry-after: 2\r\n",
        )

    async with (
        raw_server(returning) as server,
        gateway(server.origin, forward_headers=("x-end", "x-hop")) as gate,
        httpx2.AsyncClient() as http,
    ):
        sent = {
            "connection": "keep-alive, x-hop, mcp-protocol-version",
            "x-hop": "1",
            "te": "trailers",
            "upgrade": "h2c",
            "proxy-authorization": "Basic x",
            "x-end": "2",
            "mcp-param-region": "eu",
        }
        response = await post(http, gate.url, "tools/call", CALL, headers=sent)
        head = dict(head_of(server.requests[0]))
        assert not head.keys() & {b"x-hop", b"te", b"upgrade", b"proxy-authorization", b"connection", b"keep-alive"}
        assert head[b"x-end"] == b"2"
        assert head[b"mcp-param-region"] == b"eu"
        assert head[b"mcp-protocol-version"] == b"2026-07-28", "what MCP needs is nobody's hop-by-hop header"
        gone = {"x-hop", "keep-alive", "proxy-authenticate", "set-cookie", "www-authenticate"}
        assert not response.headers.keys() & gone
        assert response.headers["retry-after"] == "2"


@pytest.mark.parametrize("status", [b"301 Moved", b"302 Found", b"307 Temporary Redirect", b"304 Not Modified"])
async def test_case_38_a_redirect_is_not_followed(status: bytes) -> None:
    async with raw_server(answer) as elsewhere:

        async def redirect(caller: Caller) -> None:
            location = b"location: " + elsewhere.origin.encode() + b"/mcp\r\ncontent-length: 0\r\n"
            await caller.send(b"HTTP/1.1 " + status + b"\r\n" + location + b"\r\n")

        async with raw_server(redirect) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
            response = await post(http, gate.url, "tools/call", CALL, id=7)
            assert response.status_code == 502
            assert answer_of(response)["id"] == 7
            assert "location" not in response.headers
            assert elsewhere.connections == 0


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (b"401 Unauthorized", b'www-authenticate: Bearer resource_metadata="https://evil.example"\r\n'),
        (b"403 Forbidden", b'www-authenticate: Bearer error="insufficient_scope"\r\n'),
        (b"407 Proxy Authentication Required", b""),
    ],
)
async def test_case_38_a_refusal_of_our_credential_is_not_the_callers(status: bytes, headers: bytes) -> None:
    async def refuse(caller: Caller) -> None:
        await caller.send_json(b"{}", status=status, headers=headers)

    async with raw_server(refuse) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "tools/call", CALL)
        assert response.status_code == 502
        assert "www-authenticate" not in response.headers
        assert answer_of(response)["id"] == 1


async def test_a_403_without_a_challenge_is_the_servers_word_to_the_caller() -> None:
    async def refuse(caller: Caller) -> None:
        await caller.send_json(b'{"error":"no"}', status=b"403 Forbidden")

    async with raw_server(refuse) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "tools/call", CALL)
        assert (response.status_code, response.json()) == (403, {"error": "no"})


async def test_white_space_around_values_does_not_go_on() -> None:
    async with raw_server(answer) as server, gateway(server.origin, forward_headers=("x-end",)) as gate:
        body = json.dumps(message("tools/call", CALL)).encode()
        lines = [f"{name}: {value}" for name, value in headers_for(message("tools/call", CALL)).items()]
        lines += ["host: x", f"content-length: {len(body)}", "x-end:  two words \t", "connection: close"]
        host, port = gate.origin.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        text = "\r\n".join(["POST /mcp HTTP/1.1", *lines]).replace("mcp-name: echo", "mcp-name: echo \t")
        writer.write(text.encode() + b"\r\n\r\n" + body)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        head = dict(head_of(server.requests[0]))
        assert head[b"mcp-name"] == b"echo"
        assert head[b"x-end"] == b"two words"


async def test_an_event_stream_passes_chunk_by_chunk_as_it_came() -> None:
    go_on = asyncio.Event()
    first = b": hello\n\nid: 1\nretry: 5\ndata:\n\n"
    last = b"event: message\ndata: " + RESULT + b"\n\n"

    async def stream(caller: Caller) -> None:
        await caller.start_stream()
        await caller.send_chunk(first)
        await go_on.wait()
        await caller.send_chunk(last[:20])
        await caller.send_chunk(last[20:])
        await caller.send(b"0\r\n\r\n")

    async with raw_server(stream) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        body = message("tools/call", CALL)
        async with http.stream("POST", gate.url, content=json.dumps(body), headers=headers_for(body)) as response:
            assert response.headers["content-type"] == "text/event-stream"
            chunks = response.aiter_raw()
            received = await anext(chunks)
            go_on.set()
            async for chunk in chunks:
                received += chunk
        assert received == first + last
        assert (await gate.seen.get()).answer is not None


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_compression_nobody_asked_for_is_undone(encoding: str) -> None:
    data = gzip.compress(RESULT) if encoding == "gzip" else zlib.compress(RESULT)

    async def compress(caller: Caller) -> None:
        await caller.send_json(data, headers=f"content-encoding: {encoding}\r\n".encode())

    async with raw_server(compress) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "tools/call", CALL, headers={"accept-encoding": "gzip, deflate, br"})
        assert response.content == RESULT
        assert "content-encoding" not in response.headers
        assert dict(head_of(server.requests[0]))[b"accept-encoding"] == b"identity"


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        (b"br", b"whatever"),
        (b"gzip", b"no gzip"),
        (b"gzip", gzip.compress(RESULT, mtime=0)[:-12]),
        (b"gzip, gzip", b""),
    ],
)
async def test_compression_that_cannot_be_undone_is_an_error(encoding: bytes, data: bytes) -> None:
    async def compress(caller: Caller) -> None:
        await caller.send_json(data, headers=b"content-encoding: " + encoding + b"\r\n")

    async with raw_server(compress) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "tools/call", CALL, id="x")
        assert response.status_code == 502
        assert answer_of(response)["id"] == "x"


async def test_case_37_a_compressed_bomb_ends_at_the_bound() -> None:
    bounds = Bounds(max_answer_bytes=1024 * 1024)
    bomb = gzip.compress(bytes(64 * 1024 * 1024), 9)

    async def compress(caller: Caller) -> None:
        await caller.send_json(bomb, headers=b"content-encoding: gzip\r\n")

    async with (
        raw_server(compress) as server,
        gateway(server.origin, bounds=bounds) as gate,
        httpx2.AsyncClient() as http,
    ):
        response = await post(http, gate.url, "tools/call", CALL)
        assert response.status_code == 502
        assert "too large" in answer_of(response)["error"]["message"]


async def test_other_methods_are_refused() -> None:
    async with (
        raw_server(answer) as server,
        gateway(server.origin, members=False) as gate,
        httpx2.AsyncClient() as http,
    ):
        for method in ("HEAD", "OPTIONS", "PUT"):
            response = await http.request(method, gate.url)
            assert response.status_code == 405
            assert response.headers["allow"] == "GET, POST, DELETE"
        assert server.connections == 0


async def test_a_notification_is_accepted_without_a_body() -> None:
    async def accept(caller: Caller) -> None:
        await caller.send(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")

    async with raw_server(accept) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "notifications/initialized", id=None)
        assert (response.status_code, response.content) == (202, b"")


async def test_a_body_that_ends_with_the_connection_is_whole() -> None:
    async def close(caller: Caller) -> None:
        await caller.send(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + RESULT
        )
        caller.close()

    async with raw_server(close) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        for _ in range(2):
            assert (await post(http, gate.url, "tools/call", CALL)).content == RESULT
        assert server.connections == 2


async def test_large_bodies_pass_both_ways() -> None:
    text = "x" * 3_000_000

    async def echo(caller: Caller) -> None:
        found = json.loads(caller.body)["params"]["arguments"]["text"]
        await caller.send_json(json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"text": found}}).encode())

    async with raw_server(echo) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "tools/call", {"name": "echo", "arguments": {"text": text}})
        assert answer_of(response)["result"]["text"] == text


async def test_sessions_reach_their_instance_and_new_ones_spread() -> None:
    def instance(name: str) -> Any:
        async def handle(caller: Caller) -> None:
            if b"initialize" in caller.body and b"notifications" not in caller.body:
                await caller.send_json(INITIALIZED, headers=b"mcp-session-id: " + name.encode() + b"\r\n")
            elif b"notifications/" in caller.body:
                await caller.send(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
            else:
                known = dict(head_of(caller))[b"mcp-session-id"].decode()
                await caller.send_json(
                    json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"of": [name, known]}}).encode()
                )

        return handle

    async with (
        raw_server(instance("a")) as a,
        raw_server(instance("b")) as b,
        gateway(a.origin, b.origin) as gate,
        httpx2.AsyncClient() as http,
    ):
        sessions = [await initialize(http, gate.url) for _ in range(4)]
        homes = set()
        for session in sessions:
            for _ in range(3):
                response = await post(http, gate.url, "tools/call", CALL, era="legacy", session=session)
                name, known = answer_of(response)["result"]["of"]
                assert name == known
                homes.add(name)
        assert homes == {"a", "b"}


async def test_a_header_with_a_line_break_never_leaves() -> None:
    def bend(app: Any) -> Any:
        async def bent(scope: Any, receive: Any, send: Any) -> None:
            scope["headers"].append((b"mcp-param-bent", b"a\r\nx-smuggled: b"))
            await app(scope, receive, send)

        return bent

    async with (
        raw_server(answer) as server,
        gateway(server.origin, around=bend) as gate,
        httpx2.AsyncClient() as http,
    ):
        assert (await post(http, gate.url, "tools/call", CALL)).status_code == 400
        assert server.requests == []


async def test_tasks_go_to_the_instance_that_began_them_or_are_asked_for_in_turn() -> None:
    def instance(name: str) -> Any:
        async def handle(caller: Caller) -> None:
            call = json.loads(caller.body)
            if call["method"] == "tools/call":
                result: Any = {"resultType": "task", "taskId": f"task-{name}", "status": "working"}
            elif call["params"]["taskId"].endswith(name):
                result = {"resultType": "complete", "by": name}
            else:
                error = {"code": -32602, "message": "no such task"}
                await caller.send_json(json.dumps({"jsonrpc": "2.0", "id": call["id"], "error": error}).encode())
                return
            await caller.send_json(json.dumps({"jsonrpc": "2.0", "id": call["id"], "result": result}).encode())

        return handle

    async with (
        raw_server(instance("a")) as a,
        raw_server(instance("b")) as b,
        gateway(a.origin, b.origin) as gate,
        httpx2.AsyncClient() as http,
    ):
        tasks = {answer_of(await post(http, gate.url, "tools/call", CALL))["result"]["taskId"] for _ in range(2)}
        assert tasks == {"task-a", "task-b"}
        seen = len(a.requests) + len(b.requests)
        for _ in range(3):
            for name in "ab":
                found = answer_of(await post(http, gate.url, "tasks/get", {"taskId": f"task-{name}"}))
                assert found["result"]["by"] == name
        assert len(a.requests) + len(b.requests) == seen + 6, "nobody is asked who does not have it"
        for _ in range(2):  # unknown to this gateway: another replica's, or from before a restart
            for name in "ab":
                gate.upstream._tasks.clear()
                found = answer_of(await post(http, gate.url, "tasks/get", {"taskId": f"task-{name}"}))
                assert found["result"]["by"] == name
        unknown = answer_of(await post(http, gate.url, "tasks/get", {"taskId": "other"}))
        assert unknown["error"]["code"] == -32602


async def test_many_streams_can_be_open_and_leave_nothing_behind() -> None:
    async def stream(caller: Caller) -> None:
        await caller.start_stream()
        await caller.send_chunk(b": hello\n\n")
        await caller.gone()

    async with raw_server(stream) as server, gateway(server.origin) as gate:
        before = len(asyncio.all_tasks())
        async with httpx2.AsyncClient(limits=httpx2.Limits(max_connections=60)) as http:
            request = http.build_request("GET", gate.url, headers=headers_for(era="legacy"))
            responses = [await http.send(request, stream=True) for _ in range(50)]
            for response in responses:
                assert await anext(response.aiter_raw()) == b": hello\n\n"
                await response.aclose()
        await until(lambda: not gate.client._busy and len(asyncio.all_tasks()) <= before)
        assert not gate.client._idle, "what was not read to its end is not used again"
