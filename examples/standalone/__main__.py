"""A rolling deployment: ``python -m examples.standalone``.

Two replicas of the gateway run by ``gateway.yaml``, with nothing shared but the key of the sessions. A load balancer
gives them requests in turn, the requests of one session too. Then each replica is replaced while agents call.
"""

import asyncio
import base64
import itertools
import secrets
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from mcp_middleware.gateway.demo.agent import Agent, Call, Era
from mcp_middleware.gateway.demo.issuer import CLIENTS, Client
from mcp_middleware.gateway.demo.processes import DemoError, Running, run, until_signal
from mcp_middleware.gateway.demo.servers import KEY
from mcp_middleware.gateway.demo.stage import free_port, until_ready

PUBLIC_URL = "https://mcp.example.com"
FILES = f"{PUBLIC_URL}/files/mcp"
CONFIGURATION = Path(__file__).with_name("gateway.yaml")
AGENTS: dict[str, Era] = {"assistant": "legacy", "batch-1": "modern"}


class LoadBalancer(httpx2.AsyncBaseTransport):
    """What stands before the replicas: gives requests to those in rotation in turn, and knows nothing of sessions.

    For the official client it is a transport, so that this example needs no certificate for ``mcp.example.com``.
    """

    def __init__(self, rotation: list[str]) -> None:
        self._rotation = rotation
        self._turns = itertools.count()
        self._connections = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.host != urlsplit(PUBLIC_URL).hostname:
            return await self._connections.handle_async_request(request)  # to the issuer
        replica = self._rotation[next(self._turns) % len(self._rotation)]
        url = f"{replica}{request.url.raw_path.decode()}"
        return await self._connections.handle_async_request(
            httpx2.Request(
                request.method, url, headers=request.headers, stream=request.stream, extensions=request.extensions
            )
        )

    async def aclose(self) -> None:
        await self._connections.aclose()


@dataclass
class Tally:
    """What came of one agent's calls."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    instances: set[str] = field(default_factory=set)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, call: Call) -> None:
        """Count a call."""
        if call.error is None:
            self.passed += 1
            self.instances.add(call.text.rpartition("(")[2].rstrip(")"))
        else:
            self.failed.append(call.error)
        self._news.set()

    async def grow(self, calls: int) -> None:
        """Wait for so many calls more."""
        for _ in range(calls):
            self._news.clear()
            await self._news.wait()


class Deployment:
    """Two replicas, and what they stand between. Everything ends with ``stack``."""

    def __init__(self, home: Path, stack: AsyncExitStack) -> None:
        self.home = home
        self.stack = stack
        self.rotation: list[str] = []
        """The origins of the replicas that get requests."""
        self.agents: dict[str, Agent] = {}
        self.environment = {
            "PUBLIC_URL": PUBLIC_URL,
            "SESSION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
            KEY: secrets.token_urlsafe(24),
        }

    async def start_servers(self) -> None:
        """The issuer and the MCP servers, borrowed from ``mcp-gateway demo``."""
        clients = [Client(name, secrets.token_urlsafe(24), frozenset({"mcp:use"})) for name in AGENTS]
        issuer = await self.run("issuer", "issuer", f"--resource={FILES}", **{CLIENTS: Client.dump(clients)})
        search = await self.run("search", "servers", "search", "--instance=search")
        one = await self.run("files-1", "servers", "files", "--instance=files-1")
        other = await self.run("files-2", "servers", "files", "--instance=files-2")
        names = ("ISSUER", "SEARCH", "FILES_1", "FILES_2")
        urls = await asyncio.gather(*(running.url() for running in (issuer, search, one, other)))
        self.environment |= dict(zip(names, urls, strict=True))
        self.agents = {client.client_id: Agent(client.client_id, urls[0], client.secret) for client in clients}

    async def run(self, name: str, module: str, *arguments: str, **environment: str) -> Running:
        """Start a process of the demonstration."""
        given = self.environment | environment
        return await self.stack.enter_async_context(
            run(name, f"gateway.demo.{module}", *arguments, home=self.home, environment=given)
        )

    async def start_replica(self, name: str, port: int) -> Running:
        """Start a replica, wait until it is ready, and put it into rotation."""
        own = {"LISTEN": f"127.0.0.1:{port}", "AUDIT": str(self.home / f"{name}.db")}
        replica = await self.stack.enter_async_context(
            run(name, "gateway", "run", str(CONFIGURATION), home=self.home, environment=self.environment | own)
        )
        origin = f"http://127.0.0.1:{port}"
        await until_ready(origin, replica)
        self.rotation.append(origin)
        return replica

    async def replace(self, name: str, port: int, replica: Running) -> None:
        """What a rolling deployment does with each replica: no new requests, SIGTERM, and the next version."""
        self.rotation.remove(f"http://127.0.0.1:{port}")
        status = await replica.end()
        print(f"  {name} has finished its calls and ended with status {status}", flush=True)
        await self.start_replica(name, port)
        print(f"  {name} is back", flush=True)

    async def call(self, name: str, era: Era, done: asyncio.Event, tally: Tally) -> None:
        """Let an agent call the files server again and again, until all is ``done``."""
        tool = "next_line" if era == "legacy" else "count_words"
        arguments = {} if era == "legacy" else {"name": "agenda.txt"}
        async with self.agents[name].connect(FILES, era, transport=LoadBalancer(self.rotation)) as talk:
            if era == "legacy":
                await talk.call("open_file", name="agenda.txt")
            while not done.is_set():
                tally.add(await talk.call(tool, **arguments))
                await asyncio.sleep(0.05)


async def perform() -> int:
    """Run it all; 0 if no call failed."""
    with tempfile.TemporaryDirectory() as directory:
        async with AsyncExitStack() as stack:
            deployment = Deployment(Path(directory), stack)
            await deployment.start_servers()
            ports = {"replica-1": free_port(), "replica-2": free_port()}
            replicas = {name: await deployment.start_replica(name, port) for name, port in ports.items()}
            print(f"Two replicas of the gateway are up for {PUBLIC_URL}; their requests come in turn.", flush=True)
            done = asyncio.Event()
            tallies = {name: Tally() for name in AGENTS}
            async with asyncio.TaskGroup() as calls:
                for name, era in AGENTS.items():
                    calls.create_task(deployment.call(name, era, done, tallies[name]))
                await asyncio.gather(*(tally.grow(2) for tally in tallies.values()))
                print("Agents are calling, one of them in a session. The replicas are replaced:\n", flush=True)
                for name, port in ports.items():
                    await deployment.replace(name, port, replicas[name])
                await asyncio.gather(*(tally.grow(2) for tally in tallies.values()))
                done.set()
    print()
    for name, tally in tallies.items():
        instances = ", ".join(sorted(tally.instances))
        print(f"  {name:<9}  {AGENTS[name]:<6}  {tally.passed} calls, {len(tally.failed)} failed, by {instances}")
        for error in dict.fromkeys(tally.failed):
            print(f"             {error}")
    stayed = len(tallies["assistant"].instances) == 1
    return 0 if stayed and not any(tally.failed for tally in tallies.values()) else 1


def main() -> int:
    """The exit status."""
    try:
        return asyncio.run(until_signal(perform()))
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
