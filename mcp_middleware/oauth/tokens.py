"""Asking an authorization server for a token (RFC 6749 sections 5.1 and 5.2), and believing no more of the answer than
what it must be."""

import json
import math
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mcp_middleware.types import Clock

from .authentication import ClientAuthentication
from .http import OAuthHTTPClient
from .metadata import ServerMetadata

__all__ = ["IssuedToken", "TokenRequestError", "parse_token_response", "request_token"]

_DEFAULT_LIFETIME: Final = 300.0
"""Seconds that a token is used whose end the server did not say; RFC 6749 section 5.1 only recommends that it does."""
_MAX_LIFETIME: Final = 86_400.0
"""Seconds; a longer promise is not relied on, and the token fetched anew by then."""
_MAX_TOKEN: Final = 16 * 1024
"""Characters; more fits no request header."""
_TOKEN: Final = re.compile(r"[!-~]+")
"""What can stand in an Authorization header. RFC 6750 allows less, and servers do not keep to it."""
_ERROR: Final = re.compile(r"[ !#-\[\]-~]{1,200}")
"""The characters of RFC 6749 section 5.2."""
_VERDICTS: Final = range(400, 404)
"""The statuses of an authorization server that has decided; a 404 or 405 comes from whatever stands in its place."""
_SECRET: Final = ("client_assertion", "client_secret", "subject_token")
"""Of what is sent, what nobody may read in a log."""
_PASSING: Final = frozenset({"authorization_pending", "server_error", "slow_down", "temporarily_unavailable"})
"""Errors that another time is without."""


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token that was issued to us."""

    value: str = field(repr=False)
    expires_at: float
    """Unix seconds, counted from before it was asked for."""
    scope: str | None = None
    """What it is good for, if the server said so."""
    issued_token_type: str | None = None
    """RFC 8693 section 2.2.1; None in an answer that is no token exchange's."""


class TokenRequestError(Exception):
    """The authorization server did not give a token. What it said is in ``error`` and ``description``, if it did.

    ``status`` is that of its answer. ``permanent``: the same request will be refused again; the other ones may have
    met a server that is out of order.
    """

    def __init__(
        self, message: str, *, error: str | None = None, description: str | None = None, status: int, permanent: bool
    ) -> None:
        super().__init__(message)
        self.error = error
        self.description = description
        self.status = status
        self.permanent = permanent


async def request_token(
    client: OAuthHTTPClient,
    metadata: ServerMetadata,
    authentication: ClientAuthentication,
    form: Mapping[str, str],
    *,
    allow_private: bool = False,
    clock: Clock = time.time,
) -> IssuedToken:
    """Ask the token endpoint of ``metadata`` for a token by the grant in ``form``.

    Raises TokenRequestError, FetchError where no answer came, and WrongMetadataError where there is no endpoint.
    """
    endpoint = metadata.endpoint("token_endpoint")
    now = clock()
    sent, headers = dict(form), dict[str, str]()
    authentication.apply(sent, headers, audience=metadata.issuer, now=now, methods=metadata.token_endpoint_auth_methods)
    status, body = await client.post(endpoint, sent, headers=headers, allow_private=allow_private)
    secret = [sent[name] for name in _SECRET if name in sent]
    return parse_token_response(status, body, endpoint=endpoint, now=now, secret=secret)


def parse_token_response(
    status: int, body: bytes, *, endpoint: str, now: float, secret: Collection[str] = ()
) -> IssuedToken:
    """The token in an answer of ``endpoint`` to a request made at ``now`` (Unix seconds). Raises TokenRequestError,
    which never shows what is ``secret`` of the request: some servers repeat it.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        document = {}
    if status != 200:
        raise _refusal(status, document, endpoint, secret)

    def refused(what: str) -> TokenRequestError:
        return TokenRequestError(f"{endpoint} answered {what}", status=status, permanent=False)

    token, kind = document.get("access_token"), document.get("token_type")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token) or len(token) > _MAX_TOKEN:
        raise refused("without an access_token that can be sent")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise refused(f"with the token_type {ascii(kind)[:40]}; only Bearer can be used")
    lifetime = _lifetime(document)
    if lifetime is None:
        raise refused("with an expires_in that is no number of seconds above 0")
    scope, issued = document.get("scope"), document.get("issued_token_type")
    return IssuedToken(
        token,
        now + lifetime,
        scope if isinstance(scope, str) else None,
        issued if isinstance(issued, str) else None,
    )


def _lifetime(document: Mapping[str, Any]) -> float | None:
    """Seconds that the token may be used; None where what is said of it is nonsense."""
    value = document.get("expires_in")
    if value is None:
        return _DEFAULT_LIFETIME
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)  # several servers write it as a string
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        return None
    return float(min(value, _MAX_LIFETIME))


def _refusal(status: int, document: Mapping[str, Any], endpoint: str, secret: Collection[str]) -> TokenRequestError:
    """RFC 6749 section 5.2. What the server says is shown only as far as it keeps to the characters allowed there."""
    error, description = (
        value if isinstance(value, str) and _ERROR.fullmatch(value) else None
        for value in (document.get("error"), document.get("error_description"))
    )
    if description is not None and any(part in description for part in secret):
        description = None
    said = ": ".join(part for part in (error, description) if part is not None)
    return TokenRequestError(
        f"{endpoint} answered {status}{', ' + said if said else ''}",
        error=error,
        description=description,
        status=status,
        permanent=status in _VERDICTS and error is not None and error not in _PASSING,
    )
