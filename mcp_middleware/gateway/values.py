"""What the sections of the gateway's file have in common: values that are more than a number or a word (each with what
it must be, the check that reads it, and a pattern for editors), and how sections judge and read what they are given."""

from collections.abc import Collection, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from mcp_middleware.credentials import StaticHeader
from mcp_middleware.credentials.static import FIELD_NAME
from mcp_middleware.globs import Glob
from mcp_middleware.oauth.urls import absolute_url
from mcp_middleware.ratelimit.rate import Rate
from mcp_middleware.resource_server.identity import IDENTITY_HEADERS

from .headers import HOP_BY_HOP
from .scalars import Off, Secret, Whole
from .shapes import Either, MapOf, Text

__all__ = [
    "AGENT_GLOB",
    "FORWARDED",
    "HEADERS",
    "HEADER_NAME",
    "HEADER_VALUE",
    "ISSUER",
    "MOST",
    "NAME",
    "RATE",
    "SERVER_GLOB",
    "TOOL_GLOB",
    "WEB_URL",
    "only_given",
    "printable",
    "some_of",
    "unless_off",
    "web_url",
]

_OURS: Final = frozenset(name.decode() for name in HOP_BY_HOP) | {
    "accept",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "last-event-id",
    "trailers",
}
"""Headers that belong to one hop (RFC 9110 section 7.6.1), that the message decides, or that the protocol does."""
_STAYS: Final = frozenset(name.decode() for name in IDENTITY_HEADERS) | {
    "accept-encoding",
    "cookie",
    "forwarded",
    "origin",
}
"""Of a caller's headers those that are for us, or would say what is for us to say."""


def some_of(given: Collection[str], *names: str) -> str | None:
    """What is wrong with a section that has none of these keys."""
    return None if any(name in given for name in names) else f"is of no use without {' or '.join(names)}; give one"


def only_given(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` without the keys that are neither given nor have a default."""
    return {name: value for name, value in values.items() if value is not None}


def unless_off(value: Any) -> Any:
    """``value``, or None where it is ``off``."""
    return None if value == "off" else value


def web_url(text: str) -> str:
    """An http or https URL that names one place and nothing else. Raises ValueError."""
    if not text.isascii() or not text.isprintable() or any(character in ' ?#"\\<>^`{|}' for character in text):
        raise ValueError
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.port == 0:
        raise ValueError
    return text


def printable(text: str) -> str:
    """A short text without line breaks and the like. Raises ValueError."""
    if not text.isprintable() or len(text) > 512:
        raise ValueError
    return text


def _glob(text: str) -> str:
    Glob(text)
    text.encode()  # buckets are named by it
    return text


def _globs_of(label: str, names: str) -> Text:
    rule = "* is any run of characters and ? is one, and there are no [ ] { } \\ and no ! at its start"
    return Text(f"glob of {label}", f"be a glob of {names}, not empty: {rule}", _glob, r"^[^!\[\]{}\\][^\[\]{}\\]*$")


def _identifier(text: str) -> str:
    absolute_url("", text)
    return text


def _header_name(text: str) -> str:
    name = StaticHeader(text, "value").name
    read = name.replace("_", "-")  # by servers that take one for the other
    if read in _OURS or read.startswith("mcp-"):
        raise ValueError
    return name


def _forwarded(text: str) -> str:
    name = _header_name(text)
    read = name.replace("_", "-")
    if read in _STAYS or read.startswith("x-forwarded-"):
        raise ValueError
    return name


def _header_value(text: str) -> str:
    StaticHeader("name", text)
    return text


_URL_PATTERN: Final = r"^https?://[^\s/?#@]+(/[^\s?#]*)?$"
WEB_URL: Final = Text("URL", "be an absolute http or https URL without user, query and fragment", web_url, _URL_PATTERN)
ISSUER: Final = Text(
    "URL",
    "be an absolute https URL (http only on a loopback host) without user, query and fragment",
    _identifier,
    _URL_PATTERN,
    ("https://login.example.com",),
)
NAME: Final = Text("string", "be printable text of at most 512 characters", printable)
HEADER_NAME: Final = Text(
    "header name",
    "be the name of a header (RFC 9110), none that the gateway sets itself or the protocol uses (Mcp-*, Host, Accept, "
    "Connection, Content-*, ...)",
    _header_name,
    f"^{FIELD_NAME.pattern}$",
    ("X-Api-Key",),
)
FORWARDED: Final = Text(
    "header name",
    "be the name of a header (RFC 9110), none that the gateway sets itself or the protocol uses, and none with a "
    "credential or an identity (Authorization, Cookie, X-Forwarded-*, X-User, ...)",
    _forwarded,
    f"^{FIELD_NAME.pattern}$",
    ("X-Tenant",),
)
"""A header of the caller's own that may go on."""
HEADER_VALUE: Final = Secret(
    "secret",
    "be printable ASCII without spaces at its ends, or {file: PATH}",
    _header_value,
    ("${FILES_KEY}",),
)
HEADERS: Final = MapOf(HEADER_NAME, HEADER_VALUE)
RATE: Final = Text(
    "rate",
    "be a rate such as 60/minute or 100 per 2 hours, of an amount and periods from 1",
    lambda text: Rate(text).rate,
    r"^\s*[0-9]+\s*(/|per)\s*([0-9]+\s*)?[a-zA-Z]+\s*$",
    ("60/minute", "100 per 2 hours"),
)
MOST: Final = Either((Off(), Whole()), "be a whole number from 1, or off")
"""The most there may be of something."""
AGENT_GLOB: Final = _globs_of("client ids", "client ids")
SERVER_GLOB: Final = _globs_of("servers", "servers' names")
TOOL_GLOB: Final = _globs_of("tools", "tools' names")
