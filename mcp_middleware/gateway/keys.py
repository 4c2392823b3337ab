"""Every key of the gateway's file, in one table: what it may be, what it is for, and what holds without it; and all of
them as typed values.

The reader, the JSON Schema and the reference in the documentation are made from the table. A section's own keys and
values are in the module of ``sections`` that has its name; what several keys mean together is for ``config``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mcp_middleware.authorization import Policy
from mcp_middleware.member import Bounds
from mcp_middleware.ratelimit import Budget, Prices
from mcp_middleware.resource_server.origins import AllowedOrigins

from .scalars import Duration, Flag, Secret, Size, Whole
from .sections.access import ACCESS
from .sections.audit import AUDIT, AuditConfig
from .sections.auth import AUTH, AuthConfig
from .sections.bounds import BOUNDS
from .sections.budgets import BUDGETS
from .sections.guard import GUARD, GuardConfig
from .sections.limits import LIMITS, LimitsConfig
from .sections.prices import PRICES
from .sections.servers import SERVERS, ServerConfig
from .sections.sessions import SESSIONS, SessionsConfig
from .sections.tls import TLS, TLSConfig
from .sections.tracing import TRACING, TracingConfig
from .shapes import Key, ListOf, Section, Text
from .values import WEB_URL, web_url

__all__ = ["FILE", "Config", "url_of"]

_HOST_NAME: Final = re.compile(r"\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole configuration, checked."""

    source: str
    """Where it was read from, as errors name it."""
    host: str
    """Address to listen on, an IPv6 one without brackets."""
    port: int
    """0 takes any that is free."""
    public_url: str
    """Without a slash at its end."""
    servers: Mapping[str, ServerConfig]
    auth: AuthConfig | None
    """None: off."""
    policies: Mapping[str, Policy | None]
    """For each server the rules that are about it; None where there is no access section."""
    limits: LimitsConfig | None = None
    prices: Prices | None = None
    budgets: tuple[Budget, ...] = ()
    guard: GuardConfig | None = None
    sessions: SessionsConfig = field(default_factory=SessionsConfig)
    tracing: TracingConfig | None = None
    audit: AuditConfig | None = None
    state: str = field(default="memory", repr=False)
    """``memory``, or a Redis URL, which may hold a password."""
    workers: int = 1
    replicas: int = 1
    """Gateways that share ``state``."""
    tls: TLSConfig | None = None
    hosts: tuple[str, ...] = ()
    """``Host`` values besides those of ``public_url`` and of the address, in lower case."""
    origins: tuple[str, ...] = ()
    """As ``allowed_origins`` of ``OAuthResourceServerMiddleware``."""
    bounds: Bounds = field(default_factory=Bounds)
    drain: float = 30.0
    """Seconds that calls in flight get to finish."""
    connections_per_agent: int = 1000
    body_memory: int = 256 * 1024 * 1024
    """Bytes of large bodies that one process holds."""
    access_log: bool = True
    """Whether a line is written for each request."""
    files: tuple[Path, ...] = ()
    """What else was read: the policy and secrets that are in files of their own."""
    warnings: tuple[str, ...] = ()
    """What is dangerous about it, a sentence each."""

    @property
    def state_name(self) -> str:
        """``state`` as it may be shown: without user and password."""
        if self.state == "memory":
            return self.state
        parts = urlsplit(self.state)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def own_url(self, port: int | None = None) -> str:
        """Where it listens, by the file or at ``port``; what ``public_url`` is where the file does not say."""
        return url_of(self.host, self.port if port is None else port, tls=self.tls is not None)

    def resource(self, server: str) -> str:
        """The URL of one server's endpoint, which is its resource identifier (RFC 8707)."""
        return f"{self.public_url}/{server}/mcp"


def url_of(host: str, port: int, *, tls: bool) -> str:
    """The URL of an address that is listened on."""
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not _HOST_NAME.fullmatch(host) or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError
    if host.startswith("["):
        host = str(ip_address(host[1:-1]))
    return host, int(port)


def _host(text: str) -> str:
    _, colon, port = text.rpartition(":")
    if not text.endswith("]") and colon and port.isdigit():
        _host_and_port(text)
    elif not _HOST_NAME.fullmatch(text):
        raise ValueError
    return text.lower()


def _origin(text: str) -> str:
    AllowedOrigins("http://localhost", [text])
    return text.lower()


def _public_url(text: str) -> str:
    return web_url(text).rstrip("/")


def _state(text: str) -> str:
    if text == "memory":
        return text
    parts = urlsplit(text)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or parts.port == 0 or parts.fragment:
        raise ValueError
    if not re.fullmatch(r"/?|/[0-9]{1,4}", parts.path, re.ASCII):
        raise ValueError
    return text


_LISTEN: Final = Text(
    "host:port",
    "be host:port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080",
    _host_and_port,
    r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$",
    ("127.0.0.1:8080", "[::1]:8080"),
)
_PUBLIC_URL: Final = replace(WEB_URL, check=_public_url, examples=("https://mcp.example.com",))
_STATE: Final = Secret(
    "`memory`, or secret",
    "be memory, or a URL such as redis://host:6379/0, or {file: PATH}",
    _state,
    ("memory", "redis://127.0.0.1:6379/0"),
)
_HOST: Final = Text("host", "be a host, or host:port", _host, r"^[\[\]A-Za-z0-9._:-]+$", ("mcp.internal:8080",))
_ORIGIN: Final = Text(
    "origin",
    "be an origin, such as https://app.example.com, or '*' for all",
    _origin,
    r"^(\*|[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#@]+)$",
    ("https://app.example.com",),
)

FILE: Final = Section(
    "",
    (
        Key("listen", _LISTEN, "The address to listen on.", "127.0.0.1:8080"),
        Key(
            "public_url",
            _PUBLIC_URL,
            "The URL clients know this gateway by. The resource identifier of each server, which its tokens must name, "
            "is this and `/{server}/mcp`. Its path may arrive here, or be taken away by what stands in front. Without "
            "it: the address of `listen`, where that is a loopback one.",
        ),
        Key(
            "servers",
            SERVERS,
            "The MCP servers. Each is served at `/{server}/mcp`.",
            required=True,
        ),
        Key(
            "auth",
            AUTH,
            "Whose access tokens are accepted, or `off`: everybody may call, and all are one caller.",
            required=True,
        ),
        Key(
            "allow_unauthenticated",
            Flag(),
            "Permits `auth: off` on an address that other machines reach.",
            False,
        ),
        Key("access", ACCESS, "Who may see and call what. Without it, everybody may call everything."),
        Key(
            "limits",
            LIMITS,
            "Limits of each caller (an agent, and the person it acts for), over all servers. Without it there are "
            "none.",
        ),
        Key("prices", PRICES, "What calls cost. Each call's cost is then in the audit trail."),
        Key(
            "budgets",
            BUDGETS,
            "What each agent, whoever it acts for, may spend in a day or a month, over all servers. All that match "
            "hold.",
        ),
        Key(
            "guard",
            GUARD,
            "Plain limits on requests before anybody looks at their token, in each process by itself.",
        ),
        Key("sessions", SESSIONS, "Sessions of the revisions that have them (up to 2025-11-25).", {}),
        Key("tracing", TRACING, "Traces and metrics by OpenTelemetry. Without it none are made."),
        Key("audit", AUDIT, "The audit trail. Without it there is none."),
        Key(
            "state",
            _STATE,
            "Where buckets and sessions are counted: `memory` is one process's own, Redis is shared by workers and "
            "replicas.",
            "memory",
        ),
        Key("workers", Whole(256), "Processes that serve the address.", 1),
        Key(
            "replicas",
            Whole(1000),
            "Gateways that share the Redis of `state`. While it is away, each process lets its share of the limits "
            "pass. Without one they share nothing, and each lets the whole of them pass.",
            1,
        ),
        Key("tls", TLS, "Serve https. Without it the gateway speaks http, for a proxy that does."),
        Key(
            "hosts",
            ListOf(_HOST, least=0),
            "Hosts that requests may name, besides those of `public_url` and `listen`.",
            [],
        ),
        Key(
            "origins",
            ListOf(_ORIGIN, least=0),
            "Web origins whose pages may call, besides that of `public_url`.",
            [],
        ),
        Key("bounds", BOUNDS, "What one request may take.", {}),
        Key(
            "drain", Duration(), "How long calls in flight may take to finish once the gateway is told to stop.", "30s"
        ),
        Key(
            "connections_per_agent",
            Whole(),
            "How many requests and streams, counted together, one caller (an agent, and the person it acts for) may "
            "have open at once in one process. Beyond that it may have a quarter more, at least 16, of what is no call "
            "and no stream, and of bodies on their way. Connections themselves are not counted.",
            1000,
        ),
        Key(
            "body_memory",
            Size(),
            "How much of requests' bodies one process holds at once, one caller a quarter of it; more is answered 503. "
            "Bodies up to 64KiB are not counted.",
            "256MiB",
        ),
        Key("access_log", Flag(), "Whether each request gets a line on standard error.", True),
    ),
)
