"""URIs that a server may read as another one than was judged. Pure.

A policy compares text; a server decodes. ``file:///srv/..%2Fetc/passwd`` fits ``file:///srv/*`` and is not below
``/srv``; ``file:///srv/a%2Fkey`` does not fit ``file:///srv/a/*`` and is below ``/srv/a`` (RFC 3986 section 6.2.2,
"Syntax-Based Normalization").
"""

import re
from typing import Final
from urllib.parse import unquote

__all__ = ["spellings"]

_DECODINGS: Final = 3
"""How often a value is decoded that was encoded again and again."""
_DOTS: Final = re.compile(r"(?:^|(?<=[/:=?&#]))\.{1,2}(?:$|(?=[/?&#]))")
_NO_URI: Final = re.compile(r"[\x00-\x20\x7f]")
_SEVERAL_FORMS: Final = re.compile(r"[%\\A-Z]")
_AUTHORITY: Final = re.compile(r"[^:/?#]*:(?://[^/?#]*)?")


def spellings(uri: str) -> tuple[str, ...]:
    """``uri`` and what else a server may take it for: percent-decoded, scheme and authority in lower case.

    Empty for a URI with ``.`` or ``..`` as a segment in any encoding, or with white space or control characters:
    what that names depends on who reads it.
    """
    if _DOTS.search(uri) or _NO_URI.search(uri):
        return ()
    if not _SEVERAL_FORMS.search(uri):
        return (uri,)
    found = [uri]
    decoded = uri
    for _ in range(_DECODINGS):
        decoded = unquote(decoded).replace("\\", "/")
        if decoded == found[-1]:
            break
        found.append(decoded)
    if any(_DOTS.search(form) for form in found):
        return ()
    found += [_lowered(form) for form in found]
    return tuple(dict.fromkeys(found))


def _lowered(uri: str) -> str:
    """``uri`` with its scheme and authority in lower case."""
    begin = _AUTHORITY.match(uri)
    return uri if begin is None else begin[0].lower() + uri[begin.end() :]
