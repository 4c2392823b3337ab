"""Questions to a trail: the same answers from either kind of file."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcp_middleware.audit import AuditFilter, AuditTrail, JSONLinesSink, SQLiteSink, TrailError
from mcp_middleware.audit.query import parse_time
from tests.audit.trails import record

NOW = datetime(2026, 7, 28, 12, 0, tzinfo=UTC)
NOON = "2026-07-28T12:00:00.000Z"

WRITTEN = [
    record(request_id=0, time="2026-07-27T23:59:59.999Z"),
    record(request_id=1, time="2026-07-28T00:00:00.000Z", agent="reporter"),
    record(request_id=2, target="delete", decision="denied", outcome="refused"),
    record(request_id=3, target="echo", target_kind="prompt", method="prompts/get"),
    record(request_id=4, target=None, target_kind=None, method="tools/list"),
    record(request_id=5, time=NOON, agent="reporter", decision="limited", outcome="refused"),
    record(request_id=6, time="2026-07-28T12:00:00.001Z"),
]


@pytest.fixture(params=[SQLiteSink, JSONLinesSink])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    sink = request.param(tmp_path / "trail")
    for one in WRITTEN:
        sink.write(one)
    sink.close()
    return tmp_path / "trail"


QUESTIONS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [0, 1, 2, 3, 4, 5, 6]),
    ({"agent": "reporter"}, [1, 5]),
    ({"agent": "report"}, []),
    ({"agent": "report%"}, []),
    ({"tool": "echo"}, [0, 1, 5, 6]),
    ({"tool": "echo' OR 1=1 --"}, []),
    ({"decision": "denied"}, [2]),
    ({"since": NOW}, [5, 6]),
    ({"until": NOW}, [0, 1, 2, 3, 4]),
    ({"since": datetime(2026, 7, 28, 14, 0, tzinfo=timezone(timedelta(hours=2)))}, [5, 6]),
    ({"since": NOW + timedelta(microseconds=1)}, [6]),
    ({"until": NOW + timedelta(microseconds=1)}, [0, 1, 2, 3, 4, 5]),
    ({"since": datetime(2026, 7, 28, tzinfo=UTC), "until": NOW, "agent": "reporter"}, [1]),
]


@pytest.mark.parametrize(("conditions", "expected"), QUESTIONS)
def test_a_filter_selects_what_it_says(conditions: dict[str, Any], expected: list[int], path: Path) -> None:
    found = list(AuditTrail(path).read(AuditFilter(**conditions)))
    assert found == [WRITTEN[number] for number in expected]


@pytest.mark.parametrize(("limit", "expected"), [(1, [6]), (3, [4, 5, 6]), (99, [0, 1, 2, 3, 4, 5, 6])])
def test_a_limit_keeps_the_last_ones_in_order(limit: int, expected: list[int], path: Path) -> None:
    assert [one.request_id for one in AuditTrail(path).read(limit=limit)] == expected


def test_a_limit_counts_what_matches(path: Path) -> None:
    wanted = AuditFilter(agent="reporter")
    assert [one.request_id for one in AuditTrail(path).read(wanted, limit=1)] == [5]


@given(
    agent=st.none() | st.sampled_from(["ci-bot", "reporter", "x"]),
    tool=st.none() | st.sampled_from(["echo", "delete", "\0"]),
    decision=st.none() | st.sampled_from(["allowed", "denied", "limited"]),
    since=st.none() | st.datetimes(datetime(2026, 7, 27), datetime(2026, 7, 29), timezones=st.just(UTC)),
    until=st.none() | st.datetimes(datetime(2026, 7, 27), datetime(2026, 7, 29), timezones=st.just(UTC)),
    limit=st.none() | st.integers(1, 9),
)
def test_both_kinds_of_file_give_the_same_answer(
    agent: Any, tool: Any, decision: Any, since: Any, until: Any, limit: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.getbasetemp() / "both"
    if not base.exists():
        base.mkdir()
        for make in (SQLiteSink, JSONLinesSink):
            sink = make(base / make.__name__)
            for one in WRITTEN:
                sink.write(one)
            sink.close()
    wanted = AuditFilter(agent=agent, tool=tool, decision=decision, since=since, until=until)
    answers = [list(AuditTrail(base / make.__name__).read(wanted, limit=limit)) for make in (SQLiteSink, JSONLinesSink)]
    assert answers[0] == answers[1]


def test_damaged_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    sink = JSONLinesSink(path)
    sink.write(WRITTEN[0])
    sink.close()
    whole = path.read_bytes()
    hostile = [b"{}\n", b"nonsense\n", b"[" * 100_000 + b"\n", b"\xff\xfe\n", b'{"time":7}\n', b"x" * 3_000_000 + b"\n"]
    path.write_bytes(whole + b"\n" + b"".join(hostile) + whole + whole[:-20])
    trail = AuditTrail(path)
    assert list(trail.read()) == [WRITTEN[0], WRITTEN[0]]
    assert trail.damaged == 9  # the long one came in three pieces
    assert list(trail.read(limit=1)) == [WRITTEN[0]]
    assert trail.damaged == 9


def test_fields_of_a_later_release_are_ignored(tmp_path: Path) -> None:
    values = {**json.loads(json.dumps({key: getattr(WRITTEN[0], key) for key in WRITTEN[0].__struct_fields__}))}
    (tmp_path / "audit.jsonl").write_text(json.dumps({**values, "added": {"later": [1]}}) + "\n")
    assert list(AuditTrail(tmp_path / "audit.jsonl").read()) == [WRITTEN[0]]


def test_damaged_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    sink = SQLiteSink(tmp_path / "audit.db")
    for one in WRITTEN[:3]:
        sink.write(one)
    sink.close()
    with closing(sqlite3.connect(tmp_path / "audit.db", isolation_level=None)) as connection:
        connection.execute("UPDATE records SET agent = x'00ff' WHERE request_id = 0")
        connection.execute("UPDATE records SET decision = 'whatever' WHERE request_id = 1")
    trail = AuditTrail(tmp_path / "audit.db")
    assert list(trail.read()) == [WRITTEN[2]]
    assert trail.damaged == 2


def test_an_empty_file_is_an_empty_trail(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert list(AuditTrail(tmp_path / "empty").read()) == []


def test_a_missing_file_and_a_directory_are_no_trail(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(TrailError, match="is no file"):
            list(AuditTrail(path).read())
    assert list(tmp_path.iterdir()) == []


def test_a_database_of_somebody_else_is_no_trail(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db")) as other:
        other.execute("CREATE TABLE records (id)")
    with pytest.raises(TrailError, match="is a SQLite database, but no audit trail"):
        list(AuditTrail(tmp_path / "app.db").read())


def test_a_schema_of_another_release_is_named(tmp_path: Path) -> None:
    SQLiteSink(tmp_path / "audit.db")
    with closing(sqlite3.connect(tmp_path / "audit.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(TrailError, match="has schema version 99; this release reads version 1"):
        list(AuditTrail(tmp_path / "audit.db").read())


def test_reading_writes_nothing(path: Path) -> None:
    before = path.read_bytes()
    path.chmod(0o400)
    list(AuditTrail(path).read())
    assert path.read_bytes() == before


def test_a_name_that_a_uri_would_read_otherwise_is_a_plain_name(tmp_path: Path) -> None:
    path = tmp_path / "a?mode=rwc#%41.db"
    sink = SQLiteSink(path)
    sink.write(WRITTEN[0])
    sink.close()
    assert list(AuditTrail(path).read()) == [WRITTEN[0]]


def test_a_wrong_filter_is_refused() -> None:
    with pytest.raises(ValueError, match="decision is 'deny'; it must be one of allowed, denied"):
        AuditFilter(decision="deny")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"since is .*; it must have a time zone"):
        AuditFilter(since=datetime(2026, 7, 28))


TIMES = {
    "2026-07-28": datetime(2026, 7, 28, tzinfo=UTC),
    "2026-07-28T09:30": datetime(2026, 7, 28, 9, 30, tzinfo=UTC),
    "2026-07-28 09:30:15": datetime(2026, 7, 28, 9, 30, 15, tzinfo=UTC),
    "2026-07-28T09:30:15.250Z": datetime(2026, 7, 28, 9, 30, 15, 250_000, tzinfo=UTC),
    "2026-07-28T09:30+02:00": datetime(2026, 7, 28, 7, 30, tzinfo=UTC),
    "90s": NOW - timedelta(seconds=90),
    "30m": NOW - timedelta(minutes=30),
    "24h": NOW - timedelta(hours=24),
    "7d": NOW - timedelta(days=7),
    " 2w ": NOW - timedelta(weeks=2),
}


@pytest.mark.parametrize("text", TIMES)
def test_a_time_as_people_write_it(text: str) -> None:
    assert parse_time(text, NOW) == TIMES[text]


@pytest.mark.parametrize(
    "text", ["", "yesterday", "24", "h", "-1h", "1.5h", "999999w", "٢h", "2026-13-01", "0001-01-01T00:00+14:00"]
)
def test_what_is_no_time_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="is no time; write 2026-07-28"):
        parse_time(text, NOW)


@given(st.text())
def test_any_text_is_a_time_in_utc_or_refused(text: str) -> None:
    try:
        moment = parse_time(text, NOW)
    except ValueError:
        return
    assert moment.utcoffset() == timedelta(0)


@given(st.datetimes(timezones=st.just(UTC)))
@example(datetime.max.replace(tzinfo=UTC))
def test_every_time_can_be_asked_for(moment: datetime) -> None:
    assert AuditFilter(since=moment).matches(record(time="9999-12-31T23:59:59.999Z"))


@pytest.mark.parametrize("make", [SQLiteSink, JSONLinesSink])
def test_an_application_that_rounds_its_own_decimals_rounds_no_sum(make: Any, tmp_path: Path) -> None:
    sink = make(tmp_path / "trail")
    for number in range(12):
        sink.write(record(target=f"tool{number % 3}", cost=123456.123456789, currency="EUR"))
    sink.close()
    with localcontext() as context:
        context.prec = 3
        with AuditTrail(tmp_path / "trail").report(["tool"], top=1) as report:
            assert [row.costs for row in report.rows()] == [{"EUR": Decimal("493824.493827156")}]
            assert report.others is not None
            assert report.others[1].costs == {"EUR": Decimal("987648.987654312")}
            assert report.total.costs == {"EUR": Decimal("1481473.481481468")}


def test_what_goes_wrong_where_a_report_is_used_is_not_the_trails(path: Path) -> None:
    with pytest.raises(FileNotFoundError), AuditTrail(path).report(["tool"]):
        (path.parent / "no" / "such").open()
