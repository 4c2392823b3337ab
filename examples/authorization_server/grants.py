"""How a client comes to a token: Authlib's grants, filled in, and token exchange, which it does not have."""

from typing import Any, Final

from authlib.oauth2.drafts.id_jag import IDJAGGrant
from authlib.oauth2.rfc6749 import (
    BaseGrant,
    InvalidClientError,
    InvalidGrantError,
    InvalidRequestError,
    InvalidScopeError,
    TokenEndpointMixin,
    UnauthorizedClientError,
    grants,
)
from authlib.oauth2.rfc7523 import JWTBearerClientAssertion
from authlib.oauth2.rfc7636 import CodeChallenge
from joserfc.jwk import KeySet

from .clients import CONFIDENTIAL, METHODS, Client
from .requests import Request
from .tokens import Authorization, Code, RefreshToken, User

__all__ = [
    "AuthorizationCode",
    "ClientAssertion",
    "ClientCredentials",
    "IdentityAssertion",
    "ProofKey",
    "Refresh",
    "ResourceIndicators",
    "TokenExchange",
]

ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"
_JWT: Final = "urn:ietf:params:oauth:token-type:jwt"

_ASSERTION_LIFETIME: Final = 300
"""Seconds an assertion may be ahead of its end: how long its ``jti`` is remembered."""
_MOST_ACTORS: Final = 8
"""Clients that may act for each other in a row."""


class _Issuing:
    """Issues what ``request.authorization`` allows, for ``request.resource``."""

    request: Request
    server: Any

    def generate_token(self, *, include_refresh_token: bool, **_: Any) -> dict[str, Any]:
        authorization, resource = self.request.authorization, self.request.resource
        issued: dict[str, Any] = self.server.issue(
            authorization, scope=authorization.scope, resource=resource, refresh=include_refresh_token
        )
        return issued


class AuthorizationCode(_Issuing, grants.AuthorizationCodeGrant):
    """RFC 6749 section 4.1: a person consents, and the client gets a code to exchange."""

    TOKEN_ENDPOINT_AUTH_METHODS = METHODS

    def save_authorization_code(self, code: str, request: Request) -> None:
        authorization = Authorization(
            client_id=request.client.client_id,
            subject=request.user.subject,
            scope=request.scope,
            resources=self.server.resources_of(request),
            roles=request.user.roles,
            user=request.user,
        )
        parameters = request.payload.data
        self.server.remember_code(
            code, Code(authorization, parameters.get("redirect_uri"), parameters["code_challenge"])
        )

    def query_authorization_code(self, code: str, client: Client) -> Code | None:
        found: Code | None = self.server.codes.get(code)
        if found is not None and found.used:
            found.authorization.revoked = True  # somebody stole it: RFC 6749 section 4.1.2
            return None
        return found if found is not None and found.authorization.client_id == client.client_id else None

    def validate_token_request(self) -> None:
        super().validate_token_request()
        authorization = self.request.authorization_code.authorization
        self.request.authorization = authorization
        self.request.resource = self.server.resource_of(self.request, among=authorization.resources)

    def authenticate_user(self, authorization_code: Code) -> User | None:
        return authorization_code.authorization.user

    def delete_authorization_code(self, authorization_code: Code) -> None:
        authorization_code.used = True


class ProofKey(CodeChallenge):
    """RFC 7636, and nothing but S256; of every client, as OAuth 2.1 and MCP have it."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ("S256",)

    def validate_code_challenge(self, grant: AuthorizationCode, redirect_uri: str) -> None:
        parameters = grant.request.payload.data
        if "code_challenge" not in parameters or parameters.get("code_challenge_method") != "S256":
            raise InvalidRequestError(description="PKCE is required: code_challenge, and code_challenge_method=S256.")
        super().validate_code_challenge(grant, redirect_uri)


class ResourceIndicators:
    """RFC 8707 at the authorization endpoint: all that tokens may be for must be there before anybody is asked."""

    def __call__(self, grant: AuthorizationCode) -> None:
        grant.register_hook("after_validate_authorization_request_payload", self.validate_resources)

    def validate_resources(self, grant: AuthorizationCode, redirect_uri: str) -> None:
        grant.server.resources_of(grant.request)


class Refresh(grants.RefreshTokenGrant):
    """RFC 6749 section 6, with rotation: a token that comes back after its use ends all of its kind."""

    TOKEN_ENDPOINT_AUTH_METHODS = METHODS

    def authenticate_refresh_token(self, refresh_token: str) -> RefreshToken | None:
        found: RefreshToken | None = self.server.refresh_tokens.get(refresh_token)
        if found is not None and found.used:
            found.authorization.revoked = True  # RFC 9700 section 4.14.2
        return None if found is None or found.is_revoked() else found

    def validate_token_request(self) -> None:
        super().validate_token_request()
        among = self.request.refresh_token.authorization.resources
        self.request.resource = self.server.resource_of(self.request, among=among)

    def issue_token(self, user: User, refresh_token: RefreshToken) -> dict[str, Any]:
        issued: dict[str, Any] = self.server.issue(
            refresh_token.authorization,
            scope=self.request.payload.scope or refresh_token.scope,
            resource=self.request.resource,
            refresh=True,
        )
        return issued

    def authenticate_user(self, refresh_token: RefreshToken) -> User | None:
        return refresh_token.authorization.user

    def revoke_old_credential(self, refresh_token: RefreshToken) -> None:
        refresh_token.used = True


class ClientCredentials(_Issuing, grants.ClientCredentialsGrant):
    """RFC 6749 section 4.4: the client acts for itself, so it is the subject of its tokens (RFC 9068 section 2.2)."""

    TOKEN_ENDPOINT_AUTH_METHODS = CONFIDENTIAL

    def validate_token_request(self) -> None:
        super().validate_token_request()
        client: Client = self.request.client
        self.request.resource = self.server.resource_of(self.request, among=self.server.resources)
        self.request.authorization = Authorization(
            client_id=client.client_id,
            subject=client.client_id,
            scope=_granted(client, self.request.payload.scope),
            resources=(self.request.resource,),
            roles=client.roles,
        )


class TokenExchange(BaseGrant, TokenEndpointMixin):
    """RFC 8693: the server of a resource takes a token that came to it to one for another resource.

    The subject stays who it was, and ``act`` says who acts for it. What scopes mean at the other resource is not what
    they mean here, so the client's own bound them, and not those of the token.
    """

    GRANT_TYPE = "urn:ietf:params:oauth:grant-type:token-exchange"
    TOKEN_ENDPOINT_AUTH_METHODS = CONFIDENTIAL

    def validate_token_request(self) -> None:
        client: Client = self.authenticate_token_endpoint_client()
        if not client.check_grant_type(self.GRANT_TYPE):
            raise UnauthorizedClientError(description="The client may not exchange tokens.")
        form = self.request.form
        if form.get("subject_token_type") not in (ACCESS_TOKEN, _JWT):
            raise InvalidRequestError(description="subject_token_type must be that of an access token.")
        if form.get("requested_token_type", ACCESS_TOKEN) != ACCESS_TOKEN:
            raise InvalidRequestError(description="requested_token_type must be that of an access token.")
        if "actor_token" in form:
            raise InvalidRequestError(description="The actor is the client that asks; actor_token is not supported.")
        # Before the subject token: whoever starts with a made-up one learns whether the rest is right.
        self.request.client = client
        self.request.resource = self.server.resource_of(self.request, among=self.server.resources)
        self.token = self.server.access_tokens.get(form.get("subject_token"))
        if self.token is None or self.token.is_revoked() or not client.is_server_of(self.token.resource):
            raise InvalidRequestError(
                description="subject_token must be a token of this server for a resource that the client serves."
            )
        self.scope = _granted(client, self.request.payload.scope or self.token.scope)
        self.act: dict[str, Any] = {"sub": client.client_id}
        if self.token.act is not None:
            self.act["act"] = self.token.act
        if _depth(self.act) > _MOST_ACTORS:
            raise InvalidRequestError(description=f"No more than {_MOST_ACTORS} clients may act for each other.")

    def create_token_response(self) -> tuple[int, dict[str, Any], Any]:
        issued = self.server.issue(
            self.token.authorization,
            scope=self.scope,
            resource=self.request.resource,
            refresh=False,
            client_id=self.request.client.client_id,
            act=self.act,
            until=self.token.expires_at,
            of=self.token,
        )
        return 200, {**issued, "issued_token_type": ACCESS_TOKEN}, self.TOKEN_RESPONSE_HEADER


class IdentityAssertion(_Issuing, IDJAGGrant):
    """An identity assertion (ID-JAG) of a trusted identity provider, redeemed for a token: enterprise-managed
    authorization."""

    TOKEN_ENDPOINT_AUTH_METHODS = CONFIDENTIAL

    def validate_token_request(self) -> None:
        super().validate_token_request()
        claims = self.request.id_jag_claims
        named = claims.get("resource", list(self.server.resources))
        allowed = named if isinstance(named, list) else [named]
        among = tuple(resource for resource in self.server.resources if resource in allowed)
        self.request.resource = self.server.resource_of(self.request, among=among)
        user: User = self.request.user
        self.request.authorization = Authorization(
            client_id=self.request.client.client_id,
            subject=user.subject,
            scope=_granted(self.request.client, self.request.scope),
            resources=(self.request.resource,),
            roles=user.roles,
            user=user,
        )

    def _extract_assertion(self, assertion: str) -> tuple[dict[str, Any], dict[str, Any]]:
        header, claims = super()._extract_assertion(assertion)
        if not isinstance(claims, dict) or not _is_plain(header):
            raise InvalidGrantError(description="The assertion is malformed.")
        return header, claims

    def get_audiences(self) -> list[str]:
        return [self.server.issuer]

    def resolve_issuer_key(self, issuer: object, headers: object) -> KeySet:
        keys: KeySet | None = self.server.identity_providers.get(issuer) if isinstance(issuer, str) else None
        if keys is None:
            raise InvalidGrantError(description="The issuer of the assertion is not trusted here.")
        return keys

    def authenticate_user(self, subject: object) -> User | None:
        return self.server.users.get(subject, User(subject, subject)) if isinstance(subject, str) and subject else None

    def check_jti(self, claims: dict[str, Any], jti: object) -> bool:
        return bool(self.server.is_new_assertion(claims["iss"], jti, claims["exp"], within=_ASSERTION_LIFETIME))

    def check_id_jag_permission(self, client: Client, user: User, scopes: object) -> bool:
        return True  # the identity provider has decided


class ClientAssertion(JWTBearerClientAssertion):
    """``private_key_jwt`` (RFC 7523 section 2.2): good once and not for long, and addressed to the issuer alone, as the
    revision of that RFC has it."""

    CLIENT_AUTH_METHOD = "private_key_jwt"

    def __init__(self, server: Any) -> None:
        super().__init__()
        self.server = server

    def get_audiences(self) -> list[str]:
        return [self.server.issuer]

    def verify_claims(self, claims: dict[str, Any]) -> None:
        if claims.get("aud") not in (self.server.issuer, [self.server.issuer]):
            raise InvalidClientError(description="aud of the assertion must be the issuer, and nothing else.")
        super().verify_claims(claims)

    def extract_assertion(self, assertion: str) -> tuple[dict[str, Any], dict[str, Any]]:
        header, claims = super().extract_assertion(assertion)
        if not _is_plain(header):
            raise InvalidClientError(description="The assertion is malformed.")
        return header, claims

    def validate_jti(self, claims: dict[str, Any], jti: object) -> bool:
        if claims["exp"] > self.server.clock() + _ASSERTION_LIFETIME + 60:
            raise InvalidClientError(description=f"The assertion must end within {_ASSERTION_LIFETIME} seconds.")
        return bool(self.server.is_new_assertion(claims["sub"], jti, claims["exp"], within=_ASSERTION_LIFETIME))

    def resolve_client_public_key(self, client: Client) -> KeySet:
        if client.keys is None:
            raise InvalidClientError(description="The client has no key.")
        return client.keys


def _granted(client: Client, scope: str | None) -> str:
    granted = client.get_allowed_scope(scope)
    if granted is None:
        raise InvalidScopeError(description="The client may have none of these scopes.")
    return granted


def _is_plain(header: dict[str, Any]) -> bool:
    """Whether the header of a JWT is what Authlib's library can judge: it trips over others, and none is needed."""
    return all(isinstance(value, str) for value in header.values())


def _depth(act: Any) -> int:
    return 1 + _depth(act["act"]) if "act" in act else 1
