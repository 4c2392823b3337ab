"""What the server says of itself, and where it lets itself be asked."""

import re
from pathlib import Path
from typing import Any

import pytest
from authlib.oauth2 import rfc8414, rfc9207
from joserfc.jwk import KeySet
from mcp.shared.auth import OAuthMetadata

from examples.authorization_server import AuthorizationServer
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.http import OAuthHTTPClient
from mcp_middleware.oauth.metadata import discover
from tests.authorization_server.flows import FILES
from tests.authorization_server.running import RunningServer

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["oauth-authorization-server", "openid-configuration"])
async def test_metadata_is_what_others_read(issuer: RunningServer, name: str) -> None:
    response = await issuer.http.get(f"/.well-known/{name}")
    document = rfc8414.AuthorizationServerMetadata(response.json())
    document.validate(metadata_classes=[rfc9207.AuthorizationServerMetadata])
    metadata = OAuthMetadata.model_validate_json(response.content)
    assert str(metadata.issuer) == issuer.issuer
    assert metadata.code_challenge_methods_supported == ["S256"]
    assert metadata.client_id_metadata_document_supported is True
    assert metadata.authorization_response_iss_parameter_supported is True


async def test_the_package_discovers_it(issuer: RunningServer) -> None:
    found = await discover(OAuthHTTPClient(), issuer.issuer)
    assert found.introspection_endpoint == f"{issuer.issuer}/introspect"
    assert found.document["revocation_endpoint"] == f"{issuer.issuer}/revoke"
    assert "private_key_jwt" in found.token_endpoint_auth_methods


async def test_every_endpoint_is_there(issuer: RunningServer) -> None:
    document = issuer.server.metadata()
    for name in ("token", "introspection", "revocation", "registration"):
        path = document[f"{name}_endpoint"].removeprefix(issuer.issuer)
        assert (await issuer.http.post(path)).status_code == 400
        assert (await issuer.http.get(path)).status_code == 405
    assert (await issuer.http.get("/authorize")).status_code == 400
    assert (await issuer.http.get("/jwks")).json() == issuer.server.keys.public()
    assert "d" not in issuer.server.keys.public()["keys"][0]
    assert "scopes_supported" not in document, "any scope will do"


async def test_clients_in_browsers_may_ask(issuer: RunningServer) -> None:
    page = {"origin": "http://localhost:6274"}
    for path in ("/.well-known/oauth-authorization-server", "/jwks"):
        assert (await issuer.http.get(path, headers=page)).headers["access-control-allow-origin"] == "*"
    asked = page | {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    for path in ("/token", "/register", "/revoke"):
        assert (await issuer.http.options(path, headers=asked)).headers["access-control-allow-origin"] == "*"
        assert (await issuer.http.options(path)).status_code == 400


async def test_every_answer_says_that_it_is_for_development(issuer: RunningServer) -> None:
    for path in ("/", "/style.css", "/jwks", "/token", "/nothing"):
        assert "never deploy" in (await issuer.http.get(path)).headers["development-only"]


async def test_another_name_for_it_is_refused(issuer: RunningServer) -> None:
    """A page whose name was made to mean this machine (DNS rebinding) gets nothing."""
    for path in ("/", "/authorize", "/jwks"):
        assert (await issuer.http.get(path, headers={"host": "evil.example.com"})).status_code == 400


@pytest.mark.parametrize(
    ("issuer_url", "changes", "match"),
    [
        ("http://192.0.2.1:9000", {}, "loopback"),
        ("https://login.example.com", {}, "development"),
        ("http://127.0.0.1:9000/path", {}, "root"),
        ("http://127.0.0.1:9000/", {}, "root"),
        ("127.0.0.1:9000", {}, "issuer"),
        ("http://127.0.0.1:9000", {"resources": []}, "resources"),
        ("http://127.0.0.1:9000", {"resources": ["files"]}, "resource is 'files'"),
        ("http://127.0.0.1:9000", {"resources": ["https://files.example.com/mcp#a"]}, "resource"),
    ],
)
def test_wrong_options_are_refused(issuer_url: str, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        AuthorizationServer(issuer_url, **{"resources": [FILES], **changes})


def test_it_says_that_it_redeems_identity_assertions() -> None:
    server = AuthorizationServer("http://127.0.0.1:9000", resources=[FILES], identity_providers={"x": KeySet([])})
    assert "authorization_grant_profiles_supported" in server.metadata()


def test_the_package_never_imports_it() -> None:
    sources = list((ROOT / "mcp_middleware").rglob("*.py"))
    assert sources
    assert not [path for path in sources if re.search(r"^\s*(from|import) examples", path.read_text(), re.MULTILINE)]
