"""What a sink is, and the queue with its writer thread that keeps a sink's I/O off the event loop."""

import atexit
import contextlib
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final, Protocol, runtime_checkable

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.options import whole_number

from .record import AuditRecord

__all__ = ["AuditSink", "DurableSink", "QueuedSink", "Store", "file_path"]

logger = logging.getLogger("mcp_middleware.audit")

_RETRY: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between attempts while the store is down; the last one repeats."""


@runtime_checkable
class AuditSink(Protocol):
    """Where records go. Called on the event loop: ``write`` and ``accepting`` must not wait for I/O."""

    @property
    def accepting(self) -> bool:
        """Whether a record written now can be expected to be kept. False makes new calls be refused."""

    def write(self, record: AuditRecord) -> None:
        """Take a record. Raises if it cannot; the loss is then logged and counted."""

    def close(self) -> None:
        """Keep what was written and let go of resources. May wait; called off the event loop. A later ``write`` opens
        the sink again."""


@runtime_checkable
class DurableSink(AuditSink, Protocol):
    """A sink that also keeps what has only begun, so that no death of the process takes a call out of the trail."""

    def begin(self, record: AuditRecord) -> int:
        """Keep the record of a call that goes on to the server, as it is to read if its end is never known. Called on
        the event loop. Returns a ticket above 0. Raises OSError if it cannot be kept."""

    def end(self, ticket: int, record: AuditRecord) -> None:
        """Take the record of the call that began with ``ticket``; otherwise as ``write``."""


class Store(Protocol):
    """What a queued sink writes to. Lives and dies in the writer thread."""

    def append(self, records: Sequence[AuditRecord]) -> None:
        """Keep all records or none of them. Raises OSError if the store is down, so that they are tried again; any
        other exception blames the records."""

    def close(self) -> None: ...


class QueuedSink(ABC):
    """A bounded queue and one writer thread per process, started by the first record.

    While the store is down, the records wait and are tried again; none is given up before the queue is full or the
    process ends. Up to ``queue_size`` records wait; ``accepting`` is False from then on. Records of calls which the
    server has already seen find room for as many again, so that refusals do not crowd them out.
    """

    linger: ClassVar[float] = 0.02
    """Seconds a first record waits for company: at most 50 batches a second, and at most this much lost to a crash."""
    max_batch: ClassVar[int] = 256

    def __init__(self, *, queue_size: int = 10_000) -> None:
        self._queue_size = whole_number(f"{type(self).__name__}: queue_size", queue_size)
        self._lost = 0
        self._start_over()

    @abstractmethod
    def _open(self) -> Store:
        """The store, opened in the writer thread. Raises OSError if that cannot be done."""

    @abstractmethod
    def __str__(self) -> str:
        """The sink as a log line names it."""

    @property
    def accepting(self) -> bool:
        """Whether the store took the last records and the queue has room."""
        return not self._failing and self._waiting() < self._queue_size

    @property
    def lost(self) -> int:
        """Records given up since the sink was made, in this process."""
        return self._lost

    def write(self, record: AuditRecord) -> None:
        """Queue a record. Never waits; what finds no room is counted as lost and logged."""
        if self._pid != os.getpid():
            self._begin_in_fork()
        if self._has_room(record):
            self._queue(record)

    def _begin_in_fork(self) -> None:
        """The parent's thread is not here, and what it queued is the parent's."""
        self._lost = 0
        self._start_over()

    def _has_room(self, record: AuditRecord) -> bool:
        room = self._queue_size if record.decision != "allowed" else 2 * self._queue_size
        if self._waiting() < room:
            return True
        self._lose(1, "its queue is full")
        return False

    def _queue(self, record: AuditRecord) -> None:
        self._records.append(record)
        if self._thread is None:
            self._start_thread()
        if not self._wake.is_set():
            self._wake.set()
        if 2 * len(self._records) > self._queue_size and not (self._failing or self._hurry.is_set()):
            self._hurry.set()

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until the records written so far are kept, at most ``timeout`` seconds; returns whether they are.

        While the store is down it is tried once, and not waited for.
        """
        if self._pid != os.getpid() or self._thread is None:
            return True
        with self._progress:
            attempts = self._failed_attempts
            self._hurry.set()
            self._wake.set()
            self._progress.wait_for(lambda: not self._waiting() or self._failed_attempts > attempts, timeout)
            return not self._waiting()

    def close(self) -> None:
        """Write what waits, try it once if the store is down, and end the writer thread."""
        thread = self._thread
        if thread is None or self._pid != os.getpid():
            return
        self._closing = True
        self._hurry.set()
        self._wake.set()
        thread.join()
        atexit.unregister(self.close)
        late = self._records  # written by another thread while this one ended
        self._start_over()
        for record in late:
            self._queue(record)

    def _start_over(self) -> None:
        self._pid = os.getpid()
        self._records: deque[AuditRecord] = deque()
        self._in_hand = 0
        self._failing = False
        self._failed_attempts = 0
        self._overflowing = False
        self._closing = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._progress = threading.Condition()

    def _start_thread(self) -> None:
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="mcp-audit", daemon=True)
                thread.start()
                self._thread = thread
                atexit.register(self.close)

    def _waiting(self) -> int:
        return len(self._records) + self._in_hand

    def _lose(self, count: int, why: str) -> None:
        self._lost += count
        if not self._overflowing:
            self._overflowing = True
            logger.error("audit records are being lost: %s, %s", self, why)

    def _run(self) -> None:
        """The writer thread. The store is a local of it: after a fork nothing in the child touches the parent's."""
        store: Store | None = None
        again: float | None = None
        while True:
            if not self._wake.wait(again):
                again = self._tend()
                continue
            self._hurry.wait(self.linger)
            self._wake.clear()
            closing = self._closing
            self._hurry.clear()
            while self._records:
                batch = self._take()
                store = self._keep(store, batch)
                self._in_hand = 0
                again = self._tend()
                with self._progress:
                    self._progress.notify_all()
                closing = closing or self._closing
            if closing and not self._records:
                break
        if store is not None:
            with contextlib.suppress(Exception):
                store.close()

    def _take(self) -> list[AuditRecord]:
        count = min(len(self._records), self.max_batch)
        self._in_hand = count  # before they leave the queue, so that nobody sees it empty too early
        return [self._records.popleft() for _ in range(count)]

    def _tend(self) -> float | None:
        """Called in the writer thread between batches. Returns the seconds after which it wants to be called again even
        if no record comes."""
        return None

    def _settle(self, count: int) -> None:  # noqa: B027 (most sinks have nothing to do)
        """Called in the writer thread when the next ``count`` records are in the store, or will never be."""

    def _give_up(self, batch: list[AuditRecord]) -> None:
        """Let go of ``batch`` and all that waits behind it: the process ends, and the store is down."""
        self._lose(len(batch) + len(self._records), "it is down and the process ends")
        self._records.clear()

    def _keep(self, store: Store | None, batch: list[AuditRecord]) -> Store | None:
        """Write a batch, however long it takes, unless the sink is being closed. Returns the store if it is open."""
        attempt = 0
        while True:
            try:
                store = store or self._open()
                store.append(batch)
            except OSError as error:
                if store is not None:
                    with contextlib.suppress(Exception):
                        store.close()
                store = None
                self._failed(error)
                if self._closing:
                    self._give_up(batch)
                    return None
                self._hurry.wait(_RETRY[min(attempt, len(_RETRY) - 1)])
                self._hurry.clear()
                attempt += 1
            except Exception:
                if len(batch) == 1:
                    logger.exception("an audit record was lost: %s cannot take it", self)
                    self._lost += 1
                    self._settle(1)
                    return store
                for record in batch:
                    store = self._keep(store, [record])
                return store
            else:
                self._settle(len(batch))
                self._recovered()
                return store

    def _failed(self, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            logger.error("the audit sink %s is down, %d records wait: %s", self, self._waiting(), error)
        with self._progress:
            self._failed_attempts += 1
            self._progress.notify_all()

    def _recovered(self) -> None:
        if self._failing or (self._overflowing and not self._records):
            self._failing = self._overflowing = False
            logger.warning("the audit sink %s works again; %d records were lost so far", self, self._lost)


def file_path(place: str, path: str | os.PathLike[str]) -> Path:
    """``path`` made absolute, so that a later change of directory changes nothing."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in os.fspath(path):
        raise ConfigurationError(f"{place}: path is {path!r}; it must name a file")
    absolute = Path(path).absolute()
    if not absolute.parent.is_dir():
        raise ConfigurationError(f"{place}: {str(path)!r} cannot be written; the directory does not exist")
    return absolute
