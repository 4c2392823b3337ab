"""Every key of the gateway's file, in one table: what it may be, what it is for, and what holds without it.

The reader, the JSON Schema and the reference in the documentation are made from it. What several keys mean together
is for ``config``.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final, get_args

from mcp_middleware.authorization.rules import POLICY_KEYS, RULE_KEYS
from mcp_middleware.member import Bounds
from mcp_middleware.nodes import Node
from mcp_middleware.oauth.authentication import ClientAuthentication, ClientSecret, PrivateKeyJWT, SecretMethod
from mcp_middleware.ratelimit import AgentLimits, Budget, PartLimits, Price, Prices, Refusal
from mcp_middleware.ratelimit.budgets import BudgetAction
from mcp_middleware.ratelimit.tokens import AUDIO_TOKENS, IMAGE_TOKENS
from mcp_middleware.resource_server import Claims, Introspection, Issuer
from mcp_middleware.resource_server.keys import ALGORITHMS
from mcp_middleware.storage.budgets import Period

from .credentials import CallerConfig, GrantConfig, HeaderConfig
from .limits import INITIAL_OUTPUT_TOKENS, Counting, GuardConfig, ServerLimits
from .shapes import (
    Duration,
    Either,
    File,
    Flag,
    Key,
    Kinds,
    ListOf,
    MapOf,
    Off,
    OneOf,
    Section,
    Share,
    Size,
    Text,
    Whole,
)
from .source import Reading
from .values import (
    AGENT_GLOB,
    AUDIENCE,
    BAGGAGE_KEY,
    BUDGET,
    CALL_PRICE,
    CALLER_KEY,
    CLAIM,
    CLIENT_ID,
    CLIENT_SECRET,
    COLLECTOR,
    CONCURRENCY,
    CURRENCY,
    ENDPOINT,
    HEADER_NAME,
    HEADER_VALUE,
    HEADERS,
    HOST,
    IMPLIED_SCOPES,
    INSTANCE,
    ISSUER,
    LISTEN,
    NETWORK,
    ORIGIN,
    PART_RATE,
    PRIVATE_KEY,
    PUBLIC_URL,
    RATE,
    RATE_TEXT,
    RESOURCE,
    SCOPE_LIST,
    SCOPES,
    SERVER_GLOB,
    SERVER_NAME,
    SESSION_KEY,
    STATE,
    TOKEN_PRICE,
    TOOL_GLOB,
)

__all__ = ["FILE"]


def _one_place(given: Collection[str]) -> str | None:
    if ("url" in given) != ("instances" in given):
        return None
    return f"has {'both' if 'url' in given else 'neither'} of url and instances; it must have one of them"


def _some_of(given: Collection[str], *names: str) -> str | None:
    return None if any(name in given for name in names) else f"is of no use without {' or '.join(names)}; give one"


def _agent_limits(values: Mapping[str, Any]) -> AgentLimits:
    return AgentLimits(**{name: None if value == "off" else value for name, value in _given(values).items()})


def _server_limits(values: Mapping[str, Any]) -> ServerLimits:
    part = PartLimits(requests=values["requests"], tokens=values["tokens"])
    return ServerLimits(all=None if part == PartLimits() else part, tools=values["tools"])


def _guard_is_of_use(given: Collection[str]) -> str | None:
    if "trusted_proxies" in given and "addresses" not in given:
        return "has trusted_proxies without addresses, which alone asks them; give addresses, or leave it out"
    return _some_of(given, "addresses", "tools")


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _one_proof(given: Collection[str]) -> str | None:
    """One way to prove who the gateway is, and nothing that belongs to the other."""
    if ("client_secret" in given) == ("private_key" in given):
        number = "both" if "client_secret" in given else "neither"
        return f"has {number} of client_secret and private_key; it must have one of them"
    signs = "private_key" in given
    stray = [name for name in (("secret_method",) if signs else ("algorithm", "key_id")) if name in given]
    proof = "private_key" if signs else "client_secret"
    return f"has {' and '.join(stray)}, which {proof} has no use for; leave it out" if stray else None


def _one_target(given: Collection[str]) -> str | None:
    """For whom a token is exchanged: without a target it would be good for whatever the issuer thinks of."""
    return _one_proof(given) or _some_of(given, "audience", "resource")


def _proof(values: dict[str, Any]) -> ClientAuthentication:
    """Take out how the gateway proves itself."""
    names = ("client_id", "client_secret", "secret_method", "private_key", "algorithm", "key_id")
    client, secret, method, key, algorithm, key_id = (values.pop(name) for name in names)
    if key is None:
        return ClientSecret(client, secret, method)
    return PrivateKeyJWT(client, key, algorithm=algorithm, key_id=key_id)


def _jwt_or_introspection(given: Collection[str]) -> str | None:
    """What is about signatures has no use where none is checked here."""
    stray = [name for name in ("typ", "algorithms", "jwks_uri") if name in given and "introspection" in given]
    return f"has {' and '.join(stray)} beside introspection, which has no use for it; leave it out" if stray else None


def _introspection(values: Mapping[str, Any]) -> Introspection:
    rest = dict(values)
    cache = rest.pop("cache")
    return Introspection(authentication=_proof(rest), **_given(rest), cache=0.0 if cache == "off" else cache)


def _grant(values: Mapping[str, Any]) -> GrantConfig:
    rest = dict(values)
    return GrantConfig(authentication=_proof(rest), **rest)


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

_PROOF: Final = (
    Key("client_id", CLIENT_ID, "The gateway's name there.", required=True),
    Key("client_secret", CLIENT_SECRET, "Its secret. Either this or `private_key`."),
    Key(
        "secret_method",
        OneOf(get_args(SecretMethod)),
        "How the secret is sent: in a header, or in the form. Without it: as the authorization server says it accepts.",
    ),
    Key(
        "private_key",
        PRIVATE_KEY,
        "A private key in PEM, with which it signs an assertion in place of a secret (`private_key_jwt`).",
    ),
    Key(
        "algorithm",
        OneOf(tuple(sorted(ALGORITHMS))),
        "The assertion's algorithm. Without it: as the key's kind has it.",
    ),
    Key("key_id", AUDIENCE, "The key's name, as `kid` of the assertion."),
)
"""How the gateway proves itself to an authorization server."""
_PRIVATE: Final = (
    "may be on a private network. Otherwise such addresses are refused, so that no metadata can send requests there."
)


_ASKED: Final = (
    Key("issuer", ISSUER, "The authorization server, as in its metadata; a slash counts.", required=True),
    *_PROOF,
)
_WANTED: Final = (
    Key("audience", AUDIENCE, "The server, by the name that the authorization server has for it."),
    Key("resource", RESOURCE, "The server's URL, for authorization servers with resource indicators (RFC 8707)."),
    Key("scope", SCOPE_LIST, "The scopes to ask for. Without it: those that the authorization server gives."),
    Key("allow_private_addresses", Flag(), f"Whether the authorization server {_PRIVATE}", False),
)


def _credential(kind: str, about: str, *keys: Key, **rules: Any) -> Section:
    name = f"servers.<name>.credentials: {{type: {kind}}}"
    return Section(name, (Key("type", OneOf((kind,)), about, required=True), *keys), **rules)


_CREDENTIALS: Final = Kinds(
    {
        "none": _credential("none", "The server gets no credential.", build=lambda _: None),
        "header": _credential(
            "header",
            "It gets a header that is the same in every request.",
            Key("name", HEADER_NAME, "The header's name.", required=True),
            Key("value", HEADER_VALUE, "Its value.", required=True),
            build=lambda values: HeaderConfig(name=values["name"], value=values["value"]),
        ),
        "client_credentials": _credential(
            "client_credentials",
            "It gets a token that an authorization server issues to the gateway (RFC 6749 section 4.4).",
            *_ASKED,
            *_WANTED,
            build=_grant,
            judge=_one_proof,
        ),
        "token_exchange": _credential(
            "token_exchange",
            "It gets a token that an authorization server issues for the caller's (RFC 8693), one for each caller.",
            *_ASKED,
            *_WANTED,
            build=_grant,
            judge=_one_target,
        ),
    }
)
_CALLER: Final = Section(
    "servers.<name>.caller",
    (
        Key(
            "header", HEADER_NAME, "The header's name. One of that name that a caller sends is removed.", "X-Mcp-Caller"
        ),
        Key("key", CALLER_KEY, "What it is signed with.", required=True),
    ),
    lambda values: CallerConfig(**values),
)

_PART_KEYS: Final = (
    Key("requests", PART_RATE, "Requests of each agent there."),
    Key("tokens", PART_RATE, "Tokens of each agent there."),
)
_TOOL_LIMITS: Final = Section(
    "limits.tools.<glob>",
    _PART_KEYS,
    lambda values: PartLimits(**values),
    lambda given: _some_of(given, "requests", "tokens"),
)
_SERVER_LIMITS: Final = Section(
    "servers.<name>.limits",
    (
        *_PART_KEYS,
        Key("tools", MapOf(TOOL_GLOB, _TOOL_LIMITS), "On tools of this server; asked before `limits.tools`.", {}),
    ),
    _server_limits,
    lambda given: _some_of(given, "requests", "tokens", "tools"),
)

_SERVER: Final = Section(
    "servers.<name>",
    (
        Key("url", INSTANCE, "The URL of its MCP endpoint, where it has one instance. Either this or `instances`."),
        Key(
            "instances",
            ListOf(INSTANCE),
            "The URLs of several equal instances. A session stays on the one that opened it.",
        ),
        Key("headers", HEADERS, "Headers that the gateway adds to each request, in place of the caller's own.", {}),
        Key("credentials", _CREDENTIALS, "What the server knows the gateway by. The caller's token never goes on."),
        Key(
            "caller", _CALLER, "A signed header in which the gateway says who calls. Without it the server is not told."
        ),
        Key("limits", _SERVER_LIMITS, "What each agent may ask of this server, on top of its own limits."),
        Key("timeout", Duration(), "How long an answer may take to begin; then 504.", "60s"),
        Key("stream_idle", Duration(), "How long a stream may be silent before it is ended.", "5m"),
        Key(
            "probe_interval", Duration(), "How often an instance that was taken out is asked whether it is back.", "5s"
        ),
    ),
    judge=_one_place,
)

_CLAIMS: Final = Section(
    "auth.issuers[].claims",
    (
        Key("agent", CLAIM, "The client, that is the agent; of several the first that is there.", ["client_id", "azp"]),
        Key("subject", CLAIM, "On whose behalf it acts.", "sub"),
        Key("scopes", CLAIM, "Its scopes, a list or a text with spaces.", ["scope", "scp"]),
        Key("roles", CLAIM, "Its roles, a list.", "roles"),
    ),
    lambda values: Claims(**values),
)
_INTROSPECTION: Final = Section(
    "auth.issuers[].introspection",
    (
        *_PROOF,
        Key("endpoint", ENDPOINT, "Where it is asked. Without it that is found by discovery."),
        Key(
            "cache",
            Either((Off(), Duration()), "be a duration of at most 5m, or off"),
            "How long an answer counts, 5 minutes at most, and so the longest until a revocation is seen. `off`: it is "
            "asked at every request.",
            "30s",
        ),
    ),
    _introspection,
    _one_proof,
)

_ISSUER_SECTION: Final = Section(
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
        Key("jwks_uri", ENDPOINT, "Where its keys are. Without it they are found by discovery (RFC 8414)."),
        Key("claims", _CLAIMS, "Where its tokens say what, if not as RFC 9068 has it.", {}),
        Key(
            "introspection",
            _INTROSPECTION,
            "Ask it about each token (RFC 7662). Without it tokens are verified as JWT.",
        ),
        Key("allow_private_addresses", Flag(), f"Whether it {_PRIVATE}", False),
    ),
    lambda values: Issuer(**_given(values)),
    _jwt_or_introspection,
)

_AUTH: Final = Section(
    "auth",
    (
        Key(
            "issuers",
            ListOf(Either((ISSUER, _ISSUER_SECTION), "be an issuer's URL, or a mapping with issuer")),
            "The authorization servers whose access tokens are accepted.",
            required=True,
        ),
        Key("scopes", SCOPES, "The scopes every token must have.", []),
        Key(
            "implied_scopes",
            IMPLIED_SCOPES,
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
)

_AGENT_LIMITS: Final = Section(
    "limits.agents.<glob>",
    (
        Key("requests", RATE, "In place of everybody's; `off` does not limit."),
        Key("tokens", RATE, "In place of everybody's; `off` does not limit."),
        Key("concurrency", CONCURRENCY, "In place of everybody's; `off` does not limit."),
    ),
    _agent_limits,
)

_LIMITS: Final = Section(
    "limits",
    (
        Key("requests", RATE, "Requests of each agent."),
        Key("tokens", RATE, "Tokens of each agent's calls, arguments and results."),
        Key("concurrency", CONCURRENCY, "Requests of each agent that may be open at once, `subscriptions/listen` too."),
        Key(
            "agents",
            MapOf(AGENT_GLOB, _AGENT_LIMITS),
            "What differs for agents whose client id matches a glob (`*`, `?`, `[...]`); the first match counts.",
            {},
        ),
        Key(
            "tools",
            MapOf(TOOL_GLOB, _TOOL_LIMITS),
            "What each agent may ask of the tools whose name matches a glob, on each server by itself, on top of its "
            "other limits; the first match counts.",
            {},
        ),
        Key(
            "initial_output_tokens",
            Whole(least=0),
            "Tokens to expect of a tool that has not answered yet; later its own last answers tell.",
            INITIAL_OUTPUT_TOKENS,
        ),
        Key("image_tokens", Whole(least=0), "Tokens that an image counts.", IMAGE_TOKENS),
        Key("audio_tokens", Whole(least=0), "Tokens that a sound counts.", AUDIO_TOKENS),
        Key(
            "counter",
            OneOf(get_args(Counting)),
            "How tokens are counted: by an estimate, or by a model's vocabulary, which needs the extra `exact`.",
            "estimate",
        ),
        Key(
            "mode",
            Either((Off(), OneOf(("enforce", "shadow"))), "be enforce, shadow or off"),
            "`shadow`: what does not fit goes on, and is only counted and logged. `off`: nothing is limited or "
            "counted, prices and budgets included; a reload is enough.",
            "enforce",
        ),
        Key(
            "refuse_with",
            OneOf(get_args(Refusal)),
            "How a tool call is refused: by an error, or by a tool's result with `isError`, for agents that see no "
            "errors.",
            "error",
        ),
        Key(
            "cut_streams",
            Flag(),
            "Whether a stream that has used tokens which are not there ends with an error.",
            False,
        ),
    ),
)

_PRICE: Final = Section(
    "prices.rules[]",
    (
        Key("servers", ListOf(SERVER_GLOB), "Globs of servers' names. Without it: calls of every server."),
        Key(
            "tools",
            ListOf(TOOL_GLOB),
            "Globs of tools' names. Without it: every call, also of prompts and resources.",
        ),
        Key("input", TOKEN_PRICE, "For a million tokens of the call's parameters, which the agent's model wrote."),
        Key("output", TOKEN_PRICE, "For a million tokens of the answer, which it reads."),
        Key("call", CALL_PRICE, "For each call."),
    ),
    lambda values: Price(**values),
    lambda given: _some_of(given, "input", "output", "call"),
)
_PRICES: Final = Section(
    "prices",
    (
        Key("currency", CURRENCY, "A code such as `EUR`, or a word for a unit of your own.", required=True),
        Key("rules", ListOf(_PRICE), "The prices; the first that holds for a call counts.", required=True),
    ),
    lambda values: Prices(**values),
)
_BUDGET: Final = Section(
    "budgets[]",
    (
        Key("period", OneOf(get_args(Period)), "Of the calendar, in UTC.", required=True),
        Key("amount", BUDGET, "In the currency of `prices`.", required=True),
        Key("agents", ListOf(AGENT_GLOB), "Globs of client ids; each agent has the budget for itself.", ["*"]),
        Key(
            "action",
            OneOf(get_args(BudgetAction)),
            "`refuse`: calls that would spend more are refused until the period ends. `warn`: it is logged and "
            "counted, and calls go on.",
            "refuse",
        ),
    ),
    lambda values: Budget(**values),
)
_GUARD: Final = Section(
    "guard",
    (
        Key(
            "addresses",
            RATE_TEXT,
            "Requests of one address whose caller nobody authenticated, to all servers. The metadata documents are not "
            "counted.",
        ),
        Key("tools", MapOf(TOOL_GLOB, RATE_TEXT), "Calls of the tools of a server, by everybody together.", {}),
        Key(
            "trusted_proxies",
            ListOf(NETWORK, least=0),
            "Addresses and networks of proxies before the gateway, whose `X-Forwarded-For` is believed.",
            [],
        ),
    ),
    lambda values: GuardConfig(**values),
    _guard_is_of_use,
)

_SESSIONS: Final = Section(
    "sessions",
    (
        Key(
            "keys",
            ListOf(
                SESSION_KEY,
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
            "otlp", COLLECTOR, "Where spans and metrics go: the base URL of an OTLP receiver over HTTP.", required=True
        ),
        Key("headers", HEADERS, "Headers for that receiver, such as its credentials.", {}),
        Key(
            "sample",
            Share(),
            "The share of traces to record. It does not change what metrics count; recording each call takes more time "
            "than all else that the gateway does.",
            1.0,
        ),
        Key(
            "baggage",
            ListOf(BAGGAGE_KEY, least=0),
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
    lambda values: Bounds(**values),
)

FILE: Final = Section(
    "",
    (
        Key("listen", LISTEN, "The address to listen on.", "127.0.0.1:8080"),
        Key(
            "public_url",
            PUBLIC_URL,
            "The URL clients know this gateway by. The resource identifier of each server, which its tokens must name, "
            "is this and `/{server}/mcp`. Without it: the address of `listen`, where that is a loopback one.",
        ),
        Key(
            "servers",
            MapOf(SERVER_NAME, _SERVER, least=1),
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
        Key("prices", _PRICES, "What calls cost. Each call's cost is then in the audit trail."),
        Key(
            "budgets",
            ListOf(_BUDGET),
            "What each agent may spend in a day or a month, over all servers. All that match hold.",
        ),
        Key(
            "guard",
            _GUARD,
            "Plain limits on requests before anybody looks at their token, in each process by itself.",
        ),
        Key("sessions", _SESSIONS, "Sessions of the revisions that have them (up to 2025-11-25).", {}),
        Key("tracing", _TRACING, "Traces and metrics by OpenTelemetry. Without it none are made."),
        Key("audit", _AUDIT, "The audit trail. Without it there is none."),
        Key(
            "state",
            STATE,
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
            ListOf(HOST, least=0),
            "Hosts that requests may name, besides those of `public_url` and `listen`.",
            [],
        ),
        Key(
            "origins",
            ListOf(
                ORIGIN,
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
