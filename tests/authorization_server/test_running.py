"""The authorization server as other tests use it."""

from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import jwt
import pytest
from authlib.oauth2.rfc7636 import create_s256_code_challenge

from tests.authorization_server.running import RunningServer, running

RESOURCE = "https://files.example.com/mcp"
CALLBACK = "http://127.0.0.1:7777/callback"
VERIFIER = "v" * 43


@pytest.fixture
async def issuer() -> AsyncIterator[RunningServer]:
    async with running(resources=[RESOURCE]) as server:
        yield server


async def test_a_person_consents_without_a_browser(issuer: RunningServer) -> None:
    app = issuer.add_client("app", public=True, redirect_uris=[CALLBACK])
    asked = {
        "response_type": "code",
        "client_id": app.client_id,
        "redirect_uri": CALLBACK,
        "scope": "mcp:use files:read",
        "state": "xyz",
        "code_challenge": create_s256_code_challenge(VERIFIER),
        "code_challenge_method": "S256",
        "resource": RESOURCE,
    }
    url = f"{issuer.issuer}/authorize?{urlencode(asked)}"
    answer = parse_qs(urlsplit(await issuer.approve(url, user="bob", scopes=["mcp:use"])).query)
    assert (answer["state"], answer["iss"]) == (["xyz"], [issuer.issuer])
    fields = {"grant_type": "authorization_code", "code": answer["code"][0], "code_verifier": VERIFIER}
    granted = await issuer.post("/token", {**fields, "client_id": "app", "redirect_uri": CALLBACK})
    assert granted.json()["scope"] == "mcp:use"
    claims = jwt.decode(granted.json()["access_token"], options={"verify_signature": False})
    assert (claims["sub"], claims["aud"], claims["client_id"]) == ("bob", RESOURCE, "app")
    answer = parse_qs(urlsplit(await issuer.approve(url, deny=True)).query)
    assert (answer["error"], answer["state"], answer["iss"]) == (["access_denied"], ["xyz"], [issuer.issuer])


async def test_it_issues_in_either_form_and_revokes(issuer: RunningServer) -> None:
    agent, gateway = issuer.add_client(scopes=["mcp:use"]), issuer.add_client(key=True)
    assert (await issuer.token(agent, RESOURCE)).count(".") == 2
    issuer.form = "opaque"
    token = await issuer.token(agent, RESOURCE, "mcp:use")
    assert "." not in token
    told = (await issuer.post("/introspect", {"token": token, **gateway.proof(issuer.issuer)})).json()
    assert (told["active"], told["client_id"], told["scope"], told["aud"]) == (
        True,
        agent.client_id,
        "mcp:use",
        RESOURCE,
    )
    issuer.revoke(token)
    told = (await issuer.post("/introspect", {"token": token, **gateway.proof(issuer.issuer)})).json()
    assert told == {"active": False}
    assert issuer.counts == {"/token": 2, "/introspect": 2}


async def test_it_goes_down_and_comes_back_with_all_it_knew(issuer: RunningServer) -> None:
    agent = issuer.add_client()
    await issuer.token(agent, RESOURCE)
    await issuer.down()
    with pytest.raises(httpx2.ConnectError):
        await issuer.token(agent, RESOURCE)
    await issuer.up()
    await issuer.token(agent, RESOURCE)


async def test_it_rotates_keys(issuer: RunningServer) -> None:
    agent = issuer.add_client()
    kids = [jwt.get_unverified_header(await issuer.token(agent, RESOURCE))["kid"]]
    issuer.rotate_keys()
    kids.insert(0, jwt.get_unverified_header(await issuer.token(agent, RESOURCE))["kid"])
    async with httpx2.AsyncClient() as http:
        published = (await http.get(f"{issuer.issuer}/jwks")).json()["keys"]
        assert [key["kid"] for key in published] == kids
        issuer.remove_old_keys()
        published = (await http.get(f"{issuer.issuer}/jwks")).json()["keys"]
        assert [key["kid"] for key in published] == kids[:1]
