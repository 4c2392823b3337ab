"""A verifier of anybody's in the place of ours: what it answers counts as far as it can be true, and no further."""

import logging
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from mcp.server.auth.provider import AccessToken

from mcp_middleware.exchange import Exchange
from mcp_middleware.member import Member
from mcp_middleware.resource_server import IssuerUnavailableError, JWTVerifier, OAuthResourceServerMiddleware
from tests.resource_server.guarded import LOGIN, ORIGIN, EchoApp, StaticVerifier, guarded, static
from tests.resource_server.issuer import RESOURCE, LoopbackIssuer


async def test_any_verifier_fits(issuer: LoopbackIssuer) -> None:
    known = AccessToken(token="t", client_id="agent-9", scopes=["mcp:use"], claims={"iss": LOGIN})
    async with guarded(issuer, **static(known)) as setup:
        assert (await setup.call("opaque")).status_code == 200
        principal = setup.witness.last.principal
        assert principal is not None
        assert principal.key == (LOGIN, "agent-9", "agent-9")
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

    options: dict[str, Any] = {"verifier": verifier, "authorization_servers": [LOGIN]}
    app = Asking(OAuthResourceServerMiddleware(EchoApp(), resource=RESOURCE, **options))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=ORIGIN) as http:
        assert (await http.get("/mcp", headers={"authorization": "Bearer opaque"})).status_code == 200
    assert found == [good for _, good in later]


async def test_a_verifier_is_never_asked_about_what_can_be_no_token(issuer: LoopbackIssuer) -> None:
    """Case 6."""
    async with guarded(issuer, **static(RuntimeError("asked"))) as setup:
        assert (await setup.call("a" * 20_000)).status_code == 401
        assert (await setup.call()).status_code == 401


def test_a_verifier_of_ours_says_itself_who_its_issuers_are() -> None:
    verifier = JWTVerifier(resource=RESOURCE, issuers=[LOGIN])
    assert OAuthResourceServerMiddleware(EchoApp(), resource=RESOURCE, verifier=verifier)
