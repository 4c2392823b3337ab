"""How we prove ourselves: what is sent, and which keys are taken."""

import base64
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import unquote_plus

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.authentication import ClientSecret, PrivateKeyJWT

ISSUER = "https://login.example.com"
NOW = 1_700_000_000.5

MAKERS: dict[str, Callable[[], Any]] = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "weak RSA": lambda: rsa.generate_private_key(65537, 1024),  # noqa: S505
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
    "X25519": x25519.X25519PrivateKey.generate,
    "DSA": lambda: dsa.generate_private_key(2048),
}


@cache
def private(kind: str) -> Any:
    return MAKERS[kind]()


def pem(kind: str) -> str:
    made: bytes = private(kind).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.decode()


def public_pem(kind: str) -> str:
    made: bytes = private(kind).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return made.decode()


def applied(proof: ClientSecret | PrivateKeyJWT, **options: Any) -> tuple[dict[str, str], dict[str, str]]:
    form, headers = {"grant_type": "client_credentials"}, dict[str, str]()
    proof.apply(form, headers, audience=ISSUER, now=NOW, **options)
    return form, headers


text = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=30).filter(str.isprintable)


@given(text, text)
def test_basic_carries_any_name_and_secret(client: str, secret: str) -> None:
    """RFC 6749 section 2.3.1: form-encoded first, so that the colon between them is the only one."""
    form, headers = applied(ClientSecret(client, secret))
    assert form == {"grant_type": "client_credentials"}
    scheme, _, encoded = headers["authorization"].partition(" ")
    name, _, password = base64.b64decode(encoded).decode("ascii").partition(":")
    assert (scheme, unquote_plus(name), unquote_plus(password)) == ("Basic", client, secret)


def test_a_secret_may_be_in_the_form() -> None:
    form, headers = applied(ClientSecret("gateway", "s:e c", "client_secret_post"))
    assert headers == {}
    assert form == {"grant_type": "client_credentials", "client_id": "gateway", "client_secret": "s:e c"}


@pytest.mark.parametrize(
    ("methods", "in_form"),
    [
        ((), False),
        (("client_secret_post",), True),
        (("client_secret_post", "client_secret_basic"), False),
        (("private_key_jwt",), False),
    ],
)
def test_without_a_method_the_server_decides(methods: tuple[str, ...], in_form: bool) -> None:
    form, _ = applied(ClientSecret("gateway", "secret"), methods=methods)
    assert ("client_secret" in form) == in_form
    assert "client_secret" not in applied(ClientSecret("g", "s", "client_secret_basic"), methods=methods)[0]


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("RSA", None),
        ("RSA", "RS512"),
        ("RSA", "PS256"),
        ("P-256", None),
        ("P-384", "ES384"),
        ("P-521", None),
        ("Ed25519", None),
        ("Ed448", "EdDSA"),
    ],
)
def test_an_assertion_verifies_and_says_what_it_must(kind: str, algorithm: str | None) -> None:
    """H2, RFC 7523 section 3."""
    proof = PrivateKeyJWT("gateway", pem(kind), algorithm, "k1")
    form, headers = applied(proof, methods=("client_secret_basic",))
    assert headers == {}
    assert form["client_id"] == "gateway"
    assert form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    token = form["client_assertion"]
    header = jwt.get_unverified_header(token)
    assert header["kid"] == "k1"
    assert algorithm in (None, header["alg"])
    claims = jwt.decode(
        token, public_pem(kind), algorithms=[header["alg"]], audience=ISSUER, options={"verify_exp": False}
    )
    assert claims["iss"] == claims["sub"] == "gateway"
    assert claims["aud"] == ISSUER
    assert claims["exp"] - claims["iat"] == 60
    assert claims["iat"] == int(NOW)
    again = jwt.decode(applied(proof)[0]["client_assertion"], options={"verify_signature": False})
    assert again["jti"] != claims["jti"]


def encrypted() -> str:
    made: bytes = private("P-256").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    return made.decode()


BAD_KEYS: list[Callable[[], Any]] = [
    lambda: "",
    lambda: "not a key",
    lambda: None,
    lambda: b"bytes",
    lambda: "-----BEGIN PRIVATE KEY-----\nTUlJ\n-----END PRIVATE KEY-----\n",
    lambda: pem("P-256").replace("M", "ü", 1),
    lambda: pem("P-256")[:-60],
    lambda: public_pem("P-256"),
    encrypted,
    lambda: pem("weak RSA"),
    lambda: pem("secp256k1"),
    lambda: pem("X25519"),
    lambda: pem("DSA"),
]


@pytest.mark.parametrize("make", BAD_KEYS)
def test_a_wrong_key_is_refused_when_it_is_given_and_not_shown(make: Callable[[], Any]) -> None:
    key = make()
    with pytest.raises(ConfigurationError, match="the private key") as caught:
        PrivateKeyJWT("gateway", key)
    lines = [line for line in key.splitlines() if len(line) > 8 and "-" not in line] if isinstance(key, str) else []
    assert not any(line in str(caught.value) for line in lines if line != "not a key")
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [("RSA", "ES256"), ("RSA", "HS256"), ("P-256", "RS256"), ("P-256", "ES384"), ("Ed25519", "none"), ("P-384", "")],
)
def test_an_algorithm_that_is_not_the_keys_is_refused(kind: str, algorithm: str) -> None:
    with pytest.raises(ConfigurationError, match="the algorithm is"):
        PrivateKeyJWT("gateway", pem(kind), algorithm)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClientSecret("", "secret"),
        lambda: ClientSecret("a\nb", "secret"),
        lambda: ClientSecret("gateway", ""),
        lambda: ClientSecret("gateway", None),  # type: ignore[arg-type]
        lambda: ClientSecret("gateway", "secret", "tls_client_auth"),  # type: ignore[arg-type]
        lambda: PrivateKeyJWT("", pem("P-256")),
        lambda: PrivateKeyJWT("gateway", pem("P-256"), key_id=""),
    ],
)
def test_a_wrong_option_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError):
        make()


def test_no_secret_is_shown() -> None:
    shown = repr((ClientSecret("gateway", "hunter2"), PrivateKeyJWT("gateway", pem("P-256"))))
    assert "hunter2" not in shown
    assert "PRIVATE KEY" not in shown
