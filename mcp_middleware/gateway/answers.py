"""What a server's answer says to the gateway, beside what it says to the caller. Pure."""

from typing import Final

import msgspec
from msgspec import Raw

from mcp_middleware.errors import INVALID_PARAMS
from mcp_middleware.server_message import parse_server_message
from mcp_middleware.sse import encode

from .client import Answer
from .decoding import encoding_of

__all__ = ["begun_task", "ends_event", "farewell", "is_answer", "knows_no_task", "unfit"]

_SUBSCRIPTION_KEY: Final = "io.modelcontextprotocol/subscriptionId"


class _Task(msgspec.Struct, rename="camel"):
    task_id: str | None = None


class _TaskResult(msgspec.Struct, rename="camel"):
    """Where a result says which task it began (SEP-2663)."""

    task_id: str | None = None
    task: _Task = msgspec.field(default_factory=_Task)


class _ErrorObject(msgspec.Struct):
    code: int = 0


class _Answered(msgspec.Struct):
    error: _ErrorObject | None = None


_task_result: Final = msgspec.json.Decoder(_TaskResult)
_answered: Final = msgspec.json.Decoder(_Answered)


def unfit(answer: Answer) -> str | None:
    """Why this answer of the server is none for the caller."""
    status = answer.status
    if 300 <= status < 400:
        return f"the server redirects ({status}); its configured URL must be the final one"
    if status in (401, 407) or (status == 403 and any(name == b"www-authenticate" for name, _ in answer.headers)):
        return f"the server refuses the gateway's credential ({status})"
    if encoding_of(answer.headers) is None:
        return "the server compresses its answer in a way that nobody asked for"
    if sum(name == b"content-type" for name, _ in answer.headers) > 1:
        return "the server's answer has several content types"
    return None


def begun_task(result: object) -> str | None:
    """The task that a call has begun, by its result."""
    if not isinstance(result, Raw) or b'"taskId"' not in bytes(result):
        return None
    try:
        found = _task_result.decode(result)
    except (msgspec.DecodeError, RecursionError):
        return None
    return found.task_id or found.task.task_id


def is_answer(data: bytes) -> bool:
    """Whether ``data`` is an answer of JSON-RPC, whatever its headers say of it."""
    message = parse_server_message(data)
    return message is not None and message.is_answer


def knows_no_task(data: bytes) -> bool:
    """Whether the answer to a question about a task says that there is none of that name (SEP-2663: -32602)."""
    try:
        error = _answered.decode(data).error
    except (msgspec.DecodeError, RecursionError):
        return False
    return error is not None and error.code == INVALID_PARAMS


def ends_event(tail: bytes) -> bool:
    """Whether a stream of which these are the last bytes is between two events."""
    return tail.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))


def farewell(subscription: str | int) -> bytes:
    """The event with which a subscription ends properly (2026-07-28, subscriptions)."""
    result = {"resultType": "complete", "_meta": {_SUBSCRIPTION_KEY: subscription}}
    return encode(msgspec.json.encode({"jsonrpc": "2.0", "id": subscription, "result": result}))
