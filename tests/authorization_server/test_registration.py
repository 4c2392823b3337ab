"""Clients nobody configured: those that register themselves, and those that a document describes."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from joserfc.jwk import ECKey
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata
from pydantic import AnyUrl
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.authorization_server.flows import (
    CALLBACK,
    FILES,
    authorize_url,
    claims_of,
    code_of,
    error_of,
    good,
    parameters_of,
    redemption,
    tokens_of,
)
from tests.authorization_server.running import Credentials, RunningServer, running
from tests.support import serve

METADATA: dict[str, Any] = {"redirect_uris": [CALLBACK], "grant_types": ["authorization_code", "refresh_token"]}


async def register(issuer: RunningServer, **changes: Any) -> dict[str, Any]:
    """A registration that must succeed."""
    response = await issuer.http.post("/register", json=METADATA | changes)
    assert response.status_code == 201, response.text
    assert response.headers["cache-control"] == "no-store"
    answer: dict[str, Any] = response.json()
    return answer


async def test_the_official_clients_metadata_registers(issuer: RunningServer) -> None:
    metadata = OAuthClientMetadata(redirect_uris=[AnyUrl(CALLBACK)], client_name="SDK", scope="mcp:use")
    sent = metadata.model_dump(mode="json", exclude_none=True)
    response = await issuer.http.post("/register", json=sent)
    assert response.status_code == 201
    known = OAuthClientInformationFull.model_validate_json(response.content)
    assert known.token_endpoint_auth_method == "client_secret_basic", "what RFC 7591 means by saying nothing"
    assert (known.scope, known.client_name) == ("mcp:use", "SDK")


@pytest.mark.parametrize("method", ["none", "client_secret_basic", "client_secret_post", "private_key_jwt"])
async def test_a_registered_client_uses_the_code(issuer: RunningServer, method: str) -> None:
    key = ECKey.generate_key("P-256")
    keys = {"jwks": {"keys": [key.as_dict(private=False)]}} if method == "private_key_jwt" else {}
    answer = await register(issuer, token_endpoint_auth_method=method, client_name="Registered", **keys)
    assert ("client_secret" in answer) == method.startswith("client_secret")
    assert answer["redirect_uris"] == [CALLBACK]
    pem = key.as_pem(private=True).decode() if keys else None
    client = Credentials(answer["client_id"], answer.get("client_secret"), pem)
    code = await code_of(issuer, client)
    form = redemption(client, issuer.issuer, code)
    if method == "client_secret_basic":
        form = {**form, "client_secret": None, "client_id": None}
        answer = good(await issuer.post("/token", form, auth=(client.client_id, client.secret)))
    else:
        answer = good(await issuer.post("/token", form))
    assert claims_of(issuer, answer["access_token"])["client_id"] == client.client_id
    assert "refresh_token" in answer


async def test_a_registered_client_is_nothing_more_than_that(issuer: RunningServer) -> None:
    answer = await register(issuer, token_endpoint_auth_method="client_secret_post")
    client = Credentials(answer["client_id"], answer["client_secret"])
    for grant, more in (
        ("client_credentials", {}),
        ("urn:ietf:params:oauth:grant-type:token-exchange", {"subject_token": "x", "subject_token_type": "x"}),
    ):
        form = {"grant_type": grant, "resource": FILES, **more, **client.proof("")}
        assert error_of(await issuer.post("/token", form)) == "unauthorized_client"
    token = await issuer.token(issuer.add_client(), FILES)
    assert (await issuer.post("/introspect", {"token": token, **client.proof("")})).json() == {"active": False}


async def test_without_the_refresh_grant_there_is_no_refresh_token(issuer: RunningServer) -> None:
    answer = await register(issuer, token_endpoint_auth_method="none", grant_types=["authorization_code"])
    assert "refresh_token" not in await tokens_of(issuer, Credentials(answer["client_id"]))


async def test_a_client_steps_up_beyond_what_it_registered_for(issuer: RunningServer) -> None:
    """H5: both SDKs register with the scopes of the first challenge."""
    answer = await register(issuer, token_endpoint_auth_method="none", scope="mcp:use")
    assert (await tokens_of(issuer, Credentials(answer["client_id"])))["scope"] == "mcp:use files:read"


async def test_or_it_does_not_where_the_registered_scope_binds() -> None:
    """H5: ... which other servers take for a ceiling."""
    async with running(resources=[FILES], registered_scope_binds=True) as issuer:
        answer = await register(issuer, token_endpoint_auth_method="none", scope="mcp:use")
        back = await issuer.approve(authorize_url(issuer.issuer, answer["client_id"]))
        assert parameters_of(back)["error"] == "invalid_scope"
        assert "code" in parameters_of(
            await issuer.approve(authorize_url(issuer.issuer, answer["client_id"], scope="mcp:use"))
        )


async def test_wrong_metadata_is_refused(issuer: RunningServer, subtests: pytest.Subtests) -> None:
    secret_key = ECKey.generate_key("P-256").as_dict(private=True)
    changes: dict[str, Any]
    for changes in (
        {"redirect_uris": []},
        {"redirect_uris": None},
        {"redirect_uris": CALLBACK},
        {"redirect_uris": [5]},
        {"redirect_uris": ["http://example.com/"]},
        {"redirect_uris": ["javascript:alert(1)"]},
        {"redirect_uris": ["javascript://example.com/%0aalert(1)"]},
        {"redirect_uris": ["data:text/html,x"]},
        {"redirect_uris": [CALLBACK + "#fragment"]},
        {"redirect_uris": ["https://a@example.com/"]},
        {"redirect_uris": ["https:///callback"]},
        {"redirect_uris": ["https://[/"]},
        {"redirect_uris": ["/callback"]},
        {"redirect_uris": ["https://example.com/ü"]},
        {"redirect_uris": [CALLBACK] * 21},
        {"redirect_uris": ["https://example.com/" + "x" * 2000]},
        {"client_name": 5},
        {"client_name": "\u202eedoC"},
        {"client_name": "x" * 2001},
        {"client_name": ["x"]},
        {"grant_types": ["client_credentials"]},
        {"grant_types": "authorization_code"},
        {"response_types": ["token"]},
        {"token_endpoint_auth_method": "tls_client_auth"},
        {"token_endpoint_auth_method": ["none"]},
        {"token_endpoint_auth_method": "private_key_jwt"},
        {"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "https://app.example.com/keys"},
        {"jwks": "x"},
        {"jwks": {"keys": [5]}},
        {"jwks": {"keys": [secret_key]}},
        {"jwks": {"keys": [{"kty": "oct", "k": "AAAA"}]}},
        {"client_uri": "nowhere"},
        {"logo_uri": 5},
        {"contacts": "me"},
        {"scope": 5},
    ):
        with subtests.test(changes=changes):
            response = await issuer.http.post("/register", json=METADATA | changes)
            assert error_of(response) in ("invalid_client_metadata", "invalid_redirect_uri")
    for content in (b"", b"[]", b"{", b"\xff", b"[" * 50_000, b'{"a": "' + b"x" * 70_000 + b'"}'):
        with subtests.test(content=content[:20]):
            response = await issuer.http.post(
                "/register", content=content, headers={"content-type": "application/json"}
            )
            assert error_of(response) in ("invalid_client_metadata", "invalid_request")


async def test_applications_have_schemes_of_their_own(issuer: RunningServer) -> None:
    for uri in ("cursor://anysphere.cursor/callback", "com.example.app:/callback"):
        answer = await register(issuer, token_endpoint_auth_method="none", redirect_uris=[uri])
        back = await issuer.approve(authorize_url(issuer.issuer, answer["client_id"], redirect_uri=uri))
        assert back.startswith(uri)
        assert "code" in parameters_of(back)


async def test_the_oldest_registration_is_forgotten(issuer: RunningServer) -> None:
    first = await register(issuer, token_endpoint_auth_method="none")
    client = issuer.server.query_client(first["client_id"])
    assert client is not None
    for number in range(1000):
        issuer.server.register(type(client)(client_id=f"client {number}"))
    assert issuer.server.query_client(first["client_id"]) is None
    assert issuer.server.query_client("client 999") is not None


@dataclass
class Page:
    """What is at ``url``. In a document ``{URL}`` stands for its own address, ``{SITE}`` for the site's."""

    url: str = ""
    document: Any = None
    status: int = 200


@asynccontextmanager
async def site(document: Any = None) -> AsyncIterator[Page]:
    """A web site with one document, and the keys of a client."""
    page = Page(document=document)

    async def answer(request: Request) -> Response:
        body = json.dumps(page.document).replace("{URL}", page.url).replace("{SITE}", page.url.rpartition("/")[0])
        headers = {"location": f"{page.url}/other"} if page.status == 302 else {}
        return Response(body, page.status, headers, "application/json")

    async def keys(_: Request) -> Response:
        return Response(json.dumps({"keys": [SITE_KEY.as_dict(private=False)]}))

    async with serve(Starlette(routes=[Route("/client.json", answer), Route("/keys.json", keys)])) as origin:
        page.url = f"{origin}/client.json"
        yield page


SITE_KEY = ECKey.generate_key("P-256")
NOT_SERVING = r"(?s)^400 .*The document of the client does not serve"
DOCUMENT: dict[str, Any] = {"client_id": "{URL}", "client_name": "Documented", "redirect_uris": [CALLBACK]}


async def test_a_document_describes_a_client(issuer: RunningServer) -> None:
    async with site(DOCUMENT) as page:
        answer = await tokens_of(issuer, Credentials(page.url))
        assert claims_of(issuer, answer["access_token"])["client_id"] == page.url


@pytest.mark.parametrize("place", ["jwks", "jwks_uri"])
async def test_a_documented_client_may_have_keys(issuer: RunningServer, place: str) -> None:
    keys = {"keys": [SITE_KEY.as_dict(private=False)]} if place == "jwks" else "{SITE}/keys.json"
    async with site({**DOCUMENT, "token_endpoint_auth_method": "private_key_jwt", place: keys}) as page:
        client = Credentials(page.url, private_key=SITE_KEY.as_pem(private=True).decode())
        code = await code_of(issuer, client)
        unproved = redemption(Credentials(page.url), issuer.issuer, code)
        assert error_of(await issuer.post("/token", unproved)) == "invalid_client"
        good(await issuer.post("/token", redemption(client, issuer.issuer, code)))


async def test_a_document_that_does_not_serve(issuer: RunningServer, subtests: pytest.Subtests) -> None:
    documents: list[Any] = [
        {**DOCUMENT, "client_id": "{URL}/"},
        {**DOCUMENT, "client_id": None},
        {**DOCUMENT, "client_secret": "x"},
        {**DOCUMENT, "token_endpoint_auth_method": "client_secret_post"},
        {**DOCUMENT, "token_endpoint_auth_method": "private_key_jwt"},
        {**DOCUMENT, "token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "{SITE}/nothing"},
        {**DOCUMENT, "token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "{URL}"},
        {**DOCUMENT, "redirect_uris": ["javascript:alert(1)"]},
        {**DOCUMENT, "redirect_uris": None},
        {**DOCUMENT, "client_name": 5},
        [],
        "text",
    ]
    async with site() as page:
        for page.document in documents:
            with subtests.test(document=page.document), pytest.raises(RuntimeError, match=NOT_SERVING):
                await issuer.approve(authorize_url(issuer.issuer, page.url))
        page.document = DOCUMENT
        for page.status in (404, 302, 500):
            with subtests.test(status=page.status), pytest.raises(RuntimeError, match=NOT_SERVING):
                await issuer.approve(authorize_url(issuer.issuer, page.url))
        page.status = 200
        assert "code" in parameters_of(await issuer.approve(authorize_url(issuer.issuer, page.url)))
    for url in (
        "https://10.0.0.1/client.json",
        "https://169.254.169.254/latest",
        "http://example.com/client.json",
        "https://127.0.0.1/",
        "http://127.0.0.1:1/a/../client.json",
        "http://127.0.0.1:1/client.json#a",
        "http://127.0.0.1:1/client.json",
        "http://[",
        "https://",
    ):
        with subtests.test(url=url), pytest.raises(RuntimeError, match=NOT_SERVING):
            await issuer.approve(authorize_url(issuer.issuer, url))
