"""Several issuers at once: whose a token is, and what asking all of them at the start says of the configuration."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from starlette.responses import JSONResponse, Response

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth import waiting
from mcp_middleware.oauth.metadata import WrongMetadataError
from mcp_middleware.resource_server import (
    ClientSecret,
    Introspection,
    Issuer,
    IssuersVerifier,
    IssuerUnavailableError,
    JWTVerifier,
    sources,
)
from mcp_middleware.testing import FakeClock
from tests.resource_server.issuer import RESOURCE, LoopbackIssuer, SigningKey, compact
from tests.support import serve, until

SECRET = ClientSecret("gateway", "secret")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def other_server() -> AsyncIterator[LoopbackIssuer]:
    issuer = LoopbackIssuer()
    async with serve(issuer.app) as issuer.url:
        yield issuer


@pytest.fixture
def other(other_server: LoopbackIssuer) -> LoopbackIssuer:
    other_server.open.set()
    other_server.reset()
    other_server.keys = [SigningKey("ES256", "k1")]
    return other_server


class Verifiers:
    """Makes verifiers, and closes them."""

    def __init__(self) -> None:
        self.made: list[IssuersVerifier] = []

    def __call__(self, *issuers: str | Issuer, **options: Any) -> IssuersVerifier:
        self.made.append(IssuersVerifier(resource=RESOURCE, issuers=issuers, **{"monotonic": FakeClock(), **options}))
        return self.made[-1]


@pytest_asyncio.fixture(loop_scope="session")
async def verifier() -> AsyncIterator[Verifiers]:
    verifiers = Verifiers()
    yield verifiers
    for made in verifiers.made:
        await made.aclose()
    assert not [task for task in asyncio.all_tasks() if "issuers" in task.get_name() or "waiting" in task.get_name()]


def asked(server: LoopbackIssuer, **options: Any) -> Issuer:
    return Issuer(server.issuer, introspection=Introspection(SECRET, **options))


async def test_each_token_goes_to_its_own_issuer(
    issuer: LoopbackIssuer, other: LoopbackIssuer, verifier: Verifiers
) -> None:
    verify = verifier(issuer.issuer, asked(other)).verify_token
    found = await verify(issuer.token())
    assert found is not None
    assert found.claims["iss"] == issuer.issuer
    assert not other.questions, "a JWT of another issuer is not shown to this one"
    found = await verify(other.opaque(iss=None))
    assert found is not None
    assert found.claims["iss"] == other.issuer
    assert await verify("junk") is None
    assert issuer.questions == []


async def test_a_jwt_of_an_issuer_that_introspects_is_introspected(
    issuer: LoopbackIssuer, other: LoopbackIssuer, verifier: Verifiers
) -> None:
    verify = verifier(issuer.issuer, asked(other)).verify_token
    token = other.token()
    assert await verify(token) is None, "its signature is good, and the issuer does not call it active"
    other.active["x"] = {}
    token = other.token(jti="2")
    other.opaque(token)
    assert await verify(token) is not None
    assert other.jwks_fetches == 0


async def test_case_4_a_jwt_of_nobody_is_shown_to_nobody(
    issuer: LoopbackIssuer, other: LoopbackIssuer, verifier: Verifiers
) -> None:
    verify = verifier(asked(issuer), asked(other)).verify_token
    for iss in ("https://evil.example", issuer.issuer + "/", None, 1):
        assert await verify(issuer.token(iss=iss)) is None
    twice = b'{"iss":"' + issuer.issuer.encode() + b'","iss":"' + other.issuer.encode() + b'"}'
    assert await verify(compact({"alg": "ES256"}, twice, None)) is None
    for header in (b'{\n"alg":"none"}', b' {"alg":"ES256"}'):
        assert await verify(compact(header, issuer.claims(iss="https://evil.example"), None)) is None
    assert not issuer.questions
    assert not other.questions


async def test_other_tokens_are_asked_about_in_the_order_of_the_issuers(
    issuer: LoopbackIssuer, other: LoopbackIssuer, verifier: Verifiers
) -> None:
    verify = verifier(asked(issuer), asked(other)).verify_token
    assert await verify(issuer.opaque("first")) is not None
    assert not other.questions
    found = await verify(other.opaque("second"))
    assert found is not None
    assert found.claims["iss"] == other.issuer
    assert [form["token"] for form in issuer.questions] == ["first", "second"]


@pytest.mark.parametrize("token", ["eyJh.b.c", "a.b.c", "e30", "eyJ.eyJ.eyJ", "ey.J.x", "....", "\x7f.a.b"])
async def test_a_token_that_only_resembles_a_jwt_is_its_issuers_to_understand(
    issuer: LoopbackIssuer, verifier: Verifiers, token: str
) -> None:
    assert await verifier(asked(issuer)).verify_token(issuer.opaque(token)) is not None


async def test_an_issuer_that_is_down_does_not_hide_what_another_knows(
    issuer: LoopbackIssuer, other: LoopbackIssuer, verifier: Verifiers
) -> None:
    verify = verifier(asked(issuer), asked(other)).verify_token
    issuer.status = 503
    assert await verify(other.opaque()) is not None
    with pytest.raises(IssuerUnavailableError):  # it may be the other's
        await verify("junk")


async def test_a_jwt_verifier_asks_nobody_about_a_token(issuer: LoopbackIssuer) -> None:
    with pytest.raises(ConfigurationError, match="introspection"):
        JWTVerifier(resource=RESOURCE, issuers=[asked(issuer)])


async def test_start_finds_everything_in_order(
    issuer: LoopbackIssuer, other: LoopbackIssuer, verifier: Verifiers
) -> None:
    made = verifier(issuer.issuer, asked(other))
    assert made.waiting == ()
    await made.start()
    assert made.waiting == ()
    assert issuer.jwks_fetches == 1
    assert len(other.questions) == 1
    await asyncio.gather(made.start(), made.for_resource("https://files.example.com/other").start())
    assert await made.verify_token(issuer.token()) is not None
    assert (issuer.jwks_fetches, len(other.questions)) == (1, 1), "all share one start"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"metadata_changes": {"issuer": "https://evil.example"}},
            r"'https://evil\.example'.*'http://127.* was expected",
        ),
        ({"metadata_changes": {"issuer": None}}, r"None.*'http://127.* was expected"),
        ({"metadata_changes": {"jwks_uri": None}}, "names no jwks_uri"),
        ({"metadata_changes": {"jwks_uri": "http://keys.example.com/"}}, "jwks_uri"),
        ({"metadata_changes": {"jwks_uri": "https://169.254.169.254/"}}, r"169\.254.*link-local"),
        ({"published": []}, "/jwks: .*no key.*; the keys of http.* were expected there"),
        ({"published": [{"kty": "oct", "k": "c2VjcmV0"}]}, "/jwks: .*no key"),
        ({"path": "/realm", "form": "nowhere"}, "answered 404; the metadata of .* was expected at one of them"),
        ({"status": 302}, "answered 302"),
        ({"status": 401}, "answered 401"),
    ],
)
async def test_a_wrong_issuer_is_refused_at_the_start(
    issuer: LoopbackIssuer, verifier: Verifiers, changes: dict[str, Any], found: str
) -> None:
    """F8: with what was fetched and what was expected."""
    for name, value in changes.items():
        setattr(issuer, name, value)
    made = verifier(issuer.issuer)
    with pytest.raises(ConfigurationError, match=found) as caught:
        await made.start()
    assert issuer.issuer in str(caught.value)
    with pytest.raises(ConfigurationError):
        await made.start()


async def test_a_place_of_keys_that_has_none_is_refused_at_the_start(
    issuer: LoopbackIssuer, verifier: Verifiers
) -> None:
    made = verifier(Issuer(issuer.issuer, jwks_uri=f"{issuer.url}/nothing"))
    with pytest.raises(ConfigurationError, match=r"/nothing answered 404; the keys of http.* were expected there"):
        await made.start()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (JSONResponse({"active": True}), "called a made-up token active"),
        (JSONResponse({"active": "false"}), "active is 'false'"),
        (Response("<html>"), "<html>.*RFC 7662"),
        (JSONResponse({"error": "access_denied"}, 403), "answered 403 .*access_denied.* client_id 'gateway'"),
        (Response(status_code=405), "answered 405"),
        (Response(status_code=302), "answered 302"),
    ],
    ids=["active", "string", "page", "forbidden", "method", "redirect"],
)
async def test_an_introspection_that_is_none_is_refused_at_the_start(
    issuer: LoopbackIssuer, verifier: Verifiers, answer: Response, said: str
) -> None:
    made = verifier(asked(issuer))

    issuer.answer = answer
    with pytest.raises(ConfigurationError, match=said):
        await made.start()


async def test_a_client_that_may_not_introspect_is_refused_at_the_start(
    issuer: LoopbackIssuer, verifier: Verifiers
) -> None:
    issuer.client = ("gateway", "another secret")
    with pytest.raises(ConfigurationError, match=r"answered 401 .*invalid_client.* client_id 'gateway'") as caught:
        await verifier(asked(issuer)).start()
    assert SECRET.secret not in str(caught.value).replace("invalid_client", "")


async def test_an_issuer_without_introspection_is_refused_at_the_start(
    issuer: LoopbackIssuer, verifier: Verifiers
) -> None:
    issuer.metadata_changes = {"introspection_endpoint": None}
    with pytest.raises(ConfigurationError, match="names no introspection_endpoint"):
        await verifier(asked(issuer)).start()


async def test_everything_that_is_wrong_is_said_at_once(
    issuer: LoopbackIssuer, other: LoopbackIssuer, verifier: Verifiers
) -> None:
    issuer.published = []
    other.metadata_changes = {"issuer": "https://evil.example"}
    with pytest.raises(ConfigurationError) as caught:
        await verifier(issuer.issuer, asked(other)).start()
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("introspecting", [False, True])
async def test_case_42_an_issuer_that_is_down_at_the_start_is_waited_for(
    issuer: LoopbackIssuer,
    other: LoopbackIssuer,
    verifier: Verifiers,
    introspecting: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(waiting, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(waiting, "_LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(sources, "_METADATA_COOLDOWN", 0.0)
    caplog.set_level(logging.INFO, "mcp_middleware")
    issuer.status = 503
    made = verifier(asked(issuer) if introspecting else issuer.issuer, other.issuer)
    await made.start()
    assert made.waiting == (f"The issuer {issuer.issuer} has not answered yet",)
    assert made.for_resource("https://files.example.com/other").waiting == made.waiting
    assert await made.verify_token(other.token()) is not None
    (warned,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned.startswith(f"the issuer {issuer.issuer} does not answer, and is waited for: http")
    await until(lambda: "does not answer: http" in caplog.text)
    issuer.status = 200
    await until(lambda: not made.waiting)
    await until(lambda: f"the issuer {issuer.issuer} answers" in caplog.text)
    assert not [record for record in caplog.records if record.levelno == logging.WARNING][1:], "one is enough"
    token = issuer.opaque() if introspecting else issuer.token()
    assert await made.verify_token(token) is not None


async def test_an_issuer_that_turns_out_to_be_wrong_later_is_said_so_and_waited_for(
    issuer: LoopbackIssuer, verifier: Verifiers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(waiting, "_LONGEST_PAUSE", 0.02)
    issuer.status = 503
    made = verifier(issuer.issuer)
    await made.start()
    issuer.metadata_changes, issuer.status = {"issuer": "https://evil.example"}, 200
    await until(lambda: any("was expected" in r.message for r in caplog.records if r.levelno == logging.ERROR))
    said = f"The issuer {issuer.issuer} contradicts the configuration; the log says how"
    await until(lambda: made.waiting == (said,))
    issuer.metadata_changes = {}
    await until(lambda: not made.waiting)


async def test_a_request_that_finds_the_issuer_back_ends_the_waiting(
    issuer: LoopbackIssuer, verifier: Verifiers
) -> None:
    clock = FakeClock()
    made = verifier(issuer.issuer, monotonic=clock)
    issuer.status = 503
    await made.start()
    assert made.waiting
    issuer.status = 200
    clock.advance(10)
    assert await made.verify_token(issuer.token()) is not None
    assert not made.waiting


async def test_closing_ends_the_waiting_and_leaves_no_task(issuer: LoopbackIssuer, verifier: Verifiers) -> None:
    issuer.status = 503
    made = verifier(issuer.issuer)
    await made.start()
    await made.aclose()
    assert not [task for task in asyncio.all_tasks() if "waiting" in task.get_name()]
    issuer.status = 200
    await made.start()
    assert not made.waiting


async def test_a_start_that_nobody_waits_for_any_more_is_no_failure_of_ours(
    issuer: LoopbackIssuer, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker is told to stop while an issuer has not answered yet; what it answers then is nobody's any more."""
    issuer.metadata_changes = {"issuer": "https://evil.example"}
    issuer.open.clear()
    made = IssuersVerifier(resource=RESOURCE, issuers=[issuer.issuer])
    start = asyncio.create_task(made.start())
    await issuer.asked.wait()
    [asking] = [task for task in asyncio.all_tasks() if task.get_name() == "asking the issuers"]
    start.cancel()
    issuer.open.set()
    await asyncio.wait({start, asking})
    await made.aclose()
    del made, start, asking
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_the_metadata_of_an_issuer(issuer: LoopbackIssuer, verifier: Verifiers) -> None:
    made = verifier(issuer.issuer)
    await made.start()
    fetches = sum(issuer.fetches.values())
    found = await made.metadata(issuer.issuer)
    assert found.issuer == issuer.issuer
    assert sum(issuer.fetches.values()) == fetches, "it is known since the start"


async def test_the_metadata_of_an_issuer_that_is_another(issuer: LoopbackIssuer, verifier: Verifiers) -> None:
    issuer.metadata_changes = {"issuer": "https://evil.example"}
    with pytest.raises(WrongMetadataError):
        await verifier(issuer.issuer).metadata(issuer.issuer)


async def test_metadata_that_cannot_be_had(issuer: LoopbackIssuer, verifier: Verifiers) -> None:
    issuer.status = 500
    with pytest.raises(IssuerUnavailableError):
        await verifier(issuer.issuer).metadata(issuer.issuer)


async def test_case_6_a_token_that_no_header_holds_is_refused(issuer: LoopbackIssuer, verifier: Verifiers) -> None:
    verify = verifier(asked(issuer)).verify_token
    for token in ("", "a" * 16_385, "\ud800", "\u00fc"):
        assert await verify(token) is None
    assert not issuer.questions
