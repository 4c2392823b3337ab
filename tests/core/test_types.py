"""Principals: who the bearer of a token is, whoever has verified it."""

from types import SimpleNamespace
from typing import Any

import pytest
from mcp.server.auth.provider import AccessToken

from mcp_middleware import Caller, OAuthResourceServerMiddleware
from mcp_middleware.types import Principal

from .asgi import Call, EchoServer
from .recording import CALL, Audit

RESOURCE = "https://mcp.example.com/mcp"

CLAIMS: dict[str, tuple[dict[str, Any], Principal]] = {
    "person": ({"iss": "https://as", "sub": "alice"}, Principal("https://as", "ci-1", "alice", frozenset({"use"}))),
    "machine": ({}, Principal(None, "ci-1", "ci-1", frozenset({"use"}))),
    "roles": ({"roles": ["a", "b"]}, Principal(None, "ci-1", "ci-1", frozenset({"use"}), frozenset({"a", "b"}))),
    "one role": ({"roles": "a b"}, Principal(None, "ci-1", "ci-1", frozenset({"use"}), frozenset({"a b"}))),
    "no role": ({"roles": ["a", 1]}, Principal(None, "ci-1", "ci-1", frozenset({"use"}))),
    "no names": ({"iss": 1, "sub": {}, "roles": {}}, Principal(None, "ci-1", "ci-1", frozenset({"use"}))),
}


class Verifier:
    """One of somebody else's: it knows one token."""

    def __init__(self, token: AccessToken) -> None:
        self.token = token

    async def verify_token(self, token: str) -> AccessToken | None:
        return self.token


async def foreign_principal(user: object) -> Principal | None:
    """The caller where ``user`` is what a layer further out has authenticated."""
    member = Audit(EchoServer(), [])

    async def authenticated(scope: Any, receive: Any, send: Any) -> None:
        await member({**scope, "user": user}, receive, send)

    await Call(authenticated, CALL).run()
    return member.exchanges[0].principal


@pytest.mark.parametrize("claims", list(CLAIMS))
async def test_one_token_is_one_principal_whoever_asks(claims: str) -> None:
    said, principal = CLAIMS[claims]
    token = AccessToken(token="t", client_id="ci-1", scopes=["use"], claims=said)
    member = Audit(EchoServer(), [])
    app = OAuthResourceServerMiddleware(
        member, resource=RESOURCE, verifier=Verifier(token), authorization_servers=["https://as"]
    )
    await Call(app, CALL, headers={"authorization": "Bearer t"}).run()
    assert member.exchanges[0].principal == principal
    assert Caller.from_access_token(token).principal == principal
    assert await foreign_principal(SimpleNamespace(access_token=token)) == principal


async def test_a_token_of_an_older_sdk_has_no_subject_and_no_claims() -> None:
    token = SimpleNamespace(client_id="ci-1", scopes=[], expires_at=None, resource=None)
    assert await foreign_principal(SimpleNamespace(access_token=token)) == Principal(None, "ci-1", "ci-1")


@pytest.mark.parametrize("user", [None, SimpleNamespace(), SimpleNamespace(access_token=SimpleNamespace(client_id=1))])
async def test_a_user_without_a_token_is_nobody(user: object) -> None:
    assert await foreign_principal(user) is None
