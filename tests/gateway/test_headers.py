"""Which headers pass a gateway: those that are named, in either direction."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.gateway.config import from_mapping
from mcp_middleware.gateway.headers import for_caller, for_server, passing
from mcp_middleware.responses import NOSNIFF
from tests.support import answer_of, headers_for, message, post

from .forwarding import CALL, RESULT, Caller, answer, gateway, raw_server
from .gateways import gateway as whole_gateway

INVENTED = [
    "Proxy", "Content_Type", "X-Userid", "X-Account-Id", "X-Id-Token", "X-Access-Token", "X-Jwt-Assertion",
    "X-Appengine-User-Id", "X-Azure-Clientip", "X-Envoy-External-Address", "X-Middleware-Subrequest", "Remote-Groups",
    "Remote-Email", "Impersonate-Group", "X-Client-DN", "X-Pomerium-Claim-Email", "X-Authentik-Username",
    "X-Vouch-User", "X-Apigateway-Api-Userinfo", "X-Endpoint-Api-Userinfo", "X-Credential-Identifier", "X-Principal",
    "X-Identity", "X-Scopes", "X-Sub", "X-Token", "X-Nobody-Has-Heard-Of", "Referer", "Cookie", "Via", "X-Request-Id",
]  # fmt: skip


async def test_case_8_what_nobody_named_never_reaches_a_server_nor_does_the_callers_token(tmp_path: Path) -> None:
    async with raw_server(answer) as server:
        section = {"url": f"{server.origin}/mcp", "forward_headers": ["X-Tenant", "X-Foo"]}
        async with whole_gateway(tmp_path, {"files": section}) as running:
            token = running.token()
            mine = dict.fromkeys(INVENTED, "root") | {
                "x-tenant": "eu",
                "x-foo": f"Bearer {token}",
                "mcp-param-foo": token,
                "user-agent": f"agent/1 ({token})",
                "accept-language": "de",
            }
            reply = await post(running.http, running.url(), "tools/call", CALL, token=token, headers=mine)
            assert reply.content == RESULT
        head = server.requests[0].head.lower()
        assert b"root" not in head
        assert token.lower().encode() not in head
        for line in (b"x-tenant: eu", b"accept-language: de", b"mcp-method: tools/call", b"content-type: application"):
            assert line in head


def test_what_the_configuration_sets_is_no_callers_to_send_in_either_spelling() -> None:
    names = passing(["x_api_key", "x-tenant"], frozenset({b"x-api-key", b"user-agent"}))
    sent = [(b"x_api_key", b"theirs"), (b"x-tenant", b"eu"), (b"user-agent", b"theirs"), (b"x-other", b"theirs")]
    assert for_server(sent, names, None) == b"accept-encoding: identity\r\nx-tenant: eu\r\n"


@pytest.mark.parametrize(
    "name",
    ["Authorization", "Cookie", "X-Forwarded-For", "X_Forwarded_Host", "Forwarded", "X-User", "Origin", "Host", "TE",
     "Mcp-Session-Id", "Accept-Encoding", "Content-Type", "two words", ""],
)  # fmt: skip
def test_what_may_not_be_forwarded_is_refused_at_the_start(name: str) -> None:
    server = {"url": "http://127.0.0.1:9001/mcp", "forward_headers": [name]}
    with pytest.raises(ConfigurationError, match=r"forward_headers\[0\] is .*; it must be the name of a header"):
        from_mapping({"servers": {"files": server}, "auth": "off"})


ORDERS = {
    "clear-site-data": '"*"', "refresh": "0; url=https://evil.example", "location": "https://evil.example",
    "report-to": "{}", "nel": "{}", "service-worker-allowed": "/", "x-accel-expires": "9999", "nels": "1",
    "access-control-allow-origin": "*", "access-control-allow-credentials": "true", "authorization": "Basic b3Vycw==",
    "x-api-key": "ours", "link": "</x>; rel=preload", "set-cookie": "a=b", "sourcemap": "/x", "etag": '"1"',
    "retry-after": "99999999999", "cache-control": "public, max-age=31536000", "x-accel-buffering": "yes",
    "content-security-policy": "default-src *", "x-powered-by": "them", "server": "them", "via": "1.1 them",
}  # fmt: skip


async def test_case_38_a_server_gives_no_orders_about_the_gateways_origin() -> None:
    async def order(caller: Caller) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in ORDERS.items()) + "mcp-anything: passes\r\n"
        await caller.send_json(RESULT, headers=lines.encode())

    async with raw_server(order) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        response = await post(http, gate.url, "tools/call", CALL)
        assert response.content == RESULT
        assert not response.headers.keys() & (ORDERS.keys() - {"server"})
        assert response.headers.get("server") != "them"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["mcp-anything"] == "passes"


@pytest.mark.parametrize(
    ("name", "value", "passes"),
    [
        (b"retry-after", b"120", True),
        (b"retry-after", b"1e9", False),
        (b"retry-after", b"Fri, 31 Dec 9999 23:59:59 GMT", False),
        (b"cache-control", b"no-cache, no-transform", True),
        (b"cache-control", b"No-Store", True),
        (b"cache-control", b"no-store, public", False),
        (b"x-accel-buffering", b"no", True),
        (b"allow", b"POST", True),
        (b"mcp-session-id", b"1", True),
    ],
)
def test_of_an_answer_passes_what_says_no_more_than_it_may(name: bytes, value: bytes, passes: bool) -> None:
    assert for_caller([(name, value)]) == [NOSNIFF, *([(name, value)] if passes else [])]


PAGE = b"<script>alert(document.domain)</script>"


@pytest.mark.parametrize(
    "media", ["text/html", "image/svg+xml", "application/xml", "text/plain", "text/javascript", ""]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_case_38_no_page_of_a_server_is_shown_at_the_gateways_origin(
    media: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def say(caller: Caller) -> None:
        await caller.send(page(b"200 OK", media))

    async with raw_server(say) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        body = message("tools/call", CALL, era="legacy")
        sent: dict[str, Any] = {"json": body} if method == "POST" else {}
        response = await http.request(method, gate.url, headers=headers_for(body, era="legacy"), **sent)
        assert response.status_code == 502
        assert b"script" not in response.content
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "what is neither JSON nor an event stream" in caplog.text


@pytest.mark.parametrize(("status", "known"), [(b"404 Not Found", 404), (b"405 Method Not Allowed", 405)])
async def test_a_page_with_an_error_of_the_server_is_that_error_without_its_page(status: bytes, known: int) -> None:
    async def say(caller: Caller) -> None:
        await caller.send(page(status, "text/html; charset=utf-8", b"allow: POST\r\n"))

    async with raw_server(say) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        response = await http.get(gate.url, headers=headers_for(era="legacy"))
        assert (response.status_code, response.headers["content-type"]) == (known, "application/json")
        assert b"script" not in response.content
        assert response.headers["allow"] == "POST"
        called = await post(http, gate.url, "tools/call", CALL)
        assert called.status_code == known
        assert answer_of(called)["id"] == message("tools/call", CALL)["id"]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (b"404 Not Found", b'{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}'),
        (b"400 Bad Request", b'{"jsonrpc":"2.0","error":{"code":-32000,"message":"Not initialized"},"id":null}'),
    ],
)
async def test_an_error_of_the_official_typescript_sdk_which_names_no_type_is_kept(
    status: bytes, error: bytes, method: str
) -> None:
    """``res.writeHead(404).end(JSON.stringify(...))``, by which clients know that their session has ended."""

    async def say(caller: Caller) -> None:
        await caller.send(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(error), error))

    async with raw_server(say) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        body = message("tools/call", CALL, era="legacy")
        sent: dict[str, Any] = {"json": body} if method == "POST" else {}
        response = await http.request(method, gate.url, headers=headers_for(body, era="legacy"), **sent)
        assert (response.status_code, response.content) == (int(status[:3]), error)
        assert response.headers.get_list("content-type") == ["application/json"]
        assert response.headers["x-content-type-options"] == "nosniff"


async def test_what_expects_no_answer_is_taken_whatever_the_server_says_of_it() -> None:
    """Express answers ``sendStatus(202)`` with the word, as text."""

    async def say(caller: Caller) -> None:
        await caller.send(page(b"202 Accepted", "text/html"))

    async with raw_server(say) as server, gateway(server.origin) as gate, httpx2.AsyncClient() as http:
        note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        response = await http.post(gate.url, json=note, headers=headers_for(era="legacy"))
        assert (response.status_code, response.content) == (202, b"")
        assert "content-type" not in response.headers
        ended = await http.delete(gate.url, headers=headers_for(era="legacy"))
        assert (ended.status_code, ended.content) == (202, b"")


def page(status: bytes, media: str, headers: bytes = b"") -> bytes:
    line = f"content-type: {media}\r\n".encode() if media else b""
    return b"HTTP/1.1 " + status + b"\r\n" + line + headers + b"content-length: %d\r\n\r\n" % len(PAGE) + PAGE


async def test_every_answer_of_the_gateways_own_is_what_it_says_it_is(tmp_path: Path) -> None:
    async with raw_server(answer) as server, whole_gateway(tmp_path, {"files": f"{server.origin}/mcp"}) as running:
        document = "/.well-known/oauth-protected-resource/files/mcp"
        for path in ("/healthz", "/readyz", "/nowhere", "/files/mcp", document):
            reply = await running.http.get(running.origin + path)
            assert reply.headers.get_list("x-content-type-options") == ["nosniff"], path
