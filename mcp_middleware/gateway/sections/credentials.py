"""``servers.<name>.credentials`` and ``caller``: what a server knows the gateway by, and how it learns who calls."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from mcp_middleware.credentials import CallerSigner
from mcp_middleware.gateway.scalars import Flag, OneOf, Secret
from mcp_middleware.gateway.shapes import Key, Kinds, Section, Text
from mcp_middleware.gateway.values import HEADER_NAME, HEADER_VALUE, ISSUER, NAME, some_of
from mcp_middleware.oauth import ClientAuthentication
from mcp_middleware.resource_server.scopes import scope_names

from .proof import PRIVATE, PROOF, one_proof, take_proof

__all__ = ["CALLER", "CREDENTIALS", "CallerConfig", "GrantConfig", "HeaderConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderConfig:
    """A header that is the same in every request."""

    name: str
    """In lower case."""
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantConfig:
    """An access token for the server, which an authorization server issues to the gateway."""

    type: Literal["client_credentials", "token_exchange"]
    issuer: str
    authentication: ClientAuthentication
    """How the gateway proves itself to it."""
    audience: str | None = None
    """The server, as the authorization server names it (RFC 8693 section 2.1)."""
    resource: str | None = None
    """The server's URL (RFC 8707)."""
    scope: str | None = None
    """Separated by spaces."""
    allow_private_addresses: bool = False
    """Whether the authorization server may be on a private network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerConfig:
    """A header in which the gateway says, signed, who calls."""

    header: str
    """In lower case."""
    key: str = field(repr=False)


def _scope_list(text: str) -> str:
    scope_names(text.split(" "))
    return text


def _caller_key(text: str) -> str:
    CallerSigner(key=text, issuer="gateway", audience="server")
    return text


def _header(values: Mapping[str, Any]) -> HeaderConfig:
    return HeaderConfig(name=values["name"], value=values["value"])


def _grant(values: Mapping[str, Any]) -> GrantConfig:
    rest = dict(values)
    return GrantConfig(authentication=take_proof(rest), **rest)


def _one_target(given: Collection[str]) -> str | None:
    """For whom a token is exchanged: without a target it would be good for whatever the issuer thinks of."""
    return one_proof(given) or some_of(given, "audience", "resource")


def _kind(kind: str, about: str, *keys: Key, **rules: Any) -> Section:
    name = f"servers.<name>.credentials: {{type: {kind}}}"
    return Section(name, (Key("type", OneOf((kind,)), about, required=True), *keys), **rules)


_RESOURCE: Final = replace(ISSUER, examples=("https://tickets.example.com/mcp",))
_SCOPE_LIST: Final = Text(
    "scopes",
    "be scopes, separated by single spaces: printable ASCII without double quote and backslash",
    _scope_list,
    r"^[!#-\[\]-~]+( [!#-\[\]-~]+)*$",
    ("tickets:read",),
)
_CALLER_KEY: Final = Secret(
    "secret",
    "be a secret of at least 32 bytes, a private key in PEM without a password, or {file: PATH}",
    _caller_key,
    ("${CALLER_KEY}",),
)
_GRANT: Final = (
    Key("issuer", ISSUER, "The authorization server, as in its metadata; a slash counts.", required=True),
    *PROOF,
    Key(
        "audience",
        replace(NAME, examples=("api://tickets",)),
        "The server, by the name that the authorization server has for it.",
    ),
    Key("resource", _RESOURCE, "The server's URL, for authorization servers with resource indicators (RFC 8707)."),
    Key("scope", _SCOPE_LIST, "The scopes to ask for. Without it: those that the authorization server gives."),
    Key("allow_private_addresses", Flag(), f"Whether the authorization server {PRIVATE}", False),
)

CREDENTIALS: Final = Kinds(
    {
        "none": _kind("none", "The server gets no credential.", build=lambda _: None),
        "header": _kind(
            "header",
            "It gets a header that is the same in every request.",
            Key("name", HEADER_NAME, "The header's name.", required=True),
            Key("value", HEADER_VALUE, "Its value.", required=True),
            build=_header,
        ),
        "client_credentials": _kind(
            "client_credentials",
            "It gets a token that an authorization server issues to the gateway (RFC 6749 section 4.4).",
            *_GRANT,
            build=_grant,
            judge=one_proof,
        ),
        "token_exchange": _kind(
            "token_exchange",
            "It gets a token that an authorization server issues for the caller's (RFC 8693), one for each caller.",
            *_GRANT,
            build=_grant,
            judge=_one_target,
        ),
    }
)
CALLER: Final = Section(
    "servers.<name>.caller",
    (
        Key(
            "header", HEADER_NAME, "The header's name. One of that name that a caller sends is removed.", "X-Mcp-Caller"
        ),
        Key("key", _CALLER_KEY, "What it is signed with.", required=True),
    ),
    lambda values: CallerConfig(**values),
)
