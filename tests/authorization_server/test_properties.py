"""Whatever is sent, the server knows what to say: no parameter makes it fail."""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc.jwk import KeySet
from jwt.algorithms import ECAlgorithm

from examples.authorization_server import AuthorizationServer, Client, create_app
from examples.authorization_server.clients import ClientMetadata
from examples.authorization_server.tokens import Remembered
from tests.authorization_server.flows import ACCESS_TOKEN, CALLBACK, EXCHANGE, FILES, VERIFIER
from tests.authorization_server.running import ASSERTION_TYPE
from tests.authorization_server.test_exchange import IDP, IDP_KEY, JWT_BEARER

ISSUER = "http://127.0.0.1:9000"

SECRET = {"client_id": "agent", "secret": "secret"}
APP = {"client_id": "app", "redirect_uris": [CALLBACK, "com.example.app:/callback"]}
CALLBACKS = (CALLBACK, "com.example.app:/callback", "http://127.0.0.1:1/callback")
KEYED = {"client_id": "keyed", "public_key": IDP_KEY.as_dict(private=False)}
ES256 = ECAlgorithm(ECAlgorithm.SHA256)
KEY: Any = ES256.prepare_key(IDP_KEY.as_pem(private=True))

anything = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["\0", '"', "\\", "\r\nx: y", "\ud800", "é", "%", "{}", "a" * 5000, "http://[", "https://a b", "null"]
    ),
)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
    max_leaves=5,
)


def one_of(*usual: str) -> st.SearchStrategy[str]:
    """Mostly what is usual, so that what comes later is reached."""
    return st.sampled_from(usual) | anything


def segment(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode("utf-8", "surrogatepass")
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


headers = st.fixed_dictionaries(
    {"alg": st.sampled_from(["ES256", "HS256", "none"]) | jsons},
    optional={
        "typ": st.sampled_from(["oauth-id-jag+jwt"]) | jsons,
        "kid": jsons,
        "crit": jsons,
        "b64": jsons,
        "jwk": jsons,
    },
)
claims = st.fixed_dictionaries(
    {},
    optional={
        "iss": st.sampled_from([IDP, "keyed"]) | jsons,
        "sub": st.sampled_from(["keyed", "alice"]) | jsons,
        "aud": st.just(ISSUER) | jsons,
        "exp": st.just(4_000_000_000) | jsons,
        "iat": jsons,
        "nbf": jsons,
        "jti": jsons,
        "client_id": st.just("keyed") | jsons,
        "scope": jsons,
        "resource": jsons,
        "act": jsons,
        "cnf": jsons,
    },
)


@st.composite
def signed(draw: st.DrawFn) -> str:
    """A token whose signature holds, whatever is in it."""
    signed = f"{segment(draw(headers))}.{segment(draw(claims | jsons | st.binary(max_size=20)))}"
    return f"{signed}.{segment(ES256.sign(signed.encode(), KEY))}"


assertions = signed() | st.builds("{}.{}.{}".format, anything, anything, anything) | anything

PARAMETERS: dict[str, st.SearchStrategy[str]] = {
    "grant_type": one_of(
        "authorization_code", "refresh_token", "client_credentials", EXCHANGE, JWT_BEARER, "urn:x", "password"
    ),
    "client_id": one_of("agent", "app", "keyed"),
    "client_secret": one_of("secret"),
    "client_assertion_type": one_of(ASSERTION_TYPE),
    "client_assertion": assertions,
    "response_type": one_of("code", "token", "code token"),
    "redirect_uri": one_of(*CALLBACKS),
    "scope": one_of("mcp:use", "a b", " "),
    "state": anything,
    "resource": one_of(FILES),
    "audience": one_of(FILES),
    "code_challenge": one_of(VERIFIER),
    "code_challenge_method": one_of("S256", "plain"),
    "code": one_of("code"),
    "code_verifier": one_of(VERIFIER),
    "refresh_token": one_of("refresh"),
    "subject_token": one_of("access"),
    "subject_token_type": one_of(ACCESS_TOKEN),
    "requested_token_type": one_of(ACCESS_TOKEN),
    "actor_token": anything,
    "assertion": assertions,
    "token": one_of("access", "refresh"),
    "token_type_hint": one_of("access_token"),
    "request": anything,
    "user": one_of("alice"),
    "decision": one_of("allow"),
    "prompt": one_of("none", "consent"),
    "request_uri": anything,
}
forms = st.fixed_dictionaries({}, optional=PARAMETERS)
proofs = st.one_of(
    st.none(),
    st.just("Basic " + base64.b64encode(b"agent:secret").decode()),
    st.binary(max_size=20).map(lambda value: "Basic " + base64.b64encode(value).decode()),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
)


def encoded(form: dict[str, str]) -> bytes:
    return "&".join(
        f"{quote(name)}={quote(value.encode('utf-8', 'surrogatepass'))}" for name, value in form.items()
    ).encode()


Answers = Callable[..., httpx2.Response]


@pytest.fixture(scope="module")
def answers() -> Iterator[Answers]:
    """Asks one server; an exception in it is the test's."""
    clients = [Client.from_dict(values) for values in (SECRET, APP, KEYED)]
    keys = {IDP: KeySet([IDP_KEY])}
    server = AuthorizationServer(ISSUER, resources=[FILES], clients=clients, identity_providers=keys)
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(create_app(server)), base_url=ISSUER)
    with asyncio.Runner() as runner:
        yield lambda *request, **options: runner.run(http.request(*request, **options))
        runner.run(http.aclose())


bounded = settings(suppress_health_check=[HealthCheck.too_slow])
FORM = "application/x-www-form-urlencoded"


@bounded
@given(
    path=st.sampled_from(["/token", "/token", "/token", "/introspect", "/revoke", "/consent"]), form=forms, proof=proofs
)
def test_no_form_makes_it_fail(answers: Answers, path: str, form: dict[str, str], proof: str | None) -> None:
    sent = {"content-type": FORM} | ({"authorization": proof} if proof else {})
    response = answers("POST", path, content=encoded(form), headers=sent)
    assert response.status_code in (200, 303, 400, 401)


@bounded
@given(form=forms)
def test_no_question_makes_it_fail(answers: Answers, form: dict[str, str]) -> None:
    usual = {"response_type": "code", "client_id": "app", "code_challenge": VERIFIER, "code_challenge_method": "S256"}
    query = encoded({**usual, "redirect_uri": CALLBACK, **form}).decode()
    response = answers("GET", f"/authorize?{query}")
    assert response.status_code in (200, 303, 400)
    if response.status_code == 303:
        assert response.headers["location"].startswith(CALLBACKS)


@bounded
@given(assertion=signed(), redeemed=st.booleans())
def test_no_assertion_makes_it_fail(answers: Answers, assertion: str, redeemed: bool) -> None:
    form = {"grant_type": JWT_BEARER, "assertion": assertion, "client_id": "agent", "client_secret": "secret"}
    if not redeemed:
        proof = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion}
        form = {"grant_type": "client_credentials", **proof}
    response = answers("POST", "/token", content=encoded(form), headers={"content-type": FORM})
    assert response.status_code in (200, 400, 401)


@bounded
@given(
    document=st.dictionaries(
        st.sampled_from(["client_secret", "software_statement", *ClientMetadata.REGISTERED_CLAIMS]), jsons
    )
    | jsons
)
def test_no_registration_makes_it_fail(answers: Answers, document: Any) -> None:
    if isinstance(document, dict):
        document.setdefault("redirect_uris", [CALLBACK])
    content = json.dumps(document)
    response = answers("POST", "/register", content=content, headers={"content-type": "application/json"})
    assert response.status_code in (201, 400)


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 20), st.sampled_from(["put", "pop", "get", "wait"])))
)
def test_what_is_remembered_is_bounded_and_ends(steps: list[tuple[str, int, str]]) -> None:
    now = [0.0]
    remembered: Remembered[int] = Remembered(lambda: now[0], most=3)
    model: dict[str, tuple[int, float]] = {}
    for number, (name, seconds, step) in enumerate(steps):
        if step == "put":
            remembered.put(name, number, now[0] + seconds)
            model[name] = (number, now[0] + seconds)
        elif step == "wait":
            now[0] += seconds
        else:
            found = remembered.pop(name) if step == "pop" else remembered.get(name)
            value, end = model.get(name, (None, 0.0))
            assert found in (None, value)
            assert found is None or end > now[0]
            if step == "pop":
                model.pop(name, None)
        assert len(remembered) <= 3
