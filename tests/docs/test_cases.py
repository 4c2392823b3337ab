"""The page of cases names every test file that shows a case, and no other."""

import re
from collections.abc import Iterator

from tests.docs.blocks import ROOT

PAGE = (ROOT / "docs" / "cases.md").read_text()
TESTS = ROOT / "tests"
CONTRACT = ROOT / "mcp_middleware" / "testing.py"


def _told() -> dict[int, set[str]]:
    """The files that stand beside each case."""
    rows = re.findall(r"^\| (\d+) \| .* \| ([^|]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == len({number for number, _ in rows})
    return {int(number): set(re.findall(r"`([\w/.]+)`", files)) for number, files in rows}


def _shown() -> Iterator[tuple[int, str]]:
    for path in [*TESTS.rglob("test_*.py"), CONTRACT]:
        name = str(path.relative_to(ROOT)).removeprefix("tests/")
        for number in re.findall(r"^ *(?:async )?def test_case_(\d+)_", path.read_text(), re.MULTILINE):
            yield int(number), name


def test_each_case_stands_with_the_files_that_show_it() -> None:
    shown: dict[int, set[str]] = {}
    for number, name in _shown():
        shown.setdefault(number, set()).add(name)
    assert _told() == shown


def test_the_cases_are_numbered_through() -> None:
    assert list(_told()) == list(range(1, 45))
