"""Tool authorization: which caller may see and use which tool, prompt and resource."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from mcp_middleware.bounded import TooManyError, members_of
from mcp_middleware.errors import INTERNAL_ERROR, ConfigurationError
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import ASGIApp, Bounds, Member
from mcp_middleware.message import Request
from mcp_middleware.options import whole_number
from mcp_middleware.server_message import ServerMessage
from mcp_middleware.types import Decision, Principal, Rejection

from .lists import LISTS, MAX_ITEMS, ItemList, is_cached, list_in, name_of, opened, private
from .methods import about, question, questions
from .policy import Authorizer, Policy, combine
from .refusals import refusal, unified, unreadable

__all__ = ["ToolAuthorizationMiddleware"]

_UPDATED: Final = "notifications/resources/updated"
_TURN: Final = 0.002
"""Seconds in which targets are judged before others have their turn."""


class ToolAuthorizationMiddleware(Member):
    """Lets through what the policy allows, hides the rest, and filters lists accordingly.

    ``policy`` is a Policy, or any object with ``authorize(principal, message) -> Decision``. ``max_ttl_ms`` bounds,
    in milliseconds, how long a client may keep a filtered list or a resource; after a change of the policy it may act
    on the old one for so long.
    """

    stage = "authorization"

    def __init__(
        self, app: ASGIApp, *, policy: Policy | Authorizer, max_ttl_ms: int = 60_000, bounds: Bounds | None = None
    ) -> None:
        super().__init__(app, bounds=bounds)
        if isinstance(policy, type) or not isinstance(policy, Authorizer):
            raise ConfigurationError(
                f"ToolAuthorizationMiddleware: policy is {policy!r}; it must be a Policy, such as "
                "Policy.from_file(path), or an object with authorize(principal, message)"
            )
        self._policy = policy
        self._max_ttl_ms = whole_number("ToolAuthorizationMiddleware: max_ttl_ms", max_ttl_ms, least=0)

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        """Refuse what the policy does not allow; what it hides as if it did not exist."""
        request = exchange.message
        if not isinstance(request, Request):
            exchange.strict = request is None  # a GET stream may carry the answer to a list
            return None
        if request.method in LISTS:
            exchange.strict = True
            return None
        asked = questions(request)
        if asked is None:
            return unreadable(request)
        if not asked:
            return None
        judged, decision = await self._judge(exchange.caller, asked)
        exchange.decision = decision
        if judged is not request:
            judged = about(request, judged.target_kind, judged.target)
        if exchange.deferred is None:
            if decision.allowed:
                exchange.state[self] = judged
                return None
        elif not (decision.scopes if decision.allowed else decision.visible):
            return None  # refused in any case; what is hidden as what is not, so that it does not tell itself
        return refusal(
            judged,
            decision,
            era=exchange.era,
            base_scopes=exchange.base_scopes,
            resource_metadata=exchange.resource_metadata,
        )

    async def _judge(self, caller: Principal, asked: Sequence[Request]) -> tuple[Request, Decision]:
        """The decision on all questions, and the first question that was answered so."""
        if len(asked) == 1:
            return asked[0], self._policy.authorize(caller, asked[0])
        decisions: list[Decision] = []
        began = time.monotonic()
        for one in asked:
            decisions.append(self._policy.authorize(caller, one))
            began = await _give_way(began)
        decision = combine(decisions)
        judged = next(
            one
            for one, said in zip(asked, decisions, strict=True)
            if (said.allowed, said.visible) == (decision.allowed, decision.visible)
        )
        return judged, decision

    def on_response_message(
        self, exchange: Exchange, message: ServerMessage
    ) -> ServerMessage | Awaitable[ServerMessage] | None:
        """Take out of lists and news what the caller may not see, and say of what does not exist only that."""
        if message.method == _UPDATED and not self._may_hear(exchange, message):
            return None
        request = exchange.message
        asked = request if isinstance(request, Request) and request.id == message.id else None
        if isinstance(message.result, Raw):
            items = LISTS.get(asked.method) if asked is not None else list_in(message.result)
            if items is not None:
                return self._filter(exchange, message, message.result, items)
            if asked is not None and asked.method == "resources/read":
                return self._restamp(message, message.result)
        judged: Request | None = exchange.state.get(self)
        if asked is None or judged is None or not message.is_answer:
            return message
        return unified(message, judged, exchange.era)

    async def _filter(self, exchange: Exchange, message: ServerMessage, result: Raw, items: ItemList) -> ServerMessage:
        """A list without what the caller may not see; an error in place of a list that cannot be read."""
        try:
            read = opened(result, items)
        except TooManyError:
            return message.with_error(INTERNAL_ERROR, f"the server's list has more than {MAX_ITEMS} items on one page")
        if read is None:
            return message.with_error(INTERNAL_ERROR, "the server's list cannot be read")
        around, listed = read
        kept: list[Raw] = []
        began = time.monotonic()
        for item in listed:
            name = name_of(item, items)
            if name is not None:
                decision = self._policy.authorize(exchange.caller, question(items.asked_as, items.kind, name))
                if decision.allowed or decision.visible:
                    kept.append(item)
            began = await _give_way(began)
        around[items.member] = kept
        return message.with_result(private(around, self._max_ttl_ms, always=exchange.era == "modern"))

    def _restamp(self, message: ServerMessage, result: Raw) -> ServerMessage:
        """A resource that a shared cache will not hand to callers who may not read it."""
        if not is_cached(result):
            return message
        try:
            members: dict[str, Any] = members_of(result)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return message
        except TooManyError:
            return message.with_error(INTERNAL_ERROR, "the server's answer has too many members")
        return message.with_result(private(members, self._max_ttl_ms))

    def _may_hear(self, exchange: Exchange, message: ServerMessage) -> bool:
        """Whether the caller may subscribe to the resource of which the server tells."""
        try:
            uri = _updated.decode(message.raw).params.uri
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        return self._policy.authorize(exchange.caller, question("resources/subscribe", "resource", uri)).allowed


async def _give_way(began: float) -> float:
    """Let others have their turn, if this one has lasted long enough. When the turn that goes on began."""
    if time.monotonic() - began <= _TURN:
        return began
    await asyncio.sleep(0)
    return time.monotonic()


class _Resource(msgspec.Struct):
    uri: str


class _Updated(msgspec.Struct):
    params: _Resource


_updated: Final = msgspec.json.Decoder(_Updated)
