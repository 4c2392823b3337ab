"""``guard``: plain limits on requests before anybody looks at their token."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from mcp_middleware.gateway.shapes import Key, ListOf, MapOf, Section, Text
from mcp_middleware.gateway.values import RATE, TOOL_GLOB, some_of
from mcp_middleware.ratelimit.addresses import read_networks

__all__ = ["GUARD", "GuardConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardConfig:
    """As ``RequestGuardMiddleware`` takes it."""

    addresses: str | None = None
    tools: Mapping[str, str] = field(default_factory=dict)
    trusted_proxies: tuple[str, ...] = ()


def _network(text: str) -> str:
    read_networks("", [text])
    return text


def _is_of_use(given: Collection[str]) -> str | None:
    if "trusted_proxies" in given and "addresses" not in given:
        return "has trusted_proxies without addresses, which alone asks them; give addresses, or leave it out"
    return some_of(given, "addresses", "tools")


_NETWORK: Final = Text(
    "address or network",
    "be an address, or a network such as 10.0.0.0/8",
    _network,
    r"^[0-9A-Fa-f:./]+$",
    ("10.0.0.0/8",),
)
GUARD: Final = Section(
    "guard",
    (
        Key(
            "addresses",
            RATE,
            "Requests of one address whose caller nobody authenticated, to all servers. The metadata documents are not "
            "counted.",
        ),
        Key("tools", MapOf(TOOL_GLOB, RATE), "Calls of the tools of a server, by everybody together.", {}),
        Key(
            "trusted_proxies",
            ListOf(_NETWORK, least=0),
            "Addresses and networks of proxies before the gateway, whose `X-Forwarded-For` is believed.",
            [],
        ),
    ),
    lambda values: GuardConfig(**values),
    _is_of_use,
)
