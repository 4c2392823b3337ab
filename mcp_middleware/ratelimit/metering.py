"""How many tokens calls have: counted, guessed before there is an answer, and as servers report them."""

import asyncio
import logging
import math
import time
from typing import Final

import msgspec

from mcp_middleware.exchange import Exchange
from mcp_middleware.message import Request
from mcp_middleware.options import whole_number
from mcp_middleware.server_message import ServerMessage
from mcp_middleware.types import Usage

from .counts import Counts
from .forecast import Forecast
from .reading import with_method
from .reports import HINT, NONSENSE, Report, reported
from .tokens import EstimatingCounter, Media, TokenCounter, input_tokens, output_tokens, streamed_tokens

__all__ = ["BY_METHOD", "BY_TARGET", "Estimate", "Meter"]

logger = logging.getLogger("mcp_middleware.ratelimit")

BY_TARGET: Final = frozenset({"tools/call", "prompts/get"})
BY_METHOD: Final = frozenset({"resources/read", "completion/complete", "tasks/get", "tasks/result"})
"""What a model writes and reads, besides ``BY_TARGET``. Their targets are without number, so one forecast serves them
all."""

_COMPLAIN_EVERY: Final = 60.0
"""Seconds between two log lines about reports that cannot be true; there could be one for each call."""

_BYTES_PER_TOKEN: Final = 3
"""Of an answer that cannot be read: that of JSON and code, rather more than less."""


class Estimate(msgspec.Struct, frozen=True, gc=False):
    """The tokens of a call before its answer is known."""

    name: str | None
    """What its output is remembered by; None for a request without tokens."""
    input_tokens: int
    """Counted."""
    output_tokens: int
    """Guessed."""


_ESTIMATING: Final = EstimatingCounter()
_WITHOUT_TOKENS: Final = Estimate(None, 0, 0)
_UNTOLD: Final = Report(None, None)


class Meter:
    """Counts what requests and answers have, in a thread where that is slow, and learns what to expect.

    The options are those of ``RateLimitMiddleware``. Raises ConfigurationError for a wrong one, naming ``name``.
    """

    def __init__(
        self,
        name: str,
        counts: Counts,
        *,
        counter: TokenCounter | None,
        forecast: Forecast | None,
        initial_output_tokens: int,
        image_tokens: int,
        audio_tokens: int,
    ) -> None:
        self._counts = counts
        self._counter = EstimatingCounter() if counter is None else with_method(f"{name}: counter", counter, "count")
        self._threaded_above: float = getattr(self._counter, "threaded_above", math.inf)
        self._forecast = Forecast() if forecast is None else with_method(f"{name}: forecast", forecast, "guess")
        self._start = whole_number(f"{name}: initial_output_tokens", initial_output_tokens, least=0)
        self._media = Media(
            whole_number(f"{name}: image_tokens", image_tokens, least=0),
            whole_number(f"{name}: audio_tokens", audio_tokens, least=0),
        )
        self._next_complaint = 0.0

    async def estimate(self, exchange: Exchange, request: Request) -> Estimate:
        """What ``request`` has, and what its answer is likely to have."""
        name = _name(request)
        if name is None:
            return _WITHOUT_TOKENS
        if exchange.request_bytes > self._threaded_above:
            known = await asyncio.to_thread(input_tokens, request, self._counter)
        else:
            known = input_tokens(request, self._counter)
        return Estimate(name, known, self._forecast.guess(exchange.caller.key, name, self._start))

    def streamed(self, message: ServerMessage) -> int:
        """What a message before the answer has; of one that would be counted in a thread an estimate, for the next may
        come sooner than that ends. 0 where the counter fails: that is not the stream's fault."""
        counter = self._counter if len(message.raw) <= self._threaded_above else _ESTIMATING
        try:
            return streamed_tokens(message, counter)
        except Exception:
            logger.exception("the tokens of a stream's message could not be counted")
            return 0

    async def used(
        self, exchange: Exchange, request: Request, estimate: Estimate, answer: ServerMessage | None, streamed: int
    ) -> Usage | None:
        """What the call took, of which it says so in the exchange if it was answered; None where nobody knows.

        ``answer``: the server's own. ``streamed``: tokens that came before it.
        """
        if exchange.rejection is not None:
            return Usage()  # a member further in refused: the server saw nothing
        if answer is None:
            if exchange.failed is not None or exchange.answer is not None:
                return None  # the server broke off, or the caller's token ended first: nobody knows what it has done
            status = exchange.status or 0
            if 400 <= status < 500:
                return Usage(estimate.input_tokens)
            return self._unread(exchange, estimate) if status < 300 else None
        report = self._report(answer) if HINT in answer.raw else _UNTOLD
        known = estimate.input_tokens if report.input_tokens is None else report.input_tokens
        if report.output_tokens is not None:
            output = report.output_tokens
        elif len(answer.raw) > self._threaded_above:
            output = await asyncio.to_thread(output_tokens, request, answer, self._counter, self._media)
        else:
            output = output_tokens(request, answer, self._counter, self._media)
        output += streamed
        exchange.usage = usage = Usage(known, output)
        has_succeeded = exchange.tool_failed is False if request.method == "tools/call" else answer.error is None
        if has_succeeded and estimate.name is not None:
            self._forecast.add(exchange.caller.key, estimate.name, output)
        return usage

    def _unread(self, exchange: Exchange, estimate: Estimate) -> Usage | None:
        """What an answer took that is no JSON, such as one with NaN, which clients read all the same; or one that has
        not come to its end. Never less than was expected of it."""
        output = exchange.response_bytes // _BYTES_PER_TOKEN
        if output <= estimate.output_tokens or estimate.name is None:
            return None
        self._forecast.add(exchange.caller.key, estimate.name, output)
        return Usage(estimate.input_tokens, output)

    def _report(self, answer: ServerMessage) -> Report:
        """What the server says it used, where it says so and that can be true."""
        report = reported(answer)
        if report is None:
            return _UNTOLD
        self._counts.reports[report is not NONSENSE] += 1
        if report is not NONSENSE:
            return report
        if time.monotonic() >= self._next_complaint:
            self._next_complaint = time.monotonic() + _COMPLAIN_EVERY
            logger.warning("a server reported usage in _meta that cannot be true; its answer was counted instead")
        return _UNTOLD


def _name(request: Request) -> str | None:
    if request.method in BY_TARGET:
        return f"{request.method} {request.target}"
    return request.method if request.method in BY_METHOD else None
