"""The values of the gateway's file that are more than a number or a word: URLs, names, headers, secrets, rates. Each
with what it must be, the check that reads it, and a pattern for editors."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from mcp_middleware.affinity.sealing import KeyRing
from mcp_middleware.credentials import CallerSigner
from mcp_middleware.oauth.authentication import ClientSecret, PrivateKeyJWT
from mcp_middleware.oauth.urls import absolute_url
from mcp_middleware.ratelimit import Budget, Price, Prices
from mcp_middleware.ratelimit.addresses import read_networks
from mcp_middleware.ratelimit.rate import Rate
from mcp_middleware.resource_server.claims import Claims
from mcp_middleware.resource_server.origins import AllowedOrigins
from mcp_middleware.resource_server.scopes import scope_names
from mcp_middleware.tracing.propagation import is_baggage_key

from .headers import HOP_BY_HOP
from .shapes import Amount, Either, Key, ListOf, MapOf, Off, Secret, Section, Text, Whole

__all__ = [
    "AGENT_GLOB",
    "AUDIENCE",
    "BAGGAGE_KEY",
    "BUDGET",
    "CALLER_KEY",
    "CALL_PRICE",
    "CLAIM",
    "CLIENT_ID",
    "CLIENT_SECRET",
    "COLLECTOR",
    "CONCURRENCY",
    "CURRENCY",
    "ENDPOINT",
    "HEADERS",
    "HEADER_NAME",
    "HEADER_VALUE",
    "HOST",
    "IMPLIED_SCOPES",
    "INSTANCE",
    "ISSUER",
    "LISTEN",
    "NETWORK",
    "ORIGIN",
    "PART_RATE",
    "PRIVATE_KEY",
    "PUBLIC_URL",
    "RATE",
    "RATE_TEXT",
    "RESOURCE",
    "SCOPES",
    "SCOPE_LIST",
    "SERVER_GLOB",
    "SERVER_NAME",
    "SESSION_KEY",
    "STATE",
    "TOKEN_PRICE",
    "TOOL_GLOB",
]

_MAX_NAME: Final = 64
_RESERVED: Final = frozenset({"healthz", "readyz"})
_SERVER_NAME: Final = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,{_MAX_NAME - 1}}}", re.ASCII)
_HOST: Final = re.compile(r"\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+", re.ASCII)
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_FIELD_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?", re.ASCII)
_VISIBLE: Final = re.compile(r"[\x21-\x7e]{1,512}", re.ASCII)
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


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not _HOST.fullmatch(host) or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError
    if host.startswith("["):
        host = str(ip_address(host[1:-1]))
    return host, int(port)


def _url(text: str) -> str:
    """An http or https URL that names one place and nothing else."""
    if not text.isascii() or not text.isprintable() or any(character in ' ?#"\\<>^`{|}' for character in text):
        raise ValueError
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.port == 0:
        raise ValueError
    return text


def _public_url(text: str) -> str:
    return _url(text).rstrip("/")


def _instance(text: str) -> str:
    """One spelling for each instance (RFC 3986 section 6.2.3), so that none is there twice."""
    parts = urlsplit(_url(text))
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    port = parts.port if parts.port not in (None, 80 if parts.scheme == "http" else 443) else None
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path or '/'}"


def _identifier(text: str) -> str:
    absolute_url("", text)
    return text


def _endpoint(text: str) -> str:
    absolute_url("", text, query=True)
    return text


def _client_id(text: str) -> str:
    if not _VISIBLE.fullmatch(text):
        raise ValueError
    return text


def _client_secret(text: str) -> str:
    ClientSecret("client", text)
    return _printable(text)


def _private_key(text: str) -> str:
    PrivateKeyJWT("client", text)
    return text


def _caller_key(text: str) -> str:
    CallerSigner(key=text, issuer="gateway", audience="server")
    return text


def _claim(text: str) -> str:
    Claims(agent=text)
    return text


def _printable(text: str) -> str:
    if not text.isprintable() or len(text) > 512:
        raise ValueError
    return text


def _server_name(text: str) -> str:
    if not _SERVER_NAME.fullmatch(text) or text in _RESERVED:
        raise ValueError
    return text


def _header_name(text: str) -> str:
    name = text.lower()
    read = name.replace("_", "-")  # by servers that take one for the other
    if not _FIELD_NAME.fullmatch(text) or read in _OURS or read.startswith("mcp-"):
        raise ValueError
    return name


def _header_value(text: str) -> str:
    if not _FIELD_VALUE.fullmatch(text):
        raise ValueError
    return text


def _scope(text: str) -> str:
    scope_names([text])
    if text == "offline_access":
        raise ValueError
    return text


def _scope_list(text: str) -> str:
    scope_names(text.split(" "))
    return text


def _origin(text: str) -> str:
    AllowedOrigins("http://localhost", [text])
    return text.lower()


def _host(text: str) -> str:
    _, colon, port = text.rpartition(":")
    if not text.endswith("]") and colon and port.isdigit():
        _host_and_port(text)
    elif not _HOST.fullmatch(text):
        raise ValueError
    return text.lower()


def _baggage_key(text: str) -> str:
    if not is_baggage_key(text):
        raise ValueError
    return text


def _session_key(text: str) -> str:
    KeyRing([text])
    return text


def _state(text: str) -> str:
    if text == "memory":
        return text
    parts = urlsplit(text)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or parts.port == 0 or parts.fragment:
        raise ValueError
    if not re.fullmatch(r"/?|/[0-9]{1,4}", parts.path, re.ASCII):
        raise ValueError
    return text


def _rate(values: Mapping[str, Any]) -> Rate:
    rate: Rate = values["rate"]
    return rate if values["burst"] is None else Rate(rate.rate, values["burst"])


def _glob(text: str) -> str:
    if not text:
        raise ValueError
    text.encode()  # buckets are named by it
    return text


def _currency(text: str) -> str:
    Prices(text, [Price(call=0)])
    return text


def _network(text: str) -> str:
    read_networks("", [text])
    return text


def _text(label: str, must: str, check: Callable[[str], Any] = str, pattern: str = ".", *examples: str) -> Text:
    return Text(label, must, check, pattern, examples)


LISTEN: Final = _text(
    "host:port",
    "be host:port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080",
    _host_and_port,
    r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$",
    "127.0.0.1:8080",
    "[::1]:8080",
)
_NO_EXTRAS: Final = "be an absolute http or https URL without user, query and fragment"
_URL_PATTERN: Final = r"^https?://[^\s/?#@]+(/[^\s?#]*)?$"
PUBLIC_URL: Final = _text("URL", _NO_EXTRAS, _public_url, _URL_PATTERN, "https://mcp.example.com")
COLLECTOR: Final = _text("URL", _NO_EXTRAS, _url, _URL_PATTERN, "http://127.0.0.1:4318")
INSTANCE: Final = _text("URL", _NO_EXTRAS, _instance, _URL_PATTERN, "http://127.0.0.1:9001/mcp")
_IDENTIFIER_MUST: Final = "be an absolute https URL (http only on a loopback host) without user, query and fragment"
ISSUER: Final = _text("URL", _IDENTIFIER_MUST, _identifier, _URL_PATTERN, "https://login.example.com")
ENDPOINT: Final = _text(
    "URL",
    "be an absolute https URL (http only on a loopback host) without user and fragment",
    _endpoint,
    r"^https?://[^\s#@]+$",
    "https://login.example.com/keys",
)
SERVER_NAME: Final = _text(
    "the server's name",
    f"be at most {_MAX_NAME} of a-z, 0-9, - and _, with a letter or digit first, and neither healthz nor readyz",
    _server_name,
    rf"^(?!(healthz|readyz)$)[a-z0-9][a-z0-9_-]{{0,{_MAX_NAME - 1}}}$",
    "search",
)
HEADER_NAME: Final = _text(
    "header name",
    "be the name of a header (RFC 9110), none that the gateway sets itself or the protocol uses (Mcp-*, Host, Accept, "
    "Connection, Content-*, ...)",
    _header_name,
    r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$",
    "X-Api-Key",
)
HEADER_VALUE: Final = Secret(
    "secret",
    "be printable ASCII without spaces at its ends, or {file: PATH}",
    _header_value,
    ("${FILES_KEY}",),
)
HEADERS: Final = MapOf(HEADER_NAME, HEADER_VALUE)
_SCOPE: Final = _text(
    "scope",
    "be a scope: printable ASCII without space, double quote and backslash, and not offline_access",
    _scope,
    r"^[!#-\[\]-~]+$",
    "mcp:use",
)
SCOPES: Final = ListOf(_SCOPE, least=0)
IMPLIED_SCOPES: Final = MapOf(_SCOPE, ListOf(_SCOPE))
SCOPE_LIST: Final = _text(
    "scopes",
    "be scopes, separated by single spaces: printable ASCII without double quote and backslash",
    _scope_list,
    r"^[!#-\[\]-~]+( [!#-\[\]-~]+)*$",
    "tickets:read",
)
CLIENT_ID: Final = _text(
    "string", "be printable ASCII without spaces, of at most 512", _client_id, r"^[!-~]{1,512}$", "gateway"
)
CLIENT_SECRET: Final = Secret(
    "secret", "be printable text of at most 512 characters, or {file: PATH}", _client_secret, ("${GATEWAY_SECRET}",)
)
PRIVATE_KEY: Final = Secret(
    "secret",
    "be a private key in PEM without a password (RSA of 2048 bits or more, or EC), or {file: PATH}",
    _private_key,
)
AUDIENCE: Final = _text("string", "be printable text of at most 512 characters", _printable, ".", "api://tickets")
RESOURCE: Final = _text("URL", _IDENTIFIER_MUST, _identifier, _URL_PATTERN, "https://tickets.example.com/mcp")
CALLER_KEY: Final = Secret(
    "secret",
    "be a secret of at least 32 bytes, a private key in PEM without a password, or {file: PATH}",
    _caller_key,
    ("${CALLER_KEY}",),
)
_CLAIM: Final = _text(
    "claim", "be the name of a claim, or a path of names with dots", _claim, ".", "azp", "realm_access.roles"
)
CLAIM: Final = Either((_CLAIM, ListOf(_CLAIM)), "be the name of a claim, or a list of names")
RATE_TEXT: Final = _text(
    "rate",
    "be a rate such as 60/minute or 100 per 2 hours, of an amount and periods from 1",
    lambda text: Rate(text).rate,
    r"^\s*[0-9]+\s*(/|per)\s*([0-9]+\s*)?[a-zA-Z]+\s*$",
    "60/minute",
    "100 per 2 hours",
)
_RATE: Final = replace(RATE_TEXT, check=Rate)
_BURST: Final = Section(
    "a rate with a burst",
    (
        Key("rate", _RATE, "How fast the bucket refills.", required=True),
        Key("burst", Whole(), "How much of it may come at once. Without it: the amount of the rate."),
    ),
    _rate,
)
RATE: Final = Either((Off(), _RATE, _BURST), "be a rate such as 60/minute, a mapping with rate and burst, or off")
PART_RATE: Final = Either((_RATE, _BURST), "be a rate such as 60/minute, or a mapping with rate and burst")
CONCURRENCY: Final = Either((Off(), Whole()), "be a whole number from 1, or off")
AGENT_GLOB: Final = _text("glob of client ids", "be a glob of client ids, not empty", _glob)
TOOL_GLOB: Final = _text("glob of tools", "be a glob of tools' names, not empty", _glob)
SERVER_GLOB: Final = _text("glob of servers", "be a glob of servers' names, not empty", _glob)
CURRENCY: Final = _text(
    "currency",
    "be a code such as EUR: a letter, then at most 15 letters, digits, - and _",
    _currency,
    r"^[A-Za-z][A-Za-z0-9_-]{0,15}$",
    "EUR",
)
TOKEN_PRICE: Final = Amount(
    "be a number from 0 to 1000000, with at most 6 decimals", lambda amount: Price(input=amount)
)
CALL_PRICE: Final = Amount("be a number from 0 to 1000000, with at most 9 decimals", lambda amount: Price(call=amount))
BUDGET: Final = Amount(
    "be a number above 0, to 1000000000, with at most 9 decimals", lambda amount: Budget("day", amount)
)
NETWORK: Final = _text(
    "address or network", "be an address, or a network such as 10.0.0.0/8", _network, r"^[0-9A-Fa-f:./]+$", "10.0.0.0/8"
)
SESSION_KEY: Final = Secret(
    "secret",
    "be 32 random bytes in base64, as `openssl rand -base64 32` prints, or {file: PATH}",
    _session_key,
    ("${SESSION_KEY}",),
)
STATE: Final = Secret(
    "`memory`, or secret",
    "be memory, or a URL such as redis://host:6379/0, or {file: PATH}",
    _state,
    ("memory", "redis://127.0.0.1:6379/0"),
)
BAGGAGE_KEY: Final = _text("string", "be a key of W3C baggage", _baggage_key)
HOST: Final = _text("host", "be a host, or host:port", _host, r"^[\[\]A-Za-z0-9._:-]+$", "mcp.internal:8080")
ORIGIN: Final = _text(
    "origin",
    "be an origin, such as https://app.example.com, or '*' for all",
    _origin,
    r"^(\*|[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#@]+)$",
    "https://app.example.com",
)
