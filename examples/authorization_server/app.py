"""The routes, and the consent of a person.

1. What is wrong with the client or its address is told to the person: nobody else is known to ask (RFC 6749 section
   4.1.2.1).
2. Consent is given by the browser that was asked, once: the form names a request that only the page knew, a cookie says
   that the page went to this browser, and ``Origin`` that the form came from the page.
3. No page can be framed, runs a script, or loads anything but its style.
"""

import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from authlib.oauth2.rfc6749 import InvalidRequestError, OAuth2Error
from authlib.oauth2.rfc7591 import InvalidClientMetadataError
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcp_middleware.oauth.http import OAuthHTTPClient

from . import pages
from .requests import Pairs, RegistrationRequest, Request, read_parameters
from .server import AuthorizationServer
from .tokens import Remembered

__all__ = ["create_app"]

_MOST_BYTES: Final = 64 * 1024
"""Bytes of a form or a document."""
_PATIENCE: Final = 600
"""Seconds a person may think about it."""
_MOST_ASKED: Final = 1_000
"""Requests that people think about at a time."""
_FORM: Final = "application/x-www-form-urlencoded"
_UNSPEAKABLE: Final = InvalidRequestError(description="The request holds what it may not, or what cannot be repeated.")
"""Authlib raises ValueError where it would quote what was sent, and may not (RFC 6749 section 5.2)."""
_STYLE: Final = Path(__file__).with_name("style.css")


def create_app(server: AuthorizationServer) -> Starlette:
    """``server`` as an ASGI application."""
    http = OAuthHTTPClient()
    consent = _Consent(server, http)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await http.aclose()

    async def index(_: HTTPRequest) -> Response:
        return _page(pages.index(server.issuer, server.resources))

    async def style(_: HTTPRequest) -> Response:
        return FileResponse(_STYLE)

    async def metadata(_: HTTPRequest) -> Response:
        return JSONResponse(server.metadata())

    async def openid(_: HTTPRequest) -> Response:
        # What OpenID Connect Discovery requires by name; no ID token is issued.
        required = {"subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["RS256"]}
        return JSONResponse(server.metadata() | required)

    async def keys(_: HTTPRequest) -> Response:
        return JSONResponse(server.keys.public())

    def form(respond: Callable[[Request], Response]) -> Callable[[HTTPRequest], Any]:
        async def endpoint(received: HTTPRequest) -> Response:
            try:
                request = _request(server, received, read_parameters(await _body(received, _FORM)))
                await server.learn(request.payload.client_id, http)
                return respond(request)
            except OAuth2Error as error:
                return _refused(server, error)
            except ValueError:
                return _refused(server, _UNSPEAKABLE)

        return endpoint

    async def register(received: HTTPRequest) -> Response:
        try:
            request = RegistrationRequest(server.issuer, await _document(received))
            response: Response = server.create_endpoint_response("client_registration", request)
        except OAuth2Error as error:
            return _refused(server, error)
        return response

    def endpoint(name: str) -> Callable[[HTTPRequest], Any]:
        return form(lambda request: server.create_endpoint_response(name, request))

    host = urlsplit(server.issuer).hostname or ""
    return Starlette(
        lifespan=lifespan,
        middleware=[
            Middleware(_DevelopmentOnly),
            Middleware(TrustedHostMiddleware, allowed_hosts=[host, f"[{host}]"]),  # against DNS rebinding
        ],
        routes=[
            Route("/", index),
            Route("/style.css", style),
            Route("/authorize", consent.ask),
            Route("/consent", consent.decide, methods=["POST"]),
            _open("/token", form(server.create_token_response), "POST"),
            _open("/introspect", endpoint("introspection"), "POST"),
            _open("/revoke", endpoint("revocation"), "POST"),
            _open("/register", register, "POST"),
            _open("/jwks", keys, "GET"),
            _open("/.well-known/oauth-authorization-server", metadata, "GET"),
            _open("/.well-known/openid-configuration", openid, "GET"),
        ],
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that a person thinks about."""

    pairs: Pairs
    scopes: tuple[str, ...]
    browser: str


class _Consent:
    """Asks a person, and goes on with what they say."""

    def __init__(self, server: AuthorizationServer, http: OAuthHTTPClient) -> None:
        self.server, self.http = server, http
        self.asked: Remembered[_Asked] = Remembered(server.clock, most=_MOST_ASKED)
        self.cookie = f"consent_{urlsplit(server.issuer).port}"  # a cookie is one for all ports of a host

    async def ask(self, received: HTTPRequest) -> Response:
        """The authorization endpoint (RFC 6749 section 3.1)."""
        server = self.server
        try:
            request = _request(server, received, read_parameters(received.scope["query_string"]))
            await server.learn(request.payload.client_id, self.http)
            grant = server.get_consent_grant(request)
        except OAuth2Error as error:
            return _refused(server, error, page=True)
        except ValueError:
            return _refused(server, _UNSPEAKABLE, page=True)
        scopes = tuple(request.scope.split())
        name = secrets.token_urlsafe(32)
        browser = received.cookies.get(self.cookie) or secrets.token_urlsafe(32)
        self.asked.put(name, _Asked(request.payload.pairs, scopes, browser), server.clock() + _PATIENCE)
        page = pages.consent(
            request.client,
            request=name,
            redirect_uri=grant.redirect_uri,
            resources=server.resources_of(request),
            scopes=[(scope, (server.scopes or {}).get(scope, "")) for scope in scopes],
            users=server.users.values(),
        )
        response = _page(page)
        response.set_cookie(self.cookie, browser, httponly=True, samesite="lax")
        return response

    async def decide(self, received: HTTPRequest) -> Response:
        """What the person says; the application learns it."""
        server = self.server
        try:
            pairs = read_parameters(await _body(received, _FORM), repeatable=frozenset({"scope"}))
        except OAuth2Error as error:
            return _refused(server, error, page=True)
        answer = dict(pairs)
        asked = self.asked.pop(answer.get("request"))
        browser = received.cookies.get(self.cookie, "")
        elsewhere = received.headers.get("origin", server.issuer) != server.issuer
        if asked is None or elsewhere or not secrets.compare_digest(asked.browser.encode(), browser.encode()):
            description = "This page is out of date. Go back to the application, and start again."
            return _refused(server, InvalidRequestError(description=description), page=True)
        chosen = [scope for scope in asked.scopes if ("scope", scope) in pairs]
        allowed = answer.get("decision") == "allow" and (chosen or not asked.scopes)
        user = server.users.get(answer.get("user", "")) if allowed else None
        again = [(name, value) for name, value in asked.pairs if name != "scope"]
        request = _request(server, received, [*again, *([("scope", " ".join(chosen))] if user and chosen else [])])
        try:
            await server.learn(request.payload.client_id, self.http)  # a document may be forgotten meanwhile
            grant = server.get_consent_grant(request)
        except OAuth2Error as error:
            return _refused(server, error, page=True)
        response: Response = server.create_authorization_response(request, grant_user=user, grant=grant)
        return response


class _DevelopmentOnly:
    """Says so in every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def say(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["development-only"] = "never deploy this authorization server"
            await send(message)

        await self.app(scope, receive, say if scope["type"] == "http" else send)


def _open(path: str, endpoint: Callable[[HTTPRequest], Any], method: str) -> Route:
    """A route that pages of other origins may use: clients run in browsers too. It knows no cookies."""
    headers = ["authorization", "content-type", "mcp-protocol-version"]
    cross = Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=[method], allow_headers=headers)
    return Route(path, endpoint, methods=[method, "OPTIONS"], middleware=[cross])


def _request(server: AuthorizationServer, received: HTTPRequest, pairs: Pairs) -> Request:
    # By the server's own address: Authlib judges its scheme, and Host is the caller's.
    return Request(received.method, server.issuer + received.url.path, received.headers, pairs)


async def _body(received: HTTPRequest, media_type: str) -> bytes:
    """The body, if it is of the type and of a reasonable size. Raises InvalidRequestError."""
    if received.headers.get("content-type", "").partition(";")[0].strip().lower() != media_type:
        raise InvalidRequestError(description=f"The request must be {media_type}.")
    body = b""
    async for chunk in received.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise InvalidRequestError(description=f"The request is longer than {_MOST_BYTES} bytes.")
    return body


async def _document(received: HTTPRequest) -> dict[str, Any]:
    try:
        document = json.loads(await _body(received, "application/json"))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise InvalidClientMetadataError(description="The request must be a JSON object.")
    return document


def _page(page: str, *, status: int = 200) -> HTMLResponse:
    headers = {
        "content-security-policy": pages.POLICY,
        "x-frame-options": "DENY",
        "x-content-type-options": "nosniff",
        "referrer-policy": "same-origin",
        "cache-control": "no-store",
    }
    return HTMLResponse(page, status, headers)


def _refused(server: AuthorizationServer, error: OAuth2Error, *, page: bool = False) -> Response:
    """The refusal: to the application where its address is known, else to who is there."""
    if page and not error.redirect_uri:
        return _page(pages.refusal(error.error, error.get_error_description()), status=error.status_code)
    response: Response = server.handle_error_response(None, error)
    return response
