"""One line for each request, for people: who asked what of whom, and how it ended.

The audit trail is what one relies on; this is what one watches. So a line costs the request its text alone; ``lines``
writes it.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from mcp_middleware.audit.record import MAX_TEXT
from mcp_middleware.exchange import Exchange
from mcp_middleware.message import Batch, Request

__all__ = ["AccessLogWriter", "as_json", "as_text", "visible"]

_encode: Final = msgspec.json.Encoder().encode


class AccessLogWriter:
    """Gives the lines of one process to ``add``. ``render`` is ``as_text`` or ``as_json``."""

    def __init__(self, add: Callable[[str], None], render: Callable[[str, Exchange, float, float], str]) -> None:
        self._add = add
        self._render = render

    def __call__(self, server: str, exchange: Exchange, seconds: float) -> None:
        """Note a finished request to ``server`` that took ``seconds``."""
        self._add(self._render(server, exchange, seconds, time.time()))


def as_text(server: str, exchange: Exchange, seconds: float, now: float) -> str:
    """``10:31:22.123 batch-7 tools/call search_docs files@10.0.0.5:9002/mcp 200 12.3ms allowed rules[2]``"""
    moment = time.localtime(now)
    clock = f"{moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02}.{int(now * 1000) % 1000:03}"
    method, target = _asked(exchange)
    instance = f"{server}@{exchange.instance}" if exchange.instance is not None else server
    words = f"{_word(exchange.caller.client)} {_word(method)} {_word(target or '-')} {_word(instance)}"
    return f"{clock} {words} {exchange.status or '-'} {seconds * 1000:.1f}ms {_ended(exchange)}\n"


def as_json(server: str, exchange: Exchange, seconds: float, now: float) -> str:
    """The same as one JSON object, each text cut to what a record has of it."""
    method, target = _asked(exchange)
    line: dict[str, Any] = {
        "time": now,
        "agent": exchange.caller.client,
        "subject": exchange.caller.subject,
        "method": method,
        "target": target,
        "server": server,
        "instance": exchange.instance,
        "status": exchange.status,
        "ms": round(seconds * 1000, 3),
        "decision": _ended(exchange),
    }
    if exchange.trace is not None:
        line["trace_id"] = exchange.trace.trace_id
    for name, value in line.items():
        if isinstance(value, str) and len(value) > MAX_TEXT:
            line[name] = value[: MAX_TEXT - 3] + "..."
    try:
        return _encode(line).decode() + "\n"
    except (UnicodeEncodeError, msgspec.MsgspecError):
        return _encode({"time": now, "server": server, "status": exchange.status}).decode() + "\n"


def _asked(exchange: Exchange) -> tuple[str, str | None]:
    message = exchange.message
    if isinstance(message, Request):
        return message.method, message.target
    if message is None or isinstance(message, Batch):
        return exchange.http_method, None
    return getattr(message, "method", "answer"), None


def _ended(exchange: Exchange) -> str:
    rejection = exchange.rejection
    if rejection is not None:
        return f"{rejection.reason} {rejection.rule}" if rejection.rule else rejection.reason
    if exchange.disconnected:
        return "client-gone"
    if exchange.failed is not None:
        return "failed"
    decision = exchange.decision
    if decision is None:
        return "-"
    word = "allowed" if decision.allowed else "denied"
    return f"{word} {decision.rule}" if decision.rule else word


def _word(text: str) -> str:
    """``text`` as one word that cannot pass for two, end the line, move the cursor or turn the text around."""
    if text.isascii() and text.isprintable() and " " not in text and len(text) <= 200 and text:
        return text
    shown = visible(text[:200]).replace('"', '\\"')
    return f'"{shown}"'


def visible(text: str) -> str:
    """``text`` with everything that is not printable as the escape a programmer would write."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
