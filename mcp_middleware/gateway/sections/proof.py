"""How the gateway proves itself to an authorization server: the keys that ``auth`` and ``credentials`` share."""

from collections.abc import Collection
from typing import Any, Final, get_args

from mcp_middleware.gateway.scalars import OneOf, Secret
from mcp_middleware.gateway.shapes import Key, Text
from mcp_middleware.gateway.values import NAME, printable
from mcp_middleware.oauth.authentication import ClientAuthentication, ClientSecret, PrivateKeyJWT, SecretMethod
from mcp_middleware.resource_server.keys import ALGORITHMS

__all__ = ["PRIVATE", "PROOF", "one_proof", "take_proof"]


def _client_id(text: str) -> str:
    ClientSecret(text, "secret")
    return printable(text)


def _client_secret(text: str) -> str:
    ClientSecret("client", text)
    return printable(text)


def _private_key(text: str) -> str:
    PrivateKeyJWT("client", text)
    return text


PROOF: Final = (
    Key(
        "client_id",
        Text(
            "string",
            "be printable text of at most 512 characters",
            _client_id,
            examples=("gateway",),
        ),
        "The gateway's name there.",
        required=True,
    ),
    Key(
        "client_secret",
        Secret(
            "secret",
            "be printable text of at most 512 characters, or {file: PATH}",
            _client_secret,
            ("${GATEWAY_SECRET}",),
        ),
        "Its secret. Either this or `private_key`.",
    ),
    Key(
        "secret_method",
        OneOf(get_args(SecretMethod)),
        "How the secret is sent: in a header, or in the form. Without it: as the authorization server says it accepts.",
    ),
    Key(
        "private_key",
        Secret(
            "secret",
            "be a private key in PEM without a password (RSA of 2048 bits or more, or EC), or {file: PATH}",
            _private_key,
        ),
        "A private key in PEM, with which it signs an assertion in place of a secret (`private_key_jwt`).",
    ),
    Key(
        "algorithm",
        OneOf(tuple(sorted(ALGORITHMS))),
        "The assertion's algorithm. Without it: as the key's kind has it.",
    ),
    Key("key_id", NAME, "The key's name, as `kid` of the assertion."),
)
PRIVATE: Final = (
    "may be on a private network. Otherwise such addresses are refused, so that no metadata can send requests there."
)
"""What the key ``allow_private_addresses`` is about, after "whether it"."""


def one_proof(given: Collection[str]) -> str | None:
    """One way to prove who the gateway is, and nothing that belongs to the other."""
    if ("client_secret" in given) == ("private_key" in given):
        number = "both" if "client_secret" in given else "neither"
        return f"has {number} of client_secret and private_key; it must have one of them"
    signs = "private_key" in given
    stray = [name for name in (("secret_method",) if signs else ("algorithm", "key_id")) if name in given]
    proof = "private_key" if signs else "client_secret"
    return f"has {' and '.join(stray)}, which {proof} has no use for; leave it out" if stray else None


def take_proof(values: dict[str, Any]) -> ClientAuthentication:
    """Take out of ``values`` how the gateway proves itself."""
    names = (key.name for key in PROOF)
    client, secret, method, key, algorithm, key_id = (values.pop(name) for name in names)
    if key is None:
        return ClientSecret(client, secret, method)
    return PrivateKeyJWT(client, key, algorithm=algorithm, key_id=key_id)
