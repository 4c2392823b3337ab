"""The protected resource metadata document and where it is found (RFC 9728). Pure."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.urls import absolute_url
from mcp_middleware.types import Document

from .scopes import scope_names

__all__ = ["WELL_KNOWN", "ProtectedResource", "metadata_answer", "server_paths", "unavailable_answer"]

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"

_CORS: Final = ((b"access-control-allow-origin", b"*"),)
_PREFLIGHT: Final = (
    *_CORS,
    (b"access-control-allow-methods", b"GET, HEAD, OPTIONS"),
    (b"access-control-allow-headers", b"*"),
    (b"access-control-max-age", b"3600"),
)
_DOCUMENT: Final = (
    *_CORS,
    (b"content-type", b"application/json"),
    (b"cache-control", b"public, max-age=3600"),
)


class ProtectedResource:
    """What one MCP server says of itself to OAuth clients.

    ``resource`` is its identifier: the URL that clients connect to, and the audience of their tokens. It is repeated
    verbatim (RFC 9728 section 3.3). ``authorization_servers`` are the issuers clients may get a token from, at least
    one (MCP, authorization). ``scopes`` are listed as ``scopes_supported``; ``offline_access`` is refused, because a
    client asks its authorization server for that, never a resource (B11).

    Raises ConfigurationError.
    """

    __slots__ = ("body", "metadata_url", "paths", "resource", "scopes")

    def __init__(self, resource: str, *, authorization_servers: Sequence[str], scopes: Sequence[str] = ()) -> None:
        parts = absolute_url("resource", resource)
        named = isinstance(authorization_servers, Sequence) and not isinstance(authorization_servers, str)
        if not named or not authorization_servers:
            raise ConfigurationError(
                f"authorization_servers is {authorization_servers!r}; it must be a list of at least one issuer URL"
            )
        for server in authorization_servers:
            absolute_url("authorization_servers", server)
        path = "" if parts.path == "/" else parts.path
        self.resource = resource
        self.scopes = scope_names(scopes)
        self.metadata_url = f"{parts.scheme}://{parts.netloc}{WELL_KNOWN}{path}"
        """The form that is right for any number of resources on one host (RFC 9728 section 3.1)."""
        self.paths = frozenset({WELL_KNOWN, WELL_KNOWN + unquote(path)})
        document: dict[str, Any] = {
            "resource": resource,
            "authorization_servers": list(authorization_servers),
            "bearer_methods_supported": ["header"],
        }
        if self.scopes:
            document["scopes_supported"] = list(self.scopes)
        self.body = json.dumps(document).encode()


def server_paths(scope: Mapping[str, Any]) -> tuple[str, str]:
    """The request's path as the host sees it, and as the application mounted at ``root_path`` sees it.

    ASGI has ``path`` include ``root_path`` (Starlette does so since 0.33); where a server leaves it out, it is added.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if not root:
        return path, path
    if path.startswith(root + "/"):
        return path, path[len(root) :]
    return root + path, path


def metadata_answer(body: bytes, method: str) -> Document:
    """The answer for the metadata ``body``: readable from any origin, because browsers host MCP clients too."""
    if method in ("GET", "HEAD"):
        return Document(body, 200, _DOCUMENT)
    if method == "OPTIONS":
        return Document(b"", 204, _PREFLIGHT)
    return Document(b"", 405, ((b"allow", b"GET, HEAD, OPTIONS"),))


def unavailable_answer(retry_after: int) -> Document:
    """The answer where a document cannot be had for now; ``retry_after`` in seconds."""
    return Document(b"", 503, (*_CORS, (b"retry-after", str(retry_after).encode()), (b"cache-control", b"no-store")))
