"""Requests and tokens per agent: reserve before the server is called, settle when its answer is known."""

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, TypeAlias, get_args

import msgspec
from opentelemetry.metrics import MeterProvider

from mcp_middleware.errors import RATE_LIMITED, UNAUTHORIZED, ConfigurationError
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import ASGIApp, Bounds, Member
from mcp_middleware.message import Request, ServerMessage
from mcp_middleware.options import whole_number
from mcp_middleware.storage import LimitStorage, MemoryStorage, Reservation, Shortage
from mcp_middleware.storage.budgets import BudgetStorage
from mcp_middleware.types import Headers, Rejection, Usage

from .budgets import Budget, Budgets, overspent
from .counts import counts_for
from .forecast import Forecast
from .payments import Due, Payment, Payments, Unpaid
from .prices import PricesOption, read_prices
from .rate import AgentLimits, PartLimits, RateOption
from .refusals import as_tool_result, never, not_now, remaining
from .reports import HINT, NONSENSE, Report, reported
from .rules import Profile, Rules
from .tokens import (
    AUDIO_TOKENS,
    IMAGE_TOKENS,
    EstimatingCounter,
    Media,
    TokenCounter,
    input_tokens,
    output_tokens,
    streamed_tokens,
)

__all__ = ["LimiterMode", "RateLimitMiddleware", "Refusal"]

logger = logging.getLogger("mcp_middleware.ratelimit")

LimiterMode: TypeAlias = Literal["enforce", "shadow", "off"]
"""``enforce``: what does not fit is refused. ``shadow``: it is only counted and logged, and goes on, uncharged as if it
had been refused. ``off``: nothing is asked, counted or kept."""

Refusal: TypeAlias = Literal["error", "tool_result"]
"""How a tool call is refused: by a JSON-RPC error, or by a result with ``isError``."""

_EXEMPT: Final = frozenset({"initialize", "ping", "server/discover", "logging/setLevel"})
"""Requests that cost nothing: a client that is refused one of them does not connect, or falls back to another era."""

_BY_TARGET: Final = frozenset({"tools/call", "prompts/get"})
_BY_METHOD: Final = frozenset({"resources/read", "completion/complete", "tasks/get", "tasks/result"})
"""What a model writes and reads, besides ``_BY_TARGET``. Their targets are without number, so one forecast serves
them all."""

_STEP: Final = 500
"""Tokens by which a stream is topped up at least, so that not every event asks the store."""
_COMPLAIN_EVERY: Final = 60.0
"""Seconds between two log lines about reports that cannot be true; there could be one for each call."""


class _Charge(msgspec.Struct):
    """What one request was charged, until its answer is known."""

    request: Request
    profile: Profile
    forecast: str | None
    """The name its output is remembered by; None for a request without tokens."""
    input_tokens: int
    reservation: Reservation | None
    payments: Payments | None
    """By what it is priced."""
    payment: Payment | None
    """What was taken for it from its agent's budgets."""
    streamed: int = 0
    """Tokens of what has come before the answer."""
    topping: asyncio.Task[None] | None = None
    cut: bool = False


class RateLimitMiddleware(Member):
    """Limits requests and tokens of each principal (issuer, client, subject), all decided in one step.

    Refused: HTTP 429 with ``Retry-After`` in whole seconds, and a JSON-RPC error ``RATE_LIMITED`` whose data has
    ``dimension``, ``limit``, ``remaining`` and ``retryAfterMs``. A request whose own input is more than the tokens
    bucket can ever hold: 413, without a time to retry.

    Args:
        app: the ASGI application.
        requests: a rate such as ``"60/minute"``, which is also the burst; ``Rate("60/minute", burst=10)`` or
            ``{"rate": "60/minute", "burst": 10}`` separates them; None does not limit.
        tokens: the same, of tokens, input and output together.
        concurrency: requests of one principal that may be open at once; None does not limit.
        agents: other limits for agents whose client id matches a glob (``*``, ``?``, ``[...]``; the first that matches
            counts; what it leaves out is as for everybody).
        tools: limits of each principal on the tools whose name matches a glob, together, on top of its own; the first
            that matches counts.
        server: the name of this server, where several share a storage: its tools' buckets are its own.
        server_limits: limits of each principal on this server, on top of its own.
        prices: what calls cost; each call's cost is then in its audit record. ``Prices``, or a mapping of its fields.
        budgets: what each agent may spend in a day or a month, at these prices, all its users together; every one that
            holds for it counts. A list of ``Budget``, or of mappings of its fields.
        storage: where the buckets are kept, and what was spent.
        forecast: what earlier limiters have learnt of the tools' answers.
        counter: counts tokens.
        initial_output_tokens: the output to reserve for a tool that has not answered yet; later its own last answers
            tell.
        image_tokens: what an image counts.
        audio_tokens: what a sound counts.
        mode: whether what does not fit is refused. May be set at any time.
        refuse_with: how a refused tool call is answered.
        cut_streams: end a stream with an error once it has used tokens that are not there.
        meter_provider: instead of the global one.
        bounds: what one request may take.

    Raises:
        ConfigurationError: an option has a value that is not allowed.
    """

    stage: ClassVar[str] = "limiter"

    def __init__(
        self,
        app: ASGIApp,
        *,
        requests: RateOption = None,
        tokens: RateOption = None,
        concurrency: int | None = None,
        agents: Mapping[str, Mapping[str, Any] | AgentLimits] | None = None,
        tools: Mapping[str, Mapping[str, Any] | PartLimits] | None = None,
        server: str | None = None,
        server_limits: Mapping[str, Any] | PartLimits | None = None,
        prices: PricesOption = None,
        budgets: Sequence[Budget | Mapping[str, Any]] | None = None,
        storage: LimitStorage | None = None,
        forecast: Forecast | None = None,
        counter: TokenCounter | None = None,
        initial_output_tokens: int = 1000,
        image_tokens: int = IMAGE_TOKENS,
        audio_tokens: int = AUDIO_TOKENS,
        mode: LimiterMode = "enforce",
        refuse_with: Refusal = "error",
        cut_streams: bool = False,
        meter_provider: MeterProvider | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__(app, bounds=bounds)
        name = type(self).__name__
        if meter_provider is not None and not isinstance(meter_provider, MeterProvider):
            raise ConfigurationError(f"{name}: meter_provider is {meter_provider!r}; it must be a MeterProvider")
        self._counts = counts_for(meter_provider)
        self._server_name = server
        self._storage = MemoryStorage() if storage is None else storage
        self._budget_storage: BudgetStorage | None = getattr(self._storage, "budgets", None)
        self.update(
            requests=requests,
            tokens=tokens,
            concurrency=concurrency,
            agents=agents,
            tools=tools,
            server_limits=server_limits,
            prices=prices,
            budgets=budgets,
        )
        self._start = whole_number(f"{name}: initial_output_tokens", initial_output_tokens, least=0)
        self._media = Media(
            whole_number(f"{name}: image_tokens", image_tokens, least=0),
            whole_number(f"{name}: audio_tokens", audio_tokens, least=0),
        )
        self._forecast = Forecast() if forecast is None else forecast
        self._counter = EstimatingCounter() if counter is None else counter
        for option, value, method in (
            ("storage", self._storage, "reserve"),
            ("forecast", self._forecast, "guess"),
            ("counter", self._counter, "count"),
        ):
            if not callable(getattr(value, method, None)):
                raise ConfigurationError(f"{name}: {option} is {value!r}; it must have a method {method!r}")
        self._threaded_above: float = getattr(self._counter, "threaded_above", math.inf)
        self.mode = mode
        if refuse_with not in get_args(Refusal):
            raise ConfigurationError(f"{name}: refuse_with is {refuse_with!r}; it must be 'error' or 'tool_result'")
        self._refuse_with = refuse_with
        if not isinstance(cut_streams, bool):
            raise ConfigurationError(f"{name}: cut_streams is {cut_streams!r}; it must be True or False")
        self._cut_streams = cut_streams
        self._is_timed = not isinstance(self._storage, MemoryStorage)
        self._next_complaint = 0.0

    @property
    def mode(self) -> LimiterMode:
        """What becomes of requests that do not fit. Setting it counts from the next request on."""
        return self._mode

    @mode.setter
    def mode(self, mode: LimiterMode) -> None:
        if mode not in get_args(LimiterMode):
            raise ConfigurationError(
                f"{type(self).__name__}: mode is {mode!r}; it must be 'enforce', 'shadow' or 'off'"
            )
        self._mode: LimiterMode = mode

    def update(
        self,
        *,
        requests: RateOption = None,
        tokens: RateOption = None,
        concurrency: int | None = None,
        agents: Mapping[str, Mapping[str, Any] | AgentLimits] | None = None,
        tools: Mapping[str, Mapping[str, Any] | PartLimits] | None = None,
        server_limits: Mapping[str, Any] | PartLimits | None = None,
        prices: PricesOption = None,
        budgets: Sequence[Budget | Mapping[str, Any]] | None = None,
    ) -> None:
        """Put other limits in the place of all there are, from the next request on. What was used stays used.

        Raises ConfigurationError, and changes nothing, for a wrong one.
        """
        name = type(self).__name__
        priced = read_prices(f"{name}: prices", prices, server=self._server_name)
        budgeted = None
        if budgets is not None:
            if priced is None:
                raise ConfigurationError(f"{name}: budgets need prices, by which calls are paid for")
            if self._budget_storage is None:
                raise ConfigurationError(
                    f"{name}: budgets need a storage that keeps them, and {self._storage!r} does not"
                )
            budgeted = (Budgets(f"{name}: budgets", budgets, currency=priced.currency), self._budget_storage)
        self._rules = Rules(
            name,
            requests=requests,
            tokens=tokens,
            concurrency=concurrency,
            agents=agents,
            tools=tools,
            server=self._server_name,
            server_limits=server_limits,
            is_priced=priced is not None,
        )
        self._payments = None
        if priced is not None:
            self._payments = Payments(priced, budgeted, server=self._server_name, counts=self._counts)

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        """Reserve, or refuse."""
        request = exchange.message
        if not isinstance(request, Request) or request.method in _EXEMPT or self._mode == "off":
            return None
        is_tool = request.method == "tools/call"
        key, profile = self._rules.find(exchange.caller.key, request.target if is_tool else None)
        forecast = _forecast_name(request)
        known = guess = 0
        if forecast is not None:
            if exchange.request_bytes > self._threaded_above:
                known = await asyncio.to_thread(input_tokens, request, self._counter)
            else:
                known = input_tokens(request, self._counter)
            guess = self._forecast.guess(forecast, self._start)
            if known > profile.most_tokens:
                self._counts.too_large[self._mode == "enforce"] += 1
                if self._mode == "enforce":
                    return self._answer(never(known, profile), request, exchange)
                _log_shadow(exchange, f"{known} tokens are more than the limit ever holds")
                exchange.state[self] = _Charge(request, profile, forecast, known, None, self._payments, None)
                return None
        payments = self._payments
        due = None
        if payments is not None and forecast is not None:
            due = payments.estimate(exchange.caller, request, Usage(known, guess))
        paid: Payment | Unpaid | None = None
        answer: Reservation | Shortage | None = None
        if payments is None or due is None:
            if profile.policy:
                answer = await self._reserve(key, profile, known + guess)
        elif not profile.policy:
            paid = await payments.take(due)
        else:
            paid, answer = await self._take_both(payments, due, key, profile, known + guess)
        if isinstance(paid, Unpaid) or isinstance(answer, Shortage):
            enforced = self._mode == "enforce"
            rejection = self._refuse(exchange, profile, paid, answer, enforced=enforced)
            if payments is not None and isinstance(paid, Payment):
                await payments.settle(paid, 0)
                paid = None
            if isinstance(answer, Reservation):
                await self._storage.settle(answer, 0, requests=0)
                answer = None
            if enforced:
                return self._answer(rejection, request, exchange)
        if isinstance(answer, Reservation):
            self._counts.admitted += 1
        exchange.state[self] = _Charge(
            request,
            profile,
            forecast,
            known,
            answer if isinstance(answer, Reservation) else None,
            payments,
            paid if isinstance(paid, Payment) else None,
        )
        return None

    async def _take_both(
        self, payments: Payments, due: Due, key: bytes, profile: Profile, tokens: int
    ) -> tuple[Payment | Unpaid, Reservation | Shortage]:
        if not self._is_timed:
            return await payments.take(due), await self._reserve(key, profile, tokens)
        reserving = asyncio.ensure_future(self._reserve(key, profile, tokens))
        try:  # on a shared store, in one round trip
            return await asyncio.gather(payments.take(due), reserving)
        except BaseException:
            if reserving.cancel():
                await asyncio.wait({reserving})
            if not reserving.cancelled() and reserving.exception() is None:
                answer = reserving.result()
                if isinstance(answer, Reservation):  # nobody else knows of its place among the open requests
                    await self._storage.settle(answer, None)
            raise

    async def _reserve(self, key: bytes, profile: Profile, tokens: float) -> Reservation | Shortage:
        began = time.monotonic() if self._is_timed else 0.0
        answer = await self._storage.reserve(key, profile.limits, tokens)
        if self._is_timed:
            self._counts.took("reserve", time.monotonic() - began)
        if answer.local:
            self._counts.fallbacks += 1
        return answer

    def _refuse(
        self,
        exchange: Exchange,
        profile: Profile,
        paid: Payment | Unpaid | None,
        answer: Reservation | Shortage | None,
        *,
        enforced: bool,
    ) -> Rejection:
        """Count what is, or would be, refused; the refusal is what has to be waited for longest."""
        refusals: list[tuple[int, Rejection]] = []
        if isinstance(answer, Shortage):
            self._counts.refuse(answer, enforced=enforced)
            refusals.append((answer.retry_after_ms, not_now(answer, profile)))
            if not enforced:
                wait = f"{answer.retry_after_ms} ms to wait"
                _log_shadow(exchange, f"{answer.dimension} of {answer.part or 'the agent'}, {wait}")
        if isinstance(paid, Unpaid):
            self._counts.refuse_to_pay(enforced=enforced)
            rejection = overspent(paid.overspending, paid.allowance, paid.currency)
            refusals.append((paid.overspending.retry_after_ms, rejection))
            if not enforced:
                _log_shadow(exchange, rejection.message)
        return max(refusals, key=lambda one: one[0])[1]

    def _answer(self, rejection: Rejection, request: Request, exchange: Exchange) -> Rejection:
        if self._refuse_with == "tool_result":
            return as_tool_result(rejection, request, exchange.era)
        return rejection

    def on_response_start(self, exchange: Exchange, status: int, headers: Headers) -> None:
        """Say what is left (draft-ietf-httpapi-ratelimit-headers-11)."""
        charge: _Charge | None = exchange.state.get(self)
        if charge is None or charge.reservation is None or self._mode == "shadow":
            return
        headers.append((b"ratelimit-policy", charge.profile.policy))
        headers.append((b"ratelimit", remaining(charge.profile, charge.reservation)))

    def on_response_message(self, exchange: Exchange, message: ServerMessage) -> ServerMessage | None:
        """Top a stream up as it flows, and cut it where that is wanted."""
        if message.method is None and not self._cut_streams:
            return message
        charge: _Charge | None = exchange.state.get(self)
        if charge is None or charge.forecast is None:
            return message
        if charge.cut:
            return None if exchange.answer is not None else self._cut(exchange)
        if message.method is not None:
            try:
                charge.streamed += streamed_tokens(message, self._counter)
            except Exception:  # the counter's fault is not the stream's
                logger.exception("the tokens of a stream's message could not be counted")
            reservation = charge.reservation
            if reservation is not None and (charge.topping is None or charge.topping.done()):
                short = charge.input_tokens + charge.streamed - reservation.tokens
                if short > 0:
                    charge.topping = asyncio.create_task(self._top_up(charge, reservation, max(short, _STEP)))
        return message

    async def _top_up(self, charge: _Charge, reservation: Reservation, tokens: float) -> None:
        left = await self._storage.top_up(reservation, tokens)
        unused = reservation.tokens - charge.input_tokens - charge.streamed
        if left + unused < 0 and self._cut_streams and self._mode == "enforce":
            charge.cut = True

    def _cut(self, exchange: Exchange) -> ServerMessage:
        self._counts.cut += 1
        text = "the limit on tokens is reached; the stream was cut off, and the server may go on with the call"
        unanswered = ServerMessage(id=exchange.request_id)
        exchange.ended = True
        return unanswered.with_error(RATE_LIMITED, text, {"dimension": "tokens", "cut": True})

    async def on_finish(self, exchange: Exchange) -> None:
        """Settle, if it is known what the call took; else the estimate stands."""
        charge: _Charge | None = exchange.state.pop(self, None)
        if charge is None:
            return
        actual = None
        try:
            if charge.topping is not None:
                await asyncio.wait({charge.topping})
            if charge.forecast is not None:
                actual = await self._actual_tokens(exchange, charge, charge.forecast)
        finally:
            await self._settle(charge, actual, None if actual is None else self._price(exchange, charge, actual))

    async def _settle(self, charge: _Charge, tokens: int | None, nanos: int | None) -> None:
        """Put what is known in place of the estimates."""
        payments, payment = charge.payments, charge.payment
        if payments is None or payment is None or nanos is None:
            await self._give_back(charge, tokens)
        elif self._is_timed:  # on a shared store, in one round trip
            both = asyncio.gather(self._give_back(charge, tokens), payments.settle(payment, nanos))
            await asyncio.shield(both)  # else who is cancelled now would not even have begun
        else:
            await self._give_back(charge, tokens)
            await payments.settle(payment, nanos)

    async def _give_back(self, charge: _Charge, tokens: int | None) -> None:
        reservation = charge.reservation
        if reservation is None or (tokens is None and not reservation.place):
            return
        began = time.monotonic() if self._is_timed else 0.0
        left = await self._storage.settle(reservation, tokens)
        if self._is_timed:
            self._counts.took("settle", time.monotonic() - began)
        if tokens is not None:
            self._counts.settle(reservation.tokens, tokens, left)

    def _price(self, exchange: Exchange, charge: _Charge, tokens: int) -> int:
        """Say what the call cost. Billionths; 0 for what has no price, or was refused further in."""
        payments, request = charge.payments, charge.request
        if payments is None or exchange.rejection is not None:
            return 0
        is_known = request.method == "tools/call" and exchange.answer and _succeeded(request, exchange.answer)
        usage = Usage(tokens) if exchange.usage is None else exchange.usage
        cost = exchange.cost = payments.cost(request, usage, is_known=bool(is_known))
        return 0 if cost is None else cost.nanos

    async def aclose(self) -> None:
        """Close the storage."""
        await self._storage.aclose()

    async def _actual_tokens(self, exchange: Exchange, charge: _Charge, forecast: str) -> int | None:
        if exchange.rejection is not None:
            return 0  # a member further in refused: the server saw nothing
        answer = exchange.answer
        if exchange.failed is not None or (answer and answer.error and answer.error.code == UNAUTHORIZED):
            return None  # the server broke off, or the caller's token ended first: nobody knows what it has done
        if answer is None:
            refused = exchange.status is not None and 400 <= exchange.status < 500
            return charge.input_tokens if refused else None
        report = self._report(answer) if HINT in answer.raw else NONSENSE
        if report.output_tokens is not None:
            output = report.output_tokens
        elif len(answer.raw) > self._threaded_above:
            output = await asyncio.to_thread(output_tokens, charge.request, answer, self._counter, self._media)
        else:
            output = output_tokens(charge.request, answer, self._counter, self._media)
        output += charge.streamed
        known = charge.input_tokens if report.input_tokens is None else report.input_tokens
        exchange.usage = Usage(known, output)
        if _succeeded(charge.request, answer):
            self._forecast.add(forecast, output)
        return known + output

    def _report(self, answer: ServerMessage) -> Report:
        """What the server says it used; nothing, if that cannot be true."""
        report = reported(answer)
        if report is None:
            return NONSENSE
        self._counts.reports[report is not NONSENSE] += 1
        if report is NONSENSE and time.monotonic() >= self._next_complaint:
            self._next_complaint = time.monotonic() + _COMPLAIN_EVERY
            logger.warning("a server reported usage in _meta that cannot be true; its answer was counted instead")
        return report


def _log_shadow(exchange: Exchange, why: str) -> None:
    client = exchange.caller.client[:200]
    logger.info("shadow: the request of client %r would have been refused: %s", client, why)


def _forecast_name(request: Request) -> str | None:
    if request.method in _BY_TARGET:
        return f"{request.method} {request.target}"
    return request.method if request.method in _BY_METHOD else None


def _succeeded(request: Request, answer: ServerMessage) -> bool:
    if answer.error is not None or request.method != "tools/call":
        return answer.error is None
    return answer.tool_result is not None and not answer.tool_result.is_error
