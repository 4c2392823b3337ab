"""A counter with a model's own vocabulary."""

import re
from importlib import import_module
from typing import Any, Final

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.options import one_of

__all__ = ["ExactCounter"]

_PIECE: Final = 16 * 1024
"""Characters that are counted in one go, or some more, at most twice as many: about half a millisecond of prose, a few
of base64, in which the interpreter runs nothing else. The library refuses a million characters, and 200,000 tokens."""
_SEAM: Final = re.compile(
    r"(?<=[A-Za-z])(?=[\x00-&(-@\[-`{-\x7f])"  # an apostrophe may belong to the word before it
    r"|(?<=[0-9])(?=[\x00-/:-\x7f])"
    r"|(?<=[^\W_])(?=[，。、；：？！「」])"
)
"""Where a text may be cut without another number of tokens: before these vocabularies look at it, they take it apart
where words and numbers end."""


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
            end = start + 2 * _PIECE if seam is None else seam.start()  # a word of so many characters is none
            tokens += len(self._encode(text[start:end]))
            start = end
        return tokens + len(self._encode(text[start:]))
