import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.resource_server.keys import ALGORITHMS, parse_jwks
from tests.resource_server.issuer import SigningKey, b64, signing_key


def jwks(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


@pytest.mark.parametrize(
    ("algorithm", "named", "allowed"),
    [
        ("RS256", "RS256", {"RS256"}),
        ("RS256", "PS384", {"PS384"}),
        ("RS256", None, {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
        ("ES256", None, {"ES256"}),
        ("ES384", "ES384", {"ES384"}),
        ("ES512", None, {"ES512"}),
        ("EdDSA", None, {"EdDSA"}),
        ("EdDSA", "Ed25519", {"EdDSA"}),
    ],
)
def test_case_3_a_key_is_pinned_to_its_algorithms(algorithm: str, named: str | None, allowed: set[str]) -> None:
    """B6, RFC 8725 section 3.1."""
    keys = parse_jwks(jwks(signing_key(algorithm).jwk(alg=named)))
    assert keys.keys[0].algorithms == allowed
    assert {name for name in ALGORITHMS if keys.find("k1", name)} == allowed
    assert keys.find("other", algorithm) == ()
    assert bool(keys.find(None, algorithm)) == (algorithm in allowed)


@pytest.mark.parametrize(
    "changes",
    [
        {"use": "enc"},
        {"key_ops": ["sign"]},
        {"key_ops": "verify"},
        {"alg": "HS256"},
        {"alg": "none"},
        {"alg": "ES384"},
        {"alg": "P-256"},
        {"alg": "Ed25519"},
        {"alg": 1},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "OKP"},
        {"kty": ["EC"]},
        {"crv": "secp256k1"},
        {"crv": "P-384"},
        {"x": "AAAA"},
        {"x": 1},
        {"y": None},
        {"d": "AAAA"},
    ],
)
def test_case_3_a_key_that_is_none_of_ours_is_left_out(changes: dict[str, Any]) -> None:
    good = signing_key("EdDSA").jwk(kid="good")
    keys = parse_jwks(jwks(signing_key().jwk(**changes), good, 3, None))
    assert [key.kid for key in keys.keys] == ["good"]


def test_a_weak_rsa_key_is_left_out() -> None:
    with pytest.raises(ValueError, match="no key"):
        parse_jwks(jwks(SigningKey("RS256", "weak", bits=1024).jwk()))


def test_an_rsa_key_that_makes_checks_slow_is_left_out() -> None:
    numbers = signing_key("RS256").private.public_key().public_numbers()
    assert numbers.e == 65537
    slow = signing_key("RS256").jwk(e=b64((numbers.n - 2).to_bytes(256)))
    with pytest.raises(ValueError, match="no key"):
        parse_jwks(jwks(slow))


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b"null", b'{"keys":{}}', b'{"keys":[]}', b'{"keys":[{}]}', b"[" * 100_000, b"\xff", b"<html>"],
)
def test_what_is_no_key_set_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_jwks(body)


def test_a_flood_of_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        parse_jwks(jwks(*[signing_key().jwk()] * 101))


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"", b"\xff"])
def test_a_page_in_place_of_keys_is_called_one(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"^the document is no JSON$"):
        parse_jwks(body)


def test_few_keys_are_tried_for_one_token() -> None:
    keys = parse_jwks(jwks(*[signing_key().jwk(kid=str(number)) for number in range(50)]))
    assert len(keys.find(None, "ES256")) == 4


def test_sets_are_equal_by_what_is_published() -> None:
    """So that fetching the same keys again leaves the verified tokens alone."""
    one, other = signing_key().jwk(), signing_key("EdDSA").jwk(kid="k2")
    assert parse_jwks(jwks(one)) == parse_jwks(jwks(one))
    assert parse_jwks(jwks(one)) != parse_jwks(jwks(one, other))
    assert parse_jwks(jwks(one)) != parse_jwks(jwks({**one, "kid": "k2"}))


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=10) | st.sampled_from(["EC", "RSA", "OKP", "P-256", "AQAB"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["keys", "kty", "crv", "n", "e", "x", "y", "alg", "use"]), inner, max_size=5
            )
        ),
    )
)
def test_any_document_is_refused_as_such(document: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_jwks(json.dumps(document).encode())
