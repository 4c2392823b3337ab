"""The load by wrk, where it is installed."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Seen", "is_installed", "read", "run", "script"]

_LINE = re.compile(r"^seen (\d+) (\d+) (\d+) (\d+) (\d+)$", re.MULTILINE)

_OWN = ("content-length:", "host:")
"""The headers that wrk sets itself."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What wrk saw in one run. Seconds, and requests per second."""

    p50: float
    p99: float
    rate: float


def is_installed() -> bool:
    """Whether wrk is installed."""
    return shutil.which("wrk") is not None


def run(port: int, request: bytes, connections: int, directory: Path) -> Seen:
    """A second of ``request`` again and again, one in flight on each connection."""
    file = directory / "wrk.lua"
    file.write_text(script(request))
    path = request.split(b" ", 2)[1].decode()
    command = ["wrk", "-t", "1", "-c", str(connections), "-d", "1s", "--timeout", "10s", "-s", str(file)]
    ended = subprocess.run([*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True)
    return read(ended.stdout)


def script(request: bytes) -> str:
    """The request as wrk's script, and what to print at the end."""
    head, _, body = request.decode().partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    headers = [line.partition(": ") for line in lines if not line.startswith(_OWN)]
    before, after = body.split('"id":1,')
    parts = [f"wrk.method = {_quoted(first.split(' ')[0])}"]
    parts += [f"wrk.headers[{_quoted(name)}] = {_quoted(value)}" for name, _, value in headers]
    parts.append(
        # Requests of one session that wait at the same time must not have the same id.
        f"local before, after, id = {_quoted(before)}, {_quoted(after)}, 0\n"
        "request = function()\n"
        "  id = id + 1\n"
        """  return wrk.format(nil, nil, nil, before .. '"id":' .. id .. ',' .. after)\n"""
        "end"
    )
    parts.append(
        "done = function(summary, latency)\n"
        "  local failed = summary.errors.status + summary.errors.read + summary.errors.timeout\n"
        '  io.write(string.format("seen %d %d %d %d %d\\n", latency:percentile(50), latency:percentile(99),\n'
        "    summary.requests, summary.duration, failed))\n"
        "end"
    )
    return "\n".join(parts) + "\n"


def read(output: str) -> Seen:
    """What ``script`` printed. Raises RuntimeError where a request failed."""
    found = _LINE.search(output)
    if found is None:
        raise RuntimeError(f"wrk told nothing: {output[:500]}")
    p50, p99, requests, duration, failed = map(int, found.groups())
    if failed or not requests:
        raise RuntimeError(f"{failed} of {requests} requests failed: {output[:500]}")
    return Seen(p50 / 1e6, p99 / 1e6, requests / (duration / 1e6))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
