"""``tracing``: where traces and metrics go, and what is in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from mcp_middleware.gateway.scalars import Flag, OneOf, Share
from mcp_middleware.gateway.shapes import Key, ListOf, Section, Text
from mcp_middleware.gateway.values import HEADERS, WEB_URL, web_url
from mcp_middleware.tracing.propagation import is_baggage_key

__all__ = ["TRACING", "TracingConfig"]


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


def _baggage_key(text: str) -> str:
    if not is_baggage_key(text):
        raise ValueError
    return text


def _base(text: str) -> str:
    url = web_url(text).rstrip("/")
    if url.endswith(_SIGNALS):
        raise ValueError
    return url


_SIGNALS: Final = ("/v1/traces", "/v1/metrics", "/v1/logs")
"""What is added to a base URL (OpenTelemetry, "Endpoint URLs for OTLP/HTTP"). A URL of one signal is no base."""
_RECEIVER: Final = Text(
    "URL",
    f"{WEB_URL.must}, the base to which /v1/traces and /v1/metrics are added, such as http://127.0.0.1:4318",
    _base,
    rf"^(?!.*({'|'.join(_SIGNALS)})/*$){WEB_URL.pattern.removeprefix('^')}",
    ("http://127.0.0.1:4318",),
)
TRACING: Final = Section(
    "tracing",
    (
        Key(
            "otlp",
            _RECEIVER,
            "Where spans and metrics go: the base URL of an OTLP receiver over HTTP, to which `/v1/traces` and "
            "`/v1/metrics` are added.",
            required=True,
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
            ListOf(Text("string", "be a key of W3C baggage", _baggage_key), least=0),
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
    lambda values: TracingConfig(**values),
)
