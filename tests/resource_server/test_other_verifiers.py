"""Verifiers written for FastMCP, which are the SDK's TokenVerifier as well, in the place of ours."""

from collections.abc import Callable

import httpx2
import pytest
from fastmcp import FastMCP
from fastmcp.server.auth.providers.introspection import IntrospectionTokenVerifier
from fastmcp.server.auth.providers.jwt import JWTVerifier
from fastmcp.server.dependencies import get_access_token
from mcp.server.auth.provider import TokenVerifier
from starlette.middleware import Middleware

from mcp_middleware.resource_server import OAuthResourceServerMiddleware
from tests.resource_server.issuer import LoopbackIssuer
from tests.support import connect, listener, origin_of, post, serve, text_of


def by_keys(issuer: LoopbackIssuer, url: str) -> TokenVerifier:
    return JWTVerifier(jwks_uri=f"{issuer.url}/jwks", issuer=issuer.issuer, audience=url, algorithm="ES256")


def by_introspection(issuer: LoopbackIssuer, url: str) -> TokenVerifier:
    return IntrospectionTokenVerifier(
        introspection_url=f"{issuer.url}/introspect", client_id="gateway", client_secret="secret", audience=url
    )


def whoami() -> str:
    token = get_access_token()
    return f"{token.client_id} {token.subject}" if token else "nobody"


@pytest.mark.parametrize("make", [by_keys, by_introspection])
async def test_a_verifier_of_somebody_elses_fits_in(
    issuer: LoopbackIssuer, make: Callable[[LoopbackIssuer, str], TokenVerifier]
) -> None:
    bound = listener()
    url = f"{origin_of(bound)}/mcp"
    server = FastMCP("whoami")
    server.tool(whoami)
    member = Middleware(
        OAuthResourceServerMiddleware,
        resource=url,
        verifier=make(issuer, url),
        authorization_servers=[issuer.issuer],
        scopes=["mcp:use"],
    )
    issue = issuer.token if make is by_keys else issuer.opaque
    async with serve(server.http_app(path="/mcp", middleware=[member]), bound=bound), httpx2.AsyncClient() as http:
        async with connect(url, token=issue(aud=url)) as client:
            assert text_of(await client.call_tool("whoami")) == "agent-1 alice"
        elsewhere = issuer.token() if make is by_keys else issuer.opaque("opaque-2")
        for token, status in [(elsewhere, 401), ("junk", 401), (issue(aud=url, scope="other"), 403)]:
            assert (await post(http, url, "tools/list", token=token)).status_code == status
