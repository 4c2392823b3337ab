"""What calls came to: exact sums, the same from either kind of file, whatever names callers invent."""

import csv
import io
import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_middleware.audit import AuditFilter, AuditRecord, AuditTrail, JSONLinesSink, SQLiteSink, TrailError
from mcp_middleware.audit.__main__ import main
from mcp_middleware.audit.jsonl import encode_line
from mcp_middleware.audit.report import KEYS, METHODS
from mcp_middleware.ratelimit import metering
from tests.audit.test_journal import die
from tests.audit.trails import record

KINDS = [SQLiteSink, JSONLinesSink]


def write(path: Path, make: Any, records: list[AuditRecord]) -> Path:
    sink = make(path)
    for one in records:
        sink.write(one)
    sink.close()
    return path


def priced(cost: float, currency: str = "EUR", **values: Any) -> AuditRecord:
    return record(cost=cost, currency=currency, **{"input_tokens": 10, "output_tokens": 100, **values})


WRITTEN = [
    priced(0.1, server="files", time="2026-07-27T23:59:59.999Z"),
    priced(0.2, server="files", time="2026-07-28T00:00:00.000Z"),
    priced(0.3, "USD", agent="reporter", target="search", outcome="error"),
    record(agent="reporter", target="search", outcome="disconnected", status=None),
    record(decision="limited", outcome="refused", status=429),
    record(method="tools/list", target=None, target_kind=None),
    record(method="resources/read", target="file:///a", target_kind="resource", agent="reporter"),
    priced(0.000000001, time="2026-08-01T00:00:00.000Z", subject=None),
]


@pytest.fixture(scope="module", params=KINDS)
def trail(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("trail") / "audit", request.param, WRITTEN)


def report(path: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> Any:
    assert main(["report", str(path), "--format", "json", *options]) == 0
    return json.loads(capsys.readouterr().out, parse_float=Decimal)


ZERO = {"calls": 0, "refused": 0, "failed": 0, "input_tokens": 0, "output_tokens": 0, "unpriced": 0}


def test_every_call_is_counted_once_and_currencies_are_never_added(
    trail: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(trail, "--by", "agent,tool", capsys=capsys)
    assert found["rows"] == [
        {
            **ZERO,
            **{"agent": "ci-bot", "tool": "echo", "calls": 3, "refused": 1, "input_tokens": 30, "output_tokens": 300},
            "cost": {"EUR": Decimal("0.300000001"), "USD": 0},
        },
        {
            **ZERO,
            **{"agent": "reporter", "tool": "search", "calls": 2, "failed": 2, "unpriced": 1},
            **{"input_tokens": 10, "output_tokens": 100, "cost": {"EUR": 0, "USD": Decimal("0.3")}},
        },
        {**ZERO, "agent": "reporter", "tool": None, "calls": 1, "unpriced": 1, "cost": {"EUR": 0, "USD": 0}},
    ]
    assert found["total"] == {
        **ZERO,
        **{"rows": 3, "calls": 6, "refused": 1, "failed": 2, "input_tokens": 40, "output_tokens": 400, "unpriced": 2},
        "cost": {"EUR": Decimal("0.300000001"), "USD": Decimal("0.3")},
    }


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("day", [("2026-07-27", "0.1"), ("2026-07-28", "0.2"), ("2026-08-01", "0.000000001")]),
        ("month", [("2026-07", "0.3"), ("2026-08", "0.000000001")]),
        ("server", [("files", "0.3"), (None, "0.000000001")]),
        ("subject", [("alice", "0.3"), (None, "0.000000001")]),
        ("issuer", [("https://login.example.com", "0.300000001")]),
        ("outcome", [("ok", "0.300000001"), ("error", "0"), ("disconnected", "0"), ("refused", "0")]),
    ],
)
def test_calls_are_added_up_by_what_their_records_name(
    by: str, expected: list[tuple[str | None, str]], trail: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = report(trail, "--by", by, capsys=capsys)["rows"]
    assert [(row[by], row["cost"]["EUR"]) for row in rows] == [(key, Decimal(cost)) for key, cost in expected]


def test_a_question_has_the_filters_of_a_query(trail: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def calls(*options: str) -> int:
        found: int = report(trail, *options, capsys=capsys)["total"]["calls"]
        return found

    assert calls("--agent", "ci-bot") == 3
    assert calls("--server", "files") == 2
    assert calls("--tool", "search") == 2
    assert calls("--since", "2026-07-28", "--until", "2026-08-01") == 4
    assert calls("--since", "2027-01-01") == 0


def test_the_rows_that_cost_most_and_the_others_are_all(trail: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(trail, "--by", "day", "--top", "1", capsys=capsys)
    assert [row["day"] for row in found["rows"]] == ["2026-07-28"]
    assert found["others"]["rows"] == 2
    for name in ZERO:
        assert found["rows"][0][name] + found["others"][name] == found["total"][name]
    assert found["rows"][0]["cost"]["EUR"] + found["others"]["cost"]["EUR"] == Decimal("0.300000001")


def test_a_table_is_for_people(trail: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(trail), "--by", "tool,agent", "--top", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        "TOOL      AGENT     CALLS  REFUSED  FAILED  IN  OUT       EUR       USD  UNPRICED\n"
        "echo      ci-bot        3        1       0  30  300  0.300000  0.000000         0\n"
        "search    reporter      2        0       2  10  100  0.000000  0.300000         1\n"
        "(1 more)                1        0       0   0    0  0.000000  0.000000         1\n"
        "(total)                 6        1       2  40  400  0.300000  0.300000         2\n"
    )
    assert printed.err == "note: no cost is known of 2 of 6 calls\n"


def test_a_spreadsheet_gets_exact_costs_and_no_total(trail: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(trail), "--by", "agent", "--top", "1", "--format", "csv"]) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        "agent,calls,refused,failed,input_tokens,output_tokens,cost_EUR,cost_USD,unpriced\r\n"
        "ci-bot,3,1,0,30,300,0.300000001,0,0\r\n"
    )
    assert printed.err == "note: no cost is known of 2 of 6 calls\nnote: 1 more row is not shown\n"
    assert main(["report", str(trail), "--by", "agent,tool", "--top", "1", "--format", "csv"]) == 0
    assert capsys.readouterr().err.endswith("\nnote: 2 more rows are not shown\n")


HOSTILE = ["\x1b[2J\x1b]0;x\x07", "\u202egnp", "a\nb  9  9", "=cmd|'/c calc'!A1", "(total)", "", "\u2028", '"', "-"]


@pytest.mark.parametrize("make", KINDS)
def test_case_34_names_do_nothing_to_a_terminal_or_a_spreadsheet(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "audit", make, [priced(0.1, target=name, agent=name) for name in HOSTILE])
    assert main(["report", str(path), "--by", "agent,tool"]) == 0
    table = capsys.readouterr().out
    assert table.replace("\n", "").isprintable()
    assert len(table.splitlines()) == len(HOSTILE) + 2
    assert '"(total)"' in table
    assert main(["report", str(path), "--by", "agent,tool", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == len(HOSTILE)
    assert "'=cmd|'/c calc'!A1" in {row["tool"] for row in rows}
    assert not [row for row in rows if row["tool"].lstrip().startswith(("=", "-"))]
    assert main(["report", str(path), "--by", "agent,tool", "--format", "json"]) == 0
    document = capsys.readouterr().out
    assert document.replace("\n", "").isprintable()
    assert {row["tool"] for row in json.loads(document)["rows"]} == set(HOSTILE)


@pytest.mark.parametrize("make", KINDS)
def test_case_34_no_formula_hides_in_a_currency(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "audit", make, [priced(0.1, "a;=cmd()\n")])
    assert main(["report", str(path), "--format", "csv"]) == 0
    head, *_ = capsys.readouterr().out.splitlines()
    assert r"cost_a;'=cmd()\u000a" in head


MONEY = st.integers(0, 10**15 - 1)
CALL = st.fixed_dictionaries(
    {
        "agent": st.sampled_from(["a", "b", "="]),
        "time": st.sampled_from(["2026-07-28T10:00:00.000Z", "2026-07-29T10:00:00.000Z"]),
        "currency": st.sampled_from(["EUR", "USD"]),
        "nanos": st.none() | MONEY,
        "input_tokens": st.none() | st.integers(0, 10**12),
    }
)


@settings(max_examples=15, deadline=None)
@given(calls=st.lists(CALL, max_size=30), by=st.permutations(["agent", "day"]))
def test_sums_are_those_of_whole_numbers(
    calls: list[dict[str, Any]], by: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also where a sum of floats, or of 64 bits, would be another."""
    exact: dict[tuple[str | None, ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    written = []
    for one in calls:
        nanos, currency = one["nanos"], one["currency"]
        values = {name: one[name] for name in ("agent", "time", "input_tokens")}
        cost = None if nanos is None else nanos / 10**9
        written.append(record(**values, cost=cost, currency=None if nanos is None else currency))
        key = tuple({"agent": one["agent"], "day": one["time"][:10]}[name] for name in by)
        exact[key]["calls"] += 1
        exact[key]["input"] += one["input_tokens"] or 0
        exact[key][currency] += nanos or 0
    directory = tmp_path_factory.mktemp("sums")
    (directory / "audit.jsonl").write_bytes(b"".join(map(encode_line, written)))
    write(directory / "audit.db", SQLiteSink, written)
    for name in ("audit.jsonl", "audit.db"):
        trail = AuditTrail(directory / name)
        with trail.report(by) as found:
            rows = {row.keys: row for row in found.rows()}
        assert trail.damaged == 0
        assert set(rows) == set(exact)
        for key, row in rows.items():
            assert (row.calls, row.input_tokens) == (exact[key]["calls"], exact[key]["input"])
            for currency, cost in row.costs.items():
                assert cost * 10**9 == exact[key][currency]


def test_what_only_a_journal_has_is_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "audit.db", SQLiteSink, [priced(0.5)])
    die("sink.write(record(cost=0.25, currency='EUR')); sink.begin(record(outcome='unknown'))", path)
    found = report(path, capsys=capsys)
    assert [row["cost"]["EUR"] for row in found["rows"]] == [Decimal("0.75")]
    assert (found["total"]["calls"], found["total"]["unpriced"], found["total"]["failed"]) == (3, 1, 1)


def test_a_report_writes_nothing(trail: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = trail.read_bytes()
    trail.chmod(0o400)
    report(trail, capsys=capsys)
    assert trail.read_bytes() == before


def test_damaged_rows_are_skipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [
        *("agent = x'00ff'", "decision = 'whatever'", "outcome = 7", "cost = 'much'", "cost = -1", "cost = 1e400"),
        *("input_tokens = 9223372036854775807", "output_tokens = -1", "server = x'ff'", "currency = x'ff'"),
    ]
    path = write(tmp_path / "audit.db", SQLiteSink, [priced(1, request_id=number) for number in range(len(wrong) + 1)])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for number, change in enumerate(wrong):
            connection.execute(f"UPDATE records SET {change} WHERE request_id = {number}")  # noqa: S608
    assert main(["report", str(path), "--format", "csv"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1:] == ["ci-bot,1,0,0,10,100,1,0"]
    assert printed.err == f"warning: {len(wrong)} damaged records were skipped\n"


def test_damaged_lines_are_skipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "audit.jsonl", JSONLinesSink, [priced(1.0)])
    line = path.read_bytes()
    wrong = [b'"cost":1e300', b'"cost":-1.0', b'"input_tokens":99999999999999999999999', b'"output_tokens":-5']
    lines = [line.replace(b'"cost":1.0', one) if b"cost" in one else line[:-2] + b"," + one + b"}\n" for one in wrong]
    path.write_bytes(b"nonsense\n" + line + b"".join(lines))
    assert main(["report", str(path), "--format", "csv"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1:] == ["ci-bot,1,0,0,10,100,1,0"]
    assert printed.err == "warning: 5 damaged records were skipped\n"


@pytest.mark.parametrize("make", KINDS)
def test_an_empty_trail_comes_to_nothing(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "audit", make, [])
    assert report(path, capsys=capsys) == {"rows": [], "total": {**ZERO, "rows": 0, "cost": {}}}
    assert main(["report", str(path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    path.write_bytes(b"")
    assert report(path, capsys=capsys)["rows"] == []


def test_a_cost_without_a_currency_is_added_to_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "audit.db", SQLiteSink, [priced(1), record(cost=2.0)])
    assert report(path, capsys=capsys)["total"]["cost"] == {"EUR": 1, "unknown": 2}


def test_more_currencies_than_there_are_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "audit.db", SQLiteSink, [priced(1, f"X{number}") for number in range(65)])
    assert main(["report", str(path)]) == 1
    assert capsys.readouterr().err.endswith("it has costs in more than 64 currencies; ask for a shorter time\n")


def test_the_trail_is_the_members_own_if_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--by", "agent"]) == 1
    assert capsys.readouterr().err == f"error: {str(tmp_path / 'audit.db')!r} is no file\n"
    write(tmp_path / "audit.db", SQLiteSink, [priced(1)])
    assert main(["report", "--by", "agent"]) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--by", "colour"], f"argument --by: 'colour' is nothing to add up by; choose from {', '.join(KEYS)}"),
        (["--by", ""], "argument --by: '' is nothing to add up by"),
        (["--by", "agent,agent"], "argument --by: 'agent,agent' names a key twice"),
        (["--top", "0"], "argument --top: '0' is no whole number from 1"),
        (["--since", "yesterday"], "argument --since: 'yesterday' is no time"),
        (["--format", "xml"], "invalid choice: 'xml'"),
        (["--decision", "denied"], "unrecognized arguments: --decision"),
    ],
)
def test_wrong_usage_says_what_is_right(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_what_is_no_trail_is_said(tmp_path: Path) -> None:
    (tmp_path / "audit.db").write_text("nonsense\n")
    with pytest.raises(TrailError, match="is no audit trail"), AuditTrail(tmp_path / "audit.db").report(["agent"]):
        pass
    with pytest.raises(ValueError, match="'' is nothing to add up by"), AuditTrail(tmp_path / "audit.db").report([]):
        pass


def test_any_record_that_a_file_can_hold_is_added_or_counted(tmp_path: Path) -> None:
    """What the limiter would never write, a file may hold all the same."""

    @settings(max_examples=50, deadline=None)
    @given(
        st.lists(
            st.builds(
                priced,
                st.floats(allow_nan=False, allow_infinity=False),
                st.text(),
                agent=st.text(),
                target=st.text(),
                input_tokens=st.integers(),
                output_tokens=st.integers() | st.none(),
            ),
            max_size=5,
        )
    )
    def holds(records: list[AuditRecord]) -> None:
        path = tmp_path / "audit.jsonl"
        path.write_bytes(b"".join(map(encode_line, records)))
        trail = AuditTrail(path)
        with trail.report(["agent", "tool"], AuditFilter()) as found:
            assert sum(row.calls for row in found.rows()) + trail.damaged == len(records)

    holds()


def test_calls_are_what_the_limiter_counts_tokens_of() -> None:
    assert set(METHODS) == metering.BY_TARGET | metering.BY_METHOD
