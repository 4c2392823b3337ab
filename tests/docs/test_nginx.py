"""The nginx of the operations page before two real replicas: sessions go through both, streams come as they are."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT, blocks_of
from tests.gateway.processes import backend, client, running
from tests.support import SESSION_KEY, free_port, headers_for, initialize, post

NGINX = shutil.which("nginx", path="/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin")
PAGE = ROOT / "docs" / "gateway" / "operations.md"
HOST = {"host": "mcp.example.com"}

AROUND = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log notice;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {shown}
}}
"""


def configuration(directory: Path, port: int, replicas: list[int]) -> str:
    """The page's own, with our addresses and without TLS."""
    shown = next(block.code for block in blocks_of(PAGE) if block.title == "nginx.conf")
    addresses = re.findall(r"server (10\.[\d.]+:\d+)", shown)
    for address, replica in zip(addresses, replicas, strict=True):
        shown = shown.replace(address, f"127.0.0.1:{replica}")
    shown = shown.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    shown = re.sub(r"^\s*ssl_certificate.*$", "", shown, flags=re.MULTILINE)
    return AROUND.format(directory=directory, shown=shown)


@asynccontextmanager
async def nginx(directory: Path, replicas: list[int]) -> AsyncIterator[str]:
    """The page's nginx before these ports; its origin."""
    port = free_port()
    file = directory / "nginx.conf"
    file.write_text(configuration(directory, port, replicas))
    process = await asyncio.create_subprocess_exec(str(NGINX), "-c", str(file), stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(15):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except OSError:
                    assert process.returncode is None, "nginx ended"
                    await asyncio.sleep(0.02)
        writer.close()
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
async def test_the_page_s_nginx_balances_sessions_and_passes_streams(tmp_path: Path) -> None:
    homes = [tmp_path / "one", tmp_path / "other"]
    for home in homes:
        home.mkdir()
    shared: dict[str, Any] = {"public_url": f"https://{HOST['host']}", "sessions": {"keys": [SESSION_KEY]}}
    async with (
        backend() as server,
        running(homes[0], {"files": server.origin}, **shared) as one,
        running(homes[1], {"files": server.origin}, **shared) as other,
        nginx(tmp_path, [one.port, other.port]) as origin,
        client() as http,
    ):
        url = f"{origin}/files/mcp"
        session = await initialize(http, url, headers=HOST)
        for _ in range(6):
            arguments = {"name": "echo", "arguments": {"text": "x" * 100_000}}  # more than nginx takes into a buffer
            reply = await post(http, url, "tools/call", arguments, era="legacy", session=session, headers=HOST)
            assert reply.status_code == 200
        for replica in (one, other):
            await replica.wrote(r"tools/call echo \S+ 200")

        headers = headers_for(era="legacy", session=session) | HOST
        async with http.stream("GET", url, headers=headers) as stream:
            assert stream.status_code == 200
            assert await anext(stream.aiter_lines()) == ": hello"
