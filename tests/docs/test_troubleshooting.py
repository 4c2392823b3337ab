"""The page on trouble with authentication has every reason for which a token is refused, and whatever is said of an
authorization server: what the code can say is on it, each in a text of its own."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.docs.blocks import ROOT

PAGE: Final = (ROOT / "docs" / "authentication" / "troubleshooting.md").read_text()
TOLD: Final = [span for line in PAGE.splitlines() for span in re.findall(r"`([^`]+)`", line)]
MODULES: Final = [
    module
    for room in ("oauth", "resource_server", "credentials")
    for module in sorted((ROOT / "mcp_middleware" / room).glob("*.py"))
]

_LOGGED: Final = frozenset({"warning", "error", "exception", "log"})
_SAID: Final = _LOGGED | {
    "BusyError",
    "ConnectError",
    "CredentialRefusedError",
    "FetchError",
    "InvalidTokenError",
    "RefusedAddressError",
    "UnusableResultError",
    "WrongMetadataError",
    "_BadAddressError",
    "_note_failure",
    "_note_strange",
    "note",
    "refused",
}
"""What is given a message that goes into a log, or into an error that ends the start."""
_SAID_IN: Final = {"keys.py": {"ValueError"}, "introspection.py": {"ValueError"}, "keeping.py": {"_refuse"}}
"""By module, what else is."""
_WHY: Final = frozenset({"_why_unusable", "endpoint"})
"""Functions whose texts are parts of such a message."""


def _words(message: ast.expr) -> str | None:
    """What is written of a message, with dots for what is put in."""
    if isinstance(message, ast.Constant) and isinstance(message.value, str):
        return re.sub(r"%[sd]", "...", message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in message.values)
    return None


def _messages_of(module: Path) -> Iterator[ast.expr]:
    """Where a message may be written in ``module``."""
    tree = ast.parse(module.read_text())
    yield from _arguments(tree, _SAID | _SAID_IN.get(module.name, set()))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in _WHY:
            yield from (part for part in ast.walk(node) if isinstance(part, ast.JoinedStr))
        if isinstance(node, ast.AsyncFunctionDef):  # what a server that was asked contradicts
            yield from _arguments(node, {"ConfigurationError"})


def _arguments(tree: ast.AST, names: frozenset[str] | set[str]) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            if name in names:
                yield from node.args


MESSAGES: Final = sorted(
    {
        words
        for module in MODULES
        for message in _messages_of(module)
        if (words := _words(message)) is not None and " " in words.strip(". :;,")
    }
)


@pytest.mark.parametrize("message", MESSAGES)
def test_the_page_has_every_message(message: str) -> None:
    said = [re.escape(part.strip(" :;,(")) for part in message.split("...") if part.strip(" :;,()")]
    assert any(re.search(".*".join(said), span) for span in TOLD)


def test_what_is_collected_is_not_nothing() -> None:
    assert len(MESSAGES) > 80
    known = {"typ ... is no access token", "the JWK set has no list of at most ... keys", "names no ..."}
    assert known <= set(MESSAGES)
