"""A corpus of forged and bent tokens, in the manner of Wycheproof's vectors for JWS: each differs from a good token in
one respect, and none is let in. What is good, and stays so under a change that means nothing, is here too.
"""

import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mcp_middleware.resource_server import Issuer, JWTVerifier
from mcp_middleware.testing import FakeClock
from tests.resource_server.issuer import RESOURCE, LoopbackIssuer, SigningKey, b64, compact, signing_key

ISSUER = Issuer("https://login.example.com", typ="any")
ORDER = {  # of the group that P-256 and Ed25519 work in
    "ES256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "EdDSA": 2**252 + 27742317777372353535851937790883648493,
}
RSA, EC, ED = signing_key("RS256", "rsa"), signing_key("ES256", "ec"), signing_key("EdDSA", "ed")
P384 = signing_key("ES384", "p384")
PSS = SigningKey.__new__(SigningKey)
PSS.algorithm, PSS.kid, PSS.private = "PS256", "pss", signing_key("RS256", "for-pss").private
STRANGER = SigningKey("ES256", "ec")
KEYS = (RSA, EC, ED, P384, PSS)
SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
"""DigestInfo of SHA-256 (RFC 8017 section 9.2, note 1)."""


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    good = {
        "iss": ISSUER.issuer,
        "aud": RESOURCE,
        "sub": "alice",
        "client_id": "agent",
        "iat": now,
        "exp": now + 36_000,
    }
    return good | changes


def header(key: SigningKey, **changes: Any) -> dict[str, Any]:
    return {"alg": key.algorithm, "typ": "at+jwt", "kid": key.kid} | changes


def good(key: SigningKey, **changes: Any) -> str:
    return compact(header(key), claims(**changes), key)


def parts(key: SigningKey, head: dict[str, Any] | bytes | None = None) -> tuple[str, bytes]:
    """What a token's signature is made over, and the signature."""
    signed, _, signature = compact(head or header(key), claims(), key).rpartition(".")
    return signed, jwt.utils.base64url_decode(signature)


def with_signature(key: SigningKey, change: Callable[[bytes], bytes]) -> str:
    signed, signature = parts(key)
    return f"{signed}.{b64(change(signature))}"


def algorithms() -> Iterator[tuple[str, str]]:
    """Case 3."""
    for name in ("none", "None", "NONE", "nOnE", "none ", "", "null"):
        signed = compact(header(EC, alg=name), claims(), None).rpartition(".")[0]
        yield f"alg {name!r}, signature kept", f"{signed}.{b64(parts(EC)[1])}"
        yield f"alg {name!r}, no signature", f"{signed}."
        yield f"alg {name!r}, no dot", signed
        yield f"alg {name!r}, some signature", f"{signed}.AA"
    yield "no alg", compact({"typ": "at+jwt", "kid": "ec"}, claims(), EC)
    for wrong in (
        None,
        1,
        True,
        ["ES256"],
        {"ES256": 1},
        "es256",
        "ES256\0",
        " ES256",
        "ES256K",
        "RS1",
        "dir",
        "A128KW",
    ):
        yield f"alg {wrong!r}", compact(header(EC, alg=wrong), claims(), EC)
    public = RSA.private.public_key()
    jwk = json.dumps(RSA.jwk(), separators=(",", ":"), sort_keys=True).encode()
    secrets = {
        "PEM": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "PEM without its last line break": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).strip(),
        "PKCS1 PEM": public.public_bytes(Encoding.PEM, PublicFormat.PKCS1),
        "DER": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "JWK": jwk,
        "modulus": public.public_numbers().n.to_bytes(256),
        "nothing": b"",
    }
    for name, secret in secrets.items():
        for algorithm in ("HS256", "HS384", "HS512"):
            signed = compact(header(RSA, alg=algorithm), claims(), None).rpartition(".")[0]
            mac = jwt.algorithms.get_default_algorithms()[algorithm].sign(signed.encode(), secret)
            yield f"{algorithm} keyed with the {name}", f"{signed}.{b64(mac)}"
            yield f"{algorithm} keyed with the {name}, called RS256", f"{parts(RSA)[0]}.{b64(mac)}"
    for key, other in ((EC, RSA), (RSA, EC), (ED, EC), (EC, ED), (P384, EC), (EC, P384), (PSS, RSA), (RSA, PSS)):
        yield f"{key.algorithm} by the name of {other.algorithm}", compact(header(key, kid=other.kid), claims(), key)
        yield f"{other.algorithm} made with {key.algorithm}", compact(header(other), claims(), key)
        yield (
            f"{key.algorithm} called {other.algorithm}",
            compact(header(key, alg=other.algorithm), claims(), key),
        )


def ecdsa() -> Iterator[tuple[str, str]]:
    n = ORDER["ES256"]

    def raw(r: int, s: int, length: int = 32) -> bytes:
        return r.to_bytes(length) + s.to_bytes(length)

    for name, signature in {
        "r and s are 0": raw(0, 0),
        "r is 0": raw(0, 1),
        "s is 0": raw(1, 0),
        "r and s are 1": raw(1, 1),
        "r is n": raw(n, 1),
        "s is n": raw(1, n),
        "both are n": raw(n, n),
        "both are n - 1": raw(n - 1, n - 1),
        "all ones": b"\xff" * 64,
        "longer zeros": bytes(66),
        "for another curve": bytes(96),
        "DER": encode_dss_signature(1, 1),
        "a byte": b"\0",
    }.items():
        yield f"ES256: {name}", f"{parts(EC)[0]}.{b64(signature)}"
    changes: dict[str, Callable[[bytes], bytes]] = {
        "in DER": lambda s: encode_dss_signature(int.from_bytes(s[:32]), int.from_bytes(s[32:])),
        "r and s swapped": lambda s: s[32:] + s[:32],
        "r + n": lambda s: raw(int.from_bytes(s[:32]) + n, int.from_bytes(s[32:]), 33),
        "s + n": lambda s: raw(int.from_bytes(s[:32]), int.from_bytes(s[32:]) + n, 33),
        "r negated": lambda s: raw(n - int.from_bytes(s[:32]), int.from_bytes(s[32:])),
        "padded in front": lambda s: raw(int.from_bytes(s[:32]), int.from_bytes(s[32:]), 33),
        "padded behind": lambda s: s + b"\0",
        "cut": lambda s: s[:-1],
        "half": lambda s: s[:32],
        "doubled": lambda s: s + s,
        "a bit in r": lambda s: bytes([s[0] ^ 1]) + s[1:],
        "a bit in s": lambda s: s[:-1] + bytes([s[-1] ^ 1]),
        "hex": lambda s: s.hex().encode(),
    }
    for name, change in changes.items():
        yield f"ES256: {name}", with_signature(EC, change)
    yield "ES256: a stranger's key by the same name", good(STRANGER)
    yield "ES256: the signature of another token", f"{parts(EC)[0]}.{b64(EC.sign(b'another'))}"
    yield "ES256: SHA-384 in place of SHA-256", f"{parts(EC)[0]}.{b64(_ecdsa_sha384(parts(EC)[0].encode()))}"


def _ecdsa_sha384(data: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec

    r, s = decode_dss_signature(EC.private.sign(data, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(32) + s.to_bytes(32)


def rsa() -> Iterator[tuple[str, str]]:
    numbers = RSA.private.private_numbers()
    n, d = numbers.public_numbers.n, numbers.d
    signed = parts(RSA)[0]
    digest = hashlib.sha256(signed.encode()).digest()
    info = SHA256_INFO + digest

    def block(data: bytes, kind: bytes = b"\x01", fill: bytes = b"\xff") -> bytes:
        """PKCS #1 v1.5 padding, signed as it is."""
        padded = b"\0" + kind + fill * (253 - len(data)) + b"\0" + data
        return int(pow(int.from_bytes(padded), d, n)).to_bytes(256)

    short = b"\0\x01" + b"\xff" * 8 + b"\0" + info
    for name, signature in {
        "zeros": bytes(256),
        "one": bytes(255) + b"\x01",
        "n - 1": (n - 1).to_bytes(256),
        "n": n.to_bytes(256),
        "all ones": b"\xff" * 256,
        "a byte": b"\0",
        "the digest alone": block(digest),
        "no NULL in DigestInfo": block(bytes.fromhex("302f300b0609608648016503040201") + b"\x04\x20" + digest),
        "SHA-1 named for SHA-256": block(bytes.fromhex("3021300906052b0e03021a05000414") + digest[:20]),
        "block type 2": block(info, kind=b"\x02"),
        "block type 0": block(info, kind=b"\x00", fill=b"\x00"),
        "filled with other bytes": block(info, fill=b"\xfe"),
        "junk behind the digest": pow(int.from_bytes(short + b"\0" * (256 - len(short))), d, n).to_bytes(256),
        "signed without padding": pow(int.from_bytes(digest), d, n).to_bytes(256),
        "SHA-512": RSA.sign(signed.encode(), "RS512"),
        "PSS": RSA.sign(signed.encode(), "PS256"),
    }.items():
        yield f"RS256: {name}", f"{signed}.{b64(signature)}"
    changes: dict[str, Callable[[bytes], bytes]] = {
        "+ n": lambda s: (int.from_bytes(s) + n).to_bytes(257),
        "negated": lambda s: (n - int.from_bytes(s)).to_bytes(256),
        "padded in front": lambda s: b"\0" + s,
        "padded behind": lambda s: s + b"\0",
        "cut": lambda s: s[:-1],
        "doubled": lambda s: s + s,
        "reversed": lambda s: s[::-1],
        "a bit": lambda s: s[:100] + bytes([s[100] ^ 1]) + s[101:],
    }
    for name, change in changes.items():
        yield f"RS256: {name}", with_signature(RSA, change)
    signed = parts(PSS)[0]
    for name, length in (("no salt", 0), ("a short salt", 20), ("the longest salt", padding.PSS.MAX_LENGTH)):
        scheme = padding.PSS(padding.MGF1(hashes.SHA256()), length)
        yield f"PS256: {name}", f"{signed}.{b64(PSS.private.sign(signed.encode(), scheme, hashes.SHA256()))}"
    scheme = padding.PSS(padding.MGF1(hashes.SHA1()), 32)  # noqa: S303 - it must be refused
    yield "PS256: MGF1 with SHA-1", f"{signed}.{b64(PSS.private.sign(signed.encode(), scheme, hashes.SHA256()))}"
    yield "PS256: PKCS #1 v1.5", f"{signed}.{b64(PSS.sign(signed.encode(), 'RS256'))}"


def eddsa() -> Iterator[tuple[str, str]]:
    order = ORDER["EdDSA"]
    changes: dict[str, Callable[[bytes], bytes]] = {
        "s + order": lambda s: s[:32] + (int.from_bytes(s[32:], "little") + order).to_bytes(32, "little"),
        "s is 0": lambda s: s[:32] + bytes(32),
        "R is 0": lambda s: bytes(32) + s[32:],
        "zeros": lambda _: bytes(64),
        "the neutral element": lambda _: b"\x01" + bytes(63),
        "all ones": lambda _: b"\xff" * 64,
        "cut": lambda s: s[:-1],
        "padded": lambda s: s + b"\0",
        "as long as Ed448's": lambda s: s + bytes(50),
        "doubled": lambda s: s + s,
        "a bit in R": lambda s: bytes([s[0] ^ 1]) + s[1:],
        "a bit in s": lambda s: s[:40] + bytes([s[40] ^ 1]) + s[41:],
    }
    for name, change in changes.items():
        yield f"EdDSA: {name}", with_signature(ED, change)


def encodings() -> Iterator[tuple[str, str]]:
    """One token has one text."""
    token = good(EC)
    head, body, signature = token.split(".")
    changes: dict[str, Callable[[str], str]] = {
        "padded": lambda text: text + "=" * (-len(text) % 4 or 4),
        "with a space": lambda text: text[:8] + " " + text[8:],
        "with a line break": lambda text: text[:8] + "\n" + text[8:],
        "with a line break behind": lambda text: text + "\n",
        "with a NUL": lambda text: text + "\0",
        "with a percent sign": lambda text: text[:8] + "%41" + text[9:],
        "in the other alphabet": lambda text: text[:8] + "+/" + text[8:],
        "with a stray character": lambda text: text[:8] + "!" + text[8:],
        "beyond ASCII": lambda text: text[:8] + "\uff41" + text[8:],
        "empty": lambda _: "",
        "cut": lambda text: text[:-1],
        "one character too long": lambda text: text + "A" * (1 + (1 - len(text)) % 4),
    }
    for part, where in enumerate(("header", "payload", "signature")):
        for what, change in changes.items():
            bent = [head, body, signature]
            bent[part] = change(bent[part])
            yield f"{where} {what}", ".".join(bent)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for bit in (1, 2, 4, 8):  # 64 bytes end with 4 bits that mean nothing
        last = alphabet[alphabet.index(signature[-1]) | bit]
        yield f"signature with the unused bit {bit}", f"{head}.{body}.{signature[:-1]}{last}"
    yield from {
        "a dot behind": token + ".",
        "a dot before": "." + token,
        "a fourth part": token + ".AA",
        "a JWE's five parts": f"{head}.{body}.{signature}.AA.AA",
        "two parts": f"{head}.{body}",
        "in quotes": f'"{token}"',
        "twice": f"{token}.{token}",
        "as a flattened JSON serialisation": json.dumps({"protected": head, "payload": body, "signature": signature}),
        "as a general JSON serialisation": json.dumps(
            {"payload": body, "signatures": [{"protected": head, "signature": signature}]}
        ),
        "nothing": "",
        "dots": "..",
        "too long": token + "A" * 16_384,
    }.items()


def headers() -> Iterator[tuple[str, str]]:
    evil = STRANGER.jwk()
    for name, value in {
        "jwk": evil,
        "jku": "https://evil.example/jwks",
        "x5u": "https://evil.example/x5u",
        "x5c": [b64(STRANGER.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))],
    }.items():
        yield f"a key of its own in {name}", compact(header(STRANGER, **{name: value}), claims(), STRANGER)
        without = {k: v for k, v in header(STRANGER, **{name: value}).items() if k != "kid"}
        yield f"a key of its own in {name}, no kid", compact(without, claims(), STRANGER)
    extensions: dict[str, dict[str, Any]] = {
        "crit": {"crit": ["exp"], "exp": 1},
        "crit of nothing": {"crit": []},
        "crit of a known name": {"crit": ["alg"]},
        "crit null": {"crit": None},
        "b64 false": {"crit": ["b64"], "b64": False},
        "b64 without crit": {"b64": False},
        "an extension": {"crit": ["http://example.com/x"], "http://example.com/x": True},
    }
    for name, extra in extensions.items():
        yield f"header: {name}", compact(header(EC, **extra), claims(), EC)
    for kid in ("../../etc/passwd", "ec' OR '1'='1", "EC", "ec ", "", "\u202eec", "k" * 9000, 1, ["ec"], {"kid": "ec"}):
        yield f"kid {str(kid)[:20]!r}", compact(header(EC, kid=kid), claims(), EC)
    for typ in ("id+jwt", "oauth-id-jag+jwt", "logout+jwt", "dpop+jwt", "secevent+jwt", "at+jwt ", 1, ["at+jwt"]):
        yield f"typ {typ!r}", compact(header(EC, typ=typ), claims(), EC)
    for text in (
        b'{"alg":"none","alg":"ES256","kid":"ec"}',
        b'{"alg":"ES256","kid":"ec","kid":"ec"}',
        b'{"alg":"ES256","\\u0061lg":"ES256","kid":"ec"}',
        b'["ES256"]',
        b'"ES256"',
        b"null",
        b"",
        b"{",
        b'{"alg":"ES256","kid":"ec"}{}',
        b"\xef\xbb\xbf" + b'{"alg":"ES256","kid":"ec"}',
        '{"alg":"ES256","kid":"ec"}'.encode("utf-16"),
        b'{"alg":"ES256","kid":"ec","x":NaN}',
        b'{"alg":"ES256","kid":"ec",}',
        b"{'alg':'ES256'}",
        b'{"alg":"ES256","kid":"\xff"}',
        b'{"alg":"ES256","kid":"ec","x":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ):
        yield f"header {text[:40]!r}", compact(text, claims(), EC)


def payloads() -> Iterator[tuple[str, str]]:
    now = int(time.time())
    ends: tuple[Any, ...] = (None, now, now - 1, 0, -1, True, False, "", str(now + 600), [now + 600], {}, 2**53 + 1)
    for exp in (*ends, 10**30, 1e308):
        yield f"exp {exp!r}", good(EC, exp=exp)
    for written in ("1e400", "-1e400", "NaN", "Infinity", "9" * 4000, "9" * 5000, "1" + "0" * 400, "0x7fffffff"):
        text = json.dumps(claims()).replace(f'"exp": {claims()["exp"]}', f'"exp": {written}')
        yield f"exp {written[:10]} ({len(written)})", compact(header(EC), text.encode(), EC)
    begins: tuple[Any, ...] = (now + 3600, "0", True, [], -1, 10**30)
    for name in ("nbf", "iat"):
        for value in begins:
            yield f"{name} {value!r}", good(EC, **{name: value})
    for iss in (f"{ISSUER.issuer}/", "https://login.example.co", "", None, 1, [ISSUER.issuer], {"iss": ISSUER.issuer}):
        yield f"iss {iss!r}", good(EC, iss=iss)
    for aud in (None, "", [], RESOURCE + "/", [RESOURCE, None], {"aud": RESOURCE}, RESOURCE.upper(), ISSUER.issuer):
        yield f"aud {aud!r}", good(EC, aud=aud)
    kinds: tuple[dict[str, Any], ...] = ({"nonce": "n"}, {"at_hash": "h"}, {"events": {}}, {"typ": "ID"}, {"cnf": {}})
    for kind in (*kinds, {"token_use": "id"}):
        yield f"claims {kind}", good(EC, **kind)
    text = json.dumps(claims())
    for name, extra in (("aud", RESOURCE), ("sub", "root"), ("exp", now + 600), ("iss", ISSUER.issuer)):
        yield f"{name} twice", compact(header(EC), (text[:-1] + f', "{name}": {json.dumps(extra)}}}').encode(), EC)
        escaped = f"\\u{ord(name[0]):04x}{name[1:]}"
        yield f"{name} twice, escaped", compact(header(EC), (text[:-1] + f', "{escaped}": 1}}').encode(), EC)
    yield "a JWT in a JWT", compact(header(EC, cty="JWT"), good(EC).encode(), EC)
    yield "a list of claims", compact(header(EC), f"[{text}]".encode(), EC)
    yield "claims in UTF-16", compact(header(EC), text.encode("utf-16"), EC)
    yield "claims behind a BOM", compact(header(EC), b"\xef\xbb\xbf" + text.encode(), EC)
    yield "something behind the claims", compact(header(EC), text.encode() + b"\n{}", EC)
    yield "claims that were changed", _changed(good(EC))
    yield "a lone surrogate as a name", compact(header(EC), text.replace("alice", "\\ud800").encode(), EC)


def _changed(token: str) -> str:
    head, _, signature = token.split(".")
    return f"{head}.{b64(json.dumps(claims(sub='root')).encode())}.{signature}"


def corpus() -> list[tuple[str, str]]:
    return [
        (name, token)
        for source in (algorithms, ecdsa, rsa, eddsa, encodings, headers, payloads)
        for name, token in source()
    ]


CORPUS = corpus()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def verifier(issuer_server: LoopbackIssuer) -> AsyncIterator[JWTVerifier]:
    """Trusts each kind of key. Its clock stands, so that at most one search for unknown keys is made."""
    issuer_server.published = [key.jwk() for key in (RSA, EC, ED, P384)]
    issuer_server.published.append(signing_key("RS256", "for-pss").jwk(kid="pss", alg="PS256"))
    made = JWTVerifier(
        resource=RESOURCE,
        issuers=[Issuer(ISSUER.issuer, typ="any", jwks_uri=f"{issuer_server.url}/jwks")],
        monotonic=FakeClock(),
        cache_size=2000,
    )
    for key in KEYS:
        assert await made.verify_token(good(key)) is not None, key.algorithm
    with_unknown_key = compact(header(EC, kid="unknown"), claims(), EC)
    assert await made.verify_token(with_unknown_key) is None
    issuer_server.reset()
    yield made
    await made.aclose()


@pytest.mark.parametrize(
    "token",
    [token for _, token in CORPUS],
    ids=[re.sub(r"[0-9]{10}", "now", name) for name, _ in CORPUS],  # the same in every process of a run
)
async def test_case_3_to_6_a_forged_token_is_refused(verifier: JWTVerifier, token: str) -> None:
    """B5, B6, RFC 8725."""
    assert await verifier.verify_token(token) is None
    assert verifier.recall(b"Bearer " + token.encode("utf-8", "surrogatepass")) is None


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.algorithm)
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"typ": "JWT"},
        {"typ": "application/at+jwt"},
        {"jku": "https://evil.example/jwks", "x5u": "https://evil.example", "jwk": STRANGER.jwk(), "x5c": ["AAAA"]},
        {"zip": "DEF"},
        {"kid": None},
    ],
    ids=" ".join,
)
async def test_a_good_token_is_let_in(verifier: JWTVerifier, key: SigningKey, extra: dict[str, Any]) -> None:
    """What its header offers besides is not looked at."""
    sent = {name: value for name, value in header(key, **extra).items() if value is not None}
    found = await verifier.verify_token(compact(sent, claims(), key))
    assert found is not None
    assert found.subject == "alice"


async def test_the_other_signature_of_ecdsa_is_the_issuers_too(verifier: JWTVerifier) -> None:
    """(r, n - s) is as good as (r, s): JWS does not choose one. Nothing here takes two texts for two tokens."""
    order = ORDER["ES256"]
    token = with_signature(EC, lambda s: s[:32] + (order - int.from_bytes(s[32:])).to_bytes(32))
    assert await verifier.verify_token(token) is not None


def test_the_corpus_is_not_empty() -> None:
    assert len(CORPUS) > 300
    assert len({name for name, _ in CORPUS}) == len(CORPUS), "each has a name"
