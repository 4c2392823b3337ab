"""A credential for an httpx2 client."""

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import NoReturn

import httpx2

from .interface import Caller, Credential

__all__ = ["CredentialAuth"]


class CredentialAuth(httpx2.Auth):
    """Adds a credential to requests, and after a 401 tries once more with a new one, if there is one."""

    def __init__(self, credential: Credential, caller: Caller) -> None:
        self._credential = credential
        self._caller = caller

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """One request, or two."""
        await request.aread()  # so that it can be sent twice
        headers = await self._credential.headers(self._caller)
        _set(request, headers)
        response = yield request
        if response.status_code == 401 and self._credential.rejected(self._caller, headers):
            _set(request, await self._credential.headers(self._caller))
            yield request

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[NoReturn, httpx2.Response, None]:
        """Raises RuntimeError: a token is fetched by an event loop."""
        raise RuntimeError("CredentialAuth is for an AsyncClient")


def _set(request: httpx2.Request, headers: Sequence[tuple[bytes, bytes]]) -> None:
    for name, value in headers:
        request.headers[name.decode("ascii")] = value.decode("ascii")
