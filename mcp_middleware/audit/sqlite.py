"""Records in a SQLite file: typed columns, indexes, readable while it is written."""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec

from mcp_middleware.errors import ConfigurationError

from .journal import Journal, claimed, journals_of, parse
from .record import AuditRecord
from .sinks import QueuedSink, file_path, logger

__all__ = ["APPLICATION_ID", "COLUMNS", "RECOVERED", "SCHEMA_VERSION", "SQLiteSink"]

APPLICATION_ID: Final = 0x4D435041
"""Marks a file as an audit trail ("MCPA"), so that nobody else's database is written to."""
SCHEMA_VERSION: Final = 1

COLUMNS: Final = AuditRecord.__struct_fields__

_SCHEMA: Final = """
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    time TEXT NOT NULL,
    method TEXT,
    target_kind TEXT,
    target TEXT,
    agent TEXT NOT NULL,
    issuer TEXT,
    subject TEXT,
    decision TEXT NOT NULL,
    rule TEXT,
    reason TEXT,
    outcome TEXT NOT NULL,
    status INTEGER,
    error_code INTEGER,
    tool_error INTEGER,
    duration_ms REAL NOT NULL,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cost REAL,
    currency TEXT,
    session TEXT,
    server TEXT,
    instance TEXT,
    trace_id TEXT,
    span_id TEXT,
    request_id,
    request_bytes INTEGER NOT NULL,
    response_bytes INTEGER NOT NULL,
    era TEXT NOT NULL,
    version TEXT,
    http_method TEXT NOT NULL,
    client_address TEXT
);
CREATE INDEX records_time ON records (time);
CREATE INDEX records_agent ON records (agent, time);
CREATE INDEX records_target ON records (target, time);
CREATE TABLE journals (
    name TEXT PRIMARY KEY,
    generation INTEGER NOT NULL,
    committed INTEGER NOT NULL
) WITHOUT ROWID
"""
RECOVERED: Final = 2**62
"""The generation of a journal that is in the database as a whole."""

_BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for another process that writes the same file."""
_ROWS: Final = 32
"""Rows of one statement. Each statement lets go of the interpreter lock once and takes it again: row by row, a busy
event loop and the writer would take it from each other for every record."""


class SQLiteSink(QueuedSink):
    """Keeps records in the table ``records`` of a SQLite file.

    The file is in WAL mode, so readers and the writer do not wait for each other; each batch is one transaction, on
    the disk when it is committed. What is not committed yet stands in a journal beside the file, one for each process
    that writes it (``audit.db-calls-...``): a process that is killed loses no record of a call that went on to the
    server. The next sink of that file, in whatever process, takes over what it left; ``AuditTrail`` reads it, too.
    Several processes may write the same file, on a local disk.

    Args:
        path: the file; made with mode 0600 if it does not exist.
        queue_size: records that may wait for the disk before new calls are refused.

    Raises:
        ConfigurationError: the file cannot be written or is something else's, or ``queue_size`` is no whole number
            above 0.
    """

    linger: ClassVar[float] = 0.25
    """The journal has what waits, so batches may be rare: a transaction costs as much as dozens of rows."""
    max_batch: ClassVar[int] = 1000

    def __init__(self, path: str | os.PathLike[str], *, queue_size: int = 10_000) -> None:
        super().__init__(queue_size=queue_size)
        if path == ":memory:":
            raise ConfigurationError(
                "SQLiteSink: path is ':memory:'; name a file, the audit trail outlives its process"
            )
        self._path = file_path("SQLiteSink", path)
        self._journal = Journal(self._path)
        self._journal_down = False
        self._journaling = threading.Lock()
        """Held while a record goes into the journal and the queue, so that both have the same order."""
        try:
            with contextlib.closing(self._open()) as database:
                database.recover()
        except OSError as error:
            raise ConfigurationError(
                f"SQLiteSink: {os.fspath(path)!r} cannot be used ({error}); name a new file or an audit trail"
            ) from None

    def __str__(self) -> str:
        return f"SQLiteSink({str(self._path)!r})"

    @property
    def accepting(self) -> bool:
        """Whether the file took the last records, the journal the last line, and the queue has room."""
        return super().accepting and not self._journal.broken

    def begin(self, record: AuditRecord) -> int:
        """Write into the journal that a call goes on. Returns its ticket. Raises OSError."""
        if self._pid != os.getpid():
            self._begin_in_fork()
        with self._journaling:
            try:
                return self._journal.begin(record)
            except OSError as error:
                self._journal_failed(error)
                raise

    def write(self, record: AuditRecord) -> None:
        """Write a record into the journal and queue it. What finds no room is counted as lost and logged."""
        self.end(0, record)

    def end(self, ticket: int, record: AuditRecord) -> None:
        """``write`` for a call that began with ``ticket``."""
        if self._pid != os.getpid():
            self._begin_in_fork()
        with self._journaling:
            if not self._has_room(record):
                return
            try:
                self._journal.end(ticket, record)
            except OSError as error:
                self._journal_failed(error)
            self._queue(record)

    def close(self) -> None:
        """Write what waits, try it once if the file is down, and end the writer thread. The journal is removed if
        nothing is left that only it has."""
        super().close()
        if self._pid == os.getpid():
            with self._journaling:
                if not self._waiting():
                    self._journal.retire()

    def _open(self) -> "_Database":
        return _Database(self._path, self._journal)

    def _begin_in_fork(self) -> None:
        super()._begin_in_fork()
        self._journal.let_go()
        self._journal = Journal(self._path)
        self._journal_down = False
        self._journaling = threading.Lock()

    def _journal_failed(self, error: OSError) -> None:
        if not self._journal_down:
            self._journal_down = True
            logger.error("the audit sink %s is down, its journal cannot be written: %s", self, error)
            self._wake.set()

    def _tend(self) -> float | None:
        if not self._journal.wants_renewal:
            return None
        with self._journaling:
            try:
                self._journal.renew(self._records)
            except OSError as error:
                self._journal.broken = True
                self._journal_failed(error)
                return 1.0
        if self._journal_down:
            self._journal_down = False
            logger.warning("the audit sink %s has a journal again", self)
        return None

    def _settle(self, count: int) -> None:
        self._journal.committed += count

    def _give_up(self, batch: list[AuditRecord]) -> None:
        """The journal keeps them for the next start, unless it is down as well."""
        with self._journaling:
            if self._journal.keeps:
                logger.warning(
                    "the audit sink %s leaves %d records in its journal", self, len(batch) + len(self._records)
                )
                self._records.clear()
            else:
                super()._give_up(batch)
            self._journal.let_go()
            self._journal = Journal(self._path)


class _Database:
    def __init__(self, path: Path, journal: Journal) -> None:
        """Open the file and make sure of its schema. Raises OSError."""
        self._path = path
        self._journal = journal
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with _errors_as_oserror():
            self._connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise
        self._file = _identity(path)

    def _prepare(self) -> None:
        execute = self._connection.execute
        with _transaction(self._connection):
            (tables,) = execute("SELECT count(*) FROM sqlite_schema").fetchone()
            (application,) = execute("PRAGMA application_id").fetchone()
            (version,) = execute("PRAGMA user_version").fetchone()
            if not tables:
                for statement in _SCHEMA.split(";"):
                    execute(statement)
                execute(f"PRAGMA application_id = {APPLICATION_ID}")
                execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif application != APPLICATION_ID:
                raise OSError("it is a database of something else")
            elif version != SCHEMA_VERSION:
                raise OSError(f"its schema is version {version}, this release writes version {SCHEMA_VERSION}")
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")

    def append(self, records: Sequence[AuditRecord]) -> None:
        """Insert the records, and how far the journal is in the database now, in one transaction."""
        if _identity(self._path) != self._file:
            raise OSError("the file was moved or removed")
        journal = self._journal
        with _errors_as_oserror(), _transaction(self._connection):
            self._insert(records)
            self._note(journal.name, journal.generation, journal.committed + len(records))

    def recover(self) -> None:
        """Take over what killed processes left in their journals. Raises OSError."""
        found = journals_of(self._path)
        for path in found:
            with claimed(path) as data:
                if data is None or not self._take_over(path.name, data):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
        names = {path.name for path in found}
        with _errors_as_oserror(), _transaction(self._connection):
            for (name,) in self._connection.execute("SELECT name FROM journals").fetchall():
                if name not in names and not self._path.with_name(name).exists():
                    self._connection.execute("DELETE FROM journals WHERE name = ?", (name,))

    def _take_over(self, name: str, data: bytes) -> bool:
        """Whether all that the database lacked of a journal is in it now."""
        with _errors_as_oserror(), _transaction(self._connection):
            row = self._connection.execute("SELECT generation, committed FROM journals WHERE name = ?", (name,))
            contents = parse(data, *(row.fetchone() or (0, 0)))
            if contents is None:
                logger.error("the journal %s beside %s is of another release; it stays where it is", name, self._path)
                return False
            self._insert([*contents.ended, *contents.begun])
            self._note(name, RECOVERED, 0)
        if contents.ended or contents.begun or contents.damaged:
            logger.warning(
                "%s: a process was killed; its journal had %d records, %d calls whose end is unknown, %d damaged lines",
                self._path,
                len(contents.ended),
                len(contents.begun),
                contents.damaged,
            )
        return True

    def _insert(self, records: Sequence[AuditRecord]) -> None:
        for start in range(0, len(records), _ROWS):
            self._connection.execute(*_insertion(records[start : start + _ROWS]))

    def _note(self, name: str, generation: int, committed: int) -> None:
        self._connection.execute("INSERT OR REPLACE INTO journals VALUES (?, ?, ?)", (name, generation, committed))

    def close(self) -> None:
        with _errors_as_oserror():
            self._connection.close()


def _insertion(records: Sequence[AuditRecord]) -> tuple[str, tuple[Any, ...]]:
    """The statement that inserts some records, and its values. It names the columns that one of them fills: the driver
    takes several times longer over None than over a text."""
    columns = zip(COLUMNS, zip(*map(msgspec.structs.astuple, records), strict=True), strict=True)
    filled = {name: values for name, values in columns if values.count(None) < len(records)}
    return _insert(tuple(filled), len(records)), tuple(chain.from_iterable(zip(*filled.values(), strict=True)))


@lru_cache(maxsize=128)
def _insert(columns: tuple[str, ...], rows: int) -> str:
    row = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO records ({', '.join(columns)}) VALUES {', '.join([row] * rows)}"  # noqa: S608 (own names)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # SQLite has rolled back by itself where the disk is full
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextlib.contextmanager
def _errors_as_oserror() -> Iterator[None]:
    """What SQLite reports of the file and its disk, as the writer thread expects it."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise OSError(str(error)) from error
