"""Records in a SQLite file: typed columns, indexes, readable while it is written."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec

from mcp_middleware.errors import ConfigurationError

from .record import AuditRecord
from .sinks import QueuedSink, file_path

__all__ = ["APPLICATION_ID", "COLUMNS", "SCHEMA_VERSION", "SQLiteSink"]

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
    session TEXT,
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
CREATE INDEX records_target ON records (target, time)
"""

_BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for another process that writes the same file."""
_ROWS: Final = 32
"""Rows of one statement. Each statement lets go of the interpreter lock once and takes it again: row by row, a busy
event loop and the writer would take it from each other for every record."""


class SQLiteSink(QueuedSink):
    """Keeps records in the table ``records`` of a SQLite file.

    The file is in WAL mode, so readers and the writer do not wait for each other; each batch is one transaction, on
    the disk when it is committed. Several processes may write the same file, on a local disk.

    :param path: the file; made with mode 0600 if it does not exist.
    :param queue_size: records that may wait for the disk before new calls are refused.
    :raises ConfigurationError: the file cannot be written or is something else's, or ``queue_size`` is no whole
        number above 0.
    """

    def __init__(self, path: str | os.PathLike[str], *, queue_size: int = 10_000) -> None:
        super().__init__(queue_size=queue_size)
        if path == ":memory:":
            raise ConfigurationError(
                "SQLiteSink: path is ':memory:'; name a file, the audit trail outlives its process"
            )
        self._path = file_path("SQLiteSink", path)
        try:
            self._open().close()
        except OSError as error:
            raise ConfigurationError(
                f"SQLiteSink: {os.fspath(path)!r} cannot be used ({error}); name a new file or an audit trail"
            ) from None

    def __str__(self) -> str:
        return f"SQLiteSink({str(self._path)!r})"

    def _open(self) -> "_Database":
        return _Database(self._path)


class _Database:
    def __init__(self, path: Path) -> None:
        """Open the file and make sure of its schema. Raises OSError."""
        self._path = path
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
        """Insert the records in one transaction."""
        if _identity(self._path) != self._file:
            raise OSError("the file was moved or removed")
        with _errors_as_oserror(), _transaction(self._connection):
            for start in range(0, len(records), _ROWS):
                self._connection.execute(*_insertion(records[start : start + _ROWS]))

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
