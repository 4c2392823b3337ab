"""revision.py: the era of a message, and that headers which differ from the body are refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.errors import HEADER_MISMATCH, INVALID_PARAMS, INVALID_REQUEST, UNSUPPORTED_PROTOCOL_VERSION
from mcp_middleware.message import Batch, Notification, parse
from mcp_middleware.revision import Standing, check_headers, decode_header_value
from mcp_middleware.types import Rejection
from tests.support import MODERN_META

from .asgi import rpc
from .test_message import accepted, call

MODERN = {b"mcp-protocol-version": b"2026-07-28", b"mcp-method": b"tools/call", b"mcp-name": b"echo"}


def headers_refused(
    body: dict[str, Any] | list[Any], headers: dict[bytes, bytes], repeated: tuple[bytes, ...] = ()
) -> Rejection:
    message = parse(json.dumps(body).encode())
    assert not isinstance(message, Rejection), message
    rejection = check_headers(message, headers, repeated)
    assert isinstance(rejection, Rejection), rejection
    assert rejection.status == 400
    return rejection


def test_the_era_of_a_message() -> None:
    modern = accepted(call(_meta=MODERN_META))
    assert check_headers(modern, MODERN) == Standing("modern", "2026-07-28")
    legacy = accepted(call())
    assert check_headers(legacy, {}) == Standing("legacy", None)
    for version in ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"):
        assert check_headers(legacy, {b"mcp-protocol-version": version.encode()}) == Standing("legacy", version)
    initialize = accepted(rpc("initialize", {"protocolVersion": "2099-01-01"}))
    assert check_headers(initialize, {}) == Standing("legacy", None)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({b"mcp-method": b"tools/list"}, HEADER_MISMATCH),
        ({b"mcp-method": b"Tools/call"}, HEADER_MISMATCH),
        ({b"mcp-method": None}, HEADER_MISMATCH),
        ({b"mcp-name": b"admin"}, HEADER_MISMATCH),
        ({b"mcp-name": b"ECHO"}, HEADER_MISMATCH),
        ({b"mcp-name": None}, HEADER_MISMATCH),
        ({b"mcp-name": b"=?base64?!!!?="}, HEADER_MISMATCH),
        ({b"mcp-protocol-version": None}, HEADER_MISMATCH),
        ({b"mcp-protocol-version": b"2025-11-25"}, HEADER_MISMATCH),
        ({b"mcp-protocol-version": b"2099-01-01"}, HEADER_MISMATCH),
    ],
)
def test_case_13_headers_that_differ_from_the_body(changed: dict[bytes, bytes | None], code: int) -> None:
    headers = {name: value for name, value in {**MODERN, **changed}.items() if value is not None}
    rejection = headers_refused(call(_meta=MODERN_META), headers)
    assert (rejection.code, rejection.request_id) == (code, 1)


@pytest.mark.parametrize("name", [b"mcp-protocol-version", b"mcp-method", b"mcp-name", b"mcp-session-id"])
def test_case_13_a_repeated_routing_header_is_refused(name: bytes) -> None:
    """In both eras."""
    assert headers_refused(call(_meta=MODERN_META), MODERN, (name,)).code == HEADER_MISMATCH
    assert headers_refused(call(), {}, (name,)).code == HEADER_MISMATCH


def test_case_13_a_legacy_request_with_mirrored_headers_that_lie_is_refused() -> None:
    """2026-07-28, transports."""
    assert headers_refused(call(), {b"mcp-name": b"other"}).code == HEADER_MISMATCH
    assert headers_refused(call(), {b"mcp-method": b"ping"}).code == HEADER_MISMATCH


def test_a8_the_task_id_is_mirrored() -> None:
    headers = {**MODERN, b"mcp-method": b"tasks/get"}
    body = rpc("tasks/get", {"taskId": "t1", "_meta": MODERN_META})
    assert headers_refused(body, {**headers, b"mcp-name": b"t2"}).code == HEADER_MISMATCH
    assert check_headers(accepted(body), {**headers, b"mcp-name": b"t1"}) == Standing("modern", "2026-07-28")


def test_a7_a_notification_needs_no_method_header() -> None:
    message = parse(b'{"jsonrpc":"2.0","method":"notifications/cancelled"}')
    assert isinstance(message, Notification)
    headers = {b"mcp-protocol-version": b"2026-07-28"}
    assert check_headers(message, headers) == Standing("modern", "2026-07-28")
    lying = check_headers(message, {**headers, b"mcp-method": b"ping"})
    assert isinstance(lying, Rejection)


def test_versions_that_nobody_knows() -> None:
    meta = {**MODERN_META, "io.modelcontextprotocol/protocolVersion": "2099-01-01"}
    rejection = headers_refused(call(_meta=meta), {**MODERN, b"mcp-protocol-version": b"2099-01-01"})
    assert rejection.code == UNSUPPORTED_PROTOCOL_VERSION
    assert rejection.data == {"supported": ["2026-07-28"], "requested": "2099-01-01"}
    missing = headers_refused(call(), MODERN)
    assert missing.code == INVALID_PARAMS
    assert "io.modelcontextprotocol/protocolVersion" in missing.message
    assert headers_refused(call(), {b"mcp-protocol-version": b"garbage"}).code == INVALID_PARAMS


def test_case_12_batches_exist_in_one_revision() -> None:
    batch = parse(json.dumps([call()]).encode())
    assert isinstance(batch, Batch)
    assert check_headers(batch, {}) == Standing("legacy", None)
    assert check_headers(batch, {b"mcp-protocol-version": b"2025-03-26"}) == Standing("legacy", "2025-03-26")
    for version in (b"2024-11-05", b"2025-06-18", b"2025-11-25", b"2026-07-28"):
        assert headers_refused([call()], {b"mcp-protocol-version": version}).code == INVALID_REQUEST


def test_a3_encoded_header_values() -> None:
    assert decode_header_value(b"plain") == "plain"
    assert decode_header_value(b"=?base64?Y2Fmw6k=?=") == "café"
    assert decode_header_value(b"=?BASE64?Y2Fmw6k=?=") == "=?BASE64?Y2Fmw6k=?="
    for malformed in (b"=?base64?Y2Fmw6k?=", b"=?base64?/w==?=", b"=?base64?Y2Fmw6l=?= ", b"=?base64?Zh==?="):
        assert decode_header_value(malformed) in (None, malformed.decode())
    assert decode_header_value(b"=?base64?Zh==?=") is None
    name = "café"
    message = accepted(call(name, _meta=MODERN_META))
    assert check_headers(message, {**MODERN, b"mcp-name": b"=?base64?Y2Fmw6k=?="}) == Standing("modern", "2026-07-28")


@pytest.mark.parametrize("name", ["é", "Ã©"])
@pytest.mark.parametrize("coding", ["latin-1", "utf-8"])
def test_case_13_a_raw_header_beyond_ascii_is_refused(name: str, coding: str) -> None:
    """Readers differ in what such bytes are: of c3 a9 one makes a character, another two."""
    message = call(name, _meta=MODERN_META)
    assert headers_refused(message, {**MODERN, b"mcp-name": name.encode(coding)}).code == HEADER_MISMATCH
    assert headers_refused(call(name), {b"mcp-name": name.encode(coding)}).code == HEADER_MISMATCH
    method = rpc(name, {"_meta": MODERN_META})
    assert headers_refused(method, {**MODERN, b"mcp-method": name.encode(coding)}).code == HEADER_MISMATCH


@given(st.binary(max_size=200))
def test_decoding_never_raises(value: bytes) -> None:
    decode_header_value(value)
    decode_header_value(b"=?base64?" + value + b"?=")
