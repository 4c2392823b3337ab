"""The member around an application that echoes what reached it."""

import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from mcp.client.auth.utils import extract_field_from_www_auth
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken

from mcp_middleware.errors import UNAUTHORIZED, UNAVAILABLE, ConfigurationError
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import Member
from mcp_middleware.resource_server import (
    Issuer,
    IssuerUnavailableError,
    JWTVerifier,
    OAuthResourceServerMiddleware,
)
from mcp_middleware.types import Rejection
from tests.core.recording import Witness
from tests.resource_server.issuer import RESOURCE, LoopbackIssuer
from tests.support import message

ORIGIN = "https://files.example.com"
METADATA = f"{ORIGIN}/.well-known/oauth-protected-resource/mcp"


class EchoApp:
    """Answers every request, and keeps the scope and the SDK's context variable it saw."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.users: list[AuthenticatedUser | None] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        self.users.append(auth_context_var.get())
        body = b'{"jsonrpc":"2.0","id":1,"result":{}}'
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def header(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.scopes[-1]["headers"] if key == name]


@dataclass
class Setup:
    echo: EchoApp
    witness: Witness
    http: httpx2.AsyncClient

    async def call(self, token: str | None = None, **options: Any) -> httpx2.Response:
        headers = dict(options.pop("headers", {}))
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        return await self.http.post("/mcp", json=message("tools/list", era="legacy"), headers=headers, **options)

    @property
    def rejection(self) -> Rejection | None:
        return self.witness.last.rejection


@asynccontextmanager
async def guarded(issuer: LoopbackIssuer, **options: Any) -> AsyncIterator[Setup]:
    options.setdefault("resource", RESOURCE)
    if "verifier" not in options:
        options.setdefault("issuers", [issuer.issuer])
    options.setdefault("scopes", ["mcp:use"])
    echo = EchoApp()
    witness = Witness(OAuthResourceServerMiddleware(echo, **options))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(witness), base_url=ORIGIN) as http:
        yield Setup(echo, witness, http)


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


class StaticVerifier:
    """A verifier of somebody else's, with the SDK's own AccessToken."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    async def verify_token(self, token: str) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def static(answer: object) -> dict[str, Any]:
    return {"verifier": StaticVerifier(answer), "authorization_servers": ["https://login.example.com"]}


async def test_any_verifier_fits(issuer: LoopbackIssuer) -> None:
    known = AccessToken(token="t", client_id="agent-9", scopes=["mcp:use"], claims={"iss": "https://login.example.com"})
    async with guarded(issuer, **static(known)) as setup:
        assert (await setup.call("opaque")).status_code == 200
        principal = setup.witness.last.principal
        assert principal is not None
        assert principal.key == ("https://login.example.com", "agent-9", "agent-9")
        assert setup.echo.scopes[-1]["user"].access_token is known


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"expires_at": 1}, 401),
        ({"expires_at": 4_000_000_000}, 200),
        ({"resource": RESOURCE}, 200),
        ({"resource": f"{RESOURCE}/"}, 401),
        ({"resource": "https://other.example/mcp"}, 401),
        ({"scopes": []}, 403),
    ],
)
async def test_any_verifiers_result_is_held_to_time_resource_and_scope(
    issuer: LoopbackIssuer, changes: dict[str, Any], status: int
) -> None:
    """B5."""
    token = AccessToken.model_validate({"token": "t", "client_id": "a", "scopes": ["mcp:use"], **changes})
    async with guarded(issuer, **static(token)) as setup:
        assert (await setup.call("opaque")).status_code == status


async def test_a_verifier_that_fails_is_an_outage_and_tells_no_token(
    issuer: LoopbackIssuer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for error in (RuntimeError("token s3cret"), IssuerUnavailableError("down", retry_after=7)):
        async with guarded(issuer, **static(error)) as setup:
            answer = await setup.call("s3cret")
            assert answer.status_code == 503
            assert "s3cret" not in caplog.text + answer.text
    assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize("answer", [False, True, "agent", {"client_id": "agent", "scopes": ["mcp:use"]}])
async def test_a_verifier_that_answers_something_else_lets_nobody_in_and_ends_no_request_in_a_crash(
    issuer: LoopbackIssuer, caplog: pytest.LogCaptureFixture, answer: object
) -> None:
    async with guarded(issuer, **static(answer)) as setup:
        assert (await setup.call("s3cret")).status_code == 503
        assert setup.rejection is not None
        assert setup.rejection.reason == "issuer_unavailable"
    assert f"answered a {type(answer).__name__}, which is no AccessToken" in caplog.text
    assert not setup.echo.scopes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token": None}, "token is no string"),
        ({"scopes": None}, "scopes are no list"),
        ({"scopes": "mcp:use"}, "scopes are no list"),
        ({"scopes": ["mcp:use", None]}, "scopes hold what is no scope"),
        ({"scopes": ["mcp:use", "a b"]}, "scopes hold what is no scope"),
        ({"expires_at": "soon"}, "expires_at is no number"),
        ({"expires_at": True}, "expires_at is no number"),
        ({"expires_at": float("nan")}, "expires_at is no number"),
        ({"resource": 1}, "resource is no string"),
        ({"client_id": None}, "client_id is no printable string of 1 to 512 characters"),
        ({"client_id": ""}, "client_id is no printable string of 1 to 512 characters"),
        ({"client_id": "a\nb"}, "client_id is no printable string of 1 to 512 characters"),
        ({"client_id": "a" * 513}, "client_id is no printable string of 1 to 512 characters"),
        ({"subject": ["alice"]}, "subject is no string"),
        ({"subject": "a\x1b[31m"}, "subject is no printable string of 1 to 512 characters"),
        ({"claims": ["iss"]}, "claims are no mapping"),
        ({"claims": {"iss": "a\u202eb"}}, "claim iss is no printable string of 1 to 512 characters"),
        ({"claims": {"sub": "a\nb"}}, "subject is no printable string of 1 to 512 characters"),
        ({"claims": {"roles": ["a\nb"]}}, "claim roles is no printable string of 1 to 512 characters"),
    ],
)
async def test_a_verifier_that_answers_wrong_values_lets_nobody_in_and_ends_no_request_in_a_crash(
    issuer: LoopbackIssuer, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], said: str
) -> None:
    known = AccessToken(token="t", client_id="agent-9", scopes=["mcp:use"]).model_copy(update=changes)
    async with guarded(issuer, **static(known)) as setup:
        assert (await setup.call("s3cret")).status_code == 503
        assert setup.rejection is not None
        assert setup.rejection.reason == "issuer_unavailable"
    assert f"the token verifier answered an AccessToken whose {said}" in caplog.text
    assert not setup.echo.scopes


async def test_a_token_of_an_older_sdk_counts_for_a_client_that_acts_for_itself(issuer: LoopbackIssuer) -> None:
    old = SimpleNamespace(token="t", client_id="agent-9", scopes=["mcp:use"], expires_at=None, resource=None)
    async with guarded(issuer, **static(old)) as setup:
        assert (await setup.call("s3cret")).status_code == 200
        assert setup.echo.scopes[-1]["user"].access_token.client_id == "agent-9"
        assert setup.echo.scopes[-1]["user"].access_token.claims == {}


async def test_an_open_stream_goes_on_while_its_token_cannot_be_verified_and_ends_where_it_is_not_called_good() -> None:
    known = AccessToken(token="t", client_id="agent-9", scopes=["mcp:use"])
    verifier = StaticVerifier(known)
    later: list[tuple[object, bool]] = [
        (known, True),
        (IssuerUnavailableError("down"), True),
        (None, False),
        (False, False),
        (known.model_copy(update={"scopes": None}), False),
        (known.model_copy(update={"expires_at": 1}), False),
    ]
    found = []

    class Asking(Member):
        stage = "audit"

        async def on_finish(self, exchange: Exchange) -> None:
            assert exchange.still_good is not None
            for verifier.answer, _ in later:
                found.append(await exchange.still_good(exchange))

    options: dict[str, Any] = {"verifier": verifier, "authorization_servers": ["https://login.example.com"]}
    app = Asking(OAuthResourceServerMiddleware(EchoApp(), resource=RESOURCE, **options))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=ORIGIN) as http:
        assert (await http.get("/mcp", headers={"authorization": "Bearer opaque"})).status_code == 200
    assert found == [good for _, good in later]


async def test_a_verifier_is_never_asked_about_what_can_be_no_token(issuer: LoopbackIssuer) -> None:
    """Case 6."""
    async with guarded(issuer, **static(RuntimeError("asked"))) as setup:
        assert (await setup.call("a" * 20_000)).status_code == 401
        assert (await setup.call()).status_code == 401


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


LOGIN = "https://login.example.com"


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


def test_a_verifier_of_ours_says_itself_who_its_issuers_are() -> None:
    verifier = JWTVerifier(resource=RESOURCE, issuers=[LOGIN])
    assert OAuthResourceServerMiddleware(EchoApp(), resource=RESOURCE, verifier=verifier)
