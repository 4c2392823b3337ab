"""OAuth 2.1 resource server: bearer tokens, RFC 9728 metadata, RFC 6750 challenges."""

from mcp_middleware.oauth.authentication import ClientSecret, PrivateKeyJWT
from mcp_middleware.oauth.http import IssuerUnavailableError

from .claims import Claims
from .issuers import Introspection, Issuer
from .metadata import ProtectedResource
from .middleware import OAuthResourceServerMiddleware
from .routes import metadata_routes
from .verifier import IntrospectionVerifier, IssuersVerifier, JWTVerifier

__all__ = [
    "Claims",
    "ClientSecret",
    "Introspection",
    "IntrospectionVerifier",
    "Issuer",
    "IssuerUnavailableError",
    "IssuersVerifier",
    "JWTVerifier",
    "OAuthResourceServerMiddleware",
    "PrivateKeyJWT",
    "ProtectedResource",
    "metadata_routes",
]
