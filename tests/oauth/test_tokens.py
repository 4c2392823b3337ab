"""What is believed of a token endpoint's answer (RFC 6749 sections 5.1 and 5.2)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.oauth.tokens import IssuedToken, TokenRequestError, parse_token_response

ENDPOINT = "https://login.example.com/token"
NOW = 1_000.0


def parse(document: Any, status: int = 200) -> IssuedToken:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_token_response(status, body, endpoint=ENDPOINT, now=NOW)


def good(**changes: Any) -> dict[str, Any]:
    made = {"access_token": "abc", "token_type": "Bearer", "expires_in": 300, "scope": "a b"} | changes
    return {name: value for name, value in made.items() if value is not None}


def test_a_good_answer() -> None:
    token = parse(good(issued_token_type="urn:x", refresh_token="r", other=[1]))
    assert token == IssuedToken("abc", 1_300.0, "a b", "urn:x")
    assert "abc" not in repr(token)


@pytest.mark.parametrize(
    ("value", "lifetime"),
    [
        (None, 300.0),
        (1, 1.0),
        (0.5, 0.5),
        ("3600", 3600.0),
        (10**9, 86_400.0),
        (10**400, 86_400.0),
        ("9" * 15, 86_400.0),
    ],
)
def test_how_long_it_may_be_used(value: Any, lifetime: float) -> None:
    assert parse(good(expires_in=value)).expires_at == NOW + lifetime


@pytest.mark.parametrize(
    "value", [0, -1, True, False, "", "-1", "1.5", "x", "٣", "9" * 16, [], {}, float("nan"), float("inf")]
)
def test_nonsense_of_its_end_is_refused(value: Any) -> None:
    with pytest.raises(TokenRequestError, match="expires_in") as caught:
        parse(good(expires_in=value))
    assert not caught.value.permanent


@pytest.mark.parametrize("value", [None, "", 1, [], "a b", "a\nb", "a\x00", "ü", "x" * 20_000, " abc", "abc\r\nx: y"])
def test_a_token_that_cannot_be_sent_is_refused(value: Any) -> None:
    with pytest.raises(TokenRequestError, match="without an access_token") as caught:
        parse(good(access_token=value))
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize("value", [None, "", "mac", "DPoP", "N_A", 1, ["Bearer"], "bearer "])
def test_another_type_of_token_is_refused(value: Any) -> None:
    with pytest.raises(TokenRequestError, match="token_type"):
        parse(good(token_type=value))
    assert parse(good(token_type="BEARER")).value == "abc"


@pytest.mark.parametrize("status", [201, 204, 400, 401, 500])
def test_only_a_200_has_a_token(status: int) -> None:
    with pytest.raises(TokenRequestError) as caught:
        parse(good(), status)
    assert caught.value.status == status
    assert "abc" not in str(caught.value)
    assert not caught.value.permanent


def test_what_is_no_answer_is_refused() -> None:
    for body in (b"", b"[]", b"null", b"<html>", b"\xff", b"[" * 100_000, b'{"access_token": '):
        for status in (200, 400):
            with pytest.raises(TokenRequestError):
                parse(body, status)


@pytest.mark.parametrize(
    ("status", "error", "permanent"),
    [
        (400, "invalid_grant", True),
        (401, "invalid_client", True),
        (400, "invalid_target", True),
        (403, "access_denied", True),
        (400, "temporarily_unavailable", False),
        (503, "temporarily_unavailable", False),
        (500, "invalid_client", False),
        (429, "slow_down", False),
        (400, None, False),
        (404, None, False),
    ],
)
def test_a_refusal_says_what_the_server_said(status: int, error: str | None, permanent: bool) -> None:
    body = {} if error is None else {"error": error, "error_description": "because"}
    with pytest.raises(TokenRequestError) as caught:
        parse(body, status)
    refusal = caught.value
    assert (refusal.status, refusal.error, refusal.permanent) == (status, error, permanent)
    assert refusal.description == (None if error is None else "because")
    assert str(refusal) == f"{ENDPOINT} answered {status}" + ("" if error is None else f", {error}: because")


@pytest.mark.parametrize("value", ["a\nb", "\x1b[31m", "x" * 201, 1, None, [], "ü", '"', "\\"])
def test_only_what_may_stand_there_is_repeated(value: Any) -> None:
    """Case 34; RFC 6749 section 5.2."""
    with pytest.raises(TokenRequestError) as caught:
        parse({"error": "invalid_grant", "error_description": value}, 400)
    assert caught.value.description is None
    assert str(caught.value).isprintable()
    with pytest.raises(TokenRequestError) as caught:
        parse({"error": value}, 400)
    assert caught.value.error is None
    assert not caught.value.permanent


def test_what_is_secret_of_the_request_is_not_repeated() -> None:
    """Case 34. Some servers say which token it is that they do not know."""
    body = json.dumps({"error": "invalid_grant", "error_description": "unknown token s3cret"}).encode()
    for secret, told in [(["other", "s3cret"], "invalid_grant"), (["other"], "invalid_grant: unknown token s3cret")]:
        with pytest.raises(TokenRequestError) as caught:
            parse_token_response(400, body, endpoint=ENDPOINT, now=NOW, secret=secret)
        assert str(caught.value) == f"{ENDPOINT} answered 400, {told}"
        assert caught.value.permanent


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = ["access_token", "token_type", "expires_in", "scope", "issued_token_type", "error", "error_description"]


@given(
    st.binary(max_size=100)
    | st.dictionaries(st.sampled_from(NAMES), JSON).map(lambda made: json.dumps(good() | made).encode()),
    st.sampled_from([200, 400, 401, 500]),
)
def test_no_answer_breaks_the_parser(body: bytes, status: int) -> None:
    try:
        token = parse(body, status)
    except TokenRequestError as error:
        assert str(error).isprintable()  # noqa: PT017 - it need not be raised
        return
    assert status == 200
    assert NOW < token.expires_at <= NOW + 86_400
    assert token.value.isascii()
    assert token.value.isprintable()
