"""Whatever is refused: the server sees nothing, one record has the reason, and the next good request is served."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcp_middleware import (
    AuditLogMiddleware,
    OAuthResourceServerMiddleware,
    Policy,
    RateLimitMiddleware,
    SessionAffinityMiddleware,
    SQLiteSink,
    ToolAuthorizationMiddleware,
    TraceContextMiddleware,
)
from mcp_middleware.audit.query import AuditTrail
from tests.core.asgi import Call, EchoServer, modern_headers, rpc
from tests.support import MODERN_META

POLICY = """
default: deny
rules:
  - {agents: ["ci-*"], tools: ["echo"]}
  - {agents: ["ci-*"], tools: ["write"], scopes: ["files:write"]}
"""


class _Token:
    """The fields of the MCP SDK's ``AccessToken``."""

    expires_at = None
    resource = None
    subject = "bob"

    def __init__(self, token: str, *scopes: str) -> None:
        self.token = token
        self.client_id = "ci-1"
        self.scopes = list(scopes)
        self.claims = {"iss": "https://login.example.com"}


class _Verifier:
    async def verify_token(self, token: str) -> _Token | None:
        return {"good": _Token("good", "mcp:use"), "bare": _Token("bare")}.get(token)


class _Stack:
    def __init__(self, directory: Path) -> None:
        self.server = EchoServer()
        self.sink = SQLiteSink(directory / "audit.db")
        self._path = directory / "audit.db"
        app: Any = SessionAffinityMiddleware(self.server, keys=[secrets.token_urlsafe(32)])
        app = ToolAuthorizationMiddleware(app, policy=Policy.from_text(POLICY))
        app = RateLimitMiddleware(app, requests="100000/minute", tokens="100000000/minute")
        app = OAuthResourceServerMiddleware(
            app,
            resource="https://files.example.com/mcp",
            verifier=_Verifier(),
            authorization_servers=["https://login.example.com"],
            scopes=["mcp:use"],
        )
        self.app = AuditLogMiddleware(TraceContextMiddleware(app), sink=self.sink)

    async def send(
        self, body: Any, headers: list[tuple[str, str]], *, token: str | None = "good", **options: Any
    ) -> Call:
        sent = list(headers)
        if token is not None:
            sent.append(("authorization", f"Bearer {token}"))
        return await Call(self.app, body, headers=sent, **options).run()

    def records(self) -> list[tuple[str, str | None]]:
        self.sink.flush()
        return [(record.decision, record.reason) for record in AuditTrail(self._path).read()]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[_Stack]:
    stack = _Stack(tmp_path)
    yield stack
    stack.sink.close()


def _call(**params: Any) -> dict[str, Any]:
    return rpc("tools/call", {"name": "echo", "arguments": {}, **params})


def _modern(**params: Any) -> dict[str, Any]:
    return _call(_meta=MODERN_META, **params)


def _headers(**changed: str | None) -> list[tuple[str, str]]:
    headers = modern_headers("tools/call", "echo") | {key.replace("_", "-"): value for key, value in changed.items()}
    return [(name, value) for name, value in headers.items() if value is not None]


_TEXT = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"%s}}'
_NO_IDS: list[Any] = [None, True, 1.5, [], {}]
_ROUTING = ("mcp-name", "mcp-method", "mcp-protocol-version", "mcp-session-id")

# Name: (body, headers, options of ``send``, status, JSON-RPC code, decision, reason).
_Case = tuple[Any, list[tuple[str, str]], dict[str, Any], int, int, str, str]


def _malformed(code: int, reason: str, *bodies: Any) -> Iterator[_Case]:
    for body in bodies:
        yield body, [], {}, 400, code, "rejected", reason


def _mismatched(*headers: list[tuple[str, str]], body: Any = None) -> Iterator[_Case]:
    for lines in headers:
        yield body or _modern(), lines, {}, 400, -32020, "rejected", "header_mismatch"


_CASES: list[_Case] = [
    *_malformed(
        -32700,
        "parse_error",
        b"",
        b" ",
        json.dumps(_call()).encode()[:-1],
        json.dumps(_call()).encode() * 2,
        b"\xef\xbb\xbf" + json.dumps(_call()).encode(),
        json.dumps(_call()).encode("utf-16"),
        _TEXT % b',"arguments":{"x":NaN}',
        _TEXT % b',"arguments":{"x":"\xff"}',
        _TEXT % b',"arguments":{"x":"\\ud800"}',
        _TEXT % b',"arguments":{"x":01}',
        _TEXT % (b',"arguments":{"x":' + b"[" * 2000 + b"]" * 2000 + b"}"),
    ),
    *_malformed(
        -32600,
        "invalid_message",
        b"null",
        b"1",
        b"[]",
        _TEXT % b',"Name":"admin"',
        rpc("tools/call", {"name": "echo"}, None),
        *({**_call(), "id": wrong} for wrong in _NO_IDS),
        {**_call(), "jsonrpc": "1.0"},
        {**_call(), "result": {}},
        {**_call(), "params": [1]},
        [rpc("initialize", {})],
        [_call()] * 101,
        [[_call()]],
    ),
    *_malformed(-32602, "invalid_message", _call(name=1), _call(name=None), _call(_meta=[])),
    *_mismatched(
        [],
        _headers(mcp_method=None),
        _headers(mcp_name=None),
        _headers(mcp_name="Echo"),
        _headers(mcp_name="=?base64?ZWNobw?="),
        _headers(mcp_name="=?BASE64?ZWNobw==?="),
        _headers(mcp_method="tools/List"),
        _headers(mcp_protocol_version="2025-11-25"),
        *([*_headers(**{name.replace("-", "_"): "x"}), (name, "x")] for name in _ROUTING),
    ),
    *_mismatched([("mcp-name", "admin")], body=_call()),
    *(
        ([_call()], [("mcp-protocol-version", version)], {}, 400, -32600, "rejected", "invalid_message")
        for version in ("2024-11-05", "2025-06-18", "2025-11-25", "2026-07-28", "nonsense")
    ),
    (_call(), [("content-type", "text/plain")], {}, 415, -32600, "rejected", "content_type"),
    (_call(), [("content-encoding", "gzip")], {}, 415, -32600, "rejected", "encoding"),
    (b"x", [("content-length", "99999999")], {}, 413, -32600, "rejected", "body_too_large"),
    (b"", [], {"chunks": [b" " * 2**20] * 5}, 413, -32600, "rejected", "body_too_large"),
    *(
        (body, [("mcp-session-id", session)], {"method": method}, 404, -32600, "rejected", "session_unknown")
        for session in ("", "x", "x" * 5000, "\xe9")
        for method, body in (("POST", _call()), ("GET", b""), ("DELETE", b""))
    ),
    (_call(name="hidden"), [], {}, 200, -32602, "denied", "not_allowed"),
    (rpc("evil/method"), [], {}, 200, -32601, "denied", "not_allowed"),
    (_call(name="write"), [], {}, 403, 401001, "denied", "insufficient_scope"),
    *(
        (body, [], {"token": token, "method": method}, status, 401001, decision, reason)
        for token, status, decision, reason in (
            (None, 401, "unauthenticated", "no_token"),
            ("junk", 401, "unauthenticated", "invalid_token"),
            ("x" * 20_000, 401, "unauthenticated", "invalid_token"),
            ("", 400, "unauthenticated", "malformed_authorization"),
            ("bare", 403, "denied", "insufficient_scope"),
        )
        for method, body in (("POST", _call()), ("GET", b""), ("DELETE", b""))
    ),
    (_call(), [("origin", "https://evil.example")], {}, 403, -32600, "denied", "bad_origin"),
]


async def test_every_refusal_reaches_nobody_is_recorded_once_and_harms_no_other(stack: _Stack) -> None:
    """Cases 1, 2, 5, 9 to 15, 19, 20 and 37, as the head of the list of cases demands of every refusal."""
    for index, (body, headers, options, status, code, decision, reason) in enumerate(_CASES):
        known, seen = len(stack.records()), len(stack.server.scopes)
        refused = await stack.send(body, headers, **options)
        assert (index, refused.status, refused.json["error"]["code"]) == (index, status, code)
        assert (index, stack.records()[known:]) == (index, [(decision, reason)])
        assert (index, len(stack.server.scopes)) == (index, seen)
        assert (index, (await stack.send(_call(), [])).status) == (index, 200)


@pytest.mark.parametrize("request_id", [0, -1, 2**63, -(2**63) - 1, 2**64, 10**300, "", "\x00", "é\u2028", "x" * 5000])
async def test_any_valid_id_comes_back_as_it_was(stack: _Stack, request_id: int | str) -> None:
    for name, status in (("echo", 200), ("hidden", 200), ("write", 403)):
        answer = await stack.send(rpc("tools/call", {"name": name}, request_id), [])
        assert (answer.status, answer.json["id"]) == (status, request_id)
    answer = await stack.send(rpc("tools/call", {}, request_id), [])
    assert (answer.status, answer.json["id"]) == (400, request_id)
