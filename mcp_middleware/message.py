"""From the bytes of a body to a message that two readers cannot read differently, and back. Pure, no I/O.

The rules, in the order in which they are applied:

1. One JSON text in UTF-8: no byte order mark, no lone surrogate, no NaN, at most ``MAX_DEPTH`` levels.
2. A request, a notification, a response, or (2025-03-26 only) a batch of them. A request's id is a string or an
   integer. What is not called ``notifications/...`` needs an id, so that no call goes unanswered.
3. No member name in another spelling: ``Name`` or ``task_id`` beside or instead of ``name`` or ``taskId`` is refused,
   because some readers fold case, and some take their language's own spelling as well. This holds for the envelope,
   ``params``, ``_meta``, and the objects that name what a completion or a subscription is about.
4. The value a policy judges (``params.name``, ``params.uri``, ...) is there and is a string.

Whether the headers that mirror the body agree with it is for ``revision``. What servers send is ``server_message``.

What is forwarded is ``encode()``: the envelope, ``params`` and those objects as they were parsed, one value for each
name; every value below them byte for byte as it came, so that numbers and strings are not altered.
"""

import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Raw

from .bounded import TooManyError, items_of, members_of
from .errors import INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR
from .types import Rejection

__all__ = [
    "Batch",
    "Message",
    "Notification",
    "Request",
    "Response",
    "parse",
    "with_meta",
]

MAX_DEPTH: Final = 128
MAX_NAMES: Final = 1000
"""Members of one object whose names are compared, each with every other spelling."""
MAX_NAMES_TEXT: Final = 32 * 1024
"""Characters of all these names."""
MAX_NESTED: Final = 128 * 1024
"""Bytes of the object that names what a completion or a subscription is about. Twice as much as a subscription's
resources may have characters."""
MAX_BATCH: Final = 100
"""Messages in one batch: what one POST may start."""

PROTOCOL_VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
CLIENT_CAPABILITIES_KEY: Final = "io.modelcontextprotocol/clientCapabilities"


def _folded(name: str) -> str:
    """What ``name`` and every other spelling of it have in common."""
    return name.casefold().replace("_", "")


_ENVELOPE_KEYS: Final = {_folded(key): key for key in ("jsonrpc", "id", "method", "params", "result", "error")}
_PARAM_KEYS: Final = {_folded(key): key for key in ("_meta", "name", "uri", "taskId", "ref", "arguments", "cursor")}
_META_KEYS: Final = {
    _folded(key): key
    for key in (
        PROTOCOL_VERSION_KEY,
        CLIENT_CAPABILITIES_KEY,
        "io.modelcontextprotocol/clientInfo",
        "traceparent",
        "tracestate",
        "baggage",
        "progressToken",
    )
}
_REF_KEYS: Final = {key: key for key in ("type", "name", "uri")}
_SUBSCRIPTIONS: Final = ("resourceSubscriptions", "toolsListChanged", "promptsListChanged", "resourcesListChanged")

_WELL_SPELT: Final = frozenset(
    {*_ENVELOPE_KEYS.values(), *_PARAM_KEYS.values(), *_META_KEYS.values(), *_REF_KEYS, *_SUBSCRIPTIONS}
)
"""Names no two of which fold to the same: where only these stand, nothing is left to check."""

TARGETS: Final = {
    "tools/call": ("tool", "name"),
    "prompts/get": ("prompt", "name"),
    "resources/read": ("resource", "uri"),
    "resources/subscribe": ("resource", "uri"),
    "resources/unsubscribe": ("resource", "uri"),
    "tasks/get": ("task", "taskId"),
    "tasks/update": ("task", "taskId"),
    "tasks/cancel": ("task", "taskId"),
    "tasks/result": ("task", "taskId"),
}
"""Method to the kind of its target and the parameter that names it."""

_GONE: Final = frozenset({"resources/subscribe", "resources/unsubscribe"})
"""Methods that 2026-07-28 has no more: a server must answer that it does not know them, whatever they carry."""

_NESTED: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "completion/complete": ("ref", _REF_KEYS),
    "subscriptions/listen": ("notifications", {}),
}
"""Methods with a nested object that a policy judges, and the names in it; it is made canonical as the envelope is."""

_SLICE: Final = 32 * 1024
"""Bytes that are scanned at a time: in a thread, where large bodies are parsed, others run in between."""
_LONE_SURROGATE: Final = re.compile(
    rb"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|[c-fC-F](?<!\\u[dD][89abAB]..\\u[dD].))", re.DOTALL
)
_PAIR: Final = len(rb"\ud83d\ude00")
_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = {ord("["): 1, ord("]"): -1}
_SHALLOW: Final = 4
"""Levels that are taken off from inside before any bracket is looked at by itself: most JSON has no more."""

_object: Final = msgspec.json.Decoder(dict[str, Raw])
_id: Final[msgspec.json.Decoder[int | str]] = msgspec.json.Decoder(int | str)
_string: Final = msgspec.json.Decoder(str)
_encode: Final = msgspec.json.Encoder().encode

_NULL: Final = Raw(b"null")
_VERSION: Final = Raw(b'"2.0"')


class _Message(msgspec.Struct, frozen=True, gc=False):
    """What requests and notifications share: the canonical envelope, and the parts a member may judge.

    The parts stand inside each other, and are written out once, by ``encode()``.
    """

    envelope: dict[str, Any]
    """Names to raw values; ``params``, where it says anything, is the dict below."""
    params: dict[str, Any]
    """Names to raw values; ``_meta``, where it says anything, is the dict below."""
    meta: dict[str, Raw]
    method: str

    def encode(self) -> bytes:
        """The canonical bytes of this message."""
        return _encode(self.envelope)

    def arguments(self) -> bytes:
        """The raw JSON of ``params.arguments``; ``{}`` when there are none."""
        return bytes(self.params.get("arguments", b"{}"))

    def text(self, parent: str, key: str) -> str | None:
        """The string called ``key`` in the object ``params[parent]`` (``"_meta", "traceparent"``), or None."""
        try:
            values = self.meta if parent == "_meta" else _object.decode(self.params[parent])
            return _string.decode(values[key])
        except (KeyError, msgspec.DecodeError):
            return None


class Request(_Message, frozen=True, gc=False, tag=False):
    """A call that is owed an answer with its id."""

    id: int | str
    target: str | None = None
    """The tool, prompt, resource or task the call names, exactly as it came."""
    target_kind: str | None = None
    """``tool``, ``prompt``, ``resource`` or ``task``."""


class Notification(_Message, frozen=True, gc=False, tag=False):
    """A message that nobody answers."""


class Response(msgspec.Struct, frozen=True, gc=False):
    """A client's answer to a request of the server (legacy era)."""

    envelope: dict[str, Raw]
    id: int | str | None

    def encode(self) -> bytes:
        """The canonical bytes of this message."""
        return _encode(self.envelope)


class Batch(msgspec.Struct, frozen=True):
    """The messages of one 2025-03-26 batch, at least one, none of them ``initialize``."""

    messages: tuple[Request | Notification | Response, ...]


Message: TypeAlias = Request | Notification | Response


class _RefusedError(Exception):
    """Carries a Rejection up to ``parse``; never leaves this module."""

    def __init__(self, code: int, message: str, *, request_id: int | str | None = None) -> None:
        super().__init__(message)
        self.rejection = Rejection(
            status=400,
            code=code,
            message=message,
            reason="parse_error" if code == PARSE_ERROR else "invalid_message",
            request_id=request_id,
        )


def parse(body: bytes) -> Message | Batch | Rejection:
    """The message or batch in ``body``, or why it is refused. Never raises."""
    try:
        _check_text(body)
        is_batch = body.lstrip(b" \t\r\n").startswith(b"[")
        message = _parse_batch(body) if is_batch else _parse_one(body)
        _check_depth(body)
        return message
    except _RefusedError as refused:
        return refused.rejection


def _check_text(body: bytes) -> None:
    """Rule 1, as far as the decoder does not check it in parts it leaves raw."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise _RefusedError(PARSE_ERROR, f"the body is not UTF-8 (byte {error.start})") from None
    if b"\\" in body and (b"\\ud" in body or b"\\uD" in body):  # one byte is found many times faster than two
        text = body.replace(rb"\\", b"/")  # of what is left, every backslash begins an escape
        for start in range(0, len(text), _SLICE):
            match = _LONE_SURROGATE.search(text, start, start + _SLICE + _PAIR)
            if match is not None and match.start() < start + _SLICE:
                raise _RefusedError(PARSE_ERROR, "the body has a lone surrogate escape; send whole characters")


def _check_depth(body: bytes) -> None:
    """Rule 1's levels. The decoder has passed the body: every string ends, and brackets come in pairs."""
    if not _has_more_openers(body, MAX_DEPTH):
        return
    text = body.replace(rb"\\", b"").replace(rb"\"", b"")  # of what is left, every quote begins or ends a string
    depth = in_string = 0
    for start in range(0, len(text), _SLICE):
        pieces = text[start : start + _SLICE].split(b'"')
        brackets = b"".join(pieces[in_string::2]).translate(_BRACKETS, _NOT_BRACKETS)
        in_string ^= (len(pieces) - 1) & 1
        outer = brackets
        for _ in range(_SHALLOW):
            outer = outer.replace(b"[]", b"")
        deepest = depth + outer.count(b"[") + _SHALLOW
        if deepest > MAX_DEPTH:  # at most; now exactly
            deepest = max(accumulate(map(_STEPS.__getitem__, brackets), initial=depth))
        if deepest > MAX_DEPTH:
            raise _RefusedError(PARSE_ERROR, f"the body is nested deeper than {MAX_DEPTH} levels")
        depth += 2 * brackets.count(b"[") - len(brackets)


def _has_more_openers(body: bytes, limit: int) -> bool:
    """Whether ``body`` has more opening brackets than ``limit``: a few quick searches, even in a large text."""
    count = 0
    for bracket in (b"[", b"{"):
        at = body.find(bracket)
        while at >= 0:
            count += 1
            if count > limit:
                return True
            at = body.find(bracket, at + 1)
    return False


def _parse_batch(body: bytes) -> Batch:
    try:
        items = items_of(body, MAX_BATCH)
    except TooManyError:
        raise _RefusedError(INVALID_REQUEST, f"the batch has more than {MAX_BATCH} messages") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _RefusedError(PARSE_ERROR, f"the body is not JSON: {error}") from None
    if not items:
        raise _RefusedError(INVALID_REQUEST, "the batch is empty")
    messages = tuple(_parse_one(item) for item in items)
    if any(isinstance(message, Request) and message.method == "initialize" for message in messages):
        raise _RefusedError(INVALID_REQUEST, "initialize cannot be part of a batch")
    return Batch(messages)


def _parse_one(body: bytes | Raw) -> Message:
    try:
        envelope: dict[str, Any] = members_of(body)
    except TooManyError:
        raise _too_many("the message") from None
    except msgspec.ValidationError:
        raise _RefusedError(INVALID_REQUEST, "the body must be one JSON-RPC object") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _RefusedError(PARSE_ERROR, f"the body is not JSON: {error}") from None
    _check_spelling("the message", envelope, _ENVELOPE_KEYS)
    request_id = _request_id(envelope)
    try:
        if envelope.get("jsonrpc") != _VERSION:
            raise _RefusedError(INVALID_REQUEST, 'jsonrpc must be "2.0"')
        if "method" not in envelope:
            return _response(envelope, request_id)
        if "result" in envelope or "error" in envelope:
            raise _RefusedError(INVALID_REQUEST, "a message has either a method or a result or error, not both")
        return _call(envelope, request_id)
    except _RefusedError as refused:
        raise _RefusedError(refused.rejection.code or INVALID_REQUEST, str(refused), request_id=request_id) from None


def _request_id(envelope: dict[str, Any]) -> int | str | None:
    raw = envelope.get("id")
    if raw is None:
        return None
    try:
        return _id.decode(raw)
    except msgspec.DecodeError:
        if raw == _NULL and "method" not in envelope:  # an error that answers an unreadable request
            return None
        raise _RefusedError(INVALID_REQUEST, "id must be a string or an integer") from None


def _response(envelope: dict[str, Any], response_id: int | str | None) -> Response:
    if ("result" in envelope) == ("error" in envelope):
        raise _RefusedError(INVALID_REQUEST, "a message needs a method, or exactly one of result and error")
    if "id" not in envelope:
        raise _RefusedError(INVALID_REQUEST, "a response needs the id of the request it answers")
    return Response(envelope, response_id)


def _call(envelope: dict[str, Any], request_id: int | str | None) -> Request | Notification:
    try:
        method = _string.decode(envelope["method"])
    except msgspec.DecodeError:
        raise _RefusedError(INVALID_REQUEST, "method must be a string") from None
    params: dict[str, Any] = _member("params", envelope, INVALID_REQUEST)
    meta: dict[str, Raw] = {}
    if params:
        _check_spelling("params", params, _PARAM_KEYS)
        meta = _member("params._meta", params, INVALID_PARAMS)
        if meta:
            _check_spelling("params._meta", meta, _META_KEYS)
            params["_meta"] = meta
        if method in _NESTED:
            nested, known = _NESTED[method]
            if nested in params:
                params[nested] = _canonical(f"params.{nested}", params[nested], known)
        envelope["params"] = params
    if request_id is None:
        if not method.startswith("notifications/"):
            raise _RefusedError(
                INVALID_REQUEST, f"{method[:100]!r} is a request and needs an id (a string or an integer)"
            )
        return Notification(envelope, params, meta, method)
    kind, key = TARGETS.get(method, (None, None))
    target: str | None = None
    if key is not None:
        try:
            target = _string.decode(params[key]) if key in params or method not in _GONE else None
        except (KeyError, msgspec.DecodeError):
            raise _RefusedError(INVALID_PARAMS, f"{method} needs params.{key}, a string") from None
    return Request(envelope, params, meta, method, request_id, target, kind)


def _member(name: str, parent: dict[str, Any], code: int) -> dict[str, Raw]:
    """The object called ``name`` in its parent; absent and null (which the parent then loses) are an empty one."""
    key = name.rpartition(".")[2]
    raw = parent.get(key)
    if raw is None:
        return {}
    if raw == _NULL:
        del parent[key]
        return {}
    try:
        return members_of(raw)
    except TooManyError:
        raise _too_many(name) from None
    except (msgspec.DecodeError, RecursionError):
        raise _RefusedError(code, f"{name} must be an object") from None


def _too_many(place: str) -> _RefusedError:
    return _RefusedError(INVALID_REQUEST, f"{place} has too many members, or text that looks like them")


def _check_spelling(place: str, values: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """Rule 3. The decoder has already kept one value for names that are equal."""
    if values.keys() <= _WELL_SPELT:
        return
    if len(values) > MAX_NAMES:
        raise _RefusedError(INVALID_REQUEST, f"{place} has {len(values)} members; at most {MAX_NAMES} are allowed")
    if sum(map(len, values)) > MAX_NAMES_TEXT:
        text = f"the names of {place} have more than {MAX_NAMES_TEXT} characters"
        raise _RefusedError(INVALID_REQUEST, text)
    seen: dict[str, str] = {}
    for name in values:
        folded = name.casefold()
        right = known.get(folded.replace("_", ""), name)
        if right != name:
            raise _RefusedError(INVALID_REQUEST, f"{place} has {name[:100]!r}; the name is {right!r}")
        if seen.setdefault(folded, name) != name:
            raise _RefusedError(INVALID_REQUEST, f"{place} has {seen[folded][:100]!r} and {name[:100]!r}; keep one")


def _canonical(place: str, raw: Raw, known: Mapping[str, str]) -> Raw:
    """An object with one value for each name. What is no object stays: it names nothing."""
    if len(raw) > MAX_NESTED:
        raise _RefusedError(INVALID_PARAMS, f"{place} is larger than {MAX_NESTED} bytes")
    try:
        values = members_of(raw)
    except TooManyError:
        raise _too_many(place) from None
    except msgspec.ValidationError:
        return raw
    except (msgspec.DecodeError, RecursionError):
        raise _RefusedError(INVALID_PARAMS, f"{place} is malformed") from None
    _check_spelling(place, values, known)
    return Raw(_encode(values))


def with_meta(message: Request | Notification, values: Mapping[str, str | None]) -> Request | Notification:
    """``message`` with string members of ``params._meta`` set, or removed where the value is None."""
    meta = dict(message.meta)
    for key, value in values.items():
        if value is None:
            meta.pop(key, None)
        else:
            meta[key] = Raw(_encode(value))
    params, envelope = message.params, message.envelope
    if meta or "_meta" in params:
        params = {**params, "_meta": meta}
    if params:
        envelope = {**envelope, "params": params}
    return msgspec.structs.replace(message, envelope=envelope, params=params, meta=meta)
