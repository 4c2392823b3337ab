"""What must hold before a token is believed, without any signature."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.resource_server import Issuer
from mcp_middleware.resource_server.claims import Identity, InvalidTokenError
from mcp_middleware.resource_server.tokens import _STRICT, check_claims, check_header, json_object, parse_token
from tests.resource_server.issuer import RESOURCE, b64, compact

NOW = 1_800_000_000.0
STRICT = Issuer("https://login.example.com")
ANY = Issuer("https://login.example.com", typ="any")
HEADER = {"alg": "ES256", "typ": "at+jwt", "kid": "k1"}
CLAIMS = {"iss": STRICT.issuer, "aud": RESOURCE, "sub": "alice", "client_id": "agent-1", "exp": NOW + 60}


def outcome(work: Callable[[], object]) -> str:
    try:
        return repr(work())
    except ValueError as error:
        return str(error)


def checked(claims: dict[str, Any], issuer: Issuer = STRICT, leeway: float = 60.0) -> tuple[Identity, int]:
    return check_claims(claims, issuer, resource=RESOURCE, now=NOW, leeway=leeway)


def test_a_good_token_passes() -> None:
    parsed = parse_token(compact(HEADER, CLAIMS, None))
    assert check_header(parsed.header, STRICT) == ("ES256", "k1")
    assert checked(parsed.claims) == (Identity("agent-1", "alice", [], frozenset()), int(NOW + 60))


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "e30.e30.",
        "e30..e30",
        "e30.e30.e30\n",
        "e30=.e30.e30",
        "e30.e30.a",
        b64(b"{}") + ".W10.e30",
        b64(b"[]") + ".e30.e30",
        b64(b"\xef\xbb\xbf{}") + ".e30.e30",
        b64(b"{}".decode().encode("utf-16")) + ".e30.e30",
        b64(b'{"a":NaN}') + ".e30.e30",
        b64(b'{"a":-Infinity}') + ".e30.e30",
        b64(b'{"a":' + b"9" * 5000 + b"}") + ".e30.e30",
        b64(b"[" * 11_000) + ".e30.e30",
        b64(b'{"a":' * 2_000) + ".e30.e30",
        "." * 16_384,
        "a" * 16_385,
        "e30.e30." + "e" * 20_000,
    ],
)
def test_case_6_a_degenerate_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidTokenError):
        parse_token(token)


@given(st.text(max_size=300) | st.lists(st.binary(max_size=60).map(b64), max_size=4).map(".".join))
def test_any_text_is_parsed_or_refused(token: str) -> None:
    try:
        parsed = parse_token(token)
    except InvalidTokenError:
        return
    assert isinstance(parsed.header, dict)
    assert isinstance(parsed.claims, dict)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"iss":"https://login.example.com","iss":"https://evil.example"}',
        b'{"aud":"a","\\u0061ud":"b"}',
        b'{"act":{"sub":"a","sub":"b"}}',
    ],
)
def test_case_5_duplicated_claims_are_refused(payload: bytes) -> None:
    with pytest.raises(InvalidTokenError, match="twice"):
        parse_token(compact(HEADER, payload, None))


def test_case_5_a_duplicated_header_parameter_is_refused() -> None:
    with pytest.raises(InvalidTokenError, match="twice"):
        parse_token(compact(b'{"alg":"ES256","alg":"none"}', CLAIMS, None))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    ),
    st.sampled_from([(",", ":"), (", ", ": ")]),
    st.booleans(),
    st.booleans(),
)
def test_what_is_read_the_short_way_is_what_the_strict_reader_reads(
    value: object, separators: tuple[str, str], ascii_only: bool, twice: bool
) -> None:
    text = json.dumps({"a": value, "b": 1}, separators=separators, ensure_ascii=ascii_only)
    if twice:
        text = text.replace('"b"', '"a"')
    data = text.encode("utf-8", "surrogatepass")
    read, strictly = outcome(lambda: json_object(data)), outcome(lambda: _STRICT.decode(data.decode("utf-8")))
    assert read == strictly
    assert not (twice and read.startswith("{"))


@pytest.mark.parametrize(
    "algorithm",
    [
        "none",
        "None",
        "NONE",
        "nOnE",
        "",
        "HS256",
        "HS384",
        "HS512",
        "es256",
        "ES256 ",
        "ES256K",
        "RSA-OAEP",
        None,
        1,
        ["ES256"],
    ],
)
@pytest.mark.parametrize("issuer", [STRICT, ANY])
def test_case_3_an_algorithm_that_is_not_allowed(algorithm: Any, issuer: Issuer) -> None:
    """B6."""
    with pytest.raises(InvalidTokenError, match="algorithm"):
        check_header({**HEADER, "alg": algorithm}, issuer)


def test_case_3_an_issuer_is_held_to_its_algorithms() -> None:
    with pytest.raises(InvalidTokenError, match="algorithm"):
        check_header(HEADER, Issuer(STRICT.issuer, algorithms=["RS256"]))


@pytest.mark.parametrize(
    "extra", [{"crit": ["exp"], "exp": 1}, {"crit": ["b64"], "b64": False}, {"crit": []}, {"b64": True}]
)
def test_case_3_an_extension_that_is_not_understood(extra: dict[str, Any]) -> None:
    with pytest.raises(InvalidTokenError, match="extension"):
        check_header({**HEADER, **extra}, ANY)


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt", "Application/AT+jwt"])
def test_an_access_token_by_its_type(typ: str) -> None:
    """B6, RFC 9068 section 4."""
    assert check_header({**HEADER, "typ": typ}, STRICT) == ("ES256", "k1")


@pytest.mark.parametrize(
    "typ", [None, "", "JWT", "jwt", "at_jwt", "at+jwt ", "application/application/at+jwt", 1, ["at+jwt"]]
)
def test_case_5_another_type_is_refused_by_default(typ: Any) -> None:
    """B6."""
    with pytest.raises(InvalidTokenError, match="typ"):
        check_header({**HEADER, "typ": typ}, STRICT)


@pytest.mark.parametrize("typ", [None, "JWT", "jwt", "application/jwt", "at+jwt"])
def test_an_issuer_may_be_excused_from_the_type(typ: str | None) -> None:
    assert check_header({**HEADER, "typ": typ}, ANY) == ("ES256", "k1")


@pytest.mark.parametrize(
    "typ", ["id+jwt", "oauth-id-jag+jwt", "logout+jwt", "secevent+jwt", "dpop+jwt", "client-authentication+jwt", 1]
)
def test_case_5_an_id_jag_or_another_kind_of_token_by_its_type(typ: Any) -> None:
    with pytest.raises(InvalidTokenError, match="typ"):
        check_header({**HEADER, "typ": typ}, ANY)


@pytest.mark.parametrize(
    "extra",
    [
        {"nonce": "n"},
        {"at_hash": "h"},
        {"c_hash": "h"},
        {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}},
        {"typ": "ID"},
        {"typ": "Refresh"},
        {"typ": 1},
        {"token_use": "id"},
        {"cnf": {"jkt": "x"}},
    ],
)
def test_case_5_an_id_token_by_its_claims(extra: dict[str, Any]) -> None:
    with pytest.raises(InvalidTokenError):
        checked({**CLAIMS, **extra}, ANY)


@pytest.mark.parametrize("issuer", [STRICT, ANY])
@pytest.mark.parametrize("key", [{"jkt": "x"}, {"x5t#S256": "x"}, {}, None])
def test_h4_a_token_that_is_bound_to_a_key_is_no_bearer_token(issuer: Issuer, key: Any) -> None:
    with pytest.raises(InvalidTokenError, match="bound to a key"):
        checked({**CLAIMS, "cnf": key}, issuer)


def test_a_token_that_was_issued_for_an_id_jag_is_like_any_other() -> None:
    """H3: only the authorization server sees the ID-JAG itself."""
    issued = {**CLAIMS, "scope": "files:read", "act": {"sub": "https://idp.example.com"}, "authorization_details": []}
    assert checked(issued)[0] == Identity("agent-1", "alice", ["files:read"], frozenset())


@pytest.mark.parametrize("issuer", [STRICT, ANY])
def test_case_5_an_id_jag_without_its_type_is_for_the_authorization_server(issuer: Issuer) -> None:
    """H3: its audience is the issuer of the token that it is redeemed for, never a resource."""
    with pytest.raises(InvalidTokenError, match="aud"):
        checked({**CLAIMS, "aud": STRICT.issuer, "resource": RESOURCE, "scope": "files:read"}, issuer)


def test_a_claim_typ_bearer_is_an_access_token() -> None:
    assert checked({**CLAIMS, "typ": "Bearer", "token_use": "access"}, ANY)[0].client == "agent-1"


@pytest.mark.parametrize(
    "issuer",
    [
        "https://login.example.com/",
        "https://login.example.com//",
        "HTTPS://login.example.com",
        "https://login.example.com.evil.example",
        "https://login.example.co",
        " https://login.example.com",
        "",
        None,
        1,
        ["https://login.example.com"],
    ],
)
def test_case_4_another_issuer(issuer: Any) -> None:
    with pytest.raises(InvalidTokenError, match="iss"):
        checked({**CLAIMS, "iss": issuer})


@pytest.mark.parametrize(
    "audience",
    [
        None,
        "",
        [],
        {},
        1,
        True,
        "https://files.example.com",
        "https://files.example.com/",
        "https://files.example.com/mcp/",
        "https://files.example.com/mc",
        "https://files.example.com/mcp2",
        "https://files.example.com/other",
        "HTTPS://FILES.example.com/mcp",
        "https://notes.example.com/mcp",
        f"{RESOURCE} https://other.example",
        ["https://files.example.com"],
        [RESOURCE, 1],
        [[RESOURCE]],
        {RESOURCE: 1},
    ],
)
def test_case_4_another_audience(audience: Any) -> None:
    """B5."""
    with pytest.raises(InvalidTokenError, match="aud"):
        checked({**CLAIMS, "aud": audience})


def test_case_4_an_absent_audience() -> None:
    """B5."""
    with pytest.raises(InvalidTokenError, match="aud"):
        checked({name: value for name, value in CLAIMS.items() if name != "aud"})


def test_an_audience_may_be_one_of_several() -> None:
    assert checked({**CLAIMS, "aud": ["https://other.example", RESOURCE]})


def test_configured_audiences_stand_in_for_the_resource() -> None:
    issuer = Issuer(STRICT.issuer, audiences=["api://files"])
    assert checked({**CLAIMS, "aud": "api://files"}, issuer)
    with pytest.raises(InvalidTokenError, match="aud"):
        checked(CLAIMS, issuer)


@pytest.mark.parametrize(
    "exp",
    [
        None,
        "1900000000",
        "",
        True,
        False,
        [],
        {},
        -1,
        0,
        NOW,
        NOW - 1,
        NOW - 59,
        NOW + 10**9,
        10**18,
        10**300,
        math.inf,
        1e308,
    ],
)
def test_case_5_an_end_that_is_missing_past_or_absurd(exp: Any) -> None:
    with pytest.raises(InvalidTokenError, match="exp"):
        checked({**CLAIMS, "exp": exp})


def test_case_5_a_missing_end() -> None:
    with pytest.raises(InvalidTokenError, match="exp is missing"):
        checked({name: value for name, value in CLAIMS.items() if name != "exp"})


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_case_5_not_yet_valid_beyond_the_leeway(name: str) -> None:
    assert checked({**CLAIMS, name: NOW + 60})
    with pytest.raises(InvalidTokenError, match=name):
        checked({**CLAIMS, name: NOW + 61})
    with pytest.raises(InvalidTokenError, match=name):
        checked({**CLAIMS, name: NOW + 1}, leeway=0.0)
    with pytest.raises(InvalidTokenError, match=name):
        checked({**CLAIMS, name: "soon"})
    with pytest.raises(InvalidTokenError, match=name):
        checked({**CLAIMS, name: None})


@given(
    st.dictionaries(
        st.sampled_from([*CLAIMS, "nbf", "iat", "azp"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(RESOURCE),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=5,
        ),
    )
)
def test_any_claims_are_accepted_as_strings_or_refused(changes: dict[str, Any]) -> None:
    try:
        identity, ends = checked({**CLAIMS, **changes})
    except InvalidTokenError:
        return
    assert identity.client.isprintable()
    assert identity.subject.isprintable()
    assert ends >= NOW


def test_a_reason_never_quotes_more_than_a_line() -> None:
    """Case 34: what is logged of an unverified token is escaped and short."""
    with pytest.raises(InvalidTokenError) as caught:
        check_header({"alg": "a\n\x1b[31m\u202e" * 100}, STRICT)
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 200
    with pytest.raises(InvalidTokenError) as caught:
        parse_token(compact(json.dumps({"a": 1}).encode() + b"\n\xff", CLAIMS, None))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"issuer": "login.example.com"}, "issuer"),
        ({"issuer": "http://login.example.com"}, "issuer"),
        ({"issuer": "https://login.example.com?x=1"}, "issuer"),
        ({"typ": "JWT"}, "typ"),
        ({"audiences": "api://files"}, "audiences"),
        ({"audiences": [1]}, "audiences"),
        ({"audiences": None}, "audiences"),
        ({"audiences": []}, "audiences"),
        ({"algorithms": "RS256"}, "algorithms"),
        ({"algorithms": []}, "algorithms"),
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": [["RS256"]]}, "algorithms"),
        ({"jwks_uri": "http://keys.example.com"}, "jwks_uri"),
        ({"jwks_uri": 1}, "jwks_uri"),
    ],
)
def test_a_wrong_issuer_option_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Issuer(**{"issuer": "https://login.example.com", **options})
