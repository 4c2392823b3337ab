"""Handing the verified caller on to the server: where the MCP SDK, FastMCP and Starlette look for one.

The token itself goes along in the SDK's ``AccessToken``, which has a field for it: the server in this process is the
resource the token was issued for. It leaves the request's headers all the same, so that nothing forwards it by
accident.
"""

import re
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cached_property
from itertools import product
from typing import Final, TypeAlias

from mcp_middleware.exchange import Scope
from mcp_middleware.types import AccessToken

__all__ = ["IDENTITY_HEADERS", "HandOn", "hand_on"]

_NAMES: Final = (
    b"authorization",
    b"proxy-authorization",
    b"remote-user",
    b"x-remote-user",
    b"x-forwarded-user",
    b"x-forwarded-email",
    b"x-forwarded-groups",
    b"x-forwarded-preferred-username",
    b"x-forwarded-access-token",
    b"x-auth-request-user",
    b"x-auth-request-email",
    b"x-auth-request-groups",
    b"x-auth-request-preferred-username",
    b"x-auth-request-access-token",
    b"x-authenticated-user",
    b"x-user",
    b"x-user-id",
    b"x-user-email",
)
IDENTITY_HEADERS: Final = frozenset(
    b"".join(spelled)
    for name in _NAMES
    for spelled in product(*((b"-", b"_") if part == b"-" else (part,) for part in re.split(b"(-)", name)))
)
"""What proxies say of a caller they have authenticated. Here the token alone says who calls, so a caller who sends one
of these has made it up. With underscores as well: applications in the manner of CGI read them as hyphens."""

HandOn: TypeAlias = Callable[[Scope, AccessToken], Callable[[], None] | None]
"""Makes the caller known to the server, and returns what undoes it after the request."""


def hand_on() -> HandOn:
    """The way that fits what is installed: the MCP SDK, else Starlette, else neither."""
    try:
        return _to_sdk()
    except ImportError:
        pass
    try:
        return _to_starlette()
    except ImportError:
        return _to_any


def _to_sdk() -> HandOn:
    from mcp.server.auth.middleware.auth_context import auth_context_var
    from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
    from mcp.server.auth.provider import AccessToken as SDKToken
    from starlette.authentication import AuthCredentials, SimpleUser

    class User(AuthenticatedUser):
        """The SDK's user. Its token is made when somebody asks for it: that costs more than all else here."""

        def __init__(self, token: AccessToken) -> None:
            SimpleUser.__init__(self, token.client_id)
            self._verified = token

        @cached_property
        def access_token(self) -> SDKToken:  # type: ignore[override]
            """A new object for each request, so that what a tool does to it stays in that request."""
            token = self._verified
            # FastMCP asks for it several times a call, and makes its own of any other each time.
            fastmcp = sys.modules.get("fastmcp.server.auth.auth")
            kind: type[SDKToken] = SDKToken if fastmcp is None else fastmcp.AccessToken
            return kind(
                token=token.token,
                client_id=token.client_id,
                scopes=token.scopes,
                expires_at=token.expires_at,
                resource=token.resource,
                subject=getattr(token, "subject", None),
                claims=deepcopy(getattr(token, "claims", None) or {}),
            )

        @property
        def scopes(self) -> list[str]:  # type: ignore[override]
            return self.access_token.scopes

    def apply(scope: Scope, token: AccessToken) -> Callable[[], None]:
        user = AuthenticatedUser(token) if isinstance(token, SDKToken) else User(token)
        scope["user"] = user
        scope["auth"] = AuthCredentials(token.scopes)
        # FastMCP reads the scope; the SDK's own get_access_token() reads this variable only.
        before = auth_context_var.set(user)
        return lambda: auth_context_var.reset(before)

    return apply


def _to_starlette() -> HandOn:
    from starlette.authentication import AuthCredentials, SimpleUser

    def apply(scope: Scope, token: AccessToken) -> None:
        scope["user"] = SimpleUser(token.client_id)
        scope["auth"] = AuthCredentials(token.scopes)

    return apply


class Caller:
    """What Starlette's ``request.user`` answers, where Starlette is not installed."""

    is_authenticated = True

    def __init__(self, client: str) -> None:
        self.display_name = client
        self.identity = client


class Credentials:
    """What Starlette's ``request.auth`` answers, where Starlette is not installed."""

    def __init__(self, scopes: Sequence[str]) -> None:
        self.scopes = list(scopes)


def _to_any(scope: Scope, token: AccessToken) -> None:
    scope["user"] = Caller(token.client_id)
    scope["auth"] = Credentials(token.scopes)
