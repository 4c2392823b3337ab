"""An authorization server that does not answer, or answers what is none."""

import asyncio
from typing import Any

import pytest

from mcp_middleware.credentials import CredentialRefusedError, CredentialUnavailableError, keeping
from mcp_middleware.oauth import OAuthHTTPClient, http
from mcp_middleware.testing import FakeClock
from tests.credentials.grants import NOBODY, Made, caller, renewed
from tests.credentials.issuer import TokenIssuer


async def test_case_42_nobody_waits_for_a_turn_at_a_server_that_does_not_answer(
    issuer: TokenIssuer, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found out by those who have one: the crowd behind them would learn it turn by turn."""
    monkeypatch.setattr(http, "_TIMEOUT", 0.3)
    monkeypatch.setattr(keeping, "_PATIENCE", 0.01)
    issuer.exchanges_anything = True
    credential = make.exchange()
    assert await credential.token(caller()) == "token-1"
    issuer.open.clear()
    crowd = [credential.token(caller(f"c{number}")) for number in range(3 * http._MAX_CONNECTIONS)]
    outcomes = await asyncio.gather(*crowd, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {CredentialUnavailableError}
    assert issuer.asked["token"] < 3 * http._MAX_CONNECTIONS


@pytest.mark.parametrize(
    ("status", "document"),
    [(503, {}), (429, {"error": "slow_down"}), (502, {"error": "invalid_client"}), (302, {})],
)
async def test_a_server_out_of_order_is_left_alone_for_a_while(
    issuer: TokenIssuer, make: Made, clock: FakeClock, status: int, document: dict[str, Any]
) -> None:
    issuer.refusal = (status, document)
    credential = make.exchange()
    for one in (caller(), caller(), caller("bob")):
        with pytest.raises(CredentialUnavailableError) as caught:
            await credential.headers(one)
        assert caught.value.retry_after == 10
    assert issuer.asked["token"] == 1
    issuer.refusal = None
    clock.advance(10)
    assert await credential.token(caller("bob")) == "token-1"


async def test_one_tries_whether_a_silent_server_is_back_and_nobody_waits_long(
    issuer: TokenIssuer, make: Made, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 42: black-holed."""
    monkeypatch.setattr(keeping, "_PATIENCE", 0.01)
    issuer.refusal = (503, {})
    credential = make.exchange()
    with pytest.raises(CredentialUnavailableError):
        await credential.token(caller())
    clock.advance(10)
    issuer.refusal = None
    issuer.open.clear()
    for name in ("alice", "bob", "alice"):
        with pytest.raises(CredentialUnavailableError) as caught:
            await credential.token(caller(name))
        assert caught.value.retry_after == 1
    issuer.open.set()
    await renewed(credential)
    assert await credential.token(caller()) == "token-1"
    assert await credential.token(caller("bob")) == "token-2"
    assert issuer.asked["token"] == 3


@pytest.mark.parametrize(
    ("status", "document"),
    [
        (500, {"error": "invalid_client"}),
        (200, {"x": 1}),
        (200, {"groups": "x" * 300_000}),
        (404, {}),
        (400, {}),
        (400, {"error": "x" * 300_000}),
        (403, {"x": 1}),
    ],
    ids=lambda value: None if isinstance(value, int) else ascii(value)[:30],
)
async def test_what_one_token_upsets_keeps_nobody_else_from_theirs(
    issuer: TokenIssuer, make: Made, clock: FakeClock, status: int, document: dict[str, Any]
) -> None:
    issuer.refusal = (status, document)
    credential = make.exchange()
    for _ in range(2):
        with pytest.raises(CredentialUnavailableError) as caught:
            await credential.headers(caller("eve"))
        assert caught.value.retry_after == 10
    assert issuer.asked["token"] == 1
    issuer.refusal = None
    assert await credential.token(caller()) == "token-1"
    clock.advance(10)
    with pytest.raises(CredentialRefusedError):
        await credential.headers(caller("eve"))


async def test_a_token_serves_to_its_end_while_the_server_is_down(
    issuer: TokenIssuer, make: Made, clock: FakeClock
) -> None:
    """Case 42."""
    credential = make.own()
    await credential.token()
    issuer.refusal = (503, {})
    asked = issuer.asked["token"]
    clock.advance(80)
    assert await credential.token() == "token-1"
    await renewed(credential)
    assert [await credential.token() for _ in range(5)] == ["token-1"] * 5
    assert issuer.asked["token"] == asked + 1
    clock.advance(10)
    assert await credential.token() == "token-1"
    await renewed(credential)
    clock.advance(5)
    with pytest.raises(CredentialUnavailableError):
        await credential.token()
    assert issuer.asked["token"] == asked + 2
    issuer.refusal = None
    clock.advance(5)
    assert await credential.token() == "token-2"


async def test_a_rejected_token_is_the_best_there_is_while_the_server_is_down(
    issuer: TokenIssuer, make: Made, clock: FakeClock
) -> None:
    """One caller who has the server answer 401 must not take a good token from all."""
    credential = make.own()
    first = await credential.headers(NOBODY)
    clock.advance(10)
    issuer.refusal = (503, {})
    assert credential.rejected(NOBODY, first)
    assert await credential.headers(NOBODY) == first
    assert not credential.rejected(NOBODY, first)  # nothing better can be had
    assert await credential.headers(NOBODY) == first
    assert issuer.asked["token"] == 2
    issuer.refusal = (401, {"error": "invalid_client"})
    clock.advance(10)
    assert await credential.headers(NOBODY) == first
    assert not credential.rejected(NOBODY, first)
    issuer.refusal = None
    clock.advance(30)
    assert await credential.headers(NOBODY) == ((b"authorization", b"Bearer token-2"),)


async def test_endpoints_that_moved_are_found_again(issuer: TokenIssuer, make: Made, clock: FakeClock) -> None:
    issuer.metadata = {"token_endpoint": f"{issuer.url}/old"}
    credential = make.own()
    with pytest.raises(CredentialUnavailableError):
        await credential.token()
    issuer.metadata = {}
    clock.advance(10)
    with pytest.raises(CredentialUnavailableError):
        await credential.token()
    clock.advance(10)
    assert await credential.token() == "token-1"


async def test_a_fault_of_ours_is_an_outage(make: Made, caplog: pytest.LogCaptureFixture) -> None:
    class BrokenClient(OAuthHTTPClient):
        async def get(self, url: str, *, allow_private: bool = False) -> bytes:
            return b'{"issuer": "%s", "token_endpoint": "https://127.0.0.1/"}' % url.split("/.well")[0].encode()

        async def post(self, *args: Any, **options: Any) -> tuple[int, bytes]:
            raise RuntimeError("unforeseen")

    credential = make.own(http=BrokenClient())
    for _ in range(2):
        with pytest.raises(CredentialUnavailableError):
            await credential.token()
    assert caplog.text.count("RuntimeError: unforeseen") == 1
