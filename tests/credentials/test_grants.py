"""Tokens of our own and tokens exchanged for the caller's, from a real token endpoint."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from mcp_middleware.credentials import (
    Caller,
    ClientCredentials,
    Credential,
    CredentialRefusedError,
    CredentialUnavailableError,
    TokenExchange,
    keeping,
)
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth import ClientSecret, IssuerUnavailableError, OAuthHTTPClient, PrivateKeyJWT, http
from mcp_middleware.testing import FakeClock
from mcp_middleware.types import Principal
from tests.credentials.issuer import SECRET, TokenIssuer
from tests.oauth.test_authentication import pem, public_pem
from tests.support import listener, origin_of, serve

PROOF = ClientSecret("gateway", SECRET)
SERVER = "https://mail.example.com/mcp"
NOBODY = Caller()


def caller(name: str = "alice", token: str | None = None, *, ends: float | None = None) -> Caller:
    principal = Principal("https://login.example.com", "agent", name, expires_at=ends)
    return Caller(principal, token or f"{name}s-token")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class Made:
    """Makes credentials of one issuer that share a clock, and closes them."""

    def __init__(self, issuer: TokenIssuer, clock: FakeClock) -> None:
        self.issuer, self.clock = issuer, clock
        self.open: list[ClientCredentials | TokenExchange] = []

    def own(self, **changes: Any) -> ClientCredentials:
        options: dict[str, Any] = {"issuer": self.issuer.issuer, "authentication": PROOF} | changes
        made = ClientCredentials(clock=self.clock, monotonic=self.clock, **options)
        self.open.append(made)
        return made

    def exchange(self, **changes: Any) -> TokenExchange:
        options: dict[str, Any] = {"issuer": self.issuer.issuer, "authentication": PROOF, "audience": SERVER} | changes
        made = TokenExchange(clock=self.clock, monotonic=self.clock, **options)
        self.open.append(made)
        return made


@pytest_asyncio.fixture(loop_scope="session")
async def make(issuer: TokenIssuer, clock: FakeClock) -> AsyncIterator[Made]:
    made = Made(issuer, clock)
    yield made
    issuer.open.set()
    for credential in made.open:
        await credential.aclose()


async def renewed(credential: ClientCredentials | TokenExchange) -> None:
    """Wait for the fetches that run in the background."""
    fetches = list(credential._keeper._fetches.values())
    assert fetches
    await asyncio.wait(fetches)


async def test_a_token_of_our_own(issuer: TokenIssuer, make: Made) -> None:
    credential = make.own(resource=SERVER, audience="mail", scope="mail:read mail:send")
    assert await credential.headers(caller()) == ((b"authorization", b"Bearer token-1"),)
    assert await credential.headers(NOBODY) == ((b"authorization", b"Bearer token-1"),)
    assert await credential.token() == "token-1"
    assert issuer.forms == [
        {
            "grant_type": "client_credentials",
            "resource": SERVER,
            "audience": "mail",
            "scope": "mail:read mail:send",
        }
    ]


async def test_a_signed_assertion_proves_us_too(issuer: TokenIssuer, make: Made) -> None:
    """H1, H2."""
    issuer.public_key = public_pem("P-256")
    credential = ClientCredentials(issuer=issuer.issuer, authentication=PrivateKeyJWT("gateway", pem("P-256")))
    make.open.append(credential)
    assert await credential.token() == "token-1"
    assert "client_secret" not in issuer.forms[0]


async def test_the_server_says_how_it_wants_the_secret(issuer: TokenIssuer, make: Made) -> None:
    issuer.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    assert await make.own().token() == "token-1"
    assert issuer.forms[0]["client_secret"] == SECRET


async def test_a_token_in_exchange_for_the_callers(issuer: TokenIssuer, make: Made) -> None:
    """RFC 8693 section 2.1."""
    credential = make.exchange(scope="mail:read", resource=SERVER)
    assert await credential.headers(caller()) == ((b"authorization", b"Bearer token-1"),)
    assert issuer.forms == [
        {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "audience": SERVER,
            "resource": SERVER,
            "scope": "mail:read",
            "subject_token": "alices-token",
            "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
        }
    ]


async def test_each_caller_and_each_of_its_tokens_has_its_own(issuer: TokenIssuer, make: Made) -> None:
    """A new token may have other scopes; another principal with the same token is still another."""
    credential = make.exchange()
    callers = [caller(), caller("bob"), caller(token="alices-next-token"), caller("bob", "alices-token")]
    tokens = [await credential.token(one) for one in callers]
    assert tokens == ["token-1", "token-2", "token-3", "token-4"]
    assert [await credential.token(one) for one in callers] == tokens
    assert issuer.issued == 4


async def test_f1_the_callers_own_token_never_comes_back_as_the_servers(issuer: TokenIssuer, make: Made) -> None:
    """Case 8: an authorization server that echoes it, also with its signature written in another way."""
    signed = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"
    issuer.issued_to_others.add(signed)
    for subject, answer in [("alices-token", "alices-token"), (signed, signed), (signed, signed + "=")]:
        issuer.answer = {"access_token": answer}
        with pytest.raises(CredentialRefusedError, match="must not go on") as caught:
            await make.exchange().headers(caller(token=subject))
        assert not caught.value.caller
        assert subject not in str(caught.value)


@pytest.mark.parametrize("kind", ["refresh_token", "id_token", "saml2"])
async def test_only_an_access_token_will_do(issuer: TokenIssuer, make: Made, kind: str) -> None:
    issuer.answer = {"issued_token_type": f"urn:ietf:params:oauth:token-type:{kind}"}
    with pytest.raises(CredentialRefusedError, match="no access token"):
        await make.exchange().headers(caller())


async def test_who_has_no_token_has_nothing_exchanged(issuer: TokenIssuer, make: Made, clock: FakeClock) -> None:
    credential = make.exchange()
    for one in (NOBODY, caller(ends=clock.now), caller(ends=clock.now - 1)):
        with pytest.raises(CredentialRefusedError) as caught:
            await credential.headers(one)
        assert caught.value.caller
    assert not credential.rejected(NOBODY, ())
    assert issuer.asked["token"] == 0


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


async def test_what_the_caller_must_do_first_is_about_the_caller(issuer: TokenIssuer, make: Made) -> None:
    issuer.refusal = (400, {"error": "interaction_required"})
    credential = make.exchange()
    with pytest.raises(CredentialRefusedError, match="interaction_required") as caught:
        await credential.headers(caller())
    assert caught.value.caller
    await credential.start()


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


async def test_start_is_content_with_a_good_configuration(issuer: TokenIssuer, make: Made) -> None:
    credentials: list[Credential] = [make.own(), make.exchange()]
    for credential in credentials:
        await credential.start()
    assert issuer.forms[1]["subject_token"] not in issuer.issued_to_others
    assert await credentials[0].headers(NOBODY) == ((b"authorization", b"Bearer token-1"),)
    assert issuer.asked["token"] == 2


async def test_start_refuses_what_the_server_refuses_and_says_what_was_sent(issuer: TokenIssuer, make: Made) -> None:
    issuer.metadata = {"token_endpoint_auth_methods_supported": ["private_key_jwt"]}
    for credential in (
        make.own(authentication=ClientSecret("gateway", "wrong-secret"), resource=SERVER, scope="a b"),
        make.exchange(authentication=ClientSecret("gateway", "wrong-secret"), resource=SERVER, scope="a b"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            await credential.start()
        said = str(caught.value)
        for part in (issuer.issuer, "401, invalid_client", f"resource={SERVER}", "scope=a b", "client_id=gateway"):
            assert part in said
        assert "it accepts private_key_jwt" in said
        assert "wrong-secret" not in said


@pytest.mark.parametrize("error", ["invalid_scope", "invalid_target", "unsupported_grant_type", "unauthorized_client"])
async def test_start_refuses_a_wrong_scope_target_or_grant(issuer: TokenIssuer, make: Made, error: str) -> None:
    issuer.refusal = (400, {"error": error, "error_description": "It cannot be."})
    for credential in (make.own(), make.exchange()):
        with pytest.raises(ConfigurationError, match=rf"{error}: It cannot be\. Sent were grant_type"):
            await credential.start()


async def test_start_refuses_another_issuers_metadata(issuer: TokenIssuer, make: Made) -> None:
    """F8."""
    issuer.metadata = {"issuer": "https://other.example"}
    for credential in (make.own(), make.exchange()):
        with pytest.raises(ConfigurationError, match=f"'https://other.example'; '{issuer.url}' was expected"):
            await credential.start()
    issuer.metadata = {"token_endpoint": None}
    with pytest.raises(ConfigurationError, match="names no token_endpoint"):
        await make.own().start()


async def test_start_refuses_an_issuer_on_a_private_network() -> None:
    async def look_up(host: str, port: int) -> list[str]:
        return ["10.0.0.1"]

    http = OAuthHTTPClient(resolve=look_up)
    credential = ClientCredentials(issuer="https://login.example.com", authentication=PROOF, http=http)
    with pytest.raises(ConfigurationError, match=r"10\.0\.0\.1, which is private"):
        await credential.start()


async def test_start_refuses_a_server_that_exchanges_anything(issuer: TokenIssuer, make: Made) -> None:
    issuer.exchanges_anything = True
    with pytest.raises(ConfigurationError, match="that nobody issued"):
        await make.exchange().start()


async def test_start_waits_for_a_server_that_is_down(issuer: TokenIssuer, make: Made, clock: FakeClock) -> None:
    issuer.refusal = (503, {})
    credentials: list[Credential] = [make.own(), make.exchange()]
    for credential in credentials:
        with pytest.raises(IssuerUnavailableError, match="503"):
            await credential.start()
    issuer.refusal = None
    for credential in credentials:
        await credential.start()


async def test_start_waits_for_a_server_that_cannot_be_reached_and_comes_back(clock: FakeClock) -> None:
    with listener() as bound:
        url = origin_of(bound)
        issuer = TokenIssuer()
        issuer.url = issuer.issuer = url
        credential = ClientCredentials(issuer=url, authentication=PROOF, monotonic=clock)
        with pytest.raises(IssuerUnavailableError, match="ConnectError"):
            await credential.start()
        with pytest.raises(CredentialUnavailableError):
            await credential.token()
        async with serve(issuer.app, bound=bound):
            clock.advance(10)
            await credential.start()
        await credential.aclose()


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


async def test_a_shared_client_is_not_closed_with_one_of_its_users(issuer: TokenIssuer) -> None:
    http = OAuthHTTPClient()
    closed = []
    http.aclose = lambda: closed.append(True)  # type: ignore[method-assign, assignment, return-value]
    credential = ClientCredentials(issuer=issuer.issuer, authentication=PROOF, http=http)
    await credential.token()
    await credential.aclose()
    assert closed == []


async def test_nothing_secret_is_logged_or_shown(
    issuer: TokenIssuer, make: Made, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """F7."""
    caplog.set_level(logging.DEBUG)
    credential = make.exchange()
    await credential.token(caller())
    with pytest.raises(CredentialRefusedError):
        await credential.token(caller("eve"))
    issuer.refusal = (500, {"error": "alices-token"})
    clock.advance(100)
    with pytest.raises(CredentialUnavailableError):
        await credential.token(caller())
    shown = caplog.text + repr((caller(), credential, list(credential._keeper._tokens.items())))
    for secret in ("hunter2", "eves-token", "token-1", "aHVudGVy"):
        assert secret not in shown


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: ClientCredentials(issuer="http://login.example.com", authentication=PROOF), "ClientCredentials.issuer"),
    (lambda: ClientCredentials(issuer="", authentication=PROOF), "ClientCredentials.issuer"),
    (lambda: ClientCredentials(issuer="https://a.example", authentication="x"), "authentication"),  # type: ignore[arg-type]
    (lambda: ClientCredentials(issuer="https://a.example", authentication=PROOF, resource="mail"), "resource"),
    (lambda: ClientCredentials(issuer="https://a.example", authentication=PROOF, scope=""), "scope"),
    (lambda: TokenExchange(issuer="https://a.example", authentication=PROOF), "one must name the server"),
    (lambda: TokenExchange(issuer="https://a.example", authentication=PROOF, audience="a\n"), "audience"),
    (lambda: TokenExchange(issuer="https://a.example", authentication=PROOF, audience="a", cache_size=0), "cache_size"),
]


@pytest.mark.parametrize(("build", "named"), WRONG)
def test_a_wrong_option_is_refused(build: Callable[[], object], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        build()
