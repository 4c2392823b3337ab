"""What a process knows of its calls, in a file: it outlives the process, however that ends.

Each process that writes a trail has one journal beside it. A line is written (one ``write`` into the page cache, which
the death of a process does not touch) before a call goes on to the server, and another when the call has ended. The
database is filled from the queue in large batches; what it does not have yet, the journal has. The owner holds a lock
on the file (``flock``), so that a journal whose lock is free is known to be a dead process's.

A journal is a line that names its generation, then::

    +7 {...}    call 7 goes on; the record as it is if nothing more is ever known of it
    -7 {...}    call 7 has ended; its record
    -0 {...}    a record of something that never went on

The generation counts how often the journal was begun anew, with nothing in it but what still mattered. The database
keeps, in the transaction that adds records, how many of a generation's ended records it has.
"""

import contextlib
import errno
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from .record import AuditRecord

if sys.platform != "win32":
    import fcntl

__all__ = ["NEW", "Contents", "Journal", "claimed", "generation_of", "is_alive", "is_at", "journals_of", "parse"]

_MARK: Final = "-calls-"
"""Between the trail's name and the process's own part of the name."""
NEW: Final = ".new"
"""Ends the name of a journal that has not taken its place yet."""
_HEAD: Final = b"mcp_middleware audit journal 1 "
_RENEWED_AT: Final = 16 * 1024 * 1024
"""Bytes from which a journal is begun anew: some ten thousand calls, which the next start reads in a tenth of a
second."""

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(AuditRecord).decode


class Journal:
    """The journal of this process. Its caller makes sure that one thread uses it at a time."""

    def __init__(self, trail: Path) -> None:
        """Names the file and opens nothing; the first line makes it."""
        self.name: Final = f"{trail.name}{_MARK}{os.getpid()}-{secrets.token_hex(4)}"
        self.generation = 0
        self.committed = 0
        """How many of this generation's ended records the database has."""
        self.broken = False
        """Whether the last write failed. Nothing more is written before ``renew`` has worked: half a line would take
        the next one with it."""
        self._path = trail.with_name(self.name)
        self._file: int | None = None
        self._size = 0
        self._kept = 0  # bytes that the journal had when it was begun anew
        self._tickets = count(1)
        self._begun: dict[int, bytes] = {}

    def begin(self, record: AuditRecord) -> int:
        """Note that a call goes on. Returns its ticket. Raises OSError if that could not be written."""
        ticket = next(self._tickets)
        line = b"+%d %b\n" % (ticket, _encode(record))
        self._append(line)
        self._begun[ticket] = line
        return ticket

    def end(self, ticket: int, record: AuditRecord) -> None:
        """Note a record, which ends the call of ``ticket``; 0 for what never went on. Raises OSError if that could
        not be written; the call has ended all the same."""
        data = _encode(record)
        if self._begun.pop(ticket, None) is None:
            ticket = 0
        self._append(b"-%d %b\n" % (ticket, data))

    @property
    def wants_renewal(self) -> bool:
        """Whether the file is broken, gone, or full of what nobody needs any more."""
        if self._file is None or self.broken:
            return self.broken
        return self._size > _RENEWED_AT + 2 * self._kept or not is_at(self._file, self._path)

    @property
    def keeps(self) -> bool:
        """Whether the next start will find all that was written."""
        return self._file is not None and not self.broken and is_at(self._file, self._path)

    def renew(self, waiting: Iterable[AuditRecord]) -> None:
        """Begin the file anew with the calls that are under way and the ended records that wait for the database.

        The new file takes the place of the old one in one step: whoever looks, or dies, in between finds either.
        Raises OSError; then the old file is as it was.
        """
        lines = [b"%b%d\n" % (_HEAD, self.generation + 1), *self._begun.values()]
        lines += [b"-0 %b\n" % _encode(record) for record in waiting]
        data = b"".join(lines)
        path = self._path.with_name(self.name + NEW)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        try:
            _lock(file)
            _write(file, data)
            path.replace(self._path)
        except BaseException:
            os.close(file)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        self.let_go()
        self._file = file
        self._size = self._kept = len(data)
        self.generation += 1
        self.committed = 0
        self.broken = False

    def retire(self) -> bool:
        """Remove the file once every ended record in it is in the database; False, and nothing done, while calls are
        under way."""
        if self._begun:
            return False
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            self.let_go()
        return True

    def let_go(self) -> None:
        """Close the file and leave it where it is."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, line: bytes) -> None:
        if self.broken:
            raise OSError(errno.EIO, "its journal cannot be written")
        try:
            if self._file is None:
                self.renew(())
            _write(self._file, line)
        except OSError:
            self.broken = True
            raise
        self._size += len(line)


class Contents(NamedTuple):
    """What the database does not have of a journal."""

    ended: list[AuditRecord]
    begun: list[AuditRecord]
    """Of calls that have not ended, as far as the journal knows."""
    damaged: int
    """Whole lines that are no records. What a dying process left of its last line is none of them."""


def parse(data: bytes, generation: int, committed: int) -> Contents | None:
    """A journal's bytes, without the first ``committed`` ended records if it is still of that ``generation``.

    None: the journal is of another release.
    """
    own = generation_of(data)
    if own is None:
        return None
    if own < generation:
        return Contents([], [], 0)  # of the time before the database noted a later one: all of it is there
    skipped = committed if own == generation else 0
    ended: list[bytes] = []
    begun: dict[bytes, bytes] = {}
    for line in data.split(b"\n")[1:-1]:
        ticket, _, text = line[1:].partition(b" ")
        if not line.startswith(b"-"):
            begun[ticket] = text
            continue
        begun.pop(ticket, None)
        if skipped > 0:
            skipped -= 1
        else:
            ended.append(text)
    found = Contents([], [], 0)
    damaged = 0
    for texts, records in ((ended, found.ended), (begun.values(), found.begun)):
        for text in texts:
            try:
                records.append(_decode(text))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                damaged += 1
    return found._replace(damaged=damaged)


def generation_of(data: bytes) -> int | None:
    """The generation that a journal's bytes are of. None: the journal is of another release."""
    head = data.partition(b"\n")[0]
    number = head.removeprefix(_HEAD)
    return int(number) if number != head and number.isdigit() and len(number) < 19 else None


def journals_of(trail: Path) -> list[Path]:
    """The journals beside a trail, by name, those included that never took their place. Raises OSError."""
    start = trail.name + _MARK
    with os.scandir(trail.parent) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.name.startswith(start))


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bytes | None]:
    """The content of a dead process's journal, which is nobody else's until the block ends. None: its process lives, or
    somebody was faster. Raises OSError."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        yield None
        return
    try:
        if not _lock(file) or not is_at(file, path):
            yield None
        elif path.name.endswith(NEW):  # never took its place, so the old one is whole
            path.unlink()
            yield None
        else:
            with open(file, "rb", closefd=False) as journal:
                data = journal.read()
            yield data
    finally:
        os.close(file)


def is_alive(file: int) -> bool:
    """Whether the process that writes the open journal ``file`` lives."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
    return False


def is_at(file: int, path: Path) -> bool:
    """Whether ``path`` still names the open ``file``."""
    try:
        there = path.stat()
    except OSError:
        return False
    here = os.fstat(file)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _lock(file: int) -> bool:
    """Take the lock of a journal, which is free again when ``file`` is closed, or its process ends."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _write(file: int | None, data: bytes) -> None:
    """All of ``data`` in one call. Raises OSError also where a part of it found room."""
    if file is None or os.write(file, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
