"""What shows when a credential starts."""

import pytest

from mcp_middleware.credentials import ClientCredentials, Credential, CredentialUnavailableError
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth import ClientSecret, IssuerUnavailableError, OAuthHTTPClient
from mcp_middleware.testing import FakeClock
from tests.credentials.grants import NOBODY, PROOF, SERVER, Made
from tests.credentials.issuer import TokenIssuer
from tests.support import listener, origin_of, serve


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
        with pytest.raises(IssuerUnavailableError, match="no connection can be made"):
            await credential.start()
        with pytest.raises(CredentialUnavailableError):
            await credential.token()
        async with serve(issuer.app, bound=bound):
            clock.advance(10)
            await credential.start()
        await credential.aclose()
