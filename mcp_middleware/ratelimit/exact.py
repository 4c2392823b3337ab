"""A counter with a model's own vocabulary."""

import re
from importlib import import_module
from typing import Any, Final

from mcp_middleware.errors import ConfigurationError

__all__ = ["ExactCounter"]

_PIECE: Final = 16 * 1024
"""Characters that are counted in one go: about half a millisecond, in which the interpreter runs nothing else."""
_SEAM: Final = re.compile(r"(?<=[a-z])(?= [a-z])")
"""Between two words a text may be cut without another number of tokens: no token of these vocabularies has a blank
behind a letter."""


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
        if encoding not in ("o200k_base", "cl100k_base"):
            raise ConfigurationError(
                f"ExactCounter: encoding is {encoding!r}; it must be 'o200k_base' or 'cl100k_base'"
            )
        self._encode = library.get_encoding(encoding).encode_ordinary

    def count(self, text: str) -> int:
        """See ``TokenCounter.count``."""
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode()  # a lone surrogate is no text
        if len(text) <= _PIECE:
            return len(self._encode(text))
        tokens = start = 0
        while start < len(text):
            seam = _SEAM.search(text, start + _PIECE) if len(text) - start > 2 * _PIECE else None
            end = len(text) if seam is None else min(seam.start(), start + 4 * _PIECE)
            tokens += len(self._encode(text[start:end]))
            start = end
        return tokens
