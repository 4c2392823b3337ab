"""What the demonstration starts: an issuer, four processes of MCP servers, and the gateway with everything on."""

import asyncio
import base64
import json
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx2

from .agent import Agent
from .issuer import CLIENTS, Client
from .processes import START_SECONDS, Running, run
from .servers import KEY

__all__ = ["Stage", "free_port", "set_up", "until_ready"]

_CONFIGURATION: Final = """\
# Written by mcp-gateway demo. It holds no secret: they are in files beside it.
listen: 127.0.0.1:{port}
public_url: http://127.0.0.1:{port}
servers:
  search: {{url: {search}}}
  files:
    instances: [{files_1}, {files_2}]
    credentials: {{type: header, name: X-Api-Key, value: {{file: files.key}}}}
  tickets: {{url: {tickets}}}
auth: {{issuers: [{issuer}], scopes: [mcp:use]}}
access:
  default: deny
  rules:
    - {{agents: ["*"], servers: [search], tools: ["*"]}}
    - {{agents: [assistant], servers: [files], tools: ["*"]}}
    - {{agents: [assistant], servers: [tickets], tools: [list_tickets]}}
    - {{agents: [assistant], servers: [tickets], tools: [create_ticket], scopes: ["tickets:write"]}}
limits:
  requests: 300/minute
  tokens: 50000/minute
  agents: {{crawler: {{requests: {{rate: 60/minute, burst: 10}}}}}}
prices: {{currency: EUR, rules: [{{input: 15, output: 3, call: 0.002}}]}}
budgets: [{{period: day, amount: 5}}]
sessions: {{keys: [{{file: session.key}}], idle: 30m}}
{tracing}
audit: {{sqlite: audit.db}}
"""

_SCOPES: Final = {"assistant": ("mcp:use", "tickets:write"), "crawler": ("mcp:use",)}
"""The agents, and what each may ask the issuer for."""

_POLL_SECONDS: Final = 0.05


class Stage:
    """Everything, running. Its processes end with ``stack``; the files in ``home`` stay."""

    def __init__(self, home: Path, stack: AsyncExitStack, *, port: int) -> None:
        self.home = home
        """Where the configuration, the audit trail and the logs are."""
        self.origin = f"http://127.0.0.1:{port}"
        self.issuer = ""
        self.agents: dict[str, Agent] = {}
        self.files: dict[str, str] = {}
        """The URLs of the instances of the files server, by what they call themselves."""
        self.configuration = ""
        self._port = port
        self._stack = stack
        self._key = secrets.token_urlsafe(24)
        self._running: dict[str, Running] = {}

    def url(self, server: str) -> str:
        """Where agents find a server."""
        return f"{self.origin}/{server}/mcp"

    async def start(self, otlp: str | None) -> None:
        """Start everything. Raises DemoError."""
        self._write("files.key", self._key)
        self._write("session.key", base64.b64encode(secrets.token_bytes(32)).decode())
        clients = [Client(name, secrets.token_urlsafe(24), frozenset(scopes)) for name, scopes in _SCOPES.items()]
        resources = [f"--resource={self.url(server)}" for server in ("search", "files", "tickets")]
        started = [
            await self._run("issuer", "gateway.demo.issuer", *resources, **{CLIENTS: Client.dump(clients)}),
            await self._serve("search", "search"),
            await self._serve("tickets", "tickets"),
            await self._serve("files", "files-1"),
            await self._serve("files", "files-2"),
        ]
        self.issuer, search, tickets, *files = await asyncio.gather(*(running.url() for running in started))
        self.agents = {one.client_id: Agent(one.client_id, self.issuer, one.secret) for one in clients}
        self.files = dict(zip(("files-1", "files-2"), files, strict=True))
        self.configuration = _CONFIGURATION.format(
            port=self._port,
            issuer=self.issuer,
            search=search,
            tickets=tickets,
            files_1=files[0],
            files_2=files[1],
            tracing=f"tracing: {{otlp: {json.dumps(otlp)}}}"
            if otlp
            else "# tracing: {otlp: URL}   # mcp-gateway demo --otlp URL",
        )
        path = self.home / "gateway.yaml"
        path.write_text(self.configuration)
        await until_ready(self.origin, await self._run("gateway", "gateway", "run", str(path)))

    async def kill(self, instance: str) -> int:
        """End an instance of the files server as a crash would. Returns the id that its process had."""
        running = self._running[instance]
        await running.kill()
        return running.pid

    async def revive(self, instance: str) -> None:
        """Start an instance that was killed again, where it was. Raises DemoError."""
        running = await self._serve("files", instance, urlsplit(self.files[instance]).port or 0)
        await running.url()

    async def _serve(self, server: str, instance: str, port: int = 0) -> Running:
        module = "gateway.demo.servers"
        return await self._run(instance, module, server, f"--instance={instance}", f"--port={port}", **{KEY: self._key})

    async def _run(self, name: str, module: str, *arguments: str, **environment: str) -> Running:
        running = await self._stack.enter_async_context(
            run(name, module, *arguments, home=self.home, environment=environment)
        )
        self._running[name] = running
        return running

    def _write(self, name: str, secret: str) -> None:
        path = self.home / name
        path.touch(mode=0o600)
        path.write_text(secret)


@asynccontextmanager
async def set_up(*, port: int | None = None, otlp: str | None = None) -> AsyncIterator[Stage]:
    """Start everything, and end it after the block. Raises DemoError.

    The gateway listens on ``port`` (default: a free one), and sends traces and metrics to ``otlp`` where that is given.
    """
    home = Path(tempfile.mkdtemp(prefix="mcp-gateway-demo-"))
    async with AsyncExitStack() as stack:
        stage = Stage(home, stack, port=port or free_port())
        await stage.start(otlp)
        yield stage


async def until_ready(origin: str, gateway: Running) -> None:
    """Wait until a gateway says at ``/readyz`` that it is ready. Raises DemoError."""
    async with httpx2.AsyncClient(timeout=5.0) as http:
        for _ in range(int(START_SECONDS / _POLL_SECONDS)):
            with suppress(httpx2.TransportError):
                if (await http.get(f"{origin}/readyz")).status_code == 200:
                    return
            if gateway.ended:
                break
            await asyncio.sleep(_POLL_SECONDS)
    raise gateway.failed()


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
