"""An issuer's public keys, each pinned to the algorithms it may verify (RFC 7517, RFC 8725 section 3.1). Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

__all__ = ["ALGORITHMS", "EDDSA", "Key", "KeySet", "parse_jwks"]

_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_BY_CURVE: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA", "Ed448": "EdDSA"}
_PUBLIC: Final = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
"""Key type to the members of a JWK that make the public key (RFC 7518 section 6, RFC 8037)."""

ALGORITHMS: Final = _RSA | frozenset(_BY_CURVE.values())
"""Every algorithm that can be allowed: asymmetric signatures only."""
EDDSA: Final = {"Ed25519": "EdDSA", "Ed448": "EdDSA"}
"""The names that EdDSA has with one curve (RFC 9864). Which curve it is, the key says."""

_RSA_BITS: Final = range(2048, 8192 + 1)
"""Smaller is weak (RFC 7518 section 3.3); larger makes each check slow."""
_EXPONENT_BITS: Final = 64
"""Nearly all keys have 65537; with one as long as the key a check takes a hundred times as long."""
_MAX_KEYS: Final = 100
_MAX_CANDIDATES: Final = 4


@dataclass(frozen=True, slots=True)
class Key:
    """One public key and what it may verify."""

    kid: str | None
    algorithms: frozenset[str]
    public: tuple[str, ...]
    """Its public members as published: two keys are the same key where these and the names agree."""
    key: Any = field(compare=False, repr=False)
    """The key as ``cryptography`` has it."""

    def verifies(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Whether it made ``signature``. Takes 25 µs (RSA of 2048 bits), 70 µs (P-256) and 0.7 ms at most (P-384,
        P-521). ``cryptography`` keeps the interpreter's lock meanwhile, so that another thread would gain nothing."""
        verified: bool = _algorithm(algorithm).verify(signed, self.key, signature)
        return verified


@dataclass(frozen=True, slots=True)
class KeySet:
    """What an issuer publishes."""

    keys: tuple[Key, ...]

    def find(self, kid: str | None, algorithm: str) -> tuple[Key, ...]:
        """The keys that may verify ``algorithm`` and are named ``kid``, or all that may where the token names none.

        At most four: several fit only without a name, or where the issuer gave one name to several.
        """
        found = [key for key in self.keys if algorithm in key.algorithms and (kid is None or key.kid == kid)]
        return tuple(found[:_MAX_CANDIDATES])


@cache
def _algorithm(name: str) -> Any:
    from jwt.algorithms import get_default_algorithms  # not at the top: takes 0.1 s

    return get_default_algorithms()[name]


def parse_jwks(body: bytes) -> KeySet:
    """The usable keys of a JWK set (RFC 7517 section 5, which has unknown ones skipped).

    Raises ValueError where ``body`` is no JWK set or holds no usable key.
    """
    document = _object(body)
    published = document.get("keys")
    if not isinstance(published, list) or len(published) > _MAX_KEYS:
        raise ValueError(f"the JWK set has no list of at most {_MAX_KEYS} keys")
    keys = tuple(key for key in map(_key, published) if key is not None)
    if not keys:
        raise ValueError("the JWK set has no key for an asymmetric signature")
    return KeySet(keys)


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except RecursionError:
        raise ValueError("the document is nested too deeply") from None
    except ValueError:  # the decoder's own words are for programmers
        raise ValueError("the document is no JSON") from None
    if not isinstance(document, dict):
        raise ValueError("the document is no JSON object")
    return document


def _key(jwk: object) -> Key | None:
    """``jwk`` as a Key, or None if it is not for verifying, symmetric, weak, or no key.

    A JWK that gives its private part away is not used: anyone could sign with it.
    """
    from jwt import PyJWK, PyJWTError  # not at the top: takes 0.1 s

    if not isinstance(jwk, Mapping) or "d" in jwk or jwk.get("use", "sig") != "sig":
        return None
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    members = _PUBLIC.get(str(jwk.get("kty")))
    algorithms = _algorithms(jwk)
    if members is None or not algorithms:
        return None
    public = {"kty": jwk["kty"], **{member: jwk.get(member) for member in members}}
    if not all(isinstance(value, str) for value in public.values()):
        return None
    try:
        key = PyJWK(public, algorithm=min(algorithms)).key
    except (PyJWTError, ValueError, TypeError):
        return None
    if jwk["kty"] == "RSA" and (key.key_size not in _RSA_BITS or key.public_numbers().e.bit_length() > _EXPONENT_BITS):
        return None
    kid = jwk.get("kid")
    return Key(kid if isinstance(kid, str) else None, algorithms, tuple(public.values()), key)


def _algorithms(jwk: Mapping[str, Any]) -> frozenset[str]:
    """What the key may verify: by its type and curve, and no more than its ``alg`` says."""
    curve, named = str(jwk.get("crv")), jwk.get("alg")
    by_curve = _BY_CURVE.get(curve)
    possible = _RSA if jwk.get("kty") == "RSA" else frozenset({by_curve} if by_curve else ())
    if named is None:
        return possible
    return possible & {EDDSA.get(curve) if named == curve else str(named)}
