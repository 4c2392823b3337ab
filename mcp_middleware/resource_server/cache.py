"""Judged tokens, kept by a hash of the whole token (B7)."""

from collections import OrderedDict
from hashlib import sha256
from typing import Generic, TypeVar

__all__ = ["TokenCache"]

Value = TypeVar("Value")


class TokenCache(Generic[Value]):
    """At most ``size`` values; the one not used for longest goes first."""

    __slots__ = ("_entries", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: OrderedDict[bytes, tuple[float, Value]] = OrderedDict()

    @staticmethod
    def digest(token: bytes) -> bytes:
        """The key of ``token``."""
        return sha256(token).digest()

    def get(self, digest: bytes, now: float) -> Value | None:
        """The value kept for ``digest``, unless its time is up by ``now``."""
        entry = self._entries.get(digest)
        if entry is None or entry[0] <= now:
            return None
        self._entries.move_to_end(digest)
        return entry[1]

    def __contains__(self, digest: bytes) -> bool:
        """Whether a value is kept for ``digest``, be its time up or not."""
        return digest in self._entries

    def drop(self, digest: bytes) -> None:
        """Keep nothing for ``digest``."""
        self._entries.pop(digest, None)

    def put(self, digest: bytes, value: Value, until: float) -> None:
        """Keep ``value`` until the time ``until``, on the clock that ``get`` is asked by."""
        self._entries[digest] = (until, value)
        self._entries.move_to_end(digest)
        if len(self._entries) > self.size:
            self._entries.popitem(last=False)
