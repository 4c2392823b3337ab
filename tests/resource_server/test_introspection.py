"""Introspection (RFC 7662): what is believed of an answer, and the asking, against a real issuer over a socket."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth import http
from mcp_middleware.resource_server import (
    Claims,
    ClientSecret,
    Introspection,
    IntrospectionVerifier,
    Issuer,
    IssuerUnavailableError,
    PrivateKeyJWT,
    introspection,
)
from mcp_middleware.resource_server.claims import InvalidTokenError
from mcp_middleware.resource_server.introspection import check_introspected, parse_introspection
from mcp_middleware.resource_server.verifier import VerifiedToken
from mcp_middleware.testing import FakeClock
from tests.resource_server.issuer import RESOURCE, LoopbackIssuer

NOW = 1_800_000_000.0
SECRET = ClientSecret("gateway", "secret")
ISSUER = Issuer("https://login.example.com", introspection=Introspection(SECRET))
CLAIMS = {"aud": RESOURCE, "sub": "alice", "client_id": "agent-1", "scope": "mcp:use", "exp": NOW + 60}

_open: list[IntrospectionVerifier] = []


def verifier_for(server: LoopbackIssuer, monotonic: FakeClock | None = None, **options: Any) -> IntrospectionVerifier:
    """A verifier that is closed when the test ends."""
    asked = {name: options.pop(name) for name in ("cache", "endpoint") if name in options}
    issuer = Issuer(
        server.issuer,
        introspection=Introspection(options.pop("authentication", SECRET), **asked),
        claims=options.pop("claims", Claims()),
    )
    verifier = IntrospectionVerifier(resource=RESOURCE, issuer=issuer, monotonic=monotonic or FakeClock(), **options)
    _open.append(verifier)
    return verifier


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def closed() -> AsyncIterator[None]:
    yield
    while _open:
        await _open.pop().aclose()


async def eventually(verifier: IntrospectionVerifier, token: str) -> VerifiedToken | None:
    """What the verifier says once it can."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await verifier.verify_token(token)
            except IssuerUnavailableError:
                await asyncio.sleep(0.01)


def checked(**changes: Any) -> tuple[str, str, list[str], int | None]:
    claims = {name: value for name, value in (CLAIMS | changes).items() if value is not ...}
    found = check_introspected(claims, ISSUER, resource=RESOURCE, now=NOW, leeway=60)
    assert found.claims["iss"] == ISSUER.issuer
    return found.identity.client, found.identity.subject, found.identity.scopes, found.expires_at


@pytest.mark.parametrize("active", ["true", "True", 1, 1.0, None, "", "false", 0, [], [True], {}, {"active": True}])
def test_case_7_active_must_be_the_boolean_true(active: Any) -> None:
    """B7."""
    with pytest.raises(InvalidTokenError, match="active"):
        parse_introspection(json.dumps({**CLAIMS, "active": active}).encode())


def test_case_7_active_must_be_there() -> None:
    with pytest.raises(InvalidTokenError, match="active"):
        parse_introspection(json.dumps(CLAIMS).encode())


def test_an_active_token_and_one_that_is_not() -> None:
    assert parse_introspection(json.dumps({**CLAIMS, "active": True}).encode()) == CLAIMS
    assert parse_introspection(json.dumps({**CLAIMS, "active": False}).encode()) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"true",
        b"[]",
        b"[true]",
        b"null",
        b'"active"',
        b"<html>",
        b"\xff",
        b"\xef\xbb\xbf" + b'{"active":true}',
        '{"active":true}'.encode("utf-16"),
        b'{"active":false,"active":true}',
        b'{"active":true,"\\u0061ctive":true}',
        b'{"active":true,"aud":"a","aud":"b"}',
        b'{"active":true,"exp":NaN}',
        b'{"active":true,"exp":Infinity}',
        b'{"active":true,"exp":' + b"9" * 5000 + b"}",
        b'{"active":true,"x":' + b"[" * 15_000 + b"]" * 15_000 + b"}",
        b'{"active":true}x',
        b'{"active":true,}',
        b'{"active":true,"x":"' + b"a" * 33_000 + b'"}',
    ],
)
def test_case_7_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_introspection(body)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_body_is_parsed_or_refused(body: bytes) -> None:
    try:
        parse_introspection(body)
    except (ValueError, InvalidTokenError):
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(RESOURCE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*CLAIMS, "iss", "nbf", "iat", "token_type", "roles", "typ"]), JSON))
def test_any_claims_are_taken_or_refused(changes: dict[str, Any]) -> None:
    try:
        body = parse_introspection(json.dumps({"active": True, **CLAIMS, **changes}).encode())
        assert body is not None
        found = check_introspected(body, ISSUER, resource=RESOURCE, now=NOW, leeway=60)
    except (ValueError, InvalidTokenError):
        return
    assert found.identity.client.isprintable()
    assert found.expires_at is None or found.expires_at > NOW


def test_what_a_good_answer_says() -> None:
    assert checked() == ("agent-1", "alice", ["mcp:use"], int(NOW + 60))
    assert checked(iss=ISSUER.issuer, token_type="bearer", typ="Bearer", token_use="access_token")
    assert checked(sub=...)[:2] == ("agent-1", "agent-1")  # B7: a machine's token
    assert checked(exp=...)[3] is None
    assert checked(aud=["https://other.example", RESOURCE])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"aud": ...}, "aud"),
        ({"aud": None}, "aud"),
        ({"aud": []}, "aud"),
        ({"aud": "https://other.example"}, "aud"),
        ({"aud": RESOURCE + "/"}, "aud"),
        ({"aud": [RESOURCE, 1]}, "aud"),
        ({"iss": "https://login.example.com/"}, "iss"),
        ({"iss": None}, "iss"),
        ({"iss": 1}, "iss"),
        ({"exp": NOW}, "expired"),
        ({"exp": NOW - 1}, "expired"),
        ({"exp": 0}, "expired"),
        ({"exp": None}, "exp"),
        ({"exp": "1900000000"}, "exp"),
        ({"exp": True}, "exp"),
        ({"exp": 10**18}, "exp"),
        ({"nbf": NOW + 61}, "nbf"),
        ({"nbf": "soon"}, "nbf"),
        ({"iat": NOW + 61}, "iat"),
        ({"token_type": "DPoP"}, "token_type"),
        ({"token_type": "refresh_token"}, "token_type"),
        ({"token_type": 1}, "token_type"),
        ({"token_use": "refresh_token"}, "token_use"),
        ({"typ": "Refresh"}, "typ"),
        ({"typ": "ID"}, "typ"),
        ({"nonce": "n"}, "nonce"),
        ({"cnf": {"jkt": "x"}}, "cnf"),
        ({"scope": 1}, "scope"),
        ({"roles": {"admin": True}}, "roles"),
        ({"sub": "a\nb"}, "sub"),
        ({"sub": ..., "client_id": ...}, "neither"),
    ],
)
def test_case_7_an_active_token_that_is_not_for_here(changes: dict[str, Any], reason: str) -> None:
    """B5, B7, case 5."""
    with pytest.raises(InvalidTokenError, match=reason):
        checked(**changes)


async def test_an_opaque_token_is_verified_by_asking(issuer: LoopbackIssuer) -> None:
    verifier = verifier_for(issuer, claims=Claims(roles="realm.roles"))
    found = await verifier.verify_token(issuer.opaque(iss=None, realm={"roles": ["staff"]}))
    assert isinstance(found, VerifiedToken)
    principal = found.principal
    assert principal.key == (issuer.issuer, "agent-1", "alice")
    assert (principal.scopes, principal.roles) == (frozenset({"mcp:use", "files:read"}), frozenset({"staff"}))
    assert principal.expires_at == found.expires_at
    assert issuer.questions == [{"token": "opaque-1", "token_type_hint": "access_token"}]
    assert "opaque-1" not in repr(found)


async def test_an_opaque_token_of_a_machine_has_no_subject(issuer: LoopbackIssuer) -> None:
    """B7, H6."""
    found = await verifier_for(issuer).verify_token(issuer.opaque(sub=None))
    assert found is not None
    assert found.principal.key == (issuer.issuer, "agent-1", "agent-1")


async def test_we_prove_ourselves_by_a_key(issuer: LoopbackIssuer) -> None:
    issuer.client = None
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    verifier = verifier_for(issuer, authentication=PrivateKeyJWT("gateway", pem))
    assert await verifier.verify_token(issuer.opaque()) is not None
    [form] = issuer.questions
    claims = jwt.decode(form["client_assertion"], private.public_key(), ["ES256"], audience=issuer.issuer)
    assert (claims["iss"], claims["sub"]) == ("gateway", "gateway")


async def test_a_configured_endpoint_needs_no_discovery(issuer: LoopbackIssuer) -> None:
    verifier = verifier_for(issuer, endpoint=f"{issuer.url}/introspect")
    assert await verifier.verify_token(issuer.opaque()) is not None
    assert dict(issuer.fetches) == {"/introspect": 1}


async def test_a_token_in_any_characters_is_sent_as_it_is(issuer: LoopbackIssuer) -> None:
    verifier = verifier_for(issuer)
    token = issuer.opaque("a+b/c=~._-==")
    assert await verifier.verify_token(token) is not None
    assert issuer.questions[0]["token"] == token
    assert parse_qs("token=a%2Bb")["token"] == ["a+b"]


async def test_case_7_an_answer_counts_for_a_while_and_never_past_the_end(issuer: LoopbackIssuer) -> None:
    """B7: revocation is seen within the stated time."""
    monotonic, clock = FakeClock(), FakeClock(time.time())
    verifier = verifier_for(issuer, monotonic, clock=clock)
    token = issuer.opaque(exp=int(clock.now) + 40)
    first = await verifier.verify_token(token)
    assert first is not None
    del issuer.active[token]
    monotonic.advance(29.9)
    assert await verifier.verify_token(token) is first
    assert verifier.recall(f"Bearer {token}".encode()) is first
    monotonic.advance(0.1)
    assert verifier.recall(f"Bearer {token}".encode()) is None
    assert await verifier.verify_token(token) is None, "revocation is seen"

    token = issuer.opaque("opaque-2", exp=int(clock.now) + 40)
    assert await verifier.verify_token(token) is not None
    monotonic.advance(30)
    assert await verifier.verify_token(token) is not None
    clock.advance(40)
    assert verifier.recall(f"Bearer {token}".encode()) is None
    assert await verifier.verify_token(token) is None, "it has ended, whatever the issuer says"


async def test_case_7_a_token_that_ends_sooner_counts_no_longer(issuer: LoopbackIssuer) -> None:
    monotonic, clock = FakeClock(), FakeClock(time.time())
    verifier = verifier_for(issuer, monotonic, clock=clock)
    token = issuer.opaque(exp=int(clock.now) + 10)
    assert await verifier.verify_token(token) is not None
    monotonic.advance(10)  # though the clock was set back meanwhile
    assert verifier.recall(f"Bearer {token}".encode()) is None


async def test_case_7_tokens_are_told_apart_by_all_of_their_bytes(issuer: LoopbackIssuer) -> None:
    verifier = verifier_for(issuer)
    token = issuer.opaque("a" * 200)
    assert await verifier.verify_token(token) is not None
    for other in ("a" * 199, "a" * 201, "a" * 199 + "b", "A" + "a" * 199):
        assert await verifier.verify_token(other) is None
    assert len(issuer.questions) == 5


async def test_without_a_cache_every_request_asks(issuer: LoopbackIssuer) -> None:
    verifier = verifier_for(issuer, cache=0)
    token = issuer.opaque()
    for _ in range(3):
        assert await verifier.verify_token(token) is not None
    assert len(issuer.questions) == 3


async def test_a_refused_token_is_not_asked_about_at_once_again(issuer: LoopbackIssuer) -> None:
    monotonic = FakeClock()
    verifier = verifier_for(issuer, monotonic)
    for _ in range(3):
        assert await verifier.verify_token("junk") is None
    assert len(issuer.questions) == 1
    monotonic.advance(10)
    issuer.opaque("junk")
    assert await verifier.verify_token("junk") is not None


async def test_junk_pushes_out_no_good_token(issuer: LoopbackIssuer) -> None:
    verifier = verifier_for(issuer, cache_size=2)
    token = issuer.opaque()
    first = await verifier.verify_token(token)
    for number in range(10):
        assert await verifier.verify_token(f"junk-{number}") is None
    assert await verifier.verify_token(token) is first


async def test_one_question_for_each_token_whoever_asks(issuer: LoopbackIssuer) -> None:
    verifier = verifier_for(issuer)
    token = issuer.opaque()
    issuer.open.clear()
    leaving = asyncio.create_task(verifier.verify_token(token))
    staying = [asyncio.create_task(verifier.verify_token(token)) for _ in range(20)]
    await issuer.asked.wait()
    leaving.cancel()
    issuer.open.set()
    assert None not in await asyncio.gather(*staying)
    assert leaving.cancelled()
    assert len(issuer.questions) == 1


async def test_case_6_a_flood_of_made_up_tokens_drowns_nobody(issuer: LoopbackIssuer) -> None:
    monotonic = FakeClock()
    verifier = verifier_for(issuer, monotonic)
    good = issuer.opaque()
    first = await verifier.verify_token(good)
    flood = [verifier.verify_token(f"junk-{number}") for number in range(1000)]
    outcomes = await asyncio.gather(*flood, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {type(None), IssuerUnavailableError}
    asked = len(issuer.questions)
    assert asked <= 1 + introspection._FRUITLESS_BURST + 2 * introspection._AT_ONCE
    with pytest.raises(IssuerUnavailableError):  # nobody knows of this one, and it is not asked about now
        await verifier.verify_token(issuer.opaque("new"))
    assert await verifier.verify_token(good) is first
    monotonic.advance(1)
    assert await verifier.verify_token("new") is not None
    assert len(issuer.questions) == asked + 1


async def test_case_42_introspection_down(issuer: LoopbackIssuer) -> None:
    """Cached answers count to their end; then 503, and the issuer is left alone for growing times."""
    monotonic = FakeClock()
    verifier = verifier_for(issuer, monotonic)
    good = issuer.opaque()
    assert await verifier.verify_token(good) is not None
    issuer.status = 503
    monotonic.advance(29)
    assert await verifier.verify_token(good) is not None
    monotonic.advance(1)
    for pause in (1, 2, 4, 8, 10, 10):
        asked = issuer.fetches["/introspect"]
        for number in range(5):
            with pytest.raises(IssuerUnavailableError) as caught:
                await verifier.verify_token(good if number == 0 else f"other-{number}")
        assert caught.value.retry_after == pause
        assert issuer.fetches["/introspect"] == asked + 1
        monotonic.advance(pause)
    issuer.status = 200
    assert await verifier.verify_token(good) is not None
    assert await verifier.verify_token("junk") is None


async def test_case_42_questions_under_way_together_fail_as_one_however_late_one_of_them_does(
    issuer: LoopbackIssuer,
) -> None:
    """A late one in the middle of the next trial made the pause longer, for an issuer that may be back."""
    monotonic = FakeClock()
    verifier = verifier_for(issuer, monotonic)
    assert await verifier.verify_token(issuer.opaque()) is not None

    async def asked(token: str) -> asyncio.Task[VerifiedToken | None]:
        issuer.asked.clear()
        question = asyncio.create_task(verifier.verify_token(token))
        await issuer.asked.wait()
        return question

    issuer.active = {name: Response(status_code=503) for name in ("late", "early", "trial")}
    issuer.held = {name: asyncio.Event() for name in ("late", "trial")}
    late = await asked("late")
    with pytest.raises(IssuerUnavailableError):
        await verifier.verify_token("early")
    monotonic.advance(1)
    trial = await asked("trial")
    for name, question, pause in [("late", late, 1), ("trial", trial, 2)]:
        issuer.held[name].set()
        with pytest.raises(IssuerUnavailableError) as caught:
            await question
        assert caught.value.retry_after == pause


async def test_case_42_nobody_waits_for_an_issuer_that_is_known_to_be_silent(
    issuer: LoopbackIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(introspection, "_SILENT", 0.0)  # any failure is one of silence
    monotonic = FakeClock()
    verifier = verifier_for(issuer, monotonic)
    good = issuer.opaque()
    issuer.status = 503
    with pytest.raises(IssuerUnavailableError):
        await verifier.verify_token(good)
    issuer.status = 200
    issuer.open.clear()
    monotonic.advance(1)
    async with asyncio.timeout(2):  # far below the time-out of a request
        for _ in range(3):
            with pytest.raises(IssuerUnavailableError):
                await verifier.verify_token(good)
    issuer.open.set()
    assert await eventually(verifier, good) is not None


@pytest.mark.parametrize(
    "answer",
    [
        Response(b"<html>", 200),
        Response(b"", 200),
        Response(b"[]", 200),
        Response(b'{"active":true,"active":true}', 200),
        Response(b"x" * 300_000, 200),
        JSONResponse({"error": "invalid_client"}, 401),
        JSONResponse({"active": True}, 403),
        JSONResponse({"active": True}, 302, {"location": "/elsewhere"}),
        JSONResponse({"active": True}, 500),
        JSONResponse({"active": True}, 201),
    ],
    ids=lambda answer: f"{answer.status_code}-{len(answer.body)}",
)
async def test_an_answer_that_is_none_is_nobodys_fault(issuer: LoopbackIssuer, answer: Response) -> None:
    issuer.active["token"] = answer
    with pytest.raises(IssuerUnavailableError):
        await verifier_for(issuer).verify_token("token")
    assert "/elsewhere" not in issuer.fetches


@pytest.mark.parametrize("answer", [Response(b"oops", 500), Response(b"x" * 300_000), Response(status_code=302)])
async def test_one_strange_answer_stops_no_other_token(issuer: LoopbackIssuer, answer: Response) -> None:
    """Else whoever finds a token that the issuer fails on would stop everybody."""
    issuer.active["poison"] = answer
    verifier = verifier_for(issuer)
    with pytest.raises(IssuerUnavailableError):
        await verifier.verify_token("poison")
    assert await verifier.verify_token(issuer.opaque()) is not None


@pytest.mark.parametrize("elsewhere", [None, "http://127.0.0.1:9"], ids=["404", "nobody"])
async def test_an_endpoint_that_moved_is_found_again(issuer: LoopbackIssuer, elsewhere: str | None) -> None:
    monotonic = FakeClock()
    verifier = verifier_for(issuer, monotonic)
    token, place = issuer.opaque(), "/.well-known/oauth-authorization-server"
    issuer.metadata_changes = {"introspection_endpoint": f"{elsewhere or issuer.url}/old"}
    with pytest.raises(IssuerUnavailableError):
        await verifier.verify_token(token)
    monotonic.advance(2)
    with pytest.raises(IssuerUnavailableError):
        await verifier.verify_token(token)
    issuer.metadata_changes = {}
    monotonic.advance(2)
    assert await verifier.verify_token(token) is not None
    assert issuer.fetches[place] == 2


async def test_a_crowd_at_the_same_origin_is_no_outage(issuer: LoopbackIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = verifier_for(issuer)
    assert await verifier.verify_token(issuer.opaque()) is not None
    issuer.open.clear()
    issuer.asked.clear()
    client = verifier._sources._client
    crowd = [asyncio.create_task(client.get(f"{issuer.url}/jwks")) for _ in range(20)]
    await issuer.asked.wait()
    monkeypatch.setattr(http, "_QUEUE_TIMEOUT", 0.01)
    with pytest.raises(IssuerUnavailableError):
        await verifier.verify_token(issuer.opaque("late"))
    issuer.open.set()
    await asyncio.gather(*crowd)
    assert await verifier.verify_token("late") is not None, "without a pause"


async def test_metadata_that_do_not_come_are_an_outage(issuer: LoopbackIssuer) -> None:
    issuer.metadata_changes = {"issuer": "https://evil.example"}
    with pytest.raises(IssuerUnavailableError):
        await verifier_for(issuer).verify_token(issuer.opaque())
    assert not issuer.questions


async def test_a_sibling_shares_no_token(issuer: LoopbackIssuer) -> None:
    first = verifier_for(issuer)
    second = first.for_resource("https://files.example.com/other")
    token = issuer.opaque()
    assert await first.verify_token(token) is not None
    assert await second.verify_token(token) is None, "it is for another resource"
    assert await second.verify_token(issuer.opaque("opaque-2", aud=second.resource)) is not None


async def test_case_35_the_log_has_no_token(issuer: LoopbackIssuer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mcp_middleware")
    verifier = verifier_for(issuer)
    assert await verifier.verify_token("a-made-up-token") is None
    issuer.active["poison-token"] = Response(b"oops", 500)
    with pytest.raises(IssuerUnavailableError):
        await verifier.verify_token("poison-token")
    assert "does not call it active" in caplog.text
    assert not any(secret in caplog.text for secret in ("a-made-up-token", "poison-token", SECRET.secret))


async def test_a_closed_verifier_leaves_nothing_behind_and_can_be_used_again(issuer: LoopbackIssuer) -> None:
    before = asyncio.all_tasks()
    verifier = verifier_for(issuer)
    token = issuer.opaque()
    issuer.open.clear()
    waiting = asyncio.create_task(verifier.verify_token(token))
    await issuer.asked.wait()
    await verifier.aclose()
    with pytest.raises(IssuerUnavailableError):
        await waiting
    issuer.open.set()
    assert not {task for task in asyncio.all_tasks() - before if task.get_name().startswith("introspection")}
    assert await verifier.verify_token(token) is not None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"authentication": None}, "authentication"),
        ({"authentication": "secret"}, "authentication"),
        ({"endpoint": "http://login.example.com"}, "endpoint"),
        ({"endpoint": "/introspect"}, "endpoint"),
        ({"cache": -1}, "cache"),
        ({"cache": 301}, "cache"),
        ({"cache": "30"}, "cache"),
        ({"cache": True}, "cache"),
        ({"cache": float("nan")}, "cache"),
    ],
)
def test_a_wrong_option_of_introspection_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Introspection\.{named}"):
        Introspection(**{"authentication": SECRET, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"introspection": "https://login.example.com/introspect"},
        {"introspection": Introspection(SECRET), "typ": "any"},
        {"introspection": Introspection(SECRET), "algorithms": ["ES256"]},
        {"introspection": Introspection(SECRET), "jwks_uri": "https://login.example.com/jwks"},
        {"allow_private_addresses": "yes"},
    ],
)
def test_options_of_an_issuer_that_do_not_go_together_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"Issuer\."):
        Issuer("https://login.example.com", **options)


def test_a_secret_is_never_shown() -> None:
    assert "hunter2" not in repr(Issuer("https://a.example", introspection=Introspection(ClientSecret("c", "hunter2"))))


def test_the_verifier_for_introspection_needs_it() -> None:
    with pytest.raises(ConfigurationError, match="introspection"):
        IntrospectionVerifier(resource=RESOURCE, issuer=Issuer("https://login.example.com"))


async def test_the_issuer_says_how_it_wants_the_secret(issuer: LoopbackIssuer) -> None:
    """RFC 8414 section 2."""
    issuer.metadata_changes = {"introspection_endpoint_auth_methods_supported": ["client_secret_post"]}
    issuer.client = None
    token = issuer.opaque()
    assert await verifier_for(issuer).verify_token(token) is not None
    assert (issuer.questions[-1]["client_id"], issuer.questions[-1]["client_secret"]) == ("gateway", "secret")
