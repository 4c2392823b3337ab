"""What the gateway's file says, as typed values. Reading it opens no socket and no database, and changes nothing.

Everything wrong is reported at once, each with its line, its value and what is allowed. Values that came from the
environment or from a secret's file are never part of an error, a repr or a log line.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from mcp_middleware.authorization import Policy
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.member import Bounds
from mcp_middleware.nodes import Node, read_file, read_mapping
from mcp_middleware.oauth.urls import is_loopback
from mcp_middleware.ratelimit import Budget, ExactCounter, Prices
from mcp_middleware.resource_server.issuers import Issuer
from mcp_middleware.resource_server.scopes import ScopeHierarchy

from .credentials import CallerConfig, GrantConfig, HeaderConfig
from .keys import FILE
from .limits import GuardConfig, LimitsConfig, dangers, unpriced_globs
from .source import INVALID, Reading, with_environment

__all__ = [
    "AuditConfig",
    "AuthConfig",
    "Config",
    "ConfigErrors",
    "ServerConfig",
    "SessionsConfig",
    "TLSConfig",
    "TracingConfig",
    "from_mapping",
    "load",
]


_PROMPT: Final = 30.0
"""Seconds within which a revocation is to be seen."""


class ConfigErrors(ConfigurationError):  # noqa: N818 - it is several
    """Everything that is wrong with a configuration: one line each, in the order of the file."""

    def __init__(self, errors: tuple[str, ...]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """One MCP server, served at ``/{name}/mcp``."""

    name: str
    instances: tuple[str, ...]
    """The URLs of its MCP endpoint, at least one."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Added to each request: names in lower case, values that may be secrets."""
    credentials: HeaderConfig | GrantConfig | None = None
    """What it knows the gateway by."""
    caller: CallerConfig | None = None
    """The signed header that names the caller; None does not."""
    timeout: float = 60.0
    """Seconds until an answer must have begun."""
    stream_idle: float = 300.0
    """Seconds that a stream may be silent."""
    probe_interval: float = 5.0
    """Seconds after which an instance that failed is asked whether it is back."""

    @property
    def fixed_headers(self) -> Mapping[str, str]:
        """The headers that are the same in every request."""
        credential = self.credentials
        return (
            {**self.headers, credential.name: credential.value}
            if isinstance(credential, HeaderConfig)
            else self.headers
        )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionsConfig:
    """As ``SessionAffinityMiddleware`` takes them."""

    keys: tuple[str, ...] = field(default=(), repr=False)
    """The first seals, all open. Empty: a key has to be made, for this process alone."""
    idle: float = 1800.0
    """Seconds."""
    lifetime: float = 43_200.0
    """Seconds."""
    per_agent: int | None = 100
    """Open sessions of one agent; None does not limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingConfig:
    """Where traces and metrics go, and the options of ``TraceContextMiddleware``."""

    otlp: str
    """The base URL of an OTLP receiver over HTTP."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    sample: float = 1.0
    """The share of traces to record, from 0 to 1."""
    baggage: tuple[str, ...] = ()
    trust: Literal["none", "authenticated", "all"] = "none"
    capture_content: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """Where the audit trail goes: one file or both."""

    sqlite: Path | None = None
    jsonl: Path | None = None
    on_failure: Literal["refuse", "continue"] = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSConfig:
    """PEM files."""

    cert: Path
    key: Path


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

    @property
    def own_url(self) -> str:
        """Where it listens; what ``public_url`` is where the file does not say."""
        return _url_of(self.host, self.port, tls=self.tls is not None)

    def resource(self, server: str) -> str:
        """The URL of one server's endpoint, which is its resource identifier (RFC 8707)."""
        return f"{self.public_url}/{server}/mcp"


def _url_of(host: str, port: int, *, tls: bool) -> str:
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def load(path: str | os.PathLike[str], *, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration in a YAML file. Relative paths in it start where the file is.

    Raises ConfigErrors, a ConfigurationError.
    """
    reading = Reading(environ, Path(path).absolute().parent if isinstance(path, str | os.PathLike) else Path())
    try:
        root = read_file(path, what="the configuration", problems=reading.problems)
    except ConfigurationError as error:
        raise ConfigErrors(tuple(str(error).splitlines())) from None
    return _read(root, str(path), reading)


def from_mapping(
    mapping: Mapping[str, Any], *, environ: Mapping[str, str] = os.environ, source: str = "configuration"
) -> Config:
    """The configuration in Python values of the file's form. Relative paths in it start at the current directory.

    ``source`` is its name in errors. Raises ConfigErrors, a ConfigurationError.
    """
    try:
        root = read_mapping(mapping, source=source)
    except ConfigurationError as error:
        raise ConfigErrors(tuple(str(error).splitlines())) from None
    return _read(root, source, Reading(environ, Path.cwd()))


def _read(root: Node, source: str, reading: Reading) -> Config:
    root = with_environment(root, "", reading)
    values = FILE.values(root, "", reading)
    if values is INVALID:
        raise ConfigErrors(_in_order(reading.problems, source))
    parts = _Parts(root, values, reading)
    config = parts.config(source)
    if reading.problems or config is None:
        raise ConfigErrors(_in_order(reading.problems, source))
    return config


def _in_order(problems: list[str], source: str) -> tuple[str, ...]:
    """Problems as the lines of the file come, those of other files last."""

    def place(problem: str) -> tuple[bool, int]:
        match = re.match(r":(\d+): ", problem.removeprefix(source))
        return not problem.startswith(source), int(match[1]) if match else 0

    return tuple(sorted(dict.fromkeys(problems), key=place))


def _is_readable_on_the_way(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def _private(place: str) -> str:
    return f"{place}.allow_private_addresses is true: its metadata can have the gateway send requests into this network"


class _Parts:
    """The sections of a file, checked against each other. A value that is wrong by itself is INVALID, and no reason to
    find fault with another."""

    def __init__(self, root: Node, values: Mapping[str, Any], reading: Reading) -> None:
        self.root = root
        self.values = values
        self.reading = reading
        self.warnings: list[str] = []

    def node(self, *keys: str) -> Node:
        """The node at a key, or the nearest around it that is there."""
        node = self.root
        for key in keys:
            node = node.members.get(key, node)
        return node

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def config(self, source: str) -> Config | None:
        values = self.values
        made = {
            "servers": self.servers(),
            "policies": self.policies(),
            "public_url": self.public_url(),
            "auth": self.auth(),
            "limits": self.limits(),
            "prices": self.prices(),
            "budgets": self.budgets(),
            "guard": self.values["guard"],
            "sessions": self.sessions(),
            "tracing": self.tracing(),
            "audit": self.audit(),
            "tls": self.tls(),
        }
        self.judge_limits(made)
        self.workers(made)
        if self.reading.problems:
            return None
        host, port = values["listen"]
        same = (
            "state",
            "workers",
            "replicas",
            "hosts",
            "origins",
            "bounds",
            "drain",
            "connections_per_agent",
            "access_log",
        )
        return Config(
            source=source,
            host=host,
            port=port,
            **made,
            **{name: values[name] for name in same},
            files=tuple(self.reading.files),
            warnings=tuple(self.warnings),
        )

    def servers(self) -> Any:
        found = self.values["servers"]
        if found is INVALID:
            return INVALID
        servers: dict[str, ServerConfig] = {}
        for name, given in found.items():
            given = dict(given)
            url, instances, _ = given.pop("url"), given.pop("instances"), given.pop("limits")
            servers[name] = server = ServerConfig(name=name, instances=instances or (url,), **given)
            self._judge_credentials(server)
        return servers

    def _judge_credentials(self, server: ServerConfig) -> None:
        """What is said of one server in several places."""
        place, grant = f"servers.{server.name}", server.credentials
        taken = dict.fromkeys(server.headers, "headers")
        if grant is not None:
            self._take(taken, grant.name if isinstance(grant, HeaderConfig) else "authorization", server, "credentials")
        if server.caller is not None:
            self._take(taken, server.caller.header, server, "caller")
        off = self.values["auth"] == "off"
        if off and isinstance(grant, GrantConfig) and grant.type == "token_exchange":
            node = self.node("servers", server.name, "credentials", "type")
            self.reading.wrong(
                node, f"{place}.credentials.type", "be another, since auth is off: there are no tokens to exchange"
            )
        if off and server.caller is not None:
            node = self.node("servers", server.name, "caller")
            self.reading.at(node, f"{place}.caller is of no use where auth is off: all callers are one; leave it out")
        if off and grant is not None:
            self.warn(f"{place}.credentials are lent to everybody who reaches the gateway, since auth is off")
        if any(map(_is_readable_on_the_way, server.instances)):
            for key, told in (("headers", server.headers), ("credentials", grant), ("caller", server.caller)):
                if told:
                    self.warn(f"{place}.{key} go over http to another machine: they can be read on the way")
        if isinstance(grant, GrantConfig) and grant.allow_private_addresses:
            self.warn(_private(f"{place}.credentials"))

    def _take(self, taken: dict[str, str], header: str, server: ServerConfig, key: str) -> None:
        """Note that a header is what ``key`` sets, and that nothing else may."""
        if header in taken:
            path = f"servers.{server.name}"
            node = self.node("servers", server.name, key)
            self.reading.at(node, f"{path}.{key} and {path}.{taken[header]} both set the header {header}; keep one")
        taken.setdefault(header, key)

    def policies(self) -> Any:
        access = self.values["access"]
        servers = self.root.members.get("servers")
        names = tuple(servers.members) if servers else ()
        if access is None:
            self.warn("access is not given: every caller may see and call everything")
            return dict.fromkeys(names)
        if access is INVALID:
            return INVALID
        prefix = "access."
        try:
            if not isinstance(access, Node):
                prefix = ""
                self.reading.files.append(access["file"])
                access = read_file(access["file"], what="the policy")
            return Policy.for_servers(access, names, inside=prefix)
        except ConfigurationError as error:
            self.reading.problems += str(error).splitlines()
            return INVALID

    def public_url(self) -> Any:
        url, listen, tls = (self.values[key] for key in ("public_url", "listen", "tls"))
        if url is INVALID or listen is INVALID:
            return INVALID
        host, port = listen
        node = self.node("public_url")
        if url is None:
            if not is_loopback(host) or not port:
                return self.reading.at(
                    node, "public_url is missing; it must be the URL that clients know the gateway by"
                )
            return _url_of(host, port, tls=tls is not None)
        if _is_readable_on_the_way(url):
            if self.values["auth"] != "off":
                return self.reading.wrong(node, "public_url", "be https: it is what access tokens are for (RFC 9728)")
            self.warn("public_url is http: everybody on the way can read and change what is said")
        return url

    def auth(self) -> Any:
        auth = self.values["auth"]
        if auth is INVALID:
            return INVALID
        if auth != "off":
            issuers = [Issuer(issuer) if isinstance(issuer, str) else issuer for issuer in auth["issuers"]]
            names = [issuer.issuer for issuer in issuers]
            for name in dict.fromkeys(names):
                if names.count(name) > 1:
                    return self.reading.at(self.node("auth", "issuers"), "auth.issuers has an issuer twice; keep one")
            for number, issuer in enumerate(issuers):
                self._judge_issuer(f"auth.issuers[{number}]", issuer)
            try:
                ScopeHierarchy(auth["implied_scopes"])
            except ConfigurationError as error:
                return self.reading.at(self.node("auth", "implied_scopes"), f"auth.{error}")
            return AuthConfig(**{**auth, "issuers": tuple(issuers)})
        self.warn("auth is off: nobody is asked who they are, and all callers are one agent")
        listen, allowed = self.values["listen"], self.values["allow_unauthenticated"]
        if listen is not INVALID and allowed is False and not is_loopback(listen[0]):
            self.reading.at(
                self.node("auth"),
                "auth is off, and listen is an address that other machines reach; it must be a mapping with issuers, "
                "or listen be 127.0.0.1, or allow_unauthenticated be true",
            )
        return None

    def _judge_issuer(self, place: str, issuer: Issuer) -> None:
        if issuer.allow_private_addresses:
            self.warn(_private(place))
        if issuer.introspection is not None and issuer.introspection.cache > _PROMPT:
            self.warn(f"{place}.introspection.cache is above {_PROMPT:g} s: a revoked token is good for so long")

    def limits(self) -> Any:
        given, servers = self.values["limits"], self.values["servers"]
        if given is INVALID or servers is INVALID:
            return INVALID
        own = {name: server["limits"] for name, server in servers.items() if server["limits"] is not None}
        if given is None and len(own) < len(servers):
            self.warn("limits is not given: one agent can take all that the servers have")
        if given is None:
            return LimitsConfig(servers=own) if own else None
        off = {name: None for name in ("requests", "tokens", "concurrency") if given[name] == "off"}
        limits = LimitsConfig(**{**given, **off}, servers=own)
        node = self.node("limits")
        if limits.limit_nothing and self.values["prices"] is None:
            remedy = "give requests, tokens, concurrency, agents or tools"
            return self.reading.at(node, f"limits limits nothing; {remedy}")
        if limits.counter != "estimate":
            try:
                ExactCounter(limits.counter)
            except ConfigurationError as error:
                return self.reading.at(
                    self.node("limits", "counter"), f"limits.counter is {limits.counter!r}; {error}, or leave it out"
                )
        return limits

    def prices(self) -> Any:
        prices, servers = self.values["prices"], self.values["servers"]
        if prices is None or prices is INVALID or servers is INVALID:
            return prices
        for number, glob in unpriced_globs(prices, tuple(servers)):
            node = self.node("prices", "rules").items[number].members["servers"]
            self.reading.at(
                node,
                f"prices.rules[{number}].servers has the glob {glob!r}, which matches no server; the servers are "
                + ", ".join(servers),
            )
        return prices

    def budgets(self) -> Any:
        budgets = self.values["budgets"]
        if budgets is None or budgets is INVALID:
            return () if budgets is None else INVALID
        if self.values["prices"] is None:
            self.reading.at(self.node("budgets"), "budgets is of no use without prices, by which calls are paid for")
        return budgets

    def judge_limits(self, made: Mapping[str, Any]) -> None:
        """What is dangerous about limits, prices, budgets and the guard."""
        names = ("limits", "prices", "budgets", "guard", "servers")
        limits, prices, budgets, guard, servers = (made[name] for name in names)
        if INVALID not in (limits, prices, budgets, guard, servers):
            for text in dangers(limits, prices, budgets, guard, tuple(servers)):
                self.warn(text)
        listen, url = self.values["listen"], made["public_url"]
        if INVALID in (listen, url, guard) or guard is None or guard.addresses is None or guard.trusted_proxies:
            return
        if is_loopback(listen[0]) and not is_loopback(urlsplit(url).hostname or ""):
            self.warn(
                "guard.trusted_proxies is not given, and only this machine reaches listen: all callers have the "
                "address of the proxy, and one of them locks out all"
            )

    def sessions(self) -> Any:
        sessions = self.values["sessions"]
        if sessions is INVALID:
            return INVALID
        if not sessions["keys"]:
            self.warn(
                "sessions.keys is not given: a key is made for this process alone, and a restart ends all sessions"
            )
        per_agent = sessions["per_agent"]
        return SessionsConfig(**{**sessions, "per_agent": None if per_agent == "off" else per_agent})

    def tracing(self) -> Any:
        tracing = self.values["tracing"]
        if tracing is None or tracing is INVALID:
            return tracing
        if tracing["capture_content"]:
            self.warn("tracing.capture_content is true: spans hold arguments and results, which may hold secrets")
        if tracing["trust"] == "all":
            self.warn("tracing.trust is all: every caller decides what is sampled")
        return TracingConfig(**tracing)

    def audit(self) -> Any:
        audit = self.values["audit"]
        if audit is None:
            self.warn("audit is not given: nobody will know who called what")
        if audit is None or audit is INVALID:
            return audit
        if audit["sqlite"] == audit["jsonl"]:
            return self.reading.at(self.node("audit"), "audit.sqlite and audit.jsonl are the same file; give two")
        if audit["on_failure"] == "continue":
            self.warn("audit.on_failure is continue: calls go on while they cannot be recorded")
        if audit["sqlite"] is None:
            self.warn("audit.sqlite is not given: a process that is killed loses its last records")
        return AuditConfig(**audit)

    def tls(self) -> Any:
        tls = self.values["tls"]
        return tls if tls is None or tls is INVALID else TLSConfig(**tls)

    def workers(self, made: Mapping[str, Any]) -> None:
        """Several workers count together or not at all."""
        workers, state = self.values["workers"], self.values["state"]
        limits, budgets, sessions = made["limits"], made["budgets"], made["sessions"]
        if workers is INVALID or workers == 1:
            return
        node = self.node("workers")
        if isinstance(sessions, SessionsConfig) and not sessions.keys:
            must = "be 1, or sessions.keys be given: each worker would make a key of its own"
            self.reading.wrong(node, "workers", must)
        if state != "memory":
            return
        counted = []
        if limits is not None and (limits is INVALID or limits.mode != "off"):
            counted.append("limits")
        if budgets and (not isinstance(limits, LimitsConfig) or limits.mode != "off"):
            counted.append("budgets")
        if sessions is not INVALID and sessions.per_agent is not None:
            counted.append("sessions.per_agent")
        if counted:
            must = (
                f"be 1, or state be a Redis URL, or {' and '.join(counted)} be off: each worker would count by itself"
            )
            self.reading.wrong(node, "workers", must)
        else:
            self.warn("workers do not share their state: a session that was ended or idle is so to one worker only")
