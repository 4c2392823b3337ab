"""The page's way to take a month out of a SQLite trail, while a process writes it: no gap, and no record twice."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mcp_middleware import SQLiteSink
from mcp_middleware.audit import AuditRecord, AuditTrail
from tests.docs.blocks import ROOT, blocks_of

PAGE = ROOT / "docs" / "how-to" / "query-the-audit-trail.md"
SHOWN = next(block.code for block in blocks_of(PAGE) if block.title == "rotate.sh")
STATEMENTS = re.findall(r'^sqlite3 ([\w.-]+) "(.*)"$', SHOWN, re.MULTILINE)


def _record(agent: str, time: str) -> AuditRecord:
    return AuditRecord(
        time=f"{time}T12:00:00.000Z",
        agent=agent,
        decision="allowed",
        outcome="ok",
        duration_ms=1.0,
        request_bytes=1,
        response_bytes=1,
        era="modern",
        http_method="POST",
    )


def _agents(name: str) -> list[str]:
    return [record.agent for record in AuditTrail(name).read()]


def test_a_month_is_moved_while_the_trail_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sink = SQLiteSink("audit.db")
    june, july = [f"june-{number}" for number in range(50)], [f"july-{number}" for number in range(50)]
    for old, new in zip(june, july, strict=True):
        sink.write(_record(old, "2026-06-30"))
        sink.write(_record(new, "2026-07-01"))
    long = sink.begin(_record("long", "2026-06-30"))
    sink.flush()

    for number, (name, statements) in enumerate(STATEMENTS):
        with closing(sqlite3.connect(name, isolation_level=None)) as database:
            database.executescript(statements)
        if number == 0:
            sink.end(long, _record("long", "2026-06-30"))
        sink.write(_record(f"meanwhile-{number}", "2026-07-01"))
        sink.flush()
    sink.close()

    assert len(STATEMENTS) == 3
    assert _agents("audit-2026-06.db") == june
    assert _agents("audit.db") == [*july, "long", *(f"meanwhile-{number}" for number in range(3))]
