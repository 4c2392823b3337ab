"""How we prove ourselves to an authorization server: a secret, or an assertion signed with a key of our own."""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias, get_args
from urllib.parse import quote_plus

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.options import one_of

__all__ = ["ClientAuthentication", "ClientSecret", "PrivateKeyJWT", "SecretMethod", "SigningKey"]

SecretMethod: TypeAlias = Literal["client_secret_basic", "client_secret_post"]

_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ASSERTION_LIFETIME: Final = 60
"""Seconds; it is used at once."""
_RSA_BITS: Final = range(2048, 8192 + 1)
_BY_CURVE: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """A client that has a secret (RFC 6749 section 2.3.1). Raises ConfigurationError."""

    client_id: str
    secret: str = field(repr=False)
    method: SecretMethod | None = None
    """``client_secret_basic`` sends it in a header, ``client_secret_post`` in the form. None takes what the server
    accepts, the first of them if it accepts both."""

    def __post_init__(self) -> None:
        _check_client(self.client_id)
        if not isinstance(self.secret, str) or not self.secret:
            raise ConfigurationError("the client's secret is empty; it must be a string")
        if self.method is not None:
            one_of("the client's method", self.method, get_args(SecretMethod))

    def apply(
        self,
        form: dict[str, str],
        headers: dict[str, str],
        *,
        audience: str,
        now: float,
        methods: Collection[str] = (),
    ) -> None:
        """Put the proof into what is sent. ``methods`` are those that the server says it accepts; ``audience`` (its
        issuer) and ``now`` (Unix seconds) are for proofs that need them."""
        in_form = "client_secret_post" in methods and "client_secret_basic" not in methods
        if self.method == "client_secret_post" or (self.method is None and in_form):
            form["client_id"], form["client_secret"] = self.client_id, self.secret
            return
        from base64 import b64encode

        # Both are form-encoded before they are joined, so that a colon or an umlaut survives (RFC 6749 section 2.3.1).
        pair = f"{quote_plus(self.client_id)}:{quote_plus(self.secret)}"
        headers["authorization"] = f"Basic {b64encode(pair.encode('ascii')).decode('ascii')}"


@dataclass(frozen=True, slots=True)
class PrivateKeyJWT:
    """A client that signs an assertion for each request (RFC 7523 section 2.2). Raises ConfigurationError."""

    client_id: str
    key: str = field(repr=False)
    """The private key in PEM: RSA of at least 2048 bits, P-256, P-384, P-521, Ed25519 or Ed448."""
    algorithm: str | None = None
    """None takes the one of the key's type: RS256, ES256, ES384, ES512 or EdDSA."""
    key_id: str | None = None
    """The ``kid`` by which the authorization server knows the key."""

    def __post_init__(self) -> None:
        _check_client(self.client_id)
        if self.key_id is not None and (not isinstance(self.key_id, str) or not self.key_id):
            raise ConfigurationError(f"the client's key id is {self.key_id!r}; it must be a string")
        _signing_key(self.key, self.algorithm)

    def apply(
        self,
        form: dict[str, str],
        headers: dict[str, str],
        *,
        audience: str,
        now: float,
        methods: Collection[str] = (),
    ) -> None:
        """Put a new assertion into ``form``. Its audience is the issuer (H2, draft-ietf-oauth-rfc7523bis), so that no
        other server can be sent it; ``now`` is in Unix seconds."""
        claims = {
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": audience,
            "iat": int(now),
            "exp": int(now) + _ASSERTION_LIFETIME,
            "jti": secrets.token_urlsafe(16),
        }
        header = {} if self.key_id is None else {"kid": self.key_id}
        form["client_id"] = self.client_id
        form["client_assertion_type"] = _ASSERTION_TYPE
        form["client_assertion"] = _signing_key(self.key, self.algorithm).sign(claims, header)


ClientAuthentication: TypeAlias = ClientSecret | PrivateKeyJWT


class SigningKey:
    """A private key of ours with the algorithm it signs by.

    ``pem`` is the key, ``algorithm`` None for that of its type. Raises ConfigurationError, which never shows the key.
    """

    __slots__ = ("_key", "algorithm")

    def __init__(self, pem: str, algorithm: str | None = None) -> None:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            self._key = load_pem_private_key(pem.encode("ascii"), password=None)
        except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
            raise ConfigurationError(
                "the private key cannot be read; it must be one in PEM, without a password"
            ) from None
        possible = _algorithms(self._key)
        self.algorithm = possible[0] if algorithm is None else algorithm
        if self.algorithm not in possible:
            raise ConfigurationError(f"the algorithm is {algorithm!r}; for this key it must be {' or '.join(possible)}")

    def sign(self, claims: Mapping[str, Any], header: Mapping[str, str] = {}) -> str:
        """A JWT of ``claims``."""
        import jwt

        return jwt.encode(dict(claims), self._key, algorithm=self.algorithm, headers=dict(header))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _signing_key(pem: str, algorithm: str | None) -> SigningKey:
    """One reading of a key, which takes a millisecond, for all that is signed with it."""
    return SigningKey(pem, algorithm)


def _algorithms(key: object) -> tuple[str, ...]:
    """What ``key`` may sign by, the usual one first. Raises ConfigurationError."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

    if isinstance(key, rsa.RSAPrivateKey) and key.key_size in _RSA_BITS:
        return _RSA
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return ("EdDSA",)
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _BY_CURVE:
        return (_BY_CURVE[key.curve.name],)
    raise ConfigurationError(
        "the private key is of the wrong kind; it must be RSA of 2048 to 8192 bits, P-256, P-384, P-521, Ed25519 "
        "or Ed448"
    )


def _check_client(client_id: object) -> None:
    if not isinstance(client_id, str) or not client_id or not client_id.isprintable():
        raise ConfigurationError(f"client_id is {client_id!r}; it must be a printable string")
