"""``python -m benchmarks.tokens``: what verifying a token costs, and what a flood of junk does to good callers.

1. A token that is known, beside the hash of its text.
2. A new token, beside PyJWT's check of it, and beside the bare check of its signature.
3. The check of a signature, for each kind of key.
4. Good callers of a server over HTTP, while tokens that are none are verified in the same process at 10,000 a second:
   their p99 beside that of the same callers in quiet. The flood arrives one token at a time, each in its own turn of
   the event loop, and as many tokens that are known tell what the turns alone cost.
5. What a request waits for an issuer that takes connections and never answers, once that is known.
"""

import argparse
import asyncio
import hashlib
import json
import os
import socket
import statistics
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import jwt
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from mcp_middleware.exchange import Receive, Scope, Send
from mcp_middleware.oauth.http import IssuerUnavailableError
from mcp_middleware.resource_server import (
    ClientSecret,
    Introspection,
    Issuer,
    IssuersVerifier,
    OAuthResourceServerMiddleware,
)
from mcp_middleware.resource_server.keys import parse_jwks
from mcp_middleware.resource_server.tokens import parse_token
from mcp_middleware.testing import FakeClock

from . import wire
from .echo import echo
from .identity import RESOURCE, SCOPE, issuer
from .load import ask
from .processes import Server, announced_port, process, wait_for

RESULTS = Path("benchmarks/tokens.json")

FLOOD = 10_000
"""Tokens a second."""
POOL = 20_000
"""Different tokens of one kind; far more than are remembered."""
KINDS = ("quiet", "known", "garbage", "expired", "other issuer", "unknown key", "forged", "mixed")
"""``quiet`` is no flood, ``known`` one of a good token that is known."""
EVERY = 0.002
"""Seconds from one good call to the next."""

KEYS: dict[str, Callable[[], Any]] = {
    "RS256 2048": lambda: rsa.generate_private_key(65537, 2048),
    "RS256 4096": lambda: rsa.generate_private_key(65537, 4096),
    "RS256 8192": lambda: rsa.generate_private_key(65537, 8192),
    "PS256 2048": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


def _each(seconds: float, work: Callable[[], object]) -> float:
    """Microseconds that ``work`` takes: the median of short runs that fill ``seconds``."""
    work()
    clock, runs = time.perf_counter, []
    end = clock() + seconds
    while clock() < end:
        begun = clock()
        for _ in range(20):
            work()
        runs.append((clock() - begun) / 20)
    return statistics.median(runs) * 1e6


def signatures(seconds: float) -> dict[str, float]:
    """Microseconds of the bare check, by key."""
    found = {}
    for name, make in KEYS.items():
        algorithm, private, signed = name.partition(" ")[0], make(), b"x" * 500
        own = get_default_algorithms()[algorithm]
        public, signature = private.public_key(), own.sign(signed, private)
        found[name] = _each(seconds, partial(own.verify, signed, public, signature))
    return found


async def known_and_new(algorithm: Literal["ES256", "RS256"], rounds: int, tokens: int) -> dict[str, float]:
    """Microseconds of a known token and of its hash; of a new token, of PyJWT's check of it, with the key at hand, and
    of the bare check of its signature. Of the last three the processor's time, and of all the lower quartile over the
    rounds: what else runs on a machine adds to a round, and takes nothing away."""
    with issuer(algorithm) as issued_by:
        verifier = IssuersVerifier(resource=RESOURCE, issuers=[issued_by.url])
        first = issued_by.token()
        if await verifier.verify_token(first) is None:
            raise RuntimeError("a good token was refused")
        header, text = f"Bearer {first}".encode(), first.encode()
        figures: dict[str, list[float]] = {name: [] for name in ("hash", "known", "signature", "PyJWT", "new")}
        clock = time.thread_time
        for number in range(rounds):
            figures["hash"].append(_each(0.02, lambda: hashlib.sha256(text).digest()))
            figures["known"].append(_each(0.02, lambda: verifier.recall(header)))
            fresh = [issued_by.token(f"{number}-{index}") for index in range(tokens)]
            parsed, key = [parse_token(token) for token in fresh], parse_jwks(issued_by.jwks()).keys[0]
            begun = clock()
            for each in parsed:
                key.verifies(algorithm, each.signed, each.signature)
            figures["signature"].append((clock() - begun) / tokens * 1e6)
            begun = clock()
            for token in fresh:
                jwt.decode(token, key.key, algorithms=[algorithm], audience=RESOURCE, issuer=issued_by.url)
            figures["PyJWT"].append((clock() - begun) / tokens * 1e6)
            begun = clock()
            for token in fresh:
                await verifier.verify_token(token)
            figures["new"].append((clock() - begun) / tokens * 1e6)
        await verifier.aclose()
    return {name: statistics.quantiles(values, n=4)[0] for name, values in figures.items()}


def junk(kind: str, good: str) -> list[str]:
    """Tokens that prove nothing, each different; ``good`` is one that proves something."""
    if kind == "mixed":
        several = [junk(each, good)[: POOL // 5] for each in KINDS[2:-1]]
        return [token for group in zip(*several, strict=True) for token in group]
    header, payload, signature = good.split(".")
    claims = json.loads(jwt.utils.base64url_decode(payload))
    names = [hashlib.sha256(f"{kind} {number}".encode()).hexdigest() for number in range(POOL)]

    def part(document: dict[str, Any]) -> str:
        return jwt.utils.base64url_encode(json.dumps(document).encode()).decode()

    if kind == "known":
        return [good]
    if kind == "garbage":
        return names
    if kind == "expired":
        return [f"{header}.{part({**claims, 'exp': 1, 'jti': name})}.{signature}" for name in names]
    if kind == "other issuer":
        return [f"{header}.{part({**claims, 'iss': f'https://{name}.example'})}.{signature}" for name in names]
    if kind == "unknown key":
        head = json.loads(jwt.utils.base64url_decode(header))
        return [f"{part({**head, 'kid': name})}.{payload}.{signature}" for name in names]
    return [f"{header}.{part({**claims, 'jti': name})}.{signature}" for name in names]


class Flooded:
    """The echo server behind the resource server, and a flood of tokens that ``GET /flood/KIND`` chooses."""

    def __init__(self, url: str, good: str) -> None:
        self.verifier = IssuersVerifier(resource=RESOURCE, issuers=[url])
        self._app = OAuthResourceServerMiddleware(echo, resource=RESOURCE, verifier=self.verifier, scopes=[SCOPE])
        self._pools = {kind: junk(kind, good) for kind in KINDS[1:]}
        self._flood: asyncio.Task[None] | None = None
        self._verified = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/flood/"):
            await self._app(scope, receive, send)
            return
        verified, self._verified = self._verified, 0
        if self._flood is not None:
            self._flood.cancel()
            self._flood = None
        kind = scope["path"].removeprefix("/flood/")
        if kind != "quiet":
            self._flood = asyncio.create_task(self._run(self._pools[kind]))
        body = str(verified).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _run(self, tokens: Sequence[str]) -> None:
        begun, number = time.perf_counter(), 0
        while True:
            due = (time.perf_counter() - begun) * FLOOD
            if number >= due:
                await asyncio.sleep(0.001)
                continue
            with suppress(IssuerUnavailableError):
                await self.verifier.verify_token(tokens[number % len(tokens)])
            number += 1
            self._verified += 1
            await asyncio.sleep(0)


def serve(url: str, good: str) -> None:
    """The server's process."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(("127.0.0.1", 0))
    app = Flooded(url, good)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", ws="none", log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def serving(url: str, good: str) -> Iterator[Server]:
    """The server on the first core, this process on the last."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    try:
        with process([sys.executable, "-m", "benchmarks.tokens", "--serve", url, good]) as started:
            os.sched_setaffinity(0, cores[-1:])
            port = announced_port(started)
            wait_for(port)
            yield Server(port, (started.pid,))
    finally:
        os.sched_setaffinity(0, cores)


def flood(rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """For each kind of flood: p50 and p99 of good calls (microseconds), the tokens verified a second, and the part of
    its core that the server took.

    Each is the lower quartile over the rounds: what else runs on a machine adds to a round, and takes nothing away.
    """
    p50s, p99s, rates, cores = ({kind: list[float]() for kind in KINDS} for _ in range(4))
    with issuer("ES256") as issued_by:
        good = issued_by.token()
        with serving(issued_by.url, good) as server:
            port = server.port
            call = wire.call("legacy", good, None, "x" * 100, 1)
            _calls(port, call, 0.3)
            for number in range(rounds):
                for kind in KINDS if number % 2 == 0 else KINDS[::-1]:
                    _choose(port, kind)
                    begun = time.perf_counter()
                    _calls(port, call, seconds * 0.2)  # what a flood may save up is gone by then
                    worked, at = server.cpu_seconds(), time.perf_counter()
                    ordered = sorted(_calls(port, call, seconds))
                    cores[kind].append((server.cpu_seconds() - worked) / (time.perf_counter() - at))
                    rates[kind].append(_choose(port, "quiet") / (time.perf_counter() - begun))
                    p50s[kind].append(ordered[len(ordered) // 2] * 1e6)
                    p99s[kind].append(ordered[int(len(ordered) * 0.99)] * 1e6)
    return {
        kind: {
            "p50": statistics.quantiles(p50s[kind], n=4)[0],
            "p99": statistics.quantiles(p99s[kind], n=4)[0],
            "verified": statistics.median(rates[kind]),
            "core": statistics.quantiles(cores[kind], n=4)[0],
        }
        for kind in KINDS
    }


def _choose(port: int, kind: str) -> int:
    """Have the server flooded with ``kind``; how many tokens the flood before had verified."""
    request = f"GET /flood/{kind.replace(' ', '%20')} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    return int(ask(port, request.encode())[1].rpartition(b"\r\n\r\n")[2])


def _calls(port: int, request: bytes, seconds: float) -> "array[float]":
    """Good calls, one every few milliseconds on one connection: the seconds that each took."""
    clock, latencies = time.perf_counter, array("d")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun = clock()
        turns = int(seconds / EVERY)
        for turn in range(turns):
            time.sleep(max(0.0, begun + turn * EVERY - clock()))
            answer = wire.Answer()
            sent = clock()
            connection.sendall(request)
            while not answer.complete:
                answer.feed(connection.recv(1 << 16))
            latencies.append(clock() - sent)
            if answer.status != 200:
                raise RuntimeError(f"a good caller was answered {answer.head[:300]!r}")
    return latencies


async def outage(requests: int) -> dict[str, float]:
    """The longest wait of so many requests, in milliseconds, while the issuer is a black hole."""
    clock = FakeClock()
    with issuer() as issued_by:
        by_keys = IssuersVerifier(resource=RESOURCE, issuers=[issued_by.url], monotonic=clock)
        tokens = [issued_by.token(str(number)) for number in range(requests + 2)]
        await by_keys.verify_token(tokens[0])
    asked = Issuer(issued_by.url, introspection=Introspection(ClientSecret("a", "b"), endpoint=f"{issued_by.url}/"))
    by_asking = IssuersVerifier(resource=RESOURCE, issuers=[asked], monotonic=clock)
    found = {}
    with socket.create_server(("127.0.0.1", urlsplit(issued_by.url).port or 0), backlog=1024):
        clock.advance(450)
        await by_keys.verify_token(tokens[1])  # has the keys fetched ahead of time
        found["introspection, not yet known to be silent"] = await _longest(by_asking, ["opaque"])
        await asyncio.sleep(1)  # by now both fetches have been given up
        clock.advance(150)
        found["new tokens, keys too old"] = await _longest(by_keys, tokens[2:])
        found["introspection, the next try"] = await _longest(by_asking, ["opaque-2"])
        found["introspection, left alone"] = await _longest(by_asking, tokens[2:])
        await by_keys.aclose()
        await by_asking.aclose()
    return found


async def _longest(verifier: IssuersVerifier, tokens: Sequence[str]) -> float:
    waits = []
    for token in tokens:
        begun = time.perf_counter()
        with suppress(IssuerUnavailableError):
            await verifier.verify_token(token)
        waits.append(time.perf_counter() - begun)
    return max(waits) * 1e3


def _rounded(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _rounded(value) for name, value in document.items()}
    return float(f"{document:.3g}") if isinstance(document, float) else document


def measure(quick: bool) -> dict[str, Any]:
    """All figures. Times are microseconds where nothing else is said."""
    rounds = 5 if quick else 15
    tokens = 100 if quick else 300
    costs = {
        "ES256": asyncio.run(known_and_new("ES256", rounds, tokens)),
        "RS256": asyncio.run(known_and_new("RS256", rounds, tokens)),
    }
    flooded = flood(4 if quick else 16, 0.5 if quick else 0.8)
    quiet, known, core = flooded["quiet"]["p99"], flooded["known"]["p99"], flooded["known"]["core"]
    ratios = {
        **{f"known beyond its hash, {each}, µs": cost["known"] - cost["hash"] for each, cost in costs.items()},
        **{f"new to PyJWT's check, {each}": cost["new"] / cost["PyJWT"] for each, cost in costs.items()},
        **{f"new to its signature, {each}": cost["new"] / cost["signature"] for each, cost in costs.items()},
        **{f"p99, flood of {kind} to quiet": flooded[kind]["p99"] / quiet for kind in KINDS[1:]},
        **{f"p99, flood of {kind} to known": flooded[kind]["p99"] / known for kind in KINDS[2:]},
        **{f"part of the core, flood of {kind} beyond known": flooded[kind]["core"] - core for kind in KINDS[2:]},
    }
    keys = signatures(0.1 if quick else 0.5)
    waits = asyncio.run(outage(200))
    return dict(_rounded({"ratios": ratios, "tokens": costs, "keys": keys, "flood": flooded, "outage, ms": waits}))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokens", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: some twenty seconds")
    parser.add_argument("--json", type=Path, help=f"file for the figures; a whole run writes {RESULTS}")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    document = measure(options.quick)
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    print(text, end="")
    target = options.json or (None if options.quick else RESULTS)
    if target is not None:
        target.write_text(text)


if __name__ == "__main__":
    main()
