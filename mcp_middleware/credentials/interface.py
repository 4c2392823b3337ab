"""What a credential is to those who send requests, and what can go wrong with one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mcp_middleware.types import AccessToken, Principal

__all__ = ["Caller", "Credential", "CredentialRefusedError", "CredentialUnavailableError"]


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom a request is made."""

    principal: Principal | None = None
    token: str | None = field(default=None, repr=False)
    """The caller's own access token, verified. It is exchanged for another and never sent to a server."""

    @classmethod
    def from_access_token(cls, access: AccessToken) -> "Caller":
        """The caller whom a verified token names, such as the MCP SDK's ``get_access_token()`` returns."""
        return cls(Principal.from_access_token(access), access.token)


class CredentialUnavailableError(Exception):
    """There is no credential now, because the authorization server does not answer as it should. Answered 503.

    ``retry_after`` is when to try again, in seconds.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = math.ceil(max(1.0, retry_after))


class CredentialRefusedError(Exception):
    """The authorization server refuses a credential for this request.

    ``caller`` says whom it refuses: this caller (answered 403), or us, whoever calls (answered 502).
    """

    def __init__(self, message: str, *, caller: bool) -> None:
        super().__init__(message)
        self.caller = caller


class Credential(Protocol):
    """What requests to one server carry. All requests to that server share it."""

    async def headers(self, caller: Caller) -> Sequence[tuple[bytes, bytes]]:
        """The headers to add to a request, names in lower case; the sender removes others of these names.

        Raises CredentialUnavailableError and CredentialRefusedError.
        """
        ...

    def rejected(self, caller: Caller, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """The server answered 401 to ``headers``: forget them. True where other ones are worth one more try."""
        ...

    async def start(self) -> None:
        """Try whether it works. Raises ConfigurationError where the authorization server says that the configuration is
        wrong, IssuerUnavailableError where it cannot be asked now; then a later ``start`` may tell."""
        ...

    async def aclose(self) -> None:
        """Stop what runs in the background, and close connections."""
        ...
