"""The development authorization server on a real socket, for the tests of others.

async with running(resources=[url]) as issuer:
    agent = issuer.add_client("agent", scopes=["mcp:use"])
    token = await issuer.token(agent, resource=url)
"""

import html
import re
import secrets
import socket
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2
from joserfc import jwt
from joserfc.jwk import ECKey
from starlette.types import ASGIApp, Receive, Scope, Send

from examples.authorization_server import AuthorizationServer, Client, create_app
from examples.authorization_server.tokens import Authorization, Form
from tests.support import origin_of, serve

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

__all__ = ["Credentials", "RunningServer", "mint", "running"]


@dataclass(frozen=True)
class Credentials:
    """What a client has: its name, and a secret or a private key (PEM); neither for a public client."""

    client_id: str
    secret: str | None = field(default=None, repr=False)
    private_key: str | None = field(default=None, repr=False)

    def assertion(self, audience: str, **changes: Any) -> str:
        """A client assertion for ``audience`` (RFC 7523 section 2.2), good unless changed; None leaves a claim out."""
        now = int(time.time())
        claims = {"iss": self.client_id, "sub": self.client_id, "aud": audience, "iat": now, "exp": now + 60}
        claims = {"jti": uuid.uuid4().hex, **claims, **changes}
        key = ECKey.import_key(self.private_key or "")
        return jwt.encode({"alg": "ES256"}, {name: value for name, value in claims.items() if value is not None}, key)

    def proof(self, audience: str) -> dict[str, str]:
        """The parameters that prove this client to the server whose issuer is ``audience``."""
        if self.private_key is not None:
            return {"client_assertion_type": ASSERTION_TYPE, "client_assertion": self.assertion(audience)}
        return {"client_id": self.client_id} | ({"client_secret": self.secret} if self.secret is not None else {})


class RunningServer:
    """The server at ``issuer``. ``server`` is the object behind it, whose attributes a test may set."""

    def __init__(self, server: AuthorizationServer) -> None:
        self.server = server
        self.counts: Counter[str] = Counter()
        """Requests by path, such as ``/token`` or ``/jwks``."""
        self._app: ASGIApp = create_app(server)
        self._up = AsyncExitStack()
        self.http = httpx2.AsyncClient(base_url=server.issuer)

    @property
    def issuer(self) -> str:
        return self.server.issuer

    @property
    def form(self) -> Form:
        """The form of tokens that are issued from now on: ``jwt`` or ``opaque``."""
        return self.server.form

    @form.setter
    def form(self, form: Form) -> None:
        self.server.form = form

    def add_client(
        self,
        client_id: str | None = None,
        *,
        key: bool = False,
        public: bool = False,
        redirect_uris: Collection[str] = (),
        scopes: Collection[str] | None = None,
        roles: Sequence[str] = (),
        serves: Collection[str] | None = None,
    ) -> Credentials:
        """Register a client: with a secret, with a key (``key``), or with neither (``public``).

        It may use all grants of its kind, and the code with ``redirect_uris``. ``scopes``: what it may have, None for
        all. ``serves``: the resources whose tokens it may introspect and exchange, None for all.
        """
        client_id = client_id or f"client-{secrets.token_hex(4)}"
        secret = None if key or public else secrets.token_urlsafe(24)
        pair = ECKey.generate_key("P-256") if key else None
        values: dict[str, Any] = {"client_id": client_id, "roles": list(roles), "redirect_uris": list(redirect_uris)}
        if secret is not None:
            values["secret"] = secret
        if pair is not None:
            values["public_key"] = pair.as_dict(private=False)
        if scopes is not None:
            values["scopes"] = list(scopes)
        if serves is not None:
            values["serves"] = list(serves)
        self.server.add_client(Client.from_dict(values))
        return Credentials(client_id, secret, pair.as_pem(private=True).decode() if pair else None)

    async def token(self, client: Credentials, resource: str | None = None, scope: str | None = None) -> str:
        """An access token of the client for itself (client credentials)."""
        fields = {"grant_type": "client_credentials", "resource": resource, "scope": scope}
        answer = await self.post("/token", {**fields, **client.proof(self.issuer)})
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    async def approve(
        self, url: str, *, user: str = "alice", scopes: Collection[str] | None = None, deny: bool = False
    ) -> str:
        """Open the authorization ``url``, sign in as ``user``, tick ``scopes`` (None: all), and allow.

        The callback URL that it is sent to, also where the server sends an error there without asking.
        Raises RuntimeError with the page if the server shows one that is no question.
        """
        async with httpx2.AsyncClient() as browser:
            page = await browser.get(url)
            if page.is_redirect:
                return str(page.headers["location"])
            asked = re.search(r'name="request" value="([^"]+)"', page.text)
            if asked is None:
                raise RuntimeError(f"{page.status_code} {page.text}")
            offered = [html.unescape(name) for name in re.findall(r'name="scope" value="([^"]*)"', page.text)]
            chosen = [name for name in offered if scopes is None or name in scopes]
            fields = {"request": asked[1], "user": user, "decision": "deny" if deny else "allow", "scope": chosen}
            answer = await browser.post(f"{self.issuer}/consent", data=fields, headers={"origin": self.issuer})
            if not answer.is_redirect:
                raise RuntimeError(f"{answer.status_code} {answer.text}")
            return str(answer.headers["location"])

    async def post(self, path: str, fields: Mapping[str, str | None], **options: Any) -> httpx2.Response:
        """Post a form; fields that are None are left out."""
        sent = {name: value for name, value in fields.items() if value is not None}
        return await self.http.post(path, data=sent, **options)

    def revoke(self, token: str) -> None:
        """End an access token, or with a refresh token all that came of the same consent."""
        access, refresh = self.server.access_tokens.get(token), self.server.refresh_tokens.get(token)
        if access is not None:
            access.revoked = True
        elif refresh is not None:
            refresh.authorization.revoked = True
        else:
            raise ValueError("the server has no such token")

    def rotate_keys(self) -> None:
        """Sign with a new key; the old ones stay published."""
        self.server.keys.rotate()

    def remove_old_keys(self) -> None:
        """Publish the newest key alone."""
        self.server.keys.remove_old()

    async def down(self) -> None:
        """Listen no more: connections are refused."""
        await self._up.aclose()

    async def up(self) -> None:
        """Listen again, on the same port and with everything that was known."""
        await self._listen(_bound(urlsplit(self.issuer).port or 0))

    async def aclose(self) -> None:
        await self.http.aclose()
        await self._up.aclose()

    async def _listen(self, bound: socket.socket) -> None:
        async def counting(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                self.counts[scope["path"]] += 1
            await self._app(scope, receive, send)

        await self._up.enter_async_context(serve(counting, bound=bound))


@asynccontextmanager
async def running(*, resources: Sequence[str], **options: Any) -> AsyncIterator[RunningServer]:
    """A running server for ``resources``; ``options`` are those of ``AuthorizationServer``."""
    bound = _bound(0)
    server = RunningServer(AuthorizationServer(origin_of(bound), resources=resources, **options))
    await server._listen(bound)
    try:
        yield server
    finally:
        await server.aclose()


def mint(
    server: AuthorizationServer,
    client: Client,
    *,
    resource: str,
    scopes: Collection[str],
    lifetime: float | None = None,
) -> str:
    """An access token that ``client`` has for itself, without asking; it lasts ``lifetime`` seconds at most."""
    scope = " ".join(sorted(scopes))
    authorization = Authorization(client.client_id, client.client_id, scope, (resource,), client.roles)
    until = None if lifetime is None else server.clock() + lifetime
    issued = server.issue(authorization, scope=scope, resource=resource, refresh=False, until=until)
    return str(issued["access_token"])


def _bound(port: int) -> socket.socket:
    """A loopback socket whose port can be bound again while connections of before linger."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound
