"""JSON of which no more is decoded than one turn of the event loop can bear. Pure, no I/O.

The decoder makes an object of each item, cannot be stopped once it has begun, and lets nobody else run meanwhile. What
it only skips costs a thirtieth. So what could hold too many items is looked at first; that there are none is seen in
most cases from a text's size, or from the number of its commas or colons.
"""

from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import Raw

__all__ = ["MAX_SMALL", "TooManyError", "items_of", "members_of"]

MAX_SMALL: Final = 64 * 1024
"""Bytes of JSON that is decoded without looking first."""
_FEW: Final = 10_000
"""Items or members that take no more than a few milliseconds, whatever they are."""


class TooManyError(Exception):
    """An array or object holds more than is decoded."""


class _Bulky(msgspec.Struct, gc=False):
    """Members that may hold much of what is not for us to read."""

    params: Raw = Raw()
    result: Raw = Raw()
    error: Raw = Raw()
    _meta: Raw = Raw()
    arguments: Raw = Raw()
    inputResponses: Raw = Raw()  # noqa: N815
    requestState: Raw = Raw()  # noqa: N815
    context: Raw = Raw()
    contents: Raw = Raw()


_object: Final = msgspec.json.Decoder(dict[str, Raw])
_array: Final = msgspec.json.Decoder(list[Raw])
_bulky: Final = msgspec.json.Decoder(_Bulky)


def items_of(text: bytes | Raw, most: int) -> list[Raw]:
    """The items of a JSON array. Raises TooManyError for more than ``most``, and ``msgspec.DecodeError``."""
    if len(text) > _FEW:
        data = bytes(text)  # a copy only to count: the items keep what they were decoded from
        if data.count(b",") > max(_FEW, most):
            try:
                _first(most).decode(data)
            except msgspec.ValidationError:
                if data.lstrip(b" \t\r\n").startswith(b"["):
                    raise TooManyError from None
    items = _array.decode(text)
    if len(items) > most:
        raise TooManyError
    return items


@lru_cache
def _first(most: int) -> msgspec.json.Decoder[Any]:
    """Reads arrays of so many items at most: at the first that is too many, it ends."""
    places = [(f"item{number}", Raw, Raw()) for number in range(most)]
    return msgspec.json.Decoder(
        msgspec.defstruct("Items", places, array_like=True, forbid_unknown_fields=True, gc=False)
    )


def members_of(text: bytes | Raw) -> dict[str, Raw]:
    """The members of a JSON object, of equal names the last. Raises TooManyError where they, and what is in them, are
    too many, or a text has so much of what looks like members; not for what is inside of ``arguments`` and others that
    may hold much. Raises ``msgspec.DecodeError``.
    """
    if len(text) > MAX_SMALL:
        data = bytes(text)
        bulky = msgspec.structs.astuple(_bulky.decode(data))
        for count in (_colons, _names):
            if count(data) - sum(count(bytes(value)) for value in bulky) <= _FEW:
                break
        else:
            raise TooManyError
    return _object.decode(text)


def _colons(data: bytes) -> int:
    return data.count(b":")


def _names(data: bytes) -> int:
    """Names of members, and what looks like one inside of a text."""
    return data.translate(None, b" \t\r\n").count(b'":')
