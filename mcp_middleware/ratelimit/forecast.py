"""How long a tool's next answer will be, guessed from its last ones."""

import math
from array import array
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

__all__ = ["Forecast"]

_WINDOW: Final = 32
"""Answers remembered in each window."""
_QUANTILE: Final = 0.9
"""The share of them that was not longer than the guess: high, so that few calls end in debt."""
_MAX_OWN: Final = 8192
"""Pairs of principal and name. One principal can have an eighth of them: nobody alone has others forgotten."""
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
    them; answers are of the last 8,192 pairs of principal and name (about 340 bytes each). One limiter that takes
    another's place goes on with its forecast, if it is given it.
    """

    def __init__(self) -> None:
        self._first: dict[str, array[int]] = {}  # by name
        self._own: OrderedDict[int, array[int]] = OrderedDict()  # longest unused first

    def __len__(self) -> int:
        """Names that are kept."""
        return len(self._first)

    def guess(self, principal: Hashable, name: str, start: int) -> int:
        """Output tokens to expect; ``start`` of a tool that has answered nobody yet."""
        name = name if name in self._first else _OTHERS
        own = self._own.get(_key(principal, name))
        if own is not None:
            return _high(sorted(own), len(own))
        first = self._first.get(name)
        return start if first is None else _high(sorted([*first, start]), len(first))

    def add(self, principal: Hashable, name: str, tokens: int) -> None:
        """Remember what an answer had."""
        if name not in self._first and (len(self._first) >= _MAX_NAMES or len(name) > _LONG):
            name = _OTHERS
        tokens = min(tokens, _MAX_TOKENS)
        key = _key(principal, name)
        own = self._own.get(key)
        if own is None:
            if len(self._own) >= _MAX_OWN:
                self._own.popitem(last=False)
            own = self._own[key] = array("I")
            _remember(self._first.setdefault(name, array("I")), tokens)
        else:
            self._own.move_to_end(key)
        _remember(own, tokens)


def _key(principal: Hashable, name: str) -> int:
    """Of one size whatever a token says; nobody can find two that are the same, for texts are hashed with a secret."""
    return hash((principal, name))


def _remember(window: "array[int]", tokens: int) -> None:
    window.append(tokens)
    if len(window) > _WINDOW:
        del window[0]


def _high(ordered: list[int], answers: int) -> int:
    return ordered[math.ceil(_QUANTILE * answers) - 1]
