"""Callers of a gateway that leave it no rest, over plain sockets: a client that costs little, so that a test of two
cores can have 160 calls in flight."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Crowd", "Seen"]


@dataclass
class Seen:
    """What one or many callers were answered."""

    admitted: int = 0
    refused: int = 0
    failed: int = 0
    """Neither: nobody answered, or not as a limiter does."""
    latencies: list[float] = field(default_factory=list)
    """Of admitted calls, in seconds."""


class Crowd:
    """``callers`` that each call the ``tool`` of one gateway, and when refused come again after ``pause`` seconds."""

    def __init__(self, port: int, *, callers: int, pause: float, token: str | None = None, rest: float = 0.0) -> None:
        body = json.dumps(
            {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "tool", "arguments": {}}}
        )
        lines = [
            "POST /files/mcp HTTP/1.1",
            f"host: 127.0.0.1:{port}",
            "content-type: application/json",
            "accept: application/json, text/event-stream",
            "mcp-protocol-version: 2025-11-25",
            f"content-length: {len(body)}",
            *([f"authorization: Bearer {token}"] if token else []),
        ]
        self._request = ("\r\n".join(lines) + "\r\n\r\n" + body).encode()
        self._port = port
        self._callers = callers
        self._pause = pause
        self._rest = rest

    async def run(self, seconds: float, *, refusals: int = 0) -> Seen:
        """Call for that long, and on a busy machine until there were so many ``refusals``."""
        seen = Seen()
        ends = time.monotonic() + seconds
        await asyncio.gather(*(self._caller(ends, refusals, seen) for _ in range(self._callers)))
        return seen

    async def _caller(self, ends: float, refusals: int, seen: Seen) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            while time.monotonic() < ends or seen.refused < refusals:
                began = time.monotonic()
                writer.write(self._request)
                status = await _answered(reader)
                if status == 200:
                    seen.admitted += 1
                    seen.latencies.append(time.monotonic() - began)
                    await asyncio.sleep(self._rest)
                elif status == 429:
                    seen.refused += 1
                    await asyncio.sleep(self._pause)
                else:
                    seen.failed += 1
                    await asyncio.sleep(self._pause)
        except (ConnectionError, asyncio.IncompleteReadError):
            seen.failed += 1
        finally:
            writer.close()


async def _answered(reader: asyncio.StreamReader) -> int:
    """The status, once the whole answer is there."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    length = _length(head.lower().split(b"\r\n"))
    await reader.readexactly(length)
    return status


def _length(lines: Sequence[bytes]) -> int:
    for line in lines:
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise ConnectionError("an answer without a length")
