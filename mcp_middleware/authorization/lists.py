"""Filtering of list results, and what every result under a policy says of its caching. Pure.

An item that stays is copied byte for byte, in its place. Of the result around the items only what the specification
defines stays: a server's own members, such as a total, would tell how much is hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Raw

__all__ = ["LISTS", "MAX_ITEMS", "ItemList", "filtered", "list_in", "private"]


@dataclass(frozen=True, slots=True)
class ItemList:
    """One kind of list: where its items are, what names them, and what is asked for each."""

    member: str
    named_by: str
    kind: str
    asked_as: str
    """The method whose permission shows an item."""


LISTS: Final = {
    "tools/list": ItemList("tools", "name", "tool", "tools/call"),
    "prompts/list": ItemList("prompts", "name", "prompt", "prompts/get"),
    "resources/list": ItemList("resources", "uri", "resource", "resources/read"),
    "resources/templates/list": ItemList("resourceTemplates", "uriTemplate", "template", "resources/read"),
}
"""List methods, the same in every revision."""

MAX_ITEMS: Final = 50_000
"""Items of one page. To ask about each takes some microseconds, in which nobody else is served."""
_MEMBERS: Final = ("resultType", "nextCursor", "cacheScope", "ttlMs")
_RESERVED_META: Final = "io.modelcontextprotocol/"
"""Beginning of the ``_meta`` keys that the specification defines (2026-07-28, basic/index, "_meta")."""

_NULL: Final = Raw(b"null")
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_object: Final = msgspec.json.Decoder(dict[str, Raw])
_array: Final = msgspec.json.Decoder(list[Raw])
_string: Final = msgspec.json.Decoder(str)
_number: Final[msgspec.json.Decoder[int | float]] = msgspec.json.Decoder(int | float)


def filtered(result: Raw, items: ItemList, shown: Callable[[str], bool]) -> dict[str, Any] | None:
    """``result`` with the items of which ``shown`` says so of their names; None for what is no such list,
    or one of more than ``MAX_ITEMS``.

    An item whose name cannot be read is not shown. A list that is not there is empty.
    """
    try:
        members = _object.decode(result)
        listed = _array.decode(members.get(items.member, b"[]"))
        if len(listed) > MAX_ITEMS:
            return None
        kept: dict[str, Any] = {key: members[key] for key in _MEMBERS if key in members}
        kept[items.member] = [
            item for item in listed if (name := _name(item, items.named_by)) is not None and shown(name)
        ]
        if members.get("_meta", _NULL) != _NULL:
            meta = _object.decode(members["_meta"])
            kept["_meta"] = {key: value for key, value in meta.items() if key.startswith(_RESERVED_META)}
    except _UNREADABLE:
        return None
    return kept


def list_in(result: Raw) -> ItemList | None:
    """The list in a result of which nobody knows what it answers, as on a stream that was resumed."""
    try:
        members = _object.decode(result)
    except _UNREADABLE:
        return None
    return next((items for items in LISTS.values() if items.member in members), None)


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


def _name(item: Raw, key: str) -> str | None:
    try:
        return _string.decode(_object.decode(item)[key])
    except (KeyError, *_UNREADABLE):
        return None
