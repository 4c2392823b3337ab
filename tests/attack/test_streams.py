"""Filtered lists, however a server cuts, ends and dresses what it sends."""

import gzip
import json
from typing import Any

import pytest

from mcp_middleware import Policy, ToolAuthorizationMiddleware
from tests.core.asgi import Call, modern_headers, rpc
from tests.support import MODERN_META

POLICY = Policy.from_text('default: deny\nrules:\n  - {agents: ["*"], tools: ["echo"]}\n')
LIST = {
    "jsonrpc": "2.0",
    "id": 1,
    "result": {"tools": [{"name": "echo", "description": "é\u2028x"}, {"name": "hidden"}], "total": 2},
}
NOTE = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "é"}}
TEXT = json.dumps(LIST)


def _server(data: bytes, step: int, media: bytes) -> Any:
    async def server(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", media)]})
        for start in range(0, len(data), step):
            await send({"type": "http.response.body", "body": data[start : start + step], "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return server


async def _list(data: bytes, step: int, media: bytes, *, modern: bool = False) -> Call:
    app = ToolAuthorizationMiddleware(_server(data, step, media), policy=POLICY)
    params = {"_meta": MODERN_META} if modern else {}
    headers = modern_headers("tools/list") if modern else {}
    return await Call(app, rpc("tools/list", params), headers=headers).run()


def _events(data: bytes) -> list[tuple[str, str | None, Any]]:
    """Type, last id and data of every event, read as WHATWG HTML says, by other code than ours."""
    text = data.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    events: list[tuple[str, str | None, Any]] = []
    lines: list[str] = []
    kind, last = "message", None
    for line in text.split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if lines:
                joined = "\n".join(lines)
                events.append((kind, last, json.loads(joined) if joined else None))
            lines, kind = [], "message"
        elif name == "data":
            lines.append(value)
        elif name == "event":
            kind = value
        elif name == "id":
            last = value
    return events


def _bodies(end: str) -> list[str]:
    def event(message: Any, extra: str = "") -> str:
        return f"event: message{end}id: 7{end}{extra}data: {json.dumps(message)}{end}{end}"

    pretty = json.dumps(LIST, indent=1, ensure_ascii=False).split("\n")
    return [
        f": ping{end}{end}id: 0{end}data:{end}{end}{event(NOTE)}: c{end}{end}{event(LIST, f'retry: 5{end}')}",
        "\ufeff" + event(LIST),
        end.join(f"data: {line}" for line in pretty) + end + end,
        f":x{end}{event(LIST)}",
        event(NOTE) * 3 + event(LIST),
        f"data{end}{end}{event(LIST)}data: never ended",
        f"data:{TEXT}{end}event:message{end}{end}",
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
async def test_case_16_a_stream_cut_anywhere_is_filtered_and_else_unchanged(end: str) -> None:
    """Comments, ids, priming events and notifications pass; the list alone is rewritten."""
    shown = {"tools": LIST["result"]["tools"][:1]}  # type: ignore[index]
    for body in _bodies(end):
        data = body.encode()
        wanted = [
            (kind, last, {**message, "result": shown} if message and "result" in message else message)
            for kind, last, message in _events(data)
        ]
        for step in (1, 2, 3, 5, 7, 1000):
            call = await _list(data, step, b"text/event-stream")
            assert _events(call.body) == wanted


@pytest.mark.parametrize("modern", [False, True])
@pytest.mark.parametrize(
    "media", [b"application/json", b"Application/JSON; charset=utf-8", b"text/plain", b"", b"text/event-stream"]
)
async def test_case_16_a_hidden_name_leaves_in_no_dress(media: bytes, modern: bool) -> None:
    dresses = [
        TEXT.encode(),
        b"  \n" + TEXT.encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
        f"[{TEXT}]".encode(),
        TEXT.encode("utf-16"),
        gzip.compress(TEXT.encode()),
        *(TEXT.replace('"id": 1', f'"id": {other}').encode() for other in ("1.0", '"1"', "99", "null", "{}")),
        *(
            TEXT.replace('"id": 1', f'"id": 1, {member}').encode()
            for member in ('"method":"x"', '"method":null', '"error":null', '"error":"x"', '"hidden":["hidden"]')
        ),
        (TEXT[:-1] + ',"result":{"tools":[{"name":"hidden"}]}}').encode(),
        (TEXT[:-1] + ',"Result":{"tools":[{"name":"hidden"}]}}').encode(),
    ]
    for dress in dresses:
        data = b"data: " + dress + b"\n\n" if media == b"text/event-stream" else dress
        body = (await _list(data, 11, media, modern=modern)).body
        assert b"hidden" not in body
        assert "hidden".encode("utf-16-le") not in body
        assert b"total" not in body
