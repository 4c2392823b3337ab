"""What an identifier or an endpoint in the configuration may look like. Pure."""

from ipaddress import ip_address
from typing import Final
from urllib.parse import SplitResult, urlsplit

from mcp_middleware.errors import ConfigurationError

__all__ = ["absolute_url", "is_loopback", "is_private"]

_QUOTED: Final = frozenset('"\\<>^`{|}')
"""Characters that no URL holds unescaped (RFC 3986); some would end a quoted string in a challenge."""


def absolute_url(place: str, value: object, *, query: bool = False) -> SplitResult:
    """The parts of an absolute URL: https (http on a loopback host), no user or fragment, a query only with ``query``.

    Raises ConfigurationError naming ``place``. RFC 8707 section 2 and RFC 8414 section 2 forbid the fragment of an
    identifier; a query could not be told apart by path.
    """
    forbidden = " #" if query else " ?#"
    parts_forbidden = "user and fragment" if query else "user, query and fragment"
    rule = f"it must be an absolute https URL (http only on a loopback host) without {parts_forbidden}"
    refused = ConfigurationError(f"{place} is {value!r}; {rule}")
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise refused
    if any(character in _QUOTED or character in forbidden for character in value):
        raise refused
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise refused from None
    if not host or "@" in parts.netloc or parts.scheme not in ("https", "http"):
        raise refused
    if parts.scheme == "http" and not is_loopback(host):
        raise refused
    return parts


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine by its name or number, without a look-up (RFC 6761 section 6.3)."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_private(host: str) -> bool:
    """Whether ``host`` is literally an address that is not reachable from everywhere, loopback included."""
    if is_loopback(host):
        return True
    try:
        return not ip_address(host).is_global
    except ValueError:
        return False
