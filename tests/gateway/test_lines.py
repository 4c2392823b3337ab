"""What a gateway's process writes, and that it waits for nobody who reads."""

import asyncio
import base64
import fcntl
import io
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mcp_middleware.gateway.lines import MAX_CHARACTERS, MAX_WAITING, Lines
from tests.gateway.forwarding import dead_origin
from tests.gateway.processes import Process, client, configured
from tests.support import free_port

JUNK = {"authorization": "Bearer junk", "content-type": "application/json"}


def dropped(count: int) -> str:
    return f"{count} dropped\n"


def test_what_nobody_reads_is_dropped_and_counted() -> None:
    stream = io.StringIO()
    lines = Lines(stream, dropped)
    for _ in range(MAX_WAITING + 3):
        lines.add("a line\n")
    lines.flush()
    written = stream.getvalue().splitlines()
    assert len(written) == MAX_WAITING + 1
    assert written[-1] == "3 dropped"


def test_what_waits_is_bounded_in_characters_too() -> None:
    stream = io.StringIO()
    lines = Lines(stream, dropped)
    line = "x" * (MAX_CHARACTERS // 4 - 1) + "\n"
    for _ in range(2):
        for _ in range(6):
            lines.add(line)
        lines.flush()
    assert stream.getvalue() == (line * 4 + "2 dropped\n") * 2


def test_a_write_that_fails_costs_its_lines_and_not_the_thread() -> None:
    class Short(io.StringIO):
        failed = threading.Event()

        def write(self, text: str) -> int:
            if not self.failed.is_set():
                self.failed.set()
                raise MemoryError
            return super().write(text)

    stream = Short()
    lines = Lines(stream, dropped)
    lines.add("one\n")
    lines.start()
    lines.say("two\n")
    assert stream.failed.wait(20)
    lines.say("three\n")
    assert lines.close()
    written = stream.getvalue()
    counts = [int(count) for count in re.findall("([0-9]+) dropped", written)]
    assert sum(counts) + len(written.splitlines()) - len(counts) == 3
    assert "one" not in written
    assert "three" in written


def test_a_stream_that_does_not_wait_loses_nothing_to_a_slow_reader() -> None:
    with full_pipe() as (reading, writing), open(writing, "w", closefd=False) as stream:
        os.set_blocking(writing, False)
        lines = Lines(stream, dropped)
        lines.start()
        said = "".join(f"{number}\n" for number in range(5000))
        for line in said.splitlines(keepends=True):
            lines.say(line)
        ended: list[bool] = []
        closing = threading.Thread(target=lambda: ended.append(lines.close()))
        closing.start()
        read = b""
        while not re.search(rb"\n4999\n|dropped", read):
            read += os.read(reading, 65536)
        closing.join()
        assert ended == [True]
        assert read.lstrip(b"x").decode() == said


def test_a_stream_that_is_closed_is_no_reason_to_fail() -> None:
    stream = io.StringIO()
    lines = Lines(stream, dropped)
    stream.close()
    lines.add("a line\n")
    lines.flush()


def test_all_that_was_said_is_written_by_the_end_and_in_order() -> None:
    stream = io.StringIO()
    lines = Lines(stream, dropped)
    lines.say("before\n")
    assert stream.getvalue() == "before\n"
    lines.start()
    for number in range(1000):
        (lines.say if number % 7 else lines.add)(f"{number}\n")
    assert lines.close()
    lines.say("after\n")
    assert stream.getvalue().split() == ["before", *map(str, range(1000)), "after"]


def test_a_reader_that_is_slow_costs_lines_and_never_time_before_and_after_the_thread() -> None:
    with full_pipe() as (reading, writing), open(writing, "w", closefd=False) as stream:
        lines = Lines(stream, dropped)
        lines.say("lost\n")
        os.set_blocking(reading, False)
        while len(drained(reading)):
            pass
        lines.say("read\n")
        assert drained(reading) == b"read\n1 dropped\n"


def test_of_a_long_line_is_written_what_a_slow_reader_has_room_for_before_the_thread() -> None:
    with full_pipe() as (reading, writing), open(writing, "w", closefd=False) as stream:
        os.set_blocking(reading, False)
        while len(drained(reading)):
            pass
        lines = Lines(stream, dropped)
        saying = threading.Thread(target=lines.say, args=("y" * 100_000 + "\n",), daemon=True)
        saying.start()
        saying.join(20)
        assert not saying.is_alive()
        assert set(drained(reading)) == {ord("y")}
        fill(writing)
        lines.say("lost\n")
        assert set(drained(reading)) == {ord("x")}
        lines.say("read\n")
        assert drained(reading) == b"\nread\n2 dropped\n"


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that takes no more; its ends."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    try:
        fill(writing)
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def fill(writing: int) -> None:
    beside = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK)  # its flags are not the others'
    try:
        with suppress(BlockingIOError):
            while True:
                os.write(beside, b"x" * 64)
    finally:
        os.close(beside)


def drained(reading: int) -> bytes:
    try:
        return os.read(reading, 65536)
    except BlockingIOError:
        return b""


def configuration(port: int, workers: int) -> dict[str, Any]:
    auth = {"issuers": [{"issuer": dead_origin(), "allow_private_addresses": True}]}
    keys = [base64.b64encode(bytes(32)).decode()]
    sections: dict[str, Any] = {"auth": auth, "sessions": {"keys": keys, "per_agent": "off"}, "workers": workers}
    return configured({"files": dead_origin()}, port, **sections)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_log_that_nobody_reads_stops_nothing(tmp_path: Path, workers: int) -> None:
    port = free_port()
    file = tmp_path / "gateway.yaml"
    file.write_text(json.dumps(configuration(port, workers)))
    reading, writing = os.pipe()
    command = (sys.executable, "-m", "mcp_middleware.gateway", "run", "--log-level", "debug", str(file))
    process = await asyncio.create_subprocess_exec(*command, stderr=writing)
    try:
        async with asyncio.timeout(40), client() as http:
            said = b""
            while b"listens on" not in said:
                said += await asyncio.to_thread(os.read, reading, 65536)
            fill(writing)
            for _ in range(20):
                refused = await http.post(f"http://127.0.0.1:{port}/files/mcp", headers=JUNK, content=b"{}")
                assert refused.status_code == 401
            assert (await http.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        os.close(writing)
        os.close(reading)
        with suppress(ProcessLookupError):
            process.kill()


async def test_nothing_is_lost_at_an_ordinary_end(tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "gateway.yaml"
    file.write_text(json.dumps(configuration(port, 2)))
    command = (sys.executable, "-m", "mcp_middleware.gateway", "run", str(file))
    started = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    process = Process(started, port, file, "http")
    await process.wrote("listens on")
    async with client() as http:
        for _ in range(50):
            await http.post(f"{process.origin}/files/mcp", headers=JUNK, content=b"{}")
    process.send(signal.SIGTERM)
    assert await process.ended() == 0
    assert len(await process.wrote("401 .* invalid_token")) == 50
    assert len(await process.wrote("stopped$")) == 2
    assert 1 <= len(await process.wrote("a token was refused")) < 50
