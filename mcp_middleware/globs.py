"""Globs, in policies, limits, prices and budgets alike: what they match, and how two of them relate. Pure.

A glob stands for whole strings, compared character by character, without folding of any kind. ``*`` is any run of
characters, ``/`` and line breaks included, also none; ``?`` is exactly one character. Nothing else is special.

No glob can be made to backtrack: each piece of text between two ``*`` is found once, from the left, and never looked
for again (an atomic group), so that matching takes at most the product of both lengths.
"""

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["Glob", "matcher"]

ONE: Final = "\uffff"
RUN: Final = "\ufffe"
"""``?`` and ``*`` in a glob's form: noncharacters of Unicode, which no text to match should hold."""

_WILDCARDS: Final = re.compile(r"[*?]+")
_FIRST_WILDCARD: Final = re.compile(f"[{ONE}{RUN}]")
_EXPRESSION: Final = re.compile(r"(?:\{[^}]*\}?)+")
_NO_SETS: Final = "character sets do not exist; use ? for one character"
_NO_BRACES: Final = "alternatives do not exist; write several globs, or * for the expression of a template"
_NOT_UNDERSTOOD: Final = {
    "[": _NO_SETS,
    "]": _NO_SETS,
    "{": _NO_BRACES,
    "}": _NO_BRACES,
    "\\": "there are no escapes; use ? for one character",
    ONE: "it is no character",
    RUN: "it is no character",
}
"""What other dialects give a meaning: read as itself, it would rarely do what was meant."""


class Glob:
    """One glob. ``form`` spells equal globs alike: of ``*?``, ``?*`` and ``?**`` there is one form."""

    __slots__ = ("_cover", "_places", "_prefix", "form", "text")

    def __init__(self, text: str) -> None:
        """Raises ValueError, saying why, for a text that is no glob."""
        if not text:
            raise ValueError("it is empty and can match nothing")
        if text.startswith("!"):
            raise ValueError("there is no negation; name what is meant, or in a policy write a rule with effect: deny")
        for character in text:
            if character in _NOT_UNDERSTOOD:
                raise ValueError(f"{character!r} has no meaning in a glob: {_NOT_UNDERSTOOD[character]}")
        self._hold(text, _WILDCARDS.sub(lambda run: ONE * run[0].count("?") + RUN * ("*" in run[0]), text))

    @classmethod
    def of_template(cls, template: str) -> "Glob":
        """What a URI template (RFC 6570) can expand to, at most: each expression taken for any run of characters."""
        glob = cls.__new__(cls)
        glob._hold(template, _EXPRESSION.sub(RUN, template))
        return glob

    def _hold(self, text: str, form: str) -> None:
        self.text = text
        self.form = form
        self._prefix = _FIRST_WILDCARD.split(form, maxsplit=1)[0]
        self._cover: re.Pattern[str] | None = None
        self._places: dict[str, int] | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Glob) and self.form == other.form

    def __hash__(self) -> int:
        return hash(self.form)

    def __repr__(self) -> str:
        return f"Glob({self.text!r})"

    def covers(self, other: "Glob") -> bool:
        """Whether this matches everything that ``other`` matches. True is never wrong; False is, for a few odd pairs.

        The other's wildcards are read as letters, for which only a wildcard of at least their width can stand.
        """
        if not other.form.startswith(self._prefix):
            return False
        if self._cover is None:
            self._cover = re.compile(_expression(self.form, one=f"[^{RUN}]"), re.DOTALL)
        return self._cover.fullmatch(other.form) is not None

    def overlaps(self, other: "Glob") -> bool:
        """Whether some string is matched by both: the other's form is run as an automaton over this one's.

        Bit ``i`` of ``states`` says that the first ``i`` characters of the other's form can stand for what has been
        read; all states advance in one operation (Shift-And).
        """
        if not (self._prefix.startswith(other._prefix) or other._prefix.startswith(self._prefix)):
            return False
        places = other._bits()
        runs, ones, end = places.get(RUN, 0), places.get(ONE, 0), 1 << len(other.form)
        states = 1 | (runs & 1) << 1
        for character in self.form:
            if character == RUN:
                states = (end << 1) - (states & -states)
            else:
                fitting = ~runs if character == ONE else places.get(character, 0) | ones
                moved = (states & fitting) << 1 | states & runs
                states = (moved | (moved & runs) << 1) & ((end << 1) - 1)
            if not states:
                return False
        return bool(states & end)

    def _bits(self) -> dict[str, int]:
        """Each character of the form with the places where it stands, as bits."""
        if self._places is None:
            places: dict[str, int] = {}
            for index, character in enumerate(self.form):
                places[character] = places.get(character, 0) | 1 << index
            self._places = places
        return self._places


def matcher(globs: Iterable[Glob]) -> re.Pattern[str]:
    """One expression whose ``fullmatch`` says whether any of the globs matches a string."""
    return re.compile("|".join(_expression(glob.form, one=".") for glob in globs), re.DOTALL)


def _expression(form: str, *, one: str) -> str:
    first, *rest = ["".join(one if c == ONE else re.escape(c) for c in piece) for piece in form.split(RUN)]
    if not rest:
        return f"(?:{first})"
    *middle, last = rest
    return f"(?:{first}{''.join(f'(?>.*?{piece})' for piece in middle)}.*{last})"
