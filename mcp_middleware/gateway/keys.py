"""Every key of the gateway's file, in one table: what it may be, what it is for, and what holds without it.

The reader, the JSON Schema and the reference in the documentation are made from it. What several keys mean together
is for ``config``.
"""

import re
from collections.abc import Callable, Collection, Mapping
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from mcp_middleware.affinity.sealing import KeyRing
from mcp_middleware.authorization.loader import Node
from mcp_middleware.authorization.rules import POLICY_KEYS, RULE_KEYS
from mcp_middleware.member import Bounds
from mcp_middleware.ratelimit.rate import AgentLimits, Rate
from mcp_middleware.resource_server.keys import ALGORITHMS
from mcp_middleware.resource_server.metadata import scope_names
from mcp_middleware.resource_server.origins import AllowedOrigins
from mcp_middleware.resource_server.tokens import Issuer
from mcp_middleware.resource_server.urls import absolute_url
from mcp_middleware.tracing.propagation import is_baggage_key

from .headers import HOP_BY_HOP
from .shapes import Duration, Either, File, Flag, Key, ListOf, MapOf, Off, OneOf, Secret, Section, Size, Text, Whole
from .source import Reading

__all__ = ["FILE"]

_MAX_NAME: Final = 64
_RESERVED: Final = frozenset({"healthz", "readyz"})
_SERVER_NAME: Final = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,{_MAX_NAME - 1}}}", re.ASCII)
_HOST: Final = re.compile(r"\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+", re.ASCII)
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_FIELD_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?", re.ASCII)
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


def _keys_url(text: str) -> str:
    absolute_url("", text, query=True)
    return text


def _server_name(text: str) -> str:
    if not _SERVER_NAME.fullmatch(text) or text in _RESERVED:
        raise ValueError
    return text


def _header_name(text: str) -> str:
    name = text.lower()
    if not _FIELD_NAME.fullmatch(text) or name in _OURS or name.startswith("mcp-"):
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


def _one_place(given: Collection[str]) -> str | None:
    if ("url" in given) != ("instances" in given):
        return None
    return f"has {'both' if 'url' in given else 'neither'} of url and instances; it must have one of them"


def _some_of(given: Collection[str], *names: str) -> str | None:
    return None if any(name in given for name in names) else f"is of no use without {' or '.join(names)}; give one"


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


def _agent_limits(values: Mapping[str, Any]) -> AgentLimits:
    given = {name: value for name, value in values.items() if value is not None}
    return AgentLimits(**{name: None if value == "off" else value for name, value in given.items()})


def _bounds(values: Mapping[str, Any]) -> Bounds:
    return Bounds(**values)


def _issuer(values: Mapping[str, Any]) -> Issuer:
    return Issuer(**{name: value for name, value in values.items() if value is not None})


def _text(label: str, must: str, check: Callable[[str], Any] = str, pattern: str = ".", *examples: str) -> Text:
    return Text(label, must, check, pattern, examples)


_LISTEN: Final = _text(
    "host:port",
    "be host:port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080",
    _host_and_port,
    r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$",
    "127.0.0.1:8080",
    "[::1]:8080",
)
_NO_EXTRAS: Final = "be an absolute http or https URL without user, query and fragment"
_URL_PATTERN: Final = r"^https?://[^\s/?#@]+(/[^\s?#]*)?$"
_PUBLIC_URL: Final = _text("URL", _NO_EXTRAS, _public_url, _URL_PATTERN, "https://mcp.example.com")
_COLLECTOR: Final = _text("URL", _NO_EXTRAS, _url, _URL_PATTERN, "http://127.0.0.1:4318")
_INSTANCE: Final = _text("URL", _NO_EXTRAS, _instance, _URL_PATTERN, "http://127.0.0.1:9001/mcp")
_IDENTIFIER_MUST: Final = "be an absolute https URL (http only on a loopback host) without user, query and fragment"
_ISSUER: Final = _text("URL", _IDENTIFIER_MUST, _identifier, _URL_PATTERN, "https://login.example.com")
_JWKS: Final = _text(
    "URL",
    "be an absolute https URL (http only on a loopback host) without user and fragment",
    _keys_url,
    r"^https?://[^\s#@]+$",
    "https://login.example.com/keys",
)
_SERVER_NAMED: Final = _text(
    "the server's name",
    f"be at most {_MAX_NAME} of a-z, 0-9, - and _, with a letter or digit first, and neither healthz nor readyz",
    _server_name,
    rf"^(?!(healthz|readyz)$)[a-z0-9][a-z0-9_-]{{0,{_MAX_NAME - 1}}}$",
    "search",
)
_HEADER_NAMED: Final = _text(
    "header name",
    "be the name of a header (RFC 9110), none that the gateway sets itself or the protocol uses (Mcp-*, Host, Accept, "
    "Connection, Content-*, ...)",
    _header_name,
    r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$",
    "X-Api-Key",
)
_HEADER_VALUE: Final = Secret(
    "secret",
    "be printable ASCII without spaces at its ends, or {file: PATH}",
    _header_value,
    ("${FILES_KEY}",),
)
_HEADERS: Final = MapOf(_HEADER_NAMED, _HEADER_VALUE)
_SCOPES: Final = ListOf(
    _text(
        "scope",
        "be a scope: printable ASCII without space, double quote and backslash, and not offline_access",
        _scope,
        r"^[!#-\[\]-~]+$",
        "mcp:use",
    ),
    least=0,
)
_RATE_TEXT: Final = _text(
    "rate",
    "be a rate such as 60/minute or 100 per 2 hours, of an amount and periods from 1",
    Rate,
    r"^\s*[0-9]+\s*(/|per)\s*([0-9]+\s*)?[a-zA-Z]+\s*$",
    "60/minute",
    "100 per 2 hours",
)
_RATE: Final = Either(
    (
        Off(),
        _RATE_TEXT,
        Section(
            "a rate with a burst",
            (
                Key("rate", _RATE_TEXT, "How fast the bucket refills.", required=True),
                Key("burst", Whole(), "How much of it may come at once. Without it: the amount of the rate."),
            ),
            _rate,
        ),
    ),
    "be a rate such as 60/minute, a mapping with rate and burst, or off",
)


_WORDS: Final = ListOf(Text("string", "be a string"))
_EFFECT: Final = OneOf(("allow", "deny"))
_RULE: Final = Section(
    "access.rules[]",
    tuple(Key(name, _EFFECT if name == "effect" else _WORDS, about) for name, about in RULE_KEYS.items()),
)
_POLICY: Final = Section(
    "access",
    tuple(
        Key(name, {"default": _EFFECT, "rules": ListOf(_RULE, least=0)}[name], POLICY_KEYS[name])
        for name in POLICY_KEYS
    ),
)
"""What ``authorization.rules`` reads, for the schema and the reference."""
_POLICY_FILE: Final = Section(
    "access",
    (
        Key(
            "file",
            File(),
            "A policy file, in place of the keys above; its rules may have `servers` too.",
            required=True,
        ),
    ),
)


class _Access(Either):
    """A policy: here, or in a file of its own. Read as its node, or as the file's section: the rules of a policy are
    for ``authorization.rules``."""

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        if node.kind != "mapping":
            return reading.wrong(node, path, self.must)
        return _POLICY_FILE.read(node, path, reading) if "file" in node.members else node


_ACCESS: Final = _Access((_POLICY, _POLICY_FILE), "be a policy, or a mapping with file")

_SERVER: Final = Section(
    "servers.<name>",
    (
        Key("url", _INSTANCE, "The URL of its MCP endpoint, where it has one instance. Either this or `instances`."),
        Key(
            "instances",
            ListOf(_INSTANCE),
            "The URLs of several equal instances. A session stays on the one that opened it.",
        ),
        Key("headers", _HEADERS, "Headers that the gateway adds to each request, in place of the caller's own.", {}),
        Key("timeout", Duration(), "How long an answer may take to begin; then 504.", "60s"),
        Key("stream_idle", Duration(), "How long a stream may be silent before it is ended.", "5m"),
        Key(
            "probe_interval", Duration(), "How often an instance that was taken out is asked whether it is back.", "5s"
        ),
    ),
    judge=_one_place,
)

_ISSUER_SECTION: Final = Section(
    "auth.issuers[]",
    (
        Key(
            "issuer",
            _ISSUER,
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
            ListOf(_text("string", "be an audience, a string that is not empty")),
            "The audiences of its tokens, where it cannot issue them for the server's URL; in its place.",
        ),
        Key(
            "algorithms",
            ListOf(OneOf(tuple(sorted(ALGORITHMS)))),
            "The signature algorithms it may use. Without it: all of them.",
        ),
        Key("jwks_uri", _JWKS, "Where its keys are. Without it they are found by discovery (RFC 8414)."),
    ),
    _issuer,
)

_AUTH: Final = Section(
    "auth",
    (
        Key(
            "issuers",
            ListOf(Either((_ISSUER, _ISSUER_SECTION), "be an issuer's URL, or a mapping with issuer")),
            "The authorization servers whose access tokens are accepted.",
            required=True,
        ),
        Key("scopes", _SCOPES, "The scopes every token must have.", []),
    ),
)

_AGENT_LIMITS: Final = Section(
    "limits.agents.<glob>",
    (
        Key("requests", _RATE, "In place of everybody's; `off` does not limit."),
        Key("tokens", _RATE, "In place of everybody's; `off` does not limit."),
    ),
    _agent_limits,
)

_LIMITS: Final = Section(
    "limits",
    (
        Key("requests", _RATE, "Requests of each agent."),
        Key("tokens", _RATE, "Tokens of each agent's calls, arguments and results."),
        Key(
            "agents",
            MapOf(_text("glob of client ids", "not be empty"), _AGENT_LIMITS),
            "What differs for agents whose client id matches a glob (`*`, `?`, `[...]`); the first match counts.",
            {},
        ),
    ),
    judge=lambda given: _some_of(given, "requests", "tokens", "agents"),
)

_SESSIONS: Final = Section(
    "sessions",
    (
        Key(
            "keys",
            ListOf(
                Secret(
                    "secret",
                    "be 32 random bytes in base64, as `openssl rand -base64 32` prints, or {file: PATH}",
                    _session_key,
                    ("${SESSION_KEY}",),
                ),
                least=0,
            ),
            "The keys that seal session ids: the first seals, all open, so that keys can be replaced in "
            "turn. Every replica needs the same. Without any, a key is made for this process alone, and a restart "
            "ends all sessions.",
            [],
        ),
        Key("idle", Duration(), "How long a session may be without a request.", "30m"),
        Key("lifetime", Duration(), "How long a session may live.", "12h"),
        Key(
            "per_agent",
            Either((Off(), Whole()), "be a whole number from 1, or off"),
            "Open sessions of one agent.",
            100,
        ),
    ),
)

_TRACING: Final = Section(
    "tracing",
    (
        Key(
            "otlp", _COLLECTOR, "Where spans and metrics go: the base URL of an OTLP receiver over HTTP.", required=True
        ),
        Key("headers", _HEADERS, "Headers for that receiver, such as its credentials.", {}),
        Key(
            "baggage",
            ListOf(_text("string", "be a key of W3C baggage", _baggage_key), least=0),
            "Keys of W3C baggage that go on to the servers. All other baggage stops here.",
            [],
        ),
        Key(
            "trust",
            OneOf(("none", "authenticated", "all")),
            "Whose decision to sample a trace is followed.",
            "none",
        ),
        Key(
            "capture_content",
            Flag(),
            "Put arguments and results of tool calls on spans. They may hold secrets.",
            False,
        ),
    ),
)

_AUDIT: Final = Section(
    "audit",
    (
        Key("sqlite", File(new=True), "A SQLite file for the records."),
        Key("jsonl", File(new=True), "A file for the records as JSON Lines. Both may be given."),
        Key(
            "on_failure",
            OneOf(("refuse", "continue")),
            "Calls while records cannot be kept: `refuse` answers them 503, `continue` serves them unrecorded.",
            "refuse",
        ),
    ),
    judge=lambda given: _some_of(given, "sqlite", "jsonl"),
)

_TLS: Final = Section(
    "tls",
    (
        Key("cert", File(), "The certificate chain, in PEM.", required=True),
        Key("key", File(), "Its private key, in PEM.", required=True),
    ),
)

_BOUNDS: Final = Section(
    "bounds",
    (
        Key("max_body_bytes", Size(), "A request's body; a larger one is answered 413.", "4MiB"),
        Key("max_header_bytes", Size(), "A request's headers; larger ones are answered 431.", "64KiB"),
        Key("body_timeout", Duration(), "How long a request's body may take; then 408.", "10s"),
        Key("max_answer_bytes", Size(), "One message of a server; a larger one becomes an error.", "64MiB"),
    ),
    _bounds,
)

FILE: Final = Section(
    "",
    (
        Key("listen", _LISTEN, "The address to listen on.", "127.0.0.1:8080"),
        Key(
            "public_url",
            _PUBLIC_URL,
            "The URL clients know this gateway by. The resource identifier of each server, which its tokens must name, "
            "is this and `/{server}/mcp`. Without it: the address of `listen`, where that is a loopback one.",
        ),
        Key(
            "servers",
            MapOf(_SERVER_NAMED, _SERVER, least=1),
            "The MCP servers. Each is served at `/{server}/mcp`.",
            required=True,
        ),
        Key(
            "auth",
            Either((Off(), _AUTH), "be a mapping with issuers, or off"),
            "Whose access tokens are accepted, or `off`: everybody may call, and all are one caller.",
            required=True,
        ),
        Key(
            "allow_unauthenticated",
            Flag(),
            "Permits `auth: off` on an address that other machines reach.",
            False,
        ),
        Key("access", _ACCESS, "Who may see and call what. Without it, everybody may call everything."),
        Key("limits", _LIMITS, "Limits of each agent, over all servers. Without it there are none."),
        Key("sessions", _SESSIONS, "Sessions of the revisions that have them (up to 2025-11-25).", {}),
        Key("tracing", _TRACING, "Traces and metrics by OpenTelemetry. Without it none are made."),
        Key("audit", _AUDIT, "The audit trail. Without it there is none."),
        Key(
            "state",
            Secret(
                "`memory`, or secret",
                "be memory, or a URL such as redis://host:6379/0, or {file: PATH}",
                _state,
                ("memory", "redis://127.0.0.1:6379/0"),
            ),
            "Where buckets and sessions are counted: `memory` is one process's own, Redis is shared by workers and "
            "replicas.",
            "memory",
        ),
        Key("workers", Whole(256), "Processes that serve the address.", 1),
        Key(
            "replicas",
            Whole(1000),
            "Gateways that share the Redis of `state`. While it is away, each process lets its share of the limits "
            "pass.",
            1,
        ),
        Key("tls", _TLS, "Serve https. Without it the gateway speaks http, for a proxy that does."),
        Key(
            "hosts",
            ListOf(
                _text("host", "be a host, or host:port", _host, r"^[\[\]A-Za-z0-9._:-]+$", "mcp.internal:8080"), least=0
            ),
            "Hosts that requests may name, besides those of `public_url` and `listen`.",
            [],
        ),
        Key(
            "origins",
            ListOf(
                _text(
                    "origin",
                    "be an origin, such as https://app.example.com, or '*' for all",
                    _origin,
                    r"^(\*|[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#@]+)$",
                    "https://app.example.com",
                ),
                least=0,
            ),
            "Web origins whose pages may call, besides that of `public_url`.",
            [],
        ),
        Key("bounds", _BOUNDS, "What one request may take.", {}),
        Key(
            "drain", Duration(), "How long calls in flight may take to finish once the gateway is told to stop.", "30s"
        ),
        Key("connections_per_agent", Whole(), "Requests and streams that one agent may have open at once.", 1000),
        Key("access_log", Flag(), "Whether each request gets a line on standard error.", True),
    ),
)
