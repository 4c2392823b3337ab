"""Which authorization servers' tokens are accepted, and how each one's tokens are verified: values, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, Final, Literal

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.authentication import ClientAuthentication
from mcp_middleware.oauth.urls import absolute_url
from mcp_middleware.options import flag, one_of

from .claims import Claims
from .keys import ALGORITHMS

__all__ = ["Introspection", "Issuer", "named_issuers"]

_MAX_CACHE: Final = 300.0
"""Seconds."""
_JWT_ONLY: Final = ("typ", "algorithms", "jwks_uri")


@dataclass(frozen=True, slots=True)
class Introspection:
    """How an issuer is asked about a token (RFC 7662). Raises ConfigurationError."""

    authentication: ClientAuthentication
    """Who asks: a client of the issuer's that is allowed to."""
    _: KW_ONLY
    endpoint: str | None = None
    """Where to ask; None finds it by discovery."""
    cache: float = 30.0
    """Seconds that an answer counts, at most until the token ends: so late a revocation may be seen. 0 to 300; with 0
    every request is asked about."""

    def __post_init__(self) -> None:
        if not isinstance(self.authentication, ClientAuthentication):
            raise ConfigurationError(
                f"Introspection.authentication is {self.authentication!r}; it must be a ClientSecret or a PrivateKeyJWT"
            )
        if self.endpoint is not None:
            absolute_url("Introspection.endpoint", self.endpoint, query=True)
        cache = self.cache
        if isinstance(cache, bool) or not isinstance(cache, int | float) or not 0 <= cache <= _MAX_CACHE:
            raise ConfigurationError(
                f"Introspection.cache is {cache!r}; it must be a number of seconds from 0 to {_MAX_CACHE:g}"
            )


@dataclass(frozen=True, slots=True)
class Issuer:
    """An authorization server whose tokens are accepted, and how its tokens differ from RFC 9068.

    Raises ConfigurationError.
    """

    issuer: str
    """Its identifier, exactly as in the ``iss`` claim and in its metadata; a trailing slash counts."""
    _: KW_ONLY
    typ: Literal["at+jwt", "any"] = "at+jwt"
    """``at+jwt``: only tokens that their header names access tokens (RFC 9068 section 4). ``any``: also tokens of
    type ``JWT`` or of none, as many servers issue them; ID tokens are then told apart by their claims."""
    audiences: Sequence[str] = ()
    """The audiences of its tokens, where the server cannot issue them for the resource's URL; in its place. An empty
    list is refused: no token is for nobody."""
    algorithms: Sequence[str] = tuple(sorted(ALGORITHMS))
    """The signature algorithms it may use: asymmetric ones."""
    jwks_uri: str | None = None
    """Where its keys are; None finds them by discovery."""
    claims: Claims | Mapping[str, Any] = field(default_factory=Claims)
    """Where its tokens say who calls; a mapping holds options of ``Claims``."""
    introspection: Introspection | None = None
    """How it is asked about each of its tokens; None verifies them as JWT, without asking."""
    allow_private_addresses: bool = False
    """Whether it may be on a private network. Otherwise such addresses are refused, so that no metadata can send our
    requests there; an issuer on a loopback host is reached all the same."""

    def __post_init__(self) -> None:
        absolute_url("Issuer.issuer", self.issuer)
        one_of("Issuer.typ", self.typ, ("at+jwt", "any"))
        if not _strings(self.audiences) or self.audiences == []:
            raise ConfigurationError(
                f"Issuer.audiences is {self.audiences!r}; it must be a list of strings, or be left out"
            )
        if not _strings(self.algorithms) or not self.algorithms or not ALGORITHMS.issuperset(self.algorithms):
            allowed = ", ".join(sorted(ALGORITHMS))
            raise ConfigurationError(f"Issuer.algorithms is {self.algorithms!r}; it must be a list of: {allowed}")
        if self.jwks_uri is not None:
            absolute_url("Issuer.jwks_uri", self.jwks_uri, query=True)
        if not isinstance(self.claims, Claims):
            object.__setattr__(self, "claims", _claims(self.claims))
        flag("Issuer.allow_private_addresses", self.allow_private_addresses)
        if self.introspection is not None:
            self._check_introspection()

    def _check_introspection(self) -> None:
        if not isinstance(self.introspection, Introspection):
            raise ConfigurationError(f"Issuer.introspection is {self.introspection!r}; it must be an Introspection")
        for option in fields(self):
            if option.name in _JWT_ONLY and getattr(self, option.name) != option.default:
                raise ConfigurationError(
                    f"Issuer.{option.name} is {getattr(self, option.name)!r}; with introspection it must be left out, "
                    "because no signature is checked here"
                )

    @property
    def mapping(self) -> Claims:
        """``claims``, as what they always are by now."""
        if not isinstance(self.claims, Claims):
            raise TypeError("claims are made a Claims when an Issuer is made")
        return self.claims


def _claims(options: object) -> Claims:
    allowed = [option.name for option in fields(Claims)]
    if not isinstance(options, Mapping) or not set(options) <= set(allowed):
        raise ConfigurationError(
            f"Issuer.claims is {options!r}; it must be a Claims, or a mapping with some of: {', '.join(allowed)}"
        )
    return Claims(**options)


def _strings(values: object) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, str) and value for value in values)


def named_issuers(issuers: Sequence[str | Issuer]) -> list[Issuer]:
    """``issuers`` as a member's option has them, each an Issuer. Raises ConfigurationError."""
    if isinstance(issuers, str) or not isinstance(issuers, Sequence) or not issuers:
        raise ConfigurationError(f"issuers is {issuers!r}; it must be a list of at least one issuer")
    named = [issuer if isinstance(issuer, Issuer) else Issuer(issuer) for issuer in issuers]
    if len({issuer.issuer for issuer in named}) != len(named):
        raise ConfigurationError(f"issuers is {issuers!r}; it names one issuer twice")
    return named
