"""What an Exchange says of itself to spans and metrics. Reads the exchange, changes nothing.

Spans may carry what a caller sent, shortened. Names of spans and labels of metrics may not: each new value is a new
time series, for good. There a target is named only once a server has shown that it exists (``KnownTargets``).
"""

from typing import Final, NamedTuple

import msgspec
from msgspec import Raw
from opentelemetry.util.types import AttributeValue

from mcp_middleware.exchange import Exchange
from mcp_middleware.message import Notification, Request

from . import conventions as names

__all__ = [
    "Attributes",
    "KnownTargets",
    "Outcome",
    "label_of",
    "metric_labels",
    "outcome_of",
    "span_attributes",
]

Attributes = dict[str, AttributeValue]

MAX_TEXT: Final = 256
"""Characters of a value that a caller chose."""
MAX_URI: Final = 1024
MAX_CONTENT: Final = 16 * 1024
"""Characters of arguments and results, where they are captured."""
MAX_TARGETS: Final = 1000
"""Targets that are named in labels."""

_HTTP_METHODS: Final = frozenset({"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"})


class Outcome(NamedTuple):
    """How a message ended."""

    error_type: str | None = None
    code: str | None = None
    """JSON-RPC's error code."""
    fault: bool = False
    """Whether the server failed, rather than the caller."""
    text: str | None = None
    """The error's message: the server's words, which can repeat what the caller sent."""


class _Named(msgspec.Struct):
    name: str


class _Listed(msgspec.Struct):
    """The result of ``tools/list`` or ``prompts/list``."""

    tools: list[_Named] = []
    prompts: list[_Named] = []


_listed: Final = msgspec.json.Decoder(_Listed)


class KnownTargets:
    """The tools and prompts that a server has shown to exist, and so may become labels: at most ``MAX_TARGETS``.

    A list names them, and so does a result without an error. A tool's error does not: servers answer a call of an
    unknown tool with one.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] = set()

    def __contains__(self, target: tuple[str, str]) -> bool:
        return target in self._known

    def learn(self, exchange: Exchange, outcome: Outcome) -> None:
        """Note what the answer of ``exchange`` shows to exist."""
        message, answer = exchange.message, exchange.answer
        if outcome.error_type is not None or answer is None or not isinstance(message, Request):
            return
        if message.target is not None:
            if message.target_kind in ("tool", "prompt") and (message.method, message.target) not in self._known:
                self._add(message.method, message.target)
        elif message.method in ("tools/list", "prompts/list") and isinstance(answer.result, Raw):
            try:
                listed = _listed.decode(answer.result)
            except (msgspec.DecodeError, RecursionError):
                return
            for tool in listed.tools:
                self._add("tools/call", tool.name)
            for prompt in listed.prompts:
                self._add("prompts/get", prompt.name)

    def _add(self, method: str, name: str) -> None:
        if len(self._known) < MAX_TARGETS and len(name) <= MAX_TEXT:
            self._known.add((method, name))


_FINE: Final = Outcome()


def outcome_of(exchange: Exchange) -> Outcome:
    """How the message of ``exchange`` ended (conventions for MCP, ``error.type`` and ``rpc.response.status_code``)."""
    rejection, answer = exchange.rejection, exchange.answer
    if rejection is not None:
        code = None if rejection.code is None else str(rejection.code)
        return Outcome(code or str(rejection.status), code, rejection.status >= 500, rejection.message)
    if answer is not None and answer.error is not None:
        code = str(answer.error.code)
        return Outcome(code, code, answer.error.code not in names.CALLER_FAULTS, answer.error.message)
    if exchange.failed is not None:
        return Outcome(type(exchange.failed).__qualname__, None, True)
    if answer is not None:
        return Outcome(names.TOOL_ERROR, None, True) if exchange.tool_failed else _FINE
    if exchange.status is not None and exchange.status >= 400:
        return Outcome(str(exchange.status), None, exchange.status >= 500)
    if exchange.disconnected and isinstance(exchange.message, Request):
        return Outcome(names.DISCONNECTED)
    return _FINE


def label_of(exchange: Exchange, known: KnownTargets) -> str:
    """A span's name: ``{method} {target}`` with what is known, else less; of a message nobody read, the HTTP method."""
    message = exchange.message
    if not isinstance(message, (Request, Notification)):
        return exchange.http_method if exchange.http_method in _HTTP_METHODS else "HTTP"
    method = message.method if message.method in names.METHODS else names.OTHER
    if isinstance(message, Request) and message.target is not None and (message.method, message.target) in known:
        return f"{method} {message.target}"
    return method


def metric_labels(exchange: Exchange, outcome: Outcome, known: KnownTargets) -> Attributes:
    """The labels of a duration: every value is one of few.

    What is the same for every message (``network.*``) or follows from the method (``gen_ai.operation.name``) is on the
    span alone: a label costs as much as two attributes, and tells no series from another.
    """
    message = exchange.message
    labels: Attributes = {names.METHOD: names.OTHER}
    if isinstance(message, (Request, Notification)):
        if message.method in names.METHODS:
            labels[names.METHOD] = message.method
        if isinstance(message, Request) and message.target is not None and (message.method, message.target) in known:
            labels[names.TOOL_NAME if message.target_kind == "tool" else names.PROMPT_NAME] = message.target
    if exchange.version is not None:
        labels[names.PROTOCOL_VERSION] = exchange.version
    _add_outcome(exchange, outcome, labels)
    return labels


def span_attributes(exchange: Exchange, outcome: Outcome, *, session: str | None, content: bool) -> Attributes:
    """The attributes of a span. ``session`` names the session without opening it; ``content`` captures arguments and
    results."""
    message, scope = exchange.message, exchange.scope
    found: Attributes = {names.NETWORK_PROTOCOL_NAME: "http", names.NETWORK_TRANSPORT: "tcp"}
    if isinstance(message, (Request, Notification)):
        found[names.METHOD] = message.method[:MAX_TEXT]
        if message.method == "tools/call":
            found[names.OPERATION] = names.EXECUTE_TOOL
    if isinstance(message, Request):
        found[names.REQUEST_ID] = str(message.id)[:MAX_TEXT]
        if message.target is not None:
            _add_target(message.target_kind, message.target, found)
        if content and message.method == "tools/call":
            found[names.ARGUMENTS] = _text(message.arguments())
            if exchange.answer is not None and isinstance(exchange.answer.result, Raw):
                found[names.RESULT] = _text(exchange.answer.result)
    if exchange.version is not None:
        found[names.PROTOCOL_VERSION] = exchange.version
    if session is not None:
        found[names.MCP_SESSION] = found[names.SESSION] = session
    principal = exchange.principal
    if principal is not None:
        found[names.AGENT] = principal.client
        if principal.subject is not None:
            found[names.USER] = principal.subject
    usage = exchange.usage
    if usage is not None:
        found[names.INPUT_TOKENS] = usage.input_tokens
        found[names.OUTPUT_TOKENS] = usage.output_tokens
    client = scope.get("client")
    if client:
        found[names.CLIENT_ADDRESS], port = client[0], client[1]
        if port:
            found[names.CLIENT_PORT] = port
    rule = exchange.rejection.rule if exchange.rejection is not None else None
    if rule is None and exchange.decision is not None:
        rule = exchange.decision.rule
    if rule is not None:
        found[names.RULE] = rule
    if exchange.status is not None:
        found[names.HTTP_STATUS] = exchange.status
    http_version = scope.get("http_version")
    if http_version:
        found[names.NETWORK_PROTOCOL_VERSION] = http_version
    _add_outcome(exchange, outcome, found)
    return found


def _add_target(kind: str | None, target: str, found: Attributes) -> None:
    if kind == "tool":
        found[names.TOOL_NAME] = target[:MAX_TEXT]
    elif kind == "prompt":
        found[names.PROMPT_NAME] = target[:MAX_TEXT]
    elif kind == "resource":
        found[names.RESOURCE_URI] = target[:MAX_URI]


def _add_outcome(exchange: Exchange, outcome: Outcome, found: Attributes) -> None:
    if outcome.error_type is not None:
        found[names.ERROR_TYPE] = outcome.error_type
    if outcome.code is not None:
        found[names.STATUS_CODE] = outcome.code
    if exchange.rejection is not None:
        found[names.REFUSAL_REASON] = exchange.rejection.reason
    if exchange.rejection is not None or exchange.decision is not None:
        found[names.DECISION] = exchange.verdict


def _text(raw: bytes | Raw) -> str:
    return bytes(raw)[:MAX_CONTENT].decode(errors="replace")
