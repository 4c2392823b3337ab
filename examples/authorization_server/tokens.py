"""What is issued: keys, tokens, and the authorization that tokens stand on. Nothing is kept on disk."""

import secrets
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar

from authlib.oauth2.rfc6749 import AuthorizationCodeMixin, ClientMixin, TokenMixin
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

__all__ = [
    "AccessToken",
    "Algorithm",
    "Authorization",
    "Clock",
    "Code",
    "Form",
    "KeyRing",
    "RefreshToken",
    "Remembered",
    "User",
]

Algorithm = Literal["ES256", "RS256"]
Form = Literal["jwt", "opaque"]
Clock = Callable[[], float]
T = TypeVar("T")

_MOST: Final = 20_000
"""Things of one kind that are remembered; beyond, the oldest is forgotten."""


class Remembered(Generic[T]):
    """Things by their names, each until its time has come, and not more than fit."""

    def __init__(self, clock: Clock, *, most: int = _MOST) -> None:
        self._clock, self._most = clock, most
        self._things: dict[str, tuple[T, float]] = {}

    def __len__(self) -> int:
        return len(self._things)

    def put(self, name: str, thing: T, until: float) -> None:
        """Remember ``thing`` until then, in seconds since the epoch."""
        self._things.pop(name, None)
        while self._things:
            oldest = next(iter(self._things))
            if len(self._things) < self._most and self._things[oldest][1] > self._clock():
                break
            del self._things[oldest]
        self._things[name] = (thing, until)

    def get(self, name: object) -> T | None:
        """The thing of that name; None for one that is unknown or over."""
        thing, until = self._things.get(name, (None, 0.0)) if isinstance(name, str) else (None, 0.0)
        return thing if until > self._clock() else None

    def pop(self, name: object) -> T | None:
        """As ``get``, for the last time."""
        thing = self.get(name)
        if isinstance(name, str):
            self._things.pop(name, None)
        return thing


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who can sign in by choosing their name: ``subject`` is the token's ``sub``."""

    subject: str
    name: str
    roles: tuple[str, ...] = ()


@dataclass(slots=True)
class Authorization:
    """What a client may do for whom. Tokens come of it; when it is revoked, all of them are."""

    client_id: str
    subject: str
    scope: str
    resources: tuple[str, ...]
    roles: tuple[str, ...] = ()
    user: User | None = None
    """None: the client acts for itself."""
    revoked: bool = False


@dataclass(slots=True)
class Code(AuthorizationCodeMixin):
    """An authorization code. One that was used is remembered, because whoever uses it again stole it."""

    authorization: Authorization
    redirect_uri: str | None
    """As it stood in the request; None if it did not."""
    code_challenge: str
    used: bool = False

    code_challenge_method = "S256"

    def get_redirect_uri(self) -> str | None:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.authorization.scope


@dataclass(slots=True)
class _Token(TokenMixin):
    authorization: Authorization
    scope: str
    expires_at: float

    def check_client(self, client: ClientMixin) -> bool:
        return bool(self.authorization.client_id == client.get_client_id())

    def get_scope(self) -> str:
        return self.scope

    def is_expired(self) -> bool:
        return False  # those are forgotten

    def is_revoked(self) -> bool:
        return self.authorization.revoked


@dataclass(slots=True)
class RefreshToken(_Token):
    """Good once: the answer to it has the next one (RFC 9700 section 4.14.2)."""

    used: bool = False


@dataclass(slots=True)
class AccessToken(_Token):
    """An access token for one resource, in whatever form it left the server."""

    client_id: str
    resource: str
    issued_at: int
    act: Mapping[str, Any] | None = None
    """Who acts for the subject, and for whom they act in turn (RFC 8693 section 4.1)."""
    of: "AccessToken | None" = None
    """What it was exchanged for. It ends with that."""
    revoked: bool = False
    jti: str = field(default_factory=lambda: uuid.uuid4().hex)

    def check_client(self, client: ClientMixin) -> bool:
        return bool(self.client_id == client.get_client_id())

    def is_revoked(self) -> bool:
        exchanged = self.of is not None and self.of.is_revoked()
        return self.revoked or self.authorization.revoked or exchanged

    def claims(self, issuer: str) -> dict[str, Any]:
        """The claims of RFC 9068 section 2.2; an introspection answers the same."""
        claims: dict[str, Any] = {
            "iss": issuer,
            "sub": self.authorization.subject,
            "client_id": self.client_id,
            "aud": self.resource,
            "scope": self.scope,
            "iat": self.issued_at,
            "exp": int(self.expires_at),
            "jti": self.jti,
        }
        if self.authorization.roles:
            claims["roles"] = list(self.authorization.roles)
        if self.act is not None:
            claims["act"] = self.act
        return claims


class KeyRing:
    """The keys that tokens are signed with. The newest signs; older ones stay published until they are removed."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        self._keys: list[ECKey | RSAKey] = []
        self.rotate()

    def rotate(self) -> None:
        """Sign with a new key from now on; tokens of the old ones stay good."""
        parameters = {"kid": secrets.token_hex(8), "use": "sig", "alg": self.algorithm}
        if self.algorithm == "ES256":
            self._keys.insert(0, ECKey.generate_key("P-256", parameters))  # type: ignore[arg-type]
        else:
            self._keys.insert(0, RSAKey.generate_key(2048, parameters))  # type: ignore[arg-type]

    def remove_old(self) -> None:
        """Publish the newest key alone: the tokens of older ones are worth nothing any more."""
        del self._keys[1:]

    @property
    def rotating(self) -> bool:
        """Whether older keys are published still."""
        return len(self._keys) > 1

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A JWT of the type that RFC 9068 section 2.1 asks for."""
        key = self._keys[0]
        header = {"alg": self.algorithm, "typ": "at+jwt", "kid": key.kid}
        return jwt.encode(header, dict(claims), key)

    def public(self) -> dict[str, Any]:
        """The key set (RFC 7517)."""
        return {"keys": [key.as_dict(private=False) for key in self._keys]}
