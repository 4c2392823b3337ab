"""A verifier is started with the application, whatever that is made with, and a wrong one keeps it from starting."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastmcp import FastMCP
from mcp.server.mcpserver import MCPServer
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.lifespan import lifespan_of
from mcp_middleware.resource_server import OAuthResourceServerMiddleware
from tests.resource_server.guarded import StaticVerifier
from tests.resource_server.issuer import RESOURCE, LoopbackIssuer
from tests.support import post, serve

WRONG = "https://login.example.com/.well-known/oauth-authorization-server has the issuer 'https://evil.example'"


class Verifier(StaticVerifier):
    """Notes when it is started and closed."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__(None)
        self.failure = failure
        self.log: list[str] = []

    async def start(self) -> None:
        self.log.append("start")
        if self.failure is not None:
            raise self.failure

    async def aclose(self) -> None:
        self.log.append("close")


def options(verifier: Verifier) -> dict[str, Any]:
    return {"resource": RESOURCE, "verifier": verifier, "authorization_servers": ["https://login.example.com"]}


def in_fastmcp(verifier: Verifier) -> Any:
    guard = Middleware(OAuthResourceServerMiddleware, **options(verifier))
    return FastMCP("tests").http_app(path="/mcp", middleware=[guard])


def round_the_sdk(verifier: Verifier) -> Any:
    return OAuthResourceServerMiddleware(MCPServer("tests").streamable_http_app(), **options(verifier))


def in_starlette(verifier: Verifier) -> Any:
    return Starlette(middleware=[Middleware(OAuthResourceServerMiddleware, **options(verifier))])


def mounted(verifier: Verifier) -> Any:
    guarded = round_the_sdk(verifier)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with lifespan_of(guarded):
            yield

    return Starlette(routes=[Mount("/", guarded)], lifespan=lifespan)


def without_a_lifespan(verifier: Verifier) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"

    return OAuthResourceServerMiddleware(app, **options(verifier))


made_with = pytest.mark.parametrize("make", [in_fastmcp, round_the_sdk, in_starlette, mounted, without_a_lifespan])


@made_with
async def test_the_verifier_is_started_before_the_first_request(make: Callable[[Verifier], Any]) -> None:
    verifier = Verifier()
    async with serve(make(verifier)) as origin, httpx2.AsyncClient() as http:
        assert verifier.log == ["start"]
        assert (await post(http, f"{origin}/mcp", "tools/list")).status_code == 401
    assert verifier.log == (["start"] if make is without_a_lifespan else ["start", "close"])


@made_with
async def test_an_issuer_that_contradicts_the_configuration_keeps_the_application_from_starting(
    make: Callable[[Verifier], Any], caplog: pytest.LogCaptureFixture
) -> None:
    verifier = Verifier(ConfigurationError(WRONG))
    with pytest.raises(RuntimeError, match="failed in its lifespan start-up"):
        async with serve(make(verifier)):
            pass
    assert WRONG in caplog.text
    assert verifier.log == ["start", "close"]


async def test_where_nobody_runs_the_lifespan_requests_are_served_all_the_same() -> None:
    verifier = Verifier()
    app = Starlette(routes=[Mount("/", round_the_sdk(verifier))])
    async with serve(app) as origin, httpx2.AsyncClient() as http:
        assert (await post(http, f"{origin}/mcp", "tools/list")).status_code == 401
    assert verifier.log == []


def guarded_by(issuer: LoopbackIssuer, **options: Any) -> Any:
    server = MCPServer("tests").streamable_http_app()
    return OAuthResourceServerMiddleware(server, resource=RESOURCE, issuers=[issuer.issuer], **options)


async def test_f8_a_real_issuer_that_is_another_keeps_the_application_from_starting(
    issuer: LoopbackIssuer, caplog: pytest.LogCaptureFixture
) -> None:
    """It says what was fetched and what was expected."""
    issuer.metadata_changes = {"issuer": "https://evil.example"}
    with pytest.raises(RuntimeError, match="failed in its lifespan start-up"):
        async with serve(guarded_by(issuer)):
            pass
    assert "'https://evil.example'" in caplog.text
    assert issuer.issuer in caplog.text


async def test_case_42_a_real_issuer_that_is_down_is_waited_for(issuer: LoopbackIssuer) -> None:
    issuer.status = 503
    async with serve(guarded_by(issuer)) as origin, httpx2.AsyncClient() as http:
        token = issuer.token()
        refused = await post(http, f"{origin}/mcp", "tools/list", token=token)
        assert (refused.status_code, "www-authenticate" in refused.headers) == (503, False)
        assert int(refused.headers["retry-after"]) >= 1
        issuer.asked.clear()
        issuer.status = 200
        await issuer.asked.wait()
        while refused.status_code == 503:  # the answer is on its way
            refused = await post(http, f"{origin}/mcp", "tools/list", token=token)
        assert refused.status_code == 200
