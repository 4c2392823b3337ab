"""The same against a whole authorization server, which was made for other tests."""

import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
import pytest_asyncio

from mcp_middleware.credentials import (
    Caller,
    ClientCredentials,
    CredentialRefusedError,
    CredentialUnavailableError,
    TokenExchange,
)
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth import ClientSecret, IssuerUnavailableError, PrivateKeyJWT
from mcp_middleware.testing import FakeClock
from mcp_middleware.types import Principal
from tests.authorization_server.running import Credentials, RunningServer, running

FILES, MAIL = "https://files.example.com/mcp", "https://mail.example.com/mcp"


@pytest_asyncio.fixture(loop_scope="session")
async def server() -> AsyncIterator[RunningServer]:
    async with running(resources=[FILES, MAIL]) as made:
        yield made


def proof(client: Credentials) -> ClientSecret | PrivateKeyJWT:
    if client.private_key is not None:
        return PrivateKeyJWT(client.client_id, client.private_key)
    return ClientSecret(client.client_id, client.secret or "")


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def caller_with(token: str) -> Caller:
    claims = claims_of(token)
    principal = Principal(claims["iss"], claims["client_id"], claims["sub"], expires_at=claims["exp"])
    return Caller(principal, token)


@pytest.mark.parametrize("key", [False, True])
async def test_our_own_token_by_secret_and_by_key(server: RunningServer, key: bool) -> None:
    """H1, H2."""
    gateway = server.add_client("gateway", key=key, scopes=["mail:read", "mail:send"])
    credential = ClientCredentials(
        issuer=server.issuer, authentication=proof(gateway), resource=MAIL, scope="mail:read"
    )
    await credential.start()
    claims = claims_of(await credential.token())
    assert (claims["aud"], claims["sub"], claims["scope"]) == (MAIL, "gateway", "mail:read")
    assert server.counts["/token"] == 1
    await credential.aclose()


async def test_the_callers_token_is_exchanged(server: RunningServer) -> None:
    agent, gateway = server.add_client("agent"), server.add_client("gateway", serves=[FILES])
    subject = await server.token(agent, FILES)
    exchange = TokenExchange(issuer=server.issuer, authentication=proof(gateway), audience=MAIL)
    await exchange.start()
    token = await exchange.token(caller_with(subject))
    claims = claims_of(token)
    assert (claims["aud"], claims["sub"], claims["client_id"]) == (MAIL, "agent", "gateway")
    assert claims["exp"] <= claims_of(subject)["exp"]
    assert await exchange.token(caller_with(subject)) == token
    server.revoke(subject)
    other = Caller(Principal(server.issuer, "agent", "other"), subject)
    with pytest.raises(CredentialRefusedError) as caught:
        await exchange.token(other)
    assert caught.value.caller
    await exchange.aclose()


async def test_opaque_tokens_are_exchanged_too(server: RunningServer) -> None:
    server.form = "opaque"
    agent, gateway = server.add_client("agent"), server.add_client("gateway", key=True)
    subject = await server.token(agent, FILES)
    exchange = TokenExchange(issuer=server.issuer, authentication=proof(gateway), audience=MAIL)
    token = await exchange.token(Caller(Principal(server.issuer, "agent", "agent"), subject))
    assert "." not in token
    assert token != subject
    await exchange.aclose()


async def test_start_says_what_is_wrong(server: RunningServer) -> None:
    gateway = server.add_client("gateway", scopes=["mail:read"])
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"authentication": ClientSecret("gateway", "wrong-secret")}, "invalid_client"),
        ({"authentication": ClientSecret("nobody", "wrong-secret")}, "invalid_client"),
        ({"resource": "https://other.example.com/mcp"}, "invalid_target"),
        ({"scope": "files:write"}, "invalid_scope"),
        ({"issuer": f"{server.issuer}/"}, "was expected"),
        ({"issuer": f"{server.issuer}/elsewhere"}, "404; the metadata of .* was expected at one of them"),
    ]
    right = {"issuer": server.issuer, "authentication": proof(gateway), "resource": MAIL, "scope": "mail:read"}
    for changes, said in wrong:
        credential = ClientCredentials(**{**right, **changes})
        with pytest.raises(ConfigurationError, match=said) as caught:
            await credential.start()
        assert "wrong-secret" not in str(caught.value)
    for changes, said in wrong:
        if "scope" in changes:
            continue  # which scopes may be had depends on the caller's token
        exchange = TokenExchange(**{**right, **changes})
        with pytest.raises(ConfigurationError, match=said):
            await exchange.start()


async def test_a_server_that_goes_down_and_comes_back(server: RunningServer) -> None:
    """Case 42."""
    agent, gateway = server.add_client("agent"), server.add_client("gateway")
    clock = FakeClock(time.time())
    exchange = TokenExchange(issuer=server.issuer, authentication=proof(gateway), audience=MAIL, clock=clock)
    known, new = [caller_with(await server.token(agent, FILES)) for _ in range(2)]
    first = await exchange.token(known)
    await server.down()
    assert await exchange.token(known) == first
    with pytest.raises(CredentialUnavailableError):
        await exchange.token(new)
    with pytest.raises(IssuerUnavailableError):
        await exchange.start()
    await server.up()
    await exchange.start()
    clock.advance(10)
    assert claims_of(await exchange.token(new))["aud"] == MAIL
    await exchange.aclose()
