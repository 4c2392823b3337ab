"""Filtering of list results, and what every result under a policy says of its caching. Pure.

An item that stays is copied byte for byte, in its place. Of the result around the items only what the specification
defines stays: a server's own members, such as a total, would tell how much is hidden.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import Raw

from mcp_middleware.bounded import TooManyError, items_of, members_of

__all__ = ["LISTS", "MAX_ITEMS", "ItemList", "is_cached", "list_in", "name_of", "opened", "private"]


@dataclass(frozen=True, slots=True)
class ItemList:
    """One kind of list: where its items are, what names them, and what is asked for each."""

    member: str
    named_by: str
    kind: str
    asked_as: str
    """The method whose permission shows an item."""
    item: msgspec.json.Decoder[Any] = field(init=False)

    def __post_init__(self) -> None:
        struct = msgspec.defstruct("Item", [("name", str)], rename={"name": self.named_by}, gc=False)
        object.__setattr__(self, "item", msgspec.json.Decoder(struct))


LISTS: Final = {
    "tools/list": ItemList("tools", "name", "tool", "tools/call"),
    "prompts/list": ItemList("prompts", "name", "prompt", "prompts/get"),
    "resources/list": ItemList("resources", "uri", "resource", "resources/read"),
    "resources/templates/list": ItemList("resourceTemplates", "uriTemplate", "template", "resources/read"),
}
"""List methods, the same in every revision."""

MAX_ITEMS: Final = 20_000
"""Items of one page: each is an object of ours, and is asked about."""
_MEMBERS: Final = ("resultType", "nextCursor", "cacheScope", "ttlMs")
_RESERVED_META: Final = "io.modelcontextprotocol/"
"""Beginning of the ``_meta`` keys that the specification defines (2026-07-28, basic/index, "_meta")."""

_NULL: Final = Raw(b"null")
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Result(msgspec.Struct, gc=False):
    """What a result is read for. Its other members, of which there may be any number, are skipped."""

    resultType: Raw = Raw()  # noqa: N815
    nextCursor: Raw = Raw()  # noqa: N815
    cacheScope: Raw = Raw()  # noqa: N815
    ttlMs: Raw = Raw()  # noqa: N815
    _meta: Raw = Raw()
    tools: Raw = Raw()
    prompts: Raw = Raw()
    resources: Raw = Raw()
    resourceTemplates: Raw = Raw()  # noqa: N815


_result: Final = msgspec.json.Decoder(_Result)
_number: Final[msgspec.json.Decoder[int | float]] = msgspec.json.Decoder(int | float)


def opened(result: Raw, items: ItemList) -> tuple[dict[str, Any], list[Raw]] | None:
    """What stays of ``result`` around its items, and the items; None for what is no such list. A list that is not there
    is empty. Raises TooManyError for one of more than ``MAX_ITEMS``."""
    try:
        members = _result.decode(result)
        around: dict[str, Any] = {key: value for key in _MEMBERS if (value := getattr(members, key))}
        meta = members._meta
        if meta and meta != _NULL:
            try:
                around["_meta"] = {k: v for k, v in members_of(meta).items() if k.startswith(_RESERVED_META)}
            except TooManyError:
                return None
        listed: Raw = getattr(members, items.member)
        return around, items_of(listed, MAX_ITEMS) if listed else []
    except _UNREADABLE:
        return None


def list_in(result: Raw) -> ItemList | None:
    """The list in a result of which nobody knows what it answers, as on a stream that was resumed."""
    try:
        members = _result.decode(result)
    except _UNREADABLE:
        return None
    return next((items for items in LISTS.values() if getattr(members, items.member)), None)


def name_of(item: Raw, items: ItemList) -> str | None:
    """What names an item; None where that cannot be read, and the item is shown to nobody."""
    try:
        name: str = items.item.decode(item).name
    except _UNREADABLE:
        return None
    return name


def is_cached(result: Raw) -> bool:
    """Whether a result says anything of its caching."""
    try:
        members = _result.decode(result)
    except _UNREADABLE:
        return False
    return bool(members.cacheScope or members.ttlMs)


def private(members: dict[str, Any], max_ttl_ms: int, *, always: bool = False) -> dict[str, Any]:
    """A result's members, made fit for one caller only (2026-07-28, utilities/caching).

    ``cacheScope`` becomes private, ``ttlMs`` at most ``max_ttl_ms`` milliseconds; ``always``, or where they are there.
    """
    if always or "cacheScope" in members:
        members["cacheScope"] = "private"
    if always or "ttlMs" in members:
        members["ttlMs"] = _bounded(members.get("ttlMs"), max_ttl_ms)
    return members


def _bounded(raw: Raw | None, most: int) -> int:
    """A time to live in milliseconds; what is none is no time."""
    try:
        return min(most, max(0, int(_number.decode(raw)))) if raw is not None else 0
    except (OverflowError, *_UNREADABLE):
        return 0
