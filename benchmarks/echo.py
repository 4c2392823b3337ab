"""The server to beat: a bare ASGI application that answers ``tools/call`` by the text it was given."""

import uuid

import msgspec
from msgspec import Raw

from mcp_middleware.exchange import Receive, Scope, Send

__all__ = ["echo"]


class _Arguments(msgspec.Struct):
    text: Raw = Raw(b'""')


class _Params(msgspec.Struct):
    arguments: _Arguments = msgspec.field(default_factory=_Arguments)


class _Call(msgspec.Struct):
    method: str
    id: int | str | None = None
    params: _Params = msgspec.field(default_factory=_Params)


_decode = msgspec.json.Decoder(_Call).decode
_encode = msgspec.json.Encoder().encode

_JSON = (b"content-type", b"application/json")
_INITIALIZED = Raw(
    b'{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"echo","version":"1"}}'
)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """The application."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    event = await receive()
    body: bytes = event["body"]
    if event["more_body"]:
        chunks = [body]
        while event["more_body"]:
            event = await receive()
            chunks.append(event["body"])
        body = b"".join(chunks)
    call = _decode(body)
    if call.id is None:
        await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        return
    headers = [_JSON]
    if call.method == "initialize":
        headers.append((b"mcp-session-id", uuid.uuid4().hex.encode()))
        answer = _encode({"jsonrpc": "2.0", "id": call.id, "result": _INITIALIZED})
    else:
        content = Raw(b'[{"type":"text","text":%b}]' % bytes(call.params.arguments.text))
        answer = _encode({"jsonrpc": "2.0", "id": call.id, "result": {"content": content, "resultType": "complete"}})
    headers.append((b"content-length", str(len(answer)).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
