"""Case 36: processes that are killed under load, and what the trail has of their calls."""

import asyncio
import json
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from mcp_middleware.audit import AuditTrail, SQLiteSink
from mcp_middleware.audit.journal import journals_of

ROOT = Path(__file__).parents[2]
ROUNDS = 3
CONNECTIONS = 8
CALLS = 800


class Doomed:
    """A process under load from several connections."""

    def __init__(self, name: str, trail: Path, seen: Path) -> None:
        self.name = name
        self.trail = trail
        self.seen = seen
        self.answered = 0
        self.enough = asyncio.Event()

    async def __aenter__(self) -> "Doomed":
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-m", "tests.audit.doomed", str(self.trail), str(self.seen)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.port = int(await self.process.stdout.readline())
        self.callers = [asyncio.create_task(self._call(number)) for number in range(CONNECTIONS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.process.kill()
        assert await self.process.wait() == -signal.SIGKILL
        await asyncio.gather(*self.callers)

    async def _call(self, connection: int) -> None:
        """Call without a pause until the process is gone."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for number in range(1_000_000):
                params = {"name": "echo", "arguments": {}}
                call = {"jsonrpc": "2.0", "id": f"{self.name}-{connection}-{number}", "method": "tools/call"}
                body = json.dumps({**call, "params": params}).encode()
                head = (
                    "POST /mcp HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                    f"accept: application/json, text/event-stream\r\ncontent-length: {len(body)}\r\n\r\n"
                )
                writer.write(head.encode() + body)
                answer = await reader.readuntil(b"\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 200")
                length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                self.answered += 1
                if self.answered >= CALLS:
                    self.enough.set()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.enough.set()
        finally:
            writer.close()


def recorded(trail: Path) -> Counter[int | str | None]:
    """How often each call is in the trail, all of whose records must be whole."""
    reading = AuditTrail(trail)
    found = Counter(record.request_id for record in reading.read())
    assert reading.damaged == 0
    return found


@pytest.mark.slow
async def test_case_36_every_call_a_server_saw_is_in_the_trail_once(tmp_path: Path) -> None:
    """Two processes write one file; both are killed under load, several times over."""
    trail, seen = tmp_path / "audit.db", tmp_path / "seen"
    for number in range(ROUNDS):
        async with Doomed(f"{number}a", trail, seen) as one, Doomed(f"{number}b", trail, seen) as other:
            await asyncio.gather(one.enough.wait(), other.enough.wait())
            alive = await asyncio.to_thread(recorded, trail)  # while both write
            assert set(alive.values()) == {1}
        calls = set(seen.read_text().split())
        found = recorded(trail)
        assert calls <= set(found)
        assert set(found.values()) == {1}
        assert len(journals_of(trail)) >= 2  # the next round takes them over
    assert len(calls) >= 2 * ROUNDS * CALLS
    SQLiteSink(trail).close()
    assert journals_of(trail) == []
    assert recorded(trail) == found
    unknown = [record for record in AuditTrail(trail).read() if record.outcome == "unknown"]
    assert len(unknown) <= 2 * ROUNDS * CONNECTIONS
    for record in unknown:  # a slow machine may have answered every call before the signal came
        assert (record.decision, record.server, record.target) == ("allowed", "doomed", "echo")
