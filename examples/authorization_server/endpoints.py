"""Introspection, revocation and registration: Authlib's endpoints, filled in."""

import secrets
import time
from typing import Any

from authlib.oauth2.rfc6749 import InvalidRequestError
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7591 import ClientRegistrationEndpoint, InvalidClientMetadataError
from authlib.oauth2.rfc7662 import IntrospectionEndpoint

from .clients import CODE, CONFIDENTIAL, METHODS, SECRET, Client, ClientMetadata, key_set
from .requests import RegistrationRequest, Request
from .tokens import AccessToken, RefreshToken

__all__ = ["Introspection", "Registration", "Revocation"]


class _TokenParameter:
    """Any hint will do: it is no more than one (RFC 7009 section 2.1)."""

    def check_params(self, request: Request, client: Client) -> None:
        if "token" not in request.form:
            raise InvalidRequestError(description="Missing 'token' in request.")


class Introspection(_TokenParameter, IntrospectionEndpoint):
    """RFC 7662: what a token is, for the server it is meant for and for whom it was issued to.

    A refresh token is active nowhere: no resource server has any business with it.
    """

    CLIENT_AUTH_METHODS = CONFIDENTIAL

    def query_token(self, token_string: str, token_type_hint: str | None) -> AccessToken | None:
        return self.server.access_tokens.get(token_string)  # type: ignore[no-any-return]

    def check_permission(self, token: AccessToken, client: Client, request: Request) -> bool:
        return client.is_server_of(token.resource) or token.check_client(client)

    def introspect_token(self, token: AccessToken) -> dict[str, Any]:
        claims = {"active": True, "token_type": "Bearer", **token.claims(self.server.issuer)}
        if token.authorization.user is not None:
            claims["username"] = token.authorization.user.name
        elif not self.server.machines_have_subjects:
            del claims["sub"]
        return claims


class Revocation(_TokenParameter, RevocationEndpoint):
    """RFC 7009. With a refresh token ends all that stands on the same consent."""

    CLIENT_AUTH_METHODS = METHODS

    def query_token(self, token_string: str, token_type_hint: str | None) -> AccessToken | RefreshToken | None:
        found: AccessToken | RefreshToken | None = self.server.access_tokens.get(token_string)
        return found or self.server.refresh_tokens.get(token_string)

    def revoke_token(self, token: AccessToken | RefreshToken, request: Request) -> None:
        if isinstance(token, AccessToken):
            token.revoked = True
        else:
            token.authorization.revoked = True


class Registration(ClientRegistrationEndpoint):
    """RFC 7591, open to everybody. What registers itself is never trusted with more than a person consents to."""

    def __init__(self, server: Any) -> None:
        super().__init__(server, [ClientMetadata])

    def authenticate_token(self, request: RegistrationRequest) -> bool:
        return True

    def get_server_metadata(self) -> dict[str, Any]:
        return registrable()

    def generate_client_info(self, request: RegistrationRequest) -> dict[str, Any]:
        info: dict[str, Any] = {"client_id": secrets.token_urlsafe(16), "client_id_issued_at": int(time.time())}
        if request.payload.data.get("token_endpoint_auth_method", SECRET[0]) in SECRET:
            info |= {"client_secret": secrets.token_urlsafe(32), "client_secret_expires_at": 0}
        return info

    def save_client(self, client_info: dict[str, Any], client_metadata: dict[str, Any], request: object) -> Client:
        if client_metadata["token_endpoint_auth_method"] == "private_key_jwt" and "jwks" not in client_metadata:
            raise InvalidClientMetadataError(description="The keys must be in jwks; jwks_uri is not fetched.")
        bounds: dict[str, Any] = {}
        if self.server.registered_scope_binds and "scope" in client_metadata:
            bounds = {"scopes": frozenset(client_metadata["scope"].split()), "strict": True}
        client = Client.from_metadata(
            client_info["client_id"],
            client_metadata,
            origin="registration",
            secret=client_info.get("client_secret"),
            keys=key_set(client_metadata["jwks"]) if "jwks" in client_metadata else None,
            **bounds,
        )
        self.server.register(client)
        return client


def registrable() -> dict[str, Any]:
    """What a client may say of itself, in the terms of RFC 8414."""
    return {
        "response_types_supported": ["code"],
        "grant_types_supported": sorted(CODE),
        "token_endpoint_auth_methods_supported": list(METHODS),
    }
