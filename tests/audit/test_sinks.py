"""The sinks under what disks, processes and their deaths do to them."""

import fcntl
import logging
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mcp_middleware.audit import AuditRecord, AuditTrail, JSONLinesSink, QueuedSink, SQLiteSink
from mcp_middleware.audit.sqlite import APPLICATION_ID, COLUMNS, SCHEMA_VERSION
from mcp_middleware.errors import ConfigurationError
from tests.audit.trails import record

SINKS = [SQLiteSink, JSONLinesSink]
ROOT = Path(__file__).parents[2]


def numbers(path: Path) -> list[Any]:
    """The request ids in a trail, all of whose records must be whole."""
    trail = AuditTrail(path)
    found = [one.request_id for one in trail.read()]
    assert trail.damaged == 0
    return found


def script(source: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A process that runs ``source`` with the names these tests use."""
    head = (
        "import os, sys, threading\n"
        "from mcp_middleware.audit import JSONLinesSink, SQLiteSink\n"
        "from tests.audit.trails import record\n"
        "make = {'SQLiteSink': SQLiteSink, 'JSONLinesSink': JSONLinesSink}[sys.argv[1]]\n"
        "path = sys.argv[2]\n"
    )
    command = [sys.executable, "-W", "error", "-c", head + source, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    return out


@pytest.mark.parametrize("make", SINKS)
def test_records_come_back_as_they_were_written(make: Any, tmp_path: Path) -> None:
    written = [
        record(request_id=1),
        record(request_id="1", target="a\0b\u2028\U0001f600\x1b[2J", tool_error=True, cost=0.5, input_tokens=3),
        record(request_id=None, method=None, status=None, tool_error=None, http_method="GET"),
        record(request_id=2**63 - 1, error_code=-(2**63)),
    ]
    sink = make(tmp_path / "trail")
    for one in written:
        sink.write(one)
    assert sink.flush()
    assert list(AuditTrail(tmp_path / "trail").read()) == written
    sink.close()
    assert list(AuditTrail(tmp_path / "trail").read()) == written


@pytest.mark.parametrize("make", SINKS)
def test_more_than_a_batch_stays_in_order(make: Any, tmp_path: Path) -> None:
    sink = make(tmp_path / "trail")
    for number in range(1000):
        sink.write(record(request_id=number))
    sink.close()
    assert numbers(tmp_path / "trail") == list(range(1000))
    assert sink.lost == 0


@pytest.mark.parametrize("make", SINKS)
def test_only_the_owner_may_read_a_new_file(make: Any, tmp_path: Path) -> None:
    sink = make(tmp_path / "trail")
    sink.write(record())
    assert sink.flush()
    for path in tmp_path.iterdir():  # SQLite's -wal and -shm too
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    sink.close()


@pytest.mark.parametrize("make", SINKS)
def test_a_sink_that_wrote_nothing_has_no_thread_and_closes(make: Any, tmp_path: Path) -> None:
    before = threading.active_count()
    sink = make(tmp_path / "trail")
    assert threading.active_count() == before
    assert sink.flush()
    sink.close()
    assert numbers(tmp_path / "trail") == []


@pytest.mark.parametrize("make", SINKS)
@pytest.mark.parametrize("path", ["", "nowhere/trail", ".", "a\0b", 7, None])
def test_a_path_that_cannot_be_written_is_refused(
    make: Any, path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=make.__name__):
        make(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", SINKS)
@pytest.mark.parametrize("size", [0, -1, 1.5, True, "10", None])
def test_a_wrong_queue_size_is_refused(make: Any, size: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"queue_size is .*; it must be a whole number from 1"):
        make(tmp_path / "trail", queue_size=size)


def test_a_database_of_somebody_else_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE records (id)")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="it is a database of something else"):
        SQLiteSink(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database at all\n" * 100)
    with pytest.raises(ConfigurationError, match="file is not a database"):
        SQLiteSink(path)
    assert path.read_text() == "not a database at all\n" * 100


def test_a_schema_of_another_release_is_refused(tmp_path: Path) -> None:
    SQLiteSink(tmp_path / "audit.db")
    with closing(sqlite3.connect(tmp_path / "audit.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigurationError, match="its schema is version 99, this release writes version 1"):
        SQLiteSink(tmp_path / "audit.db")


def test_a_database_in_memory_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="name a file"):
        SQLiteSink(":memory:")


def test_the_table_has_a_column_for_each_field_and_the_indexes_for_questions(tmp_path: Path) -> None:
    SQLiteSink(tmp_path / "audit.db")
    with closing(sqlite3.connect(tmp_path / "audit.db")) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(records)")]
        indexes = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'index'")]
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT * FROM records WHERE agent = 'a' AND time > 'b'"
        ).fetchone()
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert columns == ["id", *COLUMNS]
    assert sorted(indexes) == ["records_agent", "records_target", "records_time"]
    assert "records_agent" in plan[3]


class Held(QueuedSink):
    """A store that takes nothing until it is let."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.let = threading.Event()
        self.kept: list[AuditRecord] = []
        self.broken = False

    def _open(self) -> "Held._Store":
        return self._Store(self)

    def __str__(self) -> str:
        return "Held"

    class _Store:
        def __init__(self, sink: "Held") -> None:
            self.sink = sink

        def append(self, records: Sequence[AuditRecord]) -> None:
            self.sink.let.wait()
            if self.sink.broken:
                raise OSError("out of paper")
            if any(one.agent == "poison" for one in records):
                raise ValueError("poison")
            self.sink.kept.extend(records)

        def close(self) -> None:
            """Nothing is open."""


def test_a_full_queue_accepts_no_more_and_counts_what_it_loses(caplog: pytest.LogCaptureFixture) -> None:
    sink = Held(queue_size=5)
    for number in range(4):
        sink.write(record(request_id=number))
    assert sink.accepting
    sink.write(record(request_id=4))
    assert not sink.accepting
    sink.write(record(request_id=5, decision="unavailable"))
    assert sink.lost == 1
    for number in range(6, 11):  # calls that were under way
        sink.write(record(request_id=number))
    assert sink.lost == 1
    sink.write(record(request_id=11))
    assert sink.lost == 2
    assert [entry.message for entry in caplog.records] == ["audit records are being lost: Held, its queue is full"]
    sink.let.set()
    sink.close()
    assert [one.request_id for one in sink.kept] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert caplog.records[-1].message == "the audit sink Held works again; 2 records were lost so far"


def test_a_store_that_comes_back_gets_everything(caplog: pytest.LogCaptureFixture) -> None:
    sink = Held()
    sink.let.set()
    sink.broken = True
    for number in range(600):
        sink.write(record(request_id=number))
    assert not sink.flush()
    assert not sink.accepting
    sink.broken = False
    while not sink.accepting:
        sink.flush()
    sink.close()
    assert [one.request_id for one in sink.kept] == list(range(600))
    assert sink.lost == 0
    assert [entry.levelno for entry in caplog.records] == [logging.ERROR, logging.WARNING]


def test_what_cannot_be_kept_at_the_end_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    sink = Held()
    sink.let.set()
    sink.broken = True
    for number in range(300):
        sink.write(record(request_id=number))
    sink.close()
    assert sink.lost == 300
    assert "audit records are being lost: Held, it is down and the process ends" in caplog.text


def test_one_impossible_record_does_not_take_the_others_with_it(caplog: pytest.LogCaptureFixture) -> None:
    sink = Held()
    for number in range(10):
        sink.write(record(request_id=number, agent="poison" if number == 4 else "ci-bot"))
    sink.let.set()
    sink.close()
    assert [one.request_id for one in sink.kept] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert sink.lost == 1
    assert "an audit record was lost: Held cannot take it" in caplog.text


def test_many_threads_may_write(tmp_path: Path) -> None:
    sink = SQLiteSink(tmp_path / "audit.db")

    def write(first: int) -> None:
        for number in range(first, first + 100):
            sink.write(record(request_id=number))

    threads = [threading.Thread(target=write, args=(first,)) for first in range(0, 800, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.close()
    assert sorted(numbers(tmp_path / "audit.db")) == list(range(800))


@pytest.mark.parametrize("make", SINKS)
def test_processes_that_start_together_share_a_file(make: Any, tmp_path: Path) -> None:
    source = (
        "first = int(sys.argv[3])\n"
        "sys.stdin.readline()\n"
        "sink = make(path)\n"
        "for number in range(first, first + 300):\n"
        "    sink.write(record(request_id=number))\n"
        "    if number % 50 == 0: sink.flush()\n"
        "sink.close()\n"
        "assert sink.lost == 0\n"
    )
    path = tmp_path / "trail"
    running = [script(source, make.__name__, path, first, stdin=subprocess.PIPE) for first in range(0, 1200, 300)]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in running:
        finished(process)
    assert sorted(numbers(path)) == list(range(1200))


@pytest.mark.parametrize("make", SINKS)
def test_the_end_of_the_interpreter_keeps_what_waits(make: Any, tmp_path: Path) -> None:
    source = "sink = make(path)\nfor number in range(500): sink.write(record(request_id=number))\n"
    finished(script(source, make.__name__, tmp_path / "trail"))
    assert numbers(tmp_path / "trail") == list(range(500))


@pytest.mark.parametrize("make", SINKS)
def test_a_fork_writes_for_itself_and_nothing_twice(make: Any, tmp_path: Path) -> None:
    source = (
        "import time, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "sink = make(path)\n"
        "for number in range(100): sink.write(record(request_id=number))\n"
        "child = os.fork()\n"
        "first = 1000 if child else 2000\n"
        "for number in range(first, first + 100): sink.write(record(request_id=number))\n"
        "sink.close()\n"
        "if child: assert os.waitpid(child, 0)[1] == 0\n"
        "else: os._exit(0)\n"
    )
    finished(script(source, make.__name__, tmp_path / "trail"))
    assert sorted(numbers(tmp_path / "trail")) == [*range(100), *range(1000, 1100), *range(2000, 2100)]


@pytest.mark.parametrize("make", SINKS)
def test_case_36_sigkill_leaves_no_torn_record_and_no_gap(make: Any, tmp_path: Path) -> None:
    source = (
        "sink = make(path, queue_size=1000)\n"
        "number = 0\n"
        "while True:\n"
        "    sink.write(record(request_id=number, target='x' * 500))\n"
        "    number += 1\n"
        "    if number % 200 == 0: sink.flush(); print(number, flush=True)\n"
    )
    path = tmp_path / "trail"
    process = script(source, make.__name__, path)
    assert process.stdout is not None
    kept = 0
    while kept < 3000:
        kept = int(process.stdout.readline())
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    sink = make(path)
    sink.write(record(request_id="after"))
    sink.close()
    *before, after = numbers(path)
    assert after == "after"
    assert before == list(range(len(before)))
    assert len(before) >= kept


def test_case_36_a_torn_last_line_is_removed_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit.jsonl"
    sink = JSONLinesSink(path)
    sink.write(record(request_id=1))
    sink.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    JSONLinesSink(path)
    assert path.read_bytes() == whole
    assert "ended in a torn record of 50 bytes; it was removed" in caplog.text


def test_case_36_a_line_torn_by_another_process_does_not_take_ours_with_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    sink = JSONLinesSink(path)
    sink.write(record(request_id=1))
    assert sink.flush()
    with path.open("ab") as other:
        other.write(b'{"time":"2026-' + b"x" * 200_000)
    sink.write(record(request_id=2))
    sink.close()
    assert numbers(path) == [1, 2]


def test_a_file_that_was_all_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"time":"2026-' + b"x" * 100_000)
    JSONLinesSink(path)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("content", [b"notes\n", b"no line feed", b"SQLite format 3\0" * 100, b"\n", b'{"times": 1}\n'])
def test_a_file_of_something_else_is_refused_and_not_touched(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="it is a file of something else"):
        JSONLinesSink(path)
    assert path.read_bytes() == content


def test_two_writers_of_lines_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    sink = JSONLinesSink(path)
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b'{"time":"')  # under way, not torn
        other.flush()
        sink.write(record(request_id=1))
        assert not sink.flush(timeout=0.1)
        assert path.read_bytes() == b'{"time":"'
        other.write(b'now"}\n')
    assert sink.flush()
    sink.close()
    assert path.read_bytes().startswith(b'{"time":"now"}\n{"time":"2026-')


def test_lines_follow_a_file_that_was_moved_away(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    sink = JSONLinesSink(path)
    sink.write(record(request_id=1))
    assert sink.flush()
    path.rename(tmp_path / "old.jsonl")
    sink.write(record(request_id=2))
    sink.close()
    assert numbers(tmp_path / "old.jsonl") == [1]
    assert numbers(path) == [2]


def test_a_database_that_was_removed_is_made_anew_and_nothing_written_to_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    sink = SQLiteSink(path)
    sink.write(record(request_id=1))
    assert sink.flush()
    for file in tmp_path.iterdir():
        file.unlink()
    sink.write(record(request_id=2))
    sink.flush()  # finds it gone
    sink.close()
    assert numbers(path) == [2]


def test_lines_can_go_to_a_pipe(tmp_path: Path) -> None:
    source = "sink = make(path)\nfor number in range(300): sink.write(record(request_id=number))\n"
    out = finished(script(source, "JSONLinesSink", "/dev/stdout"))
    (tmp_path / "piped").write_text(out)
    assert numbers(tmp_path / "piped") == list(range(300))


@pytest.mark.parametrize("make", SINKS)
def test_case_42_a_full_disk_refuses_and_recovers_without_a_loss(make: Any, tmp_path: Path) -> None:
    """The disk is full to the process: its files may not grow beyond 256 KiB, until they may again."""
    source = (
        "import logging, resource\n"
        "logging.disable()\n"
        "sink = make(path)\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, hard))\n"
        "number = failures = 0\n"
        "while failures < 3:\n"  # SQLite gets some room back by itself, from its write-ahead log
        "    for _ in range(50):\n"
        "        sink.write(record(request_id=number, target='x' * 500)); number += 1\n"
        "    failures = 0 if sink.flush() else failures + 1\n"
        "assert not sink.accepting\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "while not sink.accepting: sink.flush()\n"
        "sink.write(record(request_id=number))\n"
        "sink.close()\n"
        "assert sink.lost == 0\n"
        "print(number)\n"
    )
    path = tmp_path / "trail"
    last = int(finished(script(source, make.__name__, path)))
    assert last > 50
    assert numbers(path) == list(range(last + 1))


def test_case_42_a_database_locked_for_long_refuses_and_recovers(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    sink = SQLiteSink(path, queue_size=10)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(10):
            sink.write(record(request_id=number))
        assert not sink.accepting
        other.execute("ROLLBACK")
    assert sink.flush()
    assert sink.accepting
    sink.close()
    assert numbers(path) == list(range(10))


def test_a_trail_is_read_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    sink = SQLiteSink(path)
    seen = 0
    for number in range(300):
        sink.write(record(request_id=number))
        if number % 30 == 0:
            found = numbers(path)
            assert found == list(range(len(found)))
            assert len(found) >= seen
            seen = len(found)
    sink.close()
    assert numbers(path) == list(range(300))


def test_no_file_stays_open_after_closing(tmp_path: Path) -> None:
    source = (
        "from pathlib import Path\n"
        "def descriptors():\n"
        "    return sorted(os.readlink(one) for one in map(str, Path('/dev/fd').iterdir()) if os.path.lexists(one))\n"
        "before = descriptors()\n"
        "for _ in range(3):\n"
        "    sink = make(path)\n"
        "    sink.write(record())\n"
        "    sink.close()\n"
        "assert descriptors() == before\n"
    )
    for make in SINKS:
        finished(script(source, make.__name__, tmp_path / make.__name__))
