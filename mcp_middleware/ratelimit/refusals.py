"""What a caller is told: the answer to what is refused, and how much is left. Pure."""

import math
from typing import Any, Final

from mcp_middleware.errors import RATE_LIMITED
from mcp_middleware.message import Request
from mcp_middleware.storage import Reservation, Shortage
from mcp_middleware.types import Era, Rejection

from .rules import Profile, whose

__all__ = ["as_tool_result", "never", "not_now", "remaining"]

RESULT_META: Final = "mcp-middleware/limit"
"""Where a tool result that stands for a refusal says what the error's ``data`` would."""


def remaining(profile: Profile, reservation: Reservation) -> bytes:
    """``RateLimit`` of a request that was let through (draft-ietf-httpapi-ratelimit-headers-11, section 4)."""
    levels: tuple[float, ...] = (reservation.remaining_requests, reservation.remaining_tokens)
    for _, requests, tokens in reservation.parts:
        levels += (requests, tokens)
    if reservation.remaining_concurrency is not None:
        levels += (reservation.remaining_concurrency,)
    return profile.left % tuple([level if level > 0 else 0 for level in levels if level != math.inf])


def not_now(shortage: Shortage, profile: Profile) -> Rejection:
    """HTTP 429 (RFC 6585). ``Retry-After`` and the effective window are one number, as the draft wants them."""
    seconds = shortage.retry_after
    of = whose(shortage.part)
    name = shortage.dimension if shortage.part is None else f"{of}-{shortage.dimension}"
    data: dict[str, Any] = {
        "dimension": shortage.dimension,
        "limit": shortage.limit,
        "remaining": shortage.remaining,
        "retryAfterMs": shortage.retry_after_ms,
    }
    if shortage.dimension == "concurrency":
        text = f"{shortage.limit} requests are open, which is the most at once; try again when one has ended"
    else:
        which = "" if shortage.part is None else f" of this {of}"
        text = f"the limit on {shortage.dimension}{which} is reached; this request fits in {seconds} s"
    if shortage.part is not None:
        data["of"] = of
    return Rejection(
        status=429,
        code=RATE_LIMITED,
        message=text,
        reason="rate_limited",
        data=data,
        headers=(
            (b"retry-after", b"%d" % seconds),
            (b"ratelimit-policy", profile.policy),
            (b"ratelimit", b'"%b";r=%d;t=%d' % (name.encode(), shortage.remaining, seconds)),
        ),
        rule=name,
    )


def never(tokens: int, profile: Profile) -> Rejection:
    """RFC 9110 section 15.5.14: without ``Retry-After`` the condition is not temporary."""
    limit, of = math.floor(profile.most_tokens), whose(profile.smallest)
    data: dict[str, Any] = {"dimension": "tokens", "limit": limit, "needed": tokens}
    which, name = "", "tokens"
    if profile.smallest is not None:
        data["of"], which, name = of, f" of this {of}", f"{of}-tokens"
    return Rejection(
        status=413,
        code=RATE_LIMITED,
        message=f"the request has about {tokens} tokens and the limit{which} holds {limit} at most; send less",
        reason="too_many_tokens",
        data=data,
        rule=name,
    )


def as_tool_result(rejection: Rejection, request: Request, era: Era) -> Rejection:
    """The same refusal as the result of the tool that was called, for agents that see neither status nor error."""
    if request.method != "tools/call":
        return rejection
    result: dict[str, Any] = {
        "content": [{"type": "text", "text": f"Not done: {rejection.message}."}],
        "isError": True,
        "_meta": {RESULT_META: rejection.data},
    }
    if era == "modern":
        result["resultType"] = "complete"
    return Rejection(
        status=200,
        code=rejection.code,
        message=rejection.message,
        reason=rejection.reason,
        headers=tuple(line for line in rejection.headers if line[0] != b"retry-after"),
        rule=rejection.rule,
        result=result,
    )
