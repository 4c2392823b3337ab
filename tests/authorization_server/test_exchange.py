"""Tokens for other tokens: exchange, and identity assertions of an enterprise's identity provider."""

import time
from typing import Any

import pytest
from authlib.oauth2.drafts.id_jag import IDJAGGrant
from joserfc.jwk import ECKey, KeySet

from tests.authorization_server.flows import (
    ACCESS_TOKEN,
    CALLBACK,
    EXCHANGE,
    FILES,
    MAIL,
    claims_of,
    error_of,
    good,
    introspect,
    tokens_of,
)
from tests.authorization_server.running import Credentials, RunningServer, running

IDP = "https://idp.example.com"
IDP_KEY = ECKey.generate_key("P-256", {"kid": "1"})
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


def exchange(client: Credentials, token: str | None, **changes: str | None) -> dict[str, str | None]:
    fields = {"grant_type": EXCHANGE, "subject_token": token, "subject_token_type": ACCESS_TOKEN, "audience": MAIL}
    return {**fields, **client.proof(""), **changes}


async def test_a_server_acts_for_its_caller(issuer: RunningServer) -> None:
    app = issuer.add_client("app", public=True, redirect_uris=[CALLBACK])
    gateway = issuer.add_client("gateway", scopes=["mail:read", "mcp:use"], serves=[FILES])
    token = (await tokens_of(issuer, app))["access_token"]
    answer = good(await issuer.post("/token", exchange(gateway, token, scope="mail:read mail:send")))
    assert (answer["issued_token_type"], answer["token_type"]) == (ACCESS_TOKEN, "Bearer")
    assert "refresh_token" not in answer
    claims = claims_of(issuer, answer["access_token"], resource=MAIL)
    assert (claims["sub"], claims["client_id"], claims["scope"]) == ("alice", "gateway", "mail:read")
    assert claims["act"] == {"sub": "gateway"}
    assert claims["exp"] <= claims_of(issuer, token)["exp"], "not longer than what it stands on"
    answer = good(await issuer.post("/token", exchange(gateway, token)))
    assert answer["scope"] == "mcp:use", "what the token had, as far as the client may have it"


async def test_actors_stand_in_a_row_which_ends(issuer: RunningServer) -> None:
    agent, gateway = issuer.add_client("agent"), issuer.add_client("gateway")
    mail = issuer.add_client("mail", serves=[MAIL])
    token = await issuer.token(agent, FILES)
    token = good(await issuer.post("/token", exchange(gateway, token)))["access_token"]
    token = good(await issuer.post("/token", exchange(mail, token, audience=FILES)))["access_token"]
    assert claims_of(issuer, token)["act"] == {"sub": "mail", "act": {"sub": "gateway"}}
    while (answer := await issuer.post("/token", exchange(gateway, token))).status_code == 200:
        token = answer.json()["access_token"]
    assert error_of(answer) == "invalid_request"
    assert str(claims_of(issuer, token, resource=MAIL)["act"]).count("sub") == 8


async def test_exchanged_tokens_end_with_the_consent_they_stand_on(issuer: RunningServer) -> None:
    app = issuer.add_client("app", public=True, redirect_uris=[CALLBACK])
    gateway = issuer.add_client("gateway")
    first = await tokens_of(issuer, app)
    token = good(await issuer.post("/token", exchange(gateway, first["access_token"])))["access_token"]
    assert (await introspect(issuer, gateway, token))["active"] is True
    issuer.revoke(first["refresh_token"])
    assert await introspect(issuer, gateway, token) == {"active": False}
    assert error_of(await issuer.post("/token", exchange(gateway, first["access_token"]))) == "invalid_request"


async def test_exchanged_tokens_end_with_the_token_they_were_exchanged_for(issuer: RunningServer) -> None:
    """A machine's token stands on no consent that could be revoked, and neither does what is exchanged in a row."""
    agent, gateway, mail = issuer.add_client("agent"), issuer.add_client("gateway"), issuer.add_client("mail")
    first, other = await issuer.token(agent, FILES), await issuer.token(agent, FILES)
    second = good(await issuer.post("/token", exchange(gateway, first)))["access_token"]
    third = good(await issuer.post("/token", exchange(mail, second, audience=FILES)))["access_token"]
    issuer.revoke(second)
    assert await introspect(issuer, gateway, third) == {"active": False}
    assert (await introspect(issuer, gateway, first))["active"] is True
    issuer.revoke(first)
    assert await introspect(issuer, gateway, second) == {"active": False}
    assert (await introspect(issuer, gateway, other))["active"] is True


async def test_what_is_not_exchanged(issuer: RunningServer, subtests: pytest.Subtests) -> None:
    app = issuer.add_client("app", redirect_uris=[CALLBACK], serves=[])
    gateway, mail = issuer.add_client("gateway", scopes=["mcp:use"]), issuer.add_client("mail", serves=[MAIL])
    public = issuer.add_client("public", public=True, redirect_uris=[CALLBACK])
    tokens = await tokens_of(issuer, app)
    token = tokens["access_token"]
    for name, form, error in (
        ("another server's", exchange(mail, token), "invalid_request"),
        ("its own, for more than was consented to", exchange(app, token), "invalid_request"),
        ("by anybody", exchange(public, token), "invalid_client"),
        ("a refresh token", exchange(gateway, tokens["refresh_token"]), "invalid_request"),
        ("nonsense", exchange(gateway, "nonsense"), "invalid_request"),
        ("nothing", exchange(gateway, None), "invalid_request"),
        ("of no type", exchange(gateway, token, subject_token_type=None), "invalid_request"),
        ("of another type", exchange(gateway, token, subject_token_type="urn:x"), "invalid_request"),
        ("to another type", exchange(gateway, token, requested_token_type="urn:x"), "invalid_request"),
        ("for another actor", exchange(gateway, token, actor_token=token), "invalid_request"),
        ("to nowhere", exchange(gateway, token, audience=None), "invalid_target"),
        ("to elsewhere", exchange(gateway, token, audience="https://elsewhere.example.com"), "invalid_target"),
        ("to two places", exchange(gateway, token, resource=FILES), "invalid_target"),
        ("with more scope", exchange(gateway, token, scope="mail:send"), "invalid_scope"),
    ):
        with subtests.test(name):
            assert error_of(await issuer.post("/token", form)) == error
    good(await issuer.post("/token", exchange(gateway, token, resource=MAIL)))


def assertion(server: RunningServer, /, key: Any = IDP_KEY, **changes: Any) -> str:
    """An identity assertion of alice for the client ``agent``; a change to None leaves a claim out."""
    now = int(time.time())
    fields: dict[str, Any] = {"issuer": IDP, "audience": server.issuer, "subject": "alice", "client_id": "agent"}
    fields |= {"issued_at": now, "expires_at": now + 60, "claims": {"scope": "mcp:use files:read"}, "alg": "ES256"}
    return str(IDJAGGrant.sign(key, **(fields | changes)))


async def test_an_identity_assertion_is_redeemed_once(subtests: pytest.Subtests) -> None:
    keys = KeySet([IDP_KEY])
    async with running(resources=[FILES, MAIL], identity_providers={IDP: keys}) as issuer:
        agent, other = issuer.add_client("agent", key=True), issuer.add_client("other")

        def redeem(assertion: str, client: Credentials = agent, **changes: str | None) -> dict[str, str | None]:
            fields = {"grant_type": JWT_BEARER, "assertion": assertion, "resource": FILES}
            return {**fields, **client.proof(issuer.issuer), **changes}

        once = assertion(issuer)
        answer = good(await issuer.post("/token", redeem(once, scope="mcp:use")))
        assert "refresh_token" not in answer
        claims = claims_of(issuer, answer["access_token"])
        assert (claims["sub"], claims["client_id"], claims["scope"]) == ("alice", "agent", "mcp:use")
        assert error_of(await issuer.post("/token", redeem(once))) == "invalid_grant"
        answer = good(await issuer.post("/token", redeem(assertion(issuer, subject="carol"))))
        assert claims_of(issuer, answer["access_token"])["sub"] == "carol", "the identity provider knows more people"
        now = int(time.time())
        for changes in (
            {"issuer": "https://evil.example.com"},
            {"issuer": ["a"]},
            {"audience": "https://elsewhere.example.com"},
            {"client_id": "other"},
            {"subject": ["alice"]},
            {"expires_at": now - 100},
            {"expires_at": now + 86_400},
            {"jti": ["1"]},
            {"key": ECKey.generate_key("P-256", {"kid": "1"})},
            {"claims": {"scope": 5}},
        ):
            with subtests.test(changes=changes):
                assert error_of(await issuer.post("/token", redeem(assertion(issuer, **changes)))) == "invalid_grant"
        for name, form, error in (
            ("of another client", redeem(assertion(issuer), other), "invalid_grant"),
            ("with more scope", redeem(assertion(issuer), scope="admin"), "invalid_scope"),
            ("an access token", redeem(answer["access_token"]), "invalid_grant"),
            ("nonsense", redeem("nonsense"), "invalid_grant"),
            ("nothing", redeem(""), "invalid_request"),
            ("for what it is not for", redeem(assertion(issuer, claims={"resource": MAIL})), "invalid_target"),
        ):
            with subtests.test(name):
                assert error_of(await issuer.post("/token", form)) == error
        profile = "urn:ietf:params:oauth:grant-profile:id-jag"
        assert issuer.server.metadata()["authorization_grant_profiles_supported"] == [profile]
