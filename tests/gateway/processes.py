"""The gateway as its users run it: a process, a configuration file, signals; and a server behind it that can wait."""

import asyncio
import json
import re
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from starlette.requests import Request

from mcp_middleware.exchange import Receive, Scope, Send
from tests.support import TIMEOUT, free_port, serve

END = "<end>"
"""Stands for the end of what a process writes."""


@dataclass
class Backend:
    """A server of few words: it answers every call, the tool ``slow`` once it may, and GET with a stream."""

    origin: str = ""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        body = await Request(scope, receive).body()
        if scope["method"] == "GET":
            await self._stream(receive, send)
            return
        message = json.loads(body) if body else {}
        if message.get("method") == "initialize":
            result: dict[str, Any] = {
                "protocolVersion": "2025-11-25",
                "capabilities": {},
                "serverInfo": {"name": "backend", "version": "1"},
            }
            await _answer(send, message, result, [(b"mcp-session-id", b"upstream-session")])
            return
        if "id" not in message:
            await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        self.calls += 1
        if message.get("params", {}).get("name") == "slow":
            self.begun.set()
            await self.go_on.wait()
        await _answer(send, message, {"content": [{"type": "text", "text": "done"}]})

    async def _stream(self, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b": hello\n\n", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass


async def _answer(
    send: Send, message: Mapping[str, Any], result: Mapping[str, Any], headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": message.get("id"), "result": result}).encode()
    lines = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *(headers or ())]
    await send({"type": "http.response.start", "status": 200, "headers": lines})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def backend() -> AsyncIterator[Backend]:
    """A ``Backend`` on a socket."""
    made = Backend()
    async with serve(made) as made.origin:
        yield made
        made.go_on.set()


class Process:
    """A gateway's process: what it writes, and where it is."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, file: Path, scheme: str) -> None:
        self.process = process
        self.port = port
        self.file = file
        self.origin = f"{scheme}://127.0.0.1:{port}"
        self.lines: list[str] = []
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._news:
                self.lines.append(line.decode().rstrip("\n"))
                self._news.notify_all()
        async with self._news:
            self.lines.append(END)
            self._news.notify_all()

    async def wrote(self, pattern: str, *, times: int = 1) -> list[str]:
        """Wait until that many lines match; those lines."""
        try:
            async with asyncio.timeout(40), self._news:
                while True:
                    found = [line for line in self.lines if re.search(pattern, line)]
                    if len(found) >= times or self.lines[-1:] == [END]:
                        break
                    await self._news.wait()
        except TimeoutError:
            found = []
        if len(found) < times:
            raise AssertionError(f"no {pattern!r} in\n" + "\n".join(self.lines))
        return found

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; the exit status."""
        async with asyncio.timeout(40):
            await self._reading
            return await self.process.wait()

    def write(self, configuration: Mapping[str, Any]) -> None:
        """Change its file, as an editor does that replaces it."""
        beside = self.file.with_suffix(".new")
        beside.write_text(json.dumps(configuration))
        beside.replace(self.file)

    def reload(self, configuration: Mapping[str, Any]) -> None:
        """Change its file and tell it so; by itself it looks once a second."""
        self.write(configuration)
        self.send(signal.SIGHUP)


def configured(servers: Mapping[str, Any], port: int, **sections: Any) -> dict[str, Any]:
    """A small configuration before ``servers``: names to origins, or to their section."""
    return {
        "listen": f"127.0.0.1:{port}",
        "servers": {
            name: {"url": f"{given}/mcp"} if isinstance(given, str) else given for name, given in servers.items()
        },
        "auth": False,
        "drain": "10s",
        **sections,
    }


@asynccontextmanager
async def running(
    directory: Path, servers: Mapping[str, Any], *, options: tuple[str, ...] = (), **sections: Any
) -> AsyncIterator[Process]:
    """The gateway as a process of its own, once it serves."""
    port = free_port()
    file = directory / "gateway.yaml"
    file.write_text(json.dumps(configured(servers, port, **sections)))
    command = (sys.executable, "-m", "mcp_middleware.gateway", "run", *options, str(file))
    started = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    process = Process(started, port, file, "https" if "tls" in sections else "http")
    try:
        await process.wrote("listens on")
        yield process
    finally:
        if started.returncode is None:
            with suppress(ProcessLookupError, AssertionError):
                process.send(signal.SIGTERM)
                await process.wrote("stopping")
                process.send(signal.SIGTERM)
        try:
            await process.ended()
        finally:
            if started.returncode is None:
                started.kill()


def client(verify: ssl.SSLContext | bool = True) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(timeout=TIMEOUT, verify=verify)
