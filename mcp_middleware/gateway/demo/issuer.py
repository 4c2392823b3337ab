"""The demonstration's token issuer, in place of your identity provider. Nothing else in the package issues tokens.

It knows one grant, client credentials by a secret (RFC 6749 section 4.4), is on a loopback address or not at all, and
forgets its key with everything else when it ends. Its clients are in the environment variable ``DEMO_CLIENTS``.

    python -m mcp_middleware.gateway.demo.issuer --resource URL ...
"""

import argparse
import base64
import binascii
import hmac
import json
import os
import socket
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_plus, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from .listening import listen, serve

__all__ = ["CLIENTS", "Client", "Issuer", "TokenError"]

CLIENTS: Final = "DEMO_CLIENTS"
"""The environment variable with the registered clients, as ``Client.dump`` writes them."""

_LIFETIME: Final = 3600
"""Seconds a token is good for: as long as somebody may want to play with the demonstration."""
_LARGEST: Final = 16 * 1024
"""Bytes of a token request."""
_FORM: Final = "application/x-www-form-urlencoded"
_NO_STORE: Final = {"cache-control": "no-store"}


@dataclass(frozen=True, slots=True)
class Client:
    """A registered client, with the scopes it may have."""

    client_id: str
    secret: str = field(repr=False)
    scopes: frozenset[str]

    @staticmethod
    def dump(clients: Collection["Client"]) -> str:
        """``clients`` as text, which ``load`` reads."""
        return json.dumps([[client.client_id, client.secret, sorted(client.scopes)] for client in clients])

    @staticmethod
    def load(text: str) -> list["Client"]:
        """The clients that ``dump`` wrote."""
        return [Client(client_id, secret, frozenset(scopes)) for client_id, secret, scopes in json.loads(text)]


class TokenError(Exception):
    """A refusal, by its name in RFC 6749 section 5.2."""

    def __init__(self, error: str, description: str, *, status: int = 400) -> None:
        super().__init__(description)
        self.error = error
        self.status = status


class Issuer:
    """Issues access tokens (RFC 9068) to ``clients``, each for one of ``resources`` (RFC 8707), in the name of ``url``.

    Raises ValueError for a ``url`` that is not on a loopback address.
    """

    def __init__(self, url: str, *, clients: Collection[Client], resources: Collection[str]) -> None:
        if not ip_address(urlsplit(url).hostname or "").is_loopback:
            raise ValueError(f"url is {url!r}; this issuer is for demonstrations and must be on a loopback address")
        self.url = url
        self.clients = {client.client_id: client for client in clients}
        self.resources = frozenset(resources)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._key_id = uuid.uuid4().hex

    def app(self) -> Starlette:
        """The issuer as an ASGI application."""

        async def metadata(_: Request) -> JSONResponse:
            return JSONResponse(self.metadata)

        async def keys(_: Request) -> JSONResponse:
            return JSONResponse(self.keys)

        async def token(request: Request) -> JSONResponse:
            try:
                fields = _fields(request.headers.get("content-type"), await _body(request))
                return JSONResponse(self.grant(fields, request.headers.get("authorization")), headers=_NO_STORE)
            except TokenError as refused:
                body = {"error": refused.error, "error_description": str(refused)}
                challenge = {"www-authenticate": "Basic"} if refused.status == 401 else {}
                return JSONResponse(body, refused.status, {**_NO_STORE, **challenge})

        return Starlette(
            routes=[
                Route("/.well-known/oauth-authorization-server", metadata),
                Route("/.well-known/openid-configuration", metadata),
                Route("/jwks", keys),
                Route("/token", token, methods=["POST"]),
            ]
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """What RFC 8414 and OpenID Connect Discovery publish; agents and the gateway both read it."""
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",  # required by name; there is no such grant here
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "scopes_supported": sorted(frozenset[str]().union(*(client.scopes for client in self.clients.values()))),
            "response_types_supported": ["none"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "grant_types_supported": ["client_credentials"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        }

    @property
    def keys(self) -> dict[str, Any]:
        """The public key that its tokens verify with (RFC 7517)."""
        key = jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {"keys": [{**key, "kid": self._key_id, "use": "sig", "alg": "ES256"}]}

    def grant(self, fields: Mapping[str, str], authorization: str | None) -> dict[str, Any]:
        """The answer to a token request. Raises TokenError."""
        client = self._authenticate(fields, authorization)
        if fields.get("grant_type") != "client_credentials":
            raise TokenError("unsupported_grant_type", "the grant type must be client_credentials")
        resource = fields.get("resource")
        if resource not in self.resources:
            raise TokenError("invalid_target", f"resource must be one of {', '.join(sorted(self.resources))}")
        asked = frozenset(fields.get("scope", "").split())
        if not asked <= client.scopes:
            raise TokenError("invalid_scope", f"this client may have {' '.join(sorted(client.scopes))}")
        scope = " ".join(sorted(asked or client.scopes))
        now = int(time.time())
        claims = {
            "iss": self.url,
            "sub": client.client_id,
            "client_id": client.client_id,
            "aud": resource,
            "iat": now,
            "exp": now + _LIFETIME,
            "jti": uuid.uuid4().hex,
            "scope": scope,
        }
        token = jwt.encode(claims, self._key, algorithm="ES256", headers={"typ": "at+jwt", "kid": self._key_id})
        return {"access_token": token, "token_type": "Bearer", "expires_in": _LIFETIME, "scope": scope}

    def _authenticate(self, fields: Mapping[str, str], authorization: str | None) -> Client:
        """The client that asks, by one of the two ways of RFC 6749 section 2.3.1. Raises TokenError."""
        if authorization is None:
            client_id, secret = fields.get("client_id", ""), fields.get("client_secret", "")
        else:
            client_id, secret = _basic(authorization)
        client = self.clients.get(client_id)
        known = "" if client is None else client.secret
        if not hmac.compare_digest(known.encode(), secret.encode()) or client is None:
            raise TokenError("invalid_client", "the client is unknown, or its secret is wrong", status=401)
        return client


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST:
            raise TokenError("invalid_request", f"the request is larger than {_LARGEST} bytes", status=413)
    return bytes(body)


def _fields(content_type: str | None, body: bytes) -> dict[str, str]:
    """The parameters of a token request: a form, and none of them twice (RFC 6749 section 3.2)."""
    if (content_type or "").partition(";")[0].strip().lower() != _FORM:
        raise TokenError("invalid_request", f"the request must be {_FORM}")
    pairs = parse_qsl(body.decode("ascii", "replace"), keep_blank_values=True)
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise TokenError("invalid_request", "a parameter is there twice")
    return fields


def _basic(authorization: str) -> tuple[str, str]:
    scheme, _, value = authorization.partition(" ")
    try:
        client_id, separator, secret = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        separator = ""
    if scheme.lower() != "basic" or not separator:
        raise TokenError("invalid_client", "the Authorization header must be Basic", status=401)
    return unquote_plus(client_id), unquote_plus(secret)


def main() -> None:
    """Serve until ended; the first line of the output is the issuer's URL."""
    parser = argparse.ArgumentParser(description="A token issuer for demonstrations on one machine.")
    parser.add_argument("--resource", action="append", required=True, help="what tokens may be for; repeatable")
    options = parser.parse_args()
    bound: socket.socket = listen()
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    issuer = Issuer(url, clients=Client.load(os.environ[CLIENTS]), resources=options.resource)
    print(url, flush=True)
    serve(issuer.app(), bound)


if __name__ == "__main__":
    main()
