"""The verifier against a real issuer over a socket: keys found, kept, rotated, missed."""

import asyncio
import logging
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.http import OAuthHTTPClient
from mcp_middleware.oauth.metadata import MetadataSource
from mcp_middleware.resource_server import Issuer, IssuerUnavailableError, JWTVerifier, jwks
from mcp_middleware.resource_server.jwks import IssuerKeys
from mcp_middleware.testing import FakeClock
from tests.resource_server.issuer import RESOURCE, LoopbackIssuer, SigningKey, b64, compact, signing_key
from tests.support import serve


def verifier_for(server: LoopbackIssuer, monotonic: FakeClock | None = None, **options: Any) -> JWTVerifier:
    named = options.pop("issuer", server.issuer)
    return JWTVerifier(resource=RESOURCE, issuers=[named], monotonic=monotonic or FakeClock(), **options)


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "ES384", "ES512", "EdDSA"])
async def test_every_kind_of_key_verifies(issuer: LoopbackIssuer, algorithm: str) -> None:
    issuer.keys = [signing_key("RS256" if algorithm == "PS256" else algorithm)]
    issuer.published = [issuer.keys[0].jwk(alg=algorithm)]
    key = SigningKey.__new__(SigningKey)
    key.algorithm, key.kid, key.private = algorithm, "k1", issuer.keys[0].private
    token = await verifier_for(issuer).verify_token(issuer.token(key=key))
    assert token is not None
    assert (token.client_id, token.subject, token.scopes) == ("agent-1", "alice", ["mcp:use", "files:read"])
    assert token.resource == RESOURCE
    assert token.claims["iss"] == issuer.issuer


@pytest.mark.parametrize(("published", "named"), [("Ed25519", "Ed25519"), ("EdDSA", "Ed25519"), ("Ed25519", "EdDSA")])
async def test_a_signature_of_one_curve_has_two_names(issuer: LoopbackIssuer, published: str, named: str) -> None:
    """RFC 9864."""
    key = signing_key("EdDSA")
    issuer.published = [key.jwk(alg=published)]
    assert await verifier_for(issuer).verify_token(issuer.token(key=key, header={"alg": named})) is not None
    other = issuer.token(key=key, header={"alg": "Ed25518"})
    assert await verifier_for(issuer).verify_token(other) is None
    only = Issuer(issuer.issuer, algorithms=["ES256"])
    assert await verifier_for(issuer, issuer=only).verify_token(issuer.token(key=key, header={"alg": named})) is None


async def test_a_key_without_a_name_verifies_tokens_that_name_none(issuer: LoopbackIssuer) -> None:
    issuer.published = [signing_key().jwk(kid=None)]
    assert await verifier_for(issuer).verify_token(issuer.token(header={"kid": None})) is not None
    assert await verifier_for(issuer).verify_token(issuer.token(header={"kid": "k1"})) is None


@pytest.mark.parametrize("path", ["", "/tenant", "/tenant/"])
@pytest.mark.parametrize("form", ["oauth-authorization-server", "openid-configuration"])
async def test_keys_are_found_by_either_discovery(issuer: LoopbackIssuer, path: str, form: str) -> None:
    """RFC 8414 section 3.1, OpenID Connect Discovery 4."""
    issuer.form, issuer.path = form, path
    assert await verifier_for(issuer).verify_token(issuer.token()) is not None
    slashed = issuer.issuer.removesuffix("/") if path.endswith("/") else issuer.issuer + "/"
    assert await verifier_for(issuer).verify_token(issuer.token(iss=slashed)) is None  # case 4: the slash counts


@pytest.mark.parametrize("name", ["https://evil.example", "", None, 1, "trailing"])
async def test_metadata_of_another_issuer_is_not_used(issuer: LoopbackIssuer, name: Any) -> None:
    """F8."""
    issuer.metadata_changes = {"issuer": issuer.issuer + "/" if name == "trailing" else name}
    with pytest.raises(IssuerUnavailableError):
        await verifier_for(issuer).verify_token(issuer.token())
    assert issuer.jwks_fetches == 0


async def test_no_redirect_is_followed(issuer: LoopbackIssuer) -> None:
    """F4."""
    issuer.status, issuer.headers = 302, {"location": f"{issuer.url}/jwks"}
    with pytest.raises(IssuerUnavailableError):
        await verifier_for(issuer).verify_token(issuer.token())
    assert issuer.jwks_fetches == 0


@pytest.mark.parametrize("algorithm", ["none", "None", "nOnE", "NONE"])
async def test_case_3_no_signature_in_any_spelling(issuer: LoopbackIssuer, algorithm: str) -> None:
    verifier = verifier_for(issuer)
    unsigned = compact({"alg": algorithm, "typ": "at+jwt", "kid": "k1"}, issuer.claims(), None)
    assert await verifier.verify_token(unsigned) is None
    assert await verifier.verify_token(unsigned.rsplit(".", 1)[0] + ".") is None


async def test_case_3_hmac_keyed_with_the_public_key(issuer: LoopbackIssuer) -> None:
    issuer.keys = [signing_key("RS256")]
    public = issuer.keys[0].private.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, pem.strip(), public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)):
        for algorithm in ("HS256", "RS256"):
            signed = compact({"alg": algorithm, "typ": "at+jwt", "kid": "k1"}, issuer.claims(), None).rsplit(".", 1)[0]
            mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(signed.encode(), secret)
            assert await verifier_for(issuer).verify_token(f"{signed}.{b64(mac)}") is None


async def test_case_3_an_algorithm_the_key_is_not_pinned_to(issuer: LoopbackIssuer) -> None:
    issuer.keys = [signing_key("RS256")]
    verifier = verifier_for(issuer)
    signed = compact({"alg": "RS512", "typ": "at+jwt", "kid": "k1"}, issuer.claims(), None).rsplit(".", 1)[0]
    mac = issuer.keys[0].sign(signed.encode(), "RS512")
    assert await verifier.verify_token(f"{signed}.{b64(mac)}") is None
    assert await verifier.verify_token(issuer.token()) is not None


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "ES512", "EdDSA"])
async def test_case_6_a_signature_of_any_length_is_refused(issuer: LoopbackIssuer, algorithm: str) -> None:
    issuer.keys = [signing_key(algorithm)]
    verifier = verifier_for(issuer)
    signed = issuer.token().rsplit(".", 1)[0]
    for length in (1, 2, 32, 63, 64, 65, 96, 132, 256, 257, 4000):
        for byte in (b"\x00", b"\x01", b"\xff"):
            assert await verifier.verify_token(f"{signed}.{b64(byte * length)}") is None


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c"])
async def test_case_3_a_key_that_the_token_brings_itself(issuer: LoopbackIssuer, name: str) -> None:
    async with serve((evil := LoopbackIssuer()).app) as url:
        evil.url = url
        evil.keys = [SigningKey("ES256", "k1")]
        offered = {"jwk": evil.keys[0].jwk(), "jku": f"{url}/jwks", "x5u": f"{url}/x5u", "x5c": ["AAAA"]}[name]
        forged = issuer.token(key=evil.keys[0], header={name: offered})
        verifier = verifier_for(issuer)
        assert await verifier.verify_token(forged) is None
        assert await verifier.verify_token(issuer.token(header={name: offered})) is not None  # ignored, not obeyed
        assert not evil.fetches


async def test_case_4_issuer_a_signed_by_the_key_of_b(issuer: LoopbackIssuer) -> None:
    async with serve((other := LoopbackIssuer()).app) as url:
        other.url = url
        other.keys = [SigningKey("ES256", "k1")]
        verifier = JWTVerifier(resource=RESOURCE, issuers=[issuer.issuer, other.issuer])
        assert await verifier.verify_token(issuer.token(key=other.keys[0])) is None
        assert await verifier.verify_token(other.token(key=issuer.keys[0])) is None
        assert await verifier.verify_token(other.token()) is not None


async def test_case_4_an_issuer_that_is_not_configured_is_never_asked(issuer: LoopbackIssuer) -> None:
    async with serve((evil := LoopbackIssuer()).app) as url:
        evil.url = url
        assert await verifier_for(issuer).verify_token(evil.token()) is None
        assert not evil.fetches
    assert not issuer.fetches


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_a_changed_token_is_refused_though_the_good_one_is_kept(issuer: LoopbackIssuer, position: int) -> None:
    verifier = verifier_for(issuer)
    good = issuer.token()
    assert await verifier.verify_token(good) is not None
    parts = good.split(".")
    middle = len(parts[position]) // 2
    parts[position] = (
        parts[position][:middle] + ("A" if parts[position][middle] != "A" else "B") + parts[position][middle + 1 :]
    )
    assert await verifier.verify_token(".".join(parts)) is None
    assert await verifier.verify_token(good) is not None


async def test_a_token_is_verified_once_and_kept_until_it_ends(issuer: LoopbackIssuer) -> None:
    """B7."""
    clock = FakeClock(issuer.claims()["iat"])
    verifier = verifier_for(issuer, clock=clock)
    token = issuer.token()
    first = await verifier.verify_token(token)
    assert first is not None
    assert await verifier.verify_token(token) is first
    clock.advance(299)
    assert await verifier.verify_token(token) is first
    clock.advance(1)
    assert await verifier.verify_token(token) is None


async def test_a_header_is_recognised_only_by_its_very_bytes_and_while_the_token_holds(issuer: LoopbackIssuer) -> None:
    clock = FakeClock(issuer.claims()["iat"])
    verifier = verifier_for(issuer, clock=clock)
    token = issuer.token()
    header = f"Bearer {token}".encode()
    assert verifier.recall(header) is None
    known = await verifier.verify_token(token)
    assert verifier.recall(header) is known is not None
    for other in (b"", b"Bearer ", b"Basic " + header[7:], header[:-1], header + b" ", header + b"a" * 20_000):
        assert verifier.recall(other) is None
    clock.advance(300)
    assert verifier.recall(header) is None


async def test_few_tokens_are_kept(issuer: LoopbackIssuer) -> None:
    verifier = verifier_for(issuer, cache_size=2)
    tokens = [issuer.token(jti=str(number)) for number in range(3)]
    kept = [await verifier.verify_token(token) for token in tokens]
    assert [await verifier.verify_token(token) is old for token, old in zip(tokens[1:], kept[1:], strict=True)] == [
        True,
        True,
    ]
    assert await verifier.verify_token(tokens[0]) is not kept[0]


async def test_a_rotated_key_is_found_at_once(issuer: LoopbackIssuer) -> None:
    """Case 42: rotation with overlap."""
    verifier = verifier_for(issuer)
    old = issuer.token()
    assert await verifier.verify_token(old) is not None
    issuer.keys = [SigningKey("ES256", "k2"), issuer.keys[0]]
    assert await verifier.verify_token(issuer.token()) is not None
    assert await verifier.verify_token(old) is not None
    assert issuer.jwks_fetches == 2


async def test_a_rotated_key_without_a_name_is_found_too(issuer: LoopbackIssuer) -> None:
    issuer.keys = [SigningKey("ES256", None)]
    verifier = verifier_for(issuer)
    assert await verifier.verify_token(issuer.token()) is not None
    issuer.keys = [SigningKey("ES256", None)]
    assert await verifier.verify_token(issuer.token()) is not None


async def test_a_withdrawn_key_ends_the_tokens_kept_with_it(issuer: LoopbackIssuer) -> None:
    clock = FakeClock()
    verifier = verifier_for(issuer, clock, key_lifetime=100, key_staleness=0)
    token = issuer.token()
    assert await verifier.verify_token(token) is not None
    issuer.keys = [SigningKey("ES256", "k2")]
    clock.advance(99)
    assert await verifier.verify_token(token) is not None
    clock.advance(1)
    assert await verifier.verify_token(token) is None


async def test_case_6_a_flood_of_unknown_keys_fetches_once_a_cooldown(issuer: LoopbackIssuer) -> None:
    clock = FakeClock()
    verifier = verifier_for(issuer, clock, key_cooldown=10)
    stranger = SigningKey("ES256", "unknown")
    good = issuer.token()
    assert await verifier.verify_token(good) is not None

    def flood() -> list[str]:
        return [issuer.token(key=stranger, header={"kid": f"unknown-{number}"}) for number in range(100)]

    for fetches in (2, 2, 3):
        results = await asyncio.gather(*map(verifier.verify_token, [*flood(), good, issuer.token(jti="2")]))
        assert results[:100] == [None] * 100
        assert None not in results[100:]
        assert issuer.jwks_fetches == fetches
        clock.advance(5)


async def test_case_6_the_first_fetch_counts_for_a_key_that_is_not_in_it(issuer: LoopbackIssuer) -> None:
    verifier = verifier_for(issuer)
    assert await verifier.verify_token(issuer.token(key=SigningKey("ES256", "unknown"))) is None
    assert issuer.jwks_fetches == 1


async def test_the_first_requests_share_one_fetch(issuer: LoopbackIssuer) -> None:
    verifier = verifier_for(issuer)
    tokens = [issuer.token(jti=str(number)) for number in range(20)]
    assert None not in await asyncio.gather(*map(verifier.verify_token, tokens))
    assert issuer.jwks_fetches == 1


async def test_a_caller_that_goes_away_does_not_end_the_fetch_for_others(issuer: LoopbackIssuer) -> None:
    issuer.open.clear()
    verifier = verifier_for(issuer)
    leaving = asyncio.create_task(verifier.verify_token(issuer.token()))
    staying = asyncio.create_task(verifier.verify_token(issuer.token(jti="2")))
    await issuer.asked.wait()
    leaving.cancel()
    issuer.open.set()
    assert await staying is not None
    assert leaving.cancelled()


async def test_a_token_that_is_wrong_in_itself_costs_no_fetch(issuer: LoopbackIssuer) -> None:
    verifier = verifier_for(issuer)
    assert await verifier.verify_token(issuer.token(aud="https://other.example")) is None
    assert await verifier.verify_token(issuer.token(exp=1)) is None
    assert await verifier.verify_token("a" * 20_000) is None
    assert not issuer.fetches


async def test_keys_stay_usable_for_a_stated_time_while_the_issuer_is_down(issuer: LoopbackIssuer) -> None:
    """Case 42: JWKS down."""
    clock = FakeClock()
    verifier = verifier_for(issuer, clock, key_lifetime=100, key_staleness=50)
    assert await verifier.verify_token(issuer.token()) is not None
    issuer.status = 500
    clock.advance(149)
    assert await verifier.verify_token(issuer.token(jti="2")) is not None
    clock.advance(1)
    with pytest.raises(IssuerUnavailableError):
        await verifier.verify_token(issuer.token(jti="3"))
    issuer.status = 200
    with pytest.raises(IssuerUnavailableError) as caught:  # a failed fetch is not repeated at once
        await verifier.verify_token(issuer.token(jti="4"))
    clock.advance(caught.value.retry_after)
    assert await verifier.verify_token(issuer.token(jti="5")) is not None


async def test_an_issuer_that_hangs_holds_nobody_up_who_has_a_known_key(issuer: LoopbackIssuer) -> None:
    """Case 42: black-holed."""
    clock = FakeClock()
    verifier = verifier_for(issuer, clock, key_lifetime=100, key_staleness=50)
    token = issuer.token()
    assert await verifier.verify_token(token) is not None
    clock.advance(100)
    issuer.open.clear()
    async with asyncio.timeout(2):  # far below the time-out of the fetch
        assert await verifier.verify_token(token) is not None
        assert await verifier.verify_token(issuer.token(jti="2")) is not None
    await verifier.aclose()


async def test_an_issuer_that_hangs_from_the_start_is_given_up(
    issuer: LoopbackIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "_TIMEOUT", 0.05)
    issuer.open.clear()
    verifier = verifier_for(issuer)
    with pytest.raises(IssuerUnavailableError):
        await verifier.verify_token(issuer.token())
    asked = dict(issuer.fetches)
    with pytest.raises(IssuerUnavailableError):
        await verifier.verify_token(issuer.token())
    assert dict(issuer.fetches) == asked


async def test_a_fault_of_ours_is_an_outage_too_and_not_repeated_at_once(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenClient(OAuthHTTPClient):
        asked = 0

        async def get(self, url: str, *, allow_private: bool = False) -> bytes:
            self.asked += 1
            raise RuntimeError("unforeseen")

    client = BrokenClient()
    keys = IssuerKeys(
        Issuer("https://a.example", jwks_uri="https://a.example/"),
        client,
        MetadataSource("https://a.example", client),
        lifetime=1,
        staleness=1,
        cooldown=1,
        clock=FakeClock(),
    )
    for _ in range(2):
        with pytest.raises(IssuerUnavailableError):
            await keys.find("k1", "ES256", lambda _: True, familiar=False)
    assert client.asked == 1
    assert "unforeseen" in caplog.text


async def test_an_unknown_key_during_an_outage_is_nobodys_fault(issuer: LoopbackIssuer) -> None:
    verifier = verifier_for(issuer)
    assert await verifier.verify_token(issuer.token()) is not None
    issuer.status = 503
    for _ in range(2):
        with pytest.raises(IssuerUnavailableError):
            await verifier.verify_token(issuer.token(key=SigningKey("ES256", "k2")))
    assert issuer.jwks_fetches == 2


async def test_keys_that_moved_are_discovered_anew(issuer: LoopbackIssuer) -> None:
    clock = FakeClock()
    verifier = verifier_for(issuer, clock)
    issuer.metadata_changes = {"jwks_uri": f"{issuer.url}/old"}
    with pytest.raises(IssuerUnavailableError):
        await verifier.verify_token(issuer.token())
    issuer.metadata_changes = {}
    clock.advance(10)
    assert await verifier.verify_token(issuer.token()) is not None


async def test_a_configured_place_of_keys_needs_no_discovery(issuer: LoopbackIssuer) -> None:
    verifier = verifier_for(issuer, issuer=Issuer(issuer.issuer, jwks_uri=f"{issuer.url}/jwks"))
    assert await verifier.verify_token(issuer.token()) is not None
    assert dict(issuer.fetches) == {"/jwks": 1}


async def test_a_closed_verifier_can_be_used_again(issuer: LoopbackIssuer) -> None:
    clock = FakeClock()
    verifier = verifier_for(issuer, clock)
    assert await verifier.verify_token(issuer.token()) is not None
    await verifier.aclose()
    clock.advance(10_000)
    assert await verifier.verify_token(issuer.token(jti="2")) is not None
    await verifier.aclose()


async def test_the_log_says_why_and_never_what_the_token_was(
    issuer: LoopbackIssuer, caplog: pytest.LogCaptureFixture
) -> None:
    """Case 35, F7."""
    caplog.set_level(logging.DEBUG)
    token = issuer.token(aud="https://other.example")
    assert await verifier_for(issuer).verify_token(token) is None
    assert "is not this resource" in caplog.text
    assert not any(part in caplog.text for part in token.split("."))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"resource": "files"}, "resource"),
        ({"issuers": []}, "issuers"),
        ({"issuers": "https://login.example.com"}, "issuers"),
        ({"issuers": ["https://login.example.com", Issuer("https://login.example.com")]}, "twice"),
        ({"issuers": ["http://login.example.com"]}, "issuer"),
        ({"issuers": [3]}, "issuer"),
        ({"leeway": 61}, "leeway"),
        ({"leeway": -1}, "leeway"),
        ({"leeway": True}, "leeway"),
        ({"leeway": "30"}, "leeway"),
        ({"key_lifetime": 0}, "key_lifetime"),
        ({"key_staleness": float("nan")}, "key_staleness"),
        ({"key_cooldown": 0}, "key_cooldown"),
        ({"cache_size": 0}, "cache_size"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        JWTVerifier(**{"resource": RESOURCE, "issuers": ["https://login.example.com"], **options})


async def test_a_sibling_shares_keys_and_no_token(issuer: LoopbackIssuer) -> None:
    first = verifier_for(issuer)
    second = first.for_resource("https://files.example.com/other")
    token = issuer.token()
    assert await first.verify_token(token) is not None
    assert await second.verify_token(token) is None, "it is for another resource"
    assert await second.verify_token(issuer.token(aud=second.resource)) is not None
    assert issuer.jwks_fetches == 1
