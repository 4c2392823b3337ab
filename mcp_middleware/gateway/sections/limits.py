"""``limits``, of each caller: over all servers, and ``servers.<name>.limits`` on one of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias, get_args

from mcp_middleware.gateway.scalars import Flag, Off, OneOf, Whole
from mcp_middleware.gateway.shapes import Either, Key, MapOf, Section
from mcp_middleware.gateway.values import AGENT_GLOB, MOST, RATE, TOOL_GLOB, only_given, some_of, unless_off
from mcp_middleware.ratelimit import AgentLimits, LimiterMode, PartLimits, Rate, Refusal
from mcp_middleware.ratelimit.rate import limit_anything
from mcp_middleware.ratelimit.tokens import AUDIO_TOKENS, IMAGE_TOKENS

__all__ = ["LIMITS", "SERVER_LIMITS", "Counting", "LimitsConfig", "ServerLimits"]

Counting: TypeAlias = Literal["estimate", "o200k_base", "cl100k_base"]
"""How tokens are counted: by an estimate, or by a vocabulary, which needs the extra ``exact``."""

_INITIAL_OUTPUT_TOKENS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Limits of each caller on one server, on top of its own."""

    all: PartLimits | None = None
    """On all that it asks of this server."""
    tools: Mapping[str, PartLimits] = field(default_factory=dict)
    """On its calls of tools, by globs; these come before those for every server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """As ``RateLimitMiddleware`` takes them; None does not limit."""

    requests: Rate | None = None
    tokens: Rate | None = None
    concurrency: int | None = None
    agents: Mapping[str, AgentLimits] = field(default_factory=dict)
    tools: Mapping[str, PartLimits] = field(default_factory=dict)
    servers: Mapping[str, ServerLimits] = field(default_factory=dict)
    """By the server's name. Not in ``ServerConfig``: a change of them is none of the server's."""
    initial_output_tokens: int = _INITIAL_OUTPUT_TOKENS
    image_tokens: int = IMAGE_TOKENS
    audio_tokens: int = AUDIO_TOKENS
    counter: Counting = "estimate"
    mode: LimiterMode = "enforce"
    refuse_with: Refusal = "error"
    cut_streams: bool = False

    def hold_for(self, server: str) -> bool:
        """Whether anything that is asked of ``server`` is limited."""
        own = (self.requests, self.tokens, self.concurrency)
        if any(rate is not None for rate in own) or any(map(limit_anything, self.agents.values())):
            return True
        return bool(self.tools) or server in self.servers

    @property
    def limit_nothing(self) -> bool:
        return not self.servers and not self.hold_for("")

    def of_server(self, server: str) -> PartLimits | None:
        """What limits all that a caller asks of ``server``."""
        return self.servers[server].all if server in self.servers else None

    def of_tools(self, server: str) -> dict[str, PartLimits]:
        """What limits the tools of ``server``, the first glob that matches first."""
        own = self.servers[server].tools if server in self.servers else {}
        return {**own, **{glob: limits for glob, limits in self.tools.items() if glob not in own}}


def _rate(values: Mapping[str, Any]) -> Rate:
    rate: Rate = values["rate"]
    return rate if values["burst"] is None else Rate(rate.rate, values["burst"])


def _agent_limits(values: Mapping[str, Any]) -> AgentLimits:
    return AgentLimits(**{name: unless_off(value) for name, value in only_given(values).items()})


def _server_limits(values: Mapping[str, Any]) -> ServerLimits:
    part = PartLimits(requests=values["requests"], tokens=values["tokens"])
    return ServerLimits(all=None if part == PartLimits() else part, tools=values["tools"])


def _limits(values: Mapping[str, Any]) -> LimitsConfig:
    rates = {name: unless_off(values[name]) for name in ("requests", "tokens", "concurrency")}
    return LimitsConfig(**{**values, **rates})


_BUCKET: Final = replace(RATE, check=Rate)
_BURST: Final = Section(
    "a rate with a burst",
    (
        Key("rate", _BUCKET, "How fast the bucket refills.", required=True),
        Key("burst", Whole(), "How much of it may come at once. Without it: the amount of the rate."),
    ),
    _rate,
)
_PART_RATE: Final = Either((_BUCKET, _BURST), f"{RATE.must}, or a mapping with rate and burst")
_AGENT_RATE: Final = Either((Off(), _BUCKET, _BURST), f"{RATE.must}, a mapping with rate and burst, or off")
_PART_KEYS: Final = (
    Key("requests", _PART_RATE, "Requests of each caller there."),
    Key("tokens", _PART_RATE, "Tokens of each caller there."),
)
_TOOL: Final = Section(
    "limits.tools.<glob>",
    _PART_KEYS,
    lambda values: PartLimits(**values),
    lambda given: some_of(given, "requests", "tokens"),
)
SERVER_LIMITS: Final = Section(
    "servers.<name>.limits",
    (
        *_PART_KEYS,
        Key("tools", MapOf(TOOL_GLOB, _TOOL), "On tools of this server; asked before `limits.tools`.", {}),
    ),
    _server_limits,
    lambda given: some_of(given, "requests", "tokens", "tools"),
)

_AGENT: Final = Section(
    "limits.agents.<glob>",
    (
        Key("requests", _AGENT_RATE, "In place of everybody's; `off` does not limit."),
        Key("tokens", _AGENT_RATE, "In place of everybody's; `off` does not limit."),
        Key("concurrency", MOST, "In place of everybody's; `off` does not limit."),
    ),
    _agent_limits,
)
LIMITS: Final = Section(
    "limits",
    (
        Key("requests", _AGENT_RATE, "Requests of each caller."),
        Key("tokens", _AGENT_RATE, "Tokens of each caller's calls, arguments and results."),
        Key("concurrency", MOST, "Requests of each caller that may be open at once, `subscriptions/listen` too."),
        Key(
            "agents",
            MapOf(AGENT_GLOB, _AGENT),
            "What differs for each caller whose agent's client id matches a glob; the first match counts.",
            {},
        ),
        Key(
            "tools",
            MapOf(TOOL_GLOB, _TOOL),
            "What each caller may ask of the tools whose name matches a glob, on each server by itself, on top of its "
            "other limits; the first match counts.",
            {},
        ),
        Key(
            "initial_output_tokens",
            Whole(least=0),
            "Tokens to expect of a tool that has not answered yet; later its own last answers tell.",
            _INITIAL_OUTPUT_TOKENS,
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
    _limits,
)
