"""The signed header that names the caller, and the header that is always the same."""

from collections.abc import Callable
from typing import Any

import jwt
import pytest

from mcp_middleware.credentials import Caller, CallerSigner, StaticHeader
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.testing import FakeClock
from mcp_middleware.types import ANONYMOUS, Principal
from tests.oauth.test_authentication import pem, public_pem

SECRET = "0123456789abcdef0123456789abcdef"
GATEWAY = "https://gateway.example.com"
SERVER = "https://mail.example.com/mcp"
ALICE = Principal(
    "https://login.example.com", "agent-1", "alice", frozenset({"mcp:use", "mail:read"}), frozenset({"admin"})
)


def signer(**changes: Any) -> CallerSigner:
    return CallerSigner(**{"key": SECRET, "issuer": GATEWAY, "audience": SERVER} | changes)


def read(header: tuple[bytes, bytes], key: str = SECRET, algorithm: str = "HS256") -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(
        header[1].decode(), key, algorithms=[algorithm], audience=SERVER, issuer=GATEWAY, options={"verify_exp": False}
    )
    return claims


def test_it_says_who_calls() -> None:
    header = signer(clock=FakeClock(1_700_000_000.9)).header(Caller(ALICE, "alices-token"))
    assert header[0] == b"x-mcp-caller"
    assert read(header) == {
        "iss": GATEWAY,
        "aud": SERVER,
        "sub": "alice",
        "client_id": "agent-1",
        "caller_issuer": "https://login.example.com",
        "scope": "mail:read mcp:use",
        "roles": ["admin"],
        "iat": 1_700_000_000,
        "exp": 1_700_000_060,
    }
    assert jwt.get_unverified_header(header[1])["typ"] == "mcp-caller+jwt"


@pytest.mark.parametrize("one", [Caller(), Caller(ANONYMOUS), Caller(token="x")])
def test_it_says_that_nobody_knows_who_calls(one: Caller) -> None:
    claims = read(signer().header(one))
    assert "sub" not in claims
    assert "caller_issuer" not in claims
    assert claims["client_id"] == "anonymous"


@pytest.mark.parametrize(("kind", "algorithm"), [("RSA", "PS256"), ("P-256", None), ("Ed25519", None)])
def test_a_private_key_needs_only_its_public_part_there(kind: str, algorithm: str | None) -> None:
    header = signer(key=pem(kind), algorithm=algorithm, key_id="k1", header="X-Who").header(Caller(ALICE))
    found = jwt.get_unverified_header(header[1])
    assert found["kid"] == "k1"
    assert read(header, public_pem(kind), found["alg"])["sub"] == "alice"
    assert header[0] == b"x-who"


def test_one_header_serves_a_caller_for_half_its_life() -> None:
    clock = FakeClock()
    made = signer(clock=clock)
    first = made.header(Caller(ALICE))
    clock.advance(29)
    assert made.header(Caller(ALICE)) is first
    clock.advance(1)
    assert read(made.header(Caller(ALICE)))["iat"] == 1_030


def test_a_clock_that_is_set_back_has_the_header_made_anew() -> None:
    """One from the future would be refused by the server, and good for longer than is said if it is stolen."""
    clock = FakeClock(10_000)
    made = signer(clock=clock)
    made.header(Caller(ALICE))
    clock.advance(-3_600)
    assert read(made.header(Caller(ALICE)))["iat"] == 6_400


def test_another_caller_or_other_scopes_have_another_header() -> None:
    made = signer(clock=FakeClock())
    fewer = Principal(ALICE.issuer, ALICE.client, ALICE.subject, frozenset({"mcp:use"}))
    bob = Principal(ALICE.issuer, ALICE.client, "bob", ALICE.scopes, ALICE.roles)
    elsewhere = Principal("https://other.example.com", ALICE.client, ALICE.subject, ALICE.scopes, ALICE.roles)
    assert len({made.header(Caller(one)) for one in (ALICE, fewer, bob, elsewhere)}) == 4


def test_what_is_kept_is_bounded() -> None:
    """Case 26."""
    made = signer()
    for number in range(5_000):
        made.header(Caller(Principal(None, str(number), None)))
    assert len(made._signed) == 4096


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"key": "short"}, "32 bytes"),
        ({"key": None}, "32 bytes"),
        ({"key": b"x" * 32}, "32 bytes"),
        ({"key": "-----BEGIN PRIVATE KEY-----\nshort"}, "cannot be read"),
        ({"algorithm": "HS512"}, "HS256"),
        ({"issuer": ""}, "issuer"),
        ({"audience": "a\nb"}, "audience"),
        ({"header": "X Caller"}, "header"),
        ({"header": ""}, "header"),
        ({"header": "Host"}, "header"),
    ],
)
def test_a_wrong_option_is_refused_and_no_key_shown(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        signer(**changes)
    assert "short" not in str(caught.value)


async def test_a_static_header_is_the_same_for_everybody() -> None:
    made = StaticHeader("X-Api-Key", "hunter2 3")
    assert await made.headers(Caller(ALICE)) == ((b"x-api-key", b"hunter2 3"),)
    assert not made.rejected(Caller(ALICE), await made.headers(Caller()))
    await made.start()
    await made.aclose()
    assert "hunter2" not in repr(made)


BAD_HEADERS: list[tuple[Any, Any]] = [
    ("X Api Key", "x"),
    ("", "x"),
    ("X-Ü", "x"),
    (None, "x"),
    ("X:Y", "x"),
    ("Transfer-Encoding", "chunked"),
    ("host", "x"),
    ("X-Api-Key", ""),
    ("X-Api-Key", "hunter2\r\nx: y"),
    ("X-Api-Key", " hunter2"),
    ("X-Api-Key", "hunter2 "),
    ("X-Api-Key", "hunter2ü"),
    ("X-Api-Key", None),
]


@pytest.mark.parametrize(("name", "value"), BAD_HEADERS)
def test_a_wrong_header_is_refused_and_its_value_not_shown(name: Any, value: Any) -> None:
    make: Callable[..., StaticHeader] = StaticHeader
    with pytest.raises(ConfigurationError, match=r"^StaticHeader\.(name|value) ") as caught:
        make(name, value)
    assert "hunter2" not in str(caught.value)


def test_a_caller_is_made_of_the_sdks_token() -> None:
    from mcp.server.auth.provider import AccessToken

    access = AccessToken(
        token="alices-token",
        client_id="agent-1",
        scopes=["a"],
        expires_at=99,
        subject="alice",
        claims={"iss": "https://x"},
    )
    made = Caller.from_access_token(access)
    assert made == Caller(Principal("https://x", "agent-1", "alice", frozenset({"a"}), expires_at=99), "alices-token")
    assert "alices-token" not in repr(made)
    bare = Caller.from_access_token(AccessToken(token="t", client_id="c", scopes=[]))
    assert bare.principal == Principal(None, "c", "c")
