"""Floods of tokens that are none, by somebody whom nobody knows: who is known is let in as before."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mcp_middleware.oauth import http
from mcp_middleware.resource_server import (
    ClientSecret,
    Introspection,
    Issuer,
    IssuersVerifier,
    IssuerUnavailableError,
    allowance,
    introspection,
)
from mcp_middleware.testing import FakeClock
from tests.resource_server.issuer import RESOURCE, LoopbackIssuer, SigningKey
from tests.support import serve, until

TOO_MANY = int(introspection._FRUITLESS_BURST) + introspection._WAITING


@asynccontextmanager
async def verified(*, opaque: bool) -> AsyncIterator[tuple[LoopbackIssuer, IssuersVerifier]]:
    """An issuer, and a verifier on a clock that stands still, so that no allowance is filled up again."""
    issuer = LoopbackIssuer()
    async with serve(issuer.app) as issuer.url:
        asked = Introspection(ClientSecret("gateway", "secret"), cache=0.0) if opaque else None
        made = IssuersVerifier(
            resource=RESOURCE, issuers=[Issuer(issuer.issuer, introspection=asked)], monotonic=FakeClock()
        )
        try:
            yield issuer, made
        finally:
            issuer.open.set()
            await made.aclose()


async def test_case_6_a_token_that_was_good_is_asked_about_again_in_the_middle_of_a_flood() -> None:
    async with verified(opaque=True) as (issuer, made):
        good = issuer.opaque()
        assert await made.verify_token(good) is not None
        flood = [made.verify_token(f"junk-{number}") for number in range(TOO_MANY)]
        await asyncio.gather(*flood, return_exceptions=True)
        with pytest.raises(IssuerUnavailableError):
            await made.verify_token("junk")
        assert await made.verify_token(good) is not None
        del issuer.active[good]
        assert await made.verify_token(good) is None, "a revocation is seen in it too"
        assert await made.verify_token(good) is None


async def test_case_6_a_token_that_was_good_does_not_wait_behind_a_flood() -> None:
    async with verified(opaque=True) as (issuer, made):
        good = issuer.opaque()
        assert await made.verify_token(good) is not None
        issuer.open.clear()
        flood = [asyncio.create_task(made.verify_token(f"junk-{number}")) for number in range(introspection._WAITING)]
        again = asyncio.create_task(made.verify_token(good))
        await until(lambda: issuer.fetches["/introspect"] >= 1 + introspection._AT_ONCE + 1)
        issuer.open.set()
        assert await again is not None
        await asyncio.gather(*flood, return_exceptions=True)


async def test_case_6_forged_signatures_keep_no_known_caller_from_a_new_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance, "_FORGED_BURST", 0.001)
    async with verified(opaque=False) as (issuer, made):
        assert await made.verify_token(issuer.token()) is not None
        stranger = SigningKey("ES256", "k1")
        forged = [issuer.token(key=stranger, sub=f"somebody-{number}") for number in range(100)]
        outcomes = await asyncio.gather(*map(made.verify_token, forged), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {type(None), IssuerUnavailableError}
        assert await made.verify_token(issuer.token(jti="2")) is not None, "alice has got a new one"
        with pytest.raises(IssuerUnavailableError):
            await made.verify_token(issuer.token(sub="bob"))


async def test_case_6_who_forges_tokens_in_a_known_callers_name_keeps_nobody_else_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(allowance, "_FORGED_BURST", 0.001)
    async with verified(opaque=False) as (issuer, made):
        for name in ("alice", "bob"):
            assert await made.verify_token(issuer.token(sub=name)) is not None
        monkeypatch.setattr(made._forgeries, "_as_familiar", allowance.Allowance(1.0, most=10.0, clock=made._monotonic))
        stranger = SigningKey("ES256", "k1")
        forged = [issuer.token(key=stranger, jti=str(number)) for number in range(100)]
        outcomes = await asyncio.gather(*map(made.verify_token, forged), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {type(None), IssuerUnavailableError}
        with pytest.raises(IssuerUnavailableError):
            await made.verify_token(issuer.token(jti="new"))
        assert await made.verify_token(issuer.token(sub="bob", jti="new")) is not None
        assert await made.verify_token(issuer.token(sub="carol")) is not None


async def test_case_6_who_guesses_the_name_of_the_next_key_keeps_its_tokens_out_for_a_minute_at_most() -> None:
    async with verified(opaque=False) as (issuer, made):
        clock = made._monotonic
        assert isinstance(clock, FakeClock)
        assert await made.verify_token(issuer.token()) is not None
        invented, published = SigningKey("ES256", "next"), SigningKey("ES256", "next")
        for second in range(400):
            assert await made.verify_token(issuer.token(key=invented, jti=str(second))) is None
            clock.advance(1)
        issuer.keys = [published]
        clock.advance(60)
        assert await made.verify_token(issuer.token()) is not None


async def test_case_42_one_tenant_that_hangs_is_no_outage_of_another_at_the_same_origin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "_MAX_CONNECTIONS", 1)
    monkeypatch.setattr(http, "_QUEUE_TIMEOUT", 0.05)
    issuer = LoopbackIssuer()
    async with serve(issuer.app) as issuer.url:
        asked = Introspection(ClientSecret("gateway", "secret"), endpoint=f"{issuer.url}/introspect")
        tenants = [Issuer(f"{issuer.url}/{name}", introspection=asked) for name in ("one", "other")]
        made = IssuersVerifier(resource=RESOURCE, issuers=tenants, monotonic=FakeClock())
        one, other = (issuer.opaque(issuer.token(iss=tenant.issuer), iss=tenant.issuer) for tenant in tenants)
        issuer.open.clear()
        hanging = asyncio.create_task(made.verify_token(one))
        await issuer.asked.wait()
        with pytest.raises(IssuerUnavailableError):
            await made.verify_token(other)
        issuer.open.set()
        assert await hanging is not None
        assert await made.verify_token(other) is not None
        await made.aclose()
