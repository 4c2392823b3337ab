"""Tokens of our own and tokens exchanged for the caller's, from a real token endpoint."""

import logging
from collections.abc import Callable

import pytest

from mcp_middleware.credentials import (
    ClientCredentials,
    CredentialRefusedError,
    CredentialUnavailableError,
    TokenExchange,
)
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth import OAuthHTTPClient, PrivateKeyJWT
from mcp_middleware.testing import FakeClock
from tests.credentials.grants import NOBODY, PROOF, SERVER, Made, caller
from tests.credentials.issuer import SECRET, TokenIssuer
from tests.oauth.test_authentication import pem, public_pem


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
