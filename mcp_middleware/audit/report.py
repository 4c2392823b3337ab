"""What a trail's calls came to: counted, and their costs added, by agent, tool, day or what else a record names.

All of it is SQL: where the trail is a SQLite file its own rows are grouped; lines and what only journals have yet are
put into a temporary database, some thousand at a time, and grouped there. So memory is bounded, whatever the trail's
length and however many names callers invent: SQLite sorts on the disk what does not fit.

Sums are exact. A record's cost is a number of billionths (``Money``), which is taken apart into whole units and
billionths before it is added. Amounts of different currencies are never added.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from itertools import islice
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, TypeAlias, get_args

from msgspec import structs

from .record import DECISIONS, AuditOutcome, AuditRecord

__all__ = ["KEYS", "METHODS", "CostReport", "CostRow", "Sums", "check_keys"]

METHODS: Final = (
    "tools/call",
    "prompts/get",
    "resources/read",
    "completion/complete",
    "tasks/get",
    "tasks/result",
)
"""What is a call: the requests whose tokens the limiter counts. Others cost nothing, and stand in no report."""

_TOOL: Final = "CASE WHEN target_kind = 'tool' THEN target END"
KEYS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "agent": "agent",
        "tool": _TOOL,
        "server": "server",
        "subject": "subject",
        "issuer": "issuer",
        "outcome": "outcome",
        "day": "substr(time, 1, 10)",
        "month": "substr(time, 1, 7)",
    }
)
"""What calls can be added up by, and where a record has it. Days and months are UTC, as the record's time is."""

UNKNOWN: Final = "unknown"
"""Stands for the currency of a cost that was recorded without one."""

_COLUMNS: Final = (
    *("time", "method", "target_kind", "target", "agent", "issuer", "subject", "decision", "outcome"),
    *("input_tokens", "output_tokens", "cost", "currency", "server"),
)
_TEXTS: Final = ("method", "target_kind", "target", "issuer", "subject", "currency", "server")
_MOST: Final = 10**12
"""Tokens or units of a currency that one call can have; more is damage, and would overflow a sum."""
_MOST_CURRENCIES: Final = 64
_EXACT: Final = Context(prec=64)
"""For sums of any size, whatever an application does to the precision of its decimals."""
_AT_ONCE: Final = 5000
"""Records in the temporary table at a time."""


def _words(words: Iterable[str]) -> str:
    return ", ".join(f"'{word}'" for word in words)  # our own, without quotes


_IS_CALL: Final = f"method IN ({_words(METHODS)})"
_IS_RECORD: Final = " AND ".join(
    (
        "typeof(time) = 'text'",
        "typeof(agent) = 'text'",
        f"decision IN ({_words(DECISIONS)})",
        f"outcome IN ({_words(get_args(AuditOutcome))})",
        *(f"typeof({name}) IN ('text', 'null')" for name in _TEXTS),
        *(
            f"({name} IS NULL OR (typeof({name}) IN ({types}) AND {name} BETWEEN 0 AND {_MOST}))"
            for name, types in (
                ("input_tokens", "'integer'"),
                ("output_tokens", "'integer'"),
                ("cost", "'real', 'integer'"),
            )
        ),
    )
)
"""What holds for every row that is a record, and for no other."""

_COUNTS: Final = {
    "calls": "count(*) FILTER (WHERE decision = 'allowed')",
    "refused": "count(*) FILTER (WHERE decision <> 'allowed')",
    "failed": "count(*) FILTER (WHERE decision = 'allowed' AND outcome <> 'ok')",
    "input_tokens": "coalesce(sum(input_tokens), 0)",
    "output_tokens": "coalesce(sum(output_tokens), 0)",
    "unpriced": "count(*) FILTER (WHERE decision = 'allowed' AND cost IS NULL)",
}
_WHOLE: Final = "coalesce(sum(CAST(cost AS INTEGER)), 0)"
_NANOS: Final = "coalesce(sum(CAST(round((cost - CAST(cost AS INTEGER)) * 1e9) AS INTEGER)), 0)"

Conditions: TypeAlias = tuple[Sequence[str], Sequence[str]]
"""SQL conditions, and the values of their question marks."""


@dataclass(frozen=True, slots=True)
class CostRow:
    """What the calls of one group came to."""

    keys: tuple[str | None, ...]
    """What they have in common, in the order of the question; None where their records name nothing."""
    calls: int
    """Those that went to the server."""
    refused: int
    """Those that did not."""
    failed: int
    """Of ``calls``, those that did not end well."""
    input_tokens: int
    output_tokens: int
    unpriced: int
    """Of ``calls``, those of which no cost is known."""
    costs: Mapping[str, Decimal]
    """Exact sums by currency, all currencies of the report."""

    def __sub__(self, other: "CostRow") -> "CostRow":
        counts = (getattr(self, name) - getattr(other, name) for name in _COUNTS)
        costs = {name: _EXACT.subtract(cost, other.costs[name]) for name, cost in self.costs.items()}
        return _row(self.keys, counts, costs)


def _row(keys: tuple[str | None, ...], counts: Iterable[int], costs: Mapping[str, Decimal]) -> CostRow:
    return CostRow(keys, **dict(zip(_COUNTS, counts, strict=True)), costs=costs)


class CostReport:
    """An answer: some rows, and what all of them together come to."""

    def __init__(
        self,
        by: tuple[str, ...],
        currencies: tuple[str, ...],
        total: CostRow,
        groups: int,
        rows: Iterable[CostRow],
    ) -> None:
        self.by = by
        self.currencies = currencies
        """Those of the costs, by name. Empty: no cost is known."""
        self.total = total
        self.groups = groups
        """How many rows there are, shown or not."""
        self._rows = rows
        self._rest = total
        self._shown = 0

    def rows(self) -> Iterator[CostRow]:
        """The rows, once: what costs most first, or by time where the first key is a day or a month."""
        for row in self._rows:
            self._rest -= row
            self._shown += 1
            yield row

    @property
    def others(self) -> tuple[int, CostRow] | None:
        """How many rows were not among ``rows()``, and what those come to; None if there are no others. Known once
        ``rows()`` has ended."""
        hidden = self.groups - self._shown
        return (hidden, self._rest) if hidden else None


def check_keys(by: Sequence[str]) -> tuple[str, ...]:
    """``by``, if it is some keys, none of them twice. Raises ValueError."""
    for key in by or [""]:
        if key not in KEYS:
            raise ValueError(f"{key!r} is nothing to add up by; choose from {', '.join(KEYS)}")
    if len(set(by)) < len(by):
        raise ValueError(f"{','.join(by)!r} names a key twice")
    return tuple(by)


class Sums:
    """The sums of a report, while records are added. Uses temporary tables of ``connection``."""

    def __init__(self, connection: sqlite3.Connection, by: Sequence[str], conditions: Conditions) -> None:
        self._connection = connection
        self._by = check_keys(by)
        self._names = [f"key{index}" for index in range(len(by))]
        self._where, self._values = " AND ".join((*conditions[0], _IS_CALL)), conditions[1]
        execute = connection.execute
        execute(f"CREATE TEMP TABLE late ({', '.join(_COLUMNS)})")
        columns = (*self._names, "currency", *_COUNTS, "whole", "nanos")
        execute(f"CREATE TEMP TABLE parts ({', '.join(columns)})")

    def add_table(self, table: str) -> int:
        """Add the rows of a table. Returns how many of those that were asked for are no records."""
        execute = self._connection.execute
        (before,) = execute("SELECT coalesce(max(rowid), 0) FROM parts").fetchone()
        keys = [
            *(KEYS[key] for key in self._by),
            f"CASE WHEN cost IS NOT NULL THEN coalesce(currency, '{UNKNOWN}') END",
        ]
        places = ", ".join(str(number + 1) for number in range(len(keys)))
        select = ", ".join((*keys, *_COUNTS.values(), _WHOLE, _NANOS))
        source = f"FROM {table} WHERE {self._where}"
        execute(f"INSERT INTO parts SELECT {select} {source} AND {_IS_RECORD} GROUP BY {places}", self._values)
        (asked,) = execute(f"SELECT count(*) {source}", self._values).fetchone()
        added = "SELECT coalesce(sum(calls + refused), 0) FROM parts WHERE rowid > ?"
        damaged: int = asked - execute(added, (before,)).fetchone()[0]
        return damaged

    def add_records(self, records: Iterable[AuditRecord]) -> int:
        """Add records, which are read as they are needed. Returns how many of those that were asked for have figures
        that cannot be."""
        records, damaged = iter(records), 0
        insert = f"INSERT INTO late VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608 (own names)
        while some := list(islice(records, _AT_ONCE)):
            self._connection.executemany(insert, map(_values, some))
            damaged += self.add_table("late")
            self._connection.execute("DELETE FROM late")
        return damaged

    def report(self, top: int | None = None) -> CostReport:
        """What was added comes to; of more than ``top`` rows those that cost most. Its rows are read from the
        connection as they are asked for. Raises ValueError for more currencies than a report can have."""
        execute, names = self._connection.execute, self._names
        found = execute(
            "SELECT DISTINCT currency FROM parts WHERE currency IS NOT NULL ORDER BY 1 LIMIT ?", (_MOST_CURRENCIES + 1,)
        )
        currencies = tuple(currency for (currency,) in found)
        if len(currencies) > _MOST_CURRENCIES:
            raise ValueError(f"it has costs in more than {_MOST_CURRENCIES} currencies; ask for a shorter time")
        sums = [f"sum({name}) AS {name}" for name in _COUNTS]
        for index in range(len(currencies)):
            for part in ("whole", "nanos"):
                sums.append(f"coalesce(sum({part}) FILTER (WHERE currency = ?{index + 1}), 0) AS {part}{index}")
        select = f"SELECT {', '.join((*names, *sums))} FROM parts GROUP BY {', '.join(names)}"  # noqa: S608 (own names)
        execute(f"CREATE TEMP TABLE found AS {select}", currencies)
        summed = [*_COUNTS, *(f"{part}{index}" for index in range(len(currencies)) for part in ("whole", "nanos"))]
        totals = ", ".join(f"coalesce(sum({name}), 0)" for name in summed)
        groups, *total = execute(f"SELECT count(*), {totals} FROM found").fetchone()  # noqa: S608 (own names)
        read = _reader(0, currencies)
        return CostReport(self._by, currencies, read(total), groups, self._rows(currencies, top))

    def _rows(self, currencies: Sequence[str], top: int | None) -> Iterator[CostRow]:
        costs = [f"whole{index} + nanos{index} / 1e9 DESC" for index in range(len(currencies))]
        order = [*costs, "input_tokens + output_tokens DESC", "calls DESC", *self._names]
        select = f"SELECT * FROM found ORDER BY {', '.join(order)} LIMIT ?"  # noqa: S608 (own names)
        if self._by[0] in ("day", "month"):
            select = f"SELECT * FROM ({select}) ORDER BY {', '.join((self._names[0], *order))}"  # noqa: S608
        read = _reader(len(self._names), currencies)
        for row in self._connection.execute(select, (-1 if top is None else top,)):
            yield read(row)


_fields: Final = attrgetter(*_COLUMNS)


def _values(record: AuditRecord) -> Sequence[Any]:
    """What the temporary table takes of a record. What SQLite could not hold is as wrong as -1."""
    if not 0 <= (record.input_tokens or 0) <= _MOST or not 0 <= (record.output_tokens or 0) <= _MOST:
        record = structs.replace(record, input_tokens=-1, output_tokens=-1)
    values: Sequence[Any] = _fields(record)
    return values


def _reader(keys: int, currencies: Sequence[str]) -> Any:
    """Turns the values of a row into a ``CostRow``."""
    counted = keys + len(_COUNTS)

    def read(row: Sequence[Any]) -> CostRow:
        amounts = zip(row[counted::2], row[counted + 1 :: 2], strict=True)
        costs = {
            currency: _EXACT.scaleb(Decimal(whole * 10**9 + nanos), -9)
            for currency, (whole, nanos) in zip(currencies, amounts, strict=True)
        }
        return _row(tuple(row[:keys]), row[keys:counted], costs)

    return read
