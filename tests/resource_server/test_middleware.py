"""The member around an application that echoes what reached it."""

import json
import time
from itertools import product
from typing import Any

import httpx2
import pytest
from mcp.client.auth.utils import extract_field_from_www_auth
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken

from mcp_middleware.errors import UNAUTHORIZED, UNAVAILABLE, ConfigurationError
from mcp_middleware.resource_server import Issuer, JWTVerifier, OAuthResourceServerMiddleware
from tests.resource_server.guarded import LOGIN, ORIGIN, EchoApp, StaticVerifier, guarded
from tests.resource_server.issuer import RESOURCE, LoopbackIssuer
from tests.support import message

METADATA = f"{ORIGIN}/.well-known/oauth-protected-resource/mcp"


async def test_a_remote_server_is_told_nothing(issuer: LoopbackIssuer) -> None:
    async with guarded(issuer, tell_server=False) as setup:
        assert (await setup.call(issuer.token())).status_code == 200
    assert "user" not in setup.echo.scopes[-1]
    assert setup.echo.users == [None]
    with pytest.raises(ConfigurationError, match="tell_server is 1; it must be True or False"):
        OAuthResourceServerMiddleware(setup.echo, resource=RESOURCE, issuers=[issuer.issuer], tell_server=1)  # type: ignore[arg-type]


async def test_a_good_token_reaches_the_server(issuer: LoopbackIssuer) -> None:
    async with guarded(issuer) as setup:
        token = issuer.token(roles=["admin"])
        assert (await setup.call(token)).status_code == 200
        seen = setup.witness.last
    assert seen.rejection is None
    assert seen.resource_metadata == METADATA
    principal = seen.principal
    assert principal is not None
    assert principal.key == (issuer.issuer, "agent-1", "alice")
    assert principal.scopes == {"mcp:use", "files:read"}
    assert principal.roles == {"admin"}
    assert principal.claims["jti"] == "1"
    assert principal.expires_at is not None
    assert principal.expires_at > time.time()


@pytest.mark.parametrize(
    "path",
    [
        "/mcp",
        "/mcp/",
        "//mcp",
        "/",
        "/MCP",
        "/health",
        "/authorize",
        "/token",
        "/register",
        "/.well-known/oauth-authorization-server/mcp",
        "/.well-known/oauth-protected-resource/",
        "/.well-known/oauth-protected-resource/mcp/",
        "/.well-known/oauth-protected-resource/other",
        "//.well-known/oauth-protected-resource",
        "/mcp/.well-known/oauth-protected-resource",
    ],
)
async def test_case_1_every_path_and_method_needs_a_token(issuer: LoopbackIssuer, path: str) -> None:
    """B2, B4, B8, B9, F2: nothing here logs in, issues or registers."""
    methods = ("POST", "GET", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "BREW")
    credentials: tuple[tuple[dict[str, str], str | None, str], ...] = (
        ({}, None, "no_token"),
        ({"authorization": "Bearer junk"}, "invalid_token", "invalid_token"),
    )
    async with guarded(issuer) as setup:
        for method, (headers, error, reason) in product(methods, credentials):
            request = setup.http.build_request(method, ORIGIN, headers=headers)
            request.url = request.url.copy_with(raw_path=path.encode())
            answer = await setup.http.send(request)
            assert answer.status_code == 401
            assert answer.headers.get_list("www-authenticate") == [answer.headers["www-authenticate"]]
            assert extract_field_from_www_auth(answer, "resource_metadata") == METADATA
            assert extract_field_from_www_auth(answer, "scope") == "mcp:use"
            assert extract_field_from_www_auth(answer, "error") == error
            assert setup.rejection is not None
            assert setup.rejection.reason == reason
        assert not setup.echo.scopes
        assert len(setup.witness.exchanges) == len(methods) * len(credentials)


async def test_a_refusal_says_so_in_json_rpc(issuer: LoopbackIssuer) -> None:
    async with guarded(issuer) as setup:
        answer = (await setup.call()).json()
    assert answer["jsonrpc"] == "2.0"
    assert answer["error"]["code"] == UNAUTHORIZED


async def test_case_2_a_token_in_the_query_is_ignored(issuer: LoopbackIssuer) -> None:
    """B4."""
    async with guarded(issuer) as setup:
        answer = await setup.call(params={"access_token": issuer.token()})
        assert answer.status_code == 401
        assert "error=" not in answer.headers["www-authenticate"]
        form = await setup.http.post("/mcp", data={"access_token": issuer.token()})
        assert form.status_code == 401
    assert not setup.echo.scopes


async def test_case_2_two_authorization_headers(issuer: LoopbackIssuer) -> None:
    good = f"Bearer {issuer.token()}"
    async with guarded(issuer) as setup:
        for pair in ((good, good), (good, "Bearer junk"), ("Basic eA==", good), (good, "")):
            answer = await setup.http.post(
                "/mcp", json=message("ping"), headers=[("authorization", value) for value in pair]
            )
            assert answer.status_code == 400
            assert extract_field_from_www_auth(answer, "error") == "invalid_request"
            assert setup.rejection is not None
            assert setup.rejection.reason == "malformed_authorization"
    assert not setup.echo.scopes


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("Bearer", 400),
        ("Bearer ", 400),
        ("Bearer {0} {0}", 400),
        ("Bearer {0},Bearer {0}", 400),
        ("Bearer {0}, Basic eA==", 400),
        ("Bearer\t{0}", 401),
        ("{0}", 401),
        ("Basic {0}", 401),
        ("Bearer={0}", 401),
        ("Bearer\x00 {0}", 401),
        ("Bearer {0}\x00", 401),
        ('Bearer "{0}"', 401),
        ("Bearer {0}é", 401),
    ],
)
async def test_case_2_a_malformed_authorization(issuer: LoopbackIssuer, value: str, status: int) -> None:
    async with guarded(issuer) as setup:
        header = value.format(issuer.token()).encode("latin-1")
        answer = await setup.http.post("/mcp", json=message("ping"), headers=[(b"authorization", header)])
        assert answer.status_code == status
        assert (extract_field_from_www_auth(answer, "error") == "invalid_request") == (status == 400)
        assert not setup.echo.scopes


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
async def test_case_8_the_token_does_not_go_on_in_the_headers(issuer: LoopbackIssuer, method: str) -> None:
    """F1."""
    async with guarded(issuer) as setup:
        headers = {"authorization": f"Bearer {issuer.token()}", "x-other": "1"}
        body = json.dumps(message("ping", era="legacy")) if method == "POST" else None
        sent = {**headers, "content-type": "application/json"}
        assert (await setup.http.request(method, "/mcp", content=body, headers=sent)).status_code == 200
        assert setup.echo.header(b"authorization") == []
        assert setup.echo.header(b"x-other") == [b"1"]


@pytest.mark.parametrize("path", ["/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"])
async def test_case_9_the_metadata_is_open_and_keeps_the_configured_resource(issuer: LoopbackIssuer, path: str) -> None:
    """B1, B2, B3."""
    hostile = {
        "host": "evil.example",
        "x-forwarded-host": "evil.example",
        "x-forwarded-proto": "http",
        "x-forwarded-prefix": "/evil",
        "forwarded": "host=evil.example",
        "authorization": "Bearer junk",
    }
    async with guarded(issuer) as setup:
        answer = await setup.http.get(path, headers=hostile)
        assert answer.status_code == 200
        assert answer.json() == {
            "resource": RESOURCE,
            "authorization_servers": [issuer.issuer],
            "bearer_methods_supported": ["header"],
            "scopes_supported": ["mcp:use"],
        }
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["cache-control"] == "public, max-age=3600"
        assert (await setup.http.head(path)).status_code == 200
        preflight = await setup.http.options(path, headers={"origin": "https://app.example"})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "*"
        assert (await setup.http.post(path)).status_code == 405
        refused = await setup.call(headers={"host": "evil.example", "x-forwarded-host": "evil.example"})
        assert extract_field_from_www_auth(refused, "resource_metadata") == METADATA
    assert not setup.echo.scopes
    assert len(setup.witness.exchanges) == 1  # documents are no messages


async def test_a_mounted_server_knows_its_own_documents(issuer: LoopbackIssuer) -> None:
    """B3: one document per mounted path."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    echo = EchoApp()
    files = OAuthResourceServerMiddleware(
        echo, resource=f"{ORIGIN}/files/mcp", issuers=[issuer.issuer], scopes=["mcp:use"]
    )
    app = Starlette(routes=[Mount("/files", files)])
    root = "/.well-known/oauth-protected-resource"
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=ORIGIN) as http:
        for path in (f"/files{root}", f"/files{root}/files/mcp"):
            assert (await http.get(path)).json()["resource"] == f"{ORIGIN}/files/mcp"
        assert (await http.get("/files/mcp")).status_code == 401
        assert (await http.get(f"/files{root}/mcp")).status_code == 401
        token = issuer.token(aud=f"{ORIGIN}/files/mcp")
        assert (await http.get("/files/mcp", headers={"authorization": f"Bearer {token}"})).status_code == 200
    # A server that leaves root_path out of path, and one that has the whole host under it.
    transport = httpx2.ASGITransport(files, root_path="/files")
    async with httpx2.AsyncClient(transport=transport, base_url=ORIGIN) as http:
        assert (await http.get(root)).status_code == 200


@pytest.mark.parametrize("scope", ["", "files:read", "mcp:use", "mcp:use2 mcp", "MCP:USE MCP:WRITE", None])
async def test_case_10_a_missing_scope_names_all_at_once(issuer: LoopbackIssuer, scope: str | None) -> None:
    """B10, B11, H6."""
    async with guarded(issuer, scopes=["mcp:use", "mcp:write"]) as setup:
        answer = await setup.call(issuer.token(scope=scope))
        assert answer.status_code == 403
        assert extract_field_from_www_auth(answer, "error") == "insufficient_scope"
        assert extract_field_from_www_auth(answer, "scope") == "mcp:use mcp:write"
        assert extract_field_from_www_auth(answer, "resource_metadata") == METADATA
        assert "offline_access" not in answer.text + answer.headers["www-authenticate"]
        principal, rejection = setup.witness.last.principal, setup.rejection
        assert principal is not None
        assert principal.client == "agent-1"
        assert rejection is not None
        assert rejection.reason == "insufficient_scope"
        assert not setup.echo.scopes
        assert (await setup.call(issuer.token(scope="mcp:write x mcp:use"))).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": None},
        {"aud": ORIGIN},
        {"aud": f"{RESOURCE}/"},
        {"iss": "https://evil.example"},
        {"exp": None},
        {"exp": 1},
        {"exp": 1e300},
        {"nbf": 4_000_000_000},
        {"sub": None, "client_id": None},
    ],
)
async def test_case_5_a_wrong_claim_is_refused_and_the_next_good_call_served(
    issuer: LoopbackIssuer, changes: dict[str, Any]
) -> None:
    async with guarded(issuer) as setup:
        answer = await setup.call(issuer.token(**changes))
        assert answer.status_code == 401
        assert extract_field_from_www_auth(answer, "error") == "invalid_token"
        assert not setup.echo.scopes
        principal, rejection = setup.witness.last.principal, setup.rejection
        assert principal is None
        assert rejection is not None
        assert rejection.reason == "invalid_token"
        assert (await setup.call(issuer.token())).status_code == 200


async def test_case_5_an_id_jag_is_no_access_token(issuer: LoopbackIssuer) -> None:
    """H3."""
    async with guarded(issuer, issuers=[Issuer(issuer.issuer, typ="any")]) as setup:
        assert (await setup.call(issuer.token(header={"typ": "oauth-id-jag+jwt"}))).status_code == 401
        assert (await setup.call(issuer.token(header={"typ": "JWT"}, nonce="n"))).status_code == 401
        assert (await setup.call(issuer.token(header={"typ": "JWT"}))).status_code == 200


async def test_an_outage_is_503_and_never_401(issuer: LoopbackIssuer) -> None:
    """Case 42: JWKS down."""
    issuer.status = 500
    async with guarded(issuer) as setup:
        for _ in range(2):
            answer = await setup.call(issuer.token())
            assert answer.status_code == 503
            assert 1 <= int(answer.headers["retry-after"]) <= 10
            assert answer.json()["error"]["code"] == UNAVAILABLE
            assert "www-authenticate" not in answer.headers
            assert setup.rejection is not None
            assert setup.rejection.reason == "issuer_unavailable"
    assert not setup.echo.scopes


async def test_the_caller_is_known_to_the_sdk_during_the_request_only(issuer: LoopbackIssuer) -> None:
    """B13."""
    async with guarded(issuer) as setup:
        token = issuer.token()
        await setup.call(token)
        assert auth_context_var.get() is None
        user = setup.echo.users[-1]
        assert user is setup.echo.scopes[-1]["user"]
        assert isinstance(user, AuthenticatedUser)
        assert user.is_authenticated
        fields = user.access_token.model_dump(include=set(AccessToken.model_fields))  # FastMCP's has more
        assert fields == {
            "token": token,
            "client_id": "agent-1",
            "scopes": ["mcp:use", "files:read"],
            "expires_at": user.access_token.expires_at,
            "resource": RESOURCE,
            "subject": "alice",
            "claims": user.access_token.claims,
        }
        assert user.scopes == setup.echo.scopes[-1]["auth"].scopes == ["mcp:use", "files:read"]
        user.access_token.scopes.append("admin")
        (user.access_token.claims or {}).clear()
        await setup.call(token)
        again = setup.echo.users[-1]
        assert again is not None  # what a tool does to its token stays in its request
        assert again.access_token.scopes == ["mcp:use", "files:read"]
        assert (again.access_token.claims or {})["iss"] == issuer.issuer
        await setup.call()
        assert auth_context_var.get() is None


async def test_what_a_tool_does_to_its_token_stays_in_its_request(issuer: LoopbackIssuer) -> None:
    async with guarded(issuer) as setup:
        token = issuer.token(realm_access={"roles": ["user"]})
        await setup.call(token)
        spoiled = setup.echo.scopes[-1]["user"].access_token
        spoiled.scopes.append("admin")
        spoiled.claims["sub"] = "root"
        spoiled.claims["realm_access"]["roles"].append("admin")
        await setup.call(token)
        assert setup.echo.scopes[-1]["user"].access_token.scopes == ["mcp:use", "files:read"]
        assert setup.echo.scopes[-1]["user"].access_token.claims["sub"] == "alice"
        assert setup.echo.scopes[-1]["user"].access_token.claims["realm_access"] == {"roles": ["user"]}
        assert setup.witness.last.principal == setup.witness.exchanges[0].principal


async def test_a_user_that_another_layer_set_is_not_believed(issuer: LoopbackIssuer) -> None:
    async with guarded(issuer) as setup:
        known = AccessToken(token="t", client_id="root", scopes=["mcp:use"])

        async def outer(scope: Any, receive: Any, send: Any) -> None:
            scope["user"] = AuthenticatedUser(known)
            await setup.witness(scope, receive, send)

        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(outer), base_url=ORIGIN) as http:
            assert (await http.get("/mcp")).status_code == 401
            assert setup.witness.last.principal is None


async def test_other_connections_pass(issuer: LoopbackIssuer) -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    member = OAuthResourceServerMiddleware(app, resource=RESOURCE, issuers=[issuer.issuer])

    async def unused(*_: Any) -> Any:
        raise AssertionError

    await member({"type": "websocket"}, unused, unused)
    assert seen == ["websocket"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "neither issuers nor verifier"),
        ({"issuers": []}, "neither issuers nor verifier"),
        ({"issuers": [LOGIN], "verifier": StaticVerifier(None)}, "exclude each other"),
        ({"verifier": StaticVerifier(None)}, "authorization_servers"),
        ({"verifier": object(), "authorization_servers": [LOGIN]}, "verify_token"),
        ({"verifier": JWTVerifier(resource="https://other.example/mcp", issuers=[LOGIN])}, "other.example"),
        ({"issuers": LOGIN}, "issuers"),
        ({"issuers": ["http://login.example.com"]}, "issuer"),
        ({"issuers": [f"{LOGIN}#x"]}, "issuer"),
        ({"issuers": [LOGIN, LOGIN]}, "twice"),
        ({"issuers": [LOGIN], "resource": "http://files.example.com/mcp"}, "resource"),
        ({"issuers": [LOGIN], "resource": f"{RESOURCE}#x"}, "resource"),
        ({"issuers": [LOGIN], "scopes": "mcp:use"}, "scopes"),
        ({"issuers": [LOGIN], "authorization_servers": ["login"]}, "authorization_servers"),
        ({"issuers": [LOGIN], "app": None}, "app"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        OAuthResourceServerMiddleware(**{"app": EchoApp(), "resource": RESOURCE, **options})
