"""What a caller says of itself beside its token never reaches the server (case 8)."""

import pytest
from mcp.server.auth.provider import AccessToken

from mcp_middleware.resource_server import OAuthResourceServerMiddleware
from mcp_middleware.resource_server.challenge import without_token
from tests.core.asgi import Call, EchoServer, rpc


class Verifier:
    async def verify_token(self, token: str) -> AccessToken | None:
        claims = {"iss": "https://login.example.com"}
        return AccessToken(token=token, client_id="agent", scopes=[], subject="alice", claims=claims)


@pytest.mark.parametrize("batch", [False, True])
async def test_case_8_identity_headers_that_a_caller_invents_stop_here(batch: bool) -> None:
    server = EchoServer()
    app = OAuthResourceServerMiddleware(
        server,
        resource="https://files.example.com/mcp",
        verifier=Verifier(),
        authorization_servers=["https://login.example.com"],
    )
    invented = ["x-forwarded-user", "x-remote-user", "remote-user", "x-auth-request-email", "proxy-authorization"]
    invented += ["x_forwarded_user", "x_forwarded-user", "remote_user"]  # one to whoever reads headers as CGI does
    headers = [("authorization", "Bearer good"), ("x-kept", "1"), *((name, "root") for name in invented)]
    if batch:
        headers.append(("mcp-protocol-version", "2025-03-26"))
    call = Call(app, [rpc("ping"), rpc("ping", request_id=2)] if batch else rpc("ping"), headers=headers)
    call.scope["query_string"] = b"a=1&access_token=good&access%5Ftoken=good&ACCESS_TOKEN=good&b=2"
    assert (await call.run()).status == 200
    assert len(server.scopes) == 1 + batch
    for scope in server.scopes:
        sent = dict(scope["headers"])
        assert sent[b"x-kept"] == b"1"
        assert not {b"authorization", *(name.encode() for name in invented)} & sent.keys()
        assert scope["query_string"] == b"a=1&b=2"


@pytest.mark.parametrize("query", [b"", b"a=1", b"token=1&x", b"access_tokens=1"])
def test_a_query_without_a_token_stays(query: bytes) -> None:
    assert without_token(query) == query
