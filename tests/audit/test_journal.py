"""The journal: what it has when its process is gone, and what the database lacks of it."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mcp_middleware.audit import AuditFilter, AuditLogMiddleware, AuditTrail, SQLiteSink
from mcp_middleware.audit.journal import Journal, journals_of, parse
from tests.audit.test_sinks import finished, numbers, script
from tests.audit.trails import record
from tests.core.asgi import Call, EchoServer, rpc

CALL = rpc("tools/call", {"name": "echo", "arguments": {}})
UNKNOWN: dict[str, Any] = {"outcome": "unknown", "status": None, "tool_error": None}


def die(source: str, path: Path) -> None:
    """Run ``source`` in a process that ends as by SIGKILL: nothing is flushed, closed or unlocked by its hand."""
    finished(script(f"sink = make(path)\n{source}\nos._exit(0)\n", "SQLiteSink", path))


def ends(path: Path) -> list[tuple[Any, str]]:
    return [(one.request_id, one.outcome) for one in AuditTrail(path).read()]


def test_case_36_what_a_dead_process_left_is_read_at_once_and_taken_over_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    die(
        "first = sink.begin(record(request_id=1, outcome='unknown'))\n"
        "second = sink.begin(record(request_id=2, outcome='unknown'))\n"
        "sink.end(second, record(request_id=2))\n"
        "sink.write(record(request_id=3, decision='denied', outcome='refused'))",
        path,
    )
    expected = [(2, "ok"), (3, "refused"), (1, "unknown")]
    assert ends(path) == expected
    assert [one.request_id for one in AuditTrail(path).read(limit=2)] == [3, 1]
    assert [one.request_id for one in AuditTrail(path).read(AuditFilter(decision="denied"))] == [3]
    SQLiteSink(path)
    assert journals_of(path) == []
    assert ends(path) == expected
    SQLiteSink(path)
    assert ends(path) == expected


def test_what_is_committed_is_not_taken_over_again(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    die(
        "for number in range(10): sink.write(record(request_id=number))\n"
        "assert sink.flush()\n"
        "for number in range(10, 20): sink.write(record(request_id=number))",
        path,
    )
    assert numbers(path) == list(range(20))
    SQLiteSink(path)
    assert numbers(path) == list(range(20))


def test_a_journal_that_was_taken_over_but_not_removed_counts_once(tmp_path: Path) -> None:
    """The next start dies between the transaction and the removal of the file."""
    path = tmp_path / "audit.db"
    die("sink.write(record(request_id=1))", path)
    (journal,) = journals_of(path)
    data = journal.read_bytes()
    SQLiteSink(path)
    journal.write_bytes(data)
    with closing(sqlite3.connect(path)) as connection:  # before the row was tidied away
        connection.execute("INSERT OR REPLACE INTO journals VALUES (?, ?, 0)", (journal.name, 2**62))
        connection.commit()
    assert numbers(path) == [1]
    SQLiteSink(path)
    assert numbers(path) == [1]
    assert journals_of(path) == []


@pytest.mark.parametrize("cut", [1, 30, 400])
def test_case_36_a_torn_last_line_is_no_record(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    die("ticket = sink.begin(record(request_id=1, outcome='unknown')); sink.end(ticket, record(request_id=1))", path)
    (journal,) = journals_of(path)
    os.truncate(journal, journal.stat().st_size - cut)
    assert ends(path) == [(1, "unknown")]
    SQLiteSink(path)
    assert ends(path) == [(1, "unknown")]


def test_every_cut_of_a_journal_has_whole_records_and_no_call_twice(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "audit.db")
    tickets = [journal.begin(record(request_id=number, **UNKNOWN)) for number in range(4)]
    for number in (2, 0):
        journal.end(tickets[number], record(request_id=number))
    data = (tmp_path / journal.name).read_bytes()
    journal.let_go()
    head = data.index(b"\n") + 1
    for cut in range(head, len(data) + 1):
        contents = parse(data[:cut], 1, 0)
        assert contents is not None
        assert contents.damaged == 0
        calls = [one.request_id for one in [*contents.ended, *contents.begun]]
        assert sorted(map(str, calls)) == [str(number) for number in range(data[:cut].count(b"\n+") + 1)][: len(calls)]
    whole = parse(data, 1, 1)
    assert whole is not None
    assert [one.request_id for one in whole.ended] == [0]
    assert [one.request_id for one in whole.begun] == [1, 3]


def test_a_journal_begun_anew_has_what_still_matters(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "audit.db")
    done, under_way = (journal.begin(record(request_id=number, **UNKNOWN)) for number in range(2))
    journal.end(done, record(request_id=0))
    journal.renew([record(request_id=7)])
    contents = parse((tmp_path / journal.name).read_bytes(), 2, 0)
    assert contents is not None
    assert [one.request_id for one in contents.ended] == [7]
    assert [one.request_id for one in contents.begun] == [1]
    assert not journal.retire()
    journal.end(under_way, record(request_id=1))
    assert journal.retire()
    assert journals_of(tmp_path / "audit.db") == []


def test_a_journal_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_middleware.audit.journal._RENEWED_AT", 1024 * 1024)
    path = tmp_path / "audit.db"
    sink = SQLiteSink(path)
    largest = 0
    for number in range(6_000):
        sink.end(sink.begin(record(request_id=number, target="x" * 500, **UNKNOWN)), record(request_id=number))
        if number % 500 == 0:
            assert sink.flush()
            largest = max(largest, *(one.stat().st_size for one in journals_of(path)))
    assert largest < 4 * 1024 * 1024
    assert numbers(path) == list(range(len(numbers(path))))
    sink.close()
    assert journals_of(path) == []
    assert numbers(path) == list(range(6_000))


def test_a_call_under_way_is_no_record_while_its_process_lives(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    sink = SQLiteSink(path)
    ticket = sink.begin(record(request_id=1, **UNKNOWN))
    assert ends(path) == []
    other = SQLiteSink(path)  # takes nothing from the living
    other.close()
    sink.end(ticket, record(request_id=1))
    assert ends(path) == [(1, "ok")]  # from the journal, before any transaction
    sink.close()
    assert ends(path) == [(1, "ok")]


def test_a_call_that_ends_after_closing_is_recorded_once(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    sink = SQLiteSink(path)
    ticket = sink.begin(record(request_id=1, **UNKNOWN))
    sink.close()
    sink.end(ticket, record(request_id=1))
    sink.close()
    assert ends(path) == [(1, "ok")]
    assert journals_of(path) == []


def test_case_42_a_journal_that_cannot_be_written_refuses_calls_and_recovers(tmp_path: Path) -> None:
    """Not a file may grow, until they may again: the call is refused before the server sees it."""
    source = (
        "import asyncio, logging, resource\n"
        "from mcp_middleware.audit import AuditLogMiddleware\n"
        "from tests.core.asgi import Call, EchoServer, rpc\n"
        "logging.disable()\n"
        "sink, server = make(path), EchoServer()\n"
        "app = AuditLogMiddleware(server, sink=sink)\n"
        "call = lambda: asyncio.run(Call(app, rpc('tools/call', {'name': 'echo'})).run()).status\n"
        "assert call() == 200\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))\n"
        "statuses = [call() for _ in range(5)]\n"
        "assert statuses == [200 if len(server.scopes) > 1 else 503] + [503] * 4, statuses\n"
        "assert not sink.accepting\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))\n"
        "while not sink.accepting: sink.flush()\n"
        "assert call() == 200\n"
        "sink.close()\n"
        "assert sink.lost == 0\n"
        "print(len(server.scopes))\n"
    )
    path = tmp_path / "audit.db"
    served = int(finished(script(source, "SQLiteSink", path)))
    found = list(AuditTrail(path).read())
    assert [one.decision for one in found].count("allowed") == served
    assert len(found) == 7
    assert journals_of(path) == []


def test_what_the_end_of_a_process_cannot_commit_stays_in_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp_middleware.audit.sqlite._BUSY_TIMEOUT", 0.05)
    path = tmp_path / "audit.db"
    sink = SQLiteSink(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(10):
            sink.write(record(request_id=number))
        sink.close()
        assert sink.lost == 0
        other.execute("ROLLBACK")
    assert numbers(path) == list(range(10))
    SQLiteSink(path)
    assert numbers(path) == list(range(10))
    assert journals_of(path) == []


def test_a_journal_of_another_release_is_left_alone_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit.db"
    foreign = tmp_path / "audit.db-calls-1-00"
    foreign.write_bytes(b"mcp_middleware audit journal 2 1\n")
    SQLiteSink(path)
    assert foreign.exists()
    assert "is of another release" in caplog.text


def test_a_journal_that_never_took_its_place_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    (tmp_path / "audit.db-calls-1-00.new").write_bytes(b"mcp_middleware audit jou")
    SQLiteSink(path)
    assert journals_of(path) == []


def test_damaged_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    die("sink.write(record(request_id=1)); sink.write(record(request_id=2))", path)
    (journal,) = journals_of(path)
    head, _, last = journal.read_bytes().split(b"\n")[:3]
    journal.write_bytes(head + b"\n-0 {\xff}\n" + last + b"\n")
    trail = AuditTrail(path)
    assert [one.request_id for one in trail.read()] == [2]
    assert trail.damaged == 1
    SQLiteSink(path)
    assert numbers(path) == [2]


async def test_the_journal_has_a_call_before_the_server_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    seen: list[Any] = []

    async def server(scope: Any, receive: Any, send: Any) -> None:
        (journal,) = journals_of(path)
        contents = parse(journal.read_bytes(), 1, 0)
        assert contents is not None
        seen.extend(contents.begun)
        await EchoServer()(scope, receive, send)

    app = AuditLogMiddleware(server, sink=SQLiteSink(path), server="files")
    assert (await Call(app, CALL).run()).status == 200
    await app.aclose()
    (begun,) = seen
    (ended,) = AuditTrail(path).read()
    assert (begun.decision, begun.outcome, begun.target, begun.server) == ("allowed", "unknown", "echo", "files")
    assert (ended.outcome, ended.target, ended.server) == ("ok", "echo", "files")
    assert journals_of(path) == []
