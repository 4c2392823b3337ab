"""A counter with a model's own vocabulary."""

import re
import time
from importlib import import_module
from typing import Any, Final

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.options import one_of

__all__ = ["ExactCounter"]

_PIECE: Final = 4 * 1024
"""Characters that are counted in one go, or some more, at most twice as many: a tenth of a millisecond of prose, two of
what is worst, in which the interpreter runs nothing else."""
_SEAM: Final = re.compile(
    r"(?<=[A-Za-z])(?=[\x00-&(-@\[-`{-\x7f])"  # an apostrophe may belong to the word before it
    r"|(?<=[0-9])(?=[\x00-/:-\x7f])"
    r"|(?<=[!-/:-@\[-`{-~])(?= )"
    r"|(?<=\n)(?=[^\s/])"
    r"|(?<=[^\W_])(?=[，。、；：？！「」])"
)
"""Where a text may be cut without another number of tokens: before these vocabularies look at it, they take it apart
where words, numbers, signs and lines end."""
_LINES: Final = [(sign * 192, sign * 128) for sign in "#*/=-"]
"""Lines of one sign, and what is counted in their place: to both vocabularies 64 signs beyond 128 are one token more,
whatever stands around, but where there are many each takes a microsecond."""


class ExactCounter:
    """Counts by a byte-pair vocabulary, ``o200k_base`` or ``cl100k_base``.

    Needs the extra ``exact``, whose wheels carry the vocabularies: nothing is fetched. Messages above 16 KiB are
    counted in a thread, in pieces that leave the event loop its turns. Raises ConfigurationError for an unknown
    vocabulary, or where the extra is missing.
    """

    threaded_above: Final = 16 * 1024
    """Bytes; see ``TokenCounter``."""

    def __init__(self, encoding: str = "o200k_base") -> None:
        try:
            library: Any = import_module("bpe_openai")
        except ImportError:
            raise ConfigurationError(
                "ExactCounter needs the package bpe-openai; install mcp-middleware[exact]"
            ) from None
        one_of("ExactCounter: encoding", encoding, ("o200k_base", "cl100k_base"))
        self._encode = library.get_encoding(encoding).encode_ordinary

    def count(self, text: str) -> int:
        """See ``TokenCounter.count``."""
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode()  # a lone surrogate is no text
        tokens = start = 0
        while len(text) - start > 2 * _PIECE:
            seam = _SEAM.search(text, start + _PIECE, start + 2 * _PIECE)
            end = start + 2 * _PIECE if seam is None else seam.start()  # no word is so long
            tokens += self._count(text[start:end])
            start = end
            time.sleep(0)  # whoever waits for the interpreter has it now, and not only after its interval of 5 ms
        return tokens + self._count(text[start:])

    def _count(self, piece: str) -> int:
        tokens = 0
        for line, shorter in _LINES:
            while lines := piece.count(line):
                piece = piece.replace(line, shorter)
                tokens += lines
        return tokens + len(self._encode(piece))
