"""The ``Authorization`` header of a request and the ``WWW-Authenticate`` header of a refusal (RFC 6750). Pure."""

from collections.abc import Iterable
from typing import Final, Literal
from urllib.parse import unquote_to_bytes

__all__ = ["MAX_TOKEN_BYTES", "MalformedAuthorizationError", "bearer_token", "challenge", "without_token"]

MAX_TOKEN_BYTES: Final = 16 * 1024
"""A longer token is refused before anything looks into it."""

_TOKEN_BYTES: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/="

_DESCRIPTIONS: Final = {
    "invalid_request": "Send one Authorization header of the form: Bearer, a space, the access token",
    "invalid_token": "The access token has expired, is malformed, or was not issued for this resource",
    "insufficient_scope": "The access token lacks a scope that this resource requires",
}
"""Clients search the whole header for ``name=value``, so no description may contain one (B12)."""


class MalformedAuthorizationError(ValueError):
    """The Authorization header does not name exactly one bearer token (RFC 6750 section 3.1, ``invalid_request``)."""


def bearer_token(authorization: bytes | None, *, repeated: bool = False) -> str | None:
    """The token of an ``Authorization`` header (RFC 6750 section 2.1), or None where there is no bearer credential.

    ``authorization`` is the header's value, ``repeated`` says that the request has several. Another scheme is no
    bearer credential. A token with characters a token cannot have, or a longer one than ``MAX_TOKEN_BYTES``, is
    returned as the empty string: it was sent, and it is worth nothing. Raises MalformedAuthorizationError.
    """
    if repeated:
        raise MalformedAuthorizationError("several Authorization headers")
    if authorization is None:
        return None
    scheme, _, rest = authorization.partition(b" ")
    if scheme.lower() != b"bearer":
        return None
    token = rest.strip(b" ")
    if not token:
        raise MalformedAuthorizationError("no token after the scheme")
    if len(token) > MAX_TOKEN_BYTES:
        return ""
    if b" " in token or b"," in token:
        raise MalformedAuthorizationError("more than one token")
    if token.translate(None, _TOKEN_BYTES):
        return ""
    return token.decode("ascii")


def without_token(query: bytes) -> bytes:
    """``query`` without a token in it: nobody looks at one there (MCP forbids RFC 6750 section 2.3), nor gets it."""
    parts = query.split(b"&")
    return b"&".join(part for part in parts if unquote_to_bytes(part).partition(b"=")[0].lower() != b"access_token")


def challenge(
    metadata_url: str,
    scopes: Iterable[str] = (),
    error: Literal["invalid_request", "invalid_token", "insufficient_scope"] | None = None,
) -> tuple[bytes, bytes]:
    """The ``WWW-Authenticate`` header of a refusal.

    ``metadata_url`` is where the resource's metadata is (RFC 9728 section 5.1), ``scopes`` all that the caller needs
    at once (B9, B10), ``error`` the code of RFC 6750 section 3.1: None where no credential came.
    """
    parts = []
    if error is not None:
        parts += [f'error="{error}"', f'error_description="{_DESCRIPTIONS[error]}"']
    scope = " ".join(scopes)
    if scope:
        parts.append(f'scope="{scope}"')
    parts.append(f'resource_metadata="{metadata_url}"')
    return (b"www-authenticate", b"Bearer " + ", ".join(parts).encode("ascii"))
