"""Clients that act for themselves, and how clients prove who they are."""

import base64
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from examples.authorization_server import Client
from mcp_middleware.errors import ConfigurationError
from tests.authorization_server.flows import CALLBACK, FILES, MAIL, claims_of, error_of, good, introspect
from tests.authorization_server.running import ASSERTION_TYPE, Credentials, RunningServer, running

GRANT = {"grant_type": "client_credentials", "resource": FILES, "scope": "mcp:use"}


def basic(client_id: str, secret: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()}


def by(assertion: str, **changes: str | None) -> dict[str, str | None]:
    return {**GRANT, "client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion, **changes}


async def test_a_secret_buys_a_token_that_is_the_clients_own(issuer: RunningServer) -> None:
    agent = issuer.add_client("agent", scopes=["mcp:use", "files:read"], roles=["admin"])
    answer = good(await issuer.post("/token", {**GRANT, "scope": "notes:read mcp:use", **agent.proof(issuer.issuer)}))
    assert answer["scope"] == "mcp:use", "what the client may have of it"
    assert "refresh_token" not in answer
    claims = claims_of(issuer, answer["access_token"])
    assert (claims["sub"], claims["client_id"], claims["roles"]) == ("agent", "agent", ["admin"])
    answer = good(await issuer.post("/token", {**GRANT, "scope": None, **agent.proof(issuer.issuer)}))
    assert answer["scope"] == "files:read mcp:use", "all, where nothing is asked for"


async def test_a_secret_comes_in_the_header_too_encoded_as_a_form(issuer: RunningServer) -> None:
    issuer.server.add_client(Client.from_dict({"client_id": "a b", "secret": "c:d%+"}))
    good(await issuer.post("/token", GRANT, headers=basic("a+b", "c%3Ad%25%2B")))
    good(await issuer.post("/token", GRANT, headers=basic("a%20b", "c%3Ad%25%2B")))
    good(await issuer.post("/token", {**GRANT, "client_id": "a b"}, headers=basic("a+b", "c%3Ad%25%2B")))


async def test_other_proofs_are_refused(issuer: RunningServer, subtests: pytest.Subtests) -> None:
    agent = issuer.add_client("agent")
    issuer.add_client("keyed", key=True)
    issuer.add_client("app", public=True, redirect_uris=[CALLBACK])
    right = agent.secret or ""
    fields: dict[str, str]
    headers: dict[str, str]
    for fields, headers in (
        ({}, {}),
        ({"client_id": "agent"}, {}),
        ({"client_id": "agent", "client_secret": "wrong"}, {}),
        ({"client_id": "keyed", "client_secret": right}, {}),
        ({"client_id": "app"}, {}),
        ({"client_id": "nobody", "client_secret": right}, {}),
        ({}, basic("agent", "wrong")),
        ({}, basic("agent", "")),
        ({}, basic("keyed", "")),
        ({}, basic("nobody", right)),
        ({"client_id": "keyed"}, basic("agent", right)),
        ({}, {"authorization": "Basic !"}),
        ({}, {"authorization": "Basic " + base64.b64encode(b"\xff:\xff").decode()}),
        ({}, {"authorization": "Basic"}),
        ({}, {"authorization": f"Bearer {right}"}),
    ):
        with subtests.test(fields=fields, headers=headers):
            assert error_of(await issuer.post("/token", {**GRANT, **fields}, headers=headers)) == "invalid_client"
    twice = await issuer.post("/token", {**GRANT, **agent.proof("")}, headers=basic("agent", right))
    assert error_of(twice) == "invalid_request"


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
async def test_a_key_buys_a_token(issuer: RunningServer, algorithm: str) -> None:
    rsa_key = rsa.generate_private_key(65537, 2048)
    key: Any = ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else rsa_key
    public = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    issuer.server.add_client(Client.from_dict({"client_id": "keyed", "public_key": public}))
    now = int(time.time())
    claims = {"iss": "keyed", "sub": "keyed", "aud": issuer.issuer, "exp": now + 60, "jti": "1"}
    answer = good(await issuer.post("/token", by(jwt.encode(claims, key, algorithm=algorithm))))
    assert claims_of(issuer, answer["access_token"])["sub"] == "keyed"


async def test_an_assertion_is_good_once(issuer: RunningServer) -> None:
    keyed = issuer.add_client("keyed", key=True)
    once = keyed.assertion(issuer.issuer)
    good(await issuer.post("/token", by(once)))
    assert error_of(await issuer.post("/token", by(once))) == "invalid_client"


async def test_an_assertion_that_lives_too_long_is_told_so(issuer: RunningServer) -> None:
    keyed = issuer.add_client("keyed", key=True)
    answer = await issuer.post("/token", by(keyed.assertion(issuer.issuer, exp=int(time.time()) + 86_400)))
    assert answer.json()["error_description"] == "The assertion must end within 300 seconds."


async def test_an_assertion_of_another_making_is_refused(issuer: RunningServer, subtests: pytest.Subtests) -> None:
    keyed, other = issuer.add_client("keyed", key=True), issuer.add_client("other", key=True)
    agent = issuer.add_client("agent")
    now = int(time.time())
    for changes in (
        {"aud": f"{issuer.issuer}/token"},
        {"aud": f"{issuer.issuer}/"},
        {"aud": [issuer.issuer, "https://elsewhere.example.com"]},
        {"aud": None},
        {"aud": {"a": "b"}},
        {"iss": "other"},
        {"iss": None},
        {"sub": "other"},
        {"sub": "nobody"},
        {"sub": "agent", "iss": "agent"},
        {"sub": ["keyed"]},
        {"sub": None},
        {"exp": now - 100},
        {"exp": now + 86_400},
        {"exp": 1e400},
        {"exp": "soon"},
        {"exp": None},
        {"nbf": now + 600},
        {"jti": None},
        {"jti": ["1"]},
        {"jti": ""},
    ):
        with subtests.test(changes=changes):
            assertion = keyed.assertion(issuer.issuer, **changes)
            assert error_of(await issuer.post("/token", by(assertion))) == "invalid_client"
    claims = {"iss": "keyed", "sub": "keyed", "aud": issuer.issuer, "exp": now + 60, "jti": "2"}
    public = serialization.load_pem_private_key((keyed.private_key or "").encode(), None).public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    signed = ".".join(jwt.encode(claims, "0" * 32, algorithm="HS256").split(".")[:2])
    confused = jwt.get_algorithm_by_name("HS256").sign(signed.encode(), pem)
    for name, forged in {
        "unsigned": jwt.encode(claims, "", algorithm="none"),
        "signed with the public key": f"{signed}.{base64.urlsafe_b64encode(confused).decode().rstrip('=')}",
        "signed by another": jwt.encode(claims, other.private_key or "", algorithm="ES256"),
        "no token": "nonsense",
        "hardly a token": "a.b.c",
        "a list": jwt.api_jws.encode(b"[]", keyed.private_key or "", algorithm="ES256"),
        "no JSON": jwt.api_jws.encode(b"{", keyed.private_key or "", algorithm="ES256"),
        "critical": jwt.encode(claims, keyed.private_key or "", algorithm="ES256", headers={"crit": ["x"], "x": 1}),
    }.items():
        with subtests.test(name):
            assert error_of(await issuer.post("/token", by(forged))) == "invalid_client"
    assert (
        error_of(await issuer.post("/token", by(keyed.assertion(issuer.issuer), client_id="other"))) == "invalid_client"
    )
    wrong_type = by(keyed.assertion(issuer.issuer), client_assertion_type="jwt")
    assert error_of(await issuer.post("/token", wrong_type)) == "invalid_client"
    good(await issuer.post("/token", by(keyed.assertion(issuer.issuer), client_id="keyed")))
    assert agent.secret is not None


async def test_what_machines_may_not_have(issuer: RunningServer, subtests: pytest.Subtests) -> None:
    agent = issuer.add_client("agent", scopes=["mcp:use"])
    for changes, error in (
        ({"scope": "admin"}, "invalid_scope"),
        ({"resource": None}, "invalid_target"),
        ({"resource": "https://elsewhere.example.com/mcp"}, "invalid_target"),
        ({"grant_type": "authorization_code", "code": "x"}, "unauthorized_client"),
        ({"grant_type": "refresh_token", "refresh_token": "x"}, "unauthorized_client"),
        ({"grant_type": 'pass"word'}, "unsupported_grant_type"),
    ):
        with subtests.test(changes=changes):
            form = {**GRANT, **agent.proof(issuer.issuer), **changes}
            assert error_of(await issuer.post("/token", form)) == error
    for content in (
        "grant_type=client_credentials&grant_type=client_credentials",
        f"resource={FILES}&resource={MAIL}&grant_type=client_credentials",
        "grant_type=client_credentials&scope=%ff",
        "&".join(f"x{number}=1" for number in range(100)),
        "x=" + "y" * 70_000,
    ):
        with subtests.test(content=content[:60]):
            headers = {"content-type": "application/x-www-form-urlencoded", **basic("agent", agent.secret or "")}
            refused = await issuer.http.post("/token", content=content, headers=headers)
            assert error_of(refused) in ("invalid_request", "invalid_target")
    refused = await issuer.http.post("/token", json=GRANT, headers=basic("agent", agent.secret or ""))
    assert error_of(refused) == "invalid_request"


async def test_without_choice_a_resource_need_not_be_named() -> None:
    async with running(resources=[FILES]) as issuer:
        token = await issuer.token(issuer.add_client(), None, "mcp:use")
        assert claims_of(issuer, token)["aud"] == FILES


async def test_introspection_answers_those_it_concerns(issuer: RunningServer, subtests: pytest.Subtests) -> None:
    agent = issuer.add_client("agent")
    files, mail = issuer.add_client("files", serves=[FILES]), issuer.add_client("mail", key=True, serves=[MAIL])
    for form in ("jwt", "opaque"):
        with subtests.test(form):
            issuer.form = form
            token = await issuer.token(agent, FILES, "mcp:use")
            told = await introspect(issuer, files, token)
            expected = {"active": True, "iss": issuer.issuer, "sub": "agent", "client_id": "agent", "aud": FILES}
            assert expected.items() <= told.items()
            assert (told["scope"], told["token_type"]) == ("mcp:use", "Bearer")
            assert await introspect(issuer, agent, token) == told, "its own"
            assert await introspect(issuer, mail, token) == {"active": False}
            assert await introspect(issuer, files, token + "x") == {"active": False}
    assert error_of(await issuer.post("/introspect", {"token": token})) == "invalid_client"
    app = issuer.add_client("app", public=True, redirect_uris=[CALLBACK])
    assert error_of(await issuer.post("/introspect", {"token": token, **app.proof("")})) == "invalid_client"
    assert error_of(await issuer.post("/introspect", files.proof(""))) == "invalid_request"


async def test_introspection_can_leave_out_the_subject_of_a_machine() -> None:
    async with running(resources=[FILES], machines_have_subjects=False, form="opaque") as issuer:
        agent = issuer.add_client("agent")
        told = await introspect(issuer, agent, await issuer.token(agent, FILES))
        assert "sub" not in told
        assert told["client_id"] == "agent"


async def test_a_token_ends() -> None:
    now = [1_800_000_000.0]
    async with running(resources=[FILES], lifetime=60, clock=lambda: now[0]) as issuer:
        agent = issuer.add_client("agent")
        token = await issuer.token(agent, FILES)
        now[0] += 59
        assert (await introspect(issuer, agent, token))["active"] is True
        now[0] += 1
        assert await introspect(issuer, agent, token) == {"active": False}


async def test_a_form_can_be_one_resources_own() -> None:
    async with running(resources=[FILES, MAIL], forms={MAIL: "opaque"}, algorithm="RS256") as issuer:
        agent = issuer.add_client("agent")
        token = await issuer.token(agent, FILES)
        assert jwt.get_unverified_header(token)["alg"] == "RS256"
        assert claims_of(issuer, token)["sub"] == "agent"
        assert "." not in await issuer.token(agent, MAIL)


async def revoke(issuer: RunningServer, client: Credentials, token: str, **more: str) -> None:
    answer = await issuer.post("/revoke", {"token": token, **client.proof(issuer.issuer), **more})
    assert answer.status_code == 200


async def test_a_client_revokes_its_own(issuer: RunningServer) -> None:
    agent, other = issuer.add_client("agent"), issuer.add_client("other")
    token = await issuer.token(agent, FILES)
    assert error_of(await issuer.post("/revoke", {"token": token, **other.proof("")})) == "invalid_grant"
    assert (await introspect(issuer, agent, token))["active"] is True
    await revoke(issuer, agent, token, token_type_hint="whatever")
    assert await introspect(issuer, agent, token) == {"active": False}
    await revoke(issuer, agent, token)
    await revoke(issuer, agent, "nonsense")
    assert error_of(await issuer.post("/revoke", agent.proof(""))) == "invalid_request"
    assert error_of(await issuer.post("/revoke", {"token": token})) == "invalid_client"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"client_id": ""},
        {"client_id": 5, "secret": "x"},
        {"client_id": 'a"b', "secret": "x"},
        {"client_id": "https://app.example.com/client", "secret": "x"},
        {"client_id": "a"},
        {"client_id": "a", "secret": ""},
        {"client_id": "a", "secret": 5},
        {"client_id": "a", "secret": "x", "public_key": {}},
        {"client_id": "a", "public_key": {}},
        {"client_id": "a", "public_key": "x"},
        {"client_id": "a", "public_key": {"kty": "oct", "k": "AAAA"}},
        {"client_id": "a", "public_key": {"kty": "EC", "crv": "P-256"}},
        {"client_id": "a", "secret": "x", "scopes": "mcp:use"},
        {"client_id": "a", "secret": "x", "roles": [5]},
        {"client_id": "a", "redirect_uris": ["http://example.com/"]},
        {"client_id": "a", "secret": "x", "scope": "mcp:use"},
    ],
)
def test_a_wrong_client_is_refused_with_its_name(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"client|client_id"):
        Client.from_dict(values)
