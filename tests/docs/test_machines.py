"""The client of the page on machines, against the development authorization server: from the URL of a server alone."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest_asyncio
from fastmcp import FastMCP
from starlette.middleware import Middleware

from mcp_middleware.gateway.config import load
from mcp_middleware.message import Request, parse
from mcp_middleware.resource_server import OAuthResourceServerMiddleware
from mcp_middleware.types import Principal
from tests.authorization_server.running import RunningServer, running
from tests.docs.blocks import ROOT, blocks_of
from tests.support import SESSION_KEY, listener, origin_of, serve

PAGE = ROOT / "docs" / "authentication" / "machines.md"


def shown(title: str) -> dict[str, Any]:
    """The names that a block of the page defines."""
    namespace: dict[str, Any] = {"__name__": title}
    block = next(block for block in blocks_of(PAGE) if block.title == title)
    exec(compile(block.code, block.name, "exec"), namespace)  # noqa: S102 - it is our own documentation
    return namespace


@dataclass(frozen=True, slots=True)
class Place:
    """A server with one tool, and who issues tokens for it."""

    url: str
    issuer: RunningServer


@pytest_asyncio.fixture
async def place() -> AsyncIterator[Place]:
    mcp = FastMCP("files")

    @mcp.tool
    def read_file(path: str) -> str:
        return f"the contents of {path}"

    bound = listener()
    url = f"{origin_of(bound)}/mcp"
    async with running(resources=[url]) as issuer:
        options: dict[str, Any] = {"resource": url, "issuers": [issuer.issuer], "scopes": ["mcp:use"]}
        app = mcp.http_app(path="/mcp", middleware=[Middleware(OAuthResourceServerMiddleware, **options)])
        async with serve(app, bound=bound):
            yield Place(url, issuer)


async def test_the_pages_machine_gets_in_by_its_secret(place: Place) -> None:
    page, nightly = shown("nightly.py"), place.issuer.add_client("nightly", scopes=["mcp:use"])
    provider = page["with_secret"](place.url, place.issuer.issuer, nightly.client_id, nightly.secret)
    assert await page["tools"](place.url, provider) == ["read_file"]


async def test_the_pages_machine_gets_in_by_its_key(place: Place) -> None:
    page, nightly = shown("nightly.py"), place.issuer.add_client("nightly", scopes=["mcp:use"], key=True)
    provider = page["with_key"](place.url, place.issuer.issuer, nightly.client_id, nightly.private_key)
    assert await page["tools"](place.url, provider) == ["read_file"]


async def test_a_token_from_elsewhere_gets_in(place: Place) -> None:
    nightly = place.issuer.add_client("nightly", scopes=["mcp:use"])
    token = await place.issuer.token(nightly, resource=place.url, scope="mcp:use")
    assert await shown("fixed.py")["tools"](place.url, token) == ["read_file"]


def test_the_pages_rule_stops_the_pages_machine(tmp_path: Path) -> None:
    """The machine has a rule that allows it, as any machine has that can be stolen."""
    (block,) = (block for block in blocks_of(PAGE) if block.title == "gateway.yaml")
    (brake,) = re.findall(r"a rule `({effect: deny, .*?})`", " ".join(PAGE.read_text().split()))
    request = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "archive"}}'
    nightly, asked = Principal(issuer="https://login.example.com", client="nightly", subject="nightly"), parse(request)
    assert isinstance(asked, Request)
    allowed = []
    for text in (block.code, block.code.replace("  rules:\n", f"  rules:\n    - {brake}\n")):
        (tmp_path / "gateway.yaml").write_text(text)
        policy = load(tmp_path / "gateway.yaml", environ={"SESSION_KEY": SESSION_KEY}).policies
        assert policy["files"] is not None
        allowed.append(policy["files"].authorize(nightly, asked).allowed)
    assert allowed == [True, False]
