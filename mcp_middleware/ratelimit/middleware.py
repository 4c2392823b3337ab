"""Requests and tokens per agent: reserve before the server is called, settle when its answer is known."""

import fnmatch
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, ClassVar, Final

import msgspec

from mcp_middleware.errors import RATE_LIMITED, UNAUTHORIZED, ConfigurationError
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import ASGIApp, Bounds, Member
from mcp_middleware.message import Request, ServerMessage
from mcp_middleware.options import whole_number
from mcp_middleware.storage import Limits, LimitStorage, MemoryStorage, Reservation, Shortage
from mcp_middleware.types import Headers, Rejection, Usage

from .forecast import Forecast
from .rate import AgentLimits, RateOption, Rates, read_agent_limits, read_rate
from .tokens import EstimatingCounter, TokenCounter, input_tokens, output_tokens

__all__ = ["RateLimitMiddleware"]

_EXEMPT: Final = frozenset({"initialize", "ping", "server/discover", "logging/setLevel"})
"""Requests that cost nothing: a client that is refused one of them does not connect, or falls back to another era."""

_BY_TARGET: Final = frozenset({"tools/call", "prompts/get"})
_BY_METHOD: Final = frozenset({"resources/read", "completion/complete", "tasks/get", "tasks/result"})
"""What a model writes and reads, besides ``_BY_TARGET``. Their targets are without number, so one forecast serves
them all."""

_CACHED_CALLERS: Final = 4096


class _Profile(msgspec.Struct, frozen=True):
    """The limits of some agents, and the header that states them."""

    limits: Limits
    policy: bytes


class _Charge(msgspec.Struct, frozen=True, gc=False):
    """What one request was charged, until its answer is known."""

    request: Request
    profile: _Profile
    forecast: str | None
    """The name its output is remembered by; None for a request without tokens."""
    input_tokens: int
    reservation: Reservation | None


class RateLimitMiddleware(Member):
    """Limits requests and tokens of each principal (issuer, client, subject), both decided in one step.

    ``requests``, ``tokens``: a rate such as ``"60/minute"``, which is also the burst; ``Rate("60/minute", burst=10)``
    or ``{"rate": "60/minute", "burst": 10}`` separates them; None does not limit. ``agents``: other limits for agents
    whose client id matches a glob (``*``, ``?``, ``[...]``; the first that matches counts; what it leaves out is as for
    everybody). ``storage``: where the buckets are kept. ``counter``: counts tokens. ``initial_output_tokens``: the
    output to reserve for a tool that has not answered yet; later its own last answers tell.

    Refused: HTTP 429 with ``Retry-After`` in whole seconds, and a JSON-RPC error ``RATE_LIMITED`` whose data has
    ``dimension``, ``limit``, ``remaining`` and ``retryAfterMs``. A request whose own input is more than the tokens
    bucket can ever hold: 413, without a time to retry.
    """

    stage: ClassVar[str] = "limiter"

    def __init__(
        self,
        app: ASGIApp,
        *,
        requests: RateOption = None,
        tokens: RateOption = None,
        agents: Mapping[str, Mapping[str, Any] | AgentLimits] | None = None,
        storage: LimitStorage | None = None,
        counter: TokenCounter | None = None,
        initial_output_tokens: int = 1000,
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__(app, bounds=bounds)
        name = type(self).__name__
        if requests is None and tokens is None and not agents:
            raise ConfigurationError(f"{name} limits nothing; give requests, tokens or agents")
        everybody = Rates(read_rate(f"{name}: requests", requests), read_rate(f"{name}: tokens", tokens))
        self._everybody = _profile(everybody)
        self._agents = [
            (_glob(name, pattern), _profile(read_agent_limits(f"{name}: agents[{pattern!r}]", option, everybody)))
            for pattern, option in _mapping(name, agents).items()
        ]
        start = whole_number(f"{name}: initial_output_tokens", initial_output_tokens, least=0)
        self._storage = MemoryStorage() if storage is None else storage
        self._counter = EstimatingCounter() if counter is None else counter
        for option, value, method in (("storage", self._storage, "reserve"), ("counter", self._counter, "count")):
            if not callable(getattr(value, method, None)):
                raise ConfigurationError(f"{name}: {option} is {value!r}; it must have a method {method!r}")
        self._forecast = Forecast(start)
        self._caller = lru_cache(_CACHED_CALLERS)(self._find_caller)

    def _find_caller(self, principal_key: tuple[str | None, str, str | None]) -> tuple[bytes, _Profile]:
        """The storage's key for a principal, of one size whatever a token says, and its limits."""
        key = blake2b(json.dumps(principal_key).encode(), digest_size=20).digest()
        client = principal_key[1]
        for pattern, profile in self._agents:
            if pattern.match(client):
                return key, profile
        return key, self._everybody

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        """Reserve, or refuse."""
        request = exchange.message
        if not isinstance(request, Request) or request.method in _EXEMPT:
            return None
        key, profile = self._caller(exchange.caller.key)
        limits = profile.limits
        forecast = _forecast_name(request)
        known = guess = 0
        if forecast is not None:
            known = input_tokens(request, self._counter)
            guess = self._forecast.guess(forecast)
            if limits.tokens is not None and known > limits.tokens.capacity:
                return _never(known, limits.tokens.capacity)
        reservation = None
        if limits.requests is not None or limits.tokens is not None:
            answer = await self._storage.reserve(key, limits, known + guess)
            if isinstance(answer, Shortage):
                return _not_now(answer, profile)
            reservation = answer
        exchange.state[self] = _Charge(request, profile, forecast, known, reservation)
        return None

    def on_response_start(self, exchange: Exchange, status: int, headers: Headers) -> None:
        """Say what is left (draft-ietf-httpapi-ratelimit-headers-10)."""
        charge = exchange.state.get(self)
        if charge is None or charge.reservation is None:
            return
        headers.append((b"ratelimit-policy", charge.profile.policy))
        headers.append((b"ratelimit", _remaining(charge.profile.limits, charge.reservation)))

    async def on_finish(self, exchange: Exchange) -> None:
        """Settle, if it is known what the call took; else the estimate stands."""
        charge: _Charge | None = exchange.state.pop(self, None)
        if charge is None or charge.forecast is None:
            return
        actual = self._actual_tokens(exchange, charge, charge.forecast)
        if actual is not None and charge.reservation is not None:
            await self._storage.settle(charge.reservation, actual)

    async def aclose(self) -> None:
        """Close the storage."""
        await self._storage.aclose()

    def _actual_tokens(self, exchange: Exchange, charge: _Charge, forecast: str) -> int | None:
        if exchange.rejection is not None:
            return 0  # a member further in refused: the server saw nothing
        answer = exchange.answer
        if exchange.failed is not None or (answer and answer.error and answer.error.code == UNAUTHORIZED):
            return None  # the server broke off, or the caller's token ended first: nobody knows what it has done
        if answer is None:
            refused = exchange.status is not None and 400 <= exchange.status < 500
            return charge.input_tokens if refused else None
        output = output_tokens(charge.request, answer, self._counter)
        exchange.usage = Usage(charge.input_tokens, output)
        if _succeeded(charge.request, answer):
            self._forecast.add(forecast, output)
        return charge.input_tokens + output


def _mapping(name: str, agents: Any) -> Mapping[str, Any]:
    if agents is None:
        return {}
    if not isinstance(agents, Mapping):
        raise ConfigurationError(f"{name}: agents is {agents!r}; it must be a mapping from globs to limits")
    return agents


def _glob(name: str, pattern: Any) -> re.Pattern[str]:
    if not isinstance(pattern, str) or not pattern:
        raise ConfigurationError(f"{name}: agents has the key {pattern!r}; it must be a glob of client ids")
    return re.compile(fnmatch.translate(pattern))


def _profile(rates: Rates) -> _Profile:
    limits = Limits(*(None if rate is None else rate.limit for rate in rates))
    stated = [(name, rate) for name, rate in rates._asdict().items() if rate is not None]
    policy = ", ".join(f'"{name}";q={rate.amount};w={rate.seconds}' for name, rate in stated)
    return _Profile(limits, policy.encode())


def _forecast_name(request: Request) -> str | None:
    if request.method in _BY_TARGET:
        return f"{request.method} {request.target}"
    return request.method if request.method in _BY_METHOD else None


def _succeeded(request: Request, answer: ServerMessage) -> bool:
    if answer.error is not None or request.method != "tools/call":
        return answer.error is None
    return answer.tool_result is not None and not answer.tool_result.is_error


def _remaining(limits: Limits, reservation: Reservation) -> bytes:
    requests, tokens = reservation.remaining_requests, reservation.remaining_tokens
    requests = requests if requests > 0 else 0
    tokens = tokens if tokens > 0 else 0
    if limits.tokens is None:
        return b'"requests";r=%d' % requests
    if limits.requests is None:
        return b'"tokens";r=%d' % tokens
    return b'"requests";r=%d, "tokens";r=%d' % (requests, tokens)


def _not_now(shortage: Shortage, profile: _Profile) -> Rejection:
    seconds = shortage.retry_after
    return Rejection(
        status=429,
        code=RATE_LIMITED,
        message=f"the limit on {shortage.dimension} is reached; this request fits in {seconds} s",
        reason="rate_limited",
        data={
            "dimension": shortage.dimension,
            "limit": shortage.limit,
            "remaining": shortage.remaining,
            "retryAfterMs": shortage.retry_after_ms,
        },
        headers=(
            (b"retry-after", str(seconds).encode()),
            (b"ratelimit-policy", profile.policy),
            (b"ratelimit", f'"{shortage.dimension}";r={shortage.remaining};t={seconds}'.encode()),
        ),
        rule=shortage.dimension,
    )


def _never(tokens: int, capacity: float) -> Rejection:
    """RFC 9110 section 15.5.14: without ``Retry-After`` the condition is not temporary."""
    limit = int(capacity)
    return Rejection(
        status=413,
        code=RATE_LIMITED,
        message=f"the request has about {tokens} tokens and the limit holds {limit} at most; send less",
        reason="too_many_tokens",
        data={"dimension": "tokens", "limit": limit, "needed": tokens},
        rule="tokens",
    )
