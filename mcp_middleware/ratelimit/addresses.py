"""Whose address a request came from, behind proxies that are trusted to say so. Pure."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final, TypeAlias

from mcp_middleware.errors import ConfigurationError

__all__ = ["Networks", "address_of", "read_networks"]

Networks: TypeAlias = tuple[IPv4Network | IPv6Network, ...]

_FORWARDED: Final = b"x-forwarded-for"
_IPV6_PREFIX: Final = 64
"""The bits of an IPv6 address that one customer cannot choose (RFC 6177)."""
_MOST_HOPS: Final = 32


def read_networks(place: str, option: Any) -> Networks:
    """Addresses and networks. Raises ConfigurationError."""
    if isinstance(option, str) or not isinstance(option, Sequence):
        raise ConfigurationError(f"{place} is {option!r}; it must be a list of addresses and networks")
    networks = []
    for given in option:
        try:
            if not isinstance(given, str):
                raise ValueError
            networks.append(_unmapped(ip_network(given)))
        except ValueError:
            raise ConfigurationError(
                f"{place} has {given!r}; it must be an address or a network such as '10.0.0.0/8'"
            ) from None
    return tuple(networks)


def address_of(peer: str | None, headers: Iterable[tuple[bytes, bytes]], trusted: Networks) -> str:
    """What to count a request by: an IPv4 address, the /64 of an IPv6 address, or the peer as it is.

    ``X-Forwarded-For`` is read only where ``peer`` is trusted, from its end to the first address that is not: what
    stands before that, its sender may have invented.
    """
    address = _parse(peer or "")
    if address is None:
        return peer or "unknown"
    if trusted and _is_trusted(address, trusted):
        hops = b",".join(value for name, value in headers if name == _FORWARDED).decode("latin-1").split(",")
        for hop in reversed(hops[-_MOST_HOPS:]):
            before = _parse(hop.strip())
            if before is None:
                break
            address = before
            if not _is_trusted(address, trusted):
                break
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address, _IPV6_PREFIX), strict=False))
    return str(address)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """An address, with or without a port."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _unmapped(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """An IPv4 network as it is, also where it is written as one of IPv6 (RFC 4291 section 2.5.5.2)."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return network if mapped is None or network.prefixlen < 96 else IPv4Network((mapped, network.prefixlen - 96))


def _is_trusted(address: IPv4Address | IPv6Address, trusted: Networks) -> bool:
    return any(address in network for network in trusted)
