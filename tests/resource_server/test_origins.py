"""The Origin header: only pages that may speak for their user get through (F5)."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.resource_server import OAuthResourceServerMiddleware
from mcp_middleware.resource_server.origins import AllowedOrigins
from tests.core.asgi import Call, EchoServer, rpc

RESOURCE = "https://files.example.com/mcp"


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        (b"https://files.example.com", True),
        (b"HTTPS://Files.Example.com", True),
        (b"https://app.example.com:8443", True),
        (b"https://app.example.com", False),
        (b"http://files.example.com", False),
        (b"https://files.example.com.evil.com", False),
        (b"https://evil.com", False),
        (b"http://localhost:3000", False),
        (b"null", False),
        (b"", False),
        (b"https://[", False),
    ],
)
def test_case_9_which_origins_pass(origin: bytes | None, allowed: bool) -> None:
    assert AllowedOrigins(RESOURCE, ["https://app.example.com:8443"]).allow(origin) == allowed


def test_a_resource_on_loopback_takes_loopback_origins_only() -> None:
    origins = AllowedOrigins("http://127.0.0.1:8000/mcp", [])
    assert origins.allow(b"http://localhost:6274")
    assert origins.allow(b"http://[::1]:6274")
    assert not origins.allow(b"http://localhost.evil.com")
    assert not origins.allow(b"http://evil.com")
    for no_origin in (b"http://127.0.0.1:9303.evil", b"http://127.0.0.1:99999", b"http://a@127.0.0.1", b"http://::1"):
        assert not origins.allow(no_origin)
    assert AllowedOrigins(RESOURCE, ["*"]).allow(b"https://evil.com")


@given(st.binary(max_size=60))
def test_any_header_gets_an_answer(origin: bytes) -> None:
    assert AllowedOrigins("http://127.0.0.1:8000/mcp", []).allow(origin) in (True, False)


@pytest.mark.parametrize("headers", [[("origin", "https://evil.com")], [("origin", "https://files.example.com")] * 2])
async def test_case_9_a_bad_origin_is_403_with_or_without_a_token(headers: list[tuple[str, str]]) -> None:
    server = EchoServer()
    app = OAuthResourceServerMiddleware(server, resource=RESOURCE, issuers=["https://login.example.com"])
    for extra in ([], [("authorization", "Bearer junk")]):
        done = await Call(app, rpc("tools/list"), headers=[*headers, *extra]).run()
        assert done.status == 403
    assert server.scopes == []
    metadata = "/.well-known/oauth-protected-resource/mcp"
    assert (await Call(app, method="GET", path=metadata, headers=headers).run()).status == 200


@pytest.mark.parametrize("value", ["https://a.example.com", [5], ["https://a.example.com/"], ["a.example.com"], [""]])
def test_what_is_no_origin_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="allowed_origins"):
        AllowedOrigins(RESOURCE, value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"issuers": 5}, "issuers is 5"),
        ({"issuers": ["https://i.example.com"], "authorization_servers": 5}, "authorization_servers is 5"),
        ({"issuers": ["https://i.example.com"], "allowed_origins": None}, "allowed_origins is None"),
    ],
)
def test_what_is_no_list_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        OAuthResourceServerMiddleware(EchoServer(), resource=RESOURCE, **options)
