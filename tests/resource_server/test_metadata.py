import json
from typing import Any

import httpx2
import pytest
from mcp.shared.auth import ProtectedResourceMetadata
from starlette.applications import Starlette

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.resource_server import ProtectedResource, metadata_routes
from mcp_middleware.resource_server.metadata import metadata_answer, server_paths

ISSUER = "https://login.example.com"
ROOT = "/.well-known/oauth-protected-resource"


def described(resource: str, **options: Any) -> ProtectedResource:
    return ProtectedResource(resource, authorization_servers=[ISSUER], **options)


@pytest.mark.parametrize(
    ("resource", "url"),
    [
        ("https://files.example.com/mcp", f"https://files.example.com{ROOT}/mcp"),
        ("https://files.example.com", f"https://files.example.com{ROOT}"),
        ("https://files.example.com/", f"https://files.example.com{ROOT}"),
        ("https://files.example.com/a/b/", f"https://files.example.com{ROOT}/a/b/"),
        ("https://files.example.com:8443/mcp", f"https://files.example.com:8443{ROOT}/mcp"),
        ("http://127.0.0.1:8000/mcp", f"http://127.0.0.1:8000{ROOT}/mcp"),
        ("http://[::1]:8000/mcp", f"http://[::1]:8000{ROOT}/mcp"),
    ],
)
def test_the_path_goes_after_the_well_known_part(resource: str, url: str) -> None:
    """B2, RFC 9728 section 3.1."""
    assert described(resource).metadata_url == url


@pytest.mark.parametrize(
    "resource", ["https://files.example.com/mcp", "https://files.example.com", "https://A.example/"]
)
def test_case_9_the_resource_is_repeated_verbatim(resource: str) -> None:
    """B3, B1."""
    document = json.loads(described(resource, scopes=["mcp:use"]).body)
    assert document == {
        "resource": resource,
        "authorization_servers": [ISSUER],
        "bearer_methods_supported": ["header"],
        "scopes_supported": ["mcp:use"],
    }
    assert ProtectedResourceMetadata.model_validate(document).scopes_supported == ["mcp:use"]


def test_offline_access_is_never_listed() -> None:
    """B11."""
    with pytest.raises(ConfigurationError, match=r"scopes has 'offline_access', .*; leave it out"):
        described("https://a.example/mcp", scopes=["mcp:use", "offline_access"])


def test_a_scope_is_listed_once() -> None:
    assert described("https://a.example/mcp", scopes=["mcp:use", "a", "mcp:use"]).scopes == ("mcp:use", "a")


@pytest.mark.parametrize(
    "resource",
    [
        "",
        "files.example.com/mcp",
        "/mcp",
        "http://files.example.com/mcp",
        "ftp://files.example.com",
        "https://files.example.com/mcp#x",
        "https://files.example.com/mcp?a=1",
        "https://user@files.example.com/mcp",
        "https://files.example.com:port/mcp",
        'https://files.example.com/"',
        "https://files.example.com/ä",
        "https://files.example.com/\n",
        "https:///mcp",
        None,
        3,
    ],
)
def test_a_wrong_resource_is_refused(resource: Any) -> None:
    with pytest.raises(ConfigurationError, match="resource is"):
        described(resource)


@pytest.mark.parametrize("servers", [[], "https://login.example.com", ["http://login.example.com"], ["login"], [None]])
def test_a_wrong_authorization_server_is_refused(servers: Any) -> None:
    """B1."""
    with pytest.raises(ConfigurationError, match="authorization_servers"):
        ProtectedResource("https://a.example/mcp", authorization_servers=servers)


@pytest.mark.parametrize("scopes", ["mcp:use", ["a b"], [""], ['a"b'], ["a\\b"], [1], ["ä"], None])
def test_a_wrong_scope_is_refused(scopes: Any) -> None:
    with pytest.raises(ConfigurationError, match="scopes"):
        described("https://a.example/mcp", scopes=scopes)


@pytest.mark.parametrize(
    ("path", "root_path", "expected"),
    [
        ("/mcp", "", ("/mcp", "/mcp")),
        ("/files/mcp", "/files", ("/files/mcp", "/mcp")),
        ("/mcp", "/files", ("/files/mcp", "/mcp")),
        ("/filesystem", "/files", ("/files/filesystem", "/filesystem")),
        ("/files/mcp", "/files/", ("/files/mcp", "/mcp")),
    ],
)
def test_a_path_is_seen_from_the_host_and_from_the_mount(path: str, root_path: str, expected: tuple[str, str]) -> None:
    assert server_paths({"path": path, "root_path": root_path}) == expected


def test_only_reading_is_answered() -> None:
    assert metadata_answer(b"{}", "GET").status == metadata_answer(b"{}", "HEAD").status == 200
    assert metadata_answer(b"{}", "OPTIONS").status == 204
    assert metadata_answer(b"{}", "POST").status == 405


async def test_an_application_serves_the_documents_of_all_it_mounts() -> None:
    files, notes = described("https://a.example/files/mcp"), described("https://a.example/notes/mcp")
    transport = httpx2.ASGITransport(Starlette(routes=metadata_routes(files, notes)))
    async with httpx2.AsyncClient(transport=transport, base_url="https://evil.example") as http:
        for resource in (files, notes):
            answer = await http.get(httpx2.URL(resource.metadata_url).path)
            assert answer.json()["resource"] == resource.resource
            assert answer.headers["access-control-allow-origin"] == "*"
            assert (await http.options(httpx2.URL(resource.metadata_url).path)).status_code == 204
        assert (await http.get(ROOT)).status_code == 404  # it could name only one of them


async def test_a_single_resource_has_the_root_form_too() -> None:
    transport = httpx2.ASGITransport(Starlette(routes=metadata_routes(described("https://a.example/files/mcp"))))
    async with httpx2.AsyncClient(transport=transport, base_url="https://a.example") as http:
        assert (await http.get(ROOT)).json() == (await http.get(f"{ROOT}/files/mcp")).json()


def test_two_documents_in_one_place_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="must differ in their path"):
        metadata_routes(described("https://a.example/mcp"), described("https://b.example/mcp"))
