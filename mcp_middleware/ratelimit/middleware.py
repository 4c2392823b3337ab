"""Requests and tokens per agent: reserve before the server is called, settle when its answer is known.

1. ``on_request``: ``Rules`` say which limits hold, ``Meter`` what the call has and is likely to have, and ``Charges``
   take that from buckets and budgets, all or nothing. What does not fit is refused.
2. ``on_response_start``: headers say what is left.
3. ``on_response_message``: a stream that brings more than was taken is topped up as it flows, or cut.
4. ``on_finish``: ``Meter`` says what the call took, ``Payments`` what it cost, and ``Charges`` settle. Where the answer
   may come on another stream, that is then; the place among the open requests is free at once.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, TypeAlias, get_args

import msgspec
from opentelemetry.metrics import MeterProvider

from mcp_middleware.errors import RATE_LIMITED, ConfigurationError
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import ASGIApp, Bounds, Member
from mcp_middleware.message import Request
from mcp_middleware.options import flag, one_of
from mcp_middleware.server_message import ServerMessage
from mcp_middleware.storage import LimitStorage, MemoryStorage
from mcp_middleware.storage.budgets import BudgetStorage
from mcp_middleware.types import Headers, Rejection, Usage

from .budgets import Budget, Budgets, overspent
from .charges import Charge, Charges, Shortfall
from .counts import counts_for
from .forecast import Forecast
from .metering import Meter
from .payments import Payments
from .prices import PricesOption, read_prices
from .rate import AgentLimits, PartLimits, RateOption
from .reading import with_method
from .refusals import as_tool_result, never, not_now, remaining
from .rules import Profile, Rules
from .tokens import AUDIO_TOKENS, IMAGE_TOKENS, TokenCounter

__all__ = ["LimiterMode", "RateLimitMiddleware", "Refusal"]

logger = logging.getLogger("mcp_middleware.ratelimit")

LimiterMode: TypeAlias = Literal["enforce", "shadow", "off"]
"""``enforce``: what does not fit is refused. ``shadow``: it is only counted and logged, and goes on, uncharged as if it
had been refused. ``off``: nothing is asked, counted or kept."""

Refusal: TypeAlias = Literal["error", "tool_result"]
"""How a tool call is refused: by a JSON-RPC error, or by a result with ``isError``."""

_EXEMPT: Final = frozenset({"initialize", "ping", "server/discover", "logging/setLevel"})
"""Requests that cost nothing: a client that is refused one of them does not connect, or falls back to another era."""


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
        agents: other limits for agents whose client id matches a glob (``*``, ``?``; the first that matches counts;
            what it leaves out is as for everybody).
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
        one_of(f"{name}: refuse_with", refuse_with, get_args(Refusal))
        flag(f"{name}: cut_streams", cut_streams)
        self.mode = mode
        self._refuse_with = refuse_with
        self._cut_streams = cut_streams
        self._server_name = server
        self._counts = counts_for(meter_provider)
        self._storage = MemoryStorage() if storage is None else with_method(f"{name}: storage", storage, "reserve")
        self._charges = Charges(self._storage, self._counts)
        self._meter = Meter(
            name,
            self._counts,
            counter=counter,
            forecast=forecast,
            initial_output_tokens=initial_output_tokens,
            image_tokens=image_tokens,
            audio_tokens=audio_tokens,
        )
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

    @property
    def mode(self) -> LimiterMode:
        """What becomes of requests that do not fit. Setting it counts from the next request on."""
        return self._mode

    @mode.setter
    def mode(self, mode: LimiterMode) -> None:
        one_of(f"{type(self).__name__}: mode", mode, get_args(LimiterMode))
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
        payments = self._read_payments(prices, budgets)
        self._rules = Rules(
            type(self).__name__,
            requests=requests,
            tokens=tokens,
            concurrency=concurrency,
            agents=agents,
            tools=tools,
            server=self._server_name,
            server_limits=server_limits,
            is_priced=payments is not None,
        )
        self._payments = payments

    def _read_payments(
        self, prices: PricesOption, budgets: Sequence[Budget | Mapping[str, Any]] | None
    ) -> Payments | None:
        name = type(self).__name__
        priced = read_prices(f"{name}: prices", prices, server=self._server_name)
        if priced is None:
            if budgets is not None:
                raise ConfigurationError(f"{name}: budgets need prices, by which calls are paid for")
            return None
        budgeted = None
        if budgets is not None:
            storage: BudgetStorage | None = getattr(self._storage, "budgets", None)
            if storage is None:
                raise ConfigurationError(
                    f"{name}: budgets need a storage that keeps them, and {self._storage!r} does not"
                )
            budgeted = (Budgets(f"{name}: budgets", budgets, currency=priced.currency), storage)
        return Payments(priced, budgeted, server=self._server_name, counts=self._counts)

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        """Reserve, or refuse."""
        request = exchange.message
        if not isinstance(request, Request) or request.method in _EXEMPT or self._mode == "off":
            return None
        caller = exchange.caller
        key, profile = self._rules.find(caller.key, request.target if request.method == "tools/call" else None)
        estimate = await self._meter.estimate(exchange, request)
        charge = Charge(request, profile, estimate, self._payments)
        if estimate.input_tokens > profile.most_tokens:
            rejection = self._refuse_for_good(exchange, charge)
        else:
            shortfall = await self._charges.take(charge, key, caller)
            rejection = None if shortfall is None else self._refuse(exchange, profile, shortfall)
        if rejection is None:
            exchange.state[self] = charge
            return None
        return as_tool_result(rejection, request, exchange.era) if self._refuse_with == "tool_result" else rejection

    def _refuse_for_good(self, exchange: Exchange, charge: Charge) -> Rejection | None:
        """Count a request that can never fit. None where it goes on all the same."""
        enforced = self._mode == "enforce"
        self._counts.refuse_for_good(charge.profile.smallest, enforced=enforced)
        tokens = charge.estimate.input_tokens
        if enforced:
            return never(tokens, charge.profile)
        _log_shadow(exchange, f"{tokens} tokens are more than the limit ever holds")
        return None

    def _refuse(self, exchange: Exchange, profile: Profile, shortfall: Shortfall) -> Rejection | None:
        """Count what is refused, by what has to be waited for longest. None where it goes on all the same."""
        enforced = self._mode == "enforce"
        refusals: list[tuple[int, Rejection]] = []
        shortage, unpaid = shortfall
        if shortage is not None:
            self._counts.refuse(shortage, enforced=enforced)
            refusals.append((shortage.retry_after_ms, not_now(shortage, profile)))
            if not enforced:
                wait = f"{shortage.retry_after_ms} ms to wait"
                _log_shadow(exchange, f"{shortage.dimension} of {shortage.part or 'the agent'}, {wait}")
        if unpaid is not None:
            self._counts.refuse_to_pay(enforced=enforced)
            rejection = overspent(unpaid.overspending, unpaid.purse, unpaid.currency)
            refusals.append((unpaid.overspending.retry_after_ms, rejection))
            if not enforced:
                _log_shadow(exchange, rejection.message)
        return max(refusals, key=lambda one: one[0])[1] if enforced else None

    def on_response_start(self, exchange: Exchange, status: int, headers: Headers) -> None:
        """Say what is left (draft-ietf-httpapi-ratelimit-headers-11)."""
        charge: Charge | None = exchange.state.get(self)
        if charge is None or charge.reservation is None or self._mode == "shadow":
            return
        headers.append((b"ratelimit-policy", charge.profile.policy))
        headers.append((b"ratelimit", remaining(charge.profile, charge.reservation)))

    def on_response_message(self, exchange: Exchange, message: ServerMessage) -> ServerMessage | None:
        """Top a stream up as it flows, and cut it where that is wanted."""
        charge: Charge | None = exchange.state.get(self)
        if charge is None or charge.estimate.name is None:
            return message
        passed: ServerMessage | None = message
        if charge.overdrawn and self._cut_streams and self._mode == "enforce":
            passed = None if exchange.answer is not None else self._cut(exchange)
        elif message.method is not None:
            charge.streamed += self._meter.streamed(message)
            self._charges.top_up(charge)
        if passed is not None and passed.is_answer and passed.id == exchange.request_id and exchange.failed is None:
            charge.answer = passed
        return passed

    def _cut(self, exchange: Exchange) -> ServerMessage:
        self._counts.cut += 1
        text = "the limit on tokens is reached; the stream was cut off, and the server may go on with the call"
        unanswered = ServerMessage(id=exchange.request_id)
        exchange.ended = True
        return unanswered.with_error(RATE_LIMITED, text, {"dimension": "tokens", "cut": True})

    async def on_owed(self, exchange: Exchange) -> None:
        """Free the place, and keep the rest for the answer; the place too of a call that its client left."""
        if exchange.resumed:
            return
        charge: Charge | None = exchange.state.get(self)
        if charge is not None and charge.reservation is not None and charge.reservation.place:
            place = msgspec.structs.replace(charge.reservation)
            charge.reservation.place = b""
            await self._storage.settle(place, None)

    async def on_finish(self, exchange: Exchange) -> None:
        """Settle, if it is known what the call took; else the estimate stands."""
        charge: Charge | None = exchange.state.pop(self, None)
        if charge is None:
            return
        tokens = nanos = None
        try:
            if charge.topping is not None:
                await asyncio.wait({charge.topping})
            if charge.estimate.name is not None:
                answer = exchange.answer if exchange.late else charge.answer
                used = await self._meter.used(exchange, charge.request, charge.estimate, answer, charge.streamed)
                if used is not None:
                    tokens = used.input_tokens + used.output_tokens
                    if charge.payments is not None:
                        nanos = _price(exchange, charge.payments, charge.request, used)
        finally:
            await self._charges.settle(charge, tokens, nanos)

    async def aclose(self) -> None:
        """Close the storage."""
        await self._charges.aclose()


def _log_shadow(exchange: Exchange, why: str) -> None:
    client = exchange.caller.client[:200]
    logger.info("shadow: the request of client %r would have been refused: %s", client, why)


def _price(exchange: Exchange, payments: Payments, request: Request, used: Usage) -> int:
    """Say what the call cost. Billionths; 0 for what has no price, or was refused further in."""
    if exchange.rejection is not None:
        return 0
    cost = exchange.cost = payments.cost(request, used, is_known=exchange.tool_failed is False)
    return 0 if cost is None else cost.nanos
