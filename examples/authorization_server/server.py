"""The authorization server: whom it knows, what it issues, and what it says of itself."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from authlib.common.urls import add_params_to_uri
from authlib.oauth2 import AuthorizationServer as AuthlibServer
from authlib.oauth2.rfc6749 import InvalidClientError, InvalidRequestError, OAuth2Error, UnsupportedResponseTypeError
from joserfc.jwk import KeySet
from starlette.responses import JSONResponse, Response

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.http import OAuthHTTPClient
from mcp_middleware.oauth.urls import absolute_url, is_loopback

from . import grants
from .clients import CONFIDENTIAL, METHODS, Client, ClientMetadata, by_basic_credentials, fetch_client, is_document
from .endpoints import Introspection, Registration, Revocation, registrable
from .requests import InvalidTargetError, Request
from .tokens import AccessToken, Algorithm, Authorization, Clock, Code, Form, KeyRing, RefreshToken, Remembered, User

__all__ = ["AuthorizationServer"]

USERS: Final = (User("alice", "Alice"), User("bob", "Bob"))

_CODE_LIFETIME: Final = 60
_REFRESH_LIFETIME: Final = 30 * 86_400
_DOCUMENT_LIFETIME: Final = 300
_CLIENT_LIFETIME: Final = 30 * 86_400
_MOST_CLIENTS: Final = 1_000
_ASSERTION_ALGORITHMS: Final = ["ES256", "RS256"]


class AuthorizationServer(AuthlibServer):
    """An authorization server in the name of ``issuer``, the URL it is reached at. For development only.

    ``resources`` are what tokens may be for (RFC 8707); the first is what a client means that names none, if there is
    no other. ``scopes`` says of each scope what it is for, on the page of consent; None: any scope will do. ``form`` is
    that of tokens, ``forms`` that of tokens for one resource. ``lifetime`` is in seconds. ``registered_scope_binds``:
    refuse whatever a client did not register for, as some servers do; clients of MCP register for the scopes of the
    first challenge, and can then never step up. ``machines_have_subjects=False``: introspection names no ``sub`` where
    a client acts for itself. ``identity_providers`` are those whose identity assertions are redeemed, with their keys.

    Raises ConfigurationError for an issuer that is not on a loopback address, and for resources that are no URLs.
    """

    def __init__(
        self,
        issuer: str,
        *,
        resources: Sequence[str],
        clients: Sequence[Client] = (),
        users: Sequence[User] = USERS,
        scopes: Mapping[str, str] | None = None,
        algorithm: Algorithm = "ES256",
        form: Form = "jwt",
        forms: Mapping[str, Form] | None = None,
        lifetime: int = 600,
        registered_scope_binds: bool = False,
        machines_have_subjects: bool = True,
        identity_providers: Mapping[str, KeySet] | None = None,
        clock: Clock = time.time,
    ) -> None:
        super().__init__()
        parts = absolute_url("issuer", issuer)
        if not is_loopback(parts.hostname or "") or parts.path:
            raise ConfigurationError(
                f"issuer is {issuer!r}; this server is for development and must be the root of a loopback address"
            )
        for resource in resources:
            absolute_url("resource", resource)
        if not resources:
            raise ConfigurationError("resources is empty; tokens must be for something")
        self.issuer = issuer
        self.resources = tuple(resources)
        self.users = {user.subject: user for user in users}
        self.scopes = scopes
        self.form: Form = form
        self.forms = dict(forms or {})
        self.lifetime = lifetime
        self.registered_scope_binds = registered_scope_binds
        self.machines_have_subjects = machines_have_subjects
        self.identity_providers = dict(identity_providers or {})
        self.keys = KeyRing(algorithm)
        self.access_tokens: Remembered[AccessToken] = Remembered(clock)
        self.refresh_tokens: Remembered[RefreshToken] = Remembered(clock)
        self.codes: Remembered[Code] = Remembered(clock)
        self.clock = clock
        self._clients: dict[str, Client] = {}
        self._registered: Remembered[Client] = Remembered(clock, most=_MOST_CLIENTS)
        self._documents: Remembered[Client] = Remembered(clock, most=_MOST_CLIENTS)
        self._assertions: Remembered[bool] = Remembered(clock)
        for client in clients:
            self.add_client(client)
        self.register_client_auth_method("client_secret_basic", by_basic_credentials)
        self.register_client_auth_method("private_key_jwt", grants.ClientAssertion(self))
        self.register_grant(grants.AuthorizationCode, [grants.ProofKey(), grants.ResourceIndicators()])
        for grant in (grants.Refresh, grants.ClientCredentials, grants.TokenExchange, grants.IdentityAssertion):
            self.register_grant(grant)
        for endpoint in (Introspection(self), Revocation(self), Registration(self)):
            self.register_endpoint(endpoint)

    # Whom it knows

    def add_client(self, client: Client) -> None:
        """Know a client of the configuration."""
        self._clients[client.client_id] = self._bounded(client)

    def register(self, client: Client) -> None:
        """Know a client that registered itself, for a while."""
        self._registered.put(client.client_id, self._bounded(client), self.clock() + _CLIENT_LIFETIME)

    async def learn(self, client_id: str | None, http: OAuthHTTPClient) -> None:
        """Know the client that the document at ``client_id`` describes, if it is the address of one.

        Raises InvalidClientError.
        """
        if client_id is not None and is_document(client_id) and self._documents.get(client_id) is None:
            client = await fetch_client(http, client_id, ClientMetadata.get_claims_options(registrable()))
            self._documents.put(client_id, self._bounded(client), self.clock() + _DOCUMENT_LIFETIME)

    def query_client(self, client_id: str) -> Client | None:
        return self._clients.get(client_id) or self._registered.get(client_id) or self._documents.get(client_id)

    def _bounded(self, client: Client) -> Client:
        """``client`` with no more scopes than there are."""
        if self.scopes is None:
            return client
        known = frozenset(self.scopes)
        return replace(client, scopes=known if client.scopes is None else client.scopes & known)

    def authenticate_client(self, request: Request, methods: list[str], endpoint: str = "token") -> Client:
        """The client that asks, by one proof and no more (RFC 6749 section 2.3). Raises InvalidClientError."""
        form = request.form
        proofs = [request.headers.get("authorization"), form.get("client_secret"), form.get("client_assertion")]
        if sum(proof is not None for proof in proofs) > 1:
            raise InvalidRequestError(description="The client may prove itself in one way only.")
        try:
            client: Client = super().authenticate_client(request, methods, endpoint)
        except InvalidClientError as error:
            raise InvalidClientError(description=error.description, status_code=401) from None
        if form.get("client_id", client.client_id) != client.client_id:
            raise InvalidClientError(description="client_id names another client than the proof.", status_code=401)
        return client

    def is_new_assertion(self, issuer: str, jti: object, end: object, *, within: int) -> bool:
        """Whether an assertion was never seen and is short-lived; from now on it was seen."""
        name = f"{issuer} {jti}"
        if (
            not isinstance(jti, str)
            or not jti
            or not isinstance(end, int | float)
            or not end <= self.clock() + within + 60
        ):
            return False
        if self._assertions.get(name):
            return False
        self._assertions.put(name, True, end + 60)
        return True

    # What it issues

    def issue(
        self,
        authorization: Authorization,
        *,
        scope: str | None,
        resource: str,
        refresh: bool,
        client_id: str | None = None,
        act: Mapping[str, Any] | None = None,
        until: float | None = None,
        of: AccessToken | None = None,
    ) -> dict[str, Any]:
        """An answer with an access token (RFC 6749 section 5.1), which ends at ``until`` at the latest. ``of`` is the
        one that it was exchanged for."""
        now = self.clock()
        token = AccessToken(
            authorization,
            scope or "",
            min(int(now) + self.lifetime, until or float("inf")),
            client_id or authorization.client_id,
            resource,
            int(now),
            act,
            of,
        )
        opaque = self.forms.get(resource, self.form) == "opaque"
        value = secrets.token_urlsafe(32) if opaque else self.keys.sign(token.claims(self.issuer))
        self.access_tokens.put(value, token, token.expires_at)
        answer = {
            "access_token": value,
            "token_type": "Bearer",
            "expires_in": int(token.expires_at) - int(now),
            "scope": token.scope,
        }
        if refresh:
            answer["refresh_token"] = another = secrets.token_urlsafe(32)
            end = now + _REFRESH_LIFETIME
            self.refresh_tokens.put(another, RefreshToken(authorization, authorization.scope, end), end)
        return answer

    def remember_code(self, value: str, code: Code) -> None:
        """Remember a code for as long as it may be stolen; it is good for a minute."""
        self.codes.put(value, code, self.clock() + _CODE_LIFETIME)

    def resources_of(self, request: Request) -> tuple[str, ...]:
        """What the tokens of an authorization are for (RFC 8707 section 2.1). Raises InvalidTargetError."""
        asked = tuple(dict.fromkeys(request.payload.datalist["resource"]))
        if not asked and len(self.resources) == 1:
            return self.resources
        if not asked or not set(asked) <= set(self.resources):
            raise InvalidTargetError(description=f"resource must name one of {', '.join(self.resources)}")
        return asked

    def resource_of(self, request: Request, *, among: Sequence[str]) -> str:
        """What one token is for (RFC 8707 section 2.2); token exchange may call it ``audience``.

        Raises InvalidTargetError.
        """
        named = request.payload.datalist
        asked = list(dict.fromkeys(named["resource"] + named["audience"])) or list(among)
        if len(asked) != 1 or asked[0] not in among:
            raise InvalidTargetError(
                description=f"A token is for one resource, and that must be one of {', '.join(among)}"
            )
        return asked[0]

    # What it says of itself

    def metadata(self) -> dict[str, Any]:
        """RFC 8414 section 2, and what other specifications add to it."""
        methods = {"methods_supported": list(CONFIDENTIAL), "signing_alg_values_supported": _ASSERTION_ALGORITHMS}
        document = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "registration_endpoint": f"{self.issuer}/register",
            "introspection_endpoint": f"{self.issuer}/introspect",
            "revocation_endpoint": f"{self.issuer}/revoke",
            "jwks_uri": f"{self.issuer}/jwks",
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": [grant.GRANT_TYPE for grant, _ in self._token_grants],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": list(METHODS),
            "token_endpoint_auth_signing_alg_values_supported": _ASSERTION_ALGORITHMS,
            **{f"introspection_endpoint_auth_{name}": value for name, value in methods.items()},
            "revocation_endpoint_auth_methods_supported": list(METHODS),
            "revocation_endpoint_auth_signing_alg_values_supported": _ASSERTION_ALGORITHMS,
            "authorization_response_iss_parameter_supported": True,
            "client_id_metadata_document_supported": True,
        }
        if self.scopes is not None:
            document["scopes_supported"] = list(self.scopes)
        if self.identity_providers:
            document["authorization_grant_profiles_supported"] = ["urn:ietf:params:oauth:grant-profile:id-jag"]
        return document

    # What Authlib asks of a framework

    def create_oauth2_request(self, request: Request) -> Request:
        return request

    def get_authorization_grant(self, request: Request) -> Any:
        try:
            return super().get_authorization_grant(request)
        except UnsupportedResponseTypeError as error:  # which does not say what would be right
            raise OAuth2Error(
                error=error.error, description="response_type must be code.", redirect_uri=error.redirect_uri
            ) from None

    def create_json_request(self, request: Any) -> Any:
        return request

    def save_token(self, token: object, request: object) -> None:
        """Nothing: ``issue`` has remembered it."""

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Nobody listens."""

    def validate_requested_scope(self, scope: object) -> None:
        """Nothing: what there is not, is not granted."""

    def handle_response(self, status: int, body: Any, headers: Sequence[tuple[str, str]]) -> Response:
        sent = dict(headers)
        if "Location" in sent:
            # RFC 9207 section 2, in errors as well; 303 so that no form is sent on (RFC 9700 section 4.12)
            return Response(
                status_code=303, headers={"Location": add_params_to_uri(sent["Location"], {"iss": self.issuer})}
            )
        sent.pop("Content-Type", None)
        return JSONResponse(body, status, sent)
