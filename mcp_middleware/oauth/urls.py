"""What an identifier or an endpoint may look like, and which addresses may be connected to. Pure."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import SplitResult, urlsplit

from mcp_middleware.errors import ConfigurationError

__all__ = ["absolute_url", "is_loopback", "is_private", "why_refused"]

_QUOTED: Final = frozenset('"\\<>^`{|}')
"""Characters that no URL holds unescaped (RFC 3986); some would end a quoted string in a challenge."""

_EMBEDDING: Final = (
    (ip_network("::ffff:0:0/96"), 0),
    (ip_network("64:ff9b::/96"), 0),
    (ip_network("2002::/16"), 80),
)
"""Where an IPv6 address holds an IPv4 address, and how many bits follow it: mapped (RFC 4291 section 2.5.5.2), NAT64
(RFC 6052 section 2.1) and 6to4 (RFC 3056). Where a network's own NAT64 (64:ff9b:1::/48, RFC 8215) has it only that
network knows, and so all of that is private."""
_NOBODYS: Final = (ip_network("0.0.0.0/8"), ip_network("255.255.255.255/32"), ip_network("::/128"))
"""Many systems take 0.0.0.0 and :: for loopback."""
_METADATA: Final = tuple(
    map(ip_network, ("100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32", "fd00:ec2::/32", "fd20:ce::/32"))
)
"""Where clouds have their metadata services outside the link-local addresses."""
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
"""All of IPv6 that is assigned to be reached from everywhere (RFC 4291 section 2.4)."""
_NOT_GLOBAL: Final = tuple(
    map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "3fff::/20"))
)
"""What some versions of Python take for global besides (RFC 6890 and its registries)."""


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
    try:
        ip_address(host)
    except ValueError:
        return is_loopback(host)
    return why_refused(host, loopback=False, allow_private=False) is not None


def why_refused(address: str, *, loopback: bool, allow_private: bool) -> str | None:
    """Why no connection may go to ``address``, as the end of "it ..."; None where one may (F4).

    ``loopback``: the URL names this machine, and so must the address. ``allow_private``: addresses of private networks
    will do. Link-local ones never do: there clouds answer with the credentials of the machine.
    """
    try:
        judged = _judged(ip_address(address))
    except ValueError:
        return "is no address"
    if judged.is_loopback:
        return None if loopback else "is this machine's own"
    if loopback:
        return "is not this machine's own"
    if judged.is_multicast or _in(judged, _NOBODYS):
        return "is nobody's"
    if judged.is_link_local or _in(judged, _METADATA):
        return "is link-local or a cloud's metadata service"
    if allow_private or _is_global(judged):
        return None
    return "is private"


def _is_global(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not _in(address, _NOT_GLOBAL)


def _in(address: IPv4Address | IPv6Address, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    return any(address in network for network in networks)


def _judged(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The address that packets to ``address`` end at: an IPv6 address may stand for an IPv4 one."""
    if isinstance(address, IPv6Address):
        for network, shift in _EMBEDDING:
            if address in network:
                return IPv4Address(int(address) >> shift & 0xFFFF_FFFF)
    return address
