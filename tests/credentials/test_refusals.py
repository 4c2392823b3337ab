"""What an authorization server refuses: whose fault it is, and for whom it is remembered."""

import asyncio
import logging

import pytest

from mcp_middleware.credentials import CredentialRefusedError
from mcp_middleware.testing import FakeClock
from tests.credentials.grants import Made, caller, renewed
from tests.credentials.issuer import TokenIssuer


async def test_a_refusal_is_remembered_for_whom_it_was_said(issuer: TokenIssuer, make: Made, clock: FakeClock) -> None:
    credential = make.exchange()
    stranger = caller("eve")
    for _ in range(3):
        with pytest.raises(CredentialRefusedError, match="invalid_grant: not one of ours") as caught:
            await credential.token(stranger)
        assert caught.value.caller
    assert issuer.asked["token"] == 1
    assert await credential.token(caller()) == "token-1"
    issuer.issued_to_others.add("eves-token")
    clock.advance(30)
    assert await credential.token(stranger) == "token-2"


@pytest.mark.parametrize("error", ["invalid_client", "unauthorized_client", "invalid_target"])
async def test_a_refusal_of_us_is_not_the_callers_fault(issuer: TokenIssuer, make: Made, error: str) -> None:
    issuer.refusal = (400, {"error": error})
    for credential in (make.own(), make.exchange()):
        with pytest.raises(CredentialRefusedError, match=error) as caught:
            await credential.headers(caller())
        assert not caught.value.caller


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, "invalid_client"), (400, "unauthorized_client"), (400, "unsupported_grant_type")],
)
async def test_a_refusal_of_us_is_remembered_for_all_and_one_tries_whether_it_stands(
    issuer: TokenIssuer, make: Made, clock: FakeClock, status: int, error: str
) -> None:
    """A wrong secret that is sent for every caller locks the client at some servers."""
    credential = make.exchange()
    assert await credential.token(caller("bob")) == "token-1"
    issuer.refusal = (status, {"error": error})
    for number in range(20):
        with pytest.raises(CredentialRefusedError, match=error) as caught:
            await credential.headers(caller(f"c{number}"))
        assert not caught.value.caller
    assert issuer.asked["token"] == 2
    assert await credential.token(caller("bob")) == "token-1", "what is there serves on"
    clock.advance(30)
    issuer.waiting.clear()
    issuer.open.clear()
    trial = asyncio.create_task(credential.token(caller()))
    await issuer.waiting.wait()
    with pytest.raises(CredentialRefusedError, match=error):
        await credential.token(caller("c1"))
    issuer.refusal = None
    issuer.open.set()
    assert await trial == "token-2"
    with pytest.raises(CredentialRefusedError, match="invalid_grant"):
        await credential.token(caller("c1"))
    assert issuer.asked["token"] == 4


async def test_a_target_that_is_refused_may_be_so_for_one_caller(issuer: TokenIssuer, make: Made) -> None:
    issuer.refusal = (400, {"error": "invalid_target"})
    credential = make.exchange()
    for _ in range(2):
        with pytest.raises(CredentialRefusedError, match="invalid_target"):
            await credential.token(caller("bob"))
    assert issuer.asked["token"] == 1
    issuer.refusal = None
    assert await credential.token(caller()) == "token-1"


async def test_a_caller_whose_token_has_none_of_the_scopes_is_refused(issuer: TokenIssuer, make: Made) -> None:
    issuer.refusal = (400, {"error": "invalid_scope"})
    with pytest.raises(CredentialRefusedError) as caught:
        await make.exchange().headers(caller())
    assert caught.value.caller


async def test_case_34_a_server_that_repeats_the_callers_token_puts_it_into_no_log(
    issuer: TokenIssuer, make: Made, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    issuer.refusal = (400, {"error": "invalid_grant", "error_description": "Invalid access token: alices-token"})
    with pytest.raises(CredentialRefusedError) as caught:
        await make.exchange().headers(caller())
    assert "invalid_grant" in str(caught.value)
    assert "alices-token" not in str(caught.value) + caplog.text


async def test_a_refusal_of_our_own_token_is_never_the_callers_fault(issuer: TokenIssuer, make: Made) -> None:
    issuer.refusal = (400, {"error": "invalid_grant"})
    with pytest.raises(CredentialRefusedError) as caught:
        await make.own().headers(caller())
    assert not caught.value.caller


async def test_what_the_caller_must_do_first_is_about_the_caller(issuer: TokenIssuer, make: Made) -> None:
    issuer.refusal = (400, {"error": "interaction_required"})
    credential = make.exchange()
    with pytest.raises(CredentialRefusedError, match="interaction_required") as caught:
        await credential.headers(caller())
    assert caught.value.caller
    await credential.start()


async def test_a_refused_renewal_leaves_the_token_that_is_there(
    issuer: TokenIssuer, make: Made, clock: FakeClock
) -> None:
    credential = make.own()
    await credential.token()
    issuer.refusal = (401, {"error": "invalid_client"})
    clock.advance(80)
    await credential.token()
    await renewed(credential)
    assert await credential.token() == "token-1"
    clock.advance(20)
    with pytest.raises(CredentialRefusedError):
        await credential.token()
