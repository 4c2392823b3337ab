"""Instances by name, what is known of them, and the probes."""

import asyncio
import socket
from pathlib import Path

import pytest

from mcp_middleware.gateway.client import Endpoint, NotSentError, UpstreamClient
from mcp_middleware.gateway.sections.servers import ServerConfig
from mcp_middleware.gateway.upstream import MAX_TASKS, Upstream, instance_name
from tests.certificates import certificate, server_context
from tests.gateway.forwarding import Caller, dead_origin, raw_server
from tests.support import until


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://127.0.0.1:9002/mcp", "127.0.0.1:9002/mcp"),
        ("http://files.example/mcp", "files.example:80/mcp"),
        ("https://Files.Example/mcp", "files.example:443/mcp"),
        ("https://files.example", "files.example:443/"),
        ("http://[::1]:9002/mcp", "[::1]:9002/mcp"),
        ("https://files.example/mcp?tenant=a b", "files.example:443/mcp?tenant=a%20b"),
        ("https://bücher.example/mcp", "xn--bcher-kva.example:443/mcp"),
    ],
)
def test_an_instance_is_called_by_where_it_is(url: str, name: str) -> None:
    assert instance_name(url) == name


def test_a_long_name_is_hashed_and_still_fits_a_sealed_session() -> None:
    url = "https://files.example/" + "x" * 100
    name = instance_name(url)
    assert name == instance_name(url)
    assert name != instance_name(url + "y")
    assert len(name) == 64
    assert all("!" <= char <= "~" for char in name)


def test_names_do_not_depend_on_the_order_of_the_configuration() -> None:
    urls = ("http://a.example/mcp", "http://b.example/mcp")
    client = UpstreamClient()
    one = Upstream(ServerConfig(name="files", instances=urls), client)
    other = Upstream(ServerConfig(name="files", instances=urls[::-1]), client)
    assert one.snapshot()["instances"].keys() == other.snapshot()["instances"].keys()
    assert not one.is_usable("c.example:80/mcp")


def test_an_endpoint_asks_with_the_host_of_its_url() -> None:
    start = Endpoint("https://files.example:8443/mcp?a=b", [(b"x-api-key", b"secret")]).start
    assert start == b" /mcp?a=b HTTP/1.1\r\nhost: files.example:8443\r\nx-api-key: secret\r\n"


def test_tasks_are_remembered_up_to_a_bound() -> None:
    upstream = Upstream(ServerConfig(name="files", instances=("http://a.example/mcp",)), UpstreamClient())
    for number in range(MAX_TASKS + 5):
        upstream.remember_task(f"task-{number}", "a")
    assert upstream.task_instance("task-4") is None
    assert upstream.task_instance("task-5") == "a"


@pytest.mark.parametrize(
    ("status", "lives"),
    [(b"405 No", True), (b"401 No", True), (b"500 Oh", True), (b"502 Oh", False), (b"503 Oh", False)],
)
async def test_a_probe_takes_any_answer_but_those_of_a_proxy_for_life(status: bytes, lives: bool) -> None:
    async def answer(caller: Caller) -> None:
        await caller.send(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")

    client = UpstreamClient()
    async with raw_server(answer) as server:
        config = ServerConfig(name="files", instances=(server.origin + "/mcp",), headers={"x-api-key": "secret"})
        upstream = Upstream(config, client)
        name = instance_name(server.origin + "/mcp")
        assert await upstream.probe_all() == {name: None if lives else f"it answered {status[:3].decode()}"}
        assert upstream.is_usable(name) == lives
        assert server.requests[0].head.startswith(b"OPTIONS /mcp HTTP/1.1\r\n")
        assert b"x-api-key: secret" in server.requests[0].head
        await client.aclose()


async def test_what_is_down_is_ejected_and_comes_back_by_itself() -> None:
    origin = dead_origin()
    client = UpstreamClient()
    upstream = Upstream(ServerConfig(name="files", instances=(origin + "/mcp",), probe_interval=0.05), client)
    await upstream.start()
    await upstream.start()
    await upstream.probe_all()
    assert not upstream.snapshot()["usable"]
    assert upstream.choose() is None

    asked = asyncio.Event()

    async def answer(caller: Caller) -> None:
        await caller.send(b"HTTP/1.1 405 No\r\ncontent-length: 0\r\n\r\n")
        asked.set()

    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.bind(("127.0.0.1", int(origin.rpartition(":")[2])))
    async with raw_server(answer, bound):
        await asked.wait()
        await until(lambda: upstream.choose() is not None)
    await upstream.aclose()
    await client.aclose()


async def test_a_refused_connection_says_that_nobody_is_there() -> None:
    client = UpstreamClient()
    with pytest.raises(NotSentError) as caught:
        await client.connect(Endpoint(dead_origin(), []))
    assert caught.value.gone
    with pytest.raises(NotSentError) as caught:
        await client.connect(Endpoint("http://nowhere.invalid/", []))
    assert not caught.value.gone
    await client.aclose()


async def test_unused_connections_are_closed_before_their_server_would(monkeypatch: pytest.MonkeyPatch) -> None:
    from mcp_middleware.gateway import client as wire

    monkeypatch.setattr(wire, "KEEP_ALIVE", 0.0)
    closed = asyncio.Event()

    async def answer(caller: Caller) -> None:
        await caller.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await caller.gone()
        closed.set()

    client = UpstreamClient()
    async with raw_server(answer) as server:
        endpoint = Endpoint(server.origin, [])
        sent = (await client.connect(endpoint)).request(b"GET" + endpoint.start + b"\r\n", b"", timeout=5.0, idle=5.0)
        await sent.head()
        assert await sent.read() == b""
        sent.close()
        await closed.wait()
        await client.aclose()


async def test_tls_is_checked_against_the_hosts_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cert, private = certificate(tmp_path, "localhost")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_context(cert, private))
    port = server.sockets[0].getsockname()[1]
    async with server:
        client = UpstreamClient()
        with pytest.raises(NotSentError, match="TLS failed"):
            await client.connect(Endpoint(f"https://localhost:{port}/", []))
        await client.aclose()
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        client = UpstreamClient()
        with pytest.raises(NotSentError, match="TLS failed"):
            await client.connect(Endpoint(f"https://127.0.0.1:{port}/", []))
        endpoint = Endpoint(f"https://localhost:{port}/", [])
        sent = (await client.connect(endpoint)).request(b"GET" + endpoint.start + b"\r\n", b"", timeout=5.0, idle=5.0)
        await sent.head()
        assert await sent.read() == b"ok"
        sent.close()
        await client.aclose()
