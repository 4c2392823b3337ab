"""A reload that takes rights away: streams that were opened by them end, and are judged when they are opened anew."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mcp_middleware.gateway.config import from_mapping
from tests.support import headers_for, message

from .forwarding import Caller, raw_server
from .gateways import Running, gateway, sections

EVENT = b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{}}\n\n'
LISTEN = {"notifications": {"resourceSubscriptions": ["memo://one"]}}


def access(agents: str, *more: dict[str, Any]) -> dict[str, Any]:
    return {"default": "deny", "rules": [{"agents": [agents], "servers": ["files"], "resources": ["memo://*"]}, *more]}


NOTES = {"agents": ["*"], "servers": ["notes"], "tools": ["*"]}


async def stream(caller: Caller) -> None:
    await caller.start_stream()
    await caller.send_chunk(EVENT)
    await caller.gone()


async def reload(running: Running, urls: dict[str, str], **changes: Any) -> None:
    """Serve ``urls`` by another file."""
    servers = {name: {"url": url} for name, url in urls.items()}
    given = sections(servers, origin=running.origin, issuer=running.issuer.issuer, trail=running.audit, **changes)
    await running.app.reload(from_mapping(given))


async def begin(running: Running, *, listens: bool) -> tuple[httpx2.Response, Any]:
    """A stream, and its bytes after the first ones."""
    token, http = running.token(), running.http
    body = message("subscriptions/listen", LISTEN, id="sub")
    if listens:
        headers = headers_for(body, token=token)
        request = http.build_request("POST", running.url(), headers=headers, content=json.dumps(body))
    else:
        request = http.build_request("GET", running.url(), headers=headers_for(era="legacy", token=token))
    response = await http.send(request, stream=True)
    chunks = response.aiter_raw()
    if response.status_code == 200:
        assert await anext(chunks) == EVENT
    return response, chunks


@pytest.mark.parametrize("taken", ["rules", "scopes", "server"])
async def test_streams_end_with_the_rules_that_they_were_opened_by(taken: str, tmp_path: Path) -> None:
    async with raw_server(stream) as server:
        urls = dict.fromkeys(("files", "notes"), f"{server.origin}/mcp")
        async with gateway(tmp_path, urls, access=access("ci-*")) as running:
            listening, listened = await begin(running, listens=True)
            getting, got = await begin(running, listens=False)
            await reload(running, urls, access=access("ci-*"), drain="7s")
            assert len(running.app._retiring) == 1, "they go on, by what was served before"
            if taken == "rules":
                await reload(running, urls, access=access("other"))
            elif taken == "scopes":
                auth = {"issuers": [running.issuer.issuer], "scopes": ["mcp:use", "files:write"]}
                await reload(running, urls, access=access("ci-*"), auth=auth)
            else:
                await reload(running, {"notes": urls["notes"]}, access={"default": "allow"})
            async with asyncio.timeout(20):
                rest = b"".join([chunk async for chunk in listened])
                assert [chunk async for chunk in got] == []
            assert b'"resultType":"complete"' in rest
            again, _ = await begin(running, listens=True)
            assert again.status_code >= 400
            for one in (listening, getting, again):
                await one.aclose()


async def test_what_is_no_matter_of_this_servers_rules_ends_nothing(tmp_path: Path) -> None:
    async with raw_server(stream) as server:
        urls = dict.fromkeys(("files", "notes"), f"{server.origin}/mcp")
        async with gateway(tmp_path, urls, access=access("ci-*")) as running:
            getting, got = await begin(running, listens=False)
            await reload(running, urls, access=access("ci-*", NOTES))
            await server.requests[0].send_chunk(EVENT)
            assert await anext(got) == EVENT
            await getting.aclose()
