"""When a token is asked for, renewed, and not used any more."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.credentials import CredentialRefusedError, CredentialUnavailableError, keeping
from mcp_middleware.credentials.keeping import keep
from mcp_middleware.oauth import http
from mcp_middleware.oauth.tokens import IssuedToken
from mcp_middleware.testing import FakeClock
from tests.credentials.grants import NOBODY, Made, caller, renewed
from tests.credentials.issuer import TokenIssuer

seconds = st.floats(0.001, 1e6)


@given(st.floats(0, 2e9), seconds, st.none() | seconds)
def test_a_token_is_never_used_beyond_its_end_or_the_callers(now: float, life: float, left: float | None) -> None:
    until = math.inf if left is None else now + left
    kept = keep(IssuedToken("x", now + life), now=now, until=until)
    assert now <= kept.ends_at <= min(now + life, until)
    assert kept.ends_at >= min(now + life, until) - 5.0
    if kept.renew_at < math.inf:
        assert now <= kept.renew_at <= kept.ends_at
    assert (kept.renew_at == math.inf) == (now + life >= until)
    assert kept.headers == ((b"authorization", b"Bearer x"),)
    assert "Bearer" not in repr(kept)


async def test_a_token_is_renewed_ahead_of_its_end_and_nobody_waits(
    issuer: TokenIssuer, make: Made, clock: FakeClock
) -> None:
    credential = make.own()
    assert await credential.token() == "token-1"
    clock.advance(74)
    assert await credential.token() == "token-1"
    assert issuer.issued == 1
    clock.advance(1)
    issuer.open.clear()
    assert [await credential.token() for _ in range(3)] == ["token-1"] * 3
    issuer.open.set()
    await renewed(credential)
    assert await credential.token() == "token-2"
    assert issuer.issued == 2


async def test_a_token_is_not_sent_in_its_last_seconds(issuer: TokenIssuer, make: Made, clock: FakeClock) -> None:
    credential = make.own()
    await credential.token()
    clock.advance(95)
    assert await credential.token() == "token-2"


async def test_a_token_that_ends_on_its_way_is_not_asked_for_with_each_request(
    issuer: TokenIssuer, make: Made, clock: FakeClock
) -> None:
    issuer.open.clear()
    credential = make.own()
    waiting = asyncio.create_task(credential.token())
    await issuer.waiting.wait()
    clock.advance(95)
    issuer.open.set()
    with pytest.raises(CredentialUnavailableError):
        await waiting
    with pytest.raises(CredentialUnavailableError):
        await credential.token()
    assert issuer.asked["token"] == 1


async def test_an_exchanged_token_never_outlives_the_callers(issuer: TokenIssuer, make: Made, clock: FakeClock) -> None:
    credential = make.exchange()
    alice = caller(ends=clock.now + 50)
    assert await credential.token(alice) == "token-1"
    clock.advance(44)
    assert await credential.token(alice) == "token-1"
    assert not credential._keeper._fetches  # another would not live longer
    clock.advance(6)
    with pytest.raises(CredentialRefusedError, match="has ended"):
        await credential.token(alice)
    assert issuer.issued == 1


async def test_however_many_wait_one_token_is_asked_for(issuer: TokenIssuer, make: Made) -> None:
    issuer.open.clear()
    credential = make.exchange()
    waiting = [asyncio.create_task(credential.token(caller())) for _ in range(50)]
    await issuer.waiting.wait()
    waiting[0].cancel()
    issuer.open.set()
    assert set(await asyncio.gather(*waiting[1:])) == {"token-1"}
    assert issuer.asked["token"] == 1


async def test_a_crowd_at_the_start_is_no_outage(
    issuer: TokenIssuer, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.exchanges_anything = True
    issuer.open.clear()
    credential = make.exchange()
    crowd = [asyncio.create_task(credential.token(caller(f"c{number}"))) for number in range(50)]
    await issuer.waiting.wait()
    monkeypatch.setattr(http, "_QUEUE_TIMEOUT", 0.01)
    with pytest.raises(CredentialUnavailableError):
        await credential.token(caller("late"))
    issuer.open.set()
    assert len(set(await asyncio.gather(*crowd))) == 50
    assert await credential.token(caller("later")) == "token-51"


async def test_one_more_try_after_a_401_and_no_more(issuer: TokenIssuer, make: Made, clock: FakeClock) -> None:
    """A server that rejects every token must not have one fetched for each request."""
    credential = make.own()
    first = await credential.headers(NOBODY)
    assert not credential.rejected(NOBODY, first)  # it is new
    clock.advance(10)
    assert credential.rejected(NOBODY, first)
    second = await credential.headers(NOBODY)
    assert second == ((b"authorization", b"Bearer token-2"),)
    assert credential.rejected(NOBODY, first)  # others were first: there is a newer one
    assert not credential.rejected(NOBODY, second)
    assert await credential.headers(NOBODY) == second
    assert issuer.issued == 2


async def test_nobody_waits_long_for_a_better_token(
    issuer: TokenIssuer, make: Made, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_PATIENCE", 0.01)
    credential = make.own()
    first = await credential.headers(NOBODY)
    clock.advance(10)
    issuer.open.clear()
    assert credential.rejected(NOBODY, first)
    assert await credential.headers(NOBODY) == first
    issuer.open.set()
    await renewed(credential)
    assert await credential.headers(NOBODY) == ((b"authorization", b"Bearer token-2"),)


async def test_a_clock_that_is_set_back_prolongs_no_pause(issuer: TokenIssuer, make: Made, clock: FakeClock) -> None:
    credential = make.exchange()
    with pytest.raises(CredentialRefusedError):
        await credential.token(caller("eve"))
    first = await credential.headers(caller())
    issuer.refusal = (503, {})
    with pytest.raises(CredentialUnavailableError):
        await credential.token(caller("bob"))
    issuer.refusal = None
    issuer.issued_to_others.add("eves-token")
    clock.advance(-900)
    assert await credential.token(caller("bob")) == "token-2"
    assert await credential.token(caller("eve")) == "token-3"
    assert credential.rejected(caller(), first)


async def test_what_is_kept_is_bounded(issuer: TokenIssuer, make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 26."""
    monkeypatch.setattr(keeping, "_MAX_REFUSALS", 2)
    credential = make.exchange(cache_size=2)
    issuer.exchanges_anything = True
    for name in ("a", "b", "c", "a"):
        await credential.token(caller(name))
    assert issuer.issued == 4
    assert len(credential._keeper._tokens) == 2
    many = [credential.token(caller(str(number))) for number in range(20)]
    assert len(set(await asyncio.gather(*many))) == 20  # each gets its own, however few are kept
    issuer.exchanges_anything = False
    for number in range(3):
        with pytest.raises(CredentialRefusedError):
            await credential.token(caller(f"x{number}"))
    assert len(credential._keeper._refusals) == 2


async def test_closing_ends_what_runs_and_leaves_it_usable(issuer: TokenIssuer, make: Made) -> None:
    issuer.open.clear()
    credential = make.own()
    waiting = asyncio.create_task(credential.token())
    await issuer.waiting.wait()
    await credential.aclose()
    with pytest.raises(CredentialUnavailableError):
        await waiting
    issuer.open.set()
    assert (await credential.token()).startswith("token-")
