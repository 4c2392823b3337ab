"""The page about costs shows what its command prints, of a trail with just those calls."""

from itertools import pairwise
from pathlib import Path
from shlex import split

import pytest

from mcp_middleware import SQLiteSink
from mcp_middleware.audit.__main__ import main
from mcp_middleware.message import Request, parse
from mcp_middleware.ratelimit import Price, Prices
from mcp_middleware.types import Usage
from tests.audit.trails import record
from tests.docs.blocks import ROOT, blocks_of

BLOCKS = list(blocks_of(ROOT / "docs" / "how-to" / "report-costs.md"))
REPORT = "python -m mcp_middleware.audit report "
CALLS = [
    *[("reporter", "search_papers", 1200, 48_000, "ok")] * 3,
    ("ci-bot", "search_papers", 400, 20_000, "ok"),
    ("ci-bot", "search_papers", 400, 10_000, "error"),
    ("ci-bot", "search_papers", None, None, "refused"),
    ("ci-bot", "read_file", 100, 5000, "ok"),
    ("ci-bot", "read_file", None, None, "ok"),
]


def priced(tool: str, input_tokens: int, output_tokens: int) -> float:
    prices = Prices(
        "EUR", [Price(tools=["search*"], input="15.00", output="3.00", call="0.002"), Price(input=15, output=3)]
    )
    request = parse(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"%b"}}' % tool.encode())
    assert isinstance(request, Request)
    cost = prices.cost("search", request, Usage(input_tokens, output_tokens))
    assert cost is not None
    return cost.amount


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the trail that the page is about."""
    sink = SQLiteSink(tmp_path / "audit.db")
    for agent, tool, input_tokens, output_tokens, outcome in CALLS:
        sink.write(
            record(
                agent=agent,
                target=tool,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                cost=None if input_tokens is None else priced(tool, input_tokens, output_tokens or 0),
                currency=None if input_tokens is None else "EUR",
                decision="limited" if outcome == "refused" else "allowed",
                outcome=outcome,
            )
        )
    sink.close()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_prints_what_the_page_shows(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, shown = next((one.code, two.code) for one, two in pairwise(BLOCKS) if one.code.startswith(REPORT))
    assert main(["report", *split(command)[4:]]) == 0
    printed = capsys.readouterr()
    assert printed.out == shown
    assert printed.err == "note: no cost is known of 1 of 7 calls\n"


@pytest.mark.parametrize("command", [one.code for one in BLOCKS if one.code.startswith(REPORT)])
def test_every_command_of_the_page_runs(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = split(command.split("|")[0].split(" > ")[0])[3:]
    assert main(arguments) == 0
    assert capsys.readouterr().out
