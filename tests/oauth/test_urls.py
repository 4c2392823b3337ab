"""Which addresses may be connected to, in every spelling (F4)."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.oauth.urls import is_loopback, is_private, why_refused

PRIVATE = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "198.18.0.0/15",
    "192.0.0.0/29",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/5",
    "fc00::/8",
    "fec0::/10",
    "2001::/32",
    "2001:db8::/32",
    "100::/64",
    "64:ff9b:1::/48",
    "4000::/3",
]
NEVER = [
    "0.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "192.0.0.192/32",
    "fe80::/10",
    "ff00::/8",
    "fd00:ec2::/32",
    "::/128",
]
LOOPBACK = ["127.0.0.0/8", "::1/128"]
PUBLIC = ["93.184.0.0/16", "8.8.0.0/16", "1.1.1.0/24", "2606:4700::/32", "2a00:1450::/32"]


def addresses_in(networks: list[str]) -> st.SearchStrategy[IPv4Address | IPv6Address]:
    def within(network: IPv4Network | IPv6Network) -> st.SearchStrategy[IPv4Address | IPv6Address]:
        numbers = st.integers(int(network.network_address), int(network.broadcast_address))
        return numbers.map(IPv4Address if network.version == 4 else IPv6Address)

    return st.one_of([within(IPv6Network(text) if ":" in text else IPv4Network(text)) for text in networks])


def spellings(address: IPv4Address | IPv6Address) -> list[str]:
    """What means the same host: for IPv4 also the IPv6 addresses that translators and tunnels lead to it."""
    if isinstance(address, IPv6Address):
        return [str(address), address.exploded, str(address).upper(), f"{address}%eth0"]
    number = int(address)
    return [
        str(address),
        f"::ffff:{address}",
        str(IPv6Address(0xFFFF << 32 | number)),
        f"64:ff9b::{address}",
        str(IPv6Address(0x2002 << 112 | number << 80 | 1)),
    ]


@given(addresses_in(PRIVATE))
def test_private_addresses_only_where_they_are_allowed(address: IPv4Address | IPv6Address) -> None:
    for text in spellings(address):
        assert why_refused(text, loopback=False, allow_private=False) is not None
        assert why_refused(text, loopback=True, allow_private=True) is not None
        assert is_private(text)


def test_private_addresses_where_they_are_allowed() -> None:
    for text in ("10.1.2.3", "192.168.0.1", "172.31.0.1", "100.64.0.1", "fd12:3456::1", "::ffff:10.0.0.1"):
        assert why_refused(text, loopback=False, allow_private=True) is None


@given(addresses_in(NEVER), st.booleans(), st.booleans())
def test_addresses_that_nothing_allows(address: IPv4Address | IPv6Address, loopback: bool, allow_private: bool) -> None:
    for text in spellings(address):
        assert why_refused(text, loopback=loopback, allow_private=allow_private) is not None
        assert is_private(text)


@given(addresses_in(LOOPBACK), st.booleans())
def test_this_machine_only_where_the_url_names_it(address: IPv4Address | IPv6Address, allow_private: bool) -> None:
    for text in spellings(address):
        assert why_refused(text, loopback=False, allow_private=allow_private) == "is this machine's own"
        assert why_refused(text, loopback=True, allow_private=allow_private) is None
        assert is_private(text)


@given(addresses_in(PUBLIC), st.booleans())
def test_public_addresses(address: IPv4Address | IPv6Address, allow_private: bool) -> None:
    for text in spellings(address):
        assert why_refused(text, loopback=False, allow_private=allow_private) is None
        assert why_refused(text, loopback=True, allow_private=allow_private) == "is not this machine's own"
        assert not is_private(text)


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_an_embedded_address_is_judged_as_the_plain_one(address: IPv4Address) -> None:
    answers = {why_refused(text, loopback=False, allow_private=False) for text in spellings(address)}
    assert len(answers) == 1


@given(st.text(max_size=40))
def test_what_is_no_address_is_refused(text: str) -> None:
    if why_refused(text, loopback=False, allow_private=True) is None:
        assert not is_loopback(text)
    is_private(text)


@pytest.mark.parametrize("text", ["", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "localhost", "1.2.3.4 ", "[::1]"])
def test_other_spellings_are_no_addresses_here(text: str) -> None:
    """Python reads none of them, and so they are names: the resolver says what they mean, and that is judged."""
    assert why_refused(text, loopback=False, allow_private=True) == "is no address"
