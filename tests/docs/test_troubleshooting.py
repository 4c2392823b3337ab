"""The page on trouble with authentication has every reason for which a token is refused."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.docs.blocks import ROOT

PAGE = " ".join((ROOT / "docs" / "authentication" / "troubleshooting.md").read_text().split())
MODULES = sorted((ROOT / "mcp_middleware" / "resource_server").glob("*.py"))


def _words(message: ast.expr) -> str | None:
    """What is written of a message, with dots for what is put in."""
    if isinstance(message, ast.Constant) and isinstance(message.value, str):
        return message.value
    if isinstance(message, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in message.values)
    return None


def _reasons() -> Iterator[str]:
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "InvalidTokenError" and node.args:
                words = _words(node.args[0])
                if words is not None:
                    yield words


REASONS = sorted(set(_reasons()))


@pytest.mark.parametrize("reason", REASONS)
def test_the_page_has_every_reason(reason: str) -> None:
    told = [re.escape(part.strip()) for part in reason.split("...") if part.strip(" :")]
    assert re.search(r"`[^`]*" + r"[^`]*".join(told), PAGE)


def test_what_is_collected_is_not_nothing() -> None:
    assert len(REASONS) > 20
