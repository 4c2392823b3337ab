"""Members inside the SDK's own authentication tell its callers apart, as the page about wrapping says."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.server.auth.provider import AccessToken

from mcp_middleware.audit import AuditTrail
from tests.docs.blocks import ROOT, blocks_of
from tests.support import post, serve

PAGE = ROOT / "docs" / "how-to" / "wrap-a-server.md"


async def verify_token(_: Any, token: str) -> AccessToken:
    return AccessToken(token=token, client_id=token, scopes=[], resource="https://files.example.com/mcp")


async def test_members_inside_know_whom_the_sdk_has_authenticated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    block = next(block for block in blocks_of(PAGE) if "token_verifier" in block.code)
    exec(compile(block.code, block.name, "exec"), made)  # noqa: S102 - running it is the test
    monkeypatch.setattr(made["Tokens"], "verify_token", verify_token)
    async with serve(made["app"]) as origin, httpx2.AsyncClient() as http:
        for agent, left in (("a", 59), ("b", 59), ("a", 58)):
            answer = await post(http, f"{origin}/mcp", "tools/list", token=agent)
            assert answer.headers["ratelimit"] == f'"requests";r={left}'
        assert (await post(http, f"{origin}/mcp", "tools/list")).status_code == 401
    assert [record.agent for record in AuditTrail(tmp_path / "audit.db").read()] == ["a", "b", "a", "anonymous"]
