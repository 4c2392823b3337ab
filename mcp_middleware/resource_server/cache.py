"""Judged tokens, kept by a hash of the whole token (B7)."""

from collections import OrderedDict
from hashlib import sha256
from typing import Generic, Protocol, TypeVar

__all__ = ["TokenCache"]


class Ending(Protocol):
    """What is kept until a time, on the clock that ``get`` is asked by."""

    @property
    def until(self) -> float: ...


Value = TypeVar("Value", bound=Ending)


class TokenCache(Generic[Value]):
    """At most ``size`` values; the one not used for longest goes first."""

    __slots__ = ("_entries", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: OrderedDict[bytes, Value] = OrderedDict()

    @staticmethod
    def digest(token: bytes) -> bytes:
        """The key of ``token``."""
        return sha256(token).digest()

    def get(self, digest: bytes, now: float) -> Value | None:
        """The value kept for ``digest``, unless its time is up by ``now``."""
        value = self._entries.get(digest)
        if value is None or value.until <= now:
            return None
        self._entries.move_to_end(digest)
        return value

    def __contains__(self, digest: bytes) -> bool:
        """Whether a value is kept for ``digest``, be its time up or not."""
        return digest in self._entries

    def drop(self, digest: bytes) -> None:
        """Keep nothing for ``digest``."""
        self._entries.pop(digest, None)

    def put(self, digest: bytes, value: Value) -> None:
        """Keep ``value`` until its time is up."""
        self._entries[digest] = value
        self._entries.move_to_end(digest)
        if len(self._entries) > self.size:
            self._entries.popitem(last=False)
