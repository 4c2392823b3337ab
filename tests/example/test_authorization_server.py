"""The example's authorization server: what it grants, what it refuses, and that it stays in development."""

import base64
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from mcp.shared.auth import OAuthMetadata

from examples.fastapi_app.authorization_server import ASSERTION_TYPE, AuthorizationServer, Client

ROOT = Path(__file__).parents[2]
ISSUER = "http://127.0.0.1:9000"
RESOURCE = "http://127.0.0.1:8000/files/mcp"
KEY = ec.generate_private_key(ec.SECP256R1())
CLIENTS = [
    Client("reporter", frozenset({"mcp:use", "files:read"}), secret="a b:c%"),
    Client(
        "archivist",
        frozenset({"mcp:use"}),
        roles=("admin",),
        public_key=jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True),
    ),
]
BASIC = "Basic " + base64.b64encode(b"reporter:a%20b%3Ac%25").decode()


@pytest.fixture
def server() -> AuthorizationServer:
    return AuthorizationServer(ISSUER, clients=CLIENTS, resources=[RESOURCE])


@pytest.fixture
async def http(server: AuthorizationServer) -> Any:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(server.app()), base_url=ISSUER) as client:
        yield client


def assertion(**changes: Any) -> str:
    claims = {
        "iss": "archivist",
        "sub": "archivist",
        "aud": ISSUER,
        "exp": int(time.time()) + 60,
        "jti": uuid.uuid4().hex,
    }
    return jwt.encode(claims | changes, KEY, algorithm="ES256")


def by_key(token: str) -> dict[str, str]:
    return {"client_assertion_type": ASSERTION_TYPE, "client_assertion": token}


async def ask(http: httpx2.AsyncClient, fields: dict[str, str], authorization: str | None = None) -> httpx2.Response:
    headers = {"authorization": authorization} if authorization else {}
    return await http.post(
        "/token", data={"grant_type": "client_credentials", "resource": RESOURCE} | fields, headers=headers
    )


async def claims_of(http: httpx2.AsyncClient, response: httpx2.Response) -> dict[str, Any]:
    """The claims of a granted token, verified with the published keys."""
    token = response.json()["access_token"]
    [key] = (await http.get("/jwks")).json()["keys"]
    header = jwt.get_unverified_header(token)
    assert (header["typ"], header["alg"], header["kid"]) == ("at+jwt", "ES256", key["kid"])
    claims: dict[str, Any] = jwt.decode(token, jwt.PyJWK(key), algorithms=["ES256"], audience=RESOURCE, issuer=ISSUER)
    return claims


@pytest.mark.parametrize("name", ["oauth-authorization-server", "openid-configuration"])
async def test_metadata_is_what_the_official_client_reads(http: httpx2.AsyncClient, name: str) -> None:
    metadata = OAuthMetadata.model_validate_json((await http.get(f"/.well-known/{name}")).content)
    assert str(metadata.issuer) == ISSUER
    assert str(metadata.token_endpoint) == f"{ISSUER}/token"
    assert metadata.grant_types_supported == ["client_credentials"]


@pytest.mark.parametrize(
    ("fields", "authorization"),
    [({}, BASIC), ({"client_id": "reporter", "client_secret": "a b:c%"}, None)],
    ids=["client_secret_basic", "client_secret_post"],
)
async def test_a_secret_buys_a_token_for_the_resource(
    http: httpx2.AsyncClient, fields: dict[str, str], authorization: str | None
) -> None:
    response = await ask(http, {"scope": "files:read notes:read"} | fields, authorization)
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    assert response.json()["scope"] == "files:read", "only what the client may have"
    claims = await claims_of(http, response)
    assert claims["client_id"] == claims["sub"] == "reporter"
    assert claims["scope"] == "files:read"
    assert "roles" not in claims


async def test_a_private_key_buys_a_token_with_its_roles(http: httpx2.AsyncClient) -> None:
    response = await ask(http, by_key(assertion()))
    assert response.status_code == 200
    claims = await claims_of(http, response)
    assert (claims["client_id"], claims["roles"]) == ("archivist", ["admin"])


async def test_an_assertion_is_good_once(http: httpx2.AsyncClient) -> None:
    once = by_key(assertion())
    assert (await ask(http, once)).status_code == 200
    again = await ask(http, once)
    assert (again.status_code, again.json()["error"]) == (401, "invalid_client")


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "http://127.0.0.1:9000/token"},
        {"iss": "reporter"},
        {"sub": "nobody"},
        {"exp": int(time.time()) - 1},
        {"exp": int(time.time()) + 86_400},
    ],
)
async def test_an_assertion_of_another_making_is_refused(http: httpx2.AsyncClient, changes: dict[str, Any]) -> None:
    response = await ask(http, by_key(assertion(**changes)))
    assert (response.status_code, response.json()["error"]) == (401, "invalid_client")


@pytest.mark.parametrize(
    ("fields", "authorization", "status", "error"),
    [
        ({}, "Basic " + base64.b64encode(b"reporter:wrong").decode(), 401, "invalid_client"),
        ({}, "Basic " + base64.b64encode(b"archivist:").decode(), 401, "invalid_client"),
        ({}, "Basic !", 401, "invalid_client"),
        ({}, None, 401, "invalid_client"),
        ({"grant_type": "password"}, BASIC, 400, "unsupported_grant_type"),
        ({"resource": "http://127.0.0.1:8000/notes/mcp"}, BASIC, 400, "invalid_target"),
        ({"scope": "admin"}, BASIC, 400, "invalid_scope"),
    ],
)
async def test_other_requests_are_refused(
    http: httpx2.AsyncClient, fields: dict[str, str], authorization: str | None, status: int, error: str
) -> None:
    response = await ask(http, fields, authorization)
    assert (response.status_code, response.json()["error"]) == (status, error)
    assert response.headers["cache-control"] == "no-store"


def test_it_refuses_to_be_reachable() -> None:
    with pytest.raises(ValueError, match="development"):
        AuthorizationServer("http://192.0.2.1:9000", clients=CLIENTS, resources=[RESOURCE])


def test_the_package_never_imports_it() -> None:
    sources = list((ROOT / "mcp_middleware").rglob("*.py"))
    assert sources
    assert not [path for path in sources if re.search(r"^\s*(from|import) examples", path.read_text(), re.MULTILINE)]


def test_it_says_on_start_that_it_is_for_development(tmp_path: Path) -> None:
    clients = tmp_path / "clients.json"
    clients.write_text("not json")  # so that it ends at once, after the warning
    command = [sys.executable, "-m", "examples.fastapi_app.authorization_server", "--port=1", f"--clients={clients}"]
    ended = subprocess.run([*command, f"--resource={RESOURCE}"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "DEVELOPMENT ONLY" in ended.stderr
