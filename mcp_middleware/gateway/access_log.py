"""One line for each request, for people: who asked what of whom, and how it ended.

The audit trail is what one relies on; this is what one watches. So a line costs the request its text alone: writing
happens a few times a second in a thread, and a reader that does not read costs lines, never requests.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TextIO

import msgspec

from mcp_middleware.exchange import Exchange
from mcp_middleware.message import Batch, Request

__all__ = ["AccessLogWriter", "as_json", "as_text", "visible"]

FLUSH_SECONDS: Final = 0.25
MAX_WAITING: Final = 20_000
"""Lines that wait to be written; of more the newest are dropped and counted."""

_encode: Final = msgspec.json.Encoder().encode


class AccessLogWriter:
    """Collects the lines of one process and writes them to ``stream``. ``render`` is ``as_text`` or ``as_json``."""

    def __init__(self, stream: TextIO, render: Callable[[str, Exchange, float, float], str]) -> None:
        self._stream = stream
        self._render = render
        self._lines: list[str] = []
        self._dropped = 0
        self._thread = ThreadPoolExecutor(1, "access log")

    def __call__(self, server: str, exchange: Exchange, seconds: float) -> None:
        """Note a finished request to ``server`` that took ``seconds``."""
        if len(self._lines) < MAX_WAITING:
            self._lines.append(self._render(server, exchange, seconds, time.time()))
        else:
            self._dropped += 1

    async def run(self) -> None:
        """Write until cancelled, and then what is left."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await asyncio.sleep(FLUSH_SECONDS)
                await loop.run_in_executor(self._thread, self.flush)
        finally:
            self._thread.shutdown(wait=False)

    def flush(self) -> None:
        """Write what waits. Blocks as long as the stream does."""
        lines, self._lines = self._lines, []
        dropped, self._dropped = self._dropped, 0
        if dropped:
            lines.append(f"{dropped} lines of the access log were dropped: nobody reads them fast enough\n")
        if lines:
            try:
                self._stream.write("".join(lines))
                self._stream.flush()
            except (OSError, ValueError):
                pass  # nobody is there to read: no reason to stop serving


def as_text(server: str, exchange: Exchange, seconds: float, now: float) -> str:
    """``10:31:22.123 batch-7 tools/call search_docs files@10.0.0.5:9002/mcp 200 12.3ms allowed rules[2]``"""
    moment = time.localtime(now)
    clock = f"{moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02}.{int(now * 1000) % 1000:03}"
    method, target = _asked(exchange)
    instance = f"{server}@{exchange.instance}" if exchange.instance is not None else server
    words = f"{_word(exchange.caller.client)} {_word(method)} {_word(target or '-')} {_word(instance)}"
    return f"{clock} {words} {exchange.status or '-'} {seconds * 1000:.1f}ms {_ended(exchange)}\n"


def as_json(server: str, exchange: Exchange, seconds: float, now: float) -> str:
    """The same as one JSON object."""
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
