"""The copy of the issuer's metadata that clients of 2025-03-26 look for at the origin of the MCP server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from mcp.client.auth.utils import (
    build_oauth_authorization_server_metadata_discovery_urls,
    handle_auth_metadata_response,
)
from starlette.applications import Starlette
from starlette.routing import Mount

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.http import OAuthHTTPClient
from mcp_middleware.oauth.metadata import MetadataSource, ServerMetadata
from mcp_middleware.resource_server import OAuthResourceServerMiddleware, ProtectedResource, metadata_routes
from tests.resource_server.guarded import EchoApp, StaticVerifier
from tests.resource_server.issuer import RESOURCE, LoopbackIssuer

ORIGIN = "https://files.example.com"
PATH = "/.well-known/oauth-authorization-server"


class Knowing(StaticVerifier):
    """A verifier that knows an issuer's metadata, by a clock that stands until the test moves it."""

    def __init__(self, issuer: LoopbackIssuer) -> None:
        super().__init__(None)
        self.authorization_servers = [issuer.issuer]
        self.now = 0.0
        self._source = MetadataSource(issuer.issuer, OAuthHTTPClient(), clock=lambda: self.now)

    async def metadata(self, issuer: str) -> ServerMetadata:
        assert issuer == self.authorization_servers[0]
        return await self._source.get()


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=ORIGIN) as http:
        yield http


def guarded(verifier: Any, **options: Any) -> OAuthResourceServerMiddleware:
    return OAuthResourceServerMiddleware(EchoApp(), **{"resource": RESOURCE, "verifier": verifier, **options})


async def test_the_copy_is_the_issuers_own_byte_for_byte_and_fetched_once(issuer: LoopbackIssuer) -> None:
    issuer.metadata_changes = {"authorization_endpoint": "https://login.example.com/a?x=%2f", "ü": [1.50, "/\\"]}
    async with httpx2.AsyncClient() as own:
        original = (await own.get(issuer.url + PATH)).content
    issuer.fetches.clear()
    async with serving(guarded(Knowing(issuer))) as http:
        for _ in range(3):
            copy = await http.get(PATH)
            assert copy.status_code == 200
            assert copy.content == original
            assert copy.headers["content-type"] == "application/json"
            assert copy.headers["x-content-type-options"] == "nosniff"
            assert copy.headers["access-control-allow-origin"] == "*"
            assert copy.headers["cache-control"] == "public, max-age=3600"
        assert issuer.fetches[PATH] == 1


async def test_the_python_clients_legacy_discovery_finds_it(issuer: LoopbackIssuer) -> None:
    """What it does where a server has no document of its own; it reads the copy and finds the issuer's endpoints."""
    issuer.metadata_changes = {
        "authorization_endpoint": f"{issuer.url}/authorize",
        "token_endpoint": f"{issuer.url}/token",
        "response_types_supported": ["code"],
    }
    urls = build_oauth_authorization_server_metadata_discovery_urls(None, RESOURCE)
    assert urls == [ORIGIN + PATH]
    async with serving(guarded(Knowing(issuer))) as http:
        go_on, found = await handle_auth_metadata_response(await http.get(urls[0]))
    assert go_on
    assert found is not None
    assert str(found.token_endpoint) == f"{issuer.url}/token"
    assert str(found.issuer).rstrip("/") == issuer.issuer


async def test_only_reading_is_answered_and_the_issuer_asked_for_nothing_else(issuer: LoopbackIssuer) -> None:
    async with serving(guarded(Knowing(issuer))) as http:
        preflight = await http.options(PATH, headers={"origin": "https://app.example"})
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, "*")
        refused = await http.post(PATH, json={})
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        assert not issuer.fetches
        assert (await http.head(PATH)).status_code == 200


async def test_case_42_an_issuer_that_is_down_is_503_until_it_is_back_and_then_kept(issuer: LoopbackIssuer) -> None:
    verifier = Knowing(issuer)
    issuer.status = 500
    async with serving(guarded(verifier)) as http:
        for _ in range(5):
            answer = await http.get(PATH)
            assert (answer.status_code, answer.content) == (503, b"")
            assert 1 <= int(answer.headers["retry-after"]) <= 10
            assert answer.headers["access-control-allow-origin"] == "*"
            assert answer.headers["cache-control"] == "no-store"
        asked = issuer.fetches.total()
        assert asked <= 3  # the places where metadata may be, once
        issuer.status = 200
        verifier.now = 60.0
        good = await http.get(PATH)
        assert good.status_code == 200
        issuer.status = 500
        verifier.now = 86_400.0
        assert (await http.get(PATH)).content == good.content


async def test_f8_another_issuers_metadata_is_never_repeated(issuer: LoopbackIssuer) -> None:
    issuer.metadata_changes = {"issuer": "https://evil.example"}
    async with serving(guarded(Knowing(issuer))) as http:
        answer = await http.get(PATH)
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        assert "evil" not in answer.text


@pytest.mark.parametrize("reason", ["switched off", "same origin", "foreign verifier"])
async def test_where_there_is_no_copy_the_path_is_like_any_other(issuer: LoopbackIssuer, reason: str) -> None:
    verifier: Any = Knowing(issuer)
    options: dict[str, Any] = {}
    if reason == "switched off":
        options["legacy_metadata"] = False
    elif reason == "same origin":
        options["resource"] = f"{issuer.url}/mcp"
    else:
        verifier = StaticVerifier(None)
        options["authorization_servers"] = [issuer.issuer]
    async with serving(guarded(verifier, **options)) as http:
        assert (await http.get(PATH)).status_code == 401
    assert not issuer.fetches


@pytest.mark.parametrize(
    ("issuer_url", "same"),
    [
        ("https://files.example.com", True),
        ("https://FILES.example.com:443/tenant", True),
        ("https://files.example.com:8443", False),
        ("https://login.example.com", False),
    ],
)
async def test_an_origin_is_compared_as_an_origin(issuer: LoopbackIssuer, issuer_url: str, same: bool) -> None:
    verifier = Knowing(issuer)
    verifier.authorization_servers = [issuer_url]
    member = guarded(verifier)
    async with serving(member) as http:
        assert ((await http.options(PATH)).status_code == 401) is same


async def test_a_mounted_server_and_its_host(issuer: LoopbackIssuer) -> None:
    """A host asks nobody whom it mounted; what it is told to answer, it answers."""
    verifier = Knowing(issuer)
    files = ProtectedResource(f"{ORIGIN}/files/mcp", authorization_servers=[issuer.issuer])
    mounted = guarded(verifier, resource=files.resource)
    app = Starlette(routes=[*metadata_routes(files, verifier=verifier), Mount("/files", mounted)])
    async with serving(app) as http:
        assert (await http.get(PATH)).json()["issuer"] == issuer.issuer
        assert (await http.post(PATH)).status_code == 405
        assert (await http.get("/.well-known/oauth-protected-resource/files/mcp")).status_code == 200
    async with serving(Starlette(routes=metadata_routes(files))) as http:
        assert (await http.get(PATH)).status_code == 404


def test_a_verifier_of_which_no_copy_can_be_made_is_refused(issuer: LoopbackIssuer) -> None:
    own = ProtectedResource(f"{issuer.url}/mcp", authorization_servers=[issuer.issuer])
    for resource, verifier in ((own, Knowing(issuer)), (own, StaticVerifier(None))):
        with pytest.raises(ConfigurationError, match=r"metadata_routes: verifier is .*; it must know the metadata"):
            metadata_routes(resource, verifier=verifier)


def test_a_switch_is_a_switch() -> None:
    with pytest.raises(ConfigurationError, match="legacy_metadata is 1; it must be True or False"):
        guarded(StaticVerifier(None), authorization_servers=["https://login.example.com"], legacy_metadata=1)
