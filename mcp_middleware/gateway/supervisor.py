"""Several workers on one port: they share the listening socket, and one process watches over them.

The socket is bound once and inherited, so that connections which wait to be accepted outlive the worker that dies; with
``SO_REUSEPORT`` they would die with it. The watching process serves nothing itself. It starts a worker again that
ended (later each time it ends soon), hands signals on, and ends when all of them have.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Final

__all__ = ["CANNOT_START", "WRONG", "supervise"]

logger = logging.getLogger("mcp_middleware.gateway")

CANNOT_START: Final = 1
WRONG: Final = 2
"""Exit statuses of a worker that could not start, here or anywhere. The first ones end everything by it: it would not
go better."""
FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 10.0
"""Seconds before a worker that ended is started again."""
PROVEN: Final = 30.0
"""Seconds after which a worker that ends has not failed at its start."""

_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)
_HEEDED: Final = (signal.SIGCHLD, signal.SIGALRM, signal.SIGHUP, *_STOPPING)


def supervise(workers: int, work: Callable[[int, bool, bool], int]) -> int:
    """Run ``work(parent, first, again)`` in that many processes until told to stop; the exit status of all.

    ``parent`` is this process, ``first`` is true for one of those that are started first, and ``again`` for those that
    replace one that ended. Must be called before there are threads.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a signal that would be ignored might not wake us
    return _Supervisor(work).run(workers)


class _Supervisor:
    def __init__(self, work: Callable[[int, bool, bool], int]) -> None:
        self._work = work
        self._started: dict[int, float] = {}
        """When each living worker was started, by its process."""
        self._due: list[float] = []
        """When those that ended are to be started again."""
        self._delay = FIRST_DELAY
        self._restarted = False
        self._stopping = False
        self._status = 0

    def run(self, workers: int) -> int:
        for number in range(workers):
            self._start(first=number == 0)
        while self._started or (self._due and not self._stopping):
            number = signal.sigwait(_HEEDED)
            if number in _STOPPING:
                self._stopping = True
            if number in (*_STOPPING, signal.SIGHUP):
                self._tell(number)
            if number == signal.SIGCHLD:
                self._reap()
            self._start_due()
        return self._status

    def _start(self, *, first: bool = False, again: bool = False) -> None:
        parent = os.getpid()
        child = os.fork()
        if child:
            self._started[child] = time.monotonic()
            return
        status = CANNOT_START
        try:
            os.setpgid(0, 0)  # a terminal's Ctrl-C comes to us alone, or a worker would be told twice
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # What stops us would end a worker that has no handler yet: it may, there is nothing to finish.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEEDED)
            status = self._work(parent, first, again)
        except Exception:
            logger.exception("a worker failed")
        finally:
            logging.shutdown()
            os._exit(status)

    def _tell(self, number: int) -> None:
        for worker in self._started:
            os.kill(worker, number)

    def _reap(self) -> None:
        """Take notice of every worker that has ended: several signals of one kind may arrive as one."""
        while self._started:
            worker, code = os.waitpid(-1, os.WNOHANG)
            if not worker:
                return
            status = os.waitstatus_to_exitcode(code)
            lived = time.monotonic() - self._started.pop(worker)
            if self._stopping:
                self._status = self._status or max(status, 0)
            elif status in (CANNOT_START, WRONG) and not self._restarted and lived < PROVEN:
                self._stopping = True
                self._status = status
                self._tell(signal.SIGTERM)
            else:
                self._restarted = True
                self._delay = FIRST_DELAY if lived > PROVEN else min(self._delay * 2, LONGEST_DELAY)
                logger.error("the worker %d ended (%s); another starts in %g s", worker, _how(status), self._delay)
                self._due.append(time.monotonic() + self._delay)
        if self._stopping:
            self._due.clear()

    def _start_due(self) -> None:
        now = time.monotonic()
        for due in [due for due in self._due if due <= now]:
            self._due.remove(due)
            if not self._stopping:
                self._start(again=True)
        if self._due:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, min(self._due) - now))


def _how(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
