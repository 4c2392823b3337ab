"""The members' shape: an ASGI middleware with the hooks that a request passes (``pipeline``).

A member is an ordinary ASGI middleware. Members that stand directly inside each other find each other when they are
made and run as one pipeline in ``ORDER``, so that the order in which a user lists them changes no answer, the request
and its answer are parsed once, and a request passes one wrapper instead of six. Where something else stands between
two members, each group runs its own pipeline over the same Exchange.
"""

from collections.abc import Awaitable
from typing import Any, ClassVar, Final

from .errors import ConfigurationError
from .exchange import Exchange, Receive, Scope, Send
from .pipeline import ASGIApp, Bounds, Pipeline
from .server_message import ServerMessage
from .types import Document, Headers, Rejection

__all__ = ["ORDER", "ASGIApp", "Bounds", "Member"]

ORDER: Final = ("audit", "tracing", "edge", "resource_server", "limiter", "affinity", "authorization")
"""Outermost first, and the only place where order exists. The audit sees every refusal; the limiter refuses before
the server sees anything; a denied call is charged as a request but never as tokens. A session that is none is answered
before the policy is asked, so that what is hidden and what does not exist differ no more there than elsewhere."""


class Member:
    """Base of every middleware of this package. A member overrides the hooks it needs, and names its stage."""

    stage: ClassVar[str]
    """One of ``ORDER``."""

    def __init__(self, app: ASGIApp, *, bounds: Bounds | None = None) -> None:
        if not callable(app):
            raise ConfigurationError(f"{type(self).__name__}: app is {app!r}; it must be an ASGI application")
        if bounds is not None and not isinstance(bounds, Bounds):
            raise ConfigurationError(f"{type(self).__name__}: bounds is {bounds!r}; it must be a Bounds")
        self.app = app
        self.bounds = bounds or Bounds()
        inner = app._members if isinstance(app, Member) else []
        self._members: list[Member] = sorted([self, *inner], key=lambda member: ORDER.index(member.stage))
        self._server: ASGIApp = app._server if isinstance(app, Member) else app
        self._pipeline: Pipeline | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "lifespan"):
            await self._server(scope, receive, send)
            return
        if self._pipeline is None:
            bounds = Bounds.tightest([member.bounds for member in self._members])
            self._pipeline = Pipeline(self._hooks, self._server, bounds)
        if scope["type"] == "http":
            await self._pipeline.serve(scope, receive, send)
        else:
            await self._pipeline.lifespan(scope, receive, send)

    async def end_waiting(self) -> None:
        """Finish calls that wait for an answer, where nobody runs the application's lifespan."""
        if self._pipeline is not None:
            await self._pipeline.end_waiting()

    def _hooks(self, name: str) -> list[Any]:
        """Those of the members that have a hook of that name, outermost first."""
        return [getattr(m, name) for m in self._members if getattr(type(m), name) is not getattr(Member, name)]

    async def on_startup(self) -> None:
        """Check and prepare, before the application is told to start. Whatever is raised fails the start, with the
        message of a ConfigurationError. Not called where nobody runs the application's lifespan."""

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        """Judge a request by its headers; a Document is served as it is."""
        return None

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        """Judge a request; ``exchange.message`` is None for a GET or DELETE."""
        return None

    def on_forward(self, exchange: Exchange) -> Rejection | None:
        """Note that a request which every member accepted goes on to the server now; a Rejection still keeps it."""
        return None

    def on_response_start(self, exchange: Exchange, status: int, headers: Headers) -> None:
        """See the answer's status, and change its headers in place."""

    def on_response_message(
        self, exchange: Exchange, message: ServerMessage
    ) -> ServerMessage | Awaitable[ServerMessage | None] | None:
        """See a message of the server; return it, another in its place, or None to drop it. What takes long is awaited,
        and may give others their turn."""
        return message

    async def on_owed(self, exchange: Exchange) -> None:
        """The stream of a call has ended without its answer, which may come on another. Members that have this hook
        finish then: with ``exchange.late`` where it has come."""

    async def on_finish(self, exchange: Exchange) -> None:
        """Settle and record. Called exactly once for every exchange, also when another member refused it first."""

    async def aclose(self) -> None:
        """Let go of resources, when the application shuts down."""
