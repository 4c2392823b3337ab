"""Credentials for an httpx2 client, against a server that rejects tokens."""

from collections.abc import AsyncIterator

import httpx2
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mcp_middleware.credentials import Caller, ClientCredentials, CredentialUnavailableError, TokenExchange
from mcp_middleware.oauth import ClientSecret
from mcp_middleware.testing import FakeClock
from tests.credentials.issuer import SECRET, TokenIssuer
from tests.support import serve

PROOF = ClientSecret("gateway", SECRET)


class Server:
    """Accepts the tokens in ``good``, and remembers what came."""

    def __init__(self) -> None:
        self.url = ""
        self.good = {"Bearer token-1"}
        self.received: list[tuple[str, bytes]] = []
        self.app = Starlette(routes=[Route("/mcp", self._answer, methods=["POST"])])

    async def _answer(self, request: Request) -> Response:
        authorization = request.headers.get("authorization", "")
        self.received.append((authorization, await request.body()))
        return Response(status_code=200 if authorization in self.good else 401)


@pytest_asyncio.fixture(loop_scope="session")
async def server() -> AsyncIterator[Server]:
    made = Server()
    async with serve(made.app) as made.url:
        yield made


async def test_a_request_is_sent_once_more_with_a_new_token(issuer: TokenIssuer, server: Server) -> None:
    clock = FakeClock()
    credentials = ClientCredentials(issuer=issuer.issuer, authentication=PROOF, clock=clock)
    async with httpx2.AsyncClient(auth=credentials.auth()) as client:
        assert (await client.post(f"{server.url}/mcp", content=b"one")).status_code == 200
        clock.advance(20)
        server.good = {"Bearer token-2"}

        async def body() -> AsyncIterator[bytes]:
            yield b"two"

        assert (await client.post(f"{server.url}/mcp", content=body())).status_code == 200
        server.good = set()
        assert (await client.post(f"{server.url}/mcp", content=b"three")).status_code == 401
    assert server.received == [
        ("Bearer token-1", b"one"),
        ("Bearer token-1", b"two"),
        ("Bearer token-2", b"two"),
        ("Bearer token-2", b"three"),
    ]
    await credentials.aclose()


async def test_a_request_is_made_for_one_caller(issuer: TokenIssuer, server: Server) -> None:
    exchange = TokenExchange(issuer=issuer.issuer, authentication=PROOF, audience="https://mail.example.com/mcp")
    async with httpx2.AsyncClient() as client:
        for token in ("alices-token", "bobs-token"):
            await client.post(f"{server.url}/mcp", auth=exchange.auth(Caller(token=token)))
    assert [authorization for authorization, _ in server.received] == ["Bearer token-1", "Bearer token-2"]
    await exchange.aclose()


async def test_without_a_token_nothing_is_sent(issuer: TokenIssuer, server: Server) -> None:
    issuer.refusal = (503, {})
    credentials = ClientCredentials(issuer=issuer.issuer, authentication=PROOF)
    async with httpx2.AsyncClient(auth=credentials.auth()) as client:
        with pytest.raises(CredentialUnavailableError):
            await client.post(f"{server.url}/mcp")
    assert server.received == []
    await credentials.aclose()


def test_a_client_without_an_event_loop_is_told() -> None:
    credentials = ClientCredentials(issuer="https://login.example.com", authentication=PROOF)
    with httpx2.Client(auth=credentials.auth()) as client, pytest.raises(RuntimeError, match="AsyncClient"):
        client.get("https://mail.example.com/")
