"""A real authorization server for the tests, as far as a resource server sees one: discovery, keys and introspection
over a socket."""

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

RESOURCE = "https://files.example.com/mcp"

_CURVES: dict[str, ec.EllipticCurve] = {
    "ES256": ec.SECP256R1(),
    "ES384": ec.SECP384R1(),
    "ES512": ec.SECP521R1(),
}


class SigningKey:
    """A private key with its name."""

    def __init__(self, algorithm: str, kid: str | None, *, bits: int = 2048) -> None:
        self.algorithm, self.kid = algorithm, kid
        self.private: Any
        if algorithm in _CURVES:
            self.private = ec.generate_private_key(_CURVES[algorithm])
        elif algorithm == "EdDSA":
            self.private = ed25519.Ed25519PrivateKey.generate()
        else:
            self.private = rsa.generate_private_key(65537, bits)

    def jwk(self, **changes: Any) -> dict[str, Any]:
        """The public key as published; a change to None leaves a member out."""
        maker = get_default_algorithms()[self.algorithm]
        members = maker.to_jwk(self.private.public_key(), as_dict=True)
        members.pop("key_ops", None)
        members |= {"use": "sig", "alg": self.algorithm, "kid": self.kid} | changes
        return {name: value for name, value in members.items() if value is not None}

    def sign(self, data: bytes, algorithm: str | None = None) -> bytes:
        return get_default_algorithms()[algorithm or self.algorithm].sign(data, self.private)


@cache
def signing_key(algorithm: str = "ES256", kid: str | None = "k1") -> SigningKey:
    """One key of each kind for all tests: RSA keys take long to make."""
    return SigningKey(algorithm, kid)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(header: Mapping[str, Any] | bytes, claims: Mapping[str, Any] | bytes, key: SigningKey | None) -> str:
    """A compact JWS of exactly these parts; without a key its signature is junk."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    signed = ".".join(map(b64, parts))
    return f"{signed}.{b64(key.sign(signed.encode()) if key else b'junk')}"


class LoopbackIssuer:
    """An issuer that counts what is fetched from it, and that can rotate its keys, fail and hang."""

    def __init__(self) -> None:
        self.url = ""
        self.app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["GET", "POST"])])
        self.reset()

    def reset(self) -> None:
        """Back to a healthy issuer that nobody has asked anything."""
        self.path = ""
        self.form = "oauth-authorization-server"
        self.keys = [signing_key()]
        self.published: list[Any] | None = None
        """Instead of the keys' own form."""
        self.metadata_changes: dict[str, Any] = {}
        self.fetches: Counter[str] = Counter()
        self.active: dict[str, Any] = {}
        """Token to what introspection says of it: claims, or a whole Response. Others are inactive."""
        self.answer: Response | None = None
        """What introspection says of every token."""
        self.held: dict[str, asyncio.Event] = {}
        """Tokens about which introspection says nothing until then."""
        self.client: tuple[str, str] | None = ("gateway", "secret")
        """Who may introspect; None: whoever asks."""
        self.questions: list[dict[str, str]] = []
        """The forms that introspection was asked with."""
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        """While it is not set, no answer comes."""
        self.open.set()

    @property
    def issuer(self) -> str:
        return self.url + self.path

    @property
    def jwks_fetches(self) -> int:
        return self.fetches["/jwks"]

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        self.fetches[path] += 1
        self.asked.set()
        await self.open.wait()
        if self.status != 200:
            return Response(status_code=self.status, headers=self.headers)
        if path == "/jwks":
            keys = self.published if self.published is not None else [key.jwk() for key in self.keys]
            return JSONResponse({"keys": keys})
        if path == "/introspect":
            return await self._introspect(request)
        tenant = self.path.rstrip("/")
        inserted = f"/.well-known/{self.form}{tenant}"
        appended = f"{tenant}/.well-known/{self.form}" if self.form.startswith("openid") else inserted
        if path in (inserted, appended):
            places = {"jwks_uri": f"{self.url}/jwks", "introspection_endpoint": f"{self.url}/introspect"}
            return JSONResponse({"issuer": self.issuer, **places, **self.metadata_changes})
        return Response(status_code=404)

    async def _introspect(self, request: Request) -> Response:
        """RFC 7662."""
        form = {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
        self.questions.append(form)
        basic = base64.b64encode(":".join(self.client or ("", "")).encode()).decode()
        if self.client is not None and request.headers.get("authorization") != f"Basic {basic}":
            return JSONResponse({"error": "invalid_client"}, status_code=401)
        token = form.get("token", "")
        if token in self.held:
            await self.held[token].wait()
        said = self.answer or self.active.get(token)
        if isinstance(said, Response):
            return said
        return JSONResponse({"active": False} if said is None else {"active": True, **said})

    def opaque(self, token: str = "opaque-1", **changes: Any) -> str:
        """A token that introspection calls active, with the claims of a good one unless changed."""
        self.active[token] = {"token_type": "Bearer", **self.claims(**changes)}
        return token

    def claims(self, **changes: Any) -> dict[str, Any]:
        """The claims of a good access token (RFC 9068); a change to None leaves a claim out."""
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": RESOURCE,
            "sub": "alice",
            "client_id": "agent-1",
            "scope": "mcp:use files:read",
            "iat": now,
            "exp": now + 300,
            "jti": "1",
        }
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def token(self, *, key: SigningKey | None = None, header: Mapping[str, Any] | None = None, **changes: Any) -> str:
        """A signed access token, good unless changed."""
        key = key or self.keys[0]
        sent = {"typ": "at+jwt", "alg": key.algorithm, "kid": key.kid} | dict(header or {})
        return compact({k: v for k, v in sent.items() if v is not None}, self.claims(**changes), key)
