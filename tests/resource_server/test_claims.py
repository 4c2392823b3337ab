"""Who a token speaks of: the claims of real issuers, and those that are bent."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.resource_server import Claims, Issuer
from mcp_middleware.resource_server.claims import Identity, InvalidTokenError, identity_of
from mcp_middleware.resource_server.tokens import check_claims
from tests.resource_server.issuer import RESOURCE

NOW = 1_800_000_000
TIMES: Mapping[str, int] = {"iat": NOW, "nbf": NOW, "exp": NOW + 3600}

KEYCLOAK: dict[str, Any] = {
    "iss": "https://keycloak.example.com/realms/example",
    "aud": [RESOURCE, "account"],
    "sub": "f81d4fae-7dec-41d0-a765-00a0c91e6bf6",
    "typ": "Bearer",
    "azp": "editor",
    "sid": "70b4a2f1",
    "acr": "1",
    "allowed-origins": ["http://localhost:3000"],
    "realm_access": {"roles": ["offline_access", "staff"]},
    "resource_access": {"files.example.com": {"roles": ["writer"]}, "account": {"roles": ["view-profile"]}},
    "scope": "openid mcp:use",
    "email_verified": True,
    "preferred_username": "alice",
}
AUTH0 = {
    "iss": "https://example.eu.auth0.com/",
    "sub": "auth0|650c1b2f9c0d5e3f7a8b9c0d",
    "aud": [RESOURCE, "https://example.eu.auth0.com/userinfo"],
    "azp": "q7JmXn3wPzT0vKcB5sRdYh2LfGaEo8Ui",
    "scope": "openid",
    "permissions": ["mcp:use", "files:write"],
    "https://example.com/roles": ["staff"],
}
AUTH0_MACHINE = {
    "iss": "https://example.eu.auth0.com/",
    "sub": "Nb4VtXk1sQm8ZrHy@clients",
    "aud": RESOURCE,
    "azp": "Nb4VtXk1sQm8ZrHy",
    "gty": "client-credentials",
    "permissions": [],
}
ENTRA_1: dict[str, Any] = {
    "iss": "https://sts.windows.net/aaaabbbb-0000-cccc-1111-dddd2222eeee/",
    "aud": "api://files",
    "appid": "6e74172b-be56-4843-9ff4-e66a39bb12e3",
    "appidacr": "0",
    "scp": "mcp.use files.read",
    "oid": "690222be-ff1a-4d56-abd1-7e4f7d38e474",
    "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
    "ver": "1.0",
}
ENTRA_2 = {
    "iss": "https://login.microsoftonline.com/aaaabbbb-0000-cccc-1111-dddd2222eeee/v2.0",
    "aud": "api://files",
    "azp": "6e74172b-be56-4843-9ff4-e66a39bb12e3",
    "azpacr": "1",
    "scp": "mcp.use",
    "roles": ["Staff"],
    "sub": "HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ",
    "ver": "2.0",
}
ENTRA_2_MACHINE = {
    "iss": "https://login.microsoftonline.com/aaaabbbb-0000-cccc-1111-dddd2222eeee/v2.0",
    "aud": "api://files",
    "azp": "a1b2c3d4-0000-1111-2222-333344445555",
    "roles": ["mcp.use"],
    "sub": "0aa1bb2c-3d4e-5f60-7182-93a4b5c6d7e8",
    "ver": "2.0",
}
OKTA = {
    "ver": 1,
    "iss": "https://example.okta.com/oauth2/aus1a2b3c4D5e6F7g8h9",
    "aud": RESOURCE,
    "cid": "0oa1b2c3d4E5f6G7h8i9",
    "uid": "00u1a2b3c4D5e6F7g8h9",
    "scp": ["openid", "mcp:use"],
    "sub": "alice@example.com",
    "groups": ["staff", "Domain Admins"],
}
COGNITO: dict[str, Any] = {
    "sub": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
    "iss": "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEfGhI",
    "version": 2,
    "client_id": "57cbishk4j24pabc1234567890",
    "token_use": "access",
    "scope": "openid https://mcp.example.com/files/use",
    "cognito:groups": ["staff"],
    "username": "alice",
}


@pytest.mark.parametrize(
    ("claims", "options", "identity"),
    [
        (
            KEYCLOAK,
            {"claims": {"roles": "realm_access.roles"}},
            ("editor", KEYCLOAK["sub"], ["openid", "mcp:use"], {"offline_access", "staff"}),
        ),
        (
            KEYCLOAK,
            {"claims": {"subject": "preferred_username", "roles": "resource_access.files.example.com.roles"}},
            ("editor", "alice", ["openid", "mcp:use"], {"writer"}),
        ),
        (
            AUTH0,
            {"claims": {"scopes": "permissions", "roles": "https://example.com/roles"}},
            (AUTH0["azp"], AUTH0["sub"], ["mcp:use", "files:write"], {"staff"}),
        ),
        (AUTH0_MACHINE, {"claims": {"scopes": "permissions"}}, (AUTH0_MACHINE["azp"], AUTH0_MACHINE["sub"], [], set())),
        (
            ENTRA_1,
            {"audiences": ["api://files"], "claims": {"agent": ["azp", "appid"], "subject": ["oid", "sub"]}},
            (ENTRA_1["appid"], ENTRA_1["oid"], ["mcp.use", "files.read"], set()),
        ),
        (
            ENTRA_2,
            {"audiences": ["api://files"], "claims": {"scopes": ["scp", "roles"]}},
            (ENTRA_2["azp"], ENTRA_2["sub"], ["mcp.use"], {"Staff"}),
        ),
        (
            ENTRA_2_MACHINE,
            {"audiences": ["api://files"], "claims": {"scopes": ["scp", "roles"]}},
            (ENTRA_2_MACHINE["azp"], ENTRA_2_MACHINE["sub"], ["mcp.use"], {"mcp.use"}),
        ),
        (
            OKTA,
            {"claims": {"agent": "cid", "roles": "groups"}},
            (OKTA["cid"], "alice@example.com", ["openid", "mcp:use"], {"staff", "Domain Admins"}),
        ),
        (
            {**COGNITO, "aud": RESOURCE},
            {"claims": {"roles": "cognito:groups"}},
            (COGNITO["client_id"], COGNITO["sub"], ["openid", "https://mcp.example.com/files/use"], {"staff"}),
        ),
    ],
    ids=[
        "keycloak",
        "keycloak-client",
        "auth0",
        "auth0-machine",
        "entra1",
        "entra2",
        "entra2-machine",
        "okta",
        "cognito",
    ],
)
def test_the_tokens_of_real_issuers(
    claims: dict[str, Any], options: dict[str, Any], identity: tuple[str, str, list[str], set[str]]
) -> None:
    issuer = Issuer(claims["iss"], typ="any", **options)
    found, ends = check_claims({**claims, **TIMES}, issuer, resource=RESOURCE, now=NOW + 1, leeway=0)
    assert found == Identity(identity[0], identity[1], identity[2], frozenset(identity[3]))
    assert ends == TIMES["exp"]


def test_case_4_a_cognito_token_without_resource_binding_names_no_audience() -> None:
    """B5: nothing in it says for whom it is."""
    with pytest.raises(InvalidTokenError, match="aud is missing"):
        check_claims({**COGNITO, **TIMES}, Issuer(COGNITO["iss"], typ="any"), resource=RESOURCE, now=NOW + 1, leeway=0)


@pytest.mark.parametrize(
    ("claims", "client", "subject"),
    [
        ({}, "agent-1", "alice"),
        ({"client_id": None, "azp": "agent-2"}, "agent-2", "alice"),
        ({"azp": "agent-2"}, "agent-1", "alice"),
        ({"sub": None}, "agent-1", "agent-1"),
        ({"client_id": None}, "alice", "alice"),
    ],
)
def test_who_the_client_and_the_subject_are(claims: dict[str, Any], client: str, subject: str) -> None:
    """H6, B7: a token that names no subject is the client's own."""
    found = identity_of({"client_id": "agent-1", "sub": "alice", **claims}, Claims())
    assert (found.client, found.subject) == (client, subject)


def test_people_without_the_mapped_name_are_not_one_person() -> None:
    mapping = Claims(subject="email")
    one, other = (identity_of({"client_id": "a", "sub": sub}, mapping) for sub in ("1", "2"))
    assert (one.subject, other.subject) == ("1", "2")


def test_a_token_of_nobody_is_refused() -> None:
    with pytest.raises(InvalidTokenError, match="neither"):
        identity_of({"client_id": None}, Claims())


@pytest.mark.parametrize("name", ["sub", "client_id"])
@pytest.mark.parametrize("value", ["", 1, [], ["alice"], True, "a\nb", "a\x1b[31m", "\u202ealice", "\ud800", "a" * 513])
def test_case_34_a_name_that_cannot_stand_in_a_record_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidTokenError, match=name):
        identity_of({"sub": "alice", "client_id": "agent", name: value}, Claims())


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({}, []),
        ({"scope": ""}, []),
        ({"scope": "a b  c"}, ["a", "b", "c"]),
        ({"scp": "a b"}, ["a", "b"]),
        ({"scp": ["a", "b"]}, ["a", "b"]),
        ({"scope": "a", "scp": ["b"]}, ["a"]),
        ({"scope": None, "scp": ["b"]}, ["b"]),
        ({"scope": "", "scp": ["b"]}, []),
    ],
)
def test_scopes_come_from_the_first_claim_that_is_there(claims: dict[str, Any], scopes: list[str]) -> None:
    assert identity_of({"sub": "a", **claims}, Claims()).scopes == scopes


@pytest.mark.parametrize("value", [1, True, {"a": 1}, ["a", 1], [["a"]], ["a b"], [""], ["a\n"], "a\tb", ["a"] * 1001])
def test_a_scope_of_another_form_refuses_the_token(value: Any) -> None:
    with pytest.raises(InvalidTokenError, match="scope"):
        identity_of({"sub": "a", "scope": value}, Claims())


@pytest.mark.parametrize(
    ("value", "roles"), [(None, set()), ([], set()), ("a b", {"a b"}), (["a", "b", "a"], {"a", "b"})]
)
def test_roles(value: Any, roles: set[str]) -> None:
    assert identity_of({"sub": "a", "roles": value}, Claims()).roles == roles


@pytest.mark.parametrize("value", [1, True, {"admin": {}}, ["a", None], [["a"]], [""], "", ["\u202ea"], ["a" * 513]])
def test_roles_of_another_form_refuse_the_token(value: Any) -> None:
    with pytest.raises(InvalidTokenError, match="roles"):
        identity_of({"sub": "a", "roles": value}, Claims())


@pytest.mark.parametrize(
    ("claims", "path", "roles"),
    [
        ({"a": {"b": ["x"]}}, "a.b", {"x"}),
        ({"a.b": ["y"], "a": {"b": ["x"]}}, "a.b", {"y"}),
        ({"a.b": {"c": ["y"]}, "a": {"b.c": ["x"]}}, "a.b.c", {"y"}),
        ({"a": {"b.c": ["x"], "b": {"c": ["y"]}}}, "a.b.c", {"x"}),
        ({"a": {"b": None}}, "a.b", set()),
        ({"a": None}, "a.b", set()),
        ({"a": {}}, "a.b", set()),
        ({"b": ["x"]}, "a.b", set()),
        ({"https://example.com/roles": ["x"]}, "https://example.com/roles", {"x"}),
    ],
)
def test_a_path_leads_into_objects_unless_a_claim_has_its_name(claims: Any, path: str, roles: set[str]) -> None:
    assert identity_of({"sub": "s", **claims}, Claims(roles=path)).roles == roles


@pytest.mark.parametrize("value", ["x", ["x"], 1, True])
def test_a_path_through_something_else_refuses_the_token(value: Any) -> None:
    with pytest.raises(InvalidTokenError, match="a is no object"):
        identity_of({"sub": "s", "a": value}, Claims(roles="a.b"))


@given(
    st.dictionaries(
        st.sampled_from(["sub", "client_id", "azp", "scope", "scp", "roles", "a", "a.b"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["b", "c"]), inner, max_size=3),
            max_leaves=5,
        ),
    ),
    st.sampled_from([Claims(), Claims(agent="a.b.c", subject=["a.b", "sub"], scopes="a.b", roles=["a.c", "roles"])]),
)
def test_any_claims_are_read_as_printable_names_or_refused(claims: dict[str, Any], mapping: Claims) -> None:
    try:
        found = identity_of(claims, mapping)
    except InvalidTokenError:
        return
    assert all(name and name.isprintable() for name in (found.client, found.subject, *found.scopes, *found.roles))


@pytest.mark.parametrize("name", ["agent", "subject", "scopes", "roles"])
@pytest.mark.parametrize(
    "value", ["", 1, None, [], {}, [1], [""], "a\n", "a" * 257, ".........", ["a", None], {"a": "b"}]
)
def test_a_wrong_mapping_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"Claims.{name}"):
        Claims(**{name: value})


@pytest.mark.parametrize("value", [1, None, "sub", ["sub"], {"agents": "azp"}, {1: "azp"}])
def test_wrong_claims_of_an_issuer_are_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Issuer\.claims"):
        Issuer("https://login.example.com", claims=value)


def test_a_mapping_of_options_is_a_mapping() -> None:
    issuer = Issuer("https://login.example.com", claims={"agent": ["azp"], "roles": "groups"})
    assert issuer == Issuer("https://login.example.com", claims=Claims(agent=("azp",), roles="groups"))
    assert issuer.mapping.agent == ("azp",)
    assert hash(issuer.mapping) == hash(Claims(agent=("azp",), roles="groups"))
