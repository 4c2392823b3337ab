"""Our side as an OAuth client of authorization servers: fetching, metadata, proving who we are, asking for tokens."""

from .authentication import ClientAuthentication, ClientSecret, PrivateKeyJWT
from .http import IssuerUnavailableError, OAuthHTTPClient

__all__ = ["ClientAuthentication", "ClientSecret", "IssuerUnavailableError", "OAuthHTTPClient", "PrivateKeyJWT"]
