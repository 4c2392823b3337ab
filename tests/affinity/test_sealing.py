"""Sealed ids: what was sealed comes out, for the holder of a key, at its endpoint; anything else is nothing."""

import base64
import os
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_middleware.affinity.sealing import MAX_UPSTREAM_BYTES, KeyRing, Session, bind_caller
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.exchange import name_session

OLD, NEW, FOREIGN = (base64.b64encode(os.urandom(32)) for _ in range(3))
RING = KeyRing([NEW, OLD])
ENDPOINT = "/mcp"
SESSION = Session("pod-1", b"0123456789abcdef0123456789abcdef", bind_caller(("i", "c", "s")), 1.5e9, 1.6e9)

ALPHABET = (string.ascii_letters + string.digits + "-_").encode()
VISIBLE = st.integers(0x21, 0x7E).map(lambda value: bytes([value]))
TIMES = st.floats(0, 1e11, allow_nan=False)
SESSIONS = st.builds(
    Session,
    instance=st.text(string.ascii_letters + string.digits + "-._:/", max_size=64),
    upstream=st.lists(VISIBLE, min_size=1, max_size=MAX_UPSTREAM_BYTES).map(b"".join),
    caller=st.binary(min_size=16, max_size=16),
    issued=TIMES,
    expires=TIMES,
)
KEYS = st.tuples(st.none() | st.text(), st.text(), st.none() | st.text())


@given(SESSIONS, st.text())
def test_what_was_sealed_comes_out(session: Session, endpoint: str) -> None:
    """Visible ASCII throughout."""
    token = RING.seal(session, endpoint)
    assert set(token) <= set(ALPHABET)
    assert RING.unseal(token, endpoint) == session


def test_the_largest_session_still_opens() -> None:
    largest = Session("i" * 64, b"u" * MAX_UPSTREAM_BYTES, bytes(16), 0.0, 1e300)
    token = RING.seal(largest, ENDPOINT)
    assert len(token) < 2048
    assert RING.unseal(token, ENDPOINT) == largest


def test_two_seals_of_one_session_differ() -> None:
    assert RING.seal(SESSION, ENDPOINT) != RING.seal(SESSION, ENDPOINT)


def test_usual_ids_all_have_one_length() -> None:
    sizes = {
        len(RING.seal(Session(instance, b"u" * length, bytes(16), 0.0, 1.0), ENDPOINT))
        for instance in ("", "pod-1", "eu-west-1.pod-12")
        for length in (16, 32, 36)
    }
    assert len(sizes) == 1


def test_case_20_every_flipped_bit_is_noticed() -> None:
    token = RING.seal(SESSION, ENDPOINT)
    for position in range(len(token)):
        for bit in range(8):
            changed = bytearray(token)
            changed[position] ^= 1 << bit
            assert RING.unseal(bytes(changed), ENDPOINT) is None


def test_case_20_every_flipped_bit_below_the_base64_is_noticed() -> None:
    raw = base64.urlsafe_b64decode(RING.seal(SESSION, ENDPOINT))
    for position in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[position // 8] ^= 1 << position % 8
        assert RING.unseal(base64.urlsafe_b64encode(changed), ENDPOINT) is None


def test_case_20_a_token_has_one_spelling() -> None:
    token = RING.seal(SESSION, ENDPOINT)
    while b"-" not in token or b"_" not in token:
        token = RING.seal(SESSION, ENDPOINT)
    assert RING.unseal(token, ENDPOINT) == SESSION
    for other in (
        token.replace(b"-", b"+"),
        token.replace(b"_", b"/"),
        token + b"=",
        token + b"====",
        b" " + token,
        token + b"\n",
        token[:9] + b"\r\n" + token[9:],
        token + b"\x00",
    ):
        assert RING.unseal(other, ENDPOINT) is None


def test_case_20_every_truncation_is_noticed() -> None:
    token = RING.seal(SESSION, ENDPOINT)
    for length in range(len(token)):
        assert RING.unseal(token[:length], ENDPOINT) is None
        assert RING.unseal(token[length + 1 :], ENDPOINT) is None
    assert RING.unseal(token + token, ENDPOINT) is None


@given(st.binary(max_size=3000))
def test_case_20_any_bytes_are_nothing(token: bytes) -> None:
    assert RING.unseal(token, ENDPOINT) is None


@given(st.text(string.ascii_letters + string.digits + "-_", max_size=400))
def test_case_20_any_base64_is_nothing(token: str) -> None:
    assert RING.unseal(token.encode(), ENDPOINT) is None


@settings(max_examples=50)
@given(st.binary(max_size=300))
def test_case_20_a_forged_token_under_a_known_key_id_is_nothing(contents: bytes) -> None:
    header = base64.urlsafe_b64decode(RING.seal(SESSION, ENDPOINT))[:5]
    forged = base64.urlsafe_b64encode(header + contents)
    assert RING.unseal(forged, ENDPOINT) is None


@given(st.text(), st.text())
def test_case_20_an_id_of_one_endpoint_means_nothing_at_another(here: str, there: str) -> None:
    token = RING.seal(SESSION, here)
    assert RING.unseal(token, there) == (SESSION if here == there else None)


def test_keys_rotate_while_sessions_go_on() -> None:
    token = KeyRing([OLD]).seal(SESSION, ENDPOINT)
    assert RING.unseal(token, ENDPOINT) == SESSION
    assert KeyRing([OLD, NEW]).unseal(RING.seal(SESSION, ENDPOINT), ENDPOINT) == SESSION
    assert KeyRing([NEW]).unseal(token, ENDPOINT) is None


def test_the_first_key_seals() -> None:
    token = RING.seal(SESSION, ENDPOINT)
    assert KeyRing([NEW]).unseal(token, ENDPOINT) == SESSION
    assert KeyRing([OLD]).unseal(token, ENDPOINT) is None


def test_case_20_a_foreign_key_opens_nothing() -> None:
    assert KeyRing([FOREIGN]).unseal(RING.seal(SESSION, ENDPOINT), ENDPOINT) is None


def test_case_20_a_key_id_does_not_stand_for_its_key() -> None:
    """The header of one key, the contents sealed by another."""
    ours = base64.urlsafe_b64decode(RING.seal(SESSION, ENDPOINT))
    theirs = base64.urlsafe_b64decode(KeyRing([FOREIGN]).seal(SESSION, ENDPOINT))
    assert RING.unseal(base64.urlsafe_b64encode(ours[:5] + theirs[5:]), ENDPOINT) is None


RAW = bytes(range(224, 256))
SPELLINGS: list[str | bytes] = [
    base64.b64encode(RAW),
    base64.b64encode(RAW).decode(),
    base64.urlsafe_b64encode(RAW).decode(),
    base64.urlsafe_b64encode(RAW).decode().rstrip("="),
    base64.b64encode(RAW).decode() + "\n",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_key_may_be_spelt_in_either_base64(spelling: str | bytes) -> None:
    token = KeyRing([SPELLINGS[0]]).seal(SESSION, ENDPOINT)
    assert KeyRing([spelling]).unseal(token, ENDPOINT) == SESSION


SECRET = base64.b64encode(b"do-not-print-this-key-anywhere!!").decode()
WRONG_KEYS = [
    [],
    (),
    None,
    SECRET,
    SECRET.encode(),
    {SECRET},
    [""],
    [None],
    [7],
    [bytearray(SECRET.encode())],
    [base64.b64decode(SECRET)],
    [SECRET[:-4]],
    [SECRET + SECRET],
    [SECRET.replace("Z", "é")],
    [SECRET[:20] + " " + SECRET[20:]],
    [base64.b64encode(b"do-not-print-this").decode()],
    [base64.b64encode(b"do-not-print-this-key-anywhere!!!").decode()],
    [SECRET, SECRET],
    [SECRET, SECRET.rstrip("=")],
    [SECRET, "do-not-print-this"],
]


@pytest.mark.parametrize("keys", WRONG_KEYS, ids=range(len(WRONG_KEYS)))
def test_a_wrong_key_is_refused_and_not_shown(keys: object) -> None:
    with pytest.raises(ConfigurationError) as refused:
        KeyRing(keys)  # type: ignore[arg-type]
    text = str(refused.value)
    assert "keys" in text
    assert "do-not" not in text
    assert SECRET[:12] not in text
    assert refused.value.__cause__ is None


def test_a_ring_does_not_show_its_keys() -> None:
    ring = KeyRing([SECRET])
    assert "do-not" not in repr(ring)
    assert SECRET[:12] not in repr(ring)


@given(KEYS, KEYS)
def test_case_19_callers_are_bound_apart(one: tuple[str | None, ...], other: tuple[str | None, ...]) -> None:
    assert (bind_caller(one) == bind_caller(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("i", "c", None), ("i", "c", "None")),
        (("i", "c", None), ("i", "c", "")),
        ((None, "c", "s"), ("", "c", "s")),
        (("i", "c', 's", "s"), ("i", "c", "s', 's")),
        (("i", "\ud800", "s"), ("i", "\\ud800", "s")),
        (("i", "C", "s"), ("i", "c", "s")),
        (("i", "é", "s"), ("i", "e\u0301", "s")),
    ],
)
def test_case_19_look_alike_callers_are_bound_apart(one: tuple[str | None, ...], other: tuple[str | None, ...]) -> None:
    assert bind_caller(one) != bind_caller(other)


def test_a_name_is_stable_and_tells_nothing() -> None:
    token = RING.seal(SESSION, ENDPOINT)
    name = name_session(token)
    assert name == name_session(token)
    assert name != name_session(RING.seal(SESSION, ENDPOINT))
    assert len(name) == 16
    assert name.encode() not in token
