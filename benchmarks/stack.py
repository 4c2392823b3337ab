"""The members as the benchmarks configure them: everything on, with limits too high to be met."""

import base64
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from mcp_middleware.affinity import SessionAffinityMiddleware
from mcp_middleware.audit import AuditLogMiddleware, SQLiteSink
from mcp_middleware.authorization import Policy, ToolAuthorizationMiddleware
from mcp_middleware.member import ASGIApp
from mcp_middleware.ratelimit import RateLimitMiddleware
from mcp_middleware.resource_server import OAuthResourceServerMiddleware
from mcp_middleware.tracing import TraceContextMiddleware

from .identity import RESOURCE, SCOPE

__all__ = ["MEMBERS", "POLICY", "SESSION_KEY", "members"]

MEMBERS = ("audit", "tracing", "resource_server", "limiter", "authorization", "affinity")

SESSION_KEY = base64.b64encode(bytes(range(32))).decode()

POLICY = """
default: deny
rules:
  - {agents: ["ci-*"], tools: ["read_*"], scopes: ["files:read"]}
  - {agents: ["benchmark", "anonymous"], tools: ["echo"], prompts: ["*"], resources: ["file:///srv/*"]}
  - {effect: deny, agents: ["*"], tools: ["admin_*"]}
"""


class _LastSpans(SpanExporter):
    """Keeps the last thousand spans, as an exporter keeps a batch."""

    def __init__(self) -> None:
        self.spans: deque[ReadableSpan] = deque(maxlen=1000)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans.extend(spans)
        return SpanExportResult.SUCCESS


def _tracing(app: ASGIApp) -> ASGIApp:
    """With providers of its own: what a server under it traces by itself is not recorded, as in the bare server."""
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(BatchSpanProcessor(_LastSpans()))
    meter_provider = MeterProvider([InMemoryMetricReader()])
    return TraceContextMiddleware(app, tracer_provider=tracer_provider, meter_provider=meter_provider)


def members(issuer: str, directory: Path) -> dict[str, Callable[[ASGIApp], ASGIApp]]:
    """Each member by its stage, outermost first, as a function that wraps an application."""
    return {
        "audit": lambda app: AuditLogMiddleware(app, sink=SQLiteSink(str(directory / "audit.db"))),
        "tracing": _tracing,
        "resource_server": partial(OAuthResourceServerMiddleware, resource=RESOURCE, issuers=[issuer], scopes=[SCOPE]),
        "limiter": partial(RateLimitMiddleware, requests="1000000000/minute", tokens="1000000000/minute"),
        "authorization": lambda app: ToolAuthorizationMiddleware(app, policy=Policy.from_text(POLICY)),
        "affinity": partial(SessionAffinityMiddleware, keys=[SESSION_KEY]),
    }
