"""``python -m mcp_middleware.audit``, as a person or a script runs it."""

import csv
import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mcp_middleware.audit import AuditRecord, JSONLinesSink, SQLiteSink
from mcp_middleware.audit.__main__ import main
from tests.audit.trails import record

ROOT = Path(__file__).parents[2]


def ago(**span: float) -> str:
    return (datetime.now(UTC) - timedelta(**span)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.fixture(scope="module", params=[SQLiteSink, JSONLinesSink])
def trail(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trail") / "audit"
    sink = request.param(path)
    sink.write(record(request_id=0, time=ago(days=3)))
    sink.write(record(request_id=1, time=ago(hours=2), agent="reporter", target="=cmd()"))
    sink.write(
        record(request_id=2, time=ago(minutes=1), target="\x1b[2J\n\u202e", decision="denied", outcome="refused")
    )
    sink.close()
    return path


def run(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "error", "-m", "mcp_middleware.audit", *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, encoding="utf-8", timeout=30, check=False)


def printed(*arguments: object, **environment: str) -> str:
    done = run(*arguments, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_case_34_the_table_is_for_people(trail: Path) -> None:
    head, *lines = printed(trail).split("\n")
    assert head.split()[:5] == ["TIME", "AGENT", "SUBJECT", "METHOD", "TARGET"]
    assert [line.split()[1] for line in lines[:3]] == ["ci-bot", "reporter", "ci-bot"]
    assert r"\u001b[2J\u000a\u202e" in lines[2]
    assert lines[3:] == [""]


@pytest.mark.parametrize("make", [SQLiteSink, JSONLinesSink])
def test_servers_have_a_column_where_they_are_named(
    make: type[SQLiteSink] | type[JSONLinesSink], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = make(tmp_path / "audit")
    sink.write(record(request_id=1, server="files"))
    sink.write(record(request_id=2, server="search"))
    sink.write(record(request_id=3))
    sink.close()
    head, *lines = printed(tmp_path / "audit").splitlines()
    assert head.split()[3] == "SERVER"
    assert [line.split()[3] for line in lines] == ["files", "search", "-"]
    assert main([str(tmp_path / "audit"), "--format", "json", "--server", "search"]) == 0
    assert [one["request_id"] for one in json.loads(capsys.readouterr().out)] == [2]


def test_costs_have_columns_where_there_are_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sink = JSONLinesSink(tmp_path / "audit")
    sink.write(record(cost=0.000001, currency="EUR"))
    sink.write(record())
    sink.close()
    assert main([str(tmp_path / "audit")]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[-2:] == ["COST", "CURRENCY"]
    assert [line.split()[-2:] for line in lines] == [["0.000001", "EUR"], ["-", "-"]]


def test_json_is_one_document(trail: Path) -> None:
    found = json.loads(printed(trail, "--format", "json"))
    assert [one["request_id"] for one in found] == [0, 1, 2]
    assert found[2]["target"] == "\x1b[2J\n\u202e"
    assert list(found[0]) == list(AuditRecord.__struct_fields__)


def test_csv_has_every_field_and_no_formula(trail: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(printed(trail, "--format", "csv"))))
    assert [row["request_id"] for row in rows] == ["0", "1", "2"]
    assert rows[1]["target"] == "'=cmd()"


def test_options_filter_together(trail: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(*options: str) -> list[int]:
        assert main([str(trail), "--format", "json", *options]) == 0
        return [one["request_id"] for one in json.loads(capsys.readouterr().out)]

    assert asked("--since", "24h") == [1, 2]
    assert asked("--until", "24h") == [0]
    assert asked("--since", "7d", "--until", "1h") == [0, 1]
    assert asked("--agent", "ci-bot") == [0, 2]
    assert asked("--agent", "ci-bot", "--decision", "allowed") == [0]
    assert asked("--tool", "echo") == [0]
    assert asked("--limit", "2") == [1, 2]
    assert asked("--agent", "nobody") == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--since", "yesterday"], "argument --since: 'yesterday' is no time; write 2026-07-28"),
        (["--decision", "deny"], "invalid choice: 'deny'"),
        (["--limit", "0"], "argument --limit: '0' is no whole number from 1"),
        (["--format", "xml"], "invalid choice: 'xml'"),
        (["--form", "json"], "unrecognized arguments: --form"),
        (["--since", "1h", "--until", "2h"], "--until is not later than --since: no message can be between them"),
        (["--since", "2026-07-28", "--until", "2026-07-28"], "--until is not later than --since"),
    ],
)
def test_wrong_usage_says_what_is_right(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "audit.db"), *arguments])
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_what_is_no_trail_is_said_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path / "nothing.db")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("is no file\n")


def test_damage_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    sink = JSONLinesSink(tmp_path / "audit.jsonl")
    sink.write(record())
    sink.close()
    with (tmp_path / "audit.jsonl").open("a") as file:
        file.write("nonsense\n")
    done = run(tmp_path / "audit.jsonl", "--format", "json")
    assert (done.returncode, len(json.loads(done.stdout))) == (0, 1)
    assert done.stderr == "warning: 1 damaged record was skipped\n"


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path: Path) -> None:
    sink = SQLiteSink(tmp_path / "audit.db")
    for number in range(3000):
        sink.write(record(request_id=number))
    sink.close()
    command = [sys.executable, "-W", "error", "-m", "mcp_middleware.audit", str(tmp_path / "audit.db")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 0


def test_a_terminal_without_unicode_gets_escapes(tmp_path: Path) -> None:
    sink = JSONLinesSink(tmp_path / "audit.jsonl")
    sink.write(record(target="größe"))
    sink.close()
    assert r"gr\xf6\xdfe" in printed(tmp_path / "audit.jsonl", PYTHONIOENCODING="ascii")


@pytest.mark.parametrize("asked", [(), ("report", "--by", "tool")], ids=["query", "report"])
def test_whoever_reads_the_answer_may_have_seen_enough(trail: Path, asked: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mcp_middleware.audit", *asked, str(trail), "--format", "json"]
    done = subprocess.run(
        command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, encoding="utf-8", timeout=30, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
