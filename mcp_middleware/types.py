"""The values and small interfaces that members share. No I/O, no behaviour beyond what a value can answer itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

__all__ = [
    "ANONYMOUS",
    "AccessToken",
    "Clock",
    "Decision",
    "Document",
    "Era",
    "Headers",
    "Instances",
    "Money",
    "Principal",
    "Rejection",
    "TokenVerifier",
    "Usage",
    "Verdict",
]

Clock: TypeAlias = Callable[[], float]
"""Seconds, as ``time.time`` (dates that leave the process) or ``time.monotonic`` (durations) gives them."""

Headers: TypeAlias = list[tuple[bytes, bytes]]
"""ASGI headers: lower-case names, raw values."""

Era: TypeAlias = Literal["legacy", "modern"]
"""``legacy``: revisions up to 2025-11-25, with sessions. ``modern``: 2026-07-28 and later, without."""


Verdict: TypeAlias = Literal["allowed", "denied", "limited", "unauthenticated", "rejected", "unavailable"]
"""What was decided of a message before the server could see it.

``allowed``: it went to the server. ``denied``: the policy or the caller's scopes forbid it. ``limited``: a limit was
used up. ``unauthenticated``: no valid credential. ``rejected``: malformed, or not acceptable as it was sent.
``unavailable``: a part the answer depends on was down.
"""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: one client of one issuer, acting for one subject. Limits, sessions and audit are keyed by it."""

    issuer: str | None
    client: str
    """OAuth ``client_id`` (or ``azp``): the agent."""
    subject: str | None
    """OAuth ``sub``: the person, or the client itself for a machine's token."""
    scopes: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    expires_at: float | None = None
    """End of the credential, Unix seconds."""
    claims: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False, repr=False)

    @property
    def key(self) -> tuple[str | None, str, str | None]:
        """What stays the same over new tokens, addresses and sessions (issuer, client, subject)."""
        return (self.issuer, self.client, self.subject)

    @classmethod
    def from_access_token(cls, token: "AccessToken") -> "Principal":
        """Whose a verified token is, whoever verified it. Without ``sub`` a client acts for itself. ``roles`` is a
        list, or one role; a claim that holds anything else names none."""
        claims: Mapping[str, Any] = getattr(token, "claims", None) or {}  # older SDKs' tokens have none, nor a subject
        issuer, roles = claims.get("iss"), claims.get("roles")
        subject = getattr(token, "subject", None) or claims.get("sub")
        if isinstance(roles, str):
            roles = [roles]
        elif not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            roles = []
        return cls(
            issuer=issuer if isinstance(issuer, str) else None,
            client=token.client_id,
            subject=subject if isinstance(subject, str) and subject else token.client_id,
            scopes=frozenset(token.scopes),
            roles=frozenset(roles),
            expires_at=token.expires_at,
            claims=claims,
        )


ANONYMOUS = Principal(issuer=None, client="anonymous", subject=None)
"""Every caller whom nobody authenticated. They share one key, so that inventing identities gains nothing."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy says of one message."""

    allowed: bool
    rule: str | None = None
    """The rule that decided, as the audit trail should name it (``rules[2]``), or None for the default."""
    visible: bool = False
    """A denied target the caller may still see: it is answered 403, an invisible one as if it did not exist."""
    scopes: tuple[str, ...] = ()
    """Every scope the operation needs, met ones included. A denied one has some only where scopes alone stand between
    caller and target."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A refusal as a value: what the HTTP answer says, and what the audit trail says."""

    status: int
    """HTTP status."""
    code: int | None
    """JSON-RPC error code; None answers without a body."""
    message: str
    reason: str
    """A stable word for audit and metrics: ``no_token``, ``rate_limited``, ``not_allowed``, ..."""
    data: Mapping[str, Any] | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    rule: str | None = None
    request_id: int | str | None = None
    """The id to answer with, where the message was refused before it became one."""
    result: Mapping[str, Any] | None = None
    """Answered in place of the error, to callers who see only what a tool says."""


@dataclass(frozen=True, slots=True)
class Document:
    """A whole HTTP answer that is no refusal, such as a metadata document."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(slots=True)
class Usage:
    """Tokens of one call, as the limiter counted them."""

    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Money:
    """An amount of one currency, exact to its billionth part. Amounts of two currencies are never added."""

    nanos: int
    """Billionths of the currency's unit: whole numbers, so that sums have no rounding."""
    currency: str

    @property
    def amount(self) -> float:
        """In units of the currency. Of amounts below a million, every billionth can be read back from it."""
        return self.nanos / 1_000_000_000


class AccessToken(Protocol):
    """What a verified token says. The MCP SDK's ``AccessToken`` has these fields, so its verifiers fit."""

    @property
    def token(self) -> str: ...
    @property
    def client_id(self) -> str: ...
    @property
    def scopes(self) -> list[str]: ...
    @property
    def expires_at(self) -> int | None: ...
    @property
    def resource(self) -> str | None: ...
    @property
    def subject(self) -> str | None: ...
    @property
    def claims(self) -> dict[str, Any] | None: ...


class TokenVerifier(Protocol):
    """Turns a bearer token into what it proves, or None if it proves nothing (the MCP SDK's own signature)."""

    async def verify_token(self, token: str) -> AccessToken | None: ...


class Instances(Protocol):
    """The instances of one server, by name: session affinity asks where a request may go."""

    def choose(self) -> str | None:
        """The least busy instance that may be used; None where there is none."""
        ...

    def is_usable(self, name: str) -> bool:
        """Whether there is an instance of that name, and it is not taken for dead."""
        ...
