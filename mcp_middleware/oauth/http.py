"""The HTTP client for authorization servers. What it fetches from, it does not trust (F4).

1. https, and plain http on a loopback host only.
2. A name is looked up here, every address it has is judged, and the connection goes to one that was judged: a name
   that changes its address in between (DNS rebinding) gains nothing. TLS still verifies the name.
3. Addresses that are not reachable from everywhere are refused unless they are allowed; loopback is reached only by
   a URL that names it, and link-local addresses, where clouds keep their credentials, never.
4. No redirect is followed, no compressed answer is read, bodies and time are bounded.
5. Nothing is taken from the environment or kept: no proxy (it would look the names up itself), no ``.netrc``, no
   cookie, no connection. The certificates of ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` are trusted instead of the
   system's, as in every program that uses OpenSSL.
"""

import asyncio
import math
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import cache
from ipaddress import ip_address
from os import environ
from socket import IPPROTO_TCP, SOCK_STREAM, getaddrinfo
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlencode

from mcp_middleware.errors import ConfigurationError

from .urls import absolute_url, is_loopback, why_refused

if TYPE_CHECKING:
    import httpcore2

__all__ = [
    "OVERLOADED",
    "BusyError",
    "FetchError",
    "IssuerUnavailableError",
    "OAuthHTTPClient",
    "RefusedAddressError",
    "Resolver",
]

OVERLOADED: Final = frozenset({429, 502, 503, 504})
"""Statuses that say of the whole server that it is in trouble; others are about the one request."""

_MAX_BODY_BYTES: Final = 256 * 1024
_TIMEOUT: Final = 5.0
"""Seconds for one request, from the look-up of the name to the last byte."""
_QUEUE_TIMEOUT: Final = 10.0
"""Seconds that a request waits for others to the same origin before that; it says nothing about the origin."""
_CONNECT_TIMEOUT: Final = 1.5
"""Seconds for the connection to one address of several; the last one has all the time that is left."""
_TRY_AGAIN: Final = frozenset({408, 425, 429})
"""Answers below 500 that another time is without."""
_MAX_CONNECTIONS: Final = 20
"""To one origin at a time, so that one that hangs holds up nobody else's."""

_SHOWN: Final = 200
"""Characters of what the system says of a connection that could not be made: nobody there, no such name, TLS."""

Resolver: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host, for a port; raises OSError where there are none."""


class IssuerUnavailableError(Exception):
    """What is asked cannot be found out now, because an authorization server does not answer. Never the caller's fault.

    A TokenVerifier raises it; it is answered 503. ``retry_after`` is when to try again, in seconds.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = math.ceil(max(1.0, retry_after))


class FetchError(Exception):
    """One document could not be had, or is not what it must be. ``status`` is that of the answer, if one came."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def final(self) -> bool:
        """Whether an answer came that will be the same another time: what was asked for is not there."""
        return self.status is not None and self.status < 500 and self.status not in _TRY_AGAIN


class BusyError(FetchError):
    """So many requests to one origin are under way that this one had no turn. It was not sent."""


class RefusedAddressError(FetchError):
    """A host has an address that must not be connected to: the configuration is wrong, or who sent us there."""


_looking: Final[dict[tuple[str, int], "Future[Sequence[str]]"]] = {}
"""The look-ups that run."""


async def look_up(host: str, port: int) -> Sequence[str]:
    """The addresses that the system knows for ``host``.

    A look-up cannot be ended, and takes half a minute where no name server answers. So each has a thread that nobody
    waits for at the end, and there is one for a name at a time: they neither use up the threads of the event loop,
    which others need, nor hold up the end of the process.
    """
    running = _looking.get((host, port))
    if running is None:
        running = _looking[host, port] = Future()
        running.set_running_or_notify_cancel()  # one who goes away does not end it for the others
        Thread(target=_look_up, args=(host, port, running), name=f"look-up of {host}", daemon=True).start()
    return await asyncio.wrap_future(running)


def _look_up(host: str, port: int, answer: "Future[Sequence[str]]") -> None:
    try:
        found = getaddrinfo(host, port, type=SOCK_STREAM, proto=IPPROTO_TCP)
    except Exception as error:
        del _looking[host, port]
        answer.set_exception(error if isinstance(error, OSError) else OSError(str(error)))
    else:
        del _looking[host, port]
        answer.set_result(list(dict.fromkeys(str(address[0]) for *_, address in found)))


class OAuthHTTPClient:
    """Fetches small documents from authorization servers and posts forms to them.

    One is enough for a process. It may be used from one event loop after the other: nothing of it belongs to one.

    Raises ConfigurationError where the environment names certificates that cannot be read.
    """

    def __init__(self, *, resolve: Resolver = look_up) -> None:
        self._resolve = resolve
        self._tls = _trust(environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR"))
        self._pools: dict[tuple[Any, ...], httpcore2.AsyncConnectionPool] = {}
        """Those with requests under way, by origin and by whether private addresses are allowed."""

    async def get(self, url: str, *, allow_private: bool = False) -> bytes:
        """The body at ``url``. Raises FetchError for every answer but a 200 within the bounds."""
        status, body = await self._request("GET", url, allow_private=allow_private)
        if status != 200:
            raise FetchError(f"{url} answered {status}", status=status)
        return body

    async def post(
        self,
        url: str,
        form: Mapping[str, str],
        *,
        headers: Mapping[str, str] = {},
        allow_private: bool = False,
    ) -> tuple[int, bytes]:
        """Post ``form``; the status and body of the answer, whatever it is but a redirect. Raises FetchError."""
        sent = {"content-type": "application/x-www-form-urlencoded", **headers}
        content = urlencode(form).encode("ascii")
        status, body = await self._request("POST", url, headers=sent, content=content, allow_private=allow_private)
        if 300 <= status < 400:
            raise FetchError(f"{url} answered {status}", status=status)
        return status, body

    async def aclose(self) -> None:
        """Close the connections of requests that still run. The client stays usable."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            await pool.aclose()

    async def _request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = {},
        content: bytes | None = None,
        allow_private: bool,
    ) -> tuple[int, bytes]:
        import httpcore2

        try:
            absolute_url("the address", url, query=True)
        except ConfigurationError as error:
            raise FetchError(str(error)) from None
        sent = {"accept": "application/json", "accept-encoding": "identity", "connection": "close", **headers}
        try:
            async with asyncio.timeout(None) as limit:

                async def trace(event: str, _: object) -> None:
                    if event == "connection.connect_tcp.started":
                        limit.reschedule(asyncio.get_running_loop().time() + _TIMEOUT)

                extensions = {"trace": trace, "timeout": {"pool": _QUEUE_TIMEOUT}}
                return await self._exchange(method, httpcore2.URL(url), url, sent, content, allow_private, extensions)
        except httpcore2.PoolTimeout:
            raise BusyError(f"{url}: too many requests to it are under way") from None
        except TimeoutError:
            raise FetchError(f"{url} gave no whole answer within {_TIMEOUT:g} s") from None
        except _BadAddressError as error:
            raise RefusedAddressError(f"{url}: {error}") from None
        except (httpcore2.ConnectError, ssl.SSLError) as error:
            raise FetchError(f"{url}: no connection can be made: {ascii(str(error))[:_SHOWN]}") from error
        except httpcore2.ProtocolError as error:  # what it says may quote the answer, and so a token
            raise FetchError(f"{url} answered what is no HTTP, or no whole answer") from error
        except _failures() as error:
            raise FetchError(f"{url}: the connection broke") from error

    async def _exchange(
        self,
        method: str,
        parsed: "httpcore2.URL",
        url: str,
        headers: Mapping[str, str],
        content: bytes | None,
        allow_private: bool,
        extensions: dict[str, Any],
    ) -> tuple[int, bytes]:
        key = (parsed.origin.scheme, parsed.origin.host, parsed.origin.port, allow_private)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = self._new_pool(allow_private)
        try:
            async with pool.stream(
                method, parsed, headers=list(headers.items()), content=content, extensions=extensions
            ) as response:
                if any(
                    name.lower() == b"content-encoding" and value != b"identity" for name, value in response.headers
                ):
                    raise FetchError(f"{url} answered compressed, which was not asked for", status=response.status)
                body = bytearray()
                async for chunk in response.aiter_stream():
                    body += chunk
                    if len(body) > _MAX_BODY_BYTES:
                        raise FetchError(f"{url} answered more than {_MAX_BODY_BYTES} bytes", status=response.status)
                return response.status, bytes(body)
        finally:
            if not pool.connections and self._pools.get(key) is pool:
                del self._pools[key]

    def _new_pool(self, allow_private: bool) -> "httpcore2.AsyncConnectionPool":
        import httpcore2

        return httpcore2.AsyncConnectionPool(
            ssl_context=self._tls,
            max_connections=_MAX_CONNECTIONS,
            max_keepalive_connections=0,  # a kept one would outlive an event loop
            network_backend=_checked_network(self._resolve, allow_private),
        )


class _BadAddressError(Exception):
    """What the network says of a host, which does not know the URL."""


@cache
def _trust(file: str | None, directory: str | None) -> ssl.SSLContext:
    """The certificates to trust, which the environment names. Read when the application starts, and once: with the
    import it takes 0.2 s. Raises ConfigurationError."""
    import httpcore2

    try:
        return httpcore2.default_ssl_context()
    except OSError as error:
        name, value = ("SSL_CERT_FILE", file) if file else ("SSL_CERT_DIR", directory)
        raise ConfigurationError(f"{name} is {value!r}; it must name certificates in PEM ({error})") from None


def _failures() -> tuple[type[Exception], ...]:
    import httpcore2

    return (
        httpcore2.ConnectionNotAvailable,
        httpcore2.NetworkError,
        httpcore2.TimeoutException,
        httpcore2.UnsupportedProtocol,
    )


def _checked_network(resolve: Resolver, allow_private: bool) -> "httpcore2.AsyncNetworkBackend":
    """A network on which a connection goes to an address that was judged, and to no other."""
    import httpcore2

    class CheckedNetwork(httpcore2.AnyIOBackend):
        async def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,  # noqa: ASYNC109 - the name is theirs
            local_address: str | None = None,
            socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
        ) -> httpcore2.AsyncNetworkStream:
            addresses = await _addresses(resolve, host, port, allow_private)
            for address in addresses[:-1]:
                try:
                    return await super().connect_tcp(address, port, _CONNECT_TIMEOUT)
                except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                    continue
            return await super().connect_tcp(addresses[-1], port, timeout)

    return CheckedNetwork()


async def _addresses(resolve: Resolver, host: str, port: int, allow_private: bool) -> Sequence[str]:
    """The addresses of ``host``, all of which may be connected to. One that may not refuses the host."""
    import httpcore2

    try:
        ip_address(host)
    except ValueError:
        try:
            addresses = await resolve(host, port)
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from error
    else:
        addresses = [host]
    for address in addresses:
        reason = why_refused(address, loopback=is_loopback(host), allow_private=allow_private)
        if reason is not None:
            raise _BadAddressError(f"{host} has the address {address}, which {reason}")
    if not addresses:
        raise httpcore2.ConnectError(f"{host} has no address")
    return addresses
