"""How long a tool's next answer will be, guessed from its last ones."""

import math
import sys
from collections.abc import Hashable
from typing import Final

__all__ = ["Forecast"]

_WINDOW: Final = 32
"""Answers remembered in each window, which is kept as bytes, four for each: that takes least memory."""
_QUANTILE: Final = 0.9
"""The share of them that was not longer than the guess: high, so that few calls end in debt."""
_MAX_RECENT: Final = 4096
"""Pairs of principal and name before the oldest are forgotten, of which one principal alone can have a quarter."""
_MAX_NAMES: Final = 1024
_LONG: Final = 512
"""Characters of a name that is not kept: there are servers that answer whatever name a caller invents."""
_MAX_TOKENS: Final = 2**32 - 1
_OTHERS: Final = ""
"""All names beyond the bound share this one; no tool has it."""


class Forecast:
    """The 90th percentile of the last 32 answers of each tool to each principal.

    Each has its own, so that nobody's long answers make others reserve more. A tool that has not answered a principal
    yet is expected to answer as it did the last 32 others at first. The start counts as one of those, and the longest
    is never the guess: no principal alone makes it more than the start.

    Memory is bounded: a name is kept only once it has answered well, which a caller cannot invent, and at most 1,024 of
    them; and of principals and names at most 8,192 pairs, the 4,096 that were used last among them (about 230 bytes
    each). One limiter that takes another's place goes on with its forecast, if it is given it.
    """

    def __init__(self) -> None:
        self._first: dict[str, bytes] = {}  # by name
        self._recent: dict[int, bytes] = {}  # by principal and name
        self._earlier: dict[int, bytes] = {}  # what has not been used since these were the recent ones

    def __len__(self) -> int:
        """Names that are kept."""
        return len(self._first)

    def guess(self, principal: Hashable, name: str, start: int) -> int:
        """Output tokens to expect; ``start`` of a tool that has answered nobody yet."""
        name = name if name in self._first else _OTHERS
        key = _key(principal, name)
        own = self._recent.get(key) or self._earlier.get(key)
        if own is not None:
            return _high(own)
        first = self._first.get(name)
        return start if first is None else _high(first, start)

    def add(self, principal: Hashable, name: str, tokens: int) -> None:
        """Remember what an answer had."""
        if name not in self._first and (len(self._first) >= _MAX_NAMES or len(name) > _LONG):
            name = _OTHERS
        key = _key(principal, name)
        own = self._recent.get(key) or self._earlier.pop(key, b"")
        if not own:
            self._first[name] = _with(self._first.get(name, b""), tokens)
        self._recent[key] = _with(own, tokens)
        if len(self._recent) >= _MAX_RECENT:
            self._recent, self._earlier = {}, self._recent


def _key(principal: Hashable, name: str) -> int:
    """Of one size whatever a token says; nobody can find two that are the same, for texts are hashed with a secret."""
    return hash((principal, name))


def _with(window: bytes, tokens: int) -> bytes:
    return (window + min(tokens, _MAX_TOKENS).to_bytes(4, sys.byteorder))[-4 * _WINDOW :]


def _high(window: bytes, *others: int) -> int:
    answers = memoryview(window).cast("I")
    return sorted([*answers, *others])[math.ceil(_QUANTILE * len(answers)) - 1]
