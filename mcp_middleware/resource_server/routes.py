"""Metadata documents for an application that mounts MCP servers: clients ask for them at the root of the host."""

from typing import TYPE_CHECKING

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.exchange import Receive, Scope, Send
from mcp_middleware.responses import headers_of

from .metadata import WELL_KNOWN, ProtectedResource, metadata_answer

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

__all__ = ["metadata_routes"]


def metadata_routes(*resources: ProtectedResource) -> "list[BaseRoute]":
    """Starlette routes for the documents of ``resources``: ``FastAPI(routes=metadata_routes(files, notes))``.

    Each document is at its path-inserted place (RFC 9728 section 3.1). The root form,
    ``/.well-known/oauth-protected-resource``, names one resource only: it is there when there is only one, or when
    one of them has no path. Raises ConfigurationError where two documents claim one place.
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
    return [_route(path, resource) for path, resource in places.items()]


def _route(path: str, resource: ProtectedResource) -> "BaseRoute":
    from starlette.routing import Route  # only applications made with Starlette call this

    return Route(path, _MetadataEndpoint(resource.body), include_in_schema=False)


class _MetadataEndpoint:
    """Serves one document. An instance, not a function: Starlette then calls it as an ASGI application."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        document = metadata_answer(self._body, scope["method"])
        await send({"type": "http.response.start", "status": document.status, "headers": headers_of(document)})
        await send({"type": "http.response.body", "body": document.body})
