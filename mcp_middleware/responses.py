"""Answers as HTTP. A Rejection becomes one that every measured client understands: status, headers, and a JSON-RPC
error with the request's own id (MCP defines no 413, 415, 429 or 503; those are HTTP's, RFC 9110 and RFC 6585)."""

import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

import msgspec

from .types import Document, Headers, Rejection

__all__ = ["NOSNIFF", "error_body", "headers_of", "media_type", "rejection_answer", "retry_later", "send_document"]

NOSNIFF: Final = (b"x-content-type-options", b"nosniff")
"""On every answer, so that no browser takes one for a page or a script (Fetch, "X-Content-Type-Options")."""


def error_body(code: int, message: str, request_id: int | str | None, data: Mapping[str, Any] | None = None) -> bytes:
    """A JSON-RPC error message."""
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "error": error})


def retry_later(status: int, code: int, text: str, reason: str, *, seconds: float) -> Rejection:
    """A refusal that says when to try again: in ``Retry-After``, and for those who see no header in ``data``.

    ``seconds`` are rounded up, to 1 at least (RFC 9110 section 10.2.3 has whole ones).
    """
    wait = max(1, math.ceil(seconds))
    headers = ((b"retry-after", str(wait).encode("ascii")),)
    return Rejection(status, code, text, reason, data={"retryAfterMs": wait * 1000}, headers=headers)


def rejection_answer(rejection: Rejection, request_id: int | str | None, *, close: bool = False) -> Document:
    """The whole HTTP answer for ``rejection``, to the request with ``request_id`` (None where it has none).

    ``close`` ends the connection with it, where the rest of a body should not be waited for (RFC 9110 section 15.5.14).
    """
    headers = (*rejection.headers, (b"connection", b"close")) if close else rejection.headers
    if rejection.code is None:
        return Document(b"", rejection.status, headers)
    if rejection.result is not None:
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "result": rejection.result})
    else:
        body = error_body(rejection.code, rejection.message, request_id, rejection.data)
    return Document(body, rejection.status, ((b"content-type", b"application/json"), *headers))


def headers_of(document: Document) -> Headers:
    """The answer's headers with its length."""
    return [*document.headers, NOSNIFF, (b"content-length", str(len(document.body)).encode())]


async def send_document(document: Document, send: Callable[[MutableMapping[str, Any]], Awaitable[None]]) -> None:
    """Send the whole answer."""
    await send({"type": "http.response.start", "status": document.status, "headers": headers_of(document)})
    await send({"type": "http.response.body", "body": document.body, "more_body": False})


def media_type(headers: Headers) -> bytes:
    """The type of the content (RFC 9110 section 8.3) without its parameters, in lower case; empty where none is named.

    The names of ``headers`` are in lower case.
    """
    for name, value in headers:
        if name == b"content-type":
            return value.partition(b";")[0].strip().lower()
    return b""
