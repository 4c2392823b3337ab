"""What the tests of tracing send, whom they put in a stack, and what they read of spans."""

import json
from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import format_span_id, format_trace_id

from mcp_middleware.exchange import Exchange
from mcp_middleware.member import Member
from mcp_middleware.types import Document, Headers, Principal, Rejection
from tests.core.asgi import rpc

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
META = f"00-{TRACE}-{SPAN}-01"
OTHER_TRACE, OTHER_SPAN = "a" * 32, "b" * 16
HEADER = f"00-{OTHER_TRACE}-{OTHER_SPAN}-01"


def call(meta: Mapping[str, Any] | None = None, name: str = "echo", **arguments: Any) -> dict[str, Any]:
    params: dict[str, Any] = {"name": name, "arguments": arguments}
    if meta is not None:
        params["_meta"] = meta
    return rpc("tools/call", params)


def ids(context: Any) -> tuple[str, str]:
    return format_trace_id(context.trace_id), format_span_id(context.span_id)


def links(span: ReadableSpan) -> list[tuple[str, str]]:
    return [ids(link.context) for link in span.links]


def traceparent(span: ReadableSpan) -> str:
    return "00-{}-{}-{:02x}".format(*ids(span.context), span.context.trace_flags)


class Stage(Member):
    """A member of another stage that writes its field of the exchange, or refuses."""

    def __init__(self, app: Any, *, fields: dict[str, Any] | None = None, refuse: Rejection | None = None) -> None:
        super().__init__(app)
        self.fields = fields or {}
        self.refuse = refuse
        self.exchanges: list[Exchange] = []

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        self.exchanges.append(exchange)
        for name, value in self.fields.items():
            setattr(exchange, name, value)
        return self.refuse


class Resource(Stage):
    stage = "resource_server"

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        self.exchanges.append(exchange)
        for name, value in self.fields.items():
            setattr(exchange, name, value)
        return self.refuse

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        return None


class Limiter(Stage):
    stage = "limiter"


class Authorization(Stage):
    stage = "authorization"


AGENT = Principal(issuer="https://login.example.com", client="ci-bot", subject="alice")


class Answering:
    """A server with one answer."""

    def __init__(self, body: dict[str, Any] | None, *, status: int = 200, error: Exception | None = None) -> None:
        self.body, self.status, self.error = body, status, error

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.error is not None:
            raise self.error
        media = b"application/json" if self.body is not None else b"text/plain"
        headers: Headers = [(b"content-type", media)]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        data = b"no" if self.body is None else json.dumps({"jsonrpc": "2.0", "id": 1, **self.body}).encode()
        await send({"type": "http.response.body", "body": data})
