"""A session id that only we can make and only its owner can use. Pure, no I/O but random bytes.

A sealed id says which instance owns the session, what that server calls it, for whom it was opened and until when,
so that any process with the key can route it without a shared store. It is AES-256-GCM (NIST SP 800-38D) under a
random nonce, in URL-safe base64 without padding: visible ASCII, as a session id must be (2025-11-25, transports,
"Session Management").

    token  = base64url(header | nonce (12) | ciphertext | tag (16))
    header = version (1) | key id (4)

The header and the endpoint are authenticated with the contents: an id opened at one endpoint means nothing at another.
Contents are padded to a multiple of 48 bytes. Ids of usual length then all look alike, and because every token is a
multiple of 3 bytes, it has exactly one spelling: no character can be changed without the token becoming another.
"""

import base64
import binascii
import hashlib
import os
import struct
from collections.abc import Sequence
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mcp_middleware.errors import ConfigurationError

__all__ = ["MAX_UPSTREAM_BYTES", "KeyRing", "Session", "bind_caller"]

MAX_UPSTREAM_BYTES: Final = 1024
"""The longest session id of a server that is sealed; the sealed one must still fit into a header."""

_VERSION: Final = b"\x01"
_KEY_BYTES: Final = 32
_KEY_ID_BYTES: Final = 4
_HEADER_BYTES: Final = len(_VERSION) + _KEY_ID_BYTES
_NONCE_BYTES: Final = 12
_CALLER_BYTES: Final = 16
_BLOCK: Final = 48
_FIXED: Final = struct.Struct(f">dd{_CALLER_BYTES}sBH")
"""Issued, expires, caller, length of the instance's name, length of the upstream id; then those two."""

_MAX_TOKEN: Final = 2048
_TO_STANDARD: Final = bytes.maketrans(b"-_+/=", b"+/!!!")
"""URL-safe to standard base64; what only the standard alphabet has becomes invalid."""


class Session(msgspec.Struct, frozen=True):
    """What a sealed id holds."""

    instance: str
    """The process that owns the session; at most 64 visible ASCII characters, ``""`` where there is only one."""
    upstream: bytes
    """What the server calls the session; 1 to ``MAX_UPSTREAM_BYTES`` bytes."""
    caller: bytes
    """For whom it was opened (``bind_caller``)."""
    issued: float
    """Unix seconds."""
    expires: float
    """Unix seconds; from then on the session is over, whatever its use."""


class KeyRing:
    """The keys that seal and open session ids: the first seals, all open.

    ``keys`` are 32 random bytes each, in base64 (standard or URL-safe). Raises ConfigurationError, which never shows
    a key.
    """

    __slots__ = ("_ciphers", "_header", "_sealing")

    def __init__(self, keys: Sequence[str | bytes]) -> None:
        if isinstance(keys, str | bytes) or not isinstance(keys, Sequence) or not keys:
            raise ConfigurationError(
                "SessionAffinityMiddleware: keys must be a list of at least one key; the first seals, all open"
            )
        self._ciphers: dict[bytes, AESGCM] = {}
        for position, key in enumerate(keys):
            raw = _decode_key(key, f"SessionAffinityMiddleware: keys[{position}]")
            header = _VERSION + hashlib.blake2b(key=raw, person=b"session key id", digest_size=_KEY_ID_BYTES).digest()
            if header in self._ciphers:
                raise ConfigurationError(f"SessionAffinityMiddleware: keys[{position}] repeats an earlier key")
            self._ciphers[header] = AESGCM(raw)
        self._header, self._sealing = next(iter(self._ciphers.items()))

    def seal(self, session: Session, endpoint: str) -> bytes:
        """The id for ``session``, good at ``endpoint`` only. Never the same twice."""
        instance = session.instance.encode()
        contents = b"".join(
            (
                _FIXED.pack(session.issued, session.expires, session.caller, len(instance), len(session.upstream)),
                instance,
                session.upstream,
            )
        )
        contents += bytes(-len(contents) % _BLOCK)
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._sealing.encrypt(nonce, contents, _associated(self._header, endpoint))
        return base64.urlsafe_b64encode(self._header + nonce + sealed)

    def unseal(self, token: bytes, endpoint: str) -> Session | None:
        """The session that ``token`` was sealed for at ``endpoint``, or None if we did not seal it. Never raises."""
        if len(token) > _MAX_TOKEN:
            return None
        try:
            raw = binascii.a2b_base64(token.translate(_TO_STANDARD), strict_mode=True)
            header = raw[:_HEADER_BYTES]
            nonce = raw[_HEADER_BYTES : _HEADER_BYTES + _NONCE_BYTES]
            sealed = raw[_HEADER_BYTES + _NONCE_BYTES :]
            contents = self._ciphers[header].decrypt(nonce, sealed, _associated(header, endpoint))
        except (binascii.Error, KeyError, ValueError, InvalidTag):
            return None
        return _parse(contents)


def _associated(header: bytes, endpoint: str) -> bytes:
    """What is authenticated beside the contents."""
    return header + endpoint.encode("utf-8", "surrogatepass")


def _parse(contents: bytes) -> Session | None:
    """Authentic contents; still read with care, because another release may have written them."""
    try:
        issued, expires, caller, instance_length, upstream_length = _FIXED.unpack_from(contents)
        middle = _FIXED.size + instance_length
        end = middle + upstream_length
        if end > len(contents):
            return None
        return Session(contents[_FIXED.size : middle].decode(), contents[middle:end], caller, issued, expires)
    except (struct.error, UnicodeDecodeError):
        return None


def _decode_key(key: object, place: str) -> bytes:
    allowed = "it must be 32 random bytes in base64 (standard or URL-safe), as `openssl rand -base64 32` prints"
    if isinstance(key, bytes):
        text = key
    elif isinstance(key, str):
        text = key.encode("utf-8", "replace")
    else:
        raise ConfigurationError(f"{place} is of type {type(key).__name__}; {allowed}")
    text = text.strip().rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
    try:
        raw = binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except binascii.Error:
        raise ConfigurationError(f"{place} is not base64; {allowed}") from None
    if len(raw) != _KEY_BYTES:
        raise ConfigurationError(f"{place} has {len(raw)} bytes; {allowed}")
    return raw


def bind_caller(key: tuple[str | None, ...]) -> bytes:
    """A hash that stands for one principal (``Principal.key``) and no other; a new token leaves it as it is."""
    spelled = ascii(key).encode()  # one spelling for each key, on every Python; None is not "None"
    return hashlib.blake2b(spelled, digest_size=_CALLER_BYTES, person=b"session caller").digest()
