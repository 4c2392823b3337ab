"""A start that takes its time, and one that fails while somebody asks."""

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.gateway.app import create_app
from mcp_middleware.gateway.config import from_mapping
from tests.support import free_port, post

from .authority import authority
from .gateways import ECHO
from .processes import END, Process, client, configured

NOWHERE = {"files": "http://127.0.0.1:9"}


async def test_who_comes_before_the_start_waits_for_it_and_is_told_where_it_fails() -> None:
    async with authority() as issuer:
        issuer.open.clear()
        app = create_app(from_mapping(configured(NOWHERE, 8080, auth={"issuers": [issuer.issuer]})))
        starting = asyncio.create_task(app.startup())
        await issuer.asked.wait()
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http:
            url = "http://127.0.0.1:8080/files/mcp"
            early = asyncio.create_task(post(http, url, "tools/call", ECHO, token="any"))
            assert (await http.get("http://127.0.0.1:8080/readyz")).json()["status"] == "starting"
            issuer.open.set()
            with pytest.raises(ConfigurationError):
                await starting
            reply = await early
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
            assert reply.json()["error"]["code"] == 503001
            await app.shutdown()
            assert (await post(http, url, "tools/call", ECHO, token="any")).status_code == 503


async def test_without_a_lifespan_requests_start_it_and_start_it_again_after_its_end() -> None:
    async with authority() as issuer:
        grant = {"type": "client_credentials", "issuer": issuer.issuer, "client_id": "gateway", "client_secret": "s"}
        servers = {"files": {"url": "http://127.0.0.1:9/mcp", "credentials": grant}}
        app = create_app(from_mapping(configured(servers, 8080)))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http:
            url = "http://127.0.0.1:8080/files/mcp"
            issuer.open.clear()
            first = asyncio.create_task(post(http, url, "tools/call", ECHO))
            await issuer.asked.wait()
            second = asyncio.create_task(post(http, url, "tools/call", ECHO))
            assert (await http.get("http://127.0.0.1:8080/readyz")).json()["status"] == "starting"
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            issuer.open.set()
            assert (await second).status_code == 502, "it was sent on, to where nobody listens"
            for _ in range(2):
                await app.shutdown()
                assert (await post(http, url, "tools/call", ECHO)).status_code == 502
                assert (await http.get("http://127.0.0.1:8080/readyz")).json()["status"] == "ready"
        await app.shutdown()


async def test_of_requests_that_wait_for_a_start_that_fails_none_tries_again_and_a_later_one_does() -> None:
    async with authority() as issuer:
        issuer.open.clear()
        app = create_app(from_mapping(configured(NOWHERE, 8080, auth={"issuers": [issuer.issuer]})))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http:
            url = "http://127.0.0.1:8080/files/mcp"
            first = asyncio.create_task(post(http, url, "tools/call", ECHO, token="any"))
            await issuer.asked.wait()
            early = [asyncio.create_task(post(http, url, "tools/call", ECHO, token="any")) for _ in range(3)]
            assert (await http.get("http://127.0.0.1:8080/readyz")).json()["status"] == "starting"
            issuer.open.set()
            with pytest.raises(ConfigurationError):
                await first
            assert [(await one).status_code for one in early] == [503] * 3
            with pytest.raises(ConfigurationError):
                await post(http, url, "tools/call", ECHO, token="any")
        await app.shutdown()


async def test_a_start_that_fails_ends_with_what_is_wrong_and_nothing_else(tmp_path: Path) -> None:
    async with authority() as issuer:
        issuer.open.clear()
        issuer.names = "https://login.example.com"
        grant = {"type": "client_credentials", "issuer": issuer.issuer, "client_id": "gateway", "client_secret": "s"}
        servers = {f"s{number}": {"url": "http://127.0.0.1:9/mcp", "credentials": grant} for number in range(12)}
        file, port = tmp_path / "gateway.yaml", free_port()
        file.write_text(json.dumps(configured(servers, port, auth={"issuers": [issuer.issuer]})))
        command = (sys.executable, "-m", "mcp_middleware.gateway", "run", str(file))
        started = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        process = Process(started, port, file, "http")
        await issuer.asked.wait()
        seen: set[int] = set()

        async def ask() -> None:
            async with client() as http:
                with suppress(httpx2.TransportError):  # it has ended
                    while True:
                        reply = await post(http, f"{process.origin}/s0/mcp", "tools/call", ECHO, token="any")
                        seen.add(reply.status_code)

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        async with client() as http:
            for _ in range(8):
                assert (await http.get(f"{process.origin}/healthz")).status_code == 200
        issuer.open.set()
        assert await process.ended() == 2
        await asyncio.gather(*asking)
    assert seen <= {503}
    *said, end = process.lines
    assert end == END
    assert said[0].startswith(f"mcp-gateway: the issuer {issuer.issuer}: ")
    assert [line.partition(":")[0] for line in said[1:]] == [
        ", ".join(f"servers.{name}.credentials" for name in servers)
    ]
