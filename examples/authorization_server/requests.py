"""What a request says: parameters read once and strictly, for Authlib and for us. Pure.

1. A parameter stands once (RFC 6749 section 3.1), but for ``resource`` and ``audience``, which may be repeated.
2. One without a value is as good as left out (the same section).
3. All is of the characters that RFC 6749 appendix A allows.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl

from authlib.oauth2.rfc6749 import (
    InvalidRequestError,
    JsonPayload,
    JsonRequest,
    OAuth2Error,
    OAuth2Payload,
    OAuth2Request,
)

from .tokens import Authorization

__all__ = ["InvalidTargetError", "Parameters", "RegistrationRequest", "Request", "quotable", "read_parameters"]

REPEATABLE: Final = frozenset({"resource", "audience"})
"""RFC 8707 section 2, RFC 8693 section 2.1."""

_MOST: Final = 40
"""Parameters in one request."""
_VISIBLE: Final = re.compile(r"[\x20-\x7e]*")

_LONGEST: Final = 400
"""Characters of a description."""

Pairs = Sequence[tuple[str, str]]


class InvalidTargetError(OAuth2Error):
    """The resource that is asked for is none of the server's, or none that was authorized (RFC 8707 section 2)."""

    error = "invalid_target"


def read_parameters(text: bytes, *, repeatable: frozenset[str] = REPEATABLE) -> Pairs:
    """The parameters of a query or a form. Raises InvalidRequestError."""
    try:
        pairs = parse_qsl(
            text.decode("ascii"), max_num_fields=_MOST, errors="strict"
        )  # which leaves out those without a value
    except ValueError:
        raise InvalidRequestError(
            description="The request is not well-formed application/x-www-form-urlencoded."
        ) from None
    seen = set()
    for name, value in pairs:
        if not _VISIBLE.fullmatch(name + value):
            raise InvalidRequestError(description="A parameter has characters that it may not have.")
        if name in seen and name not in repeatable:
            raise InvalidRequestError(description=f"Multiple '{name}' in request.")
        seen.add(name)
    return pairs


def quotable(text: str) -> str:
    """``text`` as a description may have it (RFC 6749 section 5.2): visible ASCII without quotes and backslashes."""
    return "".join(c if " " <= c <= "~" and c not in '"\\' else "?" for c in text[:_LONGEST])


class Parameters(OAuth2Payload):
    """The parameters of one request, as Authlib wants them."""

    data: Mapping[str, str] = {}
    datalist: Mapping[str, list[str]] = {}

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.data = dict(pairs)
        self.datalist = defaultdict(list)
        for name, value in pairs:
            self.datalist[name].append(value)


class Request(OAuth2Request):
    """A request to one of the endpoints, and what is found out about it on the way."""

    payload: Parameters
    authorization: Authorization
    """What the tokens to be issued stand on; the grant sets it."""
    resource: str
    """What the token to be issued is for; the grant sets it."""

    def __init__(self, method: str, uri: str, headers: Mapping[str, str], pairs: Pairs) -> None:
        super().__init__(method, uri, headers=headers)
        self.payload = Parameters(pairs)

    @property
    def args(self) -> Mapping[str, str]:
        return self.payload.data

    @property
    def form(self) -> Mapping[str, str]:
        return self.payload.data


class _Document(JsonPayload):
    data: Mapping[str, Any] = {}

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.data = document


class RegistrationRequest(JsonRequest):
    """A request to register a client, with the document it sends."""

    def __init__(self, uri: str, document: Mapping[str, Any]) -> None:
        super().__init__("POST", uri)
        self.payload = _Document(document)
