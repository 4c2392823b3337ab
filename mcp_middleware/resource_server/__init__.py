"""OAuth 2.1 resource server: bearer tokens, RFC 9728 metadata, RFC 6750 challenges."""

from mcp_middleware.oauth.http import IssuerUnavailableError

from .jwt import JWTVerifier
from .metadata import ProtectedResource
from .middleware import OAuthResourceServerMiddleware
from .routes import metadata_routes
from .tokens import Issuer

__all__ = [
    "Issuer",
    "IssuerUnavailableError",
    "JWTVerifier",
    "OAuthResourceServerMiddleware",
    "ProtectedResource",
    "metadata_routes",
]
