"""The gateway's quick start, as somebody follows it: its server, its gateway and its client as processes, and what the
page says they print. Only the ports are others."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks_of
from tests.gateway.processes import Process
from tests.support import free_port

PAGE = ROOT / "docs" / "gateway" / "quick-start.md"
BLOCKS = list(blocks_of(PAGE))


class Follower:
    """Does what the page says, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = {"8080": str(free_port()), "9001": str(free_port())}
        for title in ("server.py", "client.py", "gateway.yaml"):
            (directory / title).write_text(self.shown(title))

    def here(self, text: str) -> str:
        """The page's text with the ports that we have."""
        for page, ours in self.ports.items():
            text = text.replace(f":{page}", f":{ours}")
        return text

    def shown(self, title: str) -> str:
        """The first block of that title."""
        return self.here(next(block.code for block in BLOCKS if block.title == title))

    def printed(self, beginning: str) -> list[str]:
        """The lines of the output that begins so."""
        return self.here(next(block.code for block in BLOCKS if block.code.startswith(beginning))).splitlines()

    async def run(self, *arguments: str) -> str:
        """What Python prints with these arguments, once it has ended well."""
        process = await self._start(*arguments)
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()

    @asynccontextmanager
    async def keep(self, *arguments: str, until: str) -> AsyncIterator[Process]:
        """A process that stays, from when it says ``until``."""
        started = await self._start(*arguments)
        process = Process(started, 0, self.directory / "gateway.yaml", "http")
        try:
            await process.wrote(until)
            yield process
        finally:
            if started.returncode is None:
                process.send(signal.SIGTERM)
            await process.ended()

    async def _start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )


def _what_stays(table: list[str]) -> list[list[str]]:
    """A table of the audit trail without times and durations."""
    return [line.split()[1:12] + line.split()[13:] for line in table]


@pytest.mark.slow
async def test_the_quick_start_is_true(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    check = await follower.run("-m", "mcp_middleware.gateway", "check", "gateway.yaml")
    for line in follower.printed("gateway.yaml: good"):
        assert line in check.splitlines() or line == "  ..."
    serve = ("-m", "uvicorn", "server:app", "--port", follower.ports["9001"])
    run = ("-m", "mcp_middleware.gateway", "run", "gateway.yaml")
    async with follower.keep(*serve, until="Uvicorn running"), follower.keep(*run, until="listens on") as gateway:
        assert await follower.run("client.py") == follower.shown("output.txt")

        trail = await follower.run("-m", "mcp_middleware.audit", "audit.db")
        assert _what_stays(trail.splitlines()) == _what_stays(follower.printed("TIME "))

        file = tmp_path / "gateway.yaml"
        file.write_text(file.read_text().replace("read_*", "*"))
        await gateway.wrote("was reloaded")
        assert "delete_note -> todo is gone" in await follower.run("client.py")
