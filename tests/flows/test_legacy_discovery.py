"""The discovery of 2025-03-26, which knows no metadata of resources: at the origin of the MCP server, where a faithful
copy of the issuer's metadata is.

No client of that age can be installed beside those of today, but today's still do as it says where a server has no
document of its own. So here that document is hidden, and the challenge does not name it.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from mcp.client.auth import OAuthFlowError

from tests.authorization_server.running import RunningServer, running
from tests.flows.targets import SCOPES, Kept, Target, in_process
from tests.flows.test_python_client import by_secret, connected
from tests.flows.test_typescript_client import led
from tests.support import TIMEOUT, listener, origin_of, serve

COPY = "/.well-known/oauth-authorization-server"


def of_2025_03_26(app: Any) -> Any:
    """``app`` as a server that has no metadata document."""

    async def hiding(scope: Any, receive: Any, send: Any) -> None:
        async def without_a_name(event: Any) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [line for line in event["headers"] if line[0] != b"www-authenticate"]
            await send(event)

        if "oauth-protected-resource" in scope.get("path", ""):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await app(scope, receive, without_a_name if scope["type"] == "http" else send)

    return hiding


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def old() -> AsyncIterator[tuple[Target, RunningServer]]:
    bound = listener()
    url = f"{origin_of(bound)}/mcp"
    async with running(resources=[url], scopes=SCOPES) as issuer:
        kept = Kept()
        async with serve(of_2025_03_26(in_process(url, issuer.issuer, kept)), bound=bound):
            yield Target("old", url, kept, lambda: kept.records), issuer


async def test_a_client_finds_the_issuer_by_the_copy_alone(old: tuple[Target, RunningServer], home: Path) -> None:
    """The TypeScript client of before: what it learns at our origin leads it to the issuer, and back with a token."""
    target, issuer = old
    outcome = await led(home, target, issuer, sdk=1, grant="code", calls=[("echo", "hi")])
    assert outcome.results == ["hi"]
    origin = target.url.removesuffix("/mcp")
    found = [fetch["url"] for fetch in outcome.fetches if fetch["status"] < 300 and fetch["url"] != target.url]
    assert found == [origin + COPY, f"{issuer.issuer}/register", f"{issuer.issuer}/token"]


async def test_a_client_that_expects_an_issuer_at_the_origin_is_not_deceived(old: tuple[Target, RunningServer]) -> None:
    """The Python client of today sees by the copy that the issuer is another, and stops (RFC 8414 section 3.3)."""
    target, issuer = old
    provider = by_secret(target.url, issuer.add_client(), issuer.issuer)
    stops = pytest.RaisesExc(OAuthFlowError, match=f"issuer mismatch: {issuer.issuer} != ")
    with pytest.RaisesGroup(stops, flatten_subgroups=True):
        async with connected(target.url, provider, "legacy"):
            pass


async def test_the_copy_is_the_issuers_own_and_browsers_may_read_it(any_target: Target, issuer: RunningServer) -> None:
    origin = any_target.url.split("/files")[0].removesuffix("/mcp")
    async with httpx2.AsyncClient(timeout=TIMEOUT, headers={"origin": "https://app.example"}) as http:
        copy, original = await http.get(origin + COPY), await http.get(issuer.issuer + COPY)
        assert copy.status_code == 200
        assert copy.content == original.content
        assert copy.headers["access-control-allow-origin"] == "*"
        assert copy.headers["content-type"] == "application/json"
