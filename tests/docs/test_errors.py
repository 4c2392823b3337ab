"""The page of error answers has every refusal that the package can make, and none that it cannot."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

PACKAGE = ROOT / "mcp_middleware"
PAGE = (ROOT / "docs" / "gateway" / "errors.md").read_text()

_REFUSING = frozenset({"Rejection", "_refuse", "_refusal", "retry_later"})
"""Functions that are given a reason."""
_ANSWERING = _REFUSING | {"_RefusedError", "_Unknown", "_answer", "_answer_in_turn", "_fail", "_send_error"}
"""Functions that are given a status."""
_REASON = re.compile(r"[a-z]+(_[a-z]+)*")
_UNRECORDED = frozenset({"http"})
"""What stands for a reason where no request was made of it, and so no record."""
_NOT_REASONS = frozenset({"invalid_request"})
"""The words of RFC 6750 in challenges which are not reasons as well."""


_TREES = [
    ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if "demo" not in path.parts and path.name != "testing.py"
]


def _constants(node: ast.AST) -> Iterator[object]:
    return (found.value for found in ast.walk(node) if isinstance(found, ast.Constant))


def _calls(names: frozenset[str]) -> Iterator[ast.Call]:
    for tree in _TREES:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
                if name in names:
                    yield node


def _arguments(call: ast.Call) -> Iterator[object]:
    """What is given to ``call`` itself, not to what is in it, that can be a status or a reason."""
    for argument in call.args:
        if isinstance(argument, ast.Constant):
            yield argument.value
    for word in call.keywords:
        if word.arg in ("status", "reason"):
            yield from _constants(word.value)


@cache
def _reasons() -> set[str]:
    found = {value for call in _calls(_REFUSING) for value in _arguments(call) if isinstance(value, str)}
    for tree in _TREES:
        for node in ast.walk(tree):
            if isinstance(node, ast.Return | ast.Assign | ast.AnnAssign) and node.value is not None:
                named = any("reason" in ast.unparse(target) for target in getattr(node, "targets", ()))
                strings = {value for value in _constants(node.value) if isinstance(value, str)}
                found |= {text for text in strings if (named and "_" in text) or re.fullmatch(r"session_[a-z_]+", text)}
    reasons = {text for text in found if _REASON.fullmatch(text)}
    return reasons - _UNRECORDED - _NOT_REASONS


def _statuses() -> set[int]:
    found = {value for call in _calls(_ANSWERING) for value in _arguments(call) if isinstance(value, int)}
    return {status for status in found if 400 <= status < 600}


def _rows() -> Iterator[list[str]]:
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.match(r"[0-9]{3}\b", cells[0]):
            yield cells


PAIRS = sorted(
    {
        (status, reason)
        for call in _calls(frozenset({"Rejection", "_refuse", "_refused"}))
        for status in _arguments(call)
        for reason in _arguments(call)
        if isinstance(status, int) and 400 <= status < 600 and isinstance(reason, str) and reason in _reasons()
    }
)


def test_every_reason_is_on_the_page_and_no_other() -> None:
    told = {word for cells in _rows() if len(cells) == 5 for word in re.findall(r"`(\w+)`", cells[2])}
    assert told == _reasons()


def test_every_status_is_on_the_page() -> None:
    told = {int(number) for cells in _rows() for number in re.findall(r"\b[45][0-9]{2}\b", cells[0])}
    assert _statuses() - told == set()


@pytest.mark.parametrize(("status", "reason"), PAIRS, ids=[f"{status} {reason}" for status, reason in PAIRS])
def test_a_reason_stands_with_its_status(status: int, reason: str) -> None:
    assert any(str(status) in cells[0] and f"`{reason}`" in cells[2] for cells in _rows() if len(cells) == 5)


def test_what_is_collected_is_not_nothing() -> None:
    assert len(_reasons()) > 30
    assert len(PAIRS) > 15
    assert Path(PACKAGE / "gateway" / "edge.py").exists()
