"""``auth``: whose access tokens are accepted."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mcp_middleware.gateway.scalars import Duration, Flag, Off, OneOf
from mcp_middleware.gateway.shapes import Either, Key, ListOf, MapOf, Section, Text
from mcp_middleware.gateway.values import ISSUER, only_given
from mcp_middleware.oauth.urls import absolute_url
from mcp_middleware.resource_server import Claims, Introspection, Issuer
from mcp_middleware.resource_server.keys import ALGORITHMS
from mcp_middleware.resource_server.scopes import scope_names

from .proof import PRIVATE, PROOF, one_proof, take_proof

__all__ = ["AUTH", "AuthConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthConfig:
    """Whose access tokens are accepted."""

    issuers: tuple[Issuer, ...]
    scopes: tuple[str, ...] = ()
    """What every token must have."""
    implied_scopes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What a token has besides, by the scope that contains it."""
    legacy_metadata: bool = True
    """Whether the first issuer's metadata is at our origin too."""


def _endpoint(text: str) -> str:
    absolute_url("", text, query=True)
    return text


def _claim(text: str) -> str:
    Claims(agent=text)
    return text


def _scope(text: str) -> str:
    scope_names([text])
    return text


def _introspection(values: Mapping[str, Any]) -> Introspection:
    rest = dict(values)
    cache = rest.pop("cache")
    return Introspection(authentication=take_proof(rest), **only_given(rest), cache=0.0 if cache == "off" else cache)


def _jwt_or_introspection(given: Collection[str]) -> str | None:
    """What is about signatures has no use where none is checked here."""
    stray = [name for name in ("typ", "algorithms", "jwks_uri") if name in given and "introspection" in given]
    return f"has {' and '.join(stray)} beside introspection, which has no use for it; leave it out" if stray else None


def _auth(values: Mapping[str, Any]) -> AuthConfig:
    issuers = (Issuer(issuer) if isinstance(issuer, str) else issuer for issuer in values["issuers"])
    return AuthConfig(**{**values, "issuers": tuple(issuers)})


_ENDPOINT: Final = Text(
    "URL",
    "be an absolute https URL (http only on a loopback host) without user and fragment",
    _endpoint,
    r"^https?://[^\s#@]+$",
    ("https://login.example.com/keys",),
)
_CLAIM: Final = Text(
    "claim",
    "be the name of a claim, or a path of names with dots",
    _claim,
    examples=("azp", "realm_access.roles"),
)
_CLAIM_NAMES: Final = Either((_CLAIM, ListOf(_CLAIM)), f"{_CLAIM.must}, or a list of them")
_SCOPE: Final = Text(
    "scope",
    "be a scope: printable ASCII without space, double quote and backslash, and not offline_access",
    _scope,
    r"^[!#-\[\]-~]+$",
    ("mcp:use",),
)

_CLAIMS: Final = Section(
    "auth.issuers[].claims",
    (
        Key(
            "agent",
            _CLAIM_NAMES,
            "The client, that is the agent; of several the first that is there.",
            ["client_id", "azp"],
        ),
        Key("subject", _CLAIM_NAMES, "On whose behalf it acts.", "sub"),
        Key("scopes", _CLAIM_NAMES, "Its scopes, a list or a text with spaces.", ["scope", "scp"]),
        Key("roles", _CLAIM_NAMES, "Its roles, a list.", "roles"),
    ),
    lambda values: Claims(**values),
)
_INTROSPECTION: Final = Section(
    "auth.issuers[].introspection",
    (
        *PROOF,
        Key("endpoint", _ENDPOINT, "Where it is asked. Without it that is found by discovery."),
        Key(
            "cache",
            Either((Off(), Duration()), "be a duration of at most 5m, such as 30s, or off"),
            "How long an answer counts, 5 minutes at most, and so the longest until a revocation is seen. `off`: it is "
            "asked at every request.",
            "30s",
        ),
    ),
    _introspection,
    one_proof,
)

_ISSUER: Final = Section(
    "auth.issuers[]",
    (
        Key(
            "issuer",
            ISSUER,
            "Its identifier, exactly as in its tokens' `iss` and its metadata; a slash counts.",
            required=True,
        ),
        Key(
            "typ",
            OneOf(("at+jwt", "any")),
            "`at+jwt`: only tokens that say they are access tokens (RFC 9068). `any`: also those of type `JWT` or of "
            "none, which many servers issue; ID tokens are told apart by their claims.",
            "at+jwt",
        ),
        Key(
            "audiences",
            ListOf(Text("string", "be an audience, a string that is not empty")),
            "The audiences of its tokens, where it cannot issue them for the server's URL; in its place.",
        ),
        Key(
            "algorithms",
            ListOf(OneOf(tuple(sorted(ALGORITHMS)))),
            "The signature algorithms it may use. Without it: all of them.",
        ),
        Key("jwks_uri", _ENDPOINT, "Where its keys are. Without it they are found by discovery (RFC 8414)."),
        Key("claims", _CLAIMS, "Where its tokens say what, if not as RFC 9068 has it.", {}),
        Key(
            "introspection",
            _INTROSPECTION,
            "Ask it about each token (RFC 7662). Without it tokens are verified as JWT.",
        ),
        Key("allow_private_addresses", Flag(), f"Whether it {PRIVATE}", False),
    ),
    lambda values: Issuer(**only_given(values)),
    _jwt_or_introspection,
)

_AUTH: Final = Section(
    "auth",
    (
        Key(
            "issuers",
            ListOf(Either((ISSUER, _ISSUER), f"{ISSUER.must}, or a mapping with issuer")),
            "The authorization servers whose access tokens are accepted.",
            required=True,
        ),
        Key("scopes", ListOf(_SCOPE, least=0), "The scopes every token must have.", []),
        Key(
            "implied_scopes",
            MapOf(_SCOPE, ListOf(_SCOPE)),
            "Scopes that contain others: a token with one has those it is mapped to, and what they contain.",
            {},
        ),
        Key(
            "legacy_metadata",
            Flag(),
            "Whether the first issuer's metadata is served at `/.well-known/oauth-authorization-server` too, where "
            "clients of 2025-03-26 look for it.",
            True,
        ),
    ),
    _auth,
)
AUTH: Final = Either((Off(), _AUTH), "be a mapping with issuers, or off")
