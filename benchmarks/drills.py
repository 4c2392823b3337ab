"""``python -m benchmarks.drills``: what a gateway's callers notice of rotation, outage and revocation. Linux only.

The gateway (`mcp-gateway run`), the development authorization server, once with JWTs and once with opaque tokens, and
an echo server behind are processes of their own. Every time is the default one.

1. Rotation: agents each get a new token, call once with it, and so on; meanwhile the key is replaced, and the old one
   then withdrawn.
2. Outage: both authorization servers are stopped, so that they take connections and answer none. Known callers go on;
   others come with tokens that were issued before.
3. Revocation: of a token that the gateway has just asked about, which is the worst moment.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from .processes import announced_port, free_port, process, wait_for

RESULTS = Path("benchmarks/drills.json")

_PROOF = {"client_id": "agent", "client_secret": "a secret of the drills"}
_CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "echo", "arguments": {"text": "x"}},
}
_HEADERS = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-11-25"}
_AGENTS = 8


@dataclass
class Place:
    """What runs, and how it is called."""

    url: str
    keys: tuple[str, int]
    """The authorization server with JWTs: its issuer and its process."""
    opaque: tuple[str, int]
    http: httpx2.AsyncClient = field(repr=False)

    async def token(self, issuer: str) -> str:
        """A new access token of the agent's own."""
        form = {"grant_type": "client_credentials", "resource": self.url, "scope": "mcp:use", **_PROOF}
        answer = (await self.http.post(f"{issuer}/token", data=form)).raise_for_status()
        return str(answer.json()["access_token"])

    async def call(self, token: str) -> tuple[int, float]:
        """The status of a tool call's answer, and the milliseconds that it took."""
        begun = time.perf_counter()
        headers = {**_HEADERS, "authorization": f"Bearer {token}"}
        answer = await self.http.post(self.url, json=_CALL, headers=headers)
        return answer.status_code, (time.perf_counter() - begun) * 1e3

    async def good(self, token: str) -> float:
        """The milliseconds of a call that must be served."""
        status, took = await self.call(token)
        if status != 200:
            raise RuntimeError(f"a good caller was answered {status}")
        return took

    async def until(self, wanted: int, token: str) -> None:
        """Call with ``token`` until it is answered ``wanted``."""
        while True:
            status, _ = await self.call(token)
            if status == wanted:
                return
            await asyncio.sleep(0.02)


@contextmanager
def running(directory: Path) -> Iterator[tuple[str, tuple[str, int], tuple[str, int]]]:
    """The URL of the gateway's server, and both authorization servers, while the context lasts."""
    ports = [free_port() for _ in range(3)]
    url = f"http://127.0.0.1:{ports[0]}/echo/mcp"
    (directory / "clients.json").write_text(json.dumps([{"client_id": "agent", "secret": _PROOF["client_secret"]}]))
    with ExitStack() as stack, (directory / "log").open("w") as log:
        servers = []
        for port, form in zip(ports[1:], ("jwt", "opaque"), strict=True):
            options = ["--port", str(port), "--resource", url, "--clients", str(directory / "clients.json")]
            command = [sys.executable, "-m", "examples.authorization_server", *options, "--form", form]
            started = stack.enter_context(process(command, output=log, errors=log))
            servers.append((f"http://127.0.0.1:{port}", started.pid))
        echo = [sys.executable, "-m", "benchmarks.servers", "echo", "http://127.0.0.1:9", str(directory)]
        behind = announced_port(stack.enter_context(process(echo, errors=log)))
        configuration = {
            "listen": f"127.0.0.1:{ports[0]}",
            "public_url": f"http://127.0.0.1:{ports[0]}",
            "servers": {"echo": {"url": f"http://127.0.0.1:{behind}/mcp"}},
            "auth": {"issuers": [servers[0][0], {"issuer": servers[1][0], "introspection": _PROOF}]},
            "access": {"default": "allow"},
            "access_log": False,
        }
        file = directory / "gateway.yaml"
        file.write_text(json.dumps(configuration))
        for port in ports[1:]:
            wait_for(port)
        command = [sys.executable, "-m", "mcp_middleware.gateway", "run", str(file), "--log-level", "error"]
        stack.enter_context(process(command, output=log, errors=log))
        wait_for(ports[0])
        yield url, servers[0], servers[1]


async def rotation(place: Place, seconds: float) -> dict[str, float]:
    """Calls with a new token each, while the key is replaced and withdrawn."""
    issuer, pid = place.keys
    took: list[float] = []
    ends = time.monotonic() + seconds

    async def agent() -> None:
        while time.monotonic() < ends:
            took.append(await place.good(await place.token(issuer)))

    async def rotate() -> None:
        for _ in range(2):  # a new key beside the old one; then that one goes, and the new one stays
            await asyncio.sleep(seconds / 3)
            os.kill(pid, signal.SIGHUP)

    await asyncio.gather(rotate(), *(agent() for _ in range(_AGENTS)))
    return {"calls, each with a new token": len(took), "p50, ms": statistics.median(took), "longest, ms": max(took)}


async def outage(place: Place, seconds: float) -> dict[str, float]:
    """Calls while no authorization server answers, and how soon they are noticed to be back."""
    issuers = (place.keys, place.opaque)
    known = [await place.token(issuer) for issuer, _ in issuers]
    for token in known:
        await place.good(token)
    new = [await place.token(place.keys[0]) for _ in range(100)]
    unknown = [await place.token(place.opaque[0]) for _ in range(100)]
    for _, pid in issuers:
        os.kill(pid, signal.SIGSTOP)
    try:
        first = asyncio.create_task(place.call(unknown[0]))
        served: list[float] = []
        newly: list[float] = []
        refused: list[float] = []
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            served += [await place.good(token) for token in known]
            newly += [await place.good(new.pop())] if new else []
            if first.done():
                status, took = await place.call(unknown[len(refused) % 99 + 1])
                if status != 503:
                    raise RuntimeError(f"a caller who is not known was answered {status}")
                refused.append(took)
            await asyncio.sleep(0.05)
    finally:
        for _, pid in issuers:
            os.kill(pid, signal.SIGCONT)
    back = time.monotonic()
    await place.until(200, unknown[0])
    return {
        "calls of known callers": len(served),
        "longest of theirs, ms": max(served),
        "longest with a new JWT, ms": max(newly),
        "first that has to be introspected, 503 after, ms": (await first)[1],
        "longest of the next ones, 503, ms": max(refused),
        "introspected again after, s": time.monotonic() - back,
    }


async def revocation(place: Place) -> dict[str, float]:
    """How long a token counts after it was revoked."""
    issuer, _ = place.opaque
    token = await place.token(issuer)
    await place.good(token)
    begun = time.monotonic()
    (await place.http.post(f"{issuer}/revoke", data={"token": token, **_PROOF})).raise_for_status()
    await place.until(401, token)
    return {"refused after, s": time.monotonic() - begun}


async def drill(quick: bool) -> dict[str, Any]:
    """All three, one after the other."""
    with tempfile.TemporaryDirectory() as directory, running(Path(directory)) as (url, keys, opaque):
        async with httpx2.AsyncClient(timeout=60) as http:
            place = Place(url, keys, opaque, http)
            await place.good(await place.token(keys[0]))
            found = {
                "rotation": await rotation(place, 3 if quick else 15),
                "outage": await outage(place, 8 if quick else 20),
                "revocation": await revocation(place),
            }
    return {name: {each: float(f"{value:.3g}") for each, value in part.items()} for name, part in found.items()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drills", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter drills: some forty seconds, most of one cache")
    parser.add_argument("--json", type=Path, help=f"file for the figures; a whole run writes {RESULTS}")
    options = parser.parse_args()
    text = json.dumps(asyncio.run(drill(options.quick)), indent=1) + "\n"
    print(text, end="")
    target = options.json or (None if options.quick else RESULTS)
    if target is not None:
        target.write_text(text)


if __name__ == "__main__":
    main()
