"""The demonstration's processes: each of its own process group, so that Ctrl-C ends them in our order, and by us."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

__all__ = ["START_SECONDS", "DemoError", "Running", "run", "until_signal"]

START_SECONDS: Final = 30.0
"""How long a process may take to be ready."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_END_SECONDS: Final = 15.0
"""How long a process may take to end after SIGTERM."""


class DemoError(Exception):
    """The demonstration cannot go on; the message says why."""


class Running:
    """A process of ours."""

    def __init__(self, name: str, process: Process, log: Path) -> None:
        self.name = name
        self.log = log
        """Where its words go."""
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    async def url(self) -> str:
        """The URL it prints when it listens. Raises DemoError."""
        assert self._process.stdout is not None  # noqa: S101 - run() has asked for it
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            raise self.failed()
        return line.decode().strip()

    def failed(self) -> DemoError:
        """What to raise when it did not start."""
        return DemoError(f"{self.name} did not start:\n{self.log.read_text(errors='replace')}")

    async def kill(self) -> None:
        """End it as a crash would."""
        if not self.ended:
            self._process.kill()
        await self._process.wait()

    async def end(self) -> int:
        """End it properly, and return its exit status; one that does not end is killed."""
        if not self.ended:
            self._process.terminate()
        try:
            async with asyncio.timeout(_END_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            await self.kill()
            return await self._process.wait()


@asynccontextmanager
async def run(
    name: str, module: str, *arguments: str, home: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Running]:
    """Run a module of this package until the end of the block. Its log is in ``home``; ``-P`` keeps what lies in the
    current directory from being imported in the module's place."""
    log = home / f"{name}.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", f"mcp_middleware.{module}", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE if module.startswith("gateway.demo.") else output,  # ours print their URL there
            stderr=output,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    running = Running(name, process, log)
    try:
        yield running
    finally:
        await running.end()


async def until_signal(work: Coroutine[Any, Any, int]) -> int:
    """What ``work`` returns. A signal cancels it, so that what it has started is ended; only the first does, so that
    whoever is impatient does not leave processes behind. Raises DemoError where a signal came before its end."""
    task = asyncio.create_task(work)

    def end() -> None:
        if not task.cancelling():
            task.cancel()

    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, end)
    try:
        return await task
    except asyncio.CancelledError:
        raise DemoError("it was ended before the end of the story") from None
