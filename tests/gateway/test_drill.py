"""Two gateway replicas before instances that are killed, hung and restarted, under ten thousand calls.

No call is answered by a session's wrong instance, none reaches a server twice, and every call that a server saw is in
the trail once, whatever died meanwhile (cases 21, 36 and 40).
"""

import asyncio
import itertools
import json
import os
import signal
import sys
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from examples.authorization_server import AuthorizationServer, create_app
from mcp_middleware.audit.query import AuditTrail
from mcp_middleware.types import Era
from tests.authorization_server.running import mint
from tests.mcp_servers import KINDS
from tests.support import (
    SESSION_KEY,
    answer_of,
    connect,
    headers_for,
    initialize,
    listener,
    message,
    origin_of,
    serve,
    text_of,
)

from .gateways import CI, sections

CALLS = 10_000
WORKERS = 24
TIMEOUT = 3.0
"""Seconds until the gateway gives an instance up."""


class Process:
    """One process of the drill, started again by the same command."""

    def __init__(self, *command: str, ready: str, log: Path, environment: dict[str, str]) -> None:
        self.command, self.ready, self.log = command, ready, log
        self.environment = environment
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        # Without the measuring of coverage, which would make half of the load.
        plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *self.command, stdout=log, stderr=log, env={**plain, **self.environment}
            )
        async with httpx2.AsyncClient() as http:
            for _ in range(1500):
                try:
                    if (await http.request("OPTIONS" if "mcp" in self.ready else "GET", self.ready)).status_code < 500:
                        return
                except httpx2.HTTPError:
                    pass
                assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.02)
        raise AssertionError(self.log.read_text())

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def stop(self, number: signal.Signals = signal.SIGKILL) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.process.wait()


@dataclass
class Drill:
    """What the workers share."""

    replicas: list[str]
    token: str
    http: httpx2.AsyncClient
    ids: Any = field(default_factory=lambda: itertools.count())
    done: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    reached: dict[int, asyncio.Event] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.done >= CALLS

    def count(self) -> None:
        self.done += 1
        event = self.reached.get(self.done)
        if event is not None:
            event.set()

    async def after(self, calls: int) -> None:
        if self.done < calls:
            await self.reached.setdefault(calls, asyncio.Event()).wait()

    async def call(self, worker: int, era: Era, session: str | None) -> str | None:
        """Where one call was answered; None if it was lost in a way that may be while something is down."""
        text = f"raw-{next(self.ids)}"
        body = message("tools/call", {"name": "where", "arguments": {"text": text}}, id=text, era=era)
        headers = headers_for(body, era=era, token=self.token, session=session)
        self.count()
        try:
            url = self.replicas[(worker + self.done) % 2]
            reply = await self.http.post(url, content=json.dumps(body), headers=headers)
        except httpx2.TransportError:
            self.lost["a replica was gone"] += 1
            return None
        if reply.status_code in (404, 502, 503, 504):
            if answer_of(reply)["id"] != text:
                self.wrong.append(f"{text} was answered {reply.text}")
            self.lost[str(reply.status_code)] += 1
            return "404" if reply.status_code == 404 else None
        answer = answer_of(reply)
        if "error" in answer:
            self.lost[answer["error"]["message"]] += 1
            return None
        place, _, said = answer["result"]["content"][0]["text"].partition(" ")
        if said != text or answer["id"] != text:
            self.wrong.append(f"{text} was answered {answer}")
        return str(place)


async def legacy_worker(drill: Drill, worker: int) -> None:
    """Sessions that stay where they began, through either replica."""
    while not drill.over:
        try:
            session = await initialize(drill.http, drill.replicas[worker % 2], token=drill.token)
        except (httpx2.TransportError, RuntimeError):
            drill.lost["no session"] += 1
            await asyncio.sleep(0.05)
            continue
        home: str | None = None
        while not drill.over:
            place = await drill.call(worker, "legacy", session)
            if place == "404":
                break
            if place is None:
                await asyncio.sleep(0.02)
                continue
            if home not in (None, place):
                drill.wrong.append(f"a session moved from {home} to {place}")
            home = place


async def modern_worker(drill: Drill, worker: int) -> None:
    while not drill.over:
        if await drill.call(worker, "modern", None) is None:
            await asyncio.sleep(0.02)


async def client_worker(drill: Drill, worker: int, era: Era) -> None:
    """The official client, connecting again whenever its connection is lost."""
    while not drill.over:
        try:
            async with connect(drill.replicas[worker % 2], token=drill.token, era=era) as client:
                home: str | None = None
                while not drill.over:
                    text = f"client-{next(drill.ids)}"
                    drill.count()
                    result = await client.call_tool("where", {"text": text})
                    place, _, said = text_of(result).partition(" ")
                    if said != text:
                        drill.wrong.append(f"{text} was answered {text_of(result)}")
                    if era == "legacy" and home not in (None, place):
                        drill.wrong.append(f"a client's session moved from {home} to {place}")
                    home = place
        except Exception as error:  # whatever the client makes of an instance or a replica that is gone
            drill.lost[f"client: {type(error).__name__}"] += 1
            await asyncio.sleep(0.05)


async def trouble(drill: Drill, instances: list[Process], gateways: list[Process]) -> None:
    """One thing after the other goes wrong."""
    step = CALLS // 8
    await drill.after(step)
    await instances[0].stop()
    await drill.after(2 * step)
    await instances[0].start()
    await drill.after(3 * step)
    instances[1].send(signal.SIGSTOP)
    await asyncio.sleep(TIMEOUT + 0.5)
    instances[1].send(signal.SIGCONT)
    await drill.after(4 * step)
    await gateways[0].stop()
    await drill.after(5 * step)
    await gateways[0].start()
    await drill.after(6 * step)
    assert await gateways[1].stop(signal.SIGTERM) == 0
    await gateways[1].start()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_ten_thousand_calls_find_their_way_whatever_dies(tmp_path: Path) -> None:
    """One instance is FastMCP's, the other the SDK's: to the gateway they are alike."""
    seen = tmp_path / "seen"
    seen.touch()
    sockets = [listener() for _ in range(5)]
    ports = [bound.getsockname()[1] for bound in sockets]
    issuer_socket = sockets.pop()
    origins = [origin_of(bound) for bound in sockets]
    for bound in sockets:
        bound.close()
    public = origins[2]
    issuer = AuthorizationServer(
        origin_of(issuer_socket), clients=[CI], resources=[f"{public}/files/mcp"], lifetime=3600
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    instances = [
        Process(
            *("tests.gateway.located", KINDS[n], f"i{n}", str(ports[n]), str(seen)),
            ready=f"{origins[n]}/mcp",
            log=tmp_path / f"instance-{n}.log",
            environment=environment,
        )
        for n in range(2)
    ]
    gateways = []
    for n in (2, 3):
        config = sections(
            {"files": {"instances": [f"{origin}/mcp" for origin in origins[:2]], "timeout": TIMEOUT}},
            origin=origins[n],
            issuer=issuer.issuer,
            trail=tmp_path / "audit.db",
            public_url=public,
            sessions={"keys": ["${SESSION_KEY}"], "per_agent": 100_000},
            access_log=False,
        )
        file = tmp_path / f"gateway-{n}.yaml"
        file.write_text(yaml.safe_dump(config))
        gateways.append(
            Process(
                *("mcp_middleware.gateway", "run", str(file)),
                ready=f"{origins[n]}/readyz",
                log=tmp_path / f"gateway-{n}.log",
                environment=environment | {"SESSION_KEY": SESSION_KEY},
            )
        )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serve(create_app(issuer), bound=issuer_socket))
        for process in (*instances, *gateways):
            await process.start()
            stack.push_async_callback(process.stop)
        limits = httpx2.Limits(max_connections=WORKERS)
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=30, limits=limits))
        token = mint(issuer, CI, resource=f"{public}/files/mcp", scopes={"mcp:use"})
        drill = Drill([f"{origins[2]}/files/mcp", f"{origins[3]}/files/mcp"], token, http)
        workers = [legacy_worker(drill, n) for n in range(WORKERS // 2)]
        workers += [modern_worker(drill, n) for n in range(WORKERS // 2 - 2)]
        workers += [client_worker(drill, 0, "legacy"), client_worker(drill, 1, "modern")]
        await asyncio.gather(*workers, trouble(drill, instances, gateways))
        for process in gateways:
            assert await process.stop(signal.SIGTERM) == 0
    assert not drill.wrong
    arrived = Counter(seen.read_text().split())
    assert len(arrived) > CALLS * 0.8, drill.lost
    assert not [text for text, times in arrived.items() if times > 1], "nothing is sent twice"
    records = [record for record in AuditTrail(tmp_path / "audit.db").read() if record.target == "where"]
    recorded = Counter(record.request_id for record in records)
    assert not [text for text in arrived if text.startswith("raw-") and recorded[text] != 1], "all in the trail, once"
    by_clients = [record for record in records if isinstance(record.request_id, int)]
    assert len(by_clients) >= sum(text.startswith("client-") for text in arrived)
