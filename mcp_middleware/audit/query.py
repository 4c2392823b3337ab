"""Reading an audit trail, whichever sink wrote it, also while it is being written."""

import os
import re
import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec

from mcp_middleware.types import Verdict

from .journal import NEW, Contents, generation_of, is_alive, is_at, journals_of, parse
from .record import DECISIONS, AuditRecord
from .report import CostReport, Sums
from .sqlite import APPLICATION_ID, COLUMNS, RECOVERED, SCHEMA_VERSION

__all__ = ["AuditFilter", "AuditTrail", "TrailError", "parse_time"]

_MAX_LINE: Final = 1024 * 1024
"""Bytes; far beyond any record, so that a file which is no trail cannot fill the memory."""
_RELATIVE: Final = re.compile(r"([0-9]{1,6})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_BUSY_TIMEOUT: Final = 5.0
_ATTEMPTS: Final = 100
_LAST: Final = datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)

_decode: Final = msgspec.json.Decoder(AuditRecord).decode


class TrailError(Exception):
    """The trail cannot be read; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which records to read. Every condition must hold; None is no condition."""

    agent: str | None = None
    """The OAuth client, exactly."""
    server: str | None = None
    """The governed server's name, exactly."""
    tool: str | None = None
    """The name of a tool, exactly."""
    decision: Verdict | None = None
    since: datetime | None = None
    """Messages that arrived then or later. An aware time."""
    until: datetime | None = None
    """Messages that arrived earlier. An aware time."""

    def __post_init__(self) -> None:
        if self.decision is not None and self.decision not in DECISIONS:
            raise ValueError(f"decision is {self.decision!r}; it must be one of {', '.join(DECISIONS)}")
        for name in ("since", "until"):
            value = getattr(self, name)
            if value is not None and value.tzinfo is None:
                raise ValueError(f"{name} is {value!r}; it must have a time zone")

    def conditions(self) -> tuple[list[str], list[str]]:
        """The filter as SQL conditions and their parameters."""
        tests = {
            "agent = ?": self.agent,
            "server = ?": self.server,
            "target = ?": self.tool,
            "decision = ?": self.decision,
            "time >= ?": _timestamp(self.since),
            "time < ?": _timestamp(self.until),
        }
        conditions = [test for test, value in tests.items() if value is not None]
        if self.tool is not None:
            conditions.append("target_kind = 'tool'")
        return conditions, [value for value in tests.values() if value is not None]

    def matches(self, record: AuditRecord) -> bool:
        """Whether every condition holds for ``record``."""
        since, until = _timestamp(self.since), _timestamp(self.until)
        return (
            (self.agent is None or record.agent == self.agent)
            and (self.server is None or record.server == self.server)
            and (self.tool is None or (record.target_kind == "tool" and record.target == self.tool))
            and (self.decision is None or record.decision == self.decision)
            and (since is None or record.time >= since)
            and (until is None or record.time < until)
        )


class AuditTrail:
    """The records in a file that a ``SQLiteSink`` or a ``JSONLinesSink`` wrote; which of them, its content says."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).absolute()
        self.damaged = 0
        """Lines or rows that the last reading skipped because they are no records."""

    def read(self, wanted: AuditFilter | None = None, *, limit: int | None = None) -> Iterator[AuditRecord]:
        """The matching records in the order in which they were written; of more than ``limit`` the last ones.

        Raises TrailError, on the first record, if the file cannot be read or is no trail.
        """
        wanted = wanted or AuditFilter()
        if self._begin():
            yield from self._rows(wanted, limit)
        else:
            matching = (record for record in self._lines() if wanted.matches(record))
            yield from matching if limit is None else _last(matching, limit)

    @contextmanager
    def report(
        self, by: Sequence[str], wanted: AuditFilter | None = None, *, top: int | None = None
    ) -> Iterator[CostReport]:
        """What the matching calls came to, added up by some of ``KEYS``; of more than ``top`` rows those that cost
        most. Rows can be read until the context ends, and ``damaged`` is known when it begins.

        Raises TrailError if the file cannot be read or is no trail, ValueError for a wrong key.
        """
        wanted = wanted or AuditFilter()
        is_sqlite = self._begin()
        try:
            # "" is a database of its own in a temporary file.
            with closing(self._connect() if is_sqlite else sqlite3.connect("", isolation_level=None)) as connection:
                sums = Sums(connection, by, wanted.conditions())
                try:
                    self._add_up(sums, connection, is_sqlite=is_sqlite)
                except OSError as error:  # not where the report is used: that writes to pipes and files of its own
                    raise TrailError(f"{str(self._path)!r}: a journal beside it cannot be read: {error}") from None
                try:
                    report = sums.report(top)
                except ValueError as error:
                    raise TrailError(f"{str(self._path)!r}: {error}") from None
                yield report
        except sqlite3.Error as error:
            raise TrailError(f"{str(self._path)!r} cannot be read: {error}") from None

    def _add_up(self, sums: Sums, connection: sqlite3.Connection, *, is_sqlite: bool) -> None:
        if not is_sqlite:
            connection.execute("BEGIN")
            impossible = sums.add_records(self._lines())  # which counts what it skips, too
            self.damaged += impossible
        elif self._has_tables(connection):
            late = self._uncommitted(connection)
            self.damaged += sums.add_table("records")
            self.damaged += sums.add_records(late)

    def _begin(self) -> bool:
        """Whether the trail is a SQLite file."""
        self.damaged = 0
        if not self._path.is_file():
            raise TrailError(f"{str(self._path)!r} is no file")
        return self._is_sqlite()

    def _is_sqlite(self) -> bool:
        """Ask SQLite, and nobody else: opening and closing the file by other means would drop the locks that a sink in
        this process holds on it (sqlite.org/howtocorrupt, section 2.2)."""
        with closing(self._connect()) as connection:
            try:
                connection.execute("PRAGMA schema_version").fetchone()
            except sqlite3.OperationalError as error:
                raise TrailError(f"{str(self._path)!r} cannot be read: {error}") from None
            except sqlite3.DatabaseError:
                return False
        return True

    def _connect(self) -> sqlite3.Connection:
        wal = self._path.with_name(self._path.name + "-wal")
        archived = not os.access(self._path.parent, os.W_OK) and not wal.exists()
        mode = "immutable=1" if archived else "mode=ro"  # where SQLite could not make the files it shares with a writer
        try:
            return sqlite3.connect(
                f"{self._path.as_uri()}?{mode}", uri=True, timeout=_BUSY_TIMEOUT, isolation_level=None
            )
        except sqlite3.Error as error:
            raise TrailError(f"{str(self._path)!r} cannot be read: {error}") from None

    def _rows(self, wanted: AuditFilter, limit: int | None) -> Iterator[AuditRecord]:
        with closing(self._connect()) as connection:
            try:
                if not self._has_tables(connection):
                    return
                late = self._uncommitted(connection)
                records = chain(self._committed(connection, wanted, limit), filter(wanted.matches, late))
                yield from records if limit is None else _last(records, limit)
            except sqlite3.Error as error:
                raise TrailError(f"{str(self._path)!r} cannot be read: {error}") from None
            except OSError as error:
                raise TrailError(f"{str(self._path)!r}: a journal beside it cannot be read: {error}") from None

    def _committed(
        self, connection: sqlite3.Connection, wanted: AuditFilter, limit: int | None
    ) -> Iterator[AuditRecord]:
        conditions, parameters = wanted.conditions()
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        columns = ", ".join(COLUMNS)
        select = f"SELECT id, {columns} FROM records {where} ORDER BY id"  # noqa: S608 (own names only)
        values: list[object] = [*parameters]
        if limit is not None:
            select = f"SELECT * FROM ({select} DESC LIMIT ?) ORDER BY id"  # noqa: S608
            values.append(limit)
        for _, *row in connection.execute(select, values):
            record = _from_row(row)
            if record is None:
                self.damaged += 1
            else:
                yield record

    def _uncommitted(self, connection: sqlite3.Connection) -> list[AuditRecord]:
        """The records that only journals have yet. Calls without an end are among them if their process is dead.

        ``connection`` stays in the transaction to which they are what is missing. The journals are opened before it
        begins and read after: what is committed in between is then in the transaction, and known to be.
        """
        for _ in range(_ATTEMPTS):
            with ExitStack() as stack:
                opened = [(path, stack.enter_context(file)) for path, file in _open_journals(self._path)]
                connection.execute("BEGIN")
                rows = connection.execute("SELECT name, generation, committed FROM journals")
                noted = {name: (generation, committed) for name, generation, committed in rows}
                late = [self._late(path, file, noted.get(path.name)) for path, file in opened]
            complete = [records for records in late if records is not None]
            if len(complete) == len(late):
                return [record for records in complete for record in records]
            connection.execute("ROLLBACK")
        raise TrailError(f"{str(self._path)!r} changes faster than it can be read; try again")

    def _late(self, path: Path, file: BufferedReader, noted: tuple[int, int] | None) -> list[AuditRecord] | None:
        """What the transaction lacks of one journal. None: the journal was begun anew, or taken over, before the
        transaction began, and another look is needed."""
        generation, committed = noted or (0, 0)
        if generation == RECOVERED:
            return []
        alive = is_alive(file.fileno())
        data = file.read()
        own = generation_of(data)
        if own is None:
            raise TrailError(f"{str(path)!r} was written by another release")
        if own < generation or (noted is None and not is_at(file.fileno(), path)):
            return None
        contents = parse(data, generation, committed) or Contents([], [], 0)
        self.damaged += contents.damaged
        return contents.ended if alive else [*contents.ended, *contents.begun]

    def _has_tables(self, connection: sqlite3.Connection) -> bool:
        """Whether anybody has written the file yet. Raises TrailError if it was not a sink that writes this schema."""
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if not tables:
            return False
        if application != APPLICATION_ID:
            raise TrailError(f"{str(self._path)!r} is a SQLite database, but no audit trail")
        if version != SCHEMA_VERSION:
            raise TrailError(
                f"{str(self._path)!r} has schema version {version}; this release reads version {SCHEMA_VERSION}"
            )
        return True

    def _lines(self) -> Iterator[AuditRecord]:
        intact = 0
        try:
            with self._path.open("rb") as file:
                for line in _bounded_lines(file):
                    try:
                        record = _decode(line)
                    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                        self.damaged += 1
                    else:
                        intact += 1
                        yield record
        except OSError as error:
            raise TrailError(f"{str(self._path)!r} cannot be read: {error.strerror}") from None
        if self.damaged and not intact:
            raise TrailError(f"{str(self._path)!r} is no audit trail: not one line of it is a record")


def parse_time(text: str, now: datetime) -> datetime:
    """A time as a person writes it: ISO 8601 (UTC unless it says otherwise), a date (its first moment), or how long
    before ``now``: ``90s``, ``30m``, ``24h``, ``7d``, ``2w``. Raises ValueError."""
    relative = _RELATIVE.fullmatch(text.strip())
    try:
        if relative is not None:
            return now - timedelta(**{_UNITS[relative[2]]: int(relative[1])})
        moment = datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time; write 2026-07-28, 2026-07-28T09:30, 2026-07-28T09:30+02:00, or 90s, 30m, 24h, 7d, 2w"
        ) from None


def _timestamp(moment: datetime | None) -> str | None:
    """As records write it. What is finer than a millisecond counts as the next one."""
    if moment is None:
        return None
    moment = min(moment.astimezone(UTC), _LAST)
    if moment.microsecond % 1000:
        moment += timedelta(microseconds=1000 - moment.microsecond % 1000)
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def _open_journals(trail: Path) -> Iterator[tuple[Path, BufferedReader]]:
    for path in journals_of(trail):
        if not path.name.endswith(NEW):
            with suppress(FileNotFoundError):  # retired since
                yield path, path.open("rb")


def _from_row(row: list[Any]) -> AuditRecord | None:
    values = dict(zip(COLUMNS, row, strict=True))
    if values["tool_error"] in (0, 1):
        values["tool_error"] = bool(values["tool_error"])
    try:
        return msgspec.convert(values, AuditRecord)
    except msgspec.ValidationError:
        return None


def _bounded_lines(file: BufferedReader) -> Iterator[bytes]:
    """Lines without blank ones; one that is too long comes in pieces, none of which is a record."""
    while line := file.readline(_MAX_LINE):
        if not line.isspace():
            yield line


def _last(records: Iterable[AuditRecord], count: int) -> Iterable[AuditRecord]:
    return deque(records, maxlen=count)
