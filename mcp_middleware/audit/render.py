"""Records and reports as a table, as JSON and as CSV. Values come from callers: none may move the cursor, turn the text
around, end its line, look like another column, or run as a formula."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from decimal import Decimal
from itertools import chain, islice
from types import MappingProxyType
from typing import Final

import msgspec

from .jsonl import encode_line, encode_printable
from .record import AuditRecord
from .report import CostReport, CostRow

__all__ = ["FORMATS", "REPORT_FORMATS", "as_csv", "as_json", "as_table"]

_PAGE: Final = 500
"""Rows that decide the widths of a table's columns; later ones may be wider."""
_MAX_CELL: Final = 60

_FORMULA: Final = tuple("=+-@\t\r＝＋－＠")
"""What makes a spreadsheet read a cell as a formula."""
_FORMULA_BEHIND: Final = re.compile(r'(?<=;)(?=[\s"]*[=+\-@＝＋－＠])')
"""Where there would be one, were the line taken apart at semicolons: so spreadsheets do where a comma is in numbers."""

_COLUMNS: Final[Mapping[str, Callable[[AuditRecord], object]]] = {
    "TIME": lambda record: record.time,
    "AGENT": lambda record: record.agent,
    "SUBJECT": lambda record: record.subject,
    "SERVER": lambda record: record.server,
    "METHOD": lambda record: record.method or record.http_method,
    "TARGET": lambda record: record.target,
    "DECISION": lambda record: record.decision,
    "RULE": lambda record: record.rule,
    "REASON": lambda record: record.reason,
    "OUTCOME": lambda record: record.outcome,
    "STATUS": lambda record: record.status,
    "CODE": lambda record: record.error_code,
    "MS": lambda record: f"{record.duration_ms:.1f}",
    "IN": lambda record: record.input_tokens,
    "OUT": lambda record: record.output_tokens,
    "COST": lambda record: None if record.cost is None else _plain(Decimal(f"{record.cost:.9f}")),
    "CURRENCY": lambda record: record.currency,
}
_NUMBERS: Final = frozenset({"STATUS", "CODE", "MS", "IN", "OUT", "COST"})
_OPTIONAL: Final = frozenset({"SERVER", "COST", "CURRENCY"})
"""Columns that a table has only where one of its first records says something there."""


def as_table(records: Iterable[AuditRecord]) -> Iterator[str]:
    """Lines for a person: the columns that answer who did what and how it ended. Servers and costs have a column only
    where records name them."""
    records = iter(records)
    first = list(islice(records, _PAGE))
    columns = {
        name: value
        for name, value in _COLUMNS.items()
        if name not in _OPTIONAL or any(value(record) is not None for record in first)
    }
    rows = ([_cell(value(record)) for value in columns.values()] for record in chain(first, records))
    yield from _table(list(columns), rows, _NUMBERS)


def as_json(records: Iterable[AuditRecord]) -> Iterator[str]:
    """One JSON array, a record a line."""
    separator = "["
    for record in records:
        yield separator + "\n" + encode_line(record).decode().rstrip("\n")
        separator = ","
    yield "[]\n" if separator == "[" else "\n]\n"


def as_csv(records: Iterable[AuditRecord]) -> Iterator[str]:
    """RFC 4180 with a header line: every field of the record, a record a line. A text that a spreadsheet would read as
    a formula gets an apostrophe before it."""
    yield _csv_line(AuditRecord.__struct_fields__)
    for record in records:
        yield _csv_line([_csv_cell(value) for value in msgspec.structs.astuple(record)])


FORMATS: Final = MappingProxyType({"table": as_table, "json": as_json, "csv": as_csv})


_COUNTED: Final[Mapping[str, Callable[[CostRow], int]]] = {
    "calls": lambda row: row.calls,
    "refused": lambda row: row.refused,
    "failed": lambda row: row.failed,
    "input_tokens": lambda row: row.input_tokens,
    "output_tokens": lambda row: row.output_tokens,
}
_HEADS: Final = {"input_tokens": "IN", "output_tokens": "OUT"}


def report_as_table(report: CostReport) -> Iterator[str]:
    """Lines for a person, with a last one for all of them together. A cost is rounded to a millionth."""
    keys = [key.upper() for key in report.by]
    currencies = [_visible(currency) for currency in report.currencies]
    figures = [*(_HEADS.get(name, name.upper()) for name in _COUNTED), *currencies, "UNPRICED"]

    def rows() -> Iterator[list[str]]:
        for row in report.rows():
            yield [*map(_cell, row.keys), *cells(row)]
        if report.others is not None:
            hidden, others = report.others
            yield [f"({hidden} more)", *[""] * (len(keys) - 1), *cells(others)]
        yield ["(total)", *[""] * (len(keys) - 1), *cells(report.total)]

    def cells(row: CostRow) -> Iterator[str]:
        yield from (str(value(row)) for value in _COUNTED.values())
        yield from (f"{row.costs[currency]:.6f}" for currency in report.currencies)
        yield str(row.unpriced)

    return _table([*keys, *figures], rows(), frozenset(figures))


def report_as_json(report: CostReport) -> Iterator[str]:
    """One JSON object, a row a line. Costs are exact."""

    def line(row: CostRow, **keys: str | int | None) -> str:
        values = {name: value(row) for name, value in _COUNTED.items()}
        costs = {currency: msgspec.Raw(_plain(cost).encode()) for currency, cost in row.costs.items()}
        return encode_printable({**keys, **values, "cost": costs, "unpriced": row.unpriced}).decode()

    yield '{"rows": ['
    separator = "\n"
    for row in report.rows():
        yield separator + line(row, **dict(zip(report.by, row.keys, strict=True)))
        separator = ",\n"
    yield "\n],\n" if separator != "\n" else "],\n"
    if report.others is not None:
        hidden, others = report.others
        yield f'"others": {line(others, rows=hidden)},\n'
    yield f'"total": {line(report.total, rows=report.groups)}}}\n'


def report_as_csv(report: CostReport) -> Iterator[str]:
    """RFC 4180 with a header line. Costs are exact. Without a total, which a spreadsheet would add once more."""
    costs = [_csv_cell(f"cost_{currency}") for currency in report.currencies]
    yield _csv_line([*report.by, *_COUNTED, *costs, "unpriced"])
    for row in report.rows():
        counted = [str(value(row)) for value in _COUNTED.values()]
        amounts = [_plain(row.costs[currency]) for currency in report.currencies]
        yield _csv_line([*map(_csv_cell, row.keys), *counted, *amounts, str(row.unpriced)])


REPORT_FORMATS: Final = MappingProxyType({"table": report_as_table, "json": report_as_json, "csv": report_as_csv})


def _plain(amount: Decimal) -> str:
    """Without an exponent, and without zeros that say nothing."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _table(head: list[str], rows: Iterator[list[str]], numbers: Set[str]) -> Iterator[str]:
    page = list(islice(rows, _PAGE))
    widths = [max(map(len, column)) for column in zip(head, *page, strict=True)]
    for row in chain([head], page, rows):
        cells = (
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(head, row, widths, strict=True)
        )
        yield "  ".join(cells).rstrip(" ") + "\n"


def _visible(text: str) -> str:
    """``text`` with everything that is not printable as the escape a programmer would write."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else f"\\u{ord(one):04x}" if ord(one) < 0x10000 else f"\\U{ord(one):08x}"
        for one in text
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    text = _visible(str(value))
    if len(text) > _MAX_CELL:
        text = text[: _MAX_CELL - 3] + "..."
    if isinstance(value, str) and (not text or " " in text or text[0] in '"(' or text == "-"):
        return '"' + text.replace('"', '\\"') + '"'  # else a name could pass for several columns, or for a total
    return text


def _csv_cell(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return str(value).lower()
    dangerous = value.lstrip().startswith(_FORMULA) or value.startswith(_FORMULA)
    return ("'" if dangerous else "") + _visible(_FORMULA_BEHIND.sub("'", value))


def _csv_line(cells: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()
