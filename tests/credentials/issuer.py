"""An authorization server as far as its clients see one: metadata and a token endpoint, over a socket."""

import asyncio
import base64
from collections import Counter
from typing import Any
from urllib.parse import unquote_plus

import jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

SECRET = "hunter2:ü"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"


class TokenIssuer:
    """Issues ``token-1``, ``token-2``, ... to the client ``gateway``, and exchanges what is in ``issued_to_others``."""

    def __init__(self) -> None:
        self.url = ""
        self.public_key: str | None = None
        self.app = Starlette(
            routes=[
                Route("/.well-known/oauth-authorization-server", self._metadata),
                Route("/token", self._token, methods=["POST"]),
            ]
        )
        self.reset()

    def reset(self) -> None:
        """Back to a healthy issuer that nobody has asked anything."""
        self.issuer = self.url
        self.metadata: dict[str, Any] = {}
        self.answer: dict[str, Any] = {}
        """Laid over a good answer; None leaves a member out."""
        self.refusal: tuple[int, dict[str, Any]] | None = None
        self.issued_to_others = {"alices-token", "bobs-token", "alices-next-token"}
        self.exchanges_anything = False
        self.forms: list[dict[str, str]] = []
        self.asked: Counter[str] = Counter()
        self.issued = 0
        self.waiting = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def _metadata(self, request: Request) -> Response:
        self.asked["metadata"] += 1
        return JSONResponse({"issuer": self.issuer, "token_endpoint": f"{self.url}/token"} | self.metadata)

    async def _token(self, request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        self.asked["token"] += 1
        self.forms.append(form)
        self.waiting.set()
        await self.open.wait()
        if self.refusal is not None:
            status, document = self.refusal
            return JSONResponse(document, status)
        if not self._authenticated(request, form):
            return JSONResponse({"error": "invalid_client"}, 401)
        answer: dict[str, Any] = {"token_type": "Bearer", "expires_in": 100}
        if form["grant_type"] == TOKEN_EXCHANGE:
            if form["subject_token"] not in self.issued_to_others and not self.exchanges_anything:
                return JSONResponse({"error": "invalid_grant", "error_description": "not one of ours"}, 400)
            answer["issued_token_type"] = ACCESS_TOKEN
        elif form["grant_type"] != "client_credentials":
            return JSONResponse({"error": "unsupported_grant_type"}, 400)
        self.issued += 1
        answer["access_token"] = f"token-{self.issued}"
        return JSONResponse({name: value for name, value in (answer | self.answer).items() if value is not None})

    def _authenticated(self, request: Request, form: dict[str, str]) -> bool:
        if "client_assertion" in form and self.public_key is not None:
            claims = jwt.decode(form["client_assertion"], self.public_key, algorithms=["ES256"], audience=self.issuer)
            return bool(claims["sub"] == claims["iss"] == form["client_id"] == "gateway")
        if "client_secret" in form:
            return (form["client_id"], form["client_secret"]) == ("gateway", SECRET)
        pair = base64.b64decode(request.headers.get("authorization", "").removeprefix("Basic ")).decode()
        return tuple(map(unquote_plus, pair.split(":"))) == ("gateway", SECRET)
