"""URIs that a server may read as another one than was judged. Pure.

A policy compares text; a server decodes and normalizes. ``file:///srv/..%2Fetc/passwd`` fits ``file:///srv/*`` and is
not below ``/srv``; ``file:/etc/passwd`` and ``file://localhost/etc%2Fpasswd`` do not fit ``file:///etc/*`` and are
below ``/etc`` (RFC 3986 section 6.2; RFC 8089 section 2 and appendix B; WHATWG URL for ``http`` and its kind).
"""

import re
from typing import Final
from unicodedata import normalize
from urllib.parse import unquote

__all__ = ["spellings"]

_DECODINGS: Final = 3
"""How often a value is decoded that was encoded again and again."""
_DOTS: Final = re.compile(r"\.(?<![^/:=?&#]\.)\.?(?![^/?&#])")
"""``.`` or ``..`` as a segment. It begins with the dot, for which alone the text is then searched."""
_NO_URI: Final = re.compile(r"[\x00-\x20\x7f]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_AUTHORITY: Final = re.compile(r"[^:/?#]*+:(?://[^/?#]*+)?")
_PARTS: Final = re.compile(r"([^:/?#]*+):(/*+)([^/?#]*+)([^?#]*+)(.*)", re.DOTALL)
_SLASHES: Final = re.compile(r"//+")
_PORTS: Final = {"http": "80", "https": "443", "ws": "80", "wss": "443", "ftp": "21"}
"""Schemes after which any number of slashes begins an authority, and the port that need not be named."""
_MAX_HOST: Final = 255
"""Characters of a host that a name server may know (RFC 1035)."""


def spellings(uri: str) -> tuple[str, ...]:
    """``uri`` and what else a server may take it for: percent-decoded; with scheme and authority in lower case; as
    plain as it can be written.

    Empty for a URI with ``.`` or ``..`` as a segment or control characters, in any encoding, or with white space: what
    that names depends on who reads it. In the query, which is text, control characters may be encoded.
    """
    if _NO_URI.search(uri):
        return ()
    found = _decodings(uri)
    if any(map(_DOTS.search, found)) or any(map(_CONTROL.search, _decodings(uri.partition("?")[0]))):
        return ()
    return tuple(dict.fromkeys([*found, *map(_lowered, found), *map(_plain, found)]))


def _decodings(text: str) -> list[str]:
    """``text``, and what it is percent-decoded, as often as that changes it."""
    found = [text]
    if "%" in text or "\\" in text:
        for _ in range(_DECODINGS):
            decoded = unquote(found[-1]).replace("\\", "/")
            if decoded == found[-1]:
                break
            found.append(decoded)
    return found


def _lowered(uri: str) -> str:
    """``uri`` with its scheme and authority in lower case."""
    begin = _AUTHORITY.match(uri)
    return uri if begin is None else begin[0].lower() + uri[begin.end() :]


def _plain(uri: str) -> str:
    """``uri`` without what could be left out: slashes, this machine's name, a user, a usual port, a final dot."""
    parts = _PARTS.match(uri)
    if parts is None:
        return uri
    scheme, slashes, host, path, rest = parts.groups()
    scheme = scheme.lower()
    begin = "//"
    if scheme in _PORTS:
        host, path = _plain_host(host, _PORTS[scheme]), path or "/"
    elif len(slashes) == 2:
        host = _plain_host(host, "")
        if scheme == "file" and host == "localhost":
            host = ""
    else:  # no host: it was the beginning of the path
        begin = "//" if scheme == "file" or slashes[1:] else ""
        path = ("/" if scheme == "file" or slashes else "") + host + path
        host = ""
    return f"{scheme}:{begin}{host}{_SLASHES.sub('/', path)}{rest}"


def _plain_host(host: str, usual_port: str) -> str:
    host = host.rpartition("@")[2]
    if len(host) <= _MAX_HOST:
        host = normalize("NFKC", host).replace("\u3002", ".")  # other letters and dots for the same name (UTS 46)
    name, colon, port = host.lower().rpartition(":")
    return (name if colon and port.lstrip("0") in ("", usual_port) else f"{name}{colon}{port}").rstrip(".")
