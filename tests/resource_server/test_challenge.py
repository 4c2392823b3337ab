import re
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.client.auth.utils import extract_field_from_www_auth

from mcp_middleware.resource_server.challenge import (
    MAX_TOKEN_BYTES,
    MalformedAuthorizationError,
    bearer_token,
    challenge,
)

URL = "https://files.example.com/.well-known/oauth-protected-resource/mcp"


@pytest.mark.parametrize("value", [b"Bearer abc", b"bearer abc", b"BEARER   abc", b"Bearer abc "])
def test_the_token_follows_the_scheme(value: bytes) -> None:
    assert bearer_token(value) == "abc"


@pytest.mark.parametrize("value", [None, b"", b"Basic YTpi", b"DPoP abc", b"abc", b"Bearerabc", b"Token abc"])
def test_another_scheme_is_no_bearer_credential(value: bytes | None) -> None:
    """B8."""
    assert bearer_token(value) is None


@pytest.mark.parametrize(
    "value", [b"Bearer", b"Bearer ", b"Bearer    ", b"Bearer a b", b"Bearer a, Bearer b", b"Bearer a,b"]
)
def test_case_2_a_malformed_credential_is_told_apart(value: bytes) -> None:
    """B8."""
    with pytest.raises(MalformedAuthorizationError):
        bearer_token(value)


def test_case_2_two_headers_are_malformed_whatever_they_hold() -> None:
    with pytest.raises(MalformedAuthorizationError):
        bearer_token(b"Bearer abc", repeated=True)


@pytest.mark.parametrize("token", [b"a\x00b", b"a\tb", b'a"b', "aé".encode(), b"\xff", b"a" * (MAX_TOKEN_BYTES + 1)])
def test_case_6_a_token_that_cannot_be_one_is_worth_nothing(token: bytes) -> None:
    assert bearer_token(b"Bearer " + token) == ""


@given(st.binary(max_size=200), st.booleans())
def test_any_header_gives_a_token_or_none_or_its_own_error(value: bytes, bearer: bool) -> None:
    try:
        token = bearer_token(b"Bearer " + value if bearer else value)
    except MalformedAuthorizationError:
        return
    assert token is None or re.fullmatch(r"[A-Za-z0-9\-._~+/=]*", token)


def test_case_1_no_error_where_no_credential_came() -> None:
    """B8, B9."""
    name, value = challenge(URL, ["mcp:use", "files:read"])
    assert name == b"www-authenticate"
    assert value == f'Bearer scope="mcp:use files:read", resource_metadata="{URL}"'.encode()


@pytest.mark.parametrize("error", ["invalid_request", "invalid_token", "insufficient_scope"])
def test_the_official_client_reads_every_parameter(error: str) -> None:
    """B12: it takes the first match of ``name=value`` in the whole header."""
    _, value = challenge(URL, ["mcp:use"], error)  # type: ignore[arg-type]
    response = httpx2.Response(401, headers={"www-authenticate": value.decode()})
    assert extract_field_from_www_auth(response, "error") == error
    assert extract_field_from_www_auth(response, "scope") == "mcp:use"
    assert extract_field_from_www_auth(response, "resource_metadata") == URL
    description = extract_field_from_www_auth(response, "error_description") or ""
    assert description
    assert "=" not in description


SCOPES = st.lists(st.text([*map(chr, {*range(0x21, 0x7F)} - set(b'"=\\'))], min_size=1, max_size=20), max_size=5)


@given(SCOPES, st.sampled_from([None, "invalid_request", "invalid_token", "insufficient_scope"]))
def test_any_scopes_reach_the_official_client_as_they_are(scopes: list[str], error: Any) -> None:
    """B12: one line, whatever is in it, and every parameter found."""
    _, value = challenge(URL, scopes, error)
    response = httpx2.Response(401, headers={"www-authenticate": value.decode("ascii")})
    assert extract_field_from_www_auth(response, "scope") == (" ".join(scopes) or None)
    assert extract_field_from_www_auth(response, "resource_metadata") == URL
    assert extract_field_from_www_auth(response, "error") == error


def test_no_scope_parameter_where_none_is_needed() -> None:
    assert b"scope=" not in challenge(URL)[1]
