"""What each request of a client asks for, in one table for every revision. Pure.

A policy judges targets: a tool, a prompt, a resource, a template, the tasks. Some requests name one in ``params``,
some several, some none; ``questions`` turns a request into one question for each target.
"""

from typing import Final

import msgspec
from msgspec import Raw

from mcp_middleware.message import Message, Request

__all__ = [
    "LEGACY_ONLY",
    "MAX_SUBSCRIBED_TEXT",
    "MAX_SUBSCRIPTIONS",
    "METHODS",
    "Question",
    "about",
    "question",
    "questions",
]

METHODS: Final = {
    # The protocol itself: open to every caller.
    "initialize": "open",
    "ping": "open",
    "server/discover": "open",
    "logging/setLevel": "open",
    # Open as well; their answers are filtered.
    "tools/list": "open",
    "prompts/list": "open",
    "resources/list": "open",
    "resources/templates/list": "open",
    # Judged by what they name.
    "tools/call": "target",
    "prompts/get": "target",
    "resources/read": "target",
    "resources/subscribe": "target",
    "resources/unsubscribe": "target",
    "completion/complete": "reference",
    "subscriptions/listen": "subscriptions",
    # A task is a tool call that has begun; whose it is, only the server knows.
    "tasks/get": "tasks",
    "tasks/update": "tasks",
    "tasks/cancel": "tasks",
    "tasks/result": "tasks",
    "tasks/list": "tasks",
}
"""Every request that a client may send (2024-11-05 to 2026-07-28, and the tasks extension), and how it is judged.
A method that is not here has no target; only a policy whose default is to allow lets it pass."""

LEGACY_ONLY: Final = frozenset({"resources/subscribe", "resources/unsubscribe", "tasks/result", "tasks/list"})
"""Judged methods that 2026-07-28 has no more: there nobody is told more of them than that."""
MAX_SUBSCRIPTIONS: Final = 1000
"""Resources that one request may subscribe to: what one request may cost to judge."""
MAX_SUBSCRIBED_TEXT: Final = 64 * 1024
"""Characters of all of them together, for the same reason."""

_RESOURCE_FILTER: Final = "resourceSubscriptions"

_NULL: Final = Raw(b"null")
_SWITCHES: Final = (Raw(b"true"), Raw(b"false"), _NULL)

_object: Final = msgspec.json.Decoder(dict[str, Raw])
_strings: Final = msgspec.json.Decoder(list[str])


class Question(Request, frozen=True, gc=False, tag=False):
    """A request as one question: what it asks for is not looked up again."""


def questions(message: Message) -> tuple[Request, ...] | None:
    """``message`` once for each target to judge, with ``target`` and ``target_kind`` set; itself, if it is a Question.

    Empty where nothing is to be judged; None where the targets cannot be read, so that nobody may answer. The kinds
    are ``tool``, ``prompt``, ``resource``, ``template`` (a URI template, or a resource by its name in completion),
    ``task``, and None for a method or subscription that is not known.
    """
    if not isinstance(message, Request):
        return ()
    if isinstance(message, Question):
        return (message,)
    match METHODS.get(message.method):
        case "open":
            return ()
        case "target":
            return (message,)
        case "tasks":
            return (about(message, "task", message.target),)
        case "reference":
            return _reference(message)
        case "subscriptions":
            return _subscriptions(message)
    return (about(message, None, None),)


def question(method: str, kind: str, target: str) -> Question:
    """A request for one target that nobody has sent: what a list asks for each of its items."""
    params = {"uri" if kind in ("resource", "template") else "name": Raw(msgspec.json.encode(target))}
    return Question({}, params, {}, method, 0, target, kind)


def about(message: Request, kind: str | None, target: str | None) -> Question:
    """``message`` as a question for one target."""
    return Question(message.envelope, message.params, message.meta, message.method, message.id, target, kind)


def _reference(message: Request) -> tuple[Request, ...] | None:
    """The prompt or template whose argument is completed (2025-11-25 and 2026-07-28, server/utilities/completion)."""
    match message.text("ref", "type"):
        case "ref/prompt":
            kind, target = "prompt", message.text("ref", "name")
        case "ref/resource":
            kind, target = "template", message.text("ref", "uri")
        case _:
            return None
    return None if target is None else (about(message, kind, target),)


def _subscriptions(message: Request) -> tuple[Request, ...] | None:
    """The resources of which updates are wanted (2026-07-28, basic/utilities/subscriptions)."""
    asked: list[Request] = []
    is_known = True
    try:
        for key, value in _object.decode(message.params.get("notifications", b"{}")).items():
            if key == _RESOURCE_FILTER:
                uris = [] if value == _NULL else _strings.decode(value)
                if len(uris) > MAX_SUBSCRIPTIONS or sum(map(len, uris)) > MAX_SUBSCRIBED_TEXT:
                    return None
                asked.extend(question("resources/subscribe", "resource", uri) for uri in uris)
            elif key.replace("_", "").casefold() == _RESOURCE_FILTER.casefold():
                return None  # the MCP SDK for Python reads resource_subscriptions as well
            elif value not in _SWITCHES:
                is_known = False  # names something, and nobody here knows what
    except msgspec.DecodeError:
        return None
    return tuple(asked) if is_known else (*asked, about(message, None, None))
