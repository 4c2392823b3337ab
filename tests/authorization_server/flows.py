"""What clients send to an authorization server, right unless a test changes it; a change to None leaves a field out."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import jwt
from authlib.oauth2.rfc7636 import create_s256_code_challenge

from tests.authorization_server.running import Credentials, RunningServer

FILES: Final = "https://files.example.com/mcp"
MAIL: Final = "https://mail.example.com/mcp"
CALLBACK: Final = "http://127.0.0.1:7777/callback"
VERIFIER: Final = "a-code-verifier-of-forty-three-characters-or-more"
EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"

Answer = dict[str, Any]


def authorize_url(issuer: str, client_id: str, /, **changes: str | list[str] | None) -> str:
    """An authorization request."""
    fields: dict[str, str | list[str] | None] = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": CALLBACK,
        "scope": "mcp:use files:read",
        "state": "xyz",
        "code_challenge": create_s256_code_challenge(VERIFIER),
        "code_challenge_method": "S256",
        "resource": FILES,
        **changes,
    }
    sent = {name: value for name, value in fields.items() if value is not None}
    return f"{issuer}/authorize?{urlencode(sent, doseq=True)}"


def parameters_of(url: str) -> dict[str, str]:
    """The query of a URL, each parameter once."""
    return {name: value for name, [value] in parse_qs(urlsplit(url).query, keep_blank_values=True).items()}


async def code_of(issuer: RunningServer, client: Credentials, /, **changes: str | list[str] | None) -> str:
    """A code that alice has consented to."""
    return parameters_of(await issuer.approve(authorize_url(issuer.issuer, client.client_id, **changes)))["code"]


def redemption(client: Credentials, issuer: str, code: str, /, **changes: str | None) -> Mapping[str, str | None]:
    """The form that exchanges a code."""
    fields = {"grant_type": "authorization_code", "code": code, "code_verifier": VERIFIER, "redirect_uri": CALLBACK}
    return {**fields, **client.proof(issuer), **changes}


async def tokens_of(issuer: RunningServer, client: Credentials, **changes: str | None) -> Answer:
    """The tokens that alice lets a client have."""
    code = await code_of(issuer, client)
    return good(await issuer.post("/token", redemption(client, issuer.issuer, code, **changes)))


async def refresh(issuer: RunningServer, client: Credentials, token: str, **changes: str | None) -> httpx2.Response:
    """Use a refresh token."""
    fields = {"grant_type": "refresh_token", "refresh_token": token, **client.proof(issuer.issuer)}
    return await issuer.post("/token", {**fields, **changes})


async def introspect(issuer: RunningServer, client: Credentials, token: str) -> Answer:
    """What a token is, as ``client`` may know it."""
    return good(await issuer.post("/introspect", {"token": token, **client.proof(issuer.issuer)}))


def good(response: httpx2.Response) -> Answer:
    """The answer to a request that must succeed."""
    assert response.status_code == 200, response.text
    answer: Answer = response.json()
    return answer


def error_of(response: httpx2.Response) -> str:
    """The error of a request that must be refused, as RFC 6749 section 5.2 has it."""
    assert response.status_code in (400, 401), response.text
    assert response.headers["cache-control"] == "no-store"
    assert (response.status_code == 401) <= response.headers.get("www-authenticate", "").startswith("Basic")
    return str(response.json()["error"])


def claims_of(issuer: RunningServer, token: str, *, resource: str = FILES) -> Answer:
    """The claims of an access token, verified by the published keys."""
    header = jwt.get_unverified_header(token)
    assert header["typ"] == "at+jwt"
    [key] = [key for key in issuer.server.keys.public()["keys"] if key["kid"] == header["kid"]]
    algorithms = [issuer.server.keys.algorithm]
    claims: Answer = jwt.decode(token, jwt.PyJWK(key), algorithms, audience=resource, issuer=issuer.issuer)
    return claims
