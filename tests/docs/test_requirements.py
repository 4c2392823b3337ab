"""The table of requirements names every one of them, and only tests that exist."""

import ast
import re
from functools import cache
from itertools import chain

import pytest

from tests.docs.blocks import ROOT

PAGE = ROOT / "docs" / "authentication" / "requirements.md"
REQUIREMENTS = [
    *(f"B{number}" for number in range(1, 14)),
    *(f"F{number}" for number in range(1, 9)),
    *(f"H{number}" for number in range(1, 7)),
]
ROWS = {
    match["name"]: match["rest"]
    for line in PAGE.read_text().splitlines()
    if (match := re.match(r"\| (?P<name>[BFH][0-9]+) \|(?P<rest>.*)\|$", line))
}
TESTS = sorted(set(chain.from_iterable(re.findall(r"`(tests/[\w/]+\.py::\w+)`", row) for row in ROWS.values())))


@cache
def _tests_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def test_every_requirement_has_its_row_in_order() -> None:
    assert list(ROWS) == REQUIREMENTS


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_what_keeps_a_requirement_is_where_it_is_said_to_be(name: str) -> None:
    room = ROOT / "mcp_middleware"
    for place in re.findall(r"`([^`]+)`", ROWS[name].split("|")[1]):
        room = room if "/" not in place else (ROOT / "mcp_middleware" / place).parent
        assert (room / place.rpartition("/")[2]).exists()


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_a_requirement_is_shown_by_a_test(name: str) -> None:
    assert re.search(r"`tests/[\w/]+\.py::test_\w+`", ROWS[name])


@pytest.mark.parametrize("test", TESTS)
def test_a_named_test_exists(test: str) -> None:
    file, _, name = test.partition("::")
    assert (ROOT / file).exists()
    assert name in _tests_in(file)
