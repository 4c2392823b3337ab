"""The keeping of keys: fetched ahead of time, rotated, withdrawn, missed, over a socket."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from mcp_middleware.resource_server import IssuerUnavailableError, JWTVerifier, allowance, jwks
from mcp_middleware.testing import FakeClock
from tests.resource_server.issuer import RESOURCE, LoopbackIssuer, SigningKey
from tests.support import until

Make = Callable[..., JWTVerifier]


@pytest_asyncio.fixture(loop_scope="session")
async def make(issuer: LoopbackIssuer) -> AsyncIterator[Make]:
    made: list[JWTVerifier] = []

    def verifier_for(clock: FakeClock, **options: Any) -> JWTVerifier:
        made.append(JWTVerifier(resource=RESOURCE, issuers=[issuer.issuer], monotonic=clock, **options))
        return made[-1]

    yield verifier_for
    issuer.open.set()
    for each in made:
        await each.aclose()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith(("keys of", "metadata of"))]


async def fetched(issuer: LoopbackIssuer, times: int) -> None:
    """Wait until the keys have been asked for so often, and what runs then has ended."""
    await until(lambda: issuer.jwks_fetches >= times)
    running = {task for task in asyncio.all_tasks() if task.get_name().startswith("keys of")}
    if running:
        await asyncio.wait(running)


async def test_keys_are_fetched_again_before_their_time_and_nobody_waits(issuer: LoopbackIssuer, make: Make) -> None:
    clock = FakeClock()
    made = make(clock, key_lifetime=100)
    token = issuer.token()
    assert await made.verify_token(token) is not None
    clock.advance(74)
    assert await made.verify_token(issuer.token(jti="2")) is not None
    await fetched(issuer, 1)
    clock.advance(1)
    issuer.open.clear()
    issuer.asked.clear()
    assert made.recall(f"Bearer {token}".encode()) is not None
    await issuer.asked.wait()
    assert await made.verify_token(issuer.token(jti="3")) is not None, "no answer has come, and none is waited for"
    assert issuer.jwks_fetches == 2
    issuer.open.set()
    await fetched(issuer, 2)
    clock.advance(74)
    assert made.recall(f"Bearer {token}".encode()) is not None
    await fetched(issuer, 2)


async def test_a_fetch_ahead_that_fails_is_repeated_after_the_cooldown(issuer: LoopbackIssuer, make: Make) -> None:
    clock = FakeClock()
    made = make(clock, key_lifetime=100, key_staleness=0, key_cooldown=10)
    assert await made.verify_token(issuer.token()) is not None
    issuer.status = 503
    clock.advance(75)
    for number in range(5):
        assert await made.verify_token(issuer.token(jti=f"a{number}")) is not None
        await fetched(issuer, 2)
    assert issuer.jwks_fetches == 2
    issuer.status = 200
    clock.advance(10)
    assert await made.verify_token(issuer.token(jti="b")) is not None
    await fetched(issuer, 3)
    clock.advance(15)
    assert await made.verify_token(issuer.token(jti="c")) is not None


async def test_case_42_rotation_with_overlap_refuses_no_good_token(issuer: LoopbackIssuer, make: Make) -> None:
    made = make(FakeClock())
    for generation in range(5):
        issuer.keys = [SigningKey("ES256", f"g{generation}"), *issuer.keys[:1]]
        tokens = [issuer.token(jti=f"{generation}-{number}") for number in range(5)]
        old = issuer.token(key=issuer.keys[-1], jti=f"{generation}-old")
        assert None not in await asyncio.gather(*map(made.verify_token, [*tokens, old]))
    assert issuer.jwks_fetches == 5


async def test_case_42_a_key_that_is_published_while_keys_are_fetched_is_found(
    issuer: LoopbackIssuer, make: Make
) -> None:
    clock = FakeClock()
    made = make(clock, key_lifetime=100)
    assert await made.verify_token(issuer.token()) is not None
    new, old = SigningKey("ES256", "k2"), issuer.keys[0]
    issuer.published = [old.jwk()]
    clock.advance(75)
    issuer.asked.clear()
    issuer.open.clear()
    assert await made.verify_token(issuer.token(jti="2")) is not None
    await issuer.asked.wait()
    waiting = asyncio.create_task(made.verify_token(issuer.token(key=new)))
    await asyncio.sleep(0)
    issuer.open.set()
    await fetched(issuer, 2)
    issuer.published = None
    issuer.keys = [new, old]
    assert await waiting is not None


async def test_case_42_a_client_that_keeps_sending_an_old_token_keeps_no_new_key_out(
    issuer: LoopbackIssuer, make: Make
) -> None:
    clock = FakeClock()
    made = make(clock)
    assert await made.verify_token(issuer.token()) is not None
    stray = SigningKey("ES256", "forgotten")
    searched = []
    for second in range(120):
        fetches = issuer.jwks_fetches
        assert await made.verify_token(issuer.token(key=stray, jti=str(second))) is None
        if issuer.jwks_fetches > fetches:
            searched.append(second)
        clock.advance(1)
    assert searched == [0, 10, 30, 70]
    issuer.keys = [SigningKey("ES256", "k2"), *issuer.keys]
    assert await made.verify_token(issuer.token()) is not None


@pytest.mark.parametrize("kid", ["invented", "k2"], ids=["another", "the very one"])
async def test_case_42_a_strangers_invented_key_keeps_no_new_key_out(
    issuer: LoopbackIssuer, make: Make, kid: str
) -> None:
    made = make(FakeClock())
    assert await made.verify_token(issuer.token()) is not None
    assert await made.verify_token(issuer.token(key=SigningKey("ES256", kid), sub="stranger")) is None
    issuer.keys = [SigningKey("ES256", "k2"), *issuer.keys]
    assert await made.verify_token(issuer.token()) is not None
    assert issuer.jwks_fetches == 3


async def test_case_6_invented_keys_in_strange_and_familiar_names_fetch_twice_a_cooldown(
    issuer: LoopbackIssuer, make: Make
) -> None:
    clock = FakeClock()
    made = make(clock, key_cooldown=10)
    assert await made.verify_token(issuer.token()) is not None
    inventor = SigningKey("ES256", "invented")
    for fetches in (3, 3, 5):
        for sub in ("alice", "stranger"):
            tokens = [issuer.token(key=inventor, header={"kid": f"{sub}-{n}"}, sub=sub) for n in range(50)]
            assert await asyncio.gather(*map(made.verify_token, tokens)) == [None] * 50
        assert issuer.jwks_fetches == fetches
        clock.advance(5)


async def test_a_key_that_is_published_late_is_found_after_the_cooldown(issuer: LoopbackIssuer, make: Make) -> None:
    clock = FakeClock()
    made = make(clock, key_cooldown=10)
    assert await made.verify_token(issuer.token()) is not None
    new = SigningKey("ES256", "k2")
    tokens = [issuer.token(key=new, jti=str(number)) for number in range(8)]
    refused = await asyncio.gather(*map(made.verify_token, tokens))
    assert refused == [None] * 8
    assert issuer.jwks_fetches == 2, "one search for all of them, after which the pause is that of one"
    issuer.keys = [new, *issuer.keys]
    clock.advance(10)
    assert await made.verify_token(issuer.token(key=new, jti="new")) is not None


async def test_few_missing_keys_are_remembered(issuer: LoopbackIssuer, make: Make) -> None:
    clock = FakeClock()
    made = make(clock, key_cooldown=1)
    keys = made._sources.named[issuer.issuer].asked
    assert isinstance(keys, jwks.IssuerKeys)
    for number in range(300):
        keys._note_missing(f"k{number}", familiar=False)
    keys._note_missing("k" * 1000, familiar=False)
    keys._note_missing(None, familiar=False)
    assert len(keys._missing) == 256


async def test_a_rotation_leaves_tokens_alone_whose_key_stays(issuer: LoopbackIssuer, make: Make) -> None:
    made = make(FakeClock())
    old = issuer.token()
    first = await made.verify_token(old)
    issuer.keys = [SigningKey("ES256", "k2"), issuer.keys[0]]
    assert await made.verify_token(issuer.token()) is not None
    assert made.recall(f"Bearer {old}".encode()) is first is not None
    assert made.recall(f"Bearer {old}".encode()) is first


async def test_a_key_that_is_replaced_under_its_name_ends_its_tokens(issuer: LoopbackIssuer, make: Make) -> None:
    clock = FakeClock()
    made = make(clock, key_lifetime=100)
    token = issuer.token()
    assert await made.verify_token(token) is not None
    issuer.keys = [SigningKey("ES256", "k1")]
    clock.advance(75)
    made.recall(f"Bearer {token}".encode())
    await fetched(issuer, 2)
    assert made.recall(f"Bearer {token}".encode()) is None
    assert await made.verify_token(token) is None
    assert await made.verify_token(issuer.token()) is not None


async def test_case_42_known_tokens_need_no_look_while_the_issuer_is_down(issuer: LoopbackIssuer, make: Make) -> None:
    clock = FakeClock()
    made = make(clock, key_lifetime=100, key_staleness=100)
    token = issuer.token()
    assert await made.verify_token(token) is not None
    issuer.status = 503
    clock.advance(100)
    first = await made.verify_token(token)
    assert first is not None, "the issuer was asked, and is down"
    await fetched(issuer, 2)  # on a busy machine nobody waited for the answer
    fetches = sum(issuer.fetches.values())
    for _ in range(9):
        assert made.recall(f"Bearer {token}".encode()) is first
        clock.advance(1)
    assert sum(issuer.fetches.values()) == fetches, "not again within the cooldown"
    clock.advance(91)
    assert made.recall(f"Bearer {token}".encode()) is None
    with pytest.raises(IssuerUnavailableError):
        await made.verify_token(token)


async def test_case_42_nobody_waits_for_an_issuer_that_was_silent(
    issuer: LoopbackIssuer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "_TIMEOUT", 0.05)
    monkeypatch.setattr(jwks, "_SILENT", 0.01)
    clock = FakeClock()
    made = make(clock)
    issuer.open.clear()
    with pytest.raises(IssuerUnavailableError):
        await made.verify_token(issuer.token())
    monkeypatch.setattr(jwks, "_TIMEOUT", 60)
    clock.advance(10)
    async with asyncio.timeout(5):
        with pytest.raises(IssuerUnavailableError):
            await made.verify_token(issuer.token())
    issuer.open.set()
    await fetched(issuer, 1)
    assert await made.verify_token(issuer.token()) is not None


async def test_case_42_an_unknown_key_at_a_silent_issuer_is_no_refusal(
    issuer: LoopbackIssuer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    made = make(clock, key_lifetime=100)
    assert await made.verify_token(issuer.token()) is not None
    monkeypatch.setattr(jwks, "_TIMEOUT", 0.05)
    monkeypatch.setattr(jwks, "_SILENT", 0.01)
    issuer.open.clear()
    new = SigningKey("ES256", "k2")
    with pytest.raises(IssuerUnavailableError):
        await made.verify_token(issuer.token(key=new))
    monkeypatch.setattr(jwks, "_TIMEOUT", 60)
    clock.advance(10)
    async with asyncio.timeout(5):
        with pytest.raises(IssuerUnavailableError):
            await made.verify_token(issuer.token(key=new))
    assert await made.verify_token(issuer.token(jti="2")) is not None, "good callers are unharmed"


async def test_case_6_a_flood_of_forged_signatures_leaves_good_callers_alone(
    issuer: LoopbackIssuer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "_FORGED_BURST", 0.001)
    clock = FakeClock()
    made = make(clock)
    token = issuer.token()
    first = await made.verify_token(token)
    forger = SigningKey("ES256", "k1")
    forged = [issuer.token(key=forger, sub=f"invented {number}") for number in range(100)]
    outcomes = await asyncio.gather(*map(made.verify_token, forged), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {type(None), IssuerUnavailableError}
    assert await made.verify_token(token) is first
    assert await made.verify_token(issuer.token(jti="new")) is not None, "who has had a token gets on with the next"
    with pytest.raises(IssuerUnavailableError):
        await made.verify_token(issuer.token(sub="newcomer"))
    clock.advance(100)  # on a busy machine one check may take what is allowed for seconds
    assert await made.verify_token(issuer.token(sub="newcomer")) is not None
    assert issuer.jwks_fetches == 1


async def test_case_6_forging_a_known_name_is_bounded_too_and_costs_newcomers_nothing(
    issuer: LoopbackIssuer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "_FORGED_BURST", 0.001)
    made = make(FakeClock())
    token = issuer.token()
    first = await made.verify_token(token)
    forger = SigningKey("ES256", "k1")
    forged = [issuer.token(key=forger, jti=str(number)) for number in range(100)]
    outcomes = await asyncio.gather(*map(made.verify_token, forged), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {type(None), IssuerUnavailableError}
    assert await made.verify_token(token) is first
    assert await made.verify_token(issuer.token(sub="newcomer")) is not None


async def test_the_same_forged_token_is_looked_at_once(issuer: LoopbackIssuer, make: Make) -> None:
    clock = FakeClock()
    made = make(clock)
    assert await made.verify_token(issuer.token()) is not None
    forged = issuer.token(key=SigningKey("ES256", "k1"))
    for _ in range(3):
        assert await made.verify_token(forged) is None
    assert len(made._refused._entries) == 1
