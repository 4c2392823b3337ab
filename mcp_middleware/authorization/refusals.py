"""The answers to what is not allowed, and the answer to what does not exist: one and the same. Pure.

A caller must not learn from an answer whether a target is hidden or absent. So a refusal has one form for each kind
of target, and a server's own words for an unknown target are replaced by that form.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from mcp_middleware import errors
from mcp_middleware.message import Request
from mcp_middleware.server_message import ServerMessage
from mcp_middleware.types import Decision, Era, Rejection

from .methods import LEGACY_ONLY, MAX_SUBSCRIBED_TEXT, MAX_SUBSCRIPTIONS
from .rules import SCOPE

__all__ = ["refusal", "unified", "unreadable"]

_SDK_PREFIX: Final = re.compile(r"MCP error -?[0-9]+: ")
"""What the MCP SDK for TypeScript writes before an error's text."""


class _Unknown(NamedTuple):
    """How a target that does not exist is answered."""

    status: int
    code: int
    message: str
    data: Mapping[str, Any] | None = None


def refusal(
    request: Request,
    decision: Decision,
    *,
    era: Era,
    base_scopes: tuple[str, ...] = (),
    resource_metadata: str | None = None,
) -> Rejection:
    """The answer to a request that is denied, or that nothing but ``base_scopes`` keeps from being allowed.

    A target that the caller may not see is unknown. One that it may see is answered 403, and where scopes are
    wanting, with a challenge that names all of them and ``base_scopes``, so that a token with just what it says is
    enough (RFC 6750 section 3.1; MCP authorization, "Scope Challenge Handling").
    """
    if not (decision.visible or decision.allowed):
        status, code, message, data = _unknown(request, era)
        return Rejection(status, code, message, "not_allowed", data=data, rule=decision.rule)
    name = _description(request)
    if not decision.scopes:
        return Rejection(403, errors.UNAUTHORIZED, f"{name} is not allowed", "not_allowed", rule=decision.rule)
    scope = " ".join(dict.fromkeys((*base_scopes, *decision.scopes)))
    if not all(SCOPE.fullmatch(one) for one in scope.split(" ")):
        raise errors.ConfigurationError(
            f"the authorizer's scopes are {decision.scopes!r}; a scope is printable ASCII, no space, quote, backslash"
        )
    challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
    if resource_metadata is not None:
        challenge += f', resource_metadata="{resource_metadata}"'
    return Rejection(
        403,
        errors.UNAUTHORIZED,
        f"{name} needs a token with the scopes: {scope}",
        "insufficient_scope",
        headers=((b"www-authenticate", challenge.encode("latin-1")),),
        rule=decision.rule,
    )


def unreadable(request: Request) -> Rejection:
    """The answer to a request whose targets cannot be read."""
    needed = {
        "completion/complete": "params.ref, a ref/prompt with a name or a ref/resource with a uri",
        "subscriptions/listen": "params.notifications, with resourceSubscriptions (if any) a list "
        f"of at most {MAX_SUBSCRIPTIONS} strings with {MAX_SUBSCRIBED_TEXT} characters",
    }[request.method]
    return Rejection(400, errors.INVALID_PARAMS, f"{request.method} needs {needed}", "invalid_message")


def unified(answer: ServerMessage, request: Request, era: Era) -> ServerMessage:
    """The server's answer to an allowed request; where it says that the target does not exist, in the one form."""
    if answer.error is not None:
        if answer.error.code == errors.METHOD_NOT_FOUND:
            status = _status(errors.METHOD_NOT_FOUND, era)
            return answer.with_error(errors.METHOD_NOT_FOUND, "Method not found", status=status)
        said = answer.error.message
    else:
        result = answer.tool_result if request.method == "tools/call" else None
        if result is None or not result.is_error or len(result.content) != 1:
            return answer
        said = result.content[0].text or ""
    if request.target is None or request.target_kind is None or request.target not in said:
        return answer
    if _SDK_PREFIX.sub("", said, count=1).lower() in _words(request.target_kind, request.target):
        status, code, message, data = _unknown(request, era)
        return answer.with_error(code, message, data, status=status)
    return answer


def _unknown(request: Request, era: Era) -> _Unknown:
    code, message, data = errors.METHOD_NOT_FOUND, "Method not found", None
    if era == "modern" and request.method in LEGACY_ONLY:
        return _Unknown(_status(code, era), code, message)
    match request.target_kind:
        case "resource" | "template":
            code = errors.RESOURCE_NOT_FOUND if era == "legacy" else errors.INVALID_PARAMS
            message, data = "Resource not found", {"uri": request.target}
        case "tool" | "prompt" | "task" as kind if request.target is not None:
            code, message = errors.INVALID_PARAMS, f"Unknown {kind}: {request.target}"
    return _Unknown(_status(code, era), code, message, data)


def _status(code: int, era: Era) -> int:
    """The HTTP status of a JSON-RPC error as servers send it (2026-07-28, transports/streamable-http)."""
    if era == "legacy":
        return 200
    return 404 if code == errors.METHOD_NOT_FOUND else 400


def _words(kind: str, target: str) -> Iterator[str]:
    """How servers say that a target does not exist, in lower case."""
    word = "resource" if kind == "template" else kind
    for name in (target, repr(target), f"'{target}'", f'"{target}"'):
        for text in (
            f"unknown {word}: {name}",
            f"unknown {word} {name}",
            f"{word} not found: {name}",
            f"{word} {name} not found",
        ):
            yield text.lower()


def _description(request: Request) -> str:
    return f"{request.method} of {request.target!r}" if request.target is not None else request.method
