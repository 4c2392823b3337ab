"""A header that says, signed, who calls."""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.authentication import SigningKey
from mcp_middleware.types import ANONYMOUS, Clock, Principal

from .interface import Caller
from .static import header_name

__all__ = ["CallerSigner"]

_LIFETIME: Final = 60
"""Seconds; a header that somebody steals is good for that long."""
_RENEWED_AFTER: Final = 30.0
"""Seconds that one header is used for all requests of a caller, so that it is never at its end when it arrives."""
_MAX_CALLERS: Final = 4096
_MIN_SECRET: Final = 32
"""Bytes (RFC 7518 section 3.2)."""
_TYP: Final = "mcp-caller+jwt"
"""So that it is taken for nothing else, least of all an access token (RFC 8725 section 3.11)."""


class CallerSigner:
    """Signs who calls, for a server that wants to know it without being given the caller's token.

    ``key`` is a secret of at least 32 bytes, shared with the server (HS256), or a private key in PEM, of which the
    server needs the public part. ``issuer`` and ``audience`` say who signs, and for which server: it must compare them.
    ``algorithm`` is None for that of the key's kind, ``clock`` gives Unix seconds.

    Raises ConfigurationError, which never shows the key.
    """

    def __init__(
        self,
        *,
        key: str,
        issuer: str,
        audience: str,
        header: str = "X-Mcp-Caller",
        algorithm: str | None = None,
        key_id: str | None = None,
        clock: Clock = time.time,
    ) -> None:
        self.name = header_name("CallerSigner.header", header).encode("ascii")
        """The header's name, in lower case. The sender removes any that the caller sent."""
        for option, value in (("issuer", issuer), ("audience", audience)):
            if not isinstance(value, str) or not value.isprintable() or not value:
                raise ConfigurationError(f"CallerSigner.{option} is {value!r}; it must be a printable string")
        self._sign = _signature(key, algorithm)
        self._always = {"iss": issuer, "aud": audience}
        self._header = {"typ": _TYP} | ({} if key_id is None else {"kid": key_id})
        self._clock = clock
        self._signed: OrderedDict[Any, tuple[float, tuple[bytes, bytes]]] = OrderedDict()

    def header(self, caller: Caller) -> tuple[bytes, bytes]:
        """The header for a request of ``caller``."""
        principal = caller.principal or ANONYMOUS
        now = self._clock()
        identity = (principal.key, principal.scopes, principal.roles)
        known = self._signed.get(identity)
        if known is not None and 0 <= now - known[0] < _RENEWED_AFTER:  # not where the clock was set back
            self._signed.move_to_end(identity)
            return known[1]
        claims = self._always | claims_of(principal) | {"iat": int(now), "exp": int(now) + _LIFETIME}
        header = (self.name, self._sign(claims, self._header).encode("ascii"))
        self._signed[identity] = (now, header)
        self._signed.move_to_end(identity)
        if len(self._signed) > _MAX_CALLERS:
            self._signed.popitem(last=False)
        return header


def claims_of(principal: Principal) -> dict[str, Any]:
    """What is said of the caller: ``sub`` and ``client_id`` as its own token has them, ``caller_issuer`` who vouches
    for both, ``scope`` and ``roles``. A caller whom nobody authenticated has no ``sub`` and no ``caller_issuer``."""
    claims = {
        "sub": principal.subject,
        "client_id": principal.client,
        "caller_issuer": principal.issuer,
        "scope": " ".join(sorted(principal.scopes)) or None,
        "roles": sorted(principal.roles) or None,
    }
    return {name: value for name, value in claims.items() if value is not None}


def _signature(key: object, algorithm: str | None) -> Callable[[Mapping[str, Any], Mapping[str, str]], str]:
    """What makes a JWT of claims and a header. Raises ConfigurationError."""
    if isinstance(key, str) and "-----BEGIN" in key:
        return SigningKey(key, algorithm).sign
    if not isinstance(key, str) or len(key.encode()) < _MIN_SECRET:
        raise ConfigurationError(
            f"CallerSigner.key must be a secret of at least {_MIN_SECRET} bytes, or a private key in PEM"
        )
    if algorithm not in (None, "HS256"):
        raise ConfigurationError(f"CallerSigner.algorithm is {algorithm!r}; for a secret it must be 'HS256'")

    def sign(claims: Mapping[str, Any], header: Mapping[str, str]) -> str:
        import jwt  # not at the top: takes 0.1 s

        return jwt.encode(dict(claims), key, algorithm="HS256", headers=dict(header))

    return sign
