"""Which web pages may call: the ``Origin`` that browsers send (MCP, transports, "Security Warning": a server MUST
validate it, or a page that rebinds its name to our address speaks for the person in front of it). Pure."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.urls import is_loopback

__all__ = ["AllowedOrigins"]

_ANY: Final = "*"


class AllowedOrigins:
    """The resource's own origin, those in ``extra``, and for a resource on a loopback host every other loopback
    origin, where development tools run. ``"*"`` in ``extra`` allows all. Raises ConfigurationError."""

    __slots__ = ("_any", "_loopback", "_origins")

    def __init__(self, resource: str, extra: Sequence[str]) -> None:
        several = isinstance(extra, Sequence) and not isinstance(extra, str)
        if not several or not all(isinstance(origin, str) for origin in extra):
            raise ConfigurationError(f"allowed_origins is {extra!r}; it must be a list of origins")
        own = urlsplit(resource)
        self._any = _ANY in extra
        self._loopback = is_loopback(own.hostname or "")
        self._origins = {_origin(resource), *(_checked(origin) for origin in extra if origin != _ANY)}

    def allow(self, origin: bytes | None) -> bool:
        """Whether a request with this ``Origin`` header may pass; without one no browser sent it."""
        if origin is None or self._any:
            return True
        text = origin.decode("latin-1").lower()
        if text in self._origins:
            return True
        return self._loopback and is_loopback(_host(text))


def _origin(url: str) -> str:
    parts = urlsplit(url.lower())
    return f"{parts.scheme}://{parts.netloc}"


def _checked(origin: str) -> str:
    if _origin(origin) != origin.lower() or not _host(origin):
        raise ConfigurationError(
            f"allowed_origins has {origin!r}; an origin is a scheme, a host and perhaps a port, "
            "such as https://app.example.com, or '*' for all"
        )
    return origin.lower()


def _host(origin: str) -> str:
    """Its host; empty where it is no origin (RFC 6454 section 6.2), such as for a port that is none."""
    try:
        parts = urlsplit(origin)
        host, _ = parts.hostname or "", parts.port  # reading it is what finds fault with it
    except ValueError:
        return ""
    return "" if "@" in parts.netloc else host
