"""The guide's way to check the signed header, with headers that were signed here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from mcp_middleware.credentials import Caller, CallerSigner
from mcp_middleware.types import Principal
from tests.docs.blocks import ROOT, blocks_of
from tests.oauth.test_authentication import pem, public_pem

GATEWAY, SERVER = "https://mcp.example.com", "https://mcp.example.com/tickets/mcp"


@pytest.fixture
def who_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    [block] = [found for found in blocks_of(ROOT / "docs/how-to/upstream-credentials.md") if found.title == "caller.py"]
    (tmp_path / "caller.pub.pem").write_text(public_pem("Ed25519"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(block.code, block.name, "exec"), names)  # noqa: S102 - running it is the test
    check: Callable[[str], dict[str, Any]] = names["who_calls"]
    return check


def header(clock: float | None = None, **changes: Any) -> str:
    options: dict[str, Any] = {"key": pem("Ed25519"), "issuer": GATEWAY, "audience": SERVER} | changes
    if clock is not None:
        options["clock"] = lambda: clock
    caller = Caller(Principal("https://login.example.com", "agent", "alice"))
    return CallerSigner(**options).header(caller)[1].decode()


def test_the_server_learns_who_calls(who_calls: Callable[[str], dict[str, Any]]) -> None:
    claims = who_calls(header())
    assert (claims["caller_issuer"], claims["sub"]) == ("https://login.example.com", "alice")


def test_the_server_believes_nothing_else(who_calls: Callable[[str], dict[str, Any]]) -> None:
    claims = jwt.decode(header(), options={"verify_signature": False})
    other_kind = jwt.encode(claims, pem("Ed25519"), algorithm="EdDSA")
    wrong = [
        header(audience="https://mcp.example.com/mail/mcp"),
        header(issuer="https://other.example.com"),
        header(clock=1_700_000_000.0),
        header(key=pem("P-256")),
        header(key=public_pem("Ed25519").replace("-", "=")),
        other_kind,
        "junk",
    ]
    for text in wrong:
        with pytest.raises(jwt.InvalidTokenError):
            who_calls(text)
