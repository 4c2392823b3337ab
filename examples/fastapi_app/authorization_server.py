"""DEVELOPMENT ONLY: an authorization server for one machine, so that the example runs by itself.

In production this is your identity provider: Keycloak, Entra ID, Auth0, Okta, ... mcp-middleware is never one, and
nothing of this file is in the package. It knows one grant, client_credentials (RFC 6749 section 4.4), and forgets its
signing key and everything else when it ends. It refuses to be anywhere but on a loopback address.

    python -m examples.fastapi_app.authorization_server --port 9000 --clients clients.json --resource URL ...
"""

import argparse
import base64
import binascii
import hmac
import json
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_plus, urlsplit

import jwt
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

__all__ = ["AuthorizationServer", "Client", "TokenError"]

logger = logging.getLogger("authorization_server")

TOKEN_LIFETIME: Final = 600
"""Seconds an access token is good for."""

ASSERTION_LIFETIME: Final = 300
"""Seconds a client's assertion may be ahead of its end: how long its ``jti`` is remembered."""

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ASSERTION_ALGORITHMS: Final = ("ES256", "RS256")
NO_STORE: Final = {"cache-control": "no-store"}


@dataclass(frozen=True, slots=True)
class Client:
    """A registered client: it proves itself with a secret, or with a private key whose public half is here."""

    client_id: str
    scopes: frozenset[str]
    roles: tuple[str, ...] = ()
    secret: str | None = None
    public_key: dict[str, Any] | None = None
    """A JSON Web Key."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Client":
        """A client as the ``--clients`` file holds it."""
        return cls(
            client_id=values["client_id"],
            scopes=frozenset(values["scopes"]),
            roles=tuple(values.get("roles", ())),
            secret=values.get("secret"),
            public_key=values.get("public_key"),
        )


class TokenError(Exception):
    """A refusal as RFC 6749 section 5.2 has it."""

    def __init__(self, error: str, description: str, *, status: int = 400) -> None:
        super().__init__(description)
        self.error = error
        self.status = status


class AuthorizationServer:
    """Issues access tokens (RFC 9068) to ``clients`` for ``resources`` (RFC 8707), in the name of ``issuer``.

    Raises ValueError for an issuer that is not on a loopback address.
    """

    def __init__(self, issuer: str, *, clients: Sequence[Client], resources: Sequence[str]) -> None:
        if not ip_address(urlsplit(issuer).hostname or "").is_loopback:
            raise ValueError(f"issuer is {issuer!r}; this server is for development and must be on a loopback address")
        self.issuer = issuer
        self.clients = {client.client_id: client for client in clients}
        self.resources = frozenset(resources)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._key_id = uuid.uuid4().hex
        self._seen_assertions: dict[str, float] = {}

    @property
    def metadata(self) -> dict[str, Any]:
        """What RFC 8414 and OpenID Connect Discovery publish; clients and resource servers both read it."""
        scopes = frozenset[str]().union(*(client.scopes for client in self.clients.values()))
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",  # required by name; there is no such grant here
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
            "scopes_supported": sorted(scopes),
            "response_types_supported": ["none"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "grant_types_supported": ["client_credentials"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
            "token_endpoint_auth_signing_alg_values_supported": list(ASSERTION_ALGORITHMS),
        }

    @property
    def key_set(self) -> dict[str, Any]:
        """The public keys that its tokens verify with (RFC 7517)."""
        key = jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {"keys": [{**key, "kid": self._key_id, "use": "sig", "alg": "ES256"}]}

    def app(self) -> Starlette:
        """The server as an ASGI app."""

        async def metadata(_: Request) -> JSONResponse:
            return JSONResponse(self.metadata)

        async def keys(_: Request) -> JSONResponse:
            return JSONResponse(self.key_set)

        async def token(request: Request) -> JSONResponse:
            fields = dict(parse_qsl((await request.body()).decode("ascii", "replace")))
            try:
                return JSONResponse(self.grant(fields, request.headers.get("authorization")), headers=NO_STORE)
            except TokenError as refused:
                body = {"error": refused.error, "error_description": str(refused)}
                challenge = {"www-authenticate": "Basic"} if refused.status == 401 else {}
                return JSONResponse(body, refused.status, {**NO_STORE, **challenge})

        return Starlette(
            routes=[
                Route("/.well-known/oauth-authorization-server", metadata),
                Route("/.well-known/openid-configuration", metadata),
                Route("/jwks", keys),
                Route("/token", token, methods=["POST"]),
            ]
        )

    def grant(self, fields: dict[str, str], authorization: str | None) -> dict[str, Any]:
        """The answer to a token request. Raises TokenError."""
        client = self.authenticate(fields, authorization)
        if fields.get("grant_type") != "client_credentials":
            raise TokenError("unsupported_grant_type", "the grant type must be client_credentials")
        resource = fields.get("resource")
        if resource not in self.resources:
            raise TokenError("invalid_target", "the resource parameter must name one of this server's resources")
        asked = frozenset(fields.get("scope", "").split())
        granted = asked & client.scopes if asked else client.scopes
        if not granted:
            raise TokenError("invalid_scope", "the client may have none of these scopes")
        return {
            "access_token": self.issue(client, resource=resource, scopes=granted),
            "token_type": "Bearer",
            "expires_in": TOKEN_LIFETIME,
            "scope": " ".join(sorted(granted)),
        }

    def issue(self, client: Client, *, resource: str, scopes: frozenset[str], lifetime: int = TOKEN_LIFETIME) -> str:
        """An access token for a client acting for itself (RFC 9068 section 2.2)."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": client.client_id,
            "client_id": client.client_id,
            "aud": resource,
            "iat": now,
            "exp": now + lifetime,
            "jti": uuid.uuid4().hex,
            "scope": " ".join(sorted(scopes)),
        }
        if client.roles:
            claims["roles"] = list(client.roles)
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"typ": "at+jwt", "kid": self._key_id})

    def authenticate(self, fields: dict[str, str], authorization: str | None) -> Client:
        """The client that asks: by RFC 6749 section 2.3.1 or RFC 7523 section 2.2. Raises TokenError."""
        if authorization is not None:
            return self._by_secret(*_basic_credentials(authorization))
        if "client_assertion" in fields:
            if fields.get("client_assertion_type") != ASSERTION_TYPE:
                raise TokenError("invalid_client", f"client_assertion_type must be {ASSERTION_TYPE}", status=401)
            return self._by_assertion(fields["client_assertion"])
        return self._by_secret(fields.get("client_id", ""), fields.get("client_secret", ""))

    def _by_secret(self, client_id: str, secret: str) -> Client:
        client = self.clients.get(client_id)
        known = client.secret if client is not None else None
        if not hmac.compare_digest((known or "").encode(), secret.encode()) or client is None or not known:
            raise TokenError("invalid_client", "the client is unknown, or its secret is wrong", status=401)
        return client

    def _by_assertion(self, assertion: str) -> Client:
        refused = TokenError("invalid_client", "the client assertion does not hold", status=401)
        try:
            unverified = jwt.decode(assertion, options={"verify_signature": False})
            client = self.clients.get(str(unverified.get("sub")))
            if client is None or client.public_key is None:
                raise refused
            claims = jwt.decode(
                assertion,
                jwt.PyJWK(client.public_key).key,
                algorithms=list(ASSERTION_ALGORITHMS),
                audience=self.issuer,  # the issuer, not the token endpoint: RFC 7523bis
                issuer=client.client_id,
                subject=client.client_id,
                options={"require": ["iss", "sub", "aud", "exp", "jti"]},
            )
        except jwt.PyJWTError:
            raise refused from None
        now = time.time()
        self._seen_assertions = {jti: end for jti, end in self._seen_assertions.items() if end > now}
        if claims["exp"] > now + ASSERTION_LIFETIME + 60 or claims["jti"] in self._seen_assertions:
            raise refused
        self._seen_assertions[claims["jti"]] = claims["exp"]
        return client


def _basic_credentials(authorization: str) -> tuple[str, str]:
    scheme, _, value = authorization.partition(" ")
    try:
        client_id, separator, secret = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        separator = ""
    if scheme.lower() != "basic" or not separator:
        raise TokenError("invalid_client", "the Authorization header must be Basic", status=401)
    return unquote_plus(client_id), unquote_plus(secret)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="An authorization server for development. Never deploy it.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=Path, required=True, help="a JSON list of clients")
    parser.add_argument("--resource", action="append", required=True, help="what tokens may be for; repeatable")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logger.warning("DEVELOPMENT ONLY: no users, no storage, no consent. Never deploy this authorization server.")
    clients = [Client.from_dict(values) for values in json.loads(options.clients.read_text())]
    issuer = f"http://127.0.0.1:{options.port}"
    server = AuthorizationServer(issuer, clients=clients, resources=options.resource)
    uvicorn.run(server.app(), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
