"""Metadata documents for an application that mounts MCP servers: clients ask for them at the root of the host."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.exchange import Receive, Scope, Send
from mcp_middleware.responses import send_document
from mcp_middleware.types import Document, TokenVerifier

from .legacy import LEGACY_WELL_KNOWN, issuer_metadata
from .metadata import WELL_KNOWN, ProtectedResource, metadata_answer

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

__all__ = ["metadata_routes"]


def metadata_routes(*resources: ProtectedResource, verifier: TokenVerifier | None = None) -> "list[BaseRoute]":
    """Starlette routes for the documents of ``resources``: ``FastAPI(routes=metadata_routes(files, notes))``.

    Each document is at its path-inserted place (RFC 9728 section 3.1). The root form,
    ``/.well-known/oauth-protected-resource``, names one resource only: it is there when there is only one, or when
    one of them has no path.

    ``verifier``: one whose first issuer's metadata is repeated at ``/.well-known/oauth-authorization-server``, where
    clients of 2025-03-26 look for it; a mounted server is never asked for it itself.

    Raises ConfigurationError where two documents claim one place, and where the verifier's issuer is at the origin of
    the resources, where its own metadata belongs, or unknown.
    """
    places: dict[str, ProtectedResource] = {}
    for resource in resources:
        if not isinstance(resource, ProtectedResource):
            raise ConfigurationError(f"metadata_routes has {resource!r}; it must be a ProtectedResource")
        for path in resource.paths:
            if path == WELL_KNOWN and len(resource.paths) > 1 and len(resources) > 1:
                continue
            if path in places:
                raise ConfigurationError(
                    f"metadata_routes: {places[path].resource!r} and {resource.resource!r} both need {path!r}; "
                    "resources of one host must differ in their path"
                )
            places[path] = resource
    routes = [_route(path, _fixed(resource.body)) for path, resource in places.items()]
    if verifier is not None and resources:
        legacy = issuer_metadata(resources[0].resource, verifier)
        if legacy is None:
            raise ConfigurationError(
                f"metadata_routes: verifier is {verifier!r}; it must know the metadata of an issuer, "
                f"and the issuer must not be at the origin of {resources[0].resource}"
            )
        routes.append(_route(LEGACY_WELL_KNOWN, legacy.answer))
    return routes


_Answer: TypeAlias = Callable[[str], Awaitable[Document]]
"""The answer to a request with this HTTP method."""


def _fixed(body: bytes) -> _Answer:
    async def answer(method: str) -> Document:
        return metadata_answer(body, method)

    return answer


def _route(path: str, answer: _Answer) -> "BaseRoute":
    from starlette.routing import Route  # only applications made with Starlette call this

    return Route(path, _MetadataEndpoint(answer), include_in_schema=False)


class _MetadataEndpoint:
    """Serves one document. An instance, not a function: Starlette then calls it as an ASGI application."""

    def __init__(self, answer: _Answer) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_document(await self._answer(scope["method"]), send)
