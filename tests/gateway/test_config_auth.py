"""What the gateway's file says of issuers and of the credentials that servers get, and what is said of a wrong one."""

from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mcp_middleware.credentials import ClientCredentials, TokenExchange
from mcp_middleware.gateway.banner import capabilities
from mcp_middleware.gateway.config import Config, from_mapping
from mcp_middleware.gateway.schema import schema
from mcp_middleware.gateway.sections.credentials import CallerConfig, GrantConfig, HeaderConfig
from mcp_middleware.oauth.authentication import ClientSecret, PrivateKeyJWT
from mcp_middleware.resource_server import Claims, Introspection, Issuer

from .configurations import SMALL, loaded, refused

CONTRACT = """\
public_url: https://mcp.example.com
auth:
  issuers:
    - {issuer: https://login.example.com}
    - {issuer: https://tenant.example.com, typ: any, audiences: ["api://mcp"],
       claims: {agent: azp, roles: realm_access.roles}}
    - {issuer: https://opaque.example.com, introspection: {client_id: gateway, client_secret: "${GATEWAY_SECRET}"}}
  scopes: [mcp:use]
servers:
  files:   {url: "https://files/mcp", credentials: {type: header, name: X-Api-Key, value: "${FILES_KEY}"}}
  tickets: {url: "https://tickets/mcp", credentials: {type: client_credentials, issuer: https://login.example.com,
            client_id: gateway, client_secret: "${GATEWAY_SECRET}",
            resource: https://tickets.example.com/mcp, scope: "tickets:read"}}
  mail:    {url: "https://mail/mcp", credentials: {type: token_exchange, issuer: https://login.example.com,
            client_id: gateway, client_secret: "${GATEWAY_SECRET}", audience: https://mail.example.com/mcp}}
"""
SECRET = "hunter2 and more"
ENVIRON = {"GATEWAY_SECRET": SECRET, "FILES_KEY": "key-of-files"}
PEM = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
SHORT = (
    rsa.generate_private_key(65537, 1024)  # noqa: S505 - it must be refused
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    .decode()
)


def contract(directory: Path, text: str = CONTRACT, **environ: str) -> Config:
    return loaded(directory, text, **(ENVIRON | environ))


def test_a_client_may_have_a_space_in_its_name(tmp_path: Path) -> None:
    """RFC 6749 appendix A.1."""
    config = contract(tmp_path, CONTRACT.replace("client_id: gateway", 'client_id: "the gateway"'))
    assert config.auth is not None
    (asked,) = (issuer.introspection for issuer in config.auth.issuers if issuer.introspection is not None)
    assert asked.authentication == ClientSecret("the gateway", SECRET)


def test_the_contracts_issuers_and_credentials_are_read_as_they_stand(tmp_path: Path) -> None:
    config = contract(tmp_path)
    assert config.auth is not None
    secret = ClientSecret("gateway", SECRET)
    assert config.auth.issuers == (
        Issuer("https://login.example.com"),
        Issuer(
            "https://tenant.example.com",
            typ="any",
            audiences=("api://mcp",),
            claims=Claims(agent="azp", roles="realm_access.roles"),
        ),
        Issuer("https://opaque.example.com", introspection=Introspection(secret)),
    )
    assert (config.auth.scopes, config.auth.implied_scopes, config.auth.legacy_metadata) == (("mcp:use",), {}, True)
    login = "https://login.example.com"
    assert {name: server.credentials for name, server in config.servers.items()} == {
        "files": HeaderConfig(name="x-api-key", value="key-of-files"),
        "tickets": GrantConfig(
            type="client_credentials",
            issuer=login,
            authentication=secret,
            resource="https://tickets.example.com/mcp",
            scope="tickets:read",
        ),
        "mail": GrantConfig(
            type="token_exchange", issuer=login, authentication=secret, audience="https://mail.example.com/mcp"
        ),
    }
    assert config.servers["files"].fixed_headers == {"x-api-key": "key-of-files"}


def test_what_servers_get_is_summed_up_without_secrets(tmp_path: Path) -> None:
    text = CONTRACT.replace('"https://files/mcp"', '"https://files/mcp", caller: {key: "${PEM}"}')
    assert capabilities(contract(tmp_path, text, PEM=PEM))["credentials"] == (
        "files by a header and the caller in x-mcp-caller, tickets by client_credentials of https://login.example.com, "
        "mail by token_exchange of https://login.example.com"
    )
    for headers, told in (("X-Tenant: t", "none"), ("Authorization: b", "a by a header")):
        config = loaded(tmp_path, SMALL.replace("/mcp}", f"/mcp, headers: {{{headers}}}}}"))
        assert capabilities(config)["credentials"] == told
        lent = "servers.a.headers are lent to everybody who reaches the gateway, since auth is off"
        assert (lent in config.warnings) is (told != "none")
    assert capabilities(loaded(tmp_path, SMALL))["credentials"] == "none"


def test_nothing_secret_of_them_is_in_a_repr_or_warning(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text(PEM)
    text = CONTRACT.replace('client_secret: "${GATEWAY_SECRET}", audience', "private_key: {file: key.pem}, audience")
    text = text.replace('https://files/mcp"', 'http://files/mcp", caller: {key: {file: key.pem}}')
    config = contract(tmp_path, text)
    shown = repr(config) + " ".join(config.warnings)
    assert not any(secret in shown for secret in (SECRET, "key-of-files", PEM, PEM.splitlines()[1]))
    assert key in config.files


def test_what_differs_from_the_usual_is_read(tmp_path: Path) -> None:
    text = CONTRACT.replace("scopes: [mcp:use]", "implied_scopes: {a: [b, c], b: [d]}\n  legacy_metadata: off")
    text = text.replace(
        '${GATEWAY_SECRET}"}}\n', '${GATEWAY_SECRET}", secret_method: client_secret_post, cache: 5s}}\n', 1
    )
    text = text.replace("tenant.example.com,", "tenant.example.com, allow_private_addresses: true,")
    text = text.replace(
        'client_secret: "${GATEWAY_SECRET}", audience',
        'private_key: "${PEM}", algorithm: ES256, key_id: k1, allow_private_addresses: true, audience',
    )
    text = text.replace("files:   {", 'files:   {caller: {key: "${PEM}"}, ').replace(
        'type: header, name: X-Api-Key, value: "${FILES_KEY}"', "type: none"
    )
    config = contract(tmp_path, text, PEM=PEM)
    assert config.auth is not None
    assert config.auth.implied_scopes == {"a": ("b", "c"), "b": ("d",)}
    assert not config.auth.legacy_metadata
    secret = ClientSecret("gateway", SECRET, "client_secret_post")
    assert config.auth.issuers[2].introspection == Introspection(secret, cache=5.0)
    mail = config.servers["mail"].credentials
    assert isinstance(mail, GrantConfig)
    assert mail.authentication == PrivateKeyJWT("gateway", PEM, algorithm="ES256", key_id="k1")
    assert config.servers["files"].credentials is None
    assert config.servers["files"].caller == CallerConfig(header="x-mcp-caller", key=PEM)
    named = [warning.partition(" is true")[0] for warning in config.warnings]
    assert "auth.issuers[1].allow_private_addresses" in named
    assert "servers.mail.credentials.allow_private_addresses" in named


def test_two_readings_of_the_same_file_are_equal_and_a_new_secret_is_not(tmp_path: Path) -> None:
    assert contract(tmp_path) == contract(tmp_path)
    other = contract(tmp_path, GATEWAY_SECRET="another")
    assert contract(tmp_path).auth != other.auth
    assert contract(tmp_path).servers["mail"] != other.servers["mail"]
    assert contract(tmp_path).servers["files"] == other.servers["files"]


@pytest.mark.parametrize(
    ("cache", "warned"), [("30s", False), ("31s", True), ("off", False), ("5m", True), ("5s", False)]
)
def test_a_cache_that_sees_revocations_late_is_warned_of(tmp_path: Path, cache: str, warned: bool) -> None:
    text = CONTRACT.replace('${GATEWAY_SECRET}"}}\n', f'${{GATEWAY_SECRET}}", cache: {cache}}}}}\n', 1)
    warnings = contract(tmp_path, text).warnings
    assert any(found.startswith("auth.issuers[2].introspection.cache is above 30 s") for found in warnings) is warned


SECRETS = "client_id: g, client_secret: s"


@pytest.mark.parametrize(
    ("issuer", "said"),
    [
        ("claims: azp", "auth.issuers[0].claims is 'azp'; it must be a mapping with agent, subject, scopes, roles"),
        ("claims: {agents: azp}", "auth.issuers[0].claims.agents is no key of this place; did you mean agent?"),
        ("claims: {agent: 7}", "auth.issuers[0].claims.agent is 7 (a number); it must be the name of a claim, or a"),
        ("claims: {roles: []}", "auth.issuers[0].claims.roles is an empty list; it must be a list with at least one"),
        ("claims: {roles: [a, a]}", "auth.issuers[0].claims.roles[1] repeats auth.issuers[0].claims.roles[0]"),
        ('claims: {agent: "a\\nb"}', "auth.issuers[0].claims.agent is 'a\\nb'; it must be the name of a claim"),
        ("claims: {agent: a.b.c.d.e.f.g.h.i.j.k}", "auth.issuers[0].claims.agent is 'a.b.c.d.e.f.g.h.i.j.k'; it must"),
        ("introspection: on", "auth.issuers[0].introspection is on (a boolean); it must be a mapping with client_id"),
        ("introspection: {client_id: g}", "auth.issuers[0].introspection has neither of client_secret and private_key"),
        (
            'introspection: {client_id: "a\\nb", client_secret: s}',
            "introspection.client_id is 'a\\nb'; it must be printable",
        ),
        ("audiences: []", "auth.issuers[0].audiences is an empty list; it must be a list with at least one item"),
        (
            "introspection: {client_secret: s}",
            "auth.issuers[0].introspection.client_id is missing; it must be printable text of",
        ),
        (f"introspection: {{{SECRETS}, private_key: x}}", "introspection has both of client_secret and private_key"),
        (f"introspection: {{{SECRETS}, key_id: x}}", "has key_id, which client_secret has no use for; leave it out"),
        (
            f"introspection: {{{SECRETS}, endpoint: 'http://x/'}}",
            "introspection.endpoint is 'http://x/'; it must be an",
        ),
        (
            f"introspection: {{{SECRETS}, cache: 6m}}",
            "Introspection.cache is 360.0; it must be a number of seconds from",
        ),
        (
            f"introspection: {{{SECRETS}, cache: 0}}",
            "auth.issuers[0].introspection.cache is 0 (a number); it must be a",
        ),
        (
            f"typ: any, jwks_uri: 'https://x', introspection: {{{SECRETS}}}",
            "auth.issuers[0] has typ and jwks_uri beside introspection, which has no use for it; leave it out",
        ),
        (
            "allow_private_addresses: perhaps",
            "auth.issuers[0].allow_private_addresses is 'perhaps'; it must be true or",
        ),
    ],
)
def test_a_wrong_issuer_is_named_with_value_and_remedy(tmp_path: Path, issuer: str, said: str) -> None:
    text = (
        f"servers: {{a: {{url: 'http://127.0.0.1/mcp'}}}}\nauth:\n  issuers:\n    - {{issuer: https://l, {issuer}}}\n"
    )
    lines = refused(tmp_path, text)
    assert any(line.startswith("gateway.yaml:4: ") and said in line for line in lines), lines


@pytest.mark.parametrize(
    ("auth", "said"),
    [
        ("implied_scopes: [a]", "auth.implied_scopes is a list; it must be a mapping (scope)"),
        ("implied_scopes: {a b: [c]}", "auth.implied_scopes has the key 'a b'; it must be a scope"),
        ("implied_scopes: {a: b}", "auth.implied_scopes.a is 'b'; it must be a list with at least one item (scope)"),
        ("implied_scopes: {a: []}", "auth.implied_scopes.a is an empty list; it must be a list with at least one item"),
        ("implied_scopes: {a: [b], b: [a]}", "auth.implied_scopes['a']: a contains b contains a; no scope may contain"),
        ("legacy_metadata: old", "auth.legacy_metadata is 'old'; it must be true or false"),
    ],
)
def test_wrong_scopes_and_metadata_are_named_with_value_and_remedy(tmp_path: Path, auth: str, said: str) -> None:
    text = f"servers: {{a: {{url: 'http://127.0.0.1/mcp'}}}}\nauth:\n  issuers: ['https://l']\n  {auth}\n"
    lines = refused(tmp_path, text)
    assert any(line.startswith("gateway.yaml:4: ") and said in line for line in lines), lines


GRANT = "issuer: 'https://l', client_id: g"


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ("credentials: X", "servers.a.credentials is 'X'; it must be a mapping with type"),
        (
            "credentials: {}",
            "servers.a.credentials.type is missing; it must be none or header or client_credentials or",
        ),
        (
            "credentials: {type: basic}",
            "servers.a.credentials.type is 'basic'; it must be none or header or client_cre",
        ),
        ("credentials: {type: off}", "servers.a.credentials.type is off (a boolean); it must be none or header or"),
        ("credentials: {type: none, name: x}", "servers.a.credentials.name is no key of this place; allowed are type"),
        (
            "headers: {Authorization: Bearer x}, credentials: {type: none}",
            "servers.a.headers has authorization, and servers.a.credentials is of type none; keep one",
        ),
        ("credentials: {type: header}", "servers.a.credentials.name is missing; it must be the name of a header"),
        ("credentials: {type: header, name: X, value: 7}", "servers.a.credentials.value must be printable ASCII"),
        ("credentials: {type: header, name: Host, value: x}", "servers.a.credentials.name is 'Host'; it must be the"),
        (
            "credentials: {type: header, name: Mcp-Name, value: x}",
            "servers.a.credentials.name is 'Mcp-Name'; it must be",
        ),
        (f"credentials: {{type: client_credentials, {GRANT}}}", "has neither of client_secret and private_key"),
        (
            "credentials: {type: client_credentials, client_secret: s}",
            "servers.a.credentials.issuer is missing; it must",
        ),
        (f"credentials: {{type: token_exchange, {GRANT}, client_secret: s}}", "no use without audience or resource"),
        (
            f"credentials: {{type: client_credentials, {GRANT}, client_secret: s, resource: x}}",
            "servers.a.credentials.resource is 'x'; it must be an absolute https URL",
        ),
        (
            f"credentials: {{type: client_credentials, {GRANT}, client_secret: s, resource: 'https://x/#f'}}",
            "servers.a.credentials.resource is 'https://x/#f'; it must be an absolute https URL",
        ),
        (
            f"credentials: {{type: client_credentials, {GRANT}, client_secret: s, scope: [a]}}",
            "servers.a.credentials.scope is a list; it must be scopes, separated by single spaces",
        ),
        (
            f"credentials: {{type: client_credentials, {GRANT}, client_secret: s, scope: 'a  b'}}",
            "servers.a.credentials.scope is 'a  b'; it must be scopes, separated by single spaces",
        ),
        (
            f"credentials: {{type: client_credentials, {GRANT}, private_key: no-key}}",
            "servers.a.credentials.private_key (not shown) must be a private key in PEM without a password",
        ),
        (
            f"credentials: {{type: client_credentials, {GRANT}, private_key: '${{PEM}}', algorithm: RS256}}",
            "servers.a.credentials: the algorithm is 'RS256'; for this key it must be ES256",
        ),
        (
            f"credentials: {{type: client_credentials, {GRANT}, private_key: '${{PEM}}', "
            "secret_method: client_secret_post}",
            "servers.a.credentials has secret_method, which private_key has no use for; leave it out",
        ),
        (
            f"credentials: {{type: client_credentials, {GRANT}, private_key: '${{SHORT}}'}}",
            "servers.a.credentials.private_key (not shown) must be a private key in PEM without a password",
        ),
        (
            "headers: {X-Key: a}, credentials: {type: header, name: x-key, value: b}",
            "servers.a.credentials and servers.a.headers both set the header x-key; keep one",
        ),
        (
            f"headers: {{Authorization: a}}, credentials: {{type: client_credentials, {GRANT}, client_secret: s}}",
            "servers.a.credentials and servers.a.headers both set the header authorization; keep one",
        ),
        (
            "headers: {X-Mcp-Caller: a}, caller: {key: '${PEM}'}",
            "servers.a.caller and servers.a.headers both set the header x-mcp-caller; keep one",
        ),
        (
            f"caller: {{header: Authorization, key: '${{PEM}}'}}, credentials: {{type: client_credentials, {GRANT}, "
            "client_secret: s}",
            "servers.a.caller and servers.a.credentials both set the header authorization; keep one",
        ),
        ("caller: {}", "servers.a.caller.key is missing; it must be a secret of at least 32 bytes"),
        ("caller: {key: x}", "servers.a.caller.key (not shown) must be"),
        ("caller: {key: '${PEM}', header: 'a b'}", "servers.a.caller.header is 'a b'; it must be the name of a header"),
    ],
)
def test_wrong_credentials_are_named_with_value_and_remedy(tmp_path: Path, server: str, said: str) -> None:
    text = f"auth: {{issuers: ['https://l']}}\nservers:\n  a: {{url: 'http://127.0.0.1/mcp', {server}}}\n"
    lines = refused(tmp_path, text, PEM=PEM, SHORT=SHORT)
    assert any(line.startswith("gateway.yaml:3: ") and said in line for line in lines), lines


def test_what_needs_callers_who_are_known_is_refused_where_nobody_is(tmp_path: Path) -> None:
    text = f"""\
auth: off
servers:
  a: {{url: 'http://127.0.0.1/mcp', credentials: {{type: token_exchange, {GRANT}, client_secret: s, audience: x}}}}
  b: {{url: 'http://127.0.0.1/mcp', caller: {{key: '${{PEM}}'}}}}
  c: {{url: 'http://127.0.0.1/mcp', credentials: {{type: client_credentials, {GRANT}, client_secret: s}}}}
"""
    assert refused(tmp_path, text, PEM=PEM) == [
        "gateway.yaml:3: servers.a.credentials.type is 'token_exchange'; it must be another, since auth is off: there "
        "are no tokens to exchange",
        "gateway.yaml:4: servers.b.caller is of no use where auth is off: all callers are one; leave it out",
    ]


@pytest.mark.parametrize(
    ("server", "key"),
    [
        ("headers: {x: y}", "headers"),
        ("credentials: {type: header, name: x, value: y}", "credentials"),
        (f"credentials: {{type: client_credentials, {GRANT}, client_secret: s}}", "credentials"),
        ("caller: {key: '${PEM}'}", "caller"),
    ],
)
def test_credentials_over_http_to_another_machine_are_warned_of(tmp_path: Path, server: str, key: str) -> None:
    text = f"auth: {{issuers: ['https://l']}}\nservers:\n  a: {{url: 'http://files.internal/mcp', {server}}}\n"
    warned = [w for w in loaded(tmp_path, text, PEM=PEM).warnings if w.startswith("servers.a.")]
    assert warned == [f"servers.a.{key} go over http to another machine: they can be read on the way"]
    assert not [
        w for w in loaded(tmp_path, text.replace("http:", "https:"), PEM=PEM).warnings if w.startswith("servers.a.")
    ]


def test_secrets_of_the_environment_are_in_no_error(tmp_path: Path) -> None:
    secret = "hunter2\\n?#[*"
    text = """\
auth:
  issuers:
    - {issuer: "${S}", claims: {agent: "${S}", roles: ["${S}"]}}
    - {issuer: https://l, introspection: {client_id: "${S}", client_secret: "${S}", endpoint: "${S}", cache: "${S}"}}
  implied_scopes: {a: ["${S} ${S}"]}
  legacy_metadata: "${S}"
servers:
  a: {url: "https://x", credentials: {type: "${S}"}}
  b: {url: "https://x", credentials: {type: header, name: "${S}", value: "${S}"}}
  c: {url: "https://x", credentials: {type: token_exchange, issuer: "${S}", client_id: "${S}", private_key: "${S}",
      algorithm: "${S}", key_id: "${S}", audience: "${S}", resource: "${S}", scope: "${S} "}}
  d: {url: "https://x", caller: {header: "${S}", key: "${S}"}}
"""
    lines = refused(tmp_path, text, S=secret.encode().decode("unicode_escape"))
    assert len(lines) > 15
    assert not any("hunter2" in line for line in lines)


def test_a_private_network_is_allowed_by_one_name() -> None:
    for made in (Issuer, ClientCredentials, TokenExchange):
        assert "allow_private_addresses" in signature(made).parameters


def test_a_credential_reads_the_same_in_python_values() -> None:
    given: dict[str, Any] = {
        "servers": {
            "a": {"url": "http://127.0.0.1:1/mcp", "credentials": {"type": "header", "name": "X", "value": "y"}}
        },
        "auth": False,
    }
    assert from_mapping(given, environ={}).servers["a"].credentials == HeaderConfig(name="x", value="y")
    assert "client_credentials" in str(schema())
