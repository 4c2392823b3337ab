"""Members that note what they see, and servers that answer by a script."""

from typing import Any

from mcp_middleware.exchange import Exchange
from mcp_middleware.member import ORDER, ASGIApp, Bounds, Member
from mcp_middleware.server_message import ServerMessage
from mcp_middleware.types import Document, Headers, Rejection

from .asgi import rpc


class Recorder(Member):
    """Notes which hooks ran, in a log shared by the members of a test."""

    def __init__(self, app: Any, log: list[str], *, bounds: Bounds | None = None) -> None:
        super().__init__(app, bounds=bounds)
        self.log = log
        self.exchanges: list[Exchange] = []

    async def on_headers(self, exchange: Exchange) -> Rejection | Document | None:
        self.log.append(f"{self.stage}.headers")
        return None

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        self.log.append(f"{self.stage}.request")
        return None

    def on_response_start(self, exchange: Exchange, status: int, headers: Headers) -> None:
        self.log.append(f"{self.stage}.start")

    def on_response_message(self, exchange: Exchange, message: ServerMessage) -> ServerMessage | None:
        self.log.append(f"{self.stage}.message")
        return message

    async def on_finish(self, exchange: Exchange) -> None:
        self.log.append(f"{self.stage}.finish")
        self.exchanges.append(exchange)

    async def aclose(self) -> None:
        self.log.append(f"{self.stage}.close")


class Witness(Member):
    """Stands where the audit does, and keeps every exchange of which there would be a record."""

    stage = "audit"

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app)
        self.exchanges: list[Exchange] = []

    async def on_finish(self, exchange: Exchange) -> None:
        if not exchange.silent:
            self.exchanges.append(exchange)

    @property
    def last(self) -> Exchange:
        return self.exchanges[-1]

    @property
    def reason(self) -> str | None:
        rejection = self.last.rejection
        return rejection.reason if rejection else None


def recorder(stage: str) -> type[Recorder]:
    return type(stage.title(), (Recorder,), {"stage": stage})


Audit = recorder("audit")
Limiter = recorder("limiter")
STAGES = {stage: recorder(stage) for stage in ORDER}
CALL = rpc("tools/call", {"name": "echo", "arguments": {"text": "hi"}})


class Refusing(Recorder):
    stage = "limiter"

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        return Rejection(
            429, 429001, "too many", "rate_limited", data={"retryAfterMs": 5}, headers=((b"retry-after", b"1"),)
        )


class Transforming(Member):
    """Rewrites or drops answers by what they say."""

    stage = "authorization"

    def on_response_message(self, exchange: Exchange, message: ServerMessage) -> ServerMessage | None:
        if message.method == "notifications/secret":
            return None
        return message.with_result({"changed": True}) if message.is_answer else message


def scripted(*events: dict[str, Any]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for event in events:
            await send(event)

    return app


def start(media: bytes, status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", media)]}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}
