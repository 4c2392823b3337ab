"""How long a tool's next answer will be, guessed from its last ones."""

import math
from array import array
from bisect import bisect_left, insort
from typing import Final

__all__ = ["Forecast"]

_WINDOW: Final = 32
"""Answers remembered for each name."""
_QUANTILE: Final = 0.9
"""The share of them that was not longer than the guess: high, so that few calls end in debt."""
_MAX_NAMES: Final = 1024
_LONG: Final = 512
"""Characters of a name that is not kept: there are servers that answer whatever name a caller invents."""
_MAX_TOKENS: Final = 2**32 - 1
_OTHERS: Final = ""
"""All names beyond the bound share this window; there is none before."""


class _Window:
    __slots__ = ("guess", "last", "next", "ordered")

    def __init__(self) -> None:
        self.last = array("I")
        self.ordered = array("I")  # the same numbers by size
        self.next = 0
        self.guess = 0

    def add(self, tokens: int) -> None:
        ordered = self.ordered
        if len(ordered) < _WINDOW:
            self.last.append(tokens)
        else:
            oldest = self.last[self.next]
            self.last[self.next] = tokens
            self.next = (self.next + 1) % _WINDOW
            if tokens == oldest:
                return
            del ordered[bisect_left(ordered, oldest)]
        insort(ordered, tokens)
        self.guess = ordered[math.ceil(_QUANTILE * len(ordered)) - 1]


class Forecast:
    """The 90th percentile of the last 32 answers of each tool.

    Memory is bounded: a name is kept only once it has answered well, which a caller cannot invent, and at most 1,024
    of them (about 600 bytes each). One limiter that takes another's place goes on with its forecast, if it is given it.
    """

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}

    def __len__(self) -> int:
        """Names that are kept."""
        return len(self._windows)

    def guess(self, name: str, start: int) -> int:
        """Output tokens to expect; ``start`` of a tool that has not answered yet."""
        window = self._windows.get(name) or self._windows.get(_OTHERS)
        return start if window is None else window.guess

    def add(self, name: str, tokens: int) -> None:
        """Remember what an answer had."""
        window = self._windows.get(name)
        if window is None:
            if len(self._windows) >= _MAX_NAMES or len(name) > _LONG:
                name = _OTHERS
            window = self._windows.setdefault(name, _Window())
        window.add(tokens if tokens < _MAX_TOKENS else _MAX_TOKENS)
